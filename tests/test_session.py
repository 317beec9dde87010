"""The session by itself, driven as a host adapter drives it."""

import pytest
import torch
from tiny import run_net, tiny_controlnet, tiny_unet

from lib_ccn.foreground import resize_mask
from lib_ccn.prompt import Token, TokenizedPrompt
from lib_ccn.session import Session
from lib_ccn.settings import Settings, SettingsError
from lib_ccn.silhouette import silhouette
from lib_ccn.units import Call, Role, StepClock, Unit

SIZE = (8, 8)


def residuals(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 8, 8, 8), (2, 16, 4, 4), (2, 16, 2, 2)]
    return [[torch.randn(s, generator=generator) for s in shapes] for _ in range(count)]


def a_call(step=0):
    return Call(latent_size=SIZE, step=step, pictures=[0, 0], conditional=[1])


def the_sum(lists):
    return [sum(layer[1:], layer[0]) for layer in zip(*lists, strict=True)]


def test_roles(unet, nets):
    units = [Unit(nets[0], eligible=False), Unit(nets[1]), Unit(nets[2])]
    session = Session(Settings(), unet, units)
    assert [u.role for u in units] == [Role.BYSTANDER, Role.FOREGROUND, Role.BACKGROUND]
    assert session.running_order(units)[0] is units[1]
    Session(Settings(foreground_unit=2), unet, units)
    assert [u.role for u in units] == [Role.BYSTANDER, Role.BACKGROUND, Role.FOREGROUND]
    with pytest.raises(SettingsError, match=r"foreground_unit = 0.*\[1, 2\]"):
        Session(Settings(foreground_unit=0), unet, units)
    with pytest.raises(SettingsError, match="foreground_unit"):
        Session(Settings(foreground_unit=7), unet, units)
    with pytest.raises(SettingsError, match="mask_image"):
        Session(Settings(mask_source="image"), unet, units)


def test_a_chosen_background_unit_leaves_the_others_fused_only(unet, nets):
    units = [Unit(net, number=number) for net, number in zip(nets, (0, 2, 5), strict=True)]
    Session(Settings(background_unit=0), unet, units)
    assert [u.role for u in units] == [Role.BACKGROUND, Role.FOREGROUND, Role.FUSED]
    Session(Settings(background_unit=2, foreground_unit=5), unet, units)
    assert [u.role for u in units] == [Role.FUSED, Role.BACKGROUND, Role.FOREGROUND]
    with pytest.raises(SettingsError, match=r"background_unit = 1.*\[0, 2, 5\]"):
        Session(Settings(background_unit=1), unet, units)
    with Session(Settings(mask_source="all", start_step=0, background_unit=2), unet, units) as s:
        s.begin_call(a_call())
        outs = {u: s.run(u, lambda u=u: run_net(u.module)) for u in s.running_order(units)}
    plain = {u: run_net(u.module) for u in units}
    changed = [not torch.equal(outs[u][-1], plain[u][-1]) for u in units]
    assert changed == [False, True, False]


def test_tiles_are_fused_but_not_injected(unet, nets):
    units = [Unit(nets[0]), Unit(nets[1])]
    settings = Settings(mask_source="all", start_step=0, fusion="mean")
    with Session(settings, unet, units) as session:
        session.begin_call(Call(SIZE, 0, [0, 0], [1], whole=False))
        outs = {u: session.run(u, lambda u=u: run_net(u.module)) for u in units}
        fused = session.fuse(outs)
    assert session.injected == 0
    for got, layer in zip(fused, zip(*outs.values(), strict=True), strict=True):
        torch.testing.assert_close(got, sum(layer) / 2)
    assert "tiles" in session.summary()


def test_bystanders_are_added_and_missing_units_ignored(unet, nets):
    units = [Unit(nets[0]), Unit(nets[1], eligible=False), Unit(nets[2])]
    lists = residuals(3)
    session = Session(Settings(inject=False, fusion="mean"), unet, units)
    session.begin_call(a_call())
    fused = session.fuse(dict(zip(units, lists, strict=True)))
    for got, a, b, c in zip(fused, *lists, strict=True):
        torch.testing.assert_close(got, (a + c) / 2 + b)
    pair = {units[0]: lists[0], units[1]: lists[1]}
    for got, want in zip(session.fuse(pair), the_sum(lists[:2]), strict=True):
        assert torch.equal(got, want), "one eligible unit: the host's sum"
    only = session.fuse({units[2]: lists[2]})
    assert all(torch.equal(a, b) for a, b in zip(only, lists[2], strict=True))


@pytest.mark.parametrize("step", [0, 4, 5, 9])
def test_injection_waits_for_its_step(unet, nets, step):
    units = [Unit(nets[0]), Unit(nets[1])]
    with Session(Settings(mask_source="all"), unet, units) as session:
        session.begin_call(a_call(step))
        outs = [session.run(u, lambda u=u: run_net(u.module)) for u in units]
    assert (session.injected > 0) == (step >= 5)
    assert all(torch.equal(a, b) for a, b in zip(outs[0], run_net(nets[0]), strict=True))
    same = [torch.equal(a, b) for a, b in zip(outs[1], run_net(nets[1]), strict=True)]
    assert all(same) == (step < 5)


def test_without_the_foreground_unit_nothing_is_injected(unet, nets):
    units = [Unit(net) for net in nets]
    with Session(Settings(mask_source="all", start_step=0), unet, units) as session:
        session.begin_call(a_call(), active=units[1:])
        for unit in units[1:]:
            out = session.run(unit, lambda unit=unit: run_net(unit.module))
            assert all(torch.equal(a, b) for a, b in zip(out, run_net(unit.module), strict=True))
    assert session.injected == 0


def test_two_units_may_share_a_module(unet, nets):
    units = [Unit(nets[0]), Unit(nets[0])]
    with Session(Settings(mask_source="all", start_step=0), unet, units) as session:
        session.begin_call(a_call())
        session.run(units[0], lambda: run_net(nets[0], seed=1))
        out = session.run(units[1], lambda: run_net(nets[0], seed=2))
    assert session.injected == 4
    assert not torch.equal(out[-1], run_net(nets[0], seed=2)[-1])


def test_what_goes_wrong_is_raised(unet, nets):
    units = [Unit(nets[0]), Unit(nets[1])]
    lists = residuals(2)
    with Session(Settings(mask_source="all", start_step=0), unet, units) as session:
        session.begin_call(a_call())
        with pytest.raises(ZeroDivisionError):
            session.run(units[0], lambda: 1 / 0)
        with pytest.raises(ValueError, match="residuals"):
            session.fuse({units[0]: lists[0], units[1]: lists[1][:-1]})
    assert not any(m._forward_hooks for m in nets[0].modules())


def test_an_interrupt_is_not_swallowed(unet, nets):
    units = [Unit(nets[0]), Unit(nets[1])]

    def interrupted():
        raise KeyboardInterrupt

    with Session(Settings(mask_source="all", start_step=0), unet, units) as session:
        session.begin_call(a_call())
        with pytest.raises(KeyboardInterrupt):
            session.run(units[0], interrupted)
    assert not any(m._forward_hooks for m in nets[0].modules())


def encode(text):
    return [{"red": 1, "star": 2, "ring": 3}[word] for word in text.lower().split()]


def prompt(text, pieces=True):
    """The prompt's tokens from the first on, each a word."""
    return TokenizedPrompt(
        tuple(
            Token(number, place, f"{word}</w>" if pieces else None)
            for place, (number, word) in enumerate(zip(encode(text), text.split(), strict=True))
        )
    )


def recorded(session, unet, call, seed):
    """What an adapter does in one call, with the UNet's part; the seed says what it is asked."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(call.pictures)
    units = session.units
    session.begin_call(call)
    inputs = [
        torch.randn(shape, generator=generator)
        for shape in ((rows, 4, *call.latent_size), (rows, 5, 16), (rows, 3, 16, 16))
    ]
    found = {}
    for unit in session.running_order(units):

        def forward(unit=unit):
            down, middle = unit.module(inputs[0], 3, *inputs[1:], return_dict=False)
            return [*down, middle]

        found[unit] = session.run(unit, forward)
    fused = session.fuse(found)
    with torch.no_grad():
        unet(inputs[0], 3, inputs[1])
    return fused


# A batch of two pictures with two sub-prompts each, as AUTOMATIC1111 may send it: in three calls.
PARTS = [([0, 0], [0]), ([1, 1], [1]), ([0, 1], [])]


@pytest.mark.parametrize("source", ["all", "image", "silhouette", "word"])
def test_calls_may_hold_some_of_the_pictures(unet, nets, source):
    images = torch.zeros(2, 3, 16, 16)
    images[0, :, 2:9, 2:9] = images[1, :, 8:, 4:] = 1
    units = [Unit(nets[0], condition=images), Unit(nets[1])]
    settings = Settings(mask_source=source, foreground_word="star", start_step=1, strict=True)
    painted = torch.tensor([[True, False], [False, False]])[None]
    prompts = [prompt("red star"), prompt("star ring")]
    injected = []
    with Session(settings, unet, units, prompts, encode, painted) as session:
        for step in range(3):
            for number, (pictures, conditional) in enumerate(PARTS):
                call = Call(SIZE, step, pictures, conditional, total=2)
                recorded(session, unet, call, 10 * step + number)
                injected.append(session.injected)
    assert len(session.place.mask) == 2
    assert session.place.usable.all()
    assert torch.equal(*session.place.mask) == (source in ("all", "image"))
    assert session.notes == []
    assert injected == [0, 0, 0, 4, 8, 12, 16, 20, 24], "four layers in each call from step 1 on"


@pytest.mark.parametrize(("source", "times"), [("all", 1), ("silhouette", 1), ("word", 3)])
def test_a_mask_is_resized_when_it_changes(unet, nets, source, times, monkeypatch):
    """Once for each of the two token grids that these layers have."""
    sizes = []

    def resize(mask, grid):
        sizes.append(grid)
        return resize_mask(mask, grid)

    monkeypatch.setattr("lib_ccn.places.resize_mask", resize)
    condition = torch.zeros(1, 3, 16, 16)
    condition[..., 2:9, 2:9] = 1
    units = [Unit(nets[0], condition=condition), *map(Unit, nets[1:])]
    settings = Settings(mask_source=source, foreground_word="star", start_step=1, strict=True)
    with Session(settings, unet, units, [prompt("star")], encode) as session:
        for step in range(4):
            recorded(session, unet, a_call(step), step)
    assert session.injected == 2 * 4 * 3, "two background units, four layers, three steps"
    assert sorted(sizes) == sorted([*set(sizes)] * times)


def test_condition_images_are_told_apart_by_picture(unet, nets):
    """As many as rows of the batch, as pictures, fewer, or more than that."""
    images = torch.zeros(4, 3, 16, 16)
    for place, image in enumerate(images):
        image[:, 4 * place :, 2:9] = 1
    settings = Settings(mask_source="silhouette", start_step=0, strict=True)
    for batch, total, given, wanted in [
        ([0, 1, 0, 1], None, [0, 1, 0, 1], [0, 1]),
        ([0, 0, 1, 1], None, [0, 0, 1, 1], [0, 1]),
        ([0, 0, 1, 1], None, [0, 1], [0, 1]),
        ([1, 1], 2, [0, 1], [0, 1]),
        ([0, 1, 2], None, [0, 1], [0, 1, 0]),
        ([0, 1], 2, [0, 1, 2], [0, 1]),
        ([2, 2], 4, [3], [3, 3, 3, 3]),
    ]:
        units = [Unit(nets[0], condition=images[given]), Unit(nets[1])]
        with Session(settings, unet, units) as session:
            session.begin_call(Call(SIZE, 0, batch, [], total=total))
        assert torch.equal(session.place.mask, silhouette(images[wanted])), (batch, given)


def test_a_words_mask_is_gathered_picture_by_picture(unet, nets):
    """Two calls with a picture each give what one call with both gives."""
    settings = Settings(foreground_word="star", start_step=1, show_mask=True, mask_threshold=0.5)
    prompts = [prompt("red star"), prompt("star ring")]
    generator = torch.Generator().manual_seed(3)
    latents, texts = (torch.randn(2, *s, generator=generator) for s in ((4, *SIZE), (5, 16)))
    heats = []
    for batches in ([[0, 1]], [[0], [1]], [[1], [0], [1], [0]]):
        with Session(settings, unet, [Unit(n) for n in nets[:2]], prompts, encode) as session:
            for pictures in batches:
                rows = range(len(pictures))
                session.begin_call(Call(SIZE, 0, pictures, rows, total=2))
                with torch.no_grad():
                    unet(latents[pictures], 3, texts[pictures])
            session.begin_call(Call(SIZE, 1, [0, 1], [0, 1], total=2))
            heats.append(session.place.heat)
            assert session.place.usable.all()
    torch.testing.assert_close(heats[0], heats[1])
    torch.testing.assert_close(heats[0], heats[2])
    with Session(settings, unet, [Unit(n) for n in nets[:2]], prompts, encode) as session:
        session.begin_call(Call(SIZE, 0, [1], [0], total=2))
        with torch.no_grad():
            unet(latents[1:], 3, texts[1:])
        session.begin_call(Call(SIZE, 1, [0], [0], total=2))
    assert session.place.usable.tolist() == [False, True], "nothing was read of the first picture"
    torch.testing.assert_close(session.place.heat[1], heats[0][1])


def test_the_automatic_word_of_pictures_that_come_one_by_one(unet, nets):
    settings = Settings(start_step=2, mask_reduction=2, strict=True)
    prompts = [prompt("red star"), prompt("star ring")]
    with Session(settings, unet, [Unit(n) for n in nets[:2]], prompts, encode) as session:
        for step in range(3):
            for number, (pictures, conditional) in enumerate(PARTS):
                call = Call(SIZE, step, pictures, conditional, total=2)
                recorded(session, unet, call, 10 * step + number)
        assert {picture for _unit, picture in session.places.maps._deviation} == {0, 1}
    assert len(session.place.mask) == len(session.place.word.chosen) == 2


def test_conditional_rows_that_are_not_known_are_noted_once(unet, nets):
    units = [Unit(net) for net in nets[:2]]
    settings = Settings(foreground_word="star", start_step=2)
    with Session(settings, unet, units, [prompt("star")], encode) as session:
        for step in range(4):
            for seed in range(2):
                recorded(session, unet, Call(SIZE, step, [0, 0], []), seed)
            assert bool(session.notes) == (step >= 2)
    assert session.injected == 0
    reason, consequence = session.notes
    assert "not known" in reason
    assert consequence == "nothing was injected: there was no foreground mask in steps 2 to 3"
    assert "which rows" in session.notes[0]


def test_steps_without_maps_are_noted_only_where_maps_were_due(unet, nets):
    units = [Unit(net) for net in nets[:2]]
    settings = Settings(foreground_word="star", start_step=3, mask_reduction=2)
    calls = [
        Call(SIZE, 0, [0, 0], [1]),  # not due
        Call(SIZE, 1, [0, 0], [1]),
        Call(SIZE, 2, [0], []),  # the unconditional half, then the conditional one
        Call(SIZE, 2, [0], [0]),
        Call(SIZE, 3, [0, 0], [1], whole=False),
        Call(SIZE, 4, [0, 0], [1]),
        Call(SIZE, 5, [0], []),
    ]
    with Session(settings, unet, units, [prompt("star")], encode) as session:
        for seed, call in enumerate(calls):
            recorded(session, unet, call, seed)
    assert session.injected == 0, "there was a tile"
    assert [note for note in session.notes if "tiles" not in note] == []


def test_an_encoder_without_pieces_needs_a_named_word(unet, nets):
    for word, said in (("", ["no automatic word with this text encoder: name one"]), ("star", [])):
        settings = Settings(foreground_word=word, start_step=1, strict=True)
        units = [Unit(net) for net in nets[:2]]
        prompts = [prompt("red star", pieces=False)]
        with Session(settings, unet, units, prompts, encode) as session:
            for step in range(3):
                recorded(session, unet, a_call(step), step)
        assert session.notes[: len(said)] == said
        assert session.notes[len(said) :] == session.shortfalls
        assert (session.injected > 0) == (word == "star")


def test_the_start_layer_counts_the_background_units_layers(unet, nets):
    """The foreground unit lacks the first of its four."""
    smaller = tiny_unet(down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2)
    small = tiny_controlnet(smaller, 5)
    counts = []
    for start_layer in range(5):
        settings = Settings(mask_source="all", start_step=0, start_layer=start_layer)
        with Session(settings, unet, [Unit(small), Unit(nets[1])]) as session:
            session.begin_call(a_call())
            for unit in session.units:
                session.run(unit, lambda unit=unit: run_net(unit.module))
            counts.append(session.injected)
        assert ("beyond the last (3)" in session.summary()) == (start_layer > 3)
    assert counts == [3, 3, 2, 1, 0]


def test_close_may_be_repeated_and_stops_everything(unet, nets):
    units = [Unit(nets[0]), Unit(nets[1])]
    session = Session(Settings(mask_source="all", start_step=0), unet, units)
    session.begin_call(a_call())
    session.close()
    session.close()
    session.run(units[0], lambda: run_net(nets[0]))
    session.run(units[1], lambda: run_net(nets[1]))
    assert session.injected == 0
    assert not any(m._forward_hooks for m in unet.modules())


@pytest.mark.parametrize(
    ("order", "calls", "steps"), [(1, 4, [0, 1, 2, 3]), (2, 5, [0, 0, 1, 1, 2]), (0, 2, [0, 1])]
)
def test_step_clock(order, calls, steps):
    clock = StepClock(order)
    seen = []
    for _ in range(calls):
        seen.append(clock.step)
        clock.tick()
    assert seen == steps

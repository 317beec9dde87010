"""Several units in front, driven as a host adapter drives a session."""

import pytest
import torch
from test_session import PARTS, SIZE, a_call, encode, prompt, recorded, residuals, the_sum
from tiny import run_net

from benchmarks.counting import counting
from lib_ccn.fusion import fuse_residuals
from lib_ccn.rules import AVERAGED, Front
from lib_ccn.session import Session
from lib_ccn.settings import Settings, SettingsError
from lib_ccn.unet_attention import inject_keys_values
from lib_ccn.units import Call, Role, Unit

LEFT = torch.zeros(1, 8, 8, dtype=torch.bool)
LEFT[..., :4] = True
TOP = LEFT.mT.contiguous()


def painted(*layers, **more):
    """Settings with a painted mask for each of these units, and the masks by their texts."""
    texts = {number: f"{'ABCD'[place]}AAA" for place, number in enumerate(layers)}
    entries = [
        {"unit": number, "mask_source": "image", "mask_image": text}
        for number, text in texts.items()
    ]
    return Settings(**{"layers": entries, "fusion": "layers", "start_step": 0, **more}), texts


def fused(unet, nets, layers, masks, lists=None, **more):
    """What a session makes of residuals in a call, and the units."""
    units = [Unit(net, number=number) for number, net in enumerate(nets)]
    settings, texts = painted(*layers, inject=False, **more)
    given = {texts[number]: mask for number, mask in zip(layers, masks, strict=True)}
    with Session(settings, unet, units, mask_image=given) as session:
        session.begin_call(a_call())
        lists = residuals(len(nets)) if lists is None else lists
        return session.fuse(dict(zip(units, lists, strict=True))), lists


def by_rule(lists, ranks, masks, gain=1.0, delta=0.7):
    def places(size, _device):
        found = [torch.nn.functional.adaptive_avg_pool2d(m[:, None].float(), size) for m in masks]
        taken = torch.zeros_like(found[0])
        disjoint = []
        for one in found:
            disjoint.append(one * (1 - taken))
            taken = taken + disjoint[-1]
        return torch.stack(disjoint)

    return fuse_residuals(lists, "layers", delta, front=Front(ranks, places, gain))


def test_roles_and_order(unet, nets):
    units = [Unit(net, number=number) for number, net in zip((0, 2, 5), nets, strict=True)]
    session = Session(Settings(layers="5 star, 0 ring"), unet, units)
    assert [unit.role for unit in units] == [Role.FOREGROUND, Role.BACKGROUND, Role.FOREGROUND]
    assert [place.units for place in session.places.all] == [[units[2]], [units[0]]]
    assert session.running_order(units) == [units[0], units[2], units[1]]
    with pytest.raises(SettingsError, match=r"layers = 1 .*units \[0, 2, 5\]"):
        Session(Settings(layers="0 star, 1 ring"), unet, units)


@pytest.mark.parametrize("gain", [1.0, 1.5])
def test_who_is_in_front_has_what_two_claim(unet, nets, gain):
    found, lists = fused(unet, nets, (2, 0), (TOP, LEFT), foreground_gain=gain)
    want = by_rule(lists, [1, None, 0], [TOP, LEFT], gain)
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    other, _ = fused(unet, nets, (0, 2), (LEFT, TOP), lists, foreground_gain=gain)
    assert not torch.equal(found[0], other[0])


def test_no_place_is_the_sum_and_a_place_everywhere_is_its_unit_alone(unet, nets):
    nowhere, everywhere = torch.zeros_like(LEFT), torch.ones_like(LEFT)
    found, lists = fused(unet, nets, (0, 1), (nowhere, nowhere), foreground_gain=2)
    assert all(torch.equal(a, b) for a, b in zip(found, the_sum(lists), strict=True))
    found, _ = fused(unet, nets, (1,), (everywhere,), lists, delta=1)
    assert all(torch.equal(a, b) for a, b in zip(found, lists[1], strict=True))


def test_who_takes_no_part_claims_nothing(unet, nets):
    units = [Unit(net, number=number) for number, net in enumerate(nets)]
    settings, texts = painted(0, 1, inject=False)
    masks = {texts[0]: torch.ones_like(LEFT), texts[1]: LEFT}
    lists = residuals(3)
    with Session(settings, unet, units, mask_image=masks) as session:
        session.begin_call(a_call(), active=units[1:])
        found = session.fuse(dict(zip(units[1:], lists[1:], strict=True)))
    want = by_rule(lists[1:], [0, None], [LEFT])
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("whole", [True, False])
def test_until_there_are_places_it_is_the_hosts_sum(unet, nets, whole):
    units = [Unit(net) for net in nets[:2]]
    lists = residuals(2)
    masks = LEFT if not whole else None
    settings = Settings(fusion="layers", inject=False, foreground_word="star")
    if not whole:  # of a tile nobody knows where it is
        settings = settings.replace(mask_source="image")
    with Session(settings, unet, units, [prompt("star")], encode, masks) as session:
        session.begin_call(Call(SIZE, 0, [0, 0], [1], whole=whole))
        found = session.fuse(dict(zip(units, lists, strict=True)))
    assert all(torch.equal(a, b) for a, b in zip(found, the_sum(lists), strict=True))
    assert "layers, but all added up" in session.summary()
    why = "there never was a mask" if whole else "the UNet works on tiles"
    assert session.shortfalls == [f"no unit had its place, so all were added up: {why}"]


def test_layers_over_the_papers_fusion_are_that_until_there_are_places(unet, nets):
    units = [Unit(net) for net in nets]
    lists = residuals(3)
    settings = Settings(
        fusion="layers", inject=False, foreground_word="star", outside_places="pix+channel"
    )
    with Session(settings, unet, units, [prompt("star")], encode) as session:
        session.begin_call(Call(SIZE, 0, [0, 0], [1]))
        found = session.fuse(dict(zip(units, lists, strict=True)))
    paper = fuse_residuals(lists, "pix+channel", settings.delta)
    assert all(torch.equal(a, b) for a, b in zip(found, paper, strict=True))
    assert "layers, but pix+channel everywhere" in session.summary()
    assert session.shortfalls == [
        "no unit had its place, so it was pix+channel everywhere: there never was a mask"
    ]
    units = [Unit(net) for net in nets]
    settings = settings.replace(mask_source="image", foreground_word="")
    with Session(settings, unet, units, mask_image=LEFT) as session:
        session.begin_call(a_call())
        found = session.fuse(dict(zip(units, lists, strict=True)))
    assert "layers over pix+channel, delta 0.7" in session.summary()
    assert session.shortfalls == []
    for got, want in zip(found, paper, strict=True):
        right = got.shape[-1] // 2
        if right:
            assert torch.equal(got[..., right:], want[..., right:])
            assert not torch.equal(got[..., :right], want[..., :right])


def test_what_was_placed_before_the_tiles_reached_no_unet(unet, nets):
    """Forge runs the ControlNets over the whole picture too before it does so tile by tile."""
    units = [Unit(net) for net in nets[:2]]
    lists = residuals(2)
    settings = Settings(fusion="layers", inject=False, mask_source="image")
    with Session(settings, unet, units, mask_image=LEFT) as session:
        for whole in (True, False, True):
            session.begin_call(Call(SIZE, 0, [0, 0], [1], whole=whole))
            found = session.fuse(dict(zip(units, lists, strict=True)))
            added = all(torch.equal(a, b) for a, b in zip(found, the_sum(lists), strict=True))
            assert added == session.outcome.tiled
    assert "layers, but all added up" in session.summary()


def test_a_unit_in_front_that_never_was_active_has_no_place(unet, nets):
    units = [Unit(net, number=number) for number, net in enumerate(nets)]
    lists = residuals(3)
    settings = Settings(fusion="layers", inject=False, mask_source="image")
    with Session(settings, unet, units, mask_image=LEFT) as session:
        session.begin_call(a_call(), active=units[1:])
        session.fuse(dict(zip(units[1:], lists[1:], strict=True)))
    assert session.shortfalls[0].endswith("never was a unit in front active while it had a mask")


def test_each_word_has_its_place_in_each_step(unet, nets):
    units = [Unit(net) for net in nets]
    settings = Settings(
        layers="0 star, 1 ring", fusion="layers", inject=False, mask_reduction=2, show_mask=True
    )
    with Session(settings, unet, units, [prompt("red star ring")], encode) as session:
        for step in range(3):
            recorded(session, unet, a_call(step), step)
        first, second = session.places.all
        assert (first.word.given, second.word.given) == ("star", "ring")
        assert not torch.equal(first.heat, second.heat)
        decided = session.winners.of(0).maps[0]
    assert set(decided.unique().tolist()) <= {0, 1, AVERAGED}
    assert session.places.words(1) == ["star, ring"]
    line = session.summary()
    assert "unit 0: mask from word star (given)" in line
    assert "unit 1: mask from word ring (given)" in line


def test_automatic_words_differ(unet, nets):
    units = [Unit(net) for net in nets]
    settings = Settings(layers="0, 1", fusion="layers", start_step=2, mask_reduction=2)
    with Session(settings, unet, units, [prompt("red star ring")], encode) as session:
        for step in range(4):
            recorded(session, unet, a_call(step), step)
        words = [place.word.chosen[0] for place in session.places.all]
    assert len({word for word in words if word}) == len([word for word in words if word])
    assert any(words)


@pytest.mark.parametrize("again", ["star", "Star"])
def test_units_of_one_word_share_its_place(unet, nets, again):
    units = [Unit(net) for net in nets]
    layers = f"0 star, 2 {again}"
    settings = Settings(layers=layers, fusion="layers", mask_reduction=2, start_step=1)
    with Session(settings, unet, units, [prompt("red star ring")], encode) as session:
        for step in range(2):
            recorded(session, unet, a_call(step), step)
        (place,) = session.places.all
        assert place.units == [units[0], units[2]]
        front = session.places.front_for(units, a_call(1))
        assert list(front.ranks) == [0, None, 0]
        assert session.notes == []


def test_a_word_that_is_there_twice_is_told_apart(unet, nets):
    units = [Unit(net) for net in nets]
    settings = Settings(layers="0 star, 1 star", fusion="layers", mask_reduction=2, start_step=1)
    with Session(settings, unet, units, [prompt("star red star")], encode) as session:
        assert "'star' more than once" in session.notes[0]
        for step in range(2):
            recorded(session, unet, a_call(step), step)
        first, second = session.places.all
        assert not (first.mask & second.mask).any()
        assert (first.heat * second.heat == 0).all()
        assert first.mask.any() or second.mask.any()


def test_keys_and_values_of_every_place_are_injected(unet, nets, monkeypatch):
    """Each unit in front is asked for its own; places that nobody knows are not."""
    seen = []

    def inject(layers, stores, regions_for, start):
        seen.append((len(stores), regions_for(64, 2)))
        return inject_keys_values(layers, stores, regions_for, start)

    monkeypatch.setattr("lib_ccn.unet_attention.inject_keys_values", inject)
    units = [Unit(net, number=number) for number, net in enumerate(nets)]
    settings, texts = painted(2, 0)
    masks = {texts[2]: TOP, texts[0]: LEFT}
    with Session(settings, unet, units, mask_image=masks) as session:
        session.begin_call(a_call())
        outs = {
            u: session.run(u, lambda u=u: run_net(u.module)) for u in session.running_order(units)
        }
    ((count, regions),) = seen
    assert count == 2
    top, left = TOP.flatten(), (LEFT & ~TOP).flatten()
    assert torch.equal(regions.places[:, 0], torch.stack((top, left)))
    assert session.injected == 4
    for unit in units:
        same = torch.equal(outs[unit][-1], run_net(unit.module)[-1])
        assert same == (unit.role is Role.FOREGROUND)


@pytest.mark.parametrize("inject", [True, False])
def test_calls_may_hold_some_of_the_pictures(unet, nets, inject):
    units = [Unit(net) for net in nets]
    settings = Settings(
        layers="0 star, 1 ring", fusion="layers", start_step=1, strict=True, inject=inject
    )
    prompts = [prompt("red star ring"), prompt("star ring")]
    with Session(settings, unet, units, prompts, encode) as session:
        for step in range(3):
            for number, (pictures, conditional) in enumerate(PARTS):
                call = Call(SIZE, step, pictures, conditional, total=2)
                out = recorded(session, unet, call, 10 * step + number)
                assert all(torch.isfinite(layer).all() for layer in out)
    assert session.shortfalls == []
    assert bool(session.injected) == inject


def test_nothing_is_waited_for_but_the_maps(unet, nets):
    """Layers ask an accelerator nothing that PixFusion does not."""
    units = [Unit(net) for net in nets]
    settings = Settings(layers="0, 1", fusion="layers", inject=False, mask_source="all")
    settings = settings.replace(layers=[{"unit": 0, "mask_source": "silhouette"}, {"unit": 1}])
    for unit in units:
        unit.condition = torch.zeros(1, 3, 16, 16)
        unit.condition[..., 4:9, 4:9] = 1
    lists = [[layer.to("meta") for layer in one] for one in residuals(3)]
    with Session(settings, unet, units) as session:
        session.begin_call(a_call())
        with counting() as counts:
            session.fuse(dict(zip(units, lists, strict=True)))
    assert not counts.waits

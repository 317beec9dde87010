"""What is said of a generation is what was done in it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import run_net

import lib_ccn.outcome as outcome_module
import lib_ccn.session as session_module
from lib_ccn.outcome import Account, Outcome, shares, spans
from lib_ccn.session import Session
from lib_ccn.settings import Settings
from lib_ccn.units import Call, Unit

SIZE = (8, 8)


def generate(
    session, steps, active=lambda step: None, call=lambda step: Call(SIZE, step, [0, 0], [1])
):
    """A generation of so many steps; `active` gives the places of the units of a step."""
    with session:
        for step in range(steps):
            places = active(step)
            units = session.units if places is None else [session.units[i] for i in places]
            session.begin_call(call(step), units)
            found = {
                unit: session.run(unit, lambda unit=unit: run_net(unit.module))
                for unit in session.running_order(units)
            }
            if found:
                session.fuse(found)
    return session


def a_session(unet, nets, count=2, **settings):
    given = {"mask_source": "all", "start_step": 1, **settings}
    units = [Unit(net, f"unit {number}") for number, net in enumerate(nets[:count])]
    return Session(Settings(**given), unet, units)


# Of each: settings, steps, the units of a step, what the line says, what it must not say.
TOLD = {
    "all of it": (
        {},
        4,
        lambda step: [0, 1],
        [
            "unit 0 (foreground), unit 1 (background): pix+channel",
            "KV-Injection in layers 0 to 3, steps 1 to 3, mask from all, 100 % of the picture",
            " for fusion and mask",
        ],
        ["nothing", "calls"],
    ),
    "the sum": (
        {"fusion": "sum", "inject": False},
        2,
        lambda step: [0, 1],
        ["sum, as the host makes it"],
        ["delta", "Injection"],
    ),
    "one unit of two": (
        {},
        3,
        lambda step: [0],
        ["unit 1 (took no part)", "not fused", "never were two units"],
        ["pix+channel"],
    ),
    "no unit at all": ({}, 3, lambda step: [], ["not fused", "never were two units"], ["pix"]),
    "ranges that never meet": (
        {},
        4,
        lambda step: [0] if step < 2 else [1],
        ["not fused", "never were two units"],
        ["pix", "took no part"],
    ),
    "ranges that meet before the start step": (
        {"start_step": 3},
        5,
        lambda step: [0, 1] if step < 3 else [1],
        ["pix+channel, delta 0.7, in 3 of 5 calls", "from step 3 on the foreground unit and"],
        ["mask from"],
    ),
    "a start step beyond the last": (
        {"start_step": 5},
        4,
        lambda step: [0, 1],
        ["nothing injected", "start step is 5, and the units ran in steps 0 to 3 only"],
        ["mask from"],
    ),
    "a single step": (
        {"start_step": 50},
        1,
        lambda step: [0, 1],
        ["start step is 50, and the units ran in step 0 only"],
        ["mask from"],
    ),
    "the last step only": (
        {"start_step": 2},
        5,
        lambda step: [0, 1] if step == 4 else [0],
        ["in 1 of 5 calls", "KV-Injection in layers 0 to 3, step 4, mask"],
        ["nothing"],
    ),
    "without the foreground unit": (
        {"count": 3},
        3,
        lambda step: [1, 2],
        ["unit 0 (took no part)", "pix+channel", "a background unit were never active at once"],
        ["mask from"],
    ),
    "a layer beyond the last": (
        {"start_layer": 40},
        3,
        lambda step: [0, 1],
        ["injection start layer is 40, beyond the last (3): nothing is injected"],
        ["mask from", "nothing was injected"],
    ),
    "no mask": (
        {"mask_source": "silhouette"},
        3,
        lambda step: [0, 1],
        ["condition image is not known", "there was no foreground mask in steps 1 to 2"],
        ["mask from"],
    ),
}


@pytest.mark.parametrize(("settings", "steps", "active", "said", "unsaid"), TOLD.values(), ids=TOLD)
def test_the_line_says_what_was_done(unet, nets, settings, steps, active, said, unsaid):
    session = generate(a_session(unet, nets, **settings), steps, active)
    for part in said:
        assert part in session.summary()
    for part in unsaid:
        assert part not in session.summary()
    asked = any(text in session.summary() for text in ("not fused", "nothing injected"))
    assert bool(session.shortfalls) == (asked and "start_layer" not in settings)


def test_nothing_is_missed_where_nothing_ran_or_the_user_ended_it(unet, nets):
    assert generate(a_session(unet, nets), 0).notes == []
    session = a_session(unet, nets, start_step=9)
    session.ended_early = True
    assert generate(session, 2).notes == []


@pytest.mark.parametrize("start_step", [0, 1])
def test_tiles_are_not_said_to_be_injected(unet, nets, start_step):
    """Forge asks its ControlNets for the whole picture first, and then throws that away."""
    session = a_session(unet, nets, start_step=start_step)
    whole, tile = Call(SIZE, 0, [0, 0], [1]), Call((4, 4), 0, [], [], whole=False)
    with session:
        for step in range(3):
            for call in (replace(whole, step=step), replace(tile, step=step)):
                session.begin_call(call)
                found = {u: session.run(u, lambda u=u: run_net(u.module)) for u in session.units}
                session.fuse(found)
    assert session.injected == 0
    assert "KV-Injection: nothing injected" in session.summary()
    assert session.notes == ["the UNet works on tiles: nothing is injected"]


def test_injection_alone_is_told_beside_the_sum(unet, nets):
    session = generate(a_session(unet, nets, fusion="sum"), 3)
    assert (
        "sum, as the host makes it; KV-Injection in layers 0 to 3, steps 1 to 2"
        in session.summary()
    )
    assert session.shortfalls == []


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3], "step 3"),
        ([4, 3, 5], "steps 3 to 5"),
        ([0, 2, 3, 7], "steps 0, 2 to 3 and 7"),
    ],
)
def test_steps_in_words(numbers, text):
    assert spans(numbers) == text


@pytest.mark.parametrize(
    ("numbers", "text"), [([0.314], "31 %"), ([0.5, 0.123, 0.3], "12 to 50 %"), ([0, 0.001], "0 %")]
)
def test_shares_in_words(numbers, text):
    assert shares(numbers) == text


def test_the_layers_are_those_from_the_start_layer_on(unet, nets):
    assert "in layers 2 to 3," in generate(a_session(unet, nets, start_layer=2), 3).summary()
    assert "in layer 3," in generate(a_session(unet, nets, start_layer=3), 3).summary()


@pytest.mark.parametrize(("given", "how"), [("", "star (automatic)"), ("star", "star (given)")])
def test_the_word_is_told_with_how_it_was_chosen(unet, nets, given, how):
    session = a_session(unet, nets, mask_source="word", foreground_word=given)
    session.place.word.chosen = {0: "star"}
    session.place.mask = torch.tensor([[[True, False], [False, False]]])
    session.place.usable = torch.tensor([True])
    session.outcome.inject(1, 2, [0])
    assert f"mask from word {how}, 25 % of the picture in front" in session.summary()


def test_a_picture_without_a_mask_has_no_share(unet, nets):
    session = a_session(unet, nets)
    session.place.mask = torch.ones(3, 2, 2, dtype=torch.bool)
    session.place.mask[1] = False
    session.place.mask[2, 0] = False
    session.place.usable = torch.tensor([True, False, True])
    assert session.account().places[0].fronts == [1, 0.5]


class TestCost:
    """What it took, as far as that is known."""

    def slow(self, monkeypatch, seconds):
        """A fusion that takes so long, and ControlNets that take longer."""
        own = session_module.fuse_residuals

        def fuse(*args):
            clock.now += seconds
            return own(*args)

        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(session_module, "fuse_residuals", fuse)
        ticking = SimpleNamespace(perf_counter=lambda: clock.now)
        monkeypatch.setattr(outcome_module, "time", ticking)
        return clock

    def test_the_hosts_own_time_is_not_ours(self, unet, nets, monkeypatch):
        clock = self.slow(monkeypatch, 0.25)
        session = a_session(unet, nets)
        with session:
            for step in range(3):
                session.begin_call(Call(SIZE, step, [0, 0], [1]))
                found = {}
                for unit in session.running_order(session.units):
                    clock.now += 10
                    found[unit] = session.run(unit, lambda unit=unit: run_net(unit.module))
                session.fuse(found)
        assert session.account().line().endswith("about 0.8 s for fusion and mask")

    def test_of_an_accelerator_only_the_asking_is_known(self):
        """Where the mask is read, work is waited for that is the UNet's."""
        outcome = Outcome(Settings(), fused=3, masked={1}, seconds=2.5, waited=2.2, queued=True)
        assert outcome.cost() == "about 0.3 s to ask the GPU for fusion and mask"

    def test_a_little_is_no_nothing(self):
        assert Outcome(Settings(), fused=1, seconds=0.01).cost().startswith("less than 0.1 s")
        assert Outcome(Settings()).cost() == ""

    @pytest.mark.parametrize(
        ("done", "what"), [({"fused": 1}, "fusion"), ({"masked": {1}}, "mask")]
    )
    def test_only_what_was_done_is_named(self, done, what):
        assert Outcome(Settings(), seconds=1, **done).cost() == f"about 1.0 s for {what}"


class TestJoined:
    """Several batches of one generation are one line."""

    def run(self, unet, nets, steps, **settings):
        return generate(a_session(unet, nets, **settings), steps).account()

    def test_counts_and_times_add_up(self, unet, nets):
        first, second = (self.run(unet, nets, steps) for steps in (3, 5))
        joined = first.joined(second)
        assert joined.outcome.calls == joined.outcome.fused == 8
        assert joined.outcome.seconds == first.outcome.seconds + second.outcome.seconds
        assert "steps 1 to 4, mask from all, 100 % of" in joined.line()
        assert joined.line().count("unit 0 (foreground)") == 1

    def test_what_was_said_is_not_said_again(self, unet, nets):
        first, second = (self.run(unet, nets, 2, start_step=9) for _ in range(2))
        assert first.joined(second).line().count("nothing was injected") == 1

    def test_one_that_stood_aside_is_a_note(self, unet, nets):
        aside = Account(notes=["the units are summed: oh no"])
        done = self.run(unet, nets, 3)
        for joined in (aside.joined(done), done.joined(aside)):
            assert joined.line().startswith("unit 0 (foreground)")
            assert joined.line().endswith("; the units are summed: oh no")
        assert aside.joined(aside).line() == aside.line() == "the units are summed: oh no"

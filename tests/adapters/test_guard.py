"""What an error costs: the method for the rest of a run, never the host's own result."""

import gc
import logging
import weakref

import pytest
import torch
from tiny import run_net

from lib_ccn.hosts.guard import Guard, told, without_frames
from lib_ccn.session import Session, summed
from lib_ccn.settings import Settings, SettingsError
from lib_ccn.units import Call, Unit

SIZE = (8, 8)


class Host(Guard):
    """The smallest adapter: two units in each UNet call."""

    def __init__(self, unet, nets, **settings):
        self.settings = Settings(**{"mask_source": "all", "start_step": 0, **settings})
        self.units = [Unit(net, f"unit {number}") for number, net in enumerate(nets[:2])]
        self.session = Session(self.settings, unet, self.units)

    def call(self, step=0, forwards=None, change=lambda found: found):
        """The residuals of one UNet call."""
        given = forwards or [lambda net=unit.module: run_net(net) for unit in self.units]
        forward = dict(zip(self.units, given, strict=True))

        def ours():
            self.session.begin_call(Call(SIZE, step, [0, 0], [1]))
            found = {unit: self.session.run(unit, forward[unit]) for unit in self.units}
            return self.session.fuse(change(found))

        return self.attempt(ours, lambda: summed([run() for run in given]))


def test_an_error_gives_the_sum_for_the_rest_of_the_run(unet, nets, caplog):
    host = Host(unet, nets, start_step=5)
    plain = summed([run_net(net) for net in nets[:2]])
    first, second = host.units
    with caplog.at_level(logging.WARNING):
        fused = host.call(0)
        odd = host.call(1, change=lambda found: {first: found[first], second: found[second][:-1]})
        later = host.call(9)
    assert not torch.equal(fused[0], plain[0])
    for got in (odd, later):
        assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))
    assert isinstance(host.error, ValueError)
    assert len([r for r in caplog.records if "stands aside" in r.getMessage()]) == 1
    assert "pix+channel, delta 0.7, in 1 of 2 calls" in host.account().line()
    assert "stood aside after an error, the units are summed: ValueError" in host.account().line()
    assert host.session.shortfalls == []
    assert not any(m._forward_hooks for net in (unet, *nets) for m in net.modules())


def test_a_hosts_own_error_is_the_hosts(unet, nets):
    """It is raised, also where the method could be suspected and the unit is run again."""
    host, calls = Host(unet, nets), []

    def out_of_memory():
        calls.append(1)
        raise MemoryError("the host's")

    with pytest.raises(MemoryError):
        host.call(forwards=[out_of_memory, out_of_memory])
    assert len(calls) == 2
    assert isinstance(host.error, MemoryError)


@pytest.mark.parametrize("error", [KeyError("oh no"), SettingsError("delta", 2, "less")])
def test_strict_raises_and_nothing_is_tried_again(unet, nets, error):
    host, calls = Host(unet, nets, strict=True), []

    def fails():
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        host.call(forwards=[fails, fails])
    assert len(calls) == 1
    assert host.error is error
    assert host.attempt(lambda: "ours", lambda: "the host's") == "the host's"
    assert not any(m._forward_hooks for net in nets for m in net.modules())


def test_where_nothing_was_done_the_line_is_short(unet, nets):
    host = Host(unet, nets)
    host.fail(SettingsError("delta", 2, "less"))
    assert host.account().line().startswith("the units are summed: Delta (delta) = 2")
    assert Guard().account() is None


class Large:
    """Stands for a tensor of the failed forward."""


class Failing:
    """A ControlNet whose first call runs out of memory, and which looks whether it has it back."""

    def __init__(self, where):
        self.where, self.held, self.back = where, None, None

    def __call__(self):
        if self.held is None:
            large = Large()
            self.held = weakref.ref(large)
            try:
                self.where(large)
            except MemoryError as error:
                raise RuntimeError("CUDA out of memory") from error
        gc.collect()
        self.back = self.held() is None
        return [torch.zeros(1)]


def at_once(large):
    raise MemoryError


def deep_down(large, depth=5):
    return deep_down(large, depth - 1) if depth else at_once(large)


@pytest.mark.parametrize("where", [at_once, deep_down])
@pytest.mark.parametrize("place", [0, 1], ids=["captured", "injected"])
def test_the_second_try_has_the_memory_of_the_first(unet, nets, where, place, caplog):
    """A log that keeps its records holds nothing either."""
    failing = Failing(where)
    forwards = [lambda: run_net(nets[0])[:1]] * 2
    forwards[place] = failing
    host = Host(unet, nets, fusion="sum")
    with caplog.at_level(logging.WARNING):
        host.call(forwards=forwards)
    assert failing.back
    assert isinstance(host.error, RuntimeError)
    assert "CUDA out of memory" in caplog.text
    assert "in at_once" in caplog.text, "the log has the traceback, as text"


def test_an_error_is_kept_without_any_frame():
    try:
        try:
            raise ValueError("first")
        except ValueError as error:
            raise KeyError("second") from error
    except KeyError as error:
        text, kept = told(error), error
    without_frames(kept)
    assert "first" in text
    assert "second" in text
    assert kept.__traceback__ is None
    assert kept.__cause__.__traceback__ is None
    kept.__context__ = kept  # a ring does no harm
    without_frames(kept)

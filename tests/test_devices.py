"""Tensors on their way to the CPU, and maps that set off while the UNet is still running."""

from functools import partial

import pytest
import torch
from clip_like import encode, piece

from benchmarks.program import as_accelerator, bench
from lib_ccn import devices
from lib_ccn.devices import Arrival, fetched
from lib_ccn.prompt import tokenize
from lib_ccn.session import Session
from lib_ccn.settings import Settings
from lib_ccn.units import Call, Unit


class Stream:
    """A stand-in for CUDA's: says how often an event was recorded and waited for."""

    def __init__(self):
        self.recorded = self.waited = 0

    def record_event(self):
        self.recorded += 1
        return self

    def synchronize(self):
        self.waited += 1


@pytest.fixture
def stream(monkeypatch):
    """A CPU that copies while the program goes on."""
    found = Stream()
    monkeypatch.setattr(devices, "can_go_on", lambda _device: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: found)
    return found


@pytest.mark.parametrize("shapes", [[(3, 4)], [(3, 4), (2, 1, 5)], [(2,), (2,), (0, 3)]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool])
def test_what_arrives_is_what_was_sent(shapes, dtype):
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    for own, found in zip(tensors, fetched(tensors), strict=True):
        assert found.dtype is torch.float32
        assert torch.equal(found, own.float())


def test_the_copy_is_waited_for_once_it_is_taken(stream):
    arrival = Arrival([torch.ones(2, 3), torch.zeros(4)])
    assert (stream.recorded, stream.waited) == (1, 0)
    ones, zeros = arrival.taken()
    assert (stream.recorded, stream.waited) == (1, 1)
    assert ones.shape == (2, 3)
    assert not zeros.any()


@pytest.fixture(scope="module")
def networks():
    return bench("demo", pictures=2)


def residuals(net, *given):
    down, middle = net(*given, return_dict=False)
    return [*down, middle]


@torch.no_grad()
def steps_of(networks, calls, word):
    """What the UNet gives in each of these calls (step, pictures of its rows), and the session."""
    units = [Unit(net, str(n)) for n, net in enumerate(networks.nets)]
    prompts = [tokenize(text, encode, decode_piece=piece) for text in PROMPTS]
    settings = Settings(foreground_word=word, start_step=2)
    session = Session(settings, networks.unet, units, prompts, encode)
    made = []
    with as_accelerator(), session:
        for step, pictures in calls:
            rows = len(pictures)
            given = networks.sample[:rows], networks.time, networks.text[:rows]
            session.begin_call(
                Call((16, 16), step, pictures, range(rows // 2, rows), total=len(prompts))
            )
            outputs = {
                unit: session.run(unit, partial(residuals, unit.module, *given, image[:rows]))
                for unit, image in zip(units, networks.images, strict=True)
            }
            *down, middle = session.fuse(outputs)
            made += networks.unet(
                *given,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )
            session.end_call()
    return made, session


PROMPTS = ["a red star over the sea", "blue light and a green house"]
BOTH = [0, 1, 0, 1]
CALLS = {
    "one call a step": [(step, BOTH) for step in range(5)],
    "two calls a step": [(step, BOTH) for step in range(4) for _ in range(2)],
    "a call for each picture": [(step, [n, n]) for step in range(4) for n in range(2)],
}


@pytest.mark.parametrize("word", ["star", ""])
@pytest.mark.parametrize("kind", CALLS)
def test_maps_that_set_off_early_are_the_same(networks, stream, monkeypatch, kind, word):
    made, session = steps_of(networks, CALLS[kind], word)
    assert session.injected, session.summary()
    early = stream.recorded
    assert early
    with monkeypatch.context() as late:
        late.setattr(devices, "can_go_on", lambda _device: False)
        plain, other = steps_of(networks, CALLS[kind], word)
    assert stream.recorded == early
    assert other.summary() == session.summary()
    for one, two in zip(made, plain, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("word", "first"), [("star", 1), ("", 2)])
def test_a_step_waits_for_a_copy_that_was_made_while_the_unet_ran(
    networks, stream, monkeypatch, word, first
):
    """In the first call that is read, of step 1, it is not known how many layers will be heard."""
    sent_in, inside = [], []
    monkeypatch.setattr(
        devices,
        "Arrival",
        lambda tensors: sent_in.append((bool(inside), len(tensors))) or Arrival(tensors),
    )
    before = networks.unet.register_forward_pre_hook(lambda *_: inside.append(1))
    after = networks.unet.register_forward_hook(lambda *_: inside.clear())
    steps_of(networks, CALLS["one call a step"], word)
    before.remove()
    after.remove()
    # An automatic word is settled with the first maps; after it the deviation is not asked for.
    assert sent_in == [(False, first), (True, 1), (True, 1), (True, 1)]
    # What the last step sent for is not asked for.
    assert (stream.recorded, stream.waited) == (4, 3)

"""Nothing stays behind: hooks, attributes and memory after 200 generations that end badly."""

import gc
import inspect
import weakref
from contextlib import ExitStack

import psutil
import pytest
import torch
from tiny import generate, tiny_pipeline

from lib_ccn.hosts.diffusers import cross_controlnet

SETTINGS = {"start_step": 1, "foreground_word": "star"}


class PlantedError(Exception):
    """Thrown by the test at one stage of a generation."""


def state(pipe):
    """Everything that a generation could leave changed in the pipeline's parts."""
    seen = {"pipe": {key for key, value in pipe.__dict__.items() if inspect.isroutine(value)}}
    seen["scheduler"] = {key for key, value in pipe.scheduler.__dict__.items() if callable(value)}
    for part in (pipe.unet, pipe.controlnet, pipe.vae, pipe.text_encoder):
        for name, module in part.named_modules():
            hooks = {k: len(v) for k, v in module.__dict__.items() if k.endswith("_hooks")}
            own = {k for k, v in module.__dict__.items() if callable(v)}
            seen[type(part).__name__, name] = (hooks, own)
    return seen


def raises(error):
    def broken(*args, **kwargs):
        raise error("planted")

    return broken


def plant(stage, pipe, patch, undo):
    """Make one stage of the coming generation fail; returns extra arguments of the call."""
    if stage == "callback":
        return {"callback_on_step_end": raises(PlantedError)}
    if stage == "interrupt":
        return {"callback_on_step_end": raises(KeyboardInterrupt)}
    if stage == "scheduler":
        patch.setattr(type(pipe.scheduler), "step", raises(PlantedError))
        return {}
    first, second = pipe.controlnet.nets
    attention = second.mid_block.attentions[0].transformer_blocks[0]
    module = {
        "encode_prompt": pipe.text_encoder,
        "first controlnet": first,
        "second controlnet": second.controlnet_mid_block,
        "inside attention": attention.attn1.to_out[0],
        "a projection": attention.attn1.to_v,
        "unet": pipe.unet,
        "unet attention": pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v,
    }[stage]
    undo.callback(module.register_forward_pre_hook(raises(PlantedError)).remove)
    return {}


STAGES = [
    "encode_prompt",
    "first controlnet",
    "second controlnet",
    "inside attention",
    "a projection",
    "unet",
    "unet attention",
    "scheduler",
    "callback",
    "interrupt",
]


@pytest.mark.parametrize("where", ["around", "within"])
def test_two_hundred_generations_that_fail_leave_nothing(where, monkeypatch):
    """`around`: the exception leaves the block; `within`: the block lives on, as in a notebook."""
    pipe = tiny_pipeline()
    plain = generate(pipe, num_inference_steps=2)
    before = state(pipe)
    process = psutil.Process()
    sizes, sessions = [], []
    expected = (PlantedError, KeyboardInterrupt)

    def fail(control, stage):
        with monkeypatch.context() as patch, ExitStack() as undo:
            arguments = plant(stage, pipe, patch, undo)
            with pytest.raises(expected):
                generate(pipe, num_inference_steps=2, **arguments)
        if control.session is not None:
            sessions.append(weakref.ref(control.session))

    for _ in range(10):
        if where == "around":
            for stage in STAGES:
                with cross_controlnet(pipe, SETTINGS) as control:
                    fail(control, stage)
                assert state(pipe) == before, stage
        else:
            with cross_controlnet(pipe, SETTINGS) as control:
                for stage in STAGES:
                    fail(control, stage)
        del control
        gc.collect()
        sizes.append(process.memory_info().rss)
    assert state(pipe) == before
    assert torch.equal(generate(pipe, num_inference_steps=2), plain)
    assert not [ref for ref in sessions if ref() is not None], "a session is still held"
    assert sizes[-1] - sizes[4] < 32 * 2**20, "memory grows from round to round"


def test_tensors_of_the_method_are_let_go():
    """Captured keys and values live for one UNet call, maps until the next step."""
    pipe = tiny_pipeline()
    with cross_controlnet(pipe, SETTINGS) as control:
        generate(pipe)
        session = control.session
        assert not session._stores, "keys and values are dropped when the residuals are fused"
    assert session.places.maps.recorder._sum is None
    assert not session.places.maps.recorder._pending
    assert not session.places._made
    assert session.place.mask is not None, "the last mask stays, to be shown"

"""What pipelines share, and what is copied inside a block: each generation is alone."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from family_oracles import state
from tiny import conditions, generate, tiny_pipeline

from lib_ccn.hosts.diffusers import cross_controlnet

FULL = {"start_step": 1, "foreground_word": "star"}
OTHER = "blue water and sand"
SCHEDULERS = [
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
]


@pytest.fixture
def pipe():
    return tiny_pipeline()


def sibling_of(pipe, **changes):
    """A pipeline over the same parts, its scheduler's state its own unless said otherwise."""
    own = {"scheduler": copy.deepcopy(pipe.scheduler), **changes}
    sibling = StableDiffusionControlNetPipeline(
        **{**pipe.components, **own}, requires_safety_checker=False
    )
    sibling.set_progress_bar_config(disable=True)
    return sibling


def fused(pipe, **changes):
    """A generation in a block of its own."""
    with cross_controlnet(pipe, FULL):
        return generate(pipe, **changes)


def nothing_of_ours(part):
    """Nothing in an object's own attributes or hooks comes from this project."""
    parts = part.modules() if isinstance(part, torch.nn.Module) else [part]
    for one in parts:
        for value in getattr(one, "__dict__", {}).values():
            hooks = value.values() if isinstance(value, dict) else [value]
            for hook in hooks:
                assert "lib_ccn" not in str(getattr(hook, "__module__", ""))
    assert not getattr(type(part), "is_cross_controlnet", False)


# Copies


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("during", [False, True], ids=["between calls", "in a callback"])
def test_copies_of_a_scheduler_are_free(pipe, kind, during):
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    copies = []

    def make(*_):
        if not copies:
            scheduler = pipe.scheduler
            copies.extend(
                [
                    copy.copy(scheduler),
                    copy.deepcopy(scheduler),
                    kind.from_config(scheduler.config),
                    pickle.loads(pickle.dumps(scheduler)),
                ]
            )
        return {}

    with cross_controlnet(pipe, FULL):
        generate(pipe, **({"callback_on_step_end": make} if during else {}))
        make()
    plain = generate(pipe)
    original = pipe.scheduler
    for made in copies:
        nothing_of_ours(made)
        pipe.scheduler = made
        assert torch.equal(generate(pipe), plain)
        original.step = original.set_timesteps = None  # whoever is tied to it fails
        assert torch.equal(generate(pipe), plain)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe)),
    "type": lambda pipe: type(pipe)(**pipe.components, requires_safety_checker=False),
    "from_pipe": lambda pipe: StableDiffusionControlNetPipeline.from_pipe(pipe),
    "its own from_pipe": lambda pipe: pipe.from_pipe(pipe),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("during", [False, True], ids=["between calls", "in a callback"])
def test_copies_of_a_pipeline_are_free(pipe, make, during):
    plain = generate(pipe)
    copies = []

    def keep(*_):
        if not copies:
            copies.append(make(pipe))
        return {}

    with cross_controlnet(pipe, FULL) as control:
        generate(pipe, **({"callback_on_step_end": keep} if during else {}))
        keep()
        (made,) = copies
        made.set_progress_bar_config(disable=True)
        session = control.session
        assert torch.equal(generate(made), plain), "inside the block it is plain"
        assert control.session is session
        assert not torch.equal(generate(pipe), plain)
    assert type(made) is type(pipe) is StableDiffusionControlNetPipeline
    assert torch.equal(generate(made), plain)
    for part in (made, *made.components.values()):
        nothing_of_ours(part)
    assert not torch.equal(fused(made), plain), "it can have a block of its own"


@pytest.mark.parametrize("part", ["unet", "controlnet"])
@pytest.mark.parametrize("during", [False, True], ids=["between calls", "in a callback"])
def test_copies_of_a_network_are_free(pipe, part, during):
    plain = generate(pipe)
    copies = []

    def keep(*_):
        copies.append(copy.deepcopy(getattr(pipe, part)))
        return {}

    with cross_controlnet(pipe, FULL):
        generate(pipe, **({"callback_on_step_end": keep} if during else {}))
        keep()
    original = getattr(pipe, part)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.zero_()
    for made in copies:
        nothing_of_ours(made)
        setattr(pipe, part, made)
        assert torch.equal(generate(pipe), plain)


# Siblings in this thread


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_a_sibling_is_left_alone(pipe, guidance):
    sibling = sibling_of(pipe)
    img2img = StableDiffusionControlNetImg2ImgPipeline.from_pipe(pipe)
    img2img.set_progress_bar_config(disable=True)
    arguments = {
        "prompt": OTHER,
        "guidance_scale": guidance,
        "num_inference_steps": 3,
    }
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    more = {"image": picture, "control_image": conditions(), "height": 32, "width": 32}
    plain = generate(sibling, **arguments), generate(img2img, **arguments, **more)
    with cross_controlnet(pipe, FULL) as control:
        for _ in range(2):
            ours = generate(pipe)
            session, told = control.session, control.summary()
            assert torch.equal(generate(sibling, **arguments), plain[0])
            assert torch.equal(generate(img2img, **arguments, **more), plain[1])
            assert control.session is session
            assert control.summary() == told
        with pytest.raises(ValueError, match="made for this test"):
            generate(pipe, callback_on_step_end=raises)
        assert torch.equal(generate(sibling, **arguments), plain[0]), "after a failure too"
    assert torch.equal(ours, fused(pipe))


def raises(*_):
    raise ValueError("made for this test")


def test_a_sibling_may_be_called_between_two_steps(pipe):
    sibling = sibling_of(pipe)
    plain, ours = generate(sibling, OTHER), fused(pipe)
    between = []

    def call(*_):
        between.append(generate(sibling, OTHER))
        return {}

    with cross_controlnet(pipe, FULL) as control:
        assert torch.equal(generate(pipe, callback_on_step_end=call), ours)
        assert control.session.injected == 3 * 4
    assert len(between) == 4
    assert all(torch.equal(picture, plain) for picture in between)


def test_a_sibling_with_a_block_of_its_own_between_two_steps(pipe):
    sibling = sibling_of(pipe)
    arguments = {"image": conditions()[::-1], "seed": 5}
    ours, theirs = fused(pipe), fused(sibling, **arguments)
    between = []

    def call(*_):
        between.append(fused(sibling, **arguments))
        return {}

    with cross_controlnet(pipe, FULL):
        assert torch.equal(generate(pipe, callback_on_step_end=call), ours)
    assert all(torch.equal(picture, theirs) for picture in between)
    with cross_controlnet(pipe, FULL), cross_controlnet(sibling, FULL):
        assert torch.equal(generate(pipe), ours)
        assert torch.equal(generate(sibling, **arguments), theirs)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_two_blocks_over_one_scheduler(pipe, kind):
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    other = tiny_pipeline()
    other.scheduler = pipe.scheduler
    ours = fused(pipe)
    before = state(pipe), state(other)
    with cross_controlnet(pipe, FULL) as first, cross_controlnet(other, FULL) as second:
        assert torch.equal(generate(pipe), ours)
        assert torch.equal(generate(other), ours)
        assert torch.equal(generate(pipe), ours)
        assert first.session is not second.session
        assert first.session.injected == second.session.injected > 0
    assert (state(pipe), state(other)) == before


def test_blocks_may_end_in_any_order(pipe):
    sibling = sibling_of(pipe)
    plain, before = generate(pipe), state(pipe)
    first, second = cross_controlnet(pipe, FULL), cross_controlnet(sibling, FULL)
    first.__enter__()
    second.__enter__()
    generate(pipe)
    first.__exit__(None, None, None)
    assert torch.equal(generate(pipe), plain)
    assert not torch.equal(generate(sibling), plain)
    second.__exit__(None, None, None)
    assert state(pipe) == before
    assert torch.equal(generate(sibling), plain)


def test_a_pipeline_that_makes_two_passes_in_one_call():
    class TwoPasses(StableDiffusionControlNetPipeline):
        @torch.no_grad()
        def __call__(self, *args, **kwargs):
            one = super().__call__(*args, **kwargs)
            return super().__call__(*args, **{**kwargs, "latents": one.images})

    pipe = tiny_pipeline(kind=TwoPasses)
    once = tiny_pipeline()
    latents = fused(once)
    with cross_controlnet(once, FULL):
        twice = generate(once, latents=latents)
    assert torch.equal(fused(pipe), twice), "the second pass counts its own steps"


def test_the_same_pipeline_is_refused_a_second_block(pipe):
    again = pytest.raises(RuntimeError, match="inside another cross_controlnet block")
    with cross_controlnet(pipe, FULL), again, cross_controlnet(pipe):
        pass
    assert type(pipe) is StableDiffusionControlNetPipeline


def test_callbacks_that_the_pipeline_asks_for_tensors(pipe):
    class Shrink(PipelineCallback):
        tensor_inputs = ["latents", "negative_prompt_embeds"]  # noqa: RUF012

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            assert pipeline is pipe
            assert set(callback_kwargs) == set(self.tensor_inputs)
            return {"latents": callback_kwargs["latents"] * 0.9}

    assert not torch.equal(generate(pipe), generate(pipe, callback_on_step_end=Shrink()))
    for callback in (Shrink(), MultiPipelineCallbacks([Shrink()])):
        plain = generate(pipe, callback_on_step_end=callback)
        with cross_controlnet(pipe, {"fusion": "sum", "inject": False}):
            assert torch.equal(generate(pipe, callback_on_step_end=callback), plain)


def test_no_cycle_keeps_a_pipeline_in_memory(pipe):
    made = tiny_pipeline()
    gone = weakref.ref(made)
    fused(made)
    del made
    gc.collect()
    assert gone() is None

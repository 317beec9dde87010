"""Every scheduler of diffusers counts its own steps, however often it is called."""

from itertools import pairwise

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionControlNetImg2ImgPipeline
from tiny import conditions, generate, tiny_pipeline

from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.hosts.diffusers.generation import clock_of
from lib_ccn.session import Session

NOTHING = {"fusion": "sum", "inject": False}
FULL = {"start_step": 3, "foreground_word": "star"}
STEPS = 6
KINDS = sorted(kind.__name__ for kind in DDIMScheduler().compatibles)
VARIANTS = [(name, {}) for name in KINDS if name != "PNDMScheduler"]
VARIANTS += [("PNDMScheduler", {"skip_prk_steps": skip}) for skip in (True, False)]
# Several calls of the scheduler make a step: PNDM with Runge-Kutta steps has four for the first
# three, without them two for the first; Heun and DPM2 have two, but for the last.
CALLS = {"PNDMScheduler": {True: [2, 1, 1, 1, 1, 1], False: [4, 4, 4, 1, 1, 1]}}
TWICE = ("Heun", "KDPM2", "DPMSolverSDE")


def scheduler(name, changes, pipe):
    try:
        return getattr(diffusers, name).from_config(pipe.scheduler.config, **changes)
    except ImportError as error:
        pytest.skip(str(error))


def steps_of(pipe, monkeypatch, **changes):
    """The step of each call of a generation, and whether keys were injected in it."""
    seen = []
    own = Session.begin_call

    def spy(self, call, active=None):
        own(self, call, active)
        seen.append((call.step, self._injects(call)))

    with monkeypatch.context() as patch, cross_controlnet(pipe, FULL) as control:
        patch.setattr(Session, "begin_call", spy)
        assert torch.isfinite(generate(pipe, **changes)).all()
        assert control.error is None
    return seen


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=str)
def test_every_scheduler_counts_its_own_steps(name, changes, monkeypatch):
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler(name, changes, pipe)
    plain = generate(pipe, num_inference_steps=STEPS)
    with cross_controlnet(pipe, NOTHING):
        assert torch.equal(generate(pipe, num_inference_steps=STEPS), plain)
    seen = steps_of(pipe, monkeypatch, num_inference_steps=STEPS)
    numbers = [step for step, _ in seen]
    by_step = [numbers.count(step) for step in range(STEPS)]
    if name in CALLS:
        assert by_step == CALLS[name][changes["skip_prk_steps"]]
    else:
        twice = name.startswith(TWICE)
        assert by_step == ([2] * (STEPS - 1) + [1] if twice else [1] * STEPS)
    assert all(a <= b <= a + 1 for a, b in pairwise(numbers))
    assert all(injects == (step >= 3) for step, injects in seen)


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=str)
@pytest.mark.parametrize("count", [5, 20])
def test_every_schedulers_steps_are_known_before_they_are_made(name, changes, count):
    chosen = scheduler(name, changes, tiny_pipeline())
    chosen.set_timesteps(count)
    assert clock_of(chosen).steps_in(len(chosen.timesteps)) == count
    assert clock_of(chosen).steps_in(0) == 0


@pytest.mark.parametrize(
    ("settings", "steps", "start"),
    [({}, 12, 1), ({"start_step": "auto"}, 15, 2), ({"start_step": 3}, 12, 3)],
)
def test_injection_starts_after_a_tenth_unless_told(settings, steps, start, monkeypatch):
    pipe = tiny_pipeline()
    given = {"mask_source": "all", **settings}
    with cross_controlnet(pipe, given) as control:
        generate(pipe, num_inference_steps=steps)
    assert control.session.settings.start_step == start
    assert sorted(control.session.outcome.injected) == list(range(start, steps))
    assert control.settings.start_step == settings.get("start_step", "auto"), "the user's stays"


@pytest.mark.parametrize("count", [4, 5, 9, 20])
@pytest.mark.parametrize("skip", [True, False])
def test_pndm_makes_as_many_steps_as_were_asked_for(count, skip):
    pndm = diffusers.PNDMScheduler(skip_prk_steps=skip)
    pndm.set_timesteps(count)
    clock, steps = clock_of(pndm), []
    for _ in pndm.timesteps:
        steps.append(clock.step)
        clock.tick()
    assert sorted(set(steps)) == list(range(count))


@pytest.mark.parametrize("name", ["PNDMScheduler", "HeunDiscreteScheduler", "DDIMScheduler"])
def test_img2img_counts_the_steps_that_it_makes(name, monkeypatch):
    pipe = tiny_pipeline(kind=StableDiffusionControlNetImg2ImgPipeline)
    changes = {"skip_prk_steps": True} if name.startswith("PNDM") else {}
    pipe.scheduler = scheduler(name, changes, pipe)
    arguments = {
        "image": torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)),
        "control_image": conditions(),
        "strength": 0.8,
        "height": 32,
        "width": 32,
        "num_inference_steps": 5,
    }
    numbers = [step for step, _ in steps_of(pipe, monkeypatch, **arguments)]
    assert sorted(set(numbers)) == list(range(4))


def test_a_timestep_at_which_the_controlnets_are_asked_twice_is_one_step(monkeypatch):
    """As pipelines do that make a picture in tiles."""
    pipe = tiny_pipeline()
    nets = pipe.controlnet
    unet_forward = pipe.unet.forward

    def again(sample, timestep, *args, **kwargs):
        image = [c.repeat(2, 1, 1, 1) for c in conditions()]
        text = kwargs["encoder_hidden_states"]
        nets(sample, timestep, text, image, [1.0, 1.0], return_dict=False)
        return unet_forward(sample, timestep, *args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", again)
    numbers = [step for step, _ in steps_of(pipe, monkeypatch)]
    assert numbers == [0, 0, 1, 1, 2, 2, 3, 3]

"""Pipelines in several threads over the same networks do not disturb each other."""

import copy
import threading

import pytest
import torch
from family_oracles import state
from test_diffusers_sharing import FULL, OTHER, sibling_of
from tiny import conditions, generate, tiny_pipeline

from benchmarks.random_models import random_flux, random_sdxl
from demo.demo_model import BUNDLED
from lib_ccn.hosts.diffusers import cross_controlnet


@pytest.fixture
def pipe():
    return tiny_pipeline()


def at_once(*calls):
    """Run calls that each begin when all have, and go step by step; their results in order."""
    steps = threading.Barrier(len(calls), timeout=60)
    results = [None] * len(calls)

    def step(*_):
        steps.wait()
        return {}

    def work(number, call):
        try:
            results[number] = call(step)
        except BaseException as error:
            steps.abort()
            results[number] = error

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException) and not isinstance(
            result, threading.BrokenBarrierError
        ):
            raise result
    return results


def test_pipelines_in_threads_over_the_same_networks(pipe):
    """Two blocks and a plain pipeline, in step with each other."""
    # Not the tokenizer: those of transformers keep the padding of the latest call as a state.
    own = [{"tokenizer": copy.deepcopy(pipe.tokenizer)} for _ in range(2)]
    pipes = [pipe, *(sibling_of(pipe, **changes) for changes in own)]
    arguments = [
        {"seed": 1},
        {"prompt": "a star over blue water", "seed": 2, "image": conditions()[::-1]},
        {"prompt": OTHER, "seed": 3, "guidance_scale": 1.0},
    ]
    settings = [FULL, {**FULL, "start_step": 0, "mask_source": "all"}, None]

    def make(number, step=None):
        call = {**arguments[number], "callback_on_step_end": step}
        if settings[number] is None:
            return generate(pipes[number], **call)
        with cross_controlnet(pipes[number], settings[number]) as control:
            made = generate(pipes[number], **call)
        assert control.session is not None, control.summary()
        assert control.error is None
        assert control.session.injected > 0
        return made

    alone = [make(number) for number in range(3)]
    before = state(pipe)
    for _ in range(5):
        made = at_once(*(lambda step, n=number: make(n, step) for number in range(3)))
        for ours, wanted in zip(made, alone, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
        assert state(pipe) == before


def test_one_pipeline_in_two_threads(pipe):
    """Its DDIM scheduler can be shared by calls of equally many steps; its tokenizer cannot."""
    positive, negative = pipe.encode_prompt("a star over a field", "cpu", 1, True)
    prompts = {"prompt_embeds": positive, "negative_prompt_embeds": negative, "prompt": None}
    settings = {**FULL, "mask_source": "all"}
    with cross_controlnet(pipe, settings):
        alone = [generate(pipe, seed=seed, **prompts) for seed in (1, 2)]
        made = at_once(
            *(
                lambda step, s=s: generate(pipe, seed=s, callback_on_step_end=step, **prompts)
                for s in (1, 2)
            )
        )
    for ours, wanted in zip(made, alone, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def flux_call(pipe, **changes):
    arguments = {
        "prompt": "a red star over a field",
        "control_image": conditions(),
        "controlnet_conditioning_scale": [1.0, 1.0],
        "num_inference_steps": 3,
        "height": 32,
        "width": 32,
        "max_sequence_length": 16,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
    }
    return pipe(**{**arguments, **changes}).images


FAMILIES = {"sdxl": (random_sdxl, generate), "flux": (random_flux, flux_call)}


@pytest.mark.skipif(not BUNDLED.is_dir(), reason="models/demo is missing")
@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")
@pytest.mark.parametrize(("build", "call"), FAMILIES.values(), ids=FAMILIES)
def test_siblings_and_threads_of_every_family(build, call):
    pipe = build()
    plain = copy.copy(pipe)
    blocked = copy.copy(pipe)
    for sibling in (plain, blocked):
        for name in ("scheduler", "tokenizer", "tokenizer_2"):
            setattr(sibling, name, copy.deepcopy(getattr(pipe, name)))
    settings = {**FULL, "mask_source": "word"}

    def make(one, step=lambda *_: {}):
        if one is plain:
            return call(one, callback_on_step_end=step)
        with cross_controlnet(one, settings) as control:
            made = call(one, callback_on_step_end=step)
        assert control.session.injected > 0, control.summary()
        return made

    alone, ours = make(plain), make(pipe)
    before = state(pipe)
    with cross_controlnet(pipe, settings):
        assert torch.equal(make(plain), alone)
        assert torch.equal(make(blocked), ours)
    for _ in range(2):
        made = at_once(*(lambda step, p=p: make(p, step) for p in (pipe, plain, blocked)))
        for got, wanted in zip(made, (ours, alone, ours), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert state(pipe) == before

"""The comparison with diffusers, on tiny models with random weights."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from benchmarks.random_pipelines import random_pipeline
from compare.__main__ import main
from compare.pairs import NEGATIVE, PAIRS

pytestmark = pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")
PAIR = PAIRS["balloon-hills"]
WORDS = ["--pairs", PAIR.name, "--size", "128", "--steps", "3", "--seeds", "1"]


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def saved(request, tmp_path_factory):
    """The family, and a folder with a model and two ControlNets of it."""
    folder = tmp_path_factory.mktemp(request.param)
    pipe = random_pipeline(request.param, 2, tiny=True)
    for kind, net in zip(PAIR.kinds, pipe.controlnet.nets, strict=True):
        net.save_pretrained(folder / kind)
    parts = {name: part for name, part in pipe.components.items() if name != "controlnet"}
    if request.param == "sd15":
        base = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    else:
        base = StableDiffusionXLPipeline(**parts)
    base.save_pretrained(folder / "model")
    return request.param, folder, pipe


def words(saved, out):
    family, folder, _pipe = saved
    nets = [f"{kind}={folder / kind}" for kind in PAIR.kinds]
    more = ["--sdxl"] if family == "sdxl" else []
    return ["--model", str(folder / "model"), "--controlnet", *nets, "--out", str(out), *more]


def test_the_sum_is_the_pipelines_own_and_the_method_differs(saved, tmp_path, capsys):
    assert main([*words(saved, tmp_path), *WORDS]) == 0
    pictures = {
        name: np.asarray(Image.open(tmp_path / "pictures" / f"{PAIR.name}-1-{name}.png"))
        for name in ("sum", "max", "full")
    }
    own = saved[2](
        PAIR.prompt,
        negative_prompt=NEGATIVE,
        image=PAIR.conditions((128, 128)),
        num_inference_steps=3,
        guidance_scale=7.0,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert np.abs(np.asarray(own).astype(int) - pictures["sum"].astype(int)).max() <= 1
    assert (pictures["sum"] != pictures["max"]).any()
    assert (pictures["max"] != pictures["full"]).any()
    record = json.loads((tmp_path / "pictures" / f"{PAIR.name}-1-full.json").read_text())
    assert record["strip"]
    assert "KV-Injection in layers" in record["done"][0]
    assert "balloon" in record["done"][0]
    assert record["step_seconds"] > 0
    assert record["note"] == ""
    told = capsys.readouterr().out
    assert "Cross-ControlNet: a step" in told
    assert str(tmp_path / "compare.html") in told


def test_it_goes_on_from_what_is_kept(saved, tmp_path, monkeypatch):
    assert main([*words(saved, tmp_path), *WORDS]) == 0
    page = (tmp_path / "compare.html").read_text("utf-8")
    monkeypatch.setattr("compare.local.Local.make", lambda *_: pytest.fail("made anew"))
    assert main([*words(saved, tmp_path), *WORDS]) == 0
    assert (tmp_path / "compare.html").read_text("utf-8") == page
    assert str(saved[1].parent) not in page, "folders of the user's"


def test_a_model_of_another_family(saved, tmp_path, capsys):
    options = words(saved, tmp_path)
    other = [word for word in options if word != "--sdxl"]
    if other == options:
        other = [*options, "--sdxl"]
    assert main([*other, *WORDS]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert "expected Stable Diffusion" in told


@pytest.mark.parametrize("what", ["model", "depth"])
def test_a_folder_that_is_not_there(saved, tmp_path, capsys, what):
    options = words(saved, tmp_path)
    gone = [word.replace(str(saved[1] / what), str(tmp_path / "gone")) for word in options]
    assert gone != options
    assert main([*gone, *WORDS]) == 1
    assert "gone" in capsys.readouterr().err


def test_a_failure_in_a_picture_is_one_line(saved, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr("diffusers.AutoencoderKL.decode", fail)
    assert main([*words(saved, tmp_path), *WORDS]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "|" not in line and line]
    assert told == [f"error: {PAIR.name}, sum: OutOfMemoryError: CUDA out of memory."]

"""The demo of SDXL and FLUX, end to end on models made on the spot, and what it refuses."""

from __future__ import annotations

import sys

import diffusers
import pytest
import torch
from PIL import Image

from demo.__main__ import main
from demo.demo import load_family
from demo.demo_model import BUNDLED, ModelError, generate, native_size
from demo.options import parse_demo
from lib_ccn.families import FAMILIES
from lib_ccn.hosts.diffusers import family_of
from lib_ccn.settings import Settings, SettingsError

needs_tokenizer = pytest.mark.skipif(
    not BUNDLED.is_dir(), reason="the tokenizer comes from models/demo, which is missing"
)


def size_of(path):
    with Image.open(path) as figure:
        return figure.size


@needs_tokenizer
@pytest.mark.parametrize(("family", "start"), [("sdxl", "0 of 3"), ("flux", "0 of 3")])
def test_a_figure_of_random_weights_that_says_so(family, start, tmp_path, capsys):
    out = tmp_path / "demo.png"
    options = ["--family", family, "--steps", "3", "--columns", "background,sum,full,mask"]
    assert main(["demo", *options, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"RANDOM WEIGHTS: a tiny {FAMILIES[family].title} that was never trained" in said
    assert "not that it looks good" in said
    assert f"KV-Injection from step {start}" in said
    assert "nothing injected" not in said
    width, height = size_of(out)
    assert width > 5 * 192
    assert height > 6 * 192


def test_outside_a_clone_a_model_is_asked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "benchmarks.random_models", None)
    assert main(["demo", "--family", "sdxl", "--out", str(tmp_path / "x.png")]) == 1
    assert "Stable Diffusion XL needs a --model" in capsys.readouterr().err


@needs_tokenizer
def test_the_figures_footer_says_it_too(monkeypatch, tmp_path):
    footers = []
    from demo import demo

    own = demo.draw_figure
    monkeypatch.setattr(demo, "draw_figure", lambda *a, **k: (footers.append(a), own(*a, **k))[1])
    out = str(tmp_path / "x.png")
    assert main(["demo", "--family", "flux", "--steps", "1", "--columns", "sum", "--out", out]) == 0
    ((_, rows, footer),) = footers
    assert footer.startswith("RANDOM WEIGHTS: a tiny FLUX.1")
    assert "Flow-matching Euler, 1 steps, guidance 3.5" in footer
    assert "IoU" not in footer
    assert all("RANDOM WEIGHTS" in row.sublabel for row in rows)


@needs_tokenizer
@pytest.mark.filterwarnings("ignore:.*(torch_dtype|FluxPosEmbed):FutureWarning")
@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_saved_models_are_loaded_as_real_ones_are(family, tmp_path):
    pipe = load_family(family)
    parts = {name: part for name, part in pipe.components.items() if name != "controlnet"}
    base = diffusers.FluxPipeline if family == "flux" else diffusers.StableDiffusionXLPipeline
    base(**parts).save_pretrained(tmp_path / "model")
    nets = [tmp_path / "first", tmp_path / "second"]
    for net, folder in zip(pipe.controlnet.nets, nets, strict=True):
        net.save_pretrained(folder)
    loaded = load_family(family, tmp_path / "model", nets)
    assert family_of(loaded) == family
    assert native_size(loaded) == (64 if family == "sdxl" else 256)
    images = list(torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    arguments = (["a red star"], [3], images)
    same = generate(pipe, *arguments, steps=2), generate(loaded, *arguments, steps=2)
    assert same[0].shape == (1, 3, 32, 32)
    torch.testing.assert_close(*same, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="name two or more"):
        load_family(family, tmp_path / "model")
    with pytest.raises(ModelError, match=r"the ControlNet .*nothing cannot be loaded"):
        load_family(family, tmp_path / "model", [nets[0], tmp_path / "nothing"])


def test_options_of_a_family():
    flux = parse_demo(["--family", "flux"])
    assert (flux.steps, flux.guidance_scale) == (28, 3.5)
    assert flux.settings.to_dict(only_changed=True) == {
        "version": 4, "enabled": True, "delta": 0.5, "start_step": 3, "mask_source": "all"
    }  # fmt: skip
    assert parse_demo(["--family", "flux", "--steps", "14", "--delta", "0.6"]).settings.delta == 0.6
    assert parse_demo(["--family", "flux", "--steps", "14"]).settings.start_step == 1
    sdxl = parse_demo(["--family", "sdxl"])
    assert (sdxl.steps, sdxl.guidance_scale) == (20, 7.5)
    assert sdxl.settings == Settings(enabled=True, start_step=2)
    assert sdxl.random_weights
    assert not parse_demo([]).random_weights
    assert not parse_demo(["--family", "sdxl", "--model", "owner/model"]).random_weights


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--family", "sd3"], "invalid choice: 'sd3'"),
        (["--family", "flux", "--mask-reduction", "2"], "FLUX attends at one resolution only"),
        (["--family", "flux", "--negative-prompt", "x"], "guidance-distilled"),
        (["--family", "sdxl", "--controlnet", "x"], "needs the --model"),
        (["--family", "sdxl", "--control-mode", "1"], "is for --family flux"),
        (
            ["--family", "flux", "--control-mode", "1"],
            "--control-mode 1: expected 2 values, one per ControlNet, or none",
        ),
        (
            ["--family=flux", "--model=x", *["--controlnet=a"] * 3, *["--control-mode=1"] * 2],
            "--control-mode 1, 1: expected 3 values",
        ),
    ],
)
def test_what_is_wrong_is_said(options, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *options])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_settings_of_a_family():
    flux = FAMILIES["flux"]
    assert flux.settings(None).delta == 0.5
    assert flux.settings({"delta": 0.9}).delta == 0.9
    assert flux.settings(Settings()).delta == 0.7
    with pytest.raises(SettingsError, match="mask_reduction"):
        flux.settings(Settings(mask_reduction=2))
    with pytest.raises(SettingsError, match="settings"):
        flux.settings("delta")
    assert FAMILIES["sdxl"].settings(None) == Settings()
    starts = [f.settings(None).at_steps(f.steps).start_step for f in FAMILIES.values()]
    assert starts == [5, 5, 3], "as in the paper"

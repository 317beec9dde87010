"""The demo command, end to end on a model with random weights, and what it refuses."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_run import save_random_run

from demo.__main__ import main
from demo.demo_model import (
    BUNDLED,
    ModelError,
    generate,
    load_pipeline,
    save_pipeline_index,
    with_one_controlnet,
    without_controlnets,
)
from demo.examples import bundled_examples, two_object_examples
from demo.figures import Column, Row, draw_figure, overlay, to_image
from demo.options import ONE_OBJECT, parse_demo
from lib_ccn.settings import Settings, fields


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = save_random_run(tmp_path_factory.mktemp("random") / "model")
    save_pipeline_index(folder)
    return folder


def demo(model: Path, *options: str) -> int:
    return main(["demo", "--model", str(model), "--steps", "2", *options])


def refused(capsys, *options: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *options])
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# End to end


def test_the_examples_become_one_figure(model, tmp_path, capsys):
    out = tmp_path / "new folder" / "demo.png"
    assert demo(model, "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert str(out) in said
    assert "from step 0 of 2" in said
    with Image.open(out) as figure:
        assert figure.mode == "RGB"
        width, height = figure.size
    assert width > (len(ONE_OBJECT) + 1) * 192
    assert 6 * 192 < height < 10 * 192


def test_columns_and_an_own_prompt(model, tmp_path):
    for name, colour in (("fg", "white"), ("bg", "blue")):
        Image.new("RGB", (90, 60), colour).save(tmp_path / f"{name}.png")
    out = tmp_path / "own.png"
    images = ("--foreground", str(tmp_path / "fg.png"), "--background", str(tmp_path / "bg.png"))
    more = ("--word", "star", "--size", "64x48", "--columns", "background,sum,full,mask")
    assert demo(model, "--prompt", "a red star", *images, *more, "--out", str(out)) == 0
    with Image.open(out) as figure:
        assert figure.height < 400
        assert 5 * 192 < figure.width < 6.5 * 192
        assert any(b > 250 and r < 5 for _, (r, _, b) in figure.getcolors(1 << 20))


def test_two_objects_each_with_its_place(model, tmp_path, capsys):
    out = tmp_path / "two.png"
    assert (
        demo(model, "--objects", "2", "--columns", "foreground,layers,mask", "--out", str(out)) == 0
    )
    with Image.open(out) as figure:
        assert 5 * 192 < figure.width < 6.5 * 192, "two conditions"
        assert 4 * 192 < figure.height < 6 * 192
    for name in ("one", "two", "map"):
        Image.new("RGB", (64, 64), "white").save(tmp_path / f"{name}.png")
    objects = [f"--foreground={tmp_path / name}.png" for name in ("one", "two")]
    own = [*objects, f"--background={tmp_path / 'map'}.png", "--prompt", "a red star and a ring"]
    more = ["--layers", "1 star, 0 ring", "--fusion", "layers", "--columns", "full"]
    assert demo(model, *own, *more, "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "1: controlnet-outlines: mask from word star" in said
    assert "2: controlnet-regions (background)" in said


def test_the_hosts_own_picture_stays_as_it_is_in_the_sum_column(model):
    from lib_ccn.hosts.diffusers import cross_controlnet

    pipe = load_pipeline(model)
    example = bundled_examples()[0]
    conditions = [example.foreground[None], example.background[None]]
    plain = generate(pipe, [example.prompt], [3], conditions, steps=2)
    with cross_controlnet(pipe, Settings(fusion="sum", inject=False)):
        ours = generate(pipe, [example.prompt], [3], conditions, steps=2)
    assert torch.equal(plain, ours)


def test_a_failure_of_the_method_is_not_passed_off_as_its_picture(
    model, tmp_path, capsys, monkeypatch
):
    def broken(*_args: object) -> None:
        raise RuntimeError("as a test")

    monkeypatch.setattr("lib_ccn.session.fuse_residuals", broken)
    out = tmp_path / "demo.png"
    assert demo(model, "--columns", "pix", "--out", str(out)) == 1
    assert "as a test" in capsys.readouterr().err
    assert not out.exists()


def test_noise_depends_on_the_seed_only(model):
    pipe = without_controlnets(load_pipeline(model))
    both = generate(pipe, ["a red star", "a blue ring"], [4, 5], steps=1, size=(64, 64))
    alone = generate(pipe, ["a blue ring"], [5], steps=1, size=(64, 64))
    assert torch.allclose(both[1:], alone, atol=1e-4)
    assert both.shape == (2, 3, 64, 64)


def test_outlines_of_several_objects_have_a_controlnet_of_their_own(model, tmp_path):
    pipe = load_pipeline(model, several=True)
    names = [Path(net.config["_name_or_path"]).name for net in pipe.controlnet.nets]
    assert names == ["controlnet-outline", "controlnet-regions", "controlnet-outlines"]
    one, two = bundled_examples()[0], two_object_examples()[0]
    assert (one.nets(3), two.nets(3)) == ([0, 1], [2, 2, 1])
    assert (one.nets(2), two.nets(2)) == ([0, 1], [0, 0, 1]), "a model that has none"
    assert len(load_pipeline(model).controlnet.nets) == 2
    older = shutil.copytree(model, tmp_path / "older")
    shutil.rmtree(older / "controlnet-outlines")
    assert len(load_pipeline(older, several=True).controlnet.nets) == 2
    named = [model / name for name in names[:2]]
    assert len(load_pipeline(model, named, several=True).controlnet.nets) == 2


def test_one_controlnet_alone(model):
    pipe = load_pipeline(model)
    example = bundled_examples()[0]
    first = generate(
        with_one_controlnet(pipe, 0), [example.prompt], [0], example.foreground[None], steps=1
    )
    second = generate(
        with_one_controlnet(pipe, 1), [example.prompt], [0], example.background[None], steps=1
    )
    assert not torch.equal(first, second)


# Options


def test_every_setting_has_an_option():
    options = ["--delta", "0.5", "--no-inject", "--fusion", "max", "--start-step", "3"]
    options += ["--start-layer", "1", "--foreground-unit", "1", "--word", "red star"]
    options += ["--background-unit", "0", "--layers", "1 red star", "--foreground-gain", "1.5"]
    options += ["--mask-source", "silhouette", "--mask-threshold", ".3"]
    options += ["--outside-places", "pix+channel"]
    changed = parse_demo(options).settings.to_dict(only_changed=True)
    silent = {"enabled", "show_mask", "strict", "mask_image", "version"}
    assert {*changed, "enabled", "version"} == ({*fields()} - silent) | {"enabled", "version"}
    assert changed["delta"] == 0.5
    assert changed["foreground_unit"] == 1


def test_start_step_is_proportional_unless_given(tmp_path):
    assert parse_demo(["--steps", "50"]).settings.start_step == 5
    assert parse_demo(["--steps", "20"]).settings.start_step == 2
    assert parse_demo(["--steps", "20", "--start-step", "7"]).settings.start_step == 7
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps({"start_step": 9, "delta": 0.2}))
    both = parse_demo(["--settings", str(preset), "--delta", "0.4"]).settings
    assert (both.start_step, both.delta) == (9, 0.4)
    assert parse_demo(["--settings", '{"delta": 0.1}']).settings.delta == 0.1


def test_a_mask_image_is_read(tmp_path):
    path = tmp_path / "mask.png"
    Image.new("L", (4, 4), 255).save(path)
    settings = parse_demo(["--mask-source", "image", "--mask-image", str(path)]).settings
    assert settings.mask_image == base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--delta", "1.5"], "setting delta = 1.5 is refused: expected a number from 0 to 1"),
        (["--delta", "much"], "setting delta = 'much' is refused"),
        (["--delta", "nan"], "setting delta = nan is refused"),
        (["--settings", '{"detla": 1}'], "did you mean delta?"),
        (["--settings", "{"], "no JSON"),
        (["--settings", "no such file.json"], "cannot be read"),
        (["--mask-source", "image"], "setting mask_image"),
        (["--mask-image", "no such file.png"], "cannot be read"),
        (["--prompt", "a star"], "--prompt needs --foreground"),
        (["--foreground", __file__, "--background", __file__], "need a --prompt"),
        (["--prompt", "a", "--foreground", "x.png", "--background", "y.png"], "no image x.png"),
        (["--objects", "3"], "more than 2"),
        (["--layers", "star"], "setting layers = 'star' is refused"),
        (
            ["--objects", "2", "--controlnet", "a", "--controlnet", "b"],
            "3 conditions need 3 --controlnet",
        ),
        (["--size", "65"], "multiples of 8"),
        (["--size", "big"], "neither N nor WxH"),
        (["--steps", "0"], "less than 1"),
        (["--columns", "sum,product"], "product: choose among"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(capsys, options, said):
    assert said in refused(capsys, *options)


def test_help_and_unknown_commands(capsys):
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["dmeo"]) == 2
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for name in ("--prompt", "--delta", "--mask-source", "--controlnet", "--out"):
        assert name in shown


def test_an_image_that_is_none_is_refused(model, tmp_path, capsys):
    images = ("--foreground", __file__, "--background", __file__)
    assert demo(model, "--prompt", "a star", *images, "--out", str(tmp_path / "x.png")) == 1
    assert "is no image" in capsys.readouterr().err


def test_a_refused_unit_is_said_in_one_line(model, tmp_path, capsys):
    assert demo(model, "--foreground-unit", "7", "--out", str(tmp_path / "x.png")) == 2
    assert "setting foreground_unit = 7" in capsys.readouterr().err


# Models


def test_models_that_cannot_be_used_are_refused(model, tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        load_pipeline(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"model_index\.json"):
        load_pipeline(tmp_path / "empty")
    with pytest.raises(ModelError, match="fuses two or more"):
        load_pipeline(model, [model / "controlnet-outline"])
    with pytest.raises(ModelError, match="there is no ControlNet"):
        load_pipeline(model, [model / "controlnet-outline", tmp_path / "nothing"])
    with pytest.raises(ModelError, match="expected a ControlNetModel"):
        load_pipeline(model, [model / "controlnet-outline", model / "unet"])


def test_an_unusable_device_is_refused(model):
    with pytest.raises(ModelError, match="device abacus cannot be used"):
        load_pipeline(model, device="abacus")


def test_a_hub_id_needs_controlnets():
    with pytest.raises(ModelError, match="no folder here"):
        load_pipeline("owner/model")


def test_other_families_are_refused(model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    index = json.loads((other / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionXLPipeline"
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"StableDiffusionXL.*expected Stable Diffusion 1.5"):
        load_pipeline(other)


def test_a_folder_without_controlnets_asks_for_them(model, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("controlnet-*"))
    with pytest.raises(ModelError, match="comes with no ControlNets"):
        load_pipeline(bare)
    names = [model / "controlnet-outline", model / "controlnet-regions"]
    assert len(load_pipeline(bare, names).controlnet.nets) == 2


def test_a_missing_part_is_named(model, tmp_path):
    partial = tmp_path / "partial"
    shutil.copytree(model, partial, ignore=shutil.ignore_patterns("vae"))
    with pytest.raises(ModelError, match="vae"):
        save_pipeline_index(partial)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_pipeline(partial)


def test_the_bundled_model_makes_what_it_is_told():
    if not (BUNDLED / "model_index.json").is_file():
        pytest.skip(f"THE TRAINED MODEL IS MISSING: {BUNDLED} (make it with training.export)")
    from demo.metrics import object_colour, object_iou

    pipe = load_pipeline()
    assert pipe.safety_checker is None
    examples = bundled_examples()[:4]
    outlines = torch.stack([e.foreground for e in examples])
    prompts = [e.prompt for e in examples]
    pictures = generate(with_one_controlnet(pipe, 0), prompts, [0, 1, 2, 3], outlines, steps=12)
    masks = torch.stack([e.object_mask for e in examples if e.object_mask is not None])
    assert object_iou(pictures, masks).mean() > 0.85
    right = [c in p for c, p in zip(object_colour(pictures), prompts, strict=True)]
    assert all(right)


def test_the_code_on_the_model_card_loads_the_bundled_model(monkeypatch):
    if not (BUNDLED / "model_index.json").is_file():
        pytest.skip(f"THE TRAINED MODEL IS MISSING: {BUNDLED} (make it with training.export)")
    card = (BUNDLED / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(BUNDLED.parents[1])
    names: dict[str, Any] = {}
    exec(code, names)
    parts = (names["pipe"].unet, names["pipe"].text_encoder, *names["pipe"].controlnet.nets)
    assert {value.dtype for part in parts for value in part.parameters()} == {torch.float32}
    black = torch.zeros(1, 3, 64, 64)
    assert generate(names["pipe"], ["a red star"], [0], [black, black], steps=1).isfinite().all()


# The figure


def test_pictures_are_shown_pixel_by_pixel():
    picture = to_image(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)))
    row = Row("a label of several words", "small", [picture, picture], ["0.71", ""])
    figure = draw_figure([Column("one"), Column("two", "sub", "group")], [row], "a footer")
    large = np.asarray(picture.resize((192, 192), Image.Resampling.NEAREST))
    sheet = np.asarray(figure)
    starts = np.argwhere((sheet == large[0, 0]).all(-1))
    blocks = [sheet[y : y + 192, x : x + 192] for y, x in starts]
    assert sum(np.array_equal(block, large) for block in blocks) == 2


def test_a_mask_fades_the_rest():
    picture = Image.new("RGB", (64, 64), (0, 0, 0))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:6, 2:6] = True
    shown = overlay(picture, mask)
    assert shown.getpixel((32, 32)) == (0, 0, 0)
    assert min(shown.getpixel((2, 2))) > 150
    assert min(overlay(picture, None).getpixel((32, 32))) > 150

"""Pairs from photographs, and the whole way from there to the tables."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.fidelity import detectors as seeing
from benchmarks.fidelity import prepare
from benchmarks.fidelity.detectors import DetectorError
from benchmarks.fidelity.folder import FolderPairs
from benchmarks.fidelity.pairs import COMPLEMENTARY, CONFLICT
from benchmarks.fidelity.photographs import named
from benchmarks.fidelity.scorers import Scorers
from benchmarks.fidelity.segmentation import coloured

from . import tiny_detectors
from .tiny_detectors import draw_photographs

ROOT = Path(__file__).resolve().parents[2]
OWN = "tests.fidelity.tiny_detectors:detectors"
SIDE = 64


@pytest.fixture
def albums(tmp_path) -> list[str]:
    """A dozen photographs of persons and a few places, as options; one file is broken."""
    draw_photographs(tmp_path / "coco", 12, person=True)
    draw_photographs(tmp_path / "bg20k" / "train", 5, person=False)
    (tmp_path / "coco" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "coco" / "readme.txt").write_text("no picture")
    return [f"--coco={tmp_path / 'coco'}", f"--bg20k={tmp_path / 'bg20k'}", f"--size={SIDE}"]


@pytest.fixture
def own(monkeypatch) -> list[str]:
    monkeypatch.setattr(seeing, "own", lambda name: tiny_detectors.detectors())
    return ["--detectors=the:tests"]


def test_a_conflicting_pair_is_one_photographs_person_and_anothers_place(albums, own, tmp_path):
    out = tmp_path / "pairs"
    kinds = ["pose+seg", "pose+depth", "pose+canny", "pose+hed"]
    options = [
        *albums,
        *own,
        f"--out={out}",
        "--count=3",
        "--complementary",
        "--conditions",
        *kinds,
    ]
    assert prepare.main(options) == 0
    for kind in kinds:
        source = FolderPairs(out / kind, (SIDE, SIDE), Scorers())
        assert source.cases == (CONFLICT, COMPLEMENTARY)
        assert source.conditions == kind
        for case in source.cases:
            plans = source.plans(case, 10, 24)
            assert sum(len(plan.numbers) for plan in plans) == 3
            for plan in plans:
                batch = source.load(plan)
                assert plan.word == "man"
                assert all("man on a street" in prompt for prompt in batch.prompts)
                assert all(("hills" in p) == (case == CONFLICT) for p in batch.prompts)
                assert source.has_objects(plan)
                assert source.has_pictures(plan) == (case == COMPLEMENTARY)
                shares = batch.object_mask.float().mean((1, 2))
                assert bool(((shares > 0.02) & (shares < 0.6)).all())

    source = FolderPairs(out / "pose+seg", (SIDE, SIDE), Scorers())
    conflict, agreeing = (source.load(source.plans(case, 1, 1)[0]) for case in source.cases)
    assert torch.equal(conflict.conditions[0], agreeing.conditions[0])
    person = coloured(torch.ones(1, 1, dtype=torch.long))[..., :1]
    assert not (conflict.conditions[1][0] == person).all(0).any()
    assert torch.equal((agreeing.conditions[1][0] == person).all(0), agreeing.object_mask[0])
    labels = np.array(Image.open(source.folder / source.pairs[0].labels))
    assert torch.equal(coloured(torch.from_numpy(labels).long()), conflict.conditions[1][0])


def test_what_will_not_do_is_left_out_and_said(albums, own, tmp_path, capsys):
    out = tmp_path / "pairs"
    assert prepare.main([*albums, *own, f"--out={out}", "--count=50"]) == 0
    said = capsys.readouterr().out
    assert "11 pairs" in said  # of a dozen, one of which is a speck, and a file that is broken
    assert "fewer than 50" in said
    reasons = [part["reason"] for part in prepare.read_parts(out).values() if not part["pairs"]]
    assert any("cannot be read" in reason for reason in reasons)
    assert any("person is 0.0" in reason for reason in reasons)
    assert len(reasons) == 2


def test_it_goes_on_where_it_was(albums, own, tmp_path, monkeypatch, capsys):
    out = tmp_path / "pairs"
    looked = []
    look = prepare.look
    monkeypatch.setattr(prepare, "look", lambda *given: looked.append(given[1]) or look(*given))
    options = [*albums, *own, f"--out={out}"]
    assert prepare.main([*options, "--count=2"]) == 0
    before = set(looked)
    lists = json.loads((out / "pose+seg" / "pairs.json").read_text())
    assert len(lists) == 2
    assert prepare.main([*options, "--count=4"]) == 0
    assert len(looked) == len(set(looked))
    assert before < set(looked)
    assert json.loads((out / "pose+seg" / "pairs.json").read_text())[:2] == lists
    capsys.readouterr()
    assert prepare.main([*options, "--count=4", "--seed=1"]) == 1
    assert "seed was '0' and is '1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("caption", "label", "expected"),
    [
        ("Two women in a park", "person", ("women", "Two women in a park")),
        ("a red bus", "person", ("person", "a person, a red bus")),
        ("", "person", ("person", "a person")),
        ("a brown dog", "dog", ("dog", "a brown dog")),
        ("a man with a hat", "dog", ("dog", "a dog, a man with a hat")),
    ],
)
def test_a_prompt_names_its_object(caption, label, expected):
    assert named(caption, label) == expected


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--conditions", "pose"], 2, "--conditions: 'pose' is refused"),
        (["--conditions", "pose+normal"], 2, "expected two of pose, seg, depth, canny, hed"),
        (["--coco", "nowhere"], 1, "--coco: nowhere has no pictures"),
        (["--detectors", "nowhere:at_all"], 1, "expected MODULE:FUNCTION"),
        (["--detectors", "json:nothing"], 1, "expected MODULE:FUNCTION"),
        (["--segmenter", "./nowhere"], 1, "--segmenter ./nowhere cannot be loaded"),
    ],
)
def test_what_cannot_be_is_refused(albums, tmp_path, capsys, options, status, says):
    try:
        found = prepare.main([*albums, f"--out={tmp_path / 'pairs'}", *options])
    except SystemExit as stopped:
        found = stopped.code
    assert found == status
    assert says in capsys.readouterr().err


def test_a_function_must_return_detectors(monkeypatch):
    monkeypatch.setitem(sys.modules, "of_mine", tiny_detectors)
    assert seeing.own("of_mine:detectors").object_class == 1
    with pytest.raises(DetectorError, match="returned str, no Detectors"):
        seeing.own("of_mine:nothing")


def test_a_missing_package_is_named(judges, monkeypatch):
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    monkeypatch.setattr(seeing, "_captioner", lambda *_: str)
    with pytest.raises(DetectorError, match="pip install controlnet_aux"):
        seeing.public(["pose", "seg"], "cpu", segmenter=judges["segmenter"])
    # A segmentation map alone needs none.
    assert not seeing.public(["seg"], "cpu", segmenter=judges["segmenter"]).conditions
    with pytest.raises(DetectorError, match="no class 'zebra'"):
        seeing.public(["seg"], "cpu", "zebra", segmenter=judges["segmenter"])


def test_annotators_are_called_as_controlnet_aux_has_them(judges, monkeypatch):
    """Version 0.0.10: loaded by name and moved, and asked for two resolutions and a picture."""
    asked = []

    class Detector:
        @classmethod
        def from_pretrained(cls, source):
            asked.append((cls.__name__, source))
            return cls()

        def to(self, device):
            asked.append(device)
            return self

        def __call__(self, input_image, detect_resolution, image_resolution, output_type):
            assert (detect_resolution, image_resolution, output_type) == (100, 100, "pil")
            return Image.new("L", (128, 128), 200)  # it rounds to multiples of 64

    module = type(sys)("controlnet_aux")
    for name in ("OpenposeDetector", "MidasDetector", "HEDdetector", "CannyDetector"):
        setattr(module, name, type(name, (Detector,), {}))
    monkeypatch.setitem(sys.modules, "controlnet_aux", module)
    monkeypatch.setattr(seeing, "_captioner", lambda *_: str)
    found = seeing.public(seeing.KINDS, "cpu", annotators="a/b", segmenter=judges["segmenter"])
    picture = Image.new("RGB", (100, 100))
    for kind in ("pose", "depth", "canny", "hed"):
        made = found.condition(kind, picture, torch.zeros(100, 100, dtype=torch.long))
        assert (made.size, made.mode) == ((100, 100), "RGB")
    assert sorted(asked, key=str) == [
        ("HEDdetector", "a/b"), ("MidasDetector", "a/b"), ("OpenposeDetector", "a/b"),
        "cpu", "cpu", "cpu",
    ]  # fmt: skip


@pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None,
    reason="accelerate is not installed (requirements/bench.txt)",
)
def test_from_photographs_to_the_papers_table_in_two_processes(albums, model, judges, tmp_path):
    """A dozen drawn photographs, tiny random models, accelerate's own launcher."""

    def run(command: str, *options: str) -> str:
        words = [sys.executable, "-m", "benchmarks", command, *options, "--processes=2"]
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = tmp_path / "pairs"
    said = run("prepare", *albums, f"--detectors={OWN}", f"--out={out}", "--count=11")
    assert said.count("11 pairs") == 2
    options = [f"--model={model}", f"--pairs={out / 'pose+seg'}", f"--out={tmp_path / 'out'}"]
    options += ["--steps=2", "--count=11", "--ablated=0", f"--clip={judges['clip']}"]
    options += [f"--segmenter={judges['segmenter']}", f"--depth={judges['depth']}"]
    said = run("fidelity", *options)
    assert "The paper's columns, pose+seg: 11 pairs" in said
    assert "(0.2282)" in said
    assert "not measured" not in said
    assert "conditions masked apart" in said
    again = run("fidelity", *options, "--report")
    assert again == said

"""Scores of real pictures by models that are named."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from benchmarks.fidelity import report
from benchmarks.fidelity.scorers import IGNORED, ScorerError, Scorers
from benchmarks.fidelity.scorers import _bytes as scorers_bytes
from benchmarks.fidelity.segmentation import Segmenter, coloured, palette


def test_real_pictures_are_scored_by_the_models_that_are_named(judges, scenes):
    scorers = Scorers.load(
        judges["clip"], judges["segmenter"], "person", judges["depth"], False, "cpu"
    )
    assert scorers.object_class == 1
    pictures = scenes.picture[:3]
    seen = scorers.segmenter.classes([scorers_bytes(picture) for picture in pictures])
    given = {
        "prompts": ["a red star", "a blue ring over hills", ""],
        "background": torch.stack([scenes.landscape_map[0], *(coloured(seen[n]) for n in (1, 2))]),
        "kinds": ["depth", "seg", ""],
        "object_masks": [seen[0] == 1, scenes.object_mask[1], None],
        "labels": [seen[0], None, seen[2]],
        "references": [pictures[0], None, None],
    }
    rows = scorers.score(pictures, **given)
    assert [set(row) for row in rows] == [
        {"clip", "iou", "regions", "depth", "ssim"},
        {"clip", "iou", "seg"},
        {"clip", "regions", "depth"},
    ]
    assert all(set(row) <= set(report.MEASURES) for row in rows)
    assert rows[0]["iou"] == 1
    assert rows[0]["ssim"] == pytest.approx(1)
    assert rows[0]["regions"] == pytest.approx(float((seen[0] != 1).any()))
    assert rows[1]["seg"] == 0
    assert all(-1 <= row["clip"] <= 1 for row in rows)
    assert 0 <= rows[0]["depth"] <= 1
    for n in range(3):  # a picture's measures do not depend on the batch
        alone = scorers.score(
            pictures[n : n + 1], **{name: value[n : n + 1] for name, value in given.items()}
        )
        assert alone[0] == pytest.approx(rows[n], abs=1e-4)


def test_what_is_not_asked_for_is_not_measured(scenes):
    rows = Scorers().score(
        scenes.picture[:1],
        prompts=[""],
        background=scenes.landscape_map[:1],
        kinds=["seg"],
        object_masks=[scenes.object_mask[0]],
        labels=[None],
        references=[None],
    )
    assert rows == [{}]


def test_classes_have_ade20ks_colours():
    classes = torch.tensor([[0, 12], [149, IGNORED]])
    found = (coloured(classes) * 255).round().byte().movedim(0, -1).tolist()
    assert found == [[[120, 120, 120], [150, 5, 61]], [[92, 0, 255], [0, 0, 0]]]
    # ADE20K has two pairs of classes of one colour, and no black.
    assert len({tuple(colour) for colour in palette().tolist()}) >= 148
    assert (palette().sum(1) > 0).all()


@pytest.mark.parametrize("kind", ["mask2former", "oneformer"])
def test_universal_models_are_asked_their_own_way(kind):
    """Their outputs are put together by their own processors; OneFormer wants a task."""
    asked = {}

    class Model:
        device, dtype = "cpu", torch.float32
        config = SimpleNamespace(model_type=kind, id2label={0: "wall", 1: "person"})

        def __call__(self, **given):
            return given["pixel_values"]

    class Processor:
        def __call__(self, images, return_tensors, **more):
            asked.update(more)
            return Given(pixel_values=torch.stack([torch.as_tensor(image) for image in images]))

        def post_process_semantic_segmentation(self, out, target_sizes):
            assert target_sizes == [(2, 3)] * len(out)
            return [image[..., 0] > 0 for image in out]

    picture = torch.tensor([[[0, 0, 0], [9, 0, 0], [9, 0, 0]]] * 2, dtype=torch.uint8).numpy()
    found = Segmenter(Processor(), Model(), universal=True).classes([picture, picture])
    assert [classes.tolist() for classes in found] == [[[0, 1, 1]] * 2] * 2
    assert asked == ({"task_inputs": ["semantic"] * 2} if kind == "oneformer" else {})


class Given(dict):
    """What a processor returns."""

    def to(self, _device, _dtype):
        return self


def test_a_scorer_that_cannot_be_had_says_why(judges, tmp_path):
    with pytest.raises(ScorerError, match="no class 'zebra'"):
        Scorers.load(None, judges["segmenter"], "zebra", None, False, "cpu")
    with pytest.raises(ScorerError, match="cannot be loaded"):
        Scorers.load(str(tmp_path), None, "person", None, False, "cpu")
    if importlib.util.find_spec("pyiqa") is None:
        with pytest.raises(ScorerError, match="needs the package pyiqa"):
            Scorers.load(None, None, "person", None, True, "cpu")

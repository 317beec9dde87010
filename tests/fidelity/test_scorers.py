"""Scores of real pictures by models that are named."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from benchmarks.fidelity import report
from benchmarks.fidelity.scorers import ScorerError, Scorers


@pytest.fixture(scope="module")
def judges(model, tmp_path_factory) -> dict[str, str]:
    """A CLIP, a segmenter and a depth model with random weights."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTokenizer,
        GLPNConfig,
        GLPNForDepthEstimation,
        GLPNImageProcessor,
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("judges")
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = {**small, "num_attention_heads": 2, "vocab_size": len(tokenizer)}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    vision = {**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(
        place / "clip"
    )
    tokenizer.save_pretrained(place / "clip")
    tiny = {
        "hidden_sizes": [8, 8, 8, 8],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 1, 1],
        "decoder_hidden_size": 8,
    }
    names = {0: "wall", 1: "person, individual", 2: "sky"}
    SegformerForSemanticSegmentation(SegformerConfig(**tiny, id2label=names)).save_pretrained(
        place / "segmenter"
    )
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(place / "segmenter")
    GLPNForDepthEstimation(GLPNConfig(**tiny)).save_pretrained(place / "depth")
    GLPNImageProcessor().save_pretrained(place / "depth")
    return {name: str(place / name) for name in ("clip", "segmenter", "depth")}


def test_real_pictures_are_scored_by_the_models_that_are_named(judges, scenes):
    scorers = Scorers.load(
        judges["clip"], judges["segmenter"], "person", judges["depth"], False, "cpu"
    )
    assert scorers.object_class == 1
    picture = scenes.picture[0]
    seen = scorers._classes(picture)
    row = scorers.score(
        picture,
        prompt="a red star",
        background=scenes.landscape_map[0],
        object_mask=seen == 1,
        labels=seen,
        reference=picture,
    )
    assert set(row) == {"clip", "iou", "regions", "depth", "ssim"}
    assert set(row) <= set(report.MEASURES)
    assert row["iou"] == 1
    assert row["ssim"] == pytest.approx(1)
    assert row["regions"] == pytest.approx(float((seen != 1).any()))
    assert -1 <= row["clip"] <= 1
    assert 0 <= row["depth"] <= 1


def test_what_is_not_asked_for_is_not_measured(scenes):
    row = Scorers().score(
        scenes.picture[0],
        prompt="",
        background=scenes.landscape_map[0],
        object_mask=scenes.object_mask[0],
        labels=None,
        reference=None,
    )
    assert row == {}


def test_a_scorer_that_cannot_be_had_says_why(judges, tmp_path):
    with pytest.raises(ScorerError, match="no class 'zebra'"):
        Scorers.load(None, judges["segmenter"], "zebra", None, False, "cpu")
    with pytest.raises(ScorerError, match="cannot be loaded"):
        Scorers.load(str(tmp_path), None, "person", None, False, "cpu")
    if importlib.util.find_spec("pyiqa") is None:
        with pytest.raises(ScorerError, match="needs the package pyiqa"):
            Scorers.load(None, None, "person", None, True, "cpu")

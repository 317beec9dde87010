"""A random model, its worker, drawn scenes and a folder of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_run import save_random_run

from benchmarks.fidelity.models import load
from benchmarks.fidelity.pairs import DrawnPairs
from benchmarks.fidelity.runner import Worker
from demo.demo_model import save_pipeline_index
from demo.scenes import draw

from . import QUICK


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    folder = save_random_run(tmp_path_factory.mktemp("random") / "model")
    save_pipeline_index(folder)
    return folder


@pytest.fixture(scope="session")
def worker(model) -> Worker:
    return Worker(load(str(model), None, "cpu", None), DrawnPairs(), QUICK)


@pytest.fixture(scope="session")
def scenes():
    return draw(8, torch.Generator().manual_seed(11), object_free=0)


@pytest.fixture(scope="session")
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


@pytest.fixture
def folder(tmp_path, scenes) -> Path:
    place = tmp_path / "pairs"
    place.mkdir()
    entries = []
    for n in range(2):
        for name, image in (
            ("fg", scenes.outline[n]),
            ("bg", scenes.landscape_map[n]),
            ("ref", scenes.picture[n]),
            ("mask", scenes.object_mask[n].float().expand(3, -1, -1)),
        ):
            pixels = (image * 255).byte().movedim(0, -1).numpy()
            Image.fromarray(np.ascontiguousarray(pixels)).save(place / f"{n}-{name}.png")
        Image.fromarray(scenes.regions[n].byte().numpy()).save(place / f"{n}-labels.png")
        entries.append(
            {
                "prompt": scenes.captions[n],
                "word": scenes.shape[n],
                "foreground": f"{n}-fg.png",
                "background": f"{n}-bg.png",
                "reference": f"{n}-ref.png",
                "object_mask": f"{n}-mask.png",
                "labels": f"{n}-labels.png",
            }
        )
    (place / "pairs.json").write_text(json.dumps(entries))
    return place

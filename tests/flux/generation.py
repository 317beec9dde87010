"""How these tests generate."""

from __future__ import annotations

import pytest
import torch
from family_oracles import PROMPT
from tiny import conditions

from demo.demo_model import BUNDLED

MARKS = [
    pytest.mark.skipif(
        not BUNDLED.is_dir(), reason="the tokenizer comes from models/demo, which is missing"
    ),
    pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning"),
]
FULL = {"start_step": 1, "strict": True}
WORD = {**FULL, "mask_source": "word", "foreground_word": "star", "mask_threshold": 0.4}


def generate(pipe, prompt=PROMPT, seed=0, **changes):
    """One generation's final latents; equal seeds give equal noise."""
    images = changes.pop("control_image", None) or conditions(len(pipe.controlnet.nets))
    arguments = {
        "control_image": images,
        # With several ControlNets this pipeline takes no single number, its own default included.
        "controlnet_conditioning_scale": [1.0] * len(images),
        "num_inference_steps": 3,
        "height": images[0].shape[-2],
        "width": images[0].shape[-1],
        "max_sequence_length": 16,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        **changes,
    }
    return pipe(prompt, **arguments).images

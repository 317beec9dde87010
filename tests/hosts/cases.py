"""Requests that the host tests send: a plain one, units, and the matrix of issue-worthy cases.

Small and short on purpose: random weights make noise at any size, and a CPU is slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hosts.client import TITLE, Client, Json, encoded
from PIL import Image, ImageDraw

SIZE = 64
STEPS = 2
PROMPT = "a red star above the sea"
METHOD: Json = {"fusion": "pix+channel", "foreground_word": "star", "start_step": 1}
# Random attention need not single out a place; this mask always injects.
EVERYWHERE: Json = {**METHOD, "mask_source": "all"}
SUM: Json = {"fusion": "sum", "inject": False}
# Four chunks of 75 tokens; without commas, at which the WebUIs move words to the next chunk.
LONG = "a blurry old photo of a wide green field in the rain " * 25


def blocks(seed: int, size: int = SIZE) -> Image.Image:
    """A picture of bright coloured squares; no host takes it for an empty one."""
    generator = np.random.default_rng(seed)
    small = generator.integers(40, 255, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.NEAREST)


def painted_mask(size: int = SIZE, side: str = "left") -> Image.Image:
    """White in the left half, or in the upper one ("top")."""
    picture = Image.new("L", (size, size), 0)
    width, height = (size, size // 2) if side == "top" else (size // 2, size)
    ImageDraw.Draw(picture).rectangle((0, 0, width - 1, height - 1), fill=255)
    return picture


def layered(*entries: Json, **changes: Any) -> Json:
    """Settings that compose units by layers, without injection; see `painted`."""
    return {"fusion": "layers", "inject": False, "layers": list(entries), **changes}


def painted(unit: int, side: str = "left") -> Json:
    """A unit in front whose place is painted."""
    mask = encoded(painted_mask(2 * SIZE, side))
    return {"unit": unit, "mask_source": "image", "mask_image": mask}


# At 64x64 a word's map has four places.
BIG: Json = {"width": 2 * SIZE, "height": 2 * SIZE, "steps": 3}
WORDS: tuple[Json, ...] = ({"unit": 0, "word": "star"}, {"unit": 1, "word": "sea"})
HALVES = (painted(0, "top"), painted(1, "left"))
ABSENT: Json = {"unit": 0, "word": "zeppelin"}


class Requests:
    """Builds requests for one WebUI."""

    def __init__(self, client: Client, family: str, models: str = "ccn-random") -> None:
        """`models` begins the names of the ControlNets' files."""
        self.client, self.models = client, models
        self.none = "none" if family == "a1111" else "None"

    def unit(self, name: str = "a", seed: int = 1, **changes: Any) -> Json:
        """One ControlNet unit with a picture of its own."""
        values = {
            "enabled": True,
            "module": self.none,
            "model": self.client.model(f"{self.models}-{name}"),
            "weight": 1.0,
            "image": self.picture(seed),
            "resize_mode": "Just Resize",
            "control_mode": "Balanced",
            "pixel_perfect": False,
            "processor_res": SIZE,
            "guidance_start": 0.0,
            "guidance_end": 1.0,
        }
        return {**values, **changes}

    def picture(self, seed: int, size: int = SIZE) -> str:
        """A condition, as the API takes it."""
        return encoded(blocks(seed, size))

    def two(self, **changes: Any) -> list[Json]:
        """Two units with different models."""
        return [
            self.unit("a", 1, **changes),
            self.unit("b", 2, **changes),
        ]

    def three(self, **changes: Any) -> list[Json]:
        """Three units with different models."""
        return [*self.two(**changes), self.unit("c", 3, **changes)]

    def body(self, units: list[Json] | None = None, **changes: Any) -> Json:
        """A request without this extension's arguments; two units unless others are given."""
        units = self.two() if units is None else units
        scripts = {"ControlNet": {"args": units}} if units else {}
        values = {
            "prompt": PROMPT,
            "negative_prompt": "blurry",
            "seed": 1,
            "steps": STEPS,
            "width": SIZE,
            "height": SIZE,
            "cfg_scale": 7,
            "sampler_name": "Euler",
            "scheduler": "Automatic",
            "save_images": False,
            "alwayson_scripts": scripts,
        }
        return {**values, **changes}


def using(body: Json, *args: Any) -> Json:
    """The same request with arguments for this extension."""
    scripts = {**body["alwayson_scripts"], TITLE: {"args": list(args)}}
    return {**body, "alwayson_scripts": scripts}


@dataclass(frozen=True)
class Case:
    """One row of the matrix.

    Attributes:
        name: how the report calls it.
        make: builds the request, without this extension's arguments.
        pictures: how many come back.
        fused: whether the method has anything to do here.
        repeatable: False where a host may give another picture the second time: these draw noise
            from the global generator.
        quick: part of the short run.
    """

    name: str
    make: Callable[[Requests], Json]
    pictures: int = 1
    fused: bool = True
    repeatable: bool = True
    quick: bool = False


def img2img(requests: Requests, **changes: Any) -> Json:
    """Two units over a picture."""
    start = {"init_images": [encoded(blocks(7))], "denoising_strength": 0.75, "steps": 4}
    return requests.body(**{**start, **changes})


def inpaint(requests: Requests) -> Json:
    """The left half is made anew."""
    more = {"mask": encoded(painted_mask()), "inpainting_fill": 1, "mask_blur": 0}
    return img2img(requests, inpaint_full_res=False, **more)


def hires(requests: Requests, **changes: Any) -> Json:
    """A second pass at twice the size."""
    more = {
        "enable_hr": True,
        "hr_scale": 2,
        "hr_upscaler": requests.client.upscaler(),
        "hr_second_pass_steps": 2,
        "denoising_strength": 0.7,
        "hr_additional_modules": ["Use same choices"],
    }
    return requests.body(**{**more, **changes})


MATRIX = (
    Case("two units", lambda r: r.body(), quick=True),
    Case("hires pass", hires, quick=True),
    Case("batch 2 x count 2", lambda r: r.body(batch_size=2, n_iter=2, steps=2), pictures=4),
    Case("img2img", img2img, repeatable=False, quick=True),
    Case("inpaint", inpaint, repeatable=False),
    Case(
        "ControlNet is more important",
        lambda r: r.body(r.two(control_mode="ControlNet is more important")),
        quick=True,
    ),
    Case(
        "prompt is more important",
        lambda r: r.body(r.two(control_mode="My prompt is more important")),
    ),
    Case(
        "guidance_end 0.5",
        lambda r: r.body([r.unit(), r.unit("b", 2, guidance_end=0.5)], steps=4),
        quick=True,
    ),
    Case(
        "guidance_start 0.5",
        lambda r: r.body([r.unit(guidance_start=0.5), r.unit("b", 2)], steps=4),
    ),
    Case("weights", lambda r: r.body([r.unit(weight=0.6), r.unit("b", 2, weight=1.4)])),
    Case(
        "negative prompt of 300 tokens",
        lambda r: r.body(negative_prompt=LONG),
        quick=True,
    ),
    Case("prompt of 300 tokens", lambda r: r.body(prompt=f"{LONG} and a red star")),
    Case("same model twice", lambda r: r.body([r.unit(seed=1), r.unit(seed=2)]), quick=True),
    Case("three units", lambda r: r.body([*r.two(), r.unit("c", 3)])),
    Case(
        "T2I-Adapter beside two units",
        lambda r: r.body([*r.two(), r.unit("t2iadapter", 3)]),
    ),
    Case(
        "T2I-Adapter and one unit",
        lambda r: r.body([r.unit(), r.unit("t2iadapter", 3)]),
        fused=False,
    ),
    Case("one unit", lambda r: r.body([r.unit()]), fused=False, quick=True),
    Case("no unit", lambda r: r.body([]), fused=False),
    Case(
        "second unit of weight 0",
        lambda r: r.body([r.unit(), r.unit("b", 2, weight=0.0)]),
        fused=False,
    ),
    Case("LoRA", lambda r: r.body(prompt=f"{PROMPT} <lora:ccn-random-lora:1>")),
    Case("AND", lambda r: r.body(prompt=f"{PROMPT} AND a blue boat :0.7"), quick=True),
    Case("CFG 1", lambda r: r.body(cfg_scale=1)),
    Case("Heun", lambda r: r.body(sampler_name="Heun")),
    Case("DPM++ 2M SDE", lambda r: r.body(sampler_name="DPM++ 2M SDE")),
    Case("not square", lambda r: r.body(width=2 * SIZE)),
)

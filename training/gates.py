"""The demo model's quality gates on held-out scenes: `python -m training.gates`.

Every method starts from the same noise, so that a difference between two rows is the methods'.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from torch import Tensor
from tqdm import tqdm

from lib_ccn.foreground import resize_mask
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.playground import metrics
from lib_ccn.playground.demo_model import (
    ModelError,
    generate,
    load_pipeline,
    native_size,
    with_one_controlnet,
    without_controlnets,
)
from lib_ccn.playground.figure import contact_sheet
from lib_ccn.playground.options import BUNDLED_MASK_REDUCTION, proportional_start
from lib_ccn.playground.quiet import silence_libraries
from lib_ccn.playground.scenes import Scenes, draw
from lib_ccn.settings import Settings

SCENE_SEED = 20_260_101  # the trainer's scenes come from the seeds 0, 7919, 15838, ...
QUICK_SCENES = 32
SHEET_PICTURES = 8
METHODS = {
    "sum": {"fusion": "sum"},
    "mean": {"fusion": "mean"},
    "max": {"fusion": "max"},
    "pix": {"fusion": "pix"},
    "pix+channel": {"fusion": "pix+channel"},
    "full, word mask": {"inject": True, "mask_reduction": BUNDLED_MASK_REDUCTION},
    "full, quarter-resolution mask": {"inject": True},
    "full, silhouette": {"inject": True, "mask_source": "silhouette"},
}
AGREEING = {
    "sum": {"fusion": "sum"},
    "pix+channel, delta 0": {"delta": 0.0},
    "pix+channel, delta 0.7": {"delta": 0.7},
    "pix+channel, delta 1": {"delta": 1.0},
}


@dataclass(frozen=True)
class Kind:
    """One row of the table: which conditions, which method, and the gates it must pass."""

    name: str
    conditions: tuple[str, ...] = ()
    settings: dict[str, Any] | None = None
    gates: dict[str, float] = field(default_factory=dict)


KINDS = (
    Kind("caption alone", gates={"colour": 0.95, "regions": 0.90}),
    Kind("outline alone", ("outline",), gates={"iou": 0.75}),
    Kind("region map with the object", ("region_map",), gates={"iou": 0.75, "accuracy": 0.95}),
    Kind("region map without the object", ("landscape_map",)),
    *(Kind(f"conflict: {n}", ("outline", "landscape_map"), s) for n, s in METHODS.items()),
    *(Kind(f"agreeing: {n}", ("outline", "region_map"), s) for n, s in AGREEING.items()),
)
HEADS = {"iou": "object IoU", "accuracy": "region accuracy", "colour": "colour right"}
HEADS |= {"regions": "named regions present", "mask": "mask IoU"}


@dataclass(frozen=True)
class Bench:
    """What every row shares: the pipeline, the scenes, the sampling."""

    pipe: Any
    scenes: Scenes
    steps: int
    guidance_scale: float
    batch: int

    def measure(self, kind: Kind, bar: tqdm) -> tuple[dict[str, float], Tensor]:
        """The row's means over the scenes, and its pictures [B, 3, H, W]."""
        pictures: dict[int, Tensor] = {}
        agreement: list[float] = []
        for numbers in self._batches(kind):
            made, mask = self._make(kind, numbers, bar)
            pictures.update(zip(numbers, made, strict=True))
            if mask is not None:
                truth = resize_mask(self.scenes.object_mask[numbers], mask.shape[-2:])
                agreement += metrics.mask_iou(mask.flatten(1), truth).tolist()
        picture = torch.stack([pictures[n] for n in range(len(pictures))])
        return self.score(picture) | ({"mask": _mean(agreement)} if agreement else {}), picture

    def score(self, picture: Tensor) -> dict[str, float]:
        """Every measure of one picture per scene, averaged."""
        scenes = self.scenes
        found = zip(metrics.regions_present(picture), scenes.named, strict=True)
        colours = zip(metrics.object_colour(picture), scenes.colour, strict=True)
        return {
            "iou": float(metrics.object_iou(picture, scenes.object_mask).mean()),
            "accuracy": float(metrics.region_accuracy(picture, scenes).mean()),
            "colour": _mean([seen == meant for seen, meant in colours]),
            "regions": _mean([set(named) <= present for present, named in found]),
        }

    @torch.inference_mode()
    def through_vae(self) -> Tensor:
        """The scenes' own pictures, encoded and decoded: what sampling cannot surpass."""
        vae = self.pipe.vae
        restored = [
            vae.decode(vae.encode(part.to(vae.device) * 2 - 1).latent_dist.mode()).sample.cpu()
            for part in self.scenes.picture.split(self.batch)
        ]
        return (torch.cat(restored) / 2 + 0.5).clamp(0, 1)

    def _batches(self, kind: Kind) -> list[list[int]]:
        """Scene numbers by batch: of one word each where the method looks for a word."""
        everything = range(len(self.scenes.captions))
        groups: dict[str, list[int]] = {}
        for number in everything:
            word = self.scenes.shape[number] if _reads_word(kind) else ""
            groups.setdefault(word, []).append(number)
        size = self.batch
        return [g[i : i + size] for g in groups.values() for i in range(0, len(g), size)]

    def _make(self, kind: Kind, numbers: list[int], bar: tqdm) -> tuple[Tensor, Tensor | None]:
        conditions = [getattr(self.scenes, name)[numbers] for name in kind.conditions]
        pipe: Any = self.pipe
        if not conditions:
            pipe = without_controlnets(pipe)
        elif len(conditions) == 1:
            pipe = with_one_controlnet(pipe, int(kind.conditions != ("outline",)))
        method: Any = nullcontext()
        if kind.settings is not None:
            defaults = {"inject": False, "start_step": proportional_start(self.steps)}
            settings = Settings.from_dict(defaults | kind.settings)
            if _reads_word(kind):
                settings = settings.replace(foreground_word=self.scenes.shape[numbers[0]])
            method = cross_controlnet(pipe, settings)
        with method as control:
            made = generate(
                pipe,
                [self.scenes.captions[n] for n in numbers],
                numbers,
                conditions[0] if len(conditions) == 1 else conditions or None,
                steps=self.steps,
                guidance_scale=self.guidance_scale,
                size=(native_size(self.pipe),) * 2,
                on_step=bar.update,
            )
        if control is None:
            return made, None
        if control.session.error is not None:
            raise control.session.error
        return made, control.session.mask


def _reads_word(kind: Kind) -> bool:
    return bool(
        kind.settings and kind.settings.get("inject") and "mask_source" not in kind.settings
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as a Markdown table, gates marked."""
    lines = [
        "| condition | " + " | ".join(HEADS.values()) + " |",
        "|---" * (len(HEADS) + 1) + "|",
    ]
    gates = {kind.name: kind.gates for kind in KINDS}
    for name, values in rows.items():
        cells = []
        for key in HEADS:
            value, gate = values.get(key), gates.get(name, {}).get(key)
            cell = "" if value is None else f"{value:.3f}"
            if value is not None and gate is not None:
                cell += f" **{'pass' if value >= gate else 'FAIL'}** (>= {gate:g})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(pictures: dict[str, Tensor]) -> dict[str, float]:
    """Mean absolute difference of each pair of agreeing rows, in 255ths."""
    names = [name for name in pictures if name.startswith("agreeing")]
    return {
        f"{a} / {b.removeprefix('agreeing: ')}": float((pictures[a] - pictures[b]).abs().mean())
        * 255
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 run.py gates", description="Measure the demo model on held-out scenes."
    )
    parser.add_argument("--model", default=None, help="default: the bundled one, models/demo")
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SCENES} scenes")
    parser.add_argument(
        "--only", default="", help="only rows whose name has one of these in it, comma-separated"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--sampler", choices=("unipc", "ddim"), default="unipc")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 1 if a gate fails."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    silence_libraries()
    began = time.monotonic()
    try:
        pipe = load_pipeline(arguments.model, device=arguments.device, dtype=torch.float32)
    except ModelError as error:
        parser.exit(2, f"error: {error}\n")
    sampler = DDIMScheduler if arguments.sampler == "ddim" else UniPCMultistepScheduler
    pipe.scheduler = sampler.from_config(pipe.scheduler.config)
    count = QUICK_SCENES if arguments.quick else arguments.scenes
    scenes = draw(count, torch.Generator().manual_seed(SCENE_SEED), object_free=0)
    bench = Bench(pipe, scenes, arguments.steps, arguments.guidance_scale, arguments.batch)
    wanted = arguments.only.split(",")
    kinds = [kind for kind in KINDS if any(part in kind.name for part in wanted)]
    pictures = {"scenes as drawn": scenes.picture, "through the VAE": bench.through_vae()}
    rows = {name: bench.score(picture) for name, picture in pictures.items()}
    with tqdm(total=len(kinds) * count * arguments.steps, unit="step") as bar:
        for kind in kinds:
            bar.set_description(kind.name)
            rows[kind.name], pictures[kind.name] = bench.measure(kind, bar)

    apart = differences(pictures)
    failed = [
        f"{kind.name}: {HEADS[key]}"
        for kind in kinds
        for key, gate in kind.gates.items()
        if rows[kind.name][key] < gate
    ]
    print(table(rows))
    for name, value in apart.items():
        print(f"mean difference, {name}: {value:.2f} of 255")
    print(f"{count} scenes, {arguments.steps} {arguments.sampler} steps, CFG", end=" ")
    print(f"{arguments.guidance_scale:g}, {time.monotonic() - began:.0f} s")
    print("all gates passed" if not failed else "FAILED: " + "; ".join(failed))
    if arguments.json:
        how = {k: str(v) for k, v in vars(arguments).items() if k not in ("json", "sheet")}
        gates = {kind.name: asdict(kind)["gates"] for kind in kinds if kind.gates}
        report = {"how": how | {"scenes": count}, "rows": rows, "gates": gates}
        report |= {"differences": apart, "failed": failed}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    if arguments.sheet:
        shown = {"outline": scenes.outline, "region map": scenes.region_map} | pictures
        contact_sheet([(n, p[:SHEET_PICTURES]) for n, p in shown.items()]).save(arguments.sheet)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

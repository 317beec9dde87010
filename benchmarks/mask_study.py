"""How well the foreground mask finds the object on the demo model, by word, step and threshold.

Conflicting pairs of held-out scenes; the maps are those of the fused generation itself, before
anything is injected. The default `mask_threshold` is what this shows best.

    python -m benchmarks.mask_study [--quick] [--write]
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from demo.command_line import silence_libraries
from demo.demo_model import generate, load_pipeline
from demo.metrics import mask_iou
from demo.scenes import Scenes, draw
from lib_ccn.foreground import resize_mask
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.settings import Settings

SEED = 20_260_102
STEPS = 20
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)
REDUCTIONS = (2, 4)
WORDS = {
    "noun": lambda scenes, n: scenes.shape[n],
    "colour": lambda scenes, n: scenes.colour[n],
    "colour and noun": lambda scenes, n: f"{scenes.colour[n]} {scenes.shape[n]}",
    "automatic": lambda scenes, n: "",
}
RESULTS = Path(__file__).with_name("MASK_STUDY.md")


def maps_by_step(
    pipe: Any, scenes: Scenes, number: int, word: str, reduction: int
) -> tuple[list[Tensor], str]:
    """The scaled map [H, W] of one scene's word at the steps 1, 2, ..., and the word in use."""
    heats: list[Tensor] = []
    settings = Settings(
        foreground_word=word, inject=False, show_mask=True, start_step=2, mask_reduction=reduction
    )

    def keep(_count: int) -> None:
        heat = control.session.place.heat if control.session is not None else None
        if heat is not None:
            heats.append(heat[0].clone())

    with cross_controlnet(pipe, settings) as control:
        generate(
            pipe,
            [scenes.captions[number]],
            [number],
            [scenes.outline[number : number + 1], scenes.landscape_map[number : number + 1]],
            steps=STEPS,
            on_step=keep,
        )
    assert control.session is not None
    return heats, control.session.place.word.chosen.get(0) or ""


def run(scenes: Scenes) -> dict[str, Any]:
    """Mean IoU by (reduction, word, step, threshold), and what the automatic choices were."""
    pipe = load_pipeline()
    found: dict[tuple[int, str, int, float], list[float]] = defaultdict(list)
    chosen: dict[tuple[int, str], int] = defaultdict(int)
    count = len(scenes.captions)
    with tqdm(total=len(REDUCTIONS) * len(WORDS) * count) as bar:
        for reduction, kind, number in itertools.product(REDUCTIONS, WORDS, range(count)):
            wanted = WORDS[kind](scenes, number)
            heats, word = maps_by_step(pipe, scenes, number, wanted, reduction)
            if kind == "automatic":
                meaning = {scenes.shape[number]: "noun", scenes.colour[number]: "colour"}
                chosen[reduction, meaning.get(word, word or "none")] += 1
            truth = scenes.object_mask[number : number + 1]
            for step, heat in enumerate(heats, start=1):
                target = resize_mask(truth, heat.shape)
                for threshold in THRESHOLDS:
                    agreement = float(mask_iou((heat >= threshold).view(1, -1), target))
                    found[reduction, kind, step, threshold].append(agreement)
            bar.update()
    return {"iou": {k: sum(v) / len(v) for k, v in found.items()}, "chosen": dict(chosen)}


def markdown(result: dict[str, Any], count: int) -> str:
    """The tables."""
    iou = result["iou"]
    steps = sorted({step for _, _, step, _ in iou})
    head = "| " + " | ".join(f"{t:g}" for t in THRESHOLDS) + " |"
    rule = "|---" * (len(THRESHOLDS) + 1) + "|"
    lines = [
        "# How well the mask finds the object",
        "",
        f"Demo model, {count} conflicting pairs, {STEPS} UniPC steps, PixFusion and ChannelFusion, "
        "no injection. IoU of the mask with the object's true mask on the same tokens, by "
        "threshold. Made by `python -m benchmarks.mask_study --write`.",
    ]
    for reduction in REDUCTIONS:
        side = 32 // reduction
        lines += ["", f"## Maps of {side}x{side} tokens (`mask_reduction` {reduction})", ""]
        lines += ["Mean over the steps from 2 on (injection's default start of 5 in 50):", ""]
        lines += [f"| word {head}", rule]
        for kind in WORDS:
            cells = []
            for threshold in THRESHOLDS:
                keys = [(reduction, kind, step, threshold) for step in steps if step >= 2]
                values = [iou[key] for key in keys if key in iou]
                cells.append(f"{sum(values) / len(values):.3f}" if values else "")
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        lines += ["", "The noun by step:", "", f"| step {head}", rule]
        for step in [s for s in (1, 2, 3, 5, 10, 15, 19) if s in steps]:
            cells = [f"{iou[reduction, 'noun', step, t]:.3f}" for t in THRESHOLDS]
            lines.append(f"| {step} | " + " | ".join(cells) + " |")
        names = sorted(result["chosen"].items(), key=lambda item: -item[1])
        choices = ", ".join(f"{name} {n}" for (r, name), n in names if r == reduction)
        lines += ["", f"The automatic word was: {choices}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mask_study", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 scenes")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    silence_libraries()
    count = 8 if arguments.quick else arguments.scenes
    scenes = draw(count, torch.Generator().manual_seed(SEED), object_free=0)
    text = markdown(run(scenes), count)
    print(text)
    if arguments.write:
        RESULTS.write_text(text, "utf-8")


if __name__ == "__main__":
    main()

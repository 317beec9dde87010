"""How well the foreground mask finds the object on the demo model, by word, step and threshold.

Conflicting pairs of held-out scenes; the maps are those of the fused generation itself, before
anything is injected. The default `mask_threshold` is what this shows best.

    python -m benchmarks.mask_study [--quick] [--write]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.playground.demo_model import generate, load_pipeline
from lib_ccn.playground.metrics import mask_iou
from lib_ccn.playground.quiet import silence_libraries
from lib_ccn.playground.scenes import Scenes, draw
from lib_ccn.settings import Settings

SEED = 20_260_102
STEPS = 20
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
WORDS = {
    "noun": lambda scenes, n: scenes.shape[n],
    "colour": lambda scenes, n: scenes.colour[n],
    "colour and noun": lambda scenes, n: f"{scenes.colour[n]} {scenes.shape[n]}",
    "automatic": lambda scenes, n: "",
}
RESULTS = Path(__file__).with_name("MASK_STUDY.md")


def maps_by_step(pipe: Any, scenes: Scenes, number: int, word: str) -> tuple[list[Tensor], str]:
    """The scaled map [H, W] of one scene's word at the steps 1, 2, ..., and the word in use."""
    heats: list[Tensor] = []
    settings = Settings(foreground_word=word, inject=False, show_mask=True, start_step=2)

    def keep(_count: int) -> None:
        heat = control.session.heat if control.session is not None else None
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
    return heats, control.session._word.chosen.get(0) or ""


def run(scenes: Scenes) -> dict[str, Any]:
    """Mean IoU by (word, step, threshold), and what the automatic choice was, by kind."""
    pipe = load_pipeline()
    pipe = load_pipeline()
    found: dict[tuple[str, int, float], list[float]] = defaultdict(list)
    chosen: dict[str, int] = defaultdict(int)
    with tqdm(total=len(WORDS) * len(scenes.captions)) as bar:
        for kind, word_of in WORDS.items():
            for number in range(len(scenes.captions)):
                heats, word = maps_by_step(pipe, scenes, number, word_of(scenes, number))
                if kind == "automatic":
                    meaning = {scenes.shape[number]: "noun", scenes.colour[number]: "colour"}
                    chosen[meaning.get(word, "another word" if word else "none")] += 1
                for step, heat in enumerate(heats, start=1):
                    truth = F.adaptive_avg_pool2d(
                        scenes.object_mask[number][None, None].float(), heat.shape
                    )[0]
                    for threshold in THRESHOLDS:
                        mask = (heat >= threshold)[None]
                        found[kind, step, threshold].append(float(mask_iou(mask, truth >= 0.5)))
                bar.update()
    return {"iou": {k: sum(v) / len(v) for k, v in found.items()}, "chosen": dict(chosen)}


def markdown(result: dict[str, Any], count: int) -> str:
    """The tables."""
    iou = result["iou"]
    steps = sorted({step for _, step, _ in iou})
    lines = [
        "# How well the mask finds the object",
        "",
        f"Demo model, {count} conflicting pairs, {STEPS} UniPC steps, PixFusion and ChannelFusion, "
        "no injection. IoU of the mask at 8x8 tokens with the object's true mask there. Made by "
        "`python -m benchmarks.mask_study --write`.",
        "",
        "Mean over the steps from 2 on (injection's default start, 5 of 50, is step 2 of 20):",
        "",
        "| word | " + " | ".join(f"threshold {t:g}" for t in THRESHOLDS) + " |",
        "|---" * (len(THRESHOLDS) + 1) + "|",
    ]
    for kind in WORDS:
        cells = []
        for threshold in THRESHOLDS:
            values = [
                iou[kind, s, threshold] for s in steps if s >= 2 and (kind, s, threshold) in iou
            ]
            cells.append(f"{sum(values) / len(values):.3f}" if values else "")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    shown: Sequence[int] = [s for s in (1, 2, 3, 5, 10, 15, 19) if s in steps]
    lines += ["", "The noun by step:", "", "| step | " + " | ".join(f"{t:g}" for t in THRESHOLDS)]
    lines[-1] += " |"
    lines += ["|---" * (len(THRESHOLDS) + 1) + "|"]
    for step in shown:
        cells = [f"{iou['noun', step, t]:.3f}" for t in THRESHOLDS]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    chosen = ", ".join(f"{name} {n}" for name, n in sorted(result["chosen"].items()))
    lines += ["", f"The automatic word was: {chosen}."]
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

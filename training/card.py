"""Write the demo model's card from a training run and its measured gates.

python -m training.card --run runs/demo --gates gates.json --to models/demo/README.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from training.gates import table
from training.stages import SCHEDULES

TEXT = """# The demo model

A miniature Stable Diffusion with two ControlNets, trained from scratch for this repository, so that
the method can be tried and tested anywhere with no download. It draws 64x64 pictures of one world:
an object (star, ring, cross, heart, triangle; red, yellow, green, cyan, blue, pink) over a landscape
of two or three regions (sky, hills, field, sand, water). It is of no use for anything else.

```python
from lib_ccn.playground.demo_model import load_pipeline
pipe = load_pipeline()  # or any diffusers call, with local_files_only=True
```

## Parts

{parts}

float16 safetensors in diffusers' layout, {megabytes:.1f} MB in all. The tokenizer is CLIP's kind
(byte-level BPE), learned on the captions' words; the noise schedule is scaled linear from 0.00085 to
0.02 with v-prediction. `controlnet-outline` takes the object's outline in white on black,
`controlnet-regions` the region map in the colours of `lib_ccn/playground/scenes.py`.

## Data

Drawn on the fly by `lib_ccn/playground/scenes.py` with seeds: no pictures of others, nothing private.
12 % of the scenes have no object. 15 % of the captions name only one of the regions. In training the
region map has the object as a region of its own; in a *conflict* it does not, and so says that there is
no object.

## Recipe

`python3 run.py train --bfloat16 --processes 2`, then `training.export`. AdamW (0.9, 0.99), weight
decay 0.01, cosine decay, EMA 0.998, captions dropped in 10 %, min-SNR-5 weights. The ControlNets start
as the UNet's encoder: one is trained on both conditions, then each on its own at a low rate. Their
self-attention stays the base model's, untrained: the method compares the keys of one ControlNet with
the queries of another.

{stages}

{hours} of training in all, on {machine}.

## Quality gates

Measured on {scenes} held-out scenes by `python3 run.py gates`, {steps} {sampler} steps, guidance
{guidance}. "Scenes as drawn" and "through the VAE" are what the measures give the true pictures.

{gates}

{verdict}

{remarks}

## Limits

{limits}
"""


def parts_table(folder: Path) -> str:
    """Every part with its parameters."""
    rows = ["| part | parameters |", "|---|---|"]
    for weights in sorted(folder.glob("*/*.safetensors")):
        with safe_open(weights, "pt") as tensors:
            count = sum(tensors.get_tensor(key).numel() for key in tensors.keys())  # noqa: SIM118
        rows.append(f"| `{weights.parent.name}` | {count / 1e6:.2f} M |")
    return "\n".join(rows)


def stages_table(run: Path) -> tuple[str, float]:
    """Every stage with its length and losses, and the seconds of all."""
    rows = ["| stage | steps | batch | rate | minutes | loss: first 50 | middle | last 50 |"]
    rows += ["|---" * 8 + "|"]
    total = 0.0
    for stage, schedule in SCHEDULES.items():
        report = json.loads((run / f"{stage}.json").read_text("utf-8"))
        seconds = torch.load(run / f"{stage}.pt", weights_only=True)["seconds"]
        total += seconds
        loss = report["loss"]
        rows.append(
            f"| {stage} | {report['steps']} | {report['batch']} | {schedule.rate:g} | "
            f"{seconds / 60:.0f} | {loss[0]:.4f} | {loss[len(loss) // 2]:.4f} | {loss[-1]:.4f} |"
        )
    return "\n".join(rows), total


def card(run: Path, gates: dict[str, Any], folder: Path, notes: dict[str, str]) -> str:
    """The whole text."""
    stages, seconds = stages_table(run)
    how = gates["how"]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    failed = gates["failed"]
    return TEXT.format(
        parts=parts_table(folder),
        megabytes=size / 1e6,
        stages=stages,
        hours=f"{seconds / 3600:.1f} hours",
        machine=notes["machine"],
        scenes=how["scenes"],
        steps=how["steps"],
        sampler={"unipc": "UniPC", "ddim": "DDIM"}[how["sampler"]],
        guidance=how["guidance_scale"],
        gates=table(gates["rows"]),
        verdict="All gates passed." if not failed else "Not reached: " + "; ".join(failed) + ".",
        remarks=notes.get("remarks", ""),
        limits=notes["limits"],
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.card", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument(
        "--gates", type=Path, required=True, help="what training.gates --json wrote"
    )
    parser.add_argument("--notes", type=Path, required=True, help="JSON: machine, remarks, limits")
    parser.add_argument("--to", type=Path, default=Path("models/demo/README.md"))
    arguments = parser.parse_args()
    gates = json.loads(arguments.gates.read_text("utf-8"))
    notes = json.loads(arguments.notes.read_text("utf-8"))
    text = card(arguments.run, gates, arguments.to.parent, notes)
    arguments.to.write_text(text, "utf-8")


if __name__ == "__main__":
    main()

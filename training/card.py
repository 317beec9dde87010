"""Write the demo model's card from a training run and its measured gates.

python -m training.gates --only "alone,with the" --json gates.json
python -m training.card --gates gates.json --notes notes.json

What two conditions at once come to, measured by `benchmarks.fidelity`, stands in the template.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from training.gates import table
from training.stages import SCHEDULES

TEMPLATE = Path(__file__).with_name("card.md")


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
    rows = ["| stage | steps | batch | rate | seconds | loss: first 50 | middle | last 50 |"]
    rows += ["|---" * 8 + "|"]
    total = 0.0
    for stage, schedule in SCHEDULES.items():
        report = json.loads((run / f"{stage}.json").read_text("utf-8"))
        seconds = report["seconds"]
        total += seconds
        loss = report["loss"]
        rows.append(
            f"| {stage} | {report['steps']} | {report['batch']} | {schedule.rate:g} | "
            f"{seconds:.0f} | {loss[0]:.4f} | {loss[len(loss) // 2]:.4f} | {loss[-1]:.4f} |"
        )
    return "\n".join(rows), total


def card(run: Path, gates: dict[str, Any], folder: Path, notes: dict[str, str]) -> str:
    """The whole text."""
    stages, seconds = stages_table(run)
    how = gates["how"]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    failed = gates["failed"]
    return TEMPLATE.read_text("utf-8").format(
        parts=parts_table(folder),
        megabytes=size / 1e6,
        stages=stages,
        minutes=f"{seconds / 60:.1f} minutes",
        machine=notes["machine"],
        scenes=how["scenes"],
        steps=how["steps"],
        sampler={"unipc": "UniPC", "ddim": "DDIM"}[how["sampler"]],
        guidance=how["guidance_scale"],
        gates=table(gates["rows"]),
        verdict="All gates passed." if not failed else "Not reached: " + "; ".join(failed) + ".",
        limits=notes["limits"],
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.card", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument(
        "--gates", type=Path, required=True, help="what training.gates --json wrote"
    )
    parser.add_argument("--notes", type=Path, required=True, help="JSON: machine, limits")
    parser.add_argument("--to", type=Path, default=Path("models/demo/README.md"))
    arguments = parser.parse_args()
    gates = json.loads(arguments.gates.read_text("utf-8"))
    notes = json.loads(arguments.notes.read_text("utf-8"))
    text = card(arguments.run, gates, arguments.to.parent, notes)
    arguments.to.write_text(text, "utf-8")


if __name__ == "__main__":
    main()

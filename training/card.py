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


def stages_table(run: Path, before: str = "") -> tuple[str, float]:
    """Every stage of a run with its length and losses, and the seconds of all.

    Those of the model that it went on from come first, as the card `before` has them.
    """
    lines = ["| stage | steps | batch | rate | seconds | loss: first 50 | middle | last 50 |"]
    lines += ["|---" * 8 + "|"]
    rows = [line for line in before.splitlines() if _is_stage(line)]
    names = [row.split("|")[1].strip() for row in rows]
    total = sum(float(row.split("|")[5]) for row in rows)
    for stage in SCHEDULES:
        path = run / f"{stage}.json"
        if before and not path.exists():
            continue
        report = json.loads(path.read_text("utf-8"))
        seconds, loss = report["seconds"], report["loss"]
        total += seconds
        rows.append(
            f"| {stage}{', gone on' if stage in names else ''} | {report['steps']} | "
            f"{report['batch']} | {report['rate']:g} | {seconds:.0f} | {loss[0]:.4f} | "
            f"{loss[len(loss) // 2]:.4f} | {loss[-1]:.4f} |"
        )
    return "\n".join([*lines, *rows]), total


def _is_stage(line: str) -> bool:
    """Whether a line of a card is a row of its table of stages."""
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    return len(cells) == 8 and cells[0].split(",")[0] in SCHEDULES


def card(
    run: Path, gates: dict[str, Any], folder: Path, notes: dict[str, str], before: str = ""
) -> str:
    """The whole text; `before` is the card of the model that the run went on from."""
    stages, seconds = stages_table(run, before)
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
    parser.add_argument("--before", type=Path, help="card of the model that the run went on from")
    parser.add_argument("--to", type=Path, default=Path("models/demo/README.md"))
    arguments = parser.parse_args()
    gates = json.loads(arguments.gates.read_text("utf-8"))
    notes = json.loads(arguments.notes.read_text("utf-8"))
    before = arguments.before.read_text("utf-8") if arguments.before else ""
    text = card(arguments.run, gates, arguments.to.parent, notes, before)
    arguments.to.write_text(text, "utf-8")


if __name__ == "__main__":
    main()

"""How many operations a step dispatches to an accelerator, how often it waits, what asking takes.

Whole steps at real shapes in half precision: the ControlNets and the UNet on a batch with both
halves of guidance, on tensors without data (see `counting`). No GPU is needed, and none is timed:
"program" is the processor time to ask for a step (see `program`).

    python -m benchmarks.operations [--quick]
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from benchmarks.command import main
from benchmarks.counting import Counts, count
from benchmarks.program import bench as program_bench
from benchmarks.program import program_times
from benchmarks.step import Bench
from benchmarks.timing import machine
from demo.command_line import silence_libraries
from lib_ccn.fusion import fuse_residuals

PLAIN = "plain"
VARIANTS: dict[str, dict[str, Any] | None] = {
    PLAIN: None,
    "`sum`": {"fusion": "sum", "inject": False},
    "fusion": {"inject": False},
    "whole, a word's mask": {"foreground_word": "x"},
    "whole, mask all ones": {"mask_source": "all"},
    "layers and injection": {"foreground_word": "x", "fusion": "layers"},
}
FAMILIES = {"sd15": ("SD 1.5, 512x512", 64), "sdxl": ("SDXL, 1024x1024", 128)}
UNITS, PICTURES = (2, 3), (1, 4)


def bench(family: str, units: int = 2, pictures: int = 1) -> Bench:
    """A family's networks without weights."""
    return Bench(family, FAMILIES[family][1], "meta", torch.float16, units, pictures)


def step_counts(networks: Bench, settings: dict[str, Any] | None) -> Counts:
    """One step past the start step; None: the host's own."""
    if settings is None:
        return count(networks.plain)
    # A word's mask is of the step before; what else is kept is made in the first step.
    step, session = networks.variant(settings, first=0 if "foreground_word" in settings else 1)
    _, counts = count(step), count(step)
    session.close()
    if session.notes:
        raise RuntimeError(f"the method did not run: {'; '.join(session.notes)}")
    return counts


@torch.no_grad()
def fusion_operations(networks: Bench) -> int:
    """Of fusing one call's residuals, by the paper's rules."""
    outputs = [networks.controlnet(number) for number in range(len(networks.nets))]
    # What is kept on the device is made in the first call.
    _, counts = (count(lambda: fuse_residuals(outputs, "pix+channel")) for _ in range(2))
    return counts.operations.total()


def run(quick: bool = False, device: str = "meta", dtype: str = "float16") -> dict[str, Any]:
    """Counts of every variant.

    Returns {"machine", "dtype", "rows": [{"family", "units", "pictures", "fusion", "steps":
    {variant: {"operations", "ratio", "launches", "waits", "program"}}}]}; "launches" and "program"
    are ratios too, waits are those beyond the plain step's.
    """
    silence_libraries()
    rows = []
    for family, (title, _) in FAMILIES.items():
        for units in UNITS[:1] if quick else UNITS:
            for pictures in PICTURES[:1] if quick else PICTURES:
                networks = bench(family, units, pictures)
                counted = {name: step_counts(networks, of) for name, of in VARIANTS.items()}
                program = program_times(
                    program_bench(family, units, pictures), VARIANTS, 3 if quick else 25
                )
                plain = counted[PLAIN]
                steps = {
                    name: {
                        "operations": of.operations.total(),
                        "ratio": of.operations.total() / plain.operations.total(),
                        "launches": of.launches.total() / plain.launches.total(),
                        "waits": of.waits.total() - plain.waits.total(),
                        "program": program[name],
                    }
                    for name, of in counted.items()
                }
                rows.append(
                    {
                        "family": title,
                        "units": units,
                        "pictures": pictures,
                        "fusion": fusion_operations(networks),
                        "steps": steps,
                    }
                )
                del networks, counted
                gc.collect()
    timed_on = f"Processor time of one thread on {machine()}"
    told = f"{timed_on}; operations counted on tensors without data"
    return {"machine": told, "dtype": "float16", "rows": rows}


def markdown(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    names = list(VARIANTS)
    lines = [
        "Operations of a step (ratios to the plain one's: theirs; that of launches, no views and "
        "attention as one; that of the program's own time, on networks with a tenth of the "
        "channels), and waits for the device beyond its own. The last column is the fusion of one "
        "call's residuals alone.",
        "",
        f"| of | units | pictures | {' | '.join(names)} | residuals |",
        "|---" * (len(names) + 4) + "|",
    ]
    for row in results["rows"]:
        cells = [
            f"{step['operations']}"
            if name == PLAIN
            else f"{step['operations']} ({step['ratio']:.3f}; {step['launches']:.3f}; "
            f"{step['program']:.2f}), {_waits(step['waits'])}"
            for name, step in row["steps"].items()
        ]
        first = f"| {row['family']} | {row['units']} | {row['pictures']} "
        lines.append(f"{first}| {' | '.join(cells)} | {row['fusion']} |")
    return "\n".join(lines)


def _waits(number: int) -> str:
    return f"{number or 'no'} wait{'' if number == 1 else 's'}"


if __name__ == "__main__":
    main(run, markdown, __doc__)

"""What the method costs on a GPU: SD 1.5 at 512x512, SDXL and FLUX at 1024x1024, in half precision.

Pipelines of diffusers with random weights, in under five minutes. Of every variant: the time of
a step past the start step (medians of interleaved runs), waits for the device, kernels and how
long the GPU was busy, peak memory, whether `sum` equals the plain pipeline bit by bit, and whether
the fused residuals follow the formulas in float64. Results are written as they come.

    python3 run.py bench gpu [--out FOLDER] [--seconds 240] [--tiny]
    python3 run.py bench gpu --from FOLDER/gpu.json --write
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_runs
from benchmarks.gpu_runs import FEWEST_ROUNDS, FUSION, METHOD, PLAIN, ROUNDS, SKIPPED, VARIANTS
from benchmarks.random_pipelines import random_pipeline, with_units
from benchmarks.timing import machine
from demo.command_line import silence_libraries


@dataclass(frozen=True)
class Family:
    """What is run of a family.

    Attributes:
        title, size: its name; the picture's side in pixels.
        dtype: of everything.
        share: of the time there is.
        steps: timed in a run.
        more: further (units, pictures).
    """

    title: str
    size: int
    dtype: torch.dtype
    share: float
    steps: int
    more: tuple[tuple[int, int], ...] = ()


FAMILIES = {
    "sd15": Family("SD 1.5", 512, torch.float16, 0.3, 8, ((2, 4), (3, 1), (3, 4))),
    "sdxl": Family("SDXL", 1024, torch.float16, 0.4, 5, ((2, 4), (3, 1))),
    "flux": Family("FLUX", 1024, torch.bfloat16, 0.3, 3),
}


@dataclass
class Record:
    """Results, written to a file whenever something is added."""

    path: Path
    results: dict[str, Any] = field(default_factory=dict)

    def put(self, *keys: str, value: Any) -> None:
        """Set a value under keys and write everything."""
        place = self.results
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
        self.path.write_text(json.dumps(self.results, indent=1), "utf-8")


def measure(
    family: str, record: Record, until: float, device: str, tiny: bool, rounds: int
) -> None:
    """Everything of a family, the most important first, until the time is up."""
    of = FAMILIES[family]
    dtype, size = (torch.float32, 128) if tiny else (of.dtype, of.size)
    steps = 1 if tiny else of.steps
    most = max([2, *(units for units, _ in of.more)])
    began = time.monotonic()
    pipe = random_pipeline(family, most, device, dtype, tiny)
    gpu_runs.synchronise()
    name = of.title
    record.put(name, "dtype", value=str(dtype).removeprefix("torch."))
    record.put(name, "size", value=size)
    record.put(name, "seconds to build", value=round(time.monotonic() - began, 1))
    bench = gpu_runs.Bench(with_units(pipe, 2), family, size)
    left_out: list[str] = []

    def part(key: str, found: Callable[[], Any], always: bool = False) -> None:
        if not always and time.monotonic() > until:
            left_out.append(key)
            record.put(name, "left out", value=left_out)
            return
        try:
            record.put(name, *key.split("/"), value=found())
        except Exception:
            record.put(name, f"error in {key}", value=traceback.format_exc())

    half = (time.monotonic() + until) / 2
    part("first", lambda: gpu_runs.first_runs(bench, SKIPPED + 1), always=True)
    part("times/2 units, batch 1", lambda: gpu_runs.times(bench, steps, half, rounds), always=True)
    if torch.cuda.is_available():
        for variant, settings in VARIANTS.items():
            part(f"waits/{variant}", lambda s=settings: gpu_runs.waits(bench, s))
    part("residuals", lambda: gpu_runs.residuals(bench))
    if torch.cuda.is_available():
        for variant in (PLAIN, METHOD, FUSION):
            part(f"kernels/{variant}", lambda v=variant: gpu_runs.kernels(bench, VARIANTS[v]))
    for units, pictures in of.more:

        def more(units: int = units, pictures: int = pictures) -> dict[str, Any]:
            other = gpu_runs.Bench(with_units(pipe, units), family, size, pictures)
            other.run(VARIANTS[METHOD], SKIPPED)
            return gpu_runs.times(other, max(1, steps // 2), until, FEWEST_ROUNDS)

        part(f"times/{units} units, batch {pictures}", more)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run on the GPU and write gpu.json and gpu.md; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python3 run.py bench gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    parser.add_argument("--seconds", type=float, default=240, help="for all (default: 240)")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU, for a test")
    parser.add_argument("--from", dest="source", type=Path, help="measure nothing, read this")
    parser.add_argument("--write", action="store_true", help="write the table to RESULTS.md")
    chosen = parser.parse_args(arguments)
    if chosen.source is not None:
        results = json.loads(chosen.source.read_text("utf-8"))
    else:
        if not chosen.tiny and not torch.cuda.is_available():
            parser.error("this torch sees no GPU; --tiny tries everything on the CPU")
        results = measured(chosen.out, chosen.seconds, chosen.families, chosen.tiny)
    table = markdown(results)
    print(table)
    if chosen.write:
        from benchmarks.page import write

        write({"gpu": table})
    return 0


def measured(out: Path, seconds: float, families: Sequence[str], tiny: bool) -> dict[str, Any]:
    """Measure the families in turn; results are in `out` as they come."""
    silence_libraries()
    out.mkdir(parents=True, exist_ok=True)
    device = "cpu" if tiny else "cuda"
    record = Record(out / "gpu.json")
    record.put("machine", value=machine(device))
    until = time.monotonic()
    shares = sum(FAMILIES[family].share for family in families)
    for family in families:
        # What one leaves over is the next one's.
        until += seconds * FAMILIES[family].share / shares
        try:
            measure(family, record, until, device, tiny, 1 if tiny else ROUNDS)
        except Exception:
            record.put(FAMILIES[family].title, "error", value=traceback.format_exc())
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        (out / "gpu.md").write_text(markdown(record.results), "utf-8")
    return record.results


def markdown(results: Mapping[str, Any]) -> str:
    """The results as Markdown tables."""
    lines = [f"{results['machine']}; diffusers, random weights.", ""]
    lines += [
        "| of | variant | ms a step | ratio | waits | kernels | GPU busy, ms | peak, MiB |",
        "|---" * 8 + "|",
    ]
    notes = []
    for of in FAMILIES.values():
        row = results.get(of.title, {})
        for batch, variants in row.get("times", {}).items():
            title = f"{of.title} {row['size']}x{row['size']}, {batch}"
            first = batch == next(iter(row["times"]))
            for variant, time_of in variants.items():
                cells = ["", "", "", ""]
                if first:
                    counted = row.get("kernels", {}).get(variant, {})
                    busy = counted.get("busy ms")
                    cells = [
                        row.get("waits", {}).get(variant, {}).get("total", ""),
                        counted.get("kernels", ""),
                        "" if busy is None else f"{busy:.1f}",
                        row.get("first", {}).get(variant, {}).get("peak MiB", ""),
                    ]
                figures = " | ".join(map(str, cells))
                lines.append(
                    f"| {title} | {variant} | {time_of['ms']:.1f} | {time_of['ratio']:.3f} "
                    f"| {figures} |"
                )
        notes += _notes(of.title, row)
    return "\n".join([*lines, "", *notes])


def _notes(title: str, row: Mapping[str, Any]) -> list[str]:
    """What the table has no place for."""
    notes = []
    if "first" in row:
        equals = "equals" if row["first"]["`sum`"]["equals plain"] else "does NOT equal"
        finite = all(of["finite"] for of in row["first"].values())
        notes.append(
            f"* {title}, {row['dtype']}: `sum` {equals} the plain pipeline bit by bit; the latents "
            f"are {'finite' if finite else 'NOT finite'}."
        )
    if "residuals" in row:
        of = row["residuals"]
        notes.append(
            f"* {title}, fused residuals against float64: {of['wrong pixels']} of {of['pixels']} "
            f"pixels and {of['wrong channels']} of {of['channels']} channels are wrong."
        )
    if "left out" in row:
        notes.append(f"* {title}: no time was left for {', '.join(row['left out'])}.")
    failed = [key for key in row if key.startswith("error")]
    return [*notes, *(f"* {title}: {key}, see gpu.json." for key in failed)]


if __name__ == "__main__":
    raise SystemExit(main())

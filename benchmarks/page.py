"""The page of the benchmarks' results, RESULTS.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

GPU = "gpu"
TITLES = {
    "fusion": "Fusion of the 13 residuals of SD 1.5 at 512x512, batch 2, to the plain sum",
    "injection": "KV-Injection, to one plain self-attention",
    "mask": "Reading the mask, to the layers that are listened to",
    "operations": "What a step asks of an accelerator: operations, waits, the program's time",
    "step": "A whole denoising step with two ControlNets, to the same step with the plain sum",
    "family": "A step of SDXL and of FLUX with two ControlNets, to the same with the plain sum",
    GPU: "On a GPU: whole pipelines of the real architectures",
}
RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# What the method costs

Medians of interleaved runs; a ratio is the median over rounds of a variant's time to the plain
one's of the same round. Made by `python3 run.py bench --write`, on a GPU by `bench gpu --write`.
"""


def write(parts: Mapping[str, str]) -> None:
    """Write the tables of these benchmarks; what was not run stays.

    Raises ValueError where the page has a part that is none of theirs: it would be lost.
    """
    before = sections(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    titled = {name: f"## {TITLES[name]}\n\n{table}\n" for name, table in parts.items()}
    merged = before | titled
    RESULTS.write_text("\n".join([HEAD, *(merged[n] for n in TITLES if n in merged)]), "utf-8")


def sections(text: str) -> dict[str, str]:
    """The benchmarks' parts of a written page, by name; ValueError for a part of another title."""
    names = {title: name for name, title in TITLES.items()}
    parts = {}
    for part in text.split("\n## ")[1:]:
        title = part.partition("\n")[0]
        if title not in names:
            raise ValueError(f"{RESULTS.name} has a part '{title}'; known: {', '.join(names)}")
        parts[names[title]] = f"## {part.rstrip()}\n"
    return parts

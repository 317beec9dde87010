"""The results as Markdown tables and figures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import machine

from . import paper
from .chart import Panel, chart
from .methods import CEILINGS, CHANNEL, FULL, LAYERS, SUM, Ablation, Method
from .pairs import COMPLEMENTARY, CONFLICT, OVERLAPPING, SEVERAL, TWO, Source
from .runner import Sampling
from .stats import Estimate, difference, estimate
from .store import Store

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "FIDELITY.md"
FIGURES = ROOT / "docs" / "img"
BEGIN, END = "<!-- results: written by --write -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Measure:
    """How a measure is called, and whether more of it is better."""

    title: str
    more_is_better: bool = True
    digits: int = 3


MEASURES = {
    "iou": Measure("object IoU"),
    "worse": Measure("the worse object's IoU"),
    "own": Measure("IoU, own colour"),
    "own worse": Measure("the worse one's, own colour"),
    "front": Measure("right one in front"),
    "swapped": Measure("colours swapped", False),
    "regions": Measure("regions right outside"),
    "mse": Measure("MSE outside", False, 4),
    "rim": Measure("MSE at the rim", False, 4),
    "seg": Measure("segmentation MSE", False, 4),
    "depth": Measure("depth MSE", False, 4),
    "colour": Measure("colour right"),
    "caption": Measure("caption right"),
    "clip": Measure("CLIP-score", digits=4),
    "ssim": Measure("SSIM"),
    "natural": Measure("naturalness distance", False, 2),
    "niqe": Measure("NIQE", False, 2),
    "mask": Measure("mask IoU"),
}
# SSIM and the quality score are for pairs whose picture is known; the mask has its own ablation.
SHOWN = {
    CONFLICT: ("iou", "regions", "mse", "rim", "seg", "depth", "colour", "caption", "clip", "niqe"),
    COMPLEMENTARY: (
        *("iou", "regions", "mse", "seg", "depth", "caption", "clip", "ssim", "natural", "niqe"),
    ),
    TWO: (
        *("own", "own worse", "iou", "worse", "colour", "swapped", "regions", "mse", "rim", "ssim"),
    ),
    OVERLAPPING: ("own", "own worse", "front", "regions", "mse", "rim", "ssim"),
}
ABLATED = ("iou", "own", "own worse", "regions", "rim", "mask")
ORDER = ("sum", "max", "pix", "pix+channel", "full")
CHARTED = {
    CONFLICT: ("iou", "regions", "mse"),
    COMPLEMENTARY: ("iou", "regions", "ssim"),
    TWO: ("own", "own worse", "regions"),
    OVERLAPPING: ("own", "own worse", "front"),
}


@dataclass
class Results:
    """A store, with what the source of its pairs shares between the cases."""

    store: Store
    source: Source

    def column(self, case: str, method: Method, measure: str) -> dict[str, float]:
        """One measure by pair; a picture that both cases share is looked up in either."""
        shared = self.source.shared_foreground and method.unit == 0
        cases = (CONFLICT,) if shared and measure not in ("mask",) else (case,)
        return self.store.column(cases[0], method.key, measure)

    def measures(self, case: str, methods: Sequence[Method], wanted: Sequence[str]) -> list[str]:
        """Those of the wanted measures that some of the methods have."""
        return [m for m in wanted if any(self.column(case, method, m) for method in methods)]

    def complete(self, case: str, methods: Sequence[Method]) -> set[str]:
        """The pairs that every one of the methods that suit the case has made."""
        sets = []
        for method in methods:
            if not method.suits(case):
                continue
            shared = self.source.shared_foreground and method.unit == 0
            home = CONFLICT if shared else case
            sets.append({p for c, m, p in self.store.rows if c == home and m == method.key})
        return set.intersection(*sets) if sets else set()

    def made(self, case: str, ablation: Ablation) -> list[tuple[str, Method]]:
        """The methods of an ablation that there are rows of."""
        known = {key for c, key, _ in self.store.rows if c == case}
        return [(value, method) for value, method in ablation.methods if method.key in known]

    def of(
        self, case: str, method: Method, measure: str, pairs: set[str]
    ) -> tuple[dict[str, float], Estimate | None]:
        """One measure over some pairs, and its mean."""
        column = {p: v for p, v in self.column(case, method, measure).items() if p in pairs}
        return column, estimate(column)


def markdown(
    store: Store,
    source: Source,
    methods: Sequence[Method],
    variants: Sequence[Ablation],
    sampling: Sampling,
) -> str:
    """Every table that the results have rows for."""
    results = Results(store, source)
    kind = "bfloat16 autocast" if sampling.bfloat16 else "the weights' own precision"
    lines = [
        f"UniPC, {sampling.steps} steps, guidance {sampling.guidance_scale:g}, {kind}; the same "
        "noise under every method. Means over pairs with 95 % bootstrap intervals.",
        "",
        f"{machine()}.",
    ]
    lines += _papers_table(results, methods)
    for case in source.cases:
        lines += _main_tables(results, case, methods)
    for ablation in variants:
        for case in ablation.cases:
            lines += _ablation_table(results, ablation, case)
    lines += _cost(store, methods)
    return "\n".join(lines) + "\n"


def write(
    text: str,
    store: Store,
    source: Source,
    methods: Sequence[Method],
    variants: Sequence[Ablation],
) -> list[Path]:
    """Put the tables into `FIDELITY.md` between its marks, and draw the figures."""
    before = RESULTS.read_text("utf-8") if RESULTS.exists() else f"# Fidelity\n\n{BEGIN}\n{END}\n"
    head, _, rest = before.partition(BEGIN)
    tail = rest.partition(END)[2]
    RESULTS.write_text(f"{head}{BEGIN}\n\n{text.strip()}\n\n{END}{tail}", "utf-8")
    FIGURES.mkdir(parents=True, exist_ok=True)
    results = Results(store, source)
    written = [RESULTS]
    for name, panels in (
        ("fidelity.png", main_panels(results, methods)),
        ("ablations.png", ablation_panels(results, variants)),
    ):
        if panels:
            path = FIGURES / name
            chart(panels, columns=3).quantize(32).save(path, optimize=True)
            written.append(path)
    return written


def main_panels(results: Results, methods: Sequence[Method]) -> list[Panel]:
    """A panel per case and measure: every method's mean."""
    panels = []
    for case in results.source.cases:
        pairs = results.complete(case, methods)
        suiting = [method for method in methods if method.suits(case)]
        for measure in results.measures(case, suiting, CHARTED[case]):
            found = [(m.title, results.of(case, m, measure, pairs)[1]) for m in suiting]
            points = [(title, e) for title, e in found if e is not None]
            if points:
                panels.append(_panel(f"{case}, {len(pairs)} pairs", measure, points))
    return panels


def ablation_panels(results: Results, variants: Sequence[Ablation]) -> list[Panel]:
    """Three panels per ablation, object, landscape and rim: paired differences to its base."""
    panels = []
    for ablation in variants:
        rows = results.made(CONFLICT, ablation)
        pairs = results.complete(CONFLICT, [method for _, method in rows])
        if not pairs or len(rows) < 3:
            continue
        base = _base([method for _, method in rows])
        name = next(value for value, method in rows if method == base)
        for measure in ("iou", "regions", "rim"):
            other = results.of(CONFLICT, base, measure, pairs)[0]
            found = [
                (value, difference(results.of(CONFLICT, method, measure, pairs)[0], other))
                for value, method in rows
            ]
            points = [(value, e) for value, e in found if e is not None]
            if points:
                title = f"{ablation.title.split(' (')[0]}: {len(pairs)} pairs"
                panels.append(_panel(title, measure, points, bool(ablation.axis), name))
    return panels


def _base(methods: Sequence[Method]) -> Method:
    """What an ablation is compared with."""
    return next((m for m in (FULL, LAYERS) if m in methods), CHANNEL)


def _panel(
    title: str,
    measure: str,
    points: list[tuple[str, Estimate]],
    line: bool = False,
    base: str = "",
) -> Panel:
    how = MEASURES[measure]
    arrow = "more is better" if how.more_is_better else "less is better"
    less = f", less that of '{base}'" if base else ""
    return Panel(title, f"{how.title}{less} ({arrow})", points, line, how.digits)


def _papers_table(results: Results, methods: Sequence[Method]) -> list[str]:
    """Conflicting pairs in the paper's columns, where their kinds have a table there."""
    conditions = getattr(results.source, "conditions", "")
    pairs = results.complete(CONFLICT, methods)
    if not pairs:
        return []
    rows = []
    for method in methods:
        found = {m: results.of(CONFLICT, method, m, pairs)[1] for m in MEASURES}
        rows.append((method, {m: None if e is None else e.mean for m, e in found.items()}))
    return paper.markdown(conditions, rows, len(pairs))


def _main_tables(results: Results, case: str, methods: Sequence[Method]) -> list[str]:
    pairs = results.complete(case, methods)
    if not pairs:
        return []
    methods = [method for method in methods if method.suits(case)]
    measures = results.measures(case, methods, SHOWN[case])
    lines = ["", f"### {_named(case)}: {len(pairs)}", "", *_head("method", measures)]
    for method in methods:
        cells = [_cell(results.of(case, method, m, pairs)[1], m) for m in measures]
        lines.append(f"| {method.title} | " + " | ".join(cells) + " |")
    for key, title in CEILINGS.items():
        ceiling = Method(key, title)
        found = [results.of(case, ceiling, m, pairs)[1] for m in measures]
        if any(found):
            cells = [_cell(e, m, interval=False) for e, m in zip(found, measures, strict=True)]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Less the plain sum, pair by pair (**bold**: the interval leaves 0 out):",
        "",
        *_head("method", measures),
    ]
    for method in methods:
        if method.key == SUM.key:
            continue
        cells = []
        for measure in measures:
            own, base = (results.of(case, m, measure, pairs)[0] for m in (method, SUM))
            cells.append(_difference(difference(own, base), measure))
        lines.append(f"| {method.title} | " + " | ".join(cells) + " |")
    return [*lines, *_chain(results, case, methods, measures, pairs)]


def _chain(
    results: Results,
    case: str,
    methods: Sequence[Method],
    measures: Sequence[str],
    pairs: set[str],
) -> list[str]:
    """Each method of the paper's order less the one before it."""
    chain = [method for key in ORDER for method in methods if method.key == key]
    lines = ["", "Each in the paper's order less the one before it:", "", *_head("", measures)]
    for before, method in itertools.pairwise(chain):
        cells = []
        for measure in measures:
            own, base = (results.of(case, m, measure, pairs)[0] for m in (method, before))
            cells.append(_difference(difference(own, base), measure))
        lines.append(f"| {method.title}, less {_plain(before)} | " + " | ".join(cells) + " |")
    return lines


def _plain(method: Method) -> str:
    return method.title.removeprefix("+ ").split(" (")[0]


def _ablation_table(results: Results, ablation: Ablation, case: str) -> list[str]:
    rows = results.made(case, ablation)
    methods = [method for _, method in rows]
    pairs = results.complete(case, methods)
    if not pairs or len(rows) < 3:
        return []
    base = _base(methods)
    measures = results.measures(case, methods, ABLATED)
    first = measures[0] if measures else "iou"
    name = next(value for value, method in rows if method == base)
    lines = [
        "",
        f"### {ablation.title}: {_named(case)}, {len(pairs)}",
        "",
        "| | "
        + " | ".join(MEASURES[m].title for m in measures)
        + f" | {MEASURES[first].title.removeprefix('object ')} less that of {name} |",
        "|---" * (len(measures) + 2) + "|",
    ]
    for value, method in rows:
        cells = [_cell(results.of(case, method, m, pairs)[1], m, interval=False) for m in measures]
        own, other = (results.of(case, m, first, pairs)[0] for m in (method, base))
        cells.append("" if method == base else _difference(difference(own, other), first))
        lines.append(f"| {value} | " + " | ".join(cells) + " |")
    return lines


def _cost(store: Store, methods: Sequence[Method]) -> list[str]:
    seconds = [
        row["seconds"] for (_, key, _), row in store.rows.items() if "seconds" in row and key
    ]
    if not seconds:
        return []
    typical = sorted(seconds)[len(seconds) // 2]
    return ["", f"{len(seconds)} pictures, {typical:.2f} s each (median, as the machine was)."]


def _head(first: str, measures: Sequence[str]) -> list[str]:
    titles = " | ".join(
        f"{MEASURES[m].title} {'↑' if MEASURES[m].more_is_better else '↓'}" for m in measures
    )
    return [f"| {first} | {titles} |", "|---" * (len(measures) + 1) + "|"]


def _cell(found: Estimate | None, measure: str, interval: bool = True) -> str:
    if found is None:
        return ""
    digits = MEASURES[measure].digits
    half = (found.high - found.low) / 2
    return f"{found.mean:.{digits}f}" + (f" ± {half:.{digits}f}" if interval else "")


def _difference(found: Estimate | None, measure: str) -> str:
    if found is None:
        return ""
    digits = MEASURES[measure].digits
    text = f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"**{text}**" if found.apart_from_zero else text


def _named(case: str) -> str:
    return case.capitalize() if case in SEVERAL else f"{case.capitalize()} pairs"

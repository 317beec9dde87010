"""What a comparison came to, in words: a text to paste into a report, and lines for a terminal."""

from __future__ import annotations

import re
from pathlib import Path

from lib_ccn import __version__
from lib_ccn.showable import showable

from .comparison import Comparison
from .nets import without_hash
from .pairs import METHODS, PLAIN, full_settings

# The page puts the reader's own judgement in its place.
UNJUDGED = "Judged by eye: nothing yet"
_REMARKS = 12


def seconds_text(seconds: float | None) -> str:
    """A step's time."""
    if seconds is None:
        return "not timed"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def ratio_text(ratio: float | None) -> str:
    """A method's time to the plain sum's."""
    return "" if ratio is None else f"{ratio:.2f}"


def facts(comparison: Comparison) -> dict[str, str]:
    """The machine, the models, and what all pictures have in common, by what they are."""
    maker = comparison.maker
    sampling = maker.sampling
    nets = {
        f"ControlNet, {kind}": model_name(maker.nets[kind])
        for kind in dict.fromkeys(kind for pair in comparison.pairs for kind in pair.kinds)
    }
    return {
        **comparison.about,
        **nets,
        "Cross-ControlNet": __version__ + ", of this command",
        "size": f"{sampling.size[0]}x{sampling.size[1]}",
        "sampling": f"{sampling.sampler}, {sampling.steps} steps, CFG {sampling.guidance_scale:g}",
        "pairs, seeds": f"{len(comparison.pairs)}, {', '.join(map(str, comparison.seeds))}",
    }


def model_name(name: str) -> str:
    """A model's name for others to read: of a folder here its last part."""
    path = Path(name).expanduser()
    return showable(path.name if path.exists() else without_hash(name), 200)


def method_settings(comparison: Comparison, method: str) -> str:
    """All settings of a method in a line."""
    asked = METHODS[method].asked(comparison.pairs[0])
    if asked is None:
        return "off"
    values = full_settings(asked)
    if values.get("foreground_word"):
        values["foreground_word"] = "each pair's"
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in ("", []))


def text(comparison: Comparison) -> str:
    """The text to paste: Markdown."""
    lines = ["**Cross-ControlNet compared** (`run.py compare`)", "", "| | |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in facts(comparison).items()]
    lines += ["", "| method | a step | to the plain sum |", "|---|---|---|"]
    for method in comparison.methods:
        title, step = METHODS[method].title, seconds_text(comparison.step_seconds(method))
        lines.append(f"| {title} | {step} | {ratio_text(comparison.ratio(method))} |")
    lines.append("")
    for method in comparison.methods:
        if method != PLAIN:
            lines.append(f"{METHODS[method].title}: `{method_settings(comparison, method)}`")
    for title, told in (("Notices", comparison.notices), ("Remarks", comparison.remarks())):
        if told:
            lines += ["", f"{title}:", *(f"- {_cell(one)}" for one in told[:_REMARKS])]
            if len(told) > _REMARKS:
                lines.append(f"- and {len(told) - _REMARKS} more")
    if not comparison.whole:
        lines += ["", "Broken off before every picture was made."]
    return "\n".join([*lines, "", UNJUDGED, ""])


def _cell(words: str) -> str:
    """Text from outside, which must not end its cell, nor be taken for a mention or a tag."""
    return re.sub(r"([|`<>*_\[\]@\\])", r"\\\1", showable(words, 400))

"""The page of a comparison: one HTML file that holds its pictures, and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from lib_ccn.showable import showable

from . import report
from .comparison import Comparison, Row
from .pairs import METHODS, NEGATIVE, Pair
from .store import Kept

_HERE = Path(__file__).parent
_QUALITY = 90  # of the pictures on the page; those in the folder are as they were made
_STRIP_WIDTH = 1600


def page(comparison: Comparison) -> str:
    """The HTML of a comparison, which may be unfinished."""
    script = (_HERE / "page.js").read_text("utf-8")
    style = (_HERE / "page.css").read_text("utf-8")
    only = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{only}'"
    )
    titles = ", ".join(METHODS[method].title for method in comparison.methods)
    body = [
        "<header><h1>Cross-ControlNet, on your models</h1>",
        f"<p>{_text(titles)}: the same seeds, the same two conditions, of which the second knows "
        "nothing of the object. Look whether the object is where the first condition has it, and "
        "whether the rest is what the second one says. Click a picture to enlarge it; say which "
        "you like best, and the text at the end counts it.</p>",
        "" if comparison.whole else '<p class="open">Not finished: the same command goes on.</p>',
        "</header>",
        _summary(comparison),
        *(_pair(comparison, pair) for pair in comparison.pairs),
        _settings(comparison),
        _to_paste(comparison),
        '<dialog><img alt=""></dialog>',
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_text(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Cross-ControlNet, on your models</title>\n<style>\n{style}</style></head>\n"
        f"<body>\n{chr(10).join(body)}\n<script>{script}</script>\n</body></html>\n"
    )


def _summary(comparison: Comparison) -> str:
    rows = [
        (
            METHODS[method].title,
            METHODS[method].told,
            report.seconds_text(comparison.step_seconds(method)),
            report.ratio_text(comparison.ratio(method)),
        )
        for method in comparison.methods
    ]
    told = "".join(
        f'<div class="told"><h3>{title}</h3><ul>{_items(lines)}</ul></div>'
        for title, lines in (("Notices", comparison.notices), ("Remarks", comparison.remarks()))
        if lines
    )
    return (
        '<section class="summary"><h2>What it ran on, and what it took</h2>'
        '<div class="sides"><div class="scroll"><table class="times"><thead><tr><th>method'
        "<th>what it is<th>a step<th>to the sum</tr></thead><tbody>"
        + "".join("<tr>" + "".join(f"<td>{_text(cell)}" for cell in row) + "</tr>" for row in rows)
        + "</tbody></table><p>Medians over all pictures; a ratio is to the plain sum of the same "
        f"pair and seed.</p>{told}</div>{_facts(report.facts(comparison))}</div></section>"
    )


def _facts(told: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{_text(k)}<td>{_text(v)}</tr>" for k, v in told.items())
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _pair(comparison: Comparison, pair: Pair) -> str:
    rows = [row for row in comparison.rows if row.pair is pair and row.pictures]
    if not rows:
        return ""
    conditions = pair.conditions(comparison.maker.sampling.size)
    ends = [
        _figure(_png(image), f"{place}: {kind}", f"{kind} condition, {place}")
        for image, kind, place in zip(conditions, pair.kinds, ("in front", "behind"), strict=True)
    ]
    before, found, after = pair.prompt.partition(pair.word)
    prompt = f"{_text(before)}<mark>{_text(found)}</mark>{_text(after)}"
    return (
        f'<section class="pair"><h2>{_text(pair.name)}</h2><p class="prompt">{prompt}</p>'
        f'<div class="both"><div class="conditions">{"".join(ends)}</div>'
        f"<div>{''.join(_row(comparison, row) for row in rows)}</div></div></section>"
    )


def _row(comparison: Comparison, row: Row) -> str:
    name = f"{row.pair.name}-{row.seed}"
    figures, told = [], []
    for method, kept in row.pictures.items():
        title = METHODS[method].title
        step = report.seconds_text(kept.record["step_seconds"])
        choice = _choice(name, title, "best")
        figures.append(
            _figure(_jpeg(kept.picture), title, f"{title}, seed {row.seed}", f"{step}{choice}")
        )
        told.append(_done(title, kept))
    return (
        f'<fieldset class="seed"><legend>seed {row.seed}</legend>'
        f'<div class="row">{"".join(figures)}</div>'
        f"<p>{_choice(name, 'no difference', 'no difference')}</p>{''.join(told)}</fieldset>"
    )


def _choice(name: str, value: str, label: str) -> str:
    return (
        f'<label><input type="radio" name="{_text(name)}" value="{_text(value)}"> {label}</label>'
    )


def _done(title: str, kept: Kept) -> str:
    """What a method says it did, and the strip that shows it."""
    lines = [*kept.record["done"], *filter(None, [kept.record["note"]])]
    if not lines and kept.strip is None:
        return ""
    strip = ""
    if kept.strip is not None:
        strip = _enlarging(_jpeg(kept.strip, _STRIP_WIDTH), f"what {title} did")
    return (
        f"<details><summary>{_text(title)}: what was done</summary><ul>{_items(lines)}</ul>{strip}"
        "</details>"
    )


def _settings(comparison: Comparison) -> str:
    told = {METHODS[m].title: report.method_settings(comparison, m) for m in comparison.methods}
    return (
        "<section><h2>Settings</h2>"
        + _facts({**told, "negative prompt": NEGATIVE, "weights of the units": "1 and 1"})
        + "</section>"
    )


def _to_paste(comparison: Comparison) -> str:
    return (
        "<section><h2>To paste into a report</h2><p>Nothing was sent anywhere. If you open an "
        "issue, paste this text into it, and add this file (GitHub takes it as a .zip) or the "
        "pictures that you mean.</p>"
        f'<textarea readonly rows="16" data-unjudged="{_text(report.UNJUDGED)}">\n'
        f"{_text(report.text(comparison))}</textarea>"
        '<p><button type="button" class="copy">Copy</button></p></section>'
    )


def _figure(source: str, title: str, told: str, below: str = "") -> str:
    line = f"<small>{below}</small>" if below else ""
    caption = f"<figcaption>{_text(title)}{line}</figcaption>"
    return f"<figure>{_enlarging(source, told)}{caption}</figure>"


def _enlarging(source: str, told: str) -> str:
    return f'<button type="button" class="zoom"><img src="{source}" alt="{_text(told)}"></button>'


def _items(lines: Iterable[str]) -> str:
    return "".join(f"<li>{_text(line)}</li>" for line in lines)


def _text(value: object) -> str:
    """Text from anywhere, as HTML that shows it, between quotes too."""
    return html.escape("\n".join(map(showable, str(value).split("\n"))))


def _png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return _data(file, "png")


def _jpeg(path: Path, width: int | None = None) -> str:
    file = io.BytesIO()
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
    if width is not None and shown.width > width:
        shown = shown.resize((width, round(shown.height * width / shown.width)))
    shown.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return _data(file, "jpeg")


def _data(file: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

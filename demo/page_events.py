"""What the page does when something is clicked or moved, and what it shows then."""

from __future__ import annotations

import html
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
import torch
from PIL import Image

from lib_ccn.rules import AVERAGED
from lib_ccn.settings import SettingsError
from lib_ccn.webui.infotext import page_value
from lib_ccn.webui.pictures import fronts_overlay
from lib_ccn.winners import AVERAGED_COLOUR, COLOURS

from .examples import Example
from .figures import decision_image, enlarged, overlay, to_image
from .page_controls import editor_value, read_order, shown_condition, whole
from .page_run import SUM, Cancelled, Layer, Order, OrderError, Outcome, Progress, Record, Studio

log = logging.getLogger(__name__)

WIDTH = 512
UNITS = 3
_BASICS, _UNIT = 5, 3


class Events:
    """The page's handlers. None of them raises: what went wrong is said in the status.

    Args:
        studio: makes the pictures.
        examples: those of the page.
        finished: the first example's pictures, which the page shows until there are others.
    """

    # What an example fills: prompt and seed, of each unit its condition, ControlNet and whether it
    # is on, of the accordion these, and whether the last unit is folded away.
    FILLED = ("foreground_word", "layers", "foreground_unit", "fusion")
    LOOKED = ("mask", "mask_note", "winner", "winner_note", "layers")
    VIEWS = ("status", "plain", "fused", "inside", "step", "layer", *LOOKED)

    def __init__(
        self,
        studio: Studio,
        examples: list[Example],
        finished: tuple[Image.Image, Image.Image] | None = None,
    ) -> None:
        self._studio = studio
        self._examples = examples
        self._finished_before = finished or (None, None)
        # By browser window: what ends each of its clicks, the first of which may be running.
        self._clicks: dict[str, list[threading.Event]] = {}

    def ask(self, request: gr.Request) -> str:
        """Count a click on Generate, which may wait behind other windows'; gives the status."""
        self._clicks.setdefault(request.session_hash or "", []).append(threading.Event())
        return bar(0, "Waiting for its turn")

    def generate(
        self, request: gr.Request, outcome: Outcome | None, read: Callable[[], Sequence[Any]]
    ) -> Iterator[list[Any]]:
        """Make both pictures; gives the outcome and the views, again and again as it goes on.

        Args:
            request: of the window.
            outcome: the window's last one, whose pictures are shown again if this one fails.
            read: gives the controls' values.
        """
        clicks = self._clicks.get(request.session_hash or "", [])
        end = clicks[0] if clicks else None
        try:
            if end is None or end.is_set():  # withdrawn; the status may be another click's by now
                yield self._shown()
            else:
                yield from self._follow(self._order(read()), end)
        except Exception as error:
            yield self._shown(status=_failure(error, "The generation"), **self._pictures(outcome))
        finally:
            if end is not None:
                end.set()
                clicks.remove(end)

    def cancel(self, request: gr.Request) -> Any:
        """End all clicks of this window, one that runs at its next step; gives the status."""
        clicks = self._clicks.get(request.session_hash or "", [])
        for end in clicks:
            end.set()
        return said("Cancelled.") if clicks else gr.skip()

    def forget(self, request: gr.Request) -> None:
        """End all clicks of a window that was closed."""
        self.cancel(request)
        self._clicks.pop(request.session_hash or "", None)

    def look(self, outcome: Outcome | None, step: Any, layer: Any) -> list[Any]:
        """The views of a step and a residual, and the status."""
        return _told(lambda: self._look(outcome, step, layer), len(self.LOOKED))

    def choose_layer(self, outcome: Outcome | None, step: Any, event: gr.SelectData) -> list[Any]:
        """The residual that was clicked, its views, and the status."""
        return [event.index, *self.look(outcome, step, event.index)]

    def choose_example(self, event: gr.SelectData) -> list[Any]:
        """What an example that was clicked puts on the page, and the status."""
        *values, _ = self.example_values(event.index)
        return [*values, said(f"Example {event.index + 1} is set up: press Generate.")]

    def example_values(self, number: int) -> list[Any]:
        """What an example puts on the page, in the order of `FILLED`, and the status."""
        example = self._examples[number]
        pictures = [editor_value(shown_condition(one)) for one in example.conditions]
        names = self._studio.names
        nets = [names[net] for net in example.nets(len(names))]
        spare = UNITS - len(pictures)
        several = bool(example.further)
        return [
            example.prompt,
            example.seed,
            *pictures,
            *[gr.skip()] * spare,
            *nets,
            *[gr.skip()] * spare,
            *[True] * len(pictures),
            *[False] * spare,
            "" if several else example.word,
            example.layers,
            "auto",
            # The one rule that has a place for each; with one object the user's choice stays.
            page_value("fusion", "layers") if several else gr.skip(),
            gr.update(open=True) if several else gr.skip(),
            gr.skip(),
        ]

    def _order(self, values: Sequence[Any]) -> Order:
        unit_values = values[_BASICS : _BASICS + UNITS * _UNIT]
        units = [unit_values[i : i + _UNIT] for i in range(0, len(unit_values), _UNIT)]
        method = values[_BASICS + len(unit_values) :]
        studio = self._studio
        return read_order(values[:_BASICS], units, method, studio.names, studio.side)

    def _look(self, outcome: Outcome | None, step: Any, layer: Any) -> list[Any]:
        if outcome is None:
            return [gr.skip() for _ in self.LOOKED]
        at = whole("Step", step, 0, outcome.order.steps - 1)
        which = whole("Residual", layer, 0, max(len(outcome.record.layers) - 1, 0))
        mask, note = mask_view(outcome, at)
        return [
            mask,
            said(html.escape(note)),
            winner_view(outcome.record, at, which),
            winner_note(outcome, at, which),
            layer_gallery(outcome, at),
        ]

    def _follow(self, order: Order, end: threading.Event) -> Iterator[list[Any]]:
        told: queue.Queue[Progress | Outcome | Exception] = queue.Queue()

        def work() -> None:
            try:
                told.put(self._studio.make(order, told.put, end.is_set))
            except Exception as error:
                told.put(error)

        threading.Thread(target=work, daemon=True).start()
        yield self._shown(status=bar(0, "Waiting for its turn"))
        while True:
            news = told.get()
            while isinstance(news, Progress) and not told.empty():
                news = told.get()
            if isinstance(news, Outcome):
                yield self._finished(news)
                return
            if isinstance(news, Exception):
                raise news
            preview = shown_picture(news.preview)
            # The other picture is of another order until its own turn comes.
            shown = {"plain": preview, "fused": None} if news.stage == SUM else {"fused": preview}
            yield self._shown(status=progress_view(news), **shown)

    def _finished(self, outcome: Outcome) -> list[Any]:
        record = outcome.record
        last, layers = outcome.order.steps - 1, len(record.layers)
        step, layer = max(record.fronts or record.decisions or [0]), layers // 2
        looked = dict(zip(self.LOOKED, self._look(outcome, step, layer), strict=True))
        return self._shown(
            outcome,
            status=notes_view(outcome),
            **self._pictures(outcome),
            inside=gr.update(visible=bool(record.decisions)),
            step=gr.update(maximum=max(last, 1), value=step),
            layer=gr.update(maximum=max(layers - 1, 1), value=layer),
            **looked,
        )

    def _pictures(self, outcome: Outcome | None) -> dict[str, Any]:
        plain, fused = self._finished_before if outcome is None else (outcome.plain, outcome.fused)
        return {"plain": shown_picture(plain), "fused": shown_picture(fused)}

    def _shown(self, outcome: Any = None, **changed: Any) -> list[Any]:
        kept = gr.skip() if outcome is None else outcome
        return [kept, *(changed.get(name, gr.skip()) for name in self.VIEWS)]


def _told(make: Callable[[], list[Any]], count: int) -> list[Any]:
    """What `make` gives, `count` values, and the status: what went wrong, if anything did."""
    try:
        return [*make(), gr.skip()]
    except Exception as error:
        return [*(gr.skip() for _ in range(count)), _failure(error, "Looking inside")]


def _failure(error: Exception, what: str) -> str:
    if isinstance(error, Cancelled):
        return said("Cancelled.")
    if isinstance(error, (OrderError, SettingsError)):
        return wrong(str(error))
    log.error("%s failed", what, exc_info=error)
    first = (str(error).strip().splitlines() or [""])[0]
    return wrong(f"{what} failed ({type(error).__name__}): {first[:300]}")


def shown_picture(picture: Image.Image | None) -> Image.Image | None:
    """A picture at the page's size."""
    return None if picture is None else enlarged(picture, WIDTH)


def mask_view(outcome: Outcome, step: int) -> tuple[Image.Image | None, str]:
    """The mask over the picture at a step, and what there is to say."""
    settings, record = outcome.order.settings, outcome.record
    if outcome.fused is None or settings is None:
        return None, "The method was off."
    fronts = record.fronts.get(step)
    if fronts is None:
        return shown_picture(overlay(outcome.fused, None)), (
            f"Step {step}: no mask yet; it is read from the attention of the step before."
            if settings.reads_word
            else f"Step {step}: no mask."
        )
    parts = [(number, float(mask.float().mean())) for number, mask in fronts]
    start = settings.at_steps(outcome.order.steps).injection_start
    injects = settings.inject and step >= start
    if settings.fusion == "layers":
        use = "used by layers and by KV-Injection" if injects else "used by layers"
    else:
        use = "used by KV-Injection" if injects else "not used" + " yet" * settings.inject
    large = enlarged(outcome.fused, WIDTH)
    if len(parts) == 1:
        return (
            overlay(large, fronts[0][1]),
            f"Step {step}: {parts[0][1]:.0%} of the picture is foreground; {use}.",
        )
    units = outcome.order.units
    shares = ", ".join(f"{part:.0%} for unit {units[number].number}" for number, part in parts)
    return (
        fronts_overlay(large, fronts),
        f"Step {step}: of the picture {shares}, each in the colour of its unit; {use}.",
    )


def winner_view(record: Record, step: int, layer: int, width: int = WIDTH) -> Image.Image | None:
    """Who won in a layer at a step: a colour per unit, grey where units were averaged."""
    decided = record.decisions.get(step)
    if decided is None or not 0 <= layer < len(decided):
        return None
    return decision_image(decided[layer]).resize((width, width), Image.Resampling.NEAREST)


def layer_name(layer: Layer, by_channel: bool) -> str:
    """A layer in a few words."""
    size = f"{layer.width}x{layer.height}"
    if layer.is_middle:
        return f"middle, {layer.channels} channels" if by_channel else f"middle, {size}"
    return f"{layer.number}: {size}"


def by_channel(outcome: Outcome, layer: int) -> bool:
    """Whether ChannelFusion decides in that layer."""
    settings, layers = outcome.order.settings, outcome.record.layers
    is_middle = 0 <= layer < len(layers) and layers[layer].is_middle
    return settings is not None and settings.fusion == "pix+channel" and is_middle


def winner_note(outcome: Outcome, step: int, layer: int) -> str:
    """The legend of a winner map, with each one's share, as HTML."""
    settings, record = outcome.order.settings, outcome.record
    decided = record.decisions.get(step)
    if settings is None or decided is None or not 0 <= layer < len(decided):
        return ""
    values, what = decided[layer], "channels" if by_channel(outcome, layer) else "places"
    entries = [
        (COLOURS[place % len(COLOURS)], f"{unit.number}: {name}", values == place)
        for place, (unit, name) in enumerate(zip(outcome.order.units, outcome.names, strict=True))
    ]
    layered = settings.fusion == "layers"
    rest = "all added up" if layered else "averaged, as they agree"
    if settings.layers_over_fusion:
        rest = "averaged, or all added up"
    entries.append((AVERAGED_COLOUR, rest, values == AVERAGED))
    shown = "".join(
        f'<span class="ccn-key"><i style="background: rgb{colour}"></i>'
        f"{html.escape(name)} <b>{float(which.float().mean()):.0%}</b></span>"
        for colour, name, which in entries
    )
    name = html.escape(layer_name(record.layers[layer], by_channel(outcome, layer)))
    text = f"Residual {name}, step {step}; shares of its {what}."
    if by_channel(outcome, layer):
        text += " ChannelFusion decides here: each square is a channel, not a place."
    elif layered:
        text += " Who has a colour silences those behind that disagree."
    elif settings.fusion in ("sum", "mean"):
        text += f" This is what PixFusion would decide; the rule in use is '{settings.fusion}'."
    return f'<div class="ccn-keys">{shown}</div><div class="ccn-said">{text}</div>'


def layer_gallery(outcome: Outcome, step: int) -> list[tuple[Image.Image, str]]:
    """Every layer's winners at a step, small, with their names."""
    record = outcome.record
    shown = []
    for layer in record.layers:
        image = winner_view(record, step, layer.number, 128)
        if image is not None:
            shown.append((image, layer_name(layer, by_channel(outcome, layer.number))))
    return shown


def notes_view(outcome: Outcome) -> str:
    """What was done, as HTML."""
    parts = [html.escape(outcome.notes), f"{outcome.seconds:.1f} s"]
    return said(" · ".join(parts))


def progress_view(progress: Progress) -> str:
    """The bar and what it stands for, as HTML."""
    return bar(progress.share, f"{progress.stage}: step {progress.step} of {progress.steps}")


def bar(share: float, text: str) -> str:
    """A progress bar as HTML."""
    percent = round(100 * min(max(share, 0), 1))
    return (
        f'<div class="ccn-bar" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" '
        f'aria-valuemax="100"><div style="width: {percent}%"></div></div>'
        f'<div class="ccn-said">{html.escape(text)}</div>'
    )


def said(escaped: str) -> str:
    """A line of text as HTML."""
    return f'<div class="ccn-said">{escaped}</div>'


def wrong(text: str) -> str:
    """What went wrong, as HTML."""
    return f'<div class="ccn-wrong" role="alert">{html.escape(text)}</div>'


def short_names(nets: Sequence[str]) -> list[str]:
    """ControlNets' names without what they have in common at their start; never empty or alike."""
    found = [name.partition(": ")[2] or name for name in nets]
    short = [name.removeprefix("controlnet-").removeprefix("control_") or name for name in found]
    return [
        name if short.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(short)
    ]


def example_thumbnail(example: Example) -> Image.Image:
    """An example's outlines drawn over its map."""
    return to_image(torch.stack(example.conditions).amax(0))

"""What the page does when something is clicked or moved."""

from __future__ import annotations

import html
import logging
import queue
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..settings import SettingsError
from . import page_views as views
from .examples import Example
from .page_inputs import editor_value, read_order, shown_condition
from .page_run import SUM, Cancelled, Order, OrderError, Outcome, Progress, Studio

log = logging.getLogger(__name__)

_BASICS, _UNIT = 5, 3


class Events:
    """The page's handlers.

    Args:
        studio: makes the pictures.
        examples: those of the page.
    """

    LOOKED = ("mask", "mask_note", "winner", "winner_note", "layers")
    VIEWS = ("status", "plain", "fused", "inside", "step", "layer", *LOOKED)

    def __init__(self, studio: Studio, examples: list[Example]) -> None:
        self._studio = studio
        self._examples = examples
        # By browser window: what ends its running generation.
        self._running: dict[str, threading.Event] = {}

    def generate(self, request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        """Make both pictures; gives the outcome and the views, again and again as it goes on."""
        unit_values = values[_BASICS : _BASICS + 3 * _UNIT]
        units = [unit_values[i : i + _UNIT] for i in range(0, len(unit_values), _UNIT)]
        method = values[_BASICS + len(unit_values) :]
        try:
            studio = self._studio
            order = read_order(values[:_BASICS], units, method, studio.names, studio.side)
        except OrderError as error:
            yield self._shown(status=views.wrong(str(error)))
            return
        end = threading.Event()
        self._running[request.session_hash or ""] = end
        try:
            yield from self._follow(order, end)
        finally:
            end.set()
            self._running.pop(request.session_hash or "", None)

    def cancel(self, request: gr.Request) -> None:
        """End the generation that runs in this window, at its next step."""
        running = self._running.get(request.session_hash or "")
        if running is not None:
            running.set()

    def look(self, outcome: Outcome | None, step: float, layer: float) -> list[Any]:
        """The views of a step and a residual."""
        if outcome is None:
            return [gr.skip() for _ in self.LOOKED]
        at, which = int(step), int(layer)
        mask, note = views.mask_view(outcome, at)
        return [
            mask,
            views.said(html.escape(note)),
            views.winner_view(outcome.record, at, which),
            views.winner_note(outcome, at, which),
            views.layer_gallery(outcome, at),
        ]

    def choose_layer(self, outcome: Outcome | None, step: float, event: gr.SelectData) -> list[Any]:
        """The residual that was clicked, and its views."""
        return [event.index, *self.look(outcome, step, event.index)]

    def choose_example(self, event: gr.SelectData) -> list[Any]:
        """What an example that was clicked puts on the page."""
        return self.example_values(event.index)

    def example_values(self, number: int) -> list[Any]:
        """Prompt, seed, foreground word, both conditions, and which conditions are on."""
        example = self._examples[number]
        conditions = [shown_condition(c) for c in (example.foreground, example.background)]
        pictures = [editor_value(picture) for picture in conditions]
        return [example.prompt, example.seed, example.word, *pictures, True, True, False]

    def _follow(self, order: Order, end: threading.Event) -> Iterator[list[Any]]:
        told: queue.Queue[Progress | Outcome | Exception] = queue.Queue()

        def work() -> None:
            try:
                told.put(self._studio.make(order, told.put, end.is_set))
            except Exception as error:
                told.put(error)

        threading.Thread(target=work, daemon=True).start()
        yield self._shown(status=views.bar(0, "Waiting for its turn"), plain=None, fused=None)
        while True:
            news = told.get()
            while isinstance(news, Progress) and not told.empty():
                news = told.get()
            if isinstance(news, Progress):
                place = "plain" if news.stage == SUM else "fused"
                preview = {place: views.shown_picture(news.preview)}
                yield self._shown(status=views.progress_view(news), **preview)
            elif isinstance(news, Outcome):
                yield self._finished(news)
                return
            else:
                yield self._shown(status=_failure(news), plain=None, fused=None)
                return

    def _finished(self, outcome: Outcome) -> list[Any]:
        record = outcome.record
        last, layers = outcome.order.steps - 1, len(record.layers)
        step, layer = max(record.masks or record.decisions or [0]), layers // 2
        looked = dict(zip(self.LOOKED, self.look(outcome, step, layer), strict=True))
        return self._shown(
            outcome,
            status=views.notes_view(outcome),
            plain=views.shown_picture(outcome.plain),
            fused=views.shown_picture(outcome.fused),
            inside=gr.update(visible=bool(record.decisions)),
            step=gr.update(maximum=max(last, 1), value=step),
            layer=gr.update(maximum=max(layers - 1, 1), value=layer),
            **looked,
        )

    def _shown(self, outcome: Any = None, **changed: Any) -> list[Any]:
        kept = gr.skip() if outcome is None else outcome
        return [kept, *(changed.get(name, gr.skip()) for name in self.VIEWS)]


def _failure(error: Exception) -> str:
    if isinstance(error, Cancelled):
        return views.said("Cancelled.")
    if isinstance(error, (OrderError, SettingsError)):
        return views.wrong(str(error))
    log.error("a generation failed", exc_info=error)
    first = (str(error).strip().splitlines() or [""])[0]
    return views.wrong(f"The generation failed ({type(error).__name__}): {first[:300]}")

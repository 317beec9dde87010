"""What the page does when something is clicked or moved."""

from __future__ import annotations

import html
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from lib_ccn.settings import SettingsError

from . import page_views as views
from .examples import Example
from .page_inputs import editor_value, read_order, shown_condition, whole
from .page_run import SUM, Cancelled, Order, OrderError, Outcome, Progress, Studio

log = logging.getLogger(__name__)

_BASICS, _UNIT = 5, 3


class Events:
    """The page's handlers. None of them raises: what went wrong is said in the status.

    Args:
        studio: makes the pictures.
        examples: those of the page.
        finished: the first example's pictures, which the page shows until there are others.
    """

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
        # By browser window: what ends its running generation.
        self._running: dict[str, threading.Event] = {}

    def generate(
        self, request: gr.Request, outcome: Outcome | None, read: Callable[[], Sequence[Any]]
    ) -> Iterator[list[Any]]:
        """Make both pictures; gives the outcome and the views, again and again as it goes on.

        Args:
            request: of the window.
            outcome: the window's last one, whose pictures are shown again if this one fails.
            read: gives the controls' values.
        """
        window, end = request.session_hash or "", threading.Event()
        try:
            order = self._order(read())
            self._running[window] = end
            yield from self._follow(order, end)
        except Exception as error:
            yield self._shown(status=_failure(error, "The generation"), **self._pictures(outcome))
        finally:
            end.set()
            self._running.pop(window, None)

    def cancel(self, request: gr.Request) -> None:
        """End the generation that runs in this window, at its next step."""
        running = self._running.get(request.session_hash or "")
        if running is not None:
            running.set()

    def look(self, outcome: Outcome | None, step: Any, layer: Any) -> list[Any]:
        """The views of a step and a residual, and the status."""
        return _told(lambda: self._look(outcome, step, layer), len(self.LOOKED))

    def choose_layer(self, outcome: Outcome | None, step: Any, event: gr.SelectData) -> list[Any]:
        """The residual that was clicked, its views, and the status."""
        return [event.index, *self.look(outcome, step, event.index)]

    def choose_example(self, event: gr.SelectData) -> list[Any]:
        """What an example that was clicked puts on the page, and the status."""
        *values, _ = self.example_values(event.index)
        return [*values, views.said(f"Example {event.index + 1} is set up: press Generate.")]

    def example_values(self, number: int) -> list[Any]:
        """Prompt, seed, foreground word, both conditions, which are on, and the status."""
        example = self._examples[number]
        conditions = [shown_condition(c) for c in (example.foreground, example.background)]
        pictures = [editor_value(picture) for picture in conditions]
        switches = [True, True, False]
        return [example.prompt, example.seed, example.word, *pictures, *switches, gr.skip()]

    def _order(self, values: Sequence[Any]) -> Order:
        unit_values = values[_BASICS : _BASICS + 3 * _UNIT]
        units = [unit_values[i : i + _UNIT] for i in range(0, len(unit_values), _UNIT)]
        method = values[_BASICS + len(unit_values) :]
        studio = self._studio
        return read_order(values[:_BASICS], units, method, studio.names, studio.side)

    def _look(self, outcome: Outcome | None, step: Any, layer: Any) -> list[Any]:
        if outcome is None:
            return [gr.skip() for _ in self.LOOKED]
        at = whole("Step", step, 0, outcome.order.steps - 1)
        which = whole("Residual", layer, 0, max(len(outcome.record.layers) - 1, 0))
        mask, note = views.mask_view(outcome, at)
        return [
            mask,
            views.said(html.escape(note)),
            views.winner_view(outcome.record, at, which),
            views.winner_note(outcome, at, which),
            views.layer_gallery(outcome, at),
        ]

    def _follow(self, order: Order, end: threading.Event) -> Iterator[list[Any]]:
        told: queue.Queue[Progress | Outcome | Exception] = queue.Queue()

        def work() -> None:
            try:
                told.put(self._studio.make(order, told.put, end.is_set))
            except Exception as error:
                told.put(error)

        threading.Thread(target=work, daemon=True).start()
        yield self._shown(status=views.bar(0, "Waiting for its turn"))
        while True:
            news = told.get()
            while isinstance(news, Progress) and not told.empty():
                news = told.get()
            if isinstance(news, Outcome):
                yield self._finished(news)
                return
            if isinstance(news, Exception):
                raise news
            preview = views.shown_picture(news.preview)
            # The other picture is of another order until its own turn comes.
            shown = {"plain": preview, "fused": None} if news.stage == SUM else {"fused": preview}
            yield self._shown(status=views.progress_view(news), **shown)

    def _finished(self, outcome: Outcome) -> list[Any]:
        record = outcome.record
        last, layers = outcome.order.steps - 1, len(record.layers)
        step, layer = max(record.masks or record.decisions or [0]), layers // 2
        looked = dict(zip(self.LOOKED, self._look(outcome, step, layer), strict=True))
        return self._shown(
            outcome,
            status=views.notes_view(outcome),
            **self._pictures(outcome),
            inside=gr.update(visible=bool(record.decisions)),
            step=gr.update(maximum=max(last, 1), value=step),
            layer=gr.update(maximum=max(layers - 1, 1), value=layer),
            **looked,
        )

    def _pictures(self, outcome: Outcome | None) -> dict[str, Any]:
        plain, fused = self._finished_before if outcome is None else (outcome.plain, outcome.fused)
        return {"plain": views.shown_picture(plain), "fused": views.shown_picture(fused)}

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
        return views.said("Cancelled.")
    if isinstance(error, (OrderError, SettingsError)):
        return views.wrong(str(error))
    log.error("%s failed", what, exc_info=error)
    first = (str(error).strip().splitlines() or [""])[0]
    return views.wrong(f"{what} failed ({type(error).__name__}): {first[:300]}")

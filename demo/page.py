"""The page: its parts put together, and served, on gradio 6: `python3 run.py playground`."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from lib_ccn.settings import Settings, SettingsError
from lib_ccn.webui.accordion import Accordion
from lib_ccn.webui.arguments import PAGE, unit_choices
from lib_ccn.webui.preset_row import QUICK
from lib_ccn.webui.presets import BUILT_IN, METHOD, PresetError, PresetStore

from . import ROOT
from . import page_controls as controls
from .command_line import LOCAL
from .demo_model import ModelError, load_pipeline
from .examples import Example, bundled_examples, two_object_examples
from .options import (
    BUNDLED_GUIDANCE,
    BUNDLED_MASK_REDUCTION,
    FIRST_PORT,
    GUIDANCE,
    PORTS,
    PageOptions,
)
from .page_controls import TAB
from .page_events import (
    UNITS,
    Events,
    bar,
    example_thumbnail,
    said,
    short_names,
    shown_picture,
    wrong,
)
from .page_run import Studio, finished

TITLE = "Cross-ControlNet playground"
DEMO_PRESET = "Demo model"

_INTRO = """\
# Cross-ControlNet playground
ControlNets that disagree: one shows an object, or two show one each, and another a landscape
without them. Click an example or draw your own, and compare the plain sum with Cross-ControlNet.
"""
_NOTE = (
    "The first example, made beforehand. Press Generate to make it here and to look inside, or "
    "click another one."
)
_LOST = (
    "No answer came that this page understands. Is the program in the terminal still running? "
    "If so, load the page again."
)


@dataclass(frozen=True)
class Start:
    """What the page shows at first.

    Attributes:
        examples: to click; none for a model they are not made for.
        guidance_scale: of the sampler.
        preset: whose values the accordion shows.
        finished: the first example's plain sum and fused picture, made beforehand; None for a
            model that did not make them.
        units: how many are on.
    """

    examples: list[Example]
    guidance_scale: float
    preset: str
    finished: tuple[Image.Image, Image.Image] | None = None
    units: int = 2


def run(options: PageOptions) -> int:
    """Serve the page until it is stopped; returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    print("loading the model ...", file=sys.stderr, flush=True)
    try:
        pipe: Any = load_pipeline(options.model, options.controlnets, options.device, several=True)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    store = PresetStore(options.presets)
    bundled = options.model is None and options.controlnets is None
    start = Start(
        # A model with two ControlNets of its own was trained on scenes like these.
        examples=every_example() if options.controlnets is None else [],
        guidance_scale=BUNDLED_GUIDANCE if bundled else GUIDANCE,
        preset=starting_preset(store, bundled),
        finished=finished() if bundled else None,
        units=2 if options.controlnets is None else len(options.controlnets),
    )
    names = [str(net.config.get("_name_or_path") or "") for net in pipe.controlnet.nets]
    studio = Studio(pipe, short_names([Path(name).name or "ControlNet" for name in names]))
    made = build(studio, store, start)
    url = serve(made, options.port, options.open)
    if url is None:
        ports = f"{options.port}" if options.port else f"{FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
        print(f"error: port {ports} is taken: name another with --port", file=sys.stderr)
        return 1
    print(f"{url}  (stop with Ctrl-C)", flush=True)
    try:
        threading.Event().wait()
    finally:
        made.close(verbose=False)
    return 0


def every_example() -> list[Example]:
    """Those of one object, then those of two."""
    return [*bundled_examples(), *two_object_examples()]


def serve(made: Any, port: int | None, opens: bool) -> str | None:
    """Serve the page to this machine; its address, or None where no port is free.

    Args:
        made: what `build` returned.
        port: None is the first free one.
        opens: whether the browser is told to open it.
    """
    free = (n for n in ([port] if port else range(FIRST_PORT, FIRST_PORT + PORTS)) if _is_free(n))
    number = next(free, None)
    if number is None:
        return None
    _, url, _ = made.queue().launch(
        server_name=LOCAL,
        server_port=number,
        share=False,
        inbrowser=opens,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        allowed_paths=[str(ROOT / "README.md")],
        theme=theme(),
        head=head(),
    )
    return str(url)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOCAL, port)) != 0


def starting_preset(store: PresetStore, bundled: bool) -> str:
    """The preset that the accordion shows at first; the demo model's is saved when it is not."""
    if not bundled:
        return next(iter(BUILT_IN))
    settings = Settings(mask_reduction=BUNDLED_MASK_REDUCTION)
    try:
        if DEMO_PRESET not in store.names():
            store.save(DEMO_PRESET, {key: getattr(settings, key) for key in METHOD})
    except (PresetError, SettingsError) as error:
        print(f"the presets cannot be saved: {error}", file=sys.stderr)
        return ""
    return DEMO_PRESET


def head() -> str:
    """The accordion's scripts and styles, as a WebUI loads them, and the page's own."""
    own = Path(__file__)
    scripts = [*sorted((ROOT / "javascript").glob("*.js")), own.with_name("page.js")]
    styles = (ROOT / "style.css", own.with_name("page.css"))
    return "\n".join(
        [f"<style>\n{path.read_text('utf-8')}</style>" for path in styles]
        + [f"<script>\n{path.read_text('utf-8')}</script>" for path in scripts]
    )


def theme() -> Any:
    """Gradio's, in the system's own fonts: others would come over the network."""
    return gr.themes.Default(
        primary_hue="orange",
        font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    )


def build(studio: Studio, store: PresetStore, start: Start) -> gr.Blocks:
    """Make the page.

    Args:
        studio: makes the pictures.
        store: of the accordion's presets.
        start: what is shown at first.
    """
    events = Events(studio, start.examples, start.finished)
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True
    ) as page:
        gr.Markdown(_INTRO)
        outcome = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=340):
                gallery = controls.examples(
                    [example_thumbnail(example) for example in start.examples]
                )
            with gr.Column(scale=6, min_width=340):
                prompt = gr.Textbox(
                    label="Prompt", lines=2, elem_id=f"{TAB}_prompt", placeholder="What to draw"
                )
        shown = controls.run_bar(said(_NOTE if start.finished else ""))
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=480):
                shown.update(controls.results(*map(shown_picture, start.finished or (None, None))))
            with gr.Column(scale=5, min_width=420):
                units, fold = controls.units(studio.names, start.units)
                sampler = controls.sampler(start.guidance_scale)
                accordion = Accordion(TAB, store, start.preset, UNITS)
                accordion.follow_units([net for _, net, _ in units])
        values = [*(control for unit in units for control in unit), *accordion.controls]
        _connect_generation(page, events, shown, outcome, [prompt, *sampler, *values])
        _connect_looks(events, shown, outcome)
        held = [accordion.controls[PAGE.index(name)] for name in events.FILLED]
        switches, nets, editors = (list(each) for each in zip(*units, strict=True))
        filled = [prompt, sampler[1], *editors, *nets, *switches, *held, fold, shown["status"]]
        gallery.select(events.choose_example, [], filled, **_QUICK)
        named = [
            accordion.controls[PAGE.index(f"{role}_unit")] for role in ("foreground", "background")
        ]
        choices = unit_choices([*studio.names, *studio.names[-1:] * UNITS][:UNITS])
        page.load(lambda: [gr.update(choices=choices)] * 2, [], named, **_QUICK)
        if start.examples:
            page.load(lambda: events.example_values(0), [], filled, **_QUICK)
    return page


_QUICK = {"queue": QUICK["queue"], "show_progress": "hidden"}


def _connect_generation(
    page: gr.Blocks, events: Events, shown: dict[str, Any], outcome: Any, inputs: list[Any]
) -> None:
    """Let Generate and Cancel do what they say; whatever happens ends in the status."""
    status = [shown["status"]]

    def generate(request: gr.Request, kept: Any, *values: Any) -> Iterator[list[Any]]:
        yield from events.generate(request, kept, lambda: controls.received(inputs, values))

    # The browser says so too, and at once. Every click counts, whichever window it comes from, and
    # is known from here on: it can be withdrawn before its turn comes.
    shown["generate"].click(None, [], status, js=_says(bar(0, "Waiting for its turn")))
    asked = shown["generate"].click(events.ask, [], status, trigger_mode="multiple", **_QUICK)
    # Values come as the browser sends them: gradio would refuse some before anybody said why.
    made = asked.success(
        generate,
        [outcome, *inputs],
        [outcome, *(shown[name] for name in events.VIEWS)],
        preprocess=False,
        trigger_mode="multiple",
        concurrency_limit=1,
        concurrency_id="generation",
        show_progress="hidden",
    )
    # In the browser too, since the program may have been stopped.
    for event in (asked, made):
        event.failure(None, [], status, js=_says(wrong(_LOST)))
    shown["refused"].click(None, [], status, js="() => window.ccnRefusal()")
    shown["cancel"].click(events.cancel, [], status, **_QUICK)
    page.unload(events.forget)


def _connect_looks(events: Events, shown: dict[str, Any], outcome: Any) -> None:
    """Let the sliders and the small maps choose what is looked at."""
    looks = [shown["step"], shown["layer"]]
    looked = [shown[name] for name in events.LOOKED] + [shown["status"]]
    for control in looks:
        control.input(
            events.look,
            [outcome, *looks],
            looked,
            preprocess=False,
            trigger_mode="always_last",
            **_QUICK,
        )
    shown["layers"].select(
        events.choose_layer,
        [outcome, shown["step"]],
        [shown["layer"], *looked],
        preprocess=False,
        **_QUICK,
    )


def _says(text: str) -> str:
    """A script that gives the status its HTML."""
    return f"() => {json.dumps(text)}"

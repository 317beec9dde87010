"""Starting the page: `python3 run.py playground`."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from lib_ccn.settings import Settings, SettingsError
from lib_ccn.webui.presets import BUILT_IN, METHOD, PresetError, PresetStore

from .demo_model import ModelError, load_pipeline
from .examples import bundled_examples
from .options import BUNDLED_GUIDANCE, BUNDLED_MASK_REDUCTION, GUIDANCE
from .page_first import finished
from .page_options import FIRST_PORT, PORTS, PageOptions
from .page_run import Studio
from .page_views import short_names

HOST = "127.0.0.1"
DEMO_PRESET = "Demo model"


def run(options: PageOptions) -> int:
    """Serve the page until it is stopped; returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    keep_to_this_machine(os.environ)
    from . import page

    print("loading the model ...", file=sys.stderr, flush=True)
    try:
        pipe: Any = load_pipeline(options.model, options.controlnets, options.device)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    store = PresetStore(options.presets)
    bundled = options.model is None and options.controlnets is None
    start = page.Start(
        # A model with two ControlNets of its own was trained on scenes like these.
        examples=bundled_examples() if options.controlnets is None else [],
        guidance_scale=BUNDLED_GUIDANCE if bundled else GUIDANCE,
        preset=starting_preset(store, bundled),
        finished=finished() if bundled else None,
    )
    names = [str(net.config.get("_name_or_path") or "") for net in pipe.controlnet.nets]
    studio = Studio(pipe, short_names([Path(name).name or "ControlNet" for name in names]))
    made = page.build(studio, store, start)
    url = serve(made, options.port, options.opens)
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


def serve(made: Any, port: int | None, opens: bool) -> str | None:
    """Serve the page to this machine; its address, or None where no port is free.

    Args:
        made: what `page.build` returned.
        port: None is the first free one.
        opens: whether the browser is told to open it.
    """
    from . import page

    for number in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]:
        if not is_free(number):
            continue
        _, url, _ = made.queue().launch(
            server_name=HOST,
            server_port=number,
            share=False,
            inbrowser=opens,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            allowed_paths=[str(page.ROOT / "README.md")],
            theme=page.theme(),
            head=page.head(),
        )
        return str(url)
    return None


def is_free(port: int) -> bool:
    """Whether nothing listens at that port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


def keep_to_this_machine(variables: os._Environ[str] | dict[str, str]) -> None:
    """Set what keeps gradio from telephoning; call it before gradio is imported."""
    variables["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Gradio asks its own page whether it is there; a proxy would not know.
    for name in ("no_proxy", "NO_PROXY"):
        others = [part for part in variables.get(name, "").split(",") if part]
        variables[name] = ",".join([*others, HOST])


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

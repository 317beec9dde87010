"""Command line flags; the WebUI calls `preload` before it reads its command line."""

from __future__ import annotations

from argparse import ArgumentParser


def preload(parser: ArgumentParser) -> None:
    """Add the flags of Cross-ControlNet."""
    parser.add_argument(
        "--cross-controlnet-presets",
        metavar="DIR",
        help="folder of Cross-ControlNet's presets (default: cross-controlnet-presets in the "
        "WebUI's data folder)",
    )

"""The page's options: `python3 run.py playground --help`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .command_line import Parser, whole

FIRST_PORT, PORTS = 7860, 100
PRESETS = "playground-presets"

DESCRIPTION = f"""\
Open a page in the browser to try the method: choose, draw or upload two or three conditions,
and see the plain sum and Cross-ControlNet side by side, with the mask of every step and which
unit won where. The page is served to this machine alone, at 127.0.0.1, from port {FIRST_PORT}
on, and asks nothing of the network."""
EPILOG = """\
examples:
  python3 run.py playground --open
  python3 run.py playground --model path/to/stable-diffusion-1.5
      --controlnet path/to/openpose --controlnet path/to/depth --device cuda"""


@dataclass(frozen=True)
class PageOptions:
    """What the command line asked for; `port` None is the first free one."""

    port: int | None
    model: str | None
    controlnets: list[str] | None
    device: str
    presets: Path
    opens: bool


def parse(argv: Sequence[str] | None = None) -> PageOptions:
    """Parse the command line; leaves with status 2 and a message where it is wrong."""
    parser = Parser(
        prog="python3 run.py playground",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--port",
        type=whole(1024, 65535),
        help=f"default: the first free one from {FIRST_PORT} on",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--model",
        metavar="DIR|HUBID",
        help="a Stable Diffusion 1.5 in diffusers' layout (default: the bundled demo model)",
    )
    parser.add_argument(
        "--controlnet",
        action="append",
        metavar="DIR|HUBID",
        help="give it twice or more, the foreground's first (default: the model's own two)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps (default: cpu)")
    parser.add_argument(
        "--presets",
        type=Path,
        default=data_folder(os.environ, sys.platform) / PRESETS,
        metavar="DIR",
        help="where presets are saved (default: %(default)s)",
    )
    given = parser.parse_args(argv)
    return PageOptions(
        port=given.port,
        model=given.model,
        controlnets=given.controlnet,
        device=given.device,
        presets=given.presets,
        opens=given.open,
    )


def data_folder(variables: os._Environ[str] | dict[str, str], platform: str) -> Path:
    """Where this user's data of ours lies, by the custom of the system."""
    home = Path.home()
    if platform == "win32":
        base = Path(variables.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(variables.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "cross-controlnet"

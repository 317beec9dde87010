"""Installs nothing; says so when the ControlNet that this extension works on is missing.

The WebUI runs it at every start, in a process of its own with its folder first on PYTHONPATH.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def controlnets(extension: Path, pythonpath: str) -> Iterator[Path]:
    """Yield each ControlNet script beside the extension or built into the WebUI."""
    roots = [Path(entry) for entry in pythonpath.split(os.pathsep) if entry]
    for folder in (extension.parent, *(root / "extensions-builtin" for root in roots)):
        yield from folder.glob("*/scripts/controlnet.py")


def main() -> None:
    """Print one line if there is no ControlNet."""
    try:
        # Not resolved: the neighbours of a linked extension are those of the link.
        extension = Path(__file__).absolute().parent
        if next(controlnets(extension, os.environ.get("PYTHONPATH", "")), None) is None:
            print(
                "Cross-ControlNet: no ControlNet found. Install "
                "https://github.com/Mikubill/sd-webui-controlnet or use a Forge; until then this "
                "extension does nothing."
            )
    except Exception as error:  # never a reason not to start
        print(f"Cross-ControlNet: could not look for ControlNet: {error}")


if __name__ == "__main__":
    main()

"""The command line that every benchmark has."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every benchmark."""
    parser.add_argument("--quick", action="store_true", help="fewer and smaller")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument("--dtype", default="float32", help="float32 (default), float16, ...")


def main(
    run: Callable[..., dict[str, Any]], markdown: Callable[..., str], text: str | None
) -> None:
    """Parse the options, run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    arguments = parser.parse_args()
    result = run(arguments.quick, arguments.device, arguments.dtype)
    print(f"{result['machine']}, {result['dtype']}\n")
    print(markdown(result))

"""Command line of the demo: `python -m demo demo --help`."""

from __future__ import annotations

import os
import sys

from .command_line import interruptible, keep_to_this_machine, leave, silence_libraries
from .options import parse_demo, parse_explain, parse_page

USAGE = """usage: python -m demo COMMAND [options]

commands:
  demo     make pictures of two conflicting conditions, with and without the method
  explain  draw the figures of docs/how-it-works.md
  page     serve a page on this machine to try the method in the browser

`COMMAND --help` tells its options."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command not in COMMANDS:
        print(f"{USAGE}\n\nerror: {command!r} is no command", file=sys.stderr)
        return 2
    try:
        return interruptible(lambda: COMMANDS[command](rest))
    except ImportError as error:
        hint = 'pip install "sd-webui-cross-controlnet[demo]", or use run.py'
        print(f"error: the {command} needs more packages ({error}): {hint}", file=sys.stderr)
        return 1


def _demo(rest: list[str]) -> int:
    options = parse_demo(rest)
    silence_libraries()
    from .demo import run

    return run(options)


def _explain(rest: list[str]) -> int:
    options = parse_explain(rest)
    silence_libraries()
    from .explain import run

    return run(options)


def _page(rest: list[str]) -> int:
    options = parse_page(rest)
    silence_libraries()
    keep_to_this_machine(os.environ)  # before gradio is imported
    from .page import run

    return run(options)


COMMANDS = {"demo": _demo, "explain": _explain, "page": _page}

if __name__ == "__main__":
    leave(main())

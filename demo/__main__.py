"""Command line of the playground: `python -m demo demo --help`."""

from __future__ import annotations

import sys

from .command_line import interruptible, leave

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
    from .options import parse

    options = parse(rest)  # first, as what follows takes seconds to import
    _quiet()
    from .demo import run

    return run(options)


def _explain(rest: list[str]) -> int:
    _quiet()
    from . import explain

    return explain.run(explain.parse(rest))


def _page(rest: list[str]) -> int:
    from .page_options import parse

    options = parse(rest)
    _quiet()
    from .page_command import run

    return run(options)


COMMANDS = {"demo": _demo, "explain": _explain, "page": _page}


def _quiet() -> None:
    from .quiet import silence_libraries

    silence_libraries()


if __name__ == "__main__":
    leave(main())

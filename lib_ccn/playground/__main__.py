"""Command line of the playground: `python -m lib_ccn.playground demo --help`."""

from __future__ import annotations

import sys

USAGE = """usage: python -m lib_ccn.playground COMMAND [options]

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
    if command not in ("demo", "explain", "page"):
        print(f"{USAGE}\n\nerror: {command!r} is no command", file=sys.stderr)
        return 2
    try:
        if command == "explain":
            _quiet()
            from . import explain

            return explain.run(explain.parse(rest))
        if command == "page":
            from .page_options import parse as parse_page

            page_options = parse_page(rest)
            _quiet()
            from .page_command import run as run_page

            return run_page(page_options)
        from .options import parse

        options = parse(rest)  # first, as what follows takes seconds to import
        _quiet()
        from .demo import run

        return run(options)
    except ImportError as error:
        hint = 'pip install "sd-webui-cross-controlnet[demo]", or use run.py'
        print(f"error: the {command} needs more packages ({error}): {hint}", file=sys.stderr)
        return 1


def _quiet() -> None:
    from .quiet import silence_libraries

    silence_libraries()


if __name__ == "__main__":
    sys.exit(main())

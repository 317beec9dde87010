"""Command line of the playground: `python -m lib_ccn.playground demo --help`."""

from __future__ import annotations

import sys

USAGE = """usage: python -m lib_ccn.playground COMMAND [options]

commands:
  demo    make pictures of two conflicting conditions, with and without the method

`COMMAND --help` tells its options."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command != "demo":
        print(f"{USAGE}\n\nerror: {command!r} is no command", file=sys.stderr)
        return 2
    from .options import parse

    options = parse(rest)  # first, as what follows takes seconds to import
    try:
        from .quiet import silence_libraries

        silence_libraries()
        from .demo import run
    except ImportError as error:
        hint = 'pip install "sd-webui-cross-controlnet[demo]", or use run.py'
        print(f"error: the demo needs more packages ({error}): {hint}", file=sys.stderr)
        return 1
    return run(options)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m compare`: the comparison on a user's own models, from the command line."""

from __future__ import annotations

import sys

from demo.command_line import interruptible, leave

from .options import Options, parse


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    options = parse(argv)
    try:
        return interruptible(lambda: _run(options))
    except ImportError as error:
        print(f"error: more packages are needed ({error}): use run.py", file=sys.stderr)
        return 1


def _run(options: Options) -> int:
    from .command import run

    return run(options)


if __name__ == "__main__":
    leave(main())

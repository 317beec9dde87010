"""Every check of this project: `run.py test`. With pytest's options, pytest alone.

Linters, types, all tests, and what needs no torch on the oldest and the newest Python.

All of them run, whether or not an earlier one failed; the exit status is the first failure's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKS = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",))
PYTEST = ("-rfEs",)


def main(options: list[str]) -> int:
    """Run the checks from the project's folder; the exit status."""
    if options in (["-h"], ["--help"]):
        print("usage: python3 run.py test [pytest's options...]\n\n" + (__doc__ or ""))
        return 0
    os.chdir(Path(__file__).resolve().parents[1])
    statuses: dict[str, int] = {}
    for words in () if options else CHECKS:
        print(f"== {' '.join(words)}", flush=True)
        statuses[" ".join(words)] = subprocess.run([sys.executable, "-m", *words]).returncode
    import pytest

    print("== pytest", flush=True)
    statuses["pytest"] = int(pytest.main([*PYTEST, *options]))
    if not options:
        print("== other Pythons", flush=True)
        words = [sys.executable, str(Path(__file__).with_name("pythons.py"))]
        statuses["other Pythons"] = subprocess.run(words).returncode
    failed = [f"{name} FAILED ({status})" for name, status in statuses.items() if status]
    print(f"== {', '.join(failed) or 'all checks passed'}")
    return next((status for status in statuses.values() if status), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

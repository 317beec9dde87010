"""A bar of steps, on a terminal or without one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm


class PlainLines(tqdm):
    """A progress bar for where there is no terminal: a line every ten seconds, and one at the end.

    A terminal's bar writes over itself, which a file or a pipe cannot show.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(mininterval=10, maxinterval=20, ascii=True, ncols=79, **options)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Return what writes a state of the bar."""

        def write(text: str) -> None:
            if text.strip():
                file.write(text.strip() + "\n")
                file.flush()

        return write

    def set_description(self, desc: str | None = None, refresh: bool | None = False) -> None:
        """Name what is being done, without a line of its own."""
        super().set_description(desc, refresh)


def step_bar(total: int) -> Any:
    """A bar of so many steps on stderr, as its place can show it."""
    kind = tqdm if sys.stderr.isatty() else PlainLines
    return kind(total=total, unit="step")

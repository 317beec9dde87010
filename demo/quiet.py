"""What a command prints beside its result: its progress, and no known noise of the libraries."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

# Advice about packages that nothing here needs, and a warning about no module at all. Everything
# else is still said.
_NOISE = (
    "requires torchvision",
    "`accelerate` was not found",
    "that should be kept in float32: []",
    "The conditionings will be fixed across the prompts",  # SDXL's, of conditions that are not
)


def _says_something(record: logging.LogRecord) -> bool:
    return not any(noise in record.getMessage() for noise in _NOISE)


def silence_libraries() -> None:
    """Hide the libraries' loading bars and hints; call it before their pipelines are imported."""
    import diffusers.utils.logging
    import transformers.utils.logging

    # The first is said by one of diffusers' own modules to another; the second names an argument
    # that all of its versions know.
    warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
    for library in (diffusers, transformers):
        library.utils.logging.get_logger(library.__name__)  # makes its handler
        library.utils.logging.disable_progress_bar()
        for handler in logging.getLogger(library.__name__).handlers:
            handler.addFilter(_says_something)


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

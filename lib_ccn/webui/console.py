"""The extension's lines on the WebUI's console."""

from __future__ import annotations

import logging
import sys

from ..showable import showable

try:
    from tqdm import tqdm
except ImportError:  # its only use is to keep progress bars whole
    tqdm = None

NAME = "cross-controlnet"


class _Console(logging.Handler):
    """Writes to what `sys.stderr` is at that moment, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            text = self.format(record)
            if tqdm is None:
                print(text, file=sys.stderr, flush=True)
            else:
                tqdm.write(text, file=sys.stderr)
        except Exception:
            self.handleError(record)


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Put the extension's name before the message, and the level where it matters.

        Further lines, which a traceback has, are indented: none can pass for a message.
        """
        level = f"{record.levelname}: " if record.levelno != logging.INFO else ""
        # Messages that other hosts show as they are name it themselves.
        text = record.getMessage().removeprefix("Cross-ControlNet").lstrip(": ")
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        lines = map(showable, text.split("\n"))
        return f"[Cross-ControlNet] {level}" + "\n    ".join(lines)


def start(level: str) -> None:
    """Write the records of `lib_ccn` from `level` on; calling it again changes the level.

    The WebUIs leave the root logger without a handler, or, with `--loglevel` or after any call of
    `logging.info`, with one; so these records get a handler of their own and go no further, which
    makes one line of each.
    """
    logger = logging.getLogger("lib_ccn")
    logger.setLevel(level)
    logger.propagate = False
    if not any(handler.get_name() == NAME for handler in logger.handlers):
        handler = _Console()
        handler.set_name(NAME)
        handler.setFormatter(_Line())
        logger.addHandler(handler)

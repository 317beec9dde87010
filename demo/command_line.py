"""What every command has in common: refusals in a sentence, Ctrl-C, files to write, progress.

Nothing heavy is imported, so that what is wrong is said at once.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, MutableMapping
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

from lib_ccn.showable import shown_value

SEED_LIMIT = 2**64 - 1  # what torch's generators take
STEP_LIMIT = 1000  # the noise levels that the models were trained on
GUIDANCE_LIMIT = 100
SIDE_LIMIT = 8192
LOCAL = "127.0.0.1"
INTERRUPTED = 130  # a shell's status for a program ended by Ctrl-C
# Advice about packages that nothing here needs, and a warning about no module at all. Everything
# else is still said.
_NOISE = (
    "requires torchvision",
    "`accelerate` was not found",
    "that should be kept in float32: []",
    "The conditionings will be fixed across the prompts",  # SDXL's, of conditions that are not
)

T = TypeVar("T", int, float)


class OutputError(Exception):
    """A result cannot be written where it should be; the message says why."""


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one line, with status 2; `--help` has the usage."""

    def error(self, message: str) -> NoReturn:
        """Leave with the message."""
        self.exit(2, f"error: {message.removeprefix('argument ')}\n")


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return the reader of an option that is a whole number, both ends included."""
    return _within(int, "whole number", minimum, maximum)


def number(minimum: float, maximum: float) -> Callable[[str], float]:
    """Return the reader of an option that is a number, both ends included."""
    return _within(float, "number", minimum, maximum)


def _within(kind: Callable[[str], T], word: str, minimum: T, maximum: T) -> Callable[[str], T]:
    allowed = f"a {word} from {minimum} to {maximum}"

    def read(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            raise refusal(text, f"is no {word}", allowed) from None
        if value < minimum:
            raise refusal(value, f"is less than {minimum}", allowed)
        if value > maximum:
            raise refusal(value, f"is more than {maximum}", allowed)
        if value != value:
            raise refusal(value, f"is no {word}", allowed)
        return value

    return read


def picture_size(text: str) -> tuple[int, int]:
    """The reader of an option that is a picture's (width, height) in pixels: N, or WxH."""
    allowed = f"multiples of 8 from 8 to {SIDE_LIMIT}"
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text.strip().lower())
    if match is None:
        raise refusal(text, "is neither N nor WxH", allowed)
    width, height = int(match[1]), int(match[2] or match[1])
    if not all(8 <= side <= SIDE_LIMIT and side % 8 == 0 for side in (width, height)):
        raise refusal(text, "cannot be made", allowed)
    return width, height


def refusal(value: object, reason: str, allowed: str) -> argparse.ArgumentTypeError:
    """The error of an option's reader."""
    return argparse.ArgumentTypeError(f"{shown_value(value)} {reason}: expected {allowed}")


def interruptible(command: Callable[[], int]) -> int:
    """Run a command, its imports among it; returns its exit status.

    Ctrl-C ends it with one line, and with the status that a shell gives to it.
    """
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        return command()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)


def leave(status: int) -> NoReturn:
    """End the process."""
    if status == INTERRUPTED:
        _leave_at_once()  # Python itself may still end by the signal, if an exec() was interrupted
    raise SystemExit(status)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    while frame is not None:
        # An error during an import is often caught by a module that can do without the other, and
        # half an import leads to errors of every kind later. Nothing is lost by leaving here.
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            print("stopped", file=sys.stderr)
            _leave_at_once()
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave_at_once() -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def check_picture_name(option: str, path: Path) -> None:
    """Raise OutputError where Pillow cannot write a picture of that ending."""
    from PIL import Image

    name = Image.registered_extensions().get(path.suffix.lower())
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), name or path.suffix)
    except Exception as error:  # a writer that is registered may still be missing
        allowed = "a file name that ends as a picture's does, such as .png, .jpg or .webp"
        raise OutputError(f"{option} {path} is refused: expected {allowed}") from error


def prepare_file(option: str, path: Path) -> None:
    """Make the folder of a file that is to be written, and try to write it; keeps what is there.

    Raises OutputError.
    """
    prepare_folder(option, path.parent)
    try:
        is_new = not path.exists()
        if not (is_new or path.is_file()):
            raise OutputError(f"{option} {path} cannot be written: it is no file")
        with path.open("ab"):
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise OutputError(f"{option} {path} cannot be written: {error.strerror}") from error


def prepare_folder(option: str, path: Path) -> None:
    """Make a folder; raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{option}: the folder {path} cannot be made: {error.strerror}"
        ) from error


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


def keep_to_this_machine(variables: MutableMapping[str, str]) -> None:
    """Set what keeps gradio from telephoning; call it before gradio is imported."""
    variables["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Gradio asks its own page whether it is there; a proxy would not know.
    for name in ("no_proxy", "NO_PROXY"):
        others = [part for part in variables.get(name, "").split(",") if part]
        variables[name] = ",".join([*others, LOCAL])

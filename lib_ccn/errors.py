"""An error that is kept, without what its frames hold. Only the standard library is imported."""

from __future__ import annotations

import traceback


def told(error: BaseException) -> str:
    """The error with its traceback, as text: a log record that is kept then holds no frames."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()


def without_frames(error: Exception) -> Exception:
    """The same error, its causes among it, without tracebacks.

    A traceback's frames hold every tensor that was local when the error was raised, which after
    an out-of-memory is the memory that is wanted back. An `except` clause holds its error's too,
    so that whatever is tried again has to be tried after it.
    """
    found: list[BaseException | None] = [error]
    seen: set[int] = set()
    while found:
        one = found.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            found += [one.__cause__, one.__context__]
    return error

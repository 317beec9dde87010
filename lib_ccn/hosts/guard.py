"""What an error inside the method costs: the method, and never the host's picture."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ..outcome import Account
from ..session import Session
from ..settings import Settings, SettingsError, page_message

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Guard:
    """A sampling run, as far as errors go; every adapter's run is one.

    Whatever of ours may fail is done inside `attempt`. Once something has, the method stands aside
    for the rest of the run and all is the host's own. With the setting `strict` it is raised.

    Attributes:
        settings: of this run.
        session: once it began.
        aside: why the method stands aside, or None.
        error: what made it stand aside, if an error did; without its frames, unless it was raised.
    """

    settings: Settings
    session: Session | None = None
    aside: str | None = None
    error: Exception | None = None

    def attempt(self, ours: Callable[[], Result], hosts: Callable[[], Result]) -> Result:
        """What `ours` gives; what `hosts` gives where the method stands aside or `ours` fails."""
        if self.aside is None:
            try:
                return ours()
            except Exception as error:
                self.fail(error)
        # Inside the handler, what the failed call held would still be in memory. If the error is
        # the host's own, it raises it again.
        return hosts()

    def fail(self, error: Exception) -> None:
        """Stand aside because of an error; with the setting `strict`, raise it.

        What an adapter has put in front of the host stays until the run ends: the host may be in
        the middle of a call.
        """
        if self.session is not None:
            self.session.ended_early = True
        self.close_session()
        known = isinstance(error, SettingsError)
        self.error = error
        self.aside = ("" if known else f"{type(error).__name__}: ") + page_message(error)
        if self.settings.strict:
            raise error
        cause = "" if known else f"\n{told(error)}"
        log.warning("Cross-ControlNet stands aside, the units are summed: %s%s", self.aside, cause)
        without_frames(error)

    def close_session(self) -> None:
        """Take away what the session has put into the host's networks; may be repeated."""
        if self.session is not None:
            self.session.close()

    def account(self) -> Account | None:
        """What was done so far; None where nothing was begun."""
        session = self.session
        if self.aside is None:
            return None if session is None else session.account()
        foreseen = self.error is None or isinstance(self.error, SettingsError)
        note = f"the units are summed: {self.aside}"
        note = note if foreseen else f"stood aside after an error, {note}"
        if session is None or not (session.outcome.fused or session.outcome.injections):
            return Account(notes=[note])
        done = session.account()
        return replace(done, notes=[*done.notes, note])


def quietly(undo: Callable[[], None]) -> None:
    """Undo something: if that fails, it is logged, and the next thing is undone all the same."""
    try:
        undo()
    except Exception as error:
        log.warning("Cross-ControlNet could not clean up: %s", error, exc_info=error)


def told(error: BaseException) -> str:
    """The error with its traceback, as text: a log record that is kept then holds no frames."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()


def without_frames(error: Exception) -> None:
    """Take the tracebacks from an error and its causes.

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

"""Results on disk, one line of JSON each, so that a run can be broken off and taken up again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .processes import Processes

Key = tuple[str, str, str]  # case, method, pair
Row = dict[str, float]

RESULTS, NOTE = "results.jsonl", "run.json"
PARTS = "results-*.jsonl"  # what other processes than the first have made, until they are merged


class StoreError(Exception):
    """The folder holds results of another run; the message says what differs."""


class Store:
    """The folder of one run: `run.json` says how it was made, `results.jsonl` has the rows.

    Every process of a run adds lines to a file of its own, on its own machine's disk or on one
    that all share; `merge` puts them together.

    Args:
        folder: made if it is missing.
        how: what must be the same for results to belong together; plain JSON values.
        fresh: what is there already is thrown away.
        processes: those of the run; every one of them makes its store at the same time.

    Raises:
        StoreError: the folder has results, and they were made otherwise.
    """

    def __init__(
        self,
        folder: Path,
        how: dict[str, Any],
        fresh: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.folder = folder
        self.processes = processes or Processes()
        self.rows: dict[Key, Row] = {}
        self._added: dict[Key, Row] = {}
        index = self.processes.index
        self.results = folder / (RESULTS if index == 0 else PARTS.replace("*", str(index)))
        if self.processes.local == 0:
            self._prepare(how, fresh)
            self.rows = dict(self._read())
        self.rows = dict(self.processes.gathered(list(self.rows.items())))

    def _prepare(self, how: dict[str, Any], fresh: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / NOTE
        if fresh:
            for path in (note, *self._files()):
                path.unlink(missing_ok=True)
        has_rows = any(path.stat().st_size for path in self._files())
        hint = "name another --out, or throw them away with --fresh"
        same_run(self.folder, NOTE, how, has_rows, hint)
        for path in self._files():
            with path.open("rb+") as file:
                if file.read()[-1:] not in (b"", b"\n"):
                    file.write(b"\n")  # a run that was killed may leave half a line

    def add(self, case: str, method: str, scores: dict[str, Row]) -> None:
        """Keep one batch: a row per pair."""
        new = {(case, method, pair): row for pair, row in scores.items()}
        self.rows.update(new)
        self._added.update(new)
        with self.results.open("a", encoding="utf-8") as file:
            file.writelines(_line(key, row) for key, row in new.items())

    def merge(self) -> None:
        """All processes' rows in every store, and in one file in the first one's folder."""
        self.rows.update(self.processes.gathered(list(self._added.items())))
        self._added = {}
        if self.processes.count > 1 or any(self.folder.glob(PARTS)):
            self._merge_files()

    def _merge_files(self) -> None:
        if self.processes.is_first:
            whole = self.folder / f"{RESULTS}.new"
            with whole.open("w", encoding="utf-8") as file:
                file.writelines(_line(key, row) for key, row in self.rows.items())
            os.replace(whole, self.folder / RESULTS)
        self.processes.wait()
        if self.processes.local == 0:
            for path in self.folder.glob(PARTS):
                path.unlink(missing_ok=True)

    def column(self, case: str, method: str, measure: str) -> dict[str, float]:
        """One measure by pair."""
        return {
            pair: row[measure]
            for (c, m, pair), row in self.rows.items()
            if c == case and m == method and measure in row
        }

    def _files(self) -> Iterator[Path]:
        if (self.folder / RESULTS).exists():
            yield self.folder / RESULTS
        yield from sorted(self.folder.glob(PARTS))

    def _read(self) -> Iterable[tuple[Key, Row]]:
        for path in self._files():
            for line in path.read_text("utf-8").splitlines():
                try:
                    row = json.loads(line)
                    key = row.pop("case"), row.pop("method"), row.pop("pair")
                except (ValueError, KeyError, AttributeError):
                    continue  # half a line
                yield key, row


def same_run(folder: Path, name: str, how: dict[str, Any], started: bool, hint: str) -> None:
    """Write down how a run is made, or compare, where it has been `started`.

    Raises:
        StoreError: it was started otherwise.
    """
    note = folder / name
    text = json.dumps(how, indent=2) + "\n"
    before = json.loads(note.read_text("utf-8")) if started and note.exists() else how
    other = sorted(k for k in {*before, *how} if before.get(k) != how.get(k))
    if other:
        what = "; ".join(f"{k} was {before.get(k)!r} and is {how.get(k)!r}" for k in other)
        raise StoreError(f"{folder} holds another run's results ({what}): {hint}")
    if not note.exists() or note.read_text("utf-8") != text:
        note.write_text(text, "utf-8")


def _line(key: Key, row: Row) -> str:
    case, method, pair = key
    return json.dumps({"case": case, "method": method, "pair": pair, **row}) + "\n"

"""Results on disk, one line of JSON each, so that a run can be broken off and taken up again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Key = tuple[str, str, str]  # case, method, pair
Row = dict[str, float]


class StoreError(Exception):
    """The folder holds results of another run; the message says what differs."""


class Store:
    """The folder of one run: `run.json` says how it was made, `results.jsonl` has the rows.

    Args:
        folder: made if it is missing.
        how: what must be the same for results to belong together; plain JSON values.
        fresh: what is there already is thrown away.

    Raises:
        StoreError: the folder has results, and they were made otherwise.
    """

    def __init__(self, folder: Path, how: dict[str, Any], fresh: bool = False) -> None:
        self.folder = folder
        self.results = folder / "results.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / "run.json"
        if fresh:
            self.results.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
        if note.exists() and self.results.exists() and self.results.stat().st_size:
            before = json.loads(note.read_text("utf-8"))
            other = [k for k in {*before, *how} if before.get(k) != how.get(k)]
            if other:
                what = "; ".join(
                    f"{k} was {before.get(k)!r} and is {how.get(k)!r}" for k in sorted(other)
                )
                raise StoreError(
                    f"{folder} holds another run's results ({what}): name another --out, or "
                    "throw them away with --fresh"
                )
        note.write_text(json.dumps(how, indent=2) + "\n", "utf-8")
        self.rows: dict[Key, Row] = dict(self._read())

    def add(self, case: str, method: str, scores: dict[str, Row]) -> None:
        """Keep one batch: a row per pair."""
        lines = []
        for pair, row in scores.items():
            self.rows[case, method, pair] = row
            lines.append(json.dumps({"case": case, "method": method, "pair": pair, **row}))
        with self.results.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def column(self, case: str, method: str, measure: str) -> dict[str, float]:
        """One measure by pair."""
        return {
            pair: row[measure]
            for (c, m, pair), row in self.rows.items()
            if c == case and m == method and measure in row
        }

    def _read(self) -> Iterable[tuple[Key, Row]]:
        if not self.results.exists():
            return
        for line in self.results.read_text("utf-8").splitlines():
            try:
                row = json.loads(line)
                key = row.pop("case"), row.pop("method"), row.pop("pair")
            except (ValueError, KeyError, AttributeError):
                continue  # a run that was killed may leave half a line
            yield key, row

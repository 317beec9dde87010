"""Several processes share a run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.fidelity import command, processes
from benchmarks.fidelity.methods import SUM
from benchmarks.fidelity.pairs import CONFLICT, Plan
from benchmarks.fidelity.processes import ProcessError, Processes
from benchmarks.fidelity.runner import Job, share
from benchmarks.fidelity.store import Store, StoreError

ROOT = Path(__file__).resolve().parents[2]
needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None,
    reason="accelerate is not installed (requirements/bench.txt)",
)


class Together(Processes):
    """One of several threads that stand in for processes."""

    def __init__(self, index: int, count: int, board: list, barrier: threading.Barrier) -> None:
        super().__init__()
        self.index, self.local, self.count = index, index, count
        self.board, self.barrier = board, barrier

    def gathered(self, items):
        self.board[self.index] = list(items)
        self.barrier.wait(30)
        found = [item for part in self.board for item in part]
        self.barrier.wait(30)
        return found


def together(count: int, work) -> list:
    """What `work` returns for each of so many processes."""
    board, barrier, results = [[]] * count, threading.Barrier(count), [None] * count

    def run(index: int) -> None:
        results[index] = work(Together(index, count, board, barrier))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_every_job_is_someones_and_nobody_has_much_more():
    numbers = iter(range(10**6))
    jobs = [Job(Plan(CONFLICT, "", tuple(next(numbers) for _ in range(n % 5 + 1))), SUM)
            for n in range(40)]  # fmt: skip
    parts = together(3, lambda own: share(jobs, own))
    assert sorted(job.plan.numbers for part in parts for job in part) == [
        job.plan.numbers for job in jobs
    ]
    pictures = [sum(len(job.plan.ids) for job in part) for part in parts]
    assert max(pictures) - min(pictures) <= 5
    assert share(jobs, Processes()) == jobs


@pytest.mark.parametrize("shared", [True, False], ids=["one disk", "disks of their own"])
def test_rows_of_all_processes_come_together(tmp_path, shared):
    how = {"steps": 2}

    def folder(own: Processes) -> Path:
        return tmp_path if shared else tmp_path / str(own.index)

    def work(own: Processes) -> Store:
        own.local = own.index if shared else 0
        store = Store(folder(own), how, processes=own)
        store.add(CONFLICT, "sum", {f"{own.index:05d}": {"iou": own.index / 4}})
        if own.index == 2:  # what is in the folder if the run ends here
            parts = sorted(path.name for path in folder(own).glob("results*.jsonl"))
            assert "results-2.jsonl" in parts
        store.merge()
        return store

    stores = together(3, work)
    rows = {(CONFLICT, "sum", f"{n:05d}"): {"iou": n / 4} for n in range(3)}
    assert all(store.rows == rows for store in stores)
    first = tmp_path if shared else tmp_path / "0"
    assert Store(first, how).rows == rows
    assert not list(tmp_path.rglob("results-*"))


def test_a_run_that_ended_before_its_merge_goes_on_with_any_number(tmp_path):
    how = {"steps": 2}

    def broken(own: Processes) -> None:
        store = Store(tmp_path, how, processes=own)
        store.add(CONFLICT, "sum", {f"{own.index:05d}": {"iou": 0.5}})

    together(3, broken)
    assert len(list(tmp_path.glob("results*.jsonl"))) == 3
    with pytest.raises(StoreError, match="steps was 2 and is 3"):
        Store(tmp_path, {"steps": 3})
    seen = together(2, lambda own: set(Store(tmp_path, how, processes=own).rows))
    assert [len(rows) for rows in seen] == [3, 3]
    alone = Store(tmp_path, how)
    alone.merge()
    assert [path.name for path in tmp_path.glob("results*")] == ["results.jsonl"]
    assert len(Store(tmp_path, how).rows) == 3
    assert not Store(tmp_path, how, fresh=True).rows


def test_one_process_needs_no_accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Processes("cuda")
    assert (alone.count, alone.index, alone.device) == (1, 0, "cuda")
    assert alone.gathered([1, 2]) == [1, 2]
    alone.close()


def test_several_without_accelerate_are_told_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert command.main(["--quick", "--processes", "2"]) == 1
    assert "needs the package accelerate" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ProcessError, match="need the package accelerate"):
        Processes("cpu")


@needs_accelerate
def test_two_processes_make_what_one_makes(model, folder, tmp_path):
    """Under accelerate's own launcher; a second run makes nothing."""
    options = ["--model", str(model), "--pairs", str(folder), "--steps", "2", "--count", "2"]
    options += ["--batch", "1", "--methods", "sum", "full"]
    assert command.main([*options, "--out", str(tmp_path / "one")]) == 0
    words = [*options, "--out", str(tmp_path / "two"), "--processes", "2"]

    def launch() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.fidelity", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    first = launch()
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("### Conflict pairs: 2") == 1
    before = _rows(tmp_path / "two")
    one = _rows(tmp_path / "one")
    assert set(before) == set(one)
    for key, row in one.items():
        assert {k: v for k, v in row.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in before[key].items() if k != "seconds"}, abs=1e-4
        )
    assert launch().returncode == 0
    assert _rows(tmp_path / "two") == before
    assert [path.name for path in (tmp_path / "two").glob("results*")] == ["results.jsonl"]


def test_a_launcher_is_told_by_its_variable(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not processes.launched()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes.launched()


def _rows(folder: Path) -> dict[tuple[str, ...], dict[str, float]]:
    rows = {}
    for line in (folder / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row.pop("case"), row.pop("method"), row.pop("pair")] = row
    return rows

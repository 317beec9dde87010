"""Jobs, results and tables."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from benchmarks.fidelity import command, layers, report
from benchmarks.fidelity.chart import ticks
from benchmarks.fidelity.methods import (
    CHANNEL,
    FULL,
    LAYERS,
    MAIN,
    SUM,
    Method,
    ablations,
    scaled_step,
)
from benchmarks.fidelity.pairs import (
    CHUNK,
    COMPLEMENTARY,
    CONFLICT,
    OVERLAPPING,
    SEVERAL,
    TWO,
    DrawnPairs,
    Plan,
)
from benchmarks.fidelity.runner import Job, is_done, jobs
from benchmarks.fidelity.store import Store, StoreError

from . import QUICK


def test_starts_are_the_papers_in_proportion():
    assert [scaled_step(k, 50) for k in (0, 5, 10, 15, 20)] == [0, 5, 10, 15, 20]
    assert [scaled_step(k, 10) for k in (0, 5, 10, 15, 20)] == [0, 1, 2, 3, 4]


def test_every_ablation_has_its_base_and_keys_are_unique():
    known: dict[str, Method] = {method.key: method for method in MAIN}
    for ablation in ablations(20, 3, 2):
        methods = [method for _, method in ablation.methods]
        assert any(base in methods for base in (FULL, CHANNEL, LAYERS))
        assert len({value for value, _ in ablation.methods}) == len(methods)
        for method in methods:
            assert known.setdefault(method.key, method) == method


def test_pairs_of_the_ablations_come_first_and_nothing_twice():
    everything = jobs(DrawnPairs(), 2 * CHUNK, 10, ablations(10, 3, 2), 24)
    keys = [(j.plan.case, k, pair) for j in everything for k in j.keys for pair in j.plan.ids]
    main = [key for key in keys if not key[1].startswith("full ")]
    assert len(main) == len(set(main))
    assert (COMPLEMENTARY, "unit 0", "00000") not in keys
    assert keys.index((CONFLICT, "full delta=0.0", "00000")) < keys.index(
        (CONFLICT, "sum", f"{CHUNK:05d}")
    )


def test_results_survive_a_broken_run_and_other_runs_are_refused(tmp_path):
    how = {"steps": 2}
    Store(tmp_path, how).add(CONFLICT, "sum", {"00000": {"iou": 0.5}, "00001": {"iou": 1.0}})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"case": "conflict", "meth')
    Store(tmp_path, how).add(CONFLICT, "pix", {"00000": {"iou": 0.75}})
    again = Store(tmp_path, how)
    assert again.column(CONFLICT, "pix", "iou") == {"00000": 0.75}
    assert again.column(CONFLICT, "sum", "iou") == {"00000": 0.5, "00001": 1.0}
    plan = Plan(CONFLICT, "star", (0, 1))
    assert is_done(Job(plan, SUM), again)
    assert not is_done(Job(replace(plan, numbers=(0, 1, 2)), SUM), again)
    with pytest.raises(StoreError, match="steps was 2 and is 3"):
        Store(tmp_path, {"steps": 3})
    assert not Store(tmp_path, {"steps": 3}, fresh=True).rows
    assert not Store(tmp_path, {"steps": 4}).rows  # a run without results stands in nobody's way


def test_a_run_makes_every_row_and_a_second_one_nothing(worker, tmp_path, monkeypatch):
    variants = ablations(QUICK.steps, 3, 2)
    store = Store(tmp_path, {})
    everything = jobs(worker.source, 1, 1, variants, 24)
    assert command.work(everything, store, worker, None)
    wanted = {(j.plan.case, k, p) for j in everything for k in j.keys for p in j.plan.ids}
    assert set(store.rows) == wanted
    for (case, _, _), row in store.rows.items():
        assert 0 <= row["own" if case in SEVERAL else "iou"] <= 1
        assert {TWO: "worse", OVERLAPPING: "front"}.get(case, "natural") in row
    assert not [job for job in everything if not is_done(job, Store(tmp_path, {}))]

    text = report.markdown(store, worker.source, MAIN, variants, QUICK)
    for method in MAIN:
        assert f"| {method.title} |" in text
    for ablation in variants:
        assert ablation.title in text
    monkeypatch.setattr(report, "RESULTS", tmp_path / "F.md")
    monkeypatch.setattr(report, "FIGURES", tmp_path / "img")
    (tmp_path / "F.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    written = report.write("the tables", store, worker.source, MAIN, variants)
    assert [path.name for path in written] == ["F.md", "fidelity.png", "ablations.png"]
    page = (tmp_path / "F.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    for path in written[1:]:
        with Image.open(path) as figure:
            assert figure.width > 1000


def test_a_table_tells_what_is_apart_from_the_sum(tmp_path):
    store, source = Store(tmp_path, {}), DrawnPairs()
    for key, shift in (("sum", 0.0), ("mean", -0.2), ("pix", 0.0)):
        rows = {f"{n:05d}": {"iou": 0.5 + shift + 0.01 * (n % 7)} for n in range(40)}
        store.add(CONFLICT, key, rows)
    methods = [m for m in MAIN if m.key in ("sum", "mean", "pix")]
    text = report.markdown(store, source, methods, (), QUICK)
    assert "Conflict pairs: 40" in text
    assert "**-0.200 [-0.200, -0.200]**" in text
    assert "| PixFusion | +0.000 [+0.000, +0.000] |" in text


def test_pairs_of_the_papers_kinds_come_in_its_columns(tmp_path):
    """Pose and segmentation: CLIP, MSE-S, mIoU-P, the paper's figures in brackets."""
    store = Store(tmp_path, {})
    methods = [m for m in MAIN if m.key in ("sum", "full", "masked")]
    for method in methods:
        measured = {"clip": 0.25, "seg": 0.125, "iou": 0.5}
        store.add(CONFLICT, method.key, {f"{n:05d}": measured for n in range(3)})
    source = SimpleNamespace(cases=(CONFLICT,), shared_foreground=False, conditions="pose+seg")
    text = report.markdown(store, source, methods, (), QUICK)
    assert "pose+seg: 3 pairs" in text
    assert "| method | CLIP ↑ | MSE-S ↓ | mIoU-P ↑ |" in text
    assert "| Plain sum | 0.2500 (0.2999) | 0.1250 (0.2282) | 0.5000 (0.3145) |" in text
    assert "| + KV-Injection (full) | 0.2500 (0.2978) | 0.1250 (0.1983) | 0.5000 (0.3719) |" in text
    assert "conditions masked apart | 0.2500 | 0.1250 | 0.5000 |" in text
    source.conditions = "pose+depth"
    text = report.markdown(store, source, methods, (), QUICK)
    assert "| Plain sum | 0.2500 (0.2978) | not measured (0.0625) | 0.5000 (0.3150) |" in text
    source.conditions = "pose+hed"
    assert "The paper's columns" not in report.markdown(store, source, methods, (), QUICK)


def test_a_run_out_of_time_stops_between_batches(worker, tmp_path):
    store = Store(tmp_path, {})
    everything = jobs(worker.source, 2, 0, (), 24)
    assert not command.work(everything, store, worker, minutes=0)
    assert 0 < len(store.rows) <= 4


def test_ticks_are_round():
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.02, 0.94) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert ticks(0.61, 0.93) == pytest.approx([0.7, 0.8, 0.9])


def test_layers_are_looked_into(worker):
    found = layers.look(worker, 24, pairs=2)
    assert set(found["keys"]) == {0, 1, 2}
    assert all(-1 <= v <= 1 for name in ("keys", "values", "read") for v in found[name].values())
    for place in found["won"]:
        shares = [found[name][place] for name in ("won", "both", "lost")]
        assert sum(shares) == pytest.approx(1)
    assert "| conflict | middle |" in layers.markdown({CONFLICT: found})

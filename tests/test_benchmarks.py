"""The benchmarks run, and their tables say what was run. What they measure is not judged here."""

import sys

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import family, fusion, injection, mask, mask_study, operations, page, step, timing
from demo.demo_model import BUNDLED, load_pipeline
from demo.scenes import draw
from lib_ccn.fusion import MODES


def test_interleaved_calls_take_turns():
    order = []
    seconds = timing.interleaved(
        {name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, warmup=1
    )
    assert order == list("abababab")
    assert [len(times) for times in seconds.values()] == [3, 3]
    table = timing.ratio_table({"a": [1, 2, 9], "b": [2, 4, 3]}, "a")
    assert table["b"] == {"ms": 3000, "ratio": 2}


def test_every_benchmark_has_its_title():
    modules = {"fusion", "injection", "mask", "operations", "step", "family", "gpu"}
    assert set(page.TITLES) == modules
    written = page.RESULTS.read_text("utf-8")  # an unknown part would be lost when one is written
    assert [part.partition("\n")[0] for part in written.split("\n## ")[1:]] == [
        page.TITLES[name] for name in page.sections(written)
    ]


def test_what_was_not_run_stays_in_the_page(monkeypatch, tmp_path):
    path = tmp_path / "R.md"
    monkeypatch.setattr(page, "RESULTS", path)
    monkeypatch.setattr(bench.importlib, "import_module", lambda _: Stub)
    page.write({page.GPU: "| old |"})
    for names, table in (([], "| old |"), (["mask"], "| new |"), (["mask"], "| new |")):
        Stub.table = table
        monkeypatch.setattr(sys, "argv", ["bench", *names, "--write"])
        bench.main()
    parts = page.sections(path.read_text())
    assert list(parts) == list(page.TITLES)
    assert {name for name, part in parts.items() if "| new |" in part} == {"mask"}
    assert path.read_text().count("| old |") == len(page.TITLES) - 1
    assert path.read_text() == "\n".join([page.HEAD, *parts.values()])
    monkeypatch.setattr(sys, "argv", ["bench", "mask", "--write", "--quick"])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 2


def test_a_part_that_is_nobodys_is_not_lost(monkeypatch, tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text(f"{page.HEAD}\n## Of another time\n\n| old |\n")
    monkeypatch.setattr(page, "RESULTS", path)
    with pytest.raises(ValueError, match=r"RESULTS.md has a part 'Of another time'; known: Fusion"):
        page.write({page.GPU: "| new |"})
    assert "| old |" in path.read_text()


class Stub:
    """A benchmark that costs nothing."""

    table = ""

    @staticmethod
    def run(*_how):
        return {"machine": "here", "dtype": "float32"}

    @classmethod
    def markdown(cls, _result):
        return cls.table


def test_fusion_table(monkeypatch):
    monkeypatch.setattr(fusion, "SHAPES", ((2, 8, 8, 8), (2, 16, 4, 4)))
    result = fusion.run(quick=True)
    assert set(result["units"]) == {2, 3}
    assert all(set(rows) == set(MODES) for rows in result["units"].values())
    assert result["units"][2]["sum"]["ratio"] == 1
    assert fusion.markdown(result).count("\n") == 1 + 2 * len(MODES)


def test_injection_and_mask_tables(monkeypatch):
    monkeypatch.setattr(
        injection, "interleaved", lambda functions, *a: timing.interleaved(functions, 1, 0)
    )
    result = injection.run(quick=True)
    assert min(result["tokens"]) == 256
    assert "region 0.3" in injection.markdown(result)
    monkeypatch.setattr(
        mask, "interleaved", lambda functions, *a: timing.interleaved(functions, 1, 0)
    )
    assert "recorded" in mask.markdown(mask.run(quick=True))


def test_operations_of_every_variant(monkeypatch):
    monkeypatch.setattr(operations, "FAMILIES", {"demo": ("Demo model", 32)})
    result = operations.run(quick=True)
    (row,) = result["rows"]
    assert set(row["steps"]) == set(operations.VARIANTS)
    plain, summed, fusion, *whole = row["steps"].values()
    assert plain["ratio"] == 1
    assert (summed["ratio"], summed["waits"]) == (1, 0)
    assert all(of["operations"] > fusion["operations"] > plain["operations"] for of in whole)
    assert "| Demo model | 2 | 1 |" in operations.markdown(result)


def test_a_step_with_every_variant(monkeypatch):
    monkeypatch.setattr(
        step,
        "interleaved",
        lambda functions, **_: timing.interleaved(functions, rounds=3, warmup=0),
    )
    rows = step.run(quick=True)["models"]["Demo model, 64x64"]
    assert set(rows) == set(step.VARIANTS)
    assert rows["plain sum"]["ratio"] == 1
    whole = rows["whole method (mask from a word)"]
    assert 0 < whole["foreground"] < 1
    assert whole["injected layers"] > 0
    assert rows["fusion"]["injected layers"] == 0


@pytest.mark.skipif(not BUNDLED.is_dir(), reason="THE TRAINED MODEL IS MISSING: models/demo")
def test_a_step_of_each_family():
    result = family.run(quick=True)
    for rows, blocks in zip(result["families"].values(), (8, 4), strict=True):
        assert rows["plain sum"]["ratio"] == 1
        assert rows["fusion"]["injected"] == 0
        assert rows["whole method (mask from a word)"]["injected"] == blocks
    # Two tensors of half precision per block: batch, tokens, channels.
    sdxl = 2 * 2 * (4 * (64 * 64) * 640 + 30 * (32 * 32) * 1280) * 2
    flux = 2 * 2 * 15 * (64 * 64 + 512) * 3072
    assert result["captured"]["SDXL"] == {"layers": 34, "bytes": sdxl}
    assert result["captured"]["FLUX"] == {"layers": 15, "bytes": flux}
    assert "| FLUX | 15 | 810 |" in family.markdown(result)


@pytest.mark.skipif(not BUNDLED.is_dir(), reason="THE TRAINED MODEL IS MISSING: models/demo")
def test_the_mask_study_reads_maps_of_the_words():
    scenes = draw(1, torch.Generator().manual_seed(3), object_free=0)
    pipe = load_pipeline()
    heats, word = mask_study.maps_by_step(pipe, scenes, 0, scenes.shape[0], reduction=4)
    assert word == scenes.shape[0]
    assert len(heats) >= mask_study.STEPS - 2
    assert all(h.shape == (8, 8) and h.min() == 0 and h.max() == 1 for h in heats)

"""The script for a GPU, tried on the CPU with tiny models."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from oracles import make_units

from benchmarks import __main__ as bench
from benchmarks import gpu, gpu_runs, page
from benchmarks.formula import wrong_channels, wrong_pixels
from demo.demo_model import BUNDLED
from lib_ccn.fusion import channel_fusion, pix_fusion

needs_tokenizer = pytest.mark.skipif(
    not BUNDLED.is_dir(), reason="THE TRAINED MODEL IS MISSING: models/demo"
)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench", "gpu", *map(str, arguments)])
    return bench.main()


@needs_tokenizer
def test_every_family_is_measured(monkeypatch, tmp_path):
    shorter = {name: replace(of, more=of.more[1:2]) for name, of in gpu.FAMILIES.items()}
    monkeypatch.setattr(gpu, "FAMILIES", shorter)
    assert run(monkeypatch, "--tiny", "--out", tmp_path) == 0
    results = json.loads((tmp_path / "gpu.json").read_text())
    for family, blocks in (("SD 1.5", 4), ("SDXL", 8), ("FLUX", 4)):
        found = results[family]
        assert not [key for key in found if key.startswith("error")], found
        assert all(set(of) == set(gpu_runs.VARIANTS) for of in found["times"].values())
        assert found["times"]["2 units, batch 1"]["plain"]["ratio"] == 1
        first = found["first"]
        assert all(of["finite"] for of in first.values())
        assert first["`sum`"]["equals plain"]
        assert first["fusion"]["difference"] > 0
        assert first["fusion"]["injected a step"] == 0
        assert first[gpu_runs.METHOD]["injected a step"] == blocks
        residuals = found["residuals"]
        assert residuals["pixels"] > 100
        assert residuals["wrong pixels"] == residuals["wrong channels"] == 0
    assert "3 units, batch 1" in results["SD 1.5"]["times"]
    # Read again, for the page.
    monkeypatch.setattr(page, "RESULTS", tmp_path / "R.md")
    assert run(monkeypatch, "--from", tmp_path / "gpu.json", "--write") == 0
    assert "| FLUX 128x128, 2 units, batch 1 | fusion |" in page.RESULTS.read_text()


@needs_tokenizer
def test_what_there_is_no_time_for_is_told(monkeypatch, tmp_path):
    assert run(monkeypatch, "--tiny", "--out", tmp_path, "--seconds", 0, "--families", "flux") == 0
    row = json.loads((tmp_path / "gpu.json").read_text())["FLUX"]
    assert row["left out"] == ["residuals"]
    assert "no time was left for residuals" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused(monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch)
    assert stopped.value.code == 2


def test_the_table_has_what_a_gpu_tells():
    times = {name: {"ms": 10.04, "ratio": 1.0, "rounds": 7} for name in gpu_runs.VARIANTS}
    first = {name: {"finite": True, "equals plain": True, "peak MiB": 9} for name in times}
    row = {
        "size": 512,
        "dtype": "float16",
        "times": {"2 units, batch 1": times, "3 units, batch 4": times},
        "first": first,
        "waits": {"plain": {"total": 0}},
        "kernels": {"plain": {"kernels": 2470, "busy ms": 22.04}},
        "error in residuals": "...",
    }
    table = gpu.markdown({"machine": "here", "SD 1.5": row})
    assert (
        "| SD 1.5 512x512, 2 units, batch 1 | plain | 10.0 | 1.000 | 0 | 2470 | 22.0 | 9 |" in table
    )
    assert "| SD 1.5 512x512, 3 units, batch 4 | plain | 10.0 | 1.000 |  |  |  |  |" in table
    assert "error in residuals" in table


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_formulas_find_what_is_wrong(count, dtype):
    units = make_units((2, 24, 9, 7), count, dtype)
    for rule, wrong, places in (
        (pix_fusion, wrong_pixels, 2 * 9 * 7),
        (channel_fusion, wrong_channels, 2 * 24),
    ):
        fused = rule(units, 0.5)
        found, asked = wrong(units, fused, 0.5)
        assert found == 0
        assert 0.8 * places < asked <= places
        assert wrong(units, sum(units), 0.5)[0] > 0.9 * asked
        fused[0, 3, 4, 5] += 1
        assert wrong(units, fused, 0.5)[0] == 1

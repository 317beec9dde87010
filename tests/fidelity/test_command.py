"""The command, with pairs and models of one's own."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import __main__ as bench
from benchmarks.fidelity import command, report
from benchmarks.fidelity.folder import FolderPairs
from benchmarks.fidelity.methods import MAIN, TRUE_OBJECT, WIDENED_OBJECT, ablations
from benchmarks.fidelity.models import is_xl, weights_digest
from benchmarks.fidelity.options import build_parser, description, sampling_of, weights_dtype
from benchmarks.fidelity.pairs import CONFLICT
from benchmarks.fidelity.runner import is_done, jobs
from benchmarks.fidelity.scorers import Scorers
from benchmarks.fidelity.store import Store
from benchmarks.random_models import random_sdxl

from . import QUICK


def test_a_model_and_pairs_of_ones_own(model, folder, tmp_path, capsys):
    options = ["--model", str(model), "--pairs", str(folder), "--steps", "2", "--quick"]
    assert command.main([*options, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Conflict pairs: 2" in said
    assert "Complementary" not in said
    assert "SSIM" not in said  # that is for complementary pairs
    rows = Store(tmp_path / "out", json.loads((tmp_path / "out" / "run.json").read_text())).rows
    assert (CONFLICT, "full", "00001") in rows
    assert 0 <= rows[CONFLICT, "full", "00001"]["mask"] <= 1


def test_pairs_without_masks_and_references_are_enough(folder, tmp_path):
    entries = json.loads((folder / "pairs.json").read_text())
    entries.append({k: entries[0][k] for k in ("prompt", "word", "foreground", "background")})
    (folder / "pairs.json").write_text(json.dumps(entries))
    source = FolderPairs(folder, (64, 64), Scorers())
    everything = jobs(source, 3, 3, ablations(10, 3, 2), 24)
    made = {pair: set() for pair in ("00000", "00002")}
    for job in everything:
        for pair in set(job.plan.ids) & set(made):
            made[pair].update(job.keys[:1])
    assert made["00000"] - made["00002"] == {TRUE_OBJECT.key, WIDENED_OBJECT.key, "drawn"}

    store = Store(tmp_path / "out", {})
    for key in made["00002"]:
        store.add(CONFLICT, key, {"00002": {"iou": 0.5}})
    assert [
        job for job in everything if job.plan.ids == ("00002",) and not is_done(job, store)
    ] == []
    text = report.markdown(store, source, MAIN, ablations(10, 3, 2), QUICK)
    assert "| all ones |" in text
    assert "true object" not in text


@pytest.mark.parametrize("cases", [["complementary"], ["conflict", "complementary"]])
def test_chosen_cases_have_all_pictures_that_they_show(cases):
    """The foreground unit's own is made once, with the conflicting pairs, if those are there."""
    given = build_parser().parse_args(["--cases", *cases])
    source = command.prepare(given, QUICK, "cpu").source
    made = [job.plan.case for job in jobs(source, 1, 0, (), 24) if "unit 0" in job.keys]
    assert made == cases[:1]


def test_a_failed_start_does_not_stand_in_the_way_of_the_next(model, folder, tmp_path, capsys):
    options = ["--pairs", str(folder), "--out", str(tmp_path / "out"), "--report"]
    assert command.main(["--model", "./nowhere", *options]) == 1
    assert "no model folder" in capsys.readouterr().err
    assert command.main(["--model", str(model), *options]) == 0


def test_a_run_is_told_by_what_its_rows_depend_on(folder, tmp_path):
    def described(*options: str) -> dict[str, object]:
        given = build_parser().parse_args([*options])
        return description(given, sampling_of(given))

    own = ("--model", "m", "--pairs", str(folder))
    before = described(*own)
    assert described(*own, "--batch", "3") == before
    assert described(*own, "--dtype", "float32") == before
    assert described(*own, "--device", "cuda")["dtype"] == "float16"
    assert described(*own, "--dtype", "float16") == described(*own, "--device", "cuda")
    (folder / "pairs.json").write_text((folder / "pairs.json").read_text().replace("a ", "the "))
    assert described(*own) != before
    assert described()["weights"] == weights_digest()
    (tmp_path / "unet").mkdir()
    digests = set()
    for content in (b"1", b"2"):
        (tmp_path / "unet" / "w.safetensors").write_bytes(content)
        digests.add(weights_digest(tmp_path))
    assert len(digests) == 2


@pytest.mark.parametrize(("options", "scale"), [([], 3.0), (["--guidance-scale", "0"], 0.0)])
def test_guidance_is_what_was_asked_for(options, scale):
    assert sampling_of(build_parser().parse_args(options)).guidance_scale == scale


def test_half_precision_is_the_weights_own_but_for_the_bundled_model():
    """It was trained in autocast; others are loaded in half the memory."""
    for options, device, weights, autocast in (
        ([], "cpu", "float32", True),
        (["--dtype", "float32"], "cpu", "float32", False),
        ([], "cuda:1", "float16", False),
        (["--model", "m"], "cpu", "float32", False),
        (["--model", "m"], "cuda:1", "float16", False),
        (["--model", "m", "--dtype", "bfloat16"], "cuda:1", "bfloat16", False),
    ):
        given = build_parser().parse_args(options)
        assert weights_dtype(given, device) == weights
        assert sampling_of(given, device).bfloat16 is autocast


def test_methods_and_cases_can_be_chosen(model, folder, tmp_path, capsys):
    options = ["--model", str(model), "--pairs", str(folder), "--steps", "2"]
    options += ["--out", str(tmp_path / "out")]
    chosen = ["--methods", "full delta=0.4", "sum", "--cases", CONFLICT]
    assert command.main([*options, *chosen, "--count", "1"]) == 0
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert {json.loads(line)["method"] for line in lines} == {"full delta=0.4", "sum", "drawn"}
    said = capsys.readouterr().out
    assert "| Plain sum |" in said
    assert "MaxFusion" not in said
    assert command.main([*options, "--methods", "best"]) == 1
    assert "no 'best'; known are" in capsys.readouterr().err
    assert command.main([*options, "--cases", "complementary"]) == 1
    assert "no pairs of complementary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--model", "x"], 2, "--pairs"),
        (["--count", "0"], 2, "--count: 0"),
        (["--pairs", "nowhere", "--layers"], 2, "--layers"),
        (["--model", "./nowhere", "--pairs", "."], 1, "pairs.json cannot be read"),
        (["--write", "--quick"], 2, "--write"),
        (["--write", "--model", "x", "--pairs", "."], 2, "--write"),
    ],
)
def test_what_cannot_be_is_refused(options, status, says, capsys, tmp_path):
    try:
        found = command.main([*options, "--out", str(tmp_path)])
    except SystemExit as stopped:
        found = stopped.code
    assert found == status
    assert says in capsys.readouterr().err


def test_bench_knows_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "fidelity", "--help"])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 0
    assert "--pairs FOLDER" in capsys.readouterr().out


def test_an_sdxl_and_its_pairs(folder, tmp_path, capsys):
    place = tmp_path / "tiny-xl"
    random_sdxl().save_pretrained(place)
    index = json.loads((place / "model_index.json").read_text())
    del index["controlnet"]  # as SDXL comes
    (place / "model_index.json").write_text(json.dumps(index))
    assert is_xl(str(place))
    options = ["--model", str(place), "--pairs", str(folder), "--steps", "2", "--quick"]
    assert command.main([*options, "--out", str(tmp_path / "out")]) == 1
    assert "name two or more" in capsys.readouterr().err
    nets = [f"--controlnet={place / name}" for name in ("controlnet", "controlnet_1")]
    assert command.main([*options, *nets, "--fresh", "--out", str(tmp_path / "out")]) == 0
    assert "Conflict pairs: 2" in capsys.readouterr().out
    # What is for Stable Diffusion 1.5 alone is left out, or refused where it is asked for.
    whole = [*options[:-1], *nets, "--out", str(tmp_path / "out")]
    assert command.main([*whole, "--count", "1", "--ablated", "1"]) == 0
    said = capsys.readouterr().out
    assert "Mask threshold" in said
    assert "authors" not in said
    assert command.main([*whole, "--coupled", "--report"]) == 1
    assert "--coupled" in capsys.readouterr().err

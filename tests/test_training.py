"""The trainer: a few steps of every stage, resuming, and the exported model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from random_run import save_random_run
from safetensors.torch import load_file
from torch import Tensor, nn

from demo.demo_model import BUNDLED, ModelError, load_pipeline
from demo.scenes import draw
from training import export as exporting
from training import gates, stages
from training.data import ScenePool, tokenize
from training.loop import Schedule, train
from training.models import build_tokenizer, build_vae, noise_levels
from training.stages import STAGES, Workshop


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    exporting.export(save_random_run(folder / "run"), folder / "model")
    return folder / "model"


def workshop(folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int = 2) -> Workshop:
    for stage in STAGES:
        short = Schedule(steps=steps, batch=4, rate=1e-3, warmup=1)
        monkeypatch.setitem(stages.SCHEDULES, stage, short)
    few = draw(64, torch.Generator().manual_seed(0))
    monkeypatch.setattr(stages, "draw", lambda _count, _generator: few)
    return Workshop(folder, "cpu", bfloat16=False, seed=0, scale=1.0, pool=64)


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(next((folder / name).glob("*.safetensors")))


@pytest.mark.timeout(240)
def test_every_stage_runs_and_the_run_becomes_a_model(tmp_path, monkeypatch):
    run = tmp_path / "run"
    shop = workshop(run, monkeypatch)
    for stage in STAGES:
        shop.run(stage)
        report = json.loads((run / f"{stage}.json").read_text())
        assert report["steps"] == 2
    for name in ("vae", "unet", "text_encoder", "controlnet-outline", "controlnet-regions"):
        assert all(value.isfinite().all() for value in weights(run, name).values())

    # Self-attention is the base model's in both ControlNets; the rest has moved.
    base = weights(run, "unet")
    for name in ("controlnet-outline", "controlnet-regions"):
        own = weights(run, name)
        kept = [key for key in own if ".attn1." in key]
        assert kept
        assert all(torch.equal(own[key], base[key]) for key in kept)
        assert any(not torch.equal(own[key], base[key]) for key in own if key in base)
    outline, regions = weights(run, "controlnet-outline"), weights(run, "controlnet-regions")
    assert any(not torch.equal(outline[key], regions[key]) for key in outline)

    exporting.main(["--run", str(run), "--to", str(tmp_path / "model")])


def problem(steps: int, folder: Path) -> tuple[list[float], Tensor]:
    """A line to learn: y = 3 x."""
    torch.manual_seed(0)
    line = nn.Linear(1, 1, bias=False)

    def loss_of(count: int) -> Tensor:
        x = torch.randn(count, 1)
        return (line(x) - 3 * x).square().mean()

    folder.mkdir(exist_ok=True)
    history = train("line", [line], loss_of, Schedule(steps, 8, 0.05, warmup=5, ema=0.9), folder)
    return history, line.weight.detach()


def test_training_learns_and_its_losses_are_kept(tmp_path):
    history, weight = problem(200, tmp_path)
    assert len(history) == 4
    assert torch.tensor(history).isfinite().all()
    assert history[-1] < history[0] / 10
    assert float(weight) == pytest.approx(3, abs=0.2)


def test_training_goes_on_from_its_checkpoint(tmp_path):
    first, _ = problem(100, tmp_path)
    saved = torch.load(tmp_path / "line.pt", weights_only=True)
    assert saved["step"] == 100
    longer, weight = problem(200, tmp_path)
    assert longer[:2] == first
    assert len(longer) == 4
    assert torch.load(tmp_path / "line.pt", weights_only=True)["step"] == 200
    again, same = problem(200, tmp_path)  # nothing is left to do
    assert again == longer
    assert torch.equal(same, weight)


def test_a_finished_stage_is_not_trained_again(tmp_path, monkeypatch):
    shop = workshop(tmp_path, monkeypatch)
    shop.run("vae")
    before = weights(tmp_path, "vae")
    shop.run("vae")
    assert all(torch.equal(before[key], value) for key, value in weights(tmp_path, "vae").items())


def test_the_pool_renews_itself(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    pool = ScenePool(64, 8, build_vae().eval(), tokenizer, seed=1)
    before = pool.data["latent"].clone()
    batch = pool.batch(16)
    changed = (pool.data["latent"] != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == list(range(8))
    assert batch["latent"].shape == (16, 4, 32, 32)
    assert batch["tokens"].shape == (16, 77)
    assert batch["outline"].dtype == batch["regions"].dtype == torch.uint8


def test_every_word_of_the_world_is_one_token(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    ids = tokenize(tokenizer, ["a red star over a green field"])[0]
    assert int((ids == tokenizer.eos_token_id).int().argmax()) == 8
    assert tokenizer.decode(ids[1:8]).strip() == "a red star over a green field"


def test_the_last_noise_level_leaves_next_to_nothing_of_the_picture():
    levels = noise_levels()
    assert levels.diff().lt(0).all()
    assert levels[-1] < 1e-3


def test_an_exported_model_is_small_complete_and_half_precision(exported):
    size = sum(file.stat().st_size for file in exported.rglob("*") if file.is_file())
    assert size <= exporting.LIMIT
    for name in exporting.NETWORKS:
        kinds = {value.dtype for value in weights(exported, name).values()}
        assert kinds <= {torch.float16, torch.int64}
        assert "_name_or_path" not in json.loads((exported / name / "config.json").read_text())
    pipe = load_pipeline(exported)
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}
    assert {p.dtype for p in pipe.text_encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in pipe.controlnet.parameters()} == {torch.float32}
    assert pipe.safety_checker is None
    exporting.check(exported, steps=1)


def test_export_leaves_a_model_card_alone(tmp_path):
    run = save_random_run(tmp_path / "run")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("a card")
    exporting.export(run, tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == "a card"


def test_export_says_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="has no vae"):
        exporting.export(tmp_path, tmp_path / "model")
    run = save_random_run(tmp_path / "run")
    monkeypatch.setattr(exporting, "LIMIT", 1_000_000)
    with pytest.raises(ModelError, match=r"allowed: 1 MB"):
        exporting.export(run, tmp_path / "model")


def test_gates_measure_and_fail_a_random_model(exported, tmp_path, capsys):
    report, sheet = tmp_path / "gates.json", tmp_path / "sheet.png"
    few = ["--scenes", "2", "--steps", "1", "--json", str(report), "--sheet", str(sheet)]
    assert gates.main(["--model", str(exported), *few]) == 1
    shown = capsys.readouterr().out
    assert "FAIL" in shown
    read = json.loads(report.read_text())
    assert {kind.name for kind in gates.KINDS} <= set(read["rows"])
    assert read["rows"]["scenes as drawn"]["iou"] > 0.9
    assert len(read["differences"]) == 6
    assert sheet.stat().st_size > 0


def test_quick_gates_are_quick_and_still_gates():
    quick, full = gates.parse(["--quick"]), gates.parse([])
    rows = gates.chosen(quick)
    assert [kind.name for kind in rows] == [kind.name for kind in gates.KINDS if kind.gates]
    work = quick.scenes * quick.steps * len(rows)
    assert work <= full.scenes * full.steps * len(gates.chosen(full)) / 50
    named = gates.parse(["--quick", "--only", "conflict: sum", "--steps", "20"])
    assert [kind.name for kind in gates.chosen(named)] == ["conflict: sum"]
    assert named.steps == 20


def test_the_bundled_model_is_within_its_limit():
    if not (BUNDLED / "model_index.json").is_file():
        pytest.skip(f"THE TRAINED MODEL IS MISSING: {BUNDLED} (make it with training.export)")
    size = sum(file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file())
    assert size <= exporting.LIMIT

"""The fidelity benchmark: its pairs, measures, comparison methods, results and tables."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_run import save_random_run

from benchmarks import __main__ as bench
from benchmarks.fidelity import authors, command, layers, report, runner
from benchmarks.fidelity.chart import ticks
from benchmarks.fidelity.folder import FolderPairs, PairsError, read_pairs
from benchmarks.fidelity.methods import (
    CHANNEL,
    FULL,
    MAIN,
    SUM,
    TRUE_OBJECT,
    WIDENED_OBJECT,
    Method,
    ablations,
    scaled_step,
)
from benchmarks.fidelity.models import is_xl, load, weights_digest
from benchmarks.fidelity.naturalness import Naturalness
from benchmarks.fidelity.pairs import CHUNK, COMPLEMENTARY, CONFLICT, DrawnPairs, Plan, split
from benchmarks.fidelity.runner import Job, Sampling, Worker, is_done, jobs
from benchmarks.fidelity.scorers import ScorerError, Scorers
from benchmarks.fidelity.stats import difference, estimate
from benchmarks.fidelity.store import Store, StoreError
from lib_ccn.foreground import resize_mask, silhouette
from lib_ccn.fusion import pix_fusion
from lib_ccn.playground import metrics
from lib_ccn.playground.demo_model import generate, save_pipeline_index
from lib_ccn.playground.random_models import random_sdxl
from lib_ccn.playground.scenes import draw
from lib_ccn.playground.winners import AVERAGED, channel_ratio, winners

QUICK = Sampling(steps=2, guidance_scale=3.0, mask_reduction=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = save_random_run(tmp_path_factory.mktemp("random") / "model")
    save_pipeline_index(folder)
    return folder


@pytest.fixture(scope="module")
def worker(model) -> Worker:
    return Worker(load(str(model), None, "cpu", None), DrawnPairs(), QUICK)


@pytest.fixture(scope="module")
def scenes():
    return draw(8, torch.Generator().manual_seed(11), object_free=0)


# Measures


def test_ssim_is_one_for_equal_pictures_and_follows_the_formula():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 3, 11, 11, generator=generator)
    assert metrics.ssim(a, a).item() == pytest.approx(1)
    # At 11x11 there is one window, so that the formula can be written out.
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for x, y in zip(a[0].double().numpy(), b[0].double().numpy(), strict=True):
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        values.append(
            (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        )
    assert metrics.ssim(a, b).item() == pytest.approx(np.mean(values), abs=1e-6)
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(a[..., :10], b[..., :10])


def test_errors_outside_the_object_are_seen_where_they_are(scenes):
    clean = scenes.picture
    near = metrics.widened(scenes.object_mask, 5) & ~metrics.widened(scenes.object_mask, 3)
    halo = torch.where(near[:, None], 1.0, clean)
    painted = torch.where(scenes.object_mask[:, None], 0.0, clean)
    assert (metrics.outside_mse(clean, scenes) < 0.01).all()
    assert (metrics.rim_mse(halo, scenes) > 3 * metrics.outside_mse(halo, scenes)).all()
    assert (metrics.outside_mse(halo, scenes) > metrics.outside_mse(clean, scenes)).all()
    # What is inside the object is nobody's business here, but for the blur at its edge.
    assert torch.allclose(
        metrics.outside_mse(painted, scenes), metrics.outside_mse(clean, scenes), atol=1e-4
    )


def test_naturalness_prefers_drawn_scenes_to_spoilt_ones():
    pristine = draw(200, torch.Generator().manual_seed(1)).picture
    fresh = draw(40, torch.Generator().manual_seed(2)).picture
    score = Naturalness.fitted(pristine)
    noise = 0.05 * torch.randn(fresh.shape, generator=torch.Generator().manual_seed(3))
    blurred = torch.nn.functional.avg_pool2d(fresh, 3, 1, 1)
    own = score(fresh).mean()
    assert own < 12  # 36 features: about 6, and more for a fit to so few
    assert score(blurred).mean() > 1.2 * own
    assert score((fresh + noise).clamp(0, 1)).mean() > 5 * own


def test_means_have_intervals_and_differences_are_paired():
    generator = np.random.default_rng(4)
    base = {str(n): float(v) for n, v in enumerate(generator.normal(5, 2, 400))}
    found = estimate(base)
    assert found.count == 400
    half = 1.96 * 2 / math.sqrt(400)
    assert found.high - found.mean == pytest.approx(half, rel=0.25)
    assert estimate(base) == found
    shifted = {pair: value + 0.01 for pair, value in base.items() if pair != "7"}
    less = difference(shifted, base)
    assert (less.mean, less.count) == (pytest.approx(0.01), 399)
    assert less.apart_from_zero
    assert estimate({}) is None


# Pairs


def test_the_first_pairs_do_not_depend_on_how_many_are_asked_for():
    source = DrawnPairs()
    few, many = (
        {n: source.load(p) for p in source.plans(CONFLICT, c, 24) for n in p.numbers}
        for c in (5, CHUNK + 3)
    )
    assert set(few) == set(range(5))
    assert set(many) == set(range(CHUNK + 3))
    for number, batch in few.items():
        other = many[number]
        i, j = batch.plan.numbers.index(number), other.plan.numbers.index(number)
        assert batch.prompts[i] == other.prompts[j]
        assert torch.equal(batch.conditions[1][i], other.conditions[1][j])


def test_a_batch_has_one_word_that_every_prompt_names():
    for plan in DrawnPairs().plans(CONFLICT, 40, 4):
        assert len(plan.numbers) <= 4
        batch = DrawnPairs().load(plan)
        assert all(
            plan.word in prompt.split() for prompt in (p.replace(",", "") for p in batch.prompts)
        )


def test_both_cases_share_prompt_noise_and_foreground():
    source = DrawnPairs()
    plans = [source.plans(case, 6, 24) for case in (CONFLICT, COMPLEMENTARY)]
    assert [p.numbers for p in plans[0]] == [p.numbers for p in plans[1]]
    a, b = (source.load(group[0]) for group in plans)
    assert (a.prompts, a.seeds) == (b.prompts, b.seeds)
    assert torch.equal(a.conditions[0], b.conditions[0])
    differ = (a.conditions[1] != b.conditions[1]).any(1)
    assert torch.equal(differ, a.object_mask)


def test_parts_are_of_nearly_equal_length():
    assert [len(part) for part in split(range(25), 24)] == [12, 13]
    assert split([], 3) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "no JSON"),
        ("[]", "at least one"),
        ('[{"prompt": "a"}]', r"pair 0: no \['background', 'foreground'\]"),
        ('[{"prompt": "a", "foreground": "f", "background": "b", "mask": "m"}]', "unknown"),
        ('[{"prompt": "a", "foreground": "f", "background": "b", "case": "x"}]', "allowed"),
    ],
)
def test_a_folder_with_wrong_pairs_is_refused(tmp_path, content, says):
    (tmp_path / "pairs.json").write_text(content)
    with pytest.raises(PairsError, match=says):
        read_pairs(tmp_path)


def test_a_folder_without_pairs_is_refused(tmp_path):
    with pytest.raises(PairsError, match=r"pairs\.json cannot be read"):
        read_pairs(tmp_path)


# Comparison methods


def _features(seed: int, size: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Two features that agree in their left half and differ in their right one."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 2, 16, size, size, generator=generator)
    second[..., : size // 2] = 1.2 * first[..., : size // 2]
    return first, second


def test_the_authors_rule_with_the_papers_details_is_pixfusion():
    first, second = _features(1)
    assert torch.allclose(
        authors.fuse(first, second, authors.Rule(), 0.7), pix_fusion([first, second], 0.7)
    )


@pytest.mark.parametrize("name", ["kernel 12", "no kernel", "variance", "batch variance"])
def test_every_detail_makes_a_difference(name):
    results = []
    for rule in (authors.Rule(), replace(authors.RULES[name])):
        total = torch.zeros(())
        for seed in range(4):
            first, second = _features(seed)
            second[0] *= 3  # so that the batch's total is not each sample's
            total = total + authors.fuse(first, second, rule, 0.7)
        results.append(total)
    assert not torch.equal(*results)


def test_coupling_averages_agreement_and_rescales_the_winner():
    first, second = _features(2)
    verdict = authors.judge(first, second, authors.Rule(), 0.7)
    a, b = authors.couple(first, second, authors.Rule(), 0.7)
    agree = verdict.agree.expand_as(first)
    assert agree.any()
    assert not agree.all()
    assert torch.equal(a[agree], b[agree])
    assert torch.allclose(a[agree], ((first + second) / 2)[agree])
    winner = torch.where(verdict.second, second, first)
    for own, result in ((first, a), (second, b)):
        deviation, scaled = (t.std(1, correction=0) for t in (own, result))
        apart = ~verdict.agree[:, 0]
        assert torch.allclose(deviation[apart], scaled[apart], rtol=1e-4)
        cosine = torch.cosine_similarity(result, winner, dim=1)
        assert torch.allclose(cosine[apart], torch.ones(()), atol=1e-5)


def test_encoders_that_exchange_nothing_are_the_controlnets_themselves(worker):
    batch = worker.source.load(worker.source.plans(CONFLICT, 2, 24)[0])
    inputs = layers.noisy_inputs(worker.pipe, batch, 400)
    nets = worker.pipe.controlnet.nets
    with torch.inference_mode():
        found = authors.coupled_residuals(
            nets, batch.conditions, (1.0, 0.5), lambda a, b: (a, b),
            inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"],
        )  # fmt: skip
        for net, condition, scale, ours in zip(
            nets, batch.conditions, (1.0, 0.5), found, strict=True
        ):
            down, middle = net(
                **inputs, controlnet_cond=condition, conditioning_scale=scale, return_dict=False
            )
            assert len(ours) == len(down) + 1
            for mine, theirs in zip(ours, [*down, middle], strict=True):
                assert torch.allclose(mine, theirs, atol=1e-5)


def test_the_sum_at_half_weight_is_the_mean(worker):
    batch = worker.source.load(worker.source.plans(CONFLICT, 2, 24)[0])
    mean = worker.pictures(_method("mean"), batch, lambda _: None)[0]
    halves = worker.pictures(replace(SUM, weight=0.5), batch, lambda _: None)[0]
    assert torch.allclose(mean, halves, atol=1e-4)
    assert not torch.allclose(mean, worker.pictures(SUM, batch, lambda _: None)[0], atol=1e-2)


def test_the_papers_rule_by_either_way_makes_the_same_picture(worker, monkeypatch):
    monkeypatch.setitem(authors.RULES, "paper", authors.Rule())
    batch = worker.source.load(worker.source.plans(CONFLICT, 2, 24)[0])
    ours = worker.pictures(CHANNEL, batch, lambda _: None)[0]
    other = worker.pictures(Method("p", "P", rule="paper"), batch, lambda _: None)[0]
    assert torch.allclose(ours, other, atol=1e-3)
    assert "forward" not in worker.pipe.controlnet.__dict__


def test_one_unit_alone_uses_that_unit(worker):
    batch = worker.source.load(worker.source.plans(CONFLICT, 1, 24)[0])
    for number in (0, 1):
        alone = worker.pictures(_method(f"unit {number}"), batch, lambda _: None)[0]
        single = generate(
            runner.one_unit(worker.pipe, number), batch.prompts, batch.seeds,
            batch.conditions[number], steps=2, guidance_scale=3.0,
        )  # fmt: skip
        assert torch.equal(alone, single)


def test_the_true_object_is_the_mask_where_that_is_asked_for(worker):
    batch = worker.source.load(worker.source.plans(CONFLICT, 12, 24)[0])
    assert len(batch.seeds) > 1
    pictures, rows = worker.pictures(TRUE_OBJECT, batch, lambda _: None)
    assert pictures.shape == batch.conditions[0].shape
    assert all(row["mask"] == 1 for row in rows)


def test_masks_of_every_source_are_judged_on_the_words_tokens(worker):
    batch = worker.source.load(worker.source.plans(CONFLICT, 2, 24)[0])
    truth = resize_mask(batch.object_mask, (16, 16))
    found = {"all": torch.ones_like(truth)}
    found["silhouette"] = resize_mask(silhouette(batch.conditions[0]), (16, 16))
    for source, mask in found.items():
        method = Method(source, source, {"inject": True, "mask_source": source})
        rows = worker.pictures(method, batch, lambda _: None)[1]
        expected = metrics.mask_iou(mask, truth).tolist()
        assert [row["mask"] for row in rows] == pytest.approx(expected)
        assert 0 < min(expected) < 1


def test_a_token_is_as_large_as_the_picture_makes_it(worker):
    batch = worker.source.load(worker.source.plans(CONFLICT, 1, 24)[0])
    dot = torch.zeros(1, 64, 64, dtype=torch.bool)
    dot[0, 32, 32] = True
    for reduction, side in ((2, 9), (4, 17)):  # 4 or 8 pixels to every side
        other = Worker(worker.pipe, worker.source, replace(QUICK, mask_reduction=reduction))
        settings = other.settings(WIDENED_OBJECT, replace(batch, object_mask=dot))
        with Image.open(io.BytesIO(base64.b64decode(settings.mask_image))) as image:
            assert np.count_nonzero(np.array(image)) == side**2


def test_rules_over_the_batch_see_one_picture_at_a_time(worker):
    plan = next(p for p in worker.source.plans(CONFLICT, 12, 24) if len(p.numbers) > 1)
    batch = worker.source.load(plan)
    alone = list(runner._singles(batch))[1]
    for rule in ("batch variance", "coupled authors"):
        method = Method(rule, rule, rule=rule)
        together = worker.pictures(method, batch, lambda _: None)[0]
        assert torch.equal(together[1:2], worker.pictures(method, alone, lambda _: None)[0])


def test_a_mask_is_grown_to_every_side():
    mask = torch.zeros(1, 7, 7, dtype=torch.bool)
    mask[0, 3, 3] = True
    assert torch.equal(metrics.widened(mask, 0), mask)
    assert metrics.widened(mask, 2).sum() == 25


def test_winners_are_what_pixfusion_does():
    first, second = _features(5)
    fused = pix_fusion([first, second], 0.7)
    decided = winners([first, second], 0.7)
    assert set(decided.unique().tolist()) == {AVERAGED, 0, 1}
    for value, expected in ((0, first), (1, second), (AVERAGED, (first + second) / 2)):
        place = (decided == value)[:, None].expand_as(fused)
        assert torch.allclose(fused[place], expected[place], atol=1e-6)
    three = winners([first, second, torch.zeros_like(first)], 0.7)
    assert torch.equal(three, decided)


def test_the_channel_ratio_is_one_for_equal_deviations():
    first = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    second = first * torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
    assert channel_ratio(first, second)[0].tolist() == pytest.approx([1, 0.5, 0])


# Jobs, results, tables


def _method(key: str) -> Method:
    return next(method for method in MAIN if method.key == key)


def test_starts_are_the_papers_in_proportion():
    assert [scaled_step(k, 50) for k in (0, 5, 10, 15, 20)] == [0, 5, 10, 15, 20]
    assert [scaled_step(k, 10) for k in (0, 5, 10, 15, 20)] == [0, 1, 2, 3, 4]


def test_every_ablation_has_its_base_and_keys_are_unique():
    known: dict[str, Method] = {method.key: method for method in MAIN}
    for ablation in ablations(20, 3, 2):
        methods = [method for _, method in ablation.methods]
        assert FULL in methods or CHANNEL in methods
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
    again = Store(tmp_path, how)
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
    assert command.work(everything, store, worker, None, 1, None)
    wanted = {(j.plan.case, k, p) for j in everything for k in j.keys for p in j.plan.ids}
    assert set(store.rows) == wanted
    assert all(0 <= row["iou"] <= 1 and "natural" in row for row in store.rows.values())
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


def test_a_run_out_of_time_stops_between_batches(worker, tmp_path):
    store = Store(tmp_path, {})
    everything = jobs(worker.source, 2, 0, (), 24)
    assert not command.work(everything, store, worker, None, 1, minutes=0)
    assert 0 < len(store.rows) <= 4


def test_ticks_are_round():
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.5, 1.0])
    assert ticks(0.61, 0.93) == pytest.approx([0.7, 0.8, 0.9])


def test_layers_are_looked_into(worker):
    found = layers.look(worker, 24, pairs=2)
    assert set(found["keys"]) == {0, 1, 2}
    assert all(-1 <= v <= 1 for name in ("keys", "values", "read") for v in found[name].values())
    for place in found["won"]:
        shares = [found[name][place] for name in ("won", "both", "lost")]
        assert sum(shares) == pytest.approx(1)
    assert "| conflict | middle |" in layers.markdown({CONFLICT: found})


# The command


@pytest.fixture
def folder(tmp_path, scenes) -> Path:
    place = tmp_path / "pairs"
    place.mkdir()
    entries = []
    for n in range(2):
        for name, image in (
            ("fg", scenes.outline[n]),
            ("bg", scenes.landscape_map[n]),
            ("ref", scenes.picture[n]),
            ("mask", scenes.object_mask[n].float().expand(3, -1, -1)),
        ):
            pixels = (image * 255).byte().movedim(0, -1).numpy()
            Image.fromarray(np.ascontiguousarray(pixels)).save(place / f"{n}-{name}.png")
        Image.fromarray(scenes.regions[n].byte().numpy()).save(place / f"{n}-labels.png")
        entries.append(
            {
                "prompt": scenes.captions[n],
                "word": scenes.shape[n],
                "foreground": f"{n}-fg.png",
                "background": f"{n}-bg.png",
                "reference": f"{n}-ref.png",
                "object_mask": f"{n}-mask.png",
                "labels": f"{n}-labels.png",
            }
        )
    (place / "pairs.json").write_text(json.dumps(entries))
    return place


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


def test_a_failed_start_does_not_stand_in_the_way_of_the_next(model, folder, tmp_path, capsys):
    options = ["--pairs", str(folder), "--out", str(tmp_path / "out"), "--report"]
    assert command.main(["--model", "./nowhere", *options]) == 1
    assert "no model folder" in capsys.readouterr().err
    assert command.main(["--model", str(model), *options]) == 0


def test_a_run_is_told_by_what_its_rows_depend_on(folder, tmp_path):
    def described(*options: str) -> dict[str, object]:
        given = command.build_parser().parse_args([*options])
        return command.description(given, command.sampling_of(given))

    own = ("--model", "m", "--pairs", str(folder))
    before = described(*own)
    assert described(*own, "--batch", "3") == before
    assert described(*own, "--dtype", "float32") != before  # float16 otherwise on a GPU
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
    assert command.sampling_of(command.build_parser().parse_args(options)).guidance_scale == scale


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


# Scorers of real pictures


@pytest.fixture(scope="module")
def judges(model, tmp_path_factory) -> dict[str, str]:
    """A CLIP, a segmenter and a depth model with random weights."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTokenizer,
        GLPNConfig,
        GLPNForDepthEstimation,
        GLPNImageProcessor,
        SegformerConfig,
        SegformerForSemanticSegmentation,
        SegformerImageProcessor,
    )

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("judges")
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = {**small, "num_attention_heads": 2, "vocab_size": len(tokenizer)}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    vision = {**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(
        place / "clip"
    )
    tokenizer.save_pretrained(place / "clip")
    tiny = {
        "hidden_sizes": [8, 8, 8, 8],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 1, 1],
        "decoder_hidden_size": 8,
    }
    names = {0: "wall", 1: "person, individual", 2: "sky"}
    SegformerForSemanticSegmentation(SegformerConfig(**tiny, id2label=names)).save_pretrained(
        place / "segmenter"
    )
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(place / "segmenter")
    GLPNForDepthEstimation(GLPNConfig(**tiny)).save_pretrained(place / "depth")
    GLPNImageProcessor().save_pretrained(place / "depth")
    return {name: str(place / name) for name in ("clip", "segmenter", "depth")}


def test_real_pictures_are_scored_by_the_models_that_are_named(judges, scenes):
    scorers = Scorers.load(
        judges["clip"], judges["segmenter"], "person", judges["depth"], False, "cpu"
    )
    assert scorers.object_class == 1
    picture = scenes.picture[0]
    seen = scorers._classes(picture)
    row = scorers.score(
        picture,
        prompt="a red star",
        background=scenes.landscape_map[0],
        object_mask=seen == 1,
        labels=seen,
        reference=picture,
    )
    assert set(row) == {"clip", "iou", "regions", "depth", "ssim"}
    assert set(row) <= set(report.MEASURES)
    assert row["iou"] == 1
    assert row["ssim"] == pytest.approx(1)
    assert row["regions"] == pytest.approx(float((seen != 1).any()))
    assert -1 <= row["clip"] <= 1
    assert 0 <= row["depth"] <= 1


def test_what_is_not_asked_for_is_not_measured(scenes):
    row = Scorers().score(
        scenes.picture[0],
        prompt="",
        background=scenes.landscape_map[0],
        object_mask=scenes.object_mask[0],
        labels=None,
        reference=None,
    )
    assert row == {}


def test_a_scorer_that_cannot_be_had_says_why(judges, tmp_path):
    with pytest.raises(ScorerError, match="no class 'zebra'"):
        Scorers.load(None, judges["segmenter"], "zebra", None, False, "cpu")
    with pytest.raises(ScorerError, match="cannot be loaded"):
        Scorers.load(str(tmp_path), None, "person", None, False, "cpu")
    if importlib.util.find_spec("pyiqa") is None:
        with pytest.raises(ScorerError, match="needs the package pyiqa"):
            Scorers.load(None, None, "person", None, True, "cpu")


# SDXL


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

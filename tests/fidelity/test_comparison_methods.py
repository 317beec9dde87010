"""The methods that ours is compared with."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.fidelity import authors, layers, runner
from benchmarks.fidelity.methods import CHANNEL, MASKED, SUM, TRUE_OBJECT, WIDENED_OBJECT, Method
from benchmarks.fidelity.pairs import CONFLICT
from benchmarks.fidelity.runner import Worker
from demo import metrics
from demo.demo_model import generate
from demo.explain import channel_ratio
from lib_ccn.foreground import resize_mask
from lib_ccn.fusion import pix_fusion
from lib_ccn.rules import AVERAGED
from lib_ccn.silhouette import silhouette
from lib_ccn.winners import winners

from . import QUICK, main_method


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
    mean = worker.pictures(main_method("mean"), batch, lambda _: None)[0]
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


def test_unpacking_gives_both_halves_the_skips_of_one_and_the_middle_of_the_other(worker):
    batch = worker.source.load(worker.source.plans(CONFLICT, 2, 24)[0])
    inputs = layers.noisy_inputs(worker.pipe, batch, 400)
    count = len(batch.seeds)
    text = torch.cat([torch.zeros_like(inputs["encoder_hidden_states"]),
                      inputs["encoder_hidden_states"]])  # fmt: skip
    both = {"sample": inputs["sample"].repeat(2, 1, 1, 1), "timestep": inputs["timestep"][0]}
    conditions = [condition.repeat(2, 1, 1, 1) for condition in batch.conditions]

    def residuals(name: str) -> list[torch.Tensor]:
        with torch.inference_mode(), authors.fused_by(worker.pipe, authors.RULES[name]):
            down, middle = worker.pipe.controlnet(
                **both, encoder_hidden_states=text, controlnet_cond=conditions,
                conditioning_scale=[1.0, 1.0],
            )  # fmt: skip
        return [*down, middle]

    authors.RULES["paper"] = authors.Rule()
    try:
        *down, middle = residuals("paper")
    finally:
        del authors.RULES["paper"]
    *ours, our_middle = residuals("unpacked")
    for whole, unpacked in zip(down, ours, strict=True):
        assert torch.equal(unpacked, whole[:count].repeat(2, 1, 1, 1))
    assert torch.equal(our_middle, middle[count:].repeat(2, 1, 1, 1))
    assert not torch.equal(down[-1], ours[-1])


@pytest.mark.parametrize("known", [True, False], ids=["by the object", "by what it shows"])
def test_conditions_masked_apart_do_not_overlap(worker, known):
    batch = worker.source.load(worker.source.plans(CONFLICT, 2, 24)[0])
    inside = batch.object_mask if known else silhouette(batch.conditions[0])
    given = batch if known else replace(batch, object_mask=None)
    front, back = runner.masked_apart(given)
    assert torch.equal(front, batch.conditions[0])
    assert not back.movedim(1, -1)[inside].any()
    outside = ~inside[:, None].expand_as(back)
    assert torch.equal(back[outside], batch.conditions[1][outside])
    masked = worker.pictures(MASKED, given, lambda _: None)[0]
    again = worker.pictures(SUM, replace(given, conditions=[front, back]), lambda _: None)[0]
    assert torch.equal(masked, again)


def test_one_unit_alone_uses_that_unit(worker):
    batch = worker.source.load(worker.source.plans(CONFLICT, 1, 24)[0])
    for number in (0, 1):
        alone = worker.pictures(main_method(f"unit {number}"), batch, lambda _: None)[0]
        single = generate(
            runner.with_one_controlnet(worker.pipe, number), batch.prompts, batch.seeds,
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

"""Words that look at their own objects, outlines that are recognised, and runs that go on."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from random_run import save_random_run
from safetensors.torch import load_file
from torch import Tensor, nn

from demo.world import SHAPES
from training import lessons, stages
from training.captions import CaptionTokens
from training.command import main
from training.data import Mix, draw_batch
from training.grounding import CrossAttentionMaps, grounding_loss, word_places
from training.loop import Schedule
from training.models import build_controlnet, build_tokenizer, build_unet
from training.recognition import ShapeHeads

TOKENS, SIDE = 8, 4


def looking(at: Tensor, word: int = 3) -> Tensor:
    """A map [1, 16, 8] in which a word looks at [4, 4]."""
    found = torch.full((1, SIDE * SIDE, TOKENS), 1e-4)
    found[..., word] = at.flatten()
    return found


def loss(maps: list[Tensor], masks: Tensor, places: tuple[int, ...] = (3, -1)) -> float:
    return float(grounding_loss(maps, torch.tensor([places]), masks))


@pytest.fixture
def masks() -> Tensor:
    """The upper left quarter is the first object, the lower right the second."""
    masks = torch.zeros(1, 2, 8, 8)
    masks[0, 0, :4, :4] = masks[0, 1, 4:, 4:] = 1
    return masks


def test_a_word_that_looks_at_all_of_its_object_and_nowhere_else_has_nothing_to_learn(masks):
    inside = masks[0, 0, ::2, ::2]
    for strength in (1e-3, 0.2, 0.9):  # how much of a pixel's attention it has does not matter
        assert loss([looking(inside * strength)], masks) == pytest.approx(0, abs=1e-6)
    others_astray = looking(inside)
    others_astray[..., 2] = 0.1
    assert loss([others_astray], masks) == pytest.approx(0, abs=1e-6)


def test_looking_elsewhere_or_at_a_part_costs_more_the_more_there_is_of_it(masks):
    inside = masks[0, 0, ::2, ::2]
    costs = [loss([looking(0.1 * inside + leak * (1 - inside))], masks) for leak in (0, 0.02, 0.1)]
    assert costs == sorted(costs)
    assert costs[-1] > 0.5
    part = inside.clone()
    part[0] = 0
    assert loss([looking(part)], masks) > 0.05
    assert loss([looking(1 - inside)], masks) > loss([looking(part)], masks)


def test_the_loss_is_the_mean_of_its_formula(masks):
    torch.manual_seed(0)
    maps = [torch.rand(1, n * n, TOKENS, dtype=torch.float64) for n in (4, 8)]
    expected = []
    for found in maps:
        n = round(found.shape[1] ** 0.5)
        for thing, word in ((0, 3), (1, 6)):
            share = masks[0, thing].double().view(n, 8 // n, n, 8 // n).mean((1, 3)).flatten()
            a = found[0, :, word]
            mu = (a * share).sum() / share.sum()
            apart = (a / mu - share).abs()
            smooth = torch.where(apart < 1, apart**2 / 2, apart - 0.5).mean()
            expected.append((1 - (a * share).sum() / a.sum()) ** 2 + smooth)
    found = grounding_loss(maps, torch.tensor([[3, 6]]), masks.double())
    assert float(found) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-9)


def test_what_is_not_there_or_not_named_has_no_loss(masks):
    everywhere = looking(torch.ones(SIDE, SIDE))
    assert loss([everywhere], masks, (-1, -1)) == 0
    assert loss([everywhere], masks * 0) == 0
    assert loss([everywhere], masks, (3, 5)) > 0


def test_words_stand_where_the_caption_has_them(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    drawn = draw_batch(
        64,
        torch.Generator().manual_seed(0),
        CaptionTokens(tokenizer, "cpu"),
        Mix(object_free=0.2, two=0.7, overlapping=0.5),
    )
    places = word_places(drawn["tokens"], drawn["nouns"])
    colours, numbers = set(), set()
    for tokens, nouns, where in zip(drawn["tokens"], drawn["nouns"], places, strict=True):
        for noun, place in zip(nouns, where.tolist(), strict=True):
            assert (place >= 0) == bool((tokens == noun).any())
            if place >= 0:
                assert tokens[place] == noun
                colours.add(tokenizer.decode(tokens[place - 1]).strip())
                numbers.add(place)
    assert colours == {"red", "yellow", "green", "cyan", "blue", "pink"}
    assert len(numbers) > 1


def test_times_are_of_the_noisiest_third_as_often_as_said(tmp_path, monkeypatch):
    shop = stages.Workshop(tmp_path, stages.Options())
    seen: list[Tensor] = []

    class Pool:
        def batch(self, count: int) -> dict[str, Tensor]:
            tokens = torch.zeros(count, 77, dtype=torch.long)
            return {"latent": torch.zeros(count, 4, 2, 2), "tokens": tokens, **a_batch(count)} | {
                "nouns": torch.ones(count, 2, dtype=torch.long)
            }

    def predict(_batch: Any, noisy: Tensor, t: Tensor, _text: Tensor) -> Tensor:
        seen.append(t)
        return noisy

    class Nothing:
        noisiest = torch.tensor(lessons.NOISIEST)

        def losses(self, batch: dict[str, Tensor], _tokens: Tensor) -> Tensor:
            return torch.zeros(len(batch["tokens"]))

    def encoder(tokens: Tensor) -> tuple[Tensor]:
        return (tokens.float(),)

    tokenizer = build_tokenizer(tmp_path / "tokenizer")
    torch.manual_seed(0)
    for taught in (Nothing(), None):
        ask = shop._denoising(Pool(), tokenizer, encoder, predict, taught)
        assert torch.isfinite(ask(400))
    share = [float((t >= 667).float().mean()) for t in seen]
    assert share[0] == pytest.approx(0.6 + 0.4 / 3, abs=0.07)
    assert share[1] == pytest.approx(1 / 3, abs=0.07)
    assert max(int(t.max()) for t in seen) <= 999
    assert min(int(t.min()) for t in seen) >= 0


def test_the_noisiest_levels_count_something_where_that_is_asked_for():
    snr = torch.tensor([1e-4, 0.04, 1.0, 5.0, 100.0], dtype=torch.float64)
    plain, floored = (stages.min_snr_weight(snr / (1 + snr), least) for least in (0.0, 0.1))
    for ratio, weight, other in zip(snr.tolist(), plain.tolist(), floored.tolist(), strict=True):
        assert weight == pytest.approx(min(ratio, 5) / (ratio + 1), rel=1e-9)
        assert other == max(weight, 0.1)


def test_lessons_fade_and_what_is_said_loudly_counts_to_the_end():
    torch.manual_seed(0)
    unet = build_unet()
    controlnet = build_controlnet(unet)
    taught = lessons.Lessons(unet, controlnet)
    batch = {**a_batch(), "nouns": torch.tensor([[3, 5]] * 2)}
    tokens = torch.zeros(2, 77, dtype=torch.long)
    tokens[:, 2], tokens[:, 4] = 3, 5
    shown = torch.maximum(batch["first"], batch["second"])[:, None].expand(-1, 3, -1, -1) / 255
    schedule, steps = Schedule(steps=1, batch=1, rate=1.0), []
    before = taught.before(schedule, steps.append)
    schedule.steps = 100  # known only when some steps are done
    found = {}
    for step in (0, 40, 55, 70, 99):
        before(step)
        latents, text = torch.ones(2, 4, 32, 32), torch.ones(2, 77, 96)
        down, mid = controlnet(latents, 999, text, shown, return_dict=False)
        unet(latents, 999, text)
        taught.hear(shown, [*down, mid + 3])
        found[step] = float(taught.losses(batch, tokens).mean().detach())
        assert float(taught.noisiest) == pytest.approx(lessons.NOISIEST * float(taught.left))
    assert steps == [0, 40, 55, 70, 99]
    loud = lessons.LOUDNESS * 9 / len([*down, mid])
    assert found[70] == found[99] == pytest.approx(loud, rel=1e-4)
    assert found[0] == found[40] > 5 * loud
    assert found[55] - loud == pytest.approx((found[0] - loud) / 2, rel=1e-4)


def test_a_loud_residual_counts_whatever_its_size():
    quiet, loud = torch.ones(2, 8, 16, 16), torch.full((2, 32, 4, 4), 3.0)
    loud[1] = 0
    assert lessons.loudness([quiet, loud]).tolist() == [(1 + 9) / 2, 1 / 2]


def test_maps_are_those_of_the_cross_attention():
    torch.manual_seed(0)
    unet = build_unet().eval()
    latents, time, text = torch.randn(2, 4, 32, 32), torch.tensor([5, 900]), torch.randn(2, 7, 96)
    with torch.no_grad():
        before = unet(latents, time, text).sample
        heard = CrossAttentionMaps(unet)
        after = unet(latents, time, text).sample
    maps = heard.take()
    assert torch.allclose(before, after, atol=1e-5)
    assert sorted({layer.shape[1] for layer in maps}) == [64, 256]
    assert len(maps) == sum(name.endswith("attn2") for name, _ in unet.named_modules())
    for layer in maps:
        assert layer.shape[::2] == (2, 7)
        assert torch.allclose(layer.sum(2), torch.ones(2, layer.shape[1]), atol=1e-5)
    assert heard.take() == []


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("has_outlines", [True, False])
def test_training_goes_on_from_a_models_parts(tmp_path, monkeypatch, has_outlines):
    model, run = save_random_run(tmp_path / "model"), tmp_path / "run"
    if not has_outlines:
        shutil.rmtree(model / "controlnet-outlines")
    for stage in stages.STAGES:
        short = Schedule(steps=1, batch=4, rate=1e-3, warmup=1)
        monkeypatch.setitem(stages.SCHEDULES, stage, short)
    words: list[Any] = ["outline", "outlines", "--from", model, "--out", run, "--rate", "1e-9"]
    assert main([str(word) for word in [*words, "--pool", 64, "--batch", 3]]) == 0
    # At next to no rate each is what it began as; a model without one for several objects has one
    # that began as that for one.
    before = model / "controlnet-outlines" if has_outlines else run / "controlnet-outline"
    for part, begun in (("outline", model / "controlnet-outline"), ("outlines", before)):
        old, new = weights(begun), weights(run / f"controlnet-{part}")
        assert old.keys() == new.keys()
        assert all(torch.allclose(old[key], new[key], atol=1e-6) for key in old)
    report = json.loads((run / "outlines.json").read_text())
    assert (report["batch"], report["rate"], report["steps"]) == (3, 1e-9, 1)


def test_a_model_to_go_on_from_must_be_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["outline", "--from", str(tmp_path / "none"), "--out", str(tmp_path / "run")])
    assert "--from" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["vae", "--from", str(save_random_run(tmp_path / "m")), "--out", str(tmp_path / "r")])
    assert "from scratch" in capsys.readouterr().err


def a_batch(count: int = 2) -> dict[str, Tensor]:
    """Scenes of a star (0) above a ring (1), as drawn for training."""
    batch = {name: torch.zeros(count, 64, 64, dtype=torch.uint8) for name in ("first", "second")}
    batch["objects"] = torch.zeros(count, 64, 64, dtype=torch.uint8)
    for number, (name, top) in enumerate((("first", 8), ("second", 40)), 1):
        batch[name][:, top : top + 16, 8:24] = 255
        batch["objects"][:, top : top + 16, 8:24] = number
    batch["shapes"] = torch.tensor([[0, 1]] * count)
    return batch


def test_heads_learn_the_shapes_of_the_outlines_that_are_shown():
    torch.manual_seed(0)
    controlnet = build_controlnet(build_unet())
    heads = ShapeHeads(controlnet)
    assert len(heads.heads) == sum(name.endswith("attn2") for name, _ in controlnet.named_modules())
    batch = a_batch()
    both = torch.maximum(batch["first"], batch["second"])[:, None].expand(-1, 3, -1, -1) / 255
    one = batch["first"][:, None].expand(-1, 3, -1, -1) / 255
    nothing = torch.zeros_like(one)

    def asked(condition: Tensor) -> Tensor:
        controlnet(torch.zeros(2, 4, 32, 32), 999, torch.zeros(2, 7, 96), condition)
        return heads.loss(batch, condition)

    for head in heads.heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    chance = math.log(len(SHAPES))
    for condition, shown in ((both, 1), (one, 1), (nothing, 0)):
        assert asked(condition).tolist() == pytest.approx([shown * chance] * 2, rel=1e-4)
    for head in heads.heads:  # all of them say: a star
        head.bias.data[0] = 20.0
    assert asked(one).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert asked(both).min() > 5
    asked(both).sum().backward()
    grown = [p.grad for p in controlnet.controlnet_cond_embedding.parameters()]
    assert any(gradient is not None for gradient in grown)
    assert heads.features == []

"""Cross-attention maps against their definition on a real UNet; masks on drawn shapes."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lib_ccn.foreground import (
    assigned_words,
    foreground_mask,
    resize_mask,
    token_grid,
    word_map,
    word_scores,
)
from lib_ccn.recorder import CrossAttentionRecorder
from lib_ccn.residuals import smooth
from lib_ccn.silhouette import image_mask, silhouette

diffusers = pytest.importorskip("diffusers")


class Candidate(NamedTuple):
    text: str
    positions: tuple[int, ...]


# ----------------------------------------------------------------------------- recorder


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=24,
        norm_num_groups=8,
    ).eval()


def run(unet, size=(18, 26), tokens=7, batch=4, seed=1):
    torch.manual_seed(seed)
    latent, text = torch.randn(batch, 4, *size), torch.randn(batch, tokens, 24)
    with torch.no_grad():
        return unet(latent, torch.tensor(300), text, return_dict=False)[0]


def expected_maps(unet, rows, reduction=4, **call):
    """Softmax(Q K^T / sqrt d) of the layers on the wanted grid, in float64, one by one."""
    seen = {}
    handles = []
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k")):
            hook = lambda _m, _a, out, n=name: seen.update({n: out.double()})  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    run(unet, **call)
    for handle in handles:
        handle.remove()
    size = call.get("size", (18, 26))
    grid = tuple(math.ceil(side / reduction) for side in size)
    maps = []
    for name in seen:
        if name.endswith("to_q") and seen[name].shape[1] == math.prod(grid):
            heads = unet.get_submodule(name.removesuffix(".to_q")).heads
            for head in range(heads):
                q, k = (
                    seen[n].unflatten(-1, (heads, -1))[rows, :, head]
                    for n in (name, name.removesuffix("q") + "k")
                )
                maps.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mT)
    assert maps
    return torch.stack(maps).mean(0).unflatten(-1, grid)


@pytest.mark.parametrize("size", [(16, 16), (18, 26), (17, 31), (24, 9)])
@pytest.mark.parametrize("rows", [slice(2, None), [1, 3], torch.tensor([0])])
def test_maps_are_the_conditional_rows_mean_probabilities(unet, size, rows):
    with CrossAttentionRecorder(unet) as recorder:
        recorder.begin_call(size, rows)
        run(unet, size)
        maps = recorder.take()
    expected = expected_maps(unet, rows, size=size)
    assert recorder.error is None
    assert maps.dtype is torch.float32
    torch.testing.assert_close(maps.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps.sum(1), torch.ones_like(maps[:, 0]))


def test_layers_are_computed_together_within_a_bound(unet, monkeypatch):
    maps, added = [], []
    own = CrossAttentionRecorder._add

    def add(self, kind, layers):
        added.append(len(layers))
        own(self, kind, layers)

    monkeypatch.setattr(CrossAttentionRecorder, "_add", add)
    for bound in (2**25, 0):
        monkeypatch.setattr("lib_ccn.recorder.at_a_time", lambda _device, bound=bound: bound)
        with CrossAttentionRecorder(unet) as recorder:
            recorder.begin_call((18, 26), [1, 2])
            run(unet)
            recorder.pause()
            maps.append(recorder.take())
    torch.testing.assert_close(*maps)
    together, *alone = added
    assert together > 1
    assert alone == [1] * together


class Operations(TorchDispatchMode):
    """Counts what is dispatched."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [[2, 3], [3, 0, 1]], ids=["a stretch", "in disorder"])
def test_a_call_is_read_in_few_operations_and_without_a_wait(rows):
    """On the device "meta", where whoever asks for a number fails."""

    class Attention(torch.nn.Module):
        heads = 8

        def __init__(self):
            super().__init__()
            self.to_q, self.to_k = torch.nn.Identity(), torch.nn.Identity()

    network = torch.nn.ModuleDict({str(n): torch.nn.Module() for n in range(20)})
    for part in network.values():
        part.attn2 = Attention()
    image, text = (torch.empty(4, tokens, 64, device="meta") for tokens in (256, 77))
    with CrossAttentionRecorder(network) as recorder, Operations() as operations:
        recorder.begin_call((64, 64), rows)
        for part in network.values():
            part.attn2.to_q(image)
            part.attn2.to_k(text)
        recorder.pause()
        maps = recorder.take()
    assert recorder.error is None
    assert maps.shape == (len(rows), 77, 16, 16)
    assert operations.count <= 25


def test_another_reduction_takes_another_grid(unet):
    with CrossAttentionRecorder(unet, reduction=2) as recorder:
        recorder.begin_call((18, 26), [0])
        run(unet)
        maps = recorder.take()
    torch.testing.assert_close(maps.double(), expected_maps(unet, [0], 2), atol=1e-5, rtol=1e-5)


def test_calls_of_one_step_are_averaged_and_take_resets(unet):
    with CrossAttentionRecorder(unet) as recorder:
        for seed in (1, 2):
            recorder.begin_call((18, 26), [0, 1])
            run(unet, seed=seed)
        maps = recorder.take()
        assert recorder.take() is None
    both = [expected_maps(unet, [0, 1], seed=seed) for seed in (1, 2)]
    torch.testing.assert_close(maps.double(), sum(both) / 2, atol=1e-5, rtol=1e-5)


def test_another_text_length_or_size_starts_anew(unet):
    with CrossAttentionRecorder(unet) as recorder:
        for size, tokens in (((16, 16), 7), ((18, 26), 7), ((18, 26), 9)):
            recorder.begin_call(size, [0])
            run(unet, size, tokens)
        maps = recorder.take()
    expected = expected_maps(unet, [0], tokens=9)
    torch.testing.assert_close(maps.double(), expected, atol=1e-5, rtol=1e-5)


def test_nothing_is_recorded_outside_a_call(unet):
    with CrossAttentionRecorder(unet) as recorder:
        run(unet)
        assert recorder.take() is None
        recorder.begin_call((18, 26), [0])
        recorder.pause()
        run(unet)
        assert recorder.take() is None
        recorder.begin_call((40, 40), [0])
        run(unet)
        assert recorder.take() is None
        recorder.begin_call((18, 26), [])
        run(unet)
        assert recorder.take() is None
    assert recorder.error is None


def test_recording_changes_no_bit_and_leaves_no_hook(unet):
    plain = run(unet)
    recorder = CrossAttentionRecorder(unet)

    def hooks():
        return sum(len(module._forward_hooks) for module in unet.modules())

    recorder.attach()
    recorder.attach()
    assert hooks() == 0, "between calls there is nothing to hear"
    recorder.begin_call((18, 26), [0])
    recorder.begin_call((18, 26), [0])
    assert hooks() == 2 * len(recorder.layers)
    assert torch.equal(run(unet), plain)
    recorder.pause()
    assert hooks() == 0
    recorder.begin_call((18, 26), [0])
    recorder.detach()
    recorder.detach()
    assert not any(module._forward_hooks for module in unet.modules())
    assert recorder.take() is None


def test_an_error_in_a_hook_is_kept_and_the_picture_goes_on(unet):
    plain = run(unet)
    with CrossAttentionRecorder(unet) as recorder:
        recorder.begin_call((18, 26), [99])
        assert torch.equal(run(unet), plain)
        assert isinstance(recorder.error, IndexError)
        assert recorder.take() is None


def test_half_precision_is_normalised_in_float32():
    class Attention(torch.nn.Module):
        heads = 2

        def __init__(self):
            super().__init__()
            self.to_q, self.to_k = torch.nn.Identity(), torch.nn.Identity()

        def forward(self, x, context):
            return self.to_q(x), self.to_k(context)

    host = torch.nn.ModuleDict({"attn2": Attention()})
    x = torch.randn(1, 16, 8).half() * 30
    with CrossAttentionRecorder(host) as recorder:
        recorder.begin_call((16, 16), [0])
        host["attn2"](x, torch.randn(1, 9, 8).half() * 30)
        maps = recorder.take()
    assert recorder.error is None
    torch.testing.assert_close(maps.sum(1), torch.ones(1, 4, 4))


# -------------------------------------------------------------------------------- masks


def test_word_map_averages_the_words_tokens():
    maps = torch.rand(2, 9, 4, 5)
    torch.testing.assert_close(word_map(maps, [3, 4]), (maps[:, 3] + maps[:, 4]) / 2)
    for positions in ([], [9], [-1, 2]):
        with pytest.raises(ValueError, match="positions"):
            word_map(maps, positions)


def test_foreground_mask_is_smoothed_scaled_and_cut():
    maps = torch.rand(3, 8, 9)
    mask, usable = foreground_mask(maps, 0.4)
    assert usable.tolist() == [True] * 3
    for row in range(3):
        soft = smooth(maps)[row]
        scaled = (soft - soft.min()) / (soft.max() - soft.min())
        assert torch.equal(mask[row], scaled >= 0.4)


def test_thresholds_at_the_ends_take_all_or_the_maximum():
    maps = torch.rand(1, 8, 9)
    assert foreground_mask(maps, 0.0)[0].all()
    assert foreground_mask(maps, 1.0)[0].sum() == 1


def test_a_constant_or_broken_row_has_no_usable_mask():
    maps = torch.rand(4, 8, 8)
    maps[0] = 0.3
    maps[1] = 0
    maps[2, 0, 0] = math.nan
    mask, usable = foreground_mask(maps, 0.5)
    assert usable.tolist() == [False, False, False, True]
    assert mask.flatten(1).any(1).tolist() == [False, False, False, True]


def test_resize_takes_a_token_with_half_its_area_covered():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :2, 0] = mask[0, 0, 3] = True
    assert resize_mask(mask, (2, 2)).tolist() == [[True, False, False, False]]
    grown = resize_mask(mask, (8, 8)).unflatten(1, (8, 8))
    assert torch.equal(grown[0], mask[0].repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert torch.equal(resize_mask(mask, (4, 4)), mask.flatten(1))


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (7, 130), (1, 3)])
def test_token_grid_follows_strided_convolutions(size):
    x = torch.zeros(1, 1, *size)
    for _ in range(4):
        assert token_grid(size, x.shape[-2] * x.shape[-1]) == tuple(x.shape[-2:])
        x = F.conv2d(x, torch.ones(1, 1, 3, 3), stride=2, padding=1)
    assert token_grid(size, 12345) is None
    assert token_grid((64, 64), 77) is None


def test_the_best_word_is_the_one_whose_map_correlates():
    torch.manual_seed(0)
    maps = torch.rand(2, 9, 16, 16) * 0.1
    place = torch.zeros(2, 16, 16)
    place[:, 3:8, 4:10] = 1
    maps[:, 5:7] += place[:, None]
    maps[:, 2] += 1 - place
    words = [
        Candidate("sky", (2,)),
        Candidate("", ()),
        Candidate("red star", (5, 6)),
        Candidate("field", (7,)),
    ]
    deviation = place.repeat_interleave(4, 1).repeat_interleave(4, 2)
    (word, score), *others = word_scores(maps, words, deviation)
    assert all(0 < other <= score for _, other in others)
    assert word.text == "red star"
    pairs = [
        torch.stack((smooth(maps[row, 5:7].mean(0)).flatten(), place[row].flatten()))
        for row in range(2)
    ]
    expected = sum(torch.corrcoef(pair)[0, 1] for pair in pairs) / 2
    assert score == pytest.approx(float(expected), abs=1e-5)


def test_no_word_where_nothing_agrees():
    maps = torch.rand(1, 4, 8, 8)
    words = [Candidate("a", (1,))]
    flat = torch.full((1, 8, 8), 0.5)
    assert word_scores(maps, words, flat) == []
    assert word_scores(flat[:, None].expand(-1, 4, -1, -1), words, maps[:, 0]) == []
    assert word_scores(maps, words, -smooth(maps[:, 1])) == []
    assert word_scores(maps, [], maps[:, 0]) == []


def test_each_unit_has_the_word_that_suits_all_best():
    a, b, c = (Candidate(text, (n,)) for n, text in enumerate("abc"))
    assert assigned_words([[(a, 0.9), (b, 0.8)], [(a, 0.7), (c, 0.1)]]) == [b, a]
    assert assigned_words([[(a, 0.9), (b, 0.1)], [(a, 0.7)]]) == [a, None]
    assert assigned_words([[(a, 0.9)], [(b, 0.2)], []]) == [a, b, None]
    assert assigned_words([[(a, 0.5), (b, 0.5)], [(a, 0.5), (b, 0.5)]]) == [a, b]
    assert assigned_words([]) == []


# -------------------------------------------------------------------------- silhouettes


def star(height, width, centre, radius):
    """Signed distance-like field of a five-pointed star: negative inside."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y - float(centre[0]), x - float(centre[1])
    angle = torch.atan2(x.float(), -y.float()) % (2 * math.pi / 5) - math.pi / 5
    return torch.hypot(x, y) - radius * (0.45 + 0.55 * (angle.abs() / (math.pi / 5)))


def outline(field, thickness=2.0):
    return ((field.abs() <= thickness) * 1.0)[None, None].expand(1, 3, -1, -1)


def iou(a, b):
    return ((a & b).sum() / (a | b).sum()).item()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (256, 256), (512, 384), (700, 1100)])
def test_an_outline_becomes_the_filled_shape(height, width):
    radius = min(height, width) * 0.35
    field = star(height, width, (height * 0.45, width * 0.5), radius)
    mask = silhouette(outline(field))
    assert mask.shape == (1, height, width)
    assert mask.dtype is torch.bool
    assert iou(mask[0], field <= 2) > 0.93


def test_an_outline_on_a_light_ground_and_in_one_channel():
    field = star(128, 128, (60, 64), 45)
    mask = silhouette(1 - outline(field)[:, :1])
    assert iou(mask[0], field <= 2) > 0.93


def test_a_small_gap_is_closed_and_a_wide_one_is_not():
    y, x = torch.meshgrid(torch.arange(128) - 64.0, torch.arange(128) - 64.0, indexing="ij")
    ring = torch.hypot(x, y) - 40
    for gap, filled in ((1, True), (25, False)):
        image = outline(ring).clone()
        image[..., :64, 64 - gap : 64 + gap] = 0
        assert silhouette(image)[0, 64, 64].item() is filled


def test_a_skeleton_keeps_to_its_limbs():
    image = torch.zeros(1, 3, 200, 200)
    image[:, 0, 30:170, 98:102] = 1
    image[:, 1, 60:64, 40:160] = 1
    limbs = image.amax((0, 1)) > 0
    mask = silhouette(image)[0]
    assert iou(mask, limbs) > 0.8
    assert (mask & limbs).sum() == limbs.sum()


def test_a_filled_object_at_the_edge_is_itself():
    image = torch.zeros(2, 3, 96, 96)
    image[0, 0, 60:, 20:50] = 0.8
    image[1, 2, 30:60, 70:] = 0.8
    assert torch.equal(silhouette(image), image.amax(1) > 0)


def test_an_outline_cut_by_the_edge_is_filled_to_the_edge():
    for centre in ((128, 60), (64, 2), (10, 10)):
        y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
        field = torch.hypot(y - centre[0], x - centre[1]) - 14
        assert iou(silhouette(outline(field))[0], field <= 2) > 0.9


def test_an_empty_picture_has_no_silhouette():
    assert not silhouette(torch.zeros(2, 3, 70, 50)).any()
    assert not silhouette(torch.full((1, 1, 64, 64), 0.4)).any()
    assert silhouette(torch.zeros(1, 3, 2, 1)).shape == (1, 2, 1)


def test_pictures_of_a_batch_do_not_meet():
    shapes = [outline(star(128, 128, (50 + 10 * i, 60), 30 + 5 * i)) for i in range(3)]
    together = silhouette(torch.cat(shapes))
    assert all(torch.equal(together[i : i + 1], silhouette(s)) for i, s in enumerate(shapes))


def test_image_mask_reads_luminance_or_alpha():
    image = torch.zeros(1, 3, 4, 4)
    image[:, :, :2] = 0.9
    image[:, 2, 2:] = 1.0
    expected = torch.zeros(1, 4, 4, dtype=torch.bool)
    expected[:, :2] = True
    assert torch.equal(image_mask(image), expected)
    assert torch.equal(image_mask(image[:, :1]), expected)
    opaque = torch.cat((image, torch.ones(1, 1, 4, 4)), 1)
    assert torch.equal(image_mask(opaque), expected)
    painted = torch.cat((torch.zeros(1, 3, 4, 4), expected[:, None].float()), 1)
    assert torch.equal(image_mask(painted), expected)
    with pytest.raises(ValueError, match="channels"):
        image_mask(torch.zeros(1, 5, 4, 4))

"""The figures of `docs/how-it-works.md`, from one generation watched: `python3 run.py explain`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from lib_ccn.foreground import resize_mask, token_grid
from lib_ccn.fusion import channel_fusion, smoothed_deviation
from lib_ccn.hosts.diffusers import cross_controlnet
from lib_ccn.residuals import smooth
from lib_ccn.rules import AVERAGED
from lib_ccn.settings import Settings
from lib_ccn.unet_attention import self_attention_layers
from lib_ccn.webui.pictures import Result
from lib_ccn.winners import AVERAGED_COLOUR, COLOURS, winners

from .command_line import OutputError, prepare_folder
from .demo_model import ModelError, fitting, generate, load_pipeline
from .examples import Example, bundled_examples
from .explain_layers import layers_figure
from .figures import (
    GREY,
    INK,
    PAPER,
    Column,
    Row,
    decision_image,
    draw_figure,
    enlarged,
    figure_font,
    heat_image,
    overlay,
    to_image,
)
from .options import BUNDLED_GUIDANCE, BUNDLED_MASK_REDUCTION

DELTAS = (0.0, 0.4, 0.6, 0.7, 0.8, 1.0)
METHODS: dict[str, dict[str, Any]] = {
    "Plain sum": {"fusion": "sum", "inject": False},
    "PixFusion": {"fusion": "pix", "inject": False},
    "+ ChannelFusion": {"inject": False},
    "+ KV-Injection": {},
}


def run(given: argparse.Namespace) -> int:
    """Draw every figure; returns the exit status."""
    example = bundled_examples()[given.example]
    settings = Settings(
        foreground_word=example.word,
        mask_reduction=BUNDLED_MASK_REDUCTION,
        strict=True,
    ).at_steps(given.steps)
    try:
        prepare_folder("--out", given.out)
        pipe: Any = load_pipeline(several=True)
    except (OutputError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, OutputError) else 1
    work = Explanation(fitting(pipe, example), example, given.steps, given.steps // 4, settings)
    for name, figure in draw_all(work, pipe).items():
        path = given.out / name
        figure.quantize(128).save(path, optimize=True)
        print(f"{path}  ({path.stat().st_size // 1024} KiB)")
    return 0


@dataclass
class Watched:
    """What one generation showed, at the watched step and of its conditional half.

    Attributes:
        residuals: by unit, [1, C, h, w] each.
        queries, keys: by unit, [1, N, C] of the first self-attention.
        heats, masks: the word's map [h, w] and the mask [h, w], of every step by its number.
        picture: [3, H, W].
    """

    residuals: list[list[Tensor]]
    queries: list[Tensor]
    keys: list[Tensor]
    heats: dict[int, Tensor] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)
    picture: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Explanation:
    """One example, and how it is made.

    Attributes:
        pipe: the demo model's, with the ControlNets of the example.
        example: prompt, word, conditions.
        steps: of the sampler.
        watch: the step whose residuals are shown.
        settings: of the full method.
    """

    pipe: Any
    example: Example
    steps: int
    watch: int
    settings: Settings

    def picture(
        self, settings: Settings, on_step: Callable[[Any], None] = lambda _: None
    ) -> Tensor:
        """The picture [3, H, W] under `settings`; `on_step` is given the handle."""
        example = self.example
        with cross_controlnet(self.pipe, settings) as control:
            return generate(
                self.pipe,
                [example.prompt],
                [example.seed],
                [condition[None] for condition in example.conditions],
                steps=self.steps,
                guidance_scale=BUNDLED_GUIDANCE,
                on_step=lambda _: on_step(control),
            )[0]

    def watched(self) -> Watched:
        """Generate without injection, so that every unit's own keys and residuals can be seen."""
        nets = self.pipe.controlnet.nets
        found = Watched(
            [[] for _ in nets], [torch.empty(0)] * len(nets), [torch.empty(0)] * len(nets)
        )
        step = 0

        def keeping(kept: list[Any], number: int) -> Callable[..., None]:
            def keep(_module: Any, _inputs: Any, out: Any) -> None:
                if step == self.watch:
                    kept[number] = (
                        out[-1:].float()
                        if isinstance(out, Tensor)
                        else [residual[-1:].float() for residual in (*out[0], out[1])]
                    )

            return keep

        def stepped(control: Any) -> None:
            nonlocal step
            place = control.session.place
            if place.mask is not None and place.heat is not None:
                found.masks[step], found.heats[step] = place.mask[0], place.heat[0]
            step += 1

        with ExitStack() as hooks:
            for number, net in enumerate(nets):
                layer: Any = self_attention_layers(net)[0].module
                watched = (
                    (net, found.residuals),
                    (layer.to_q, found.queries),
                    (layer.to_k, found.keys),
                )
                for module, kept in watched:
                    hook = module.register_forward_hook(keeping(kept, number))
                    hooks.callback(hook.remove)
            found.picture = self.picture(
                self.settings.replace(inject=False, show_mask=True), stepped
            )
        return found


def draw_all(work: Explanation, everything: Any) -> dict[str, Image.Image]:
    """Every figure by its file name; `everything` is the demo model with all its ControlNets."""
    found = work.watched()
    return {
        "pixfusion.png": pixfusion_figure(work, found),
        "channelfusion.png": channel_figure(found, work.settings.delta),
        "mask-steps.png": mask_figure(work, found),
        "injection.png": injection_figure(work, found),
        "delta.png": delta_figure(work),
        "methods.png": methods_figure(work),
        "strip.png": strip_figure(work),
        "layers.png": layers_figure(everything, work.steps, work.settings),
    }


def pixfusion_figure(work: Explanation, found: Watched) -> Image.Image:
    """Deviation of both units, agreement and decision, at each resolution of the residuals."""
    chosen: dict[int, int] = {}
    for number, residual in enumerate(found.residuals[0][:-1]):
        chosen[residual.shape[-1]] = number  # the last of each resolution
    rows = []
    for number in chosen.values():
        pair = [unit[number] for unit in found.residuals]
        deviations = [smoothed_deviation(unit)[0] for unit in pair]
        peak = max(float(d.max()) for d in deviations)
        cosine = agreement(*pair)[0]
        side = pair[0].shape[-1]
        rows.append(
            Row(
                f"residual {number}",
                f"{pair[0].shape[1]} channels, {side}x{side}",
                [
                    *(heat_image(deviation / peak) for deviation in deviations),
                    heat_image(cosine.clamp(0, 1)),
                    decision_image(winners(pair, work.settings.delta)[0]),
                ],
            )
        )
    heads = [
        Column("Outline unit", "smoothed deviation", "Who has something to say"),
        Column("Regions unit", "smoothed deviation", "Who has something to say"),
        Column("Agreement", "cosine, dark is 1", "Do they say the same?"),
        Column("Decision", "red, blue, grey: both", "What the UNet gets"),
    ]
    footer = (
        f"'{work.example.prompt}', step {work.watch} of {work.steps}. Red: the outline unit's "
        f"residual goes on as it is; blue: the region unit's; grey: cosine above "
        f"{work.settings.delta:g}, the mean."
    )
    return draw_figure(heads, rows, footer, cell=192)


def channel_figure(found: Watched, delta: float) -> Image.Image:
    """A histogram of R over the channels of the last residual."""
    first, second = (unit[-1] for unit in found.residuals)
    ratio = channel_ratio(first, second)[0]
    decided = winners((first, second), delta, channel_fusion)[0]
    bins, shown = 20, {0: COLOURS[0], 1: COLOURS[1], AVERAGED: AVERAGED_COLOUR}
    place = (ratio * bins).long().clamp_max(bins - 1)
    counts = [[int(((place == b) & (decided == who)).sum()) for who in shown] for b in range(bins)]
    width, height, left, base = 760, 300, 60, 240
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    step, tallest = (width - 2 * left) / bins, max(sum(c) for c in counts)
    for b, each in enumerate(counts):
        y = float(base)
        for count, colour in zip(each, shown.values(), strict=True):
            tall = 190 * count / tallest
            box = (left + b * step + 1, y - tall, left + (b + 1) * step - 1, y)
            if count:
                pen.rectangle(box, fill=colour)
            y -= tall
    pen.line((left, base, width - left, base), INK)
    x = left + delta * (width - 2 * left)
    pen.line((x, 30, x, base), INK, 2)
    font = figure_font(14)
    pen.text((x + 6, 28), f"delta {delta:g}: from here on, blended", INK, font)
    pen.text((x - 6, 28), "the larger deviation wins", GREY, font, anchor="ra")
    for value in (0, 0.25, 0.5, 0.75, 1):
        where = (left + value * (width - 2 * left), base + 6)
        pen.text(where, f"{value:g}", GREY, font, anchor="ma")
    text = f"R of the {len(ratio)} channels of the middle residual (red: outline unit larger)"
    pen.text((width / 2, base + 30), text, INK, font, anchor="ma")
    return sheet


def mask_figure(work: Explanation, found: Watched) -> Image.Image:
    """The word's map and the mask over the steps."""
    known = sorted(found.heats)
    picked = [known[round(n * (len(known) - 1) / 5)] for n in range(6)] if known else []
    picture = to_image(found.picture)
    columns = [Column(f"step {step}") for step in picked]
    rows = [
        Row(
            f"attention to '{work.example.word}'",
            "of the step before",
            [heat_image(found.heats[step]) for step in picked],
        ),
        Row(
            "mask",
            f"cut at {work.settings.mask_threshold:g}",
            [overlay(picture, found.masks[step]) for step in picked],
        ),
    ]
    footer = f"Injection begins at step {work.settings.start_step} of {work.steps}."
    return draw_figure(columns, rows, footer, cell=192)


def injection_figure(work: Explanation, found: Watched) -> Image.Image:
    """What a token of each side looks at in the background unit, without and with injection."""
    layer = self_attention_layers(work.pipe.controlnet.nets[1])[0]
    tokens = found.queries[1].shape[1]
    side = int(work.pipe.unet.config.sample_size)
    grid = token_grid((side, side), tokens)
    mask = found.masks[work.watch]
    if grid is None:
        raise ModelError(f"attention of {tokens} tokens does not fit the latents")
    inside = resize_mask(mask[None], grid)[0]
    heads = int(layer.module.heads)  # type: ignore[arg-type]
    picture, all_own = to_image(found.picture), torch.ones_like(inside)
    own, guests = found.keys[1], found.keys[0]

    def looks(token: int, keys: Tensor, visible: Tensor) -> Tensor:
        return _looks(found.queries[1][:, token : token + 1], keys, heads, visible)

    centre, outside = _central_token(inside, grid), _central_token(~inside, grid)
    seen = looks(outside, torch.cat((own, guests), 1), torch.cat((all_own, ~inside)))
    maps = {
        ("a token of the object", centre): (
            looks(centre, own, all_own),
            looks(centre, guests, inside),
        ),
        ("a token of the landscape", outside): (seen[:tokens], seen[tokens:]),
    }
    rows = [
        Row(
            name,
            "in the background unit",
            [
                _token_image(picture, token, grid),
                *(heat_image((m / m.max().clamp_min(1e-12)).view(grid)) for m in shown),
            ],
        )
        for (name, token), shown in maps.items()
    ]
    heads_of = [
        Column("The token", "on the result"),
        Column("Its own keys", "K2; the object's: not used"),
        Column("Foreground unit's", "K1, on its side of the mask"),
    ]
    footer = (
        f"Self-attention 0 of {grid[0]}x{grid[1]} tokens, step {work.watch}, heads "
        "averaged, each map to its own maximum. With injection the object's tokens look at the "
        "foreground unit's keys alone, the landscape's at their own and the foreground unit's "
        "outside the object."
    )
    return draw_figure(heads_of, rows, footer, cell=192)


def delta_figure(work: Explanation) -> Image.Image:
    """The same picture from delta 0 to 1."""
    pictures = [to_image(work.picture(work.settings.replace(delta=d))) for d in DELTAS]
    columns = [Column(f"delta {delta:g}") for delta in DELTAS]
    return draw_figure(columns, [Row(work.example.prompt, "full method", pictures)], cell=192)


def methods_figure(work: Explanation) -> Image.Image:
    """The conditions, and the method put together part by part."""
    pictures = [to_image(work.example.foreground), to_image(work.example.background)]
    for changes in METHODS.values():
        pictures.append(to_image(work.picture(work.settings.replace(**changes))))
    columns = [Column("Outline"), Column("Regions"), *(Column(name) for name in METHODS)]
    return draw_figure(columns, [Row(work.example.prompt, "", pictures)], cell=192)


def strip_figure(work: Explanation) -> Image.Image:
    """What "Show what was done" adds to a WebUI's results, drawn by the same code."""
    controls: list[Any] = []
    picture = work.picture(work.settings.replace(show_mask=True), controls.append)
    shown = Result()
    shown.take(controls[-1].session, 1)
    return shown.strip(to_image(picture), 0)


@torch.no_grad()
def agreement(first: Tensor, second: Tensor) -> Tensor:
    """The cosine (equation 3) of two residuals [B, C, H, W] at each place: float32 [B, H, W]."""
    a, b = (smooth(u.float() - u.float().mean(1, keepdim=True)) for u in (first, second))
    return F.cosine_similarity(a, b, dim=1)


@torch.no_grad()
def channel_ratio(first: Tensor, second: Tensor) -> Tensor:
    """R of equation 7 for each channel of two residuals [B, C, H, W]: float32 [B, C]."""
    a, b = (unit.float().std((2, 3), correction=0) for unit in (first, second))
    largest = torch.maximum(a, b)
    return torch.where(largest > 0, 1 - (a - b).abs() / largest.clamp_min(1e-30), 1.0)


def _token_image(picture: Image.Image, token: int, grid: tuple[int, int]) -> Image.Image:
    """The picture with a token's place framed."""
    large = enlarged(picture, 192)
    high, wide = large.height / grid[0], large.width / grid[1]
    y, x = (token // grid[1]) * high, (token % grid[1]) * wide
    pen = ImageDraw.Draw(large)
    pen.rectangle((x - 3, y - 3, x + wide + 2, y + high + 2), outline=PAPER, width=4)
    pen.rectangle((x - 1, y - 1, x + wide, y + high), outline=INK, width=2)
    return large


def _central_token(inside: Tensor, grid: tuple[int, int]) -> int:
    """The token deepest inside the mask bool [N]; the picture's edge is outside."""
    depth = torch.zeros(grid)
    left = inside.view(1, 1, *grid).float()
    while left.any():
        depth += left[0, 0]
        left = -F.max_pool2d(-F.pad(left, [1] * 4), 3, 1)
    return int(depth.flatten().argmax())


def _looks(query: Tensor, keys: Tensor, heads: int, visible: Tensor) -> Tensor:
    """Attention of one query [1, 1, C] to keys [1, N, C], heads averaged: [N]."""
    q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, keys))
    logits = (q @ k.mT)[0, :, 0] * q.shape[-1] ** -0.5
    return logits.masked_fill(~visible, -torch.inf).softmax(-1).mean(0)

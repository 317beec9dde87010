"""What the authors' released research code does differently, for comparison only.

Written anew from a description of that code (facts, no lines of it). Everything works on two
diffusers ControlNets of Stable Diffusion 1.5's kind; nothing of this is in the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_ccn.fusion import channel_fusion

GAUSSIAN = ((1.0, 2.0, 1.0), (2.0, 4.0, 2.0), (1.0, 2.0, 1.0))
CENTRED = ((1.0, 2.0, 1.0), (2.0, 12.0, 2.0), (1.0, 2.0, 1.0))
NO_KERNEL = ((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0))


@dataclass(frozen=True)
class Rule:
    """PixFusion with other details; the defaults are the paper's.

    Attributes:
        kernel: 3x3 weights, divided by their sum.
        variance: the channels' variance in place of their standard deviation.
        over_batch: normalised by the sum over the whole batch, not over each sample's map; the
            batch is one picture's two halves of guidance, so pictures are made one at a time.
        coupled: the two encoders exchange features while they run.
        unpacked: each fused residual is taken apart as if it were one per encoder, while it is
            one batch of guidance's two halves: what is added to the skips of both halves is the
            unconditional half's, what is added in the middle the conditional half's.
    """

    kernel: tuple[tuple[float, ...], ...] = GAUSSIAN
    variance: bool = False
    over_batch: bool = False
    coupled: bool = False
    unpacked: bool = False


RULES = {
    "kernel 12": Rule(CENTRED),
    "no kernel": Rule(NO_KERNEL),
    "variance": Rule(variance=True),
    "batch variance": Rule(variance=True, over_batch=True),
    "authors": Rule(CENTRED, variance=True, over_batch=True),
    "coupled": Rule(coupled=True),
    "coupled authors": Rule(CENTRED, variance=True, over_batch=True, coupled=True),
    "unpacked": Rule(unpacked=True),
    "unpacked authors": Rule(CENTRED, True, over_batch=True, coupled=True, unpacked=True),
}


@dataclass(frozen=True)
class Verdict:
    """Of two features [B, C, H, W], per pixel: who wins, where they agree, their deviations.

    Attributes:
        second: bool [B, 1, H, W], True where the second wins.
        agree: bool [B, 1, H, W].
        deviations: float32 [B, 1, H, W] each, over channels.
    """

    second: Tensor
    agree: Tensor
    deviations: tuple[Tensor, Tensor]


def judge(first: Tensor, second: Tensor, rule: Rule, delta: float) -> Verdict:
    """Equations 1-4 with the details of `rule`."""
    centred = [t.float() - t.float().mean(1, keepdim=True) for t in (first, second)]
    spread = [t.square().mean(1, keepdim=True) for t in centred]
    deviations = [t.sqrt() for t in spread]
    scores = []
    for value in spread if rule.variance else deviations:
        total = value.sum() if rule.over_batch else value.sum((2, 3), keepdim=True)
        scores.append(_smooth(value / total.clamp_min(1e-30), rule.kernel))
    a, b = (_smooth(t, rule.kernel) for t in centred)
    cosine = F.cosine_similarity(a, b, dim=1, eps=1e-20)[:, None]
    return Verdict(scores[1] > scores[0], cosine > delta, (deviations[0], deviations[1]))


def fuse(first: Tensor, second: Tensor, rule: Rule, delta: float) -> Tensor:
    """PixFusion's result: the mean where the two agree, otherwise the winner."""
    verdict = judge(first, second, rule, delta)
    winner = torch.where(verdict.second, second, first)
    return torch.where(verdict.agree, (first + second) / 2, winner)


def couple(first: Tensor, second: Tensor, rule: Rule, delta: float) -> tuple[Tensor, Tensor]:
    """What each encoder goes on with: the mean where they agree, else the winner, rescaled.

    A loser's copy of the winner's feature has the loser's own channel deviation.
    """
    verdict = judge(first, second, rule, delta)
    winner = torch.where(verdict.second, second, first).float()
    mean = (first.float() + second.float()) / 2
    deviation = torch.where(verdict.second, verdict.deviations[1], verdict.deviations[0])
    return tuple(  # type: ignore[return-value]
        torch.where(verdict.agree, mean, winner * (own / deviation.clamp_min(1e-12))).to(first)
        for own in verdict.deviations
    )


def coupled_residuals(
    nets: Sequence[Any],
    conditions: Sequence[Tensor],
    scales: Sequence[float],
    exchange: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    sample: Tensor,
    timestep: Tensor,
    text: Tensor,
) -> list[list[Tensor]]:
    """Both ControlNets' residuals, `exchange` between them at every block's end.

    Features meet after the input convolution (before the condition's own are added), after each
    down block and after the middle block. A block's own skip features stay its own; what is
    exchanged goes on to the next block.
    """
    times = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
    embedded = [net.time_embedding(net.time_proj(times).to(sample.dtype)) for net in nets]
    met = exchange(*(net.conv_in(sample) for net in nets))
    states = [
        state + net.controlnet_cond_embedding(condition)
        for state, net, condition in zip(met, nets, conditions, strict=True)
    ]
    skips: list[list[Tensor]] = [[state] for state in states]
    for blocks in zip(*(net.down_blocks for net in nets), strict=True):
        for i, block in enumerate(blocks):
            states[i], own = block(**_inputs(block, states[i], embedded[i], text))
            skips[i] += own
        states = list(exchange(*states))
    for i, net in enumerate(nets):
        middle = net.mid_block
        states[i] = middle(**_inputs(middle, states[i], embedded[i], text))
    states = list(exchange(*states))
    return [
        [
            *(conv(s) * scale for conv, s in zip(net.controlnet_down_blocks, own, strict=True)),
            net.controlnet_mid_block(state) * scale,
        ]
        for net, own, state, scale in zip(nets, skips, states, scales, strict=True)
    ]


def supports(pipe: Any) -> bool:
    """Whether the pipeline has two ControlNets of Stable Diffusion 1.5's kind."""
    nets = list(getattr(pipe.controlnet, "nets", ()))
    return len(nets) == 2 and all(net.config.addition_embed_type is None for net in nets)


@contextmanager
def fused_by(pipe: Any, rule: Rule, delta: float = 0.7) -> Iterator[None]:
    """Inside, the two ControlNets of `pipe` are fused by `rule`, ChannelFusion at the end.

    Raises TypeError unless it `supports` the pipeline.
    """
    multiple = pipe.controlnet
    if not supports(pipe):
        raise TypeError("the authors' variants need two ControlNets of Stable Diffusion 1.5's kind")

    nets = list(multiple.nets)

    def forward(
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Sequence[Tensor],
        conditioning_scale: Sequence[float],
        *_args: Any,
        **_more: Any,
    ) -> tuple[list[Tensor], Tensor]:
        def exchange(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return couple(a, b, rule, delta) if rule.coupled else (a, b)

        first, second = coupled_residuals(
            nets,
            controlnet_cond,
            conditioning_scale,
            exchange,
            sample,
            timestep,
            encoder_hidden_states,
        )
        pairs = zip(first[:-1], second[:-1], strict=True)
        fused = [fuse(a, b, rule, delta) for a, b in pairs]
        middle = channel_fusion([first[-1], second[-1]], delta)
        if rule.unpacked:
            return [_one_half(t, 0) for t in fused], _one_half(middle, 1)
        return fused, middle

    multiple.__dict__["forward"] = forward
    try:
        yield
    finally:
        del multiple.__dict__["forward"]


def _one_half(batch: Tensor, number: int) -> Tensor:
    """One half of guidance's batch (0 unconditional, 1 conditional) in the place of both."""
    return batch.chunk(2)[number].repeat(2, 1, 1, 1)


def _inputs(block: Any, state: Tensor, embedded: Tensor, text: Tensor) -> dict[str, Tensor]:
    given = {"hidden_states": state, "temb": embedded}
    if getattr(block, "has_cross_attention", False):
        given["encoder_hidden_states"] = text
    return given


def _smooth(maps: Tensor, kernel: tuple[tuple[float, ...], ...]) -> Tensor:
    weights = torch.tensor(kernel, device=maps.device)
    weights = (weights / weights.sum()).expand(maps.shape[1], 1, 3, 3)
    with torch.autocast(maps.device.type, enabled=False):
        return F.conv2d(maps, weights, padding=1, groups=maps.shape[1])

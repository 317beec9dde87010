"""Looking for causes: what injection finds in each layer, and what PixFusion decides in it.

One call of both ControlNets on conflicting pairs, at a few noise levels of the true picture, with
the true object as the mask; nothing is sampled.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib_ccn.attention import KeyValueStore
from lib_ccn.foreground import resize_mask, token_grid
from lib_ccn.regions import Regions
from lib_ccn.rules import AVERAGED
from lib_ccn.unet_attention import capture_keys_values, inject_keys_values, self_attention_layers
from lib_ccn.winners import winners

from .pairs import CONFLICT, Batch
from .runner import Worker

TIMES = (900, 600, 300)
PAIRS = 24
Found = dict[str, dict[Any, float]]


@torch.inference_mode()
def look(
    worker: Worker, size: int, case: str = CONFLICT, pairs: int = PAIRS, delta: float = 0.7
) -> Found:
    """Means over pairs of a case and noise levels.

    Returns:
        By measure, by layer or residual: "keys", "values" (cosine of the two units' own, at the
        same token), "read" and "own" (cosine of what the background unit's foreground rows get,
        with and without injection, with what the foreground unit's rows get), "moved" (how far
        injection turns the residual inside the object, as 1 - cosine), "nearer" (by how much that
        brings it nearer to the foreground unit's), "won", "both", "lost" (share of the object's
        pixels that the foreground unit wins, that are averaged, that it loses), "outside" (share
        of the other pixels that it wins).
    """
    sums: dict[str, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for plan in worker.source.plans(case, pairs, size):
        batch = worker.source.load(plan)
        if batch.object_mask is None:
            continue
        for time in TIMES:
            _look(worker.pipe, batch, time, delta, sums)
    return {
        measure: {place: sum(v) / len(v) for place, v in places.items()}
        for measure, places in sums.items()
    }


def markdown(found: dict[str, Found]) -> str:
    """Two tables of what `look` found by case: by attention layer, by residual."""
    lines = [
        "### Inside the layers",
        "",
        f"{PAIRS} pairs at {len(TIMES)} noise levels, the true object as the mask; what stands in "
        "the columns is said in `benchmarks/fidelity/layers.py`.",
        "",
        "| pairs | attention layer | keys | values | own | read |",
        "|---" * 6 + "|",
    ]
    for case, measures in found.items():
        for layer in measures.get("keys", ()):
            cells = [f"{measures[name][layer]:.2f}" for name in ("keys", "values", "own", "read")]
            lines.append(f"| {case} | {layer} | " + " | ".join(cells) + " |")
    names = ("moved", "nearer", "won", "both", "lost", "outside")
    lines += ["", "| pairs | residual | " + " | ".join(names) + " |", "|---" * 8 + "|"]
    for case, measures in found.items():
        for place in measures.get("won", ()):
            cells = [f"{measures[name][place]:.2f}" for name in names]
            lines.append(f"| {case} | {place} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _look(pipe: Any, batch: Batch, time: int, delta: float, sums: Any) -> None:
    nets = pipe.controlnet.nets
    device, dtype = pipe.device, nets[0].dtype
    mask = batch.object_mask
    assert mask is not None
    inputs = noisy_inputs(pipe, batch, time)
    conditions = [c.to(device, dtype) for c in batch.conditions]
    layers = [self_attention_layers(net) for net in nets]
    latent = (inputs["sample"].shape[-2], inputs["sample"].shape[-1])

    def on_tokens(tokens: int) -> Tensor | None:
        grid = token_grid(latent, tokens)
        return None if grid is None else resize_mask(mask, grid)

    def regions_for(tokens: int | None, _batch: int) -> Regions | None:
        inside = on_tokens(tokens or latent[0] * latent[1])
        return None if inside is None else Regions(inside.cpu())

    def residuals(number: int) -> list[Tensor]:
        down, middle = nets[number](**inputs, controlnet_cond=conditions[number], return_dict=False)
        return [*down, middle]

    first_store: KeyValueStore = {}
    second_store: KeyValueStore = {}
    queries: list[dict[str, Tensor]] = [{}, {}]
    with _queries(layers[0], queries[0]), capture_keys_values(layers[0], first_store):
        first = residuals(0)
    with _queries(layers[1], queries[1]), capture_keys_values(layers[1], second_store):
        second = residuals(1)
    with inject_keys_values(layers[1], [first_store], regions_for):
        injected = residuals(1)

    for entry in layers[0]:
        inside = on_tokens(first_store[entry.name][0].shape[1])
        if inside is None or not inside.any():
            continue
        (k1, v1), (k2, v2) = first_store[entry.name], second_store[entry.name]
        q1, q2 = queries[0][entry.name], queries[1][entry.name]
        heads = int(entry.module.heads)
        target = _masked_attention(q1, k1, v1, inside, heads)
        sums["keys"][entry.layer].append(_cosine(k1, k2, inside))
        sums["values"][entry.layer].append(_cosine(v1, v2, inside))
        read = _masked_attention(q2, k1, v1, inside, heads)
        everything = torch.ones_like(inside)
        own = _masked_attention(q2, k2, v2, everything, heads)
        sums["read"][entry.layer].append(_cosine(read, target, inside))
        sums["own"][entry.layer].append(_cosine(own, target, inside))

    for number, (a, b, c) in enumerate(zip(first, second, injected, strict=True)):
        place = "middle" if number == len(first) - 1 else str(number)
        inside = resize_mask(mask, (a.shape[-2], a.shape[-1])).unflatten(1, a.shape[-2:])
        if not inside.any():
            continue
        tokens = [t.float().flatten(2).mT for t in (a, b, c)]
        flat = inside.flatten(1)
        sums["moved"][place].append(1 - _cosine(tokens[1], tokens[2], flat))
        nearer = _cosine(tokens[0], tokens[2], flat) - _cosine(tokens[0], tokens[1], flat)
        sums["nearer"][place].append(nearer)
        decided = winners([a, b], delta).cpu()
        for name, value in (("won", 0), ("both", AVERAGED), ("lost", 1)):
            sums[name][place].append(float((decided == value)[inside].float().mean()))
        sums["outside"][place].append(float((decided == 0)[~inside].float().mean()))


@torch.inference_mode()
def noisy_inputs(pipe: Any, batch: Batch, time: int) -> dict[str, Tensor]:
    """What a ControlNet is given at a noise level of the batch's true pictures."""
    device, dtype = pipe.device, pipe.unet.dtype
    pictures = batch.details.picture.to(device, dtype)
    latents = pipe.vae.encode(pictures * 2 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(batch.seeds[0]))
    times = torch.full((len(latents),), time, device=device)
    noisy = pipe.scheduler.add_noise(latents, noise.to(latents), times)
    text = pipe.encode_prompt(batch.prompts, device, 1, False)[0]
    return {"sample": noisy, "timestep": times, "encoder_hidden_states": text}


class _queries:  # noqa: N801 - reads as the context managers beside it
    """Keeps the queries of the layers while a ControlNet runs."""

    def __init__(self, layers: Any, kept: dict[str, Tensor]) -> None:
        self.layers, self.kept, self.handles = layers, kept, []

    def __enter__(self) -> None:
        for layer in self.layers:

            def keep(_m: Any, _a: Any, out: Tensor, name: str = layer.name) -> None:
                self.kept[name] = out

            self.handles.append(layer.module.to_q.register_forward_hook(keep))

    def __exit__(self, *_exc: object) -> None:
        for handle in self.handles:
            handle.remove()


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Plain attention to the keys in `keys` bool [B, N] alone: [B, N, C]."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    some = keys.any(1, keepdim=True)
    visible = (keys | ~some)[:, None, None].to(q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible).transpose(1, 2).flatten(2)


def _cosine(a: Tensor, b: Tensor, inside: Tensor) -> float:
    """Mean cosine of tokens [B, N, C] inside the mask [B, N], less each one's mean over tokens."""
    a, b = (t.float() - t.float().mean(1, keepdim=True) for t in (a, b))
    return float(F.cosine_similarity(a, b, dim=-1).cpu()[inside].mean())

"""Equation 9 in float64, and tensors to try it on."""

import torch

HEADS = 4


def equation_9(q2, k2, v2, k1, v1, mask, heads):
    """As the paper writes it: two masked attentions over all rows, blended by the mask."""

    def split(t):
        batch, tokens, channels = t.shape
        return t.double().reshape(batch, tokens, heads, channels // heads).permute(0, 2, 1, 3)

    def attend(keys, values, allowed):
        logits = split(q2) @ split(keys).mT / (q2.shape[-1] // heads) ** 0.5
        logits = logits + allowed.double().log()[:, None, None]
        top = logits.amax(-1, keepdim=True).clamp(min=-1e300)
        weights = (logits - top).exp()
        out = weights @ split(values) / weights.sum(-1, keepdim=True).clamp(min=1e-300)
        return out.permute(0, 2, 1, 3).flatten(2)

    foreground = attend(k1, v1, mask)
    keys, values = torch.cat((k2, k1), 1), torch.cat((v2, v1), 1)
    background = attend(keys, values, torch.cat((torch.ones_like(mask), ~mask), 1))
    return torch.where(mask[..., None], foreground, background)


def tensors(batch=2, tokens=30, channels=32, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (5, batch, tokens, channels)
    return [t.to(dtype) for t in torch.randn(shape, generator=generator)]


def random_mask(batch, tokens, fraction=0.3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, tokens, generator=generator) < fraction

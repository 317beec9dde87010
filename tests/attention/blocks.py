"""What a host's self-attention is to KV-Injection."""

import torch
import torch.nn.functional as F
from torch import nn


def own_softmax(q, k, v, mask):
    """A host's own attention function: torch's is not asked."""
    logits = q @ k.mT / q.shape[-1] ** 0.5
    logits = logits if mask is None else logits + mask
    return logits.softmax(-1) @ v


def asked_once(q, k, v, mask):
    """Forge, and A1111's optimisation "sdp"."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0, is_causal=False)


def upcast(q, k, v, mask):
    """A1111's "sdp" with the option to compute attention in float32."""
    return asked_once(q.float(), k.float(), v.float(), mask).to(q.dtype)


def in_stretches(q, k, v, mask):
    """Queries in two stretches, to save memory."""
    return torch.cat([asked_once(part, k, v, mask) for part in q.chunk(2, 2)], 2)


def row_by_row(q, k, v, mask):
    """Batch rows by themselves, as some kernels have a largest batch."""
    rows = zip(q.split(1), k.split(1), v.split(1), strict=True)
    return torch.cat([asked_once(*row, mask) for row in rows])


def heads_in_the_batch(q, k, v, mask):
    """Heads as rows of the batch."""
    return asked_once(*(t.flatten(0, 1) for t in (q, k, v)), mask).unflatten(0, q.shape[:2])


def with_a_mask(q, k, v, _mask):
    """A mask of the function's own, which hides nothing."""
    return asked_once(q, k, v, q.new_zeros(q.shape[2], k.shape[2]))


def with_a_second_question(q, k, v, mask):
    """Something else is attended to besides, as an adapter's image is."""
    return asked_once(q, k, v, mask) + 0 * asked_once(q, q, q, mask)


class LdmAttention(nn.Module):
    """The call that ldm, sgm and Forge share: context, value and mask are positional."""

    def __init__(self, channels, heads, function=own_softmax):
        super().__init__()
        self.heads = heads
        self.function = function
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x, context=None, value=None, mask=None, transformer_options=None):
        context = x if context is None else context
        q, k = self.to_q(x), self.to_k(context)
        v = self.to_v(context if value is None else value)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.to_out(self.function(q, k, v, mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attn1 = attention

    def forward(self, x, **kwargs):
        return self.attn1(x, **kwargs)


def untouched(module):
    return all(
        "forward" not in part.__dict__ and not part._forward_hooks and not part._forward_pre_hooks
        for part in module.modules()
    )

"""What a host's self-attention is to KV-Injection."""

from torch import nn


class LdmAttention(nn.Module):
    """The call that ldm, sgm and Forge share: context, value and mask are positional."""

    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x, context=None, value=None, mask=None, transformer_options=None):
        context = x if context is None else context
        q, k = self.to_q(x), self.to_k(context)
        v = self.to_v(context if value is None else value)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        logits = logits if mask is None else logits + mask
        return self.to_out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


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

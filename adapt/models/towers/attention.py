"""Attention with separate query, key, value and output projections.

`nn.MultiheadAttention` keeps q, k and v in one fused parameter, which a low-rank adapter cannot name; peft's own
handling of it applies the update of the output projection twice (peft 0.21.2). The split module computes the
same function with four `nn.Linear`s, and the original module can be restored from it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SplitAttention(nn.Module):
    """Self- or cross-attention, batch first: (n, t, d), (n, s, d), (n, s, d) -> (n, t, d).

    Takes and returns what `nn.MultiheadAttention` does with `need_weights=False`: a pair whose second part is None.
    """

    def __init__(self, width: int, heads: int, **factory) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, **factory)
        self.k_proj = nn.Linear(width, width, **factory)
        self.v_proj = nn.Linear(width, width, **factory)
        self.out_proj = nn.Linear(width, width, **factory)
        self.joined: Callable[[Tensor], tuple[Tensor, ...] | None] | None = None  # of one x; None: one by one

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        if need_weights:
            raise ValueError("SplitAttention does not return attention weights")
        own = self.joined(query) if self.joined and query is key and key is value else None
        projected = own or (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)  # (n, heads, t, d / heads)
        trained = torch.is_grad_enabled() and q.requires_grad and attn_mask is None
        if trained and q.device.type == "cpu" and q.dtype == torch.bfloat16:
            mixed = _Mixed.apply(q, k, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class _Mixed(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v, of which q, k and v alone are kept: the weights are computed again going back.

    On a CPU in bf16 the fused kernel's backward pass is 2 to 4 times slower than these products; in fp32 it is not.
    """

    @staticmethod
    def forward(ctx, q, k, v):
        # Products of strided tokens take twice the time of a copy and products of that; so does scaling the scores.
        q, k, v = (q * q.shape[-1] ** -0.5).contiguous(), k.contiguous(), v.contiguous()
        ctx.save_for_backward(q, k, v)
        return _weights(q, k) @ v

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        q, k, v = ctx.saved_tensors
        weights, grad = _weights(q, k), grad.contiguous()
        of_scores = torch._softmax_backward_data(grad @ v.transpose(-1, -2), weights, -1, weights.dtype)
        of_q = (of_scores @ k).mul_(q.shape[-1] ** -0.5)
        return of_q, of_scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ grad


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).softmax(dim=-1)


def split(attention: nn.MultiheadAttention) -> SplitAttention:
    """The same function with four separate projections; weights are copied, dtype and device kept."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if weight is None or bias is None or attention.bias_k is not None or attention.add_zero_attn:
        raise ValueError("only attention with one width, biases and no extra keys can be split")
    if not attention.batch_first or attention.dropout:
        raise ValueError("only batch-first attention without dropout can be split")
    new = SplitAttention(attention.embed_dim, attention.num_heads, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        for i, projection in enumerate((new.q_proj, new.k_proj, new.v_proj)):
            projection.weight.copy_(weight.chunk(3)[i])
            projection.bias.copy_(bias.chunk(3)[i])
        new.out_proj.load_state_dict(attention.out_proj.state_dict())
    return new.train(attention.training)


def split_all(tower: nn.Module) -> int:
    """Split the attention of every transformer block of an open_clip tower in place; returns how many.

    A pooler whose queries have another width than its keys (CoCa) stays as it is.
    """
    found = [m for m in tower.modules() if isinstance(getattr(m, "attn", None), nn.MultiheadAttention)]
    blocks = [m for m in found if m.attn.in_proj_weight is not None]
    for block in blocks:
        block.attn = split(block.attn)
    return len(blocks)


def call_qkv(tower: nn.Module) -> int:
    """Let timm's attention of EVA and BEiT call its fused `qkv` layer in place; returns how many blocks changed.

    With a bias for q and v alone they multiply by the layer's weight themselves, and an adapter on it would never
    run. Their own switch adds the bias afterwards: the same function.
    """
    blocks = [m for m in tower.modules() if getattr(m, "qkv_bias_separate", None) is False and m.q_bias is not None]
    for block in blocks:
        block.qkv_bias_separate = True
    return len(blocks)

"""The forward and backward pass of a LoRA on a linear layer, in the precision of its frozen weight.

    y = x W^T + b + s (x' A^T) B^T      x' is x with some entries dropped, s is alpha / rank / (1 - share dropped)

peft's own layer widens x to fp32 for A and B, one copy for each of q, k and v, and keeps the copies for the backward
pass. Here A and B are rounded to the precision of W for the products (s B is multiplied in fp32 first), W gets no
gradient, and x' is kept in the precision of x, with the (n, rank) product. A, B and their gradients stay in fp32. In
fp32 this is peft's arithmetic in another order.
"""

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.nn import functional as F


class LowRankLinear(Linear):
    """peft's LoRA layer, with the passes of this file while it is trained; everything else, as merging, is peft's."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        name, base = self.active_adapters[0], self.get_base_layer()
        plain = self.active_adapters == [name] and name in self.lora_A and not (self.lora_variant or args or kwargs)
        if not torch.is_grad_enabled() or not plain or self.disable_adapters or self.merged or self.lora_bias[name]:
            return super().forward(x, *args, **kwargs)
        dropout = self.lora_dropout[name]
        dropped, grown = drop(x, dropout.p) if dropout.training and getattr(dropout, "p", 0) else (None, 1.0)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return _LowRank.apply(x, dropped, base.weight, base.bias, a, b, self.scaling[name] * grown)


def drop(x: Tensor, share: float) -> tuple[Tensor, float]:
    """x with a random share of its entries zero, and what makes the mean right: 1 / (1 - share).

    On a CPU the share is a multiple of 2^-16: 16 random bits an entry are drawn ten times faster than torch's dropout
    draws, which would take a seventh of a step.
    """
    if x.device.type != "cpu" or share > 0.99:
        return F.dropout(x, share), 1.0
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    steps = round(share * 2**16)
    return x * (bits[: x.numel()].view(x.shape) >= steps - 2**15), 1 / (1 - steps / 2**16)


class _LowRank(torch.autograd.Function):
    """x (..., in), x' or None for x itself, W (out, in), b (out,) or None, A (r, in), B (out, r), s -> (..., out)."""

    @staticmethod
    def forward(ctx, x, dropped, weight, bias, a, b, scale):
        a, b = a.to(x.dtype), (b * scale).to(x.dtype)
        rows = x.flatten(0, -2)
        seen = rows if dropped is None else dropped.flatten(0, -2)
        inner = seen @ a.T
        out = F.linear(rows, weight, bias)
        out.addmm_(inner, b.T)
        ctx.save_for_backward(seen, inner, weight, a, b)
        ctx.scale, ctx.dropout = scale, dropped is not None
        return out.unflatten(0, x.shape[:-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        seen, inner, weight, a, b = ctx.saved_tensors
        shape = (*grad.shape[:-1], a.shape[1])
        grad = grad.flatten(0, -2)
        small = grad @ b
        of_a, of_b = (small.T @ seen).float(), (grad.T @ inner).float() * ctx.scale
        of_x = of_dropped = None
        if ctx.needs_input_grad[0]:
            of_x = grad @ weight
            if not ctx.dropout:
                of_x.addmm_(small, a)
            of_x = of_x.view(shape)
        if ctx.needs_input_grad[1]:
            of_dropped = (small @ a).view(shape)
        return of_x, of_dropped, None, None, of_a, of_b, None

"""The forward and backward pass of a LoRA on a linear layer, in the precision of its frozen weight.

    y = x W^T + b + s (x' A^T) B^T      x' is x with some entries dropped, s is alpha / rank / (1 - share dropped)

peft's own layer widens x to fp32 for A and B, one copy for each of q, k and v, and keeps the copies for the backward
pass. Here A and B are rounded to the precision of W for the products (s B is multiplied in fp32 first), W gets no
gradient, and x is kept in its own precision, which q, k and v share, with what was dropped of it, a byte an entry, and
the (n, rank) product. A, B and their gradients stay in fp32. In fp32 this is peft's arithmetic in another order.
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
        kept, grown = draw_kept(x, dropout.p) if dropout.training and getattr(dropout, "p", 0) else (None, 1.0)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return _LowRank.apply(x, kept, base.weight, base.bias, a, b, self.scaling[name] * grown)


def draw_kept(x: Tensor, share: float) -> tuple[Tensor, float]:
    """Which entries of x stay when a random share is dropped, bool of its shape, and what makes the mean right.

    On a CPU the share is a multiple of 2^-16: 16 random bits an entry are drawn ten times faster than torch's dropout
    draws, which would take a seventh of a step.
    """
    if x.device.type != "cpu" or share > 0.99 or torch.compiler.is_compiling():  # which knows no `random_`
        stays = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - share)
        return stays, 1 / (1 - share)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    steps = round(share * 2**16)
    return bits[: x.numel()].view(x.shape) >= steps - 2**15, 1 / (1 - steps / 2**16)


class _LowRank(torch.autograd.Function):
    """x (..., in), what A sees of it or None, W (out, in), b or None, A (r, in), B (out, r), s -> (..., out)."""

    @staticmethod
    def forward(ctx, x, kept, weight, bias, a, b, scale):
        a, b = a.to(x.dtype), (b * scale).to(x.dtype)
        x = x.contiguous()
        inner = _seen(x, kept) @ a.T
        out = F.linear(x, weight, bias)  # no view: some towers add to it in place
        out.flatten(0, -2).addmm_(inner, b.T)
        ctx.save_for_backward(x, kept, inner, weight, a, b)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, kept, inner, weight, a, b = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        small = grad @ b
        of_a, of_b = (small.T @ _seen(x, kept)).float(), (grad.T @ inner).float() * ctx.scale
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = grad @ weight
            if kept is None:
                of_x.addmm_(small, a)
            else:
                of_x += _seen(small @ a, kept)
            of_x = of_x.view(x.shape)
        return of_x, None, None, None, of_a, of_b, None


def _seen(x: Tensor, kept: Tensor | None) -> Tensor:
    """What A sees of x, (rows, in): the bits of an entry, or none, seven times as fast as a product with a bool."""
    if kept is None:
        return x.flatten(0, -2)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return (x.view(bits) & -kept.view(torch.int8).view(x.shape)).view(x.dtype).flatten(0, -2)

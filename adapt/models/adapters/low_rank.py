"""The forward and backward pass of a LoRA on a linear layer, in the precision of its frozen weight.

    y = x W^T + b + s (x' A^T) B^T      x' is x with some entries dropped, s is alpha / rank / (1 - share dropped)

peft's own layer widens x to fp32 for A and B, one copy for each of q, k and v, and keeps the copies for the backward
pass. Here A and B are rounded to the precision of W for the products (s B is multiplied in fp32 first), W gets no
gradient, and x is kept in its own precision, which q, k and v share, with what was dropped of it, a byte an entry, and
the (n, rank) product. A, B and their gradients stay in fp32. In fp32 this is peft's arithmetic in another order.
"""

from collections.abc import Sequence

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F


class LowRankLinear(Linear):
    """peft's LoRA layer, with the passes of this file while it is trained; everything else, as merging, is peft's."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        name, base = self.active_adapters[0], self.get_base_layer()
        if not torch.is_grad_enabled() or not self.is_plain(name) or args or kwargs:
            return super().forward(x, *args, **kwargs)
        dropout = self.lora_dropout[name]
        kept, grown = draw_kept(x, dropout.p) if dropout.training and getattr(dropout, "p", 0) else (None, 1.0)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return _LowRank.apply(x, kept, base.weight, base.bias, a, b, self.scaling[name] * grown)

    def is_plain(self, name: str) -> bool:
        """Whether the adapter of this name is the only one, on, not merged, and nothing but A and B."""
        plain = self.active_adapters == [name] and name in self.lora_A and not self.lora_variant
        return plain and not (self.disable_adapters or self.merged or self.lora_bias[name])


class JoinedQKV:
    """Query, key and value of the same tokens in one product, for a GPU, which starts fewer kernels then.

    The frozen weights of the three layers become parts of one, (3 out, in), which takes no memory beside them.
    """

    def __init__(self, layers: Sequence[LowRankLinear]) -> None:
        self.layers = tuple(layers)
        bases = [layer.get_base_layer() for layer in self.layers]
        self.weight = torch.cat([base.weight.data for base in bases])
        self.bias = torch.cat([base.bias.data for base in bases])
        for base, part in zip(bases, self.weight.chunk(3), strict=True):
            base.weight.data = part

    def __call__(self, x: Tensor) -> tuple[Tensor, ...] | None:
        """Tokens (..., in) -> three of (..., out); None where one by one is not the same, or nothing is trained."""
        name = self.layers[0].active_adapters[0]
        if not torch.is_grad_enabled() or not all(layer.is_plain(name) for layer in self.layers):
            return None
        if any(
            layer.lora_dropout[name].training and getattr(layer.lora_dropout[name], "p", 0) for layer in self.layers
        ):
            return None  # each drops other entries of x
        a, b = ([getattr(layer, part)[name].weight for layer in self.layers] for part in ("lora_A", "lora_B"))
        return _Joined.apply(x, self.weight, self.bias, self.layers[0].scaling[name], *a, *b).chunk(3, dim=-1)


def joined_qkv(layers: Sequence[nn.Module]) -> JoinedQKV | None:
    """Three linear layers as one, if all have a low-rank adapter of one rank and scale, and a bias."""
    found = [layer for layer in layers if isinstance(layer, LowRankLinear)]
    if len(found) != 3 or any(layer.get_base_layer().bias is None for layer in found):
        return None
    alike = {(layer.r[name], layer.scaling[name]) for layer in found for name in layer.active_adapters}
    return JoinedQKV(found) if len(alike) == 1 else None


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


class _Joined(torch.autograd.Function):
    """`_LowRank` of three layers that read the same x (..., in) and drop nothing: W (3 out, in), b (3 out,), s, then
    three A (r, in) and three B (out, r) -> (..., 3 out)."""

    @staticmethod
    def forward(ctx, x, weight, bias, scale, *matrices):
        a, b = torch.cat(matrices[:3]).to(x.dtype), (torch.block_diag(*matrices[3:]) * scale).to(x.dtype)
        x = x.contiguous()
        inner = x.flatten(0, -2) @ a.T
        out = F.linear(x, weight, bias)
        out.flatten(0, -2).addmm_(inner, b.T)
        ctx.save_for_backward(x, inner, weight, a, b)
        ctx.scale = scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, inner, weight, a, b = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        small = grad @ b
        of_a = (small.T @ x.flatten(0, -2)).float().chunk(3)
        of_b = (grad.T @ inner).float() * ctx.scale  # (3 out, 3 r), of which the blocks of the diagonal are B's
        of_b = [rows.chunk(3, dim=1)[place] for place, rows in enumerate(of_b.chunk(3))]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grad @ weight).addmm_(small, a).view(x.shape)
        return of_x, None, None, None, *of_a, *of_b


def _seen(x: Tensor, kept: Tensor | None) -> Tensor:
    """What A sees of x, (rows, in): the bits of an entry, or none, seven times as fast as a product with a bool."""
    if kept is None:
        return x.flatten(0, -2)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return (x.view(bits) & -kept.view(torch.int8).view(x.shape)).view(x.dtype).flatten(0, -2)

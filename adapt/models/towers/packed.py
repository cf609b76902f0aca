"""Vision transformers for frozen features on a CPU: the same blocks with weights laid out for its matrix units.

A packed block computes what the library's block computes, in fewer passes over memory: query, key and value are one
product, biases, activation and residual are added inside the products (oneDNN's post-operations), and the weights
stand in the order in which they are read. The rest of the tower is untouched, so that walks and hooks go on working.
It has no gradient. Layer scales and the factor of QuickGELU are folded into the weights in fp32, before rounding.
"""

import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS = 2304  # of one pass: more gains nothing and spills the caches; 8 images of a ViT-L/14, 32 of a ViT-B/32
QUICK = 1.702  # QuickGELU(x) = x * sigmoid(QUICK * x)


class _Names(NamedTuple):
    """Where a library keeps the parts of a pre-norm block."""

    norm1: str
    qkv: tuple[str, ...]
    out: str
    head_dim: Callable[[nn.Module], int]
    scale1: str
    norm2: str
    up: str
    activation: str
    down: str
    scale2: str


def _hugging(attention: str, out: str, norm: str, scale: str) -> _Names:
    qkv = tuple(f"{attention}.{name}_proj" for name in "qkv")
    mlp = ("mlp.fc1", "mlp.activation_fn", "mlp.fc2")
    return _Names(
        f"{norm}1", qkv, f"{attention}.{out}", attrgetter(f"{attention}.head_dim"), f"{scale}1.lambda1", f"{norm}2",
        *mlp, f"{scale}2.lambda1",
    )  # fmt: skip


CLIP, DINO = (
    _hugging("self_attn", "out_proj", "layer_norm", "none"),
    _hugging("attention", "o_proj", "norm", "layer_scale"),
)
DINO_BEFORE = _Names(  # up to transformers 5.17, at least
    "norm1", tuple(f"attention.attention.{name}" for name in ("query", "key", "value")), "attention.output.dense",
    attrgetter("attention.attention.attention_head_size"), "layer_scale1.lambda1", "norm2",
    "mlp.fc1", "mlp.activation", "mlp.fc2", "layer_scale2.lambda1",
)  # fmt: skip
BLOCKS = {
    "ResidualAttentionBlock": _Names(
        "ln_1", ("attn.q_proj", "attn.k_proj", "attn.v_proj"), "attn.out_proj",
        lambda block: block.attn.q_proj.in_features // block.attn.heads,
        "ls_1.gamma", "ln_2", "mlp.c_fc", "mlp.gelu", "mlp.c_proj", "ls_2.gamma",
    ),
    "Block": _Names(
        "norm1", ("attn.qkv",), "attn.proj", attrgetter("attn.head_dim"),
        "ls1.gamma", "norm2", "mlp.fc1", "mlp.act", "mlp.fc2", "ls2.gamma",
    ),
    "CLIPEncoderLayer": CLIP,
    "MetaClip2EncoderLayer": CLIP,
    "SiglipEncoderLayer": CLIP,
    "Dinov2Layer": DINO,
    "Dinov2WithRegistersLayer": DINO,
}  # fmt: skip


class PackedBlock(nn.Module):
    """(n, t, d) -> (n, t, d) of one block; with `first_only` (n, 1, d), of the first token alone."""

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        names = BLOCKS[type(block).__name__]
        if names is DINO and not hasattr(block.attention, "q_proj"):
            names = DINO_BEFORE
        qkv = [_part(block, name) for name in names.qkv]
        out, up, down = (_part(block, name) for name in (names.out, names.up, names.down))
        self.act, self.algorithm, factor = _activation(_part(block, names.activation))
        self.norms = [_norm(_part(block, name)) for name in (names.norm1, names.norm2)]
        self.head_dim = names.head_dim(block)
        self.qkv = _pack(torch.cat([m.weight for m in qkv]), torch.cat([_bias(m) for m in qkv]), dtype)
        self.out = _pack(*_scaled(out, _scale(block, names.scale1)), dtype)
        self.up = _pack(up.weight * factor, _bias(up) * factor, dtype)
        weight, bias = _scaled(down, _scale(block, names.scale2))
        self.down = _pack(weight / factor, bias, dtype)
        self.norm2 = nn.Identity()  # what leaves the second norm passes through it, for those who hook that
        self.first_only, self.tokens = False, 0

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Tensor:
        if any(isinstance(value, Tensor) for value in (*others, *options.values())):
            raise ValueError("a packed block takes no mask")
        n, self.tokens = x.shape[:2]
        normed = _layer_norm(x, self.norms[0])
        q, k, v = _linear(normed, self.qkv).view(n, self.tokens, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        if self.first_only:
            q, x = q[:, :, :1], x[:, :1]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = _linear_add(mixed, self.out, x)
        hidden = _linear(self.norm2(_layer_norm(x, self.norms[1])), self.up, self.act, self.algorithm)
        return _linear_add(hidden, self.down, x)


def pack(tower: nn.Module, dtype: torch.dtype) -> str:
    """Exchange the blocks of a frozen fp32 tower on the CPU in place; returns "", or why that cannot be done.

    Every block is first packed in fp32 and compared with the original on random tokens, so a block that a library has
    changed (another order, a norm more) is a reason and never another feature.
    """
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if next(tower.parameters()).device.type != "cpu":
        return "weights are packed for a CPU only"
    if hasattr(tower, "peft_config"):
        return "the tower has an adapter"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this processor has no bf16 instructions"
    places = [
        (parent, name, block)
        for parent in tower.modules()
        for name, block in parent.named_children()
        if type(block).__name__ in BLOCKS
    ]
    if not places:
        return f"the blocks of {type(tower).__name__} are none of {', '.join(BLOCKS)}"
    made = []
    for _, _, block in places:
        try:
            error = _difference(block)
            made.append(PackedBlock(block, dtype))
        except (AttributeError, RuntimeError, TypeError, ValueError) as problem:
            return f"a {type(block).__name__} has other parts than are known ({problem})"
        if not error < 1e-4:
            return f"a packed {type(block).__name__} would give other tokens (relative difference {error:.1g})"
    for (parent, name, _), block in zip(places, made, strict=True):
        setattr(parent, name, block)
    return ""


def packed_blocks(tower: nn.Module) -> list[PackedBlock]:
    return [module for module in tower.modules() if isinstance(module, PackedBlock)]


def second_norm(block: nn.Module) -> nn.Module | None:
    """The module whose output the block's MLP gets, of a block that is known or packed; else None."""
    if isinstance(block, PackedBlock):
        return block.norm2
    names = BLOCKS.get(type(block).__name__)
    return None if names is None else _part(block, names.norm2)


def rows_of_a_pass(tokens: int) -> int:
    """Images of one pass: a power of two, so that the usual batches are whole passes."""
    return 1 << max(0, (TOKENS // tokens).bit_length() - 1)


def in_passes(encode: Callable[[Tensor], dict[str, Tensor]], pixels: Tensor, rows: int) -> dict[str, Tensor]:
    """`encode` on exactly `rows` images at a time, the last ones filled up with blanks.

    Which kernel multiplies, and so the last bits of a feature, may depend on the number of rows: here they do not
    depend on how a caller cuts its images into batches.
    """
    found = []
    for part in pixels.split(rows):
        blank = part.new_zeros(rows - len(part), *part.shape[1:])
        made = encode(torch.cat([part, blank]) if len(blank) else part)
        found.append({name: value[: len(part)] for name, value in made.items()})
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


@torch.no_grad()
def _difference(block: nn.Module) -> float:
    """Between what the block packed in fp32 and the block itself add to small random tokens, relative to that."""
    packed = PackedBlock(block, torch.float32)
    width = len(packed.norms[0][0])
    tokens = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0)) * 0.1
    masks = [None] * ("attention_mask" in inspect.signature(block.forward).parameters)  # some want to be told of none
    expected = block(tokens, *masks)
    if not isinstance(expected, Tensor):
        raise TypeError("it returns more than its tokens")
    scale = (expected - tokens).norm() + 0.01 * expected.norm()  # a layer scale may make the addition tiny
    return float((packed(tokens) - expected).norm() / scale)


def _part(block: nn.Module, name: str) -> nn.Module:
    return attrgetter(name)(block)


def _pack(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), TOKENS)
    return reordered, bias.detach().to(dtype).contiguous()


def _linear(x: Tensor, layer: tuple[Tensor, Tensor], act: str = "none", algorithm: str = "") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, *layer, act, [], algorithm)


def _linear_add(x: Tensor, layer: tuple[Tensor, Tensor], other: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, *layer, "add")


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight.detach().float(), norm.bias.detach().float(), norm.eps


def _layer_norm(x: Tensor, norm: tuple[Tensor, Tensor, float]) -> Tensor:
    """In fp32 inside, rounded once: torch takes bf16 tokens with fp32 weights."""
    weight, bias, eps = norm
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias


def _scaled(layer: nn.Linear, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    weight, bias = layer.weight, _bias(layer)
    return (weight, bias) if scale is None else (weight * scale[:, None], bias * scale)


def _scale(block: nn.Module, name: str) -> Tensor | None:
    module = getattr(block, name.partition(".")[0], nn.Identity())
    return None if isinstance(module, nn.Identity) else attrgetter(name.partition(".")[2])(module)


def _activation(module: nn.Module) -> tuple[str, str, float]:
    """oneDNN's name and algorithm, and the factor by which its input is multiplied and its output is too large."""
    kind = type(module).__name__
    if kind.startswith("QuickGELU"):
        return "swish", "", QUICK  # swish(QUICK * x) = QUICK * QuickGELU(x)
    if kind in ("GELUTanh", "PytorchGELUTanh") or getattr(module, "approximate", "") == "tanh":
        return "gelu", "tanh", 1.0
    if kind in ("GELU", "GELUActivation"):
        return "gelu", "none", 1.0
    raise TypeError(f"activation {kind}")

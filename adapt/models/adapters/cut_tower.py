"""A tower cut in two for training: blocks below every adapter, which are frozen, and the rest up to the logit.

Whatever lies below the first adapted block is run without gradient, or not at all: its tokens may come from a cache.
Of the last block only the class token is computed where nothing else of it is read. The functions are the library's
own blocks, so the features are those of the backbone. Only open_clip's own vision transformers are cut.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapt.errors import Refusal
from adapt.models.heads.linear import classes_of, trained_logits
from adapt.models.towers.backbones import Backbone
from adapt.models.towers.tokens import bare

W = TypeVar("W", bound="Whole")


class TrainedPart(nn.Module):
    """Pixels (n, 3, h, w), or tokens (n, t * d) as they leave the first `start` blocks -> `trained_logits`.

    With `recompute` the adapted blocks keep their inputs only and are run once more in the backward pass. Parameters
    are those of `backbone` and `head`, under the same names as in a detector.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, recompute: bool = False) -> None:
        super().__init__()
        self.backbone, self.head, self.recompute = backbone, head, recompute
        blocks = self.visual.transformer.resblocks
        below = [m for name, m in self.visual.named_children() if name not in ("transformer", "ln_post")]
        free = not any(p.requires_grad for m in below for p in m.parameters())
        trained = [any(p.requires_grad for p in block.parameters()) for block in blocks]
        self.start = [*trained[:-1], True].index(True) if free else 0  # adapted norms may stand before the blocks
        self.width: int = self.visual.positional_embedding.shape[-1]
        self.tokens = len(self.visual.positional_embedding)

    @property
    def visual(self) -> nn.Module:
        return bare(self.backbone.tower)

    def lower(self, pixels: Tensor) -> Tensor:
        """Tokens (n, t, d) behind the first `start` blocks, in the precision of the tower."""
        normalised = (pixels - self.backbone.mean).div_(self.backbone.std)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.start == 0):
            tokens = self.visual._embeds(normalised.to(self.backbone.dtype))
            for block in self.visual.transformer.resblocks[: self.start]:
                tokens = block(tokens)
        return tokens

    def upper(self, tokens: Tensor) -> Tensor:
        """Features (n, dim) float32 of tokens (n, t, d)."""
        *blocks, last = self.visual.transformer.resblocks[self.start :]
        for block in blocks:
            tokens = self._run(block, tokens)
        pooled, _ = self.visual._pool(self._run(_FirstToken(last), tokens))
        return (pooled @ self.visual.proj if self.backbone.layer == "proj" else pooled).float()

    def _run(self, block: Any, tokens: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, tokens, use_reentrant=False)
        return block(tokens)

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.ndim == 4:
            tokens = self.lower(inputs)
        else:
            tokens = inputs.unflatten(1, (self.tokens, self.width)).to(self.backbone.dtype)
        return trained_logits(self.head, self.upper(tokens))


class _FirstToken:
    """A block of open_clip for its first token alone: (n, t, d) -> (n, 1, d)."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, tokens: Tensor) -> Tensor:
        block, normed = self.block, self.block.ln_1(tokens)
        first = tokens[:, :1] + block.ls_1(block.attn(normed[:, :1], normed, normed)[0])
        return first + block.ls_2(block.mlp(block.ln_2(first)))


class Uncut(nn.Module):
    """Pixels (n, 3, h, w) -> class logits (n, classes), of a tower that cannot be cut; parameters as of a detector."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pixels: Tensor) -> Tensor:
        return trained_logits(self.head, self.backbone(pixels))


class Whole(Protocol):
    """A backbone and a head, as a detector has them."""

    @property
    def backbone(self) -> Backbone: ...

    @property
    def head(self) -> nn.Module: ...


def trained_part(detector: W, cached: bool = False, recompute: bool = False) -> "TrainedPart | Uncut | W":
    """`TrainedPart` of a detector with adapters; where its tower cannot be cut the detector itself, or, if its head
    has more than two classes, `Uncut`.

    That is refused where tokens shall be `cached`, or activations recomputed; so is a cache of nothing.
    """
    backbone = detector.backbone
    why = _uncut(backbone)
    if why and (cached or recompute):
        flag = "--cache_prefix" if cached else "--checkpoint_activations"
        raise Refusal(f"{flag}: {backbone.name}, layer {backbone.layer}: {why}; leave the flag out")
    if why:
        return Uncut(backbone, detector.head) if classes_of(detector.head) else detector
    part = TrainedPart(backbone, detector.head, recompute)
    if cached and not 0 < part.start < backbone.depth:
        raise Refusal(
            f"--cache_prefix: no block of {backbone.name} lies below the adapters: give --last_blocks, less than "
            f"{backbone.depth}"
        )
    return part


def _uncut(backbone: Backbone) -> str:
    """Why the tower cannot be cut, "" if it can."""
    visual = bare(backbone.tower)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", ())
    if not blocks or {type(block).__name__ for block in blocks} != {"ResidualAttentionBlock"}:
        return "only open_clip's own vision transformers can be cut between blocks"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "its feature is not the class token"
    if backbone.layer not in ("last", "proj"):
        return "only the layers last and proj end in the class token of the last block"
    return ""


class Prefix:
    """The frozen blocks as an encoder for the cache of features: (n, t * d) tokens behind them, in their precision."""

    def __init__(self, part: TrainedPart) -> None:
        self.part = part
        self.name, self.layer = part.backbone.name, f"tokens{part.start}"
        self.preprocess, self.device = part.backbone.preprocess, part.backbone.device

    def encode(self, pixels: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        return {layer: self.part.lower(pixels).flatten(1) for layer in layers}

    def identity(self, layer: str) -> dict[str, object]:
        """What decides the tokens: the frozen weights, never the adapters above."""
        decides = {key: value for key, value in self.part.backbone.fingerprint.items() if key not in ("name", "layer")}
        return decides | {"layer": layer, "precision": str(self.part.backbone.dtype).removeprefix("torch.")}

    def eval(self) -> "Prefix":
        self.part.eval()
        return self

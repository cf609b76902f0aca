"""A tower cut in two for training: blocks below every adapter, which are frozen, and the rest up to the logit.

Whatever lies below the first adapted block is run without gradient, or not at all: its tokens may come from a cache.
Of the last block of open_clip's own transformers only the class token is computed where nothing else of it is read.
The functions are the library's own blocks, in the library's own order, and a first image must give the backbone's own
feature: so a tower that does more between its blocks, in this version of its library or another, is not cut.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapt.errors import Refusal
from adapt.models.heads.linear import classes_of, trained_logits
from adapt.models.towers.attention import SplitAttention
from adapt.models.towers.backbones import PLACE, Backbone
from adapt.models.towers.tokens import Cut, bare
from adapt.text import one_line

W = TypeVar("W", bound="Whole")
SAME = {torch.float32: 1e-4}  # relative difference of a feature that is rounded elsewhere; 0.03 with fewer bits


class TrainedPart(nn.Module):
    """Pixels (n, 3, h, w), or tokens (n, t * d) as they leave the first `start` blocks -> `trained_logits`.

    With `recompute` the adapted blocks keep their inputs only and are run once more in the backward pass. With
    `compiled` what comes after the first `start` blocks is one graph of torch.compile while it is trained. Parameters
    are those of `backbone` and `head`, under the same names as in a detector. Put the backbone where it is trained
    before. Raises `Refusal` where its tower cannot be cut.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, recompute: bool = False, compiled: bool = False) -> None:
        super().__init__()
        self.backbone, self.head, self.recompute = backbone, head, recompute
        self.cut, training = _cut_of(backbone), backbone.training
        backbone.eval()  # without dropout
        try:
            error = self._look()
        except torch.OutOfMemoryError:  # says nothing of the tower
            raise
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as problem:
            raise _cannot(
                backbone, f"tokens do not simply run through its blocks ({one_line(str(problem), 200)})"
            ) from problem
        finally:
            backbone.train(training)
        if not error <= SAME.get(backbone.dtype, 0.03):
            raise _cannot(
                backbone, f"cut between its blocks it gives another feature (relative difference {error:.2g})"
            )

        self._compiled = torch.compile(self._judge, fullgraph=True) if compiled else None

    def _look(self) -> float:
        """Show the backbone one image of noise and note what its blocks are given; returns how far the feature of the
        cut tower is from the backbone's own, relative to that."""
        entered: list[tuple[Tensor, tuple, dict[str, Any]]] = []

        def note(_: nn.Module, args: tuple, options: dict[str, Any]) -> None:
            entered.append((args[0], args[1:], options))

        noise = torch.rand(1, *self.backbone.preprocess.shape, generator=torch.Generator().manual_seed(0)) * 255
        hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in self.blocks]
        try:
            with torch.enable_grad():
                feature = self.backbone(noise.to(self.backbone.device)).detach()
        finally:
            for hook in hooks:
                hook.remove()
        free = sum(not tokens.requires_grad for tokens, _, _ in entered)  # blocks that nothing trained stands before
        self.start = max(free - 1, 0)
        self._others = [(args, options) for _, args, options in entered]  # rotary positions: the same for all images
        tokens = entered[self.start][0].detach()
        self.tokens, self.width = tokens.shape[1:]
        with torch.no_grad():
            return float((self.upper(tokens) - feature).norm() / feature.norm())

    @property
    def visual(self) -> nn.Module:
        return bare(self.backbone.tower)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.visual.get_submodule(self.cut.blocks))

    def lower(self, pixels: Tensor) -> Tensor:
        """Tokens (n, t, d) behind the first `start` blocks, in the precision of the tower."""
        normalised = (pixels - self.backbone.mean).div_(self.backbone.std)
        hook = self.blocks[self.start].register_forward_pre_hook(_leave)
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.start == 0):
                self.visual(normalised.to(self.backbone.dtype))
        except _Entered as entered:
            return entered.tokens
        finally:
            hook.remove()
        raise RuntimeError(f"{self.backbone.name} did not come to block {self.start + 1}")

    def upper(self, tokens: Tensor) -> Tensor:
        """Features (n, dim) float32 of tokens (n, t, d)."""
        blocks: list[Callable[..., Any]] = [*self.blocks]
        if self.backbone.first_pools and type(blocks[-1]).__name__ == "ResidualAttentionBlock":
            blocks[-1] = partial(_first_token, blocks[-1])
        for block, (args, options) in list(zip(blocks, self._others, strict=True))[self.start :]:
            tokens = self._run(block, tokens, *args, **options)
        last, proj = self.cut.end(self.visual, tokens)
        return (proj if self.backbone.layer == "proj" and proj is not None else last).float()

    def _run(self, block: Callable[..., Any], tokens: Tensor, *args: Any, **options: Any) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            found = checkpoint(block, tokens, *args, use_reentrant=False, **options)
        else:
            found = block(tokens, *args, **options)
        return found[0] if isinstance(found, tuple) else found

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.ndim == 4:
            tokens = self.lower(inputs)
        else:
            tokens = inputs.unflatten(1, (self.tokens, self.width)).to(self.backbone.dtype)
        if self._compiled is None or not torch.is_grad_enabled():
            return self._judge(tokens)
        torch._dynamo.maybe_mark_dynamic(tokens, 0)  # at once: a resumed run must compile what the whole run did
        try:
            return self._compiled(tokens)
        except torch._dynamo.exc.TorchDynamoException as error:
            why = one_line(str(error), 200)
            raise Refusal(
                f"--compile: {self.backbone.name}: torch.compile failed ({why}); leave the flag out"
            ) from error

    def _judge(self, tokens: Tensor) -> Tensor:
        return trained_logits(self.head, self.upper(tokens))


class _Entered(Exception):
    """Ends a forward pass before a block."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens


def _leave(_: nn.Module, args: tuple) -> None:
    raise _Entered(args[0])


def _first_token(block: nn.Module, tokens: Tensor, **_: None) -> Tensor:
    """A block of open_clip, without a mask, for its first token alone: (n, t, d) -> (n, 1, d)."""
    normed = block.ln_1(tokens)
    first = tokens[:, :1] + block.ls_1(block.attn(normed[:, :1], normed, normed)[0])
    return first + block.ls_2(block.mlp(block.ln_2(first)))


def _cut_of(backbone: Backbone) -> Cut:
    if backbone.cut is None:
        raise _cannot(backbone, "it has no list of blocks that tokens run through")
    if backbone.layer not in ("last", "proj"):
        raise _cannot(backbone, "only the layers last and proj read what leaves the last block")
    return backbone.cut


def _cannot(backbone: Backbone, why: str) -> Refusal:
    return Refusal(f"{backbone.name}, layer {backbone.layer}: {why}; leave the flag out")


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


def join_qkv(backbone: Backbone) -> int:
    """Have attention of open_clip's towers that has adapters on q, k and v multiply by all three at once; returns in
    how many blocks. For a GPU: a CPU has no kernels to start, and last bits would change."""
    from adapt.models.adapters.low_rank import joined_qkv  # peft takes seconds, and is not here without adapters

    found = 0
    for attention in backbone.tower.modules():
        if isinstance(attention, SplitAttention):
            attention.joined = joined_qkv((attention.q_proj, attention.k_proj, attention.v_proj))
            found += attention.joined is not None
    return found


def trained_part(
    detector: W, cached: bool = False, recompute: bool = False, compiled: bool = False
) -> "TrainedPart | Uncut | W":
    """`TrainedPart` of a detector with adapters; where its tower cannot be cut the detector itself, or, if its head
    has more than two classes, `Uncut`.

    That is refused where tokens shall be `cached`, activations recomputed or passes `compiled`; so is a cache of
    nothing.
    """
    backbone = detector.backbone
    if backbone.device.type == "cuda":
        join_qkv(backbone)
    try:
        part = TrainedPart(backbone, detector.head, recompute, compiled)
    except Refusal as why:
        asked = {"--cache_prefix": cached, "--checkpoint_activations": recompute, "--compile": compiled}
        if any(asked.values()):
            raise Refusal(f"{next(flag for flag, given in asked.items() if given)}: {why}") from why
        return Uncut(backbone, detector.head) if classes_of(detector.head) else detector
    if cached and not 0 < part.start < backbone.depth:
        raise Refusal(
            f"--cache_prefix: no block of {backbone.name} lies below the adapters: give --last_blocks, less than "
            f"{backbone.depth}"
        )
    return part


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
        decides = {key: value for key, value in self.part.backbone.fingerprint.items() if key not in (*PLACE, "layer")}
        return decides | {"layer": layer, "precision": str(self.part.backbone.dtype).removeprefix("torch.")}

    def eval(self) -> "Prefix":
        self.part.eval()
        return self

"""Image encoders behind one name: `LIBRARY:MODEL[@WEIGHTS]`.

    tiny                                             the embedded CLIP of adapt/embedded (runs anywhere)
    open_clip:ViT-L-14@datacomp_xl_s13b_b90k         a tag of open_clip; from the hub or its cache
    open_clip:ViT-L-14[@TAG]@FILE.pt                 a checkpoint of training that began from TAG (also .pth, .bin,
                                                     .safetensors); with a merged LoRA, too
    open_clip:hf-hub:ORG/NAME                        a repository on the hub
    open_clip:local-dir:FOLDER                       open_clip_config.json + open_clip_model.safetensors
    transformers:ORG/NAME or transformers:FOLDER     CLIP, SigLIP, DINOv2, DINOv3... with preprocessor_config.json
    timm:NAME.TAG                                    weights of timm's table, from the hub or its cache (no .TAG: the
                                                     first one of timm's)
    timm:hf-hub:ORG/NAME                             a repository with timm's config.json and model.safetensors
    timm:NAME@FILE.safetensors                       with FILE.json beside it (timm's own config format; also .pt...)
    timm:NAME.TAG@FILE.safetensors                   configured as TAG of timm's table is
    open_clip:ViT-B-32@random, timm:NAME@random      random weights: only ever under this name

ORG/NAME@REVISION pins a repository of timm: and transformers: to a branch, a tag or a commit. The commit that was
taken is in `Backbone.fingerprint`, and so in the record of a run.

Weights never travel without their preprocessing: size, mean, std and interpolation come from the same place as the
weights, and a model whose weights are missing is refused, never initialised at random.

A layer is one string, of parts joined by `+` whose features are concatenated (2402.19091 joins blocks so):

    proj                    the projected embedding, which is compared with texts
    last                    next to last: the pooled feature (class token, mean or attention pooling) before the
                            projection, after the final norm
    block4                  class token after 4 blocks; mean over the positions where there is no class token
    last_mean, block4_mean  mean of the patch tokens (of the last ones after the final norm); registers are left out
    last_both, block4_both  class token (for `last`: the pooled feature) and patch mean, concatenated
    last_tokens, block4_tokens  all patch tokens, concatenated: long, see `Backbone.tokens`
    block4_norm2            class token inside block 4, behind its second norm and before its MLP; of the plain blocks
                            of CLIP, DINOv2 and timm's vision transformers (packed.BLOCKS)
"""

import contextlib
import hashlib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from adapt.data.preprocess import Geometry, Preprocess, Resizer
from adapt.errors import Refusal
from adapt.models.towers.attention import call_qkv
from adapt.models.towers.open_clip import load_open_clip
from adapt.models.towers.packed import PackedBlock, in_passes, pack, packed_blocks, rows_of_a_pass, second_norm
from adapt.models.towers.timm import load_timm
from adapt.models.towers.tokens import End, Loaded, Resize, Tokens, bare
from adapt.models.towers.transformers import load_transformers

TINY = Path(__file__).parents[2] / "embedded" / "tiny"
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
AUTHORS = "authors"  # whose preprocessing a published detector has
PLACE = ("name", "commit")  # of a fingerprint: where the weights were found, which decides no feature
PART = re.compile(r"(?:(?P<proj>proj)|(?:last|block(?P<block>[1-9][0-9]*))(?:_(?P<how>mean|both|tokens|norm2))?)")
COMPLETE = ("onnx", "torchscript", "tiny_ladeda")  # networks in a detector's folder, see networks.py
LARGEST = 2048  # side of an image in pixels: 22,000 tokens of a ViT-L/14
Precision = Literal["auto", "fp32", "bf16"]
Way = Literal["auto", "plain", "packed"]


class Fingerprint(TypedDict):
    """What decides features, beside an adapter and the precision; `name` and `commit` say where the weights were."""

    name: str
    commit: NotRequired[str]  # of the hub's repository
    layer: str
    weights: str  # SHA-256
    preprocess: dict[str, object]
    activation: str


class Backbone(nn.Module):
    """Pixels (n, 3, size, size) uint8 or float in 0..255 -> features (n, dim) float32, not normalised.

    `layer` says which features (see above). The tower is frozen; adapters are added by adapt.models.adapters.lora.
    """

    mean: Tensor  # (3, 1, 1), in 0..255, as is `std`
    std: Tensor

    def __init__(
        self, name: str, loaded: Loaded, layer: str, geometry: Geometry | None = None, size: int | None = None
    ) -> None:
        super().__init__()
        self.name, self.layer, self.depth = name, layer, loaded.depth
        self.preprocess = replace(loaded.preprocess, geometry=geometry) if geometry else loaded.preprocess
        self.tower = loaded.tower.requires_grad_(False).eval()
        weights = weights_digest(self.tower)  # as they were published: what is interpolated follows from the size
        if size is not None and size != self.preprocess.size:
            self._resize(loaded.resize, size)
        self._walk, self._has_proj = loaded.walk, loaded.has_proj
        self.first_pools, self.cut = loaded.first_pools, loaded.cut
        self._packed: tuple[PackedBlock, ...] = ()  # see `for_features`
        self.register_buffer("mean", torch.tensor(loaded.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(loaded.std).view(3, 1, 1) * 255, persistent=False)
        self.fingerprint: Fingerprint = {
            "name": name,
            "layer": layer,
            "weights": weights,
            "preprocess": {**self.preprocess.facts(), "mean": list(loaded.mean), "std": list(loaded.std)},
            "activation": _activation(self.tower),  # as built: the weights alone do not say which they need
        }
        if loaded.commit:
            self.fingerprint["commit"] = loaded.commit
        with torch.no_grad():
            self.dim = self(self._blank()).shape[-1]

    def _resize(self, resize: Resize | None, size: int) -> None:
        """Set the tower to images of another size; the margin that is cropped away grows or shrinks with it."""
        own = self.preprocess
        if resize is None:
            raise Refusal(f"--size {size}: {self.name} takes images of {own.size} px alone; leave the flag out")
        if size % resize.patch or not resize.patch <= size <= LARGEST:
            near = min(max(round(size / resize.patch), 1), LARGEST // resize.patch) * resize.patch
            raise Refusal(
                f"--size {size}: the patches of {self.name} have {resize.patch} px; give a multiple, as {near}"
            )
        resize.to(self.tower, size)
        self.preprocess = replace(own, size=size, shortest=round(own.shortest * size / own.size))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encode(pixels, [self.layer])[self.layer]

    def layers(self) -> tuple[str, ...]:
        """The parts that a layer may be made of: block1, block2..., last, and proj where there is one."""
        blocks = (f"block{k}" for k in range(1, self.depth + 1))
        return (*blocks, "last", *(["proj"] if self._has_proj else []))

    def encode(self, pixels: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Features (n, d) float32 of any number of layers from one pass, which ends behind the last block needed."""
        parts = {layer: [self._part(part, layer) for part in layer.split("+")] for layer in layers}
        if not self._packed:
            return self._encode(pixels, parts)
        return in_passes(lambda batch: self._encode(batch, parts), pixels, rows_of_a_pass(self._packed[0].tokens))

    def _encode(self, pixels: Tensor, parts: dict[str, list[re.Match[str]]]) -> dict[str, Tensor]:
        every = [part for found in parts.values() for part in found]
        first = self.first_pools and not any(part["how"] or int(part["block"] or 0) == self.depth for part in every)
        with self._second_norms(every) as normed:
            states, end = self._tokens(pixels, every, first)
        return {
            layer: torch.cat([self._feature(part, states, end, normed).float() for part in found], dim=-1)
            for layer, found in parts.items()
        }

    def patches(self, pixels: Tensor) -> list[Tensor]:
        """Patch tokens in their places (n, d, s, s) float32, for each part of `layer`, whatever it pools.

        Side s differs between the stages of a convolutional tower. Refuses `proj`, which has no places.
        """
        parts = [self._part(part, self.layer) for part in self.layer.split("+")]
        if not self.depth:
            raise Refusal(f"{self.name} is a complete network: it has no patches that are known")
        if any(part["proj"] or part["how"] == "norm2" for part in parts):
            raise Refusal(f"layer {self.layer!r} has no places; use last or block1 to block{self.depth}")
        states, end = self._tokens(pixels, parts)
        found = [states[int(part["block"])].patches if part["block"] else end.patches for part in parts]
        sides = [math.isqrt(tokens.shape[1]) for tokens in found]
        if any(side * side != tokens.shape[1] for side, tokens in zip(sides, found, strict=True)):
            raise Refusal(f"layer {self.layer!r} of {self.name}: its tokens are no square grid; choose other blocks")
        return [tokens.transpose(1, 2).unflatten(2, (s, s)).float() for s, tokens in zip(sides, found, strict=True)]

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """Patch tokens (n, p, dim) float32 at the backbone's layer, in the space of its features; row by row.

        Refuses a layer of several parts and `proj`, and a tower whose feature has another width than its patches.
        """
        part = self._part(self.layer, self.layer) if "+" not in self.layer else None
        if part is None or part["proj"] or part["how"] in ("both", "tokens", "norm2"):
            raise Refusal(f"layer {self.layer!r} has no patch tokens of its own: only last, blockK and their _mean do")
        states, end = self._tokens(pixels, [part])
        tokens = (states[int(part["block"])].patches if part["block"] else end.patches).float()
        if tokens.shape[-1] != self.dim:
            raise Refusal(f"{self.name}: patch tokens of width {tokens.shape[-1]}, features of {self.dim}")
        return tokens

    def _tokens(
        self, pixels: Tensor, parts: Sequence[re.Match[str]], first_only: bool = False
    ) -> tuple[dict[int, Tokens], End | None]:
        if self._packed:
            self._packed[-1].first_only = first_only  # of the last block nothing else is read
        blocks: Collection[int] = {int(part["block"]) for part in parts if part["block"] and part["how"] != "norm2"}
        blocks = {*blocks, *sorted(_inside(parts))[-1:]}  # as far as the deepest is read
        normalised = (pixels - self.mean).div_(self.std)  # in place: fresh memory costs more than the arithmetic
        return self._walk(self.tower, normalised.to(self.dtype), blocks, any(not part["block"] for part in parts))

    @contextlib.contextmanager
    def _second_norms(self, parts: Sequence[re.Match[str]]) -> Iterator[dict[int, Tensor]]:
        """Class tokens (n, d) behind second norms, by block, of those `parts` that ask for them; filled by a pass."""
        found: dict[int, Tensor] = {}

        def keep(k: int, module: nn.Module, inputs: tuple, output: Tensor) -> None:
            found[k] = output[:, 0].clone()  # not the other tokens beside it

        hooks = [self._second_norm(k).register_forward_hook(partial(keep, k)) for k in _inside(parts)]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def _second_norm(self, k: int) -> nn.Module:
        block = bare(self.tower).get_submodule(self.cut.blocks)[k - 1] if self.cut else None
        norm = second_norm(block) if block is not None else None
        if norm is None:
            found = f"a {type(block).__name__}" if block is not None else "not one list of blocks"
            raise Refusal(
                f"layer block{k}_norm2: {self.name} has {found}; take a plain vision transformer, or block{k}"
            )
        return norm

    def tokens(self) -> dict[str, tuple[int, int]]:
        """Number and width of the patch tokens of every block and of `last`; convolutional stages differ in both."""
        names = [name for name in self.layers() if name != "proj"]
        with torch.no_grad():
            states, end = self._tokens(self._blank(), [self._part(name, name) for name in names])
        ends = [end] if end is not None else []
        found = [tokens.patches for tokens in (*(states[k] for k in range(1, self.depth + 1)), *ends)]
        return {name: (patches.shape[1], patches.shape[2]) for name, patches in zip(names, found, strict=True)}

    @property
    def has_class_token(self) -> bool:
        """Whether a block has a class token beside its patches."""
        blank = torch.zeros(1, 3, self.preprocess.size, self.preprocess.size, device=self.device, dtype=self.dtype)
        with torch.no_grad():
            return self._walk(self.tower, blank, {1}, False)[0][1].cls is not None

    def _part(self, part: str, layer: str) -> re.Match[str]:
        match = PART.fullmatch(part)
        if not self.depth and part not in ("proj", "last"):
            raise Refusal(f"layer {layer!r} of {self.name}: a complete network has its outputs alone, proj or last")
        known = match and (match["proj"] is None or self._has_proj) and int(match["block"] or 0) <= self.depth
        if not match or not known or (match["how"] == "norm2" and not match["block"]):
            proj = "proj, " if self._has_proj else ""
            raise Refusal(
                f"unknown layer {layer!r} of {self.name}: expected {proj}last or block1 to block{self.depth}, the "
                "last two also with _mean, _both or _tokens, blocks with _norm2; several are joined by +"
            )
        return match

    def _feature(
        self, part: re.Match[str], states: dict[int, Tokens], end: End | None, normed: Mapping[int, Tensor]
    ) -> Tensor:
        if part["proj"]:
            return end.proj
        if part["how"] == "norm2":
            if any(tokens.cls is None for tokens in states.values()):
                raise Refusal(f"layer {part[0]!r}: {self.name} has no class token; use block{part['block']}_mean")
            return normed[int(part["block"])]
        tokens = states[int(part["block"])] if part["block"] else Tokens(end.last, end.patches)
        if part["how"] == "both" and tokens.cls is None:
            raise Refusal(f"layer {part[0]!r}: {self.name} has no class token; use block{part['block']}_mean")
        if part["how"] is None and tokens.cls is not None:
            return tokens.cls
        if part["how"] == "tokens":
            return tokens.patches.flatten(1)
        mean = tokens.patches.mean(dim=1)
        return torch.cat([tokens.cls, mean], dim=-1) if part["how"] == "both" else mean

    def identity(self, layer: str) -> dict[str, object]:
        """What decides the features of a layer, wherever the weights lie."""
        decides = {key: value for key, value in self.fingerprint.items() if key not in PLACE} | _adapter(self.tower)
        decides |= {"layer": layer, "precision": str(self.dtype).removeprefix("torch.")}
        return decides | ({"encoder": "packed"} if self._packed else {})

    @property
    def device(self) -> torch.device:
        """Where pixels are to be put."""
        return self.mean.device

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter, trained or not."""
        return hasattr(self.tower, "peft_config")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen matrix products."""
        frozen = (p.dtype for p in self.tower.parameters() if not p.requires_grad and p.ndim > 1)
        return next(frozen, torch.float32)  # a complete network has no parameters here, and takes fp32

    def train(self, mode: bool = True) -> "Backbone":
        """Only dropout of adapters follows `mode`: batch statistics and patch dropout of a frozen tower stay off."""
        super().train(False)
        self.training = mode
        for name, module in self.tower.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        return self

    def to_precision(self, precision: Precision) -> "Backbone":
        """Frozen weights in fp32 or bf16; normalisation layers compute in fp32 either way. Call before adapters.

        "auto" takes bf16 where the hardware multiplies it faster than fp32: on GPUs that have it, and on CPUs with
        AMX or AVX512-BF16 when the tower is bound by wide matrix products (a ViT-B or larger; convolutions lose).
        """
        if precision == "auto":
            precision = "bf16" if _bf16_pays(self.mean.device, self.tower) else "fp32"
        if precision == "bf16":
            norms = [m for m in self.tower.modules() if isinstance(m, NORMS)]
            kept = {id(p) for m in norms for p in m.parameters(recurse=False)}
            for parameter in self.tower.parameters():
                if id(parameter) not in kept:
                    parameter.data = parameter.data.to(torch.bfloat16)
            for module in norms:
                module.register_forward_pre_hook(_to_fp32)
                module.register_forward_hook(_to_bf16)
        return self

    def for_features(self, precision: Precision = "auto", encoder: Way = "auto") -> "Backbone":
        """`to_precision` for a tower that is only read, never trained: no adapters, no gradient.

        "plain" is the library's own tower behind Pillow's resize. "packed" exchanges its blocks for those of
        packed.py, behind torch's resize (a change of one level in few values); refused, with the reason,
        where that is impossible. "auto" packs on a CPU where bf16 pays, and resizes by torch there and for a GPU.
        """
        if precision == "auto":
            precision = "bf16" if _bf16_pays(self.device, self.tower) else "fp32"
        if encoder == "packed" or (encoder == "auto" and precision == "bf16" and self.device.type == "cpu"):
            why = pack(self.tower, torch.bfloat16 if precision == "bf16" else torch.float32)
            if why and encoder == "packed":
                raise Refusal(f"--encoder packed: {self.name}: {why}; take --encoder auto")
        self.to_precision(precision)
        packed = tuple(packed_blocks(self.tower))
        if packed:
            self(self._blank())  # counts the tokens
            self._packed = packed
        return self.resize_by("torch" if packed or (encoder == "auto" and self.device.type == "cuda") else "pillow")

    def resize_by(self, resizer: Resizer) -> "Backbone":
        """Which library scales images for this backbone; no difference where images are only cropped, or prepared
        as the authors of a detector do it."""
        if self.preprocess.geometry != "native" and self.fingerprint["preprocess"].get("by") != AUTHORS:
            self.preprocess = replace(self.preprocess, resizer=resizer)
            own = {name: self.fingerprint["preprocess"][name] for name in ("mean", "std")}
            self.fingerprint["preprocess"] = {**self.preprocess.facts(), **own}
        return self

    def prepare_by(self, preprocess: Preprocess, mean: Sequence[float], std: Sequence[float]) -> "Backbone":
        """Prepare images as the authors of a detector do, in place of how the weights were published."""
        if preprocess.size != self.preprocess.size:
            raise Refusal(f"{self.name} takes images of {self.preprocess.size} px, not of {preprocess.size}")
        self.preprocess = preprocess
        for name, values in (("mean", mean), ("std", std)):
            getattr(self, name).copy_(torch.tensor(values).view(3, 1, 1) * 255)
        said = {**preprocess.facts(), "mean": list(mean), "std": list(std), "by": AUTHORS}
        self.fingerprint["preprocess"] = said
        return self

    def _blank(self) -> Tensor:
        return torch.zeros(1, 3, self.preprocess.size, self.preprocess.size, device=self.device)


def load_backbone(
    name: str,
    layer: str = "last",
    geometry: Geometry | None = None,
    activation: str | None = None,
    size: int | None = None,
) -> Backbone:
    """The frozen encoder called `name` (see above), in fp32 on the CPU, its attention ready for adapters.

    `activation` is that of the tower which a detector was trained on, and is built even if the weights' record says
    otherwise (with a warning); without it the record decides. `size` is the side of the images in pixels where it is
    not that of the weights: positions are interpolated as the library does it.
    Refuses an unknown library, model or layer, and weights that are missing, incomplete, or unreachable.
    """
    with torch.random.fork_rng(devices=[]):  # building modules draws; the caller's generator stays where it was
        torch.manual_seed(0)  # what @random means
        loaded = _load(name, activation)
    call_qkv(loaded.tower)
    return Backbone(name, loaded, layer, geometry, size)


def _load(name: str, activation: str | None) -> Loaded:
    library, _, model = name.partition(":")
    if name == "tiny":
        return load_open_clip(name, f"local-dir:{TINY}")
    if library == "open_clip" and model:
        return load_open_clip(name, model, activation)
    if library == "transformers" and model:
        return load_transformers(name, model)
    if library == "timm" and model:
        return load_timm(name, model, activation)
    if library in COMPLETE:
        raise Refusal(
            f"{name} is a complete network: nothing is trained on it; `adapt import {library} FILE` makes a detector "
            "of it, for --detector"
        )
    raise Refusal(
        f"unknown backbone {name!r}: expected tiny, open_clip:MODEL[@WEIGHTS], transformers:MODEL or timm:NAME.TAG"
    )


def _inside(parts: Sequence[re.Match[str]]) -> set[int]:
    """Numbers of the blocks whose second norm is read."""
    return {int(part["block"]) for part in parts if part["how"] == "norm2"}


def _adapter(tower: nn.Module) -> dict[str, str]:
    """What an adapter as it is now adds to the weights beneath it; nothing where there is none."""
    config = getattr(tower, "peft_config", {}).get("default")
    if config is None:
        return {}
    from peft import get_peft_model_state_dict

    digest = hashlib.sha256(repr([getattr(config, name, None) for name in ("r", "lora_alpha")]).encode())
    for name, tensor in sorted(get_peft_model_state_dict(tower, save_embedding_layers=False).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {"adapter": digest.hexdigest()}


def weights_digest(tower: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _activation(tower: nn.Module) -> str:
    names = [type(m).__name__ for m in tower.modules() if "GELU" in type(m).__name__]
    return names[0] if names else ""


def _bf16_pays(device: torch.device, tower: nn.Module) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)  # compute capability 8: V100 and T4 emulate it
    linears = [m.weight for m in tower.modules() if isinstance(m, nn.Linear)]
    wide = sum(weight.numel() for weight in linears if min(weight.shape) >= 512)
    total = sum(parameter.numel() for parameter in tower.parameters())
    units = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cpu" and units and wide > total / 2


def _to_fp32(module: nn.Module, inputs: tuple) -> tuple:
    frozen = isinstance(module, nn.LayerNorm) and not any(p.requires_grad for p in module.parameters())
    if frozen and inputs[0].requires_grad and inputs[0].device.type == "cpu":
        return inputs  # torch's own kernel widens them inside; but gradients of weights it would add up in bf16
    return tuple(x.float() if isinstance(x, Tensor) else x for x in inputs)


def _to_bf16(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.to(torch.bfloat16)

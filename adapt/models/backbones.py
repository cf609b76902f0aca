"""Image encoders behind one name: `LIBRARY:MODEL[@WEIGHTS]`.

    tiny                                             the embedded CLIP of adapt/embedded (runs anywhere)
    open_clip:ViT-L-14@datacomp_xl_s13b_b90k         a tag of open_clip; from the hub or its cache
    open_clip:hf-hub:ORG/NAME                        a repository on the hub
    open_clip:local-dir:FOLDER                       open_clip_config.json + open_clip_model.safetensors
    timm:NAME@FILE.safetensors                       with FILE.json beside it (timm's own config format)
    open_clip:ViT-B-32@random, timm:NAME@random      random weights: only ever under this name

Weights never travel without their preprocessing: size, mean, std and interpolation come from the same place as the
weights, and a model whose weights are missing is refused, never initialised at random.
"""

import difflib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adapt.data.preprocess import FILTERS, Geometry, Preprocess
from adapt.errors import Refusal
from adapt.models.attention import split_all

TINY = Path(__file__).parents[1] / "embedded" / "tiny"
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Loaded:
    """What a library hands over: the tower, how images enter it, and how features leave it."""

    tower: nn.Module
    preprocess: Preprocess
    mean: tuple[float, ...]
    std: tuple[float, ...]
    depth: int  # number of blocks (or stages) with features of their own
    encode: Callable[[nn.Module, Tensor, str], Tensor]  # tower, normalised pixels, layer -> (n, d)


class Backbone(nn.Module):
    """Pixels (n, 3, size, size) uint8 or float in 0..255 -> features (n, dim) float32, not normalised.

    `layer` is "proj" (the projected embedding), "last" (next to last: the pooled feature before the projection) or
    "blockK" (class token, or mean over positions, after K blocks). The tower is frozen; adapters are added by
    adapt.models.lora.
    """

    def __init__(self, name: str, loaded: Loaded, layer: str, geometry: Geometry | None = None) -> None:
        super().__init__()
        self.name, self.layer, self.depth = name, layer, loaded.depth
        self.preprocess = replace(loaded.preprocess, geometry=geometry) if geometry else loaded.preprocess
        self.tower = loaded.tower.requires_grad_(False).eval()
        self._encode = loaded.encode
        self.register_buffer("mean", torch.tensor(loaded.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(loaded.std).view(3, 1, 1) * 255, persistent=False)
        self.fingerprint = {
            "name": name,
            "layer": layer,
            "weights": weights_digest(self.tower),
            "preprocess": asdict(self.preprocess) | {"mean": list(loaded.mean), "std": list(loaded.std)},
            "activation": _activation(self.tower),  # GELU or QuickGELU: the weights do not say which they need
        }
        with torch.no_grad():
            blank = torch.zeros(1, 3, self.preprocess.size, self.preprocess.size)
            self.dim = self(blank).shape[-1]

    def forward(self, pixels: Tensor) -> Tensor:
        normalised = (pixels.to(self.mean.dtype) - self.mean) / self.std
        return self._encode(self.tower, normalised.to(self.dtype), self.layer).float()

    def layers(self):
        return (self.layer,)

    def encode(self, pixels: Tensor, layers) -> dict[str, Tensor]:
        assert tuple(layers) == (self.layer,)
        return {self.layer: self(pixels)}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen matrix products."""
        return next(p.dtype for p in self.tower.parameters() if not p.requires_grad and p.ndim > 1)

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
        AMX when the tower is bound by wide matrix products (a ViT-B or larger; convolutions lose).
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


def load_backbone(name: str, layer: str = "last", geometry: Geometry | None = None) -> Backbone:
    """The frozen encoder called `name` (see above), in fp32 on the CPU, its attention split for adapters.

    Refuses an unknown library, model or layer, and weights that are missing, incomplete, or unreachable.
    """
    with torch.random.fork_rng(devices=[]):  # building modules draws; the caller's generator stays where it was
        torch.manual_seed(0)  # what @random means
        loaded = _load(name, layer)
        split_all(loaded.tower)
    known = ["proj", "last", *(f"block{k}" for k in range(1, loaded.depth + 1))]
    if layer not in known:
        raise Refusal(f"unknown layer {layer!r} of {name}: expected proj, last or block1 to block{loaded.depth}")
    return Backbone(name, loaded, layer, geometry)


def _load(name: str, layer: str) -> Loaded:
    library, _, model = name.partition(":")
    if name == "tiny":
        return _open_clip(name, f"local-dir:{TINY}", layer)
    if library == "open_clip" and model:
        return _open_clip(name, model, layer)
    if library == "timm" and model:
        return _timm(name, model)
    raise Refusal(f"unknown backbone {name!r}: expected tiny, open_clip:MODEL[@WEIGHTS] or timm:NAME@FILE")


def identity(backbone) -> dict[str, Any]:
    return {key: backbone.fingerprint[key] for key in ("weights", "preprocess", "activation", "layer")}


def weights_digest(tower: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _open_clip(name: str, model: str, layer: str) -> Loaded:
    import open_clip

    architecture, _, tag = model.partition("@")
    options: dict[str, Any] = {"require_pretrained": True}
    extra: dict[str, Any] = {}
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:"))
        extra = _read_json(folder / "open_clip_config.json", name).get("adapt", {})
        if not list(folder.glob("*.safetensors")):
            raise Refusal(f"backbone {name}: no .safetensors weights in {folder} (pickled weights are not loaded)")
    elif not model.startswith("hf-hub:"):
        if architecture not in open_clip.list_models():
            near = _near(architecture, open_clip.list_models())
            raise Refusal(f"backbone {name}: open_clip has no model {architecture!r}{near}")
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if tag == "random":
            options = {"pretrained": None, "pretrained_text": False}
        elif tag not in tags:
            raise Refusal(
                f"backbone {name}: {architecture} has no weights {tag!r}{_near(tag, tags)}; known: {', '.join(tags)}"
            )
        else:
            options["pretrained"] = tag
    try:
        clip = open_clip.create_model(model if ":" in model else architecture, **options)
    except Exception as error:  # open_clip wraps every cause (offline, refused, corrupt, wrong shape) in its own
        raise Refusal(
            f"backbone {name}: weights could not be loaded ({_first_line(error)}). On a machine with a network run "
            f"`hf download` for its repository (or unset HF_HUB_OFFLINE), or give open_clip:local-dir:FOLDER"
        ) from error
    visual, config = clip.visual, clip.visual.preprocess_cfg
    size = config["size"] if isinstance(config["size"], int) else config["size"][0]
    geometry = extra.get("geometry") or ("squash" if config["resize_mode"] == "squash" else "resize")
    preprocess = Preprocess(size, size, config["interpolation"], geometry)
    if hasattr(visual, "trunk"):  # open_clip's models around a timm encoder (SigLIP, PE)
        encode, depth = _encode_timm_trunk, len(visual.trunk.feature_info)
    else:
        encode, depth = _encode_open_clip, len(visual.transformer.resblocks)
        if layer == "last":
            visual.proj = None  # open_clip then returns the pooled feature as it is
    return Loaded(visual, preprocess, tuple(config["mean"]), tuple(config["std"]), depth, encode)


def _encode_open_clip(tower: nn.Module, pixels: Tensor, layer: str) -> Tensor:
    if layer.startswith("block"):
        k = int(layer.removeprefix("block")) - 1
        out = _bare(tower).forward_intermediates(
            pixels, indices=[k], stop_early=True, intermediates_only=True, output_extra_tokens=True
        )
        return out["image_intermediates_prefix"][0][:, 0]
    return tower(pixels)


def _encode_timm_trunk(tower: nn.Module, pixels: Tensor, layer: str) -> Tensor:
    if layer == "proj":
        return tower(pixels)
    return _encode_timm(_bare(tower).trunk, pixels, layer)


def _timm(name: str, model: str) -> Loaded:
    import timm
    from safetensors.torch import load_file

    architecture, _, weights = model.partition("@")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        raise Refusal(
            f"backbone {name}: timm has no model {architecture!r}" + (f", perhaps {near[0]!r}" if near else "")
        )
    if not weights:
        raise Refusal(f"backbone {name}: name the weights, timm:{architecture}@FILE.safetensors")
    config: dict[str, Any] = {}
    if weights != "random":
        file = Path(weights)
        if file.suffix != ".safetensors" or not file.is_file():
            raise Refusal(f"backbone {name}: {weights} is not a .safetensors file; give the file of the weights")
        config = _read_json(file.with_suffix(".json"), name)
        if config.get("architecture") != architecture:
            raise Refusal(f"backbone {name}: {file.with_suffix('.json')} is for {config.get('architecture')!r}")
    arguments = config.get("model_args", {})
    classes = config.get("num_classes", 1000)
    tower = timm.create_model(architecture, pretrained=False, num_classes=classes, **arguments)
    if weights != "random":
        try:
            tower.load_state_dict(load_file(weights), strict=True)
        except Exception as error:
            raise Refusal(f"backbone {name}: {weights} does not fit {architecture}: {_first_line(error)}") from error
    cfg = {**tower.pretrained_cfg, **config.get("pretrained_cfg", {})}
    tower.reset_classifier(0)
    size = cfg["input_size"][-1]
    interpolation = cfg["interpolation"] if cfg["interpolation"] in FILTERS else "bicubic"
    preprocess = Preprocess(size, int(size / cfg["crop_pct"]), interpolation)
    return Loaded(tower, preprocess, tuple(cfg["mean"]), tuple(cfg["std"]), len(tower.feature_info), _encode_timm)


def _encode_timm(tower: nn.Module, pixels: Tensor, layer: str) -> Tensor:
    if layer == "proj":
        raise Refusal("this backbone has no projected embedding: use --layer last or blockK")
    if layer == "last":
        return tower(pixels)
    k = int(layer.removeprefix("block")) - 1
    features = _bare(tower).forward_intermediates(pixels, indices=[k], stop_early=True, intermediates_only=True)[0]
    return features.mean(dim=(2, 3))  # (n, d, h, w) -> (n, d)


def _bare(tower: nn.Module) -> nn.Module:
    """The library's own module inside peft's wrapper."""
    return tower.get_base_model() if hasattr(tower, "get_base_model") else tower


def _activation(tower: nn.Module) -> str:
    names = [type(m).__name__ for m in tower.modules() if "GELU" in type(m).__name__]
    return names[0] if names else ""


def _bf16_pays(device: torch.device, tower: nn.Module) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    linears = [m.weight for m in tower.modules() if isinstance(m, nn.Linear)]
    wide = sum(weight.numel() for weight in linears if min(weight.shape) >= 512)
    total = sum(parameter.numel() for parameter in tower.parameters())
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported() and wide > total / 2


def _to_fp32(module: nn.Module, inputs: tuple) -> tuple:
    return tuple(x.float() if isinstance(x, Tensor) else x for x in inputs)


def _to_bf16(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output.to(torch.bfloat16)


def _read_json(path: Path, name: str) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"backbone {name}: {path} is needed beside the weights ({error.strerror})") from error
    except ValueError as error:
        raise Refusal(f"backbone {name}: {path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Refusal(f"backbone {name}: {path} must hold a JSON object")
    return value


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f", perhaps {near[0]!r}" if near else ""


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    text = str(cause).strip() or type(cause).__name__
    return " ".join(text.split())[:300]

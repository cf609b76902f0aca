"""The tower that a detector's folder carries, because its authors trained the tower itself: `tower/`.

It is in the layout of its library, so that `load_backbone` reads it as any other: weights in safetensors, and JSON
that describes them. That JSON holds nothing that somebody chose: it follows from the names and shapes of the weights
and from the constants of the published architecture (activation, eps, width of a head of attention). A tower whose
JSON says anything else, or whose weights are others than the architecture has, is refused before a library reads it.
"""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adapt.errors import Refusal
from adapt.files import left_by_system, read_json, require_regular, write_text
from adapt.text import one_line

FOLDER, WEIGHTS = "tower", "model.safetensors"
FILES = (f"{FOLDER}/{WEIGHTS}", *(f"{FOLDER}/{name}.json" for name in ("config", "preprocessor_config", "model")))
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
HEAD = 64  # width of a head of attention in every vision transformer here
DEEPEST, WIDEST = 64, 8192  # blocks, and numbers of a side of any tensor but positions and fused projections
Numbers = tuple[float, ...]
Shape = tuple[int, ...]
ShapeOf = Callable[[str], Shape | None]  # of a tensor by its name in the tower; None: there is none
Described = dict[str, dict[str, Any]]  # the content of each JSON file, by its name


def clip(shape_of: ShapeOf) -> Described:
    """OpenAI's CLIP in transformers' names: QuickGELU, eps 1e-5."""
    width, _, patch, _ = _shape(shape_of, "vision_model.embeddings.patch_embedding.weight", 4)
    side = _side(_shape(shape_of, "vision_model.embeddings.position_embedding.weight", 2)[0], patch)
    config = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": _shape(shape_of, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "projection_dim": _shape(shape_of, "visual_projection.weight", 2)[0],
        "num_hidden_layers": _depth(shape_of, "vision_model.encoder.layers.{}.layer_norm1.weight"),
        "num_attention_heads": width // HEAD,
        "image_size": side,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
    }
    prepares = {
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "resample": 3,
    }
    return {"config.json": config, "preprocessor_config.json": prepares}


def timm(architecture: str, mean: Numbers, std: Numbers, shape_of: ShapeOf) -> Described:
    """A vision transformer of timm with a class token and absolute positions."""
    width, _, patch, _ = _shape(shape_of, "patch_embed.proj.weight", 4)
    side = _side(_shape(shape_of, "pos_embed", 3)[1], patch)
    sizes = {"img_size": side, "patch_size": patch, "embed_dim": width, "num_heads": width // HEAD}
    sizes["depth"] = _depth(shape_of, "blocks.{}.norm1.weight")
    prepares = {"input_size": [3, side, side], "mean": list(mean), "std": list(std), "crop_pct": 1.0}
    model = {"architecture": architecture, "num_classes": 0, "model_args": sizes, "pretrained_cfg": prepares}
    return {"model.json": model}


@dataclass(frozen=True)
class Layout:
    """How a kind of tower is described, and as which model of which library it is built."""

    library: str
    model: str  # a class of transformers, an architecture of timm
    describe: Callable[[ShapeOf], Described]

    def name(self, folder: Path | str = FOLDER) -> str:
        """Of the backbone in this folder; without one, as detector.json says it."""
        return f"timm:{self.model}@{folder}/{WEIGHTS}" if self.library == "timm" else f"transformers:{folder}"

    def build(self, described: Described) -> nn.Module:
        """The model, without memory."""
        with torch.device("meta"):
            if self.library == "timm":
                from timm import create_model

                return create_model(self.model, num_classes=0, **described["model.json"]["model_args"])
            import transformers

            cls = getattr(transformers, self.model)
            return cls(cls.config_class.from_dict(described["config.json"]))


def _of_timm(architecture: str, mean: Numbers, std: Numbers) -> Layout:
    return Layout("timm", architecture, partial(timm, architecture, mean, std))


LAYOUTS = {
    "clip": Layout("transformers", "CLIPVisionModelWithProjection", clip),
    "vit": _of_timm("vit_small_patch16_384", IMAGENET_MEAN, IMAGENET_STD),
    "dinov2": _of_timm("vit_large_patch14_dinov2", CLIP_MEAN, CLIP_STD),
    "pe": _of_timm("vit_pe_core_large_patch14_336", HALF, HALF),
}


@dataclass(frozen=True)
class Own:
    """A tower in a detector's folder."""

    layout: str
    folder: Path  # its own, the one in the detector's

    @property
    def name(self) -> str:
        """Of the backbone."""
        return LAYOUTS[self.layout].name(self.folder)

    @property
    def said(self) -> str:
        """The same as detector.json says it: seen from the detector's folder."""
        return LAYOUTS[self.layout].name()

    def copy(self, folder: Path) -> None:
        """Into another detector's folder."""
        if (folder / FOLDER).resolve() != self.folder.resolve():
            shutil.copytree(self.folder, folder / FOLDER, dirs_exist_ok=True)


class Lacks(Exception):
    """No tensor of this name and number of sides, without which a tower cannot be described."""


def shapes(layout: str, shape_of: ShapeOf) -> dict[str, Shape]:
    """Of all tensors of the tower, by name. Raises `Lacks`, and `ValueError` for what is no such tower."""
    kind = LAYOUTS[layout]
    return {name: tuple(tensor.shape) for name, tensor in kind.build(kind.describe(shape_of)).state_dict().items()}


def write(layout: str, state: Mapping[str, Tensor], detector: Path) -> Own:
    """Write the tower of these tensors into a detector's folder."""
    folder = detector / FOLDER
    folder.mkdir()
    for name, content in LAYOUTS[layout].describe(_shape_of({k: tuple(v.shape) for k, v in state.items()})).items():
        write_text(folder / name, json.dumps(content, indent=1) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    return Own(layout, folder)


def read(layout: object, name: object, detector: Path) -> Own:
    """The tower in a detector's folder, which may be a stranger's: `layout` and `name` are what detector.json says.

    Refuses what `write` would not have written.
    """
    where, folder = detector / "detector.json", detector / FOLDER
    kind = LAYOUTS.get(layout) if isinstance(layout, str) else None
    if kind is None or name != kind.name():
        known = ", ".join(f"{word} ({known.name()})" for word, known in LAYOUTS.items())
        raise Refusal(f"{where}: tower {layout!r} named {name!r}; this version knows {known}")
    try:
        require_regular(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, "pt") as file:
            have = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        described = kind.describe(_shape_of(have))
        found = {path.name: path for path in folder.iterdir() if not left_by_system(path.name)}
        if found.keys() != {WEIGHTS, *described}:
            raise ValueError(f"it holds {', '.join(sorted(found))} instead of {', '.join([WEIGHTS, *described])}")
        for file_name, content in described.items():
            if read_json(found[file_name]) != json.loads(json.dumps(content)):
                raise ValueError(f"{file_name} does not describe its weights")
        if have != shapes(str(layout), _shape_of(have)):
            raise ValueError(f"its weights are not those of {kind.model}")
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, Lacks) as error:
        reason = f"it has no proper {error}" if isinstance(error, Lacks) else one_line(str(error), 200)
        raise Refusal(f"{folder} is not the tower that this detector needs: {reason}") from error
    return Own(str(layout), folder)


def _shape_of(shapes: Mapping[str, Shape]) -> ShapeOf:
    return shapes.get


def _shape(shape_of: ShapeOf, name: str, sides: int) -> Shape:
    """Of a tensor that a tower is described by, within bounds: a small file must not ask for a large model."""
    found = shape_of(name)
    if found is None or len(found) != sides or not all(1 <= side <= WIDEST for side in found):
        raise Lacks(name)
    return found


def _side(positions: int, patch: int) -> int:
    """Of the images in pixels, from the number of positions with that of the class token."""
    grid = math.isqrt(positions - 1)
    if grid * grid != positions - 1:
        raise ValueError(f"{positions} positions are no square of patches and a class token")
    return grid * patch


def _depth(shape_of: ShapeOf, block: str) -> int:
    return next(k for k in itertools.count() if k == DEEPEST or shape_of(block.format(k)) is None)

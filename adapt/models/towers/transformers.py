"""Image towers of transformers: CLIP, MetaCLIP 2, SigLIP (and 2, at a fixed resolution), DINOv2, DINOv3.

A hub id (ORG/NAME or ORG/NAME@REVISION) or a local folder with config.json, preprocessor_config.json and safetensors.
Only the library's own classes are built, so no code of a repository runs. Module names differ between versions of
transformers (it moved SigLIP's encoder and renamed DINOv2's attention within version 5), hence tokens are taken by
hooks on the blocks, which are found by their number.
"""

import contextlib
import re
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapt.data.preprocess import Preprocess
from adapt.errors import Refusal
from adapt.models.towers import hub
from adapt.models.towers.fitting import refuse_unmerged
from adapt.models.towers.records import refuse_contradiction
from adapt.models.towers.tokens import (
    Cut,
    End,
    Loaded,
    Resize,
    Tokens,
    bare,
    message_of,
    read_json,
    warn_of_satellites,
)

VISION = {  # model_type of config.json: class of the image tower
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "metaclip_2": "MetaClip2VisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
FILES = ["*.json", "model*.safetensors", "merges.txt", "*.model"]  # what a snapshot needs, tokenizer included
BLOCK = re.compile(r"\b(layers|layer)\.\d+\.")
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def load_transformers(name: str, model: str) -> Loaded:
    folder = snapshot(name, model)
    config = read_json(folder / "config.json", name)
    kind = config.get("model_type")
    if kind == "siglip2":
        raise Refusal(
            f"backbone {name}: this SigLIP 2 takes images of any shape (NaFlex); take one of fixed resolution, "
            "as google/siglip2-base-patch16-256"
        )
    if kind not in VISION:
        raise Refusal(f"backbone {name}: transformers model of type {kind!r}; known: {', '.join(sorted(VISION))}")
    refuse_contradiction(name, folder, model.partition("@")[0])
    tower = create(name, folder, VISION[kind])
    warn_of_satellites(name, model, str(config.get("_name_or_path")))
    preprocess, mean, std = _preprocess(read_preprocessor(folder, name), name)
    depth = tower.config.num_hidden_layers
    path = next(path for path, m in tower.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    has_proj = not kind.startswith("dino")
    size = tower.config.image_size
    if has_proj and size != preprocess.size:  # DINO interpolates its positions, or has none
        raise Refusal(f"backbone {name}: the tower takes {size} px, its preprocessor_config.json {preprocess.size}")
    facts = preprocess, mean, std, depth, has_proj, partial(walk, path), "siglip" not in kind, Cut(path, end)
    return Loaded(tower, *facts, Resize(tower.config.patch_size, resize_positions), hub.commit_of(folder))


def snapshot(name: str, model: str) -> Path:
    """The local folder itself, or that of `ORG/NAME[@REVISION]` in the hub's cache."""
    folder = Path(model)
    if not folder.is_dir():
        folder = hub.snapshot(name, model, FILES, f"; {model!r} is no folder")
    if not list(folder.glob("model*.safetensors")):
        raise Refusal(
            f"backbone {name}: no model*.safetensors in {folder} (pickled weights are not loaded: `adapt convert FILE "
            f"--like transformers:FOLDER` makes a folder of them)"
        )
    return folder


def create(name: str, folder: Path, class_name: str) -> nn.Module:
    """One tower in fp32. transformers initialises what a checkpoint lacks and only warns: here that is refused."""
    import transformers

    with _quiet():
        try:
            tower, report = getattr(transformers, class_name).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
        except Exception as error:
            raise Refusal(
                f"backbone {name}: {folder} could not be loaded as {class_name} ({message_of(error)})"
            ) from error
    refuse_unmerged(folder, list(report["unexpected_keys"]))
    own = "text_model." if "Vision" in class_name else "vision_model."
    more = {key for key in report["unexpected_keys"] if BLOCK.search(key) and not key.startswith(own)}
    for what, keys in (("lacks", report["missing_keys"]), ("also holds", more)):
        if keys:
            first = min(map(str, keys))
            raise Refusal(f"backbone {name}: {folder} {what} {len(keys)} tensors, as {first}; get the whole model")
    return tower


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No table of unused text weights, no progress bar."""
    from transformers.utils import logging

    before, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if shown:
            logging.enable_progress_bar()


def read_preprocessor(folder: Path, name: str) -> dict[str, Any]:
    """preprocessor_config.json, or the image part of the processor_config.json that newer versions write."""
    path = folder / "processor_config.json"
    if path.is_file() and not (folder / "preprocessor_config.json").is_file():
        return read_json(path, name).get("image_processor", {})
    return read_json(folder / "preprocessor_config.json", name)


def _preprocess(config: dict[str, Any], name: str) -> tuple[Preprocess, tuple[float, ...], tuple[float, ...]]:
    """Size, crop, interpolation, mean and std; whatever this package cannot do exactly is refused."""
    try:
        size, mean, std = config["size"], tuple(config["image_mean"]), tuple(config["image_std"])
        crops = bool(config.get("do_center_crop", False))
        if isinstance(size, int):  # the old way to write it
            size = {"shortest_edge": size} if crops else {"height": size, "width": size}
        crop = config["crop_size"] if crops else None
        if isinstance(crop, dict):
            crop = crop["height"] if crop["height"] == crop["width"] else None
        interpolation = RESAMPLE[config["resample"]]
        plain = all(config.get(f"do_{step}", True) for step in ("resize", "rescale", "normalize"))
        if not plain or abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
            raise KeyError("do_resize, do_rescale, do_normalize and rescale_factor 1/255")
        if size.get("shortest_edge") and crop:
            return Preprocess(crop, size["shortest_edge"], interpolation), mean, std
        side = size["height"]
        if side != size["width"] or crop not in (None, side):
            raise KeyError("square size")
        return Preprocess(side, side, interpolation, "squash"), mean, std
    except (KeyError, TypeError, AttributeError) as error:
        raise Refusal(
            f"backbone {name}: preprocessor_config.json must give image_mean, image_std, resample (2 or 3) and a size "
            f"with crop_size, or a square size ({message_of(error)})"
        ) from error


class _Enough(Exception):
    """Ends a forward pass behind the last block that is needed."""


def walk(
    path: str, tower: nn.Module, pixels: Tensor, blocks: Collection[int], end: bool
) -> tuple[dict[int, Tokens], End | None]:
    """See adapt.models.towers.tokens.Walk; `path` names the list of blocks. Tokens are [class, registers, patches]."""
    model = bare(tower)
    config = model.config
    layers = model.get_submodule(path)
    has_class = "siglip" not in config.model_type
    prefix = has_class + (getattr(config, "num_register_tokens", 0) or 0)
    found: dict[int, Tokens] = {}

    def keep(k: int, module: nn.Module, inputs: tuple, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        found[k] = Tokens(state[:, 0] if has_class else None, state[:, prefix:])
        if not end and k == max(blocks):
            raise _Enough

    hooks = [layers[k - 1].register_forward_hook(partial(keep, k)) for k in blocks]
    try:
        output = model(pixel_values=pixels)
    except _Enough:
        return found, None
    finally:
        for hook in hooks:
            hook.remove()
    tokens = output.last_hidden_state
    if hasattr(output, "image_embeds"):  # CLIP: normalises its class token only
        tokens = model.vision_model.post_layernorm(tokens)
        return found, End(tokens[:, 0], tokens[:, 1:], output.image_embeds)
    last = output.pooler_output
    return found, End(last, tokens[:, prefix:], None if has_class else last)


def end(tower: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """See adapt.models.towers.tokens.Cut. CLIP and SigLIP have a post_layernorm, DINOv2 a layernorm, DINOv3 a norm."""
    model = getattr(tower, "vision_model", tower)
    norm = next(getattr(model, name) for name in ("post_layernorm", "layernorm", "norm") if hasattr(model, name))
    if hasattr(model, "head"):  # SigLIP pools all tokens, and compares that with texts
        last = model.head(norm(tokens))
        return last, last
    last = norm(tokens[:, 0])
    return last, tower.visual_projection(last) if hasattr(tower, "visual_projection") else None


@torch.no_grad()
def resize_positions(tower: nn.Module, size: int) -> None:
    """CLIP's and SigLIP's positions interpolated by their own function; DINO does so in every pass, or rotates."""
    for module in tower.modules():
        if isinstance(positions := getattr(module, "position_embedding", None), nn.Embedding):
            old = module.image_size // module.patch_size
            count = len(positions.weight) - old**2 + (size // module.patch_size) ** 2  # a class token has one, too
            patches = positions.weight.new_empty(1, count, positions.embedding_dim)  # of them the shape is asked
            table = module.interpolate_pos_encoding(patches, size, size)[0]
            module.position_embedding = nn.Embedding.from_pretrained(table)
            module.position_ids = torch.arange(count)[None]
            module.image_size = size

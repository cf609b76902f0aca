"""DDA (Dual Data Alignment): DINOv2 ViT-L/14 with low-rank updates of all its linear layers, and a linear layer.

    adapt import dda ckpt.pth

arXiv:2505.14359; github.com/roy-ch/Dual-Data-Alignment (Inference/inference.py and models/, Training/train.sh),
Apache-2.0. With rank r and alpha 1 every weight of qkv, proj, fc1 and fc2 is

    W = W_0 + alpha / r B A,

and with f the class token behind the last norm,

    logit = w . f + b,    fake where sigmoid(logit) > 0.5

An image is cropped to its central 336 x 336 pixels without a resize (black around one that is smaller), and normalised
by CLIP's mean and deviation. DINOv2's positions are for 518 pixels: they are interpolated once, at the import, as
DINOv2's own code does it in every pass, which is by a factor of (24 + 0.1) / 37 (facebookresearch/dinov2,
vision_transformer.py).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.importers.weights import CLIP_MEAN, CLIP_STD, WithTower, check_sides, fit_tower, stored_of

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.detector.detector import Detector
    from adapt.models.towers.checkpoint import Stored
    from adapt.models.towers.own import Own, Shape

SIDE, PATCH = 336, 14
ALPHA = 1
OFFSET = 0.1  # of a patch, so that rounding loses none
PLACE = "base_model.model."
HEAD = {name: f"base_model.fc.{name}" for name in ("weight", "bias")}
UPDATED = (".attn.qkv", ".attn.proj", ".mlp.fc1", ".mlp.fc2")


@dataclass(frozen=True, kw_only=True)
class Source(WithTower):
    """DDA."""

    def write_tower(self, folder: Path) -> "Own":
        from adapt.models.towers import own

        stored, positions = self.stored(), f"{PLACE}pos_embed"
        check_sides(self.weights, stored, {"pos_embed": 3, ".original_layer.weight": 2, ".lora_A": 2})
        _, count, width = stored[positions].shape if positions in stored else (1, 2, 0)
        squares = math.isqrt(max(0, count - 1)) ** 2
        beside: dict[str, Shape] = {HEAD["weight"]: (1, width), HEAD["bias"]: (1,), positions: (1, squares + 1, width)}
        for key in [key for key in stored if key.endswith(".original_layer.weight")]:
            (out, into), (rank, _) = stored[key].shape, stored.get(_update(key, "A"), stored[key]).shape
            beside |= {_update(key, "A"): (rank, into), _update(key, "B"): (out, rank)}
        given = {"pos_embed": (1, (SIDE // PATCH) ** 2 + 1, width)}
        shapes = fit_tower(self.weights, stored, "dinov2", _key, beside, given)
        state = {name: _merged(stored, _key(name)) for name in shapes if name not in given}
        state["pos_embed"] = _interpolated(stored[positions].load().float(), SIDE // PATCH)
        return own.write("dinov2", state, folder)

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.heads.affine import Affine
        from adapt.models.towers.backbones import load_backbone

        backbone = load_backbone(tower)
        backbone.prepare_by(Preprocess(SIDE, SIDE, geometry="native", pad="zero"), CLIP_MEAN, CLIP_STD)
        stored = self.stored()
        head = Affine(backbone.dim)
        head.load_state_dict({name: stored[key].load().float() for name, key in HEAD.items()})
        return Detector(backbone, head)

    def stored(self) -> "dict[str, Stored]":
        return stored_of(self.weights, f"{PLACE}cls_token", leave=("mask_token",))


def _key(name: str) -> str:
    """Of a tower's tensor in the authors' file."""
    layer, _, kind = name.rpartition(".")
    return f"{PLACE}{layer}.original_layer.{kind}" if layer.endswith(UPDATED) else f"{PLACE}{name}"


def _update(key: str, letter: str) -> str:
    return key.replace("original_layer.weight", f"lora.lora_{letter}")


def _merged(stored: "dict[str, Stored]", key: str) -> "Tensor":
    weight = stored[key].load()
    if not key.endswith(".original_layer.weight"):
        return weight.float()
    down, up = (stored[_update(key, letter)].load().double() for letter in "AB")
    return (weight.double() + ALPHA / len(down) * up @ down).float()


def _interpolated(positions: "Tensor", grid: int) -> "Tensor":
    """(1, 1 + p * p, d) -> (1, 1 + grid * grid, d), the class token's as it is."""
    import torch
    from torch.nn import functional as F

    side = math.isqrt(positions.shape[1] - 1)
    if side == grid:
        return positions
    patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scaled = F.interpolate(patches, scale_factor=((grid + OFFSET) / side,) * 2, mode="bicubic")
    return torch.cat([positions[:, :1], scaled.flatten(2).transpose(1, 2)], dim=1)

"""Effort: OpenAI's CLIP ViT-L/14 whose attention was trained in one singular direction of each weight.

    adapt import effort effort_clip_L14_trainOn_FaceForensic.pth

arXiv:2411.15633; github.com/YZY-stack/Effort-AIGI-Detection, CC BY-NC. Its own files were not at hand: keys, equation
and preprocessing are those of copies of its DeepfakeBench part (SCLBD/DeepfakeBench and
fzm121516/Effort-AIGI-Detection: training/detectors/effort_detector.py, training/demo.py). Every weight of q, k, v and
the output of attention is

    W = W_main + U diag(S) V,

with W_main as it was published but for its smallest singular direction, and U, S, V trained. With f the class token
behind the last norm,

    (real, fake) = softmax(W f + b),    fake where its share is > 0.5

An image of any shape is squeezed into 224 x 224 by OpenCV's bilinear filter, which has no antialiasing, and normalised
by CLIP's mean and deviation. The file has no projection: the identity stands for it in the tower.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.importers.weights import CLIP_MEAN, CLIP_STD, WithTower, check_sides, fit_tower, stored_of, two_classes

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.detector.detector import Detector
    from adapt.models.towers.checkpoint import Stored
    from adapt.models.towers.own import Own, Shape

ANCHOR = "backbone.embeddings.class_embedding"
UNUSED = ("position_ids", ".S_r", ".U_r", ".V_r")  # of training alone: the directions that were kept


@dataclass(frozen=True, kw_only=True)
class Source(WithTower):
    """Effort."""

    def write_tower(self, folder: Path) -> "Own":
        import torch

        from adapt.models.towers import own

        stored = stored_of(self.weights, ANCHOR, UNUSED)
        check_sides(self.weights, stored, {ANCHOR: 1, ".weight_main": 2, ".S_residual": 1})
        width = stored[ANCHOR].shape[0]
        beside: dict[str, Shape] = {"head.weight": (2, width), "head.bias": (2,)}
        for key in [key for key in stored if key.endswith(".weight_main")]:
            (out, into), (rank, *_) = stored[key].shape, stored.get(_part(key, "S"), stored[key]).shape
            beside |= {_part(key, "U"): (out, rank), _part(key, "S"): (rank,), _part(key, "V"): (rank, into)}
        given = {"visual_projection.weight": (width, width)}
        shapes = fit_tower(self.weights, stored, "clip", _key, beside, given)
        state = {name: _merged(stored, _key(name)) for name in shapes if name not in given}
        return own.write("clip", state | {"visual_projection.weight": torch.eye(width)}, folder)

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.towers.backbones import load_backbone

        backbone = load_backbone(tower)
        side = backbone.preprocess.size
        backbone.prepare_by(Preprocess(side, side, "bilinear", "squash", "opencv"), CLIP_MEAN, CLIP_STD)
        stored = stored_of(self.weights, ANCHOR)
        weight, bias = (stored[f"head.{name}"].load() for name in ("weight", "bias"))
        return Detector(backbone, two_classes(weight, bias))


def _key(name: str) -> str:
    """Of a tower's tensor in the authors' file."""
    key = name.replace("vision_model.", "backbone.", 1)
    return f"{key}_main" if ".self_attn." in key and key.endswith(".weight") else key


def _part(key: str, letter: str) -> str:
    return f"{key.removesuffix('weight_main')}{letter}_residual"


def _merged(stored: "dict[str, Stored]", key: str) -> "Tensor":
    weight = stored[key].load()
    if not key.endswith(".weight_main"):
        return weight.float()
    left, values, right = (stored[_part(key, letter)].load().double() for letter in "USV")
    return (weight.double() + left @ values.diag() @ right).float()

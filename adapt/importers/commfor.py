"""Community Forensics: timm's ViT-S/16 with all weights trained, and a linear layer.

    adapt import commfor model.safetensors

arXiv:2411.04125; github.com/JeongsooP/Community-Forensics (models.py, dataloader.py), no licence stated there. With f
the class token behind the last norm,

    logit = w . f + b,    fake where sigmoid(logit) > 0.5

The model for images of 384 px and the one for 224 px differ in their positions, which say which one it is. The
shortest side is scaled to 440 (256) pixels by Pillow's bilinear filter, the central 384 (224) are cut out, and
normalised by ImageNet's mean and deviation. Files: `model.safetensors` of the hub, or `.pt` with {"model": ...}; a
prefix `_orig_mod.` of a compiled model is cut off.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.importers.weights import WithTower, fit_tower, stored_of

if TYPE_CHECKING:
    from adapt.detector.detector import Detector
    from adapt.models.towers.own import Own

SHORTEST = {384: 440, 224: 256}  # of the image in pixels, by the side of the crop


@dataclass(frozen=True, kw_only=True)
class Source(WithTower):
    """Community Forensics."""

    def write_tower(self, folder: Path) -> "Own":
        from adapt.models.towers import own

        stored = stored_of(self.weights, "vit.cls_token")
        beside = {"vit.head.weight": (1, *stored["vit.cls_token"].shape[-1:]), "vit.head.bias": (1,)}
        shapes = fit_tower(self.weights, stored, "vit", "vit.{}".format, beside)
        return own.write("vit", {name: stored[f"vit.{name}"].load().float() for name in shapes}, folder)

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.errors import Refusal
        from adapt.models.heads.affine import Affine
        from adapt.models.towers.backbones import load_backbone
        from adapt.models.towers.own import IMAGENET_MEAN, IMAGENET_STD

        backbone = load_backbone(tower)
        side = backbone.preprocess.size
        if side not in SHORTEST:
            raise Refusal(f"{self.weights} is for images of {side} px: give the model for 384 or for 224")
        backbone.prepare_by(Preprocess(side, SHORTEST[side], "bilinear"), IMAGENET_MEAN, IMAGENET_STD)
        stored = stored_of(self.weights, "vit.cls_token")
        head = Affine(backbone.dim)
        head.load_state_dict({name: stored[f"vit.head.{name}"].load().float() for name in ("weight", "bias")})
        return Detector(backbone, head)

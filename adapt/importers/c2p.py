"""C2P-CLIP: OpenAI's CLIP ViT-L/14, into whose image tower a low-rank update was merged, and a linear layer.

    adapt import c2p C2P_CLIP_release_20240901.pth

arXiv:2408.09647; github.com/chuangchuangtan/C2P-CLIP-DeepfakeDetection (inference.py, data.py), no licence stated
there. The released file holds the merged weights. With f the projected image feature,

    logit = w . f / |f| + b,    fake where sigmoid(logit) > 0.5

The shortest side is scaled to 224 pixels by Pillow's bilinear filter, the central 224 are cut out, and normalised by
CLIP's mean and deviation. What the authors offer is a .zip: take the file out of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.importers.weights import CLIP_MEAN, CLIP_STD, WithTower, fit_tower, stored_of

if TYPE_CHECKING:
    from adapt.detector.detector import Detector
    from adapt.models.towers.checkpoint import Stored
    from adapt.models.towers.own import Own


@dataclass(frozen=True, kw_only=True)
class Source(WithTower):
    """C2P-CLIP."""

    def write_tower(self, folder: Path) -> "Own":
        from adapt.models.towers import own

        stored, place = self.stored(), "model.{}".format
        width = (
            stored["model.visual_projection.weight"].shape[:1] if "model.visual_projection.weight" in stored else ()
        )
        beside = {"model.fc.weight": (1, *width), "model.fc.bias": (1,)}
        shapes = fit_tower(self.weights, stored, "clip", place, beside)
        return own.write("clip", {name: stored[place(name)].load().float() for name in shapes}, folder)

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.heads.affine import Affine
        from adapt.models.towers.backbones import load_backbone

        backbone = load_backbone(tower, "proj")
        side = backbone.preprocess.size
        backbone.prepare_by(Preprocess(side, side, "bilinear"), CLIP_MEAN, CLIP_STD)
        stored = self.stored()
        head = Affine(backbone.dim, unit=True)
        head.load_state_dict({name: stored[f"model.fc.{name}"].load().float() for name in ("weight", "bias")})
        return Detector(backbone, head)

    def stored(self) -> "dict[str, Stored]":
        anchor = "model.vision_model.embeddings.class_embedding"
        return stored_of(self.weights, anchor, leave=("position_ids",))

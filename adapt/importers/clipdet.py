"""ClipBased-SyntheticImageDetection: a linear layer on the next-to-last feature of a CLIP of CommonPool.

    adapt import clipdet weights/clipdet_latent10k_plus/weights.pth

arXiv:2312.00195; github.com/grip-unina/ClipBased-SyntheticImageDetection, Apache-2.0. With h the pooled feature behind
the final norm and before the projection of OpenCLIP's ViT-L/14 (CommonPool XL),

    logit = w . h / |h| + b,    fake where logit > 0

The shortest side of the image is scaled to 224 px (bicubic), then the central 224 x 224 pixels are taken, and
normalised by CLIP's mean and deviation. `clipdet_latent10k` and `clipdet_latent10k_plus` differ in their weights only.
Their files were not at hand (Git LFS): names and wrappers are those that the authors' code makes and reads.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.importers.weights import CLIP_MEAN, CLIP_STD, Importing, check_shapes, state_of, under

if TYPE_CHECKING:
    from adapt.detector.detector import Detector


@dataclass(frozen=True, kw_only=True)
class Source(Importing):
    """ClipBased-SyntheticImageDetection."""

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.heads.affine import Affine
        from adapt.models.towers.backbones import load_backbone

        state = under(state_of(self.weights), "model.", "state_dict.", "net.", "module.")
        backbone = load_backbone(tower, "last")
        side = backbone.preprocess.size
        backbone.prepare_by(Preprocess(side, side), CLIP_MEAN, CLIP_STD)
        check_shapes(self.weights, state, {"fc.weight": (1, backbone.dim), "fc.bias": (1,)})
        head = Affine(backbone.dim, unit=True)
        head.load_state_dict(under(state, "fc."))
        return Detector(backbone, head)

"""UniversalFakeDetect: a linear layer on the projected feature of OpenAI's CLIP ViT-L/14.

    adapt import univfd fc_weights.pth

arXiv:2302.10174; github.com/WisconsinAIVision/UniversalFakeDetect, MIT. With f the projected image feature, at its own
length,

    logit = w . f + b,    fake where sigmoid(logit) > 0.5

The image is cropped to the central 224 x 224 pixels without a resize (black around one that is smaller), and
normalised by CLIP's mean and deviation.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.importers.weights import CLIP_MEAN, CLIP_STD, Importing, check_shapes, state_of

if TYPE_CHECKING:
    from adapt.detector.detector import Detector


@dataclass(frozen=True, kw_only=True)
class Source(Importing):
    """UniversalFakeDetect."""

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.heads.affine import Affine
        from adapt.models.towers.backbones import load_backbone

        state = state_of(self.weights)
        backbone = load_backbone(tower, "proj")
        side = backbone.preprocess.size
        backbone.prepare_by(Preprocess(side, side, geometry="native", pad="zero"), CLIP_MEAN, CLIP_STD)
        check_shapes(self.weights, state, {"weight": (1, backbone.dim), "bias": (1,)})
        head = Affine(backbone.dim)
        head.load_state_dict(state)
        return Detector(backbone, head)

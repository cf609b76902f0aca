"""Tiny-LaDeDa: four small convolutions on an image's diagonal gradient, and the mean over its patches.

    adapt import tiny_ladeda WildRF_Tiny_LaDeDa.pth

arXiv:2406.09398; github.com/barcavia/RealTime-DeepfakeDetection-in-the-RealWorld, whose licence (Yissum's Software
Research License) allows research alone. With h the 8 numbers of each patch of 7 x 7 pixels (adapt/models/towers/
tiny_ladeda.py has the equation),

    logit = mean over the patches of w . h + b,    fake where sigmoid(logit) > 0.5

The image is squashed to 256 x 256 pixels (Pillow's bilinear filter, no crop) and normalised by ImageNet's mean and
deviation. Which gradient a file was trained on does not stand in it: this is the authors' default, `right_diag` (their
test script names none).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.importers.weights import File, check_shapes, state_of

if TYPE_CHECKING:
    from adapt.detector.detector import Detector

SIDE = 256
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Source(File):
    """Tiny-LaDeDa."""

    def detector(self, tower: str) -> "Detector":
        """The detector; it stands on no other tower."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.heads.affine import Affine
        from adapt.models.towers.networks import complete_backbone
        from adapt.models.towers.tiny_ladeda import WIDTH, TinyLaDeDa

        state = state_of(self.weights)
        network, head = TinyLaDeDa(), Affine(WIDTH)
        parts = {"": network.state_dict(), "fc.": head.state_dict()}
        wanted = {f"{prefix}{key}": value for prefix, part in parts.items() for key, value in part.items()}
        check_shapes(self.weights, state, {key: tuple(value.shape) for key, value in wanted.items()})
        head.load_state_dict({key.removeprefix("fc."): value for key, value in state.items() if key.startswith("fc.")})
        network.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
        preprocess = Preprocess(SIDE, SIDE, interpolation="bilinear", geometry="squash")
        backbone = complete_backbone("tiny_ladeda", network, preprocess)
        return Detector(backbone.prepare_by(preprocess, IMAGENET_MEAN, IMAGENET_STD), head)

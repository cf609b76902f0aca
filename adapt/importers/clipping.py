"""CLIPping the Deception: a linear probe, or CLIP-Adapter beside two texts, on OpenAI's CLIP ViT-L/14.

    adapt import clipping CLIP_linear_prob_2_epoch_100k_vit_large_with_augs.pth
    adapt import clipping clipadapter_100k_real_fake_04_best/clip_adapter/model.pth.tar-2

arXiv:2402.12927; github.com/sohailahmedkhan/CLIPping-the-Deception, MIT. With f the projected feature at its own
length and g(T) the unit feature of a text T,

    linear   logit = (w_fake - w_real) . f + b_fake - b_real
    adapter  x = .4 ReLU(B ReLU(A f)) + .6 f,   logit = 100 (cos(x, g("a fake photo.")) - cos(x, g("a real photo.")))

and fake where logit > 0 (the larger of two classes, the first real). 100 is exp(logit_scale) of OpenAI's weights; both
texts are encoded by the tower's own text side while it is imported, and stored. The file of the probe also holds the
whole frozen CLIP, which is not read.

Images of the probe are cropped to the central 224 x 224 pixels without a resize (black around one that is smaller),
with red and blue exchanged: `evaluate.py` reads files by OpenCV and takes them for RGB (training did not). Those of
the adapter have their shortest side scaled to 224 px (bicubic), and are cropped; one version of the repository's
`dassl/utils/tools.py` also blurs them (sigma 2, a robustness test), another does not, nor is it done here. Both are
normalised by CLIP's mean and deviation. The code was read in a copy (github.com/sfimediafutures, the same name);
the weights were not at hand. Half precision of the authors' probe is not imitated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.importers.weights import CLIP_MEAN, CLIP_STD, Importing, check_shapes, state_of

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.detector.detector import Detector
    from adapt.models.heads.affine import Affine
    from adapt.models.heads.clip_adapter import ClipAdapter

TEXTS = (("a real photo.",), ("a fake photo.",))


@dataclass(frozen=True, kw_only=True)
class Source(Importing):
    """CLIPping the Deception."""

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.towers.backbones import load_backbone

        backbone = load_backbone(tower, "proj")
        side = backbone.preprocess.size
        head: Affine | ClipAdapter
        if adapter := _named("fc.", state_of(self.weights, "state_dict.fc.")):
            preprocess = Preprocess(side, side)
            head = _adapter(self.weights, adapter, backbone.dim, tower)
        else:
            preprocess = Preprocess(side, side, geometry="native", pad="zero", channels="bgr")
            head = _linear(self.weights, _named("fc.linear.", state_of(self.weights, "fc.linear.")), backbone.dim)
        return Detector(backbone.prepare_by(preprocess, CLIP_MEAN, CLIP_STD), head)


def _named(prefix: str, state: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    return {prefix + key: value for key, value in state.items()}


def _adapter(file: Path, state: Mapping[str, "Tensor"], dim: int, tower: str) -> "ClipAdapter":
    from adapt.models.heads.clip_adapter import ClipAdapter
    from adapt.models.prompts import prompt_features

    hidden = (*state["fc.0.weight"].shape, 0)[0] if "fc.0.weight" in state else 0
    check_shapes(file, state, {"fc.0.weight": (hidden, dim), "fc.2.weight": (dim, hidden)})
    head = ClipAdapter(dim, hidden)
    ours = {"down.weight": state["fc.0.weight"], "up.weight": state["fc.2.weight"]}
    head.load_state_dict(ours | {"texts": prompt_features(tower, TEXTS)})
    return head


def _linear(file: Path, state: Mapping[str, "Tensor"], dim: int) -> "Affine":
    from adapt.models.heads.affine import Affine

    check_shapes(file, state, {"fc.linear.weight": (2, dim), "fc.linear.bias": (2,)})
    (real, fake), (bias_real, bias_fake) = state["fc.linear.weight"], state["fc.linear.bias"]
    head = Affine(dim)
    head.load_state_dict({"weight": (fake - real)[None], "bias": (bias_fake - bias_real)[None]})
    return head

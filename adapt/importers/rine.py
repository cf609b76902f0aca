"""RINE: the class tokens of all blocks of OpenAI's CLIP ViT-L/14, weighted by an importance that was learnt.

    adapt import rine ckpt/model_4class_trainable.pth

arXiv:2402.19091; github.com/mever-team/rine, which states no licence. With x_b the class token behind the second norm
of block b, before its MLP, and the importance A (blocks, d),

    z = Q2( sum over b of softmax over b (A)_b * Q1(x_b) ),   logit = P(z),   fake where sigmoid(logit) > 0.5

Q1 and Q2 are layers with ReLU, P is a perceptron of three layers; their number and width d follow from the file: 4
layers of 1024, 128 and 1024 for 1 class, 2 classes and LDM, 2 of 1024 for 4 classes. Dropout is off.

The image is cropped to the central 224 x 224 pixels without a resize (black around one that is smaller), and
normalised by CLIP's mean and deviation, as in the authors' demo and in their test of ProGAN models. `model_ldm` they
test on Synthbuster by the mean logit of ten crops; here it sees the central one. On a GPU their tower runs in fp16.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.importers.weights import CLIP_MEAN, CLIP_STD, Importing, check_shapes, state_of

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.detector.detector import Detector

PARTS = {"proj1": "project", "proj2": "refine", "head": "classify"}  # their names, and those of `BlockWeighting`
LAST = "head.6."


@dataclass(frozen=True, kw_only=True)
class Source(Importing):
    """RINE."""

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.heads.block_weighting import BlockWeighting
        from adapt.models.towers.backbones import load_backbone

        state = state_of(self.weights)
        depth = max(1, sum(bool(re.fullmatch(r"proj1[.][0-9]+[.]weight", key)) for key in state))
        hidden = (0, *state["alpha"].shape)[-1] if "alpha" in state else 0
        blocks = sum(name.startswith("block") for name in load_backbone(tower).layers())
        backbone = load_backbone(tower, "+".join(f"block{k}_norm2" for k in range(1, blocks + 1)))
        side, width = backbone.preprocess.size, backbone.dim // blocks
        backbone.prepare_by(Preprocess(side, side, geometry="native", pad="zero"), CLIP_MEAN, CLIP_STD)
        check_shapes(self.weights, state, _shapes(blocks, width, depth, hidden))
        head = BlockWeighting(backbone.dim, ("real", "fake"), width, depth, hidden, scaled=False)
        head.load_state_dict(_ours(state) | {f"parts.{key}": value for key, value in head.parts.state_dict().items()})
        return Detector(backbone, head)


def _shapes(blocks: int, width: int, depth: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Of everything that the authors save: linear layers stand after a dropout, two others between them."""
    layers = {f"proj1.{1 + 3 * i}": (hidden, hidden if i else width) for i in range(depth)}
    layers |= {f"proj2.{1 + 3 * i}": (hidden, hidden) for i in range(depth)}
    layers |= {"head.0": (hidden, hidden), "head.3": (hidden, hidden), "head.6": (1, hidden)}
    weights: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in layers.items()}
    return {"alpha": (1, blocks, hidden), **weights} | {f"{name}.bias": shape[:1] for name, shape in layers.items()}


def _ours(state: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The names of `BlockWeighting`, in which real has a logit of its own: 0."""
    import torch

    found = {"importance": state["alpha"][0]}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part in PARTS:
            both = torch.cat([torch.zeros_like(value), value]) if key.startswith(LAST) else value
            found[f"{PARTS[part]}.{rest}"] = both
    return found

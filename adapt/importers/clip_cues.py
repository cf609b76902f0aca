"""CLIP-Cues: a linear probe, a probe with orthogonal activations, or concepts, on OpenAI's CLIP ViT-L/14 at 336 px.

    adapt import clip_cues data/checkpoints/linear_probe_combined.ckpt
    adapt import clip_cues data/checkpoints/clip_orthogonal_combined.ckpt
    adapt import clip_cues data/checkpoints/cm_antonyms_combined.ckpt

arXiv:2602.12381; github.com/marco-willi/clip-cues, MIT. With h the pooled feature behind the final norm and before the
projection, and f the projected feature at unit length,

    linear      logit = w . h + b
    orthogonal  logit = v . (U h + a) + b       which is w . h + b' with w = U' v, b' = v . a + b
    concepts    logit = b + sum over c of v_c * (f . t_c) * sigmoid(u_c . f + a_c)    texts t_c: in the file

and fake where sigmoid(logit) > 0.5. For the first two the shortest side of the image is scaled to 336 px (bilinear),
then the central square is taken; for concepts by bicubic. All are normalised by CLIP's mean and deviation.

Concepts' images are those of the authors' notebook, which asks transformers' CLIPImageProcessor: it rounds odd margins
down, and so do we. Newer versions of it scale by torch, so that a value may lie a level beside ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.importers.weights import CLIP_MEAN, CLIP_STD, Importing, check_shapes, state_of, under

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.detector.detector import Detector
    from adapt.models.heads.affine import Affine
    from adapt.models.heads.concepts import Concepts

OURS = {"text_embeddings": "texts", "W_concepts": "gate", "W_classifier": "weigh"}  # names of `Concepts`


@dataclass(frozen=True, kw_only=True)
class Source(Importing):
    """CLIP-Cues."""

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.towers.backbones import load_backbone

        state = under(state_of(self.weights, "state_dict.model."), "classification_head.")
        concepts = "text_embeddings" in state
        backbone = load_backbone(tower, "proj" if concepts else "last")
        side = backbone.preprocess.size
        scaled = Preprocess(side, side, "bicubic", middle="lower") if concepts else Preprocess(side, side, "bilinear")
        backbone.prepare_by(scaled, CLIP_MEAN, CLIP_STD)
        made = _concepts if concepts else _linear
        return Detector(backbone, made(self.weights, state, backbone.dim))


def _concepts(file: Path, state: Mapping[str, "Tensor"], dim: int) -> "Concepts":
    from adapt.models.heads.concepts import Concepts

    count = (*state["text_embeddings"].shape, 0)[0]
    shapes = {"text_embeddings": (count, dim), "W_concepts.weight": (count, dim), "W_concepts.bias": (count,)}
    check_shapes(file, state, shapes | {"W_classifier.weight": (1, count), "W_classifier.bias": (1,)})
    head = Concepts(dim, count)
    parts = {key: key.partition(".") for key in state}
    head.load_state_dict({f"{OURS[first]}{dot}{rest}": state[key] for key, (first, dot, rest) in parts.items()})
    return head


def _linear(file: Path, state: Mapping[str, "Tensor"], dim: int) -> "Affine":
    """Both layers of the orthogonal probe are linear, with nothing between them: their product is one."""
    from adapt.models.heads.affine import Affine

    if "layers.0.weight" in state:
        units = (*state["layers.0.weight"].shape, 0)[0]
        shapes = {"layers.0.weight": (units, dim), "layers.0.bias": (units,)}
        check_shapes(file, state, shapes | {"to_logits.weight": (1, units), "to_logits.bias": (1,)})
        first, last = state["layers.0.weight"].double(), state["to_logits.weight"].double()
        bias = last @ state["layers.0.bias"].double() + state["to_logits.bias"].double()
        state = {"fc.weight": (last @ first).float(), "fc.bias": bias.float()}
    check_shapes(file, state, {"fc.weight": (1, dim), "fc.bias": (1,)})
    head = Affine(dim)
    head.load_state_dict(under(state, "fc."))
    return head

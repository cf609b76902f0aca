"""FGTS: a linear layer on the mean of a few patch tokens of DINOv3, which Fisher's score chose.

    adapt import fgts checkpoints/GenImage/linear_probe.pth

arXiv:2511.22471; github.com/hzlsaber/FGTS, MIT. With x_t the token at place t of [class, registers, patches] behind
the final norm of DINOv3 (the three published files: 7B, timm's copy), T the places in the file, and m their mean,

    m = mean over t in T of x_t,   logit = (w_fake - w_real) . m + b_fake - b_real,   fake where logit > 0

Both sides of the image are scaled to 224 px (bilinear; the file may say another size), and normalised by ImageNet's
mean and deviation. T holds patches alone, as the authors' `auto_fisher` chooses them: other places are refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.errors import Refusal
from adapt.importers.weights import Importing, check_shapes, plain_of, state_of, under

if TYPE_CHECKING:
    from adapt.detector.detector import Detector

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BEFORE = 5  # places before the patches of every DINOv3: the class token and 4 registers
SIZE = 224  # unless the file says else


@dataclass(frozen=True, kw_only=True)
class Source(Importing):
    """FGTS."""

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        import torch

        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.heads.token_choice import ChosenTokens
        from adapt.models.towers.backbones import load_backbone

        state = under(state_of(self.weights), "probe_state_dict.", "model_state_dict.")
        asked = plain_of(self.weights, "config", "img_size")
        size = asked if type(asked) is int else SIZE
        backbone = load_backbone(tower, "last_tokens", size=size)
        backbone.prepare_by(Preprocess(size, size, "bilinear", "squash"), MEAN, STD)
        count, width = backbone.tokens()["last"]
        check_shapes(self.weights, state, {"fc.weight": (2, width), "fc.bias": (2,)})
        head = ChosenTokens(torch.tensor(_places(self.weights, count)), width)
        (real, fake), (bias_real, bias_fake) = state["fc.weight"], state["fc.bias"]
        ours = {"weight": (fake - real)[None], "bias": (bias_fake - bias_real)[None]}
        head.load_state_dict(ours | {"chosen": head.chosen})
        return Detector(backbone, head)


def _places(file: Path, patches: int) -> list[int]:
    """Where the chosen tokens stand among the patches."""
    listed = plain_of(file, "token_indices") or plain_of(file, "config", "custom_tokens")
    if not isinstance(listed, list) or not listed or not all(type(place) is int for place in listed):
        raise Refusal(f"{file} does not list its tokens (token_indices): give the authors' own linear_probe.pth")
    if wrong := [place for place in listed if not BEFORE <= place < BEFORE + patches]:
        raise Refusal(
            f"{file} reads token {wrong[0]}, and patches have {BEFORE} to {BEFORE + patches - 1}: give the tower that "
            "it was trained on (--backbone); probes of the class token or of registers are not read"
        )
    return [place - BEFORE for place in listed]

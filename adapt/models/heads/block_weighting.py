"""RINE: the class tokens of all blocks, weighted by an importance that is learnt (2402.19091)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapt.models.heads.classifier import Classifier, Parts, parts_of

SETTINGS = ((4, 128), (2, 1024))  # depth and hidden width of two published models (src/utils.py of its repository)
EPOCHS, BATCH, RATE = 15, 128, 1e-3  # batch and rate as published, where one epoch was all of a larger set


def _layers(count: int, dim: int, hidden: int) -> nn.Sequential:
    made: list[nn.Module] = [nn.Dropout()]
    for i in range(count):
        made += [nn.Linear(dim if i == 0 else hidden, hidden), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*made)


class BlockWeighting(Classifier):
    """Features (n, blocks * width), one part a block -> logits (n, classes).

    With g_b = Q1(x_b), the projection of block b's class token, and the importance A (blocks, hidden),

        z = Q2( sum over b of softmax over b (A)_b * g_b ),   logits = three-layer perceptron of z

    as `Model.forward` of github.com/mever-team/rine computes it; Q1 and Q2 are `depth` layers with ReLU and dropout
    of one half. The equations of the paper itself were not at hand. What differs: the token is the one behind the
    whole block, at unit length and standardised, where the authors' code hooks the block's second norm; one logit a
    class (softmax) stands for one logit (sigmoid); and the contrastive term of the loss is left out. An imported RINE
    (adapt/importers/rine.py) reads the authors' tokens, as they are: without `scaled`.
    """

    def __init__(
        self, dim: int, classes: Sequence[str], width: int, depth: int, hidden: int, scaled: bool = True
    ) -> None:
        super().__init__(classes)
        self.width, self.depth, self.hidden, self.scaled = width, depth, hidden, scaled
        blocks = parts_of(dim, width)
        self.parts = Parts(width, blocks, scaled)
        self.project = _layers(depth, width, hidden)
        self.importance = nn.Parameter(torch.randn(blocks, hidden))
        self.refine = _layers(depth, hidden, hidden)
        ends = [nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout()]
        self.classify = nn.Sequential(*ends, nn.Linear(hidden, len(self.classes)))

    def weights(self) -> Tensor:
        """(blocks, hidden): how much each block counts for each feature; the sum over blocks is 1."""
        return self.importance.softmax(dim=0)

    def class_logits(self, features: Tensor) -> Tensor:
        projected = self.project(self.parts(features))
        return self.classify(self.refine((self.weights() * projected).sum(dim=1)))

    def describe(self) -> dict[str, object]:
        facts = {"classes": list(self.classes), "width": self.width, "depth": self.depth, "hidden": self.hidden}
        return {"type": "block-weighting", **facts, **({} if self.scaled else {"scaled": False})}

"""The patch tokens that tell real from fake best, chosen without training by Fisher's score (2511.22471, FGTS)."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from adapt.models.heads.affine import Affine
from adapt.models.heads.classifier import Classifier, parts_of
from adapt.models.heads.probes import Probe

COUNTS = (5, 10, 20, 50)  # numbers of tokens that validation chooses among, beside all; published: 10 or 20 of 196
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@torch.no_grad()
def fisher_scores(batches: Batches, width: int) -> Tensor:
    """Score (p,) float64 of each place, from features (m, p * width) and fake (m,) bool, batch by batch, read twice.

        F_t = |mu_real - mu_fake| / ((s_real + s_fake) / 2 + 1e-8),   s_c = mean over class c of |x_t - mu_c|

    with the class means mu of token t and Euclidean lengths, as `compute_fisher_scores` of github.com/hzlsaber/FGTS
    computes it: mean distances, where Fisher's own criterion has squares. (The paper's equation was not at hand.)
    Memory: one batch, and two means (p, width) in float64.
    """

    def means(of: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, Tensor]:
        totals, counts = [torch.zeros(()), torch.zeros(())], [0, 0]
        for features, fake in batches():
            tokens = features.double().unflatten(1, (-1, width))
            for label in (0, 1):
                here = tokens[fake == bool(label)]
                totals[label] = totals[label] + of(here, label).sum(dim=0)
                counts[label] += len(here)
        return totals[0] / counts[0], totals[1] / counts[1]

    centres = means(lambda tokens, _: tokens)
    spread = means(lambda tokens, label: (tokens - centres[label]).norm(dim=-1))
    return (centres[0] - centres[1]).norm(dim=-1) / ((spread[0] + spread[1]) / 2 + 1e-8)


class TokenChoice(Classifier):
    """Features (n, p * width), one part a token -> logits (n, classes): a `Probe` of the mean of the chosen tokens."""

    chosen: Tensor  # (k,) int64, places of the tokens, best first

    def __init__(self, chosen: Tensor, width: int, probe: Probe) -> None:
        super().__init__(probe.classes)
        self.width, self.probe = width, probe
        self.register_buffer("chosen", chosen)

    @classmethod
    def from_state(cls, dim: int, tensors: Mapping[str, Tensor], classes: Sequence[str], width: int) -> "TokenChoice":
        """The head that `describe` and `state_dict` were taken from; raises `ValueError` for places that are none."""
        return cls(_places(tensors, parts_of(dim, width)), width, Probe(width, classes, "logistic"))

    def pooled(self, features: Tensor) -> Tensor:
        """(n, p * width) -> (n, width)."""
        return _mean_of(features, self.width, self.chosen)

    def class_logits(self, features: Tensor) -> Tensor:
        return self.probe.class_logits(self.pooled(features))

    def describe(self) -> dict[str, object]:
        return {"type": "token-choice", "classes": list(self.classes), "width": self.width}


class ChosenTokens(Affine):
    """Features (n, p * width), one part a token -> logit (n,): weight . m + bias, m the mean of the chosen tokens.

    An imported FGTS (adapt/importers/fgts.py), whose tokens are read as they are.
    """

    chosen: Tensor  # (k,) int64, places of the tokens

    def __init__(self, chosen: Tensor, width: int) -> None:
        super().__init__(width)
        self.width = width
        self.register_buffer("chosen", chosen)

    @classmethod
    def from_state(cls, dim: int, tensors: Mapping[str, Tensor], width: int) -> "ChosenTokens":
        """The head that `describe` and `state_dict` were taken from; raises `ValueError` for places that are none."""
        return cls(_places(tensors, parts_of(dim, width)), width)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(_mean_of(features, self.width, self.chosen))

    def describe(self) -> dict[str, object]:
        return {"type": "chosen-tokens", "width": self.width}


def _mean_of(features: Tensor, width: int, chosen: Tensor) -> Tensor:
    return features.float().unflatten(1, (-1, width))[:, chosen].mean(dim=1)


def _places(tensors: Mapping[str, Tensor], tokens: int) -> Tensor:
    """The places of chosen tokens in a head's tensors."""
    chosen = tensors.get("chosen", torch.zeros(0))
    if chosen.dtype != torch.int64 or chosen.ndim != 1 or not len(chosen):
        raise ValueError("it lacks the places of the chosen tokens")
    if not ((chosen >= 0) & (chosen < tokens)).all():
        raise ValueError(f"chosen tokens {chosen.tolist()}, and there are {tokens}")
    return chosen.clone()

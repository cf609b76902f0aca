"""Heads: features -> logits."""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapt.errors import Refusal

BINARY = ("real", "fake")


def binary_logit(class_logits: Tensor) -> Tensor:
    """(n, c), class 0 real -> (n,), the logit of "AI-generated": logsumexp of the fakes' logits minus that of real.

    The logistic function of it is 1 - softmax(class_logits)[:, 0], the chance of all fake classes together. NaN stays.
    """
    if class_logits.ndim != 2 or class_logits.shape[1] < 2:
        shape = tuple(class_logits.shape)
        raise Refusal(f"class logits of shape {shape}: give (n, classes), real first and a fake class")
    return class_logits[:, 1:].logsumexp(dim=1) - class_logits[:, 0]


def classes_of(head: nn.Module) -> tuple[str, ...]:
    """The classes, real first, of a head that has more than two; else none."""
    classes = tuple(getattr(head, "classes", ()))
    return classes if len(classes) > 2 else ()


def trained_logits(head: nn.Module, features: Tensor) -> Tensor:
    """What losses look at: logits of the classes (n, classes) of a head of more than two, else the logit (n,)."""
    return head.class_logits(features) if classes_of(head) else head(features)


class LinearHead(nn.Module):
    """Features (n, d) -> logit of "AI-generated" (n,).

    With two classes one linear function is that logit. With more, real first, there is one for each (`class_logits`),
    and the logit is their `binary_logit`.
    Features are scaled to unit root mean square first: whatever their length in a backbone,
    one learning rate then fits. Weights start at zero, so an untrained head says p = 0.5.
    """

    def __init__(self, dim: int, classes: Sequence[str] = BINARY) -> None:
        super().__init__()
        if len(classes) < 2 or classes[0] != "real" or len(set(classes)) < len(classes):
            raise ValueError(f"classes {', '.join(classes)}: give real first, and each class of fakes once")
        self.classes = tuple(classes)
        self.linear = nn.Linear(dim, len(classes) if len(classes) > 2 else 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if len(classes) > 2:  # as likely as all fakes together
            self.linear.bias.data[0] = math.log(len(classes) - 1)

    def _linear(self, features: Tensor) -> Tensor:
        return self.linear(F.normalize(features.float(), dim=-1) * features.shape[-1] ** 0.5)

    def class_logits(self, features: Tensor) -> Tensor:
        """(n, classes); softmax gives probabilities."""
        found = self._linear(features)
        return found if len(self.classes) > 2 else torch.cat([torch.zeros_like(found), found], dim=1)

    def forward(self, features: Tensor) -> Tensor:
        found = self._linear(features)
        return binary_logit(found) if len(self.classes) > 2 else found.squeeze(-1)

    @torch.no_grad()
    def grown(self, more: Sequence[str]) -> Self:
        """A head of these further classes of fakes, behind its own.

        A head of `BINARY` keeps its logit: its fakes are divided equally among the `more` classes, which replace
        them. Another one keeps its class logits. A new class begins at the mean of the present fake logits, which
        adds at most log(1 + m / k) to the binary logit for m new classes beside k: a mean of logits is at most their
        logsumexp less log k.
        """
        rows = torch.cat([self.linear.weight, self.linear.bias[:, None]], dim=1)
        if len(self.classes) == 2:  # the logit of real is zero
            rows = torch.cat([torch.zeros_like(rows), rows])
        new, kept = rows[1:].mean(dim=0), self.classes
        if self.classes == BINARY:
            new[-1] -= math.log(len(more))
            rows, kept = rows[:1], kept[:1]
        rows = torch.cat([rows, new.expand(len(more), -1)])
        head = type(self)(self.linear.in_features, (*kept, *more)).to(rows.device)
        rows = rows if len(rows) > 2 else rows[1:]
        head.linear.weight.copy_(rows[:, :-1])
        head.linear.bias.copy_(rows[:, -1])
        return head

    def describe(self) -> dict[str, object]:
        """The head's type and what its constructor needs beside the dimension, for detector.json."""
        return {"type": "linear"} | ({"classes": list(self.classes)} if self.classes != BINARY else {})


def balanced_bce(logits: Tensor, fake: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy (n,), (n,), (n,) -> sum of weight * loss; divide by the weight a batch has on average."""
    return (weight * F.binary_cross_entropy_with_logits(logits, fake, reduction="none")).sum()


def cross_entropy(class_logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Class logits (n, c), class numbers (n,), weights (n,) -> sum of weight * -log softmax(class_logits)[label].

    A label of -1 is of no class and counts nothing. Classes are balanced by the weights (`ClassLabels` of
    data/groups.py). Divide as with `balanced_bce`.
    """
    losses = F.cross_entropy(class_logits, label, reduction="none", ignore_index=-1)
    return (weight * losses).sum()

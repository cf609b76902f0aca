"""What the heads with named classes have in common, and how those without a solver of their own are trained."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapt.models.heads.linear import binary_logit


class Classifier(nn.Module):
    """Features (n, d) -> logit of "AI-generated" (n,), and one logit for each of `classes`, "real" first."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)

    def class_logits(self, features: Tensor) -> Tensor:
        """(n, classes); softmax gives probabilities."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        """log p(not real) - log p(real): with many classes, 1 - p(real) as a logit."""
        return binary_logit(self.class_logits(features))

    def describe(self) -> dict[str, object]:
        """The head's type and what rebuilds it beside dimension and tensors, for detector.json."""
        raise NotImplementedError


def parts_of(dim: int, width: int) -> int:
    """How many parts of this width make a feature of length `dim`; raises `ValueError` if they do not."""
    if not 0 < width <= dim or dim % width:
        raise ValueError(f"features of length {dim} are not made of parts of width {width}")
    return dim // width


class Parts(nn.Module):
    """Features (n, parts * width) -> (n, parts, width): each part of unit length, less mean, over deviation.

    The parts are blocks or patch tokens. Blocks have statistics of their own, whose lengths differ between blocks;
    tokens share theirs (`rows` 1), so that places are alike. Without `scaled` parts keep their lengths.
    """

    mean: Tensor  # (rows, width), of the training rows
    deviation: Tensor

    def __init__(self, width: int, rows: int, scaled: bool = True) -> None:
        super().__init__()
        self.width, self.scaled = width, scaled
        self.register_buffer("mean", torch.zeros(rows, width))
        self.register_buffer("deviation", torch.ones(rows, width))

    def unit(self, features: Tensor) -> Tensor:
        parts = features.float().unflatten(1, (-1, self.width))
        return F.normalize(parts, dim=-1) if self.scaled else parts

    def forward(self, features: Tensor) -> Tensor:
        return (self.unit(features) - self.mean) / self.deviation

    @torch.no_grad()
    def standardise(self, batches: Iterator[Tensor]) -> None:
        """Take mean and deviation from the training features, (m, parts * width) at a time, in float64."""
        count, total, squares = 0, torch.zeros(self.mean.shape, dtype=torch.float64), 0.0
        for batch in batches:
            units = self.unit(batch).double()
            units = units if len(self.mean) > 1 else units.flatten(0, 1)[:, None]
            count, total, squares = count + len(units), total + units.sum(dim=0), squares + (units**2).sum(dim=0)
        mean = total / count
        deviation = (squares / count - mean**2).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))  # a constant feature stays 0


def train_by_steps(
    module: nn.Module,
    logits: Callable[[Tensor], Tensor],
    labels: Tensor,
    classes: int,
    *,
    epochs: int,
    batch: int,
    rate: float,
    decay: float,
    generator: torch.Generator,
    seed: int,
) -> Iterator[int]:
    """Train `module` with AdamW, cosine to zero, on the weighted cross-entropy of all classes; yields each epoch's
    number when it ends.

    `logits` makes (m, classes) of row numbers (m,): what it reads is its own. Classes weigh equally. `generator` draws
    the order of the rows, `seed` the dropout.
    """
    weight = len(labels) / (classes * torch.bincount(labels, minlength=classes).float())
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=decay)
    batches = max(1, len(labels) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)  # of dropout
        for epoch in range(1, epochs + 1):
            module.train()
            for rows in torch.randperm(len(labels), generator=generator).tensor_split(batches):
                loss = F.cross_entropy(logits(rows), labels[rows], weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            yield epoch

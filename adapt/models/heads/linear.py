"""Heads: features -> logits."""

from torch import Tensor, nn
from torch.nn import functional as F

from adapt.errors import Refusal


def binary_logit(class_logits: Tensor) -> Tensor:
    """(n, c), class 0 real -> (n,), the logit of "AI-generated": logsumexp of the fakes' logits minus that of real.

    The logistic function of it is 1 - softmax(class_logits)[:, 0], the chance of all fake classes together. NaN stays.
    """
    if class_logits.ndim != 2 or class_logits.shape[1] < 2:
        shape = tuple(class_logits.shape)
        raise Refusal(f"class logits of shape {shape}: give (n, classes), real first and a fake class")
    return class_logits[:, 1:].logsumexp(dim=1) - class_logits[:, 0]


class LinearHead(nn.Module):
    """Features (n, d) -> logit of "AI-generated" (n,).

    Features are scaled to unit root mean square first: whatever their length in a backbone,
    one learning rate then fits. Weights start at zero, so an untrained head says p = 0.5.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        unit = F.normalize(features.float(), dim=-1) * features.shape[-1] ** 0.5
        return self.linear(unit).squeeze(-1)

    def describe(self) -> dict[str, str]:
        """The head's type, for detector.json."""
        return {"type": "linear"}


def balanced_bce(logits: Tensor, fake: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy (n,), (n,), (n,) -> sum of weight * loss; divide by the weight a batch has on average."""
    return (weight * F.binary_cross_entropy_with_logits(logits, fake, reduction="none")).sum()

"""The linear layer of a published detector, on features as they are."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Affine(nn.Module):
    """Features (n, d) -> logit of "AI-generated" (n,): weight . x + bias, with `unit` of x / |x|.

    `LinearHead` scales features first, which is right for training and wrong for weights that were trained without.
    """

    def __init__(self, dim: int, unit: bool = False) -> None:
        super().__init__()
        self.unit = unit
        self.weight = nn.Parameter(torch.zeros(1, dim))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        features = F.normalize(features.float(), dim=-1) if self.unit else features.float()
        return F.linear(features, self.weight, self.bias).squeeze(-1)

    def describe(self) -> dict[str, object]:
        """The head's type and what its constructor needs beside the dimension, for detector.json."""
        return {"type": "affine", "unit": self.unit}

"""A concept bottleneck: an image is compared with texts, and opens gates for those that count (2602.12381)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Concepts(nn.Module):
    """Projected features (n, d) -> logit of "AI-generated" (n,).

    With f of unit length, a text t_c, a gate (u_c, a_c) and a weight v_c for each concept c,

        logit = b + sum over c of v_c * (f . t_c) * sigmoid(u_c . f + a_c)

    as `ConceptBottleneckModel` of github.com/marco-willi/clip-cues computes it when it does not train.
    """

    texts: Tensor  # (concepts, d), of unit length

    def __init__(self, dim: int, concepts: int) -> None:
        super().__init__()
        self.register_buffer("texts", torch.zeros(concepts, dim))
        self.gate = nn.Linear(dim, concepts)
        self.weigh = nn.Linear(concepts, 1)

    def forward(self, features: Tensor) -> Tensor:
        units = F.normalize(features.float(), dim=-1)
        return self.weigh(units @ self.texts.T * self.gate(units).sigmoid()).squeeze(-1)

    def describe(self) -> dict[str, object]:
        """The head's type and what its constructor needs beside the dimension, for detector.json."""
        return {"type": "concepts", "concepts": len(self.texts)}

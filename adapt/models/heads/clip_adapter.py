"""CLIP-Adapter (2110.04544) as CLIPping the Deception (2402.12927) trained it: adapted features beside two texts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATIO = 0.4  # of the adapted feature in the mixture
SCALE = 100.0  # of cosines: exp(logit_scale) of OpenAI's CLIPs


class ClipAdapter(nn.Module):
    """Projected features f (n, d) -> logit of "AI-generated" (n,).

        g = RATIO * ReLU(B ReLU(A f)) + (1 - RATIO) * f,   logit = SCALE * (cos(g, t_fake) - cos(g, t_real))

    A (hidden, d) and B (d, hidden) have no bias; `texts` (2, d) are t_real and t_fake at unit length.
    """

    texts: Tensor

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(hidden, dim, bias=False)
        self.register_buffer("texts", torch.zeros(2, dim))

    def forward(self, features: Tensor) -> Tensor:
        features = features.float()
        adapted = self.up(self.down(features).relu()).relu()
        mixed = F.normalize(RATIO * adapted + (1 - RATIO) * features, dim=-1)
        return SCALE * mixed @ (self.texts[1] - self.texts[0])

    def describe(self) -> dict[str, object]:
        """The head's type and what its constructor needs beside the dimension, for detector.json."""
        return {"type": "clip-adapter", "hidden": self.down.out_features}

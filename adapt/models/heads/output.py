"""The head of a complete network: what its outputs mean."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

OutputIs = Literal[
    "fake_logit",
    "real_logit",
    "fake_probability",
    "real_probability",
    "real_fake_logits",
    "fake_real_logits",
    "real_fake_probabilities",
    "fake_real_probabilities",
]


class Output(nn.Module):
    """Outputs (n, 1 or 2) of a network -> logit of "AI-generated" (n,), exactly:

        fake_logit x: x                            real_fake_logits (r, f): f - r, the logit of their softmax
        fake_probability p: log p - log(1 - p)     real_fake_probabilities (r, f): log f - log r

    The `real` ones have the other sign. Logarithms are in float64, and finite at 0 and 1 (as in evaluation/scores.py):
    the ends stay apart from all that lies between. What is no probability has no logit (NaN).
    """

    def __init__(self, dim: int, output_is: OutputIs) -> None:
        super().__init__()
        if output_is not in get_args(OutputIs):
            raise ValueError(f"output_is {output_is!r}, expected {', '.join(get_args(OutputIs))}")
        self.output_is: OutputIs = output_is
        self.width = 2 if output_is.endswith("s") else 1  # logits, probabilities
        if dim != self.width:
            raise ValueError(f"{output_is} means {self.width} a picture, and the network gives {dim}")

    def forward(self, features: Tensor) -> Tensor:
        values = features.double()
        if self.output_is.endswith(("probability", "probabilities")):
            values = torch.where((values >= 0) & (values <= 1), values, torch.nan)
            other = values.flip(1).log() if self.width == 2 else torch.log1p(-values)
            logits = (values.log() - other).clamp(-745.0, 745.0 if self.width == 2 else 37.0)
        else:
            logits = values - values.flip(1) if self.width == 2 else values
        first = logits[:, 0].float()
        return first if self.output_is.startswith("fake") else -first

    def describe(self) -> dict[str, object]:
        """The head's type and what its constructor needs beside the dimension, for detector.json."""
        return {"type": "output", "output_is": self.output_is}

"""Attention pooling over patch tokens, learnt for the task, instead of the pooling that the tower was trained with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapt.models.heads.classifier import Classifier, Parts, parts_of

RATES = (1e-4, 1e-3)
EPOCHS, BATCH, DECAY = 15, 128, 1e-2
HEAD = 64  # width of an attention head, as in a ViT


class AttentionPooling(Classifier):
    """Features (n, tokens * width), one part a token -> logits (n, classes).

    One learnt query q attends to the tokens x_1 ... x_p by scaled dot products in several heads (1706.03762, eq. 1 and
    section 3.2.2): pooling by multi-head attention with one seed (1810.00825, section 3.2, without its feed-forward
    layer). A linear layer follows. 2604.26772 ("tunable attention pooling") motivates it; its abstract alone was at
    hand, so the details of that head are not claimed. The query meets each key through W_k' q, and values are
    projected behind the mean: the same function at the cost of one product of a token with `heads` vectors.
    """

    def __init__(self, dim: int, classes: Sequence[str], width: int) -> None:
        super().__init__(classes)
        parts_of(dim, width)
        self.width = width
        self.heads = width // HEAD if width >= HEAD and width % HEAD == 0 else 1
        self.parts = Parts(width, 1)
        self.query = nn.Parameter(torch.randn(width) * 0.02)  # beside keys of about unit entries: all tokens count
        self.key = nn.Linear(width, width, bias=False)  # the same for every token, so its bias would change nothing
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.classify = nn.Linear(width, len(self.classes))

    def attention(self, tokens: Tensor) -> Tensor:
        """Standardised tokens (n, p, width) -> weights (n, heads, p); the sum over tokens is 1."""
        size = self.width // self.heads
        query, key = self.query.view(self.heads, 1, size), self.key.weight.view(self.heads, size, self.width)
        return (tokens @ (query @ key)[:, 0].T / size**0.5).softmax(dim=1).transpose(1, 2)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Standardised tokens (n, p, width) -> (n, width)."""
        size = self.width // self.heads
        means = (self.attention(tokens) @ tokens)[:, :, None]  # (n, heads, 1, width)
        value = self.value.weight.view(self.heads, size, self.width).transpose(1, 2)
        return self.out((means @ value).flatten(1) + self.value.bias)

    def class_logits(self, features: Tensor) -> Tensor:
        return self.classify(self.pooled(self.parts(features)))

    def describe(self) -> dict[str, object]:
        return {"type": "attention-pooling", "classes": list(self.classes), "width": self.width}

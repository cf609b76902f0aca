"""A prior, with or without a Tip-Adapter cache beside it, as a head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapt.models.heads.linear import binary_logit
from adapt.models.heads.probes import Probe
from adapt.models.heads.tip_adapter import TipAdapter, probe_prior, text_prior


class PriorHead(nn.Module):
    """Features (n, d) -> logit of "AI-generated" (n,), and one logit for each of `classes`.

    The prior is the cosine to `texts` (classes, d), or the class logits of a `probe`, or the logit of any other `head`
    of two classes, or zero; `cache` adds its votes.
    """

    def __init__(
        self,
        classes: Sequence[str],
        texts: Tensor | None = None,
        probe: Probe | None = None,
        cache: TipAdapter | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.classes, self.texts, self.probe, self.cache, self.head = tuple(classes), texts, probe, cache, head

    def beside(self, cache: TipAdapter) -> "PriorHead":
        """The same prior with a cache."""
        return PriorHead(self.classes, self.texts, self.probe, cache, self.head)

    def prior(self, features: Tensor) -> Tensor:
        """Logits (n, classes) before the cache votes."""
        if self.probe is not None:
            return self.probe.class_logits(features)
        if self.texts is not None:
            return text_prior(features, self.texts)
        if self.head is not None:
            return probe_prior(self.head(features), len(self.classes))
        return torch.zeros(len(features), len(self.classes))

    def class_logits(self, features: Tensor) -> Tensor:
        prior = self.prior(features)
        return prior if self.cache is None else self.cache(features, prior)

    def forward(self, features: Tensor) -> Tensor:
        return binary_logit(self.class_logits(features))

"""A prior, with or without a Tip-Adapter cache beside it, as a head."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adapt.models.heads.classifier import Classifier
from adapt.models.heads.probes import Probe
from adapt.models.heads.tip_adapter import TipAdapter, probe_prior, text_prior


class PriorHead(Classifier):
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
        super().__init__(classes)
        self.probe, self.cache, self.head = probe, cache, head
        self.register_buffer("texts", texts)

    @classmethod
    def from_state(
        cls,
        dim: int,
        tensors: Mapping[str, Tensor],
        classes: Sequence[str],
        prior: str,
        cache: bool,
        probe: Mapping[str, object] | None = None,
    ) -> "PriorHead":
        """The head that `describe` and `state_dict` were taken from. Shapes of text and probe are for the caller to
        compare; a cache that is none is refused. Raises `ValueError` for an unknown prior."""
        if prior not in ("text", "probe", "none"):
            raise ValueError(f"prior {prior!r}: known are text, probe and none")
        texts = torch.zeros(len(classes), dim) if prior == "text" else None
        fitted = Probe(dim, classes, **dict(probe or {})) if prior == "probe" else None
        of_cache = {name.removeprefix("cache."): value for name, value in tensors.items() if name.startswith("cache.")}
        return cls(classes, texts, fitted, TipAdapter.from_state(of_cache) if cache else None)

    def describe(self) -> dict[str, object]:
        """The head's type and what `from_state` needs beside dimension and tensors, for detector.json."""
        if self.head is not None:
            raise ValueError("the logit of another head as a prior is for experiments: it cannot be saved")
        prior = "text" if self.texts is not None else "probe" if self.probe is not None else "none"
        found = {"type": "tip-adapter", "classes": list(self.classes), "prior": prior, "cache": self.cache is not None}
        return found | ({"probe": {"kind": self.probe.kind, "unit": self.probe.unit}} if self.probe else {})

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
        return features.new_zeros(features.shape[0], len(self.classes), dtype=torch.float32)  # len() fixes n in ONNX

    def class_logits(self, features: Tensor) -> Tensor:
        """(n, classes); softmax gives probabilities."""
        prior = self.prior(features)
        return prior if self.cache is None else self.cache.beside(prior, features.float())

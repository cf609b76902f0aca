"""What is trained: a head on cached features, or adapters in the tower beneath it; one face for both."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from adapt.data.groups import Groups
from adapt.data.manifest import Manifest
from adapt.detector import Detector, score
from adapt.evaluation.scores import Scores
from adapt.features import Features
from adapt.models.backbones import Backbone
from adapt.models.heads import LinearHead
from adapt.probing import FeatureGroups, score_features
from adapt.processes import Processes


class FeaturesAndLogits(nn.Module):
    """Pixels (n, 3, h, w), or features (n, d) where there is no backbone -> features (n, d), logits (n,)."""

    def __init__(self, backbone: Backbone | None, head: LinearHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = inputs if self.backbone is None else self.backbone(inputs)
        return features, self.head(features)


class Tuning:
    """Model, training data and scores of a linear head: on `features` if they are given, else on the tower itself."""

    def __init__(self, processes: Processes, rows: Manifest, backbone: Backbone, features: Features | None) -> None:
        self.processes, self.rows, self.features = processes, rows, features
        self.detector = Detector(backbone, LinearHead(backbone.dim))
        self.model = FeaturesAndLogits(backbone if features is None else None, self.detector.head)

    def parameters(self, rate: float, head_rate: float) -> list[dict[str, Any]]:
        """Groups of parameters for an optimizer: adapters, if there are any, and head."""
        adapters = [p for p in self.detector.backbone.parameters() if p.requires_grad]
        groups = [{"params": self.detector.head.parameters(), "lr": head_rate}]
        return groups if self.features else [{"params": adapters, "lr": rate}, *groups]

    @property
    def trainable(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def data(self, images: Manifest, views: Sequence[str], seed: int, twins: bool) -> Groups | FeatureGroups:
        """Training data of the groups of `images`, the training rows in whatever company."""
        if self.features:
            return FeatureGroups(self.features, images, views, seed, twins)
        return Groups(images, self.detector.backbone.preprocess, tuple(views), seed, twins=twins)

    def workers(self, asked: int | None) -> int:
        """Data processes: none for features, which wait on a disk only."""
        return 0 if self.features else self.processes.workers(asked)

    def score(self, which: np.ndarray, views: Sequence[str], num_workers: int | None, progress: str) -> Scores:
        """Scores of rows under views, in every process."""
        if self.features:
            return score_features(self.features, which, views, self.detector.head.eval())
        sharing = {"share": self.processes.share_of_rows, "gather": self.processes.gather}
        workers = self.processes.workers(num_workers)
        return score(self.detector, self.rows, which, tuple(views), progress=progress, workers=workers, **sharing)

"""What is trained: a head on cached features, or adapters in the tower beneath it; one face for both. And the
detector that a run goes on from."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adapt.data.groups import ClassLabels, Groups
from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector, load_detector, score
from adapt.errors import Refusal
from adapt.evaluation.scores import Scores
from adapt.features.cache import Features
from adapt.flags import Tower
from adapt.models.adapters.lora import add_adapter
from adapt.models.heads.linear import BINARY, LinearHead, trained_logits
from adapt.models.heads.tip_head import PriorHead
from adapt.models.towers.backbones import Backbone
from adapt.processes import Processes
from adapt.training.final_scores import final_scores
from adapt.training.on_features import FeatureGroups, score_features
from adapt.training.run import Run


def continued(folder: Path, config: Tower, seed: int, say: Callable[[str], object]) -> Detector:
    """The saved detector, ready to be trained on; `say` gets a line about the config's flags that this leaves idle.

    Its base, layer, geometry, size, precision, adapter and head are what training goes on with; one without an adapter
    gets a fresh one by the config. A residual of an SVD goes on as the LoRA that it was saved as. Refuses a flag that
    is neither at its default nor what the detector has; `backbone` may name the same weights at another place.
    """
    default = Tower()
    detector = load_detector(folder, None if config.backbone == default.backbone else config.backbone)
    detector.refuse_statistics("training that goes on from it")
    detector.refuse_complete("training that goes on from it")
    backbone, head = detector.backbone, detector.head
    own: dict[str, object] = {"layer": backbone.layer, "geometry": backbone.preprocess.geometry}
    own["size"] = backbone.preprocess.size
    own["precision"] = "bf16" if backbone.dtype == torch.bfloat16 else "fp32"
    adapter = getattr(backbone.tower, "peft_config", {}).get("default")
    if adapter is not None:
        own["update"] = "lora"
        if adapter.peft_type == "LORA":
            own |= {"rank": adapter.r, "alpha": adapter.lora_alpha, "dropout": adapter.lora_dropout}
    for name, has in own.items():
        unasked = float(config.rank) if name == "alpha" else getattr(default, name)
        if (asked := getattr(config, name)) not in (unasked, has):
            raise Refusal(f"--{name} {asked}: training goes on from {folder}, which has {has}; leave the flag out")
    if getattr(head, "pairs", ()):
        raise Refusal(f"{folder} counts votes of duels (svm, several classes), which cannot be trained on")
    if isinstance(head, PriorHead):
        raise Refusal(
            f"{folder} is a Tip-Adapter, whose cache holds features of the tower as it was: adapt trains no tower "
            "beneath it; go on from a detector of lora.py or linear_probe.py"
        )
    head.requires_grad_(True)
    if adapter is None:
        size = (config.rank, config.alpha, config.dropout, config.last_blocks, seed)
        add_adapter(backbone, config.targets, *size, config.update)
        say(f"going on from {folder}: its head, with a fresh adapter")
    else:
        idle = "--targets, --last_blocks, --rank, --alpha and --dropout do not apply"
        say(f"going on from {folder}: its adapter and head; {idle}")
    return detector


class FeaturesAndLogits(nn.Module):
    """Pixels (n, 3, h, w), or features (n, d) where there is no backbone -> features (n, d), `trained_logits`."""

    def __init__(self, backbone: Backbone | None, head: LinearHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = inputs if self.backbone is None else self.backbone(inputs)
        return features, trained_logits(self.head, features)


class Tuning:
    """Model, training data and scores of a linear head: on `features` if they are given, else on the tower itself."""

    def __init__(
        self,
        processes: Processes,
        rows: Manifest,
        backbone: Backbone,
        features: Features | None,
        classes: Sequence[str] = BINARY,
    ) -> None:
        self.processes, self.rows, self.features = processes, rows, features
        self.head = LinearHead(backbone.dim, classes)
        self.detector = Detector(backbone, self.head)
        self.model = FeaturesAndLogits(backbone if features is None else None, self.head)

    def parameters(self, rate: float, head_rate: float) -> list[dict[str, object]]:
        """Groups of parameters for an optimizer: adapters, if there are any, and head."""
        adapters = [p for p in self.detector.backbone.parameters() if p.requires_grad]
        groups: list[dict[str, object]] = [{"params": self.head.parameters(), "lr": head_rate}]
        return groups if self.features else [{"params": adapters, "lr": rate}, *groups]

    @property
    def trainable(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def data(
        self,
        images: Manifest,
        views: Sequence[str],
        seed: int,
        twins: bool,
        labels: ClassLabels | None = None,
        own_quality: bool = False,
    ) -> Groups | FeatureGroups:
        """Training data of the groups of `images`, the training rows in whatever company, with their `labels`."""
        if self.features:
            return FeatureGroups(self.features, images, views, seed, twins, labels)
        own = self.detector.backbone.preprocess
        return Groups(images, own, tuple(views), seed, twins=twins, labels=labels, own_quality=own_quality)

    def workers(self, asked: int | None) -> int:
        """Data processes: none for features, which wait on a disk only."""
        return 0 if self.features else self.processes.workers(asked)

    def score(self, which: np.ndarray, views: Sequence[str], num_workers: int | None, progress: str) -> Scores:
        """Scores of rows under views, in every process."""
        if self.features:
            return score_features(self.features, which, views, self.head.eval())
        scoring = self.processes.scoring(num_workers)
        return score(self.detector, self.rows, which, tuple(views), progress=progress, **scoring)

    def final_scores(
        self, run: Run, which: np.ndarray, views: Sequence[str], num_workers: int | None
    ) -> Scores | None:
        """Scores of rows under views for the page; None in other processes than the first."""
        if self.features:
            return self.score(which, views, num_workers, "scoring") if run.main else None
        return final_scores(run, self.detector, self.rows, which, views, num_workers)

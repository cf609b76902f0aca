"""Training data of a tower whose lower blocks are frozen: images, or the tokens behind those blocks from the cache."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adapt.data.focus import Focus
from adapt.data.groups import ClassLabels, Groups
from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector, score
from adapt.errors import Refusal
from adapt.evaluation.scores import Scores
from adapt.features.cache import extract, feature_cache, space_folder, state_room
from adapt.models.adapters.cut_tower import Prefix, TrainedPart
from adapt.models.adapters.lora import merged
from adapt.models.heads.linear import binary_logit, classes_of
from adapt.processes import Processes
from adapt.training.on_features import FeatureGroups, score_features

AT_ONCE = 64  # images whose tokens are read and scored together
Data = tuple[Groups | FeatureGroups, Callable[[], Scores]]


def training_data(
    processes: Processes,
    part: nn.Module,
    detector: Detector,
    rows: Manifest,
    views: Sequence[str],
    seed: int,
    focus: Focus | None,
    cached: bool,
    num_workers: int | None,
    labels: ClassLabels | None = None,
    twins: bool = False,
    own_quality: bool = False,
    ramp: int = 0,
) -> Data:
    """Groups of the training rows, with their `labels`, and what scores the validation rows under the same views.

    With `cached` both are tokens from the cache of features. An image has one entry a view there, so it stands under
    its central crop in every epoch, as in scoring, instead of under one that is drawn for each epoch.
    """
    train = np.flatnonzero(rows["split"] == "train")
    if cached:
        if focus is not None:
            raise Refusal("--cache_prefix: cells cannot be shown more often from the cache; leave one of the two out")
        if not isinstance(part, TrainedPart):
            raise Refusal("--cache_prefix: this tower cannot be cut between blocks; leave the flag out")
        return _from_cache(processes, part, rows, views, seed, num_workers, labels, twins)
    val = np.flatnonzero(rows["split"] == "val")
    images, own = rows.select(train), detector.backbone.preprocess
    groups = Groups(images, own, tuple(views), seed, twins, focus, labels, own_quality, ramp)
    scoring = processes.scoring(num_workers)
    return groups, lambda: score(detector, rows, val, tuple(views), progress="validation", **scoring)


def _from_cache(
    processes: Processes,
    part: TrainedPart,
    rows: Manifest,
    views: Sequence[str],
    seed: int,
    num_workers: int | None,
    labels: ClassLabels | None,
    twins: bool,
) -> Data:
    used = rows.select(rows["split"] != "test")
    names = tuple(dict.fromkeys(views))
    prefix = Prefix(part)
    cache = feature_cache()
    each = part.tokens * part.width * torch.finfo(part.backbone.dtype).bits // 8
    check_room(cache, [space_folder(cache, prefix, prefix.layer, view) for view in names], len(used), each, processes)
    features = extract(prefix, used, names, cache=cache, **processes.encoding(num_workers))
    val = np.flatnonzero(used["split"] == "val")

    def validate() -> Scores:
        part.eval()
        with merged(part.backbone):
            return score_features(features, val, names, _OnTokens(part), at_once=AT_ONCE)

    train = used.select(used["split"] == "train")
    return FeatureGroups(features, train, views, seed, twins, labels), validate


class _OnTokens:
    """The trained part as a head: tokens (n, t * d) -> logits on the CPU."""

    def __init__(self, part: TrainedPart) -> None:
        self.part, self.classes = part, classes_of(part.head)

    @torch.no_grad()
    def class_logits(self, tokens: Tensor) -> Tensor:
        return self.part(tokens.to(self.part.backbone.device)).cpu()

    def __call__(self, tokens: Tensor) -> Tensor:
        found = self.class_logits(tokens)
        return binary_logit(found) if self.classes else found


def check_room(cache: Path, folders: Sequence[Path], images: int, each: int, processes: Processes) -> None:
    """Say how much the tokens of `images` images take, `each` bytes in each folder; refuse if the disk lacks room."""
    remedy = "take fewer --train_views, or leave the flag out"
    state_room(cache, folders, images, each, processes.say, "--cache_prefix", remedy)

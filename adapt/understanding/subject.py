"""The detector under study, and the test images that all items look at."""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adapt.data.groups import Images
from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector
from adapt.errors import Refusal
from adapt.evaluation.jackknife import leave_out
from adapt.evaluation.scores import Scores
from adapt.features.cache import Encoder, Features, extract
from adapt.models.towers.backbones import Backbone, load_backbone
from adapt.training.on_features import score_features

BATCH = 64  # images in one pass


@dataclass(frozen=True)
class Subject:
    """A detector on its device, nothing of which requires gradients, and a sample of unedited test images."""

    detector: Detector
    rows: Manifest  # all images: they say which generators training has met
    sample: Manifest  # readable unedited test images of the chosen groups
    pixels: Tensor  # (n, 3, size, size) uint8: the sample as the detector sees it
    unreadable: tuple[tuple[str, str], ...]  # path and reason of the others in these groups
    weights: np.ndarray  # (1 + b, n): which images count, 1 or 0; row 0 is the sample itself
    resamples: int
    seed: int
    cache: Path | None
    workers: int

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Places in the sample of each fake that has a photograph in its group, and of that (the first) photograph."""
        first: dict[str, int] = {}
        for place in np.flatnonzero(~self.sample.fake):
            first.setdefault(self.sample["group"][place], int(place))
        fakes = np.array([p for p in np.flatnonzero(self.sample.fake) if self.sample["group"][p] in first], np.intp)
        return fakes, np.array([first[group] for group in self.sample["group"][fakes]], np.intp)

    def features(
        self,
        views: Sequence[str],
        encoder: Encoder | None = None,
        layers: Sequence[str] = (),
        more: Sequence[int] = (),
    ) -> Features:
        """Features of the sample, followed by those of `more` rows of the manifest, from the cache that all share."""
        encoder = encoder or self.detector.backbone
        manifest = self.sample
        if len(more):
            further = self.rows.select(np.asarray(more))
            joined = {name: np.concatenate([values, further[name]]) for name, values in self.sample.columns.items()}
            manifest = Manifest(joined)
        return extract(encoder, manifest, views, layers, cache=self.cache, workers=self.workers)

    def scores(self, views: Sequence[str]) -> Scores:
        """Of the sample under every view, with the generators that training met as the whole manifest has it."""
        head = copy.deepcopy(self.detector.head).cpu()
        return self.mended(score_features(self.features(views), np.arange(len(self.sample)), views, head))

    def mended(self, scores: Scores) -> Scores:
        """Scores made from a part of the manifest, whose generators would all pass for unseen."""
        return Scores(scores.columns | {"seen": self.rows.seen(scores["generator"])})


def choose(rows: Manifest, split: str, groups: int, seed: int) -> np.ndarray:
    """Unedited rows of at most `groups` groups of a split, drawn by seed: groups that have both classes.

    Where no group has both, as many groups of each class.
    """
    plain = (rows["split"] == split) & (rows["edit"] == "")
    real, fake = (set(rows["group"][plain & label]) for label in (~rows.fake, rows.fake))
    draw_ = random.Random(f"{seed}/{split}")
    pools = [sorted(real & fake)] if real & fake else [sorted(real), sorted(fake)]
    chosen = {group for pool in pools for group in draw_.sample(pool, min(groups, len(pool)))}
    return np.flatnonzero(plain & np.isin(rows["group"], list(chosen)))


def take(
    detector: Detector,
    rows: Manifest,
    groups: int,
    resamples: int,
    seed: int,
    cache: Path | None = None,
    workers: int = 0,
) -> Subject:
    """Draw the sample and read it; refuses a manifest whose test images are not of both classes."""
    detector.refuse_statistics("a study of one encoder")
    detector.refuse_complete("a study of one encoder")
    detector.eval().requires_grad_(False)
    chosen = choose(rows, "test", groups, seed)
    images = Images(rows, chosen, detector.backbone.preprocess, ("none",))
    read, pixels, lost = [], [], []
    for i, row in enumerate(chosen):
        found = images[i]
        if found.reasons[0]:
            lost.append((rows["path"][row], found.reasons[0]))
        else:
            read.append(row)
            pixels.append(found.pixels[0])
    sample = rows.select(np.array(read, np.intp))
    if not len(sample) or sample.fake.all() or not sample.fake.any():
        both = f"{int((~sample.fake).sum())} real and {int(sample.fake.sum())} fake"
        raise Refusal(f"{both} readable unedited test images among the chosen: both are needed; see the manifest")
    counts, column = leave_out(sample["set"], sample["group"], resamples, seed)
    weights = counts[:, column]
    return Subject(detector, rows, sample, torch.stack(pixels), tuple(lost), weights, resamples, seed, cache, workers)


def base_of(detector: Detector, name: str | None = None) -> Backbone:
    """The detector's backbone without its adapter, on its device in its precision; `name` as in `load_detector`."""
    own = detector.backbone
    facts = own.preprocess.geometry, own.fingerprint["activation"], own.preprocess.size
    base = load_backbone(name or own.name, own.layer, *facts)
    return base.to(own.device).to_precision("bf16" if own.dtype == torch.bfloat16 else "fp32")


@torch.no_grad()
def logits(detector: Detector, pixels: Tensor) -> np.ndarray:
    """Logits (n,) float64 of pixels (n, 3, size, size)."""
    device = detector.backbone.device
    return np.concatenate([detector(part.to(device)).double().cpu().numpy() for part in pixels.split(BATCH)])

"""Heads on cached features: which rows train, what validation says, and the scores that come out."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Dataset

from adapt.data.families import read_families
from adapt.data.groups import Batch, ClassLabels, class_weights, draw_views, make_batch
from adapt.data.manifest import Manifest
from adapt.data.views import rng
from adapt.detector.detector import as_scores
from adapt.errors import Refusal
from adapt.evaluation.replicates import distinct
from adapt.evaluation.scores import Scores
from adapt.features.cache import Features, extract
from adapt.features.remembered import Asked, Remembered, frozen_backbone, state_tokens
from adapt.models.heads import tip_adapter
from adapt.models.heads.linear import binary_logit
from adapt.models.heads.probes import Kind, Probe, fit_probe
from adapt.models.towers.backbones import Backbone
from adapt.training.report import Judge, given, validation_score
from adapt.training.run import Run


class Encodes(Asked, Protocol):
    """The flags of a recipe that say which features are made, and how."""

    @property
    def cached_only(self) -> bool: ...

    @property
    def num_workers(self) -> int | None: ...


class Readable(Protocol):
    """Features of the rows of a manifest, as far as heads are scored on them: on disk, or pooled from such."""

    @property
    def manifest(self) -> Manifest: ...

    def reasons(self, view: str) -> np.ndarray: ...

    def take(self, rows: np.ndarray, views: str | np.ndarray, layer: str | None = None) -> np.ndarray: ...


Classes = Literal["binary", "family", "generator"]
CHUNK, CHUNK_BYTES = 8192, 256 << 20  # most rows that are read and scored at once, and most bytes of them


def class_names(manifest: Manifest, classes: Classes) -> np.ndarray:
    """(n,) object: the class of every row, "real" for a camera image."""
    if classes == "generator":
        return manifest["generator"]
    if classes == "binary":
        return np.where(manifest.fake, "fake", "real").astype(object)
    families = read_families(manifest=manifest)
    return np.array([families.of(generator) for generator in manifest["generator"]], dtype=object)


def known_classes(names: np.ndarray) -> tuple[str, ...]:
    """The classes of training rows: real first, then by name."""
    known = sorted(set(names) - {"real"})
    if not known or len(known) == len(set(names)):
        raise Refusal(f"training rows hold only {', '.join(sorted(set(names)))}: real and fake images are needed")
    return ("real", *known)


def numbers(names: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(n,) int64: places in `classes`, -1 for a class that training does not have."""
    place = {name: number for number, name in enumerate(classes)}
    return np.array([place.get(name, -1) for name in names], dtype=np.int64)


def drawn_views(manifest: Manifest, rows: np.ndarray, views: Sequence[str], seed: int) -> np.ndarray:
    """(len(rows),) object: one view for each row, the same for all members of a group."""
    draw = {
        group: views[rng(seed, 0, group).randrange(len(views))] for group in dict.fromkeys(manifest["group"][rows])
    }
    return np.array([draw[group] for group in manifest["group"][rows]], dtype=object)


def readable_rows(features: Features, split: str, views: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Readable rows (m,) of a split and the view drawn for each (m,).

    One view a group: however many views there are, a head is trained on as many rows as there are images.
    """
    manifest = features.manifest
    rows = np.flatnonzero(manifest["split"] == split)
    drawn = drawn_views(manifest, rows, views, seed)
    why = {view: features.reasons(view) for view in views}
    readable = np.array([not why[view][row] for row, view in zip(rows, drawn, strict=True)], dtype=bool)
    return rows[readable], drawn[readable]


@runtime_checkable
class ClassHead(Protocol):
    """A head that names its classes, real first, and has a logit for each of them."""

    @property
    def classes(self) -> Sequence[str]: ...

    def class_logits(self, features: torch.Tensor, /) -> torch.Tensor:
        """Features (n, d) -> (n, classes)."""

    def __call__(self, features: torch.Tensor, /) -> torch.Tensor:
        """Features (n, d) -> logit of "AI-generated" (n,)."""


def frozen_features(
    run: Run, rows: Manifest, asked: Encodes, views: Sequence[str], layers: Sequence[str] = ()
) -> tuple[Backbone | Remembered, Features]:
    """The frozen encoder asked for, and its features of all rows under these views; what follows counts as training.

    Every process encodes its share. Only the first goes on to fit heads: see `Run.main`.
    """
    backbone = frozen_backbone(asked, run.device)
    encoding = run.encoding(asked.num_workers)
    state_tokens(backbone, rows, views, layers or (backbone.layer,), asked.cache, run.say)
    features = extract(backbone, rows, views, layers, cache=asked.cache, cached_only=asked.cached_only, **encoding)
    run.begin(data=rows.digest, base=backbone.fingerprint)
    return backbone, features


class FeatureGroups(Dataset):
    """Training data like `Groups`, of cached features: item (epoch, g) is group g under the view drawn for that epoch.

    `manifest` holds the training rows of `features.manifest` in their order, whatever groups it puts them into.
    """

    def __init__(
        self,
        features: Features,
        manifest: Manifest,
        views: Sequence[str],
        seed: int,
        twins: bool = False,
        labels: ClassLabels | None = None,
    ) -> None:
        self.features, self.manifest, self.views, self.seed, self.twins = features, manifest, views, seed, twins
        self.rows = np.flatnonzero(features.manifest["split"] == "train")
        if list(features.manifest["path"][self.rows]) != list(manifest["path"]):
            raise ValueError("the manifest is not the training rows of the features")
        self.groups, self.fake = manifest.groups(), manifest.fake
        self.weight = class_weights(self.fake)
        self.labels = labels or ClassLabels(self.fake.astype(np.int64))
        self.class_weight = self.labels.weight
        self.group_weight = len(self.fake) / len(self.groups)
        self.reasons = {view: features.reasons(view)[self.rows] for view in views}
        readable = np.flatnonzero(self.reasons[views[0]] == "")
        self.dim = features.take(self.rows[readable[:1]], views[0]).shape[1]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, g = key
        rows = self.groups[g]
        draw = rng(self.seed, epoch, self.manifest["group"][rows[0]])
        views = [self.views[view] for view in draw_views(self.views, draw, self.twins)]
        why = [next((self.reasons[view][row] for view in views if self.reasons[view][row]), "") for row in rows]
        read = rows[[not reason for reason in why]]
        found = [self.features.take(self.rows[read], view) for view in views] if len(read) else []
        inputs = np.concatenate([np.empty((0, self.dim), np.float32), *found])
        lost = [(self.manifest["path"][row], reason) for row, reason in zip(rows, why, strict=True) if reason]
        of_class = self.labels.number[read], self.class_weight[read]
        return make_batch(torch.from_numpy(inputs), self.fake[read], self.weight[read], g, len(views), lost, *of_class)


def score_features(
    features: Readable,
    rows: np.ndarray,
    views: Sequence[str],
    head: Callable[[torch.Tensor], torch.Tensor] | ClassHead,
    layer: str | None = None,
    at_once: int | None = None,
) -> Scores:
    """Scores of the rows under every view, with one logit a class if the head has more than two classes.

    The features go to the device of the head. `at_once`: how many rows are read and given to the head together; by
    default `CHUNK`, of long features fewer.
    """
    views = tuple(dict.fromkeys(views))
    of_classes = head if isinstance(head, ClassHead) and len(head.classes) > 2 else None
    classes = of_classes.classes if of_classes else ()
    device = torch.device("cpu")
    if isinstance(head, torch.nn.Module):
        device = next((tensor.device for tensor in head.state_dict().values()), device)
    logits = np.full((len(rows), len(views), 1 + len(classes)), np.nan)
    reasons = np.stack([features.reasons(view)[rows] for view in views], axis=1)
    for v, view in enumerate(views):
        readable = np.flatnonzero(reasons[:, v] == "")
        if at_once is None and len(readable):
            width = features.take(rows[readable[:1]], view, layer).shape[1]
            at_once = max(1, min(CHUNK, CHUNK_BYTES // (4 * width)))
        for chunk in np.array_split(readable, max(1, -(-len(readable) // (at_once or CHUNK)))):
            if len(chunk):
                with torch.no_grad():
                    found = torch.from_numpy(features.take(rows[chunk], view, layer)).to(device)
                    if of_classes:
                        by_class = of_classes.class_logits(found)
                        logits[chunk, v, 1:] = by_class.cpu().double().numpy()
                    binary = binary_logit(by_class) if of_classes else head(found)
                    logits[chunk, v, 0] = binary.cpu().double().numpy()
    return as_scores(features.manifest, rows, views, logits, reasons, classes)


def validation_judge(
    features: Readable, views: Sequence[str], names: np.ndarray, layer: str | None = None
) -> Callable[[ClassHead], float]:
    """What picks hyperparameters, higher is better: for two classes the mean validation AUC that also picks the epoch
    of a fine-tuned tower; for more, the mean recall of the validation classes that training has, over views and sets,
    each set with the same say."""
    rows, views = np.flatnonzero(features.manifest["split"] == "val"), tuple(dict.fromkeys(views))

    def judge(head: ClassHead) -> float:
        scores = score_features(features, rows, views, head, layer)
        if len(head.classes) == 2:
            return validation_score(scores)
        return class_recall(scores, head.classes, np.repeat(numbers(names[rows], head.classes), len(views)))

    return judge


def class_recall(scores: Scores, classes: Sequence[str], true: np.ndarray) -> float:
    """Mean recall of the classes over views and sets, each set with the same say; `true` (n,) is -1 for no class."""
    logits = np.stack([scores[f"logit_{name}"] for name in classes], axis=1)
    right, known = logits.argmax(axis=1) == true, scores.ok & (true >= 0)
    views, of_sets = distinct(scores["view"]), []
    for name in dict.fromkeys(scores["set"][known]):
        cells = [known & (scores["set"] == name) & (scores["view"] == view) for view in views]
        parts = [cell & (true == number) for cell in cells for number in range(len(classes))]
        of_sets.append(np.mean([right[part].mean() for part in parts if part.any()]))
    if not of_sets:
        raise Refusal("no readable validation images of the training classes: hyperparameters cannot be picked")
    return float(np.mean(of_sets))


def under_every_view(features: Features, rows: np.ndarray, views: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (m,) of the manifest and views (m,): each of these rows under each view that it can be read under."""
    pairs = [(rows[features.reasons(view)[rows] == ""], view) for view in dict.fromkeys(views)]
    under = [np.full(len(readable), view, dtype=object) for readable, view in pairs]
    return np.concatenate([readable for readable, _ in pairs]), np.concatenate(under)


def judge_of(
    manifest: Manifest, rows: np.ndarray, under: np.ndarray, labels: np.ndarray, seen: np.ndarray | None = None
) -> tip_adapter.Judge:
    """What says which setting of a head is the best, from class logits (p, n, c) of rows (n,) under views (n,).

    With two classes the `Judge` that selects epochs; with more minus the mean log-loss over the rows of a set, and the
    mean of that over sets. `labels` are class numbers (n,), 0 is real; `seen`, where each row's generator was met, is
    the manifest's own.
    """
    sets, generators = manifest["set"][rows], manifest["generator"][rows]
    columns = {"path": [f"{row} {view}" for row, view in zip(rows, under, strict=True)], "view": under, "set": sets}
    columns |= {"generator": generators, "seen": manifest.seen(generators) if seen is None else seen}
    binary = Judge(Scores(columns | {"edit": manifest["edit"][rows], "logit": np.zeros(len(rows))}))
    of_set = [np.flatnonzero(sets == name) for name in dict.fromkeys(sets)]
    targets = torch.from_numpy(labels)

    def judge(logits: torch.Tensor) -> np.ndarray:
        if logits.shape[2] == 2:
            return binary((logits[..., 1] - logits[..., 0]).numpy())
        losses = -logits.double().log_softmax(dim=2).gather(2, targets.expand(len(logits), -1)[..., None])[..., 0]
        return -torch.stack([losses[:, own].mean(dim=1) for own in of_set]).mean(dim=0).numpy()

    return judge


def validation_rows(
    features: Features, views: Sequence[str], names: np.ndarray, classes: Sequence[str], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Readable validation rows (m,) of classes that training has, and the view drawn for each, one a group."""
    rows, drawn = readable_rows(features, "val", views, seed)
    known = np.isin(names[rows], classes)
    return rows[known], drawn[known]


def fit_on_features(
    features: Features,
    kind: Kind,
    classes: Classes,
    views: Sequence[str],
    seed: int,
    layer: str | None = None,
    unit: bool = True,
) -> tuple[Probe, dict[str, float]]:
    """Fit a head of this kind on the training rows, one view a group, everything picked on validation rows.

    Returns the head and what was picked, with what it was given (`given`). Labels are those of `features.manifest`.
    `unit`: whether features are made unit vectors.
    """
    rows, drawn = readable_rows(features, "train", views, seed)
    names = class_names(features.manifest, classes)
    known = known_classes(names[rows])
    labels = numbers(names[rows], known)
    judge = validation_judge(features, views, names, layer)
    val, val_drawn = validation_rows(features, views, names, known, seed)
    calibration = (features.take(val, val_drawn, layer), numbers(names[val], known))
    x = features.take(rows, drawn, layer)
    head, picked = fit_probe(kind, x, labels, known, judge, calibration, seed, unit)
    return head, picked | given(features.manifest.fake[rows], 1, int(picked["configurations"]))

"""Heads that read all blocks or all patch tokens of an image, or start from texts: their layers and their fits.

Their rows are read from the cache batch by batch, so memory holds one batch of them.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.features.cache import Features
from adapt.models.heads import attention_pooling as attention
from adapt.models.heads import block_weighting as rine
from adapt.models.heads import prototypes
from adapt.models.heads.classifier import Classifier, train_by_steps
from adapt.models.heads.probes import Kind, Probe, fit_probe, refuse_small_classes
from adapt.models.heads.token_choice import COUNTS, TokenChoice, fisher_scores
from adapt.models.prompts import without_texts
from adapt.training.on_features import (
    Classes,
    class_names,
    fit_on_features,
    known_classes,
    numbers,
    readable_rows,
    validation_judge,
)
from adapt.training.report import given

PartKind = Literal["rine", "attention", "prototypes", "fisher"]
AT_ONCE = 128  # rows that are read together


class Layered(Protocol):
    """An encoder, as far as the layers of these heads need it."""

    @property
    def name(self) -> str: ...

    def layers(self) -> tuple[str, ...]: ...

    def tokens(self) -> dict[str, tuple[int, int]]: ...


def layer_read_by(kind: Kind | PartKind, layer: str, backbone: Layered) -> str:
    """The layer that a head of this kind reads where --layer says `layer`, whose default is `last`.

    rine: the class tokens of all blocks, or of those that are given; attention and fisher: the patch tokens of the
    given one; prototypes: proj. Refuses what a head cannot read, and a backbone that cannot give it.
    """
    parts = layer.split("+")
    if kind == "prototypes":
        if why := without_texts(backbone.name):
            raise Refusal(f"--head prototypes: {why}")
        if layer not in ("last", "proj"):
            raise Refusal(f"--head prototypes --layer {layer}: texts are compared with layer proj; leave --layer out")
        return "proj"
    if kind == "rine":
        blocks = [name for name in backbone.layers() if name.startswith("block")] if layer == "last" else parts
        shapes = backbone.tokens()
        if len(blocks) < 2 or not all(name in shapes and name != "last" for name in blocks):
            raise Refusal(
                f"--head rine --layer {layer}: it weighs whole blocks; give block1+block2..., or leave it out"
            )
        if len(widths := {shapes[name][1] for name in blocks}) > 1:
            raise Refusal(
                f"--head rine: blocks of {backbone.name} have {len(widths)} widths, {min(widths)} to {max(widths)}: "
                "take a vision transformer, or join blocks of one width by +"
            )
        return "+".join(blocks)
    if kind in ("attention", "fisher"):
        place = layer.removesuffix("_tokens")
        if place not in backbone.tokens():
            raise Refusal(f"--head {kind} --layer {layer}: it reads the patch tokens of one layer: last or blockK")
        return f"{place}_tokens"
    return layer


def width_of(layer: str, backbone: Layered) -> int:
    """Width of the parts of a layer made by `layer_read_by`; 0 for one that has none."""
    place = layer.split("+")[0].removesuffix("_tokens")
    return backbone.tokens()[place][1] if "+" in layer or layer.endswith("_tokens") else 0


@dataclass(frozen=True)
class TrainingRows:
    """Rows to train on, each under one view, with the numbers of their classes."""

    features: Features
    rows: np.ndarray  # (n,) of the manifest
    under: np.ndarray  # (n,) a view each
    labels: np.ndarray  # (n,) 0 is real
    classes: Sequence[str]
    layer: str

    def read(self, at: np.ndarray) -> Tensor:
        """Features (m, d) of these places among the rows."""
        return torch.from_numpy(self.features.take(self.rows[at], self.under[at], self.layer))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All features in order, (m, d) at a time, and which are fake."""
        for at in np.array_split(np.arange(len(self.rows)), -(-len(self.rows) // AT_ONCE)):
            yield self.read(at), torch.from_numpy(self.labels[at] > 0)


@dataclass(frozen=True)
class Candidate:
    """A head as it starts, and how it is trained."""

    head: Classifier
    epochs: int
    batch: int
    rate: float
    decay: float = 0.0
    chosen: Mapping[str, float] = field(default_factory=dict)  # what names it among the others


def fit_head(
    features: Features,
    kind: Kind | PartKind,
    classes: Classes,
    views: Sequence[str],
    seed: int,
    layer: str,
    width: int = 0,
    texts: Callable[[Sequence[str]], Tensor] | None = None,
) -> tuple[Classifier, dict[str, float]]:
    """As `fit_on_features`, of any kind: fitted on the training rows, everything picked on validation rows.

    `width` is that of the layer's parts (`width_of`); `texts` gives embeddings (c, d) for the names of classes.
    """
    if kind == "svm" or kind == "logistic" or kind == "mlp":
        return fit_on_features(features, kind, classes, views, seed, layer)
    rows, drawn = readable_rows(features, "train", views, seed)
    names = class_names(features.manifest, classes)
    known = known_classes(names[rows])
    on = TrainingRows(features, rows, drawn, numbers(names[rows], known), known, layer)
    refuse_small_classes(on.labels, known)
    if kind == "fisher":
        head, picked = _choose_tokens(on, width, views, names, seed)
    else:
        judge = validation_judge(features, views, names, layer)
        head, picked = _best_epoch(on, _candidates(kind, on, width, texts), judge, seed, start=kind == "prototypes")
    return head, picked | given(features.manifest.fake[rows], 1, int(picked["configurations"]))


def _candidates(
    kind: Literal["rine", "attention", "prototypes"],
    on: TrainingRows,
    width: int,
    texts: Callable[[Sequence[str]], Tensor] | None,
) -> Iterator[Candidate]:
    dim = on.read(np.arange(1)).shape[1]
    if kind == "rine":
        for depth, hidden in rine.SETTINGS:
            head = rine.BlockWeighting(dim, on.classes, width, depth, hidden)
            head.parts.standardise(found for found, _ in on.batches())
            yield Candidate(head, rine.EPOCHS, rine.BATCH, rine.RATE, chosen={"depth": depth, "hidden": hidden})
    elif kind == "attention":
        for rate in attention.RATES:
            pooling = attention.AttentionPooling(dim, on.classes, width)
            pooling.parts.standardise(found for found, _ in on.batches())
            chosen = {"rate": rate}
            yield Candidate(pooling, attention.EPOCHS, attention.BATCH, rate, attention.DECAY, chosen)
    else:
        assert texts is not None, "prototypes start from the texts of the classes"
        yield Candidate(
            prototypes.Prototypes(dim, on.classes, texts(on.classes)),
            prototypes.EPOCHS, prototypes.BATCH, prototypes.RATE,
        )  # fmt: skip


def _best_epoch(
    on: TrainingRows, candidates: Iterator[Candidate], judge: Callable[[Classifier], float], seed: int, start: bool
) -> tuple[Classifier, dict[str, float]]:
    """The candidate and epoch that validation likes best, the earlier at a tie; with `start` also before epoch 1."""
    best: Classifier | None = None
    picked: dict[str, float] = {}
    tried, labels = 0, torch.from_numpy(on.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the weights with which heads start
        for one in candidates:
            epochs = train_by_steps(
                one.head, partial(_logits, one.head, on), labels, len(on.classes),
                epochs=one.epochs, batch=one.batch, rate=one.rate, decay=one.decay,
                generator=torch.Generator().manual_seed(seed), seed=seed,
            )  # fmt: skip
            for epoch in chain([0] if start else [], epochs):
                tried += 1
                if (value := judge(one.head.eval())) > picked.get("validation_score", -np.inf):
                    best = copy.deepcopy(one.head)
                    picked = {**one.chosen, "epoch": epoch, "validation_score": float(value)}
    assert best is not None  # a judge that knows no score refuses
    return best.eval().requires_grad_(False), picked | {"configurations": tried}


def _logits(head: Classifier, on: TrainingRows, at: Tensor) -> Tensor:
    return head.class_logits(on.read(at.numpy()))


@dataclass(frozen=True)
class Pooled:
    """Features (d) that are made of others once for each view, and then lie in memory; not those of test rows."""

    features: Features
    layer: str
    pool: Callable[[Tensor], Tensor]
    made: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def manifest(self) -> Manifest:
        return self.features.manifest

    def reasons(self, view: str) -> np.ndarray:
        return self.features.reasons(view)

    def take(self, rows: np.ndarray, views: str | np.ndarray, layer: str | None = None) -> np.ndarray:
        """Pooled features (len(rows), d) float32 of readable rows, under one view or under one view a row."""
        views = np.full(len(rows), views, dtype=object) if isinstance(views, str) else views
        for view in dict.fromkeys(views):
            if view not in self.made:
                self.made[view] = self._of(view)
        return np.stack([self.made[view][row] for row, view in zip(rows, views, strict=True)])

    def _of(self, view: str) -> np.ndarray:
        rows = np.flatnonzero((self.reasons(view) == "") & (self.manifest["split"] != "test"))
        parts = np.array_split(rows, -(-len(rows) // AT_ONCE))
        found = [self.pool(torch.from_numpy(self.features.take(part, view, self.layer))).numpy() for part in parts]
        out = np.full((len(self.manifest), found[0].shape[1]), np.nan, np.float32)
        out[rows] = np.concatenate(found)
        return out


def _choose_tokens(
    on: TrainingRows, width: int, views: Sequence[str], names: np.ndarray, seed: int
) -> tuple[Classifier, dict[str, float]]:
    """A logistic probe on the mean of the tokens with the highest Fisher scores; validation picks how many, and C."""
    scores = fisher_scores(on.batches, width)
    order = scores.argsort(descending=True, stable=True)
    best: TokenChoice | None = None
    picked: dict[str, float] = {}
    tried = 0
    for count in dict.fromkeys(min(count, len(order)) for count in (*COUNTS, len(order))):
        empty = Probe(width, on.classes, "logistic")
        pooled = Pooled(on.features, on.layer, TokenChoice(order[:count], width, empty).pooled)
        judge = validation_judge(pooled, views, names)
        probe, found = fit_probe("logistic", pooled.take(on.rows, on.under), on.labels, on.classes, judge, seed=seed)
        tried += int(found["configurations"])
        if found["validation_score"] > picked.get("validation_score", -np.inf):
            best, picked = TokenChoice(order[:count].clone(), width, probe), {"tokens": count} | found
    assert best is not None  # a judge that knows no score refuses
    return best.eval().requires_grad_(False), picked | {"configurations": tried}

"""Heads on few shots, and what chooses their hyper-parameters: the shots themselves, or all validation images.

Validation images that are more than the shots make a curve over shots no few-shot curve: who has them would train on
them. From the shots: the penalty of logistic regression by cross-validation over groups; alpha and beta of Tip-Adapter
with every row's own group left out of the cache; epoch, alpha and beta of Tip-Adapter-F on half of the groups, after
training on the other half, and then all are trained on. Where a class has fewer than `FEW` groups nothing can be told,
and fixed values are taken: C of scikit-learn, and of 2207.09519 alpha 1, beta 5.5 (for sums of votes), the last epoch.
"""

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from adapt.data.manifest import Manifest
from adapt.features.cache import Features
from adapt.models.heads.probes import GRID, Probe, fit_probe
from adapt.models.heads.tip_adapter import PUBLISHED, Rows, TipAdapter, fit, tune
from adapt.models.heads.tip_head import PriorHead
from adapt.training.on_features import judge_of, numbers, under_every_view, validation_judge

SelectOn = Literal["shots", "validation"]
FEW = 8  # groups of every class that a choice needs
FOLDS = 5
FIXED_C = 1.0  # of scikit-learn
CHOSEN = "Hyper-parameters (C of the regression; alpha and beta; epoch of Tip-Adapter-F) were chosen on "
ABOUT = {
    "shots": CHOSEN
    + "the shots themselves{many}, by cross-validation over their groups.{few} No validation image took "
    "part in training or tuning; the {val} validation images ({reals} real, {fakes} fake, {views} views) froze the "
    "thresholds behind balanced accuracy and false alarms, and chose which head is saved.",
    "validation": CHOSEN + "{val} validation images ({reals} real, {fakes} fake, {views} views){more}.",
}
MANY = " at {} images a class"
FIXED = (
    f" At {{}}, where a class has fewer than {FEW} groups, they are fixed: C 1, alpha 1 and beta 5.5 as published, "
    "and the last epoch."
)
MORE = ", which are more than the shots at {} images a class: there this is no few-shot protocol"


@dataclass(frozen=True, eq=False)
class Shots:
    """Images that a head is trained on: rows (n,) of a manifest, their features (n, d) and class numbers (n,)."""

    manifest: Manifest
    rows: np.ndarray
    x: np.ndarray
    labels: np.ndarray

    @property
    def groups(self) -> np.ndarray:
        return self.manifest["group"][self.rows]

    def enough(self) -> bool:
        """Whether every class has `FEW` groups; with two classes in one set at least: reals of others say little."""
        sets = self.manifest["set"][self.rows]
        count = int(self.labels.max()) + 1
        places = [sets == name for name in dict.fromkeys(sets)] if count == 2 else [np.ones(len(sets), dtype=bool)]
        least = [min(len(set(self.groups[here & (self.labels == c)])) for c in range(count)) for here in places]
        return max(least) >= FEW

    def folds(self, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows to train on and rows held back, `count` times; whole groups, sets and classes in like shares."""
        from sklearn.model_selection import StratifiedGroupKFold

        groups, sets = (np.unique(self.manifest[name][self.rows], return_inverse=True)[1] for name in ("group", "set"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a set with fewer groups of a class than folds
            yield from StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(
                self.x, self.labels + (self.labels.max() + 1) * sets, groups
            )

    def as_rows(self, prior: Tensor, which: np.ndarray | slice = slice(None)) -> Rows:
        """Some of them with their prior logits (n, classes), and what judges heads by them: all views are one."""
        rows = self.rows[which]
        judge = judge_of(self.manifest, rows, np.full(len(rows), "drawn", dtype=object), self.labels[which])
        return Rows(self.x[which], self.labels[which].tolist(), self.groups[which], prior[which], judge)


class Chooser(Protocol):
    """Fits heads on shots and chooses their hyper-parameters; each call also says among how many settings."""

    def probe(self, shots: Shots, classes: Sequence[str], seed: int) -> tuple[Probe, Tensor, int]:
        """Logistic regression, and its logits (n, classes) of the shots, as a prior of what is trained on them."""

    def tip(self, adapter: TipAdapter, shots: Shots, prior: PriorHead, own: Tensor) -> int:
        """Set alpha and beta of a cache of the shots; `own` is the prior of the shots."""

    def tip_f(
        self, adapter: TipAdapter, shots: Shots, prior: PriorHead, own: Tensor, seed: int, epochs: int, rate: float
    ) -> int:
        """Train the keys of such a cache, from its alpha and beta on."""


class OnValidation:
    """Everything is chosen on the validation rows of the classes that training has, under every training view."""

    def __init__(self, features: Features, views: Sequence[str], names: np.ndarray, classes: Sequence[str]) -> None:
        manifest = features.manifest
        of_val = np.flatnonzero((manifest["split"] == "val") & np.isin(names, classes))
        rows, under = under_every_view(features, of_val, views)
        self.x, self.labels, self.groups = (
            features.take(rows, under),
            numbers(names[rows], classes),
            manifest["group"][rows],
        )
        self.judge = judge_of(manifest, rows, under, self.labels)
        self.of_probe = validation_judge(features, views, names)

    def _rows(self, prior: PriorHead) -> Rows:
        return Rows(self.x, self.labels.tolist(), self.groups, prior.prior(torch.from_numpy(self.x)), self.judge)

    def probe(self, shots: Shots, classes: Sequence[str], seed: int) -> tuple[Probe, Tensor, int]:
        head, picked = fit_probe("logistic", shots.x, shots.labels, classes, self.of_probe, seed=seed)
        return head, head.class_logits(torch.from_numpy(shots.x)), int(picked["configurations"])

    def tip(self, adapter: TipAdapter, shots: Shots, prior: PriorHead, own: Tensor) -> int:
        return tune(adapter, self._rows(prior)).tried

    def tip_f(
        self, adapter: TipAdapter, shots: Shots, prior: PriorHead, own: Tensor, seed: int, epochs: int, rate: float
    ) -> int:
        return fit(adapter, shots.as_rows(own), self._rows(prior), seed, epochs, rate).tried


class OnShots:
    """Everything is chosen on the shots, or fixed where they are too few: see the head of this file."""

    def probe(self, shots: Shots, classes: Sequence[str], seed: int) -> tuple[Probe, Tensor, int]:
        def fitted(strengths: Sequence[float]) -> Probe:
            return fit_probe(
                "logistic", shots.x, shots.labels, classes, lambda _: 0.0, seed=seed, strengths=strengths
            )[0]

        if not shots.enough():
            head = fitted((FIXED_C,))
            return head, head.class_logits(torch.from_numpy(shots.x)), 1
        grid = GRID["logistic"]
        held = torch.empty(len(grid), len(shots.x), len(classes))
        for train, rest in shots.folds(FOLDS, seed):
            found: list[Tensor] = []

            def keep(head: Probe, rest: np.ndarray = rest, found: list[Tensor] = found) -> float:
                with torch.no_grad():
                    found.append(head.class_logits(torch.from_numpy(shots.x[rest])))
                return 0.0

            fit_probe("logistic", shots.x[train], shots.labels[train], classes, keep, seed=seed)
            held[:, rest] = torch.stack(found)
        best = int(shots.as_rows(held[0]).judge(held).argmax())  # the first of equals: the stronger penalty
        return fitted((grid[best],)), held[best], len(grid)

    def tip(self, adapter: TipAdapter, shots: Shots, prior: PriorHead, own: Tensor) -> int:
        if shots.enough():
            return tune(adapter, shots.as_rows(own), leave_out=True).tried
        alpha, beta = PUBLISHED
        adapter.alpha.fill_(alpha * len(shots.x) / adapter.classes)  # a mean of votes times their number is their sum
        adapter.beta.fill_(beta)
        return 1

    def tip_f(
        self, adapter: TipAdapter, shots: Shots, prior: PriorHead, own: Tensor, seed: int, epochs: int, rate: float
    ) -> int:
        every = shots.as_rows(own)
        if not shots.enough():
            fit(adapter, every, None, seed, epochs, rate)
            return 1
        half, rest = next(shots.folds(2, seed))
        train = shots.as_rows(own, half)
        trial = TipAdapter(
            train.features, train.labels.tolist(), train.groups, adapter.classes, alpha=float(adapter.alpha),
            beta=float(adapter.beta),
        )  # fmt: skip
        found = fit(trial, train, shots.as_rows(own, rest), seed, epochs, rate)
        fit(adapter, every, None, seed, epochs, rate, stop_after=found.epoch)
        adapter.alpha.copy_(trial.alpha)
        adapter.beta.copy_(trial.beta)
        return found.tried


def how_chosen(select_on: SelectOn, enough: dict[int, bool], classes: int, fake: np.ndarray, views: int) -> str:
    """A paragraph of the page. `enough`: by images a class, whether shots could choose; `fake`: of validation."""
    by_choice = {wanted: [number for number, yes in enough.items() if yes is wanted] for wanted in (True, False)}
    fewer = [number for number in enough if classes * number < len(fake)]
    words = {
        name: line.format(", ".join(map(str, numbers))) if numbers else ""
        for name, line, numbers in (
            ("many", MANY, by_choice[True]), ("few", FIXED, by_choice[False]), ("more", MORE, fewer)
        )
    }  # fmt: skip
    counts = {"val": len(fake), "reals": int((~fake).sum()), "fakes": int(fake.sum()), "views": views}
    return textwrap.fill(ABOUT[select_on].format(**words, **counts), 119)

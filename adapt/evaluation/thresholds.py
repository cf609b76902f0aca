"""Thresholds from validation rows alone: one for everything, and one for each JPEG quality among the views."""

import re
from dataclasses import dataclass

import numpy as np

from adapt.evaluation.scores import Scores

FEWEST_REALS = 20  # validation photographs; a threshold that rests on fewer is called a guess
NOT_RECORDED = "not recorded"  # of detectors that were saved before it was


@dataclass(frozen=True)
class Basis:
    """What a threshold was chosen from: unedited validation images that could be read, and how."""

    images: int
    reals: int
    groups: int
    views: int
    how: str = "best balanced accuracy"

    @property
    def few(self) -> bool:
        """Whether it rests on too few photographs to be more than a guess; an author's own rests on none of ours."""
        return self != AS_PUBLISHED and self.reals < FEWEST_REALS

    @property
    def chosen(self) -> str:
        """How it was chosen, and on what."""
        if self == AS_PUBLISHED:
            return self.how
        counts = f"{self.images} validation images ({self.reals} real) in {self.groups} groups, {self.views} views"
        return f"{self.how} on {counts}"

    def __str__(self) -> str:
        return f"{'a guess: ' if self.few else ''}{self.chosen}"


AS_PUBLISHED = Basis(0, 0, 0, 0, "as published, at p = 0.5; no image chose it here")


def basis_of(scores: Scores) -> Basis:
    """What `pick_threshold` has of these scores to choose from."""
    val = unedited_validation(scores)
    names = (val["path"], val["path"][~val.fake], val["group"], val["view"])
    images, reals, groups, views = (len(set(column)) for column in names)
    return Basis(images, reals, groups, views)


def quality_of(view: str) -> int | None:
    """40 for `qf40`; None for any other view."""
    found = re.fullmatch(r"qf(\d+)", view)
    return int(found[1]) if found else None


def unedited_validation(scores: Scores) -> Scores:
    """The readable `val` rows, processed reals left out."""
    return scores.select((scores["split"] == "val") & scores.ok & (scores["edit"] == ""))


def balanced_weights(rows: Scores) -> np.ndarray:
    """(n,) that sum to 1 in each class, the same for every set, and in a set for every generator.

    Rows of both classes are needed; a set without one of them has its say with the other.
    """
    weight = np.zeros(len(rows))
    for of_class in (rows.fake, ~rows.fake):
        sets = set(rows["set"][of_class])
        for name in sets:
            here = of_class & (rows["set"] == name)
            _, generator, number = np.unique(rows["generator"][here], return_inverse=True, return_counts=True)
            weight[here] = 1 / number[generator] / len(number) / len(sets)
    return weight


def pick_threshold(scores: Scores) -> float:
    """The one threshold of a detector: best balanced accuracy on the `val` rows of all views pooled.

    Sets weigh equally, and in a set generators; processed reals are left out. Among equally good cuts the widest
    gap between two neighbouring logits wins, and the threshold is its middle. If no cut beats 0.5 nothing is
    called fake; without validation rows of both classes it is NaN. In a table of folds logits are those above each
    fold's own threshold already: it is 0.
    """
    if scores.folds is not None:
        return 0.0
    val = unedited_validation(scores)
    if val.fake.all() or not val.fake.any():
        return float("nan")
    weight = balanced_weights(val)
    logit, place = np.unique(val["logit"], return_inverse=True)
    reals_below, fakes_below = (np.cumsum(np.bincount(place, weight * c)) for c in (~val.fake, val.fake))
    balanced = 0.5 + 0.5 * (reals_below - fakes_below)[:-1]  # of a cut between logit[k] and logit[k + 1]
    best = np.flatnonzero(balanced >= balanced.max(initial=0.5) - 1e-12)
    if not len(best):
        return float(np.nextafter(logit[-1], np.inf))
    k = best[np.argmax(np.diff(logit)[best])]
    middle = logit[k] + 0.5 * (logit[k + 1] - logit[k])
    return float(middle if middle > logit[k] else logit[k + 1])


def quality_thresholds(scores: Scores) -> dict[str, float]:
    """`pick_threshold` on the rows of each view `qfNN`, by its name; not of views without rows of both classes."""
    views = sorted({view for view in scores["view"] if quality_of(view) is not None})
    found = {view: pick_threshold(scores.select(scores["view"] == view)) for view in views}
    return {view: threshold for view, threshold in found.items() if threshold == threshold}

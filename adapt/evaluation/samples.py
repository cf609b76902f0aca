"""How many images and groups stand behind the numbers, and what it would mean to take images for independent.

Copies of one picture, or a photograph and its fakes, tell less than as many unrelated images. The jackknife over
groups knows that; the same jackknife over images would not. `too_narrow` is the ratio of their standard errors for the
AUC of all fakes pooled: so many times too narrow an interval by image would be. It is the root of the design effect
(Kish 1965, section 8.2). Both are exact, every group and every image left out once.
"""

from dataclasses import dataclass

import numpy as np

from adapt.evaluation.jackknife import standard_error
from adapt.evaluation.numbering import numbered
from adapt.evaluation.replicates import auc_without, distinct
from adapt.evaluation.scores import UNKNOWN, Scores


@dataclass(frozen=True)
class Sample:
    """Readable test rows of one view: what of, how many images, in how many groups."""

    view: str
    counts: dict[str, tuple[int, int]]  # real, seen fakes, unseen fakes, processed reals -> images, groups
    too_narrow: float  # below 1: too wide; NaN where one group holds a class, or the AUC is 0 or 1
    grouped: bool  # some group has several images

    def shown(self, what: str) -> str:
        """`520 in 40`, or n/a where there are none."""
        images, groups = self.counts[what]
        return f"{images:,} in {groups:,}" if images else "n/a"


def samples(scores: Scores) -> list[Sample]:
    """One for each view of the test rows."""
    test = scores.select((scores["split"] == "test") & scores.ok)
    (_, of_set), (names, group) = numbered(test["set"]), numbered(test["group"])
    group = of_set * len(names) + group  # a name may serve in two sets
    plain, fake, fold = ~test.fake & (test["edit"] == ""), test.fake, test.folds
    kinds = {
        "real": plain,
        "seen fakes": fake & (test["seen"] == "train"),
        "unseen fakes": fake & (test["seen"] == ""),
        "processed reals": test["edit"] != "",
    }
    if (untold := fake & (test["seen"] == UNKNOWN)).any():
        kinds["fakes"] = untold
    out = []
    for view in distinct(test["view"]):
        here = test["view"] == view
        counts = {what: (int((rows & here).sum()), len(np.unique(group[rows & here]))) for what, rows in kinds.items()}
        used = here & (plain | (fake & (test["seen"] != "val")))
        by_group, by_image = (
            auc_error(test["logit"][used], fake[used], units, None if fold is None else fold[used])
            for units in (group[used], np.arange(used.sum()))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = float(np.divide(by_group, by_image)) if by_image > 0 else float("nan")
        several = int(np.bincount(np.unique(group[here], return_inverse=True)[1]).max()) > 1
        out.append(Sample(view, counts, ratio, several))
    return out


def auc_error(logit: np.ndarray, fake: np.ndarray, unit: np.ndarray, fold: np.ndarray | None = None) -> float:
    """Standard error of the AUC of logits (n,), fakes (n,) bool, from leaving out each unit (n,) of rows in turn.

    `fold` as in `auc_without`. NaN where a class is missing, or is all in one unit.
    """
    if not fake.any() or fake.all():
        return float("nan")
    names, unit = np.unique(unit, return_inverse=True)
    return standard_error(auc_without(logit, fake, unit, len(names), fold))

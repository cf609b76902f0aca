"""The control with permuted labels: how often does a method that learnt from wrong labels do as well as the real one?

The labels of training and validation are permuted (adapt/data/permutation.py), the method is trained and selected
again, and measured on the true test labels. If the images said nothing of their labels, the true labels would be one
permutation among the others, so that

    p = (1 + number of permutations whose AUC is at least the real one) / (1 + permutations)

is at most x in a share x of all experiments (Phipson and Smyth 2010, eq. 2). A single permutation tests nothing: its
AUC lies where its one direction happens to lie. As the test labels stay, p asks for more than an AUC above 0.5: a head
with wrong labels, too, may sort images that differ along one strong direction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from adapt.evaluation.jackknife import FEWEST, NONE, Interval
from adapt.evaluation.metrics import CHANCE, PERMUTED, Control, Outcome, outcome_of
from adapt.evaluation.replicates import ALL

TESTED = ("mean:seen", "mean:unseen", "mean:all")
LEVEL = 0.05  # p up to which the true labels are told from permuted ones


@dataclass(frozen=True)
class Reached:
    """One number of one training: a row of permutations.csv. Permutation 0 is the true labels."""

    permutation: int
    set: str
    view: str
    generator: str
    metric: str
    value: float
    seen: str = ""  # of a generator: train, val or ''


def p_of(real: float, permuted: Sequence[float] | np.ndarray) -> float:
    """Share of all labellings, the true one among them, that reach at least as much as the true one; NaN of NaN."""
    if np.isnan(real) or np.isnan(permuted).any():
        return float("nan")
    return float((1 + (np.asarray(permuted) >= real).sum()) / (1 + len(permuted)))


def mean_interval(permuted: Sequence[float] | np.ndarray) -> Interval:
    """Of the mean over permutations (n,), by the t of their spread; none of fewer than `FEWEST`, or of NaN."""
    from scipy.stats import t

    n = len(permuted)
    if n < FEWEST or np.isnan(permuted).any():
        return NONE
    mean, reach = float(np.mean(permuted)), float(t.ppf(0.975, n - 1) * np.std(permuted, ddof=1) / np.sqrt(n))
    return Interval(mean - reach, mean + reach)


def outcome_of_permutations(p: float, mean: Interval) -> Outcome:
    """What permuted labels tell, by p and the interval of their mean AUC.

    `FAILED`: permuted labels are surely away from chance, so that something else than the labels of training tells
    fakes. `passed`: p is at most `LEVEL`. Else `cannot tell`: there are too few permutations, or real and fake images
    differ so much along one direction that a head with wrong labels often sorts them by luck.
    """
    if np.isnan(p):
        return "n/a"
    if outcome_of(mean, 0.5 - CHANCE, 0.5 + CHANCE) == "FAILED":
        return "FAILED"
    return "passed" if p <= LEVEL else "cannot tell"


def permutation_controls(found: Iterable[Reached]) -> list[Control]:
    """A control per view for seen, unseen and all generators: mean, lowest and highest permuted AUC, and p."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for one in found:
        if one.set == ALL and one.metric == "auc" and one.generator in TESTED:
            values.setdefault((one.view, one.generator), {})[one.permutation] = one.value
    out = []
    for (view, generator), by_number in values.items():
        real, others = by_number[0], np.array([value for number, value in by_number.items() if number])
        if np.isnan(real) or not len(others):
            continue
        p = p_of(real, others)
        numbers = float(others.mean()), float(others.min()), float(others.max())
        outcome = outcome_of_permutations(p, mean_interval(others))
        out.append(Control(PERMUTED.format(generator), view, *numbers, outcome, 0, 0, len(others), p))
    return out

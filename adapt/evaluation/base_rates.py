"""What a verdict is worth where fakes are rare or frequent: predictive values, and p_fake at another share of fakes.

Recall and false alarms belong to a detector; how many of the images that it calls fake are fake depends on how many
fakes there are besides. With a share P of fakes (the prevalence, or base rate), by Bayes:

    ppv  P recall / (P recall + (1 - P) false alarms): the share of fakes among what is called fake
    npv  the same of photographs: their share among what is called real

Both rise or fall with each of the two rates, so their ends come from the ends of the rates' intervals. On test rows
these are the 95 % intervals of metrics.py: the error of a log odds is at most the sum of the errors of the two logs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adapt.errors import Refusal
from adapt.evaluation.conformal import share_bounds
from adapt.evaluation.jackknife import LEVEL
from adapt.evaluation.metrics import Cell, index
from adapt.evaluation.replicates import ALL

PREDICTIVE = ("ppv", "npv")  # metrics are called ppv_at_0.01 and so on
AMONG = ("mean:all", "mean:seen", "mean:unseen")  # fakes that they are stated for


class Worth(NamedTuple):
    """A share of what was called fake, or real, with the ends of its interval; NaN where nothing was called so."""

    value: float
    low: float
    high: float


class Expected(NamedTuple):
    """What verdicts are worth by validation rows, and how many groups of each class say so."""

    ppv: Worth
    npv: Worth
    real: int
    fake: int


def check_prevalence(prevalence: float) -> None:
    """Refuse what is no share of fakes, or leaves one class out."""
    if not 0 < prevalence < 1:
        raise Refusal(f"--prevalence {prevalence:g}: give a share of fakes between 0 and 1, such as 0.01")


def shifted(p_fake: np.ndarray, prevalence: float) -> np.ndarray:
    """p_fake of a calibration, which is for as many fakes as photographs, where a share `prevalence` is fake.

    The log odds move by log(prevalence / (1 - prevalence)); any shape.
    """
    return _share(np.asarray(p_fake, dtype=np.float64), 1 - np.asarray(p_fake, dtype=np.float64), prevalence)


def predictive_cells(cells: Sequence[Cell], prevalence: float) -> list[Cell]:
    """`ppv_at_P` and `npv_at_P` at the threshold, of the means over generators under each view, from their cells."""
    check_prevalence(prevalence)
    at, out = index(cells), []
    for (of_set, view, label, metric), recall in at.items():
        if of_set != ALL or label not in AMONG or metric != "recall":
            continue
        alarm = at[ALL, view, label, "false_alarm"]
        found = {
            "ppv": (_share(r, a, prevalence) for r, a in _ends(recall, alarm)),
            "npv": (_share(1 - a, 1 - r, 1 - prevalence) for r, a in _ends(recall, alarm)),
        }
        for name, values in found.items():
            worth = Worth(*map(float, values))
            key = ALL, view, label, f"{name}_at_{prevalence:g}"
            out.append(Cell(*key, *worth, recall.n_real, recall.n_fake, groups=recall.groups))
    return out


def expected(real: np.ndarray, fake: np.ndarray, prevalence: float) -> Expected:
    """From the verdicts on the promised values (`group_quantiles`) of photographs (n,) and of fakes (m,), text.

    Each value stands for one group's share of all, so a rate is known to within one group, on the careful side. The
    interval holds for whatever shares groups have (`share_bounds`), for the two rates together at 95 % at least.
    """
    tails = (1 - LEVEL) / 4
    rates = {}
    for name, table, verdict in (
        *(("alarm", real, "fake"), ("kept", real, "real")),
        *(("found", fake, "fake"), ("missed", fake, "real")),
    ):
        mean = float(np.mean(table == verdict))
        rates[name] = (mean, *share_bounds(mean, len(table), tails))
    ppv = _worth(rates["found"], rates["alarm"], prevalence)
    return Expected(ppv, _worth(rates["kept"], rates["missed"], 1 - prevalence), len(real), len(fake))


def _worth(right: tuple[float, float, float], wrong: tuple[float, float, float], prior: float) -> Worth:
    pairs = ((right[0], wrong[0]), (right[1], wrong[2]), (right[2], wrong[1]))
    return Worth(*(float(_share(*pair, prior)) for pair in pairs))


def _ends(recall: Cell, alarm: Cell) -> tuple[tuple[float, float], ...]:
    """The two rates, and where a verdict is worth least and most by their intervals."""
    return (recall.value, alarm.value), (recall.low, alarm.high), (recall.high, alarm.low)


def _share(right: np.ndarray | float, wrong: np.ndarray | float, prior: float) -> np.ndarray:
    """Where a share `prior` of all is so, of which `right` are called so, and `wrong` of the rest: how many are so."""
    with np.errstate(invalid="ignore"):
        return np.divide(np.multiply(prior, right), np.multiply(prior, right) + np.multiply(1 - prior, wrong))

"""Intervals from leaving groups out: what would other groups of the same kind have given?

A statistic is computed of all groups, and again without each block of groups in turn; a block is one group, or where
there are more groups than blocks, a random share of them. How far the results spread says how much chance is in the
statistic (the delete-a-group jackknife, Efron 1982, section 3):

    se^2 = (b - 1) / b  sum over the b blocks of (t_i - mean of t)^2

Intervals of shares (of AUC, AP, balanced accuracy, recall, false alarms, and of means of them) are laid on the logit
scale with a quantile of Student's t, so that they stay between 0 and 1 and fit few groups; a tenth of a group on either
side keeps a value of 0 or 1 from having no width. Simulated coverage: tests/evaluation/test_jackknife.py.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import t

from adapt.errors import Refusal

LEVEL = 0.95
FEWEST = 10  # groups that an interval rests on; with fewer none is given
PSEUDO, FLOOR = 0.1, 0.15  # groups added on either side of a share, and to its standard error: tuned by simulation


class Interval(NamedTuple):
    """Ends; NaN where there are too few groups, or where the statistic is not known without some of them."""

    low: float
    high: float


NONE = Interval(float("nan"), float("nan"))


def leave_out(sets: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which groups count in each resample, and the column of each row's group.

    Takes the set and the group of each row, both (n,). Returns counts (1 + b, g) uint8, 1 or 0, and (n,). Resample 0
    has every group; every other one lacks a block. b is the number of groups, at most `resamples`, and 0 where there
    is one group only. Groups are dealt to blocks by the seed, each set by itself, so that scores, views and the order
    of rows change nothing.
    """
    if resamples < 0:
        raise Refusal(f"{resamples} resamples: give 0 (no intervals) or more, such as 200")
    column = np.zeros(len(sets), dtype=np.int64)
    order: list[np.ndarray] = []
    total = 0
    for name in sorted(set(sets)):
        rows = sets == name
        _, inverse = np.unique(groups[rows], return_inverse=True)
        column[rows] = inverse + total
        n = int(inverse.max()) + 1
        rng = np.random.default_rng([seed, *name.encode("utf-8", "surrogateescape")])
        order.append(total + rng.permutation(n))
        total += n
    blocks = min(resamples, total) if total > 1 and resamples > 1 else 0
    counts = np.ones((1 + blocks, total), dtype=np.uint8)
    if blocks:
        dealt = np.concatenate(order)
        counts[1 + np.arange(total) * blocks // total, dealt] = 0
    return counts, column


def standard_error(values: np.ndarray) -> float:
    """Of a statistic of all groups, (1 + b,), the whole sample first; NaN where it is not known without some of them."""
    without = values[1:]
    if len(without) < 2:
        return float("nan")
    return float(np.sqrt((len(without) - 1) / len(without) * ((without - without.mean()) ** 2).sum()))


def quantile(values: np.ndarray, groups: int, level: float = LEVEL) -> float:
    """Of Student's t, two-sided, for a statistic (1 + b,) that rests on so many groups; NaN for fewer than `FEWEST`."""
    blocks = min(len(values) - 1, groups)
    return float(t.ppf(0.5 + level / 2, blocks - 1)) if groups >= FEWEST and blocks > 1 else float("nan")


def share_interval(values: np.ndarray, groups: int, level: float = LEVEL) -> Interval:
    """Interval of a statistic between 0 and 1, (1 + b,), that rests on so many groups (of its rarer class)."""
    value, q = float(values[0]), quantile(values, groups, level)
    error = np.hypot(standard_error(values), FLOOR / max(groups, 1))
    if np.isnan(value) or np.isnan(error) or np.isnan(q):
        return NONE
    inner = (value * groups + PSEUDO) / (groups + 2 * PSEUDO)
    ends = np.log(inner / (1 - inner)) + np.array([-q, q]) * error / (inner * (1 - inner))
    low, high = 1 / (1 + np.exp(-ends))
    return Interval(min(float(low), value), max(float(high), value))


def interval(values: np.ndarray, groups: int, level: float = LEVEL) -> Interval:
    """Interval of any other statistic, (1 + b,): value +- t quantile x standard error."""
    reach = quantile(values, groups, level) * standard_error(values)
    value = float(values[0])
    return NONE if np.isnan(reach) or np.isnan(value) else Interval(value - reach, value + reach)


def difference_interval(values: np.ndarray, groups: int, level: float = LEVEL) -> Interval:
    """Interval of a difference of two shares on the same groups, (1 + b,)."""
    error = np.hypot(standard_error(values), FLOOR / max(groups, 1))
    reach, value = quantile(values, groups, level) * error, float(values[0])
    return NONE if np.isnan(reach) or np.isnan(value) else Interval(value - reach, value + reach)


def worst_interval(parts: np.ndarray, groups: np.ndarray, highest: bool = False) -> Interval:
    """Interval of the lowest (or `highest`) of k shares, (k, 1 + b), each resting on so many groups, (k,).

    The lowest share is surely below the upper end of every share, if all k ends hold together: they are laid at
    1 - (1 - level) / k. Its lower end needs no such care, for one of the shares is the lowest.
    """
    mirrored = 1 - parts if highest else parts
    level = 1 - (1 - LEVEL) / len(mirrored)
    low = min(share_interval(part, int(n)).low for part, n in zip(mirrored, groups, strict=True))
    high = min(share_interval(part, int(n), level).high for part, n in zip(mirrored, groups, strict=True))
    return Interval(1 - high, 1 - low) if highest else Interval(low, high)

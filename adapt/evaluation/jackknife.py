"""Intervals from leaving groups out: what would other groups of the same kind have given?

A statistic is computed of all groups, and again without each block of groups in turn; a block is one group, or where
there are more groups than blocks, a random share of them. How far the results spread says how much chance is in the
statistic (the delete-a-group jackknife, Efron 1982, section 3):

    se^2 = (b - 1) / b  sum over the b blocks of (t_i - mean of t)^2

Intervals of shares (of AUC, AP, balanced accuracy, recall, false alarms, and of means of them) are laid on the logit
scale with a quantile of Student's t, so that they stay between 0 and 1 and fit few groups; a tenth of a group on
either side keeps a value of 0 or 1 from having no width. Simulated coverage: tests/evaluation/test_jackknife.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, t

from adapt.errors import Refusal
from adapt.evaluation.numbering import numbered

LEVEL = 0.95
FEWEST = 10  # groups that an interval rests on; with fewer none is given
FEWEST_GENERATORS = 3  # that an interval for others like them rests on
DRAWS = 4000  # of the largest difference
PSEUDO, FLOOR = 0.1, 0.18  # groups on either side of a share, and in its standard error: with n of n right the
# lower end is about 0.025 ** (1 / n), the exact one of n independent groups


class Interval(NamedTuple):
    """Ends; NaN where there are too few groups, or where the statistic is not known without some of them."""

    low: float
    high: float


NONE = Interval(float("nan"), float("nan"))


class Dealt(NamedTuple):
    """Groups dealt to blocks: each block is left out in turn."""

    group: np.ndarray  # (n,) int64: the number of each row's group
    block: np.ndarray  # (n,) int32: the block of each row's group
    groups: int
    blocks: int  # 0: nothing is left out

    def sums(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sums of values (m,) or (m, k) of these rows, of all groups first, then without each block: (1 + b[, k])."""
        if values.ndim == 1:
            return sums_without(self.block[rows], self.blocks, values)
        return np.stack([sums_without(self.block[rows], self.blocks, column) for column in values.T], axis=1)


def sums_without(block: np.ndarray, blocks: int, values: np.ndarray) -> np.ndarray:
    """Sum of values (n,), of all rows first, then without the rows of each block: (1 + b,) float64."""
    of_block = np.bincount(block, values, max(1, blocks))
    total = of_block.sum()
    return np.concatenate([[total], total - of_block[:blocks]])


def deal(sets: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> Dealt:
    """Deal the groups to blocks, from the set and the group of each row, both (n,).

    There are as many blocks as groups, at most `resamples`, and none where there is one group only. Groups are dealt
    by the seed, each set by itself, so that scores, views and the order of rows change nothing.
    """
    if resamples < 0:
        raise Refusal(f"{resamples} resamples: give 0 (no intervals) or more, such as 200")
    column = np.zeros(len(sets), dtype=np.int64)
    order: list[np.ndarray] = []
    total = 0
    names, of_set = numbered(sets)
    for number, name in enumerate(names):
        rows = np.flatnonzero(of_set == number)
        of_group, inverse = numbered(groups[rows])
        column[rows] = inverse + total
        rng = np.random.default_rng([seed, *name.encode("utf-8", "surrogateescape")])
        order.append(total + rng.permutation(len(of_group)))
        total += len(of_group)
    blocks = min(resamples, total) if total > 1 and resamples > 1 else 0
    block = np.zeros(total, dtype=np.int32)
    if blocks:
        block[np.concatenate(order)] = np.arange(total) * blocks // total
    return Dealt(column, block[column], total, blocks)


def leave_out(sets: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which groups count in each resample, and the column of each row's group; see `deal`.

    Returns counts (1 + b, g) uint8, 1 or 0, and (n,). Resample 0 has every group; every other one lacks a block.
    """
    dealt = deal(sets, groups, resamples, seed)
    counts = np.ones((1 + dealt.blocks, dealt.groups), dtype=np.uint8)
    if dealt.blocks:
        counts[1 + dealt.block, dealt.group] = 0
    return counts, dealt.group


def standard_error(values: np.ndarray) -> float:
    """Of a statistic (1 + b,), of all groups first; NaN where it is not known without some of them."""
    without = values[1:]
    if len(without) < 2:
        return float("nan")
    return float(np.sqrt((len(without) - 1) / len(without) * ((without - without.mean()) ** 2).sum()))


class Chance(NamedTuple):
    """How far chance moves a number: its standard error, and the degrees of freedom behind it."""

    error: float
    freedom: float


def chance(values: np.ndarray, groups: int, seeds: np.ndarray | None = None) -> Chance:
    """Of a share or a difference of shares, (1 + b,), that rests on so many groups; NaN for fewer than `FEWEST`.

    Two sources: other groups and, where the number is a mean over several training seeds, (s,), other seeds. Degrees
    of freedom: Satterthwaite 1946.
    """
    blocks = min(len(values) - 1, groups)
    if groups < FEWEST or blocks < 2 or np.isnan(values).any():
        return Chance(float("nan"), float("nan"))
    of_groups = standard_error(values) ** 2 + (FLOOR / groups) ** 2
    of_seeds, spent = 0.0, of_groups**2 / (blocks - 1)
    if seeds is not None and len(seeds) > 1:
        of_seeds = float(np.var(seeds, ddof=1)) / len(seeds)
        spent += of_seeds**2 / (len(seeds) - 1)
    return Chance(float(np.sqrt(of_groups + of_seeds)), (of_groups + of_seeds) ** 2 / spent)


def share_interval(values: np.ndarray, groups: int, level: float = LEVEL, seeds: np.ndarray | None = None) -> Interval:
    """Interval of a statistic between 0 and 1, (1 + b,), that rests on so many groups (of its rarer class)."""
    return _on_logit_scale(float(values[0]), groups, chance(values, groups, seeds), level)


def _on_logit_scale(value: float, groups: int, moved: Chance, level: float = LEVEL) -> Interval:
    error, freedom = moved
    if np.isnan(error):
        return NONE
    inner = (value * groups + PSEUDO) / (groups + 2 * PSEUDO)
    reach = t.ppf(0.5 + level / 2, freedom) * error / (inner * (1 - inner))
    middle = np.log(inner / (1 - inner))
    low, high = (1 / (1 + np.exp(-(middle + side * reach))) for side in (-1, 1))
    return Interval(min(float(low), value), max(float(high), value))


def sample_chance(
    parts: np.ndarray, generators: Sequence[str], groups: int, seeds: np.ndarray | None = None
) -> Chance:
    """Chance of the mean over n parts, (n, 1 + b), if their k generators are a sample of all that there could be.

    Two-way: other groups and other generators, each generator one draw, also where it has several parts (sets). Every
    generator rests on its own fakes, so that their spread holds the chance of those already; of the chance over
    groups only what all generators share (the real images, the scenes) is added to it:

        se^2 = se_groups^2 - own + (k + 1) / (k - 1) between,    between = k / (k - 1) sum_j w_j^2 (t_j - t)^2

    with `own` the jackknife's estimate of how much of `between` is chance over groups, w_j the share of the parts that
    generator j has, t_j its mean. (k + 1) / (k - 1) is there because few generators, most of them easy, spread too
    little. Degrees of freedom: Satterthwaite 1946. NaN below `FEWEST_GENERATORS`, and where `chance` is.
    """
    fixed = chance(parts.mean(axis=0), groups, seeds)
    names, place = np.unique(np.array(generators, dtype=object).astype(str), return_inverse=True)
    k, blocks = len(names), min(parts.shape[1] - 1, groups)
    if k < FEWEST_GENERATORS or np.isnan(fixed.error):
        return Chance(float("nan"), float("nan"))
    weight = np.bincount(place) / len(parts)
    member = np.zeros((k, len(parts)))
    member[place, np.arange(len(parts))] = 1 / np.bincount(place)[place]
    values = member @ parts

    def between(x: np.ndarray) -> np.ndarray:
        return k / (k - 1) * ((weight[:, None] * (x - weight @ x)) ** 2).sum(axis=0)

    without = values[:, 1:] - values[:, 1:].mean(axis=1, keepdims=True)
    own = (without.shape[1] - 1) / without.shape[1] * float(between(without).sum())
    shared = max(fixed.error**2 - own, 0.0)
    of_generators = (k + 1) / (k - 1) * float(between(values[:, :1])[0])
    total = shared + of_generators
    spent = shared**2 / (blocks - 1) + of_generators**2 / (k - 1)
    two_way = Chance(float(np.sqrt(total)), total**2 / spent if spent else float(blocks - 1))
    # generators that happen to differ less than their images explain leave the chance over groups
    return max(fixed, two_way, key=lambda one: t.ppf(0.5 + LEVEL / 2, one.freedom) * one.error)


def sample_interval(
    parts: np.ndarray, generators: Sequence[str], groups: int, seeds: np.ndarray | None = None
) -> Interval:
    """Interval of a mean share over generators like these, on groups like these; see `sample_chance`."""
    return _on_logit_scale(float(parts[:, 0].mean()), groups, sample_chance(parts, generators, groups, seeds))


def interval(values: np.ndarray, groups: int) -> Interval:
    """Interval of a statistic of any scale, (1 + b,): value +- t quantile x standard error."""
    blocks, error = min(len(values) - 1, groups), standard_error(values)
    if groups < FEWEST or blocks < 2 or np.isnan(error):
        return NONE
    value, reach = float(values[0]), float(t.ppf(0.5 + LEVEL / 2, blocks - 1)) * error
    return Interval(value - reach, value + reach)


def difference_interval(values: np.ndarray, groups: int, seeds: np.ndarray | None = None) -> Interval:
    """Interval of a difference of two shares on the same groups, (1 + b,)."""
    return Interval(*paired(values, groups, seeds)[:2])


class Paired(NamedTuple):
    """Interval of a difference, and the two-sided p of no difference; NaN where there are too few groups."""

    low: float
    high: float
    p: float


def paired(values: np.ndarray, groups: int, seeds: np.ndarray | None = None) -> Paired:
    """Of a difference of two shares on the same groups, (1 + b,); `seeds`: the differences of single seeds, (s,)."""
    value, (error, freedom) = float(values[0]), chance(values, groups, seeds)
    if np.isnan(error):
        return Paired(*NONE, float("nan"))
    reach = float(t.ppf(0.5 + LEVEL / 2, freedom)) * error
    return Paired(value - reach, value + reach, float(2 * t.sf(abs(value) / error, freedom)))


def surely_above(
    differences: Sequence[np.ndarray], groups: Sequence[int], seed: int = 0, one_seed: bool = False
) -> list[bool]:
    """Which of m differences of shares, (seeds, 1 + b) each, are above 0, all of them at 95 % together.

    The largest of all standardised differences is simulated under no difference (max-T): what they have in common
    through the groups from what they do when groups are left out, training seeds for each by itself. None is above 0
    with a single seed, which says nothing about others; with `one_seed` it is judged for that seed, by groups alone.
    """
    rng, known, parts = np.random.default_rng(seed), [], []
    for values, count in zip(differences, groups, strict=True):
        mean = values.mean(axis=0)
        error, freedom = chance(mean, count, values[:, 0])
        known.append((one_seed or len(values) > 1) and error == error)
        if known[-1]:
            without = mean[1:] - mean[1:].mean()
            pulls = np.sqrt((len(without) - 1) / len(without)) * without
            rest = np.sqrt(max(error**2 - (pulls**2).sum(), 0.0))
            parts.append((float(mean[0]) / error, pulls / error, rest / error, freedom))
    if not parts:
        return [False] * len(known)
    common = rng.standard_normal((len(parts[0][1]), DRAWS))
    drawn = np.stack([pulls @ common + rest * rng.standard_normal(DRAWS) for _, pulls, rest, _ in parts])
    # each at its own few degrees of freedom: a normal draw is stretched to the t of the same rank
    stretched = np.stack([t.ppf(norm.cdf(row), part[3]) for row, part in zip(drawn, parts, strict=True)])
    cut = np.quantile(np.abs(stretched).max(axis=0), LEVEL)
    above = iter([part[0] > cut for part in parts])
    return [bool(next(above)) if one else False for one in known]


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

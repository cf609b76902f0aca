"""Promises for new scenes from the scores of validation scenes: split-conformal quantiles over groups.

The rows of a group are not independent, so an ordinary quantile over rows would promise too much. Hierarchical
conformal prediction (Lee, Barber and Willett, 2306.06342) pools the distribution functions of the groups, one vote
each. Let s be the score of an image that is drawn from a new group, and the groups exchangeable: then s exceeds the
quantile at level ceil((n + 1) (1 - a)) / n of n groups with probability a at most, whatever the scores are. With one
row a group that is the usual split-conformal quantile.

That promise is kept on average over validation samples. One detector's sample is drawn once, and its own rate may be
above a: with one row a group, and a of .05, in .38 of the samples of 19 groups, .30 of 48, .44 of 99. With a stated
confidence c the quantile is a higher one, and the rate is a at most in a share c of all validation samples
(training-conditional validity: Vovk, 1209.2673). Groups must be independent draws then. A group with one row adds 0 or
1 to the count above the quantile, and a binomial tail would be exact; a group of several rows adds any share between,
so the tail is that of Hoeffding and Bentkus, as for any monotone risk (Bates et al., 2101.02703, section 3.1).
"""

import math

import numpy as np
from scipy.stats import binom

from adapt.errors import Refusal

SLACK = 1e-6  # for sums of weights: less than the weight of any row


def group_quantiles(values: np.ndarray, group: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Values, groups and kinds (n,) -> (g,) ascending: the j-th is the least v with F_1(v) + ... + F_g(v) >= j.

    F_k is the distribution function of group k, in which all kinds (of a generator, of a view) weigh the same.
    """
    if not len(values):
        return np.zeros(0)
    _, group = np.unique(group, return_inverse=True)
    _, kind = np.unique(kind, return_inverse=True)
    groups = int(group.max()) + 1
    pairs, pair, rows = np.unique(group * (kind.max() + 1) + kind, return_inverse=True, return_counts=True)
    kinds = np.bincount(pairs // (kind.max() + 1))
    order = np.argsort(values, kind="stable")
    votes = np.cumsum((1 / rows[pair] / kinds[group])[order])
    return values[order][np.searchsorted(votes, np.arange(1, groups + 1) - SLACK)]


def promised(table: np.ndarray, rate: float, flag: str, what: str, confidence: float | None = None) -> float:
    """The value of a table of `group_quantiles` that a new image exceeds with probability `rate` at most.

    On average over validation samples; with a `confidence`, in this share of them. Refuses a rate that so few groups
    cannot promise, in the words of the `flag` that asked for it.
    """
    if not 0 < rate < 1:
        raise Refusal(f"{flag} {rate:g}: give a rate between 0 and 1, such as 0.05")
    if confidence is not None and not 0 < confidence < 1:
        raise Refusal(f"--confidence {confidence:g}: give a probability between 0 and 1, such as 0.9")
    n, needed = len(table), fewest_groups(rate, confidence)
    if n < needed:
        sure = "" if confidence is None else f" at --confidence {confidence:g}"
        least = 1 / (n + 1) if confidence is None else 1 - (1 - confidence) ** (1 / max(n, 1))
        remedy = f"ask for {math.ceil(1e4 * least) / 1e4:g} or more, or validate on more groups"
        raise Refusal(
            f"{flag} {rate:g}{sure} takes {needed} validation groups with {what}, this detector has {n}: "
            + (remedy if n else "validate on some")
        )
    return float(table[rank(n, rate, confidence) - 1])


def fewest_groups(rate: float, confidence: float | None = None) -> int:
    """How many groups it takes to promise a rate."""
    if confidence is None:
        return math.ceil(1 / rate - 1 - 1e-9)
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate) - 1e-9)  # (1 - rate)^n <= 1 - confidence


def rank(n: int, rate: float, confidence: float | None = None) -> int:
    """The place, from 1, of the promised value among `fewest_groups` or more."""
    if confidence is None:
        return math.ceil((n + 1) * (1 - rate) - 1e-9)
    above = np.arange(math.floor(n * rate) + 1)  # groups that may lie above
    return n - int(np.flatnonzero(tail(above / n, n, rate) <= (1 - confidence) * (1 + 1e-6))[-1])


def tail(mean: np.ndarray, n: int, rate: float) -> np.ndarray:
    """The most that P(mean of n shares <= `mean`) can be; they lie in 0..1 and are independent, with true mean `rate`.

    The smaller of exp(-n kl(mean, rate)) (Hoeffding 1963, theorem 1) and e P(Binomial(n, rate) <= ceil(n mean))
    (Bentkus 2004); 1 above the rate.
    """
    mean = np.minimum(np.asarray(mean, dtype=np.float64), rate)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(mean > 0, mean * np.log(mean / rate), 0) + (1 - mean) * np.log((1 - mean) / (1 - rate))
    return np.minimum(np.exp(-n * kl), np.e * binom.cdf(np.ceil(n * mean - 1e-9), n, rate))


def share_bounds(mean: float, n: int, chance: float) -> tuple[float, float]:
    """Ends for the true mean of n independent shares of this `mean`; each fails with this `chance` at most."""
    return 1 - _most(1 - mean, n, chance), _most(mean, n, chance)


def _most(mean: float, n: int, chance: float) -> float:
    """The largest true mean that such a small one is not too unlikely for, by bisection."""
    low, high = mean, 1.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float(tail(np.asarray(mean), n, middle)) > chance else (low, middle)
    return high


def exceeded(n: int, rate: float) -> float:
    """How often one detector's own rate is above the one that is promised on average: exact for one row a group."""
    return float(binom.sf(rank(n, rate) - 1, n, 1 - rate))


def meant(confidence: float | None) -> str:
    """Which of the two promises it is, in words."""
    if confidence is None:
        return "on average over validation samples, not for each single detector"
    return f"for this very detector, with probability {confidence:g} over validation samples"

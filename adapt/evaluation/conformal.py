"""Promises for new scenes from the scores of validation scenes: split-conformal quantiles over groups.

The rows of a group are not independent, so an ordinary quantile over rows would promise too much. Hierarchical
conformal prediction (Lee, Barber and Willett, 2306.06342) pools the distribution functions of the groups, one vote
each. Let s be the score of an image that is drawn from a new group, and the groups exchangeable: then s exceeds the
quantile at level ceil((n + 1) (1 - a)) / n of n groups with probability a at most, whatever the scores are. With one
row a group that is the usual split-conformal quantile.
"""

import math

import numpy as np

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


def promised(table: np.ndarray, rate: float, flag: str, what: str) -> float:
    """The value of a table of `group_quantiles` that a new image exceeds with probability `rate` at most.

    Refuses a rate that so few groups cannot promise, in the words of the `flag` that asked for it.
    """
    if not 0 < rate < 1:
        raise Refusal(f"{flag} {rate:g}: give a rate between 0 and 1, such as 0.05")
    n = len(table)
    j = math.ceil((n + 1) * (1 - rate) - 1e-9)
    if j > n:
        least = math.ceil(1e4 / (n + 1)) / 1e4
        raise Refusal(
            f"{flag} {rate:g} takes {math.ceil(1 / rate - 1 - 1e-9)} validation groups with {what}, this detector has "
            f"{n}: " + (f"ask for {least:g} or more, or validate on more groups" if n else "validate on some")
        )
    return float(table[j - 1])

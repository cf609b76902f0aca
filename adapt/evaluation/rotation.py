"""Each generator (or family) left out of training in turn: how well is it found, and what does not knowing it cost?

Only test rows of what is left out are measured, beside the photographs of their set; every AUC is of the same groups,
left out of all runs at once. Left out and trained on are measured on the same rows: their difference is paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from adapt.errors import Refusal
from adapt.evaluation.jackknife import (
    LEVEL,
    NONE,
    Dealt,
    Interval,
    deal,
    difference_interval,
    sample_chance,
    sample_interval,
    share_interval,
    worst_interval,
)
from adapt.evaluation.replicates import auc_without, distinct
from adapt.evaluation.scores import Scores, comparisons
from adapt.evaluation.side_by_side import MEAN

OVER_ALL, LOWEST = "mean:left-out", "worst:left-out"  # in place of a name


@dataclass(frozen=True)
class Rotated:
    """AUC on a generator or family when it is left out, when it is trained on, and the second minus the first."""

    method: str
    trained_on: str
    seeds: int
    left_out: str  # its name, OVER_ALL or LOWEST
    view: str  # or MEAN, over all of them
    value: float
    low: float
    high: float
    trained: float
    trained_low: float
    trained_high: float
    drop: float
    drop_low: float
    drop_high: float
    n_real: int
    n_fake: int


@dataclass(frozen=True)
class Part:
    """(seeds, 1 + b) AUCs on one generator or family under one view."""

    left: np.ndarray
    trained: np.ndarray
    groups: int
    n_real: int
    n_fake: int


def rotation(
    whole: Sequence[Scores],
    without: Mapping[str, Sequence[Scores]],
    members: Mapping[str, Sequence[str]],
    resamples: int,
    seed: int = 0,
    method: str = "",
    trained_on: str = "",
) -> list[Rotated]:
    """The numbers of one method, by view and over views: of each that was left out, their mean, and the lowest.

    `whole`: scores of the runs that left nothing out, one a training seed; `without`: of those that left out each of
    `members`, which says on which generators it is measured. Refuses tables whose rows differ.

    The mean's interval counts what was left out as a sample (`sample_chance`); that of the lowest knows what it is.
    """
    test = whole[0].select(whole[0]["split"] == "test")
    dealt = deal(test["set"], test["group"], resamples, seed)
    parts = {}
    for name, generators in members.items():
        tables = [_rows(table, generators) for table in (*whole, *without[name])]
        of = np.flatnonzero(_measured(test, generators))
        parts[name] = _parts(name, tables, len(whole), dealt, of)
    out = []
    for view in (*distinct(test["view"]), MEAN):
        here = {name: of_views[view] for name, of_views in parts.items() if view in of_views}
        for name, part in here.items():
            left, trained, drop = (x.mean(axis=0) for x in (part.left, part.trained, part.trained - part.left))
            ends = (
                share_interval(left, part.groups, seeds=part.left[:, 0]),
                share_interval(trained, part.groups, seeds=part.trained[:, 0]),
                difference_interval(drop, part.groups, (part.trained - part.left)[:, 0]),
            )
            out.append(_row((method, trained_on, len(whole), name, view), (left, trained, drop), ends, [part]))
        if here:
            out += _over_all((method, trained_on, len(whole)), view, here)
    return out


def _measured(table: Scores, generators: Sequence[str]) -> np.ndarray:
    return (table["split"] == "test") & (table["edit"] == "") & np.isin(table["generator"], ["real", *generators])


def _rows(table: Scores, generators: Sequence[str]) -> Scores:
    return table.select(_measured(table, generators))


def _parts(name: str, tables: Sequence[Scores], seeds: int, dealt: Dealt, of: np.ndarray) -> dict[str, Part]:
    """By view and over all; the first `seeds` tables are those of runs that left nothing out, rows `of` the dealt."""
    first, block, group = tables[0], dealt.block[of], dealt.group[of]
    for table in tables[1:]:
        if len(table) != len(first) or any((table[key] != first[key]).any() for key in ("path", "view")):
            raise Refusal(f"{name}: runs with and without it scored other test rows: delete the older ones")
    ok = np.logical_and.reduce([table.ok for table in tables])
    found: dict[str, list[tuple[np.ndarray, int, int, int]]] = {}
    for one in comparisons(first):
        used = np.flatnonzero(ok & (one.fakes | one.reals))
        fake = first.fake[used]
        if not fake.any() or fake.all():
            continue
        aucs = np.stack([auc_without(table["logit"][used], fake, block[used], dealt.blocks) for table in tables])
        groups = min(len(np.unique(group[used][fake])), len(np.unique(group[used][~fake])))
        found.setdefault(one.view, []).append((aucs, groups, int((~fake).sum()), int(fake.sum())))
    if not found:
        raise Refusal(f"{name}: no readable test image beside a photograph of its set: nothing can be measured on it")
    views = {}
    for view, cells in found.items():
        aucs = np.mean([cell[0] for cell in cells], axis=0)
        groups, n_real, n_fake = (
            int(np.mean([c[1] for c in cells])),
            max(c[2] for c in cells),
            sum(c[3] for c in cells),
        )
        views[view] = Part(aucs[seeds:], aucs[:seeds], groups, n_real, n_fake)
    every = list(views.values())
    left, trained = (np.mean([getattr(part, side) for part in every], axis=0) for side in ("left", "trained"))
    return views | {MEAN: Part(left, trained, every[0].groups, every[0].n_real, every[0].n_fake)}


def _over_all(of: tuple[str, str, int], view: str, parts: Mapping[str, Part]) -> list[Rotated]:
    """The mean and the lowest."""
    names, every = list(parts), list(parts.values())
    groups = int(np.mean([part.groups for part in every]))
    values, ends = [], []
    for side in ("left", "trained"):
        stack = np.stack([getattr(part, side) for part in every])  # (k, seeds, 1 + b)
        values.append(stack.mean(axis=(0, 1)))
        ends.append(sample_interval(stack.mean(axis=1), names, groups, stack[:, :, 0].mean(axis=0)))
    drops = np.stack([part.trained - part.left for part in every])
    values.append(drops.mean(axis=(0, 1)))
    error, freedom = sample_chance(drops.mean(axis=1), names, groups, drops[:, :, 0].mean(axis=0))
    reach = float(t.ppf(0.5 + LEVEL / 2, freedom)) * error
    ends.append(Interval(values[2][0] - reach, values[2][0] + reach))
    lefts = np.stack([part.left.mean(axis=0) for part in every])
    lowest = worst_interval(lefts, np.array([part.groups for part in every]))
    unknown = np.array([np.nan])
    worst = int(lefts[:, 0].argmin())
    return [
        _row((*of, OVER_ALL, view), values, ends, every),
        _row((*of, LOWEST, view), (lefts[worst], unknown, unknown), (lowest, NONE, NONE), [every[worst]]),
    ]


def _row(
    key: tuple[str, str, int, str, str],
    values: Sequence[np.ndarray],
    ends: Sequence[Interval],
    parts: Sequence[Part],
) -> Rotated:
    left, trained, drop = ((float(value[0]), *end) for value, end in zip(values, ends, strict=True))
    n_real, n_fake = max(part.n_real for part in parts), sum(part.n_fake for part in parts)
    return Rotated(*key, *left, *trained, *drop, n_real, n_fake)

"""Scores of several detectors from several tables: the rows that all of them have, and every pair of them compared.

The same groups are left out of all detectors, so that each difference has the interval and p of `metrics.compare`.
Which differences are surely not 0 is said for all that are shown together (`surely_above` of jackknife.py).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapt.errors import Refusal
from adapt.evaluation.brought import Brought
from adapt.evaluation.jackknife import surely_above
from adapt.evaluation.metrics import Cell, Difference, cells_of, differences_of
from adapt.evaluation.numbering import numbered
from adapt.evaluation.replicates import ALL, PREVALENCE, replicate, unseen_kinds
from adapt.evaluation.scores import UNKNOWN, Scores
from adapt.evaluation.thresholds import pick_threshold

OF_IMAGES = (
    "generator",
    "group",
    "split",
    "set",
    "edit",
    "seen",
    "family",
)  # the first table that says it is believed
ONE_VALUE = ("generator", "split", "set", "edit")  # tables that say different things contradict each other
SHOWN = ("auc", "balanced_accuracy")  # of mean:all: their differences are judged together


@dataclass(frozen=True)
class Joined:
    """The same images and views in the same order for every detector; `only`: how many rows of each were left out."""

    tables: dict[str, Scores]
    only: dict[str, int]


@dataclass(frozen=True)
class Pair:
    """A difference of two detectors; `surely` where it is one of those judged together and is not 0."""

    a: str
    b: str
    difference: Difference
    surely: bool = False


@dataclass(frozen=True)
class Measured:
    """Numbers of each detector at its threshold, on test rows that all could read, and of each pair."""

    cells: dict[str, list[Cell]]
    pairs: list[Pair]
    thresholds: dict[str, float]
    unreadable: dict[str, int]  # test rows without a score, of each detector


def join(brought: Sequence[Brought]) -> Joined:
    """The rows (path, view) that all tables have; refuses tables that contradict each other or have none in common."""
    for one in brought:
        if "path" not in one.has:
            raise Refusal(f"{one.name} has no column of paths to join by: name it with --path")
        if one.scores.folds is not None:
            raise Refusal(f"{one.name} holds scores of folds: compare two such tables with --scores A --compare B")
    lengths = [len(one.scores) for one in brought]
    ends = np.cumsum(lengths)
    key = np.zeros(int(ends[-1]), dtype=np.int64)
    for column in ("path", "view"):
        names, number = numbered(np.concatenate([one.scores[column] for one in brought]))
        key = key * len(names) + number
    _, key = np.unique(key, return_inverse=True)
    of_table = np.split(key, ends[:-1])
    common = np.flatnonzero(np.bincount(key) == len(brought))  # a row stands in a table at most once
    if not len(common):
        shown = " and ".join(f"{one.scores['path'][0]!r} ({one.name})" for one in brought[:2])
        raise Refusal(f"no image stands under one view in all tables: write its path alike in them, not {shown}")
    kept = of_table[0][np.isin(of_table[0], common)]  # in the order of the first table
    rows = []
    for keys in of_table:
        place = np.full(int(key.max()) + 1, -1)
        place[keys] = np.arange(len(keys))
        rows.append(place[kept])
    about = _about(brought, rows)
    tables = {}
    for one, which in zip(brought, rows, strict=True):
        own = {name: one.scores[name][which] for name in ("path", "view", "logit", "p_fake", "status")}
        tables[one.name] = Scores(about | own)
    return Joined(tables, {one.name: n - len(kept) for one, n in zip(brought, lengths, strict=True)})


def _about(brought: Sequence[Brought], rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """What the tables say of the images, refusing two that say different things."""
    path = brought[0].scores["path"][rows[0]]
    for one, which in zip(brought[1:], rows[1:], strict=True):
        label = ("real", "fake")
        pairs = brought[0].scores.fake[rows[0]], one.scores.fake[which]
        if (bad := np.flatnonzero(pairs[0] != pairs[1])).size:
            first, second = (label[int(pair[bad[0]])] for pair in pairs)
            raise Refusal(
                f"{path[bad[0]]!r} is {first} in {brought[0].name} and {second} in {one.name} ({len(bad)} such rows): "
                "mend one of the tables"
            )
    about = {}
    for column in OF_IMAGES:
        saying = [
            (one, one.scores[column][which]) for one, which in zip(brought, rows, strict=True) if column in one.has
        ]
        for one, values in saying[1:] if column in ONE_VALUE else []:
            if (bad := np.flatnonzero(values != saying[0][1])).size:
                told = f"{saying[0][1][bad[0]]!r} in {saying[0][0].name} and {values[bad[0]]!r} in {one.name}"
                raise Refusal(f"{path[bad[0]]!r} has {column} {told} ({len(bad)} such rows): mend one of the tables")
        about[column] = saying[0][1] if saying else brought[0].scores[column][rows[0]]
        if not saying and column == "seen" and not all(one.ours for one in brought):
            about[column] = np.full(len(path), UNKNOWN, dtype=object)
    return about


def measure(
    joined: Joined,
    thresholds: Mapping[str, float | None],
    resamples: int = 200,
    seed: int = 0,
    prevalence: float = PREVALENCE,
) -> Measured:
    """All numbers of all detectors and pairs; a threshold of None is picked on the detector's validation rows.

    Test rows that one detector could not read are left out of all of them.
    """
    first = next(iter(joined.tables.values()))
    test = first["split"] == "test"
    if not test.any():
        raise Refusal("the tables have no row with split 'test' in common: there is nothing to report")
    ok = np.logical_and.reduce([table.ok for table in joined.tables.values()])
    if not (test & ok).any():
        raise Refusal("no test row has a score in every table: score the same images with all detectors")
    kinds, found, cuts, cells = unseen_kinds(first), {}, {}, {}
    for name, table in joined.tables.items():
        given = thresholds[name]
        cuts[name] = pick_threshold(table) if given is None else given
        blank = {column: np.where(ok, table[column], np.nan) for column in ("logit", "p_fake")}
        status = np.where(ok, "ok", "unreadable: for one of the detectors").astype(object)
        readable = Scores(table.columns | blank | {"status": status}).select(test)
        found[name] = replicate(readable, cuts[name], resamples, seed, prevalence, kinds)
        cells[name] = cells_of(found[name])
    differences = [
        (a, b, one) for a, b in itertools.combinations(found, 2) for one in differences_of([(found[a], found[b])])
    ]
    judged = [(a, b, one) for a, b, one in differences if (one.set, one.generator) == (ALL, "mean:all")
              and one.metric in SHOWN and not np.isnan(one.low)]  # fmt: skip
    values, groups = [], []
    for a, b, one in judged:
        key = one.set, one.view, one.generator
        change = found[a][key].values[one.metric] - found[b][key].values[one.metric]
        values.append(np.sign(change[0]) * change[None])
        groups.append(found[a][key].groups)
    sure = {id(one) for (_, _, one), above in zip(judged, surely_above(values, groups, one_seed=True), strict=True)
            if above}  # fmt: skip
    pairs = [Pair(a, b, one, id(one) in sure) for a, b, one in differences]
    unreadable = {name: int((test & ~table.ok).sum()) for name, table in joined.tables.items()}
    return Measured(cells, pairs, cuts, unreadable)

"""From Scores to numbers with intervals: one detector, two detectors compared, and the controls.

Every generator is scored against the unedited reals of its own `set` under the same view. Only `test` rows
are reported; `val` rows choose the threshold. Intervals are 95 % intervals of a jackknife over
groups, given the threshold. Beside the generators' own names, the column `generator` of a `Cell` has words for the
reals, for aggregates (`mean:unseen`) and for processed reals: README.md has the table of them, and of all metrics.

Means and the worst stand under the set `all`: every (set, generator) that has both classes counts once.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adapt.errors import Refusal
from adapt.evaluation.jackknife import Interval, difference_interval, paired
from adapt.evaluation.numbering import numbered
from adapt.evaluation.replicates import (
    ALL,
    PREVALENCE,
    WITHOUT_INTERVAL,
    Key,
    Replicates,
    distinct,
    interval_of,
    replicate,
    unseen_kinds,
)
from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import pick_threshold

CHANCE, EXCESS = 0.1, 0.05  # of the controls: in AUC from 0.5; in false alarms above those on unedited reals
PERMUTED = "labels permuted: {} AUC"  # name of a control over several permutations: permutation.py
ABOVE = "above metadata only: {} AUC"  # name of a control: a difference
Outcome = Literal["passed", "FAILED", "cannot tell", "n/a"]
Measured = Mapping[Key, Replicates]
PREFIXES = (
    "mean:",
    "sample:",
    "worst:",
    "pooled:",
    "within:",
    "edit:",
)  # of aggregates: no generator may have them


@dataclass(frozen=True)
class Cell:
    """One number. NaN is "not applicable": a class or the threshold is missing."""

    set: str
    view: str
    generator: str
    metric: str  # one of METRICS or WITHIN, or threshold, or unreadable (a count of rows)
    value: float
    low: float
    high: float
    n_real: int  # readable rows, not groups
    n_fake: int
    skipped: int = 0  # resamples in which a class was absent
    seen: str = ""  # of a generator: train, val or ''
    groups: int = (
        0  # that its interval rests on, of the rarer class; of a threshold: that it was chosen on; 0: not known
    )


@dataclass(frozen=True)
class Difference:
    """One metric of `a` minus the same of `b`, on the same resamples; p is two-sided."""

    set: str
    view: str
    generator: str
    metric: str
    a: float
    b: float
    value: float
    low: float
    high: float
    p: float
    n_real: int
    n_fake: int
    skipped: int = 0


@dataclass(frozen=True)
class Control:
    """One number that must be at its chance or reference level, and whether it is."""

    name: str
    view: str
    value: float
    low: float
    high: float
    outcome: Outcome
    n_real: int
    n_fake: int
    permutations: int = 0  # behind the value, which is their mean; low and high are the lowest and the highest
    p: float = float("nan")  # of the true labels among them: permutation.py


def evaluate(
    scores: Scores,
    resamples: int = 1000,
    seed: int = 0,
    threshold: float | None = None,
    prevalence: float = PREVALENCE,
    families_met: Collection[str] = (),
) -> list[Cell]:
    """Every metric of every (set, view, generator) and its aggregates, with intervals.

    `threshold` (a logit) replaces the one picked on the validation rows, for a detector whose threshold was frozen
    elsewhere: no row stands behind its cell then. `prevalence`: the share of fakes that `ap` is for. `families_met`:
    those that training met without a generator among these rows. Refuses a table without test rows, and names that are
    the evaluator's own.
    """
    test = _test_rows(scores)
    val = (scores["split"] == "val") & (scores["edit"] == "")
    n_real, n_fake = (int((val & scores.ok & fake).sum()) for fake in (~scores.fake, scores.fake))
    nan = float("nan")
    behind = (n_real, n_fake) if threshold is None else (0, 0)
    threshold = pick_threshold(scores) if threshold is None else threshold
    groups = len(np.unique(scores["group"][val & scores.ok].astype(str))) if any(behind) else 0
    cells = [Cell(ALL, ALL, "pooled:val", "threshold", threshold, nan, nan, *behind, groups=groups)]
    if lost := int((val & ~scores.ok).sum()):
        cells.append(Cell(ALL, ALL, "pooled:val", "unreadable", lost, nan, nan, n_real, n_fake))
    kinds = unseen_kinds(scores, families_met)
    return cells + cells_of(replicate(test, threshold, resamples, seed, prevalence, kinds))


def cells_of(measured: Measured) -> list[Cell]:
    """Every metric of every cell with its interval, and how many rows could not be read."""
    cells, nan = [], float("nan")
    for key, found in measured.items():
        for metric, values in found.values.items():
            low, high = interval_of(found, metric)
            value = float(values[0])
            skipped = 0 if np.isnan(value) else int(np.isnan(values).sum())
            cells.append(
                Cell(*key, metric, value, low, high, found.n_real, found.n_fake, skipped, found.seen, found.groups)
            )
        if found.unreadable:
            cells.append(Cell(*key, "unreadable", found.unreadable, nan, nan, found.n_real, found.n_fake))
    return cells


def weakest(cells: Sequence[Cell], n: int = 10, generators: Collection[str] | None = None) -> list[Cell]:
    """The `n` AUC cells, one a (set, generator, view), with the lowest upper ends of their intervals, lowest first.

    By the upper end, because a cell is surely no better than that: by value, the few unlucky images of a rare
    generator would push surely weak cells out. Without intervals by value. `generators` are the candidates; None is
    all that were not met in validation only, as in worst:all. A cell without both classes is no candidate.

    The lowest of many are in part the unluckiest, and rise by themselves on new rows: who wants to mend cells and
    measure the recovery names them on other rows (validation) than those of the measurement.
    """
    found = [
        cell
        for cell in cells
        if cell.metric == "auc"
        and not cell.generator.startswith(PREFIXES)
        and not np.isnan(cell.value)
        and (cell.seen != "val" if generators is None else cell.generator in generators)
    ]

    def surely(cell: Cell) -> tuple[float, float, str, str, str]:
        high = cell.value if np.isnan(cell.high) else cell.high
        return high, cell.value, cell.set, cell.generator, cell.view

    return sorted(found, key=surely)[:n]


def compare(
    a: Scores,
    b: Scores,
    resamples: int = 1000,
    seed: int = 0,
    thresholds: tuple[float | None, float | None] = (None, None),
    prevalence: float = PREVALENCE,
) -> list[Difference]:
    """Every metric of `a` minus that of `b` on the same groups, each at its own frozen threshold.

    `thresholds` (of a, of b) replace those picked on the validation rows. Both tables must score the same
    test rows; groups, sets, edits and `seen` are those of `a`. Rows that either could not read are left out
    of both. p is two-sided, by the same t quantile as the interval. `prevalence` as in `evaluate`.
    """
    return compare_means([(a, b)], resamples, seed, thresholds, prevalence)


def compare_means(
    pairs: Sequence[tuple[Scores, Scores]],
    resamples: int = 1000,
    seed: int = 0,
    thresholds: tuple[float | None, float | None] = (None, None),
    prevalence: float = PREVALENCE,
) -> list[Difference]:
    """`compare` for means over several pairs, one a training seed: the groups are left out of all of them at once.

    The variance is that over groups plus that of a mean over seeds. A single pair says nothing about other seeds.
    """
    found: list[tuple[Measured, Measured]] = []
    kinds = unseen_kinds(pairs[0][0])
    for a, b in pairs:
        cuts = [pick_threshold(t) if given is None else given for t, given in zip((a, b), thresholds, strict=True)]
        # all in one order: then resamples draw the same groups
        tables = (align(pairs[0][0], table)[1] for table in align(a, b))
        one, other = (
            replicate(table, cut, resamples, seed, prevalence, kinds) for table, cut in zip(tables, cuts, strict=True)
        )
        found.append((one, other))
    return differences_of(found)


def differences_of(found: Sequence[tuple[Measured, Measured]]) -> list[Difference]:
    """Every metric of the first minus that of the second, mean over the pairs, all measured on the same resamples."""
    out = []
    for key, one in found[0][0].items():
        if one.sample_of:  # the same difference as that of the mean
            continue
        for metric in one.values:
            values = np.mean([a[key].values[metric] for a, _ in found], axis=0)
            d = np.mean([a[key].values[metric] - b[key].values[metric] for a, b in found], axis=0)
            seeds = np.array([a[key].values[metric][0] - b[key].values[metric][0] for a, b in found])
            known = metric not in WITHOUT_INTERVAL and not one.worst_of
            low, high, p = paired(d, one.groups, seeds) if known else (float("nan"),) * 3
            a_value, change = float(values[0]), float(d[0])
            skipped = 0 if np.isnan(d[0]) else int(np.isnan(d).sum())
            out.append(Difference(
                    *key, metric, a_value, float(values[0] - d[0]), change, low, high, p,
                    one.n_real, one.n_fake, skipped,
                )
            )  # fmt: skip
    return out


def align(a: Scores, b: Scores) -> tuple[Scores, Scores]:
    """The test rows of `a`, and the same rows with the scores of `b`; unreadable in one, unreadable in both.

    Refuses tables whose test rows (path, view, generator) differ.
    """
    a, b = _test_rows(a), _test_rows(b)
    keys, n = np.zeros(len(a) + len(b), dtype=np.int64), len(a)
    for column in ("path", "view", "generator"):
        names, number = numbered(np.concatenate([a[column], b[column]]))
        keys = np.unique(keys * len(names) + number, return_inverse=True)[1]
    in_one = np.bincount(keys[:n], minlength=keys.max() + 1) != np.bincount(keys[n:], minlength=keys.max() + 1)
    if in_one.any():
        different = np.flatnonzero(in_one[keys])
        rows = ((table, row) for table, row in ((a, r) if r < n else (b, r - n) for r in different))
        path, view, generator = min((t["path"][r], t["view"][r], t["generator"][r]) for t, r in rows)
        raise Refusal(
            f"the two tables differ in {len(different)} test rows, such as {path!r} ({generator}) under view "
            f"{view!r}: score the same images under the same views with both detectors"
        )
    b = b.select(np.argsort(keys[n:], kind="stable")[keys[:n]])
    ok = a.ok & b.ok
    status = np.where(ok, "ok", "unreadable: in one of the two tables")
    blank = [
        {name: np.where(ok, table[name], np.nan) for name in ("logit", "p_fake")} | {"status": status}
        for table in (a, b)
    ]
    about = {name: values for name, values in a.columns.items() if not name.startswith("logit_")}
    of_classes = [
        {name: values for name, values in table.columns.items() if name.startswith("logit_")} for table in (a, b)
    ]
    return Scores(about | of_classes[0] | blank[0]), Scores(about | of_classes[1] | blank[1])


def controls(
    scores: Scores,
    permuted: Scores | None = None,
    metadata: Scores | None = None,
    resamples: int = 1000,
    seed: int = 0,
    threshold: float | None = None,
) -> list[Control]:
    """The three controls of a result, per view; the first two where their tables are given.

    Labels permuted in training, and a classifier that sees metadata only: the mean AUC over all generators must lie
    in 0.5 +- `CHANCE`. The detector's mean AUC over seen and over unseen generators must be above that of metadata on
    the same images: `cannot tell` where the interval of the difference holds 0. Processed reals: their false-alarm
    rate must exceed that of the unedited reals by `EXCESS` at most. `outcome_of` says what their intervals tell. The
    two tables must hold the test rows of `scores` under each view they have.
    """
    out = []
    for name, other in (("labels permuted: mean AUC", permuted), ("metadata only: mean AUC", metadata)):
        if other is None:
            continue
        own, aligned = align(scores.select(np.isin(scores["view"], other["view"])), other)
        reached = replicate(aligned, float("nan"), resamples, seed, metrics=("auc",))
        for (_, view, generator), found in reached.items():
            if generator == "mean:all":
                outcome = outcome_of(interval_of(found, "auc"), 0.5 - CHANCE, 0.5 + CHANCE)
                out.append(_control(name, view, found, "auc", outcome))
        if other is metadata:
            out += _above_metadata(replicate(own, float("nan"), resamples, seed, metrics=("auc",)), reached)
    threshold = pick_threshold(scores) if threshold is None else threshold
    test = _test_rows(scores)
    if not (test["edit"] != "").any():
        return out
    drawn = replicate(test, threshold, resamples, seed, metrics=("false_alarm",))
    for (scope, view, label), processed in drawn.items():
        if scope == ALL and label.startswith("edit:"):
            excess = processed.values["false_alarm"] - drawn[ALL, view, "real"].values["false_alarm"]
            name = f"processed reals, {label.removeprefix('edit:')}: false alarms"
            outcome = outcome_of(difference_interval(excess, processed.groups), -1, EXCESS)
            out.append(_control(name, view, processed, "false_alarm", outcome))
    return out


def _above_metadata(detector: Mapping[Key, Replicates], metadata: Mapping[Key, Replicates]) -> list[Control]:
    """The mean AUC of a detector minus that of metadata, on the same groups, where there are such generators."""
    out = []
    for (of_set, view, generator), found in detector.items():
        if of_set == ALL and generator in ("mean:seen", "mean:unseen") and found.n_real and found.n_fake:
            change = found.values["auc"] - metadata[of_set, view, generator].values["auc"]
            ends, value = difference_interval(change, found.groups), float(change[0])
            outcome: Outcome = "passed" if ends.low > 0 else "FAILED" if ends.high < 0 else "cannot tell"
            out.append(Control(ABOVE.format(generator), view, value, *ends, outcome, found.n_real, found.n_fake))
    return out


def outcome_of(found: Interval, least: float, most: float) -> Outcome:
    """`passed` where a whole interval lies between the two, `FAILED` where none of it does, else `cannot tell`.

    A control that merely was not seen to fail has not passed: with few images nothing is seen.
    """
    if np.isnan(found.low):
        return "n/a"
    if least <= found.low and found.high <= most:
        return "passed"
    return "FAILED" if found.low > most or found.high < least else "cannot tell"


def _control(name: str, view: str, found: Replicates, metric: str, outcome: Outcome) -> Control:
    low, high = interval_of(found, metric)
    value = float(found.values[metric][0])
    return Control(name, view, value, low, high, outcome, found.n_real, found.n_fake)


def _test_rows(scores: Scores) -> Scores:
    test = scores.select(scores["split"] == "test")
    if not len(test):
        raise Refusal("the scores have no row with split 'test': there is nothing to report")
    for generator in distinct(test["generator"]):
        if generator.startswith(PREFIXES):
            raise Refusal(f"generator {generator!r}: {', '.join(PREFIXES)} begin names of aggregates; rename it")
    if ALL in test["set"] or ALL in test["edit"]:
        raise Refusal(f"a set or an edit named {ALL!r}: that name is kept for aggregates; rename it")
    return test


Index = dict[tuple[str, str, str, str], Cell]


def index(cells: Sequence[Cell]) -> Index:
    """Cells by (set, view, generator, metric)."""
    return {(cell.set, cell.view, cell.generator, cell.metric): cell for cell in cells}

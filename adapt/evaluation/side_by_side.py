"""Many detectors on the same test rows: means over training seeds, shared resamples, and who is surely ahead.

The same groups are left out of all detectors, so that the difference of any two of them has its interval (`paired` of
jackknife.py) without being measured again. Rows that one of them could not read are left out of all.

A detector that was trained elsewhere is one fixed detector: no training seeds are behind its numbers, so a difference
from it has the chance over groups, and over the seeds of the other row.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np

from adapt.errors import Refusal
from adapt.evaluation.attribution import Column, attribute_measured
from adapt.evaluation.calibration import Calibration, fit_temperature
from adapt.evaluation.jackknife import (
    NONE,
    Interval,
    difference_interval,
    sample_interval,
    share_interval,
    surely_above,
    worst_interval,
)
from adapt.evaluation.metrics import PREFIXES, align
from adapt.evaluation.permutation import Reached, mean_interval, p_of
from adapt.evaluation.replicates import (
    ALL,
    LOWER_IS_BETTER,
    UNSEEN,
    WITHOUT_INTERVAL,
    Replicates,
    distinct,
    replicate,
    unseen_kinds,
)
from adapt.evaluation.scores import UNKNOWN, Scores
from adapt.evaluation.thresholds import pick_threshold
from adapt.number_table import columns_of, read_rows, write_rows

MEAN = "mean"  # in place of a view: over all of them
SAMPLE = "sample:unseen"  # generator: the mean of the unseen ones, as a sample of all that there could be
WORST = "worst:unseen"  # generator: the lowest of the unseen ones, resample by resample
KEPT = {  # by label of `replicate`
    "mean:seen": ("auc", "balanced_accuracy"),
    "mean:unseen": ("auc", "balanced_accuracy"),
    **dict.fromkeys(UNSEEN, ("auc", "balanced_accuracy")),
    "mean:all": ("auc", "ece", "balanced_accuracy", "balanced_accuracy_at_0.5", "balanced_accuracy_oracle"),
    "real": ("false_alarm",),
    "edit:all": ("false_alarm",),
}
GAPS = {  # metric: minuend and subtrahend, of mean:all
    "gap_oracle_frozen": ("balanced_accuracy_oracle", "balanced_accuracy"),
    "gap_frozen_at_0.5": ("balanced_accuracy", "balanced_accuracy_at_0.5"),
}
TEMPERED = "ece_temperature"  # of mean:all: ECE after one temperature, fitted on the method's own validation rows
EXCESS = "excess_false_alarm"  # of edit:all: processed reals minus unedited ones
ABOVE_METADATA = "auc_above_metadata"  # of mean:seen, mean:unseen: AUC minus that of metadata, in their view
CLASSES = "classes:"  # begins the generator of what is said of all classes: classes:family, classes:generator
OF_CLASSES = ("macro_recall", "macro_f1", "auroc_energy")  # the metrics of it, as in attribution.py
METADATA = ("metadata only", "")  # the row of the control that every run of a head leaves
P, TRUE_LABELS = "permutation_p", "auc_true_labels"  # of a row of permutations
Row = tuple[str, str]  # method, training views
Place = tuple[str, str, str, str]  # set, view, generator, metric
Mark = Literal["best", "tie", "above", ""]  # above: a difference that is surely above 0
Role = Literal["method", "detector", "control"]  # detector: one that was trained elsewhere
OWN = ("mean:seen", "mean:unseen", *UNSEEN)  # labels of means that depend on what a detector was trained on


@dataclass(frozen=True)
class Number:
    """One number of a method: the mean over its training seeds with its interval over groups."""

    method: str
    trained_on: str
    seeds: int
    set: str
    view: str  # or MEAN, or "" for a cost
    generator: str
    metric: str
    value: float
    low: float
    high: float
    seed_low: float  # the smallest and the largest of a single seed
    seed_high: float
    n_real: int = 0  # readable rows of a view
    n_fake: int = 0
    met: str = ""  # of a generator: train, val, '' or unknown
    mark: Mark = ""
    role: Role = "method"

    @property
    def row(self) -> Row:
        return self.method, self.trained_on

    @property
    def place(self) -> Place:
        return self.set, self.view, self.generator, self.metric


@dataclass(frozen=True)
class Drawn:
    """(seeds, 1 + b) values of one number, of all groups in the first column, then without some of them."""

    values: np.ndarray
    n_real: int
    n_fake: int
    groups: int
    met: str = ""
    worst_of: tuple["Drawn", ...] = ()  # the generators among which it is the worst
    sample_of: tuple["Drawn", ...] = ()  # the generators whose mean it is
    sampled: tuple[str, ...] = ()  # their names
    fixed: bool = False  # of one detector, which has no other seeds

    def interval(self, metric: str) -> Interval:
        """Of the mean over seeds, with groups and seeds as sources of chance."""
        values, seeds = self.values.mean(axis=0), self.values[:, 0]
        if metric in (*WITHOUT_INTERVAL, TEMPERED, "gap_oracle_frozen"):
            return NONE
        if metric in (*GAPS, EXCESS):
            return difference_interval(values, self.groups, seeds)
        if self.worst_of:
            parts = np.stack([part.values.mean(axis=0) for part in self.worst_of])
            return worst_interval(parts, np.array([part.groups for part in self.worst_of]))
        if self.sample_of:
            parts = np.stack([part.values.mean(axis=0) for part in self.sample_of])
            return sample_interval(parts, self.sampled, self.groups, seeds)
        return share_interval(values, self.groups, seeds=seeds)


@dataclass(frozen=True)
class Fixed:
    """What is known of a detector that was trained elsewhere, beside its scores of the test rows.

    Its threshold is as it was saved, and `seen` of its scores is its own; `families_met` are those of its training.
    """

    threshold: float
    families_met: tuple[str, ...] = ()


class SideBySide:
    """Values of all numbers of some detectors under shared resamples; give the first table in full."""

    def __init__(self, resamples: int) -> None:
        self.resamples = resamples
        self.drawn: dict[Row, dict[Place, Drawn]] = {}
        self.true: dict[Row, dict[Place, float]] = {}  # of rows of permutations: what the true labels reach
        self.fixed: dict[Row, tuple[str, ...]] = {}  # detectors from elsewhere: labels of means over other generators

    def add(
        self,
        tables: Mapping[Row, Sequence[Scores]],
        controls: Mapping[Row, Sequence[Scores]],
        columns: Mapping[Row, Column] | None = None,
        fixed: Mapping[Row, Fixed] | None = None,
    ) -> None:
        """Measure the tables of each row, one a seed. A control need not have all views, and takes no row from others.

        `columns` says of rows whose scores have class logits what the classes are; `OF_CLASSES` of these are measured.
        `fixed` says which rows are detectors from elsewhere; generators are seen or unseen as the first table has it,
        for these as their own does. Refuses tables whose test rows differ.
        """
        first, fixed = next(iter((tables or controls).values()))[0], fixed or {}
        every, kinds = {**tables, **controls}, unseen_kinds(first)
        cuts = {
            row: [fixed[row].threshold if row in fixed else pick_threshold(table) for table in of_row]
            for row, of_row in every.items()
        }
        maps = {row: [fit_temperature(table) for table in of_row] for row, of_row in every.items()}
        held = {row: [align(first, table)[1] for table in of_row] for row, of_row in tables.items()}
        ok = np.logical_and.reduce([table.ok for of_row in held.values() for table in of_row])
        for row, of_row in controls.items():
            held[row] = []
            for table in of_row:
                same = first.select(np.isin(first["view"], table["view"]))
                held[row].append(align(same, table)[1])
        for row, of_row in held.items():
            found = []
            for table, cut, temperature in zip(of_row, cuts[row], maps[row], strict=True):
                readable = _blank(table, ok) if row in tables else table
                places = kept_places(replicate(readable, cut, self.resamples, 0, kinds=kinds))
                if row in fixed:
                    places = _as_trained(places, readable, every[row][0], fixed[row], self.resamples)
                    self.fixed[row] = _over_others(first, every[row][0])
                else:
                    places |= _tempered(readable, temperature)
                if column := (columns or {}).get(row):
                    places |= _attributed(readable, self.resamples, column)
                found.append(places)
            self.drawn[row] = {place: _stack([one[place] for one in found]) for place in found[0]}
            self.drawn[row] |= _over_views(self.drawn[row])
            self.drawn[row] |= _derived(self.drawn[row])
            if row in fixed:
                self.drawn[row] = {place: replace(one, fixed=True) for place, one in self.drawn[row].items()}

    def add_permutations(self, row: Row, runs: Sequence[Sequence[Reached]]) -> None:
        """A row whose "seeds" are permutations of the labels, each number the mean over the `runs`, one a seed.

        All runs see the same permutations. Intervals are those of means over permutations.
        """
        found: dict[Place, dict[int, list[float]]] = {}
        met = {}
        for one in itertools.chain(*runs):
            place = one.set, one.view, one.generator, one.metric
            found.setdefault(place, {}).setdefault(one.permutation, []).append(one.value)
            met[place] = one.seen
        self.true[row] = {place: float(np.mean(values[0])) for place, values in found.items()}
        own = {}
        for place, values in found.items():
            means = np.array([np.mean(values[number]) for number in sorted(values) if number])
            own[place] = Drawn(means[:, None], 0, 0, 0, met[place])
        own |= _over_views(own)
        self.drawn[row] = own | _derived(own)
        if METADATA in self.drawn:
            self.drawn[METADATA] = self.drawn.pop(METADATA)  # stays the last row

    def numbers(self, competitors: Iterable[Row], columns: Iterable[Place]) -> list[Number]:
        """All numbers; those in the `columns` are marked among the competitors, all other rows are controls.

        A mean over other generators than those of the others is not compared.
        """
        competitors = list(competitors)
        alike = {place: [row for row in competitors if self._alike(row, place[2])] for place in columns}
        marks = rank({place: self.of(place, rows) for place, rows in alike.items()})
        out = []
        for row, places in self.drawn.items():
            for place, drawn in places.items():
                values = drawn.values.mean(axis=0)
                single = drawn.values[:, 0]
                low, high = mean_interval(single) if row in self.true else drawn.interval(place[3])
                seeds = float(single.min()), float(single.max())
                mark = marks.get(place, {}).get(row, "")
                role: Role = "control" if row not in competitors else "detector" if row in self.fixed else "method"
                number = Number(
                    *row, len(single), *place, float(values[0]), low, high, *seeds,
                    drawn.n_real, drawn.n_fake, drawn.met, mark, role,
                )  # fmt: skip
                out.append(number)
        return [*out, *self._above_metadata(competitors), *self._permutation_tests()]

    def _alike(self, row: Row, label: str) -> bool:
        """Whether a row's number of this label is of the same generators as that of the methods."""
        return label not in self.fixed.get(row, ())

    def _above_metadata(self, competitors: Sequence[Row]) -> Iterator[Number]:
        """AUC of each competitor minus that of metadata in the first view, paired; marked where surely above 0.

        Surely: for all competitors and kinds of generators together; a row with one seed is judged for that seed.
        Over all generators, too, where there are detectors from elsewhere.
        """
        if METADATA not in self.drawn:
            return
        view = next(iter(self.drawn[METADATA]))[1]
        pairs = []
        labels = ("mean:seen", "mean:unseen", *(["mean:all"] if self.fixed else []))
        for row, label in itertools.product(competitors, labels):
            if not self._alike(row, label):
                continue
            place = ALL, view, label, "auc"
            own, least = self.drawn[row].get(place), self.drawn[METADATA].get(place)
            if own and least and not np.isnan(own.values[:, 0]).any() and not np.isnan(least.values[:, 0]).any():
                pairs.append((row, label, replace(own, values=own.values - least.values)))
        above = surely_above([one.values for *_, one in pairs], [one.groups for *_, one in pairs], one_seed=True)
        for (row, label, one), surely in zip(pairs, above, strict=True):
            seeds = one.values[:, 0]
            ends = difference_interval(one.values.mean(axis=0), one.groups, seeds)
            spread = float(seeds.min()), float(seeds.max())
            mark: Mark = "above" if surely else ""
            place = ALL, view, label, ABOVE_METADATA
            role: Role = "detector" if row in self.fixed else "method"
            counts = one.n_real, one.n_fake
            yield Number(*row, len(seeds), *place, float(seeds.mean()), *ends, *spread, *counts, mark=mark, role=role)

    def _permutation_tests(self) -> Iterator[Number]:
        """For each row of permutations: what the true labels reach, and their p."""
        nan = float("nan")
        for row, true in self.true.items():
            for (scope, view, label, metric), real in true.items():
                if scope == ALL and metric == "auc" and label.startswith("mean:") and not np.isnan(real):
                    values = self.drawn[row][scope, view, label, metric].values[:, 0]
                    for name, value in ((TRUE_LABELS, real), (P, p_of(real, values))):
                        place = scope, view, label, name
                        yield Number(*row, len(values), *place, value, nan, nan, value, value, role="control")

    def of(self, place: Place, rows: Iterable[Row]) -> dict[Row, Drawn]:
        """One number of these rows, where they have it."""
        return {row: self.drawn[row][place] for row in rows if place in self.drawn[row]}

    def single(self, row: Row, seed: int) -> dict[Place, float]:
        """Each number of one seed, by its place among the seeds of the row; of permutations their mean."""
        if row in self.true:
            return {place: float(drawn.values[:, 0].mean()) for place, drawn in self.drawn[row].items()}
        return {place: float(drawn.values[seed, 0]) for place, drawn in self.drawn[row].items()}


def rank(columns: Mapping[Place, Mapping[Row, Drawn]]) -> dict[Place, dict[Row, Mark]]:
    """Who is `best` in each column: the row with the best mean over seeds, if it is surely ahead of all others.

    Otherwise that row and all from which it is not separated are marked as a `tie`. Surely: with the groups and the
    training seeds, paired by seed, as sources of chance, and for all columns and rows of the table together. A row
    with one seed, or with other seeds than most, takes no part: its column has no mark where it has the best value.
    A fixed detector takes part beside rows of several seeds.
    """
    found: dict[Place, tuple[Row, list[Row]]] = {}
    differences, groups = [], []
    for place, rows in columns.items():
        known = {row: one for row, one in rows.items() if not np.isnan(one.values[:, 0]).any()}
        if not known or place[3] in (*WITHOUT_INTERVAL, TEMPERED):
            continue
        sign = -1 if place[3] in LOWER_IS_BETTER else 1
        best = max(known, key=lambda row: sign * known[row].values[:, 0].mean())
        # of fixed ones alone groups decide, whatever the number of their equal "seeds"
        seeds = max((len(one.values) for one in known.values() if not one.fixed), default=2)
        values = {
            row: np.broadcast_to(one.values, (seeds, one.values.shape[1]))
            for row, one in known.items()
            if one.fixed or len(one.values) == seeds
        }
        others = [row for row in values if row != best]
        if others and best in values and seeds > 1:
            found[place] = best, others
            differences += [sign * (values[best] - values[row]) for row in others]
            groups += [known[row].groups for row in others]
    ahead = iter(surely_above(differences, groups))
    marks: dict[Place, dict[Row, Mark]] = {}
    for place, (best, others) in found.items():
        tied: dict[Row, Mark] = {row: "tie" for row in others if not next(ahead)}
        marks[place] = {best: "tie", **tied} if tied else {best: "best"}
    return marks


def _blank(table: Scores, ok: np.ndarray) -> Scores:
    """The same rows, those that are not `ok` without a score."""
    blank = {name: np.where(ok, table[name], np.nan) for name in ("logit", "p_fake")}
    return Scores(table.columns | blank | {"status": np.where(ok, "ok", "unreadable: for one of the detectors")})


def kept_places(found: Mapping[tuple[str, str, str], Replicates]) -> dict[Place, Drawn]:
    """What is kept of one table: AUC of each generator, and the metrics of `KEPT`."""
    out = {}
    for (scope, view, label), cell in found.items():
        own = not label.startswith(PREFIXES) and label != "real"
        metrics = ("auc",) if own else KEPT.get(label, ()) if scope == ALL else ()
        for metric in metrics:
            values = cell.values[metric][None]
            out[scope, view, label, metric] = Drawn(values, cell.n_real, cell.n_fake, cell.groups, cell.seen)
    return out


def _as_trained(
    places: Mapping[Place, Drawn], test: Scores, own: Scores, fixed: Fixed, resamples: int
) -> dict[Place, Drawn]:
    """The `places` of a detector from elsewhere, with what it met itself by its `own` scores: the means over seen and
    over unseen generators are those of its training, and there are none where nobody says it."""
    met = dict(zip(own["generator"], own["seen"], strict=True))
    out = {place: replace(one, met=met.get(place[2], "")) for place, one in places.items() if place[2] not in OWN}
    if UNKNOWN in met.values():
        return out
    by_own = Scores(test.columns | {"seen": np.array([met[name] for name in test["generator"]], dtype=object)})
    kinds = unseen_kinds(by_own, fixed.families_met)
    found = kept_places(replicate(by_own, fixed.threshold, resamples, 0, kinds=kinds))
    return out | {place: one for place, one in found.items() if place[2] in OWN}


def _over_others(first: Scores, own: Scores) -> tuple[str, ...]:
    """Labels of means that are over other generators by a detector's `own` scores than by the first table."""
    rows = (first["split"] == "test") & first.fake
    ours = dict(zip(first["generator"][rows], first["seen"][rows], strict=True))
    met = dict(zip(own["generator"], own["seen"], strict=True))
    labels = {"train": ("mean:seen",), "": ("mean:unseen", *UNSEEN, WORST, SAMPLE)}
    differ = [where for where in labels if any((ours[name] == where) != (met[name] == where) for name in ours)]
    return tuple(label for where in differ for label in labels[where])


def _tempered(test: Scores, temperature: Calibration) -> dict[Place, Drawn]:
    """`TEMPERED` of each view, of all groups alone: it has no interval."""
    p_fake = temperature(test["logit"]) if temperature.numbers else test["p_fake"]
    found = replicate(Scores(test.columns | {"p_fake": p_fake}), float("nan"), 0, seed=0)
    return {
        (ALL, view, label, TEMPERED): Drawn(cell.values["ece"][None], cell.n_real, cell.n_fake, cell.groups)
        for (scope, view, label), cell in found.items()
        if (scope, label) == (ALL, "mean:all")
    }


def _attributed(test: Scores, resamples: int, column: Column) -> dict[Place, Drawn]:
    """`OF_CLASSES` of each view, with the same groups left out as of all other numbers."""
    return {
        (ALL, one.view, CLASSES + column, one.metric): Drawn(one.values[None], 0, one.n, one.groups)
        for one in attribute_measured(test, resamples, 0, column)[1]
        if one.label == ALL and one.metric in OF_CLASSES
    }


def reached(scores: Scores, permutation: int) -> list[Reached]:
    """The numbers of one training, at the threshold of its own validation rows: with the labels that it was shown."""
    cut = pick_threshold(scores)
    found = kept_places(replicate(scores.select(scores["split"] == "test"), cut, 0, 0))
    return [Reached(permutation, *place, float(one.values[0, 0]), one.met) for place, one in found.items()]


def _stack(drawn: Sequence[Drawn]) -> Drawn:
    return replace(drawn[0], values=np.concatenate([one.values for one in drawn]))


def _over_views(drawn: Mapping[Place, Drawn]) -> dict[Place, Drawn]:
    """Means over the views, of what all views have; and the worst unseen generator, by view and by that mean."""
    views, out = distinct(place[1] for place in drawn), {}
    for scope, view, label, metric in drawn:
        of_views = [drawn[place] for name in views if (place := (scope, name, label, metric)) in drawn]
        if view == views[0] and len(of_views) == len(views):
            values = np.mean([one.values for one in of_views], axis=0)
            out[scope, MEAN, label, metric] = replace(of_views[0], values=values)
    return out


def _derived(drawn: Mapping[Place, Drawn]) -> dict[Place, Drawn]:
    """The worst unseen generator, gaps between thresholds, and false alarms that processing adds; by view and mean."""
    out = {}
    for view in distinct(place[1] for place in drawn):
        unseen = unseen_places(drawn, view)
        if unseen:
            # the mean over seeds decides which is the worst: the seeds of a row share one generator a resample
            every = np.stack([drawn[place].values for place in unseen])
            worst = every.mean(axis=1).argmin(axis=0)
            values = np.take_along_axis(every, np.broadcast_to(worst, (1, *every.shape[1:])), axis=0)[0]
            parts = tuple(drawn[place] for place in unseen)
            out[ALL, view, WORST, "auc"] = replace(drawn[unseen[0]], values=values, worst_of=parts)
            names = tuple(place[2] for place in unseen)
            out[ALL, view, SAMPLE, "auc"] = replace(
                drawn[ALL, view, "mean:unseen", "auc"], sample_of=parts, sampled=names
            )
        for metric, (a, b) in GAPS.items():
            both = [drawn[ALL, view, "mean:all", name] for name in (a, b)]
            out[ALL, view, "mean:all", metric] = replace(both[0], values=both[0].values - both[1].values)
        if edited := drawn.get((ALL, view, "edit:all", "false_alarm")):
            plain_reals = drawn[ALL, view, "real", "false_alarm"]
            out[ALL, view, "edit:all", EXCESS] = replace(edited, values=edited.values - plain_reals.values)
    return out


def unseen_places(drawn: Mapping[Place, Drawn], view: str) -> list[Place]:
    """The AUCs of the generators that were never met, those without both classes left out."""
    return [
        place
        for place, one in drawn.items()
        if place[1] == view and place[3] == "auc" and not place[2].startswith(PREFIXES) and one.met == ""
        if not np.isnan(one.values[:, 0]).any()
    ]


def write_numbers(path: Path, numbers: Sequence[Number]) -> None:
    """All of them as a table of numbers, a row a number."""
    write_rows(path, [field.name for field in fields(Number)], numbers)


def read_numbers(path: Path) -> list[Number]:
    """What `write_numbers` wrote; refuses other columns, also where a field has a default."""
    found, wanted = columns_of(path), tuple(field.name for field in fields(Number))
    if found != wanted:
        raise Refusal(f"{path}: columns {', '.join(found)}, expected {', '.join(wanted)}")
    return read_rows(path, Number)

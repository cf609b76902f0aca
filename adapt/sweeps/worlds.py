"""The same methods in several embedded worlds: numbers over all of them, and whether they lie within bounds.

A world is a set of its own for the evaluator: images of two worlds, which two trainings scored, are never ranked
against each other. The scenes of all worlds are left out in turn, and the spread between worlds is added to that.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from adapt.cli import Flags, dump
from adapt.evaluation.jackknife import Interval, difference_interval, share_interval
from adapt.evaluation.replicates import ALL, Key, Replicates, interval_of, replicate, unseen_kinds
from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import pick_threshold
from adapt.files import write_text
from adapt.number_table import write_rows
from adapt.pages.markdown_page import write_page
from adapt.pages.tables import grid, show
from adapt.sweeps.planned_runs import PlannedRun, sweep_record, write_record
from adapt.training.report import shown

RATES = ("real", "edit:all")  # these are shares of real images called fake; everything else is an AUC


@dataclass(frozen=True)
class Quantity:
    """A number over all worlds: `values` (1 + b,), of all scenes first, and its value in each world, (w,).

    `worst_of`: the cells of which it is the lowest, whose interval knows that.
    """

    values: np.ndarray
    worlds: np.ndarray
    groups: int
    difference: bool = False
    worst_of: Replicates | None = None

    def __sub__(self, other: "Quantity") -> "Quantity":
        both = self.values - other.values, self.worlds - other.worlds
        return Quantity(*both, min(self.groups, other.groups), difference=True)


@dataclass(frozen=True)
class Bound:
    """A number and the range in which it must lie."""

    name: str
    quantity: Quantity
    least: float = float("-inf")
    most: float = float("inf")

    @property
    def value(self) -> float:
        return float(self.quantity.values[0])

    @property
    def low(self) -> float:
        return self._ends.low

    @property
    def high(self) -> float:
        return self._ends.high

    @property
    def _ends(self) -> Interval:
        q = self.quantity
        if q.worst_of is not None:
            return interval_of(q.worst_of, "auc")
        return (difference_interval if q.difference else share_interval)(q.values, q.groups, seeds=q.worlds)

    @property
    def range(self) -> str:
        """What the number must be, in words."""
        ends = ((self.least, "at least"), (self.most, "at most"))
        return ", ".join(f"{word} {end:g}" for end, word in ends if np.isfinite(end))

    @property
    def outcome(self) -> Literal["met", "NOT MET", "not told"]:
        """Of the whole interval; `not told` where an end of the range lies in it."""
        if self.least <= self.low and self.high <= self.most:
            return "met"
        return "NOT MET" if self.high < self.least or self.low > self.most else "not told"


@dataclass(frozen=True)
class Measured:
    """A line of bounds.csv; `kind`: share or difference; `worlds`: the values of the worlds, with blanks between."""

    name: str
    range: str
    value: float
    low: float
    high: float
    worlds: str
    outcome: str
    kind: str


class Worlds:
    """The scores of finished runs, by (method, world)."""

    def __init__(self, runs: Mapping[tuple[str, int], PlannedRun], root: Path, resamples: int) -> None:
        self.runs, self.root, self.resamples = runs, root, resamples
        self.found = functools.cache(self._found)

    def _found(self, method: str) -> list[dict[Key, Replicates]]:
        """Replicates of one method over all worlds, each of which is a set, and then of each world by itself."""
        tables = [self._scores(run, world) for (name, world), run in self.runs.items() if name == method]
        joined = functools.reduce(Scores.join, tables)
        found = [(joined, self.resamples), *((table, 0) for table in tables)]
        return [
            replicate(
                table.select(table["split"] == "test"),
                *(0.0, resamples, 0),
                kinds=unseen_kinds(joined),
                metrics=("auc", "false_alarm"),
            )
            for table, resamples in found
        ]

    def _scores(self, run: PlannedRun, world: int) -> Scores:
        """Of one run, its threshold at 0, with names that say which world they are of."""
        scores = Scores.read(self.root / run.name / "scores.parquet")
        named = {name: np.array([f"{world}/{old}" for old in scores[name]], object) for name in ("path", "group")}
        named |= {"set": np.full(len(scores), f"world {world}", object)}
        logit = scores["logit"] - pick_threshold(scores)
        return Scores(scores.columns | named | {"logit": logit})

    def quantity(self, method: str, generators: str, view: str = "none") -> Quantity:
        """Of one method: `mean:seen`, `worst:all` and the like are AUCs, `RATES` shares of real images called fake."""
        every, *each = (found[ALL, view, generators] for found in self.found(method))
        metric = "false_alarm" if generators in RATES else "auc"
        worlds = np.array([found.values[metric][0] for found in each])
        groups = len(each) * every.groups  # which are those of one world, on average
        return Quantity(every.values[metric], worlds, groups, worst_of=every if every.worst_of else None)


def write_worlds(
    config: Flags, runs: Mapping[tuple[str, int], PlannedRun], found: Sequence[Bound], about: str, root: Path
) -> None:
    """table.md with a row for each bound, bounds.csv, config.yaml and provenance.json."""
    rows = []
    for bound in found:
        sign, kind = ("+", "difference") if bound.quantity.difference else ("", "share")
        worlds = " ".join(f"{value:{sign}.3f}" for value in bound.quantity.worlds)
        ends = bound.value, bound.low, bound.high
        rows.append(Measured(bound.name, bound.range, *ends, worlds, bound.outcome, kind))
    write_rows(root / "bounds.csv", [field.name for field in fields(Measured)], rows)
    table = grid(lines(rows))
    # Worlds differ in their data by design: the record is that of the first one's runs, with the seconds of all.
    records = [run.record(root) for run in runs.values()]
    first = list(runs.values())[: len({method for method, _ in runs})]
    record = sweep_record(config, first, root)
    record["seconds"] = round(sum(one["seconds"] for one in records), 1)
    record["identity"]["manifest"] = [f"embedded@{world}" for world in dict.fromkeys(world for _, world in runs)]
    write_text(root / "config.yaml", dump(config))
    write_page(root / "table.md", "Bounds of the embedded world", [about, table], shown(record), embedded=True)
    write_record(root, record)
    print(f"\n{table}\n\ntable        {root / 'table.md'}")


def lines(rows: Sequence[Measured]) -> list[list[str]]:
    """The table of the page."""
    header = ["bound", "must be", "measured", "in each world", "outcome"]
    return [
        header,
        *([row.name, row.range, show(row, "+" * (row.kind == "difference")), row.worlds, row.outcome] for row in rows),
    ]

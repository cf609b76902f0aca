"""Cost against accuracy: what finished runs of recipes/lora.py cost and reach, and which of them nothing dominates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from adapt.evaluation import metrics
from adapt.evaluation.jackknife import NONE, share_interval
from adapt.evaluation.replicates import ALL, distinct, replicate
from adapt.evaluation.scores import Scores
from adapt.number_table import read_table, write_table
from adapt.pages.drawing import cost_against_accuracy
from adapt.pages.tables import show
from adapt.sweeps.planned_runs import PlannedRun

KINDS = {"AUC seen": "mean:seen", "AUC unseen": "mean:unseen", "AUC worst": "worst:all"}
COSTS = ("trainable parameters", "minutes", "peak memory, MiB")
COLUMNS = (
    *("configuration", "learning_rate", "trainable_parameters", "training_minutes", "peak_memory_mib"),
    *("view", "generators", "auc", "low", "high", "n_real", "n_fake", "on_frontier"),
)
MEAN = "mean"  # in place of a view: over all of them


@dataclass(frozen=True)
class Point:
    """One configuration: means over its seeds (memory: the most), and AUC by (view or MEAN, kind)."""

    name: str
    learning_rate: float
    parameters: int
    minutes: float
    memory: int  # of the GPU's tensors if there is a GPU, else of the process
    aucs: Mapping[tuple[str, str], metrics.Cell]

    @property
    def costs(self) -> tuple[float, ...]:
        return self.parameters, self.minutes, self.memory


def validation(runs: Sequence[PlannedRun], root: Path) -> float:
    """Mean validation score over seeds: what may choose between settings."""
    return float(np.mean([run.record(root)["validation_score"] for run in runs]))


def measure(name: str, learning_rate: float, runs: Sequence[PlannedRun], root: Path, resamples: int) -> Point:
    """The point of one configuration from its runs, one a seed."""
    records = [run.record(root) for run in runs]
    tables = [Scores.read(root / run.name / "scores.parquet") for run in runs]
    return Point(
        name,
        learning_rate,
        records[0]["trainable_parameters"],
        float(np.mean([record["training_minutes"] for record in records])),
        max(record.get("peak_gpu_memory_mib", record["peak_memory_mib"]) for record in records),
        over_views(tables, resamples),
    )


def over_views(tables: Sequence[Scores], resamples: int) -> dict[tuple[str, str], metrics.Cell]:
    """AUC of each view and the mean over views, of tables of the same test rows averaged; by (view, kind).

    Views and tables share each resample of groups, so that the interval of a mean is that of the mean; tables, one a
    training seed, are a second source of chance. The draws depend on the rows alone: those of two configurations are
    paired.
    """
    values: dict[tuple[str, str], np.ndarray] = {}  # (tables, 1 + b)
    counts: dict[str, tuple[int, int]] = {}
    groups: dict[str, int] = {}
    for i, scores in enumerate(tables):
        test = scores.select(scores["split"] == "test")
        for (scope, view, label), found in replicate(test, float("nan"), resamples, 0, metrics=("auc",)).items():
            if scope == ALL and label in KINDS.values():
                auc = found.values["auc"]
                values.setdefault((view, label), np.full((len(tables), len(auc)), np.nan))[i] = auc
                counts[label] = found.n_real, found.n_fake
                groups[label] = found.groups
    views = distinct(view for view, _ in values)
    out = {}
    for kind, label in KINDS.items():
        values[MEAN, label] = np.mean([values[view, label] for view in views], axis=0)
        for view in (MEAN, *views):
            drawn, seeds = values[view, label].mean(axis=0), values[view, label][:, 0]
            # a mean of minima has no interval
            ends = NONE if label == "worst:all" else share_interval(drawn, groups[label], seeds=seeds)
            numbers = (float(drawn[0]), *ends, *counts[label])
            out[view, kind] = metrics.Cell(ALL, view, label, "auc", *numbers)
    return out


def undominated(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Whether no other point is at most as costly and at least as good, and better in one of both; a NaN never is."""
    points = list(zip(costs, values, strict=True))
    return [
        value == value and not any(c <= cost and v >= value and (c < cost or v > value) for c, v in points)
        for cost, value in points
    ]


def frontiers(points: Sequence[Point]) -> dict[tuple[str, str], list[bool]]:
    """By (cost, kind): which points are undominated, by the mean over views."""
    return {
        (cost, kind): undominated([p.costs[i] for p in points], [p.aucs[MEAN, kind].value for p in points])
        for i, cost in enumerate(COSTS)
        for kind in KINDS
    }


def headline(points: Sequence[Point]) -> list[list[str]]:
    """A header and a row for each point: costs, mean AUCs, and the kinds of AUC by which no cheaper row is as good."""
    on = frontiers(points)
    rows = [["configuration", "learning rate", *COSTS, *KINDS, "on the frontier of"]]
    for i, point in enumerate(points):
        costs = [f"{point.parameters:,}", f"{point.minutes:.1f}", f"{point.memory:,}"]
        aucs = [show(point.aucs[MEAN, kind]) for kind in KINDS]
        of = ", ".join(kind.removeprefix("AUC ") for kind in KINDS if on[COSTS[0], kind][i])
        rows.append([point.name, f"{point.learning_rate:g}", *costs, *aucs, of])
    return rows


def per_view(points: Sequence[Point]) -> list[list[str]]:
    """A header and a row for each point: AUC unseen under every view."""
    views = [key for key in points[0].aucs if key[1] == "AUC unseen" and key[0] != MEAN]
    rows = [["configuration", *(view for view, _ in views)]]
    return [*rows, *([point.name, *(show(point.aucs[key]) for key in views)] for point in points)]


def figure(points: Sequence[Point]) -> Figure:
    """All costs against AUC unseen and seen, means over views."""
    return cost_against_accuracy(
        [point.name for point in points],
        {cost: [point.costs[i] for point in points] for i, cost in enumerate(COSTS)},
        {kind: [point.aucs[MEAN, kind] for point in points] for kind in ("AUC unseen", "AUC seen")},
        frontiers(points),
    )


def write_csv(path: Path, points: Sequence[Point]) -> None:
    """One line for each configuration, view and kind."""
    on, rows = frontiers(points), []
    for i, point in enumerate(points):
        for (view, kind), cell in point.aucs.items():
            numbers = (cell.generator, cell.value, cell.low, cell.high, cell.n_real, cell.n_fake)
            known = int(on[COSTS[0], kind][i]) if view == MEAN else ""
            rows.append([point.name, point.learning_rate, *point.costs, view, *numbers, known])
    write_table(path, COLUMNS, rows)


def read_csv(path: Path) -> list[Point]:
    """The points of a file that `write_csv` left, as it is or compressed."""
    kinds = {label: kind for kind, label in KINDS.items()}
    given: dict[str, tuple[float, int, float, int]] = {}
    aucs: dict[str, dict[tuple[str, str], metrics.Cell]] = {}
    for row in read_table(path):
        name, view, label = row["configuration"], row["view"], row["generators"]
        costs = row.count("trainable_parameters"), row.number("training_minutes"), row.count("peak_memory_mib")
        given[name] = row.number("learning_rate"), *costs
        numbers = row.number("auc"), row.number("low"), row.number("high"), row.count("n_real"), row.count("n_fake")
        aucs.setdefault(name, {})[view, kinds[label]] = metrics.Cell(ALL, view, label, "auc", *numbers)
    return [Point(name, *of, aucs[name]) for name, of in given.items()]

"""How well methods with classes attribute, side by side: the section that sweeps share."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from adapt.evaluation.attribution import Column
from adapt.evaluation.open_set import classes_of
from adapt.evaluation.scores import Scores
from adapt.evaluation.side_by_side import SideBySide
from adapt.pages import leaderboard
from adapt.sweeps.planned_runs import PlannedRun


def attribution_sections(
    methods: Mapping[str, Sequence[PlannedRun]], root: Path, column: Column, resamples: int
) -> list[str]:
    """Heading, table and words about the finished runs of each method, one a seed; nothing where no head has classes.

    The table is that of the ablation: means over seeds, with intervals over test groups and seeds.
    """
    tables = {
        (name, ""): [Scores.read(root / run.name / "scores.parquet") for run in runs] for name, runs in methods.items()
    }
    columns = {row: column for row, of_row in tables.items() if all(map(classes_of, of_row))}
    if not columns:
        return []
    beside = SideBySide(resamples)
    beside.add(tables, {}, columns)
    table = leaderboard.attribution(beside.numbers(tables, ()))
    return [f"## {table.title}", table.markdown(), table.about]

"""Scores that somebody brings, in whatever holds columns, through the same evaluator as our own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from adapt.errors import Refusal
from adapt.evaluation import metrics
from adapt.evaluation.scores import Scores, grouped_by


class Frame(Protocol):
    """A table with named columns, such as pandas.DataFrame (and pyarrow.Table with `column_names`)."""

    columns: Sequence[str]

    def __getitem__(self, column: str) -> object:
        """The values of a column."""


def evaluate(
    scores: Scores | Frame | Mapping[str, object] | str | Path,
    resamples: int = 1000,
    seed: int = 0,
    threshold: float | None = None,
    group_by: str | None = None,
) -> list[metrics.Cell]:
    """Metrics with 95 % intervals over groups, one `Cell` per set, view, generator and metric.

    `scores` is a CSV or Parquet file, a mapping of columns, a pandas.DataFrame or a pyarrow.Table; its columns are
    those of `Scores` (path, generator, and logit or p_fake; the rest has defaults). `threshold` is a logit; None: it
    is picked on the validation rows. `group_by` names the column that says which images belong together (copies of one
    picture, frames of one film), if it is not `group`; without either, each image counts as independent.
    `pandas.DataFrame(cells)` makes a frame. Raises `Refusal` for tables that contradict themselves.
    """
    return metrics.evaluate(as_scores(scores, group_by), resamples, seed, threshold)


def as_scores(table: Scores | Frame | Mapping[str, object] | str | Path, group_by: str | None = None) -> Scores:
    """A table of scores, checked and completed; `group_by` names the column of its groups."""
    if isinstance(table, Scores):
        return table if group_by is None else Scores(grouped_by(table.columns, group_by))
    if isinstance(table, str | Path):
        return Scores.read(table, group_by)
    names = table if isinstance(table, Mapping) else getattr(table, "column_names", getattr(table, "columns", None))
    if names is None or callable(names):
        raise Refusal(f"{type(table).__name__} has no columns: give a file, a mapping, a DataFrame or a pyarrow table")
    columns = {str(name): np.asarray(table[name]) for name in names}
    return Scores(columns if group_by is None else grouped_by(columns, group_by))

"""Scores that somebody brings, in whatever holds columns, through the same evaluator as our own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, Unpack

from adapt.errors import Refusal
from adapt.evaluation import metrics
from adapt.evaluation.brought import from_columns, read
from adapt.evaluation.scores import Scores, grouped_by
from adapt.flags import Columns


class Named(TypedDict, total=False):
    """The flags of `adapt evaluate` that say what is what in a table: `Columns` of flags.py."""

    score: str
    label: str
    path: str
    generator: str
    view: str
    split: str
    fake_is: Sequence[str]
    score_is: Literal["probability", "percent", "logit"]
    higher_is: Literal["fake", "real"]


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
    **columns: Unpack[Named],
) -> list[metrics.Cell]:
    """Metrics with 95 % intervals over groups, one `Cell` per set, view, generator and metric.

    `scores` is a CSV, Parquet or JSON lines file, a mapping of columns, a pandas.DataFrame or a pyarrow.Table. Columns
    of ours (path, generator, logit or p_fake ...: `Scores`) and with common names are found; others are named, as in
    `adapt evaluate`: score="p", label="is_fake", path="file", generator="model", view="quality", split="part". Values
    are explained by fake_is=["ai"], score_is="logit" and higher_is="real". `threshold` is a logit; None: it is picked
    on the validation rows, and is 0 where no column says which those are. `group_by` names the column that says which
    images belong together (copies of one picture, frames of one film), if it is not `group`; without either, each
    image counts as independent. `pandas.DataFrame(cells)` makes a frame. Raises `Refusal` for tables that contradict
    themselves or are not understood.
    """
    if isinstance(scores, Scores):
        if columns:
            raise Refusal(f"{', '.join(columns)}: `Scores` have columns of ours already; give the table itself")
        table = scores if group_by is None else Scores(grouped_by(scores.columns, group_by))
        return metrics.evaluate(table, resamples, seed, threshold)
    given: dict[str, Any] = {**columns, "fake_is": tuple(map(str, columns.get("fake_is", ())))}
    named = Columns(group_by=group_by, **given)
    brought = (
        read([Path(scores)], named) if isinstance(scores, str | Path) else from_columns(as_columns(scores), named)
    )
    return metrics.evaluate(brought.scores, resamples, seed, brought.cut(threshold))


def as_columns(table: Frame | Mapping[str, object]) -> dict[str, object]:
    """The columns of whatever holds some."""
    names = table if isinstance(table, Mapping) else getattr(table, "column_names", getattr(table, "columns", None))
    if names is None or callable(names):
        raise Refusal(f"{type(table).__name__} has no columns: give a file, a mapping, a DataFrame or a pyarrow table")
    return {str(name): table[name] for name in names}

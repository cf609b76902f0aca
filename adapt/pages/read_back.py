"""The numbers of a finished single run, read back from its CSV files: its tables can be made again from them alone."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from adapt.evaluation.attribution import ABSENT, Attribution, Column, Count, Rate
from adapt.evaluation.metrics import PREFIXES, Cell, Control, Difference
from adapt.evaluation.replicates import distinct
from adapt.number_table import read_rows


@dataclass(frozen=True)
class Numbers:
    """What `write_tables` was given, but for the words of a recipe's own sections and how many resamples skipped."""

    cells: list[Cell]
    controls: list[Control]
    differences: list[Difference]
    attribution: Attribution | None


def read_run(folder: Path, trained_on: Collection[str], column: Column = "family") -> Numbers:
    """Numbers of the files that `write_tables` left in `folder`; what it did not write is empty.

    `trained_on` names the generators that had training images, `column` says what the classes are: both stand in the
    record of the run. A generator that served selection only is known by none of the files, and comes back as unseen.
    """
    cells = read_rows(folder / "metrics.csv", Cell)
    own = [cell.generator in trained_on and not cell.generator.startswith(PREFIXES) for cell in cells]
    cells = [replace(cell, seen="train") if met else cell for cell, met in zip(cells, own, strict=True)]
    return Numbers(
        cells,
        read_rows(folder / "controls.csv", Control),
        read_rows(folder / "comparison.csv", Difference),
        _attribution(folder, column),
    )


def _attribution(folder: Path, column: Column) -> Attribution | None:
    rates = read_rows(folder / "attribution.csv", Rate, {"class": "label"})
    counts = read_rows(folder / "confusion.csv", Count)
    if not rates:
        return None
    classes = tuple(distinct(count.predicted for count in counts))
    true = distinct(count.true for count in counts)
    absent = tuple(name.removeprefix(ABSENT) for name in true if name.startswith(ABSENT))
    tested = {count.true for count in counts if count.count}
    untested = tuple(name for name in classes if name not in tested)
    return Attribution(column, classes, absent, untested, tuple(rates), tuple(counts))

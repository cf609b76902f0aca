"""The numbers of a finished single run, read back from its CSV files: its tables can be made again from them alone."""

import csv
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from adapt.errors import Refusal
from adapt.evaluation.attribution import ABSENT, Attribution, Column, Count, Rate
from adapt.evaluation.bootstrap import distinct
from adapt.evaluation.metrics import PREFIXES, Cell, Control, Difference
from adapt.files import has_table, open_table

Kind = TypeVar("Kind", Cell, Difference, Control, Rate, Count)


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


def read_rows(path: Path, kind: type[Kind], header: Mapping[str, str] = {}) -> list[Kind]:
    """A row of the file as one `kind`; fields without a column have their default, n/a is NaN, no file is no row."""
    if not has_table(path):
        return []
    with open_table(path) as file:
        names, *rows = csv.reader(file)
    names = [header.get(name, name) for name in names]
    wanted = {field.name: field for field in fields(kind)}
    lacking = [name for name, field in wanted.items() if name not in names and field.default is MISSING]
    if lacking or set(names) - set(wanted):
        raise Refusal(f"{path}: columns {', '.join(names)}, expected {', '.join(wanted)}")
    read: dict[object, Callable[[str], Any]] = {  # type of a field -> its value of a word
        int: lambda word: int(float(word)),
        float: lambda word: float("nan" if word == "n/a" else word),
    }
    readers = [read.get(wanted[name].type, str) for name in names]
    return [kind(**{n: of(word) for n, of, word in zip(names, readers, row, strict=True)}) for row in rows]


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

"""Tables of numbers: the one reader and the one writer of the CSV files that runs, sweeps and commands leave.

A file has a header, is UTF-8 and ends its lines with a line feed. Floats stand in full (the shortest text that reads
back to the same float64) or with a stated number of significant digits, NaN stands as `n/a`, and text as `plain`.

These CSV files are no tables of numbers; the modules that write or read them keep their rules:

- manifests (data/manifest.py, embedded/world.py), lists of what was aligned or lost (collect/align.py, builder.py and
  composites.py, commands/prepare.py) and pairs of copies (commands/audit.py): names of files may hold any bytes;
- scores (evaluation/scores.py and score_files.py) and predictions (detector/predict.py): they name files, too, and
  scores may come from elsewhere;
- families (data/families.py), published figures (evaluation/targets.py) and detectors (published.py): people edit
  them.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from adapt.errors import Refusal
from adapt.files import atomic, has_table, open_table
from adapt.text import plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = TypeVar("Kind", bound="DataclassInstance")
NOT_KNOWN = "n/a"


def write_table(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    digits: int | None = None,
    line_end: str = "\n",
) -> None:
    """Write a header and rows atomically; floats in full, or with `digits` significant digits.

    `line_end` is for audit.csv, whose lines end with CR LF like those of duplicates.csv beside it. Raises
    `ValueError` for a row that does not have one cell per column.
    """
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator=line_end)
        out.writerow(columns)
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"{path}: {len(row)} cells for {len(columns)} columns: {row}")
            out.writerow([_word(value, digits) for value in row])


def _word(value: object, digits: int | None) -> object:
    if isinstance(value, str):
        return plain(value)
    if value != value:
        return NOT_KNOWN
    return f"{value:.{digits}g}" if digits is not None and isinstance(value, float) else value


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[object], header: Mapping[str, str] = {}) -> None:
    """Write the fields `columns` of each row; `header` names those that the file calls otherwise."""
    names = [header.get(column, column) for column in columns]
    write_table(path, names, ([getattr(row, column) for column in columns] for row in rows))


def columns_of(path: Path) -> tuple[str, ...]:
    """The header of a table that lies as it is or compressed; raises `FileNotFoundError`."""
    with open_table(path) as file:
        return tuple(next(csv.reader(file), ()))


@dataclass(frozen=True)
class TableRow:
    """One row of a file: `row[column]` is the text of a cell. Refuses a column that is not there."""

    path: Path
    line: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        if column not in self.cells:
            raise Refusal(f"{self.path}: no column {column}; it has {', '.join(self.cells)}")
        return self.cells[column]

    def number(self, column: str) -> float:
        """The float of a cell, NaN of `n/a`; refuses another word."""
        word = self[column]
        try:
            return float("nan" if word == NOT_KNOWN else word)
        except ValueError as error:
            raise _damaged(self.path, self.line, f"{column} {word!r} is no number") from error

    def count(self, column: str) -> int:
        """The whole number of a cell; refuses another word."""
        word = self[column]
        try:
            return int(word)
        except ValueError as error:
            raise _damaged(self.path, self.line, f"{column} {word!r} is no whole number") from error


def read_table(path: Path) -> list[TableRow]:
    """The rows of a table that lies as it is or compressed; raises `FileNotFoundError`, refuses a damaged row."""
    with open_table(path) as file:
        reader = csv.reader(file)
        columns, rows = next(reader, []), []
        for cells in reader:
            if len(cells) != len(columns):
                raise _damaged(path, reader.line_num, f"{len(cells)} cells for {len(columns)} columns")
            rows.append(TableRow(path, reader.line_num, dict(zip(columns, cells, strict=True))))
    if not columns:
        raise _damaged(path, 1, "no header")
    return rows


def read_rows(path: Path, kind: type[Kind], header: Mapping[str, str] = {}) -> list[Kind]:
    """Each row of a table as one dataclass `kind`; no file is no row.

    Columns are named like the fields; `header` gives the field of a column that is not. A field without a column has
    its default. Refuses a column without a field, a field that has neither, and a damaged row.
    """
    if not has_table(path):
        return []
    names = {column: header.get(column, column) for column in columns_of(path)}
    wanted = {field.name: field for field in fields(kind)}
    lacking = [name for name, field in wanted.items() if name not in names.values() and field.default is MISSING]
    if lacking or set(names.values()) - set(wanted):
        raise Refusal(f"{path}: columns {', '.join(names.values())}, expected {', '.join(wanted)}")
    read: dict[object, Callable[[TableRow, str], object]] = {float: TableRow.number, int: TableRow.count}
    readers = [(column, name, read.get(wanted[name].type, TableRow.__getitem__)) for column, name in names.items()]
    return [kind(**{name: cell(row, column) for column, name, cell in readers}) for row in read_table(path)]


def _damaged(path: Path, line: int, why: str) -> Refusal:
    return Refusal(f"{path}, line {line}: {why}: put back the file as it was written")

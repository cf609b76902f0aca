"""Tables of numbers: the one reader and the one writer of the CSV files that runs, sweeps and commands leave.

A file has a header, is UTF-8 and ends its lines with a line feed. Floats stand in full (the shortest text that reads
back to the same float64) or with a stated number of significant digits, NaN stands as `n/a`, and text as `plain`.

Other CSV files have rules of their own, which the modules that write or read them keep:

- manifests (data/manifest.py, embedded/world.py), what was aligned or lost (collect/) and pairs of copies
  (commands/audit.py) name files, whose names may hold any bytes;
- scores (evaluation/scores.py) and predictions (detector/predict.py) name files too, and may come from elsewhere;
- families (data/families.py) and published figures (evaluation/targets.py) are edited by people.
"""

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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

    Raises `ValueError` for a row that does not have one cell a column.
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


def read_table(path: Path, floats: Collection[str] = (), ints: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of a table that lies as it is or compressed, by column; what is not asked for as a number is text.

    Raises `FileNotFoundError`. Refuses a table without one of the columns asked for, and a damaged row.
    """
    rows = []
    with open_table(path) as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        if lacking := [name for name in (*floats, *ints) if name not in columns]:
            raise Refusal(f"{path}: no column {', '.join(lacking)}; it has {', '.join(columns) or 'none'}")
        for words in reader:
            try:
                row: dict[str, Any] = dict(zip(columns, words, strict=True))
                row |= {name: number(row[name]) for name in floats} | {name: int(row[name]) for name in ints}
            except ValueError as error:
                remedy = "put back the file as it was written"
                raise Refusal(f"{path}, line {reader.line_num} is damaged ({error}): {remedy}") from error
            rows.append(row)
    return rows


def number(word: str) -> float:
    """The float of a cell, NaN of `n/a`; raises `ValueError`."""
    return float("nan" if word == NOT_KNOWN else word)


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
    floats, ints = ([column for column, name in names.items() if wanted[name].type is of] for of in (float, int))
    return [kind(**{names[column]: cell for column, cell in row.items()}) for row in read_table(path, floats, ints)]

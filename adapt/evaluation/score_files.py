"""Tables of scores on disk as columns: Parquet, CSV and JSON lines, a piece at a time."""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adapt.csv_as_written import known_columns, open_rows, refusal_of_bytes, undecodable
from adapt.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa

TEXT = ("path", "group", "generator", "family", "split", "set", "edit", "seen", "view", "status")
NUMBERS = ("logit", "p_fake")
PIECE = 100_000  # rows of text that are held at once
LINES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (".parquet", ".csv", ".tsv", *LINES)


class Piece(NamedTuple):
    """Some rows of a table, every piece with the same columns."""

    first: int  # number of the first row: as a spreadsheet counts them in a CSV file, whose header is 1, else from 1
    cells: Mapping[str, Sequence[object]]


def is_number(name: str) -> bool:
    """Whether a column of ours holds numbers."""
    return name in NUMBERS or name.startswith("logit_")


def read_pieces(path: Path) -> Iterator[Piece]:
    """The table, at least one piece of it, by its suffix; refuses a damaged one.

    CSV gives text, Parquet what it holds, JSON what it holds with None where a row lacks a key.
    """
    if not path.is_file():
        raise Refusal(f"no scores at {path}: give a Parquet, CSV or JSON lines file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise Refusal(f"{path.name} is none of {' '.join(SUFFIXES)}: save it as one of them")
    if suffix == ".parquet":
        yield Piece(1, {name: values.tolist() for name, values in read_parquet(path).items()})
    else:
        yield from _json_pieces(path) if suffix in LINES else csv_pieces(path)


def csv_pieces(path: Path) -> Iterator[Piece]:
    """Cells of text; refuses bytes that are no UTF-8 anywhere but in paths, and in a group named after its path."""
    with open_rows(path) as lines:
        rows = (row for row in lines if row)
        try:
            header, last = known_columns(next(rows), (*TEXT, *NUMBERS), str(path)), 1
            while piece := list(itertools.islice(rows, PIECE)):
                for number, row in enumerate(piece, last + 1):
                    if len(row) != len(header):
                        raise Refusal(
                            f"row {number} of {path} has {len(row)} cells, the header {len(header)}: mend it"
                        )
                cells = dict(zip(header, zip(*piece, strict=True), strict=True))
                _check_text(path, cells, last + 1)
                yield Piece(last + 1, cells)
                last += len(piece)
            if last == 1:
                yield Piece(2, dict.fromkeys(header, ()))
        except Refusal:
            raise
        except StopIteration as error:
            raise Refusal(f"cannot read {path} as CSV: it is empty") from error
        except (csv.Error, ValueError) as error:
            raise Refusal(f"cannot read {path} as CSV: {error}") from error


def _check_text(path: Path, cells: Mapping[str, Sequence[str]], first: int) -> None:
    for name, values in cells.items():
        beside = cells.get("path") if name == "group" else None
        if name != "path" and (row := undecodable(values, beside)) is not None:
            raise refusal_of_bytes(f"{path}, row {first + row}", name, values[row])


def _json_pieces(path: Path) -> Iterator[Piece]:
    """An object a row; the columns are the keys of the first piece. A .json file may be one list of objects."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            whole = path.suffix.lower() == ".json" and file.read(64).lstrip()[:1] == "["
            file.seek(0)
            rows = _objects(path, enumerate(json.load(file), 1) if whole else _parsed(path, file))
            header, last, names = None, 0, {}
            while piece := list(itertools.islice(rows, PIECE)):
                if header is None:
                    keys = list(dict.fromkeys(key for row in piece for key in row))
                    names = dict(zip(keys, known_columns(keys, (*TEXT, *NUMBERS), str(path)), strict=True))
                    header = keys
                cells = {names[key]: [one.get(key) for one in piece] for key in header}
                for name, values in cells.items():
                    if (row := undecodable([v if isinstance(v, str) else "" for v in values])) is not None:
                        raise Refusal(
                            f"{path}, row {last + 1 + row}, column {name!r}: half a character: mend the text"
                        )
                yield Piece(last + 1, cells)
                last += len(piece)
    except Refusal:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, an integer of thousands of digits
        raise Refusal(f"cannot read {path} as JSON ({error}): write it again, as UTF-8") from error
    if not last:
        raise Refusal(f"{path} has no rows: score some images first")


def _parsed(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, object]]:
    for number, line in enumerate((line for line in lines if line.strip()), 1):
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also an integer of thousands of digits
            raise Refusal(f"{path}, row {number} is not JSON ({error}): write one object a line") from error


def _objects(path: Path, rows: Iterable[tuple[int, object]]) -> Iterator[dict[str, object]]:
    for number, row in rows:
        if not isinstance(row, dict):
            raise Refusal(f'{path}, row {number} is not an object but {row!r:.40}: write {{"path": ..., ...}} a row')
        yield row


def texts(values: Iterable, default: str) -> np.ndarray:
    """(n,) object of str, of which equal ones are one object: they take no memory of their own."""
    known: dict[object, str] = {None: default, "": default}
    rows = values.tolist() if isinstance(values, np.ndarray) else list(values)
    for value in set(rows) - known.keys():
        known[value] = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    found = np.empty(len(rows), dtype=object)
    found[:] = list(map(known.__getitem__, rows))
    return found


def floats(name: str, values: Iterable) -> np.ndarray:
    """float64; '' and None are NaN."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        return values.astype(np.float64)
    try:
        return np.array([np.nan if v is None or v == "" else v for v in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise Refusal(f"column {name!r} holds something that is not a number: {error}") from error


def read_parquet(path: Path) -> dict[str, np.ndarray]:
    """Columns as they are; refuses what is no Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A file object and one thread: a path could add partition columns from the folder's name, and a file
        # object with threads can abort the interpreter at exit (apache/arrow#50482).
        with path.open("rb") as file:
            table = pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise Refusal(f"cannot read {path} as Parquet ({error}): write it again") from error
    header = known_columns(table.column_names, (*TEXT, *NUMBERS), str(path))
    return {name: _values(name, column) for name, column in zip(header, table.columns, strict=True)}


def _values(name: str, column: "pa.ChunkedArray") -> np.ndarray:
    """Scores as float64, what is missing as NaN; the rest as objects, equal ones once, what is missing as None."""
    import pyarrow as pa

    if is_number(name) and (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return column.cast(pa.float64()).to_numpy()
    if pa.types.is_nested(column.type):
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return values
    whole = (column if pa.types.is_dictionary(column.type) else column.dictionary_encode()).combine_chunks()
    values = np.empty(len(whole.dictionary) + 1, dtype=object)
    values[:-1] = whole.dictionary.to_pylist()
    return values[whole.indices.fill_null(len(whole.dictionary)).to_numpy()]

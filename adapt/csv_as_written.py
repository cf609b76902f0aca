"""CSV tables as people and spreadsheets write them: byte-order marks, other delimiters, column names in capitals.

Bytes that are no UTF-8 survive as surrogates in names of files, which may hold any bytes. In every other column they
are refused: nothing that is written later (a page, a detector's record) could hold them.
"""

import contextlib
import csv
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from adapt.errors import Refusal

DELIMITERS = (",", ";", "\t", "|")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte-order marks


class Rows(Protocol):
    """Rows of cells, the header first; `csv.reader` makes them."""

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


@contextlib.contextmanager
def open_rows(path: Path) -> Iterator[Rows]:
    """The rows of a CSV file, the header first.

    The delimiter is a comma, or the semicolon, tab or bar that cuts the header into more cells. Raises `csv.Error` for
    quotes that do not match, and refuses damaged UTF-16.
    """
    with path.open("rb") as raw:
        encoding = "utf-16" if raw.read(2) in UTF_16 else "utf-8-sig"
    errors = "strict" if encoding == "utf-16" else "surrogateescape"
    try:
        with path.open(encoding=encoding, errors=errors, newline="") as file:
            lines = (line for line in file if line.strip())
            counted = {mark: len(next(csv.reader([line], delimiter=mark), [])) for line in [next(lines, "")]
                       for mark in DELIMITERS}  # fmt: skip
            file.seek(0)
            yield csv.reader(file, delimiter=max(DELIMITERS, key=counted.__getitem__), strict=True)
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} begins as UTF-16 but is not ({error.reason}): save it as UTF-8") from error


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file, without empty lines; refuses quotes that do not match."""
    try:
        with open_rows(path) as lines:
            header, *rows = [row for row in lines if row] or [[]]
    except csv.Error as error:
        raise Refusal(f"{path} is not a readable CSV file ({error}): check its quotes") from error
    return header, rows


def known_columns(header: Sequence[str], known: Collection[str], where: str) -> list[str]:
    """The header, with `Path` or ` GENERATOR ` as the `known` name that is meant; others stay as they are.

    Refuses a column that stands twice then.
    """
    named = [word if (word := name.strip().lower()) in known else name for name in header]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise Refusal(f"{where}: column {twice[0]!r} stands twice: keep one")
    return named


def undecodable(values: Sequence[str], beside: Sequence[str] | None = None) -> int | None:
    """The number of the first value that holds bytes which are no UTF-8; None without one.

    Bytes that also stand in the value `beside` it do not count: a group may be named after its file.
    """
    try:
        "\0".join(values).encode()
    except UnicodeEncodeError:
        others = [""] * len(values) if beside is None else beside
        rows = enumerate(zip(values, others, strict=True))
        return next((row for row, (value, other) in rows if not _bytes_of(value) <= _bytes_of(other)), None)
    return None


def _bytes_of(value: str) -> set[str]:
    return {letter for letter in value if "\ud800" <= letter <= "\udfff"}


def refusal_of_bytes(where: str, column: str, value: str) -> Refusal:
    """What is said of a cell that is no UTF-8."""
    as_latin = value.encode("utf-8", "surrogateescape").decode("latin-1")
    return Refusal(
        f"{where}, column {column!r}: {value!r} is not UTF-8 (read as Latin-1 it is {as_latin!r}): save the table as "
        "UTF-8; only paths may hold other bytes"
    )

"""Tables of strings as files: CSV as people write it, and Parquet."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adapt.csv_as_written import read_rows
from adapt.data.rows import strings
from adapt.errors import Refusal

if TYPE_CHECKING:
    import pyarrow as pa


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Columns of any CSV or Parquet table, object arrays of strings; refuses one that cannot be read."""
    if not path.is_file():
        raise Refusal(f"no manifest {str(path)!r}: name an existing .csv or .parquet file")
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    if path.suffix.lower() != ".csv":
        raise Refusal(f"{path} is neither .csv nor .parquet: rename or convert the manifest")
    header, rows = read_rows(path)
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise Refusal(f"{path}: column {twice[0]!r} stands twice: keep one")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise Refusal(f"{path}, row {number}: {len(row)} cells, not {len(header)}: check its commas and quotes")
    cells = zip(*rows, strict=True) if rows else [()] * len(header)
    return dict(zip(header, map(strings, cells), strict=True))


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    return {name: column.to_numpy(zero_copy_only=False) for name, column in parquet_columns(path)}


def parquet_columns(path: Path) -> "Iterator[tuple[str, pa.ChunkedArray]]":
    """Name and cells (`large_string`, "" for null) of each column of a Parquet file, read one after the other."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, pre_buffer=False)
        for field in file.schema_arrow:
            kind = field.type
            if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                raise Refusal(f"{path}: column {field.name!r} holds {kind}, not text or numbers: leave it out")
            # threads outlive small tables
            column = file.read([field.name], use_threads=False).column(0)
            yield field.name, column.cast(pa.large_string()).fill_null("")
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise Refusal(f"{path} is not a readable Parquet file ({reason}): write it again") from error


def write_table(columns: dict[str, np.ndarray], path: Path, suffix: str) -> None:
    """Write CSV or Parquet, as `suffix` says."""
    if suffix == ".csv":
        # The line ending stays \r\n: with \n alone the csv module would not quote a \r inside a file name.
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    elif suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        except UnicodeEncodeError as error:
            raise Refusal(f"{error.object!r} is not UTF-8, which Parquet needs: write a .csv") from error
        pq.write_table(table, path)
    else:
        raise Refusal(f"{suffix!r} is neither .csv nor .parquet: choose one of them as the manifest's suffix")

"""Finished batches of predictions, kept as soon as they are known: append-only, found again after a kill."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from adapt.detector.predict import COLUMNS, Row
from adapt.errors import Refusal
from adapt.files import writing


class Journal:
    """Finished batches of one process, append-only, in a folder that all jobs and processes share.

    `what` is what the rows depend on; rows that were made of something else are refused.
    """

    def __init__(self, folder: Path, name: str, what: Mapping[str, object]) -> None:
        self.path = folder / f"{name}.jsonl"
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise Refusal(f"another process is working at {self.path}: wait for it, or stop it") from error
        ends = [end for _, end, _ in _entries(self.path)]
        self._file.truncate(ends[-1] if len(ends) > 1 else 0)  # else the next entry would continue a torn line
        if len(ends) < 2:
            self._append({"what": what})

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, number: int, rows: Sequence[Row]) -> None:
        """Keep a batch: after a kill all of it is there, or nothing."""
        self._append({"batch": number, "rows": [list(row.values()) for row in rows]})

    def _append(self, entry: Mapping[str, object]) -> None:
        with writing(self.path):
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


class Kept(Mapping[int, list[Row]]):
    """Batch number -> its rows, read from the journals when they are asked for: they need not fit into memory."""

    def __init__(self, places: dict[int, tuple[Path, int]]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._places))

    def __getitem__(self, number: int) -> list[Row]:
        path, start = self._places[number]
        with path.open("rb") as file:
            file.seek(start)
            return [cast("Row", dict(zip(COLUMNS, row, strict=True))) for row in json.loads(file.readline())["rows"]]

    def rows(self) -> Iterator[Row]:
        """All rows in their order."""
        for number in self:
            yield from self[number]


def kept(folder: Path, what: Mapping[str, object]) -> Kept:
    """The finished batches of all journals of a folder; refuses those that were made of something else."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        before = None
        for start, _, entry in _entries(path):
            if before is None:
                before = entry.get("what")
                before = before if isinstance(before, dict) else {}
                continue
            if before != what:
                changed = ", ".join(name for name in what if before.get(name) != what[name])
                raise Refusal(
                    f"{folder} holds rows of another {changed} (a file came, went or changed, or the detector, "
                    f"--crops or --maps did): choose another --output, or delete {folder} to begin anew"
                )
            found[entry["batch"]] = path, start
    return Kept(found)


def _entries(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Begin, end and value of each entry of a journal; a torn line and what follows was never committed."""
    start = 0
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(entry, dict):
                return
            yield start, start + len(line), entry
            start += len(line)

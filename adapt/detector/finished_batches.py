"""Finished batches of predictions, kept as soon as they are known: append-only, found again after a kill."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from adapt.detector.predict import COLUMNS, Row
from adapt.errors import Refusal
from adapt.journal import Entry, Journal, entries


class BatchJournal(Journal):
    """Finished batches of one process, in a folder that all jobs and processes share.

    `what` is what the rows depend on; rows that were made of something else are refused.
    """

    def __init__(self, folder: Path, name: str, what: Mapping[str, object]) -> None:
        path = folder / f"{name}.jsonl"
        busy = f"another process is working at {path}: wait for it, or stop it"
        super().__init__(path, busy, lambda: _whole(path), {"what": what})

    def add(self, number: int, rows: Sequence[Row]) -> None:
        """Keep a batch: after a kill all of it is there, or nothing."""
        self.append({"batch": number, "rows": [list(row.values()) for row in rows]})


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
    found: dict[int, tuple[Path, int]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        before: dict[str, object] | None = None
        for start, _, entry in _entries(path):
            if before is None:
                first = entry.get("what")
                before = first if isinstance(first, dict) else {}
                continue
            if before != what:
                changed = ", ".join(name for name in what if before.get(name) != what[name])
                raise Refusal(
                    f"{folder} holds rows of another {changed} (a file came, went or changed, or the detector, "
                    f"--crops or --maps did): choose another --output, or delete {folder} to begin anew"
                )
            found[cast("int", entry["batch"])] = path, start
    return Kept(found)


def _entries(path: Path) -> Iterator[Entry]:
    remedy = "delete the damaged line (if it is line 1, the file), and what is missing is computed again"
    return entries(path, "refuse", remedy=remedy)


def _whole(path: Path) -> int:
    """Bytes that stand; 0 where there is no batch yet: what the batches depend on may still change."""
    ends = [entry.end for entry in _entries(path)]
    return ends[-1] if len(ends) > 1 else 0

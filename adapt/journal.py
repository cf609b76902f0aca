"""Journals: files of JSON lines, one for each finished piece of work, that a killed job finds again.

A line is appended whole or not at all. What a kill or a full disk leaves of one is never continued by the next.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Self

from adapt.errors import Refusal
from adapt.files import sync, writing
from adapt.lock import Lock


class Entry(NamedTuple):
    """One line of a journal: the bytes `start` to `end` of the file."""

    start: int
    end: int
    value: dict[str, object]


def entries(
    path: Path,
    bad: Literal["end", "skip", "refuse"],
    *,
    remedy: str = "",
    check: Callable[[dict[str, object]], object] | None = None,
    longest: int = -1,
) -> Iterator[Entry]:
    """The entries of a journal in their order; none where there is no file.

    A line is bad if it has no end, is no JSON object, has more than `longest` bytes, or if `check` raises ValueError,
    KeyError or TypeError for it. `bad` says what becomes of it: `end` leaves out this line and all behind it, `skip`
    leaves out this line alone, and `refuse` leaves out bad lines at the end of the file, where a kill leaves them,
    and raises `Refusal`, with `remedy`, where a good line follows a bad one.
    """
    if not path.exists():
        return
    start, first_bad = 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(longest), b""), 1):
            value = _value(line, check)
            if value is None and bad == "end":
                return
            if value is None:
                first_bad = first_bad or number
            elif first_bad and bad == "refuse":
                raise Refusal(f"{path}: line {first_bad} is damaged and whole lines follow it: {remedy}")
            else:
                yield Entry(start, start + len(line), value)
            if not line.endswith(b"\n") and len(line) != longest:
                return  # another process is about to write the rest
            start += len(line)


class Journal:
    """A journal to append to, locked against other writers.

    `busy` is what they are refused with. `whole` is called under the lock and returns how many bytes of the file
    stand, from reading its `entries`; what follows them is cut off. Where nothing stands, `first` is written.
    """

    def __init__(
        self, path: Path, busy: str, whole: Callable[[], int], first: dict[str, object] | None = None
    ) -> None:
        self.path, self._torn = path, False
        with contextlib.ExitStack() as opened:
            opened.enter_context(_lock(path, busy))
            self._end = whole()
            with writing(path):
                self._file = opened.enter_context(path.open("ab", buffering=0))
                self._file.truncate(self._end)
                sync(path.parent)  # its list of names: else a power cut may forget the file as a whole
            if first is not None and not self._end:
                self.append(first)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, value: Mapping[str, object], *, to_disk: bool = True) -> None:
        """Add a line: after a kill all of it is there, or nothing; after a power cut only once it is `to_disk`."""
        line = memoryview(json.dumps(value).encode() + b"\n")
        with writing(self.path):
            if self._torn:  # an append failed before
                self._file.truncate(self._end)
            self._torn, end = True, self._end + len(line)
            while line:
                line = line[self._file.write(line) :]
            if to_disk:
                os.fsync(self._file.fileno())
            self._torn, self._end = False, end

    def sync(self) -> None:
        """Put all lines to the disk."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and give the lock back."""
        self._opened.close()


def remove(path: Path, busy: str) -> None:
    """Delete a journal, if there is one; refused with `busy` while it is written to."""
    if path.exists():
        with _lock(path, busy):
            path.unlink()


def _lock(path: Path, busy: str) -> Lock:
    return Lock(path.with_name(f".{path.name}.lock"), busy)


def _value(line: bytes, check: Callable[[dict[str, object]], object] | None) -> dict[str, object] | None:
    """The object of a line; None for a bad line."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
        if not isinstance(value, dict):
            return None
        if check is not None:
            check(value)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value

"""Which bytes a file holds, without reading it again: SHA-256 by path, as long as the file's status is the same.

    FOLDER/<sha256 of this file>.json     {path: [size, mtime_ns, ctime_ns, inode, digest]}

Tables are only ever added, each whole, so writers never meet. A status that is younger than `SETTLED` is not kept:
a file could change again within one tick of the file system's clock.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from adapt.data.images import read_bytes
from adapt.data.rows import Place, split_member
from adapt.files import write_text

SETTLED = 2.0  # seconds

Status = tuple[int, int, int, int]


def status(path: str | os.PathLike) -> Status | None:
    """Size, times of change (ns) and inode; None for what cannot be asked or has only just changed."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a Path refuses no name that os does not)
    except (OSError, ValueError):
        return None
    if not settled(max(found.st_mtime, found.st_ctime)):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def settled(changed: float) -> bool:
    """Whether what was last changed at this time (seconds) would show another time if it changed now."""
    return time.time() - changed >= SETTLED


def read_tables(folder: Path) -> Iterator[dict[str, list]]:
    """The tables of a folder, the newest last; one whose bytes do not give its name is left out."""
    for table in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        data = table.read_bytes()
        if hashlib.sha256(data).hexdigest() == table.stem:
            yield json.loads(data)


def add_table(folder: Path, table: dict[str, list]) -> None:
    """Keep a table beside those of a folder, under the digest of its bytes."""
    text = json.dumps(table)
    write_text(folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json", text)


class Digests:
    """The digests of one folder; `close` keeps the new ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._new: dict[str, list] = {}
        self._known: dict[str, list] = {}
        for table in read_tables(folder):
            self._known |= table

    def of(self, file: str | os.PathLike, place: Place | None = None) -> bytes:
        """SHA-256 of a file, or of an archive's member at `place` as of `read_bytes`; raises `Unreadable`.

        Threads may ask at once.
        """
        name = os.path.abspath(os.fspath(file))  # noqa: PTH100 (resolves no links)
        before = status(split_member(name)[0])
        *known, digest = self._known.get(name, [None])
        if before is not None and tuple(known) == before:
            return bytes.fromhex(digest)
        found = hashlib.sha256(read_bytes(file, place)).digest()
        if before is not None and status(split_member(name)[0]) == before:
            self._new[name] = [*before, found.hex()]
        return found

    def close(self) -> None:
        if self._new:
            add_table(self.folder, self._new)
            self._known, self._new = self._known | self._new, {}

"""Shards that were found whole, so that they need not be read again to be believed.

    FOLDER/verified/<sha256 of this file>.json     {name of a shard: [size, mtime_ns]}

A mark says that the file of this name, when it had this size and this time of change, was read as a whole, and its
bytes gave its name. It holds while both are the same, on any machine and in a copy that keeps times: inodes and other
clocks of a file system have no part in it. A file that had only just changed gets no mark, because it could change
again within one tick. Damage that leaves size and time as they are is not seen: delete `verified`, and all is read.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from adapt.data import digests
from adapt.files import sha256
from adapt.threads import in_threads

State = tuple[str, int, int]  # name, size, mtime_ns


def whole(folder: Path, paths: Sequence[Path]) -> list[bool]:
    """Whether the bytes of each of these shards of `folder` give its name. Those without a mark are read, and marked.

    A file that is gone, because another process set it aside, is not whole.
    """
    tables = digests.read_tables(folder / "verified")
    marks = {(name, size, changed) for table in tables for name, (size, changed) in table.items()}
    before = [_state(path) for path in paths]
    unknown = [place for place, state in enumerate(before) if state is not None and state not in marks]
    old = [state is not None and digests.settled(state[2] / 1e9) for state in before]  # asked before they are read
    good = [state in marks for state in before]
    new: dict[str, list[object]] = {}
    for place, digest in zip(unknown, in_threads(_digest, [paths[place] for place in unknown]), strict=True):
        path, state = paths[place], before[place]
        good[place] = digest == path.stem
        if good[place] and state is not None and old[place] and _state(path) == state:
            new[path.name] = [*state[1:]]
    if new and os.access(folder, os.W_OK):  # others' caches may only be read
        digests.add_table(folder / "verified", new)
    return good


def _state(path: Path) -> State | None:
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return path.name, found.st_size, found.st_mtime_ns
    return None


def _digest(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return sha256(path)
    return ""

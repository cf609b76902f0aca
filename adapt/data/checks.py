"""What a manifest as a whole must not be: without a column, with one file twice, or one scene in two splits."""

import os
import stat
from collections.abc import Mapping, Sized

import numpy as np

from adapt.data.rows import PLACES, REQUIRED
from adapt.errors import Refusal
from adapt.files import sha256, too_many_files
from adapt.threads import in_threads


def refuse_columns(columns: Mapping[str, Sized], name: str) -> None:
    """Refuse a manifest that lacks a column, has one of ours, or has no rows."""
    if missing := [column for column in REQUIRED if column not in columns]:
        raise Refusal(f"{name}: no column {missing[0]!r}, only {', '.join(columns) or 'none'}: add or rename it")
    if reserved := [column for column in PLACES if column in columns]:
        raise Refusal(f"{name}: the column {reserved[0]!r} is reserved for absolute paths: rename it")
    if not len(columns["path"]):
        raise Refusal(f"{name} has no rows: list at least one image")


def refusal_of_mask(name: str, number: int, mask: str) -> Refusal:
    """What is said of a mask that is also an image."""
    return Refusal(f"{name}, row {number}: the mask {mask!r} is an image of the manifest: drop one of them")


def check_files_differ(columns: dict[str, np.ndarray]) -> None:
    """Refuse a file that stands in two rows."""
    if len(set(columns["file"])) < len(columns["file"]):
        seen: set[str] = set()
        for file, path in zip(columns["file"], columns["path"], strict=True):
            if file in seen:
                raise Refusal(f"path {path!r} stands in two rows: keep one of them")
            seen.add(file)


def check_groups(columns: dict[str, np.ndarray]) -> None:
    """Refuse a group that is in two splits."""
    first: dict[str, str] = {}
    for group, split in zip(columns["group"], columns["split"], strict=True):
        if first.setdefault(group, split) != split:
            raise Refusal(
                f"group {group!r} is in two splits, {first[group]} and {split}: "
                "keep a scene in one split, or give different scenes different groups"
            )


def check_bytes(columns: dict[str, np.ndarray]) -> None:
    """Refuse equal bytes in two splits or under two labels.

    The sha256 column is believed (decoding checks it). Without it, only files that agree in size and in their
    last 4 KiB with a row of another split or label are hashed. A member of an archive is compared by its
    sha256 alone, and an empty file, a broken download, with nothing: decoding reports it.
    """
    kinds = list(zip(columns["split"], columns["generator"] != "real", strict=True))
    digests = list(columns["sha256"])
    if not all(digests):
        files = columns["file"].tolist()
        sizes = list(in_threads(_size, files))
        tails: list = [None] * len(sizes)
        rows = _shared(sizes, kinds)
        for row, tail in zip(rows, in_threads(_tail, [files[row] for row in rows]), strict=True):
            tails[row] = (sizes[row], tail)
        rows = [row for row in _shared(tails, kinds) if not digests[row]]
        for row, digest in zip(rows, in_threads(_digest, [files[row] for row in rows]), strict=True):
            digests[row] = digest
    if rows := _shared([digest or None for digest in digests], kinds):
        a = rows[0]
        b = next(row for row in rows if digests[row] == digests[a] and kinds[row] != kinds[a])
        what = "in two splits" if kinds[a][0] != kinds[b][0] else "under two labels"
        first, second = (f"{columns['path'][r]!r} ({kinds[r][0]}, {columns['generator'][r]})" for r in (a, b))
        raise Refusal(f"the same bytes {what}: {first} and {second}; {len(rows)} rows in all: keep one of each")


def _shared(keys: list, kinds: list) -> list[int]:
    """Rows whose key is also the key of a row of another kind; None is nobody's key."""
    first: dict = {}
    mixed = {key for key, kind in zip(keys, kinds, strict=True) if first.setdefault(key, kind) != kind}
    return [row for row, key in enumerate(keys) if key is not None and key in mixed]


def _size(file: str) -> int | None:
    try:
        status = os.stat(file)  # noqa: PTH116 (several times faster than Path.stat)
    except OSError:
        return None
    return status.st_size or None if stat.S_ISREG(status.st_mode) else None


def _tail(file: str) -> bytes | None:
    try:
        with open(file, "rb") as stream:  # noqa: PTH123
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - 4096))
            return stream.read(4096)
    except OSError as error:
        if too_many_files(error):
            raise
        return None


def _digest(file: str) -> str:
    try:
        return sha256(file)
    except OSError as error:
        if too_many_files(error):
            raise
        return ""

"""Files that are either whole or absent: atomic writing and digests."""

import bz2
import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from adapt.errors import Refusal

FULL = "disk full{}: free some space and start again"
FULL_IN_WORDS = (  # of the system, by way of safetensors, pyarrow, data processes; of sqlite; of tempfile
    *(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)),
    *("database or disk is full", "No usable temporary directory found"),
)
MAX_JSON = 2**24  # bytes of a JSON file of somebody else
SYSTEM_FILES = (".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini")  # in any case


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`; it becomes `path` only if the block ends without an exception.

    The temporary name holds the process id, so two writers never share one. A full disk or a folder that cannot
    be written is a `Refusal`, and what stood under `path` before still stands.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except Exception as error:
        if disk_full(error):
            raise Refusal(FULL.format(f" while writing {path}")) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise Refusal(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder that becomes `output` if nothing fails; else nothing is left. A full disk is a `Refusal`."""
    made = [parent for parent in output.parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.replace(output)
    except Exception as error:
        if disk_full(error):
            raise Refusal(FULL.format(f" while writing {output}")) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made if not output.exists() else ():
            with contextlib.suppress(OSError):  # another process may have put something there
                parent.rmdir()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into a `Refusal`, never to be booked to an image."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise Refusal(FULL.format(f" while writing {path}")) from error
        raise Refusal(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error


def disk_full(error: BaseException) -> bool:
    """Whether an error, of Python or of a library that writes by itself, says that a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return not isinstance(error, Refusal) and any(words in str(error) for words in FULL_IN_WORDS)


def too_many_files(error: BaseException) -> bool:
    """Whether an error, of Python or of torch's data processes, says that no further file can be opened."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return True
    return any(words in str(error) for words in ("Too many open files", "received 0 items of ancdata"))


def require_regular(path: str | os.PathLike) -> None:
    """Raise OSError where there is no plain file: to open a pipe would wait for ever, and a device may have no end."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_json(path: str | os.PathLike, most: int = MAX_JSON) -> object:
    """What a JSON file says that may be a stranger's, of at most `most` bytes.

    Raises OSError, and ValueError for what is no JSON, larger, nested too deeply, or has a key twice in an object:
    readers that keep another one of the two would read another file.
    """
    require_regular(path)
    with Path(path).open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} has more than {most} bytes")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_each_once)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error


def not_finite(value: object, place: str = "") -> str:
    """Where in a JSON value the first number is that is infinite or NaN, `a.b.0`; empty where there is none."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else place
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = (not_finite(part, f"{place}.{name}" if place else str(name)) for name, part in parts)
    return next(filter(None, found), "")


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in [other for other, _ in pairs[:i]])
        raise ValueError(f"the key {twice[:40]!r} stands twice in an object")
    return found


def left_by_system(name: str) -> bool:
    """Whether a file is what macOS or Windows leaves beside a user's files: `._photo.jpg` is no photo."""
    return name.startswith("._") or name.lower() in SYSTEM_FILES


def packed(path: Path) -> Path:
    """Where a table may lie compressed: `metrics.csv.bz2` for `metrics.csv` (a quarter smaller than by gzip)."""
    return path.with_name(path.name + ".bz2")


def has_table(path: Path) -> bool:
    """Whether the table is there, as it is or compressed."""
    return path.is_file() or packed(path).is_file()


def open_table(path: Path) -> TextIO:
    """A CSV file for reading (UTF-8), or its compressed copy beside it; raises `FileNotFoundError`."""
    if path.is_file() or not packed(path).is_file():
        return path.open(encoding="utf-8", newline="")
    return bz2.open(packed(path), "rt", encoding="utf-8", newline="")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write bytes atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)

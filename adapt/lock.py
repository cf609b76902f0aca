"""One worker at a time in a folder or at a file: a lock that ends with the process that took it."""

import errno
import os
from pathlib import Path

from adapt.errors import Refusal
from adapt.files import writing

_held: set[tuple[str, int]] = set()  # lock files, each with the process that holds it: a child inherits no lock


class Lock:
    """Hold the lock file `file`, which is made if it is not there, until `close` or the end of the process.

    Where another process holds it, or this one does already, `busy` is refused: the sentence that says what is in use
    and what to do. A file system without locks is refused as such. Nothing else may open the file: closing any
    descriptor of it would end the lock.
    """

    _descriptor: int | None = None

    def __init__(self, file: Path, busy: str) -> None:
        # A record lock, as a `flock` would live on in data workers that outlast a kill. It does not keep out the
        # process that holds it, and to open and close the file once more would end it: `_held` is asked before.
        self._key = os.path.realpath(file), os.getpid()
        if self._key in _held:
            raise Refusal(f"{busy} (this process holds it)")
        self._descriptor = _locked(file, busy)
        _held.add(self._key)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back; in a child of the process that took it, nothing happens."""
        if self._descriptor is not None and self._key[1] == os.getpid():
            os.close(self._descriptor)
            self._descriptor = None
            _held.discard(self._key)

    __del__ = close  # of work that ended by an error


def _locked(file: Path, busy: str) -> int:
    """The descriptor that holds the lock."""
    import fcntl

    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise Refusal(busy) from error
        raise Refusal(
            f"{file} cannot be locked, the file system gives no locks ({error.strerror}): choose another folder, on "
            "a file system that has them"
        ) from error
    return descriptor

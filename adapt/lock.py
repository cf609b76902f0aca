"""One worker at a time in a folder or at a file: a lock that ends with the process that took it.

It is a record lock where the file system has those. Lustre mounted without `flock`, NFS without a lock server and some
others have none: there whoever wants the lock puts an empty file beside it, whose name says who that is, and has the
lock if no other such file is there. Each looks only after its own is there, so that of two at least one sees the other
and goes back. A process deletes its own file, and those of processes of this machine that are gone: no other process
will ever have their name, so no file of one that lives can be hit.
"""

import atexit
import contextlib
import errno
import functools
import hashlib
import os
import random
import re
import socket
import time
from pathlib import Path
from typing import NamedTuple

from adapt.errors import Refusal
from adapt.files import writing

# flock(2), fcntl(2), and what Lustre, NFS and FUSE answer where they have no locks
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
TRIES = 8  # of several that want a lock at the same moment, each time later by up to TRIES * WAIT seconds
WAIT = 0.02

_held: set[tuple[str, int]] = set()  # lock files, each with the process that holds it: a child inherits no lock


class Lock:
    """Hold the lock file `file`, which is made if it is not there, until `close` or the end of the process.

    Where another process holds it, or this one does already, `busy` is refused: the sentence that says what is in use
    and what to do; on a file system without locks it also names the file of a holder that cannot be judged from here.
    Nothing else may open the file: closing any descriptor of it would end the lock.
    """

    _holds: "int | _Mark | None" = None

    def __init__(self, file: Path, busy: str) -> None:
        # A record lock, as a `flock` would live on in data workers that outlast a kill. It does not keep out the
        # process that holds it, and to open and close the file once more would end it: `_held` is asked before.
        self._key = os.path.realpath(file), os.getpid()
        if self._key in _held:
            raise Refusal(f"{busy} (this process holds it)")
        self._holds = _locked(file, busy)
        _held.add(self._key)

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back; in a child of the process that took it, nothing happens."""
        if self._holds is not None and self._key[1] == os.getpid():
            if isinstance(self._holds, _Mark):
                self._holds.remove()
            else:
                os.close(self._holds)
            self._holds = None
            _held.discard(self._key)

    __del__ = close  # of work that ended by an error


class _Who(NamedTuple):
    """A process: of all times and machines no other has the same."""

    host: str
    machine: str  # a digest of this start of this kernel, and of the container
    process: int
    started: str  # ticks since the kernel's start; empty where the system does not tell

    def is_gone(self) -> bool | None:
        """Whether it has ended; None where it runs on another machine, which cannot be known here."""
        me = _me(os.getpid())
        if (self.host, self.machine) != (me.host, me.machine):
            return None
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:  # another user's
            pass
        return _started(self.process) not in (self.started, "")


class _Mark:
    """The file of one process that holds a lock, or wants it."""

    def __init__(self, lock: Path) -> None:
        self.process = os.getpid()
        self.file = lock.with_name(f"{lock.name}~{'~'.join(map(str, _me(self.process)))}")
        with writing(self.file):
            os.close(os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        atexit.register(self.remove)

    def remove(self) -> None:
        if self.process == os.getpid():
            atexit.unregister(self.remove)
            self.file.unlink(missing_ok=True)

    def others(self, lock: Path) -> list[tuple[Path, bool]]:
        """Files of other processes that may hold the lock, each with whether that is certain."""
        found, start = [], f"{lock.name}~"
        with writing(lock.parent), os.scandir(lock.parent) as listed:
            names = [entry.name for entry in listed if entry.name.startswith(start)]
        for name in set(names) - {self.file.name}:
            path, who = lock.with_name(name), _who(name.removeprefix(start))
            gone = who.is_gone() if who else None
            if gone:
                with writing(path):
                    path.unlink(missing_ok=True)
            else:
                found.append((path, gone is False))
        return sorted(found)


def _locked(file: Path, busy: str) -> int | _Mark:
    """What holds the lock: a descriptor, or a file beside it."""
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
        if error.errno in NO_LOCKS:
            return _marked(file, busy)
        raise Refusal(
            f"{file} cannot be locked, the file system gives no locks ({error.strerror}): choose another folder, on "
            "a file system that has them"
        ) from error
    return descriptor


def _marked(file: Path, busy: str) -> _Mark:
    """The lock by a file beside it."""
    for number in range(1, TRIES + 1):
        mark = _Mark(file)
        others = mark.others(file)
        if not others:
            return mark
        mark.remove()
        time.sleep(random.uniform(0, WAIT * number))  # whoever holds it stays; others that want it go back as well
    unknown = [path for path, certain in others if not certain]
    if unknown:
        raise Refusal(
            f"{busy} (it was taken on another machine or in another container: if nothing works there any more, "
            f"delete {unknown[0]})"
        )
    raise Refusal(busy)


@functools.lru_cache(maxsize=1)
def _me(process: int) -> _Who:
    """This process; `process` is its number, which a fork changes."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64]
    facts = [host]
    with contextlib.suppress(OSError):  # only Linux has these
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        facts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 (no path)
    machine = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return _Who(host, machine, process, _started(process))


def _started(process: int) -> str:
    """When a process began, in the kernel's ticks; `ended` where only its parent has not heard of its end yet; empty
    where nothing is known of it."""
    try:
        line = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return ""
    state, *fields = line.rpartition(b")")[2].split()  # behind the name, which may hold blanks and brackets
    return "ended" if state in (b"Z", b"X") else fields[18].decode()


def _who(name: str) -> _Who | None:
    """The process that the end of a file's name tells; None for other names."""
    found = re.fullmatch(r"([A-Za-z0-9.-]+)~([0-9a-f]{12})~(\d{1,9})~(\d*)", name)
    return _Who(found[1], found[2], int(found[3]), found[4]) if found else None

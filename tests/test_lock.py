"""A lock keeps out other processes and other parts of this one, says what is wrong, and ends with its holder."""

import errno
import fcntl
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from processes import in_children

from adapt.errors import Refusal
from adapt.lock import Lock

BUSY = "the folder is in use: wait for it"


def status_of_another(file: Path) -> int:
    """What another process finds: 0 for a free lock, 9 for one that is held."""

    def other() -> None:
        try:
            Lock(file, BUSY).close()
        except Refusal as refusal:
            os._exit(9 if str(refusal) == BUSY else 1)

    return in_children(other)[0]


def test_another_process_is_refused_until_the_lock_is_closed(tmp_path) -> None:
    file = tmp_path / "new" / ".lock"
    lock = Lock(file, BUSY)
    assert status_of_another(file) == 9
    lock.close()
    assert status_of_another(file) == 0
    lock.close()  # a second time it does nothing


def test_the_process_that_holds_it_is_refused_and_holds_it_still(tmp_path) -> None:
    """To open and close the file in this process would end the lock."""
    file, link = tmp_path / ".lock", tmp_path / "link"
    link.symlink_to(tmp_path)
    with Lock(file, BUSY):
        for name in (file, link / ".lock"):
            with pytest.raises(Refusal, match=BUSY + r" \(this process holds it\)"):
                Lock(name, BUSY)
        gc.collect()
        assert status_of_another(file) == 9
    with Lock(file, BUSY):
        assert status_of_another(file) == 9


def test_a_lock_that_nothing_refers_to_is_given_back(tmp_path) -> None:
    def fails() -> None:
        lock = Lock(tmp_path / ".lock", BUSY)
        raise ValueError(lock)

    with pytest.raises(ValueError, match="Lock"):
        fails()
    gc.collect()
    Lock(tmp_path / ".lock", BUSY).close()


def test_a_child_neither_has_the_lock_nor_ends_it(tmp_path) -> None:
    file = tmp_path / ".lock"
    lock = Lock(file, BUSY)

    def child() -> None:
        lock.close()
        try:
            Lock(file, BUSY)
        except Refusal as refusal:
            os._exit(9 if str(refusal) == BUSY else 1)

    assert in_children(child) == [9]
    assert status_of_another(file) == 9
    lock.close()


def test_a_worker_that_outlasts_a_kill_does_not_keep_the_lock(tmp_path) -> None:
    """A `flock` would be held by the grandchild, which has inherited the descriptor."""
    file = tmp_path / ".lock"

    def killed() -> None:
        lock = Lock(file, BUSY)
        worker = os.fork()
        if worker == 0:
            signal.alarm(60)
            time.sleep(60)
            os._exit(0)
        (tmp_path / "worker").write_text(str(worker))
        assert lock
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_children(killed) == [-signal.SIGKILL]
    worker = int((tmp_path / "worker").read_text())
    os.kill(worker, 0)  # it lives
    try:
        assert status_of_another(file) == 0
    finally:
        os.kill(worker, signal.SIGKILL)


def test_another_failure_to_lock_is_not_called_busy(tmp_path, monkeypatch) -> None:
    def none(*_) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", none)
        with pytest.raises(Refusal) as refused:
            Lock(tmp_path / ".lock", BUSY)
    assert "in use" not in str(refused.value)
    assert os.strerror(errno.EIO) in str(refused.value) and "choose another folder" in str(refused.value)
    Lock(tmp_path / ".lock", BUSY).close()  # the refused one is not counted as held


@pytest.fixture
def no_locks(request, monkeypatch) -> None:
    """A file system without locks, as Lustre without `flock` (ENOSYS) or NFS without a lock server (ENOLCK)."""
    number = getattr(request, "param", errno.ENOSYS)

    def none(*_) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", none)


def marks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "~" in path.name)


@pytest.mark.parametrize("no_locks", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL], indirect=True)
def test_without_locks_others_are_kept_out_by_a_file(tmp_path, no_locks) -> None:
    file = tmp_path / ".lock"
    assert status_of_another(file) == 0  # which had it and gave it back
    with Lock(file, BUSY):
        [mark] = marks(tmp_path)
        assert f"~{os.getpid()}~" in mark
        assert status_of_another(file) == 9
        with pytest.raises(Refusal, match="this process holds it"):
            Lock(file, BUSY)
        assert marks(tmp_path) == [mark]
    assert marks(tmp_path) == [] and status_of_another(file) == 0


def test_without_locks_a_killed_process_holds_nothing_and_an_ended_one_leaves_nothing(tmp_path, no_locks) -> None:
    file = tmp_path / ".lock"
    held = []

    def killed() -> None:
        held.append(Lock(file, BUSY))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_children(killed) == [-signal.SIGKILL] and len(marks(tmp_path)) == 1
    Lock(file, BUSY).close()
    assert marks(tmp_path) == []
    root = Path(__file__).parents[1]
    ends = (
        "import fcntl, sys; from pathlib import Path; from adapt.lock import Lock\n"
        "def none(*_): raise OSError(38, 'none')\n"
        "fcntl.lockf = none; file = Path(sys.argv[1]); keep = Lock(file, 'busy')\n"
        "print(len(list(file.parent.iterdir())))"
    )
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", ends, file], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("2\n", "") and marks(tmp_path) == []


def test_without_locks_a_number_that_came_back_is_another_process(tmp_path, no_locks) -> None:
    """The mark of a process that ended, and whose number a new one has."""
    file = tmp_path / ".lock"
    with Lock(file, BUSY):
        [mark] = marks(tmp_path)
    start, _, ticks = mark.rpartition("~")
    assert int(ticks) > 0
    (tmp_path / f"{start}~{int(ticks) - 5}").touch()
    assert status_of_another(file) == 0 and marks(tmp_path) == []


@pytest.mark.parametrize("mark", ["far~0123456789ab~7~99", "HERE~0123456789ab~7~99", "whatever", "a~b"])
def test_without_locks_a_holder_that_cannot_be_judged_is_named(tmp_path, no_locks, mark) -> None:
    """Of another machine, of another container with this machine's name, or of nobody."""
    name = ".lock~" + mark.replace("HERE", socket.gethostname())
    (tmp_path / name).touch()
    with pytest.raises(Refusal, match=f"^{BUSY} .*delete .*{name}") as refused:
        Lock(tmp_path / ".lock", BUSY)
    assert "\n" not in str(refused.value) and marks(tmp_path) == [name]
    (tmp_path / name).unlink()
    Lock(tmp_path / ".lock", BUSY).close()


def test_without_locks_never_two_hold_it_and_somebody_does(tmp_path, no_locks) -> None:
    """Six processes want it again and again, and some are killed while they have it or want it."""
    file, inside = tmp_path / ".lock", tmp_path / "inside"

    def work() -> None:
        draw, got, end = random.Random(os.getpid()), 0, time.monotonic() + 3
        while time.monotonic() < end:
            try:
                lock = Lock(file, BUSY)
            except Refusal:
                continue
            descriptor = os.open(inside, os.O_CREAT | os.O_EXCL)  # fails where another one is inside
            time.sleep(draw.uniform(0, 0.01))
            os.close(descriptor)
            inside.unlink()
            if draw.random() < 0.1:
                os._exit(5)  # as if killed: no clearing up
            lock.close()
            got += 1
        os._exit(0 if got else 7)

    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        pids.append(pid)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert set(statuses) <= {0, 5, 7} and {0, 5} & set(statuses)
    Lock(file, BUSY).close()
    assert marks(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_both_numbers_of_a_held_lock_are_busy(tmp_path, monkeypatch, number) -> None:
    def held(*_) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", held)
    with pytest.raises(Refusal, match=f"^{BUSY}$"):
        Lock(tmp_path / ".lock", BUSY)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match=r"cannot write .*choose a folder"):
        Lock(tmp_path / "file" / "folder" / ".lock", BUSY)

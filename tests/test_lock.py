"""A lock keeps out other processes and other parts of this one, says what is wrong, and ends with its holder."""

import errno
import fcntl
import gc
import os
import signal
import time
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


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_not_called_busy(tmp_path, monkeypatch, number) -> None:
    def none(*_) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", none)
        with pytest.raises(Refusal) as refused:
            Lock(tmp_path / ".lock", BUSY)
    assert "in use" not in str(refused.value)
    assert os.strerror(number) in str(refused.value) and "choose another folder" in str(refused.value)
    Lock(tmp_path / ".lock", BUSY).close()  # the refused one is not counted as held


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

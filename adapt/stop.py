"""SIGTERM, which a scheduler sends before it takes a machine away: a process ends at once, or first ends what would be
torn, and leaves behind what the same command continues from. And processes that end with the one that started them.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

STATUS = 128 + signal.SIGTERM
LAUNCHERS = {"accelerate", "accelerate-launch", "accelerate.commands.launch", "torchrun", "torch.distributed.run"}
LOOK = 1.0  # seconds between two looks at the parent

_asked = _held = _follows = False


class Stopped(SystemExit):
    """Raised in the main thread by a SIGTERM; `words` say what was kept, and that the same command continues."""

    def __init__(self, words: str = "stopped: start the same command again to continue") -> None:
        super().__init__(STATUS)
        self.words = words


def heed() -> None:
    """From now on a SIGTERM raises `Stopped` in the main thread, and the end of the launcher counts as one:
    `accelerate launch` dies of a SIGTERM without passing it on."""
    global _follows
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _terminated)
    if not _follows and _is_launcher(parent := os.getppid()):
        _follows = True
        _follow(parent, lambda: os.kill(os.getpid(), signal.SIGTERM))


def _terminated(_: int, __: FrameType | None) -> None:
    global _asked
    _asked = True
    if not _held:
        raise Stopped


def _forked() -> None:
    """A forked process has none of this until it heeds SIGTERM itself: a pool could not end it otherwise."""
    global _asked, _held, _follows
    _asked = _held = _follows = False
    if signal.getsignal(signal.SIGTERM) is _terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forked)


def asked() -> bool:
    """Whether a SIGTERM came."""
    return _asked


def hold() -> None:
    """Until `release` a SIGTERM is only noted, for `asked`."""
    global _held
    _held = True


def release() -> None:
    """The end of `hold`; raises `Stopped` if a SIGTERM came meanwhile."""
    global _held
    _held = False
    if _asked:
        raise Stopped


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """What stands in this block is done as a whole: a SIGTERM waits for its end."""
    global _held
    before, _held = _held, True
    try:
        yield
    finally:
        _held = before
    if _asked and not _held:
        raise Stopped


def end_with_parent() -> None:
    """For a process that another one started for its data: it ends within seconds of that one, even of a kill -9.

    Else it would live on where it waits for a pipe of which a sibling holds the other end.
    """
    parent = multiprocessing.parent_process()  # which may be gone already
    _follow(parent.pid if parent and parent.pid else os.getppid(), lambda: os._exit(1))


def end_children() -> None:
    """Kill the data processes that are left: they are deaf to SIGTERM, and Python would wait for them at its end."""
    if children := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error for each that is killed
        for child in children:
            child.kill()


def _follow(parent: int, end: Callable[[], object]) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        end()

    threading.Thread(target=watch, daemon=True, name="follows its parent").start()


def _is_launcher(process: int) -> bool:
    import psutil

    try:
        words = psutil.Process(process).cmdline()[:3]
    except psutil.Error:
        return False
    return any(Path(word).name in LAUNCHERS for word in words)

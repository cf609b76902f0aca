"""Progress bars that suit a terminal and a log file alike."""

import sys
import threading

from tqdm import tqdm

# tqdm's own lock is shared with forked processes: one that is killed while it holds it would stop all others. And a
# process that is forked while tqdm's monitor holds a lock would never get it.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0


def write(text: str) -> None:
    """A line on the standard output, above the bars."""
    tqdm.write(text)


def end_bars() -> None:
    """Give the line back that an interrupted bar stands in: what is printed next begins a line of its own."""
    for left in list(getattr(tqdm, "_instances", ())):
        left.close()


def bar(shown: bool = True, **settings: object) -> tqdm:
    """A tqdm bar; in a log file, where each update is a line, it speaks every half minute only."""
    often = {"mininterval": 0.5 if sys.stderr.isatty() else 30, "miniters": 1}
    return tqdm(disable=not shown, dynamic_ncols=True, **often, **settings)

"""Progress bars that suit a terminal and a log file alike."""

import sys

from tqdm import tqdm


def end_bars() -> None:
    """Give the line back that an interrupted bar stands in: what is printed next begins a line of its own."""
    for left in list(getattr(tqdm, "_instances", ())):
        left.close()


def bar(shown: bool = True, **settings: object) -> tqdm:
    """A tqdm bar; in a log file, where each update is a line, it speaks every half minute only."""
    return tqdm(disable=not shown, mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=True, **settings)

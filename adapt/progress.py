"""Progress bars that suit a terminal and a log file alike."""

import sys

from tqdm import tqdm


def bar(shown: bool = True, **settings: object) -> tqdm:
    """A tqdm bar; in a log file, where each update is a line, it speaks every half minute only."""
    return tqdm(disable=not shown, mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=True, **settings)

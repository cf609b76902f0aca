"""Numbers for names, so that millions of rows are compared, counted and sorted as integers."""

from collections.abc import Iterable

import numpy as np


def numbered(names: Iterable[str]) -> tuple[list[str], np.ndarray]:
    """The distinct names, sorted, and the place of each row's name among them, (n,) int64.

    What `numpy.unique` gives, without sorting the rows.
    """
    rows = names.tolist() if isinstance(names, np.ndarray) else list(names)
    place = dict.fromkeys(rows)
    distinct = sorted(place)
    for number, name in enumerate(distinct):
        place[name] = number
    return distinct, np.fromiter(map(place.__getitem__, rows), np.int64, len(rows))

"""Work of threads whose time goes to files and digests, during which other threads run."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 8  # a disk, or a network drive, serves several requests at once
Item = TypeVar("Item")
Found = TypeVar("Found")


def in_threads(work: Callable[[Item], Found], items: Sequence[Item]) -> Iterator[Found]:
    """`work(item)` of all items, in their order; items are handed out as they come, so that millions are no list."""
    each = max(1, min(64, len(items) // (4 * THREADS)))  # for a thread at once: handing over costs 20 us
    at_once = 64 * THREADS

    def some(start: int) -> list[Found]:
        return [work(item) for item in items[start : start + each]]

    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(items), each * at_once):
            for found in pool.map(some, range(first, min(first + each * at_once, len(items)), each)):
                yield from found

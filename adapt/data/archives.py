"""Images by the tar file that they lie in: how jobs share them, and in which order training meets them.

A disk, and a network drive more so, reads few files at a time faster than thousands in turn. What lies in no tar file
is shared out and shuffled as if there were none.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from adapt.data.rows import split_member

WINDOW = 32  # tar files that training reads from at a time: of 1 GiB each more images than any buffer would mix


def archives(files: Iterable[str]) -> np.ndarray:
    """(n,) int64: the number of each image's tar file in the order of their names, -1 for an image in none."""
    met: dict[str, int] = {}
    places = (met.setdefault(archive, len(met)) if member else -1 for archive, member in map(split_member, files))
    number = np.fromiter(places, np.int64)
    by_name = np.empty(len(met) + 1, np.int64)
    by_name[[met[name] for name in sorted(met)]] = np.arange(len(met))
    by_name[-1] = -1
    return by_name[number]


def archives_of_groups(files: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """(groups,) int64: the number of the tar file in which the first image of each group lies, -1 for none."""
    return archives(files[np.array([rows[0] for rows in groups])])


def share(archive: np.ndarray, shard: int, num_shards: int) -> np.ndarray:
    """Which of n images or groups, by the number (n,) of their tar file, job `shard` of `num_shards` takes.

    Whole tar files that follow each other by name, about equally many images or groups for each job, in the order in
    which they lie there. What lies outside of tar files is dealt out one by one, and so is everything where there are
    fewer tar files than jobs.
    """
    every = np.arange(len(archive))
    count = np.bincount(archive[archive >= 0])
    if not len(count) or len(count) < num_shards:
        return every[shard::num_shards]
    middle = np.cumsum(count) - count / 2  # of each tar file, in images before it
    mine = every[archive >= 0][(middle * num_shards // count.sum() == shard)[archive[archive >= 0]]]
    return np.concatenate([mine[np.argsort(archive[mine], kind="stable")], every[archive < 0][shard::num_shards]])


def shuffled(count: int, archive: np.ndarray | None, draw: np.random.Generator) -> np.ndarray:
    """An order (count,) of all groups; `archive` is the number (count,) of each group's tar file.

    Tar files are shuffled and taken at most `WINDOW` at a time, and the groups of these are shuffled together. Groups
    outside of tar files fall into any window. With at most `WINDOW` tar files it is the permutation of all groups.
    """
    order = draw.permutation(count)
    tars = 0 if archive is None else int(archive.max(initial=-1)) + 1
    if archive is None or tars <= WINDOW:
        return order
    windows = -(-tars // WINDOW)
    of_tar = draw.permutation(tars) * windows // tars  # windows of equal size
    anywhere = np.arange(count) * windows // count
    return order[np.argsort(np.where(archive[order] < 0, anywhere, of_tar[archive[order]]), kind="stable")]

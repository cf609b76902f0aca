"""The same picture twice: by its pixels, whatever the container, by a hash that survives compression, by features."""

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from adapt.data.manifest import Manifest
from adapt.data.rows import Words

NEAR = 4  # of 64 bits


class Twin(NamedTuple):
    """A row whose picture stands in another split or under another label as well; `row` is the later one."""

    kind: str  # pixels: the same ones; near: hashes differ by at most `NEAR` bits; embedding: features are alike
    row: int
    other: int
    distance: float  # 0; bits; 1 - cosine


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 (hex) over the size and the RGB values: equal for equal pictures in different containers."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def perceptual_hash(image: Image.Image) -> int | None:
    """Signs of the 64 lowest AC frequencies of the luma at 32 x 32, as 64 bits; None for an even picture.

    On 284 photographs of 224 to 640 px JPEG 40 or halving changed at most 2 bits, while different photographs were at
    least 16 apart. Cropped or turned pictures are others. An even picture (deviation below 2 of 255 levels over
    these frequencies) has noise for signs.
    """
    from scipy.fft import dctn

    luma = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = dctn(luma, norm="ortho")[_LOW]
    if np.sqrt((low**2).mean() * len(low)) / 32 < 2:
        return None
    return int.from_bytes(np.packbits(low > 0).tobytes(), "big")


# (2, 64) indices of the lowest frequencies but the mean, by distance from it
_LOW = tuple(np.array(sorted(itertools.product(range(16), repeat=2), key=lambda uv: (math.hypot(*uv), uv))[1:65]).T)


def twins(
    manifest: Manifest,
    pixels: Words,
    hashes: Sequence[int | None] | np.ndarray,
    most: int = NEAR,
    vectors: np.ndarray | None = None,
    least: float = 0.98,
) -> list[Twin]:
    """Rows whose picture stands in another split or under another label as well, one earlier partner each.

    Takes for each row what `pixel_digest` and `perceptual_hash` say, "" and None where the picture is unreadable.
    The same pixels count also within a group (the manifest has compared bytes already), near ones only across
    groups: a fake may well look like its photograph. Even pictures are not compared. With `vectors`, unit features
    (n, d) of the rows, NaN where there are none, also rows with a cosine of at least `least`: crops are found so.
    """
    group, kind = (
        np.unique(keys, return_inverse=True)[1]
        for keys in (
            manifest["group"].astype(str),
            np.char.add(manifest["split"].astype(str), manifest.fake.astype(str)),
        )
    )
    found: dict[int, Twin] = {}
    first: dict[str, dict[int, int]] = {}  # digest -> kind -> its first row
    for row in np.flatnonzero(np.asarray(pixels, object) != "").tolist():
        kinds = first.setdefault(pixels[row], {})
        others = [other for k, other in kinds.items() if k != kind[row]]
        if others:
            found[row] = Twin("pixels", row, min(others), 0)
        kinds.setdefault(int(kind[row]), row)
    seen = np.array([row for row, code in enumerate(hashes) if code is not None], np.int64)
    codes = np.array([hashes[row] for row in seen], np.uint64)
    other, distance = near_partners(codes, group[seen], kind[seen], most)
    for i in np.flatnonzero(other >= 0):
        at = int(seen[i])
        found.setdefault(at, Twin("near", at, int(seen[other[i]]), int(distance[i])))
    if vectors is not None:
        seen = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        other, cosine = similar_partners(vectors[seen], group[seen], kind[seen], least)
        for i in np.flatnonzero(other >= 0):
            at = int(seen[i])
            found.setdefault(at, Twin("embedding", at, int(seen[other[i]]), round(1 - float(cosine[i]), 6)))
    return [found[row] for row in sorted(found)]


def near_partners(
    hashes: np.ndarray, group: np.ndarray, kind: np.ndarray, most: int = NEAR
) -> tuple[np.ndarray, np.ndarray]:
    """For each of n hashes the nearest earlier one of another group and kind within `most` bits.

    Returns indices (n,), -1 where there is none, and distances (n,), `most` + 1 where there is none. Of equal hashes
    only the earliest rows matter, so any number of copies of a picture costs a sort: see `_earliest`.
    """
    other, distance = np.full(len(hashes), -1), np.full(len(hashes), most + 1)
    distinct, which = np.unique(hashes, return_inverse=True)
    rows = np.argsort(which, kind="stable")  # those of each hash side by side
    counts = np.bincount(which, minlength=len(distinct))
    starts = np.cumsum(counts) - counts
    first, second = _earliest(which, group, kind, len(distinct))
    for mine, theirs, bits in _close(distinct, most):
        repeat = counts[mine]
        at = np.repeat(starts[mine] - np.cumsum(repeat) + repeat, repeat) + np.arange(repeat.sum())
        row, partner = rows[at], np.repeat(theirs, repeat)
        found = np.full(len(row), len(hashes))
        for k in range(first.shape[1]):
            earliest = np.where(group[first[partner, k]] != group[row], first[partner, k], second[partner, k])
            usable = (kind[row] != k) & (first[partner, k] >= 0) & (earliest >= 0) & (earliest < row)
            found = np.minimum(found, np.where(usable, earliest, len(hashes)))
        near = np.repeat(bits, repeat)
        there = np.flatnonzero(found < len(hashes))
        there = there[np.lexsort((found[there], near[there], row[there]))]
        row, near, found = row[there], near[there], found[there]
        nearest = np.diff(row, prepend=-1) > 0  # the first of each row
        row, near, found = row[nearest], near[nearest], found[nearest]
        better = (near < distance[row]) | ((near == distance[row]) & (found < other[row]))
        other[row[better]], distance[row[better]] = found[better], near[better]
    return other, distance


def _earliest(which: np.ndarray, group: np.ndarray, kind: np.ndarray, distinct: int) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each hash and kind, and the first whose group is another than that row's; -1 for none.

    One of the two is the earliest partner for a row of any group. Both (hashes, kinds).
    """
    kinds = int(kind.max(initial=-1)) + 1
    first, second = np.full((2, distinct, kinds), len(which))
    every = np.arange(len(which))
    np.minimum.at(first, (which, kind), every)
    others = group != group[first[which, kind]]
    np.minimum.at(second, (which[others], kind[others]), every[others])
    return np.where(first < len(which), first, -1), np.where(second < len(which), second, -1)


def _close(distinct: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of different hashes within `most` bits, each with itself as well: indices, indices and bits, in parts.

    Two 64-bit words that differ in at most `most` bits agree in one of `most` + 1 bands, so only words that share a
    band are compared: 100,000 random ones take 1 s. Neighbouring frequencies lie in different bands.
    """
    every = np.arange(len(distinct))
    yield every, every, np.zeros(len(distinct), np.int64)
    for band in range(most + 1):
        mask = np.uint64(sum(1 << bit for bit in range(band, 64, most + 1)))
        order = np.argsort(distinct & mask, kind="stable")
        keys = (distinct & mask)[order]
        for bucket in np.split(order, np.flatnonzero(keys[1:] != keys[:-1]) + 1):
            for part in np.array_split(bucket, len(bucket) ** 2 // 4_000_000 + 1) if len(bucket) > 1 else ():
                bits = np.bitwise_count(distinct[part, None] ^ distinct[bucket]).astype(np.int64)
                mine, theirs = np.nonzero((bits <= most) & (bits > 0))
                if len(mine):
                    yield part[mine], bucket[theirs], bits[mine, theirs]


def similar_partners(
    vectors: np.ndarray, group: np.ndarray, kind: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each of n unit vectors (n, d) the most similar earlier one of another group and kind, by cosine.

    Returns indices (n,), -1 where none reaches `least`, and cosines (n,). All pairs, 1,024 rows at a time.
    """
    other, cosine = np.full(len(vectors), -1), np.full(len(vectors), -1.0)
    for start in range(0, len(vectors), 1024):
        rows = np.arange(start, min(start + 1024, len(vectors)))
        near = vectors[rows] @ vectors[: rows[-1] + 1].T
        before = np.arange(rows[-1] + 1)
        same = (group[rows, None] == group[before]) | (kind[rows, None] == kind[before])
        near[same | (before >= rows[:, None])] = -1
        best = near.argmax(axis=1)
        cosine[rows] = near[np.arange(len(rows)), best]
        other[rows] = np.where(cosine[rows] >= least, best, -1)
    return other, cosine

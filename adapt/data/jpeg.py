"""What the header of an image file says of its JPEG compression, and the views that stand for a sample of files."""

import dataclasses
import functools
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from adapt.cli import Flags
from adapt.data.chains import PRESET
from adapt.data.images import Unreadable, opened, read_bytes
from adapt.data.inputs import Input, find_inputs
from adapt.errors import Refusal
from adapt.progress import bar

CHAINS = "chains"  # among --train_views: untouched, and chains of 1 to 4 steps, equally often
LIKE = "like:"  # among --train_views: the views of a sample
MOST = 20  # names that stand for a sample: what is rarer than one in 40 is left out
# horizontal and vertical sampling of luma over that of chroma (ITU-T T.81, A.1.1) as it is usually called
SUBSAMPLINGS: dict[tuple[float, float], str] = {
    **{(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0"},
    **{(1, 2): "4:4:0", (4, 1): "4:1:1", (4, 2): "4:1:0"},
}

# ITU-T T.81, tables K.1 (luminance) and K.2 (chrominance), row by row.
_LUMA = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMA = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""


def jpeg_tables(quality: int) -> np.ndarray:
    """Quantisers (2, 64), luma and chroma, row by row: Annex K scaled as the IJG's libjpeg does."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    annex_k = np.array([_LUMA.split(), _CHROMA.split()], np.int64)
    return ((annex_k * scale + 50) // 100).clip(1, 255)


def nearest_tables(image: Image.Image) -> tuple[float, float]:
    """Quality of the nearest IJG tables, and the summed distance to them: 0 means standard. NaN without tables."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return math.nan, math.nan
    found = np.array([tables[key] for key in sorted(tables)][:2])
    distances = np.abs(_all_tables()[:, : len(found)] - found).sum(axis=(1, 2))
    return float(distances.argmin() + 1), float(distances.min())


@functools.cache
def _all_tables() -> np.ndarray:
    return np.stack([jpeg_tables(quality) for quality in range(1, 101)])


class Trains(Flags, Protocol):
    """A config with the views under which images are shown in training."""

    @property
    def train_views(self) -> tuple[str, ...]: ...


Recipe = TypeVar("Recipe", bound=Trains)


class Header(NamedTuple):
    """`width` and `height` in px, before EXIF orientation. What follows is None for a file that is no JPEG."""

    format: str
    width: int
    height: int
    jpeg_quality: int | None = None  # 1 to 100: that of the nearest tables of the IJG's libjpeg
    jpeg_tables: str | None = None  # standard: exactly those tables; custom: others (cameras, Photoshop, mozjpeg)
    table_distance: int | None = None  # summed absolute difference to them; 0 is standard
    subsampling: str | None = None  # of chroma; grey: there is none; other


def read_header(data: bytes) -> Header:
    """Header of a file's bytes; raises `Unreadable`. Several pictures in a JPEG (MPO) count as its first."""
    with opened(data) as image:
        found = Header("JPEG" if image.format == "MPO" else image.format or "", *image.size)
        if not isinstance(image, JpegImageFile):
            return found
        quality, distance = nearest_tables(image)
        if quality != quality:  # no tables: decoding will say what is wrong with it
            return found._replace(subsampling=_subsampling(image))
        kind = "standard" if distance == 0 else "custom"
        return Header(*found[:3], int(quality), kind, int(distance), _subsampling(image))


def read_headers(inputs: Sequence[Input], shown: bool = True) -> Iterable[tuple[Header | None, str]]:
    """For each input its header and "", or None and the reason why there is none. No pixel is decoded."""
    for _, file, _, reason, place in bar(shown, iterable=inputs, unit="file", desc="headers", leave=False):
        try:
            if reason:
                raise Unreadable(reason)
            yield read_header(read_bytes(file, place)), ""
        except Unreadable as problem:
            yield None, problem.reason


def views_like(headers: Iterable[Header]) -> tuple[str, ...]:
    """Names of views, each as often as the sample asks for: `qfN` of a JPEG's quality, `none` for other formats.

    The k-th of n names is the (k - 1/2) / n quantile of the qualities, so neighbours stand for what is too rare to be
    named. n is the smallest number up to `MOST` whose shares come within 1 % (total variation) of the best.
    """
    qualities = sorted(header.jpeg_quality or 101 for header in headers)
    if not qualities:
        raise Refusal("the sample has no readable image: name another folder")
    shares = {q: count / len(qualities) for q, count in Counter(qualities).items()}
    best: dict[int, tuple[float, list[int]]] = {}
    for n in range(1, MOST + 1):
        names = [qualities[(2 * k + 1) * len(qualities) // (2 * n)] for k in range(n)]
        best[n] = (sum(abs(share - names.count(q) / n) for q, share in shares.items()) / 2, names)
    least = min(error for error, _ in best.values())
    names = next(names for error, names in best.values() if error <= least + 0.01)
    return tuple("none" if q > 100 else f"qf{q}" for q in names)


def with_sample_views(config: Recipe) -> Recipe:
    """A recipe's config with `like:FOLDER` among its `train_views` replaced by `views_like` of the images there, and
    `chains` by the untouched image and chains of 1 to 4 steps.

    FOLDER may be whatever `find_inputs` takes. A view is drawn as often as it is named. An image that is a JPEG
    already is compressed once more by its view; and views write 4:2:0, whatever the sample has.
    """
    if not any(name.startswith(LIKE) or name == CHAINS for name in config.train_views):
        return config
    views: list[str] = []
    for name in config.train_views:
        if name == CHAINS:
            views += PRESET
        else:
            views += _of_sample(name.removeprefix(LIKE)) if name.startswith(LIKE) else [name]
    return dataclasses.replace(config, train_views=tuple(views))


def _of_sample(name: str) -> tuple[str, ...]:
    main = os.environ.get("RANK", "0") == "0"
    found = list(read_headers(find_inputs([name])[1], main))
    headers = [header for header, _ in found if header]
    try:
        views = views_like(headers)
    except Refusal as refusal:
        raise Refusal(f"--train_views {LIKE}{name}: {refusal}") from None
    if main:
        counts = ", ".join(f"{count} x {view}" for view, count in Counter(views).items())
        print(f"train views like {name!r}: {counts} ({len(headers)} images, {len(found) - len(headers)} unreadable)")
    return views


def _subsampling(image: JpegImageFile) -> str:
    layers = image.layer  # (component, horizontal, vertical, table)
    if len(layers) == 1:
        return "grey"
    if len(layers) != 3 or layers[1][1:3] != layers[2][1:3] or 0 in layers[1][1:3]:
        return "other"
    (_, h, v, _), (_, h_chroma, v_chroma, _) = layers[:2]
    return SUBSAMPLINGS.get((h / h_chroma, v / v_chroma), "other")

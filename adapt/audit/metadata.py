"""The metadata control: a classifier that sees only what must not matter, a file's header and size."""

import math
import os

import numpy as np
from PIL import JpegImagePlugin

from adapt.data.images import FORMATS, Unreadable, opened, read_bytes
from adapt.data.jpeg import nearest_tables
from adapt.data.manifest import Manifest
from adapt.data.rows import Place
from adapt.errors import Refusal


def describe(file: str | os.PathLike, place: Place | None = None) -> dict[str, float]:
    """Numbers about a file that say nothing of its picture, its name and path left out; raises `Unreadable`.

    `is_jpeg` ... `is_heif` (0/1), `log_bytes`, `width`, `height` (px, before EXIF orientation), `aspect`
    (width / height), `jpeg_quality` (1 to 100, nearest IJG quality; NaN without tables), `subsampling`
    (0 is 4:4:4, 1 4:2:2, 2 4:2:0, -1 other or none), `has_exif` (0/1).
    """
    return describe_bytes(read_bytes(file, place))


def describe_bytes(data: bytes) -> dict[str, float]:
    """`describe` for a file that has been read already."""
    with opened(data) as image:
        width, height = image.size
        container = "JPEG" if image.format == "MPO" else image.format  # MPO: a JPEG followed by further ones
        return {f"is_{name.lower()}": float(container == name) for name in FORMATS} | {
            "log_bytes": math.log(len(data)),
            "width": float(width),
            "height": float(height),
            "aspect": width / height,
            "jpeg_quality": nearest_tables(image)[0],
            "subsampling": float(JpegImagePlugin.get_sampling(image)),
            "has_exif": float("exif" in image.info or "Raw profile type exif" in image.info),
        }


def metadata_logits(manifest: Manifest) -> np.ndarray:
    """Logits (n,) of fake for all rows from a tree of depth 3 fitted on the train split; unreadable rows NaN.

    Refuses a train split without readable images of both classes.
    """
    from sklearn.tree import DecisionTreeClassifier

    rows = [_described(file, manifest.place(row)) for row, file in enumerate(manifest["file"])]
    readable = np.array([row is not None for row in rows], bool)
    train = readable & (manifest["split"] == "train").astype(bool)
    if len(set(manifest.fake[train])) < 2:
        raise Refusal("the metadata control needs readable real and fake images in split train: add train rows")
    table = np.array([list(row.values()) for row in rows if row is not None])
    tree = DecisionTreeClassifier(max_depth=3, class_weight="balanced", random_state=0)
    tree.fit(table[train[readable]], manifest.fake[train])
    # A pure leaf says 0 or 1: held off by 1e-6 so that every logit is finite.
    p = tree.predict_proba(table)[:, 1].clip(1e-6, 1 - 1e-6)
    logits = np.full(len(manifest), np.nan)
    logits[readable] = np.log(p / (1 - p))
    return logits


def _described(file: str, place: Place | None) -> dict[str, float] | None:
    try:
        return describe(file, place)
    except Unreadable:
        return None

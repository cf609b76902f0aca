"""Masks of a listing: what a row becomes by what its mask marks, and masks written anew white on black."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from adapt.data.images import Unreadable
from adapt.data.masks import CHANGED, White, read_mask, size_of
from adapt.files import writing


def masks_folder(output: Path) -> Path:
    """Where masks that are not white on black are written anew."""
    return output.with_suffix(".masks")


def settle(row: dict[str, str], changed: White, empty: str, output: Path) -> None:
    """Look at a row's mask: set a `reason`, let the mask go where it says nothing, or write it white on black.

    `row["mask"]` is relative to the folder of the manifest `output`, and `changed` says how it marks what was changed.
    With `empty` "real" an image whose mask is empty is a photograph. A mask that marks every pixel of an image by a
    generator makes it a fully generated one.
    """
    if not row.get("mask") or row.get("reason"):
        return
    try:
        mask = read_mask(output.parent / row["mask"], size_of(row["file"]), changed)
    except Unreadable as problem:
        if problem.reason == "mask-empty" and empty == "real":
            row |= {"generator": "real", "edit": "", "mask": ""}
        else:
            row["reason"] = problem.reason
        return
    if row["generator"] != "real" and marks_all(mask):
        row["mask"] = ""
    elif changed != "white":
        row["mask"] = write_mask(mask, row["mask"], output)


def marks_all(mask: Image.Image) -> bool:
    """Whether every pixel is marked as changed."""
    return bool((np.asarray(mask) >= CHANGED).all())


def write_mask(mask: Image.Image, name: str, output: Path) -> str:
    """Write a mask, named by the digest of `name`; its path, relative to the folder of the manifest `output`."""
    path = masks_folder(output) / f"{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:32]}.png"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path, "PNG")
    return path.relative_to(output.parent).as_posix()

"""Masks of partly modified images: which pixels were changed, what the row then is, and what is refused."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from PIL import Image

from adapt.data.families import read_families
from adapt.data.images import Unreadable, decode, decoded_size, opened, read_bytes
from adapt.data.manifest import Manifest
from adapt.data.rows import Place
from adapt.errors import Refusal
from adapt.progress import bar

CHANGED = 128  # of 255: a pixel that holds at least half of the change counts as changed
EXTENTS = ("real", "generated", "part")  # nothing was changed, all of it was generated, a part was modified
REAL, GENERATED, PART = range(3)
THREADS = 4  # that read masks

White = Literal["white", "black", "red", "green", "blue"]


def extents(manifest: Manifest) -> np.ndarray:
    """(n,) int: which of `EXTENTS` each row is. Processing of a whole photograph leaves it real."""
    return np.where(manifest["mask"] != "", PART, np.where(manifest.fake, GENERATED, REAL))


def tools(manifest: Manifest, column: Literal["family", "generator"]) -> np.ndarray:
    """(n,) what made or changed each image: `real` for none, the generator or its family, or `edit:NAME` of a part."""
    families = read_families(manifest=manifest)
    made = [families.of(name) if column == "family" else name for name in manifest["generator"]]
    edited = (manifest["mask"] != "") & ~manifest.fake
    return np.array(
        [f"edit:{edit}" if part else name for name, edit, part in zip(made, manifest["edit"], edited, strict=True)],
        dtype=object,
    )


def read_mask(file: str | os.PathLike, size: tuple[int, int] | None = None, changed: White = "white") -> Image.Image:
    """Grey mask of a file, 255 where the pixel is changed; raises `Unreadable` with one of these reasons:

    mask-size if it has not the `size` (width, height) of its image, mask-empty if it marks nothing, and mask-REASON
    where the file gives no pixels. `changed` says how the file marks what was changed: white on black, black on
    white, or by the colour that exceeds both others.
    """
    try:
        data = read_bytes(file)
    except Unreadable as problem:
        raise Unreadable(f"mask-{problem.reason}") from problem
    return decode_mask(data, size, changed)


def decode_mask(data: bytes, size: tuple[int, int] | None = None, changed: White = "white") -> Image.Image:
    """`read_mask` of a file's bytes."""
    try:
        image = decode(data)
    except Unreadable as problem:
        raise Unreadable(f"mask-{problem.reason}") from problem
    if changed in ("white", "black"):
        mask = image.convert("L")
        mask = mask if changed == "white" else mask.point(lambda value: 255 - value)
    else:
        own = ("red", "green", "blue").index(changed)
        pixels = np.asarray(image).astype(np.int16)
        others = np.delete(pixels, own, axis=2).max(axis=2)
        mask = Image.fromarray(np.where(pixels[..., own] - others >= CHANGED // 2, 255, 0).astype(np.uint8))
    if size is not None and mask.size != size:
        raise Unreadable("mask-size")
    if np.asarray(mask).max() < CHANGED:
        raise Unreadable("mask-empty")
    return mask


def size_of(file: str | os.PathLike, place: Place | None = None) -> tuple[int, int]:
    """(width, height) as decoding gives them; `place` as of `read_bytes`; raises `Unreadable`."""
    data = read_bytes(file, place)
    with opened(data) as image:
        return decoded_size(image)


def require_masks(manifest: Manifest) -> None:
    """Refuse a manifest in which a mask is missing, unreadable, empty or of another size than its image.

    An image that cannot be read is left to those who read it: a row with its reason.
    """
    rows = np.flatnonzero(manifest["mask"] != "")

    def problem(row: int) -> str:
        try:
            size = size_of(manifest["file"][row], manifest.place(row))
        except Unreadable:
            return ""
        try:
            read_mask(manifest.mask_files[row], size)
        except Unreadable as error:
            return error.reason
        return ""

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(bar(iterable=pool.map(problem, rows), total=len(rows), unit="mask", desc="masks", leave=False))
    bad = [(row, reason) for row, reason in zip(rows, found, strict=True) if reason]
    if bad:
        row, reason = bad[0]
        counts = ", ".join(f"{n} {reason}" for reason, n in Counter(reason for _, reason in bad).items())
        raise Refusal(
            f"{len(bad)} of {len(rows)} masks do not fit ({counts}), such as {manifest['mask'][row]!r} of "
            f"{manifest['path'][row]!r} ({reason}): correct the masks, or drop these rows"
        )

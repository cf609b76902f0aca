"""How encoding grows: time by images and by views, peak memory, and two processes against one.

The images are one small JPEG with a number in its comment, so that every file has bytes of its own; the encoder is
`tiny`. What is measured is everything around the network, which a larger network would hide. Every run is a process of
its own with an empty cache.
"""

import io
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adapt.benchmark.heads import exponent
from adapt.benchmark.timing import CLOCKS, Ratio, Settings
from adapt.data.manifest import Manifest
from adapt.features.cache import extract
from adapt.models.towers.backbones import load_backbone
from adapt.provenance import peak_memory
from adapt.stop import end_with_parent

SIZES, SMALL = (1_000, 10_000, 100_000), (20, 40, 80)
VIEWS = ("none", "qf90", "qf65", "qf40")


def write_images(folder: Path, count: int) -> Manifest:
    """`count` JPEGs of 96 x 96 pixels that differ in a comment, in subfolders of a thousand, and their manifest."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    head, rest = buffer.getvalue()[:2], buffer.getvalue()[2:]
    names = [f"{i // 1000}/{i}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        if i % 1000 == 0:
            (folder / str(i // 1000)).mkdir()
        (folder / name).write_bytes(head + b"\xff\xfe\x00\x0a" + i.to_bytes(8, "big") + rest)
    columns = {"path": names, "group": names, "generator": ["real"] * count, "split": ["train"] * count}
    return Manifest.of(columns, folder)


def encode(rows: Manifest, views: int, cache: Path, clock: str, threads: int) -> tuple[float, float]:
    """Seconds and peak MiB of encoding all rows; the network is loaded before the clock starts."""
    torch.set_num_threads(threads)
    backbone = load_backbone("tiny")
    extract(backbone, rows.select(np.arange(1)), VIEWS[:views], cache=cache)
    began = CLOCKS[clock]()
    extract(backbone, rows, VIEWS[:views], cache=cache)
    return CLOCKS[clock]() - began, float(peak_memory())


def run(parts: list[Manifest], views: int, settings: Settings) -> tuple[float, float]:
    """One process a part, all at once, one cache: seconds until the slowest is done, greatest peak."""
    cache = Path(tempfile.mkdtemp(dir=settings.folder))
    threads = max(1, torch.get_num_threads() // len(parts))
    try:
        with ProcessPoolExecutor(len(parts), multiprocessing.get_context("spawn"), end_with_parent) as pool:
            jobs = [pool.submit(encode, part, views, cache, settings.clock, threads) for part in parts]
            found = [job.result() for job in jobs]
    finally:
        shutil.rmtree(cache)
    return max(seconds for seconds, _ in found), max(peak for _, peak in found)


def measure(settings: Settings, sizes: tuple[int, ...] = ()) -> list[Ratio]:
    """Each goal is a ratio: 1 where time is linear and memory flat. Two processes share the cores that one has, so
    they gain only what one leaves idle.

    One run each, whatever the rounds: the largest takes minutes.
    """
    return list(_measure(settings, sizes or (SMALL if settings.small else SIZES)))


def _measure(settings: Settings, sizes: tuple[int, ...]) -> Iterator[Ratio]:
    folder = Path(tempfile.mkdtemp(dir=settings.folder))
    rows = write_images(folder, sizes[-1])
    found = {size: run([rows.select(np.arange(size))], 1, settings) for size in sizes}
    first, last = sizes[0], sizes[-1]
    seconds = [found[size][0] for size in sizes]
    facts = {f"seconds, {size:,} images": round(found[size][0], 2) for size in sizes}
    facts |= {"time exponent": round(exponent(list(sizes), seconds), 3), "images/s": round(last / seconds[-1], 1)}
    each = [(s / size,) for size, s in zip(sizes, seconds, strict=True)]
    yield Ratio(
        "growth", "seconds an image", f"{last:,} images", f"{first:,}", each[-1], each[0], goal=0.9, facts=facts
    )
    peaks = {size: (found[size][1],) for size in sizes}
    yield Ratio("growth", "peak memory", f"{last:,} images", f"{first:,}", peaks[last], peaks[first], "MiB", goal=0.8)
    middle = sizes[-2]
    part, single = rows.select(np.arange(middle)), found[middle][0]
    for views in (2, 4):
        cost = run([part], views, settings)[0] / views
        case = f"seconds an image and view, {middle:,} images"
        yield Ratio("growth", case, f"{views} views", "1 view", (cost,), (single,), goal=0.9)
    halves = [rows.select(np.arange(i, middle, 2)) for i in range(2)]
    two = run(halves, 1, settings)[0]
    yield Ratio("growth", f"{middle:,} images", "2 processes", "1 process, same cores", (two,), (single,))
    shutil.rmtree(folder)

"""A small set of matched photographs and fakes, made on demand without network.

One group is one scene: its photograph, the fakes that re-synthesise it, processed copies of the photograph.
"""

import contextlib
import csv
import os
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from adapt.collect import composites
from adapt.data.manifest import Manifest
from adapt.embedded.camera import draw_varied_camera, photograph
from adapt.embedded.filters import one_thread, to_bytes
from adapt.embedded.generators import (
    EDITS,
    FAMILIES,
    HELD_OUT,
    SEEN,
    SELECTION,
    TEST_EDITS,
    TRAIN_EDITS,
    blotches,
    resynthesise,
)
from adapt.embedded.scenes import draw_scene
from adapt.errors import Refusal
from adapt.files import writing

VERSION = 5  # raise it when the same seed gives other bytes
SIZE = 96  # pixels a side
SCENES = (480, 48, 120)  # train, val, test
SPLITS = ("train", "val", "test")
TRACES = {"subtle": 1.0, "planted": 6.0}  # excess of the generators
PLANTED = 0.3  # deviation of the blotches that planted fakes have as well: for quick checks of the machinery
COLUMNS = ("path", "group", "generator", "split", "set", "edit", "family", "source")


def _members(split: str, rng: np.random.Generator) -> list[tuple[str, str]]:
    """The (generator, edit) of a group's images."""
    fakes = {"train": SEEN, "val": SEEN + SELECTION, "test": SEEN + HELD_OUT}[split]
    edits = TRAIN_EDITS + TEST_EDITS if split == "test" else tuple(rng.permutation(TRAIN_EDITS)[:1])
    return [("real", ""), *((fake, "") for fake in fakes), *(("real", str(edit)) for edit in edits)]


def make_group(seed: int, split: str, index: int, trace: str = "subtle") -> dict[tuple[str, str], np.ndarray]:
    """Images of one scene: {(generator, edit): uint8 (SIZE, SIZE, 3)}, a pure function of the arguments."""
    rng = np.random.default_rng([VERSION, seed, SPLITS.index(split), index])
    photo = photograph(draw_scene(rng, SIZE).light, draw_varied_camera(rng), rng)
    images = {}
    for generator, edit in _members(split, rng):
        if edit:
            image = EDITS[edit](photo, rng)
        elif generator == "real":
            image = photo
        else:
            image = resynthesise(generator, photo, rng, TRACES[trace])
            image = image + PLANTED * blotches(rng, SIZE) if trace == "planted" else image
        images[generator, edit] = to_bytes(image)
    return images


def _write_group(job: tuple[str, int, str, int, str]) -> list[tuple[str, ...]]:
    folder, seed, split, index, trace = job
    group = f"{split}-{index:05d}"
    rows: list[tuple[str, ...]] = []
    for (generator, edit), pixels in make_group(seed, split, index, trace).items():
        path = f"{split}/{index:05d}-{edit or generator}.png"
        Image.fromarray(pixels).save(Path(folder) / path, compress_level=1)
        family = "real" if generator == "real" else FAMILIES[generator]
        rows.append((path, group, generator, split, "embedded", edit, family, "embedded"))
    return rows


def _write_world(folder: Path, seed: int, scenes: Sequence[int], trace: str, processes: int) -> None:
    jobs = [(str(folder), seed, split, i, trace) for split, n in zip(SPLITS, scenes, strict=True) for i in range(n)]
    for split in SPLITS:
        (folder / split).mkdir()
    if processes > 1 and len(jobs) > 60:  # starting processes costs more than a few scenes
        with get_context("spawn").Pool(processes, one_thread) as pool:
            groups = pool.map(_write_group, jobs, chunksize=8)
    else:
        with threadpool_limits(1):
            groups = [_write_group(job) for job in jobs]
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(row for rows in groups for row in rows)


def make_world(
    folder: str | os.PathLike,
    seed: int = 0,
    scenes: tuple[int, int, int] = SCENES,
    trace: str = "subtle",
    processes: int = 2,
) -> Path:
    """Write the images and `manifest.csv` below `folder`; returns the manifest's path.

    `scenes` counts the groups of train, val and test; `trace` is "subtle" or "planted" (an easy world for
    quick checks). The bytes depend on version, seed, scenes and trace only, never on `processes`. The folder
    appears whole or not at all, also when two processes ask at once; a world of the same parameters that is
    already there is kept, anything else under that name is refused.
    """
    if trace not in TRACES:
        raise Refusal(f"trace {trace!r} is unknown: use one of {', '.join(TRACES)}")
    folder = Path(folder).absolute()
    stamp = f"version {VERSION} seed {seed} scenes {' '.join(map(str, scenes))} trace {trace}\n"
    if not folder.exists() or not any(folder.iterdir()):
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        if sum(scenes) > 100:
            print("drawing the embedded world: once, about half a minute", file=sys.stderr)
        with writing(folder), tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as parent:
            fresh = Path(parent) / "world"
            fresh.mkdir()
            _write_world(fresh, seed, scenes, trace, processes)
            (fresh / "world.txt").write_text(stamp, encoding="utf-8")
            with contextlib.suppress(OSError):  # another process was first: its world has the same bytes
                fresh.replace(folder)
    found = folder / "world.txt"
    if not found.is_file() or found.read_text(encoding="utf-8") != stamp:
        raise Refusal(f"{folder} holds something else than this world ({stamp.strip()}): choose another folder")
    return folder / "manifest.csv"


def embedded_manifest(seed: int = 0, scenes: tuple[int, int, int] = SCENES, trace: str = "subtle") -> Path:
    """Manifest of the embedded world in `$ADAPT_CACHE` (default ~/.cache/adapt), made on the first call."""
    cache = Path(os.environ.get("ADAPT_CACHE") or Path.home() / ".cache" / "adapt")
    sizes = "-".join(map(str, scenes))
    return make_world(cache / f"world-v{VERSION}-{trace}-seed{seed}-{sizes}", seed, scenes, trace)


def embedded_composites(seed: int = 0, scenes: tuple[int, int, int] = SCENES, trace: str = "subtle") -> Path:
    """Manifest of partly modified images of `embedded_manifest`, in the cache beside it, made on the first call."""
    world = embedded_manifest(seed, scenes, trace).parent
    folder = world.with_name(f"{world.name}-composites-v{composites.VERSION}")
    if not (folder / "manifest.csv").is_file():
        print("compositing the embedded world: once, about half a minute", file=sys.stderr)
        with writing(folder), tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as parent:
            fresh = Path(parent) / "world"
            rows, recipe = Manifest.read(world / "manifest.csv"), composites.Recipe(seed)
            composites.write_composites(rows, fresh / "manifest.csv", recipe, processes=2)
            with contextlib.suppress(OSError):  # another process was first: its images have the same bytes
                fresh.replace(folder)
    return folder / "manifest.csv"

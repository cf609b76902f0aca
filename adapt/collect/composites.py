"""Partly modified images from matched groups: a region of a fake, or of an ordinary edit, placed into its photograph.

A photograph and its fakes show one scene, so any region of a fake fits into the photograph and its mask is known. A
composite of a fake has the fake's `generator` and is a fake. An ordinary edit (`EDITS`) stays `real` and has an
`edit`, as processing of whole photographs has; its `mask` says that it is a part. What is outside a mask is the
photograph, bit for bit: copies are PNG, and compression is a view that comes afterwards.
"""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from adapt.collect.regions import SHAPES, draw_region, soften
from adapt.data.images import Unreadable, read_image
from adapt.data.manifest import Manifest
from adapt.data.masks import CHANGED
from adapt.data.rows import MEMBER, place_of
from adapt.errors import Refusal
from adapt.files import atomic, sha256, writing
from adapt.progress import bar
from adapt.stop import end_with_parent

VERSION = 1  # raise it when the same seed gives other bytes
KEPT = ("group", "generator", "split", "set", "edit", "family")  # columns of the photograph or the fake that stay
COLUMNS = ("path", "mask", *KEPT, "source", "shape", "share", "sha256")
LOST = ("file", "group", "generator", "reason")


@dataclass(frozen=True)
class Recipe:
    """What is composited of every group."""

    seed: int = 0
    parts: int = 1  # of each fake
    edits: tuple[str, ...] = ("copy-move", "splice", "local-blur", "local-brightness")  # one of each
    low: float = 0.01  # smallest share of the area that is changed
    high: float = 0.6  # largest; shares are drawn evenly on a logarithmic scale
    soft: float = 0.5  # share of the regions with a soft edge


def composite(photo: Image.Image, changed: Image.Image, mask: Image.Image) -> Image.Image:
    """photo + (changed - photo) * mask / 255 in each channel, rounded; where the mask is 0 it is the photograph."""
    alpha = np.asarray(mask)[..., None].astype(np.uint16)
    mixed = np.asarray(changed) * alpha + np.asarray(photo) * (255 - alpha)  # at most 255 * 255
    return Image.fromarray(((mixed + 127) // 255).astype(np.uint8))


def copy_move(photo: Image.Image, donor: Image.Image, draw: np.random.Generator) -> Image.Image:
    """The photograph moved by an eighth to a half of its shorter side, continued by reflection."""
    reach = min(photo.size) // 2
    angle, far = draw.uniform(0, 2 * np.pi), draw.uniform(reach / 4, reach)
    down, right = (reach + round(far * turn) for turn in (np.sin(angle), np.cos(angle)))
    padded = np.pad(np.asarray(photo), ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    return Image.fromarray(padded[down : down + photo.height, right : right + photo.width])


def splice(photo: Image.Image, donor: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Another photograph, scaled and cropped to this one's size where it has another."""
    return ImageOps.fit(donor, photo.size, Image.Resampling.BICUBIC) if donor.size != photo.size else donor


def local_blur(photo: Image.Image, donor: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Gaussian blur of 1 to 3 pixels."""
    return photo.filter(ImageFilter.GaussianBlur(draw.uniform(1, 3)))


def local_brightness(photo: Image.Image, donor: Image.Image, draw: np.random.Generator) -> Image.Image:
    """All channels times 1.15 to 1.5, or divided by as much."""
    gain = draw.uniform(1.15, 1.5) ** draw.choice([-1, 1])
    return photo.point(lambda value: min(255, round(value * gain)))


EDITS = {
    "copy-move": copy_move,
    "splice": splice,
    "local-blur": local_blur,
    "local-brightness": local_brightness,
}


def write_composites(manifest: Manifest, output: Path, recipe: Recipe = Recipe(), processes: int = 1) -> Path:
    """Write PNG composites, their masks and the manifest of both; returns it. `output` names a .csv or .parquet file.

    Every pixel depends on the recipe, the group's name and the group's images alone (a splice also on those of the
    split's next group). A group without an unedited photograph has none; a member that cannot be read, or is not of
    its photograph's size, is a line of OUTPUT.lost.csv. The manifest holds composites only: give both to a run.
    """
    if output.suffix.lower() not in (".csv", ".parquet"):
        raise Refusal(f"output {str(output)!r}: name a .csv or .parquet file, the manifest to write")
    if unknown := [name for name in recipe.edits if name not in EDITS]:
        raise Refusal(f"unknown edit {unknown[0]!r}: choose from {', '.join(EDITS)}")
    if not 0 < recipe.low <= recipe.high < 1 or recipe.parts < 0:
        given = f"low {recipe.low}, high {recipe.high}, parts {recipe.parts}"
        raise Refusal(f"{given}: give shares with 0 < low <= high < 1, and no negative number of parts")
    jobs = list(_jobs(manifest, output.with_suffix(".images"), recipe))
    if not jobs:
        raise Refusal("no group has a photograph and something to place into it: give matched groups, or --edits")
    if processes > 1 and len(jobs) > 60:  # starting processes costs more than a few groups
        with get_context("spawn").Pool(processes, end_with_parent) as pool:
            made = pool.imap(_write_group, jobs, 8)
            found = list(bar(iterable=made, total=len(jobs), unit="group", desc="composite"))
    else:
        found = [_write_group(job) for job in bar(iterable=jobs, unit="group", desc="composite")]
    rows, lost = ([row for pair in found for row in pair[kind]] for kind in (0, 1))
    if not rows:
        raise Refusal(f"none of {len(jobs)} groups could be composited, for one because of {lost[0]['reason']}")
    _write_lost(lost, output.with_suffix(".lost.csv"))
    Manifest.of({name: [row[name] for row in rows] for name in COLUMNS}, output.parent).write(output)
    return output


@dataclass(frozen=True)
class _Job:
    """One group: the photograph, what is placed into it, and where the files go."""

    recipe: Recipe
    stem: Path
    photo: dict[str, str]
    fakes: Sequence[dict[str, str]]
    donor: dict[str, str]


def _jobs(manifest: Manifest, folder: Path, recipe: Recipe) -> Iterator[_Job]:
    """A job for each group with a photograph; photographs of one split lend each other regions in a circle."""
    whole = manifest["mask"] == ""
    plain = whole & ~manifest.fake & (manifest["edit"] == "")
    members = [(rows[plain[rows]][:1], rows[whole[rows] & manifest.fake[rows]]) for rows in manifest.groups()]
    members = [(int(photo[0]), fakes) for photo, fakes in members if len(photo)]
    circles: dict[str, list[int]] = {}
    for photo, _ in members:
        circles.setdefault(manifest["split"][photo], []).append(photo)
    donors = {row: circle[(i + 1) % len(circle)] for circle in circles.values() for i, row in enumerate(circle)}

    def facts(row: int) -> dict[str, str]:
        return {name: str(manifest[name][row]) for name in ("file", *KEPT, "sha256")} | {
            name: str(manifest[name][row]) for name in MEMBER if name in manifest.columns
        }

    for number, (photo, fakes) in enumerate(members):
        if (recipe.parts and len(fakes)) or recipe.edits:
            stem = folder / manifest["split"][photo] / f"{number:06d}"
            yield _Job(recipe, stem, facts(photo), [facts(row) for row in fakes], facts(donors[photo]))


def _write_group(job: _Job) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of the composites of one group, and of what could not be composited."""
    rows, lost, recipe = [], [], job.recipe
    job.stem.parent.mkdir(parents=True, exist_ok=True)
    try:
        photo = _read(job.photo)
    except Unreadable as problem:
        return [], [_lost(job.photo, problem.reason)]
    for number, fake in enumerate(job.fakes if recipe.parts else ()):
        try:
            image = _read(fake)
            if image.size != photo.size:
                raise Unreadable("other-size")
        except Unreadable as problem:
            lost.append(_lost(fake, problem.reason))
            continue
        for part in range(recipe.parts):
            draw = _draw(recipe.seed, fake["group"], fake["generator"], part)
            made = _place(job, f"{number}-{part}", photo, image, fake, draw)
            (rows if made else lost).append(made or _lost(fake, "no-change"))
    for number, edit in enumerate(recipe.edits):
        draw, row = _draw(recipe.seed, job.photo["group"], f"edit:{edit}", 0), job.photo | {"edit": edit}
        try:
            donor = _read(job.donor) if edit == "splice" else photo
        except Unreadable as problem:
            lost.append(_lost(row, f"donor: {problem.reason}"))
            continue
        made = _place(job, f"e{number}", photo, EDITS[edit](photo, donor, draw), row, draw)
        (rows if made else lost).append(made or _lost(row, "no-change"))
    return rows, lost


def _place(
    job: _Job, name: str, photo: Image.Image, changed: Image.Image, row: dict[str, str], draw: np.random.Generator
) -> dict[str, str] | None:
    """Write one composite and its mask; returns its row, or None where the region would hold no change."""
    recipe = job.recipe
    share = float(np.exp(draw.uniform(np.log(recipe.low), np.log(recipe.high))))
    shape = SHAPES[draw.integers(len(SHAPES))]
    region = draw_region(photo, shape, share, draw, recipe.low, recipe.high)
    radius = draw.uniform(0.5, 3) if draw.uniform() < recipe.soft else 0.0
    mask = soften(region, radius, recipe.low, recipe.high)
    image = composite(photo, changed, mask)
    if image.tobytes() == photo.tobytes():
        return None
    paths = [job.stem.with_name(f"{job.stem.name}-{name}{ending}.png") for ending in ("", "-mask")]
    for path, picture in zip(paths, (image, mask), strict=True):
        with writing(path):
            picture.save(path, "PNG", compress_level=1)
    home = job.stem.parents[2]
    area = float((np.asarray(mask) >= CHANGED).mean())
    made = {column: row[column] for column in KEPT} | {"source": "composite", "shape": shape, "share": f"{area:.4f}"}
    made |= {"path": paths[0].relative_to(home).as_posix(), "mask": paths[1].relative_to(home).as_posix()}
    return made | {"sha256": sha256(paths[0])}


def _read(row: dict[str, str]) -> Image.Image:
    return read_image(row["file"], row["sha256"], place_of(*(row.get(name, "") for name in MEMBER)))


def _draw(seed: int, *names: object) -> np.random.Generator:
    """Generator of all choices for one composite, whatever else is made."""
    key = "/".join(f"{name!a}" for name in (VERSION, seed, *names))
    return np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))


def _lost(row: dict[str, str], reason: str) -> dict[str, str]:
    return {"file": row["file"], "group": row["group"], "generator": row["generator"], "reason": reason}


def _write_lost(rows: Sequence[dict[str, str]], path: Path) -> None:
    with (
        atomic(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        out = csv.DictWriter(file, LOST, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)

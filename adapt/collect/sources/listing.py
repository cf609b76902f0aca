"""What sources that list folders share: a safe walk, a choice of images that stays, the families of a CSV."""

import hashlib
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from adapt.cli import at_least
from adapt.collect.sources.output import Output
from adapt.data.families import read_families
from adapt.data.manifest import split_by_group
from adapt.errors import Refusal
from adapt.files import too_many_files

IMAGES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".jpx")
# Meant as images, but read with the extra `heic` only, or by nothing: each else becomes a lost row with its reason.
UNREAD = (".heic", ".heif", ".hif", ".jxl")
OURS = (".parts", ".shards", ".images", ".aligned", ".masks")  # folders that this package wrote
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")  # what others call the three splits


@dataclass(frozen=True, kw_only=True)
class Listing(Output):
    """Options of the sources that list one folder."""

    folder: Path  # holds the images
    set: str = ""  # name of the benchmark; empty: that of the folder
    per_class: int | None = None  # images to keep of each generator in each set and split; None: all
    real: int | None = None  # camera images to keep in each set and split; None: all
    families: Path | None = None  # CSV with the columns generator,family: fills the column `family`

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("per_class", "real"):
            if getattr(self, name) is not None:
                at_least(1, self, name)

    @property
    def name(self) -> str:
        return self.set or Path(os.path.realpath(self.folder)).name

    def files(self) -> list[str]:
        """Images under `folder`, relative to it."""
        return walk(self.folder, self.home([self.folder]))

    def write(
        self, rows: Iterable[dict[str, str]], fetch: Callable[[list[dict[str, str]]], object] | None = None
    ) -> Path | None:
        """`write_listing` of the chosen rows, whose `file` is still relative to `folder`."""
        rows = limit(self.renamed(rows), self.per_class, self.real, self.seed)
        if self.split == "auto":
            draw_val(rows, self.seed, self.val)
        if self.families is not None:
            add_families(rows, self.families)
        root = os.path.realpath(self.folder)
        return self.write_listing([row | {"file": f"{root}/{row['file']}"} for row in rows], [self.folder], fetch)


def walk(folder: Path, within: Path | None = None) -> list[str]:
    """Image files under `folder` by their extension, as names relative to it, in the order of their bytes.

    Hidden files and folders, `__MACOSX` and what this package wrote are left out; other files are left out and
    counted in a printed line. A link to a folder is followed unless the folder is listed anyway, so that a loop ends
    and no file comes twice by it. Refuses a link that leaves `within` (default: `folder`): a manifest there could
    not hold the image.
    """
    if not folder.is_dir():
        raise Refusal(f"{str(folder)!r} is no folder: name the one that holds the images")
    root, fence = os.path.realpath(folder), os.path.realpath(within or folder)
    images, others = [], Counter()
    met, waiting, links = set(), [""], []
    while waiting or links:
        if not waiting:  # links come last, when everything has been listed under its own name
            links.sort(key=os.fsencode, reverse=True)
            waiting.append(links.pop())
        name = waiting.pop()
        place = os.path.realpath(f"{root}/{name}")
        if place in met:
            continue
        met.add(place)
        for entry in _entries(place):
            inner = f"{name}/{entry.name}" if name else entry.name
            link = entry.is_symlink()
            # not is_dir for a link, which raises where links turn in a circle
            is_folder = Path(entry.path).is_dir() if link else entry.is_dir()
            if entry.name.startswith(".") or (is_folder and _is_foreign(entry.name)):
                others["hidden or written by tools"] += 1
                continue
            if link and os.path.commonpath([os.path.realpath(entry.path), fence]) != fence:
                raise Refusal(f"{entry.path!r} is a link that leaves {fence!r}: name an --output above all images")
            if is_folder:
                (links if link else waiting).append(inner)
            elif (suffix := posixpath.splitext(entry.name)[1].lower()) in IMAGES + UNREAD:
                images.append(inner)
            else:
                others[suffix if re.fullmatch(r"\.[a-z0-9]{1,9}", suffix) else "no known suffix"] += 1
    if others:
        print(f"under {str(folder)!r} left out: {', '.join(f'{n} {what}' for what, n in sorted(others.items()))}")
    return sorted(images, key=os.fsencode)


def limit(rows: list[dict[str, str]], per_class: int | None, real: int | None, seed: int) -> list[dict[str, str]]:
    """At most `per_class` rows of each generator, and `real` camera images, in each set, split and edit.

    Drawn by the hash of (seed, group), whatever else is there and in any order: a new file moves at most one other
    out. Groups with more generators come first, so where generators share groups the same whole groups are kept.
    Rows with a `reason` are kept. What cannot be read is found out later and counts here.
    """
    generators: dict[str, set[str]] = {}
    for row in rows:
        generators.setdefault(row["group"], set()).add(row["generator"])

    def rank(row: dict[str, str]) -> tuple[int, bytes, str]:
        # "limit": the hash of the splits would keep the images of one split
        key = json.dumps(["limit", seed, row["group"]]).encode()
        return -len(generators[row["group"]]), hashlib.sha256(key).digest(), row["file"]

    classes: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        if "reason" not in row:
            kind = tuple(row.get(column, "") for column in ("set", "split", "generator", "edit"))
            classes.setdefault(kind, []).append(row)
    gone = set()
    for (_, _, generator, _), members in classes.items():
        most = real if generator == "real" else per_class
        if most is not None:
            gone |= {id(row) for row in sorted(members, key=rank)[most:]}
    return [row for row in rows if id(row) not in gone]


def draw_val(rows: list[dict[str, str]], seed: int, val: float) -> None:
    """Where a layout has a train split and no val split, a share of the train groups becomes one."""
    if "val" not in {row.get("split") for row in rows}:
        train = [row for row in rows if row.get("split") == "train"]
        for row, split in zip(train, split_by_group([row["group"] for row in train], seed, val, 0), strict=True):
            row["split"] = str(split)


def add_families(rows: list[dict[str, str]], path: Path) -> None:
    """Fill `family` from a CSV over the built-in table; generators that neither holds are named and count as other."""
    families = read_families(path)
    for row in rows:
        row["family"] = families.of(row["generator"])
    if unknown := families.unknown(row["generator"] for row in rows if "reason" not in row):
        print(f"neither {path} nor the built-in table has {', '.join(unknown)}: family `other`")


def _entries(place: str) -> list[os.DirEntry]:
    try:
        with os.scandir(place) as entries:
            return list(entries)
    except OSError as error:
        if too_many_files(error):
            raise
        raise Refusal(f"cannot list {place!r}: {error.strerror}; make it readable or move it away") from error


def _is_foreign(name: str) -> bool:
    return name == "__MACOSX" or name.endswith(OURS)

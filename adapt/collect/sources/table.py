"""Any CSV or Parquet tables of images: say which column holds what; missing files are fetched from their URLs.

    adapt prepare table --table list.csv --folder data --path image --label class --split_column split
    adapt prepare table --table commercial_tools.csv --folder data --path filename --generator typ \\
        --matched --split test --set commercial
    adapt prepare table --table viral.csv --folder data/viral --path filename --label label --url url \\
        --group source_id --split test --set viral
    adapt prepare table --table urls.parquet --url URL --caption TEXT --generator model --real photo
    adapt prepare table --reals raise1k.csv --fakes dalle3=dalle3.csv flux=flux.csv --folder data --path image
    adapt prepare table --table shard_0/labels.csv shard_1/labels.csv --beside images --path image_name --label label
    adapt prepare table --table images.csv --path file --label fake --generator_from path:2
    adapt prepare table --table NC2016-manipulation-ref.csv --folder data/NC2016_Test0613 --path ProbeFileName \
        --label IsTarget --real N --mask ProbeMaskFileName --changed black --edit nist16 --group BaseFileName

The first is SPAI's list (image,class,split), the second ClipBased's 1,000 matched quintuples, the third B-Free's
viral set, the fifth lists of one class each, the sixth NTIRE 2026, whose shards have images in a folder beside their
list, the last NIST16. --generator names the generator of each row, with a value of --real for a camera image;
--generator_from path:N takes the N-th part of the path (path:-1 is the file); with --label alone, whose other values
are fakes, all fakes are `SET-fake`; with both, the label decides what is real. With --beside, paths begin below the
folder that holds all tables. A row with a --mask was changed in
part: by its generator or, with --edit, by that ordinary edit of a photograph. Splits may be
called train, training, val, valid, validation, dev, test or testing. Where the cell is empty they are drawn by group,
and where no row is val, val is drawn from train. A row whose image is not there, whose path leaves the folder, that
has no label or one that cannot be printed, or that another row repeats, is lost with its reason.

With --url, images that are not there are fetched into a folder beside the manifest. A link that failed is never asked
again, unless --again is given and the failure may pass (time-outs, a host that was down); it stands in the table of
lost images with its reason. Each of --num_shards jobs fetches for itself: keep their number.
"""

import functools
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from adapt.collect.builder import forget
from adapt.collect.download import Report, download
from adapt.collect.sources.listing import SPLITS, draw_val
from adapt.collect.sources.output import Output, among
from adapt.collect.sources.partial import settle
from adapt.data.masks import White
from adapt.data.rows import split_member
from adapt.data.tables import read_table
from adapt.errors import Refusal

COLUMNS = ("path", "url", "generator", "label", "group", "split_column", "set_column", "family", "caption", "mask")


@dataclass(frozen=True)
class _Table:
    """A table, and what made all its images: `real`, a generator, or "" where its columns tell."""

    path: Path
    made: str


@dataclass(frozen=True, kw_only=True)
class Source(Output):
    table: tuple[Path, ...] = ()  # .csv or .parquet tables, whose columns tell the class
    reals: tuple[Path, ...] = ()  # tables of camera images alone
    fakes: tuple[str, ...] = ()  # NAME=TABLE: tables of one generator's images alone
    folder: Path | None = None  # that paths are relative to; default: that of the manifest or, without it, the table
    beside: str = ""  # folder beside each table that its paths are relative to, such as images; . is the table's own
    path: str = ""  # column of file names (shard.tar::member too)
    url: str = ""  # column of addresses
    generator: str = ""  # column of generators' names
    generator_from: str = ""  # path:N, the N-th part of the path; path:-2 is the folder that holds the file
    label: str = ""  # column that tells camera images from fakes
    real: tuple[str, ...] = ("real", "0")  # values of the label, else of the generator, that mean a camera image
    fake: tuple[str, ...] = ()  # values of the label that mean a fake, all others are lost; empty: all but --real
    group: str = ""  # column of scenes; empty: each image is its own group
    matched: bool = False  # files of one name (without folder and suffix) show one scene and form a group
    split_column: str = ""  # column of splits
    set_column: str = ""  # column of benchmarks
    set: str = ""  # name of the benchmark where no column says it; empty: that of the table, or of their folder
    family: str = ""  # column of families
    caption: str = ""  # column of captions
    mask: str = ""  # column of masks of what was changed, whose paths are as those of the images
    changed: White = "white"  # how masks mark what was changed
    edit: str = ""  # the ordinary edit of rows with a mask; empty: they were changed by generators
    again: bool = False  # ask again for links whose failure may have passed

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.path or self.url):
            raise Refusal("name the column of file names with --path, or that of addresses with --url")
        if not (self.table or self.reals or self.fakes):
            raise Refusal("--table: name the table of images, or those of one class with --reals and --fakes")
        if self.table and not (self.generator or self.label or self.generator_from):
            raise Refusal("name the column of generators with --generator, or that of labels with --label")
        if self.generator_from and not (self.path and re.fullmatch("path:-?[1-9][0-9]*", self.generator_from)):
            raise Refusal(f"--generator_from {self.generator_from}: write path:N, such as path:2, and name --path")
        if wrong := [pair for pair in self.fakes if not all(pair.partition("=")[::2])]:
            raise Refusal(f"--fakes {wrong[0]}: write NAME=TABLE, such as dalle3=dalle3.csv")
        if self.folder is not None and self.beside:
            raise Refusal("--folder and --beside both say what paths are relative to: leave one out")
        if self.edit and not self.mask:
            raise Refusal(f"--edit {self.edit}: name the column of masks with --mask")
        if self.matched and (self.group or not self.path):
            raise Refusal("--matched makes groups by the names in --path: leave --group out and name --path")

    def prepare(self, ask: Callable[..., Report] = download) -> Path | None:
        tables = self._tables()
        common = Path(os.path.commonpath([os.path.realpath(table.path.parent) for table in tables]))
        folder = self.folder or (common if self.output is None or self.beside else self.output.parent)
        output = self.home([folder]) / (self.output.name if self.output else "manifest.csv")
        if clash := [table.path for table in tables if os.path.realpath(table.path) == os.path.realpath(output)]:
            raise Refusal(f"{clash[0]} would be overwritten: name another file with --output")
        if self.again:  # look anew at what was fetched
            forget(output, self.shard, self.num_shards)
        own = self.set or (tables[0].path.stem if len(tables) == 1 else common.name)
        is_inside, rows, labels = _fence(output.parent), [], {}
        for table in tables:
            root = os.path.realpath(table.path.parent / self.beside if self.beside else folder)
            below = os.path.relpath(root, common) if self.beside and len(tables) > 1 else ""
            columns = self._read(table)
            labels |= dict.fromkeys(columns.get("label", ()))
            for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
                given = dict(zip(columns, cells, strict=True))
                places = {name: _locate(root, is_inside, given[name]) for name in ("path", "mask") if given.get(name)}
                name = posixpath.join(below, given.get("path") or given.get("url", ""))
                row = self._describe(given, own, name, table.made)
                row |= {"split": self._split(given, f"{table.path}, row {number}")} if self.split_column else {}
                rows.append(row | self._place(row, places, output.parent))
        _mark_repeats(rows)
        if labels and not any(row["generator"] == "real" for row in rows):
            found = ", ".join(list(labels)[:5])
            raise Refusal(f"--real {' '.join(self.real)}: --label {self.label} says {found}; name the values of reals")
        rows = self.renamed(rows)
        if self.split == "auto":
            draw_val(rows, self.seed, self.val)
        images = output.with_suffix(".images") / f"{self.shard}-of-{self.num_shards}"

        def complete(mine: list[dict[str, str]]) -> None:
            if self.url:
                _fetch(os.path.realpath(folder), images, functools.partial(ask, again=self.again), mine)
            for row in mine:
                settle(row, self.changed, "lost", output)

        return self.write_listing(rows, [folder], complete if self.url or self.mask else None)

    def _tables(self) -> list[_Table]:
        """All tables: those whose columns tell the class, and those of one class."""
        pairs = [pair.partition("=")[::2] for pair in self.fakes]
        tables = [_Table(path, "") for path in self.table] + [_Table(path, "real") for path in self.reals]
        tables += [_Table(Path(path), name) for name, path in pairs]
        met: set[str] = set()
        for table in tables:
            if not table.path.is_file():
                raise Refusal(f"--table {table.path}: no such file")
            if (real := os.path.realpath(table.path)) in met:
                raise Refusal(f"{table.path} is named twice: say once what it holds")
            met.add(real)
        return tables

    def _read(self, table: _Table) -> dict[str, np.ndarray]:
        """Cells by the option that names their column; a table of one class needs none that tells the class."""
        found = read_table(table.path)
        names = {option: getattr(self, option) for option in COLUMNS if getattr(self, option)}
        if table.made:
            names = {option: name for option, name in names.items() if option not in ("label", "generator")}
        for option, name in names.items():
            if name not in found:
                raise Refusal(f"--{option} {name}: {table.path} has only the columns {', '.join(found) or 'none'}")
        return {option: found[name] for option, name in names.items()}

    def _describe(self, given: dict[str, str], own: str, name: str, made: str) -> dict[str, str]:
        """What a row says of its image; `name` tells it from all others, `made` is the class of the whole table."""
        scene = PurePosixPath(name).stem if self.matched else given.get("group") or name
        row = {"set": given.get("set_column") or own, "group": f"{own}/{scene}"}
        generator = made or given.get("generator", "").strip() or self._in_path(name)
        label = given.get("label", generator).strip()
        is_real = among(label, self.real)
        row["generator"] = "real" if is_real else generator or f"{own}-fake"
        if not label:
            row |= {"generator": "unknown", "reason": "no-label"}
        elif self.fake and "label" in given and not is_real and not among(label, self.fake):
            row |= {"generator": "unknown", "reason": "other-label"}
        elif not row["generator"].isprintable():
            row |= {"generator": "unknown", "reason": "bad-label"}
        if not is_real and given.get("family"):
            row["family"] = given["family"]
        return row | {name: given[name] for name in ("url", "caption") if given.get(name)}

    def _in_path(self, path: str) -> str:
        """The part of a path that --generator_from names; empty where the path has no such part."""
        parts, number = PurePosixPath(path).parts, int(self.generator_from.partition(":")[2] or 0)
        at = number - 1 if number > 0 else number
        return parts[at] if number and -len(parts) <= at < len(parts) else ""

    def _split(self, given: dict[str, str], where: str) -> str:
        word = given["split_column"].strip().lower()
        if word and word not in SPLITS:
            raise Refusal(
                f"{where}: {given['split_column']!r} is no split, but one of {', '.join(SPLITS)}: "
                f"correct the column {self.split_column}"
            )
        return SPLITS.get(word, "")

    def _place(self, row: dict[str, str], places: dict[str, tuple[str, str]], home: Path) -> dict[str, str]:
        """`file` and `mask` of a row, and a `reason` where a manifest in `home` cannot hold them."""
        file, reason = places.get("path", ("", ""))
        found = {"file": file}
        if reason or not (file or row.get("url")):
            found["reason"] = row.get("reason") or reason or "no-path"
        if self.mask and row["generator"] not in ("real", "unknown"):
            mask, reason = places.get("mask", ("", ""))
            found |= {"generator": "real", "edit": self.edit} if self.edit else {}
            if mask and not reason:
                found["mask"] = os.path.relpath(mask, home)
            elif reason or self.edit:  # without a mask an image by a generator is one as a whole
                found.setdefault("reason", row.get("reason") or f"mask-{reason or 'missing'}")
        return found


def _mark_repeats(rows: list[dict[str, str]]) -> None:
    """Give a reason to rows whose image another row has, too."""
    of: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        of.setdefault(row["file"] or row.get("url", ""), []).append(row)
    for first, *others in of.values():
        agree = all(row["generator"] == first["generator"] for row in others)
        for row in others if agree else (first, *others):
            row.setdefault("reason", "listed-twice" if agree else "two-labels")


def _fence(home: Path) -> Callable[[str], bool]:
    """Whether a folder lies in `home`, links followed: one look at each folder, not one for each of its files."""
    return functools.cache(lambda folder: Path(os.path.realpath(folder)).is_relative_to(home))


def _locate(root: str, is_inside: Callable[[str], bool], path: str) -> tuple[str, str]:
    """Absolute name of a table's path, and a reason if no manifest may hold it."""
    archive, member = split_member(path)
    file = posixpath.normpath(posixpath.join(root, archive))
    outside = "\0" in path or not file.startswith(f"{root}/") or not is_inside(posixpath.dirname(file))
    outside = outside or member.startswith("/") or ".." in member.split("/")
    if outside or (posixpath.islink(file) and not is_inside(file)):
        return path, "outside"
    return f"{file}::{member}" if member else file, ""


def _fetch(root: str, folder: Path, ask: Callable[..., Report], rows: list[dict[str, str]]) -> None:
    """Give each row whose file is not there a downloaded one, or the reason why not."""
    wanted = {}
    for row in rows:
        if "reason" not in row and row.get("url") and not posixpath.exists(split_member(row["file"])[0]):
            # not the absolute name: a folder that moved is still known to the download
            wanted[row["file"].removeprefix(f"{root}/") or row["url"]] = row
    urls = [(key, row["url"]) for key, row in wanted.items()]
    urls.sort(key=lambda pair: hashlib.sha256(json.dumps(pair).encode()).digest())  # no host's in a row
    found = {outcome.key: outcome for outcome in ask(urls, folder).outcomes()} if urls else {}
    taken = set()
    for key, row in wanted.items():
        if found[key].reason != "ok":
            row["reason"] = found[key].reason
        elif found[key].path in taken:  # equal bytes are one file there
            row["reason"] = "same-bytes-twice"
        else:
            taken.add(found[key].path)
            row["file"] = os.path.realpath(found[key].path)

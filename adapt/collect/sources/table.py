"""Any CSV or Parquet table of images: say which column holds what; missing files are fetched from their URLs.

    adapt prepare table --table list.csv --folder data --path image --label class --split_column split
    adapt prepare table --table commercial_tools.csv --folder data --path filename --generator typ \\
        --matched --split test --set commercial
    adapt prepare table --table viral.csv --folder data/viral --path filename --label label --url url \\
        --group source_id --split test --set viral
    adapt prepare table --table urls.parquet --url URL --caption TEXT --generator model --real photo

The first is SPAI's list (image,class,split), the second ClipBased's 1,000 matched quintuples, the third B-Free's
viral set. --generator names the generator of each row, with a value of --real for a camera image; with --label alone,
whose other values are fakes, all fakes are `SET-fake`; with both, the label decides what is real. Splits may be
called train, training, val, valid, validation, dev, test or testing. Where the cell is empty they are drawn by group,
and where no row is val, val is drawn from train. A row whose image is not there, whose path leaves the folder, that
has no label, or that another row repeats, is lost with its reason.

With --url, images that are not there are fetched into a folder beside the manifest. A link that failed is never asked
again, unless --again is given and the failure may pass (time-outs, a host that was down); it stands in the table of
lost images with its reason. Each of --num_shards jobs fetches for itself: keep their number.
"""

import functools
import hashlib
import json
import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from adapt.collect.builder import forget
from adapt.collect.download import Report, download
from adapt.collect.sources.listing import SPLITS, draw_val
from adapt.collect.sources.output import Output
from adapt.data.manifest import read_table, split_member
from adapt.errors import Refusal

COLUMNS = ("path", "url", "generator", "label", "group", "split_column", "set_column", "family", "caption")


@dataclass(frozen=True, kw_only=True)
class Source(Output):
    table: Path  # .csv or .parquet
    folder: Path | None = None  # that paths are relative to; default: that of the manifest or, without it, the table
    path: str = ""  # column of file names (shard.tar::member too)
    url: str = ""  # column of addresses
    generator: str = ""  # column of generators' names
    label: str = ""  # column that tells camera images from fakes
    real: tuple[str, ...] = ("real", "0")  # values of the label, else of the generator, that mean a camera image
    group: str = ""  # column of scenes; empty: each image is its own group
    matched: bool = False  # files of one name (without folder and suffix) show one scene and form a group
    split_column: str = ""  # column of splits
    set_column: str = ""  # column of benchmarks
    set: str = ""  # name of the benchmark where no column says it; empty: that of the table
    family: str = ""  # column of families
    caption: str = ""  # column of captions
    again: bool = False  # ask again for links whose failure may have passed

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.path or self.url):
            raise Refusal("name the column of file names with --path, or that of addresses with --url")
        if not (self.generator or self.label):
            raise Refusal("name the column of generators with --generator, or that of labels with --label")
        if self.matched and (self.group or not self.path):
            raise Refusal("--matched makes groups by the names in --path: leave --group out and name --path")

    def prepare(self, ask: Callable[..., Report] = download) -> Path | None:
        columns = self._read()
        folder = self.folder or (self.table.parent if self.output is None else self.output.parent)
        output = self.output or self.home([folder]) / "manifest.csv"
        if os.path.realpath(output) == os.path.realpath(self.table):
            raise Refusal(f"{self.table} would be overwritten: name another file with --output")
        if self.again:  # look anew at what was fetched
            forget(output, self.shard, self.num_shards)
        root = os.path.realpath(folder)
        rows = self._rows(columns, functools.partial(_locate, root, _fence(self.home([folder]))))
        if self.split == "auto":
            draw_val(rows, self.seed, self.val)
        images = output.with_suffix(".images") / f"{self.shard}-of-{self.num_shards}"
        fetch = functools.partial(_fetch, root, images, functools.partial(ask, again=self.again))
        return self.write_listing(rows, [folder], fetch if self.url else None)

    def _read(self) -> dict[str, np.ndarray]:
        """Cells by the option that names their column."""
        if not self.table.is_file():
            raise Refusal(f"--table {self.table}: no such file")
        table = read_table(self.table)
        names = {option: getattr(self, option) for option in COLUMNS if getattr(self, option)}
        for option, name in names.items():
            if name not in table:
                raise Refusal(f"--{option} {name}: {self.table} has only the columns {', '.join(table) or 'none'}")
        return {option: table[name] for option, name in names.items()}

    def _rows(self, columns: dict[str, np.ndarray], locate: Callable[[str], tuple[str, str]]) -> list[dict[str, str]]:
        rows, of = [], {}
        for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
            given = dict(zip(columns, cells, strict=True))
            row = self._describe(given, number)
            row["file"], reason = locate(given["path"]) if given.get("path") else ("", "")
            if reason or not (row["file"] or row.get("url")):
                row.setdefault("reason", reason or "no-path")
            of.setdefault(row["file"] or row.get("url", ""), []).append(row)
            rows.append(row)
        for first, *others in of.values():  # one image in several rows of the table
            agree = all(row["generator"] == first["generator"] for row in others)
            for row in others if agree else (first, *others):
                row.setdefault("reason", "listed-twice" if agree else "two-labels")
        if self.label and not any(row["generator"] == "real" for row in rows):
            found = ", ".join(list(dict.fromkeys(columns["label"]))[:5])
            raise Refusal(f"--real {' '.join(self.real)}: --label {self.label} says {found}; name the values of reals")
        return rows

    def _describe(self, given: dict[str, str], number: int) -> dict[str, str]:
        name = given.get("path") or given.get("url", "")
        own = self.set or self.table.stem
        row = {"set": given.get("set_column") or own}
        scene = PurePosixPath(name).stem if self.matched else given.get("group") or name
        row["group"] = f"{own}/{scene}"
        generator = given.get("generator", "").strip()
        label = given.get("label", generator).strip()
        is_real = label.casefold() in {value.casefold() for value in self.real}
        row["generator"] = "real" if is_real else generator or f"{own}-fake"
        if not label:
            row |= {"generator": "unknown", "reason": "no-label"}
        if given.get("split_column"):
            row["split"] = SPLITS.get(given["split_column"].strip().lower(), "")
            if not row["split"]:
                raise Refusal(
                    f"{self.table}, row {number}: {given['split_column']!r} is no split, "
                    f"but one of {', '.join(SPLITS)}: correct the column {self.split_column}"
                )
        if not is_real and given.get("family"):
            row["family"] = given["family"]
        return row | {name: given[name] for name in ("url", "caption") if given.get(name)}


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

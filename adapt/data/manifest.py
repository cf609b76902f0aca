"""Manifest: a table of images, one row an image, that cannot leak from one split into another."""

import functools
import hashlib
import json
import os
import posixpath
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from adapt.csv_as_written import known_columns, refusal_of_bytes, undecodable
from adapt.data.checks import check_bytes, check_files_differ, check_groups, refusal_of_mask, refuse_columns
from adapt.data.rows import (
    FILES,
    LARGE,
    MEMBER,
    OPTIONAL,
    PLACES,
    REQUIRED,
    SPELLED,
    WORDS,
    Place,
    Words,
    locate,
    place_of,
    problem,
    split_member,
    strings,
)
from adapt.data.spelling import refuse_two_spellings
from adapt.data.tables import read_table, write_table
from adapt.errors import Refusal
from adapt.files import atomic

if TYPE_CHECKING:
    from adapt.data.columns import Column


@dataclass(frozen=True, eq=False)
class Manifest:
    """Columns of equal length, object arrays of strings; an empty string says "not given".

    Always there: `path` (as written), `file` (absolute, to open; `shard.tar::member` inside an archive),
    `group` (one scene: a photograph and its fakes), `generator` (`real` for a camera image), `split`, `set`,
    `edit` (ordinary processing of a real image, which stays real), `mask` (image of which pixels were changed, where
    only a part was; by the generator, or by the `edit` of a real image), `family`, `source`, `sha256`. Other columns
    of the file are kept; `member_offset` and `member_size` say where in its tar file an image lies. Make one with
    `read` or `of`, which refuse what would make a score wrong.
    """

    columns: dict[str, np.ndarray]

    @classmethod
    def read(cls, *paths: str | os.PathLike) -> "Manifest":
        """Read CSV or Parquet manifests and join them. Image files that are missing are not refused here."""
        if not paths:
            raise Refusal("no manifest given: name at least one .csv or .parquet file")
        files = [Path(path) for path in paths]
        if all(path.suffix.lower() == ".parquet" for path in files):
            from adapt.data import large  # whose pyarrow takes a second

            if large.rows_of(files) >= LARGE:
                return cls._large(*large.read_large(files))
        parts = [_complete(read_table(path), path.parent, str(path)) for path in files]
        for path, part in zip(files, parts, strict=True):
            if path.suffix.lower() == ".csv" and len(part["path"]) >= LARGE and os.environ.get("RANK", "0") == "0":
                print(
                    f"{path}: {len(part['path']):,} rows, of which every process holds a copy; as Parquet they share "
                    f"one: adapt.read_manifest({str(path)!r}).write({str(path.with_suffix('.parquet'))!r})",
                    file=sys.stderr,
                )
        columns = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            pieces = [part.get(name, np.full(len(part["path"]), "", object)) for part in parts]
            columns[name] = np.concatenate(pieces)
        return cls._checked(columns)

    @classmethod
    def of(cls, columns: Mapping[str, Words], folder: str | os.PathLike) -> "Manifest":
        """Make a manifest from columns whose paths are relative to `folder`; refuses what `read` refuses."""
        read = {name: strings([str(value) for value in values]) for name, values in columns.items()}
        return cls._checked(_complete(read, Path(folder), "manifest"))

    @classmethod
    def _large(cls, columns: "Mapping[str, Column]", digest: str) -> "Manifest":
        found = cls({name: cast(np.ndarray, column) for name, column in columns.items()})  # which reads like one
        found.__dict__["digest"] = digest  # what the property would work out
        return found

    @classmethod
    def _checked(cls, columns: dict[str, np.ndarray]) -> "Manifest":
        for name in SPELLED:
            refuse_two_spellings(name, dict.fromkeys(columns[name]), columns[name])
        check_files_differ(columns)
        check_groups(columns)
        check_bytes(columns)
        return cls(columns)

    def __len__(self) -> int:
        return len(self.columns["path"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    @property
    def fake(self) -> np.ndarray:
        """Labels (n,) as booleans: True where the image is AI-generated."""
        return (self["generator"] != "real").astype(bool)

    @property
    def mask_files(self) -> np.ndarray:
        """Masks (n,) as absolute names, to open; empty where the whole image is what its row says."""
        return self.columns.get("mask_file", self["mask"])  # without the column no row has a mask

    def place(self, row: int) -> Place | None:
        """Where in its tar file the image of a row lies, for `read_bytes`; None where the table does not say."""
        if MEMBER[0] not in self.columns:
            return None
        return place_of(*(self.columns[name][row] for name in MEMBER))

    def select(self, rows: Sequence[int] | np.ndarray) -> "Manifest":
        """Rows by boolean mask or by indices, in the order of the indices."""
        rows = np.asarray(rows)
        rows = rows if rows.dtype == bool else rows.astype(np.intp)
        return Manifest({name: values[rows] for name, values in self.columns.items()})

    def resplit(self, split: Words) -> "Manifest":
        """The same rows in other splits; refuses what `read` refuses."""
        return self._checked(self.columns | {"split": strings(split)})

    def groups(self) -> Sequence[np.ndarray]:
        """Row indices of each group, groups in order of first appearance."""
        if not isinstance(column := self.columns["group"], np.ndarray):
            from adapt.data.columns import GroupRows

            return GroupRows(column.codes)
        rows: dict[str, list[int]] = {}
        for row, group in enumerate(self["group"]):
            rows.setdefault(group, []).append(row)
        return [np.array(members) for members in rows.values()]

    def seen(self, generators: Words) -> np.ndarray:
        """Where this manifest met each of `generators` before the test: "train", "val" or "" (never).

        `generators` may be another manifest's column. Camera images (`real`) count as met in training.
        """
        met = dict.fromkeys(self["generator"][self["split"] == "val"], "val")
        met |= dict.fromkeys(self["generator"][self["split"] == "train"], "train")
        met["real"] = "train"
        return strings([met.get(generator, "") for generator in generators])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the rows in their order; the same wherever the folder lies."""
        names = ["path", "group", "generator", "split", "set", "edit", "sha256"]
        names += ["mask"] if any(self["mask"]) else []  # a manifest without masks keeps the digest it always had
        digest = hashlib.sha256()
        for row in zip(*(self[name] for name in names), strict=True):
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()

    def write(self, path: str | os.PathLike) -> None:
        """Write CSV or Parquet, by suffix. Paths become relative to the new manifest's folder.

        Refuses a file that lies outside that folder, and names that are not UTF-8 in Parquet.
        """
        path = Path(path)
        folder = os.path.join(os.path.realpath(path.parent), "")  # noqa: PTH118 (ends with a slash)
        for file in (*self["file"], *filter(None, self.mask_files)):
            if not file.startswith(folder):
                raise Refusal(f"{file!r} lies outside {folder}: write the manifest above all its images")
        names = [name for name in self.columns if name in REQUIRED or (name not in PLACES and any(self[name]))]
        columns = {name: self[name] for name in names}
        columns["path"] = strings([file[len(folder) :] for file in self["file"]])
        if "mask" in columns:
            columns["mask"] = strings([file[len(folder) :] for file in self.mask_files])
        with atomic(path) as temporary:
            write_table(columns, temporary, path.suffix.lower())


def split_by_group(groups: Words, seed: int, val: float = 0.15, test: float = 0.25) -> np.ndarray:
    """Names of splits (n,): each group falls by the hash of (seed, group), in any order and company.

    The shares are expectations: a new group moves no other group. Refuses shares that leave no train split.
    """
    if val < 0 or test < 0 or val + test >= 1:
        raise Refusal(f"val={val} and test={test} leave no training images: choose shares with a sum below 1")

    def place(group: str) -> str:
        digest = hashlib.sha256(json.dumps([seed, group]).encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        return "test" if share < test else "val" if share < test + val else "train"

    places = {group: place(group) for group in dict.fromkeys(groups)}
    return strings([places[group] for group in groups])


def _complete(columns: dict[str, np.ndarray], folder: Path, name: str) -> dict[str, np.ndarray]:
    """One manifest's columns with `file` and the optional ones added, after the checks within a row."""
    names = known_columns([*columns], (*REQUIRED, *OPTIONAL, *MEMBER), name)
    columns = dict(zip(names, columns.values(), strict=True))
    refuse_columns(columns, name)
    count = len(columns["path"])
    columns = dict.fromkeys(OPTIONAL, np.full(count, "", object)) | columns
    _check_text(columns, name)
    columns |= {word: _without_blanks_around(columns[word]) for word in WORDS}
    columns["sha256"] = strings([digest.lower() for digest in columns["sha256"]])
    nothing = np.full(count, "", object)
    cells = [columns.get(column, nothing) for column in (*REQUIRED, "edit", "mask", "sha256", *MEMBER)]
    for number, row in enumerate(zip(*cells, strict=True), 1):
        if wrong := problem(*row):
            raise Refusal(f"{name}, row {number}: {wrong}")
    columns["path"], columns["file"] = locate(columns["path"], folder, name)
    if any(columns["mask"]):
        columns["mask"], columns["mask_file"] = locate(columns["mask"], folder, name)
        images = set(columns["file"])
        for number, (mask, file) in enumerate(zip(columns["mask"], columns["mask_file"], strict=True), 1):
            if file in images:
                raise refusal_of_mask(name, number, mask)
    return columns


def _check_text(columns: dict[str, np.ndarray], name: str) -> None:
    """Refuse bytes that are no UTF-8 anywhere but in paths, and in a group named after its path."""
    for column, values in columns.items():
        beside = columns["path"].tolist() if column == "group" else None
        if column not in FILES and (row := undecodable(values.tolist(), beside)) is not None:
            raise refusal_of_bytes(f"{name}, row {row + 1}", column, values[row])


def _without_blanks_around(values: np.ndarray) -> np.ndarray:
    """Words without the blanks around them; ` real` stays, and is refused like `Real`: never guess what is real."""
    mend = {value: short for value in set(values) if (short := value.strip()) not in (value, "real")}
    return strings([mend.get(value, value) for value in values]) if mend else values


def require_files(rows: Manifest) -> None:
    """Refuse a manifest of which not one image file is there, and say where it was looked for."""
    if any(posixpath.lexists(split_member(file)[0]) for file in rows["file"]):  # the first one ends it
        return
    pairs = zip(rows["file"], rows["path"], strict=True)
    folders = dict.fromkeys(file.removesuffix(path).rstrip("/") for file, path in pairs)
    first = ", ".join(map(repr, rows["path"][:3]))
    raise Refusal(
        f"every file of the manifest is missing ({len(rows)} images); the first are {first}. Looked in "
        f"{', '.join(list(folders)[:3])}: move the manifest to the folder that its paths start from, or correct them"
    )

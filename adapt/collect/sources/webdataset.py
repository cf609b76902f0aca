"""WebDataset tar files: samples of one or more images, and json, txt or cls members that say what they are.

    adapt prepare webdataset --folder data/shards --label json:model_name --real photo camera
    adapt prepare webdataset --folder data/shards --label cls --real 0

Shards that `adapt pack` or `adapt prepare` wrote need no --label: their json members hold the rows. The tar
files stay where they are; the manifest points into them (shard.tar::member, with its offset and size). A damaged tar
file costs what lies behind the damage, and is a lost row; so is a sample whose json cannot be read or whose label
cannot be printed.
"""

import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adapt.collect.sources.output import Output
from adapt.data.images import BAD_TAR, Unreadable
from adapt.data.rows import MEMBER
from adapt.errors import Refusal
from adapt.files import left_by_system, too_many_files

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "j2k", "heic", "heif", "jxl")
DAMAGE = "damaged, or no uncompressed tar file"
PLACED = ("path", "file", *MEMBER)  # where an image lies now is no matter of its json
MAX_TEXT = 2**20  # bytes of a json, txt or cls member


@dataclass(frozen=True, kw_only=True)
class Source(Output):
    folder: Path  # holds the .tar files, at any depth
    label: str = ""  # member that names the generator: json:FIELD, txt, cls; empty: json rows by `adapt pack`
    real: tuple[str, ...] = ("real", "0")  # what the label says of a camera image
    group: str = ""  # json:FIELD that all images of a scene share; empty: each sample is its own group
    set: str = "webdataset"  # name of the benchmark

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label not in ("", "txt", "cls") and not self.label.startswith("json:"):
            raise Refusal(f"--label {self.label}: use json:FIELD, txt or cls")
        if self.group and not self.group.startswith("json:"):
            raise Refusal(f"--group {self.group}: use json:FIELD")

    def prepare(self) -> Path | None:
        if not self.folder.is_dir():
            raise Refusal(f"--folder {self.folder} is no folder: name the one that holds the .tar files")
        tars = sorted(self.folder.rglob("*.tar"))
        if not tars:
            raise Refusal(f"no .tar files under {self.folder}: name the folder that holds the shards")
        rows = [row for tar in tars for row in self._rows(tar)]
        if rows and all("reason" in row for row in rows):
            counts = Counter(row["reason"] for row in rows).most_common(3)
            raise Refusal(f"no image of {self.folder} can be used: {', '.join(f'{n} {why}' for why, n in counts)}")
        return self.write_listing(self.renamed(rows), [self.folder])

    def _rows(self, tar: Path) -> Iterator[dict[str, str]]:
        """Rows of all images of one tar file, and one for the damage that ends it."""
        place = tar.relative_to(self.folder).as_posix()
        unknown = {"generator": "unknown", "set": self.set}
        try:
            for key, images, texts in samples(tar):
                for name, offset, size in images:
                    row = unknown | {"group": f"{place}/{key}", "file": f"{tar.resolve()}::{name}"}
                    row |= {"member_offset": str(offset), "member_size": str(size)}
                    try:
                        yield row | self._describe(name, texts)
                    except _NoLabel as problem:
                        yield row | {"reason": f"{problem.reason}: {problem}"}
        except Unreadable as damage:
            yield unknown | {"group": place, "file": str(tar.resolve()), "reason": f"{damage.reason}: {DAMAGE}"}

    def _describe(self, name: str, texts: dict[str, bytes]) -> dict[str, str]:
        """What the texts of a sample say of one of its images."""
        if not self.label:
            rows = _fields(texts, list)
            found = [row for row in rows if isinstance(row, dict) and row.get("path") == posixpath.basename(name)]
            if not found or not {"group", "generator"} <= found[0].keys():
                raise _NoLabel("json holds no row of the image; give --label")
            row = {column: str(value) for column, value in found[0].items() if column not in PLACED}
            return row | {"generator": _printable(row["generator"])}
        kind, _, field = self.label.partition(":")
        if kind not in texts:
            raise _NoLabel(f"the sample has no {kind}")
        about = _fields(texts, dict) if "json" in texts else {}
        value = _field(about, field) if kind == "json" else texts[kind].decode(errors="replace").strip()
        value = _printable(value)
        unnamed = f"{self.set}-{value}" if kind == "cls" else value
        row = {"generator": "real" if value in self.real else unnamed}
        if self.group:
            row["group"] = _field(about, self.group.removeprefix("json:"))
        return row | ({"url": str(about["url"])} if about.get("url") else {})


class _NoLabel(Exception):
    """Why a sample has no label, as words behind the `reason` of its row."""

    def __init__(self, words: str, reason: str = "no-label") -> None:
        super().__init__(words)
        self.reason = reason


def _printable(label: str) -> str:
    if not label.strip() or not label.isprintable():
        raise _NoLabel(repr(label[:80]), "bad-label")
    return label


def _fields(texts: dict[str, bytes], kind: type) -> Any:
    try:
        found = json.loads(texts.get("json", b""))
    except (ValueError, RecursionError):  # RecursionError: nested thousands deep
        found = None
    if not isinstance(found, kind):
        raise _NoLabel("the sample has no json" if "json" not in texts else "json cannot be read")
    return found


def _field(about: dict[str, Any], name: str) -> str:
    value = about.get(name)
    if value is None or value == "":
        raise _NoLabel(f"json has no {name!r}")
    if isinstance(value, dict | list):
        raise _NoLabel(f"json has no single value under {name!r}", "bad-label")
    return str(value).lower() if isinstance(value, bool) else str(value)  # true and false, as json spells them


def samples(path: Path) -> Iterator[tuple[str, list[tuple[str, int, int]], dict[str, bytes]]]:
    """Key, (name, offset, size) of the images, and extension -> bytes of the texts, of each sample of a tar file.

    Members of a sample stand beside each other and share the name up to the first dot of its last part. Raises
    `Unreadable` behind the last whole sample of a damaged file, and for one that is no uncompressed tar file.
    """
    key, texts, damage = None, {}, None
    images: list[tuple[str, int, int]] = []
    members = _members(path)
    while True:
        try:
            name, offset, size, stream = next(members, ("", 0, 0, None))
        except Unreadable as problem:
            name, damage = "", problem
        folder, base = posixpath.split(name)
        stem, _, extension = base.partition(".")
        extension = extension.rpartition(".")[2].lower()
        if (folder, stem) != key:
            if images:
                yield "/".join(filter(None, key)), images, texts
            key, images, texts = (folder, stem), [], {}
        if not name:
            break
        if extension in IMAGES:
            images.append((name, offset, size))
        elif extension in ("json", "txt", "cls") and size <= MAX_TEXT:
            texts[extension] = stream.read()
    if damage is not None:
        raise damage


def _members(path: Path) -> Iterator[tuple[str, int, int, IO[bytes]]]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse() and not left_by_system(posixpath.basename(member.name)):
                    yield member.name, member.offset, member.size, tar.extractfile(member)
            tar.fileobj.seek(tar.offset)
            if any(tar.fileobj.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError("damaged")
    except (*BAD_TAR, OSError) as error:
        if too_many_files(error):
            raise
        raise Unreadable("bad-archive") from error

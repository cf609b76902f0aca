"""WebDataset tar files: samples of one or more images, and json, txt or cls members that say what they are.

    adapt prepare webdataset --folder data/shards --label json:model_name --real photo camera
    adapt prepare webdataset --folder data/shards --label cls --real 0

Shards that `adapt pack` or `adapt prepare` wrote need no --label: their json members hold the rows. The tar
files stay where they are; the manifest points into them (shard.tar::member).
"""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adapt.collect.sources.output import Output
from adapt.errors import Refusal
from adapt.files import left_by_system

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "j2k", "heic", "heif", "jxl")
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
        return self.write_listing(rows, [self.folder])

    def _rows(self, tar: Path) -> Iterator[dict[str, str]]:
        """Rows of all images of one tar file."""
        place = tar.relative_to(self.folder).as_posix()
        for key, images, texts in samples(tar):
            for name in images:
                row = {"group": f"{place}/{key}", "generator": "unknown", "set": self.set}
                try:
                    row |= self._describe(name, texts)
                except _NoLabel as problem:
                    row["reason"] = f"no-label: {problem}"
                yield row | {"file": f"{tar.resolve()}::{name}"}

    def _describe(self, name: str, texts: dict[str, bytes]) -> dict[str, str]:
        """What the texts of a sample say of one of its images."""
        if not self.label:
            rows = _fields(texts, list)
            found = [row for row in rows if isinstance(row, dict) and row.get("path") == posixpath.basename(name)]
            if not found or not {"group", "generator"} <= found[0].keys():
                raise _NoLabel("json holds no row of the image; give --label")
            return {column: str(value) for column, value in found[0].items() if column not in ("path", "file")}
        kind, _, field = self.label.partition(":")
        if kind not in texts:
            raise _NoLabel(f"the sample has no {kind}")
        about = _fields(texts, dict) if "json" in texts else {}
        value = _field(about, field) if kind == "json" else texts[kind].decode(errors="replace").strip()
        unnamed = f"{self.set}-{value}" if kind == "cls" else value
        row = {"generator": "real" if value in self.real else unnamed}
        if self.group:
            row["group"] = _field(about, self.group.removeprefix("json:"))
        return row | ({"url": str(about["url"])} if about.get("url") else {})


class _NoLabel(Exception):
    pass


def _fields(texts: dict[str, bytes], kind: type) -> Any:
    try:
        found = json.loads(texts.get("json", b""))
    except ValueError:
        found = None
    if not isinstance(found, kind):
        raise _NoLabel("the sample has no json" if "json" not in texts else "json cannot be read")
    return found


def _field(about: dict[str, Any], name: str) -> str:
    if about.get(name) in (None, ""):
        raise _NoLabel(f"json has no {name!r}")
    return str(about[name])


def samples(path: Path) -> Iterator[tuple[str, list[str], dict[str, bytes]]]:
    """Key, names of the images, and extension -> bytes of the texts, of each sample of a tar file.

    Members of a sample stand beside each other and share the name up to the first dot of its last part.
    """
    key, images, texts = None, [], {}
    for name, size, stream in _members(path):
        folder, base = posixpath.split(name)
        stem, _, extension = base.partition(".")
        extension = extension.rpartition(".")[2].lower()
        if (folder, stem) != key:
            if images:
                yield "/".join(filter(None, key)), images, texts
            key, images, texts = (folder, stem), [], {}
        if extension in IMAGES:
            images.append(name)
        elif extension in ("json", "txt", "cls") and size <= MAX_TEXT:
            texts[extension] = stream.read()
    if images:
        yield "/".join(filter(None, key)), images, texts


def _members(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg() and not member.issparse() and not left_by_system(posixpath.basename(member.name)):
                    yield member.name, member.size, tar.extractfile(member)
    except (tarfile.TarError, OSError) as error:
        raise Refusal(f"{path} is no uncompressed tar file ({error}): unpack or write it again") from error

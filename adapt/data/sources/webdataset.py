"""WebDataset tar files: samples of one or more images, and json, txt or cls members that say what they are.

    python recipes/prepare.py webdataset --folder data/shards --label json:model_name --real photo camera
    python recipes/prepare.py webdataset --folder data/shards --label cls --real 0

Shards that recipes/pack.py or recipes/prepare.py wrote need no --label: their json members hold the rows. The tar
files stay where they are; the manifest points into them (shard.tar::member).
"""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from adapt.data.sources.output import Output
from adapt.errors import Refusal

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
MAX_TEXT = 2**20  # bytes of a json, txt or cls member


@dataclass(frozen=True, kw_only=True)
class Source(Output):
    folder: Path  # holds the .tar files, at any depth
    label: str = ""  # member that names the generator: json:FIELD, txt, cls; empty: json rows as pack.py writes them
    real: tuple[str, ...] = ("real", "0")  # what the label says of a camera image
    group: str = ""  # json:FIELD that all images of a scene share; empty: a sample is a group
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
        for key, images, texts in samples(tar):
            stem = f"{tar.resolve()}::"
            try:
                rows = self._describe(key, images, texts)
            except (ValueError, KeyError, TypeError, AttributeError) as problem:
                why = f"bad-label: {type(problem).__name__} {problem}"
                rows = [{"path": name, "group": key, "generator": "unknown", "reason": why} for name in images]
            for row in rows:
                row["file"] = stem + row.pop("path")
                row["set"] = row.get("set") or self.set
                if not self.label and "reason" not in row:
                    continue
                row["group"] = row["group"] if self.group else f"{tar.relative_to(self.folder).as_posix()}/{key}"
            yield from rows

    def _describe(self, key: str, images: list[str], texts: dict[str, bytes]) -> list[dict[str, str]]:
        about = json.loads(texts["json"]) if "json" in texts else None
        if not self.label:
            members = {row["path"].rpartition("::")[2]: row for row in about}
            return [{**members[name], "path": name} for name in images]
        kind, _, field = self.label.partition(":")
        value = str(about[field] if kind == "json" else texts[kind].decode().strip())
        generator = "real" if value in self.real else value
        if kind == "cls" and generator != "real":
            generator = f"{self.set}-{value}"
        row = {"generator": generator, "group": str(about[self.group[5:]]) if self.group else key}
        if isinstance(about, dict) and about.get("url"):
            row["url"] = str(about["url"])
        return [row | {"path": name} for name in images]


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
                if member.isreg() and not member.issparse():
                    yield member.name, member.size, tar.extractfile(member)
    except (tarfile.TarError, OSError) as error:
        raise Refusal(f"{path} is no uncompressed tar file ({error}): unpack or write it again") from error

"""Rows of features on disk, only ever added, each row under the SHA-256 of its image.

    FOLDER/<sha256>.safetensors    a shard: ids (n, 32) uint8, features (n, d) float32, or the 16 bits (uint16) of
                                   bfloat16 where the encoder hands that back

A shard is published whole under the digest of its own bytes: two writers never meet, a killed one leaves nothing that
could be read, and a shard whose bytes do not give its name is set aside (adapt/features/verified.py). Reading maps the
shards into memory and copies the rows that are asked for.
"""

import contextlib
import hashlib
import json
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from adapt.features.verified import whole
from adapt.files import atomic

SHARD_BYTES, SHARD_SECONDS = 16 << 20, 60.0  # what a killed extraction may lose; writing takes 4 times the bytes


@dataclass(frozen=True)
class Space:
    """The shards of one kind of feature, and where each image's row lies in them."""

    folder: Path
    ids: np.ndarray  # (n,) sorted, 32 raw bytes each
    shard: np.ndarray  # (n,) int32
    row: np.ndarray  # (n,) int32
    shards: tuple[Path, ...]
    reasons: dict[bytes, str]  # of images that could not be read under this view

    @classmethod
    def open(cls, folder: Path) -> "Space":
        """Read the ids of all shards, verifying the checksum of every shard that has no mark."""
        ids, shard, row = [], [], []
        shards: list[Path] = []
        reasons: dict[bytes, str] = {}
        paths = shards_of(folder)
        for path, good in zip(paths, whole(folder, paths), strict=True):
            if not good:
                _set_aside(path)
                continue
            tensors, metadata = _header(path)
            found = _mapped(path, tensors["ids"])
            ids.append(np.ascontiguousarray(found).view("V32").ravel())
            shard.append(np.full(len(found), len(shards), np.int32))
            row.append(np.arange(len(found), dtype=np.int32))
            reasons |= {bytes.fromhex(key): why for key, why in json.loads(metadata.get("reasons", "{}")).items()}
            shards.append(path)
        if not shards:
            empty = np.empty(0, np.int32)
            return cls(folder, np.empty(0, "V32"), empty, empty, (), {})
        order = np.argsort(np.concatenate(ids), kind="stable")
        of_id, of_shard, of_row = (np.concatenate(part)[order] for part in (ids, shard, row))
        return cls(folder, of_id, of_shard, of_row, tuple(shards), reasons)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Places (m,) of the images in this space, -1 where there are none."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[place] == ids, place, -1)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Features (m, d) float32, a copy of just these rows; every image must be there."""
        place = self.find(ids)
        shard, row = self.shard[place], self.row[place]
        out: np.ndarray | None = None
        for number in np.unique(shard):
            path = self.shards[number]
            features = _mapped(path, _header(path)[0]["features"])
            if out is None:
                out = np.empty((len(ids), features.shape[1]), np.float32)
            here = shard == number
            out[here] = _widened(features[row[here]])
        return out if out is not None else np.empty((0, 0), np.float32)


class Shard:
    """Rows of one space that wait to be published together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._clear()

        self.published: list[Path] = []

    def _clear(self) -> None:
        self.since, self.bytes = time.monotonic(), 0
        self.ids: list[bytes] = []
        self.rows: list[np.ndarray] = []
        self.reasons: dict[str, str] = {}  # by id, in hex

    def add(self, images: np.ndarray, features: np.ndarray, reasons: Sequence[str]) -> None:
        """Images (n,) of 32 raw bytes, features (n, d), kept, and "" or why there are none, which become zeros."""
        for place, reason in enumerate(reasons):
            if reason:
                features[place] = 0
                self.reasons[images[place].tobytes().hex()] = reason
        self.ids.append(images.tobytes())
        self.rows.append(features)
        self.bytes += features.nbytes
        if self.bytes > SHARD_BYTES or time.monotonic() - self.since > SHARD_SECONDS:
            self.publish()

    def publish(self) -> None:
        if ids := b"".join(self.ids):
            self.published.append(write_shard(self.folder, np.frombuffer(ids, "V32"), self.rows, self.reasons))
        self._clear()


def stored(features: torch.Tensor) -> np.ndarray:
    """float32, or the bits of bfloat16, which numpy does not know, as uint16."""
    return (features.view(torch.uint16) if features.dtype == torch.bfloat16 else features.float()).numpy()


def _widened(features: np.ndarray) -> np.ndarray:
    """The inverse, in float32."""
    return (features.astype(np.uint32) << 16).view(np.float32) if features.dtype == np.uint16 else features


def write_shard(
    folder: Path, ids: np.ndarray, blocks: Sequence[np.ndarray], reasons: dict[str, str] | None = None
) -> Path:
    """Publish a shard; returns its path. Ids (n,) of 32 raw bytes, features (n, d) in blocks of rows, why some could
    not be read, by id.

    The file is laid out here, a header and the arrays' own memory: safetensors' writer would copy them three times.
    """
    kind = {"float32": "F32", "uint16": "U16"}[blocks[0].dtype.name]
    shape, end = [len(ids), blocks[0].shape[1]], sum(block.nbytes for block in blocks)
    header: dict[str, dict[str, object]] = {
        "__metadata__": {"reasons": json.dumps(reasons or {})},
        "features": {"dtype": kind, "shape": shape, "data_offsets": [0, end]},
        "ids": {"dtype": "U8", "shape": [len(ids), 32], "data_offsets": [end, end + 32 * len(ids)]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    flat = (np.ascontiguousarray(block).reshape(-1).view(np.uint8) for block in blocks)
    parts: list[bytes | memoryview] = [
        struct.pack("<Q", len(text)),
        text,
        *(block.data for block in flat),
        ids.tobytes(),
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    path = folder / f"{digest.hexdigest()}.safetensors"
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.writelines(parts)
    return path


def shards_of(folder: Path) -> list[Path]:
    """The shards of a folder, in one order for every process."""
    return sorted(folder.glob("*.safetensors"))


def _header(path: Path) -> tuple[dict[str, dict], dict[str, str]]:
    """Names -> {dtype, shape, data_offsets from the file's start}, and the metadata, of a safetensors file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    for tensor in header.values():
        tensor["start"] = 8 + length + tensor["data_offsets"][0]
    return header, metadata


def _mapped(path: Path, tensor: dict) -> np.ndarray:
    """A tensor of a safetensors file, mapped: pages are read when touched, nothing is copied."""
    kind = {"F32": np.float32, "U8": np.uint8, "U16": np.uint16}[tensor["dtype"]]
    return np.memmap(path, kind, "r", tensor["start"], tuple(tensor["shape"]))


def _set_aside(path: Path) -> None:
    """A shard that is not what its name says: kept for inspection where that is possible, encoded again."""
    print(f"{path} is damaged: its images are encoded again", file=sys.stderr)
    with contextlib.suppress(OSError):  # a cache that only others may write
        path.replace(path.with_suffix(".damaged"))

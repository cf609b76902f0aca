"""Align images before anything is learned: one decoder, one size policy, one codec for every member of a group.

Reals come as JPEG, fakes as PNG, each in sizes of its own: whatever learns from such files learns the difference of
the files. Results shrink when it is removed (2403.17608), and what was compressed before stays so: it is recorded.
"""

import csv
import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, JpegImagePlugin

from adapt.audit.compression import NEVER, compression
from adapt.data.archives import archives_of_groups, share
from adapt.data.images import POLICY, Unreadable, dct_scale, decode, opened, read_bytes
from adapt.data.jpeg import nearest_tables
from adapt.data.manifest import Manifest
from adapt.data.rows import MEMBER
from adapt.errors import Refusal
from adapt.files import atomic, sha256
from adapt.journal import Entry, Journal, entries
from adapt.progress import bar

SUBSAMPLINGS = ("4:2:0", "4:2:2", "4:4:4")
MISMATCH = "sha256-mismatch"  # a reason that may go although the bytes stay: the manifest was corrected
COLUMNS = (
    *("path", "group", "generator", "split", "reason", "format", "width", "height", "bytes", "jpeg_before"),
    *("tables", "subsampling", "file", "to_width", "to_height", "scale", "steps", "note", "source_sha256", "sha256"),
)


class _Policy(NamedTuple):
    """How all copies are made."""

    size: str
    codec: str
    quality: int
    subsampling: str

    @property
    def side(self) -> int | None:
        """N of resizeN and cropN."""
        return None if self.size == "group" else int(re.sub(r"\D", "", self.size))

    @property
    def encoding(self) -> str:
        return "png" if self.codec == "png" else f"jpeg {self.quality} {self.subsampling}"

    @property
    def spec(self) -> str:
        """Everything that the bytes of a copy depend on besides its sources."""
        return f"align 1; {self.size}; {self.encoding}; {POLICY}; Pillow {PIL.__version__}"

    def check(self) -> None:
        match = re.fullmatch(r"group|(?:resize|crop)([0-9]+)", self.size)
        if not match or (match[1] and not 16 <= int(match[1]) <= 2048):
            raise Refusal(f"size {self.size!r} is unknown: use group, resizeN or cropN with N from 16 to 2048")
        if self.codec not in ("png", "jpeg"):
            raise Refusal(f"codec {self.codec!r} is unknown: use png or jpeg")
        if not 1 <= self.quality <= 100:
            raise Refusal(f"quality {self.quality}: a JPEG quality is a whole number from 1 to 100")
        if self.subsampling not in SUBSAMPLINGS:
            raise Refusal(f"subsampling {self.subsampling!r} is unknown: use one of {', '.join(SUBSAMPLINGS)}")


def align(
    manifest: Manifest,
    folder: str | os.PathLike,
    *,
    size: str = "group",
    codec: str = "png",
    quality: int = 95,
    subsampling: str = "4:2:0",
    shard: int = 0,
    num_shards: int = 1,
) -> Manifest | None:
    """Write aligned copies of all images, `align.csv` and `manifest.csv` into `folder`; returns the new manifest.

    `size`: `group` scales every member's shortest side to the smallest of its group, then crops all of them
    centrally to the size they share; `resizeN` scales the shortest side to N and crops N x N; `cropN` crops N x N
    native pixels. Only the last two make images of different groups alike. `codec`: `png`, or `jpeg` with `quality`
    and `subsampling`.

    An image that cannot be read (or is smaller than `cropN`) is a row of align.csv with its reason and no row of
    the manifest. The new names say nothing: digests. New columns: `jpeg_before`, the quality of a JPEG source, whose
    traces cannot be removed (of other files an estimate from the pixels, see `compression`: `tables` of align.csv says
    `estimated`), and `scale`. Started again, what is finished is kept if source and copy still have
    their digests. Shards share the groups; each returns None but the one that finds all groups done, which writes
    the two tables.
    """
    policy, folder = _Policy(size, codec, quality, subsampling), Path(folder)
    policy.check()
    inside = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118 (ends with a slash)
    if any(file.startswith(inside) for file in manifest["file"]):
        raise Refusal(f"{folder} holds images of the manifest itself: choose another folder for the copies")
    if any(manifest["mask"]):
        raise Refusal("the manifest has masks, which would no longer fit: align the images first, then composite them")
    groups = manifest.groups()
    path = folder / "journal" / f"{shard}-of-{num_shards}.jsonl"
    busy = f"another process is working at {path}: wait for it, or stop it"
    mine = [groups[number] for number in share(archives_of_groups(manifest["file"], groups), shard, num_shards)]
    with Journal(path, busy, lambda: max((entry.end for entry in _finished(path)), default=0)) as journal:
        done = _read_journals(folder, policy.spec)
        for members in bar(iterable=mine, unit="group", desc="align"):
            sources = [_source(manifest, row) for row in members]
            if not _current(done.get(_key(manifest, members)), sources, folder):
                rows = _align_group(manifest, members, sources, folder, policy)
                entry = {"spec": policy.spec, "key": _key(manifest, members), "rows": rows}
                journal.append(entry)
        done = _read_journals(folder, policy.spec)
        found = [done.get(_key(manifest, members)) for members in groups]
        return _write_tables(manifest, groups, found, folder) if all(found) else None


def _key(manifest: Manifest, members: np.ndarray) -> str:
    """A group under its members: it is aligned anew when one is added or leaves."""
    names = [manifest["group"][members[0]], *manifest["path"][members]]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _read_journals(folder: Path, spec: str) -> dict[str, list[dict]]:
    """The rows of every finished group by key, of all shards; later lines win."""
    done = {}
    for path in sorted((folder / "journal").glob("*.jsonl")):
        for *_, entry in _finished(path):
            if entry["spec"] != spec:
                raise Refusal(f"{folder} holds copies made as {entry['spec']!r}, not {spec!r}: choose another folder")
            done[entry["key"]] = entry["rows"]
    return done


def _finished(path: Path) -> Iterator[Entry]:
    """Entries of one journal. Bad lines may stand between them: an earlier version wrote on behind a torn line."""
    return (entry for entry in entries(path, "skip") if {"spec", "key", "rows"} <= entry.value.keys())


def _source(manifest: Manifest, row: int) -> tuple[bytes, str, str]:
    """Bytes, their SHA-256, and the reason why there are none."""
    try:
        data = read_bytes(manifest["file"][row], manifest.place(row))
    except Unreadable as problem:
        return b"", "", problem.reason
    digest = hashlib.sha256(data).hexdigest()
    expected = manifest["sha256"][row]
    return data, digest, MISMATCH if expected and digest != expected else ""


def _current(rows: list[dict] | None, sources: Sequence[tuple[bytes, str, str]], folder: Path) -> bool:
    """Do the sources and the finished copies still have the digests that were recorded?"""
    if rows is None:
        return False
    for row, (_, digest, reason) in zip(rows, sources, strict=True):
        copy = folder / row["file"]
        same = row["source_sha256"] == digest and (
            row["reason"] == reason or not (reason or row["reason"] == MISMATCH)
        )
        if not same or (row["file"] and not (copy.is_file() and sha256(copy) == row["sha256"])):
            return False
    return True


def _align_group(
    manifest: Manifest,
    members: np.ndarray,
    sources: Sequence[tuple[bytes, str, str]],
    folder: Path,
    policy: _Policy,
) -> list[dict]:
    """Write the copies of one group, whose pictures are all in memory at once; returns its rows of align.csv."""
    rows, images = [], []
    for row, (data, digest, reason) in zip(members, sources, strict=True):
        about = dict.fromkeys(COLUMNS, "") | {"source_sha256": digest, "bytes": len(data)}
        about |= {name: str(manifest[name][row]) for name in ("path", "group", "generator", "split")}
        image = None
        try:
            if reason:
                raise Unreadable(reason)
            image = decode(data)
            about |= _before(data, image)
            if policy.size.startswith("crop") and min(image.size) < policy.side:
                image = None
                raise Unreadable("too-small")
        except Unreadable as problem:
            about["reason"] = problem.reason
        again = sum(other["path"] == about["path"] for other in rows)  # joined manifests may share relative paths
        identity = [about["group"], about["path"], again, digest]
        about["file"] = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32] if image else ""
        rows.append(about)
        images.append(image)
    readable = [image for image in images if image is not None]
    side = policy.side or min((min(image.size) for image in readable), default=0)
    scaled = [image.size if policy.size.startswith("crop") else _scaled_size(image.size, side) for image in readable]
    target = tuple(map(min, zip(*scaled, strict=True))) if scaled and not policy.side else (side, side)
    shapes = iter(scaled)
    for about, image in zip(rows, images, strict=True):
        if image is not None:
            about |= _fit(image, next(shapes), target, about, folder, policy)
    return rows


def _before(data: bytes, pixels: Image.Image) -> dict[str, object]:
    """What a JPEG's header says of its compression; of other files, what the pixels show of an earlier one."""
    with opened(data) as image:
        jpeg, tables = nearest_tables(image)
        facts = {"format": image.format, "width": image.width, "height": image.height}
        by = dct_scale(*image.size)
        if jpeg == jpeg:
            code = JpegImagePlugin.get_sampling(image)
            facts |= {"jpeg_before": int(jpeg), "tables": "custom" if tables else "standard"}
            facts |= {"subsampling": ("4:4:4", "4:2:2", "4:2:0")[code] if code >= 0 else "other"}
            facts |= {"note": "compressed as JPEG before: this cannot be undone"}
        elif (estimated := compression(np.asarray(pixels)).quality) != NEVER:
            facts |= {"jpeg_before": int(estimated), "tables": "estimated"}
            facts |= {"note": "pixels show an earlier JPEG: this cannot be undone"}
        if by > 1:
            facts["note"] = "; ".join([*filter(None, [facts.get("note")]), f"decoded at 1/{by}: it is so large"])
        return facts


def _scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Size (w, h) with the shortest side at `side`, the aspect kept to the pixel."""
    return tuple(max(side, round(length * side / min(size))) for length in size)


def _fit(
    image: Image.Image,
    scaled: tuple[int, int],
    target: tuple[int, int],
    about: dict,
    folder: Path,
    policy: _Policy,
) -> dict[str, object]:
    """Scale (bicubic with antialiasing), crop centrally, encode, write; what was done, for the image's row."""
    steps, notes, scale = ["decode"], [about["note"]] if about["note"] else [], min(scaled) / min(image.size)
    if scaled != image.size:
        steps.append(f"resize {scaled[0]}x{scaled[1]}")
        notes += ["enlarged: the finest detail is interpolated"] if scale > 1 else []
        image = image.resize(scaled, Image.Resampling.BICUBIC)
    if scaled != target:
        left, top = ((length - wanted) // 2 for length, wanted in zip(scaled, target, strict=True))
        steps.append(f"crop {target[0]}x{target[1]}+{left}+{top}")
        image = image.crop((left, top, left + target[0], top + target[1]))
    options = {} if policy.codec == "png" else {"quality": policy.quality, "subsampling": policy.subsampling}
    steps.append(policy.encoding)
    buffer = io.BytesIO()
    image.save(buffer, policy.codec.upper(), **options)
    data, name = buffer.getvalue(), about["file"]
    file = f"images/{name[:2]}/{name}.{'png' if policy.codec == 'png' else 'jpg'}"
    with atomic(folder / file) as temporary:
        temporary.write_bytes(data)
    done = {"file": file, "to_width": target[0], "to_height": target[1], "scale": round(scale, 6)}
    return done | {"steps": " + ".join(steps), "note": "; ".join(notes), "sha256": hashlib.sha256(data).hexdigest()}


def _write_tables(manifest: Manifest, groups: list[np.ndarray], found: list[list[dict]], folder: Path) -> Manifest:
    """align.csv and manifest.csv, rows in the order of the given manifest."""
    rows = dict(zip(itertools.chain(*groups), itertools.chain(*found), strict=True))
    table = [rows[row] for row in range(len(manifest))]
    with (
        atomic(folder / "align.csv") as new,
        new.open("w", encoding="utf-8", errors="surrogateescape", newline="") as f,
    ):
        out = csv.writer(f)
        out.writerow(COLUMNS)
        out.writerows([about[name] for name in COLUMNS] for about in table)
    kept = np.array([not about["reason"] for about in table], bool)
    if not kept.any():
        raise Refusal(f"none of {len(table)} images could be aligned, e.g. {table[0]['path']!r}: {table[0]['reason']}")
    _refuse_equal(manifest, table)
    aligned = [about for about in table if not about["reason"]]
    columns = {name: values[kept] for name, values in manifest.columns.items() if name not in ("file", *MEMBER)}
    new = {"path": "file", "sha256": "sha256", "jpeg_before": "jpeg_before", "scale": "scale"}
    new |= {name: f"to_{name}" for name in ("width", "height") if name in columns}
    columns |= {name: [about[source] for about in aligned] for name, source in new.items()}
    result = Manifest.of(columns, folder)
    result.write(folder / "manifest.csv")
    current = set(result["path"])
    for path in (folder / "images").glob("*/*"):  # copies of earlier sources, and halves that a kill left
        mine = re.fullmatch(r"[0-9a-f]{32}\.(png|jpg)|\.[0-9a-f]{32}\.(png|jpg)\.[0-9]+\.tmp", path.name)
        if mine and path.relative_to(folder).as_posix() not in current:
            path.unlink(missing_ok=True)
    return result


def _refuse_equal(manifest: Manifest, table: list[dict]) -> None:
    """Name the sources of equal copies in two splits or under two labels: the manifest knows only their new names."""
    first: dict[str, int] = {}
    for row, about in enumerate(table):
        other = first.setdefault(about["sha256"], row) if about["sha256"] else row
        if (manifest["split"][row], manifest.fake[row]) != (manifest["split"][other], manifest.fake[other]):
            raise Refusal(
                f"{table[other]['path']!r} and {about['path']!r} are the same picture in two splits or under two "
                "labels: drop one of them (`adapt audit` lists all such pairs), then start again"
            )

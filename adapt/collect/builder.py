"""A data set under construction, by one job or by many: rows and images that are committed together or not at all."""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adapt.data.containers import frames_of
from adapt.data.images import dct_scale, opened
from adapt.data.manifest import Manifest
from adapt.data.rows import LARGE
from adapt.errors import Refusal
from adapt.files import atomic, writing
from adapt.journal import Journal, entries, remove

SHARD_BYTES = 2**30  # a tar file is closed when it has this many
SYNC_SECONDS = 1
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
EXTENSIONS |= {"AVIF": "avif", "JPEG2000": "jp2", "HEIF": "heic"}
END = bytes(1024)  # two empty blocks end a tar file
LOST = ("file", "url", "group", "generator", "split", "set", "reason")  # columns of the table of what is not there


def header_facts(data: bytes) -> dict[str, str]:
    """`sha256`, `format`, `width`, `height` of an image file's bytes by its header; raises `Unreadable`.

    Where there are several pictures, of which the first counts, also `frames`; of a JPEG so large that it is decoded
    at 1/2 also `dct_scale`.
    """
    with opened(data) as image:
        facts = {"format": image.format, "width": str(image.width), "height": str(image.height)}
        if (frames := frames_of(image, data)) > 1:
            facts["frames"] = str(frames)
        if (scale := dct_scale(*image.size)) > 1:
            facts["dct_scale"] = str(1 / scale)
    return facts | {"sha256": hashlib.sha256(data).hexdigest()}


def parts_folder(output: Path) -> Path:
    """Where the journals of all jobs lie."""
    return output.with_suffix(".parts")


def lost_table(output: Path) -> Path:
    """Where every image that was listed and is not in the manifest stands with its reason."""
    return output.with_suffix(".lost.csv")


class Part:
    """What job `shard` of `num_shards` has done for the manifest `output`: append-only, so a killed job continues.

    `what` names everything the rows depend on; a journal made with another one is refused, or begun anew with
    `restart` (when no work is lost by it) or where nothing was committed yet. A refusal before the first commit leaves
    no journal: options that were refused bind nobody. Images that are handed over as bytes become members of tar
    files in WebDataset's layout: a commit is one sample, its members share the key before the first dot, KEY.json
    holds the rows. The names of members tell nothing about the labels.

    `at` is what the last commit said (None at first), `done` whether the job is finished (a later commit takes it
    up again), `commits` how many commits brought rows. `groups` are those that stand, `generators` counts images.
    """

    def __init__(
        self, output: Path, what: dict[str, Any], *, shard: int = 0, num_shards: int = 1, restart: bool = False
    ) -> None:
        self.output, self.shard = output, shard
        self.path = _journal(output, shard, num_shards)
        self.at, self.done, self.commits, self.tar, self.size = None, False, 0, 0, 0
        self.lost: Counter[str] = Counter()
        self.generators: Counter[str] = Counter()
        self.groups: set[str] = set()
        self._met: set[str] = set()
        self._synced, self._empty = time.monotonic(), True
        self._journal = Journal(self.path, _busy(self.path), lambda: self._take_up(what, restart), {"what": what})

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Refusal) and self._empty:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self._journal.close()

    def met(self, sha256: str) -> bool:
        """Whether an image with these bytes was committed by this job."""
        return sha256 in self._met

    def commit(
        self,
        rows: Sequence[dict[str, str]],
        at: Any,
        images: Sequence[bytes] = (),
        lost: Sequence[dict[str, str]] = (),
    ) -> None:
        """Add rows (manifest columns), and with `images` the bytes of each, which then lie in a tar file.

        Rows without images carry `file`, an absolute name. `lost`: what is missing, each with its `reason`. After a
        kill either all of it is there, or nothing and `at` is the one before.
        """
        rows = [dict(row) for row in rows]
        entry = {"at": at, "rows": rows, "lost": list(lost)}
        if images:
            entry |= self._store(rows, images)
        self._write(entry)
        self._apply(entry)

    def drop(self, reasons: dict[str, str]) -> None:
        """Take groups out again: group -> reason. Their images stay in the tar files without a row."""
        self._write({"drop": reasons})
        self._apply({"drop": reasons})

    def finish(self) -> None:
        """Say that this job has nothing left to do."""
        if not self.done:
            if self.size:
                self._append(END)
            self._write({"done": True})
            self.done = True
        self._journal.sync()

    def _take_up(self, what: dict[str, Any], restart: bool) -> int:
        """Apply what was committed before; the bytes of the journal that it takes."""
        whole = 0
        for entry, end in _committed(self.path, self.output):
            if not whole and entry.get("what") != what:
                if restart or ("what" in entry and len(list(itertools.islice(entries(self.path, "end"), 2))) == 1):
                    return 0
                raise Refusal(
                    f"{self.path} was made with {_difference(entry.get('what'), what)}: "
                    f"choose another --output, or delete {self.path.parent} to begin anew"
                )
            self._apply(entry)
            self._empty, whole = not whole, end
        return whole

    def _apply(self, entry: dict) -> None:
        if "at" in entry:
            self.at = entry["at"]
            self.commits += bool(entry["rows"])
            self.lost.update(row["reason"] for row in entry["lost"])
            self.generators.update(row["generator"] for row in entry["rows"])
            self.groups.update(row["group"] for row in entry["rows"])
            self._met.update(row["sha256"] for row in entry["rows"] if row.get("sha256"))
        self.groups.difference_update(entry.get("drop", ()))
        self.tar, self.size = entry.get("tar", (self.tar, self.size))
        self.done = entry.get("done", False)

    def _store(self, rows: list[dict[str, str]], images: Sequence[bytes]) -> dict:
        """Append one sample to the open tar file; fills in the rows' `path`, their places in it, and what the images'
        headers say."""
        if self.size >= SHARD_BYTES:
            self._append(END)
            self.tar, self.size = self.tar + 1, 0
        key, names = f"{self.shard:04d}-{self.commits:08d}", set()
        tar = _tar(self.output, self.path.stem, self.tar)
        members = []
        for row, data in zip(rows, images, strict=True):
            row |= header_facts(data)
            name = f"{key}.{row['sha256'][:8]}.{EXTENSIONS[row.pop('format')]}"
            while name in names:  # the same bytes twice in a group
                name = name.replace(".", ".0", 1)
            names.add(name)
            row["path"] = f"{tar.parent.name}/{tar.name}::{name}"
            members.append((name, data))
        # the tar files may be moved: here a path is the name of the member alone
        about = [row | {"path": row["path"].partition("::")[2]} for row in rows]
        for row in about:
            row.pop("file", None)
        members.append((f"{key}.json", json.dumps(about, ensure_ascii=True).encode()))
        blocks = [_member(name, data) for name, data in members]
        starts = itertools.accumulate(map(len, blocks), initial=self.size)
        for row, image, start in zip(rows, images, starts, strict=False):  # the json and the end have no row
            row |= {"member_offset": str(start), "member_size": str(len(image))}
        data = b"".join(blocks)
        self._append(data)
        return {"tar": (self.tar, self.size + len(data))}

    def _append(self, data: bytes) -> None:
        """Write behind the last byte that the journal knows; what a kill left there is overwritten."""
        path = _tar(self.output, self.path.stem, self.tar)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if path.exists() else "w+b") as file:
                file.truncate(self.size)
                file.seek(self.size)
                file.write(data)

    def _write(self, entry: dict) -> None:
        self._empty = False
        due = time.monotonic() - self._synced > SYNC_SECONDS  # a power cut may forget that long
        self._journal.append(entry, to_disk=due)
        if due:
            self._synced = time.monotonic()


def forget(output: Path, shard: int, num_shards: int) -> None:
    """Delete the journal of a job, which then begins anew; refused while the job is at work."""
    path = _journal(output, shard, num_shards)
    remove(path, _busy(path))


def join(
    output: Path, num_shards: int, whole: bool = False, once: bool = False, as_suits: bool = False
) -> Path | None:
    """Write the manifest `output` and the table of what was lost, once all jobs are done; None before.

    With `as_suits` a large manifest becomes Parquet beside `output`, which reads far faster, if its paths allow.
    Where the same bytes stand under two labels, both rows are lost; where they stand in two splits, the later one
    (by group) is. With `whole` a group that loses a member so is lost as a whole, and one that a later attempt brought
    is no longer lost; with `once` of two groups with the same bytes only the first stays.
    """
    rows, lost, dropped, what = [], [], {}, None
    for shard in range(num_shards):
        path = _journal(output, shard, num_shards)
        committed = [entry for entry, _ in _committed(path, output)]
        if not committed or not committed[-1].get("done"):
            return None
        what = what or committed[0]["what"]
        if committed[0]["what"] != what:
            raise Refusal(f"{path} was made with {_difference(committed[0]['what'], what)}: run the older jobs again")
        for entry in committed:
            rows += entry.get("rows", ())
            lost += entry.get("lost", ())
            dropped |= entry.get("drop", {})
    rows.sort(key=lambda row: (row["group"], row["generator"] != "real", row["generator"], _place(row)))
    reasons = _same_bytes(rows, once)
    if whole:
        dropped |= {rows[row]["group"]: reason for row, reason in sorted(reasons.items(), reverse=True)}
    reasons |= {i: dropped[row["group"]] for i, row in enumerate(rows) if row["group"] in dropped}
    lost += [row | {"file": _place(row), "reason": reasons[i]} for i, row in enumerate(rows) if i in reasons]
    kept = [row for i, row in enumerate(rows) if i not in reasons]
    if whole:
        standing = {row["group"] for row in kept}
        lost = [row for row in lost if row["group"] not in standing]
    _write_lost(lost, lost_table(output))
    if not kept:
        why = ", ".join(f"{n} {reason}" for reason, n in Counter(row["reason"] for row in lost).most_common(5))
        raise Refusal(f"no image is left of {len(lost)} ({why}): see {lost_table(output)}")
    if as_suits and len(kept) >= LARGE and all(_is_utf8(_place(row)) for row in kept):
        output.unlink(missing_ok=True)  # of a smaller listing before
        output = output.with_suffix(".parquet")
    _write_manifest(kept, output)
    return output


def _write_manifest(rows: list[dict[str, str]], output: Path) -> None:
    folder = os.path.join(os.path.realpath(output.parent), "")  # noqa: PTH118 (ends with a slash)
    for row in rows:
        if "path" not in row and not row["file"].startswith(folder):
            raise Refusal(f"{row['file']!r} lies outside {folder}: choose an --output above all images")
    columns = {"path": [row["path"] if "path" in row else row["file"][len(folder) :] for row in rows]}
    for name in dict.fromkeys(name for row in rows for name in row if name not in ("file", "path")):
        columns[name] = [row.get(name, "") for row in rows]
    Manifest.of(columns, output.parent).write(output)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _place(row: dict[str, str]) -> str:
    return row.get("file") or row.get("path", "")


def _same_bytes(rows: list[dict[str, str]], once: bool) -> dict[int, str]:
    """Why rows cannot stay: the same bytes under two labels, in two splits or, with `once`, in two groups."""
    of: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row.get("sha256"):
            of.setdefault(row["sha256"], []).append(i)
    reasons = {}
    for same in of.values():
        if len({rows[i]["generator"] == "real" for i in same}) == 2:
            reasons |= dict.fromkeys(same, "same-bytes-two-labels")
        else:
            first = rows[same[0]]
            if once:
                reasons |= {i: "same-bytes-two-groups" for i in same if rows[i]["group"] != first["group"]}
            reasons |= {i: "same-bytes-two-splits" for i in same if rows[i]["split"] != first["split"]}
    return reasons


def _write_lost(lost: list[dict[str, str]], path: Path) -> None:
    lost.sort(key=lambda row: (row.get("group", ""), row.get("generator", ""), row.get("file", "")))
    with atomic(path) as new, new.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        out = csv.DictWriter(file, LOST, restval="", extrasaction="ignore")
        out.writeheader()
        out.writerows(lost)


def _journal(output: Path, shard: int, num_shards: int) -> Path:
    return parts_folder(output) / f"{shard}-of-{num_shards}.jsonl"


def _busy(path: Path) -> str:
    return f"another process is working at {path}: wait for it, or stop it"


def _committed(path: Path, output: Path) -> Iterator[tuple[dict, int]]:
    """Entries of a journal whose images are there, each with its end in the file.

    The first bad line ends them, and so does the first whose images a power cut has taken: as the tar file, the
    journal is only ever continued at its end.
    """
    for _, end, entry in entries(path, "end"):
        if "tar" in entry and not _reaches(_tar(output, path.stem, entry["tar"][0]), entry):
            return
        yield entry, end


def _reaches(tar: Path, entry: dict) -> bool:
    return tar.is_file() and tar.stat().st_size >= entry["tar"][1]


def _tar(output: Path, job: str, number: int) -> Path:
    """`job` as in the journal's name: jobs that share the work otherwise never write into each other's files."""
    return output.with_suffix(".shards") / f"{job}-{number:05d}.tar"


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return io.BytesIO(info.tobuf() + data + bytes(-len(data) % tarfile.BLOCKSIZE)).getvalue()


def _difference(old: Any, new: dict[str, Any]) -> str:
    old = old if isinstance(old, dict) else {}
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    return "; ".join(f"{name}={old.get(name)!r}, not {new.get(name)!r}" for name in names) or "nothing known"

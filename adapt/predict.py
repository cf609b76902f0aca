"""A detector on unknown files: one row each, kept as soon as it is known, the same bytes however the work is cut."""

import csv
import fcntl
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from adapt.data.groups import heed_main_process
from adapt.data.images import Unreadable, decode, read_bytes
from adapt.data.inputs import Input
from adapt.data.jpeg import Header, read_header
from adapt.data.masks import EXTENTS
from adapt.data.preprocess import Preprocess
from adapt.detector import Detector
from adapt.errors import Refusal
from adapt.files import atomic, writing
from adapt.overlay import overlay
from adapt.tiles import Localizer, locate, strips

# On a CPU the last bits of a feature depend on the images beside it in the batch. So batches are fixed: the inputs in
# their order, this many at a time, unreadable ones as blanks. Shards, processes and resumes share out whole batches.
BATCH = 32
DIGITS = 6  # significant ones of what is written
COLUMNS = {"path": str, "status": str}
COLUMNS |= {"format": str, "width": int, "height": int}
COLUMNS |= {"jpeg_quality": int, "jpeg_tables": str, "table_distance": int, "subsampling": str}
COLUMNS |= {"logit": float, "p_fake": float, "verdict": str, "family": str, "family_probability": float}
COLUMNS |= {"extent": str, "tool": str, "changed": float, "map": str}  # of a localiser
Row = dict[str, Any]  # a value for each of COLUMNS; None: not known, or not asked for


def batches(count: int) -> int:
    """How many batches so many inputs make."""
    return -(-count // BATCH)


@torch.no_grad()
def predict(
    detector: Detector, inputs: Sequence[Input], numbers: Sequence[int], workers: int = 0
) -> Iterator[tuple[int, list[Row]]]:
    """(number, rows) of each of these batches. `inputs` are all inputs: they decide what a batch is."""
    detector.eval()
    device = detector.backbone.mean.device
    loader = DataLoader(
        _Files(inputs, detector.backbone.preprocess),
        batch_sampler=[range(n * BATCH, min((n + 1) * BATCH, len(inputs))) for n in numbers],
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=heed_main_process,
    )
    classes = getattr(detector.head, "classes", ())
    for number, items in zip(numbers, loader, strict=True):
        features = detector.backbone(torch.stack([pixels for _, pixels, _ in items]).to(device))
        logits = detector.head(features).tolist()
        shares = [None] * len(items)
        if len(classes) > 2:
            shares = detector.head.class_logits(features).double().softmax(dim=1).tolist()
        first = number * BATCH
        yield (
            number,
            [
                _row(inputs[first + i].path, header, reason, logits[i], detector.threshold, classes, shares[i])
                for i, (header, _, reason) in enumerate(items)
            ],
        )


def predict_maps(
    localizer: Localizer, inputs: Sequence[Input], numbers: Sequence[int], folder: Path | None, workers: int = 0
) -> Iterator[tuple[int, list[Row]]]:
    """`predict` of a localiser, which looks at whole images one by one; into `folder` goes an overlay of each.

    Beside the verdict on "by a generator": extent (real, generated or part), tool where it is not real, and the share
    of pixels called changed.
    """
    wanted = [i for n in numbers for i in range(n * BATCH, min((n + 1) * BATCH, len(inputs)))]
    files = DataLoader(
        _Files(inputs, _Whole()), batch_size=None, sampler=wanted, num_workers=workers,
        worker_init_fn=heed_main_process,
    )  # fmt: skip
    head, threshold, rows = localizer.eval().head, localizer.detector.threshold, []
    for i, (header, pixels, reason) in zip(wanted, files, strict=True):
        image = Image.fromarray(pixels.numpy())
        found = None if reason else locate(localizer, localizer.tiling(image)[None])[0]
        row = _row(inputs[i].path, header, reason, found.fake if found else 0.0, threshold, (), None)
        if row["status"] == "ok":
            cut, pieces = head.threshold.item(), strips(found.map, found.pitch, image.height, image.width)
            area = sum(int((part >= cut).sum()) for _, part in pieces) / (image.width * image.height)
            extent = EXTENTS[found.extent.argmax()]
            # the best of the others where it is not real: extent and tool must not contradict each other
            tool = "" if extent == "real" else head.tools[1 + found.tools[1:].argmax()]
            row |= {"extent": extent, "tool": tool or None, "changed": _rounded(area)}
            if folder is not None:
                row["map"] = f"{i:08d}.jpg"
                with atomic(folder / row["map"]) as temporary:
                    overlay(image, found, cut).save(temporary, "JPEG", quality=90, subsampling=0)
        rows.append(row)
        if (i + 1) % BATCH == 0 or i + 1 == len(inputs):
            yield i // BATCH, rows
            rows = []


class _Whole:
    """An image as it is: uint8 (h, w, 3)."""

    shape, dtype = (1, 1, 3), torch.uint8

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image))


class _Files(Dataset):
    """Item i: header (None if there is none), what `preprocess` makes of it, reason ("" where there are pixels)."""

    def __init__(self, inputs: Sequence[Input], preprocess: Preprocess | _Whole) -> None:
        self.inputs, self.preprocess = inputs, preprocess

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> tuple[Header | None, torch.Tensor, str]:
        _, file, sha256, reason = self.inputs[i]
        header, blank = None, torch.zeros(self.preprocess.shape, dtype=self.preprocess.dtype)
        try:
            if reason:
                raise Unreadable(reason)
            data = read_bytes(file)
            if sha256 and hashlib.sha256(data).hexdigest() != sha256:
                raise Unreadable("sha256-mismatch")
            header = read_header(data)
            return header, self.preprocess(decode(data)), ""
        except Unreadable as problem:
            return header, blank, problem.reason


def _row(
    path: str,
    header: Header | None,
    reason: str,
    logit: float,
    threshold: float,
    classes: Sequence[str],
    shares: Sequence[float] | None,
) -> Row:
    if not reason and not math.isfinite(logit):
        reason = "not-finite"
    row = dict.fromkeys(COLUMNS) | {"path": path, "status": reason or "ok"}
    row |= header._asdict() if header else {}
    if reason:
        return row
    logit = _rounded(logit)
    # compared as written: whoever reads the table comes to the same verdict
    fake = logit >= _rounded(threshold)
    row |= {"logit": logit, "p_fake": _rounded(_logistic(logit)), "verdict": "fake" if fake else "real"}
    if fake and shares:
        best = max(range(1, len(classes)), key=shares.__getitem__)  # 0 is real
        row |= {"family": classes[best], "family_probability": _rounded(shares[best])}
    return row


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _logistic(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


class Journal:
    """Finished batches of one process, append-only, in a folder that all jobs and processes share.

    `what` is what the rows depend on; rows that were made of something else are refused.
    """

    def __init__(self, folder: Path, name: str, what: dict[str, Any]) -> None:
        self.path = folder / f"{name}.jsonl"
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise Refusal(f"another process is working at {self.path}: wait for it, or stop it") from error
        entries, whole = _entries(self.path)
        self._file.truncate(whole if len(entries) > 1 else 0)  # else the next entry would continue a torn line
        if len(entries) < 2:
            self._append({"what": what})

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def add(self, number: int, rows: Sequence[Row]) -> None:
        """Keep a batch: after a kill all of it is there, or nothing."""
        self._append({"batch": number, "rows": [list(row.values()) for row in rows]})

    def _append(self, entry: dict[str, Any]) -> None:
        with writing(self.path):
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def kept(folder: Path, what: dict[str, Any]) -> dict[int, list[Row]]:
    """The finished batches of all journals of a folder; refuses those that were made of something else."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        entries, _ = _entries(path)
        if len(entries) < 2:
            continue
        if (before := entries[0].get("what")) != what:
            before = before if isinstance(before, dict) else {}
            changed = ", ".join(name for name in what if before.get(name) != what[name])
            raise Refusal(
                f"{folder} holds rows of another {changed} (a file came, went or changed, or the detector did): "
                f"choose another --output, or delete {folder} to begin anew"
            )
        for entry in entries[1:]:
            found[entry["batch"]] = [dict(zip(COLUMNS, row, strict=True)) for row in entry["rows"]]
    return found


def _entries(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Entries of a journal and the bytes they take; a torn line and what follows was never committed."""
    entries, whole = [], 0
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(entry, dict):
                break
            entries.append(entry)
            whole += len(line)
    return entries, whole


def write_predictions(rows: Sequence[Row], output: Path) -> None:
    """Write .csv (undecodable names as their bytes), .parquet or .jsonl, atomically and always the same bytes."""
    with atomic(output) as temporary:
        if output.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            types = {str: pa.string(), int: pa.int32(), float: pa.float64()}
            columns = {name: pa.array([row[name] for row in rows], types[kind]) for name, kind in COLUMNS.items()}
            pq.write_table(pa.table(columns), temporary)
            return
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            if output.suffix == ".jsonl":
                file.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                out = csv.DictWriter(file, COLUMNS)  # lines end as in a manifest
                out.writeheader()
                out.writerows(rows)


def summary(rows: Sequence[Row]) -> str:
    """Counts of what was found, a line each."""
    counted = {
        "verdict": Counter(row["verdict"] for row in rows if row["verdict"]),
        "not judged": Counter(row["status"] for row in rows if row["status"] != "ok"),
        "family": Counter(row["family"] for row in rows if row["family"]),
        "extent": Counter(row["extent"] for row in rows if row["extent"]),
        "tool": Counter(row["tool"] for row in rows if row["tool"]),
        "JPEG quality": Counter(
            str(row["jpeg_quality"]) if row["jpeg_tables"] == "standard" else "custom tables"
            for row in rows
            if row["jpeg_quality"]
        ),
        "subsampling": Counter(row["subsampling"] for row in rows if row["subsampling"]),
        "other formats": Counter(row["format"] for row in rows if row["format"] not in (None, "JPEG")),
    }
    lines = [f"{len(rows)} files"]
    for title, counts in counted.items():
        common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        rest = sum(count for _, count in common[12:])
        text = ", ".join(f"{name}: {count}" for name, count in common[:12]) + (f", others: {rest}" if rest else "")
        lines += [f"{title:14} {text}"] if counts else []
    return "\n".join(lines)

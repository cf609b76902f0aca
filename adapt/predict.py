"""A detector on unknown files: one row each, kept as soon as it is known, the same bytes however the work is cut."""

import csv
import dataclasses
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
from torch.utils.data import DataLoader, Dataset

from adapt.data.groups import heed_main_process
from adapt.data.images import Unreadable, decode, read_bytes
from adapt.data.inputs import Input
from adapt.data.jpeg import Header, read_header
from adapt.data.preprocess import Preprocess
from adapt.detector import Detector
from adapt.errors import Refusal
from adapt.evaluation.decision import Cuts, Rules
from adapt.evaluation.open_set import familiarity
from adapt.files import atomic, writing

# On a CPU the last bits of a feature depend on the images beside it in the batch. So batches are fixed: the inputs in
# their order, this many at a time, unreadable ones as blanks. Shards, processes and resumes share out whole batches.
BATCH = 32
DIGITS = 6  # significant ones of what is written
UNKNOWN = "unknown"  # family of a fake that looks like none of the training
COLUMNS = {"path": str, "status": str}
COLUMNS |= {"format": str, "width": int, "height": int}
COLUMNS |= {"jpeg_quality": int, "jpeg_tables": str, "table_distance": int, "subsampling": str}
COLUMNS |= {"logit": float, "p_fake": float, "verdict": str, "family": str, "family_probability": float}
Row = dict[str, Any]  # a value for each of COLUMNS; None: not known, or not asked for


def batches(count: int) -> int:
    """How many batches so many inputs make."""
    return -(-count // BATCH)


@torch.no_grad()
def predict(
    detector: Detector,
    inputs: Sequence[Input],
    numbers: Sequence[int],
    workers: int = 0,
    rules: Rules | None = None,
) -> Iterator[tuple[int, list[Row]]]:
    """(number, rows) of each of these batches. `inputs` are all inputs: they decide what a batch is.

    Without `rules` those of the detector that no flag of recipes/predict.py changes.
    """
    detector.eval()
    rules = written(rules or detector.decision.rules(detector.threshold))
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
        of_classes = [None] * len(items)
        if len(classes) > 2:
            of_classes = detector.head.class_logits(features).double()
        first = number * BATCH
        yield (
            number,
            [
                _row(inputs[first + i].path, header, reason, logits[i], rules, classes, of_classes[i])
                for i, (header, _, reason) in enumerate(items)
            ],
        )


class _Files(Dataset):
    """Item i: header (None if there is none), pixels (3, size, size) and reason ("" where there are pixels)."""

    def __init__(self, inputs: Sequence[Input], preprocess: Preprocess) -> None:
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
    rules: Rules,
    classes: Sequence[str],
    class_logits: torch.Tensor | None,
) -> Row:
    if not reason and not math.isfinite(logit):
        reason = "not-finite"
    row = dict.fromkeys(COLUMNS) | {"path": path, "status": reason or "ok"}
    row |= header._asdict() if header else {}
    if reason:
        return row
    logit, standard = _rounded(logit), header is not None and header.jpeg_tables == "standard"
    cuts = rules.at(header.jpeg_quality if standard else None)
    p_fake, verdict = rules.calibration(logit), str(cuts.verdicts(np.float64(logit)))
    row |= {"logit": logit, "p_fake": _rounded(float(p_fake)), "verdict": verdict}
    if verdict == "fake" and class_logits is not None:
        row |= _family(classes, class_logits, rules, cuts)
    return row


def _family(classes: Sequence[str], class_logits: torch.Tensor, rules: Rules, cuts: Cuts) -> Row:
    """The most probable class but `real` and its share of all; `unknown` where the image is too unfamiliar."""
    if familiarity(class_logits[None].numpy(force=True))[rules.familiarity][0] < cuts.known:
        return {"family": UNKNOWN}
    shares = class_logits.softmax(dim=0).tolist()
    best = max(range(1, len(classes)), key=shares.__getitem__)
    return {"family": classes[best], "family_probability": _rounded(shares[best])}


def written(rules: Rules) -> Rules:
    """With cuts of as many digits as logits are written with: whoever reads the table comes to the same verdicts.

    Rounding keeps the order, so what is surely no photograph or no fake here is none with all digits.
    """
    names = ("threshold", "not_real", "not_fake")
    rounded = {
        key: dataclasses.replace(cuts, **{name: _rounded(getattr(cuts, name)) for name in names})
        for key, cuts in rules.cuts.items()
    }
    return dataclasses.replace(rules, cuts=rounded)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


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

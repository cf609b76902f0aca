"""Detectors on unknown files: one row each, in fixed batches; the table and what it counts."""

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast, get_args, get_type_hints

import numpy as np
import torch
from torch.utils.data import Dataset

from adapt.data.crops import Crops, Kind, Whole
from adapt.data.feed import feed
from adapt.data.images import Unreadable, decode_fully, read_bytes
from adapt.data.inputs import Input
from adapt.data.jpeg import Header, read_header
from adapt.data.profiles import Profiles
from adapt.errors import Refusal
from adapt.evaluation.base_rates import Expected, shifted
from adapt.evaluation.calibration import Calibration
from adapt.evaluation.calibration import Kind as CalibrationKind
from adapt.evaluation.conformal import meant
from adapt.evaluation.decision import EVERY, Cuts, Rules, Thresholds, read_decision
from adapt.evaluation.open_set import familiarity
from adapt.evaluation.thresholds import NOT_RECORDED
from adapt.files import atomic
from adapt.hub import detector_folder
from adapt.models.adapters.lora import merged
from adapt.models.descriptors.descriptor import Descriptor
from adapt.models.heads.classifier import Classifier
from adapt.models.heads.linear import LinearHead
from adapt.pages.tables import show

if TYPE_CHECKING:  # a detector itself calls `predict`
    from adapt.detector.detector import Detector, Saved

# On a CPU the last bits of a feature depend on the images beside it in the batch. So batches are fixed: the inputs in
# their order, this many at a time, unreadable ones as blanks. Shards, processes and resumes share out whole batches.
BATCH = 32
ROW_GROUP = 2**15  # rows that are turned into Parquet at once
DIGITS = 6  # significant ones of what is written
UNKNOWN = "unknown"  # family of a fake that looks like none of the training
Look = Crops | Whole | Descriptor  # image -> tensor; `shape` and `dtype` are those of a blank


class Row(TypedDict):
    """What is said of one file. None: not known, or not asked for."""

    path: str
    status: str
    format: str | None
    width: int | None
    height: int | None
    jpeg_quality: int | None
    jpeg_tables: str | None
    table_distance: int | None
    subsampling: str | None
    frames: int | None  # this and the next two say how the file was decoded: `images.Decoded`
    dct_scale: float | None
    profile: str | None
    logit: float | None
    p_fake: float | None
    p_fake_at_prevalence: float | None  # where a share `--prevalence` is fake, not half
    verdict: str | None
    threshold: float | None  # the logit from which this image would be called fake
    threshold_from: str | None  # what it was chosen from
    family: str | None
    family_probability: float | None
    extent: str | None  # this and what follows is of a localiser: adapt/detector/predict_maps.py
    tool: str | None
    changed: float | None
    map: str | None


COLUMNS: dict[str, type] = {name: (*get_args(kind), kind)[0] for name, kind in get_type_hints(Row).items()}


class Stated(TypedDict):
    """The flags of `adapt predict` that change verdicts: the arguments of `Decision.rules`."""

    error_rate: float | None
    max_false_positive_rate: float | None
    thresholds: Thresholds
    calibration: CalibrationKind | None
    known_recall: float
    confidence: float | None
    prevalence: float | None


NOTHING_STATED: Stated = {
    "error_rate": None,
    "max_false_positive_rate": None,
    "thresholds": "global",
    "calibration": None,
    "known_recall": 0.95,
    "confidence": None,
    "prevalence": None,
}


def batches(count: int) -> int:
    """How many batches so many inputs make."""
    return -(-count // BATCH)


@torch.no_grad()
def predict(
    detectors: Sequence["Detector"],
    inputs: Sequence[Input],
    numbers: Sequence[int],
    workers: int = 0,
    crops: Kind = "1",
    rules: Rules | None = None,
    profiles: Profiles = "ignore",
) -> Iterator[tuple[int, list[Row], int]]:
    """(number, rows, encoder passes) of each of these batches. `inputs` are all inputs: they decide what a batch is.

    Several detectors judge as one: by the mean of their calibrated logits, and by the mean share of each class where
    all of them have the same classes. An image is decoded once for all.
    Without `rules` those of the detector that no flag of `adapt predict` changes.
    """
    rules, classes = written(rules or rules_of(detectors)), _common_classes(detectors)
    rules = dataclasses.replace(rules, basis=basis_in_words(detectors, rules))
    looks: list[Look] = [Crops(detector.eval().backbone.preprocess, crops) for detector in detectors]
    place = {}  # of a detector's statistics among what is made of an image
    for d, detector in enumerate(detectors):
        if detector.descriptor is not None:
            place[d] = len(looks)
            looks.append(detector.descriptor)
    which = [list(range(n * BATCH, min((n + 1) * BATCH, len(inputs)))) for n in numbers]
    device = detectors[0].backbone.device
    loader = feed(Files(inputs, looks, profiles), device, workers, join_files, batch_sampler=which)
    with contextlib.ExitStack() as scoring:
        for detector in detectors:
            scoring.enter_context(merged(detector.backbone))
        for number, batch in zip(numbers, loader, strict=True):
            passes, logits, class_logits = 0, [], []
            for d, detector in enumerate(detectors):
                described = batch.made[place[d]] if d in place else None
                features = detector.features(batch.made[d], batch.counts[d], BATCH, described)
                logits.append(detector.head(features).tolist())
                if classes and isinstance(detector.head, LinearHead | Classifier):
                    class_logits.append(detector.head.class_logits(features).double())
                passes += sum(batch.counts[d])
            of_classes = _mean_classes(class_logits) if classes else [None] * len(batch.known)
            first, of_images = number * BATCH, zip(batch.known, batch.reasons, zip(*logits, strict=True), strict=True)
            rows = [
                row_of(
                    inputs[first + i].path, known, reason, joint(of_image, detectors), rules, classes, of_classes[i]
                )
                for i, (known, reason, of_image) in enumerate(of_images)
            ]
            yield number, rows, passes


def joint(logits: Sequence[float], detectors: "Sequence[Detector | Saved]") -> float:
    """One logit of several detectors on one image: the mean of the calibrated ones; of one detector its own."""
    if len(detectors) == 1:
        return logits[0]
    return sum(calibrated_logit(*pair) for pair in zip(detectors, logits, strict=True)) / len(detectors)


def calibrated_logit(detector: "Detector | Saved", logit: float) -> float:
    """A logit that means the same for every detector: the log odds of its calibrated p_fake.

    Of a detector without calibration the logit less the threshold.
    """
    calibration = detector.decision.calibration
    if calibration.kind == "none":
        return logit - detector.threshold
    p = min(max(float(calibration(np.asarray(logit))), 1e-12), 1 - 1e-12)
    return math.log(p / (1 - p))


def rules_stated(folders: Sequence[str | Path], stated: Stated) -> Rules | None:
    """What a detector's validation promises at stated rates; several detectors promise nothing together."""
    if len(folders) == 1:
        threshold, decision = read_decision(detector_folder(folders[0]))
        return decision.rules(threshold, **stated)
    if stated != NOTHING_STATED:
        changed = [name for name, value in stated.items() if value != NOTHING_STATED.get(name)]
        raise Refusal(
            f"{', '.join(changed)}: nothing was measured of several detectors together; name one --detector, or "
            "leave such flags out"
        )
    return None


def about_rules(stated: Stated, rules: Rules | None) -> dict[str, str]:
    """For the reader of a table: what stated rates mean, and what verdicts are worth at a stated prevalence."""
    found = {}
    rates = [name for name in ("error_rate", "max_false_positive_rate") if stated.get(name) is not None]
    if rates:
        named = " and ".join(f"{name} {stated.get(name):g}" for name in rates)
        found["promised"] = f"{named}, {meant(stated['confidence'])}"
    for name, worth in rules.expected.items() if rules else ():
        where = "" if name == EVERY and len(rules.expected if rules else ()) == 1 else f", cuts of {name}"
        found[f"at prevalence {stated['prevalence']:g}{where}"] = _worth(worth)
    return found


def _worth(of: Expected) -> str:
    ppv, npv = (show(one) if one.value == one.value else "n/a (validation has none)" for one in (of.ppv, of.npv))
    return (
        f"of what is called fake {ppv} is fake (PPV), of what is called real {npv} is real (NPV), from {of.real} "
        f"validation groups with photographs and {of.fake} with fakes"
    )


def cut_of(cuts: Cuts) -> float:
    """The logit from which an image is called fake, whatever the other class says."""
    return cuts.threshold if math.isfinite(cuts.threshold) else cuts.not_real


def basis_in_words(detectors: "Sequence[Detector | Saved]", rules: Rules) -> str:
    """What the threshold of these rules was chosen from; `not recorded` of older detectors."""
    if math.isinf(rules.cuts[EVERY].threshold):
        groups = len(detectors[0].decision.tables.get(f"real/{EVERY}", ()))
        return f"stated false alarms, by {groups} validation groups with photographs"
    said = [str(detector.basis or NOT_RECORDED) for detector in detectors]
    words = said[0] if len(said) == 1 else f"mean of {len(said)} calibrated thresholds: {'; '.join(said)}"
    return words + (", one for each JPEG quality" if len(rules.cuts) > 1 else "")


def about_threshold(detectors: "Sequence[Detector | Saved]", rules: Rules | None) -> dict[str, str]:
    """For the reader of a table: the threshold of these detectors under these rules, and its basis."""
    rules = written(rules or rules_of(detectors))
    each = [
        f"{rounded(cut_of(cuts)):g}" + (f" ({name})" if name != EVERY else "") for name, cuts in rules.cuts.items()
    ]
    return {"threshold (logit)": f"{', '.join(each)}, {basis_in_words(detectors, rules)}"}


def rules_of(detectors: "Sequence[Detector | Saved]") -> Rules:
    """Of one detector its own; of several the mean of the calibrated thresholds, without promises."""
    if len(detectors) == 1:
        return detectors[0].decision.rules(detectors[0].threshold)
    threshold = joint([detector.threshold for detector in detectors], detectors)
    return Rules({EVERY: Cuts(threshold)}, Calibration(), "energy")


def _mean_classes(class_logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Class logits (n, classes) of one detector as they are; of several the log of the mean shares."""
    if len(class_logits) == 1:
        return class_logits[0]
    return torch.stack([logits.softmax(dim=1) for logits in class_logits]).mean(dim=0).log()


def _common_classes(detectors: Sequence["Detector"]) -> tuple[str, ...]:
    """The classes that all heads name, real first; none where they differ or are only real and fake."""
    first, *others = (
        head.classes if isinstance(head, LinearHead | Classifier) else ()
        for head in (detector.head for detector in detectors)
    )
    return first if len(first) > 2 and all(classes == first for classes in others) else ()


class Known(NamedTuple):
    """What a file's header says, and how it was decoded: nothing of what there was not."""

    header: Header | None = None
    frames: int | None = None
    dct_scale: float | None = None
    profile: str | None = None


class Files(Dataset):
    """Item i: what is known of the file, what each of `looks` makes of the image (a blank where there is none), and
    reason ("" where there is an image)."""

    def __init__(self, inputs: Sequence[Input], looks: Sequence[Look], profiles: Profiles = "ignore") -> None:
        self.inputs, self.looks, self.profiles = inputs, looks, profiles

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, i: int) -> tuple[Known, list[torch.Tensor], str]:
        _, file, sha256, reason, place = self.inputs[i]
        header, blanks = None, [torch.zeros(look.shape, dtype=look.dtype) for look in self.looks]
        try:
            if reason:
                raise Unreadable(reason)
            data = read_bytes(file, place)
            if sha256 and hashlib.sha256(data).hexdigest() != sha256:
                raise Unreadable("sha256-mismatch")
            header = read_header(data)
            found = decode_fully(data, self.profiles)
            known = Known(header, found.frames, found.dct_scale, found.profile)
            return known, [look(found.image) for look in self.looks], ""
        except Unreadable as problem:
            return Known(header), blanks, problem.reason


class FileBatch(NamedTuple):
    """What `Files` gives of several files, joined where it was made."""

    known: list[Known]
    made: list[torch.Tensor]  # by look, file by file
    counts: list[list[int]]  # by look, how many each file has
    reasons: list[str]


def join_files(items: Sequence[tuple[Known, list[torch.Tensor], str]]) -> FileBatch:
    """What `Files` gives, as the `collate_fn` of a loader; statistics (d,) of an image become a row."""
    known, made, reasons = zip(*items, strict=True)
    by_look = [[torch.atleast_2d(each) for each in of_look] for of_look in zip(*made, strict=True)]
    counts = [[len(each) for each in of_look] for of_look in by_look]
    return FileBatch(list(known), [torch.cat(of_look) for of_look in by_look], counts, list(reasons))


def row_of(
    path: str,
    known: Known,
    reason: str,
    logit: float,
    rules: Rules,
    classes: Sequence[str],
    class_logits: torch.Tensor | None,
) -> Row:
    if not reason and not math.isfinite(logit):
        reason = "not-finite"
    header, *_ = known
    found = {**(header._asdict() if header else {}), **known._asdict()}
    row = cast("Row", {name: found.get(name) for name in COLUMNS})
    row["path"], row["status"] = path, reason or "ok"
    if reason:
        return row
    logit = rounded(logit)
    cuts = rules.at(header.jpeg_quality if header and header.jpeg_tables == "standard" else None)
    p_fake, verdict = rules.calibration(np.asarray(logit)), str(cuts.verdicts(np.asarray(logit)))
    row["logit"], row["p_fake"], row["verdict"] = logit, rounded(float(p_fake)), verdict
    row["threshold"], row["threshold_from"] = rounded(cut_of(cuts)), rules.basis
    if rules.prevalence is not None:
        row["p_fake_at_prevalence"] = rounded(float(shifted(p_fake, rules.prevalence)))
    if verdict == "fake" and class_logits is not None:
        row["family"], row["family_probability"] = _family(classes, class_logits, rules, cuts)
    return row


def _family(classes: Sequence[str], class_logits: torch.Tensor, rules: Rules, cuts: Cuts) -> tuple[str, float | None]:
    """The most probable class but `real` and its share of all; `unknown` where the image is too unfamiliar."""
    if familiarity(class_logits[None].numpy(force=True))[rules.familiarity][0] < cuts.known:
        return UNKNOWN, None
    shares = class_logits.softmax(dim=0).tolist()
    best = max(range(1, len(classes)), key=shares.__getitem__)
    return classes[best], rounded(shares[best])


def written(rules: Rules) -> Rules:
    """With cuts of as many digits as logits are written with: whoever reads the table comes to the same verdicts.

    Rounding keeps the order, so what is surely no photograph or no fake here is none with all digits.
    """
    names = ("threshold", "not_real", "not_fake")
    short = {
        key: dataclasses.replace(cuts, **{name: rounded(getattr(cuts, name)) for name in names})
        for key, cuts in rules.cuts.items()
    }
    return dataclasses.replace(rules, cuts=short)


def rounded(value: float) -> float:
    """To the digits that a table is written with."""
    return float(f"{value:.{DIGITS}g}")


def write_predictions(rows: Iterable[Row], output: Path) -> None:
    """Write .csv (undecodable names as their bytes), .parquet or .jsonl, atomically and always the same bytes."""
    with atomic(output) as temporary:
        if output.suffix == ".parquet":
            _write_parquet(iter(rows), temporary)
            return
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            if output.suffix == ".jsonl":
                file.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                out = csv.DictWriter(file, COLUMNS)  # lines end as in a manifest
                out.writeheader()
                out.writerows(rows)


def _write_parquet(rows: Iterator[Row], file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), int: pa.int32(), float: pa.float64()}
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    with pq.ParquetWriter(file, schema) as out:
        while group := list(itertools.islice(rows, ROW_GROUP)):
            out.write_table(pa.Table.from_pylist(group, schema))


def tally(rows: Iterable[Row]) -> dict[str, Counter[str]]:
    """How many files there are of what."""
    titles = ["files", "verdict", "not judged", "family", "extent", "tool"]
    titles += ["JPEG quality", "subsampling", "other formats"]
    counted: dict[str, Counter[str]] = {title: Counter() for title in titles}
    for row in rows:
        found = {
            "files": "files",
            "verdict": row["verdict"],
            "not judged": row["status"] if row["status"] != "ok" else None,
            "family": row["family"],
            "extent": row["extent"],
            "tool": row["tool"],
            "JPEG quality": quality(row) if row["jpeg_quality"] else None,
            "subsampling": row["subsampling"],
            "other formats": row["format"] if row["format"] != "JPEG" else None,
        }
        for title, name in found.items():
            if name:
                counted[title][name] += 1
    return counted


def quality(row: Row) -> str:
    """What a reader is told of a file's compression: its JPEG quality, or its format; nothing where no header is."""
    if row["jpeg_quality"] is None:
        return row["format"] or ""
    return str(row["jpeg_quality"]) if row["jpeg_tables"] == "standard" else "custom tables"


def summary(counted: dict[str, Counter[str]]) -> str:
    """Counts of what was found, a line each."""
    lines = [f"{counted['files'].total()} files"]
    for title, counts in counted.items():
        if not counts or title == "files":
            continue
        common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        rest = sum(count for _, count in common[12:])
        text = ", ".join(f"{name}: {count}" for name, count in common[:12]) + (f", others: {rest}" if rest else "")
        lines.append(f"{title:14} {text}")
    if phones := sum(counted["not judged"][f"unsupported: {kind}"] for kind in ("heic", "heif")):
        lines.append(f"{phones} files are HEIC, as phones write it: pip install 'adapt-aigi[heic]' to judge them")
    return "\n".join(lines)

"""Audit of a manifest before anything is learned: can the label be told from what must not matter, does an image leak?

Real and generated images reach a disk by different ways, so that a container, a size, a JPEG history or a name may
give the label away (2403.17608), and the same picture may stand in two splits or under two labels.
"""

import contextlib
import hashlib
import itertools
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from adapt.audit.duplicates import Twin, perceptual_hash, pixel_digest
from adapt.audit.metadata import describe_bytes
from adapt.audit.pixels import FAULTS, FIXED, IN_CORNERS, THUMBNAIL, TRACES, Sample, Seen, chosen, look, place_of
from adapt.audit.probes import FOLDS, fixed_place, fixed_probe, thumbnail_probe
from adapt.data.images import FORMATS, Unreadable, decode, opened, read_bytes
from adapt.data.jpeg import nearest_tables
from adapt.data.manifest import Manifest
from adapt.data.rows import Place, Words, split_member
from adapt.errors import Refusal
from adapt.evaluation.jackknife import Interval, leave_out, share_interval
from adapt.evaluation.metrics import CHANCE, outcome_of
from adapt.evaluation.replicates import ALL, distinct, measure
from adapt.progress import bar
from adapt.stop import end_with_parent

FACTORS = {  # what must not matter -> columns of `Facts`, of which a tree may use all
    "format": tuple(f"is_{name.lower()}" for name in FORMATS),
    "byte size": ("log_bytes",),
    "bytes per pixel": ("log_bytes_per_pixel",),
    "dimensions": ("width", "height"),
    "aspect": ("aspect",),
    "JPEG quality": ("jpeg_quality",),
    "JPEG tables": ("table_distance", "progressive"),
    "chroma subsampling": ("subsampling",),
    "EXIF": ("has_exif",),
    "ICC profile": ("has_icc",),
    "pixel mode": ("mode",),
    "file name": ("name_length", "name_digits", "extension", "name_pattern"),
    "folder": ("folder",),
    "history": ("jpeg_before", "scale"),  # columns that `align` writes into its manifest
}
BYTE_COUNTS = ("byte size", "bytes per pixel")
ENCODING = ("format", "JPEG quality", "JPEG tables", "chroma subsampling")
LOSSLESS = "lossless size"
TOGETHER = "all counted together"
TOLERANCE = 0.05  # a factor is a shortcut if its AUC is surely above 0.5 + this in one comparison
ALLOWED = ("file name", "folder", "history")  # see the words of `adapt audit`
UNSURE, TRACE, CONTENT = "cannot tell", "possible trace", "content"
COLOURS = {
    "SHORTCUT": "#D55E00",
    TRACE: "#E69F00",
    CONTENT: "#F0E442",
    "allowed": "#56B4E9",
    "clean": "#0072B2",
    UNSURE: "0.75",
}
FEW = 20  # a generator with fewer images is not compared by itself
ALIGN = "run `adapt align`: one decoder, size and codec for all images"
OLD_JPEG = (
    "one class was JPEG before, whatever its files are now: run `adapt align --codec jpeg --size resizeN`, N and the "
    "quality below those of the sources; audit again, what is left cannot be undone"
)
UNMEASURED = "only the pixels can explain it, and they were not measured: audit without `--pixels 0`"
BYTES = (
    "never show a model byte counts; if all files are written alike, the pixels differ in noise, detail or past "
    "compression: see `lossless size`"
)
LEARNS = (
    "or traces of how the reals were taken and scaled: a detector may learn these instead; "
    "processed reals (`edit`) show which it was, and `adapt align --size resizeN` makes them less"
)
REMEDIES = {
    "byte size": BYTES,
    "bytes per pixel": BYTES,
    "past quality": OLD_JPEG,
    "blocking grid": f"{OLD_JPEG}; without a past quality it may be a decoder that works in blocks of 8",
    "quantised histogram": "contrast was stretched or colours were counted in one class: `adapt align --size resizeN` "
    "closes the gaps; better take the originals",
    "lossless size": "noise, detail or past compression differ: `adapt align --codec jpeg --size resizeN` makes this "
    "less; what is left cannot be cured: say so beside every number",
    FIXED: "a mark, a frame or an aligned object stands {place}: cut it off with `adapt align --size cropN`, or take "
    "other pictures",
    THUMBNAIL: "topics or colours differ even at 32 px: take reals and fakes of the same scenes; align cannot cure it",
    "aspect": "run `adapt align --size resizeN` or cropN: one size for all images",
    "dimensions": "run `adapt align --size resizeN` or cropN: one size for all images",
    "file name": "give the files names without a class (`adapt align` does)",
    "folder": "`adapt align` writes folders without a class; otherwise see that no loader sorts by folder",
    "history": "cannot be undone: align to a JPEG quality below the old ones, or scale all images far down",
    TOGETHER: "remove the shortcuts above; if there are none, several weak ones add up",
    "pixels": "drop one row of each pair, or give both one group and split",
    "near": "look at the pairs: drop one row of each, or give both one group and split",
    "embedding": "look at the pairs: drop one row of each, or give both one group and split",
}


class Unlike(NamedTuple):
    """How well a factor alone tells fakes from reals: AUC of a cross-validated tree, with its 95 % interval."""

    set: str  # ALL: every row
    generator: str  # ALL: every generator, else this one against all reals of the set
    factor: str
    value: float
    low: float
    high: float
    n_real: int
    n_fake: int

    @property
    def surely(self) -> bool:
        return self.low > 0.5 + TOLERANCE

    @property
    def harmless(self) -> bool:
        """Whether the whole interval is near chance, as that of a control that passes.

        An interval that reaches far below 0.5 is no comfort: with so few groups the tree could not learn the factor.
        """
        return outcome_of(Interval(self.low, self.high), 0.5 - CHANCE, 0.5 + CHANCE) == "passed"


@dataclass(frozen=True)
class Facts:
    """What was found in each file of a manifest: n entries each; NaN and "" where `reason` says it is unreadable."""

    columns: dict[str, np.ndarray]  # of `FACTORS`: float64, or object for text
    reason: np.ndarray  # "" where the picture was read
    pixels: np.ndarray  # of `pixel_digest`
    hashes: np.ndarray  # of `perceptual_hash`: None for an even picture too
    sample: Sample | None = None  # what was measured in pixels; None: nothing

    @property
    def ok(self) -> np.ndarray:
        return (self.reason == "").astype(bool)


def examine(manifest: Manifest, processes: int = 1, pixels: int = 0, seed: int = 0) -> Facts:
    """Read and decode every image once; unreadable ones are rows with a reason. About `pixels` images are measured."""
    measured = chosen(manifest, pixels, seed) if pixels else np.zeros(len(manifest), bool)
    places = (manifest.place(row) for row in range(len(manifest)))
    jobs = list(zip(manifest["file"], manifest["sha256"], places, measured.tolist(), strict=True))
    with contextlib.ExitStack() as stack:
        looks: Iterable[_Look] = map(_look, jobs)
        if processes > 1:
            looks = stack.enter_context(get_context("spawn").Pool(processes, end_with_parent)).imap(
                _look, jobs, chunksize=16
            )
        found: list[_Look] = list(bar(iterable=looks, total=len(jobs), unit="image", desc="examine"))
    header: dict[str, float | str] = next((look.header for look in found if look.header), {})
    columns = {
        name: np.array(
            [look.header[name] if look.header else "" if isinstance(value, str) else math.nan for look in found],
            object if isinstance(value, str) else np.float64,
        )
        for name, value in header.items()
    }
    columns |= _names(manifest["path"])
    columns |= {name: _numbers(manifest[name]) for name in FACTORS["history"] if name in manifest.columns}
    reason, digest, code = (
        np.array([getattr(of, name) for of in found], object) for name in ("reason", "pixels", "hash")
    )
    return Facts(columns, reason, digest, code, _sample(found))


class _Look(NamedTuple):
    header: dict[str, float | str] | None = None
    reason: str = ""
    pixels: str = ""
    hash: int | None = None
    seen: Seen | None = None


def _sample(found: Sequence[_Look]) -> Sample | None:
    rows = np.array([row for row, of in enumerate(found) if of.seen], np.int64)
    seen = [of.seen for of in found if of.seen]
    if not seen:
        return None
    numbers = {name: np.array([one.numbers[name] for one in seen], np.float64) for name in seen[0].numbers}
    return Sample(rows, numbers, np.stack([one.thumbnail for one in seen]), np.stack([one.places for one in seen]))


def _look(job: tuple[str, str, Place | None, bool]) -> _Look:
    file, sha256, place, measured = job
    try:
        data = read_bytes(file, place)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise Unreadable("sha256-mismatch")
        image = decode(data)
        seen = look(image) if measured else None
        return _Look(describe_more(data), "", pixel_digest(image), perceptual_hash(image), seen)
    except Unreadable as problem:
        return _Look(None, problem.reason)


def describe_more(data: bytes) -> dict[str, float | str]:
    """What `metadata.describe` says of a file's bytes, and what only an audit asks for.

    `log_bytes_per_pixel`; `table_distance` (0: standard IJG tables; NaN: none), `progressive`, `has_icc` (0/1),
    `mode` (Pillow's, e.g. RGBA), `lossless` (0/1: the pixels cannot depend on how the file was written).
    """
    header = describe_bytes(data)
    with opened(data) as image:
        lossy = header["is_jpeg"] or image.format in ("AVIF", "JPEG2000", "HEIF")  # as a rule; no header says so
        lossy = lossy or (image.format == "WEBP" and b"VP8L" not in data[:64])
        lossy = lossy or (image.format == "TIFF" and "jpeg" in str(image.info.get("compression")))
        return {
            **header,
            "log_bytes_per_pixel": header["log_bytes"] - math.log(header["width"] * header["height"]),
            "table_distance": nearest_tables(image)[1],
            "progressive": float("progressive" in image.info),
            "has_icc": float("icc_profile" in image.info),
            "mode": image.mode,
            "lossless": float(not lossy),
        }


def _names(paths: Words) -> dict[str, np.ndarray]:
    """Columns of what a path says; `name_pattern` has # for each run of digits, so `fake_0012` is `fake_#`."""
    places = [posixpath.split("/".join(split_member(path)) if split_member(path)[1] else path) for path in paths]
    stems, suffixes = zip(*(posixpath.splitext(name) for _, name in places), strict=True)
    return {
        "name_length": np.array([len(stem) for stem in stems], np.float64),
        "name_digits": np.array([sum(c.isdigit() for c in stem) for stem in stems], np.float64),
        "extension": np.array(suffixes, object),
        "name_pattern": np.array([re.sub(r"\d+", "#", stem) for stem in stems], object),
        "folder": np.array([folder for folder, _ in places], object),
    }


def _numbers(values: Words) -> np.ndarray:
    """Text as numbers, NaN where there is none: other manifests may use these column names for something else."""

    def number(value: str) -> float:
        try:
            return float(value)
        except ValueError:
            return math.nan

    return np.array([number(value) for value in values], np.float64)


def shortcuts(
    manifest: Manifest,
    facts: Facts,
    resamples: int = 1000,
    seed: int = 0,
    allow: Sequence[str] = ALLOWED,
) -> tuple[list[Unlike], dict[str, str]]:
    """AUC of every factor over all rows, in each set, and for each generator of a set; and each factor's finding.

    Findings: `SHORTCUT` (surely above chance in one of these comparisons), `allowed` (one, but named in `allow`),
    `possible trace` (one, of `TRACES`: generation itself may leave it), `content` (byte counts of files that are all
    written alike, so that only the pixels explain them; where those were measured, what was found of `LOSSLESS`),
    `clean` (the whole interval of every
    comparison lies in 0.5 +- `CHANCE`), else `cannot tell`: too few groups. As all comparisons must be harmless,
    their number makes no factor clean by chance. `TOGETHER` is a tree over the columns of all factors that count;
    where pixels were measured, over the measured rows. Refuses rows without readable reals and fakes.
    """
    names_of_all = [*FACTORS, *FAULTS, FIXED, THUMBNAIL, *TRACES]
    if unknown := set(allow) - set(names_of_all):
        raise Refusal(f"unknown factor {sorted(unknown)[0]!r}: allow some of {', '.join(names_of_all)}")
    ok, fake = facts.ok, manifest.fake
    if not (ok & fake).any() or not (ok & ~fake).any():
        raise Refusal("an audit compares readable real with readable fake images: add rows of both")
    every = _Rows.of(manifest, np.flatnonzero(ok), resamples, seed)
    known = {factor: names for factor, names in FACTORS.items() if set(names) <= set(facts.columns)}
    tables = {factor: [facts.columns[name][every.rows] for name in names] for factor, names in known.items()}
    cells = {factor: every.compare(factor, table, predict) for factor, table in tables.items()}
    counted, sample = every, facts.sample
    if sample is not None and len(set(fake[sample.rows])) == 2:
        counted = _Rows.of(manifest, sample.rows, resamples, seed)
        tables = {factor: [facts.columns[name][sample.rows] for name in names] for factor, names in known.items()}
        measured = {name: [sample.numbers[column] for column in of] for name, of in (FAULTS | TRACES).items()}
        cells |= {factor: counted.compare(factor, measured[factor], predict) for factor in FAULTS}
        cells[FIXED] = counted.compare(FIXED, [sample.places], lambda of, *told: fixed_probe(of[0], *told))
        cells[THUMBNAIL] = counted.compare(
            THUMBNAIL, [sample.thumbnails], lambda of, *told: thumbnail_probe(of[0], *told)
        )
        cells |= {factor: counted.compare(factor, measured[factor], predict) for factor in TRACES}
        tables |= {factor: measured[factor] for factor in FAULTS}
    findings = {factor: _finding(factor, found, allow) for factor, found in cells.items()}
    alike = {key: _written_alike(facts, every.rows[rows]) for key, rows in every.where.items()}
    out = set(allow)
    for factor in BYTE_COUNTS:
        unsure = findings[factor] == UNSURE
        decide = [(cell.set, cell.generator) for cell in cells[factor] if cell.surely or unsure]
        if findings[factor] in (UNSURE, "SHORTCUT") and all(alike[key] for key in decide):
            findings[factor] = findings.get(LOSSLESS, CONTENT)
            out |= {factor}
    together = itertools.chain(*(table for factor, table in tables.items() if factor not in out))
    cells[TOGETHER] = counted.compare(TOGETHER, list(together), predict)
    findings[TOGETHER] = _finding(TOGETHER, cells[TOGETHER], ())
    return list(itertools.chain(*cells.values())), findings


class _Rows(NamedTuple):
    """Rows that are compared: all readable ones, or those of which pixels were measured; n in number."""

    rows: np.ndarray  # in the manifest
    fake: np.ndarray
    folds: np.ndarray
    counts: np.ndarray  # of `leave_out`, as is `column`
    column: np.ndarray
    where: dict[tuple[str, str], np.ndarray]  # (set, generator) -> which of them

    @classmethod
    def of(cls, manifest: Manifest, rows: np.ndarray, resamples: int, seed: int) -> "_Rows":
        sets, groups, fake = manifest["set"][rows], manifest["group"][rows], manifest.fake[rows]
        where = {(ALL, ALL): np.full(len(rows), True)} | _comparisons(sets, manifest["generator"][rows])
        return cls(rows, fake, _folds(groups, fake, seed), *leave_out(sets, groups, resamples, seed), where)

    def compare(self, factor: str, columns: Sequence[np.ndarray], classify: "_Classify") -> list[Unlike]:
        """One factor in every comparison, from columns (n, ...) and a classifier that sees them and nothing else."""
        found = []
        for (of_set, generator), rows in self.where.items():
            here = self.fake[rows]
            p = classify([values[rows] for values in columns], here, self.folds[rows])
            aucs = _aucs(p, here, self.counts, self.column[rows])
            groups = min(len(np.unique(self.column[rows][here])), len(np.unique(self.column[rows][~here])))
            low, high = share_interval(aucs, groups)
            found.append(
                Unlike(of_set, generator, factor, float(aucs[0]), low, high, int((~here).sum()), int(here.sum()))
            )
        return found


_Classify = Callable[[Sequence[np.ndarray], np.ndarray, np.ndarray], np.ndarray]


def _finding(factor: str, found: Sequence[Unlike], allow: Sequence[str]) -> str:
    if _clean(found) and not any(cell.surely for cell in found):
        return "clean"
    if factor in allow:
        return "allowed"
    if not any(cell.surely for cell in found):
        return UNSURE
    return TRACE if factor in TRACES else "SHORTCUT"


def fails(findings: dict[str, str]) -> bool:
    """Whether an audit with these findings has failed: a shortcut, or a factor that is no trace and cannot be told."""
    return any(
        finding == "SHORTCUT" or (finding == UNSURE and name not in TRACES) for name, finding in findings.items()
    )


def place_of_mark(manifest: Manifest, facts: Facts, cells: Sequence[Unlike]) -> str:
    """Where the fixed pattern stands that the worst comparison has found, in words."""
    sample = facts.sample
    if sample is None:
        return "somewhere"
    cell = worst(cells, FIXED)
    own = np.isin(manifest["set"][sample.rows], distinct(manifest["set"]) if cell.set == ALL else [cell.set])
    if cell.generator != ALL:
        own &= np.isin(manifest["generator"][sample.rows], ["real", cell.generator])
    entry = fixed_place(sample.places[own], manifest.fake[sample.rows][own], IN_CORNERS)
    return "somewhere" if entry is None else place_of(entry)


def _clean(found: Sequence[Unlike]) -> bool:
    """Whether one factor is near chance in every comparison.

    A generator in too few groups for an interval is passed over where the factor is the same in all of its files.
    """
    return any(cell.harmless for cell in found) and all(
        cell.harmless or (np.isnan(cell.low) and cell.value == 0.5) for cell in found
    )


def _written_alike(facts: Facts, rows: np.ndarray) -> bool:
    """Have these files one encoding, as far as a header tells? Then their byte counts come from the pictures alone.

    A lossless file shows no less of the picture for being small; a lossy WebP keeps its quality secret.
    """
    names = itertools.chain(*(FACTORS[factor] for factor in ENCODING))
    same = all(len(set(facts.columns[name][rows].astype(str))) <= 1 for name in names)
    told = (facts.columns["lossless"][rows] == 1) | (facts.columns["is_jpeg"][rows] == 1)
    return same and bool(told.all())


def _comparisons(sets: np.ndarray, generators: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Rows by (set, ALL) where there are several sets, and by (set, generator): a generator and the set's reals."""
    found = {}
    for name in distinct(sets):
        here = sets == name
        real, fakes = here & (generators == "real"), distinct(generators[here & (generators != "real")])
        if real.any() and fakes and len(set(sets)) > 1:
            found[name, ALL] = here.astype(bool)
        for fake in fakes if real.any() and len(fakes) > 1 else ():
            own = here & (generators == fake)
            if own.sum() >= FEW:
                found[name, fake] = (real | own).astype(bool)
    return found


def _folds(groups: np.ndarray, fake: np.ndarray, seed: int) -> np.ndarray:
    """Fold (n,) of each row: no group is divided, and groups of reals, of fakes and mixed ones dealt out evenly."""
    _, inverse = np.unique(groups, return_inverse=True)
    share = np.bincount(inverse, fake) / np.bincount(inverse)
    shuffled = np.random.default_rng(seed).permutation(len(share))
    fold = np.empty(len(share), np.int64)
    fold[shuffled[np.argsort(share[shuffled], kind="stable")]] = np.arange(len(share)) % FOLDS
    return fold[inverse]


def predict(columns: Sequence[np.ndarray], fake: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """p (n,) of fake for every row, from a tree of depth 3 fitted on the other folds: (n,) each.

    Text is replaced by the share of fakes that it has in those folds (0.5 for what occurs fewer than 5 times).
    """
    from sklearn.tree import DecisionTreeClassifier

    p = np.full(len(fake), 0.5)
    if all(len(set(values.astype(str))) <= 1 for values in columns):
        return p
    for fold in range(FOLDS):
        held, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not len(held) or len(set(fake[rest])) < 2:
            continue
        weight = np.where(fake[rest], 0.5 / fake[rest].mean(), 0.5 / (~fake[rest]).mean())
        table = np.stack(
            [_shares(v, rest, fake[rest], weight) if v.dtype == object else v for v in columns],
            axis=1,
        )
        tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=5, random_state=0)
        p[held] = tree.fit(table[rest], fake[rest], weight).predict_proba(table[held])[:, 1]
    return p.round(6)  # else the last bits of equal predictions would order the folds


def _shares(values: np.ndarray, rest: np.ndarray, fake: np.ndarray, weight: np.ndarray) -> np.ndarray:
    _, inverse = np.unique(values.astype(str), return_inverse=True)
    size = inverse.max() + 1
    seen, total = np.bincount(inverse[rest], minlength=size), np.bincount(inverse[rest], weight, size)
    share = np.bincount(inverse[rest], weight * fake, size) / np.maximum(total, 1e-9)
    return np.where(seen >= 5, share, 0.5)[inverse]


def _aucs(p: np.ndarray, fake: np.ndarray, counts: np.ndarray, column: np.ndarray) -> np.ndarray:
    """AUC (1 + b,) of rows that belong to groups `column` of the resamples `counts`; see `leave_out`.

    A tree has few distinct values: rows of one value and class are counted together, group by group, so that 100,000
    images cost no more than their groups.
    """
    cells, inverse = np.unique(np.stack([p, fake], axis=1), axis=0, return_inverse=True)
    used, place = np.unique(column, return_inverse=True)
    rows = np.zeros((len(used), len(cells)), np.float32)  # counts below 2**24 are exact
    np.add.at(rows, (place, inverse.ravel()), 1)
    aucs = []
    for part in np.array_split(counts, max(1, len(counts) * len(used) // 20_000_000)):
        weights = part[:, used].astype(np.float32) @ rows
        aucs.append(measure(cells[:, 0], cells[:, 0], cells[:, 1].astype(bool), weights, math.nan)["auc"])
    return np.concatenate(aucs)


def worst(cells: Sequence[Unlike], factor: str) -> Unlike:
    """Of all comparisons of a factor the one most surely above chance."""
    own = (cell for cell in cells if cell.factor == factor)
    return max(own, key=lambda cell: (-1.0 if np.isnan(cell.low) else cell.low, cell.value))


def decisive(cells: Sequence[Unlike], factor: str, finding: str) -> Unlike:
    """The comparison behind a finding: the worst one; of `cannot tell` the one that may be farthest from chance."""
    known = [cell for cell in cells if cell.factor == factor and not np.isnan(cell.low)]
    if finding != UNSURE or not known:
        return worst(cells, factor)
    return max(known, key=lambda cell: max(cell.high - 0.5, 0.5 - cell.low))


def remedies(
    cells: Sequence[Unlike], findings: dict[str, str], found: Sequence[Twin], mark: str = "at one place"
) -> list[str]:
    """What to do about each finding, a line each; `mark` says where a fixed pattern stands."""
    lines = []
    for factor, finding in findings.items():
        if finding == "SHORTCUT" or (finding == "allowed" and worst(cells, factor).surely):
            counted = "" if finding == "SHORTCUT" else " (allowed)"
            remedy = REMEDIES.get(factor, ALIGN).format(place=mark)
            lines.append(f"{factor}{counted}: AUC {worst(cells, factor).value:.3f}; {remedy}")
        elif finding == CONTENT and worst(cells, factor).surely:
            lines.append(f"{factor} (content): AUC {worst(cells, factor).value:.3f}; {UNMEASURED}")
    if unsure := [factor for factor, finding in findings.items() if finding == UNSURE and factor not in TRACES]:
        several = len({(cell.set, cell.generator) for cell in cells}) > 1
        where = " of a comparison (audit.csv has all)" if several else ""
        few = f"n is too small, the interval{where} reaches beyond 0.5 +- {CHANCE}: audit more images"
        lines.append(f"cannot tell of {', '.join(unsure)}: {few}")
    for kind in ("pixels", "near", "embedding"):
        if pairs := sum(twin.kind == kind for twin in found):
            what = "same pixels" if kind == "pixels" else "nearly the same picture"
            lines.append(f"{what} in two splits or under two labels: {pairs} rows; {REMEDIES[kind]}")
    traces = [f"{name} {worst(cells, name).value:.3f}" for name, finding in findings.items() if finding == TRACE]
    if traces:
        lines.append(f"{TRACE}s of generation (AUC): {', '.join(traces)}; {LEARNS}")
    return lines or ["nothing to do"]


def balance(manifest: Manifest, facts: Facts, name: str = "set") -> list[list[str]]:
    """Rows of a table, header first: readable images of each split and value of a column, by class.

    With `name` = "source" it shows whether one class has a source of its own.
    """
    rows = [["split", name, "real", "processed real", "fake", "groups", "generators", "unreadable"]]
    kinds = (~manifest.fake & (manifest["edit"] == ""), ~manifest.fake & (manifest["edit"] != ""), manifest.fake)
    for split, value in distinct(zip(manifest["split"], manifest[name], strict=True)):
        here = ((manifest["split"] == split) & (manifest[name] == value)).astype(bool)
        numbers = [(here & kind.astype(bool) & facts.ok).sum() for kind in kinds]
        generators = len(set(manifest["generator"][here]) - {"real"})
        numbers += [len(set(manifest["group"][here])), generators, (here & ~facts.ok).sum()]
        rows.append([split, value or "-", *map(str, numbers)])
    return rows


def figure(cells: Sequence[Unlike], findings: dict[str, str]) -> Figure:
    """A bar for the decisive comparison of each factor, with its interval; the colour is the finding."""
    shown = [decisive(cells, factor, finding) for factor, finding in findings.items()]
    picture = Figure(figsize=(7, 0.32 * len(shown) + 1.6), layout="constrained")
    axes = picture.subplots()
    axes.barh(
        range(len(shown)), [c.value - 0.5 for c in shown], left=0.5, color=[COLOURS[v] for v in findings.values()]
    )
    axes.hlines(range(len(shown)), [c.low for c in shown], [c.high for c in shown], color="black", linewidth=1.4)
    axes.axvline(0.5, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(shown)), findings)
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(min(0.45, *(c.low for c in shown)), 1.01))
    axes.set_xlabel("AUC of the worst comparison, 95 % interval")
    axes.set_title("What tells fakes from reals without knowing what generators do", fontsize=10)
    patches = [
        Patch(color=colour, label=finding) for finding, colour in COLOURS.items() if finding in findings.values()
    ]
    axes.legend(handles=patches, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return picture

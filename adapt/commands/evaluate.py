"""Measure detectors from tables of their scores: numbers with 95 % intervals, differences, a page.

    adapt evaluate scores.csv                               (CSV, Parquet or JSON lines, of any detector)
    adapt evaluate scores.csv --score p --label is_fake --group_by source --path file --generator model --view quality
    adapt evaluate a.csv b.csv c.jsonl                      (several detectors on the same images, every pair compared)
    adapt evaluate --views none=clean.csv qf40=jpeg40.csv   (one detector, a table a view)
    adapt evaluate --scores results/lora/scores.parquet --compare results/probe/scores.parquet

A table has a row per image (and view): a score, a label or the name of a generator, and a path. Columns with common
names are found, and one line says what was taken for what. Two that may be meant, and values that are not understood,
are refused with row, column and the flag that says it. Scores are probabilities where all lie in 0..1, else logits.

Writes metrics.csv, controls.csv, table.md and figures/ beside the scores (or into --output_dir), with --compare also
comparison.csv, for scores with class logits also attribution.csv, confusion.csv and a figure of each view, and
prints the headline table, and how many images and groups stand behind it. Of several detectors: table.md with a row
for each, detectors.csv and differences.csv, on the rows that all tables have and all detectors could read. Threshold,
calibration and the verdicts at --error_rate are fitted on validation rows; in a table without a column of splits every
row is a test row, nothing is fitted, and the threshold is logit 0. The error rate is promised on average over
validation samples; with --confidence 0.9 for this very detector, with probability 0.9. --prevalence 0.01 adds what a
verdict is worth where one image in a hundred is fake (PPV, NPV), and states average precision for it.

Intervals count groups. A table without a column `group` has one group an image, as if all images were independent; if
some are copies of one picture, or from one source, --group_by names the column that says so.

No manifest, model or network is needed (adapt/evaluation/README.md has all columns). Time: about 3 s for a few hundred
rows, 12 s on one core for 1,700 test images x 4 views x 7 generators with 1,000 resamples. Expected of scores of ours:
the numbers that the run itself reported, to the last digit; two calls write the same bytes.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapt.cli import run
from adapt.errors import Refusal
from adapt.flags import Columns, Intervals

if TYPE_CHECKING:  # --help needs none of them
    from adapt.evaluation.brought import Brought
    from adapt.evaluation.metrics import Cell

ONE_TABLE = ("compare", "permuted", "metadata", "error_rate", "confidence", "classes")  # of one detector alone
WRITTEN = (
    *("table.md", "metrics.csv", "controls.csv", "comparison.csv", "attribution.csv", "confusion.csv"),
    *("detectors.csv", "differences.csv"),
)


@dataclass(frozen=True)
class Config(Intervals, Columns):
    """What to evaluate."""

    scores: tuple[Path, ...] = ()  # a table a detector; --scores may be left out in front of them
    compare: Path | None = None  # scores of a second detector on the same test rows, compared by group
    permuted: Path | None = None  # control: scores of the same recipe trained on permuted labels
    metadata: Path | None = None  # control: scores of a classifier that saw file metadata only
    output_dir: Path | None = None  # default: the folder of the (first) scores
    views: tuple[str, ...] = ()  # NAME=FILE, a table of one detector for each view, in place of --scores
    names: tuple[str, ...] = ()  # of several detectors; default: the names of the files without their suffix
    threshold: tuple[float, ...] = ()  # a logit for all tables, or one for each; default: picked on validation rows
    error_rate: float = 0.05  # the error rate whose verdicts (real, fake, unsure) the page measures
    confidence: float | None = None  # probability that this rate holds for this detector; None: it holds on average
    prevalence: float | None = None  # share of fakes for ppv, npv and ap; None: neither of the two, and ap at 0.5
    classes: Literal["family", "generator"] | None = None  # what columns logit_<class> name; default: found out

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.error_rate < 1:
            raise Refusal(f"--error_rate {self.error_rate:g}: give a rate between 0 and 1, such as 0.05")
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise Refusal(f"--confidence {self.confidence:g}: give a probability between 0 and 1, such as 0.9")
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise Refusal(f"--prevalence {self.prevalence:g}: give a share of fakes between 0 and 1, such as 0.01")
        tables = max(1, len(self.scores)) + (self.compare is not None)
        if len(self.threshold) not in (0, 1, tables):
            both, two = ("both", "the two") if tables == 2 else (f"all {tables}", "them")
            most = "one" if tables == 1 else f"one for {both} tables, or one for each of {two}"
            raise Refusal(f"--threshold {' '.join(f'{t:g}' for t in self.threshold)}: give {most}")
        if not all(map(math.isfinite, self.threshold)):
            raise Refusal(f"--threshold {' '.join(f'{t:g}' for t in self.threshold)}: give a finite logit")

    @property
    def columns(self) -> Columns:
        """What the tables' columns are called."""
        return Columns(**{field.name: getattr(self, field.name) for field in fields(Columns)})

    @property
    def files(self) -> dict[str, Path]:
        """Every table, by what it is called in the record."""
        if self.views:
            found: dict[str, Path | None] = {
                f"scores {view}": Path(file) for view, _, file in (word.partition("=") for word in self.views)
            }
        elif len(self.scores) > 1:
            found = {f"scores {name}": path for name, path in zip(self.detectors, self.scores, strict=True)}
        else:
            found = {"scores": self.scores[0]}
        found |= {"b": self.compare, "permuted": self.permuted, "metadata": self.metadata}
        return {name: path for name, path in found.items() if path is not None}

    @property
    def detectors(self) -> tuple[str, ...]:
        """The name of each table's detector; refuses one that stands twice."""
        found = self.names or tuple(path.stem for path in self.scores)
        if twice := [name for name in found if found.count(name) > 1]:
            raise Refusal(f"two detectors are called {twice[0]!r}: give each its own name with --names")
        return found


def main(cfg: Config) -> None:
    _check(cfg)
    folder = cfg.output_dir or next(iter(cfg.files.values())).parent
    for path in cfg.files.values():
        if path.parent.resolve() == folder.resolve() and path.name in WRITTEN:
            raise Refusal(f"{path} would be written over: rename it, or give another folder with --output_dir")
    if len(cfg.scores) > 1:
        _several(cfg, folder)
    else:
        _one(cfg, folder)
    beside = "detectors.csv and differences.csv" if len(cfg.scores) > 1 else "metrics.csv and figures/"
    print(f"{folder / 'table.md'}: the page; {beside} lie beside it")


def _check(cfg: Config) -> None:
    """Refuse tables and flags that do not go together."""
    if bool(cfg.scores) == bool(cfg.views):
        raise Refusal("give tables of scores, as `adapt evaluate scores.csv`, or --views NAME=FILE ...: one of both")
    for word in cfg.views:
        if not all(word.partition("=")):
            raise Refusal(f"--views {word}: give NAME=FILE, such as qf40=scores_at_40.csv")
    for field in fields(cfg) if len(cfg.scores) > 1 else ():
        if field.name in ONE_TABLE and getattr(cfg, field.name) != field.default:
            raise Refusal(f"--{field.name} goes with one table of scores: run it for each")
    if cfg.names and len(cfg.names) != len(cfg.scores):
        raise Refusal(f"--names {' '.join(cfg.names)}: give one for each of the {len(cfg.scores)} tables")


def _one(cfg: Config, folder: Path) -> None:
    from adapt.evaluation.attribution import attribute
    from adapt.evaluation.base_rates import predictive_cells
    from adapt.evaluation.brought import read
    from adapt.evaluation.decision import fit_decision
    from adapt.evaluation.metrics import compare, controls, evaluate
    from adapt.evaluation.open_set import classes_of
    from adapt.evaluation.promises import keep
    from adapt.evaluation.replicates import PREVALENCE
    from adapt.evaluation.samples import samples
    from adapt.evaluation.thresholds import basis_of
    from adapt.pages.detectors import table_section
    from adapt.pages.figures import write_figures
    from adapt.pages.folds import FOLDS_EVALUATED
    from adapt.pages.promises import base_rate_section, promises_section
    from adapt.pages.tables import Origin, sizes, text, write_tables

    views = dict(word.split("=", 1) for word in cfg.views)
    paths = [Path(file) for file in views.values()] or cfg.scores
    brought = read(paths, cfg.columns, tuple(views))
    scores, lines = brought.scores, _say(brought)
    provenance = read_record(paths[0].with_name("provenance.json"))
    given = brought.cut(cfg.threshold[0] if cfg.threshold else None)
    prevalence = PREVALENCE if cfg.prevalence is None else cfg.prevalence
    cells, decision = evaluate(scores, cfg.resamples, cfg.seed, given, prevalence), fit_decision(scores)
    threshold = cells[0].value  # the given one, or that of the validation rows
    if scores.folds is None:  # a promise is one detector's
        cells += keep(scores, decision, threshold, cfg.error_rate, cfg.resamples, cfg.seed, cfg.confidence)

    permuted, metadata = (
        None if path is None else read([path], cfg.columns).scores for path in (cfg.permuted, cfg.metadata)
    )
    checked = controls(
        scores, permuted=permuted, metadata=metadata, resamples=cfg.resamples, seed=cfg.seed, threshold=given
    )
    named = attribute(scores, cfg.resamples, cfg.seed, cfg.classes, decision) if classes_of(scores) else None
    differences = []
    if cfg.compare is not None:
        other = read([cfg.compare], cfg.columns)
        lines += _say(other)
        thresholds = (given, other.cut(cfg.threshold[-1] if cfg.threshold else None))
        differences = compare(scores, other.scores, cfg.resamples, cfg.seed, thresholds, prevalence)

    provenance["evaluation"] = _record(cfg, prevalence)
    sections, behind = [], samples(scores)
    if scores.folds is None:
        sections.append(promises_section(cells, decision, cfg.error_rate, cfg.confidence))
    else:
        sections.append(FOLDS_EVALUATED)
    if cfg.prevalence is not None:
        cells += predictive_cells(cells, cfg.prevalence)
        sections.append(base_rate_section(cells, cfg.prevalence))
    origin: Origin | None = None if scores.folds is None or cfg.threshold else "folds"
    basis = basis_of(scores) if origin is None and given is None else None
    if given is not None and not cfg.threshold:
        origin = "half"
        lines.append(f"threshold: logit 0 (p_fake 0.5), {NOTHING_FITTED}")
    warnings = _upside_down(brought.name, cells)
    if lines or warnings:
        sections.append(table_section("The table", [*lines, *warnings]))
    write_tables(cells, folder, provenance, checked, differences, sections, named, behind, prevalence, origin, basis)
    write_figures(scores, cells, folder / "figures", named)
    print(text(cells))
    if basis and basis.images:
        print(f"threshold: logit {threshold:.4g}, {basis}")
    if given is not None:
        fitted = "given" if cfg.threshold else NOTHING_FITTED
        print(f"threshold: logit {given:.4g} (p_fake {0.5 * (1 + math.tanh(given / 2)):.3f}), {fitted}")
    print("\n".join([sizes(behind), *warnings]))


def _several(cfg: Config, folder: Path) -> None:
    """Several detectors, a table each, on the rows that all tables have."""
    import numpy as np

    from adapt.evaluation.brought import read
    from adapt.evaluation.joined import join, measure
    from adapt.evaluation.replicates import PREVALENCE
    from adapt.evaluation.samples import samples
    from adapt.pages.detectors import headline, shown_pairs, table_section, write_detectors
    from adapt.pages.tables import aligned, sizes

    brought = [read([path], cfg.columns, name=name) for name, path in zip(cfg.detectors, cfg.scores, strict=True)]
    lines = {one.name: _say(one) for one in brought}
    joined = join(brought)
    split = any(not one.without_splits for one in brought)  # of the images, whichever table says it
    given = dict(zip(lines, cfg.threshold if len(cfg.threshold) > 1 else cfg.threshold * len(lines), strict=False))
    thresholds = {name: given.get(name, None if split else 0.0) for name in lines}
    prevalence = PREVALENCE if cfg.prevalence is None else cfg.prevalence
    found = measure(joined, thresholds, cfg.resamples, cfg.seed, prevalence)
    rows, warnings = len(next(iter(joined.tables.values()))), []
    for name, own in lines.items():
        cut, fitted = found.thresholds[name], "picked on its validation rows" if split else NOTHING_FITTED
        none = "none, without validation rows of both classes: give one with --threshold"
        found_at = f"logit {cut:.4g}, {'given' if given else fitted}"
        own.append(f"threshold: {none if cut != cut else found_at}")
        if found.unreadable[name]:
            own.append(f"{found.unreadable[name]} test rows have no score here, and are left out of all detectors")
        if joined.only[name]:
            own.append(f"{joined.only[name]} rows stand in this table but not in all: left out, {rows} are compared")
            print(f"{name}: {own[-1]}")
        warnings += _upside_down(name, found.cells[name])
    sections = [table_section("Warnings", warnings)] if warnings else []
    sections += [table_section(f"The table of {name}", own) for name, own in lines.items()]
    first = next(iter(joined.tables.values()))
    ok = [table.ok for table in joined.tables.values()]
    behind = samples(first.select(np.logical_and.reduce(ok)))
    write_detectors(folder, found, sections, {"evaluation": _record(cfg, prevalence)}, behind)
    print(aligned(headline(found.cells)))
    print(aligned(shown_pairs(found.pairs)))
    if not split and not given:
        print(f"threshold: logit 0 (p_fake 0.5), {NOTHING_FITTED}")
    print("\n".join([sizes(behind), *warnings]))


NOTHING_FITTED = "for no column says which rows validate: every row is a test row, and nothing was fitted"


def _say(brought: "Brought") -> list[str]:
    """Print what was taken from a table and what must be known of it; the lines, also for the page."""
    lines = [*([] if brought.ours else [brought.taken]), *brought.notes]
    for line in lines:
        print(line)
    if not brought.ours and "seen" not in brought.has:
        lines.append("no column `seen` says what the detector was trained on: no fake counts as seen or unseen")
    return lines


def _upside_down(name: str, cells: "Sequence[Cell]") -> list[str]:
    """A warning for each view whose AUC is surely below 0.5: labels or scores may be the wrong way round."""
    from adapt.evaluation.replicates import ALL
    from adapt.pages.tables import show

    return [
        f"warning: {name}, view {cell.view}: AUC {show(cell)} is surely below 0.5. Do higher scores speak for real "
        "(--higher_is real), or does the label (--fake_is)?"
        for cell in cells
        if (cell.set, cell.generator, cell.metric) == (ALL, "mean:all", "auc") and cell.high < 0.5
    ]


def _record(cfg: Config, prevalence: float) -> dict[str, object]:
    """What the numbers were made of and how."""
    from adapt import __version__
    from adapt.files import sha256

    given = asdict(cfg.columns)
    return {
        **{f"{name} sha256": sha256(path) for name, path in cfg.files.items()},
        "resamples": cfg.resamples,
        "resampling seed": cfg.seed,
        "prevalence": prevalence,
        **{name.replace("_", " "): value for name, value in given.items() if value},
        **({"threshold given": list(cfg.threshold)} if cfg.threshold else {}),
        "adapt": __version__,
    }


def read_record(path: Path) -> dict[str, object]:
    """The record of the run that made the scores; without it the files name themselves."""
    import json

    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise Refusal(f"{path} is damaged ({error}): restore it, or remove it to do without") from error
    if not isinstance(record, dict):
        raise Refusal(f"{path} holds a {type(record).__name__}, not an object: restore it, or remove it to do without")
    return record


def command() -> None:
    """Parse the command line and run; its first words may be tables."""
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--scores")
    run(main, Config)

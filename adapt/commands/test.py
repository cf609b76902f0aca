"""Measure saved detectors as they are on another labelled set: the same page as that of a run, nothing fitted.

    adapt test --detector results/runs/lora/detector --manifest data/other/manifest.csv
    adapt test --detector A B C --manifest data/synthbuster/manifest.csv --output_dir results/runs/synthbuster

Scores the test rows of the manifest with each detector (its own backbone and preprocessing), under every view. The
threshold is the one that the detector was saved with, and so are calibration and error rates: train and val rows of
the manifest are left alone. A generator counts as seen if the detector says that it was trained on it; where it does
not say, seen and unseen are n/a, unless --trained_on NAME=GENERATOR,GENERATOR does. Photographs alone, or fakes alone,
are enough: what cannot be computed is n/a, and the page says why.

Writes scores.parquet, metrics.csv, table.md and figures/ into --output_dir; of several detectors each has a folder
there, and table.md compares the others with the first, paired by group. The same command continues after a kill, and
shows the table once it is done. Under several processes (`accelerate launch -m adapt test ...`) they share the images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.cli import run as run_recipe
from adapt.detector.names import names_of, told_of
from adapt.errors import Refusal
from adapt.flags import Intervals, Rows, Waiting

if TYPE_CHECKING:  # --help needs none of them
    from collections.abc import Mapping, Sequence

    from adapt.data.manifest import Manifest
    from adapt.detector.detector import Detector
    from adapt.evaluation.metrics import Cell, Difference
    from adapt.evaluation.scores import Scores
    from adapt.pages.frozen import Frozen
    from adapt.training.run import Run


@dataclass(frozen=True)
class Config(Rows, Waiting, Intervals):
    detector: tuple[str, ...]  # folders of saved detectors, or hf-hub:OWNER/NAME[@REVISION]
    output_dir: Path = Path("results/runs/test")  # run directory
    views: tuple[str, ...] = ("none", "qf90", "qf65", "qf40")  # all are scored
    threshold: tuple[float, ...] = ()  # a logit for all, or one for each detector; default: the frozen ones
    trained_on: tuple[str, ...] = ()  # NAME=GENERATOR,GENERATOR: what a detector was trained on, if it does not say
    backbone: str | None = None  # another place of the detectors' base weights
    num_workers: int | None = None  # data processes; None: 1 on a CPU; a GPU: its share of cores, less one

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.detector or len(set(self.detector)) < len(self.detector):
            raise Refusal("--detector: name one or more folders of saved detectors, each once")
        if not self.views:
            raise Refusal("--views: give one or more, such as none qf65")
        if len(self.threshold) not in (0, 1, len(self.detector)):
            raise Refusal(f"--threshold: give one logit, or one for each of the {len(self.detector)} detectors")
        if wrong := [t for t in self.threshold if not abs(t) < float("inf")]:
            raise Refusal(f"--threshold {wrong[0]}: give a finite logit")
        told_of(self.trained_on, names_of(self.detector))


def main(cfg: Config) -> None:
    import numpy as np

    from adapt.data.views import parse_view
    from adapt.detector.detector import detector_digest, detector_facts, load_detector
    from adapt.detector.scored_parts import score_in_parts
    from adapt.embedded import read_manifests
    from adapt.evaluation.scores import Scores
    from adapt.evaluation.thresholds import AS_PUBLISHED
    from adapt.journal import remove
    from adapt.pages.frozen import Frozen
    from adapt.training.report import describe, show_finished
    from adapt.training.run import Run

    for view in cfg.views:
        parse_view(view)
    facts, digests = zip(*((detector_facts(d), detector_digest(d)) for d in cfg.detector), strict=True)
    rows = read_manifests(cfg.manifest)
    test = np.flatnonzero(rows["split"] == "test")
    if not len(test):
        raise Refusal(
            f"--manifest {' '.join(cfg.manifest)} has no row of split test, and no other is measured: name a set with "
            "test rows (`adapt prepare SOURCE --split test` makes all of a set such)"
        )
    run = Run(cfg)
    identity: dict[str, object] = {"data": rows.digest, "detectors": list(digests)}
    if run.finished(**identity):
        return show_finished(run)
    run.begin(**identity)

    found: dict[str, tuple[Frozen, Detector, Scores, list[str]]] = {}
    names, journals = names_of(cfg.detector), []
    told = told_of(cfg.trained_on, names)
    for i, (name, place) in enumerate(zip(names, cfg.detector, strict=True)):
        detector = load_detector(place, cfg.backbone).to(run.device)
        journals.append(folder_of(run, name, names) / "scores.parts.jsonl")
        what = {"data": rows.digest, "detector": digests[i]}
        scores = score_in_parts(
            detector, rows, test, cfg.views, journals[-1], what, name, run.scoring(cfg.num_workers)
        )
        if scores is None:
            continue
        made = facts[i]._replace(trained_on=told[name]) if name in told else facts[i]
        given = cfg.threshold[i if len(cfg.threshold) > 1 else 0] if cfg.threshold else detector.threshold
        published = detector.basis == AS_PUBLISHED
        one = Frozen(name, place, given, bool(cfg.threshold), published, made.trained_on, name in told, made.data)
        scores = Scores(scores.columns | {"seen": made.seen(scores["generator"])})
        scores.write(folder_of(run, name, names) / "scores.parquet")
        found[name] = one, detector.cpu(), scores, [*made.trained_on, *made.selected_on]
    if not run.main:
        return run.end()

    cells = {name: write_detector(cfg, run, rows, *found[name], names) for name in names}
    if len(names) > 1:
        write_comparison(cfg, run, rows, [found[name][0] for name in names], cells,
                         {name: found[name][2] for name in names})  # fmt: skip
    run.write_record(run.record(data=describe(rows)))
    for journal in journals:
        remove(journal, "another process is working at it: wait for it, or stop it")
    show_finished_now(run, cells)
    run.end()


def folder_of(run: "Run", name: str, names: "Sequence[str]") -> Path:
    """The run's own folder for one detector, one in it for each of several."""
    return run.folder if len(names) == 1 else run.folder / name


def write_detector(
    cfg: Config,
    run: "Run",
    rows: "Manifest",
    one: "Frozen",
    detector: "Detector",
    scores: "Scores",
    met: "Sequence[str]",
    names: "Sequence[str]",
) -> "list[Cell]":
    """Numbers, page and figures of one detector; `met`: generators that its training or selection had."""
    from adapt.data.families import read_families
    from adapt.evaluation.attribution import Attribution, attribute
    from adapt.evaluation.metrics import controls, evaluate
    from adapt.evaluation.open_set import classes_of
    from adapt.evaluation.promises import keep
    from adapt.evaluation.samples import samples
    from adapt.pages.figures import write_figures
    from adapt.pages.frozen import called_section, frozen_section
    from adapt.pages.promises import promises_section
    from adapt.pages.tables import Origin, write_tables

    folder, table = folder_of(run, one.name, names), read_families(manifest=rows)
    families = {table.of(generator) for generator in met if generator != "real"} - {"other"}
    cells = evaluate(scores, cfg.resamples, cfg.seed, one.threshold, families_met=families)
    cells += keep(scores, detector.decision, one.threshold, resamples=cfg.resamples, seed=cfg.seed)
    checks = controls(scores, resamples=cfg.resamples, seed=cfg.seed, threshold=one.threshold)
    counts = {split: int((rows["split"] == split).sum()) for split in ("train", "val")}
    sections = [frozen_section(one, cells, counts), called_section(cells)]
    named: Attribution | None = None
    if classes_of(scores):
        try:
            named = attribute(scores, cfg.resamples, cfg.seed, decision=detector.decision)
        except Refusal as refusal:
            sections.append(f"## Attribution\n\nn/a: {refusal}.")
    sections.append(promises_section(cells, detector.decision))
    record = page_record(run, rows) | {"detector": one.place, "threshold": one.threshold}
    frozen: Origin = "published" if one.published else "frozen"
    origin: Origin = "none" if one.threshold != one.threshold else "given" if one.given else frozen
    write_tables(
        cells, folder, record, checks, (), sections, named, samples(scores), origin=origin, basis=detector.basis
    )
    write_figures(scores, cells, folder / "figures", named)
    return cells


def write_comparison(
    cfg: Config,
    run: "Run",
    rows: "Manifest",
    detectors: "Sequence[Frozen]",
    cells: "Mapping[str, Sequence[Cell]]",
    tables: "Mapping[str, Scores]",
) -> None:
    """The page of several detectors, and comparison.csv in the folder of each but the first."""
    import numpy as np

    from adapt.evaluation.metrics import compare
    from adapt.evaluation.scores import UNKNOWN, Scores
    from adapt.number_table import write_rows
    from adapt.pages.frozen import side_by_side_sections
    from adapt.pages.markdown_page import write_page
    from adapt.pages.tables import COMPARISON, HOW_TO_READ, THRESHOLDS, Origin

    seen = np.full(len(next(iter(tables.values()))), "", dtype=object)
    for met in (UNKNOWN, "val", "train"):  # of one of the detectors; the last that holds counts
        seen[np.any([table["seen"] == met for table in tables.values()], axis=0)] = met
    first, *others = detectors
    differences: dict[str, list[Difference]] = {}
    for one in others:
        pair = [Scores(tables[each.name].columns | {"seen": seen}) for each in (one, first)]
        thresholds = (one.threshold, first.threshold)
        differences[one.name] = compare(pair[0], pair[1], cfg.resamples, cfg.seed, thresholds)
        write_rows(run.folder / one.name / "comparison.csv", COMPARISON, differences[one.name])
    origin: Origin = "published" if all(one.published for one in detectors) else "frozen"
    how = HOW_TO_READ.format(threshold=THRESHOLDS["given" if cfg.threshold else origin])
    parts = [how, *side_by_side_sections(detectors, cells, differences)]
    write_page(run.folder / "table.md", "Results", parts, page_record(run, rows), embedded="embedded" in rows["set"])


def page_record(run: "Run", rows: "Manifest") -> dict[str, object]:
    """The record as a page shows it: without what is in config.yaml already."""
    from adapt.training.report import describe

    return {key: value for key, value in run.record(data=describe(rows)).items() if key != "identity"}


def show_finished_now(run: "Run", cells: "Mapping[str, Sequence[Cell]]") -> None:
    """The headline table of each detector, what could not be read, and where to look."""
    from adapt.pages.tables import text
    from adapt.training.report import places

    for name, found in cells.items():
        title = f"{name}\n" if len(cells) > 1 else ""
        run.say(f"\n{title}{text(found)}")
    first = next(iter(cells.values()))
    lost: dict[str, int] = {}
    for cell in first:
        if cell.metric == "unreadable":
            lost[cell.view] = lost.get(cell.view, 0) + int(cell.value)
    if lost:
        run.say(
            f"\n{max(lost.values())} images could not be read: the page and scores.parquet say which kinds, and why"
        )
    run.say("\n" + places(run))


def command() -> None:
    """Parse the command line and run."""
    run_recipe(main, Config)

"""Cross-validation: a run of the recipe for each fold, and one page of the scores of all their test images."""

from dataclasses import fields
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import yaml

from adapt.cli import dump
from adapt.data.folds import of_fold
from adapt.data.left_out import leave_out
from adapt.data.manifest import Manifest
from adapt.embedded import read_manifests
from adapt.errors import Refusal
from adapt.evaluation.attribution import attribute
from adapt.evaluation.folds import pool_folds, same_classes
from adapt.evaluation.metrics import controls, evaluate
from adapt.evaluation.samples import samples
from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import Basis, basis_of, pick_threshold
from adapt.files import write_text
from adapt.pages.figures import write_figures
from adapt.pages.folds import Fold, folds_section
from adapt.pages.tables import sizes, text, write_tables
from adapt.sweeps.planned_runs import PlannedRun, run_all, sweep_record, write_record
from adapt.training.on_features import Classes, class_names, known_classes
from adapt.training.report import shown
from adapt.training.run import RunConfig


class Folded(RunConfig, Protocol):
    """The flags of a recipe that are read here; all of them are passed on."""

    @property
    def manifest(self) -> tuple[str, ...]: ...

    @property
    def leave_out(self) -> tuple[str, ...]: ...

    @property
    def resamples(self) -> int: ...

    @property
    def folds(self) -> int | None: ...


def run_folds(config: Folded, recipe: str) -> None:
    """Run `recipe` once for each fold, in folders of their own, and write scores.parquet and the page of all.

    Started again it continues; a run that was made by hand (`--fold`) with the same flags in its folder is taken as it
    is.
    """
    root, k = Path(config.output_dir), config.folds
    assert k is not None  # the recipe asks for this only then
    if (file := root / "config.yaml").is_file() and yaml.safe_load(file.read_text(encoding="utf-8")).get("folds") != k:
        raise Refusal(f"{root} holds a run that has not {k} folds: choose another --output_dir, or delete it")
    whole = read_manifests(config.manifest)
    rows = {n: leave_out(of_fold(whole, k, n, config.seed), config.leave_out) for n in range(1, k + 1)}
    classes = cast("Classes", getattr(config, "classes", "binary"))
    if classes != "binary":
        of_train = [class_names(part.select(part["split"] == "train"), classes) for part in rows.values()]
        same_classes([known_classes(names) for names in of_train])  # refused before any work
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    flags = {name: value for name, value in given.items() if name not in ("output_dir", "fold") and value != ()}
    runs = [PlannedRun(f"fold-{n}", recipe, {**flags, "fold": n}) for n in rows]
    if failed := run_all(runs, root):
        raise Refusal(f"{', '.join(failed)} failed, see the .log files in {root}: the same command tries again")
    for run, of_run in zip(runs, rows.values(), strict=True):
        identity = run.record(root)["identity"]
        if identity["data"] != of_run.digest:
            raise Refusal(f"{root / run.name} saw other images than the manifest names now: delete this folder")

    tables = [Scores.read(root / run.name / "scores.parquet") for run in runs]
    thresholds = [pick_threshold(table) for table in tables]
    scores, metadata = pool_folds(tables, thresholds), _metadata(root, runs)
    scores.write(root / "scores.parquet")
    cells = evaluate(scores, config.resamples, config.seed)
    checks = controls(scores, metadata=metadata, resamples=config.resamples, seed=config.seed)
    table = [_fold(n, rows[n], t, basis_of(own)) for n, t, own in zip(rows, thresholds, tables, strict=True)]
    record, behind = sweep_record(config, runs, root), samples(scores)
    write_text(root / "config.yaml", dump(config))
    named = None if classes == "binary" else attribute(scores, config.resamples, config.seed, classes)
    write_tables(cells, root, shown(record), checks, (), [folds_section(table)], named, behind, origin="folds")
    write_figures(scores, cells, root / "figures", named)
    write_record(root, record)
    print(f"\n{text(cells)}\n\n{sizes(behind)}\ntable        {root / 'table.md'}")


def _metadata(root: Path, runs: list[PlannedRun]) -> Scores | None:
    """The pooled control of metadata, where the recipe has it: it is measured by AUC, which needs no threshold."""
    files = [root / run.name / "metadata.parquet" for run in runs]
    if not all(file.is_file() for file in files):
        return None
    return pool_folds([Scores.read(file) for file in files], [0.0] * len(files))


def _fold(number: int, rows: Manifest, threshold: float, basis: Basis) -> Fold:
    counts = {}
    for split in ("train", "val", "test"):
        fake = rows.fake[rows["split"] == split]
        counts[split] = int((~fake).sum()), int(fake.sum())
    groups = len(np.unique(rows["group"][rows["split"] == "test"].astype(str)))
    return Fold(number, counts["train"], counts["val"], counts["test"], groups, threshold, basis)

"""Do several crops of an image help a detector, and what do they cost?

    adapt crops --detector results/lora/detector --manifest data.csv --output_dir results/crops

Scores the validation and test rows of a manifest with one crop as the detector was trained, with five (corners and
centre) and with tiles at native resolution whose features are averaged, each with its own threshold from validation
rows, and compares each with one crop, paired by group. The scores of each stay, for `adapt evaluate`. Without
--manifest on the embedded world: 2,136 images x 4 views with `tiny` are 85,000 encoder passes. Expected there: five
crops and tiles find unseen generators better than one crop (AUC 0.948 and 0.950 against 0.927 on 48 of its test
scenes, view none), at five and four times the cost, and five crops alarm more often on processed photographs at
quality 65 (0.038 against 0.014).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from adapt.cli import run as run_recipe
from adapt.flags import Intervals, Rows, Waiting

if TYPE_CHECKING:  # --help needs none of them
    from matplotlib.figure import Figure

    from adapt.training.comparison import Study
    from adapt.training.scored import Kept


@dataclass(frozen=True)
class Config(Rows, Waiting, Intervals):
    detector: Path  # folder of a saved detector, or hf-hub:OWNER/NAME[@REVISION]
    output_dir: Path = Path("results/runs/crops")  # run directory
    crops: tuple[Literal["1", "5", "native"], ...] = ("1", "5", "native")  # all but the first are compared with it
    test_views: tuple[str, ...] = ("none", "qf90", "qf65", "qf40")  # all are scored
    backbone: str | None = None  # another place of the detector's base weights
    num_workers: int | None = None  # data processes; None: 1 on a CPU; a GPU: its share of cores, less one


def main(cfg: Config) -> None:
    import time

    import numpy as np

    from adapt.data.manifest import require_files
    from adapt.detector.detector import detector_digest, load_detector, score
    from adapt.embedded import read_manifests
    from adapt.training.comparison import finish, finish_compared
    from adapt.training.report import require_classes, show_finished
    from adapt.training.run import Run
    from adapt.training.scored import Kept

    run = Run(cfg)
    if run.finished():
        return show_finished(run)
    rows = read_manifests(cfg.manifest)
    require_files(rows)
    require_classes(rows)
    page, known = partial(side_by_side, cfg), {"detector": detector_digest(cfg.detector)}
    if finish_compared(run, rows, page, **known):
        return
    held = np.flatnonzero(rows["split"] != "train")
    detector = load_detector(cfg.detector, cfg.backbone).to(run.device)
    scoring = run.scoring(cfg.num_workers)
    passes = []
    detector.backbone.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    run.begin(data=rows.digest, base=detector.backbone.fingerprint, **known)

    tables, costs = Kept(run.folder, ("crops",)), [["crops", "encoder passes per image", "images / s"]]
    for crops in dict.fromkeys(cfg.crops):
        passes.clear()
        start = time.monotonic()
        found = score(detector, rows, held, cfg.test_views, progress=f"crops {crops}", crops=crops, **scoring)
        images, spent = len(found), sum(run.gather([sum(passes)]))
        costs.append([crops, f"{spent / images:.2f}", f"{images / (time.monotonic() - start):.1f}"])
        if run.main:
            tables.add((crops,), found)
    if not run.main:
        return run.end()

    tables.notes["costs"] = costs
    finish(run, rows, tables, page)


def side_by_side(cfg: Config, tables: "Kept") -> "tuple[Study, list[str], dict[str, Figure]]":
    """The page: each way to crop, what it costs, and its differences to the first. Each leaves its scores."""
    from adapt.pages.tables import grid
    from adapt.training.comparison import Study, contrast

    study, found = Study.of(tables, cfg.resamples, cfg.seed), {crops: scores for (crops,), scores in tables.items()}
    for crops, scores in found.items():
        scores.write(tables.folder / f"scores-{crops}.parquet")
    first, *others = found
    sections = [*study.grids(), "## Cost", grid(cast("list[list[str]]", tables.notes["costs"]))]
    for crops in others:
        sections += contrast((crops, first), [(found[crops], found[first])], cfg.resamples, cfg.seed)
    return study, sections, {}


def command() -> None:
    """Parse the command line and run."""
    run_recipe(main, Config)

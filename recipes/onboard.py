"""A new generator from few images: the recovery curve of a detector, and what it forgets.

    python recipes/onboard.py --detector results/lora-l14/detector --generator NAME --manifest data.csv \\
        --output_dir results/onboard-name

Learns a generator that has test rows only from K of its groups, K = 1 to 64, several draws each, in four ways: LoRA
that goes on from the detector, and on cached features of the detector's own tower a probe fitted again, Tip-Adapter
(2207.09519) with the detector's logit as its prior, and Tip-Adapter-F. At most half of the generator's test groups
form a pool that leaves the test split, the same for every K and draw, so that all numbers are of the same test rows;
nothing is chosen on them. Each LoRA is a run of recipes/refine.py of its own under the output folder, continued if it
was stopped; `--methods probe tip tip-f` needs seconds per fit, and encodes the images once.

With a detector of classes, or with --classes family or generator, the LoRA and the probe get a class for the new
generator, and the page says how well they attribute it and what that costs the other classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import at_least, each_once
from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Classes, Rows, Views

if TYPE_CHECKING:  # --help needs none of them
    from matplotlib.figure import Figure

    from adapt.evaluation.attribution import Column
    from adapt.training.comparison import Study
    from adapt.training.scored import Kept

PASSED_ON = (
    *("manifest", "train_views", "test_views", "epochs", "groups", "learning_rate", "head_learning_rate"),
    *("resamples", "classes"),
)


@dataclass(frozen=True, kw_only=True)
class Config(Rows, Classes, Views):
    detector: Path  # folder of a saved detector
    generator: str  # the new generator; it must have test rows only
    output_dir: Path = Path("results/runs/onboard")  # run directory, and the folder of the LoRA runs
    shots: tuple[int, ...] = (1, 2, 4, 8, 16, 32)  # groups of the new generator; at most 64 and half of what it has
    seeds: tuple[int, ...] = (0, 1, 2)  # seeds of the drawn shots and of training
    methods: tuple[Literal["probe", "tip", "tip-f", "lora"], ...] = ("probe", "tip", "tip-f", "lora")
    epochs: int = 5  # LoRA: passes over the training groups
    groups: int = 8  # LoRA: groups per optimizer step
    learning_rate: float = 4e-3  # LoRA: step size for the adapters; 1e-4 suits CLIP ViT-L/14
    head_learning_rate: float = 4e-3  # LoRA: step size for the head
    cache: Path | None = None  # folder of the feature cache; None: $ADAPT_CACHE/features
    cached_only: bool = False  # refuse to encode what is not in the cache
    resamples: int = 200  # most blocks of groups that are left out in turn behind every interval
    num_workers: int | None = None  # data processes; None: 1 on a CPU; a GPU: its share of cores, less one
    processes: int = 1  # training processes per LoRA run

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "shots")
        each_once(self, "shots", "seeds", "methods")

    @property
    def seed(self) -> int:
        return self.seeds[0]


def main(cfg: Config) -> None:
    import numpy as np

    from adapt.data.onboarding import onboard
    from adapt.detector.detector import Head, load_detector
    from adapt.evaluation.scores import Scores
    from adapt.features.cache import extract
    from adapt.models.heads.linear import classes_of
    from adapt.models.heads.tip_head import PriorHead
    from adapt.sweeps.planned_runs import PlannedRun, run_all
    from adapt.training.classes import column_of
    from adapt.training.comparison import finish, finish_compared
    from adapt.training.few_shot import AS_IS, CLASSES, attributed, recast, recovery, refitted, tip_heads
    from adapt.training.on_features import score_features
    from adapt.training.refine import origin
    from adapt.training.report import open_run
    from adapt.training.scored import Kept

    known = origin(cfg.detector, cfg.generator)
    if (opened := open_run(cfg, **known)) is None:
        return
    cfg, run, rows = opened

    def page(tables: "Kept") -> "tuple[Study, list[str], dict[str, Figure]]":
        draws, column = len(cfg.seeds), cast("Column | None", tables.notes["classes are"])
        study, sections, figures = recovery(
            rows, cfg.generator, tables, cfg.test_views, draws, cfg.resamples, cfg.seed
        )
        sections += attributed(tables, cfg.generator, column, cfg.test_views) if column else []
        return study, sections, figures

    if finish_compared(run, rows, page, **known):
        return
    onboard(rows, cfg.generator, max(cfg.shots), cfg.seed)  # refused before any work
    runs = [(shots, seed) for shots in (0, *cfg.shots) for seed in cfg.seeds]
    tables = Kept(run.folder, ("method", "shots", "draw"))

    detector = load_detector(cfg.detector)
    detector.refuse_complete("onboarding")
    backbone = detector.to(run.device).backbone
    views = (*cfg.train_views, *cfg.test_views)
    encoding = run.encoding(cfg.num_workers)
    features = extract(backbone, rows, views, cache=cfg.cache, cached_only=cfg.cached_only, **encoding)
    run.begin(data=rows.digest, base=backbone.fingerprint, **known)
    if not run.main:
        return run.end()
    head = detector.cpu().head
    by_class = column_of(detector, rows, cfg.classes) or (None if cfg.classes == "binary" else cfg.classes)
    tables.notes["classes are"] = by_class

    for shots, seed in runs:
        which, lent = onboard(rows, cfg.generator, shots, seed)
        few, held = features.select(which, lent), np.flatnonzero(lent["split"] != "train")
        as_is = head if classes_of(head) else PriorHead(CLASSES, head=head)
        heads: dict[str, Head] = {AS_IS: as_is} if (shots, seed) == runs[0] else {}
        if "probe" in cfg.methods:
            heads["probe"] = refitted(few, cfg.generator, cfg.train_views, seed, by_class or "binary")
        if shots and {"tip", "tip-f"} & set(cfg.methods):
            tips = tip_heads(few, cfg.generator, cfg.train_views, seed, head, "tip-f" in cfg.methods)
            heads |= {name: tip for name, tip in tips.items() if name != "Tip-Adapter" or "tip" in cfg.methods}
        for name, fitted in heads.items():
            of_all = score_features(few, held, cfg.test_views, fitted)
            tables.add((name, str(shots), str(seed)), recast(of_all, rows, cfg.generator))
        run.say(f"{shots} shots, seed {seed}: " + (", ".join(heads) or "LoRA follows"))
    if "lora" in cfg.methods:
        given = {name: getattr(cfg, name) for name in PASSED_ON} | {"init": cfg.detector, "onboard": cfg.generator}
        given |= {"num_workers": cfg.num_workers} if cfg.num_workers is not None else {}
        planned = {
            r: PlannedRun(f"lora-{r[0]}-seed{r[1]}", "refine", given | {"shots": r[0], "seed": r[1]}) for r in runs
        }
        if failed := run_all(list(planned.values()), cfg.output_dir, cfg.processes, run.say):
            raise Refusal(f"{', '.join(failed)} failed (see the .log files): the same command tries again")
        for (shots, seed), one in planned.items():
            found = Scores.read(cfg.output_dir / one.name / "scores.parquet")
            tables.add(("LoRA", str(shots), str(seed)), recast(found, rows, cfg.generator))
    finish(run, rows, tables, page, generator=cfg.generator)


if __name__ == "__main__":
    run_recipe(main, Config)

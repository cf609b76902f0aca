"""Train a saved detector further: mend its weakest cells, or teach it a new generator from few images.

    accelerate launch recipes/refine.py --init results/lora/detector --focus holes --manifest data.csv \\
        --output_dir results/lora-mended
    accelerate launch recipes/refine.py --init results/lora/detector --onboard NAME --shots 8 --manifest data.csv

The base, layer, precision, adapter and head are the detector's own; one without an adapter gets a fresh one. The page
says of every (generator, view) cell whether it got better or worse beyond its interval. A head with classes (--classes
of recipes/lora.py) goes on with them and gets a further one for each new family or generator that it is shown; with
--classes one of real and fake is divided among the classes, which leaves its logit as it was.

--focus holes shows more often the cells in which the detector is weakest on validation rows. A share of the groups of
an epoch (--focus_share) shows the photographs and the fakes of such a cell's generator under its view, in as many
steps as without. The same command without --focus is the control.

--onboard, with or without --init, learns a generator that has test rows only from --shots of its groups. A pool of at
most 64 and at most half of its groups leaves the test split whatever --shots and --seed are, so that all numbers are
of the same rows; fakes of other unseen generators in these groups are left out. adapt/data/focus.py and
adapt/data/onboarding.py say how.

Started again with the same flags it continues where it stopped, bit for bit. Time: that of recipes/lora.py. Results to
expect: results/README.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Aim, FineTuning

if TYPE_CHECKING:  # --help needs none of them
    from adapt.data.manifest import Manifest
    from adapt.detector.detector import Detector
    from adapt.evaluation.metrics import Difference
    from adapt.evaluation.scores import Scores
    from adapt.training.run import Run


@dataclass(frozen=True)
class Config(FineTuning, Aim):
    output_dir: Path = Path("results/runs/refine")  # run directory; continues the run that it holds
    init: Path | None = None  # a saved detector to continue from, with its base, layer, adapter and head

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.init and not self.onboard:
            raise Refusal("nothing to go on from: give --init DETECTOR, or --onboard GENERATOR with --shots")
        if self.focus and (not self.init or self.onboard):
            raise Refusal("--focus holes: give --init, the detector whose holes are meant, and no --onboard")
        if self.consistency and (self.focus or self.onboard):
            raise Refusal("--consistency: a cell is shown under its own view alone; leave --focus and --onboard out")
        if self.permutations and (self.focus or self.onboard):
            raise Refusal("--permutations: a generator with shuffled labels cannot be shown more often")


def main(cfg: Config) -> None:
    import numpy as np
    from lora import fine_tune, new_detector, on_permuted_labels  # recipes/lora.py: the loop is the same

    from adapt.data.onboarding import onboard
    from adapt.detector.detector import load_detector
    from adapt.training.classes import column_of, go_on_with_classes
    from adapt.training.final_scores import final_scores
    from adapt.training.refine import Aim, aim_of, before_and_after, origin
    from adapt.training.report import finish_scored, keep_scores, open_run, report
    from adapt.training.scored import Kept
    from adapt.training.trainable import continued

    known = origin(cfg.init, cfg.onboard) if cfg.init else {}
    if (opened := open_run(cfg, **known)) is None:
        return
    cfg, run, rows = opened
    scoring, init = run.scoring(cfg.num_workers), cfg.init
    if cfg.onboard:
        rows = onboard(rows, cfg.onboard, cfg.shots or 0, cfg.seed)[1]

    def adds(scores: "Scores", kept: Kept) -> "tuple[list[Difference], list[str]]":
        aim = Aim.of(kept.notes)
        return before_and_after(init, aim, scores, kept.get(("before",)), cfg.resamples, cfg.seed)

    if finish_scored(run, rows, adds, **known):
        return

    def start(cfg: FineTuning, run: "Run", rows: "Manifest") -> "Detector":
        if not init:
            return new_detector(cfg, run, rows)
        detector = continued(init, cfg, cfg.seed, run.say)
        go_on_with_classes(detector, rows, cfg.classes, run.say)
        return detector.to(run.device)

    chance = on_permuted_labels(cfg, rows, run.folder, start, **known)
    detector = start(cfg, run, rows)
    aim = aim_of(cfg, cfg.train_views, detector, rows, cfg.resamples, cfg.seed, scoring, run.say)
    facts = fine_tune(cfg, run, rows, detector, aim, **known)

    held = np.flatnonzero(rows["split"] != "train")
    scores, before = final_scores(run, detector, rows, held, cfg.test_views, cfg.num_workers), None
    if scores is not None:
        detector.freeze(scores)
        keep_scores(run, detector, rows, scores, train_views=cfg.train_views, facts=facts)
    if init:
        old = load_detector(init, None if cfg.backbone == Config.backbone else cfg.backbone).to(run.device)
        before = final_scores(run, old, rows, held, cfg.test_views, cfg.num_workers, "scoring what it was")
    if scores is None:  # another process than the first
        return run.end()
    kept = Kept(run.folder, notes=aim.noted())
    if before is not None:
        kept.add(("before",), before)
    report(
        run,
        detector,
        rows,
        scores,
        cfg.resamples,
        adds,
        kept,
        train_views=cfg.train_views,
        classes_are=column_of(detector, rows, cfg.classes),
        permuted=chance,
        facts=facts,
    )


if __name__ == "__main__":
    run_recipe(main, Config)

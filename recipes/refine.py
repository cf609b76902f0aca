"""Train a saved detector further: mend its weakest cells, or teach it a new generator from few images.

    accelerate launch recipes/refine.py --init results/lora/detector --focus holes --manifest data.csv \\
        --output_dir results/lora-mended
    accelerate launch recipes/refine.py --init results/lora/detector --onboard NAME --shots 8 --manifest data.csv

The base, layer, precision, adapter and head are the detector's own; one without an adapter gets a fresh one. The page
says of every (generator, view) cell whether it got better or worse beyond its interval.

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

from adapt.cli import at_least
from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Aim, Intervals, Rows, Tower, Views


@dataclass(frozen=True)
class Config(Rows, Tower, Views, Aim, Intervals):
    output_dir: Path = Path("results/runs/refine")  # run directory; continues the run that it holds
    init: Path | None = None  # a saved detector to continue from, with its base, layer, adapter and head
    permute_labels: bool = False  # control: shuffle the training labels; the test must then be at chance

    def __post_init__(self) -> None:
        Tower.__post_init__(self)
        Aim.__post_init__(self)
        at_least(1, self, "resamples", "holes")
        at_least(0, self, "seed")
        if not self.init and not self.onboard:
            raise Refusal("nothing to go on from: give --init DETECTOR, or --onboard GENERATOR with --shots")
        if self.focus and (not self.init or self.onboard):
            raise Refusal("--focus holes: give --init, the detector whose holes are meant, and no --onboard")
        if self.permute_labels and (self.focus or self.onboard):
            raise Refusal("--permute_labels: a generator with shuffled labels cannot be shown more often")


def main(cfg: Config) -> None:
    import numpy as np
    import torch

    from adapt.data.jpeg import with_sample_views
    from adapt.data.onboarding import onboard
    from adapt.detector.detector import Detector, score
    from adapt.embedded import read_manifests
    from adapt.models.adapters.cut_tower import trained_part
    from adapt.models.adapters.lora import add_adapter
    from adapt.models.heads.linear import LinearHead, balanced_bce
    from adapt.models.towers.backbones import load_backbone
    from adapt.processes import Scoring
    from adapt.training.micro_batches import accumulation_that_fits
    from adapt.training.refine import aim_of, before_and_after, origin
    from adapt.training.report import log_validation, report, require_classes, show_finished, validation_score
    from adapt.training.run import Run, warmup_cosine
    from adapt.training.tokens import training_data
    from adapt.training.trainable import continued

    cfg = with_sample_views(cfg)
    run = Run(cfg)
    known = origin(cfg.init, cfg.onboard) if cfg.init else {}
    if run.finished(**known):
        return show_finished(run)
    rows = read_manifests(cfg.manifest)
    require_classes(rows)
    if cfg.onboard:
        rows = onboard(rows, cfg.onboard, cfg.shots or 0, cfg.seed)[1]
    held = np.flatnonzero(rows["split"] != "train")
    if cfg.init:
        detector = continued(cfg.init, cfg, cfg.seed, run.say).to(run.device)
    else:
        backbone = load_backbone(cfg.backbone, cfg.layer, cfg.geometry).to(run.device).to_precision(cfg.precision)
        add_adapter(backbone, cfg.targets, cfg.rank, cfg.alpha, cfg.dropout, cfg.last_blocks, cfg.seed, cfg.update)
        detector = Detector(backbone, LinearHead(backbone.dim))
    backbone = detector.backbone
    part = trained_part(detector, cfg.cache_prefix, cfg.checkpoint_activations)
    workers = run.workers(cfg.num_workers)
    scoring: Scoring = {"workers": workers, "share": run.share_of_rows, "gather": run.gather}
    aim = aim_of(cfg, cfg.train_views, detector, rows, cfg.resamples, cfg.seed, scoring, run.say)
    labels = rows.fake[rows["split"] == "train"]
    if cfg.permute_labels:
        labels = np.random.default_rng(cfg.seed).permutation(labels)
    train, validate = training_data(
        run, part, detector, rows, cfg.train_views, cfg.seed, labels,
        focus=aim.focus, cached=cfg.cache_prefix, num_workers=cfg.num_workers,
    )  # fmt: skip

    trained = [
        {"params": [p for p in backbone.parameters() if p.requires_grad], "lr": cfg.learning_rate},
        {"params": detector.head.parameters(), "lr": cfg.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(trained, weight_decay=cfg.weight_decay, fused=True)
    steps = cfg.epochs * (len(train) // min(cfg.groups, len(train)))
    model = run.prepare(
        part,
        optimizer,
        schedule=lambda step: warmup_cosine(step, steps, int(cfg.warmup * steps)),
        data=rows.digest,
        base=backbone.fingerprint,
        **known,
        aim=aim.cells,
    )
    accumulation = accumulation_that_fits(run, part, train, cfg.groups, cfg.gradient_accumulation_steps)

    for batch in run.steps(train, cfg.groups, cfg.epochs, accumulation, workers, cfg.checkpointing_steps):
        logits = model(batch.pixels)
        loss = balanced_bce(logits, batch.fake, batch.weight) / run.share
        run.step(loss, cfg.max_grad_norm)
        if run.epoch_ended:
            scores = validate()
            log_validation(run, scores)
            run.select(validation_score(scores), last=cfg.onboard is not None)

    picked = run.use_selected()
    count = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    scores = score(detector, rows, held, cfg.test_views, progress="scoring", **scoring)
    weights = None if cfg.backbone == Config.backbone else cfg.backbone
    compared = before_and_after(
        cfg.init, weights, aim, rows, scores, cfg.test_views, cfg.resamples, cfg.seed, scoring, run.device
    )
    detector.freeze(scores)
    report(
        run, detector, rows, scores, cfg.resamples, *compared,
        train_views=cfg.train_views, facts={"trainable_parameters": count, **picked},
    )  # fmt: skip


if __name__ == "__main__":
    run_recipe(main, Config)

"""Pair training: does seeing a photograph beside its own fakes teach the trace instead of the content?

    python recipes/pair.py --tune head                                    # 3 arms x 3 seeds on cached features
    accelerate launch recipes/pair.py --tune lora --arms matched --seeds 0 --manifest data.csv \\
        --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k --output_dir results/pair-l14

Three arms see the same images in the same number of steps: `matched`, whole groups (one real + its fakes, one crop and
one JPEG draw for all of them) under losses within the group; `random`, the same losses, but every fake stands beside
another scene's photograph; `unpaired`, single images, which such losses cannot see. One arm with one seed is one run,
with the page of every run; several are run one after the other (or at once: --launcher slurm), compared, and continued
where they stopped. Time on the embedded world, 2 cores: head 3 to 4 minutes for all nine runs, lora 3 minutes per run.

With --classes family or generator, class-balanced cross-entropy over the classes joins the losses. Those within the
group still act on the one logit of "AI-generated", and the contrastive one still tells real from fake.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import at_least
from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Classes, Encoder, Launched, LeftOut, Rows, Steps, Views


@dataclass(frozen=True)
class Config(Rows, LeftOut, Encoder, Classes, Views, Steps, Launched):
    output_dir: Path = Path("results/runs/pair")  # holds one folder per run, and continues those runs
    arms: tuple[Literal["matched", "random", "unpaired"], ...] = ("matched", "random", "unpaired")  # what is compared
    seeds: tuple[int, ...] = (0, 1, 2)  # seeds of adapters, draws and random partners; each arm runs with each
    tune: Literal["head", "lora", "norm"] = "head"  # what is trained; head: only the head, on cached features
    ranking: float = 1.0  # weight of the ranking of the real below each of its fakes
    softmax: float = 0.0  # weight of the softmax over the group
    contrastive: float = 0.0  # weight of the supervised contrastive loss on features; not with --tune head
    temperature: float = 0.07  # temperature of the contrastive loss
    consistency: float = 0.0  # weight of the agreement between two views per image; doubles the work
    own_quality: bool = False  # members of a group first get the JPEG quality of its photograph's file; not with head
    targets: Literal["qv", "qkvo", "mlp", "all"] = "all"  # layers that --tune lora adapts
    rank: int = 8  # rank of each update; alpha is the same
    last_blocks: int | None = None  # adapt the last k blocks only
    resamples: int = 200  # most blocks of groups that are left out in turn behind every interval

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "ranking", "softmax", "contrastive", "consistency")
        if not self.arms or not self.seeds:
            raise Refusal("--arms and --seeds: give at least one of each")
        if self.contrastive and self.tune == "head":
            raise Refusal("--contrastive moves features, which --tune head leaves as they are: use lora or norm")

        if self.own_quality and self.tune == "head":
            raise Refusal("--own_quality changes images, which --tune head does not read: use lora or norm")

    @property
    def seed(self) -> int:
        return self.seeds[0]


def main(cfg: Config) -> None:
    from adapt.data.jpeg import with_sample_views
    from adapt.sweeps.arms import run_variants

    cfg = with_sample_views(cfg)
    if len(cfg.arms) == len(cfg.seeds) == 1:
        if cfg.launcher != "local":
            raise Refusal(f"--launcher {cfg.launcher} is for several arms or seeds: give one run to sbatch itself")
        return train(cfg)
    by_class = None if cfg.classes == "binary" else cfg.classes
    seeds = {seed: {"seeds": (seed,)} for seed in cfg.seeds}
    run_variants(cfg, "pair", {arm: {"arms": (arm,)} for arm in cfg.arms}, seeds, by_class)


def train(cfg: Config) -> None:
    """One arm, one seed."""
    import numpy as np
    import torch

    from adapt.data.left_out import leave_out
    from adapt.data.pairing import rematched, unpaired
    from adapt.features.cache import extract
    from adapt.models.adapters.lora import add_adapter
    from adapt.models.heads.linear import balanced_bce, binary_logit, cross_entropy
    from adapt.models.heads.losses import consistency, ranking, softmax_over_group, supervised_contrastive
    from adapt.models.towers.backbones import load_backbone
    from adapt.training.classes import class_facts, class_labels, classes_in_training, column_of, selection_score
    from adapt.training.report import finish_scored, given, log_validation, open_run, report, trained_images
    from adapt.training.run import warmup_cosine
    from adapt.training.trainable import Tuning

    if (opened := open_run(cfg)) is None:
        return
    cfg, run, rows = opened
    rows = leave_out(rows, cfg.leave_out)
    if finish_scored(run, rows):
        return
    val, held = np.flatnonzero(rows["split"] == "val"), np.flatnonzero(rows["split"] != "train")
    classes = classes_in_training(rows, cfg.classes)
    matched, arm = rows.select(rows["split"] == "train"), cfg.arms[0]
    images = rematched(matched, cfg.seed) if arm == "random" else unpaired(matched) if arm == "unpaired" else matched

    backbone = load_backbone(cfg.backbone, cfg.layer, cfg.geometry, size=cfg.size).to(run.device)
    backbone = (backbone.for_features if cfg.tune == "head" else backbone.to_precision)(cfg.precision)
    if cfg.tune == "head":
        features = extract(backbone, rows, (*cfg.train_views, *cfg.test_views), **run.encoding(cfg.num_workers))
    else:
        features, targets = None, "norm" if cfg.tune == "norm" else cfg.targets
        add_adapter(backbone, targets, cfg.rank, cfg.rank, last_blocks=cfg.last_blocks, seed=cfg.seed)
    tuning, twins = Tuning(run, rows, backbone, features, classes), cfg.consistency > 0
    by_class = column_of(tuning.detector, rows, cfg.classes)  # family or generator; None: real and fake
    labels = class_labels(images, tuning.detector, by_class)
    data = tuning.data(images, cfg.train_views, cfg.seed, twins, labels, cfg.own_quality)

    steps = max(1, len(matched.groups()) // cfg.groups)  # of an epoch, in every arm
    total = cfg.epochs * steps
    model = run.prepare(
        tuning.model,
        torch.optim.AdamW(tuning.parameters(cfg.learning_rate, cfg.head_learning_rate), weight_decay=cfg.weight_decay),
        schedule=warmup_cosine(total, cfg.warmup),
        data=rows.digest,
        base=backbone.fingerprint,
    )
    accumulation, workers = cfg.gradient_accumulation_steps, tuning.workers(cfg.num_workers)
    per_step = len(data) // steps
    for batch in run.steps(data, per_step, cfg.epochs, accumulation, workers, cfg.checkpointing_steps, steps):
        found, of_classes = model(batch.inputs)
        logits = binary_logit(of_classes) if by_class else of_classes  # (n,)
        loss = balanced_bce(logits, batch.fake, batch.weight) / run.share
        if by_class:
            loss = loss + cross_entropy(of_classes, batch.label, batch.class_weight) / run.share
        group = 2 * batch.group + batch.twin  # images under one view: only these are comparable within a group
        groups = run.share_of_groups * (1 + twins)
        members = groups * data.group_weight
        loss = loss + cfg.ranking * ranking(logits, batch.fake, group) / groups
        loss = loss + cfg.softmax * softmax_over_group(logits, batch.fake, group) / groups
        if cfg.contrastive:
            loss = loss + cfg.contrastive * supervised_contrastive(found, batch.fake, cfg.temperature) / members
        if twins:
            again = logits[batch.twin]
            loss = loss + cfg.consistency * consistency(logits[~batch.twin][: len(again)], again) / members
        run.step(loss, cfg.max_grad_norm)
        if run.epoch_ended:
            scores = tuning.score(val, cfg.train_views, cfg.num_workers, "validation")
            log_validation(run, scores)
            run.select(selection_score(scores, tuning.detector, by_class))

    picked = run.use_selected() | given(trained_images(run, rows), cfg.epochs * (1 + twins), cfg.epochs)
    final = tuning.final_scores(run, held, cfg.test_views, cfg.num_workers)
    if final is None:  # another process than the first
        return run.end()
    tuning.detector.freeze(final)
    facts = {"arm": arm, "trainable_parameters": tuning.trainable, **class_facts(tuning.detector, by_class), **picked}
    report(
        run, tuning.detector, rows, final, cfg.resamples,
        train_views=cfg.train_views, classes_are=by_class, facts=facts,
    )  # fmt: skip


if __name__ == "__main__":
    run_recipe(main, Config)

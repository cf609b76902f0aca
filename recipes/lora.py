"""LoRA on the vision tower: the main job.

    accelerate launch recipes/lora.py --manifest data.csv \\
        --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k --output_dir results/lora-l14

Trains low-rank adapters and a linear head on whole groups (a photograph and its fakes), picks the epoch on
validation data, freezes one threshold there, and scores the test rows under every view. Without flags it runs on
the embedded world with the embedded tiny CLIP: no network, about 3 minutes on 2 cores. Results to expect:
results/README.md. Started again with the same flags it continues where it stopped, bit for bit.
--classes family or generator trains a head with one output for each beside real: class-balanced cross-entropy beside
the binary loss, whose logit is the logsumexp of the fakes' logits minus that of real. The page then says which class a
fake is attributed to, and validation picks the epoch by the mean recall of the classes.
--permutations N trains N further towers, on permuted training and validation labels, as a control.
--rotate generator (or family) is a run with all generators and one without each, in folders of their own, and a page
that says how well each is found when training has not seen it. On several GPUs start those runs with --leave_out NAME
and their --output_dir (OUTPUT/all, OUTPUT/all-without-NAME); then plain python and --rotate make the page.
--folds 5 cross-validates a small set: five such runs, each the test of a fifth of the groups (--fold 2: one of them).
To go on from a saved detector, or to learn one new generator: recipes/refine.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import run as run_recipe
from adapt.flags import FineTuning, Folds, Rotation

if TYPE_CHECKING:  # --help needs none of them
    from collections.abc import Callable

    from adapt.data.manifest import Manifest
    from adapt.detector.detector import Detector
    from adapt.evaluation.permutation import Reached
    from adapt.training.refine import Aim
    from adapt.training.run import Run


@dataclass(frozen=True)
class Config(Rotation, Folds, FineTuning):
    output_dir: Path = Path("results/runs/lora")  # run directory; continues the run that it holds


def main(cfg: Config) -> None:
    import numpy as np

    from adapt.data.left_out import leave_out
    from adapt.sweeps.folds import run_folds
    from adapt.sweeps.rotation import run_rotation
    from adapt.training.classes import column_of
    from adapt.training.final_scores import final_scores
    from adapt.training.report import finish_scored, open_run, report

    if cfg.folds and not cfg.fold:
        return run_folds(cfg, "lora")
    if cfg.rotate:
        return run_rotation(cfg, "lora", cfg.rotate)
    if (opened := open_run(cfg)) is None:
        return
    cfg, run, rows = opened
    rows = leave_out(rows, cfg.leave_out)
    if finish_scored(run, rows):
        return
    chance = on_permuted_labels(cfg, rows, run.folder, new_detector)
    detector = new_detector(cfg, run, rows)
    facts = fine_tune(cfg, run, rows, detector)
    held = np.flatnonzero(rows["split"] != "train")
    scores = final_scores(run, detector, rows, held, cfg.test_views, cfg.num_workers)
    if scores is None:  # another process than the first
        return run.end()
    detector.freeze(scores)
    report(
        run, detector, rows, scores, cfg.resamples,
        train_views=cfg.train_views, classes_are=column_of(detector, rows, cfg.classes), permuted=chance, facts=facts,
    )  # fmt: skip


def on_permuted_labels(
    cfg: FineTuning,
    rows: "Manifest",
    folder: Path,
    new: "Callable[[FineTuning, Run, Manifest], Detector]",
    **known: object,
) -> "list[Reached]":
    """What the same training reaches on each permutation of the labels, in run directories of their own in `folder`.

    `new` makes the detector that is trained; `known` as in `fine_tune`.
    """
    from dataclasses import fields

    import numpy as np

    from adapt.data.permutation import permuted
    from adapt.detector.detector import score
    from adapt.evaluation.permutation import Reached
    from adapt.evaluation.side_by_side import reached
    from adapt.number_table import read_rows, write_rows
    from adapt.training.report import PERMUTATIONS
    from adapt.training.run import Run

    held, found = np.flatnonzero(rows["split"] != "train"), []
    given: dict[str, Any] = {field.name: getattr(cfg, field.name) for field in fields(FineTuning)}
    for number in range(1, cfg.permutations + 1):
        one = Config(**given | {"permutations": 0, "output_dir": folder / f"permutation-{number}"})
        run = Run(one)
        kept = run.folder / PERMUTATIONS
        shuffled = permuted(rows, number)
        if not run.finished(data=shuffled.digest, **known):
            detector = new(one, run, shuffled)
            facts = fine_tune(one, run, shuffled, detector, None, **known)
            scores = score(detector, shuffled, held, cfg.test_views, **run.scoring(cfg.num_workers))
            if run.main:
                write_rows(kept, [field.name for field in fields(Reached)], reached(scores, number))
                run.write_record(run.record(**facts))
            run.close()
        found += read_rows(kept, Reached)
    return found


def new_detector(cfg: FineTuning, run: "Run", rows: "Manifest") -> "Detector":
    """The frozen tower with fresh adapters, and a linear head of the classes of the rows whose weights are zero."""
    from adapt.detector.detector import Detector
    from adapt.models.adapters.lora import add_adapter
    from adapt.models.heads.linear import LinearHead
    from adapt.models.towers.backbones import load_backbone
    from adapt.training.classes import classes_in_training

    classes = classes_in_training(rows, cfg.classes)
    backbone = (
        load_backbone(cfg.backbone, cfg.layer, cfg.geometry, size=cfg.size).to(run.device).to_precision(cfg.precision)
    )
    add_adapter(backbone, cfg.targets, cfg.rank, cfg.alpha, cfg.dropout, cfg.last_blocks, cfg.seed, cfg.update)
    return Detector(backbone, LinearHead(backbone.dim, classes))


def fine_tune(
    cfg: FineTuning, run: "Run", rows: "Manifest", detector: "Detector", aim: "Aim | None" = None, **known: object
) -> "dict[str, object]":
    """Train adapters and head on whole groups and leave the best epoch in the detector; recipes/refine.py does so too.

    `aim` says what is shown more often, `known` are further facts that a continued run must share. Returns what was
    picked, and how many numbers were trained.
    """
    import torch

    from adapt.models.adapters.cut_tower import trained_part
    from adapt.models.heads.linear import balanced_bce, binary_logit, cross_entropy
    from adapt.models.heads.losses import consistency
    from adapt.training.classes import class_facts, class_labels, column_of, selection_score
    from adapt.training.micro_batches import accumulation_that_fits
    from adapt.training.report import given, log_validation, trained_images
    from adapt.training.run import warmup_cosine
    from adapt.training.tokens import training_data

    by_class = column_of(detector, rows, cfg.classes)  # family or generator; None: real and fake
    twins = cfg.consistency > 0  # each image under two views
    labels = class_labels(rows.select(rows["split"] == "train"), detector, by_class)
    part = trained_part(detector, cfg.cache_prefix, cfg.checkpoint_activations, cfg.compile)
    train, validate = training_data(
        run, part, detector, rows, cfg.train_views, cfg.seed,
        focus=aim.focus if aim else None, cached=cfg.cache_prefix, num_workers=cfg.num_workers, labels=labels,
        twins=twins, own_quality=cfg.own_quality, ramp=cfg.ramp,
    )  # fmt: skip
    trained = [
        {"params": [p for p in detector.backbone.parameters() if p.requires_grad], "lr": cfg.learning_rate},
        {"params": detector.head.parameters(), "lr": cfg.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(trained, weight_decay=cfg.weight_decay, fused=True)
    steps = cfg.epochs * (len(train) // min(cfg.groups, len(train)))
    known |= {"aim": aim.cells} if aim else {}
    model = run.prepare(
        part,
        optimizer,
        warmup_cosine(steps, cfg.warmup),
        data=rows.digest,
        base=detector.backbone.fingerprint,
        **known,
    )
    accumulation = accumulation_that_fits(run, part, train, cfg.groups, cfg.gradient_accumulation_steps)

    workers = run.workers(cfg.num_workers)
    for batch in run.steps(train, cfg.groups, cfg.epochs, accumulation, workers, cfg.checkpointing_steps):
        found = model(batch.inputs)  # logits (n,), or (n, classes)
        logits = binary_logit(found) if by_class else found
        loss = balanced_bce(logits, batch.fake, batch.weight) / run.share
        if by_class:
            loss = loss + cross_entropy(found, batch.label, batch.class_weight) / run.share
        if twins:
            again, images = logits[batch.twin], run.share_of_groups * train.group_weight
            loss = loss + cfg.consistency * consistency(logits[~batch.twin][: len(again)], again) / images
        run.step(loss, cfg.max_grad_norm)
        if run.epoch_ended:
            scores = validate()
            log_validation(run, scores)
            chosen_by = selection_score(scores, detector, by_class)
            run.select(chosen_by, last=aim is not None and aim.new)  # validation lacks a new generator

    picked = run.use_selected() | given(trained_images(run, rows), cfg.epochs * (1 + twins), cfg.epochs)
    count = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    return {"trainable_parameters": count, **class_facts(detector, by_class), **picked}


if __name__ == "__main__":
    run_recipe(main, Config)

"""LoRA on the vision tower: the main job.

    accelerate launch recipes/lora.py --manifest data.csv \\
        --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k --output_dir results/lora-l14

Trains low-rank adapters and a linear head on whole groups (a photograph and its fakes), picks the epoch on
validation data, freezes one threshold there, and scores the test rows under every view. Without flags it runs on
the embedded world with the embedded tiny CLIP: no network, about 3 minutes on 2 cores. Results to expect:
results/README.md. Started again with the same flags it continues where it stopped, bit for bit.
To go on from a saved detector, or to learn one new generator: recipes/refine.py.
"""

from dataclasses import dataclass
from pathlib import Path

from adapt.cli import at_least
from adapt.cli import run as run_recipe
from adapt.flags import Intervals, Rows, Tower, Views


@dataclass(frozen=True)
class Config(Rows, Tower, Views, Intervals):
    output_dir: Path = Path("results/runs/lora")  # run directory; continues the run that it holds
    permute_labels: bool = False  # control: shuffle the training labels; the test must then be at chance

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "resamples")
        at_least(0, self, "seed")


def main(cfg: Config) -> None:
    import numpy as np
    import torch

    from adapt.data.jpeg import with_sample_views
    from adapt.detector.detector import Detector, score
    from adapt.embedded import read_manifests
    from adapt.models.adapters.cut_tower import trained_part
    from adapt.models.adapters.lora import add_adapter
    from adapt.models.heads.linear import LinearHead, balanced_bce
    from adapt.models.towers.backbones import load_backbone
    from adapt.processes import Scoring
    from adapt.training.micro_batches import accumulation_that_fits
    from adapt.training.report import log_validation, report, require_classes, show_finished, validation_score
    from adapt.training.run import Run, warmup_cosine
    from adapt.training.tokens import training_data

    cfg = with_sample_views(cfg)
    run = Run(cfg)
    if run.finished():
        return show_finished(run)
    rows = read_manifests(cfg.manifest)
    require_classes(rows)
    held = np.flatnonzero(rows["split"] != "train")
    backbone = load_backbone(cfg.backbone, cfg.layer, cfg.geometry).to(run.device).to_precision(cfg.precision)
    add_adapter(backbone, cfg.targets, cfg.rank, cfg.alpha, cfg.dropout, cfg.last_blocks, cfg.seed, cfg.update)
    detector = Detector(backbone, LinearHead(backbone.dim))
    part = trained_part(detector, cfg.cache_prefix, cfg.checkpoint_activations)
    workers = run.workers(cfg.num_workers)
    scoring: Scoring = {"workers": workers, "share": run.share_of_rows, "gather": run.gather}
    labels = rows.fake[rows["split"] == "train"]
    if cfg.permute_labels:
        labels = np.random.default_rng(cfg.seed).permutation(labels)
    train, validate = training_data(
        run, part, detector, rows, cfg.train_views, cfg.seed, labels,
        focus=None, cached=cfg.cache_prefix, num_workers=cfg.num_workers,
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
    )
    accumulation = accumulation_that_fits(run, part, train, cfg.groups, cfg.gradient_accumulation_steps)

    for batch in run.steps(train, cfg.groups, cfg.epochs, accumulation, workers, cfg.checkpointing_steps):
        logits = model(batch.pixels)
        loss = balanced_bce(logits, batch.fake, batch.weight) / run.share
        run.step(loss, cfg.max_grad_norm)
        if run.epoch_ended:
            scores = validate()
            log_validation(run, scores)
            run.select(validation_score(scores))

    picked = run.use_selected()
    count = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    scores = score(detector, rows, held, cfg.test_views, progress="scoring", **scoring)
    detector.freeze(scores)
    report(
        run, detector, rows, scores, cfg.resamples,
        train_views=cfg.train_views, facts={"trainable_parameters": count, **picked},
    )  # fmt: skip


if __name__ == "__main__":
    run_recipe(main, Config)

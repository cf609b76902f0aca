"""LoRA on the vision tower: the main job.

    accelerate launch recipes/lora.py --manifest data.csv \\
        --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k --output_dir results/lora-l14

Trains low-rank adapters and a linear head on whole groups (a photograph and its fakes), picks the epoch on
validation data, freezes one threshold there, and scores the test rows under every view. Without flags it runs on
the embedded world with the embedded tiny CLIP: no network, about 3 minutes on 2 cores. Results to expect:
results/README.md. Started again with the same flags it continues where it stopped, bit for bit.

--init goes on from a saved detector; the page then says cell by cell what got better and worse. --focus holes shows
its weakest (generator, view) cells of validation rows more often, and the same command without it is the control;
--onboard, with or without --init, learns a new generator from --shots of its groups (adapt/data/focus.py and
adapt/data/onboarding.py say how).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapt.cli import at_least
from adapt.cli import run as run_recipe
from adapt.flags import Encoder, Intervals, Rows, Steps, Views


@dataclass(frozen=True)
class Config(Rows, Encoder, Views, Steps, Intervals):
    output_dir: Path = Path("results/runs/lora")  # run directory; continues the run that it holds
    init: Path | None = None  # a saved detector to go on from: its base, layer, precision, adapter and head
    focus: Literal["holes"] | None = None  # show the cells more often in which the --init detector is weakest
    holes: int = 4  # how many (generator, view) cells those are
    onboard: str | None = None  # a generator without training rows to learn
    shots: int | None = None  # from how many of its groups; 0: the control, trained as long on the same test rows
    focus_share: float = 0.5  # of the groups of an epoch, which show a hole or the new generator
    targets: Literal["qv", "qkvo", "mlp", "all", "norm"] = "all"  # layers that are adapted; norm: tune the norms only
    update: Literal["lora", "svd"] = "lora"  # svd: each weight's last `rank` singular directions (Effort: rank 1)
    rank: int = 8  # of each update
    alpha: float = 8  # a LoRA's update is alpha / rank * B A
    dropout: float = 0.0  # on the adapters' input
    last_blocks: int | None = None  # adapt the last k blocks only
    cache_prefix: bool = False  # keep the tokens below those blocks on disk: central crops, one entry per image, view
    checkpoint_activations: bool = False  # less memory for more time: blocks run again in the backward pass
    permute_labels: bool = False  # control: shuffle the training labels; the test must then be at chance

    def __post_init__(self) -> None:
        at_least(1, self, "rank", "epochs", "groups", "gradient_accumulation_steps", "checkpointing_steps")
        at_least(1, self, "resamples", "holes")
        at_least(0, self, "learning_rate", "head_learning_rate", "weight_decay", "warmup", "seed")
        at_least(0, self, "dropout", below=1)


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
    from adapt.training.micro_batches import accumulation_that_fits
    from adapt.training.refine import aim_of, before_and_after, origin_of
    from adapt.training.report import log_validation, report, require_classes, show_finished, validation_score
    from adapt.training.run import Run, warmup_cosine
    from adapt.training.tokens import training_data
    from adapt.training.trainable import continued

    cfg = with_sample_views(cfg)
    run = Run(cfg)
    origin = origin_of(cfg)
    if run.finished(**origin):
        return show_finished(run)
    rows = read_manifests(cfg.manifest)
    require_classes(rows)
    if cfg.onboard:
        rows = onboard(rows, cfg.onboard, cfg.shots, cfg.seed)[1]
    held = np.flatnonzero(rows["split"] != "train")
    if cfg.init:
        detector = continued(cfg.init, cfg, run.say).to(run.device)
    else:
        backbone = load_backbone(cfg.backbone, cfg.layer, cfg.geometry).to(run.device).to_precision(cfg.precision)
        add_adapter(backbone, cfg.targets, cfg.rank, cfg.alpha, cfg.dropout, cfg.last_blocks, cfg.seed, cfg.update)
        detector = Detector(backbone, LinearHead(backbone.dim))
    backbone = detector.backbone
    part = trained_part(detector, cfg.cache_prefix, cfg.checkpoint_activations)
    workers = run.workers(cfg.num_workers)
    scoring = {"workers": workers, "share": run.share_of_rows, "gather": run.gather}
    aim = aim_of(cfg, detector, rows, scoring, run.say)
    labels = rows.fake[rows["split"] == "train"]
    if cfg.permute_labels:
        labels = np.random.default_rng(cfg.seed).permutation(labels)
    how = (cfg.train_views, cfg.seed, labels, aim.focus, cfg.cache_prefix, cfg.num_workers)
    train, validate = training_data(run, part, detector, rows, *how)

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
        **origin,
        aim=aim.cells,
    )
    accumulation = accumulation_that_fits(run, part, train, cfg.groups, cfg.gradient_accumulation_steps)

    for batch in run.steps(train, cfg.groups, cfg.epochs, accumulation, workers):
        logits = model(batch.pixels)
        loss = balanced_bce(logits, batch.fake, batch.weight) / run.share
        run.step(loss, cfg.max_grad_norm)
        if run.epoch_ended:
            scores = validate()
            log_validation(run, scores)
            run.select(validation_score(scores), last=cfg.onboard is not None)

    picked = run.use_selected()
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    scores = score(detector, rows, held, cfg.test_views, progress="scoring", **scoring)
    compared = before_and_after(cfg, aim, rows, scores, scoring, run.device)
    report(run, detector, rows, scores, cfg.resamples, *compared, trainable_parameters=trained, **picked)


if __name__ == "__main__":
    run_recipe(main, Config)

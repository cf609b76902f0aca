"""Where was an image changed, and by what? A map of the part that was generated or edited.

    python recipes/localize.py                                   # embedded world, frozen tiny
    adapt composites --manifest data.csv --output data/composites.csv
    accelerate launch recipes/localize.py --manifest data.csv data/composites.csv --tune lora --learning_rate 1e-4 \\
        --layer block6+block12+block24 --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k --output_dir results/map-l14

Trains a head on rows with a `mask` beside whole photographs and whole fakes. The head sees the patch tokens of native
tiles and noise residuals of their pixels: what a 3 x 3 mean does not explain, through two convolutions
(--residual 0 leaves them out). Tiles are stitched: convolutions run across their borders, and the mean over the whole
image tells each place what the rest looks like. The pooled map decides over the image: its extent (real, generated,
part) and its tool (family of generators, or ordinary edit). Epoch and thresholds come from validation rows.

The page has pixel AUC (mean over images, and over the pixels of all), F1 and IoU at the one frozen threshold, by size
of region, generator, edit and view; the area called changed in untouched, processed and generated images; confusions
of extents and tools; all with intervals over groups. It also has all that any detector's page has, where `part:NAME`
are the composites of a generator. The pixels of an image count by a histogram of 256 bins, and the page says how far
an AUC can be off by that; maps.safetensors keeps the histograms and decisions. TensorBoard shows maps beside masks.

detector/ has the format of every detector, with the threshold of the map in its head. `adapt predict --maps` writes
the maps as pictures; adapt.detector.localizer.load_localizer(FOLDER) loads it. It looks at whole images, alone, and
takes bounded memory: above 2^20 cells a map gets coarser. Time without flags: under 5 minutes on 2 cores. Results to
expect: results/README.md.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import at_least
from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Intervals, Steps, Views


@dataclass(frozen=True)
class Config(Views, Steps, Intervals):
    manifest: tuple[str, ...] = ("embedded", "embedded-composites")  # tables of images, some with masks; [@SEED]
    output_dir: Path = Path("results/runs/localize")  # run directory; continues the run that it holds
    backbone: str = "tiny"  # LIBRARY:MODEL[@WEIGHTS], see adapt/models/towers/backbones.py
    layer: str = "block1"  # layer of the patch tokens: blockK, last; joined by +. Early blocks keep fine traces
    tune: Literal["frozen", "lora", "norm"] = "frozen"  # how the tower under the head is trained
    tools: Literal["family", "generator"] = "family"  # what fakes are attributed to; ordinary edits have their names
    targets: Literal["qv", "qkvo", "mlp", "all"] = "all"  # layers that --tune lora adapts
    rank: int = 8  # rank of each update; alpha is the same
    hidden: int = 48  # channels of the head
    residual: int = 16  # channels of the second stream, noise residuals; 0: patch tokens alone
    crop: int | None = None  # side of a training crop, native px; None: one tile
    members: int = 6  # images per group and epoch: untouched, generated and edited ones in turn
    decisions: float = 0.2  # weight of the losses over the whole image (extent, tool)
    val_views: tuple[str, ...] = ("qf90",)  # views that select the epoch; thresholds come from all test views
    groups: int = 4  # groups per optimizer step, over all processes
    head_learning_rate: float = 2e-3  # step size for the head

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "hidden", "members")
        at_least(0, self, "residual", "decisions")


def main(cfg: Config) -> None:
    import numpy as np
    import torch
    from torch.nn import functional as F

    from adapt.data.masked_groups import MaskedGroups
    from adapt.data.masks import require_masks, tools
    from adapt.detector.detector import Detector
    from adapt.detector.localizer import Localizer
    from adapt.evaluation.map_metrics import mean_pixel_auc
    from adapt.models.adapters.lora import add_adapter
    from adapt.models.heads.map_head import MapHead, is_ai
    from adapt.models.towers.backbones import load_backbone
    from adapt.training.localization import of_maps, report_maps, score_maps, show_maps
    from adapt.training.report import finish_scored, log_validation, open_run, validation_score
    from adapt.training.run import warmup_cosine

    if (opened := open_run(cfg)) is None:
        return
    cfg, run, rows = opened
    tool = tools(rows, cfg.tools)
    adds = partial(of_maps, rows, tool, cfg.resamples, cfg.seed)
    if finish_scored(run, rows, adds):
        return
    for split in ("train", "val", "test"):
        if not any(rows["mask"][rows["split"] == split]):
            raise Refusal(f"split {split!r} has no mask: `adapt composites` makes them of matched groups")
    require_masks(rows)
    train_rows = rows.select(rows["split"] == "train")
    val, held = np.flatnonzero(rows["split"] == "val"), np.flatnonzero(rows["split"] != "train")
    known = sorted(set(tool[rows["split"] == "train"]) - {"real"}, key=lambda name: (not is_ai(name), name))
    number = {name: i for i, name in enumerate(("real", *known))}

    backbone = load_backbone(cfg.backbone, cfg.layer, "native").to(run.device).to_precision(cfg.precision)
    if cfg.tune != "frozen":
        targets = "norm" if cfg.tune == "norm" else cfg.targets
        add_adapter(backbone, targets, cfg.rank, cfg.rank, seed=cfg.seed)
    torch.manual_seed(cfg.seed)
    head = MapHead(backbone.dim, tuple(number), cfg.hidden, cfg.residual)
    localizer = Localizer(Detector(backbone, head)).to(run.device)
    tiling = localizer.tiling
    numbers = np.array([number[name] for name in tool[rows["split"] == "train"]])
    data = MaskedGroups(
        train_rows, numbers, cfg.train_views, tiling.crop(cfg.crop), tiling.fine, cfg.members, cfg.seed
    )

    adapters = [p for p in backbone.parameters() if p.requires_grad]
    parameters = [{"params": localizer.head.parameters(), "lr": cfg.head_learning_rate}]
    parameters += [{"params": adapters, "lr": cfg.learning_rate}] if adapters else []
    total = cfg.epochs * (len(data) // min(cfg.groups, len(data)))
    model = run.prepare(
        localizer,
        torch.optim.AdamW(parameters, weight_decay=cfg.weight_decay),
        schedule=warmup_cosine(total, cfg.warmup),
        data=rows.digest,
        base=backbone.fingerprint,
    )
    workers = run.workers(cfg.num_workers)
    scoring = run.scoring(cfg.num_workers)
    accumulation = cfg.gradient_accumulation_steps
    for batch in run.steps(data, cfg.groups, cfg.epochs, accumulation, workers, cfg.checkpointing_steps):
        maps, extent, made_by = model(batch.inputs)
        where = F.binary_cross_entropy_with_logits(maps, batch.changed, reduction="none").mean(dim=(1, 2))
        what = F.cross_entropy(extent, batch.extent, reduction="none")
        what = what + F.cross_entropy(made_by, batch.tool, reduction="none")
        loss = (batch.weight * (where + cfg.decisions * what)).sum() / run.share
        run.step(loss, cfg.max_grad_norm)
        if run.epoch_ended:
            found = score_maps(localizer, rows, val, cfg.val_views, tool=tool, progress="validation", **scoring)
            log_validation(run, found.scores)
            pixels = mean_pixel_auc(found, found.scores.fake)  # composites of generators: nothing else has both kinds
            run.log({"val/pixel_auc": pixels})
            run.say(f"step {run.step_number}: validation {pixels:.4f} (pixel AUC)")
            show_maps(run, localizer, rows, val, cfg.val_views[0])
            run.select((validation_score(found.scores) + pixels) / 2)

    picked = run.use_selected()
    trained = sum(p.numel() for p in localizer.parameters() if p.requires_grad)
    found = score_maps(localizer, rows, held, cfg.test_views, tool=tool, progress="scoring", **scoring)
    facts = {"trainable_parameters": trained, **picked}
    report_maps(run, localizer, rows, found, cfg.resamples, adds, train_views=cfg.train_views, facts=facts)


if __name__ == "__main__":
    run_recipe(main, Config)

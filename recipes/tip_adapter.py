"""Few shots: zero-shot prompts, Tip-Adapter, Tip-Adapter-F and a probe on the same images.

    accelerate launch recipes/tip_adapter.py --manifest data.csv --classes family \\
        --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k --output_dir results/tip-l14

For 1 to 512 images a class, several draws each: the published Tip-Adapter (2207.09519: sums, alpha 1, beta 5.5), ours
(class means), Tip-Adapter-F, and logistic regression on the same rows. The prior is the cosine to text prompts; for a
backbone without texts, --prior probe takes the logits of that regression. Hyper-parameters are chosen on the shots
alone, or fixed where these are too few; --select_on validation takes all validation images, as other recipes do, which
is no few-shot protocol. --shots all takes every training image. With thousands of images a probe wins or ties: look at
the left of the curve. The Tip-Adapter with the best validation score of all shots and draws is saved as a detector
(the best of the other methods, where no Tip-Adapter is asked for); --folds 5 cross-validates that choice on a small
set. Without flags: the embedded world and tiny CLIP, about 2 minutes on 2 cores, half of it encoding. Results to
expect: results/README.md.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import at_least
from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Cached, Encoder, Folds, Intervals, LeftOut, Rows, Views

if TYPE_CHECKING:  # --help needs none of them
    from matplotlib.figure import Figure

    from adapt.training.comparison import Study
    from adapt.training.scored import Kept

Method = Literal["zero-shot", "logistic", "published", "tip-adapter", "tip-adapter-f"]


@dataclass(frozen=True)
class Config(Rows, LeftOut, Folds, Encoder, Views, Cached, Intervals):
    output_dir: Path = Path("results/runs/tip_adapter")  # run directory
    layer: str = "proj"  # texts meet images in proj only; any layer with --prior probe or none
    prior: Literal["text", "probe", "none"] = "text"  # probe: of the same shots; none where there is one a class
    classes: Literal["binary", "family"] = "binary"
    methods: tuple[Method, ...] = ("zero-shot", "logistic", "published", "tip-adapter", "tip-adapter-f")
    shots: tuple[int | Literal["all"], ...] = (1, 4, 16, 64, 256, 512)  # images a class; all: every training image
    select_on: Literal["shots", "validation"] = "shots"  # what chooses C, alpha, beta and the epoch of Tip-Adapter-F
    draws: int = 3  # of each number of shots
    epochs: int = 20  # of Tip-Adapter-F
    learning_rate: float = 1e-3  # of its keys
    resamples: int = 200  # most blocks of groups that are left out in turn behind every interval

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "draws")
        if wrong := [number for number in self.shots if number != "all" and number < 1]:
            raise Refusal(f"--shots {wrong[0]}: give at least 1, or all")
        if self.prior == "text" and self.layer != "proj":
            raise Refusal(f"--layer {self.layer}: texts are compared with layer proj; choose --prior probe or none")


def main(cfg: Config) -> None:
    import numpy as np
    import torch

    from adapt.data.left_out import leave_out
    from adapt.detector.detector import Detector
    from adapt.models.heads.tip_adapter import TipAdapter, draw_shots
    from adapt.models.heads.tip_head import PriorHead
    from adapt.models.prompts import FAKE, REAL, family_prompts, prompt_features
    from adapt.sweeps.folds import run_folds
    from adapt.training.comparison import Heads, finish, finish_compared
    from adapt.training.on_features import (
        class_names,
        frozen_features,
        known_classes,
        numbers,
        readable_rows,
        score_features,
    )
    from adapt.training.report import given, open_run
    from adapt.training.shots import OnShots, OnValidation, Shots, how_chosen

    if cfg.folds and not cfg.fold:
        return run_folds(cfg, "tip_adapter")
    if (opened := open_run(cfg)) is None:
        return
    cfg, run, rows = opened
    rows, page = leave_out(rows, cfg.leave_out), partial(curve, cfg)
    if finish_compared(run, rows, page):
        return
    names = class_names(rows, cfg.classes)
    classes = known_classes(names[rows["split"] == "train"])
    prompts = [REAL if name == "real" else FAKE if name == "fake" else family_prompts(name) for name in classes]
    texts = prompt_features(cfg.backbone, prompts) if cfg.prior == "text" else None
    backbone, features = frozen_features(run, rows, cfg, (*cfg.train_views, *cfg.test_views))
    if not run.main:
        return run.end()

    train, drawn = readable_rows(features, "train", cfg.train_views, cfg.seed)
    labels, held = numbers(names[train], classes), np.flatnonzero(rows["split"] != "train")
    every = int(np.bincount(labels).max())  # images of the largest class
    choose = OnShots() if cfg.select_on == "shots" else OnValidation(features, cfg.train_views, names, classes)
    heads = Heads(run.folder, ("method", "shots", "draw"))
    facts, asked, enough = dict[tuple[str, ...], dict[str, int]](), set(cfg.methods), dict[int, bool]()
    tips = asked & {"published", "tip-adapter", "tip-adapter-f"}

    def add(method: str, shots: int, draw: int, head, on=(), tried: int = 1, trained: int = 0) -> None:
        run.trained()
        key, deployable = (method, str(shots), str(draw)), head if not tips or "Tip" in method else None
        facts[key] = given(rows.fake[list(on)], int(len(on) > 0), tried) | {"trainable_parameters": trained}
        heads.add(key, score_features(features, held, cfg.test_views, head), deployable)

    if texts is not None and "zero-shot" in asked:
        add("zero-shot", 0, 0, PriorHead(classes, texts=texts))
    for shots in dict.fromkeys(every if number == "all" else number for number in cfg.shots):
        for draw in range(cfg.draws) if asked - {"zero-shot"} else ():
            seed = cfg.seed + draw
            chosen, short = draw_shots(labels, rows["group"][train], shots, seed, classes)
            if short and not draw:
                run.say(f"{shots} shots: " + ", ".join(f"{name} has {count} only" for name, count in short.items()))
            x, y, on = features.take(train[chosen], drawn[chosen]), labels[chosen], train[chosen]
            few, groups, probe, tried_c, size = Shots(rows, on, x, y), rows["group"][on], None, 0, 0
            enough[shots] = enough.get(shots, True) and few.enough()
            if shots > 1 and ("logistic" in asked or cfg.prior == "probe"):  # one image cannot be standardised
                probe, of_probe, tried_c = choose.probe(few, classes, seed)
                size = sum(value.numel() for value in probe.net.parameters())
            if probe and "logistic" in asked:
                add("logistic", shots, draw, probe, on, tried_c, size)
            of_prior = probe if cfg.prior == "probe" else None
            prior = PriorHead(classes, texts=texts, probe=of_prior)
            own = of_probe if of_prior else prior.prior(torch.from_numpy(x))
            size, tried_c = (size, tried_c) if of_prior else (0, 0)

            if "published" in asked:
                published = TipAdapter(x, y, groups, len(classes), values="sum")
                add("Tip-Adapter, published", shots, draw, prior.beside(published), on, 1 + tried_c, size)
            if not asked & {"tip-adapter", "tip-adapter-f"}:
                continue
            ours = TipAdapter(x, y, groups, len(classes), alpha=50)
            tried = choose.tip(ours, few, prior, own) + tried_c
            if "tip-adapter" in asked:
                add("Tip-Adapter", shots, draw, prior.beside(ours), on, tried, size)
            if shots > 1 and "tip-adapter-f" in asked:  # a key's own group may not vote: a class needs two of them
                keys = TipAdapter(x, y, groups, len(classes), alpha=float(ours.alpha) or 50, beta=float(ours.beta))
                tried += choose.tip_f(keys, few, prior, own, seed, cfg.epochs, cfg.learning_rate)
                add("Tip-Adapter-F", shots, draw, prior.beside(keys), on, tried, size + keys.keys.numel())
        run.say(f"{shots} shots done")

    val = np.isin(names, classes) & (rows["split"] == "val")
    chosen_by = how_chosen(cfg.select_on, enough, len(classes), rows.fake[val], len(set(cfg.train_views)))
    heads.notes["chosen by"] = [chosen_by] if enough else []
    best = Detector(backbone, heads.best.head) if heads.best else None
    of_one = facts[heads.best.key if heads.best else list(facts)[-1]] | {"classes": " ".join(classes)}
    finish(run, rows, heads, page, best, cfg.train_views, **of_one)


def curve(cfg: Config, tables: "Kept") -> "tuple[Study, list[str], dict[str, Figure]]":
    """The page: means over the draws, and a curve over the number of shots."""
    from adapt.pages.drawing import curves
    from adapt.training.comparison import Study

    study = Study.of(tables, cfg.resamples, cfg.seed)
    mean, chosen_by = study.over_last_key(), cast("list[str]", tables.notes["chosen by"])
    about = f"Mean over {cfg.draws} draws of the shots; in brackets the smallest and the largest of them."
    return study, [about, *chosen_by, *mean.grids()], {"shots": curves(mean.cells, cfg.test_views)}


if __name__ == "__main__":
    run_recipe(main, Config)

"""Colour beside CLIP: do colour statistics add anything, and does it survive another JPEG quality?

    accelerate launch recipes/color_fusion.py --manifest data.csv \\
        --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k --output_dir results/colour-l14

Fits one head on each of: colour statistics that survive JPEG (descriptors/color.py), those of them that luma has no
part in (chroma), the backbone's features, colour and features side by side, the backbone's features of images without
chroma (control), and colour statistics of single pixels, which JPEG destroys (ablation). Each is trained at one
quality and tested at others. Judge by unseen generators: colour also tells one photographer's pictures from another's.
The head of colour and features, trained on all qualities mixed, is saved as a detector. --classes family or generator
gives every head one class each beside real, and the page how well it attributes. --folds 5 cross-validates this
detector on a small set. Without flags: the embedded world and tiny CLIP, about 4 minutes on 2 cores, most of it
features. Results to expect: results/README.md. `--features spectra` is a baseline of low-level traces alone: radial
profile and peaks of the noise residual's spectrum (descriptors/spectra.py; 64 px or more).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Cached, Classes, Encoder, Folds, Intervals, LeftOut, Rows

if TYPE_CHECKING:  # --help needs none of them
    from matplotlib.figure import Figure

    from adapt.training.comparison import Study
    from adapt.training.scored import Kept

Source = Literal["colour", "chroma", "backbone", "both", "grey", "fragile", "spectra"]


@dataclass(frozen=True)
class Config(Rows, LeftOut, Folds, Encoder, Classes, Cached, Intervals):
    output_dir: Path = Path("results/runs/color_fusion")  # run directory
    head: Literal["svm", "logistic", "mlp"] = "logistic"
    train_views: tuple[str, ...] = ("qf40", "qf65", "qf90", "none")  # one row each, and one for all of them mixed
    test_views: tuple[str, ...] = ("qf40", "qf65", "qf90", "none")
    features: tuple[Source, ...] = ("colour", "chroma", "backbone", "both", "grey", "fragile")  # in the order above
    apart: bool = True  # no: only one head for all qualities mixed, its threshold frozen under the test views
    cached_only: bool = False  # refuse to encode what `adapt extract` has not; colour is computed either way

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds and "both" not in self.features and (self.apart or len(self.features) > 1):
            raise Refusal("--folds pools one head: leave `both` among --features, or give one of them and --no_apart")


def main(cfg: Config) -> None:
    import dataclasses

    import numpy as np

    from adapt.data.left_out import leave_out
    from adapt.data.views import parse_view
    from adapt.detector.detector import Detector
    from adapt.features.cache import Joined, extract
    from adapt.features.remembered import frozen_backbone
    from adapt.models.descriptors.color import Colours
    from adapt.models.descriptors.spectra import Spectra
    from adapt.sweeps.folds import run_folds
    from adapt.training.comparison import Heads, Study, finish, finish_compared
    from adapt.training.on_features import fit_on_features, score_features
    from adapt.training.report import GIVEN, open_run

    if cfg.folds and not cfg.fold:
        return run_folds(cfg, "color_fusion")
    if (opened := open_run(cfg)) is None:
        return
    cfg, run, rows = opened
    rows = leave_out(rows, cfg.leave_out)

    def page(tables: "Kept") -> "tuple[Study, list[str], dict[str, Figure]]":
        study = Study.of(tables, cfg.resamples, cfg.seed, None if cfg.classes == "binary" else cfg.classes)
        return study, [*study.grids(), *study.attribution()], {}

    if finish_compared(run, rows, page):
        return
    backbone = frozen_backbone(cfg, run.device)
    views = tuple(dict.fromkeys(parse_view(view).name for view in (*cfg.train_views, *cfg.test_views)))
    grey = {view: "grey" if view == "none" else f"grey+{view}" for view in views}

    encoding = run.encoding(cfg.num_workers) | {"cache": cfg.cache}
    colour_statistics = Colours("sound")
    asked, sources = set(cfg.features), {}  # features, and whether they are made unit vectors as a whole
    encoded = (*(views if asked & {"backbone", "both"} else ()), *(grey.values() if "grey" in asked else ()))
    if encoded:
        clip = extract(backbone, rows, encoded, cached_only=cfg.cached_only, **encoding)
        sources["backbone"] = clip, True
    if asked & {"colour", "both"}:
        colour = extract(colour_statistics, rows, views, **encoding)
        sources["colour"] = colour, False
    if "both" in asked:
        sources["both"] = Joined((clip, colour), (True, False)), False
    if "grey" in asked:
        without = {(backbone.layer, view): clip.spaces[backbone.layer, name] for view, name in grey.items()}
        sources["grey"] = dataclasses.replace(clip, spaces=without), True
    if "spectra" in asked:
        sources["spectra"] = extract(Spectra(), rows, views, **encoding), False
    for part in ("chroma", "fragile"):
        if part in asked:
            sources[part] = extract(Colours(part), rows, views, **encoding), False
    run.begin(data=rows.digest, base=backbone.fingerprint)
    if not run.main:
        return run.end()

    names = {"grey": "backbone, no chroma", "fragile": "1-2 px colour (ablation)"}
    held = {split: np.flatnonzero(rows["split"] == split) for split in ("val", "test")}
    heads = Heads(run.folder, ("features", "trained on"))
    facts: dict[tuple[str, str], dict[str, float]] = {}
    alone = [(view,) for view in dict.fromkeys(cfg.train_views)] if cfg.apart else []
    for source in cfg.features:
        (features, unit), name = sources[source], names.get(source, source)
        for trained_on in (*alone, cfg.train_views):
            label = trained_on[0] if len(trained_on) == 1 else "mixed"
            head, picked = fit_on_features(features, cfg.head, cfg.classes, trained_on, cfg.seed, unit=unit)
            run.say(f"{name}, trained on {label}: validation {picked['validation_score']:.4f}")
            run.trained()
            size = sum(value.numel() for value in head.net.parameters())
            facts[name, label] = {fact: picked[fact] for fact in GIVEN} | {"trainable_parameters": size}
            of_threshold = trained_on if cfg.apart else cfg.test_views
            val = score_features(features, held["val"], of_threshold, head)
            scores = val.join(score_features(features, held["test"], cfg.test_views, head))
            heads.add((name, label), scores, head if (source, trained_on) == ("both", cfg.train_views) else None)
    fusion = Detector(backbone, heads.best.head, descriptor=colour_statistics) if heads.best else None
    of_one = facts[heads.best.key] if heads.best else facts[name, label]
    finish(run, rows, heads, page, fusion, cfg.train_views, head=cfg.head, **of_one)


if __name__ == "__main__":
    run_recipe(main, Config)

"""Training quality x test quality: the JPEG matrix of heads on frozen features.

    accelerate launch recipes/jpeg_matrix.py --manifest data.csv \\
        --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k --output_dir results/jpeg-l14

Fits every head once for each training view, and once on all of them mixed (one drawn per group), picks its penalty
and its threshold on validation rows under that same view, and scores the test rows under every test view: also
qualities that no head was trained on, and double compression. Without flags: the embedded world and tiny CLIP, about
5 minutes on 2 cores, of which 3 are encoding. Results to expect: results/README.md.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import run as run_recipe
from adapt.flags import Cached, Encoder, Intervals, Rows

if TYPE_CHECKING:  # --help needs none of them
    from matplotlib.figure import Figure

    from adapt.training.comparison import Study
    from adapt.training.scored import Kept


@dataclass(frozen=True)
class Config(Rows, Encoder, Cached, Intervals):
    output_dir: Path = Path("results/runs/jpeg_matrix")  # run directory
    heads: tuple[Literal["svm", "logistic", "mlp"], ...] = ("svm", "mlp")
    classes: tuple[Literal["binary", "family", "generator"], ...] = ("binary", "family")
    train_views: tuple[str, ...] = ("qf40", "qf65", "qf90", "none")  # one row each, and one for all of them mixed
    test_views: tuple[str, ...] = (
        *("qf40", "qf65", "qf90", "none"),
        *("qf30", "qf50", "qf75", "qf95", "qf90+qf40"),  # qualities no head has seen, and double compression
    )


def main(cfg: Config) -> None:
    import numpy as np

    from adapt.training.comparison import finish, finish_compared
    from adapt.training.on_features import fit_on_features, frozen_features, score_features
    from adapt.training.report import open_run
    from adapt.training.scored import Kept

    if (opened := open_run(cfg)) is None:
        return
    cfg, run, rows = opened
    page = partial(matrices, cfg)
    if finish_compared(run, rows, page):
        return
    _, features = frozen_features(run, rows, cfg, (*cfg.train_views, *cfg.test_views))
    if not run.main:
        return run.end()

    held = {split: np.flatnonzero(rows["split"] == split) for split in ("val", "test")}
    trained_on = {view: (view,) for view in cfg.train_views} | {"mixed": cfg.train_views}
    tables = Kept(run.folder, ("head", "classes", "trained on"))
    for kind, classes in product(cfg.heads, cfg.classes):
        for name, train_views in trained_on.items():
            head, picked = fit_on_features(features, kind, classes, train_views, cfg.seed)
            run.say(f"{kind}, {classes}, trained on {name}: validation {picked['validation_score']:.4f}")
            # the threshold comes from validation rows under the training view, whatever is tested
            val = score_features(features, held["val"], train_views, head)
            test = score_features(features, held["test"], cfg.test_views, head)
            tables.add((kind, classes, name), val.join(test))
    finish(run, rows, tables, page)


def matrices(cfg: Config, tables: "Kept") -> "tuple[Study, list[str], dict[str, Figure]]":
    """The page: a table and two matrices for each kind of head and of classes."""
    import numpy as np

    from adapt.pages.drawing import heat_map
    from adapt.training.comparison import Study

    everything, sections, figures = Study.of(tables, cfg.resamples, cfg.seed), [], {}
    for kind, classes in product(cfg.heads, cfg.classes):
        study = everything.under((kind, classes))
        trained_on = [name for (name,) in study.cells]
        sections += [f"## {kind}, {classes}", *study.grids(level="###")]
        for title, short in (("AUC, seen generators", "seen"), ("AUC, unseen generators", "unseen")):
            cells = [[study.at((name,), view, title) for view in cfg.test_views] for name in trained_on]
            value, low, high = (
                np.array([[getattr(c, part) for c in line] for line in cells]) for part in ("value", "low", "high")
            )
            figures[f"{kind}_{classes}_{short}"] = heat_map(
                value,
                trained_on,
                list(cfg.test_views),
                f"{title}: {kind}, {classes} (row: trained on, column: tested on)",
                low,
                high,
                limits=(0.5, 1),
            )
    return everything, sections, figures


if __name__ == "__main__":
    run_recipe(main, Config)

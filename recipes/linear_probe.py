"""Heads on frozen features: svm, logistic regression, a perceptron, and those that read blocks, tokens or texts.

    accelerate launch recipes/linear_probe.py --manifest data.csv --head svm \\
        --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k --output_dir results/probe-l14

Encodes every image once for all views (kept in a cache that all recipes share), fits the head on the training rows,
picks its penalty on validation rows, and reports test rows. --classes family or generator trains one class each beside
real, and compares the binary score it implies, 1 - p(real), with that of the same head trained on two classes.
--layers all fits one head per block and keeps the best on validation. --rotate generator (or family) fits the head
again without each generator of the training, and says how well it is found then (rotation.csv). --permutations 20 does
all of it again on 20 permutations of the training and validation labels and says how often they reach the true AUC.
--folds 5 cross-validates a small set: five runs in folders of their own, each the test of a fifth of the groups.
--head rine weighs the class tokens of all blocks (2402.19091), attention pools the patch tokens of --layer as it
learns to, fisher averages those that tell real from fake best (2511.22471), and prototypes starts at the texts of the
classes and moves little (2608.04935; needs a text tower). Tokens are long: the run says what they take on disk, and
refuses where there is less. The linear entry of NTIRE 2026 (2604.11487) is --layer last_mean --geometry squash.
Without flags: the embedded world and tiny CLIP, about a minute on 2 cores, of which most is encoding; 20 permutations
add half a minute. Results to expect: results/README.md.
"""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Cached, Classes, Encoder, Folds, Intervals, Permutations, Rotation, Rows, Views

if TYPE_CHECKING:  # --help needs none of them
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from adapt.evaluation.metrics import Difference
    from adapt.evaluation.permutation import Reached
    from adapt.evaluation.scores import Scores
    from adapt.features.cache import Features
    from adapt.training.run import Run
    from adapt.training.scored import Kept

PROTOTYPES = {"real": ("a real photo",), "fake": ("AI art",)}  # where --head prototypes starts (2608.04935)


@dataclass(frozen=True)
class Config(Rows, Rotation, Folds, Encoder, Classes, Views, Cached, Permutations, Intervals):
    output_dir: Path = Path("results/runs/linear_probe")  # run directory
    layers: tuple[str, ...] = ()  # a sweep instead: all, or these; validation picks the one that is reported
    head: Literal["svm", "logistic", "mlp", "rine", "attention", "prototypes", "fisher"] = "logistic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers and self.head not in ("svm", "logistic", "mlp"):
            raise Refusal(f"--head {self.head} --layers: it reads layers of its own; leave --layers out")


def main(cfg: Config) -> None:
    import numpy as np

    from adapt.data.left_out import kept_rows, leave_out, rotation_of
    from adapt.detector.detector import Detector
    from adapt.evaluation.scores import Scores
    from adapt.features.remembered import frozen_backbone
    from adapt.models.heads.classifier import Classifier
    from adapt.sweeps.folds import run_folds
    from adapt.training.on_features import frozen_features, score_features
    from adapt.training.part_heads import fit_head, layer_read_by, width_of
    from adapt.training.report import finish_scored, keep_scores, open_run, report
    from adapt.training.scored import Kept

    if cfg.folds and not cfg.fold:
        return run_folds(cfg, "linear_probe")
    if (opened := open_run(cfg)) is None:
        return
    cfg, run, rows = opened
    rows = leave_out(rows, cfg.leave_out)
    members = rotation_of(rows, cfg.rotate) if cfg.rotate else {}
    adds = partial(further, cfg, members)
    if finish_scored(run, rows, adds):
        return
    encoder = frozen_backbone(cfg, run.device)
    layers = cfg.layers or (layer_read_by(cfg.head, cfg.layer, encoder),)
    layers = encoder.layers() if layers == ("all",) else layers
    backbone, features = frozen_features(run, rows, cfg, (*cfg.train_views, *cfg.test_views), layers)
    if not run.main:
        return run.end()

    held = np.flatnonzero(rows["split"] != "train")
    texts = partial(class_texts, cfg.backbone)

    def fit(
        classes: Literal["binary", "family", "generator"],
        layer: str,
        features: "Features" = features,
        scored: np.ndarray = held,
    ) -> tuple[Classifier, dict[str, float], Scores]:
        width = width_of(layer, encoder)
        head, picked = fit_head(features, cfg.head, classes, cfg.train_views, cfg.seed, layer, width, texts)
        run.say(f"{layer}, {classes}: " + ", ".join(f"{key} {value:.4g}" for key, value in picked.items()))
        return head, picked, score_features(features, scored, cfg.test_views, head, layer)

    fitted = {layer: fit(cfg.classes, layer) for layer in layers}
    run.trained()
    best = max(layers, key=lambda layer: fitted[layer][1]["validation_score"])
    head, picked, scores = fitted[best]
    picked["configurations"] = sum(of_layer["configurations"] for _, of_layer, _ in fitted.values())
    if best != cfg.layer:
        backbone = frozen_backbone(cfg, run.device, best)
    detector = Detector(backbone, head)  # type: ignore[arg-type]  # saving needs no network
    detector.freeze(scores)
    trained = sum(value.numel() for value in head.parameters())
    facts = {"head": cfg.head, "classes": " ".join(head.classes), "layer": best, "trainable_parameters": trained}
    facts |= picked
    keep_scores(run, detector, rows, scores, train_views=cfg.train_views, facts=facts)

    kept = Kept(run.folder)
    for name, generators in members.items():
        spared = kept_rows(rows, (name,))
        rest = rows.select(spared)
        tested = np.flatnonzero((rest["split"] == "test") & np.isin(rest["generator"], ["real", *generators]))
        of_rest = features.select(np.flatnonzero(spared), rest)
        again = (fit(cfg.classes, layer, of_rest, tested) for layer in layers)
        kept.add(("without", name), max(again, key=lambda found: found[1]["validation_score"])[2])
        run.say(f"left out: {name}")
    for layer, (_, found, of_layer) in fitted.items() if len(layers) > 1 else ():
        kept.add(("layer", layer, f"{found['validation_score']:.4f}"), of_layer)
    if cfg.classes != "binary":
        kept.add(("binary",), fit("binary", best)[2])
    chance = (
        permuted_fits(cfg, run, features, {layer: width_of(layer, encoder) for layer in layers})
        if cfg.permutations
        else []
    )
    report(
        run, detector, rows, scores, cfg.resamples, adds, kept,
        train_views=cfg.train_views, classes_are=None if cfg.classes == "binary" else cfg.classes, permuted=chance,
        facts=facts,
    )  # fmt: skip


@cache
def class_texts(backbone: str, classes: "Sequence[str]") -> "Tensor":
    """Embeddings (c, d) of what stands for each class in words."""
    from adapt.models.prompts import family_prompts, prompt_features

    return prompt_features(backbone, [PROTOTYPES.get(name) or family_prompts(name) for name in classes])


def further(
    cfg: Config, members: "Mapping[str, Sequence[str]]", scores: "Scores", kept: "Kept"
) -> "tuple[list[Difference], list[str]]":
    """What joins the page: the rotation over `members`, the sweep over layers, the comparison with two classes."""
    from adapt.evaluation.metrics import compare
    from adapt.evaluation.rotation import rotation
    from adapt.pages.rotation import rotation_sections, write_rotation
    from adapt.training.comparison import Study

    sections, differences = [], []
    if members:
        without = {name: [kept["without", name]] for name in members}
        numbers = rotation([scores], without, members, cfg.resamples, cfg.seed, "linear_probe")
        write_rotation(kept.folder, numbers)
        sections += rotation_sections(numbers)
    sweep = Study(("layer", "validation"), cfg.resamples, cfg.seed)
    for kind, *of_layer in kept:
        if kind == "layer":
            sweep.add(tuple(of_layer), kept[kind, *of_layer])
    if sweep.cells:
        sweep.write_csv(kept.folder / "layers.csv")
        sections += ["## Layers", "The layer with the best validation score is reported.", *sweep.grids(level="###")]
    if ("binary",) in kept:
        sections.append("In the comparison a is 1 - p(real) of these classes, b the same head trained on two classes.")
        differences = compare(scores, kept["binary",], cfg.resamples, cfg.seed)
    return differences, sections


def permuted_fits(cfg: Config, run: "Run", features: "Features", layers: "Mapping[str, int]") -> "list[Reached]":
    """What the same fit and the same choices reach on permutations of the training and validation labels.

    `layers`: the width of the parts of each.
    """
    import dataclasses

    import numpy as np

    from adapt.data.permutation import permuted
    from adapt.evaluation.side_by_side import reached
    from adapt.training.on_features import score_features
    from adapt.training.part_heads import fit_head

    texts = partial(class_texts, cfg.backbone)
    held, found = np.flatnonzero(features.manifest["split"] != "train"), []
    for number in range(1, cfg.permutations + 1):
        shuffled = dataclasses.replace(features, manifest=permuted(features.manifest, number))
        fitted = {
            layer: fit_head(shuffled, cfg.head, cfg.classes, cfg.train_views, cfg.seed, layer, width, texts)
            for layer, width in layers.items()
        }
        best = max(layers, key=lambda layer: fitted[layer][1]["validation_score"])
        found += reached(score_features(shuffled, held, cfg.test_views, fitted[best][0], best), number)
        run.say(f"permutation {number} of {cfg.permutations}: fitted on permuted labels")
    return found


if __name__ == "__main__":
    run_recipe(main, Config)

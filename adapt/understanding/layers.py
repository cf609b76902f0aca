"""Where in the network the label can be read, before and after adaptation, and what adaptation changed (CKA)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapt.evaluation.replicates import ALL, replicate
from adapt.features.cache import Encoder, Features
from adapt.models.towers.backbones import Backbone
from adapt.pages.drawing import COLOURS, LINES, heat_map
from adapt.training.on_features import fit_on_features, score_features
from adapt.understanding.item import Item, Numbers, Value, jackknifed, of_shares
from adapt.understanding.subject import Subject, choose

BEFORE, AFTER = "before", "after"
KINDS = {"AUC seen": "mean:seen", "AUC unseen": "mean:unseen"}
ABOUT = """\
A logistic probe is fitted on the features of each block of the base (before) and of the adapted tower (after): on
{train} training images of {groups} groups, view {view}, its penalty chosen on {val} validation images. blockK is the
class token after K blocks (the mean of all positions where there is none), _mean the mean of the patch tokens. A
probe asks what can be read there, not what the detector reads.

CKA: linear centred kernel alignment (1905.00414, section 3) of the features of the same test images at the same place
before and after; 1 if they differ by a rotation and a scale only. It is biased upwards where dimensions outnumber
images. Its intervals: delete-one jackknife over groups."""


def layers(subject: Subject, base: Backbone, train_groups: int, view: str) -> Item:
    """A probe on every block of the base and of the adapted tower, and the alignment of the two."""
    names = _places(base)
    train, val = (choose(subject.rows, split, train_groups, subject.seed) for split in ("train", "val"))
    adapted = hasattr(subject.detector.backbone.tower, "peft_config")
    towers: dict[str, Encoder] = {BEFORE: base}
    if adapted:
        towers[AFTER] = subject.detector.backbone
    cells: dict[tuple[str, str], Value] = {}
    found = {}
    for when, tower in towers.items():
        features = found[when] = subject.features((view,), tower, names, (*train, *val))
        for name in names:
            for kind, value in _probe(subject, features, view, name).items():
                cells[name, f"{kind}, {when}"] = value
    test = np.flatnonzero(features.reasons(view)[: len(subject.sample)] == "")
    at = {when: {name: of.take(test, view, name) for name in names} for when, of in found.items()}
    figures = {"probes": _figure(cells, names, list(towers))}
    headline = [_best(cells, names, f"AUC unseen, {when}") for when in towers]
    if adapted:
        _, own = np.unique(subject.sample["group"][test], return_inverse=True)

        def alignment(kept: np.ndarray) -> np.ndarray:
            return np.array([linear_cka(at[BEFORE][name], at[AFTER][name], kept[own]) for name in names])

        for name, value in zip(names, jackknifed(alignment, own.max() + 1, len(test)), strict=True):
            cells[name, "CKA, before and after"] = value
        grid = [[linear_cka(one, other) for other in at[AFTER].values()] for one in at[BEFORE].values()]
        figures["cka"] = heat_map(np.array(grid), names, names, "CKA: base (rows), adapted (columns)", digits=2)
        headline.append((f"CKA before and after, {names[-1]}", cells[names[-1], "CKA, before and after"]))
    about = ABOUT.format(train=len(train), val=len(val), groups=train_groups, view=view)
    if not adapted:
        about += "\n\nThis detector has no adapter: its tower is the base."
    return Item("layers", "Where in the network", about, [Numbers("Probes", "layer", cells)], figures, (), headline)


def linear_cka(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Linear CKA of features (n, d) and (n, e) of the same images: 1905.00414, equation 3 for linear kernels.

        |Yc' Xc|^2 / (|Xc' Xc| |Yc' Yc|)   with columns centred, Frobenius norms

    `weights` (n,) say how often each image counts. Computed in the smaller of images and dimensions.
    """
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    x, y = (np.sqrt(w)[:, None] * (f - w @ f / w.sum()) for f in (x.astype(np.float64), y.astype(np.float64)))
    if len(x) < max(x.shape[1], y.shape[1]):
        one, other = x @ x.T, y @ y.T
        return float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other)))
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def _places(backbone: Backbone) -> list[str]:
    """blockK and blockK_mean of every block, then last; in a tower without a class token both are one."""
    blocks = [name for name in backbone.layers() if name.startswith("block")]
    both = [name for block in blocks for name in (block, f"{block}_mean")]
    return [*(both if backbone.has_class_token else blocks), "last"]


def _probe(subject: Subject, features: Features, view: str, layer: str) -> dict[str, Value]:
    probe, _ = fit_on_features(features, "logistic", "binary", (view,), subject.seed, layer)
    scores = subject.mended(score_features(features, np.arange(len(subject.sample)), (view,), probe, layer))
    cells = replicate(scores, 0.0, subject.resamples, subject.seed)
    out = {}
    for kind, mean in KINDS.items():
        at = cells[ALL, view, mean]
        out[kind] = of_shares(at.values["auc"], at.n_real + at.n_fake)
    return out


def _best(cells: dict, names: Sequence[str], column: str) -> tuple[str, Value]:
    """The last place rather than the best: the best of many on these very images would be too good."""
    return f"probe on {names[-1]}: {column}", cells[names[-1], column]


def _figure(cells: dict, names: Sequence[str], towers: Sequence[str]) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), KINDS, strict=True):
        lines = [(when, mean) for when in towers for mean in (False, True)]
        for i, (when, mean) in enumerate(lines):
            chosen = [name for name in names if name.endswith("_mean") == mean and name.startswith("block")]
            found = [cells[name, f"{kind}, {when}"] for name in chosen]
            if found:
                depth = [int(name.removeprefix("block").removesuffix("_mean")) for name in chosen]
                style = {"color": COLOURS[i], "linestyle": LINES[i], "marker": "os"[mean]}
                label = f"{'patch mean' if mean else 'class token'}, {when}"
                axes.plot(depth, [v.value for v in found], label=label, **style)
                axes.fill_between(depth, [v.low for v in found], [v.high for v in found], color=COLOURS[i], alpha=0.1)
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(kind, fontsize=10)
        axes.grid(color="0.92")
    figure.supxlabel("after how many blocks; bands: 95 % intervals", fontsize=10)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure

"""How much of the features' variance is content, how much is trace: only matched groups can tell."""

import functools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from adapt.errors import Refusal
from adapt.evaluation.replicates import distinct
from adapt.models.towers.backbones import Backbone
from adapt.pages.drawing import COLOURS, MARKERS
from adapt.understanding.item import Item, Numbers, Value, jackknifed, mean, of_shares
from adapt.understanding.subject import Subject, logits

PARTS = ("content", "trace", "rest")
SCENES = 7  # that have a colour of their own; the others are grey
ABOUT = """\
A two-way analysis of variance of unit-length features, over {groups} complete groups of {members} images each
({generators}), view none. Content: what all images of a group share, between groups. Trace: what all images of a
generator share, between generators. Rest: what is neither, such as a trace that depends on the scene. Shares of the
total sum of squares, intervals by the delete-one jackknife over groups. Noise alone would give the shares in the last
row, so only what exceeds them says something. The logit is the same analysis of the detector's own output: what it
makes of the features.

The last table asks how well the logit ranks a fake above a photograph, of any group, before and after the mean of each
group is taken off: what content adds to the logit is noise to a detector, and the difference is its price.

The pictures show two dimensions of many: PCA keeps the largest variance, t-SNE (sklearn, its distances between
clusters mean nothing) keeps neighbours. They illustrate; the numbers above are the finding."""


def variance(subject: Subject, base: Backbone) -> Item:
    """Shares of content and trace in the base's features, the adapted ones and the logit; PCA and t-SNE."""
    places, generators = balanced(subject.sample["group"], subject.sample["generator"])
    backbone = subject.detector.backbone
    towers = {"features, base": base}
    if hasattr(backbone.tower, "peft_config"):
        towers["features, adapted"] = backbone
    unit = {name: subject.features(("none",), tower).unit("none") for name, tower in towers.items()}
    logit = logits(subject.detector, subject.pixels)
    spaces = unit | {"logit": logit[:, None]}
    cells: dict[tuple[str, str], Value] = {}
    g, m = places.shape
    for name, values in spaces.items():
        grouped = values[places].astype(np.float64)
        shares = jackknifed(functools.partial(_shares, grouped), g, places.size)
        cells |= {(name, part): share for part, share in zip(PARTS, shares, strict=True)}
    for part, freedom in zip(PARTS, (g - 1, m - 1, (g - 1) * (m - 1)), strict=True):
        cells["noise alone", part] = Value(freedom / (g * m - 1))
    numbers = [Numbers("Shares of variance", "of", cells), _ranking(subject, logit)]
    about = ABOUT.format(groups=g, members=m, generators=", ".join(generators))
    headline = [(f"{name}: share of {part}", cells[name, part]) for name in spaces for part in PARTS[:2]]
    figure = _pictures(list(unit.values())[-1][places], generators, subject.seed)
    return Item("variance", "Content and trace in the features", about, numbers, {"pictures": figure}, (), headline)


def _shares(grouped: np.ndarray, kept: np.ndarray) -> np.ndarray:
    return decompose(grouped[kept > 0])


def balanced(groups: np.ndarray, generators: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Places (g, m) of the images of complete groups, and the m generators, real first.

    The generators are those that at least half of the groups with photographs have; the groups those that have an
    image (the first) of all of them. Refuses what leaves fewer than two groups.
    """
    at: dict[str, dict[str, int]] = {}
    for place, (group, generator) in enumerate(zip(groups, generators, strict=True)):
        at.setdefault(group, {}).setdefault(generator, place)
    with_real = [members for members in at.values() if "real" in members]
    often = [
        name
        for name in sorted(set(generators) - {"real"})
        if 2 * sum(name in members for members in with_real) >= len(with_real)
    ]
    kept = ["real", *often]
    complete = [[members[name] for name in kept] for members in with_real if all(name in members for name in kept)]
    if not often or len(complete) < 2:
        raise Refusal(
            f"variance needs two or more test groups that hold a photograph and fakes of its own, found "
            f"{len(complete) if often else 0}: give a manifest whose `group` joins them, or leave the item out"
        )
    return np.array(complete), kept


def decompose(x: np.ndarray) -> np.ndarray:
    """Shares (3,) of the total sum of squares of features (groups, members, d): content, trace, rest.

    Two-way analysis of variance without replication: x = mean + group + member + rest, whose squares add up.
    """
    middle, group, member = x.mean(axis=(0, 1)), x.mean(axis=1, keepdims=True), x.mean(axis=0)
    parts = (group - middle, member - middle, x - group - member + middle)
    content, trace, rest = ((part**2).sum(axis=-1) for part in parts)
    sums = np.array([content.sum() * x.shape[1], trace.sum() * x.shape[0], rest.sum()])
    with np.errstate(invalid="ignore"):
        return sums / sums.sum()


def centred(features: np.ndarray, groups: Sequence[str] | np.ndarray) -> np.ndarray:
    """Features (n, ...) less the mean of their group: what all of a group share is gone, whatever it was."""
    _, own, count = np.unique(groups, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), *features.shape[1:]), np.float64)
    np.add.at(total, own, features)
    return features - (total / count.reshape(-1, *(1,) * (features.ndim - 1)))[own]


def _ranking(subject: Subject, logit: np.ndarray) -> Numbers:
    """Chance that a fake's logit exceeds a photograph's: of any group, without the group's mean, of its own group."""
    fakes, reals = subject.pairs
    used = np.union1d(fakes, reals)
    fake, weights = subject.sample.fake[used], subject.weights[:, used]
    cells = {}
    inside = centred(logit[used], subject.sample["group"][used])
    kinds = {"logit": logit[used], "logit less the mean of its group": inside}
    for name, values in kinds.items():
        cells[name, "fake above photograph"] = of_shares(_auc(values, fake, weights), len(used))
    above = logit[fakes] - logit[reals]
    own = mean((above > 0) + 0.5 * (above == 0), subject.weights[:, fakes])
    cells["logit, its own photograph only", "fake above photograph"] = own
    return Numbers("The price of content", "ranked by", cells)


def _auc(values: np.ndarray, fake: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of all fakes together against all photographs, under weights (r, n) -> (r,)."""
    below = np.sign(values[fake][:, None] - values[~fake]) / 2 + 0.5  # (fakes, reals)
    w = weights.astype(np.float64)
    with np.errstate(invalid="ignore"):
        total = np.einsum("rf,fp,rp->r", w[:, fake], below, w[:, ~fake], optimize=True)
        return total / (w[:, fake].sum(axis=1) * w[:, ~fake].sum(axis=1))


def _pictures(x: np.ndarray, generators: Sequence[str], seed: int) -> Figure:
    """PCA, PCA without the groups' means, t-SNE (rows) of (groups, members, d), by generator and scene (columns)."""
    g, m = x.shape[:2]
    flat, own, scene = x.reshape(g * m, -1), np.tile(np.arange(m), g), np.repeat(np.arange(g), m)
    near = min(30.0, (len(flat) - 1) / 3)
    maps = {
        "PCA": PCA(2, random_state=seed).fit_transform(flat),
        "PCA, group means removed": PCA(2, random_state=seed).fit_transform(centred(flat, scene)),
        "t-SNE": TSNE(2, perplexity=near, init="pca", random_state=seed).fit_transform(flat),
    }
    figure = Figure(figsize=(9.5, 10.5), layout="constrained")
    panels = figure.subplots(len(maps), 2)
    for (left, right), (title, at) in zip(panels, maps.items(), strict=True):
        for k, generator in enumerate(generators):
            style = {"color": COLOURS[k % 7], "marker": MARKERS[(k + k // 7) % 7], "s": 14, "linewidths": 0}
            left.scatter(*at[own == k].T, label=generator[:24], **style)
        right.scatter(*at[scene >= SCENES].T, color="0.85", s=10, linewidths=0)
        for k in distinct(scene[scene < SCENES]):
            right.scatter(*at[scene == k].T, color=COLOURS[k], marker=MARKERS[k], s=20, linewidths=0)
        left.set_title(f"{title}, by generator", fontsize=10)
        right.set_title(f"{title}, by scene ({min(g, SCENES)} of {g} coloured)", fontsize=10)
        for axes in (left, right):
            axes.set(xticks=[], yticks=[])
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return figure

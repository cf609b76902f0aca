"""Figures of one detector's scores; each function returns a matplotlib Figure (TensorBoard takes it too)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adapt.evaluation.attribution import ABSENT, EDIT, Attribution
from adapt.evaluation.metrics import Cell, index
from adapt.evaluation.replicates import ALL, BINS, distinct
from adapt.evaluation.scores import UNKNOWN, Scores
from adapt.pages.drawing import (
    COLOURS,
    LINES,
    MARKERS,
    SEEN,
    UNSEEN,
    heat_map,
    line_style,
    panels_of,
    save_png,
    short_label,
)
from adapt.pages.tables import generators_of, name_of, views_of

KINDS = {"real": "#000000", "processed real": "#009E73", "seen fakes": SEEN, "unseen fakes": UNSEEN, "fakes": UNSEEN}
PANELS = 6  # views in the figures that give each view a panel; more would be unreadable


def write_figures(
    scores: Scores, cells: Sequence[Cell], folder: str | Path, attribution: Attribution | None = None
) -> list[Path]:
    """Write all figures as PNG, 150 dots per inch, into `folder`; returns their paths.

    Without fakes, or without photographs, only the histograms: there is nothing to draw in the others. Scores of
    several folds have no ROC curve, which would rank images of two detectors.
    With `attribution` also `confusion_<view>` for each view; what does not suit a file's name becomes `_`.
    """
    figures = {"score_histograms": score_histograms(scores, cells)}
    if any(cell.metric == "auc" and cell.value == cell.value for cell in cells):
        figures |= {
            "auc_per_view": auc_per_view(cells),
            "auc_per_generator": auc_per_generator(cells),
            **({"roc": roc(scores)} if scores.folds is None else {}),
            "reliability": reliability(scores),
        }
    if attribution:
        figures |= confusions(attribution)
    paths = []
    for name, figure in figures.items():
        paths.append(Path(folder) / f"{name}.png")
        save_png(figure, paths[-1])
    return paths


def auc_per_view(cells: Sequence[Cell]) -> Figure:
    """Mean AUC over the seen and over the unseen generators for each view, with 95 % intervals; over all of them where
    it is not known which are which."""
    views, at = views_of(cells), index(cells)
    means: tuple[tuple[str, str, str, float], ...] = (("seen", SEEN, "o", -0.06), ("unseen", UNSEEN, "s", 0.06))
    if UNKNOWN in generators_of(cells).values():
        means = (("all", UNSEEN, "s", 0.0),)
    figure = Figure(figsize=(max(5, 1.1 * len(views) + 2), 4), layout="constrained")
    axes = figure.subplots()
    counts = []
    for label, colour, marker, shift in means:
        found = [at[ALL, view, f"mean:{label}", "auc"] for view in views]
        counts.append(f"{max(cell.n_fake for cell in found)} {label} fakes")
        if not np.isnan([cell.value for cell in found]).all():
            _bars(axes, np.arange(len(views)) + shift, found, colour, marker, f"{label} generators")
    axes.set_xticks(range(len(views)), [short_label(view) for view in views], rotation=30 if len(views) > 5 else 0)
    axes.set_xlim(-0.5, len(views) - 0.5)
    n_real = max(at[ALL, view, "mean:all", "auc"].n_real for view in views)
    axes.set(xlabel="view of the test images", ylabel="ROC-AUC, mean over generators")
    _chance(axes, "y", [at[ALL, view, f"mean:{label}", "auc"] for view in views for label, *_ in means])
    axes.set_title(f"AUC per view, 95 % intervals\nn = {n_real} real, {', '.join(counts)} a view", fontsize=10)
    return figure


def auc_per_generator(cells: Sequence[Cell]) -> Figure:
    """AUC of every generator, one marker a view, with 95 % intervals; the seen generators on top."""
    views, at, generators = views_of(cells), index(cells), generators_of(cells)
    height = max(2.8, 1.3 + len(generators) * (0.22 + 0.09 * len(views)))
    figure = Figure(figsize=(7, min(height, 20)), layout="constrained")
    axes = figure.subplots()
    missing = Cell("", "", "", "auc", np.nan, np.nan, np.nan, 0, 0)
    everything = []
    for i, view in enumerate(views):
        found = [at.get((*_key(key, view), "auc"), missing) for key in generators]
        rows = np.arange(len(generators)) + 0.64 * ((i + 0.5) / len(views) - 0.5)
        _bars(axes, rows, found, COLOURS[i % 7], MARKERS[i % 7], short_label(view), horizontal=True)
        everything += found
    met = {"train": " (seen)", "val": " (selection)", "": " (unseen)", UNKNOWN: ""}
    labels = [f"{short_label(name_of(key, list(generators)))}{met[seen]}" for key, seen in generators.items()]
    axes.set_yticks(range(len(generators)), labels)
    axes.set_ylim(len(generators) - 0.5, -0.5)
    axes.set_xlabel("ROC-AUC against the unedited reals of the same set and view")
    for y in range(1, len(generators)):
        axes.axhline(y - 0.5, color="0.9", linewidth=0.8)
    _chance(axes, "x", everything)
    counts = [cell.n_fake for cell in everything if cell.n_fake] or [0]
    fakes = " to ".join(map(str, sorted({min(counts), max(counts)})))
    axes.set_title(f"AUC per generator, 95 % intervals\nn = {fakes} fakes each", fontsize=10)
    return figure


def roc(scores: Scores) -> Figure:
    """ROC curves, one a view, of all seen and all unseen fakes against the unedited reals, sets pooled; of all fakes
    where it is not known which are which."""
    views = _views(scores)
    shown = ("fakes",) if UNKNOWN in scores["seen"] else ("seen fakes", "unseen fakes")
    figure = Figure(figsize=(4.5 * len(shown), 4.9), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        n = 0
        for i, view in enumerate(views):
            kinds = _kinds(scores, view)
            real, fake = np.sort(kinds["real"]), np.sort(kinds[kind])
            if len(real) and len(fake):
                cuts = np.concatenate([[np.inf], np.unique(np.concatenate([real, fake]))[::-1]])
                rates = (1 - np.searchsorted(group, cuts) / len(group) for group in (real, fake))
                axes.plot(*rates, color=COLOURS[i % 7], linestyle=LINES[i % 4], linewidth=1.4, label=short_label(view))
                n = max(n, len(fake))
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_xlabel("false alarms (share of reals called fake)")
        n_real = max((len(_kinds(scores, view)["real"]) for view in views), default=0)
        axes.set_title(f"ROC, {kind} (n = {n} fakes, {n_real} reals a view)", fontsize=10)
        if n:
            axes.legend(title="view", fontsize=8, loc="lower right")
        else:
            _say_none(axes, kind)
    figure.axes[0].set_ylabel("share of fakes found")
    return figure


def reliability(scores: Scores) -> Figure:
    """Share of fakes against p_fake in 15 equal bins, one line a view, half of the weight to each class."""
    figure = Figure(figsize=(5.2, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    most = (0, 0)
    for i, view in enumerate(_views(scores)):
        if (found := _in_bins([scores], view)) is None:
            continue
        mean_p, share, weight, counts = found
        kept = weight > 0
        upper.plot(
            mean_p[kept], share[kept], marker=MARKERS[i % 7], markersize=4, label=short_label(view), **line_style(i)
        )
        lower.stairs(weight, np.linspace(0, 1, BINS + 1), **line_style(i))
        most = max(most, counts)
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    upper.set(ylabel="share of fakes in the bin", xlim=(0, 1), ylim=(-0.02, 1.02))
    lower.set(xlabel="p_fake", ylabel="share of rows")
    upper.set_title(
        f"Reliability, both classes given half of the weight\nn = {most[0]} real, {most[1]} fake a view",
        fontsize=10,
    )
    if most[1]:
        upper.legend(title="view", fontsize=8, loc="upper left")
    else:
        _say_none(upper, "view with both classes")
    return figure


def reliabilities(methods: Mapping[str, Sequence[Scores]]) -> Figure:
    """A panel for each method, by its name: `reliability`, with the rows of all its tables (one a seed) together."""
    figure, panels = panels_of(list(methods))
    handles: dict[str, Artist] = {}
    for axes, tables in zip(panels, methods.values(), strict=False):
        for i, view in enumerate(_views(tables[0])):
            if found := _in_bins(tables, view):
                mean_p, share, weight, _ = found
                points = mean_p[weight > 0], share[weight > 0]
                (handles[view],) = axes.plot(*points, marker=MARKERS[i % 7], markersize=2.5, **line_style(i))
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    figure.supxlabel("p_fake", fontsize=10)
    figure.supylabel("share of fakes in the bin", fontsize=10)
    if handles:
        labels = [short_label(view) for view in handles]
        figure.legend(handles.values(), labels, loc="outside upper center", ncols=6, fontsize=8, title="view")
    return figure


def _in_bins(tables: Sequence[Scores], view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]] | None:
    """(BINS,) mean p_fake, share of fakes and weight of the bins, and the numbers of reals and fakes.

    Of the readable unedited test rows of one view of all tables; None if one class is missing.
    """
    masks = [_test(scores) & (scores["view"] == view) & (scores["edit"] == "") for scores in tables]
    p = np.concatenate([scores["p_fake"][rows] for scores, rows in zip(tables, masks, strict=True)])
    fake = np.concatenate([scores.fake[rows] for scores, rows in zip(tables, masks, strict=True)])
    if fake.all() or not fake.any():
        return None
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    each = np.where(fake, 0.5 / fake.sum(), 0.5 / (~fake).sum())
    weight, mean_p, mean_fake = (np.bincount(place, each * x, BINS) for x in (1.0, p, fake))
    with np.errstate(invalid="ignore"):
        return mean_p / weight, mean_fake / weight, weight, (int((~fake).sum()), int(fake.sum()))


def score_histograms(scores: Scores, cells: Sequence[Cell]) -> Figure:
    """Distribution of the logits of reals, processed reals, seen and unseen fakes, one panel a view."""
    views = _views(scores)
    shown, threshold = views[:PANELS], index(cells)[ALL, ALL, "pooled:val", "threshold"].value
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.6 * max(columns, 1.4), 2.5 * rows + 1.2), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    logit = scores["logit"][_test(scores) & np.isin(scores["view"], shown)]
    low, high = np.percentile(logit, [0.5, 99.5]) if len(logit) else (-1, 1)
    edges = np.linspace(low - 1e-3, high + 1e-3, 25)
    handles, n = {}, dict.fromkeys(KINDS, 0)
    for axes, view in zip(panels, shown, strict=False):
        for (kind, values), line in zip(_kinds(scores, view).items(), (*LINES, LINES[-1]), strict=True):
            if len(values):
                share = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
                if kind == "real":
                    axes.stairs(share, edges, fill=True, color="0.85")
                style = {"color": KINDS[kind], "linestyle": line, "linewidth": 1.4}
                handles[kind], n[kind] = axes.stairs(share, edges, **style), max(n[kind], len(values))
        if threshold == threshold:
            handles["threshold"] = axes.axvline(threshold, color="#CC79A7", linewidth=1.2)
        axes.set_title(f"view {short_label(view)}", fontsize=10)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    more = "" if len(shown) == len(views) else f"; first {PANELS} of {len(views)} views"
    figure.supxlabel("logit (right = fake); the outer bins hold the outermost 0.5 %", fontsize=10)
    figure.supylabel("share of the images of a kind", fontsize=10)
    labels = [f"{kind} (n = {n[kind]} a view)" if kind in n else kind for kind in handles]
    figure.legend(
        handles.values(),
        labels,
        loc="outside upper center",
        ncols=3,
        fontsize=8,
        title=f"Scores per kind of image{more}",
    )
    return figure


def confusions(attribution: Attribution) -> dict[str, Figure]:
    """The confusion of each view, by a name for a file: what does not suit one becomes `_`."""
    figures: dict[str, Figure] = {}
    for view in distinct(rate.view for rate in attribution.rates):
        name = "confusion_" + re.sub(r"[^\w.+-]", "_", view, flags=re.ASCII)[:80]
        while name in figures:
            name += "_"
        figures[name] = confusion(attribution, view)
    return figures


def confusion(attribution: Attribution, view: str) -> Figure:
    """True x predicted class of one view, shares of each row; absent classes and processed reals below a line."""
    rows: dict[str, list] = {}
    for count in attribution.counts:
        if count.view == view and (not count.true.startswith(EDIT) or count.true == EDIT + ALL):
            rows.setdefault(count.true, []).append(count)
    own = {EDIT + ALL: "processed reals"}
    labels = [f"{own.get(true, true)} ({sum(cell.count for cell in row)})" for true, row in rows.items()]
    kinds = [(true.startswith(ABSENT), true.startswith(EDIT)) for true in rows]
    figure = heat_map(
        np.array([[cell.share for cell in row] for row in rows.values()]),
        labels,
        attribution.classes,
        f"Attribution, view {short_label(view)}: share of each row\n"
        f"rows: true {attribution.column} (number of images)",
        digits=2,
        lines=[i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]],
    )
    figure.axes[0].set_xlabel(f"predicted {attribution.column}")
    return figure


def _views(scores: Scores) -> list[str]:
    return distinct(scores["view"][scores["split"] == "test"])


def _test(scores: Scores) -> np.ndarray:
    return (scores["split"] == "test") & scores.ok


def _kinds(scores: Scores, view: str) -> dict[str, np.ndarray]:
    """The readable test logits of one view by kind of image; generators used for selection are left out."""
    rows = _test(scores) & (scores["view"] == view)
    edited, fake, seen = scores["edit"] != "", scores.fake, scores["seen"]
    masks = (~fake & ~edited, ~fake & edited, *(fake & (seen == met) for met in ("train", "", UNKNOWN)))
    return {kind: scores["logit"][rows & mask] for kind, mask in zip(KINDS, masks, strict=True)}


def _key(key: tuple[str, str], view: str) -> tuple[str, str, str]:
    return key[0], view, key[1]


def _bars(
    axes: Axes,
    place: np.ndarray,
    cells: Sequence[Cell],
    colour: str,
    marker: str,
    label: str,
    horizontal: bool = False,
) -> None:
    """Values with their intervals; the interval need not hold the value, so both are drawn by position."""
    value, low, high = (np.array([getattr(cell, name) for cell in cells]) for name in ("value", "low", "high"))
    lines = axes.hlines if horizontal else axes.vlines
    lines(place, low, high, color=colour, linewidth=1.6)
    axes.plot(*((value, place) if horizontal else (place, value)), marker, color=colour, markersize=5, label=label)


def _chance(axes: Axes, which: Literal["x", "y"], cells: Sequence[Cell]) -> None:
    """Limits from the intervals to 1, the line of chance, a legend outside the data."""
    low = min([0.5, *(x for cell in cells for x in (cell.low, cell.value) if x == x)])
    limits = (max(0.0, low - 0.04), 1.01)
    (axes.set_ylim if which == "y" else axes.set_xlim)(*limits)
    (axes.axhline if which == "y" else axes.axvline)(0.5, color="0.6", linewidth=0.8, linestyle="--", label="chance")
    axes.grid(axis=which, color="0.92")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _say_none(axes: Axes, what: str) -> None:
    axes.text(0.5, 0.5, f"no {what}", ha="center", va="center", transform=axes.transAxes, color="0.4")

"""Figures of one detector's scores; each function returns a matplotlib Figure (TensorBoard takes it too)."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from adapt.evaluation.attribution import ABSENT, EDIT, Attribution
from adapt.evaluation.bootstrap import ALL, BINS, distinct
from adapt.evaluation.metrics import Cell
from adapt.evaluation.scores import Scores
from adapt.evaluation.side_by_side import Number
from adapt.evaluation.tables import generators_of, index, name_of, plain, views_of
from adapt.files import write_bytes

# Okabe and Ito's colours serve every colour vision; line styles and markers serve without any
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*"
SEEN, UNSEEN = "#0072B2", "#D55E00"
KINDS = {"real": "#000000", "processed real": "#009E73", "seen fakes": SEEN, "unseen fakes": UNSEEN}
SEEN_AND_UNSEEN = {"seen generators": "mean:seen", "unseen generators": "mean:unseen"}
PANELS = 6  # views in the figures that give each view a panel; more would be unreadable


def write_figures(
    scores: Scores, cells: Sequence[Cell], folder: str | Path, attribution: Attribution | None = None
) -> list[Path]:
    """Write all figures as PNG, 150 dots per inch, into `folder`; returns their paths.

    With `attribution` also `confusion_<view>` for each view; what does not suit a file's name becomes `_`.
    """
    figures = {
        "auc_per_view": auc_per_view(cells),
        "auc_per_generator": auc_per_generator(cells),
        "roc": roc(scores),
        "reliability": reliability(scores),
        "score_histograms": score_histograms(scores, cells),
    }
    for view in distinct(rate.view for rate in attribution.rates) if attribution else ():
        name = "confusion_" + re.sub(r"[^\w.+-]", "_", view, flags=re.ASCII)[:80]
        while name in figures:
            name += "_"
        figures[name] = confusion(attribution, view)
    paths = []
    for name, figure in figures.items():
        paths.append(Path(folder) / f"{name}.png")
        save_png(figure, paths[-1])
    return paths


def save_png(figure: Figure, path: Path) -> None:
    """The `png` of a figure, written atomically."""
    write_bytes(path, png(figure))


def png(figure: Figure) -> bytes:
    """PNG with few colours, which look the same and take a third of the bytes; the same figure, the same bytes."""
    colours = 256 if any(axes.images for axes in figure.axes) else 64  # a heat map needs more of them
    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    image = Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    image.save(small, format="PNG", optimize=True, dpi=(150, 150))
    return small.getvalue()


def auc_per_view(cells: Sequence[Cell]) -> Figure:
    """Mean AUC over the seen and over the unseen generators for each view, with 95 % intervals."""
    views, at = views_of(cells), index(cells)
    figure = Figure(figsize=(max(5, 1.1 * len(views) + 2), 4), layout="constrained")
    axes = figure.subplots()
    counts = []
    for label, colour, marker, shift in (("seen", SEEN, "o", -0.06), ("unseen", UNSEEN, "s", 0.06)):
        found = [at[ALL, view, f"mean:{label}", "auc"] for view in views]
        counts.append(f"{max(cell.n_fake for cell in found)} {label} fakes")
        if not np.isnan([cell.value for cell in found]).all():
            _bars(axes, np.arange(len(views)) + shift, found, colour, marker, f"{label} generators")
    axes.set_xticks(range(len(views)), [_short(view) for view in views], rotation=30 if len(views) > 5 else 0)
    axes.set_xlim(-0.5, len(views) - 0.5)
    n_real = max(at[ALL, view, "mean:all", "auc"].n_real for view in views)
    axes.set(xlabel="view of the test images", ylabel="ROC-AUC, mean over generators")
    _chance(axes, "y", [at[ALL, view, f"mean:{label}", "auc"] for view in views for label in ("seen", "unseen")])
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
        _bars(axes, rows, found, COLOURS[i % 7], MARKERS[i % 7], _short(view), horizontal=True)
        everything += found
    met = {"train": "seen", "val": "selection", "": "unseen"}
    labels = [f"{_short(name_of(key, list(generators)))} ({met[seen]})" for key, seen in generators.items()]
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
    """ROC curves, one a view, of all seen and all unseen fakes against the unedited reals, sets pooled."""
    views = _views(scores)
    figure = Figure(figsize=(9, 4.9), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("seen fakes", "unseen fakes"), strict=True):
        n = 0
        for i, view in enumerate(views):
            kinds = _kinds(scores, view)
            real, fake = np.sort(kinds["real"]), np.sort(kinds[kind])
            if len(real) and len(fake):
                cuts = np.concatenate([[np.inf], np.unique(np.concatenate([real, fake]))[::-1]])
                rates = (1 - np.searchsorted(group, cuts) / len(group) for group in (real, fake))
                axes.plot(*rates, color=COLOURS[i % 7], linestyle=LINES[i % 4], linewidth=1.4, label=_short(view))
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
        upper.plot(mean_p[kept], share[kept], marker=MARKERS[i % 7], markersize=4, label=_short(view), **_style(i))
        lower.stairs(weight, np.linspace(0, 1, BINS + 1), **_style(i))
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
    figure, panels = _panels(list(methods))
    handles: dict[str, Any] = {}
    for axes, tables in zip(panels, methods.values(), strict=False):
        for i, view in enumerate(_views(tables[0])):
            if found := _in_bins(tables, view):
                mean_p, share, weight, _ = found
                points = mean_p[weight > 0], share[weight > 0]
                (handles[view],) = axes.plot(*points, marker=MARKERS[i % 7], markersize=2.5, **_style(i))
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    figure.supxlabel("p_fake", fontsize=10)
    figure.supylabel("share of fakes in the bin", fontsize=10)
    if handles:
        labels = [_short(view) for view in handles]
        figure.legend(handles.values(), labels, loc="outside upper center", ncols=6, fontsize=8, title="view")
    return figure


def _panels(names: Sequence[str], columns: int = 4) -> tuple[Figure, np.ndarray]:
    """A figure with a panel for each name, which stands above it."""
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.2 * max(columns, 2) + 0.6, 2.1 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        axes.set_title(_short(name), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(color="0.94")
        axes.set_axisbelow(True)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[len(names) - columns : len(names)]:
        axes.tick_params(labelbottom=True)  # also above a gap in the last row
    return figure, panels


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
        for (kind, values), line in zip(_kinds(scores, view).items(), LINES, strict=True):
            if len(values):
                share = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
                if kind == "real":
                    axes.stairs(share, edges, fill=True, color="0.85")
                style = {"color": KINDS[kind], "linestyle": line, "linewidth": 1.4}
                handles[kind], n[kind] = axes.stairs(share, edges, **style), max(n[kind], len(values))
        if threshold == threshold:
            handles["threshold"] = axes.axvline(threshold, color="#CC79A7", linewidth=1.2)
        axes.set_title(f"view {_short(view)}", fontsize=10)
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


def confusion(attribution: Attribution, view: str) -> Figure:
    """True x predicted class of one view, shares of each row; absent classes and processed reals below a line."""
    rows: dict[str, list] = {}
    for count in attribution.counts:
        if count.view == view and (not count.true.startswith(EDIT) or count.true == EDIT + ALL):
            rows.setdefault(count.true, []).append(count)
    labels = {EDIT + ALL: "processed reals"}
    labels = [f"{labels.get(true, true)} ({sum(cell.count for cell in row)})" for true, row in rows.items()]
    kinds = [(true.startswith(ABSENT), true.startswith(EDIT)) for true in rows]
    figure = heat_map(
        np.array([[cell.share for cell in row] for row in rows.values()]),
        labels,
        attribution.classes,
        f"Attribution, view {_short(view)}: share of each row\nrows: true {attribution.column} (number of images)",
        digits=2,
        lines=[i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]],
    )
    figure.axes[0].set_xlabel(f"predicted {attribution.column}")
    return figure


def curves(
    cells: Mapping[tuple[str, ...], Sequence[Cell]],
    views: Sequence[str],
    lines: Mapping[str, str] = SEEN_AND_UNSEEN,
    shots: str = "images a class",
) -> Figure:
    """AUC over the number of shots, by (method, shots): a column for each view, one line for each of `lines`."""
    methods = list(dict.fromkeys(name for name, _ in cells))
    figure = Figure(figsize=(3.2 * len(views), 5.6), layout="constrained")
    panels = figure.subplots(len(lines), len(views), sharex=True, sharey=True, squeeze=False)
    found = {key: index(of_key) for key, of_key in cells.items()}
    for line, (title, mean) in enumerate(lines.items()):
        for column, view in enumerate(views):
            axes = panels[line, column]
            for i, method in enumerate(methods):
                numbers = sorted(int(number) for name, number in cells if name == method)
                points = [found[method, str(number)].get((ALL, view, mean, "auc")) for number in numbers]
                kept = [(number, cell) for number, cell in zip(numbers, points, strict=True) if cell is not None]
                if numbers == [0] and kept:  # no shots at all: a level
                    axes.axhline(kept[0][1].value, color=COLOURS[i], linestyle=":", label=method)
                elif kept:
                    axes.plot([n for n, _ in kept], [c.value for _, c in kept], label=method, **_style(i))
                    low, high = ([getattr(c, end) for _, c in kept] for end in ("low", "high"))
                    axes.fill_between([n for n, _ in kept], low, high, color=COLOURS[i], alpha=0.15, linewidth=0)
            axes.set_xscale("log", base=2)
            numbers = sorted({int(number) for _, number in cells} - {0})
            axes.set_xticks(numbers, labels=[str(number) for number in numbers])
            axes.axhline(0.5, color="#888888", linewidth=0.8)
            axes.set_title(f"{view}, {title}", fontsize=9)
    figure.supxlabel(shots)
    figure.supylabel("AUC")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(methods), fontsize=8, frameon=False)
    return figure


def cost_against_accuracy(
    names: Sequence[str],
    costs: Mapping[str, Sequence[float]],
    accuracies: Mapping[str, Sequence[Cell]],
    on_frontier: Mapping[tuple[str, str], Sequence[bool]],
) -> Figure:
    """Named points with their intervals: a column for each cost, a row for each accuracy.

    `on_frontier` says by (cost, accuracy) which points nothing dominates; steps join them.
    """
    figure = Figure(figsize=(3.3 * len(costs) + 1.7, 3.0 * len(accuracies) + 0.6), layout="constrained")
    panels = figure.subplots(len(accuracies), len(costs), sharex="col", sharey="row", squeeze=False)
    for line, (kind, cells) in enumerate(accuracies.items()):
        for column, (cost, place) in enumerate(costs.items()):
            axes = panels[line, column]
            for i, (name, x, cell) in enumerate(zip(names, place, cells, strict=True)):
                # colours repeat after seven points; then hollow markers tell them apart, and then half-filled ones
                style = {"markerfacecolor": "white" if i // 7 % 3 == 1 else COLOURS[i % 7], "linestyle": ""}
                style |= {"fillstyle": "left", "markerfacecoloralt": "white"} if i // 7 % 3 == 2 else {}
                axes.vlines(x, cell.low, cell.high, color=COLOURS[i % 7], linewidth=1.2)
                axes.plot(x, cell.value, MARKERS[i % 7], color=COLOURS[i % 7], label=_short(name), **style)
            steps = sorted((x, c.value) for x, c, on in zip(place, cells, on_frontier[cost, kind], strict=True) if on)
            axes.step(*zip(*steps, strict=True), where="post", color="0.6", linewidth=0.8, zorder=0) if steps else None
            smallest = min((x for x in place if x > 0), default=0)
            if 0 < 10 * smallest < max(place):  # a cost of 0 has no logarithm
                axes.set_xscale("symlog", linthresh=smallest) if min(place) <= 0 else axes.set_xscale("log")
            axes.grid(color="0.92")
            axes.set_axisbelow(True)
            if line == len(accuracies) - 1:
                axes.set_xlabel(cost)
        panels[line, 0].set_ylabel(kind)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle("Cost against accuracy, 95 % intervals; the line joins what nothing dominates", fontsize=10)
    return figure


def methods_over_views(views: Sequence[str], kinds: Mapping[str, Mapping[str, Sequence[Cell | Number]]]) -> Figure:
    """A panel for each method, by its name: values over the views with 95 % bands, a line for each of two kinds.

    The other methods stand behind in grey, so that many can be told apart and still be compared.
    """
    names = list(next(iter(kinds.values())))
    figure, panels = _panels(names)
    for axes, name in zip(panels, names, strict=False):
        for (kind, methods), colour, line in zip(kinds.items(), (SEEN, UNSEEN), LINES[:2], strict=True):
            for other in (other for other in names if other != name):
                grey = {"color": "0.85", "linewidth": 0.7, "linestyle": line, "zorder": 1}
                axes.plot(range(len(views)), [cell.value for cell in methods[other]], **grey)
            value, low, high = ([getattr(cell, end) for cell in methods[name]] for end in ("value", "low", "high"))
            axes.fill_between(range(len(views)), low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
            style = {"color": colour, "linestyle": line, "marker": "o", "markersize": 3, "linewidth": 1.4}
            axes.plot(range(len(views)), value, label=kind, zorder=3, **style)
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        slant = {"rotation": 90} if len(views) > 5 or max(map(len, views)) > 5 else {}
        axes.set_xticks(range(len(views)), [_short(view, 14) for view in views], fontsize=7, **slant)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    figure.supylabel("ROC-AUC, mean over generators", fontsize=10)
    figure.supxlabel("view of the test images; bands: 95 % intervals; grey: the other methods", fontsize=9)
    return figure


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
    *,
    limits: tuple[float, float] = (0.0, 1.0),
    digits: int = 3,
    lines: Sequence[int] = (),
) -> Figure:
    """Numbers (r, c) in coloured cells, NaN as n/a; with `low` and `high` (r, c) each has its interval beneath.

    `limits` are the values of the lightest and the darkest colour; a line stands above each row in `lines`.
    """
    values = np.asarray(values, np.float64)
    # many cells are small, so that the figure stays within a screen or two; an interval needs a wide cell
    wide = low is not None
    small = not wide and max(values.shape) > 16
    cell = (1.15, 0.55) if wide else (0.3, 0.24) if small else (0.62, 0.42)
    size = (max(3.2, cell[0] * values.shape[1]) + 2.6, max(1.2, cell[1] * values.shape[0]) + 1.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    colours = colormaps["Blues"].with_extremes(bad="0.93")
    axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    font = 5.5 if small else 9
    for (row, column), value in np.ndenumerate(values):
        text = "n/a" if np.isnan(value) else "0" if small and value == 0 else f"{value:.{digits}f}"
        dark = value > limits[0] + 0.6 * (limits[1] - limits[0])
        style = {"ha": "center", "color": "white" if dark else "black"}
        known = wide and not np.isnan([low[row][column], high[row][column]]).any()
        axes.text(column, row, text, va="bottom" if known else "center", fontsize=font, **style)
        if known:
            between = f"{low[row][column]:.{digits}f} to {high[row][column]:.{digits}f}"
            axes.text(column, row + 0.06, between, va="top", fontsize=0.75 * font, **style)
    slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, columns)) > 7 else {}
    turn = {} if wide else {"rotation": 90} if small else slant
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], **turn)
    axes.set_yticks(range(len(rows)), [_short(name, 40) for name in rows])
    axes.tick_params(labelsize=6.5 if small else 9, length=0)
    for line in lines:
        axes.axhline(line - 0.5, color="black", linewidth=1.5)
    axes.set_title(title, fontsize=10)
    return figure


def _style(i: int) -> dict[str, object]:
    return {"color": COLOURS[i % 7], "linestyle": LINES[i % 4], "linewidth": 1.4}


def _views(scores: Scores) -> list[str]:
    return distinct(scores["view"][scores["split"] == "test"])


def _test(scores: Scores) -> np.ndarray:
    return (scores["split"] == "test") & scores.ok


def _kinds(scores: Scores, view: str) -> dict[str, np.ndarray]:
    """The readable test logits of one view by kind of image; generators used for selection are left out."""
    rows = _test(scores) & (scores["view"] == view)
    edited, fake, seen = scores["edit"] != "", scores.fake, scores["seen"]
    masks = (~fake & ~edited, ~fake & edited, fake & (seen == "train"), fake & (seen == ""))
    return {kind: scores["logit"][rows & mask] for kind, mask in zip(KINDS, masks, strict=True)}


def _key(key: tuple[str, str], view: str) -> tuple[str, str, str]:
    return key[0], view, key[1]


def _bars(axes, place, cells: Sequence[Cell], colour: str, marker: str, label: str, horizontal: bool = False) -> None:
    """Values with their intervals; the interval need not hold the value, so both are drawn by position."""
    value, low, high = (np.array([getattr(cell, name) for cell in cells]) for name in ("value", "low", "high"))
    lines = axes.hlines if horizontal else axes.vlines
    lines(place, low, high, color=colour, linewidth=1.6)
    axes.plot(*((value, place) if horizontal else (place, value)), marker, color=colour, markersize=5, label=label)


def _chance(axes, which: str, cells: Sequence[Cell]) -> None:
    """Limits from the intervals to 1, the line of chance, a legend outside the data."""
    low = min([0.5, *(x for cell in cells for x in (cell.low, cell.value) if x == x)])
    limits = (max(0.0, low - 0.04), 1.01)
    (axes.set_ylim if which == "y" else axes.set_xlim)(*limits)
    (axes.axhline if which == "y" else axes.axvline)(0.5, color="0.6", linewidth=0.8, linestyle="--", label="chance")
    axes.grid(axis=which, color="0.92")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _say_none(axes, what: str) -> None:
    axes.text(0.5, 0.5, f"no {what}", ha="center", va="center", transform=axes.transAxes, color="0.4")


def _short(name: str, most: int = 28) -> str:
    """At most `most` characters that the bundled font has, and no `$`, which would start a formula."""
    name = plain(name).encode("latin-1", "backslashreplace").decode("latin-1").replace("$", r"\$")
    return name if len(name) <= most else name[: most - 1] + "…"

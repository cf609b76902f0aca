"""How figures look, and the kinds that many pages draw: lines with bands, points with intervals, heat maps."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from adapt.evaluation.metrics import Cell, index
from adapt.evaluation.replicates import ALL
from adapt.evaluation.side_by_side import Number
from adapt.files import write_bytes
from adapt.text import plain

# Okabe and Ito's colours serve every colour vision; line styles and markers serve without any
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*"
SEEN, UNSEEN = "#0072B2", "#D55E00"
SEEN_AND_UNSEEN = {"seen generators": "mean:seen", "unseen generators": "mean:unseen"}


def save_png(figure: Figure, path: Path) -> None:
    """The `png` of a figure, written atomically."""
    write_bytes(path, png(figure))


def png(figure: Figure) -> bytes:
    """PNG with few colours, which look the same and take a third of the bytes; the same figure, the same bytes."""
    arrays = (image.get_array() for axes in figure.axes for image in axes.images)
    cells = [array.size for array in arrays if array is not None]
    colours = 256 if max(cells, default=0) > 64 else 64  # a large heat map needs more of them
    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    image = Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    image.save(small, format="PNG", optimize=True, dpi=(150, 150))
    return small.getvalue()


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
                    axes.plot([n for n, _ in kept], [c.value for _, c in kept], label=method, **line_style(i))
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
    accuracies: Mapping[str, Sequence[Cell | Number]],
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
                axes.plot(x, cell.value, MARKERS[i % 7], color=COLOURS[i % 7], label=short_label(name), **style)
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
    """A panel for each method, by its name: values over the views with 95 % bands, a line for each of at most 3 kinds.

    The other methods stand behind in grey, so that many can be told apart and still be compared.
    """
    names = list(next(iter(kinds.values())))
    figure, panels = panels_of(names)
    for axes, name in zip(panels, names, strict=False):
        for (kind, methods), colour, line in zip(kinds.items(), (SEEN, UNSEEN, "#000000"), LINES, strict=False):
            for other in (other for other in names if other != name):
                grey = {"color": "0.85", "linewidth": 0.7, "linestyle": line, "zorder": 1}
                axes.plot(range(len(views)), [cell.value for cell in methods[other]], **grey)
            value, low, high = ([getattr(cell, end) for cell in methods[name]] for end in ("value", "low", "high"))
            axes.fill_between(range(len(views)), low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
            style = {"color": colour, "linestyle": line, "marker": "o", "markersize": 3, "linewidth": 1.4}
            axes.plot(range(len(views)), value, label=kind, zorder=3, **style)
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        slant = {"rotation": 90} if len(views) > 5 or max(map(len, views)) > 5 else {}
        axes.set_xticks(range(len(views)), [short_label(view, 14) for view in views], fontsize=7, **slant)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(kinds), fontsize=8)
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
        colour = "white" if dark else "black"
        ends = [low[row][column], high[row][column]] if low is not None and high is not None else [np.nan]
        known = wide and not np.isnan(ends).any()
        axes.text(column, row, text, ha="center", va="bottom" if known else "center", fontsize=font, color=colour)
        if known:
            between = " to ".join(f"{end:.{digits}f}" for end in ends)
            axes.text(column, row + 0.06, between, ha="center", va="top", fontsize=0.75 * font, color=colour)
    slant = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if max(map(len, columns)) > 7 else {}
    turn = {} if wide else {"rotation": 90} if small else slant
    axes.set_xticks(range(len(columns)), [short_label(name) for name in columns], **turn)
    axes.set_yticks(range(len(rows)), [short_label(name, 40) for name in rows])
    axes.tick_params(labelsize=6.5 if small else 9, length=0)
    for line in lines:
        axes.axhline(line - 0.5, color="black", linewidth=1.5)
    axes.set_title(title, fontsize=10)
    return figure


def panels_of(names: Sequence[str]) -> tuple[Figure, np.ndarray]:
    """A figure with a panel for each name, which stands above it."""
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.2 * max(columns, 2) + 0.6, 2.1 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        axes.set_title(short_label(name), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(color="0.94")
        axes.set_axisbelow(True)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[len(names) - columns : len(names)]:
        axes.tick_params(labelbottom=True)  # also above a gap in the last row
    return figure, panels


def line_style(i: int) -> dict[str, object]:
    return {"color": COLOURS[i % 7], "linestyle": LINES[i % 4], "linewidth": 1.4}


def short_label(name: str, most: int = 28) -> str:
    """At most `most` characters that the bundled font has, and no `$`, which would start a formula."""
    name = plain(name).encode("latin-1", "backslashreplace").decode("latin-1").replace("$", r"\$")
    return name if len(name) <= most else name[: most - 1] + "…"

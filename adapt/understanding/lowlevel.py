"""Low-level evidence: spectra of noise residuals by generator and view, against those of the photographs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from adapt.data.images import Unreadable, read_image
from adapt.data.views import parse_view
from adapt.evaluation.replicates import distinct
from adapt.models.descriptors.spectra import TILE, mean_excess, peak_name, power_spectrum, radial_profile, strongest
from adapt.pages.drawing import COLOURS, LINES
from adapt.understanding.item import Item, Numbers, Value, mean, of_resamples
from adapt.understanding.subject import Subject

ABOUT = f"""\
The noise residual (luma less its blur of 1 px) has a power spectrum: the mean over tiles of {TILE} px, each image's
made to sum to 1. Strongest peak: found in the mean spectrum of half of the groups, its height measured on the other
half, as log2 of the power there over the median of the 9 x 9 bins around; beside it the height at the same place in
the photographs of these groups. A peak that the photographs have as well is the camera's, the codec's or the
content's. Fine detail: log2 of the share of power above 0.25 cycles a pixel, a fake's less that of its own
photograph, mean over groups (0: as much as a photograph). Images of less than {TILE} px have no spectrum."""
HIGH = np.hypot(*np.meshgrid(np.fft.fftfreq(TILE), np.fft.fftfreq(TILE))) > 0.25


def spectra(subject: Subject, views: Sequence[str]) -> Item:
    """Mean spectra, radial profiles and named peaks of every generator under every view."""
    views = tuple(dict.fromkeys(parse_view(view).name for view in views))
    generator, (fakes, reals) = subject.sample["generator"], subject.pairs
    generators = ["real", *distinct(generator[subject.sample.fake])]
    cells: dict[tuple[str, str], Value | str] = {}
    means, profiles, headline = {}, {}, []
    for view in views:
        power, known = _powers(subject, view)
        fine = np.log2(power[:, HIGH].sum(axis=1), where=known, out=np.zeros(len(known)))
        for name in generators:
            mine, row = (generator == name) & known, f"{name}, {view}"
            if not mine.any():
                continue
            means[name, view] = power[mine].mean(axis=0)
            cells[row, "images"] = str(int(mine.sum()))
            photographs = (generator == "real") & known
            cells |= {(row, column): cell for column, cell in _peak(subject, power, mine, photographs).items()}
            of = mine[fakes] & known[reals]
            if of.any():
                fake, real = fakes[of], reals[of]
                cells[row, "fine detail"] = mean(fine[fake] - fine[real], subject.weights[:, fake])
                each = [radial_profile(power[f]) - radial_profile(power[r]) for f, r in zip(fake, real, strict=True)]
                profiles[name, view] = np.mean(each, axis=0) / np.log(2)
        headline += _headline(cells, generators, view)
    figures = {"mean_spectra": _spectra_figure(means, generators, views)} if means else {}
    figures |= {"radial_profiles": _profile_figure(profiles, views)} if profiles else {}
    numbers = Numbers("Peaks and fine detail", "generator, view", cells)
    return Item("spectra", "Low-level evidence", ABOUT, [numbers], figures, (), headline)


def _peak(subject: Subject, power: np.ndarray, mine: np.ndarray, real: np.ndarray) -> dict[str, Value | str]:
    """The strongest peak of the images `mine` (n,), found on every other group and measured on the rest."""
    groups = subject.sample["group"]
    finding = np.isin(groups, distinct(groups)[::2])
    if not (mine & finding).any() or not (mine & ~finding).any():
        return {}
    place = strongest(power[mine & finding].mean(axis=0))[0]
    found: dict[str, Value | str] = {"strongest peak": peak_name(place)}
    for title, which in (("its height", mine & ~finding), ("in photographs", real & ~finding)):
        if which.any():
            height = mean_excess(power[which], place, subject.weights[:, which]) / np.log(2)
            found[title] = of_resamples(height, which.sum())
    return found


def _powers(subject: Subject, view: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, TILE, TILE) float32 and (n,) whether the image has a spectrum under this view; zeros where it has none."""
    power, known = np.zeros((len(subject.sample), TILE, TILE), np.float32), np.zeros(len(subject.sample), bool)
    change = parse_view(view)
    for i, file in enumerate(subject.sample["file"]):
        try:
            power[i] = power_spectrum(
                change.of(subject.sample["group"][i])(
                    read_image(file, subject.sample["sha256"][i], subject.sample.place(i))
                )
            )
            known[i] = True
        except Unreadable:
            continue
    return power, known


def _headline(cells: dict, generators: Sequence[str], view: str) -> list[tuple[str, Value]]:
    """The generator whose peak is most surely above that of the photographs."""
    rows = {f"{generator}, {view}": generator for generator in generators[1:]}
    found = [row for row in rows if (row, "its height") in cells and (row, "in photographs") in cells]
    if not found:
        return []
    row = max(found, key=lambda row: cells[row, "its height"].low - cells[row, "in photographs"].high)
    what = f"{view}: most outstanding peak, of {rows[row]} at {cells[row, 'strongest peak']}, log2"
    return [(what, cells[row, "its height"])]


def _spectra_figure(means: dict, generators: Sequence[str], views: Sequence[str]) -> Figure:
    figure = Figure(figsize=(1.5 * len(generators) + 0.6, 1.6 * len(views) + 0.5), layout="constrained")
    panels = figure.subplots(len(views), len(generators), squeeze=False)
    shown = [np.log(TILE**2 * power) for power in means.values()]
    limits = np.percentile(shown, [1, 99.8])
    for axes_of_view, view in zip(panels, views, strict=True):
        for axes, generator in zip(axes_of_view, generators, strict=True):
            if (generator, view) in means:
                image = np.fft.fftshift(np.log(TILE**2 * means[generator, view]))
                axes.imshow(image, cmap="magma", vmin=limits[0], vmax=limits[1], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if view == views[0]:
                axes.set_title(generator[:18], fontsize=8)
        axes_of_view[0].set_ylabel(view, fontsize=8)
    figure.suptitle("Mean power spectra of noise residuals, log; the middle is frequency 0", fontsize=10)
    return figure


def _profile_figure(profiles: dict, views: Sequence[str]) -> Figure:
    figure = Figure(figsize=(3.4 * len(views) + 1.8, 3.4), layout="constrained")
    panels = figure.subplots(1, len(views), sharey=True, squeeze=False)[0]
    frequency = np.arange(1, TILE // 2 + 1) / TILE
    for axes, view in zip(panels, views, strict=True):
        for i, generator in enumerate(distinct(name for name, _ in profiles)):
            if (generator, view) in profiles:
                style = {"color": COLOURS[i % 7], "linestyle": LINES[i // 7 % 4], "linewidth": 1.4}
                axes.plot(frequency, profiles[generator, view], label=generator[:24], **style)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_title(view, fontsize=10)
        axes.grid(color="0.92")
    panels[0].set_ylabel("log2 of power over that of its photograph")
    figure.supxlabel("frequency, cycles a pixel", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure

"""Content against trace: what a detector loses when the one or the other is taken away."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from adapt.data.images import Unreadable, read_image
from adapt.data.views import parse_view
from adapt.evaluation.replicates import ALL, Replicates, replicate
from adapt.pages.drawing import SEEN, UNSEEN
from adapt.pages.html import Gallery, Picture
from adapt.pages.thumbnails import thumbnail
from adapt.understanding.item import Item, Numbers, Value, mean, number_at, of_resamples, of_shares
from adapt.understanding.subject import Subject, logits

ABOUT = """\
The same images under views that take content away and leave the trace (patches in another order, crops too small or
too plain for semantics), that take the trace away and leave the content (low-pass; JPEG), or that move one of both
(hue, chroma, high-pass). Views apply to the image file, before the detector's own geometry: where that crops native
pixels, a crop that is too small is continued by reflection, where it scales, it is enlarged. AUC is the mean over
generators; the change is that of the mean over all generators against the same images as they are, on the same
resamples. Real first and pair ranking compare a photograph with its own fakes."""
ABOUT_SWAP = """\
 The Fourier amplitude of a photograph (how much there is of each frequency, where periodic traces and blur stand) and
 its phase (where edges lie: the content) are recombined with those of each of its own fakes, channel by channel, on
 the pixels that the detector sees. Above its photograph: how often the logit of the picture exceeds that of the
 photograph (0.5 is no effect; a tie counts half); shift: the mean difference. A recombination also leaves ringing of
 its own, which no camera makes: read the two swaps against each other."""
SHOWN = {
    "AUC seen": ("mean:seen", "auc"),
    "AUC unseen": ("mean:unseen", "auc"),
    "real first": ("within:all", "real_first"),
    "pair ranking": ("within:all", "pair_ranking"),
    "false alarms": ("real", "false_alarm"),
}


def content(subject: Subject, views: Sequence[str], examples: int) -> Item:
    """AUC of the detector under each view, its change, and the swap of phase and amplitude where groups allow it."""
    views = tuple(dict.fromkeys(parse_view(view).name for view in ("none", *views)))
    scores = subject.scores(views)
    found = replicate(scores, subject.detector.threshold, subject.resamples, subject.seed)
    plain = found[ALL, "none", "mean:all"].values["auc"]
    cells: dict[tuple[str, str], Value | str] = {}
    for view in views:
        for title, (generator, metric) in SHOWN.items():
            if (at := found.get((ALL, view, generator))) is not None:
                cells[view, title] = _value(at, metric)
        every = found[ALL, view, "mean:all"]
        change = of_resamples(every.values["auc"] - plain, every.n_real + every.n_fake)
        cells[view, "change of AUC"] = change if view != "none" else "-"
        lost = int((~scores.ok & (scores["view"] == view)).sum())
        cells[view, "unreadable"] = str(lost)
    numbers = [Numbers("Views", "view", cells)]
    headline = [("AUC, seen generators", number_at(cells, "none", "AUC seen"))]
    kinds = {view.rstrip("0123456789."): view for view in reversed(views[1:])}  # the first view of each operation
    shown = [view for view in views if view in kinds.values()]
    headline += [(f"change of AUC, {view}", number_at(cells, view, "change of AUC")) for view in shown]
    galleries = [_view_gallery(subject, views)]
    about, (fakes, reals) = ABOUT, subject.pairs
    if not len(fakes):
        about += (
            "\n\nNo group holds a photograph and a fake of its own: phase and amplitude have no partner to swap with."
        )
    else:
        swap, pictures = _swap(subject, fakes, reals, examples)
        numbers.append(swap)
        about += "\n\n" + ABOUT_SWAP.strip()
        galleries.append(pictures)
        for name in ("amplitude of the fake", "phase of the fake"):
            headline.append(
                (f"only the {name}: above its photograph", number_at(swap.cells, name, "above its photograph"))
            )
    return Item(
        "content", "Content against trace", about, numbers, {"views": _figure(cells, views)}, galleries, headline
    )


def swapped(amplitude: Tensor, phase: Tensor) -> Tensor:
    """Pictures (n, c, h, w) uint8 with the Fourier amplitude of the one and the phase of the other, by channel."""
    size = torch.fft.fft2(amplitude.double()).abs()
    angle = torch.fft.fft2(phase.double()).angle()
    return torch.fft.ifft2(torch.polar(size, angle)).real.round().clamp(0, 255).to(torch.uint8)


def _value(at: Replicates, metric: str) -> Value:
    return of_shares(at.values[metric], at.n_real + at.n_fake)


def _swap(subject: Subject, fakes: np.ndarray, reals: np.ndarray, examples: int) -> tuple[Numbers, Gallery]:
    fake, real = subject.pixels[torch.from_numpy(fakes)], subject.pixels[torch.from_numpy(reals)]
    kinds = {
        "the fake itself": fake,
        "amplitude of the fake": swapped(fake, real),
        "phase of the fake": swapped(real, fake),
    }
    before, weights = logits(subject.detector, real), subject.weights[:, fakes]
    cells = {}
    for name, pictures in kinds.items():
        shift = logits(subject.detector, pictures) - before
        cells[name, "above its photograph"] = mean((shift > 0) + 0.5 * (shift == 0), weights)
        cells[name, "shift of the logit"] = mean(shift, weights)
    shown = {"photograph": real, **kinds}
    strips = []
    for k in np.linspace(0, len(fakes) - 1, min(examples, len(fakes)), dtype=int):
        lines = (subject.sample["path"][fakes[k]], ", ".join(shown))
        strip = torch.cat([each[k] for each in shown.values()], dim=-1)
        strips.append(Picture(thumbnail(to_image(strip), 480), "photograph, fake, and both swaps", lines))
    return Numbers("Phase and amplitude", "picture made of a photograph and", cells), Gallery(strips, "Swaps")


def to_image(pixels: Tensor) -> Image.Image:
    """(3, h, w) uint8 -> RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _view_gallery(subject: Subject, views: Sequence[str]) -> Gallery:
    """The first photograph of the sample under every view."""
    first = int(np.flatnonzero(~subject.sample.fake)[0])
    image = read_image(subject.sample["file"][first], place=subject.sample.place(first))
    pictures = []
    for view in views:
        try:
            pictures.append(
                Picture(thumbnail(parse_view(view).of(subject.sample["group"][first])(image)), f"view {view}", (view,))
            )
        except Unreadable as problem:
            pictures.append(Picture(thumbnail(Image.new("RGB", (32, 32))), f"no view {view}", (view, problem.reason)))
    return Gallery(pictures, f"{subject.sample['path'][first]} under every view")


def _figure(cells: dict, views: Sequence[str]) -> Figure:
    figure = Figure(figsize=(6.5, 0.32 * len(views) + 1.3), layout="constrained")
    axes = figure.subplots()
    for title, colour, marker, shift in (("AUC seen", SEEN, "o", -0.12), ("AUC unseen", UNSEEN, "s", 0.12)):
        found = [cells[view, title] for view in views]
        place = np.arange(len(views)) + shift
        axes.hlines(place, [v.low for v in found], [v.high for v in found], color=colour, linewidth=1.6)
        axes.plot([v.value for v in found], place, marker, color=colour, markersize=5, label=title)
    axes.axvline(0.5, color="0.6", linewidth=0.8, linestyle="--", label="chance")
    axes.set_yticks(range(len(views)), views)
    axes.set_ylim(len(views) - 0.5, -0.5)
    axes.set_xlabel("ROC-AUC, mean over generators, 95 % intervals")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(axis="x", color="0.92")
    return figure

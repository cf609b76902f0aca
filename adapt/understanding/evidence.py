"""Where in an image the evidence lies: integrated gradients, occlusion, scores of single patches."""

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from adapt.detector.detector import Detector
from adapt.errors import Refusal
from adapt.pages.drawing import COLOURS
from adapt.pages.html import Gallery, Picture
from adapt.pages.thumbnails import thumbnail
from adapt.understanding.content import to_image
from adapt.understanding.item import Item, Numbers, Value, mean
from adapt.understanding.subject import Subject, logits

STEPS = 16  # of the path of integrated gradients
CHUNK = 64  # perturbed images in one pass
ABOUT = """\
Three maps of what raises the logit of "AI-generated" (red) and what lowers it (blue). Integrated gradients
(1703.01365) from an image of the detector's own mean colour, {steps} steps; occlusion (1311.2901): the fall of the
logit when a window of {window} px takes that colour; patch scores: the head applied to each patch token at the
detector's layer, without attention or gradients. {without}

A map may look convincing and say nothing. The table is a deletion test on {n} test images drawn at random: the tenth
of the pixels with the most evidence for the verdict takes the mean colour of the image, and the logit moves so far
against the verdict; below stands a tenth of the pixels drawn at random, in squares of the same window, as control. A
map that moves the logit no further has found nothing. Deleting makes images that no camera makes: compare rows, not
levels."""
FALL, RANDOM = "fall of the verdict's logit", "random squares"
SHARE = 0.1  # of the pixels that the deletion test takes away


def without_captum() -> str:
    """Why there are no maps; "" if captum is installed."""
    if importlib.util.find_spec("captum") is not None:
        return ""
    return "captum is not installed: pip install 'adapt-aigi[explain]' -c constraints.txt"


def maps(subject: Subject, count: int, examples: int) -> Item:
    """Maps of the most certain and the most wrong images, and a deletion test on `count` random ones."""
    if why := without_captum():
        raise Refusal(f"maps: {why}")
    detector, size = subject.detector, subject.detector.backbone.preprocess.size
    window = max(2, size // 4)
    made = {
        "integrated gradients": lambda pixels: integrated_gradients(detector, pixels),
        "occlusion": lambda pixels: occlusion(detector, pixels, window),
        "patch scores": lambda pixels: patch_scores(detector, pixels),
    }
    without = ""
    try:
        patch_scores(detector, subject.pixels[:1])
    except Refusal as refusal:
        del made["patch scores"]
        without = f"No patch scores here: {refusal}."
    logit = logits(detector, subject.pixels)
    rng = np.random.default_rng(subject.seed)
    chosen = np.sort(rng.permutation(len(logit))[:count])
    weights = subject.weights[:, chosen]
    cells: dict[tuple[str, str], Value] = {}
    fell = _deletion(subject, chosen, logit, made, window, rng)
    for name, moved in fell.items():
        cells[name, FALL] = mean(moved, weights)
        if name != RANDOM:
            cells[name, "beyond random squares"] = mean(moved - fell[RANDOM], weights)
    about = ABOUT.format(steps=STEPS, window=window, n=len(chosen), without=without)
    headline = [(f"deletion by {name}, beyond random squares", cells[name, "beyond random squares"]) for name in made]
    galleries = [
        _gallery(subject, title, places, logit, made) for title, places in extremes(subject, logit, examples).items()
    ]
    return Item(
        "maps",
        "Where the evidence lies",
        about,
        [Numbers("Deletion test", "map", cells)],
        {"deletion": _figure(cells)},
        galleries,
        headline,
    )


def integrated_gradients(detector: Detector, pixels: Tensor) -> Tensor:
    """(n, 3, s, s) uint8 -> (n, s, s) float32: attribution of the logit to pixels, summed over channels.

    Their sum is the logit less that of the baseline, but for the error of the path's `STEPS` steps.
    """
    from captum.attr import IntegratedGradients

    inputs = pixels.to(detector.backbone.device).float().requires_grad_()
    method = IntegratedGradients(detector)
    found = method.attribute(inputs, baselines=_mean(detector, inputs), n_steps=STEPS, internal_batch_size=CHUNK)
    return found.detach().sum(dim=1).float().cpu()


@torch.no_grad()
def occlusion(detector: Detector, pixels: Tensor, window: int) -> Tensor:
    """(n, 3, s, s) uint8 -> (n, s, s) float32: how far the logit falls when a window around a pixel is covered.

    Windows move by half of their side; a pixel has the mean over those that cover it.
    """
    from captum.attr import Occlusion

    inputs = pixels.to(detector.backbone.device).float()
    shape = (3, window, window)
    found = Occlusion(detector).attribute(
        inputs, shape, strides=(3, max(1, window // 2), max(1, window // 2)), baselines=_mean(detector, inputs)
    )
    return found[:, 0].float().cpu()


@torch.no_grad()
def patch_scores(detector: Detector, pixels: Tensor) -> Tensor:
    """(n, 3, s, s) uint8 -> (n, s, s) float32: the head's logit of each patch token, as squares."""
    tokens = detector.backbone.patch_tokens(pixels.to(detector.backbone.device))
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise Refusal(f"{tokens.shape[1]} patch tokens make no square")
    scores = detector.head(tokens.flatten(0, 1)).view(len(pixels), 1, side, side)
    return F.interpolate(scores, size=pixels.shape[-2:], mode="nearest")[:, 0].float().cpu()


def deleted(pixels: Tensor, evidence: Tensor, share: float) -> Tensor:
    """The images (n, 3, s, s) with the `share` of their pixels that has the most evidence (n, s, s) in mean colour."""
    flat = evidence.flatten(1)
    chosen = flat.argsort(dim=1, descending=True, stable=True)[:, : round(share * flat.shape[1])]
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter(1, chosen, True).view_as(evidence)
    colour = pixels.float().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8)
    return torch.where(mask[:, None], colour, pixels)


def extremes(subject: Subject, logit: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Places of the images furthest on the right and on the wrong side of the threshold, by class."""
    margin = np.where(subject.sample.fake, 1, -1) * (logit - _threshold(subject))
    found = {}
    for kind, label in (("photographs", False), ("fakes", True)):
        places = np.flatnonzero(subject.sample.fake == label)
        order = places[np.argsort(margin[places], kind="stable")]
        found[f"The most certain {kind}"] = order[::-1][:count]
        found[f"The most wrong {kind}"] = order[margin[order] < 0][:count]
    return {title: places for title, places in found.items() if len(places)}


def _threshold(subject: Subject) -> float:
    return subject.detector.threshold if subject.detector.threshold == subject.detector.threshold else 0.0


def _mean(detector: Detector, inputs: Tensor) -> Tensor:
    """The colour that normalisation maps to 0, as one image."""
    return detector.backbone.mean.to(inputs).expand(1, *inputs.shape[1:])


def _deletion(
    subject: Subject,
    chosen: np.ndarray,
    logit: np.ndarray,
    made: dict[str, Callable[[Tensor], Tensor]],
    window: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """How far the logit of each chosen image moves against its verdict, by map, and for random squares."""
    pixels = subject.pixels[torch.from_numpy(chosen)]
    verdict = np.where(logit[chosen] >= _threshold(subject), 1.0, -1.0)
    sign = torch.from_numpy(verdict).float()[:, None, None]
    cells = -(-pixels.shape[-1] // window)
    noise = torch.from_numpy(rng.random((len(chosen), cells, cells))).float()
    noise = noise.repeat_interleave(window, 1).repeat_interleave(window, 2)[:, : pixels.shape[-2], : pixels.shape[-1]]
    evidence = {name: sign * make(pixels) for name, make in made.items()} | {RANDOM: noise}
    return {
        name: verdict * (logit[chosen] - logits(subject.detector, deleted(pixels, found, SHARE)))
        for name, found in evidence.items()
    }


def _gallery(subject: Subject, title: str, places: np.ndarray, logit: np.ndarray, made: dict) -> Gallery:
    pixels = subject.pixels[torch.from_numpy(places.copy())]
    found = [make(pixels) for make in made.values()]
    pictures = []
    for k, place in enumerate(places):
        tiles = [to_image(pixels[k]), *(overlay(pixels[k], each[k]) for each in found)]
        strip = np.concatenate([np.asarray(tile) for tile in tiles], axis=1)
        lines = (
            subject.sample["path"][place],
            f"{subject.sample['generator'][place]}, logit {logit[place]:.2f}",
            ", ".join(("image", *made)),
        )
        pictures.append(Picture(thumbnail(Image.fromarray(strip), 512), f"{title}: image and maps", lines))
    return Gallery(pictures, title)


def overlay(pixels: Tensor, found: Tensor) -> Image.Image:
    """A map (s, s), red for fake and blue, over the grey image (3, s, s); full colour: its own 99th percentile."""
    grey = pixels.float().mean(dim=0).numpy() / 255
    values = found.numpy()
    scale = float(np.quantile(np.abs(values), 0.99)) or 1.0
    colour = colormaps["RdBu_r"](np.clip(values / scale, -1, 1) / 2 + 0.5)[..., :3]
    return Image.fromarray(np.rint(255 * (0.35 * grey[..., None] + 0.65 * colour)).astype(np.uint8))


def _figure(cells: dict) -> Figure:
    names = list(dict.fromkeys(name for name, _ in cells))
    figure = Figure(figsize=(6, 0.4 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(names):
        value = cells[name, FALL]
        axes.hlines(i, value.low, value.high, color=COLOURS[i % 7])
        axes.plot(value.value, i, "o", color=COLOURS[i % 7])
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"{FALL}, {SHARE:.0%} of the pixels deleted")
    return figure

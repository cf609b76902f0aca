"""Text directions: which prompts say of images what the detector says of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from adapt.models.heads.linear import LinearHead
from adapt.models.heads.probes import Probe
from adapt.models.prompts import prompt_features
from adapt.pages.drawing import COLOURS
from adapt.understanding.item import Item, Numbers, Value, number_at, of_resamples
from adapt.understanding.subject import Subject
from adapt.understanding.variance import centred

EXACT = 1e-3  # relative error up to which the step from the detector's layer to proj counts as linear
ABOUT = """\
Each theme is the mean of its prompts in the text tower of the backbone; an image says how much it agrees by the
cosine with its projected embedding in the {tower}. Correlation: Pearson's, over test images, of that cosine with the
detector's logit; within groups: after the mean of each group is taken off both, so that no scene can make it. A theme
above 0 rises with what the detector calls fake. Correlations of themes resemble each other where the themes do.

Cosine of the weight vector: the angle between the direction of the detector's head and the direction of the prompt,
pulled back through the projection to the layer that the head reads. It weighs all directions alike, also those in
which no image differs; the correlations weigh them as the images do.{missing}"""


def texts(subject: Subject, prompts: Mapping[str, Sequence[str]]) -> Item:
    """Agreement of themes (a name and its prompts) with the detector; refuses a backbone without texts."""
    backbone = subject.detector.backbone
    directions = prompt_features(backbone.name, list(prompts.values())).double().numpy()  # (themes, e)
    features = subject.features(("none",), layers=(backbone.layer, "proj"))
    everyone = np.arange(len(subject.sample))
    proj = features.take(everyone, "none", "proj").astype(np.float64)
    layer = features.take(everyone, "none", backbone.layer).astype(np.float64)
    cosine = proj @ directions.T / np.linalg.norm(proj, axis=1, keepdims=True)
    logit = subject.scores(("none",))["logit"]
    groups = subject.sample["group"]
    cells: dict[tuple[str, str], Value | str] = {}
    inside = (centred(cosine, groups), centred(logit, groups))
    matched = len(set(groups)) < len(groups)
    weight = head_direction(subject.detector.head)
    back = directions if backbone.layer == "proj" else pulled_back(layer, proj, directions)
    for k, theme in enumerate(prompts):
        found = correlation(cosine[:, k], logit, subject.weights)
        cells[theme, "correlation"] = of_resamples(found, len(logit))
        if matched:
            found = correlation(inside[0][:, k], inside[1], subject.weights)
            cells[theme, "within groups"] = of_resamples(found, len(logit))
        if back is not None and weight is not None:
            angle = back[k] @ weight / (np.linalg.norm(back[k]) * np.linalg.norm(weight))
            cells[theme, "cosine of the weight vector"] = Value(float(angle))
        cells[theme, "prompts"] = "; ".join(prompts[theme])
    missing = "" if back is not None and weight is not None else (
        " Not shown here: the head is not linear, or the step from its layer to the projection is not (or there are "
        f"fewer images, {len(logit)}, than dimensions, {layer.shape[1]}, to tell)."
    )  # fmt: skip
    tower = "adapted tower" if hasattr(backbone.tower, "peft_config") else "tower"
    column = "within groups" if matched else "correlation"
    ranked = sorted(prompts, key=lambda theme: number_at(cells, theme, column).value)
    ends = {"highest": ranked[-1], "lowest": ranked[0]}
    headline = [
        (f"{column}, {end} of {len(ranked)}: {theme}", number_at(cells, theme, column)) for end, theme in ends.items()
    ]
    numbers = [Numbers("Themes", "theme", cells)]
    figures = {"themes": _figure(cells, ranked, matched)}
    return Item("texts", "Text directions", ABOUT.format(tower=tower, missing=missing), numbers, figures, (), headline)


def correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of (n,) and (n,) under each row of weights (r, n) -> (r,); NaN where one does not vary."""
    w = weights / weights.sum(axis=1, keepdims=True)
    mean_x, mean_y = w @ x, w @ y
    covariance = w @ (x * y) - mean_x * mean_y
    with np.errstate(invalid="ignore", divide="ignore"):
        return covariance / np.sqrt((w @ x**2 - mean_x**2) * (w @ y**2 - mean_y**2))


def head_direction(head: nn.Module) -> np.ndarray | None:
    """The direction (d,) in which a linear head's logit rises, in the space of its features; None of another head."""
    if isinstance(head, LinearHead) and len(head.classes) == 2:
        return head.linear.weight[0].detach().double().cpu().numpy()
    if not isinstance(head, Probe) or not isinstance(head.net, nn.Linear) or len(head.classes) != 2:
        return None
    return (head.net.weight[0] / head.deviation * head.scale).detach().double().cpu().numpy()


def pulled_back(layer: np.ndarray, proj: np.ndarray, directions: np.ndarray) -> np.ndarray | None:
    """Directions (k, e) of the projection in the layer before it (k, d), or None where that step is not linear.

    The projection P is read off the features (n, d) and (n, e) of images by least squares; it is exact if it
    reproduces them. With fewer images than dimensions anything would: None.
    """
    if len(layer) <= layer.shape[1]:
        return None
    projection, *_ = np.linalg.lstsq(layer, proj, rcond=None)
    error = np.linalg.norm(layer @ projection - proj) / np.linalg.norm(proj)
    return directions @ projection.T if error < EXACT else None


def _figure(cells: dict, ranked: Sequence[str], matched: bool) -> Figure:
    figure = Figure(figsize=(7, 0.3 * len(ranked) + 1.2), layout="constrained")
    axes = figure.subplots()
    for i, column in enumerate(("correlation", "within groups")[: 1 + matched]):
        found = [cells[theme, column] for theme in ranked]
        place = np.arange(len(ranked)) + (0.12 if i else -0.12)
        axes.hlines(place, [v.low for v in found], [v.high for v in found], color=COLOURS[i])
        axes.plot([v.value for v in found], place, "os"[i], color=COLOURS[i], markersize=5, label=column)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(ranked)), ranked)
    axes.set_xlabel("correlation with the logit of fake, 95 % intervals")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(axis="x", color="0.92")
    return figure

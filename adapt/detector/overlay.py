"""Pictures of maps: where an image was changed, over the image itself."""

import numpy as np
from PIL import Image

from adapt.detector.localizer import Found, strips

SIDE = 1024  # longer side of an overlay, px; a smaller image is enlarged by a whole factor
TINT = np.array([255, 40, 0], np.float32)  # of what is called changed, the stronger the surer
LINE = np.array([255, 230, 0], np.uint8)  # around it


def heat(found: Found, size: tuple[int, int]) -> Image.Image:
    """The map as grey values: the logistic function of its logits, for an image of this size (width, height)."""
    rows = [0.5 + 0.5 * np.tanh(0.5 * part) for _, part in strips(found.map, found.pitch, size[1], size[0])]
    return Image.fromarray(np.rint(255 * np.concatenate(rows)).astype(np.uint8)).convert("RGB")


def overlay(image: Image.Image, found: Found, threshold: float, side: int = SIDE) -> Image.Image:
    """The image, at most `side` pixels long, tinted where the map's logit reaches the threshold, within a line.

    The tint grows from a fifth at the threshold to two thirds.
    """
    scale = side // max(image.size) or side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    kernel = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    pixels = np.asarray(image.resize((width, height), kernel)).astype(np.float32)
    logits = np.concatenate([part for _, part in strips(found.map, found.pitch * scale, height, width)])
    changed = logits >= threshold
    strength = np.where(changed, 0.2 + 0.47 * np.tanh(0.5 * np.maximum(logits - threshold, 0)), 0)[..., None]
    out = (pixels * (1 - strength) + TINT * strength).round().astype(np.uint8)
    out[_outline(changed)] = LINE
    return Image.fromarray(out)


def _outline(changed: np.ndarray) -> np.ndarray:
    """Pixels outside a region that touch it at a side."""
    near = np.zeros_like(changed)
    near[1:] |= changed[:-1]
    near[:-1] |= changed[1:]
    near[:, 1:] |= changed[:, :-1]
    near[:, :-1] |= changed[:, 1:]
    return near & ~changed

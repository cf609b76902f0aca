"""Regions of an image to change: rectangles, ellipses, blobs, and shapes that follow what the image shows.

Each shape is a field over the pixels, and the region is where the field is lowest: so its area is what was asked for,
also where the shape meets the border.
"""

import numpy as np
from PIL import Image, ImageFilter

SHAPES = ("rectangle", "ellipse", "blob", "object")
KNOTS = 5  # a side, of the smooth noise that bends a blob


def draw_region(
    image: Image.Image, shape: str, share: float, draw: np.random.Generator, low: float, high: float
) -> np.ndarray:
    """Region (h, w) bool of about `share` of an RGB image, never below `low` or above `high` of its area."""
    field = _field(image, shape, draw)
    count = int(np.clip(round(share * field.size), np.ceil(low * field.size), np.floor(high * field.size)))
    cut = np.partition(field.ravel(), count - 1)[count - 1]
    region = field <= cut
    # equal values, the sides of a rectangle, come in all at once; where that is too much they stay out
    return region if region.mean() <= high else field < cut


def _field(image: Image.Image, shape: str, draw: np.random.Generator) -> np.ndarray:
    width, height = image.size
    (y, x), stretch = draw.uniform(0.1, 0.9, 2), np.exp(draw.uniform(-0.5, 0.5))
    unit = float(np.sqrt(width * height))
    down = np.abs(np.arange(height) + 0.5 - y * height)[:, None] / unit * stretch
    right = np.abs(np.arange(width) + 0.5 - x * width)[None] / unit / stretch
    if shape == "rectangle":
        return np.maximum(down, right)
    distance = np.hypot(down, right)
    if shape == "ellipse":
        return distance
    if shape == "blob":
        knots = Image.fromarray(draw.standard_normal((KNOTS, KNOTS)).astype(np.float32))
        noise = np.asarray(knots.resize(image.size, Image.Resampling.BICUBIC))
        return distance * np.exp(0.5 * noise)
    colours = np.asarray(image.filter(ImageFilter.GaussianBlur(unit / 64))).astype(np.float32)
    own = colours[int(y * height), int(x * width)]
    unlike = np.sqrt(((colours - own) ** 2).sum(axis=2))
    return (distance + 0.02) * (0.2 + unlike / (np.percentile(unlike, 90) + 1))


def soften(region: np.ndarray, radius: float, low: float, high: float) -> Image.Image:
    """Mask ("L") of a region with an edge blurred by `radius` pixels; hard (0 or 255) where that breaks the bounds.

    The bounds hold for the pixels that count as changed, those of at least 128.
    """
    hard = Image.fromarray(region.astype(np.uint8) * 255)
    soft = hard.filter(ImageFilter.GaussianBlur(radius)) if radius else hard
    return soft if low <= (np.asarray(soft) >= 128).mean() <= high else hard

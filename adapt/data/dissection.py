"""What views do that part content from trace: shuffled patches, chosen crops, turned hues, bands of the spectrum.

Functions on arrays; adapt/data/views.py gives them names. Whatever is random is drawn from what is named here, so that
a view stays a function of the image.
"""

import hashlib
import random

import numpy as np
from scipy.fft import dctn, idctn

from adapt.data.images import Unreadable

_YCC = np.array(  # R, G, B -> Y, Cb, Cr of BT.601 at full range (ITU-T T.871)
    [[0.299, 0.587, 0.114], [-0.299 / 1.772, -0.587 / 1.772, 0.5], [0.5, -0.587 / 1.402, -0.114 / 1.402]]
)
MIDDLE = 128.0  # what a high-passed image swings about


def shuffled(pixels: np.ndarray, side: int) -> np.ndarray:
    """The image (h, w, 3) with its patches of `side` px in another order; no patch stays where it was.

    The grid begins in the upper left corner; the strips that fill no patch stay. The order is drawn from the grid's
    shape alone, so that a photograph and its fakes are shuffled alike. Fewer than two patches: `Unreadable`.
    """
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    if rows * columns < 2:
        raise Unreadable("too-small")
    inner = pixels[: rows * side, : columns * side]
    patches = inner.reshape(rows, side, columns, side, -1).swapaxes(1, 2).reshape(rows * columns, side, side, -1)
    order = list(range(len(patches)))
    random.Random(f"{side}/{rows}/{columns}").shuffle(order)
    moved = np.empty_like(patches)
    moved[order] = patches[order[1:] + order[:1]]  # one cycle through all places
    out = pixels.copy()
    out[: rows * side, : columns * side] = (
        moved.reshape(rows, columns, side, side, -1).swapaxes(1, 2).reshape(inner.shape)
    )
    return out


def random_place(pixels: np.ndarray) -> tuple[float, float]:
    """Relative place (x, y) in [0, 1) for a crop, drawn from the image's own pixels: anywhere, but always there."""
    draw = random.Random(hashlib.sha256(np.ascontiguousarray(pixels).data).digest())
    return draw.random(), draw.random()


def plainest_place(pixels: np.ndarray, side: int) -> tuple[float, float]:
    """Relative place (x, y) of the crop of `side` px with the smallest sum of |gradients| of luma, first of equals.

    Semantics hardly survive in it (2402.01123 detects by such a patch). An image that is no larger is its own crop.
    """
    height, width = pixels.shape[:2]
    if side >= height or side >= width:
        return 0.5, 0.5
    luma = pixels.astype(np.float64) @ _YCC[0]
    across, down = (np.abs(np.diff(luma, axis=axis)) for axis in (1, 0))
    sums = _window_sums(across, side, side - 1) + _window_sums(down, side - 1, side)
    top, left = np.unravel_index(np.argmin(np.round(sums, 6)), sums.shape)
    return left / (width - side), top / (height - side)


def _window_sums(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Sums over every window of this size, by its upper left corner."""
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    return total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]


def turned(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """The image with its chroma turned in the plane of Cb and Cr; Y stays, but for what leaves the gamut (clipped)."""
    angle = np.deg2rad(degrees)
    turn = np.eye(3)
    turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return to_8_bits(pixels @ (np.linalg.inv(_YCC) @ turn @ _YCC).T)


def bands(pixels: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Low and high band (h, w, ...) float64 of an image, whose sum is the image.

    A Gaussian in frequency, 2 ** -(f / cutoff) ** 2 with f in cycles a pixel (0.5 is the finest grating, 0.25 has a
    period of 4 px): both bands have half of the amplitude at the cutoff, and neither rings. Applied by a cosine
    transform, which continues the image by reflection, so that no edge wraps around.
    """
    height, width = pixels.shape[:2]
    y, x = np.arange(height) / (2 * height), np.arange(width) / (2 * width)
    gain = 2.0 ** -((y[:, None] ** 2 + x**2) / cutoff**2)
    gain = gain.reshape(height, width, *(1,) * (pixels.ndim - 2))
    low = idctn(dctn(pixels.astype(np.float64), axes=(0, 1)) * gain, axes=(0, 1))
    return low, pixels - low


def to_8_bits(values: np.ndarray) -> np.ndarray:
    """Rounded and clipped to uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)

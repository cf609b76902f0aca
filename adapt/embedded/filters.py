"""Linear separable filters on small images (channels, height, width): each is one cached matrix a side."""

from functools import lru_cache

import numpy as np
from threadpoolctl import threadpool_limits

from adapt.stop import end_with_parent

KERNELS = {  # name: (weight of a distance, support), both in pixels of the coarser grid
    "box": (lambda x: np.where((x >= -0.5) & (x < 0.5), 1.0, 0.0), 0.5),
    "bilinear": (lambda x: np.clip(1 - np.abs(x), 0, None), 1.0),
    "cubic": (lambda x: _cubic(np.abs(x)), 2.0),
    "lanczos": (lambda x: np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0), 3.0),
}


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5 (Keys 1981, equation 15)."""
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _normalised(weights: np.ndarray) -> np.ndarray:
    weights = weights / weights.sum(axis=1, keepdims=True)
    weights.flags.writeable = False
    return weights


@lru_cache(maxsize=256)
def _resample_matrix(source: int, target: int, kernel: str) -> np.ndarray:
    weight, _ = KERNELS[kernel]
    ratio = source / target
    scale = max(ratio, 1.0)  # when shrinking the kernel widens, which is the antialiasing
    centres = (np.arange(target)[:, None] + 0.5) * ratio
    return _normalised(weight((np.arange(source)[None] + 0.5 - centres) / scale))


@lru_cache(maxsize=256)
def _blur_matrix(size: int, sigma: float) -> np.ndarray:
    """Gaussian with the edge pixel mirrored, so that a constant image stays constant."""
    radius = int(4 * sigma + 1)
    offsets = np.arange(-radius, radius + 1)
    positions = np.pad(np.arange(size), radius, mode="symmetric")
    weights = np.zeros((size, size))
    for offset, value in zip(offsets, np.exp(-(offsets**2) / (2 * sigma**2)), strict=True):
        np.add.at(weights, (np.arange(size), positions[radius + offset : radius + offset + size]), value)
    return _normalised(weights)


def _apply(matrix_rows: np.ndarray, image: np.ndarray, matrix_columns: np.ndarray) -> np.ndarray:
    return matrix_rows @ image @ matrix_columns.T


def resample(image: np.ndarray, size: int, kernel: str) -> np.ndarray:
    """Square image (..., n, n) -> (..., size, size), antialiased when smaller; kernel: a key of KERNELS."""
    matrix = _resample_matrix(image.shape[-1], size, kernel)
    return _apply(matrix, image, matrix)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, sigma in pixels; rounded to 1/20 px so that the matrices can be kept."""
    matrix = _blur_matrix(image.shape[-1], max(round(sigma * 20), 1) / 20)
    return _apply(matrix, image, matrix)


def nearest(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel `factor` times in both directions."""
    return image.repeat(factor, axis=-1).repeat(factor, axis=-2)


def luma(image: np.ndarray) -> np.ndarray:
    """(3, n, n) -> (n, n), BT.601 weights."""
    return np.tensordot(np.array([0.299, 0.587, 0.114]), image, 1)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Display values (3, n, n) in [0, 1] -> uint8 (n, n, 3)."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def from_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 (n, n, 3) -> display values (3, n, n) in [0, 1]."""
    return pixels.transpose(2, 0, 1) / 255.0


def one_thread() -> None:
    """Initialiser of a worker process: the matrices are so small that threads only wait for each other. It ends with
    the process that started it."""
    threadpool_limits(1)
    end_with_parent()

"""A simulated camera: optics, Bayer mosaic, sensor noise, demosaicing, white balance, tone, sharpening."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import convolve

from adapt.embedded.filters import blur, luma

# Malvar, He and Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color images"
# (ICASSP 2004), figure 2: the four 5 x 5 filters, each divided by 8.
GREEN_AT_OTHER = (
    np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]) / 8
)
SAME_ROW = (
    np.array([[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]) / 8
)
SAME_COLUMN = SAME_ROW.T
DIAGONAL = (
    np.array([[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]]) / 8
)


@dataclass(frozen=True)
class Camera:
    """A camera; `gain`: shot-noise variance for a unit of light, `read`: deviation of the read noise.

    `optics` and `chroma` are Gaussians in pixels: of the lens, and of what takes noise out of Cb and Cr (0: nothing).
    """

    optics: float
    gain: float
    read: float
    balance: tuple[float, float, float]
    gamma: float
    contrast: float
    sharpen: float
    chroma: float = 0.0


def draw_camera(rng: np.random.Generator) -> Camera:
    """A random camera of the captioned images that taught `tiny`."""
    return Camera(
        optics=rng.uniform(0.5, 0.8),
        gain=float(np.exp(rng.uniform(np.log(0.0006), np.log(0.003)))),
        read=0.002,
        balance=(rng.uniform(0.5, 0.8), 1.0, rng.uniform(0.5, 0.8)),
        gamma=rng.uniform(2.0, 2.4),
        contrast=rng.uniform(0.0, 0.5),
        sharpen=rng.uniform(0.2, 0.7),
    )


def draw_varied_camera(rng: np.random.Generator) -> Camera:
    """A random camera of the world: so varied that the slope of a spectrum hardly tells who made an image.

    It takes noise out of its chroma, as cameras do, so that a decoder that smooths chroma too leaves no trace there.
    """
    return replace(
        draw_camera(rng),
        optics=rng.uniform(0.35, 1.0),
        gain=float(np.exp(rng.uniform(np.log(0.001), np.log(0.004)))),
        sharpen=rng.uniform(0.0, 1.1),
        chroma=rng.uniform(0.7, 1.5),
    )


def demosaic(mosaic: np.ndarray) -> np.ndarray:
    """RGGB mosaic (n, n) -> (3, n, n), Malvar-He-Cutler."""
    green, row, column, diagonal = (
        convolve(mosaic, kernel, mode="mirror") for kernel in (GREEN_AT_OTHER, SAME_ROW, SAME_COLUMN, DIAGONAL)
    )
    image = np.stack([mosaic, green, mosaic])
    image[1, 0::2, 1::2] = mosaic[0::2, 1::2]
    image[1, 1::2, 0::2] = mosaic[1::2, 0::2]
    for channel, (own_y, own_x) in ((0, (0, 0)), (2, (1, 1))):
        image[channel, own_y::2, 1 - own_x :: 2] = row[own_y::2, 1 - own_x :: 2]
        image[channel, 1 - own_y :: 2, own_x::2] = column[1 - own_y :: 2, own_x::2]
        image[channel, 1 - own_y :: 2, 1 - own_x :: 2] = diagonal[1 - own_y :: 2, 1 - own_x :: 2]
    return image


def photograph(light: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Linear light (3, n, n), n even -> display values (3, n, n) in [0, 1]."""
    balance = np.array(camera.balance)[:, None, None]
    raw = blur(light, camera.optics) * balance
    mosaic = raw[1].copy()
    mosaic[0::2, 0::2] = raw[0, 0::2, 0::2]
    mosaic[1::2, 1::2] = raw[2, 1::2, 1::2]
    deviation = np.sqrt(camera.gain * np.clip(mosaic, 0, None) + camera.read**2)
    mosaic = np.clip(mosaic + deviation * rng.standard_normal(mosaic.shape), 0, 1)
    image = tone(demosaic(mosaic) / balance, camera.gamma, camera.contrast)
    image = np.clip(image + camera.sharpen * (image - blur(image, 1.0)), 0, 1)
    if camera.chroma:
        grey = luma(image)
        image = np.clip(grey + blur(image - grey, camera.chroma), 0, 1)  # R - Y and B - Y are Cr and Cb, scaled
    return image


def tone(linear: np.ndarray, gamma: float = 2.2, contrast: float = 0.0) -> np.ndarray:
    """Linear light -> display values: a power law, mixed with an S-shaped curve by `contrast`."""
    display = np.clip(linear, 0, 1) ** (1 / gamma)
    return display + contrast * (display * display * (3 - 2 * display) - display)

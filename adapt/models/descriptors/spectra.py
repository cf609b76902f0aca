"""Low-level traces: the spectrum of the noise residual, its radial profile, its peaks (1907.06515; 2211.00680).

A generator that upsamples leaves periodic traces, which are peaks of the power spectrum; one that blurs or invents
detail bends its radial profile. To be computed on the pixels of a View, before a model's resize, which moves every
period. Frequencies are in cycles a pixel: 0.5 is the finest grating, a period of p pixels lies at 1 / p.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, median_filter, uniform_filter

from adapt.data.images import Unreadable
from adapt.models.descriptors.descriptor import Descriptor

TILE = 64  # pixels: spectra of images of any size are means over such tiles, 64 x 64 bins of 1/64 cycle a pixel
SIGMA = 1.0  # of the Gaussian that is taken away; linear, so that it makes no harmonics as a median filter would
ROUNDING = 1 / 12  # variance of what 8 bits leave, in levels: white, and there even where the picture is flat
PERIODS = (2, 3, 4, 8)  # px: strides of decoders, and the blocks of JPEG
DIRECTIONS = ("across", "down", "both")
NEAREST = 4  # bins: peaks nearer to 0 (periods above 16 px) are the picture's own
NAMES: tuple[str, ...] = (
    *(f"profile_{ring:02d}" for ring in range(1, TILE // 2 + 1)),
    *(f"peak_{period}_{direction}" for period in PERIODS for direction in DIRECTIONS),
)

_WINDOW = np.outer(np.hanning(TILE + 1)[:-1], np.hanning(TILE + 1)[:-1])
_AXIS = np.fft.fftfreq(TILE)
_RING = np.rint(np.hypot(_AXIS[:, None], _AXIS) * TILE).astype(int)  # number of the ring, in bins from 0


class Spectra(Descriptor):
    """`describe` as an encoder of `adapt.features.cache`."""

    def __init__(self) -> None:
        super().__init__("spectra", "spectra", NAMES, describe, version=1)


def describe(image: Image.Image) -> np.ndarray:
    """Radial profile and peaks (d,) float32 of an RGB image, in the order of `NAMES`; always finite.

    `profile_K`: log of the mean power in the ring of K / 64 cycles a pixel, 0 if the residual were white;
    `peak_P_D`: `excess` at a period of P px across, down, or both.
    """
    power = power_spectrum(image)
    above = excess(power)
    return np.concatenate([radial_profile(power), [above[place] for place in _PLACES]]).astype(np.float32)


def residual(image: Image.Image) -> np.ndarray:
    """Luma (h, w) float64 less its Gaussian blur of 1 px: the noise residual, in levels."""
    if image.mode != "RGB":
        raise ValueError(f"a spectrum is of an RGB image, not {image.mode}: use read_image")
    luma = np.asarray(image).astype(np.float64) @ [0.299, 0.587, 0.114]
    return luma - gaussian_filter(luma, SIGMA)


def power_spectrum(image: Image.Image) -> np.ndarray:
    """Power (TILE, TILE) of the residual in numpy's order of frequencies, its sum 1.

    Welch's mean over tiles under a Hann window that overlap by half. An image of less than TILE px is `Unreadable`.
    """
    noise = residual(image)
    if min(noise.shape) < TILE:
        raise Unreadable("too-small")
    starts = [range(0, length - TILE + 1, TILE // 2) for length in noise.shape]
    tiles = [noise[y : y + TILE, x : x + TILE] * _WINDOW for y in starts[0] for x in starts[1]]
    power = np.mean([np.abs(np.fft.fft2(tile)) ** 2 for tile in tiles], axis=0) + ROUNDING * (_WINDOW**2).sum()
    return power / power.sum()


def radial_profile(power: np.ndarray) -> np.ndarray:
    """Log of the mean power in rings of 1 to 32 bins, 0 for white noise: (TILE, TILE) of sum 1 -> (32,)."""
    total, count = (np.bincount(_RING.ravel(), weights) for weights in (power.ravel(), None))
    return np.log(TILE**2 * total / count)[1 : TILE // 2 + 1]


def excess(power: np.ndarray) -> np.ndarray:
    """Log of the power of each bin and its eight neighbours over the median of the 9 x 9 bins around it.

    About 0 where the spectrum is smooth, at any slope; a peak is above. (TILE, TILE) -> (TILE, TILE).
    """
    return np.log(uniform_filter(power, 3, mode="wrap") / median_filter(power, 9, mode="wrap"))


def strongest(power: np.ndarray, count: int = 1) -> list[tuple[int, int]]:
    """Bins (row, column) of the `count` highest peaks over the median of the 9 x 9 bins around, the highest first.

    A spectrum repeats itself about 0, and a peak has a width: neither is a second peak.
    """
    height = np.where(_RING >= NEAREST, power / median_filter(power, 9, mode="wrap"), 0)
    places: list[tuple[int, int]] = []
    for flat in np.argsort(-height, axis=None, kind="stable"):
        row, column = (int(index) for index in np.unravel_index(flat, power.shape))
        place = (row, column)
        if all(_apart(place, other) > 4 for other in places):
            mirrored = (-row % TILE, -column % TILE)
            places.append(min(place, mirrored, key=lambda at: (at[1] > TILE // 2, at[0] > TILE // 2)))
        if len(places) == count:
            break
    return places


def peak_name(place: tuple[int, int]) -> str:
    """`4 px across`, `8 px down`, `2 px across, 2 px down`: the periods of a bin."""
    periods = [(abs(_AXIS[index]), word) for index, word in zip(place[::-1], DIRECTIONS[:2], strict=True)]
    return ", ".join(f"{1 / frequency:.3g} px {word}" for frequency, word in periods if frequency) or "constant"


def place_of(period: float, direction: str) -> tuple[int, int]:
    """Bin nearest to a period of so many px across, down or both."""
    bin_ = round(TILE / period)
    return 0 if direction == "across" else bin_, 0 if direction == "down" else bin_


def _apart(one: tuple[int, int], other: tuple[int, int]) -> int:
    """Bins between two places or the mirror image of one, around the edges."""
    turns = (np.subtract(one, other), np.add(one, other))
    return min(int(np.abs((turn + TILE // 2) % TILE - TILE // 2).max()) for turn in turns)


def mean_excess(powers: Sequence[np.ndarray] | np.ndarray, place: tuple[int, int], weights: np.ndarray) -> np.ndarray:
    """`excess` at one place of mean spectra: (n, TILE, TILE) with weights (r, n) -> (r,); NaN where all weigh nothing.

    The images of a peak that was found among others must not be those by which its height is measured.
    """
    rows, columns = ((np.arange(-4, 5) + index) % TILE for index in place)
    around = np.asarray(powers)[:, rows[:, None], columns].reshape(len(powers), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = weights @ around / weights.sum(axis=1, keepdims=True)
    core = mean.reshape(-1, 9, 9)[:, 3:6, 3:6].mean(axis=(1, 2))
    return np.log(core / np.median(mean, axis=1))


_PLACES = [place_of(period, direction) for period in PERIODS for direction in DIRECTIONS]

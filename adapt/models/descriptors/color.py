"""Colour statistics of an image that JPEG leaves alone, and apart from them those that it destroys.

Generators and cameras make colour differently: it shows in chroma moments and residuals (1808.07276) and in saturation
(1812.08247). JPEG stores chroma at half resolution, so what is said of single pixels of chroma speaks of the encoder.
`describe` therefore keeps to moments, correlations and structure of 4 px and more: measured in
results/color-stability. To be computed on the pixels of a View, before a model's resize; 512 px take about 14 ms of
one core.

Colour space: BT.601 at full range, JPEG's own (ITU-T T.871): Y = 0.299 R + 0.587 G + 0.114 B, Cb = (B - Y) / 1.772,
Cr = (R - Y) / 1.402 with R, G, B and Y in [0, 1], Cb and Cr in [-0.5, 0.5] (no offset). Chroma: hypot(Cb, Cr);
saturation: (max - min) / max of R, G, B, 0 for black.
"""

from typing import Literal

import numpy as np
from PIL import Image

from adapt.models.descriptors.descriptor import Descriptor

_MIX = np.array([[299, 587, 114], [-299, -587, 886], [701, -587, -114]], np.float64)  # 1000 Y, B - Y, R - Y
_UNIT = 255_000 * np.array([[1], [1.772], [1.402]])
_STRIP = 2**13  # pixels at a time: their eight planes of float64 stay in a processor's cache
_FLAT = 1e-12  # variances below it are rounding: 8 bits resolve 1.5e-5
_FAINT = 1e-4  # added to a mean gradient before its logarithm: what the rounding of 8 bits leaves of a 8 px cell

PLANES = ("y", "cb", "cr", "saturation", "chroma")
PAIRS = {"rg": (0, 1), "rb": (0, 2), "gb": (1, 2)}
HUES = 12
NAMES: tuple[str, ...] = (
    *(f"{moment}_{plane}" for plane in PLANES for moment in ("mean", "std", "skew", "kurtosis")),
    *(f"corr_{pair}" for pair in (*PAIRS, "cbcr", "ycb", "ycr")),
    *(f"gradient{scale}_{plane}" for scale in (4, 8, 16) for plane in PLANES[:3]),
    *(f"highpass{scale}_{pair}" for scale in (4, 8) for pair in PAIRS),
    *(f"hue_{degrees:03d}" for degrees in range(0, 360, 360 // HUES)),
    "hue_entropy",
)
FRAGILE_NAMES: tuple[str, ...] = (
    *(f"gradient{scale}_{plane}" for scale in (1, 2) for plane in PLANES[:3]),
    *(f"highpass{scale}_{pair}" for scale in (1, 2) for pair in PAIRS),
)
CHROMA_NAMES: tuple[str, ...] = (  # what a change of luma alone leaves as it is; a saturation is a share of brightness
    *(name for name in NAMES if name.partition("_")[2] in ("cb", "cr", "chroma", "cbcr")),
    *(name for name in NAMES if name.startswith("hue_")),
)


class Colours(Descriptor):
    """The statistics as an encoder: `layer` says which.

    "sound" is `describe`, "chroma" its part without luma (`describe_chroma`), "fragile" `describe_fragile`.
    """

    def __init__(self, layer: Literal["sound", "chroma", "fragile"] = "sound") -> None:
        names, made_by = {
            "sound": (NAMES, describe),
            "chroma": (CHROMA_NAMES, describe_chroma),
            "fragile": (FRAGILE_NAMES, describe_fragile),
        }[layer]
        super().__init__("colour", layer, names, made_by, version=1)


def describe(image: Image.Image) -> np.ndarray:
    """Colour statistics (d,) float32 of an RGB image, in the order of `NAMES`; always finite.

    `mean`, `std`, `skew` and `kurtosis` (excess; both 0 for a constant) of `PLANES`; `corr`: Pearson between two
    planes over pixels (0 if one is constant); `gradientK`: log of the mean |difference| of neighbouring cells of K px;
    `highpassK`: correlation between two planes of these differences, signed, about zero;
    `hue_D`: share of the chroma at angles atan2(Cr, Cb) from D to D + 30 degrees; `hue_entropy`: of these shares,
    from 0 (one hue) to 1 (all alike). An image without chroma has no hue: zeros.
    """
    bands = _bands(image)
    sums, products, hues = _pixel_sums(bands)
    steps = [_steps(cells) for cells in _cells(bands, (4, 8, 16))]
    parts = [_moments(*sums).ravel(), _correlations(*products), *map(_gradients, steps)]
    parts += [*map(_highpass, steps[:2]), _shares(hues)]
    return np.concatenate(parts).astype(np.float32)


def describe_chroma(image: Image.Image) -> np.ndarray:
    """The statistics of `describe` that luma has no part in (`CHROMA_NAMES`), float32: half of the others are luma."""
    return describe(image)[[NAMES.index(name) for name in CHROMA_NAMES]]


def describe_fragile(image: Image.Image) -> np.ndarray:
    """Ablation only: gradients and high-pass correlations at 1 and 2 px (`FRAGILE_NAMES`), float32.

    They say more of the last JPEG encoder than of the picture.
    """
    steps = [_steps(cells) for cells in _cells(_bands(image), (1, 2))]
    return np.concatenate([*map(_gradients, steps), *map(_highpass, steps)]).astype(np.float32)


def ycc(rgb: np.ndarray) -> np.ndarray:
    """R, G, B (3, ...) in 0 to 255 -> Y in [0, 1], Cb and Cr in [-0.5, 0.5], float64 (3, ...).

    Of whole numbers the mixture is exact: grey has a chroma of zero, not of 1e-17.
    """
    mixed = _MIX @ rgb.reshape(3, -1).astype(np.float64)
    mixed /= _UNIT
    return mixed.reshape(rgb.shape)


def _bands(image: Image.Image) -> tuple[Image.Image, ...]:
    if image.mode != "RGB":
        raise ValueError(f"colour is described for an RGB image, not {image.mode}: use read_image")
    return image.split()


def _pixel_sums(bands: tuple[Image.Image, ...]) -> tuple[list[np.ndarray], tuple, np.ndarray]:
    """One pass over the pixels, in strips.

    Returns for each strip and plane the count, the mean, and the sums of squares, cubes and fourth powers about that
    mean, (strips, planes) each; the pixels' number, and over all of them the sum of R, G, B (3,) and of their
    products (3, 3); the chroma in each sector of hue (HUES,).
    """
    flat = [np.asarray(band).ravel() for band in bands]
    parts, hues, total, products = [], np.zeros(HUES + 1), np.zeros(3), np.zeros((3, 3))
    for start in range(0, len(flat[0]), _STRIP):
        rgb = np.stack([band[start : start + _STRIP] for band in flat])
        exact = rgb.astype(np.float64)
        total += exact.sum(axis=1)
        products += np.vecdot(exact[:, None], exact)  # whole numbers below 2**53: exact in any order
        planes = np.empty((len(PLANES), rgb.shape[1]))
        planes[:3] = ycc(exact)
        top = np.maximum(np.maximum(rgb[0], rgb[1]), rgb[2])
        low = np.minimum(np.minimum(rgb[0], rgb[1]), rgb[2])
        np.divide(top - low, np.maximum(top, 1), out=planes[3])
        cb, cr = planes[1:3]
        np.sqrt(cb * cb + cr * cr, out=planes[4])
        turns = np.arctan2(cr, cb) * (0.5 / np.pi) + 0.5  # 0 at 180 degrees
        hues += np.bincount((turns * HUES).astype(np.intp), planes[4], HUES + 1)
        mean = planes.mean(axis=1)
        planes -= mean[:, None]
        square = planes * planes
        powers = (np.vecdot(a, b) for a, b in ((planes, planes), (planes, square), (square, square)))
        parts.append((np.full(len(PLANES), rgb.shape[1]), mean, *powers))
    hues[0] += hues[HUES]  # 180 degrees come out as either end
    hues = np.roll(hues[:HUES], HUES // 2)
    return [np.array(part) for part in zip(*parts, strict=True)], (len(flat[0]), total, products), hues


def _moments(count: np.ndarray, mean: np.ndarray, m2: np.ndarray, m3: np.ndarray, m4: np.ndarray) -> np.ndarray:
    """Mean, deviation, skewness and excess kurtosis (planes, 4) from the sums (strips, planes) of all strips."""
    n = count.sum(axis=0)
    centre = (count * mean).sum(axis=0) / n
    d = mean - centre  # binomial expansion of ((x - mean) + d) ** k, summed
    m4 = (m4 + 4 * d * m3 + 6 * d**2 * m2 + count * d**4).sum(axis=0) / n
    m3 = (m3 + 3 * d * m2 + count * d**3).sum(axis=0) / n
    m2 = (m2 + count * d**2).sum(axis=0) / n
    varied = m2 > _FLAT
    m2 = np.where(varied, m2, 1)
    shape = [np.sqrt(m2), m3 / m2**1.5, m4 / m2**2 - 3]
    return np.stack([centre, *(np.where(varied, value, 0) for value in shape)], axis=1)


def _correlations(count: int, total: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Pearson over pixels: RG, RB, GB, CbCr, YCb, YCr. In Python's own integers: a constant is known as one."""
    total, products = (np.vectorize(int, otypes=[object])(sums) for sums in (total, products))
    rgb = count * products - np.outer(total, total)
    mix = _MIX.astype(int).astype(object)
    other = mix @ rgb @ mix.T
    pairs = [(rgb, *pair) for pair in PAIRS.values()] + [(other, *pair) for pair in ((1, 2), (0, 1), (0, 2))]
    found = [(float(c[a, b]), float(c[a, a]) ** 0.5 * float(c[b, b]) ** 0.5) for c, a, b in pairs]
    return np.array([covariance / deviations if deviations else 0.0 for covariance, deviations in found])


def _cells(bands: tuple[Image.Image, ...], scales: tuple[int, ...]) -> list[np.ndarray]:
    """For each scale R, G, B (3, h, w) of cells of about so many px a side, as many as fit best.

    A cell is a mean under a triangle that reaches to the centres of its neighbours: on photographs at quality 40 its
    chroma drifts a fifth less than that of square blocks, and nearly the same wherever the JPEG grid lies.
    """
    cells: list[list[np.ndarray]] = [[] for _ in scales]
    for band in bands:  # one after the other: a float copy of a large image is large
        plane = band.convert("F")  # Pillow would round the means of an 8-bit plane to 8 bits
        for found, scale in zip(cells, scales, strict=True):
            width, height = (max(1, round(length / scale)) for length in plane.size)
            found.append(np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)))
    return [np.stack(planes) for planes in cells]


def _steps(cells: np.ndarray) -> np.ndarray:
    """Differences (3, m) of horizontal and vertical neighbours, in levels; a single zero if there are none."""
    steps = [np.diff(cells.astype(np.float64), axis=axis).reshape(3, -1) for axis in (1, 2)]
    return np.concatenate([*steps, np.zeros((3, 1))] if cells[0].size == 1 else steps, axis=1)


def _gradients(steps: np.ndarray) -> np.ndarray:
    """Log of the mean |difference| of Y, Cb, Cr."""
    return np.log(np.abs(ycc(steps)).mean(axis=1) + _FAINT)


def _highpass(steps: np.ndarray) -> np.ndarray:
    """Correlations RG, RB, GB of the differences about zero: a mirrored picture has the same."""
    products = np.vecdot(steps[:, None], steps) / steps.shape[1] / 255**2
    found = []
    for a, b in PAIRS.values():
        flat = min(products[a, a], products[b, b]) < _FLAT
        found.append(0.0 if flat else products[a, b] / (products[a, a] * products[b, b]) ** 0.5)
    return np.array(found)


def _shares(hues: np.ndarray) -> np.ndarray:
    """Chroma in each sector (HUES,) -> its shares and their entropy, in [0, 1]."""
    total = hues.sum()
    shares = hues / total if total > 0 else hues
    some = shares[shares > 0]
    return np.append(shares, -(some * np.log(some)).sum() / np.log(HUES) + 0.0)

"""What the pixels of one image say of how it was made: a few numbers for each factor, whatever file holds them.

`FAULTS` are about how pictures were stored or collected; a detector that learns one of them has learnt nothing of
generation. `TRACES` may be just what a generator leaves. Both classes of factor are measured alike.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from adapt.audit.compression import compression
from adapt.data.manifest import Manifest

FAULTS = {  # factor -> columns of `Seen.numbers`, of which a tree may use all
    "past quality": ("past_quality",),
    "blocking grid": ("grid_step", "grid_column", "grid_row"),
    "quantised histogram": ("empty_levels",),
    "lossless size": ("lossless_bytes",),
}
TRACES = {
    "resampling": ("resampled_across", "period_across", "resampled_down", "period_down"),
    "clipping": ("at_0", "at_255"),
    "channels": ("red_green", "green_blue", "red_noise", "blue_noise", "chroma_noise", "chroma_detail"),
    "noise": ("noise", "noise_of_even"),
    "sharpness": ("laplacian", "slope", "fine_share"),
}
FIXED, THUMBNAIL = "fixed pattern", "thumbnail"  # faults too, told by `adapt.audit.probes`
SIDE = 512  # px of the middle that is measured at most
THUMB = 32  # px
GAPS = 0.03  # share of empty levels, below which a drawing or a sky may have them by itself
LEAST = 40  # images of a generator that are measured
CORNER, WHOLE, BLUR = 24, 48, 5  # px: of each corner, of the whole picture made small, of the mean that is taken off
IN_CORNERS = 4 * CORNER * CORNER * 3  # entries of `Seen.places` that are about the corners: the first ones


@dataclass(frozen=True)
class Seen:
    """One image: `numbers` by column; `thumbnail` (t,) float32 and `places` (p,) int8 for the two probes."""

    numbers: dict[str, float]
    thumbnail: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Sample:
    """The images of a manifest whose pixels were measured: m entries each."""

    rows: np.ndarray  # their rows in the manifest, int64
    numbers: dict[str, np.ndarray]  # (m,) float64, of `FAULTS` and `TRACES`
    thumbnails: np.ndarray  # (m, t) float32
    places: np.ndarray  # (m, p) int8


def chosen(manifest: Manifest, count: int, seed: int) -> np.ndarray:
    """Whether each row (n,) is measured: whole groups, drawn so that every generator of every set has its share.

    Each of the k generators (real among them) of the sets has count / k images, at least `LEAST`, or all that there
    are. Members come along with their groups, so that there may be more than `count`.
    """
    keys = np.char.add(np.char.add(manifest["set"].astype(str), "\0"), manifest["generator"].astype(str))
    _, cell, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    _, group = np.unique(manifest["group"].astype(str), return_inverse=True)
    place = np.random.default_rng(seed).permutation(group.max() + 1)[group]
    order = np.lexsort((place, cell))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return np.isin(group, group[rank < max(LEAST, count // len(sizes))])


def look(image: Image.Image) -> Seen:
    """Measure an RGB image of at least 16 px a side; 20 ms at 224 px, 60 ms from 512 px on."""
    rgb = np.asarray(image)
    middle = _middle(rgb)
    luma = middle.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    traces = compression(middle)
    numbers = {"past_quality": traces.quality, "grid_step": traces.step}
    numbers |= {"grid_column": traces.column, "grid_row": traces.row, "lossless_bytes": _lossless(middle)}
    numbers |= _histogram(middle) | _channels(middle) | _noise(luma) | _sharpness(luma)
    for name, lines in (("across", luma), ("down", luma.T)):
        numbers[f"resampled_{name}"], numbers[f"period_{name}"] = resampling(lines)
    return Seen(numbers, _thumbnail(image), _places(image, rgb))


def _middle(rgb: np.ndarray) -> np.ndarray:
    """At most `SIDE` x `SIDE` px of the middle, beginning at multiples of 8: phases of a grid stay what they are."""
    top, left = ((length - min(length, SIDE)) // 16 * 8 for length in rgb.shape[:2])
    return np.ascontiguousarray(rgb[top : top + SIDE, left : left + SIDE])


def _lossless(rgb: np.ndarray) -> float:
    """Logarithm of the bytes per pixel that a PNG needs: detail, noise and what compression took of them."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", compress_level=3)
    return math.log(len(buffer.getvalue()) / (rgb.shape[0] * rgb.shape[1]))


def _histogram(rgb: np.ndarray) -> dict[str, float]:
    """Shares at both ends; share of levels without pixels among those whose neighbours have many.

    A level with 32 pixels on the mean of the 8 next to it is empty by chance hardly ever, even where each pixel stands
    four times: what was stretched, or has a palette, leaves gaps.
    """
    counts = np.stack([np.bincount(rgb[..., channel].ravel(), minlength=256) for channel in range(3)])
    padded = np.pad(counts, ((0, 0), (4, 4)), "reflect")
    beside = np.lib.stride_tricks.sliding_window_view(padded, 9, axis=1).sum(axis=2) - counts
    told = beside >= 32 * 8
    gaps = float((counts < 0.05 * beside / 8)[told].mean()) if told.any() else 0.0
    gaps = gaps if gaps > GAPS else 0.0
    return {"at_0": float((rgb == 0).mean()), "at_255": float((rgb == 255).mean()), "empty_levels": gaps}


def _diagonal(plane: np.ndarray) -> np.ndarray:
    """Diagonal detail (HH) of an orthonormal Haar wavelet, of (h, w) or (h, w, c): half the size."""
    h, w = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    p = plane[:h, :w]
    return (p[::2, ::2] - p[1::2, ::2] - p[::2, 1::2] + p[1::2, 1::2]) / 2


def _channels(rgb: np.ndarray) -> dict[str, float]:
    """Correlation of the channels' fine detail, their noise over that of green, and how fine chroma is."""
    plane = rgb.astype(np.float32)
    detail = _diagonal(plane).reshape(-1, 3)
    deviation = detail.std(axis=0) + 0.05
    shared = (detail - detail.mean(axis=0)).T @ (detail - detail.mean(axis=0)) / len(detail)
    shared /= np.outer(deviation, deviation)
    chroma = plane[..., (0, 2)] - plane[..., 1:2]
    h, w = chroma.shape[0] // 2 * 2, chroma.shape[1] // 2 * 2
    half = chroma[:h, :w].reshape(h // 2, 2, w // 2, 2, 2).mean(axis=(1, 3))
    fine, coarse = _diagonal(chroma).std() + 0.05, _diagonal(half).std() + 0.05
    return {
        **{"red_green": float(shared[0, 1]), "green_blue": float(shared[1, 2])},
        **{"red_noise": math.log(deviation[0] / deviation[1]), "blue_noise": math.log(deviation[2] / deviation[1])},
        **{"chroma_noise": math.log(fine / deviation[1]), "chroma_detail": math.log(fine / coarse)},
    }


def _noise(luma: np.ndarray) -> dict[str, float]:
    """Logarithm of the noise: median absolute deviation of the diagonal detail (Donoho 1995), and in even places."""
    detail = np.abs(_diagonal(luma))
    h, w = detail.shape[0] // 4 * 4, detail.shape[1] // 4 * 4
    blocks = detail[:h, :w].reshape(h // 4, 4, w // 4, 4).mean(axis=(1, 3))
    median, even = float(np.median(detail)) / 0.6745, float(np.quantile(blocks, 0.1))
    return {"noise": math.log(median + 0.05), "noise_of_even": math.log(even + 0.05)}


def _sharpness(luma: np.ndarray) -> dict[str, float]:
    """Median size of the Laplacian over the deviation, slope of the radial power spectrum, share of fine detail."""
    laplacian = 4 * luma[1:-1, 1:-1] - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]
    sizes = float(np.median(np.abs(laplacian)))
    window = np.outer(np.hanning(luma.shape[0]), np.hanning(luma.shape[1])).astype(np.float32)
    power = np.abs(np.fft.rfft2((luma - luma.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(luma.shape[0])[:, None], np.fft.rfftfreq(luma.shape[1])[None])
    ring = np.minimum((radius * 32).astype(int), 16)  # 1/32 cycle per px each
    mean = np.bincount(ring.ravel(), power.ravel(), 17) / np.maximum(np.bincount(ring.ravel(), minlength=17), 1)
    at = np.arange(2, 15)
    slope = np.polyfit(np.log(at + 0.5), np.log(mean[at] + 1e-3), 1)[0]
    share = math.log((mean[10:16].mean() + 1e-3) / (mean[2:6].mean() + 1e-3))
    return {"laplacian": math.log(sizes + 0.05), "slope": float(slope), "fine_share": share}


def resampling(luma: np.ndarray) -> tuple[float, float]:
    """How periodic interpolation is across the columns of luma (h, w), and its frequency in cycles per px.

    The mean size of the second difference repeats with the period of an enlargement (Gallagher 2005,
    doi:10.1109/CRV.2005.66). The first number is the logarithm of the highest peak of its spectrum over the median;
    the frequency is 0 where no peak stands out. 1/8 and 3/8 are left to the blocking grid. Shrinking leaves no peak,
    nor does a symmetrical enlargement by exactly 2, whose two phases are mirror images: see the factor sharpness.
    """
    if luma.shape[1] < 48:
        return 0.0, 0.0  # too few columns for a spectrum
    second = np.abs(2 * luma[:, 1:-1] - luma[:, :-2] - luma[:, 2:])
    mean = np.minimum(second, 4 * second.mean() + 1e-3).mean(axis=0)
    size = np.abs(np.fft.rfft((mean - mean.mean()) * np.hanning(len(mean))))
    frequency = np.fft.rfftfreq(len(mean))
    near_grid = (np.abs(frequency[:, None] - np.array([1 / 8, 3 / 8])) < 2.5 / len(mean)).any(axis=1)
    looked = (frequency > 0.1) & ~near_grid
    best = int(np.where(looked, size, -1).argmax())
    peak = math.log((size[best] + 1e-6) / (float(np.median(size[looked])) + 1e-6))
    return peak, float(frequency[best]) if peak > math.log(6) else 0.0


def _thumbnail(image: Image.Image) -> np.ndarray:
    """Colours on 8 x 8 fields of a 32 px thumbnail, and its spectrum up to 3/8 cycle per px: (204,) float32."""
    small = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX), np.float32) / 255
    fields = small.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)).ravel()
    luma = small @ np.array([0.299, 0.587, 0.114], np.float32)
    power = np.abs(np.fft.rfft2(luma - luma.mean())) ** 2
    radius = np.hypot(np.fft.fftfreq(THUMB)[:, None], np.fft.rfftfreq(THUMB)[None])
    ring = np.minimum((radius * THUMB).astype(int), 13)
    spectrum = np.bincount(ring.ravel(), power.ravel(), 14)[1:13]
    return np.concatenate([fields, np.log(spectrum + 1e-4)]).astype(np.float32)


def _places(image: Image.Image, rgb: np.ndarray) -> np.ndarray:
    """Fine structure by place: the four corners, then the whole picture at 48 px; (4 x 24 x 24 + 48 x 48) x 3 int8.

    The mean of 5 x 5 px is taken off, so that neither brightness nor topic counts; in corners also what repeats every
    8 px, which is no mark: a grid and the lattice of a decoder have factors of their own.
    """
    from scipy.ndimage import uniform_filter

    pad = [(0, max(0, CORNER - length)) for length in rgb.shape[:2]]
    full = np.pad(rgb, [*pad, (0, 0)], "edge") if any(after for _, after in pad) else rgb
    ends = (slice(0, CORNER), slice(-CORNER, None))
    found = []
    for window in [full[high, wide] for high in ends for wide in ends]:
        fine = window.astype(np.float32) - uniform_filter(window.astype(np.float32), (BLUR, BLUR, 0))
        tiles = fine.reshape(CORNER // 8, 8, CORNER // 8, 8, 3)
        found.append((tiles - tiles.mean(axis=(0, 2), keepdims=True)).reshape(fine.shape))
    small = np.asarray(image.resize((WHOLE, WHOLE), Image.Resampling.BOX), np.float32)
    found.append(small - uniform_filter(small, (BLUR, BLUR, 0)))
    return np.concatenate([part.ravel() for part in found]).round().clip(-127, 127).astype(np.int8)


def place_of(entry: int) -> str:
    """Where an entry of `Seen.places` lies, in words."""
    if entry < IN_CORNERS:
        corner, at = divmod(entry, CORNER * CORNER * 3)
        row, column = divmod(at // 3, CORNER)
        high, wide = ("upper", "lower")[corner // 2], ("left", "right")[corner % 2]
        row, column = (CORNER - 1 - row if corner // 2 else row), (CORNER - 1 - column if corner % 2 else column)
        return f"in the {high} {wide} corner, {column} px and {row} px from its sides"
    row, column = divmod((entry - IN_CORNERS) // 3, WHOLE)
    right, down = (round(100 * (at + 0.5) / WHOLE) for at in (column, row))
    return f"at {right} % of the width and {down} % of the height"

"""What an earlier JPEG compression left in pixels, whatever file holds them now: its 8 x 8 grid and its quality.

A compression leaves a step at the edges of its blocks, and coefficients that lie near multiples of its quantisers
(Fan and de Queiroz 2003, doi:10.1109/TIP.2002.807361). Both survive a lossless file and a crop, not a change of size.
"""

import functools
from typing import NamedTuple

import numpy as np

from adapt.data.jpeg import jpeg_tables

NEVER = 101.0  # the past quality of what shows no compression: above every real one
BIN, REACH = 0.125, 96  # width of a histogram's bins and the largest coefficient that is counted
NOISE, STRAY = 0.42, 0.1  # deviation of a coefficient from its multiple after rounding to 8 bits; share of others
FEWEST = 8  # nats of evidence for a quality, below which an image counts as never compressed
SURE = 4  # standard errors, across and down, from which a grid is seen
PHASES = 3  # of 64, whose coefficients are looked at closely
BLOCKS, FEW_BLOCKS = 4096, 64  # that are transformed at most, of those phases and of each of the 64


class Compressed(NamedTuple):
    """Traces of one image. Phases are 0 to 7: the column or row, modulo 8, at which a block begins; -1: no grid."""

    step: float  # mean difference across the strongest column (row) phase beyond the next one, over the mean of all;
    # 0 where it is not surely there: how far an uncertain one strays says how noisy a picture is, nothing of a grid
    column: float
    row: float
    quality: float  # 1 to 100, of the nearest IJG tables; `NEVER`: none


def compression(rgb: np.ndarray) -> Compressed:
    """Grid and past quality of a picture (h, w, 3) uint8; h and w at least 16."""
    luma = rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    # One channel at its limit moves the luma, and with it every coefficient of the block.
    luma_or_nan = np.where(((rgb == 0) | (rgb == 255)).any(axis=2), np.float32(np.nan), luma)
    across, down = _profile(luma), _profile(luma.T)
    steps = [_step(profile) for profile in (across, down)]
    candidates = {(0, 0), (_strongest(across), _strongest(down)), *_emptiest(luma_or_nan)}
    evidence, quality, (column, row) = max((*_quality(luma_or_nan, *phases), phases) for phases in candidates)
    found, seen = evidence >= FEWEST, min(excess for _, excess in steps) > SURE
    if not found:
        column, row = (_strongest(across), _strongest(down)) if seen else (-1, -1)
    return Compressed(sum(size for size, _ in steps) / 2 if seen else 0.0, column, row, quality if found else NEVER)


def _profile(luma: np.ndarray) -> np.ndarray:
    """(8, n): how much the difference across each column edge exceeds those beside it, by the phase of the edge.

    In units of the mean difference. A row's share is held off by three times that, so that no contour decides.
    """
    difference = np.abs(np.diff(luma, axis=1))
    unit = difference.mean() + 1e-3
    excess = difference[:, 1:-1] - (difference[:, :-2] + difference[:, 2:]) / 2
    edges = (excess / unit).clip(-3, 3).mean(axis=0)  # entry j: the edge before column j + 2
    edges = np.concatenate([[np.nan] * 2, edges, [np.nan] * (-(len(edges) + 2) % 8)])
    return edges.reshape(-1, 8).T


def _strongest(profile: np.ndarray) -> int:
    return int(np.nanmean(profile, axis=1).argmax())


def _emptiest(luma: np.ndarray) -> list[tuple[int, int]]:
    """The phases with most coefficients next to 0: quantisation at one phase leaves them, at others it does not."""
    blocks = np.stack([_blocks(luma, column, row, FEW_BLOCKS) for row in range(8) for column in range(8)])
    empty = (np.abs(blocks @ _transform()) < NOISE).mean(axis=(1, 2))
    return [(int(phase) % 8, int(phase) // 8) for phase in empty.argsort()[::-1][:PHASES]]


def _blocks(luma: np.ndarray, column: int, row: int, most: int) -> np.ndarray:
    """(n, 64) float32: blocks that begin at this phase, `most` of them; all phases give equally many."""
    high, wide = (luma.shape[0] - 7) // 8, (luma.shape[1] - 7) // 8
    grid = np.lib.stride_tricks.sliding_window_view(luma, (8, 8))[row::8, column::8][:high, :wide]
    chosen = np.linspace(0, high * wide - 1, min(most, high * wide)).astype(int)
    return grid[chosen // wide, chosen % wide].reshape(-1, 64).astype(np.float32)


@functools.cache
def _transform() -> np.ndarray:
    """(64, 64) orthonormal: a block of pixels, times this, is its DCT coefficients."""
    from scipy.fft import dct

    one = dct(np.eye(8), axis=0, norm="ortho")
    return np.kron(one, one).T.astype(np.float32)


def _step(profile: np.ndarray) -> tuple[float, float]:
    """Lead of the strongest phase over the next one, by itself and in standard errors.

    The lead, not the height: enlargement by 2 or 4 lifts every second or fourth phase alike.
    """
    means = np.nanmean(profile, axis=1)
    first, second = means.argsort()[::-1][:2]
    spread = np.nanstd(profile - means[:, None]) / np.sqrt(profile.shape[1] / 2)
    lead = float(means[first] - means[second])
    return lead, lead / (float(spread) + 1e-9)


def _quality(luma: np.ndarray, column: int, row: int) -> tuple[float, float]:
    """Evidence (nats) for a compression with its blocks at this phase, and its quality.

    For a quantiser s the log likelihood ratio of a coefficient near a multiple of s against an even spread over s is
    summed; what lies in the bin of 0 only speaks against it, as smooth pictures have small coefficients anyway.
    """
    blocks = _blocks(luma, column, row, BLOCKS)
    blocks = blocks[np.ptp(blocks, axis=1) >= 1]  # not NaN, not even
    if len(blocks) < 4:
        return 0.0, NEVER
    size = np.abs((blocks - 128) @ _transform())
    place = (size / BIN).astype(np.int64) + np.arange(64) * (int(REACH / BIN) + 1)
    counts = np.bincount(place[size < REACH], minlength=64 * (int(REACH / BIN) + 1)).reshape(64, -1)[:, :-1]
    of_step = counts @ _ratios()  # (64, steps)
    tables = _tables()
    evidence = of_step[np.arange(64), np.minimum(tables, of_step.shape[1]) - 1].sum(axis=1)
    best = int(evidence.argmax())
    free, nearest = _own_tables(of_step)
    return (float(evidence[best]), best + 1.0) if evidence[best] >= free else (free, nearest)


def _own_tables(of_step: np.ndarray) -> tuple[float, float]:
    """The same for tables of any kind (cameras, Photoshop, mozjpeg): each frequency chooses, which costs evidence."""
    best = of_step.argmax(axis=1)
    gain = of_step.max(axis=1) - np.log(of_step.shape[1]) - 2
    told = gain > 0
    if told.sum() < 4:
        return 0.0, NEVER
    distance = np.abs(np.log(_tables()[:, told] / (best[told] + 1)))
    return float(gain[told].sum()), float(np.median(distance, axis=1).argmin() + 1)


@functools.cache
def _tables() -> np.ndarray:
    """(100, 64): the luma quantisers of the IJG's qualities 1 to 100."""
    return np.stack([jpeg_tables(quality)[0] for quality in range(1, 101)])


@functools.cache
def _ratios() -> np.ndarray:
    """(bins, steps): log likelihood ratio of a coefficient's size for the quantisers 1 to 96."""
    size = ((np.arange(int(REACH / BIN)) + 0.5) * BIN)[:, None]
    step = np.arange(1, 97)[None]
    away = size - step * np.round(size / step)
    near = np.exp(-0.5 * (away / NOISE) ** 2) / (NOISE * np.sqrt(2 * np.pi))
    ratio = np.log((1 - STRAY) * near * step + STRAY)
    ratio[:, 0] = 0  # whole numbers: no quantisation that rounding to 8 bits would leave
    return np.where(size <= step / 2, np.minimum(ratio, 0), ratio)

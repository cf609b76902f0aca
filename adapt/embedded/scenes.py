"""Random scenes: occluding shapes with power-law sizes (the dead-leaves model), textures, shading and light.

A scene is linear light before any camera. Its words are what a caption can name: colours, ground, texture.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

COLOURS = {  # linear red, green, blue
    "red": (0.55, 0.04, 0.04),
    "orange": (0.75, 0.22, 0.03),
    "yellow": (0.75, 0.58, 0.05),
    "green": (0.06, 0.35, 0.07),
    "cyan": (0.08, 0.50, 0.55),
    "blue": (0.05, 0.12, 0.55),
    "purple": (0.25, 0.06, 0.42),
    "pink": (0.80, 0.30, 0.45),
    "brown": (0.18, 0.08, 0.03),
    "black": (0.02, 0.02, 0.02),
    "white": (0.80, 0.80, 0.78),
    "gray": (0.22, 0.22, 0.22),
}
GROUNDS = ("plain", "cloudy", "striped", "checkered", "speckled")
TEXTURES = ("smooth", "striped", "spotted", "rough")
SMALLEST = 1.2  # radius of the smallest shape, pixels


@dataclass(frozen=True)
class Scene:
    """`light`: linear (3, size, size), about 0 to 1; `words`: colour, texture, ground, ground_colour."""

    light: np.ndarray
    words: dict[str, str]


@lru_cache(maxsize=1)
def _noise_tiles() -> np.ndarray:
    """Sixteen 256 px tiles of noise, mean 0, variance 1, amplitude 1/f^p with p from 0.4 (rough) to 1.5."""
    rng = np.random.default_rng(20)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
    frequency[0, 0] = np.inf
    tiles = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((256, 256))) * frequency**-p)
             for p in np.linspace(0.4, 1.5, 16)]  # fmt: skip
    return np.stack([(tile - tile.mean()) / tile.std() for tile in tiles])


def _noise(rng: np.random.Generator, height: int, width: int, rough: bool) -> np.ndarray:
    tile = rng.integers(0, 6) if rough else rng.integers(11, 16)
    top, left = rng.integers(0, 256 - height), rng.integers(0, 256 - width)
    return _noise_tiles()[tile, top : top + height, left : left + width]


def _pattern(rng: np.random.Generator, kind: str, y: np.ndarray, x: np.ndarray) -> np.ndarray | float:
    """Multiplier of the light for one texture; y, x are pixel coordinates (height, 1) and (1, width)."""
    shape = (y.shape[0], x.shape[1])
    contrast = rng.uniform(0.2, 0.5)
    if kind in ("smooth", "plain"):
        return 1 + 0.03 * _noise(rng, *shape, rough=False)
    if kind in ("rough", "speckled"):
        return np.clip(1 + rng.uniform(0.08, 0.3) * _noise(rng, *shape, rough=True), 0.1, 2)
    if kind == "cloudy":
        return np.clip(1 + rng.uniform(0.2, 0.4) * _noise(rng, *shape, rough=False), 0.1, 2)
    period = rng.uniform(3, 12)
    angle = rng.uniform(0, np.pi)
    u = (y * np.sin(angle) + x * np.cos(angle)) * (2 * np.pi / period)
    if kind == "striped":
        return 1 + contrast * np.clip(2 * np.sin(u), -1, 1)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period)
    product = np.sin(u) * np.sin(v)
    if kind == "checkered":
        return 1 + contrast * np.clip(4 * product, -1, 1)
    return 1 - 1.5 * contrast * np.clip(6 * (np.abs(product) - 0.6), 0, 1)  # spotted


def _paint(
    rng: np.random.Generator, light: np.ndarray, centre: np.ndarray, radius: float, colour: np.ndarray, texture: str
) -> None:
    """Put one shape over the light, with soft edges of one pixel and a shading across it."""
    size = light.shape[1]
    top, left = (max(int(c - radius) - 1, 0) for c in centre)
    bottom, right = (min(int(c + radius) + 2, size) for c in centre)
    if top >= bottom or left >= right:
        return
    y, x = np.arange(top, bottom)[:, None] - centre[0], np.arange(left, right)[None] - centre[1]
    angle, squeeze, form = rng.uniform(0, np.pi), rng.uniform(0.5, 1), rng.integers(4)
    inner = radius * (0.7 if form == 1 else 1.0)
    u = (x * np.cos(angle) + y * np.sin(angle)) / inner
    v = (y * np.cos(angle) - x * np.sin(angle)) / (inner * squeeze)
    if form == 1:
        inside = 1 - np.maximum(np.abs(u), np.abs(v))
    elif form == 2:
        inside = 1 - np.abs(u) - np.abs(v)
    else:
        inside = 1 - np.sqrt(u * u + v * v)
    alpha = np.clip(inside * inner * squeeze + 0.5, 0, 1)
    shade = 1 + rng.uniform(-0.35, 0.35) * u + rng.uniform(-0.35, 0.35) * v
    value = np.clip(shade * _pattern(rng, texture, y, x), 0.05, 2)
    region = light[:, top:bottom, left:right]
    region += alpha * (colour[:, None, None] * value - region)


def _colour(rng: np.random.Generator, name: str) -> np.ndarray:
    """The named colour, a little off."""
    return np.clip(np.array(COLOURS[name]) * rng.uniform(0.75, 1.25) * rng.uniform(0.9, 1.1, 3), 0, 1)


def draw_scene(rng: np.random.Generator, size: int) -> Scene:
    """One scene, `size` pixels a side (at most 200): ground, clutter, a large subject, clutter before it."""
    colour, ground_colour = rng.choice(list(COLOURS), 2, replace=False)
    ground, texture = rng.choice(GROUNDS), rng.choice(TEXTURES)
    y, x = np.arange(size)[:, None], np.arange(size)[None]
    light = _colour(rng, ground_colour)[:, None, None] * _pattern(rng, ground, y, x)
    light = np.broadcast_to(light, (3, size, size)).copy()

    names = list(COLOURS)
    count = int(rng.integers(12, 60) * (size / 96) ** 2)
    largest = size / 7
    # radii follow r^-3 between SMALLEST and largest: the exponent of a scale-invariant dead-leaves image
    radii = (SMALLEST**-2 - rng.uniform(size=count) * (SMALLEST**-2 - largest**-2)) ** -0.5
    centres = rng.uniform(0, size, (count, 2))
    before = int(count * 0.75)
    for index in range(count + 1):
        if index == before:
            middle = size / 2 + rng.uniform(-0.12, 0.12, 2) * size
            _paint(rng, light, middle, rng.uniform(0.2, 0.32) * size, _colour(rng, colour), texture)
        if index < count:
            leaf = rng.choice(TEXTURES) if radii[index] > 4 else "smooth"
            _paint(rng, light, centres[index], radii[index], _colour(rng, names[rng.integers(len(names))]), leaf)

    slope = rng.uniform(-0.35, 0.35, 2)
    light *= 1 + slope[0] * (y / size - 0.5) + slope[1] * (x / size - 0.5)
    light *= rng.uniform(0.7, 1.15)
    words = {
        "colour": str(colour),
        "texture": str(texture),
        "ground": str(ground),
        "ground_colour": str(ground_colour),
    }
    return Scene(np.clip(light, 0.002, 1), words)

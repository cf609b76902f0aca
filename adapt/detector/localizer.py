"""A localiser on images of any size: native tiles through the backbone, stitched, then read as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from adapt.detector.detector import Detector, load_detector
from adapt.errors import Refusal
from adapt.models.heads.map_head import MapHead
from adapt.models.towers.backbones import Backbone

AT_ONCE = 64  # tiles in the backbone while nothing is learnt
CELLS = 2**20  # of one image; a larger one gets a coarser map, so that memory stays bounded
STRIP = 256  # rows of pixels that a map is spread over at once


@dataclass(frozen=True)
class Tiling:
    """How images of any size become tiles of `size` pixels with `side` cells a side.

    A call makes of an RGB image the pixels (3, h, w) uint8, continued by reflection on the right and below to whole
    cells and at least a whole tile.
    """

    size: int
    side: int

    dtype = torch.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the smallest that a call returns."""
        return (3, self.size, self.size)

    @property
    def fine(self) -> int:
        """Pixels that a cell is wide and high, where an image is not too large."""
        return self.size // self.side

    def pitch(self, height: int, width: int) -> int:
        """Pixels that a cell of an image of this size is wide and high; the same once the image is continued."""
        pitches = [self.fine * k for k in range(1, self.side + 1) if self.side % k == 0]
        fits = (p for p in pitches if self._whole(height, p) * self._whole(width, p) <= CELLS * p**2)
        return next(fits, self.size)

    def _whole(self, length: int, pitch: int) -> int:
        return max(self.size, -(-length // pitch) * pitch)

    def spots(self, height: int, width: int) -> list[tuple[int, int]]:
        """Top and left of the tiles of a continued image, side by side, the last ones flush with the border."""
        return [(top, left) for top in _starts(height, self.size) for left in _starts(width, self.size)]

    def count(self, height: int, width: int) -> int:
        """Tiles, and so encoder passes, of an image of this size before it is continued."""
        pitch = self.pitch(height, width)
        return len(self.spots(self._whole(height, pitch), self._whole(width, pitch)))

    def __call__(self, image: Image.Image) -> Tensor:
        pixels, pitch = np.asarray(image), self.pitch(image.height, image.width)
        more = [self._whole(length, pitch) - length for length in pixels.shape[:2]]
        if any(more):
            pixels = np.pad(pixels, ((0, more[0]), (0, more[1]), (0, 0)), mode="symmetric")
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)

    def crop(self, asked: int | None) -> int:
        """Side of training crops: as asked, or one tile; refuses less than that, and parts of cells."""
        side = asked if asked is not None else self.size
        if side < self.size or side % self.fine:
            raise Refusal(f"--crop {side}: give a multiple of {self.fine} px, at least the tile of {self.size}")
        return side


class Localizer(nn.Module):
    """Images (n, 3, h, w) uint8, as `tiling` makes them -> map (n, h', w'), extents (n, 3), tools (n, t): logits.

    Wraps a Detector with a MapHead: the same folder, saved and loaded as any other.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        if not isinstance(detector.head, MapHead):
            raise Refusal("this detector has no map of where: train one with recipes/localize.py")
        self.tiling = tiling_of(detector.backbone)

    @property
    def head(self) -> MapHead:
        head = self.detector.head
        assert isinstance(head, MapHead)  # any other was refused
        return head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.head.read(self.cells(images))

    def cells(self, images: Tensor) -> Tensor:
        """Cells (n, hidden, h', w'): of the tiles at `spots`, side by side; means where they lap."""
        n, _, height, width = images.shape
        size, pitch, device = self.tiling.size, self.tiling.pitch(height, width), self.detector.backbone.device
        side, coarser = size // pitch, pitch // self.tiling.fine
        spots = self.tiling.spots(height, width)
        total = torch.zeros(n, self.head.hidden, height // pitch, width // pitch, device=device)
        laps = torch.zeros(total.shape[2:], device=device)
        each = len(spots) if torch.is_grad_enabled() else max(1, AT_ONCE // n)
        for first in range(0, len(spots), each):
            some = spots[first : first + each]
            tiles = torch.cat([images[:, :, top : top + size, left : left + size] for top, left in some]).to(device)
            made = self.head.cells(self.detector.backbone.patches(tiles), tiles)
            made = nn.functional.avg_pool2d(made, coarser) if coarser > 1 else made
            for (top, left), cells in zip(some, made.split(n), strict=True):
                at = (..., slice(top // pitch, top // pitch + side), slice(left // pitch, left // pitch + side))
                total[at] = total[at] + cells
                laps[at] += 1
        return total / laps


def tiling_of(backbone: Backbone) -> Tiling:
    """Tiles for the patch tokens of the backbone's layer; refuses tokens that make no map."""
    size = backbone.preprocess.size
    with torch.no_grad():
        grids = backbone.patches(torch.zeros(1, 3, size, size, device=backbone.device))
    side = max(grid.shape[-1] for grid in grids)
    if sum(grid.shape[1] for grid in grids) != backbone.dim or size % side:
        raise Refusal(f"layer {backbone.layer!r}: its patches make no map; use blockK or last, without _both")
    return Tiling(size, side)


class Found(NamedTuple):
    """What a localiser says of one image."""

    map: np.ndarray  # (h', w') float32 logits of cells
    pitch: int  # pixels a cell
    extent: np.ndarray  # (3,) logits
    tools: np.ndarray  # (t,) logits
    fake: float  # logit of "by a generator"


@torch.no_grad()
def locate(localizer: Localizer, images: Tensor) -> list[Found]:
    """What is found in each of some images of equal size, as its `tiling` made them."""
    maps, extents, tools = localizer(images)
    fake, pitch = localizer.head.fake(tools).tolist(), localizer.tiling.pitch(*images.shape[2:])
    arrays = [values.float().cpu().numpy() for values in (maps, extents, tools)]
    return [Found(arrays[0][i], pitch, arrays[1][i], arrays[2][i], fake[i]) for i in range(len(images))]


def strips(cells: np.ndarray, pitch: float, height: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, logits (rows, width)) of a map over the pixels of its image: bilinear between centres of cells.

    For a smaller or larger picture of the image `pitch` is the width of a cell in its pixels.
    """
    left, right, across = _between(np.arange(width), pitch, cells.shape[1])
    for first in range(0, height, STRIP):
        above, below, down = _between(np.arange(first, min(height, first + STRIP)), pitch, cells.shape[0])
        rows = cells[above] * (1 - down)[:, None] + cells[below] * down[:, None]
        yield first, rows[:, left] * (1 - across) + rows[:, right] * across


def _between(pixels: np.ndarray, pitch: float, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two cells that pixels lie between, and how far on the way to the second."""
    place = np.clip((pixels + 0.5) / pitch - 0.5, 0, count - 1)
    lower = place.astype(np.int64)
    return lower, np.minimum(lower + 1, count - 1), (place - lower).astype(np.float32)


def _starts(length: int, size: int) -> list[int]:
    return [*range(0, length - size, size), length - size]


def load_localizer(folder: str | Path, backbone: str | None = None) -> Localizer:
    """The localiser saved in `folder`, in evaluation mode; refuses what `load_detector` refuses, and other heads."""
    return Localizer(load_detector(folder, backbone)).eval()

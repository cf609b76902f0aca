"""Which parts of an image a detector looks at: one crop, five, or tiles at native resolution."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image

from adapt.data.preprocess import Preprocess, size_of
from adapt.errors import Refusal

Kind = Literal["1", "5", "native"]
TILES = 16  # the most of one image: a photograph of 64 Mpx would have 1,300 of 224 px
CORNERS = (0.0, 1.0)


@dataclass(frozen=True)
class Crops:
    """PIL image -> uint8 tensor (n, 3, size, size), n the number of encoder passes that the image costs.

    `1` is what the detector was trained on. `5`: corners and centre of the image at the scale of the training, those
    that differ (a square image whose shortest side becomes `size` has one). `native`: tiles of the image's own pixels
    from edge to edge, overlapping where they do not fit; of more than `TILES` a thinner grid of the same shape.
    """

    preprocess: Preprocess
    kind: Kind = "1"

    def __post_init__(self) -> None:
        if self.kind == "5" and self.preprocess.geometry == "squash":
            raise Refusal(
                "--crops 5: this backbone squeezes the whole image into one square, so all crops are that square; "
                "use --crops 1 or native"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what stands for an image that cannot be read."""
        return (1, *self.preprocess.shape)

    dtype = Preprocess.dtype

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if self.kind == "1":
            return self.preprocess(image)[None]
        crop = replace(self.preprocess, geometry="native")
        scaled = image if self.kind == "native" else self.preprocess.scaled(image)
        return torch.stack([crop(scaled, at) for at in self.places(*size_of(scaled))])

    def places(self, width: int, height: int) -> list[tuple[float, float]]:
        """Relative positions (x, y) of the crops of a scaled image."""
        size = self.preprocess.size
        if self.kind == "5":
            xs, ys = (CORNERS if side > size else (0.5,) for side in (width, height))
            return list(dict.fromkeys([*itertools.product(xs, ys), (0.5, 0.5)]))
        columns, rows = -(-width // size), -(-height // size)
        if columns * rows > TILES:
            columns, rows = (math.isqrt(TILES * a // b) for a, b in ((columns, rows), (rows, columns)))
            columns, rows = (min(max(1, n), TILES) for n in (columns, rows))
        return [(x, y) for y in _spread(rows) for x in _spread(columns)]


class Whole:
    """PIL image -> uint8 tensor (height, width, 3): for those who cut it themselves."""

    shape, dtype = (1, 1, 3), torch.uint8

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image))


def _spread(n: int) -> list[float]:
    """n relative positions from edge to edge."""
    return [i / (n - 1) for i in range(n)] if n > 1 else [0.5]

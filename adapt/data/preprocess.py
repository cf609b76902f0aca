"""What stands between a view and a backbone: geometry only. Mean and std belong to the backbone."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from adapt.data.views import parse_view

Geometry = Literal["resize", "squash", "native"]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocess:
    """PIL image -> uint8 tensor (3, size, size).

    `resize` scales the shortest side to `shortest` pixels and crops, as CLIP does; `squash` scales both sides to
    `size`, as SigLIP does; `native` only crops, so that traces of one or two pixels survive (smaller images are
    padded by reflection). The crop lies at the relative position `at`, the centre unless a training draw says else.
    """

    size: int
    shortest: int
    interpolation: str = "bicubic"
    geometry: Geometry = "resize"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what a call returns."""
        return (3, self.size, self.size)

    dtype = torch.uint8

    def __call__(self, image: Image.Image, at: tuple[float, float] = (0.5, 0.5)) -> torch.Tensor:
        image = self.scaled(image)
        if self.geometry != "squash":
            image = parse_view(f"crop{self.size}")(image, at)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def scaled(self, image: Image.Image) -> Image.Image:
        """The image at the scale at which it is cropped."""
        resample = FILTERS[self.interpolation]
        if self.geometry == "squash":
            return image.resize((self.size, self.size), resample)
        if self.geometry == "native" or min(image.size) == self.shortest:
            return image
        # the short side exactly, the long side rounded down: torchvision's rule, which open_clip uses
        short, long = min(image.size), max(image.size)
        other = int(self.shortest * long / short)
        wide = image.width >= image.height
        return image.resize((other, self.shortest) if wide else (self.shortest, other), resample)

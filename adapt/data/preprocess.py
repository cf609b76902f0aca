"""What stands between a view and a backbone: geometry only. Mean and std belong to the backbone."""

from dataclasses import asdict, dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from adapt.data import bilinear
from adapt.data.views import parse_view

Geometry = Literal["resize", "squash", "native"]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
Resizer = Literal["pillow", "torch", "opencv"]
SHRINKS, ASPECT = 1.3, 1.8


class Prepare(Protocol):
    """RGB image -> tensor of this shape and dtype; zeros of both stand for an image that cannot be read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, image: Image.Image, /) -> torch.Tensor: ...


@dataclass(frozen=True)
class Preprocess:
    """PIL image -> uint8 tensor (3, size, size).

    `resize` scales the shortest side to `shortest` pixels and crops, as CLIP does; `squash` scales both sides to
    `size`, as SigLIP does; `native` only crops, so that traces of one or two pixels survive (smaller images are
    padded by reflection, with `pad` zero in black at all sides, as torchvision's CenterCrop does for published
    detectors). The crop lies at the relative position `at`, the centre unless a training draw says else.
    `resizer` torch is faster than pillow, and a level apart (seldom two) in fewer than 0.5 % of a photograph's values.
    It is used for `resize` from `SHRINKS` times the size on, up to an aspect of `ASPECT`. Pillow scales all other
    images: it takes long ones, and most of those that `squash` distorts, in another order (rows, then columns).
    opencv is that library's bilinear resize, without antialiasing, as published detectors have it (bilinear.py).
    A centre between two pixels is the even one, as torchvision has it, or with `middle` lower the one to the left and
    above, as transformers has it. `channels` bgr hands them over in that order, as published detectors got them that
    read files by OpenCV.
    """

    size: int
    shortest: int
    interpolation: str = "bicubic"
    geometry: Geometry = "resize"
    resizer: Resizer = "pillow"
    pad: Literal["reflect", "zero"] = "reflect"
    middle: Literal["even", "lower"] = "even"
    channels: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        words = {"interpolation": tuple(FILTERS), "geometry": get_args(Geometry)}
        words |= {"resizer": get_args(Resizer), "pad": ("reflect", "zero"), "middle": ("even", "lower")}
        words |= {"channels": ("rgb", "bgr")}
        words |= {"interpolation": ("bilinear",)} if self.resizer == "opencv" else {}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}, expected {' or '.join(known)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what a call returns."""
        return (3, self.size, self.size)

    dtype = torch.uint8

    def facts(self) -> dict[str, str | int]:
        """For fingerprints; Pillow's resize, padding by reflection, the even middle and RGB go without saying."""
        usual = ("resizer", "pillow"), ("pad", "reflect"), ("middle", "even"), ("channels", "rgb")
        return {key: value for key, value in asdict(self).items() if (key, value) not in usual}

    def __call__(self, image: Image.Image | np.ndarray, at: tuple[float, float] = (0.5, 0.5)) -> torch.Tensor:
        """`image` is RGB, or its writable array (h, w, 3) uint8."""
        image = self.scaled(image)
        if self.pad == "zero":
            image = _framed(image, self.size)
        if self.middle == "lower":
            image = _evened(image, self.size)
        pixels = _tensor(image if self.geometry == "squash" else _cropped(image, self.size, at))
        return pixels.flip(0) if self.channels == "bgr" else pixels

    def scaled(self, image: Image.Image | np.ndarray) -> Image.Image | np.ndarray:
        """The image at the scale at which it is cropped."""
        if self.geometry == "squash":
            return self._resized(image, self.size, self.size)
        width, height = size_of(image)
        if self.geometry == "native" or min(width, height) == self.shortest:
            return image
        # the short side exactly, the long side rounded down: torchvision's rule, which open_clip uses
        long = int(self.shortest * max(width, height) / min(width, height))
        return self._resized(image, *((long, self.shortest) if width >= height else (self.shortest, long)))

    def _resized(self, image: Image.Image | np.ndarray, width: int, height: int) -> Image.Image | np.ndarray:
        if self.resizer == "opencv":
            return bilinear.resize(np.asarray(image), width, height)
        short, long = sorted(size_of(image))
        usual = self.geometry == "resize" and short >= SHRINKS * self.shortest and long <= ASPECT * short
        if self.resizer == "pillow" or not usual:
            return _image(image).resize((width, height), FILTERS[self.interpolation])
        pixels = image if isinstance(image, np.ndarray) else np.array(image)
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # channels last: torch's fast kernel
        resized = F.interpolate(batch, size=(height, width), mode=self.interpolation, antialias=True)
        return resized[0].permute(1, 2, 0).numpy()


def size_of(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """Width and height of an image or of its array (h, w, 3)."""
    return image.size if isinstance(image, Image.Image) else image.shape[1::-1]


def _cropped(image: Image.Image | np.ndarray, side: int, at: tuple[float, float]) -> Image.Image | np.ndarray:
    """As the view `crop`, which continues an image that is too small."""
    if isinstance(image, Image.Image) or min(image.shape[:2]) < side:
        return parse_view(f"crop{side}")(_image(image), at)
    top, left = (round(place * (length - side)) for place, length in zip(at[::-1], image.shape[:2], strict=True))
    return image[top : top + side, left : left + side]


def _framed(image: Image.Image | np.ndarray, side: int) -> Image.Image | np.ndarray:
    """An image with both sides of at least `side`: black around it, the odd pixel to the right and below."""
    width, height = size_of(image)
    if min(width, height) >= side:
        return image
    wide, high = max(width, side), max(height, side)
    framed = Image.new("RGB", (wide, high))
    framed.paste(_image(image), ((wide - width) // 2, (high - height) // 2))
    return framed


def _evened(image: Image.Image | np.ndarray, side: int) -> Image.Image | np.ndarray:
    """Without the last row or column of an odd margin around the crop: the centre is then the lower of two."""
    width, height = (length - (length > side and (length - side) % 2) for length in size_of(image))
    return image.crop((0, 0, width, height)) if isinstance(image, Image.Image) else image[:height, :width]


def _image(image: Image.Image | np.ndarray) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def _tensor(image: Image.Image | np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

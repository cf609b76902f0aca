"""From the bytes of a photograph to normalised pixels under four views: Pillow in every pass, and ours.

Then each part alone: decoding, the JPEG views of decoded images, and the way from an image to normalised pixels.
"""

import io
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adapt.benchmark.timing import Ratio, Settings, in_turns
from adapt.data.digests import SETTLED
from adapt.data.images import decode
from adapt.data.preprocess import Preprocess
from adapt.data.views import jpeg_bytes, parse_view

QUALITIES = (None, 90, 65, 40)
VIEWS = ("none", "qf90", "qf65", "qf40")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


def measure(settings: Settings) -> list[Ratio]:
    data = [path.read_bytes() for path in photographs(settings, 2 if settings.small else 8)]
    usual, ours = Pillow(224), Preprocess(224, 224, resizer="torch")
    views = [parse_view(name) for name in VIEWS]
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))

    def theirs() -> torch.Tensor:
        return torch.stack([usual(one, quality) for quality in QUALITIES for one in data])

    def fast() -> torch.Tensor:
        images = [np.array(decode(one)) for one in data]
        pixels = torch.stack([ours(view.pixels(image)) for view in views for image in images])
        return (pixels - mean).div_(std)

    images = [decode(one) for one in data]
    arrays = [np.array(image) for image in images]

    def jpeg_views() -> None:
        for image in images:
            for quality in QUALITIES[1:]:
                _rgb(jpeg_bytes(image, quality))

    ways = {
        "theirs": theirs,
        "ours": fast,
        "decode, theirs": lambda: [_rgb(one) for one in data],
        "decode, ours": lambda: [np.array(decode(one)) for one in data],
        "views, theirs": jpeg_views,
        "views, ours": lambda: [view.pixels(array) for view in views[1:] for array in arrays],
        "pixels, theirs": lambda: [usual.transform(image) for image in images],
        "pixels, ours": lambda: (torch.stack([ours(array) for array in arrays]) - mean).div_(std),
    }
    seconds = in_turns(ways, settings)
    levels = ((theirs() - fast()) * std).abs().round()
    same = all(
        np.array_equal(
            view.pixels(np.array(decode(one))), np.asarray(Image.open(io.BytesIO(jpeg_bytes(decode(one), quality))))
        )
        for one in data
        for view, quality in zip(views[1:], QUALITIES[1:], strict=True)
    )
    facts = {
        "JPEG pixels": "identical" if same else "DIFFERENT",
        "greatest difference, levels": int(levels.max()),
        "share of values that differ": round(float((levels > 0).float().mean()), 5),
    }
    kind = kind_of(settings)
    whole = Ratio("preprocessing", f"{len(data)} {kind} x {len(VIEWS)} views", "decoded once", "Pillow in every pass",
                  seconds["ours"], seconds["theirs"], goal=2.5, facts=facts)  # fmt: skip
    parts = {
        "decode": ("bytes, checked, to an array", "Pillow"),
        "views": ("three JPEG qualities of an array", "Pillow"),
        "pixels": ("resize by torch, crop, normalise", "torchvision on Pillow's image"),
    }
    return [whole] + [
        Ratio("preprocessing", f"{len(data)} {kind}, {part} alone", *way, seconds[f"{part}, ours"],
              seconds[f"{part}, theirs"]) for part, way in parts.items()
    ]  # fmt: skip


class Pillow:
    """What the field's loops do to an image: JPEG, shortest side to `size`, centre crop, tensor, mean and std."""

    def __init__(self, size: int) -> None:
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

        scale = Resize(size, interpolation=InterpolationMode.BICUBIC)
        self.transform = Compose([scale, CenterCrop(size), ToTensor(), Normalize(MEAN, STD)])

    def __call__(self, data: bytes, quality: int | None) -> torch.Tensor:
        image = _rgb(data)
        if quality is not None:
            image = _rgb(jpeg_bytes(image, quality))
        return self.transform(image)


def _rgb(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def kind_of(settings: Settings) -> str:
    """What `photographs` hands over, for the table."""
    return "photographs" if settings.photos else "drawn images"


def photographs(settings: Settings, count: int) -> list[Path]:
    """JPEG files: the first of those given, or noise whose amplitude falls as 1/f, as in photographs (640 x 480)."""
    if settings.photos:
        return list(settings.photos[:count])
    folder = settings.folder / "photographs"
    if not folder.is_dir():
        folder.mkdir(parents=True)
    made = [folder / f"{number:03}.jpg" for number in range(count)]
    missing = [path for path in made if not path.is_file()]
    for path in missing:
        Image.fromarray(_scene(int(path.stem))).save(path, quality=92)
    if missing:
        time.sleep(SETTLED)  # a file that has only just changed is hashed again
    return made


def _scene(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(480)[:, None], np.fft.rfftfreq(640)[None])
    f[0, 0] = 1
    planes = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((480, 640))) / f, (480, 640)) for _ in range(3)]
    luma, *chroma = (plane / plane.std() for plane in planes)
    colours = [luma + 0.3 * chroma[0], luma, luma + 0.3 * chroma[1]]
    return np.clip(np.stack(colours, axis=2) * 50 + 120, 0, 255).astype(np.uint8)

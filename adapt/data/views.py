"""Views: named deterministic functions image -> image, such as `crop224+qf40` or `grey+qf40`."""

import difflib
import functools
import io
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from adapt.data.dissection import MIDDLE, bands, plainest_place, random_place, shuffled, to_8_bits, turned
from adapt.data.images import Unreadable
from adapt.errors import Refusal

At = tuple[float, float]


def jpeg_bytes(image: Image.Image, quality: int) -> bytes:
    """JPEG file of an RGB image: Pillow's encoder with its default 4:2:0 chroma. No other is used here."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _jpeg(image: Image.Image, quality: float, at: At) -> Image.Image:
    return Image.fromarray(_jpeg_pixels(image, int(quality)))


def _jpeg_pixels(image: Image.Image | np.ndarray, quality: int) -> np.ndarray:
    """(h, w, 3) of `jpeg_bytes` decoded again, by OpenCV where that gives the same pixels in less time."""
    if _same_codec():
        return _through_opencv(image, quality)
    return np.array(_decoded(jpeg_bytes(Image.fromarray(np.asarray(image)), quality)))


def _through_opencv(image: Image.Image | np.ndarray, quality: int) -> np.ndarray:
    import cv2

    pixels = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError("OpenCV could not encode an image")
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise ValueError("OpenCV could not decode what it encoded")
    return decoded


@functools.cache
def _same_codec() -> bool:
    """Whether OpenCV is there and its libjpeg gives Pillow's pixels: asked once a process, of coloured noise."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)).resize((77, 53))
    try:
        pairs = ((_through_opencv(picture, q), _decoded(jpeg_bytes(picture, q))) for q in (5, 40, 90, 100))
        return all(np.array_equal(found, np.asarray(wanted)) for found, wanted in pairs)
    except (ImportError, AttributeError):  # absent, or older than IMREAD_COLOR_RGB
        return False


def _webp(image: Image.Image, quality: float, at: At) -> Image.Image:
    """Lossy WebP, whose format ends at 16383 px: a longer image is `Unreadable` in this view."""
    if max(image.size) > 16383:
        raise Unreadable("too-large")
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=int(quality))
    return _decoded(buffer.getvalue())


def _decoded(data: bytes) -> Image.Image:
    pixels = Image.open(io.BytesIO(data)).convert("RGB")
    pixels.info = {}
    return pixels


def _resize(image: Image.Image, side: float, at: At) -> Image.Image:
    """Shortest side to `side`, aspect kept to the pixel; bicubic with antialiasing."""
    short = min(image.size)
    if short == side:
        return image
    width, height = (max(1, round(length * side / short)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _crop(image: Image.Image, side: float, at: At) -> Image.Image:
    """Native pixels, never scaled. An image that is too small is continued evenly around by reflection."""
    side = int(side)
    missing = [max(0, side - length) for length in image.size]
    if any(missing):
        (left, top), (x, y) = (length // 2 for length in missing), missing
        pixels = np.asarray(image)
        margins = ((top, y - top), (left, x - left), (0, 0))[: pixels.ndim]  # a mask has no channels
        image = Image.fromarray(np.pad(pixels, margins, mode="reflect"))
    left, top = (round(place * (length - side)) for place, length in zip(at, image.size, strict=True))
    return image.crop((left, top, left + side, top + side))


def _blur(image: Image.Image, sigma: float, at: At) -> Image.Image:
    """Gaussian of `sigma` pixels, as Pillow approximates it with three box filters."""
    return image.filter(ImageFilter.GaussianBlur(sigma))


def _grey(image: Image.Image, _number: float, at: At) -> Image.Image:
    """Y of BT.601 in all channels, as JPEG and Pillow compute it: the picture without its chroma."""
    return image.convert("L").convert("RGB")


def _shuffle(image: Image.Image, side: float, at: At) -> Image.Image:
    return Image.fromarray(shuffled(np.asarray(image), int(side)))


def _spot(image: Image.Image, side: float, at: At) -> Image.Image:
    """A crop at a place drawn from the pixels, whatever `at` says."""
    return _crop(image, side, random_place(np.asarray(image)))


def _plain(image: Image.Image, side: float, at: At) -> Image.Image:
    """The crop with the least gradient, whatever `at` says."""
    return _crop(image, side, plainest_place(np.asarray(image), int(side)))


def _hue(image: Image.Image, degrees: float, at: At) -> Image.Image:
    return Image.fromarray(turned(np.asarray(image), degrees))


def _lowpass(image: Image.Image, cutoff: float, at: At) -> Image.Image:
    return Image.fromarray(to_8_bits(bands(np.asarray(image), cutoff)[0]))


def _highpass(image: Image.Image, cutoff: float, at: At) -> Image.Image:
    """About mid-grey; what swings further than 8 bits allow is clipped."""
    return Image.fromarray(to_8_bits(bands(np.asarray(image), cutoff)[1] + MIDDLE))


class _Op(NamedTuple):
    apply: Callable[[Image.Image, float, At], Image.Image]
    low: float | None  # None: the operation takes no number
    high: float | None
    whole: bool
    meaning: str


OPS = {
    "qf": _Op(_jpeg, 1, 100, True, "JPEG quality"),
    "webp": _Op(_webp, 1, 100, True, "WebP quality"),
    "resize": _Op(_resize, 16, 2048, True, "shortest side, px"),
    "crop": _Op(_crop, 16, 2048, True, "side, px"),
    "blur": _Op(_blur, 0.1, 64, False, "sigma, px"),
    "grey": _Op(_grey, None, None, False, "no chroma"),
    "shuffle": _Op(_shuffle, 2, 1024, True, "side of the patches, px"),
    "spot": _Op(_spot, 16, 2048, True, "side of a random crop, px"),
    "plain": _Op(_plain, 16, 2048, True, "side of the plainest crop, px"),
    "hue": _Op(_hue, 1, 359, True, "turn, degrees"),
    "lowpass": _Op(_lowpass, 0.005, 0.5, False, "cutoff, cycles/px"),
    "highpass": _Op(_highpass, 0.005, 0.5, False, "cutoff, cycles/px"),
}
GEOMETRY = ("resize", "crop")  # these move pixels; the others change them in place


@dataclass(frozen=True)
class View:
    """A named image -> image function; make one with `parse_view`. Two views are equal if their names are."""

    name: str
    steps: tuple[tuple[str, float | None], ...]

    def __call__(self, image: Image.Image, at: At = (0.5, 0.5)) -> Image.Image:
        """Apply the steps from left to right to an RGB image.

        `at` places the crops: (0, 0) is the upper left corner, (1, 1) the lower right, (.5, .5) the centre.
        """
        if image.mode != "RGB":
            raise ValueError(f"a view takes an RGB image, not {image.mode}: use read_image")
        for step in self.steps:
            image = _apply(step, image, at)
        return image

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The same of an array (h, w, 3) uint8, without a copy where JPEG is all: `none` is the array itself."""
        if not self.steps:
            return image
        *before, (op, number) = self.steps
        if op != "qf" or number is None:
            return np.array(self(Image.fromarray(image)))
        return _jpeg_pixels(View("", tuple(before))(Image.fromarray(image)) if before else image, int(number))

    def follow(self, mask: Image.Image, at: At = (0.5, 0.5)) -> Image.Image:
        """Grey mask of the image before the view -> of the image after it: only what moves pixels applies."""
        for step in self.steps:
            mask = _apply(step, mask, at) if step[0] in GEOMETRY else mask
        return mask


def parse_view(name: str) -> View:
    """View of a name: `none`, or steps (most an operation and its number) joined by `+`, applied left to right.

    `qf40` JPEG quality; `webp80` lossy WebP quality; `resize256` shortest side; `crop224` native crop;
    `blur1.5` Gaussian sigma; `grey`, without a number, removes the chroma. To part content from trace: `shuffle32`
    patches in another order; `spot32` crop at a random place, `plain32` crop with the least gradient; `hue90` chroma
    turned; `lowpass0.25`, `highpass0.25` bands below and above a frequency (adapt/data/dissection.py). The view's own
    name is canonical (`qf040` -> `qf40`). Refuses all else.
    """
    if name == "none":
        return View("none", ())
    steps = tuple(_parse_step(step, name) for step in name.split("+"))
    return View("+".join(op if number is None else f"{op}{number}" for op, number in steps), steps)


def _apply(step: tuple[str, float | None], image: Image.Image, at: At) -> Image.Image:
    op, number = step
    return OPS[op].apply(image, 0.0 if number is None else number, at)  # 0.0: an operation without a number


def _parse_step(step: str, name: str) -> tuple[str, float | None]:
    match = re.fullmatch(r"([a-z]+)([0-9]+(?:\.[0-9]+)?)?", step)
    op = OPS.get(match[1]) if match else None
    if match is None or op is None or (op.low is not None and match[2] is None):
        known = ", ".join(f"{_spelling(other)} ({OPS[other].meaning})" for other in OPS)
        raise Refusal(
            f"unknown step {step!r} in view {name!r}: {_hint(step, alone=step == name)}"
            f"known: none (alone), {known}; join with +"
        )
    if op.low is None or op.high is None:
        if match[2] is not None:
            raise Refusal(f"step {step!r} in view {name!r}: {match[1]} takes no number: write {match[1]}")
        return match[1], None
    number = float(match[2])
    if not op.low <= number <= op.high or (op.whole and not number.is_integer()):
        kind = "a whole number" if op.whole else "a number"
        raise Refusal(f"step {step!r} in view {name!r}: {op.meaning} is {kind} from {op.low} to {op.high}")
    return match[1], int(number) if number.is_integer() else number


def _spelling(op: str, number: str = "N") -> str:
    return op if op == "none" or OPS[op].low is None else f"{op}{number}"


def _hint(step: str, alone: bool) -> str:
    """What a misspelt step may have meant, with its own number; empty where nothing is near."""
    word = re.sub("[^a-z]", "", step.lower())
    close = difflib.get_close_matches(word, [*OPS, "none"] if alone else OPS, n=1, cutoff=0.5)
    number = (re.search(r"[0-9.]+", step) or ["N"])[0]
    return f"did you mean {_spelling(close[0], number)}? " if close else ""


def rng(seed: int, epoch: int, key: str) -> random.Random:
    """Generator of the random choices for one sample (`key`) in one epoch; it has no other state.

    Every random choice made while reading training images is drawn from it, so the number of workers, the
    order of reading and a resumed run never change a choice.
    """
    return random.Random(f"{seed}/{epoch}/{key!a}")

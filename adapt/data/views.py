"""Views: named deterministic functions image -> image, such as `crop224+qf40` or `grey+qf40`."""

import difflib
import functools
import io
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from adapt.data import deliveries
from adapt.data.chains import LONGEST, draw_chain
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


OPS = {  # `#` stands for the number, which else comes last
    "qf": _Op(_jpeg, 1, 100, True, "JPEG quality"),
    "jpeg#-444": _Op(deliveries.jpeg_444, 1, 100, True, "JPEG quality, whole chroma"),
    "jpeg#-422": _Op(deliveries.jpeg_422, 1, 100, True, "JPEG quality, chroma halved across"),
    "jpeg#-420": _Op(deliveries.jpeg_420, 1, 100, True, "JPEG quality, as qf"),
    "jpeg#-progressive": _Op(deliveries.jpeg_progressive, 1, 100, True, "JPEG quality, in several scans"),
    "webp": _Op(_webp, 1, 100, True, "WebP quality"),
    "avif": _Op(deliveries.avif, 1, 100, True, "AVIF quality"),
    "jp2k": _Op(deliveries.jp2k, 1, 200, False, "JPEG 2000, times smaller"),
    "resize": _Op(_resize, 16, 2048, True, "shortest side, px"),
    "fit": _Op(deliveries.fit, 16, 8192, True, "longest side at most, px"),
    "area": _Op(deliveries.area, 1024, 10**8, True, "pixels at most"),
    "scale": _Op(deliveries.scale, 0.1, 4, False, "scaled by, and back"),
    "scale#only": _Op(deliveries.scale_only, 0.1, 4, False, "scaled by"),
    "screenshot": _Op(deliveries.shown, 240, 4096, True, "width of the screen, px"),
    "crop": _Op(_crop, 16, 2048, True, "side, px"),
    "pad": _Op(deliveries.pad, None, None, False, "black bars to a square"),
    "rotate": _Op(deliveries.rotate, 0, 15, False, "turn, degrees"),
    "hflip": _Op(deliveries.flip, None, None, False, "left and right exchanged"),
    "vflip": _Op(deliveries.flip_down, None, None, False, "top and bottom exchanged"),
    "hvflip": _Op(deliveries.flip_both, None, None, False, "half a turn"),
    "blur": _Op(_blur, 0.1, 64, False, "sigma, px"),
    "noise": _Op(deliveries.noise, 0, 64, False, "sigma, levels of 255"),
    "bright": _Op(deliveries.bright, 0.2, 4, False, "factor"),
    "contrast": _Op(deliveries.contrast, 0, 4, False, "factor"),
    "saturate": _Op(deliveries.saturate, 0, 4, False, "factor"),
    "gamma": _Op(deliveries.gamma, 0.2, 5, False, "exponent"),
    "grey": _Op(_grey, None, None, False, "no chroma"),
    "shuffle": _Op(_shuffle, 2, 1024, True, "side of the patches, px"),
    "spot": _Op(_spot, 16, 2048, True, "side of a random crop, px"),
    "plain": _Op(_plain, 16, 2048, True, "side of the plainest crop, px"),
    "hue": _Op(_hue, 1, 359, True, "turn, degrees"),
    "lowpass": _Op(_lowpass, 0.005, 0.5, False, "cutoff, cycles/px"),
    "highpass": _Op(_highpass, 0.005, 0.5, False, "cutoff, cycles/px"),
}
GEOMETRY = (  # these move pixels, and a mask with them; the others change them in place
    *("resize", "fit", "area", "scale#only", "screenshot", "crop", "pad", "rotate", "hflip", "vflip", "hvflip"),
)
DELIVERIES = {  # what a service does to a picture, from its own code
    "messenger": "fit1600+qf70",  # Signal for Android, standard quality: PushMediaConstraints.java, LEVEL_1
    "social": "area230400+jpeg90-444",  # Mastodon, as in a timeline: media_attachment.rb, IMAGE_STYLES[:small]
    "cms": "fit1024+qf82",  # WordPress, size `large`: class-wp-image-editor.php, default_quality
}
CHAIN = re.compile(r"chain([1-9][0-9]*):([0-9]+)")


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

    @property
    def drawn(self) -> bool:
        """Whether it holds a chain, whose steps are drawn for each group: `of` draws them."""
        return any(CHAIN.fullmatch(op) for op, _ in self.steps)

    def of(self, group: str, epoch: int = 0, share: float = 1.0) -> "View":
        """This view for the images of one group: a photograph and its fakes get the same steps, equally strong.

        A chain's steps are drawn from its seed, the epoch (0 of all that is not training) and the group alone; `share`
        is how much of the drawn strengths they have.
        """
        if not self.drawn:
            return self
        names = [_spelled(op, number) for op, number in self.steps]
        for i, name in enumerate(names):
            if found := CHAIN.fullmatch(name):
                names[i] = draw_chain(int(found[1]), rng(int(found[2]), epoch, f"{i}/{name}/{group}"), share)
        return parse_view("+".join(names))

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

    `OPS` has the operations, adapt/data/README.md a line for each; `DELIVERIES` are short names of several steps.
    `chain3:7` is three steps that are drawn for each group, with the seed 7 (`View.of`). The view's own name is
    canonical (`qf040` -> `qf40`). Refuses all else.
    """
    if name == "none":
        return View("none", ())
    steps: list[tuple[str, float | None]] = []
    names = []
    for step in name.split("+"):
        if step in DELIVERIES:
            steps += parse_view(DELIVERIES[step]).steps
            names.append(step)
        else:
            steps.append(_parse_step(step, name))
            names.append(_spelled(*steps[-1]))
    return View("+".join(names), tuple(steps))


def _apply(step: tuple[str, float | None], image: Image.Image, at: At) -> Image.Image:
    op, number = step
    if op not in OPS:
        raise ValueError(f"{op} is drawn for each group: ask the view `of` one")
    return OPS[op].apply(image, 0.0 if number is None else number, at)  # 0.0: an operation without a number


def _parse_step(step: str, name: str) -> tuple[str, float | None]:
    if found := CHAIN.fullmatch(step):
        if int(found[1]) > LONGEST:
            raise Refusal(f"step {step!r} in view {name!r}: a chain has 1 to {LONGEST} steps")
        return f"chain{found[1]}:{int(found[2])}", None
    op, written = next(_readings(step), (None, None))
    if op is None:
        known = ", ".join(f"{spelling(other)} ({OPS[other].meaning})" for other in OPS)
        services = ", ".join(f"{service} ({steps})" for service, steps in DELIVERIES.items())
        raise Refusal(
            f"unknown step {step!r} in view {name!r}: {_hint(step, alone=step == name)}"
            f"known: none (alone), {known}, chainK:SEED (K drawn steps), {services}; join with +"
        )
    low, high = OPS[op].low, OPS[op].high
    if low is None or high is None:
        if written is not None:
            raise Refusal(f"step {step!r} in view {name!r}: {op} takes no number: write {op}")
        return op, None
    number = float(written or "nan")
    if not low <= number <= high or (OPS[op].whole and not number.is_integer()):
        kind = "a whole number" if OPS[op].whole else "a number"
        raise Refusal(f"step {step!r} in view {name!r}: {OPS[op].meaning} is {kind} from {low} to {high}")
    return op, int(number) if number.is_integer() else number


def _readings(step: str) -> Iterator[tuple[str, str | None]]:
    """Operations that a step may name, each with its number as it was written; that which it needs is there."""
    for op, about in OPS.items():
        before, _, behind = op.partition("#")
        found = re.fullmatch(rf"{re.escape(before)}([0-9]+(?:\.[0-9]+)?)?{re.escape(behind)}", step)
        if found and (found[1] is not None or about.low is None):
            yield op, found[1]


def _spelled(op: str, number: float | None) -> str:
    if number is None:
        return op
    return op.replace("#", f"{number}") if "#" in op else f"{op}{number}"


def spelling(op: str, number: str = "N") -> str:
    """An operation as it is written, with its number."""
    if op == "none" or OPS[op].low is None:
        return op
    return op.replace("#", number) if "#" in op else f"{op}{number}"


def _hint(step: str, alone: bool) -> str:
    """What a misspelt step may have meant, with its own number; empty where nothing is near."""
    word = re.sub("[^a-z#-]", "", re.sub(r"[0-9.]+", "#", step.lower())).removesuffix("#")
    word = "qf" if word in ("jpg", "jpeg") else word
    close = difflib.get_close_matches(word, [*OPS, *DELIVERIES, *(["none"] if alone else [])], n=1, cutoff=0.5)
    number = (re.search(r"[0-9]+(?:[.][0-9]+)?", step) or ["N"])[0]
    return f"did you mean {close[0] if close[0] in DELIVERIES else spelling(close[0], number)}? " if close else ""


def rng(seed: int, epoch: int, key: str) -> random.Random:
    """Generator of the random choices for one sample (`key`) in one epoch; it has no other state.

    Every random choice made while reading training images is drawn from it, so the number of workers, the
    order of reading and a resumed run never change a choice.
    """
    return random.Random(f"{seed}/{epoch}/{key!a}")

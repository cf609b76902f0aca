"""What happens to pictures on their way: noise, light, scaling, turning, other codecs. Functions on RGB images.

adapt/data/views.py gives them names. Ranges include the value that changes nothing, wherever there is one. `at` is the
place of crops, which these ignore.
"""

import hashlib
import io
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from adapt.data.images import Unreadable

At = tuple[float, float]
LONGEST_AVIF = 65535  # px


def noise(image: Image.Image, sigma: float, at: At) -> Image.Image:
    """Gaussian noise of `sigma` levels of 255 in each value, drawn from the picture's own pixels, rounded, clipped."""
    pixels = np.asarray(image)
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data).digest()
    draw = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    noisy = pixels + sigma * draw.standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def bright(image: Image.Image, factor: float, at: At) -> Image.Image:
    """Every value times `factor`, as Pillow's ImageEnhance.Brightness."""
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float, at: At) -> Image.Image:
    """Distance from the mean grey times `factor`, as Pillow's ImageEnhance.Contrast."""
    return ImageEnhance.Contrast(image).enhance(factor)


def saturate(image: Image.Image, factor: float, at: At) -> Image.Image:
    """Distance from the luma of each pixel times `factor`, as Pillow's ImageEnhance.Color: 0 is grey."""
    return ImageEnhance.Color(image).enhance(factor)


def gamma(image: Image.Image, exponent: float, at: At) -> Image.Image:
    """Values in 0..1 to the power of `exponent`: above 1 darkens."""
    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8).tolist()
    return image.point(table * 3)


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    """Both sides times `factor`; bicubic with antialiasing."""
    size = _times(image, factor)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def scale(image: Image.Image, factor: float, at: At) -> Image.Image:
    """Scaled by `factor` and back to its size."""
    scaled = _scaled(image, factor)
    return scaled if scaled.size == image.size else scaled.resize(image.size, Image.Resampling.BICUBIC)


def scale_only(image: Image.Image, factor: float, at: At) -> Image.Image:
    """Scaled by `factor`."""
    return _scaled(image, factor)


def fit(image: Image.Image, side: float, at: At) -> Image.Image:
    """The longest side to `side` px where it is longer, else unchanged; bicubic with antialiasing."""
    long = max(image.size)
    return image if long <= side else image.resize(_times(image, side / long), Image.Resampling.BICUBIC)


def area(image: Image.Image, pixels: float, at: At) -> Image.Image:
    """Scaled to about this many pixels where it has more, else unchanged; bicubic with antialiasing."""
    factor = math.sqrt(pixels / (image.width * image.height))
    return image if factor >= 1 else image.resize(_times(image, factor), Image.Resampling.BICUBIC)


def shown(image: Image.Image, width: float, at: At) -> Image.Image:
    """A screenshot of the picture shown across a screen of `width` px: bilinear, as screens scale, up or down."""
    factor = width / image.width
    return image if factor == 1 else image.resize(_times(image, factor), Image.Resampling.BILINEAR)


def _times(image: Image.Image, factor: float) -> tuple[int, int]:
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))


def rotate(image: Image.Image, degrees: float, at: At) -> Image.Image:
    """Turned anticlockwise (bicubic) and cropped to the largest upright picture of the same shape inside: no corner
    is empty. A picture that is straightened by hand loses its margin so."""
    if degrees == 0:
        return image
    way = Image.Resampling.NEAREST if image.mode == "L" else Image.Resampling.BICUBIC
    turned = image.rotate(degrees, way)
    share = inner_share(image.size, degrees)
    width, height = (max(1, math.floor(length * share)) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return turned.crop((left, top, left + width, top + height))


def inner_share(size: tuple[int, int], degrees: float) -> float:
    """How much of each side the largest upright rectangle of the same shape has inside the turned one."""
    ratio, angle = max(size) / min(size), math.radians(degrees)
    return 1 / (math.cos(angle) + ratio * math.sin(angle))


def flip(image: Image.Image, number: float, at: At) -> Image.Image:
    """Left and right exchanged."""
    return ImageOps.mirror(image)


def flip_down(image: Image.Image, number: float, at: At) -> Image.Image:
    """Top and bottom exchanged."""
    return ImageOps.flip(image)


def flip_both(image: Image.Image, number: float, at: At) -> Image.Image:
    """Half a turn."""
    return ImageOps.flip(ImageOps.mirror(image))


def pad(image: Image.Image, number: float, at: At) -> Image.Image:
    """A square with black bars, as players and messengers show a picture of another shape."""
    side = max(image.size)
    square = Image.new(image.mode, (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def jpeg_444(image: Image.Image, quality: float, at: At) -> Image.Image:
    """JPEG with whole chroma."""
    return _through(image, "JPEG", quality=int(quality), subsampling="4:4:4")


def jpeg_422(image: Image.Image, quality: float, at: At) -> Image.Image:
    """JPEG with chroma halved across."""
    return _through(image, "JPEG", quality=int(quality), subsampling="4:2:2")


def jpeg_420(image: Image.Image, quality: float, at: At) -> Image.Image:
    """JPEG with chroma halved both ways: the pixels of `qf`."""
    return _through(image, "JPEG", quality=int(quality), subsampling="4:2:0")


def jpeg_progressive(image: Image.Image, quality: float, at: At) -> Image.Image:
    """JPEG in several scans, 4:2:0. A complete one has the pixels of `qf`."""
    return _through(image, "JPEG", quality=int(quality), progressive=True)


def avif(image: Image.Image, quality: float, at: At) -> Image.Image:
    """AVIF, 4:2:0, with Pillow's encoder at one thread, so that the bytes do not depend on the machine's cores."""
    if max(image.size) > LONGEST_AVIF:
        raise Unreadable("too-large")
    return _through(image, "AVIF", quality=int(quality), max_threads=1)


def jp2k(image: Image.Image, ratio: float, at: At) -> Image.Image:
    """JPEG 2000, irreversible wavelets, one layer that is `ratio` times smaller than the pixels."""
    levels = min(6, min(image.size).bit_length())  # of wavelets: a small picture cannot be halved that often
    return _through(
        image, "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[ratio], num_resolutions=levels
    )


def _through(image: Image.Image, codec: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, codec, **options)
    pixels = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
    pixels.info = {}
    return pixels

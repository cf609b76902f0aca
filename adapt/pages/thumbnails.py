"""Small pictures of images for a page: JPEG without metadata, and a placeholder for what cannot be read."""

import io

from PIL import Image, ImageDraw

from adapt.data.images import Unreadable, decode

SIDE = 160
PALE, GREY, DARK = (232, 232, 232), (208, 208, 208), (60, 60, 60)


def thumbnail(image: Image.Image | bytes, side: int = SIDE) -> bytes:
    """JPEG whose longer side has at most `side` pixels; bytes of a file that cannot be read give a `placeholder`.

    An image of half of `side` or less is enlarged by a whole factor without smoothing, so that its pixels are seen.
    """
    if not isinstance(image, Image.Image):
        try:
            image = decode(image)
        except Unreadable as error:
            return placeholder(error.reason, side)
    small = image.convert("RGB")  # a copy, also of RGB
    factor = side // max(small.size)
    if factor > 1:
        small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _jpeg(small)


def placeholder(reason: str, side: int = SIDE) -> bytes:
    """A hatched square with the reason of an `Unreadable` in it, as JPEG."""
    image = Image.new("RGB", (side, side), PALE)
    draw = ImageDraw.Draw(image)
    for x in range(-side, side, 16):
        draw.line((x, side, x + side, 0), fill=GREY, width=2)
    words = f"unreadable:\n{reason}"
    box = draw.multiline_textbbox((side / 2, side / 2), words, anchor="mm", align="center")
    draw.rectangle((box[0] - 4, box[1] - 4, box[2] + 4, box[3] + 4), fill=PALE)
    draw.multiline_text((side / 2, side / 2), words, fill=DARK, anchor="mm", align="center")
    return _jpeg(image)


def _jpeg(image: Image.Image) -> bytes:
    image.info = {}  # else a comment or profile of the source would be written along
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()

"""Colour profiles (ICC) of images: what they are called, and their pixels in sRGB, as a person sees them."""

import io
from typing import Literal

from PIL import Image

Profiles = Literal["ignore", "srgb"]

_LONGEST = 40  # letters of a name that are kept
_FITS = {"GRAY": ("1", "L", "LA"), "CMYK": ("CMYK",), "RGB": ("RGB", "RGBA", "RGBX", "P", "PA", "YCbCr")}


def heed_profile(image: Image.Image, pixels: Image.Image, profiles: Profiles) -> tuple[Image.Image, str | None]:
    """`pixels` (RGB, as decoded from `image`), in sRGB where that is asked for; and what was done with the profile.

    None: there is none. A profile that cannot be read, or that is made for other channels than the image has, is
    ignored, as the words say. Conversion (littlecms) is perceptual, in 8 bits.
    """
    icc = image.info.get("icc_profile")
    if not icc:
        return pixels, None
    try:
        from PIL import ImageCms

        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        described = ImageCms.getProfileDescription(profile)
    except Exception:  # whatever is wrong with it, the picture is whole; some builds of Pillow lack littlecms
        return pixels, "unreadable, ignored"
    name = "".join(letter for letter in described if letter.isprintable()).strip()[:_LONGEST] or "unnamed"
    if profiles == "ignore":
        return pixels, f"{name}, ignored"
    if name.startswith("sRGB"):
        return pixels, f"{name}, kept"
    space = profile.profile.xcolor_space.strip()
    if ("L" if image.mode.startswith("I;16") else image.mode) not in _FITS.get(space, ()):
        return pixels, f"{name}, ignored: made for {space}"
    source = image if space == "CMYK" else pixels.convert("L") if space == "GRAY" else pixels
    try:
        seen = ImageCms.profileToProfile(source, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception:
        return pixels, f"{name}, ignored: cannot be used"
    return (seen, f"{name}, to sRGB") if seen else (pixels, f"{name}, ignored: cannot be used")

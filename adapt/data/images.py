"""Decode one image from an untrusted file: an RGB picture within limits, or a short reason why not."""

import contextlib
import functools
import hashlib
import io
import os
import posixpath
import stat
import tarfile
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile, jpeg_factory
from PIL.TiffImagePlugin import TiffImageFile

from adapt.data import jpeg2000
from adapt.data.containers import frames_of, in_one_pass, kind_of
from adapt.data.profiles import Profiles, heed_profile
from adapt.data.rows import Place, split_member
from adapt.errors import Refusal
from adapt.files import too_many_files

_PILLOW = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")  # EPS, say, would start another program
FORMATS = (*_PILLOW, "HEIF")  # an allow-list; HEIF by the extra `heic`
MAX_BYTES = 2**28
MAX_PIXELS = 2**26  # 67 Mpx: the largest common camera files have 64, and 16 bytes a pixel still fit in 1 GiB
MAX_JPEG_PIXELS = 2**28  # phones write 108 and 200 Mpx: what exceeds MAX_PIXELS is scaled while it is decoded
MAX_JPEG2000_PIXELS = 2**25  # of which OpenJPEG takes 24 bytes each
MAX_ASPECT = 20  # resizing the short side of a longer strip to 224 would itself be a bomb
MIN_SIDE = 16  # one patch

# What decoding means, for the fingerprint of everything computed from pixels. Colour profiles are ignored for
# every image alike, unless a caller asks otherwise: converting some would tell cameras, which embed them, from
# generators, which do not. A text for pixels: a format or size that becomes readable does not change it.
POLICY = "rgb 8 bit; EXIF orientation applied; on white; 16 bit >> 8; colour profile ignored; first frame"

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_CODECS = {"avif": "avif", "jp2": "jpg_2000"}  # kinds that some builds of Pillow lack -> the name in PIL.features

BAD_TAR = (tarfile.TarError, ValueError, EOFError, RecursionError)  # the last: long names by the thousand in a row

_lock = threading.RLock()  # warning filters belong to the process, so threads decode one after the other


def _unlocked() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_unlocked)  # a worker forked while a thread decodes must not wait for it


class Unreadable(Exception):
    """An image that gives no pixels. `reason` is one of:

    missing, not-a-file, no-access, io-error, too-many-bytes, bad-archive, not-at-offset, sha256-mismatch,
    not-an-image, too-large, too-small, aspect, truncated, corrupt, unsupported-mode; and, by the marks in its bytes,
    an image that nothing here decodes: unsupported: heic or unsupported: heif (without the extra `heic`), unsupported:
    avif or unsupported: jp2 (a Pillow without that decoder), unsupported: jxl, unsupported: raw (a camera's), and
    unsupported: raw-thumbnail (a TIFF, mostly a camera's raw file, whose first image is a thumbnail).
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def read_image(file: str | os.PathLike, sha256: str = "", place: Place | None = None) -> Image.Image:
    """RGB image of a file, or of `shard.tar::member`, at `place` as of `read_bytes`; raises `Unreadable`.

    With `sha256` (hex) the bytes that are decoded are those that were hashed: the file is read once.
    """
    data = read_bytes(file, place)
    if sha256 and hashlib.sha256(data).hexdigest() != sha256.lower():
        raise Unreadable("sha256-mismatch")
    return decode(data)


def read_bytes(file: str | os.PathLike, place: Place | None = None) -> bytes:
    """All bytes of a file or of an archive's member, at most `MAX_BYTES`; raises `Unreadable`.

    A member with a `place` is read by one seek; without one its archive is listed. A place where the archive has
    another member, or none, gives `not-at-offset`: the archive was written anew, and the manifest has to be.
    """
    name, member = split_member(os.fspath(file))
    try:
        status = os.stat(name)  # noqa: PTH116 (a Path refuses no name that os does not)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("not-a-file")
        start, size = 0, status.st_size
        if member:
            start, size = place or _find(name, member, status)
            if start > status.st_size:
                raise Unreadable("not-at-offset")
        if size > MAX_BYTES:
            raise Unreadable("too-many-bytes")
        with open(name, "rb") as stream:  # noqa: PTH123
            stream.seek(start)
            if member and place:
                stream.seek(_behind_header(stream, member, size))
            data = stream.read(size)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        raise Unreadable("missing") from error
    except PermissionError as error:
        raise Unreadable("no-access") from error
    except OSError as error:
        if too_many_files(error):  # no fault of the image
            raise
        raise Unreadable("io-error") from error
    if len(data) < size:
        raise Unreadable("truncated")
    return data


class Decoded(NamedTuple):
    """An RGB image, and what a reader of its row must know of how it was decoded."""

    image: Image.Image
    frames: int  # pictures that the file says it holds: the first (of HEIC: the primary one) was decoded
    dct_scale: float | None  # 1/2, 1/4 or 1/8: a large JPEG of which libjpeg decoded that share of each side
    profile: str | None  # name of the colour profile and what was done with it


def decode(data: bytes) -> Image.Image:
    """RGB image (mode "RGB", no metadata) of a file's bytes under `POLICY`; raises `Unreadable`."""
    return decode_fully(data).image


def decode_fully(data: bytes, profiles: Profiles = "ignore") -> Decoded:
    """`decode`, and how; with `srgb` the pixels of an image with a colour profile are converted to sRGB."""
    with opened(data) as image:
        frames, scale = frames_of(image, data), dct_scale(*image.size)
        if scale > 1:
            image.draft(image.mode, (image.width // scale, image.height // scale))
        if image.width * image.height > MAX_PIXELS:
            raise Unreadable("too-large")
        image.load()
        turn = _TURNS.get(_orientation(image))
        pixels, profile = heed_profile(image, _to_rgb(image), profiles)
        pixels = pixels if turn is None else pixels.transpose(turn)
    pixels.info = {}  # else a comment or profile of the source would be written into the next file
    return Decoded(pixels, frames, 1 / scale if scale > 1 else None, profile)


def dct_scale(width: int, height: int) -> int:
    """1, or by how much a large JPEG's sides are divided: libjpeg then uses 4, 2 or 1 of a block's 8 frequencies."""
    return next((by for by in (1, 2, 4) if -(-width // by) * -(-height // by) <= MAX_PIXELS), 8)


def decoded_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) that `decode` gives of an image that was `opened`: scaled, and turned as EXIF says."""
    by = dct_scale(*image.size)
    width, height = (-(-side // by) for side in image.size)
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """A Pillow image whose header is within the limits; whatever fails inside the block becomes `Unreadable`.

    MemoryError passes: a machine's lack of memory must not be booked as a fault of the file.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise Refusal("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so half images would count as whole: set it False")
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with _open(data) as image:
                _check_size(*image.size, _most_pixels(image, data))
                if isinstance(image, TiffImageFile) and image.tag_v2.get(254) in (1, 3, 5, 7):  # NewSubfileType, bit 0
                    raise Unreadable("unsupported: raw-thumbnail")
                yield image
        except (Unreadable, MemoryError):
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise Unreadable("too-large") from error
        except Exception as error:
            cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
            raise Unreadable("truncated" if cut else "corrupt") from error


def _open(data: bytes) -> Image.Image:
    """By the decoder for its kind; nothing but the header is read."""
    kind = kind_of(data)
    if kind in ("heic", "heif"):
        try:
            from pillow_heif import HeifImageFile  # imported where such a file is met, and nowhere else
        except ImportError as error:
            raise Unreadable(f"unsupported: {kind}") from error
        return HeifImageFile(io.BytesIO(data))
    if kind in ("jxl", "raw") or (kind in _CODECS and not features.check(_CODECS[kind])):
        raise Unreadable(f"unsupported: {kind}")
    try:
        return Image.open(io.BytesIO(data), formats=_PILLOW)
    except UnidentifiedImageError as error:
        raise Unreadable("corrupt" if kind else "not-an-image") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        if not data.startswith(b"\xff\xd8\xff"):
            raise
        return jpeg_factory(io.BytesIO(data))  # as Image.open did, without Pillow's limit: ours comes next


def _most_pixels(image: Image.Image, data: bytes) -> int:
    """What the memory for decoding this file allows."""
    if isinstance(image, JpegImageFile) and image.width * image.height > MAX_PIXELS:
        return MAX_JPEG_PIXELS if in_one_pass(data) else MAX_PIXELS
    if image.format == "JPEG2000":
        return MAX_JPEG2000_PIXELS if jpeg2000.fits(data, image.width * image.height) else 0
    return MAX_PIXELS


def _check_size(width: int, height: int, most: int) -> None:
    short, long = sorted((width, height))
    if short * long > most:
        raise Unreadable("too-large")
    if long > MAX_ASPECT * short:
        raise Unreadable("aspect")
    if short < MIN_SIDE:
        raise Unreadable("too-small")


def _orientation(image: Image.Image) -> int:
    if image.format == "HEIF":  # its decoder has turned the picture
        return 1
    if image.format == "AVIF":  # Pillow writes `irot` and `imir` into the EXIF block; nothing else turns it
        image.info.pop("xmp", None)
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block orients nothing, and the picture is whole
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits. Transparent pixels take white, so that no colour hidden under them is seen."""
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):  # their range is unknown: any scale would be a guess
        raise Unreadable("unsupported-mode")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """High byte of 16-bit grey, where Pillow's own convert saturates. 12 bits would come out dark: refuse."""
    if isinstance(image, TiffImageFile) and image.tag_v2.get(258, (16,))[0] != 16:
        raise Unreadable("unsupported-mode")
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def stays_inside(member: str) -> bool:
    """Whether a member of a tar file has a name in it: none that is absolute or climbs out by `..`."""
    name = posixpath.normpath(member)
    return not (name in (".", "..") or name.startswith(("/", "../")) or "\0" in name)


def _behind_header(stream: BinaryIO, member: str, size: int) -> int:
    """Where the bytes of a member begin whose header `stream` stands at."""
    found = None
    with contextlib.suppress(*BAD_TAR), tarfile.open(fileobj=stream, mode="r:") as tar:  # reads one header
        found = tar.next()
    if found is None or not _plain(found) or posixpath.normpath(found.name) != posixpath.normpath(member):
        raise Unreadable("not-at-offset")
    if found.size != size:
        raise Unreadable("not-at-offset")
    return found.offset_data


def _plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse() and stays_inside(member.name)


def _find(archive: str, member: str, status: os.stat_result) -> tuple[int, int]:
    members = _members(archive, status.st_size, status.st_mtime_ns)
    if not members:
        raise Unreadable("bad-archive")
    if posixpath.normpath(member) not in members:
        raise Unreadable("missing")
    return members[posixpath.normpath(member)]


@functools.lru_cache(maxsize=64)
def _members(archive: str, size: int, changed: int) -> dict[str, tuple[int, int]]:
    """Offset and size of each plain file in an uncompressed tar, listed once a process and version.

    Of several members of one name the last counts, as for `tar`; one whose name leaves the archive is left out.
    """
    members = {}
    # A damaged archive ends the list: the members before the damage stay readable.
    with contextlib.suppress(*BAD_TAR), tarfile.open(archive, "r:") as tar:
        for member in tar:
            if _plain(member):
                members[posixpath.normpath(member.name)] = (member.offset_data, member.size)
    return members

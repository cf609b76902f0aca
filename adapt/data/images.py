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

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from adapt.data.manifest import split_member
from adapt.errors import Refusal
from adapt.files import too_many_files

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # an allow-list: EPS, say, would start another program
MAX_BYTES = 2**28
MAX_PIXELS = 2**26  # 67 Mpx: the largest common camera files have 64, and 16 bytes a pixel still fit in 1 GiB
MAX_ASPECT = 20  # resizing the short side of a longer strip to 224 would itself be a bomb
MIN_SIDE = 16  # one patch

# What decoding means, for the fingerprint of everything computed from pixels. Colour profiles are ignored for
# every image alike: converting some would tell cameras, which embed them, from generators, which do not.
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

_lock = threading.RLock()  # warning filters belong to the process, so threads decode one after the other


def _unlocked() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_unlocked)  # a worker forked while a thread decodes must not wait for it


class Unreadable(Exception):
    """An image that gives no pixels. `reason` is one of:

    missing, not-a-file, no-access, io-error, too-many-bytes, bad-archive, sha256-mismatch, not-an-image,
    too-large, too-small, aspect, truncated, corrupt, unsupported-mode.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def read_image(file: str | os.PathLike, sha256: str = "") -> Image.Image:
    """RGB image of a file, or of `shard.tar::member`; raises `Unreadable`.

    With `sha256` (hex) the bytes that are decoded are those that were hashed: the file is read once.
    """
    data = read_bytes(file)
    if sha256 and hashlib.sha256(data).hexdigest() != sha256.lower():
        raise Unreadable("sha256-mismatch")
    return decode(data)


def read_bytes(file: str | os.PathLike) -> bytes:
    """All bytes of a file or of an archive's member, at most `MAX_BYTES`; raises `Unreadable`."""
    name, member = split_member(os.fspath(file))
    try:
        status = os.stat(name)  # noqa: PTH116 (a Path refuses no name that os does not)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("not-a-file")
        start, size = _find(name, member, status) if member else (0, status.st_size)
        if size > MAX_BYTES:
            raise Unreadable("too-many-bytes")
        with open(name, "rb") as stream:  # noqa: PTH123
            stream.seek(start)
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


def decode(data: bytes) -> Image.Image:
    """RGB image (mode "RGB", no metadata) of a file's bytes under `POLICY`; raises `Unreadable`."""
    with opened(data) as image:
        image.load()
        turn = _TURNS.get(_orientation(image))
        pixels = _to_rgb(image)
        pixels = pixels if turn is None else pixels.transpose(turn)
    pixels.info = {}  # else a comment or profile of the source would be written into the next file
    return pixels


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
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(*image.size)
                yield image
        except (Unreadable, MemoryError):
            raise
        except UnidentifiedImageError as error:
            raise Unreadable("not-an-image") from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise Unreadable("too-large") from error
        except Exception as error:
            cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
            raise Unreadable("truncated" if cut else "corrupt") from error


def _check_size(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if short * long > MAX_PIXELS:
        raise Unreadable("too-large")
    if long > MAX_ASPECT * short:
        raise Unreadable("aspect")
    if short < MIN_SIDE:
        raise Unreadable("too-small")


def _orientation(image: Image.Image) -> int:
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
    with contextlib.suppress(tarfile.TarError, ValueError, EOFError), tarfile.open(archive, "r:") as tar:
        for member in tar:
            if member.isreg() and not member.issparse() and stays_inside(member.name):
                members[posixpath.normpath(member.name)] = (member.offset_data, member.size)
    return members

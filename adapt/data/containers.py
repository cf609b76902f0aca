"""What kind of file bytes are, by their marks and never by a name, and how many pictures they say they hold."""

import struct

from PIL import Image

# Brands of an ISO base media file (ISO/IEC 14496-12), which its first box `ftyp` lists: those of HEIF with HEVC
# (23008-12, annex B), of AVIF, of HEIF whatever the codec, and of Canon's CR3. Films have others.
_BRANDS = dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "heic")
_BRANDS |= dict.fromkeys((b"avif", b"avis"), "avif") | {b"crx ": "raw"}
_ANY_CODEC = (b"mif1", b"mif2", b"msf1")
_MOST_BRANDS = 64
_MARKS = {
    b"\xff\x0a": "jxl",
    b"\0\0\0\x0cJXL \r\n\x87\n": "jxl",
    b"\xff\x4f\xff\x51": "jp2",
    b"\0\0\0\x0cjP  \r\n\x87\n": "jp2",
    **dict.fromkeys((b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW"), "raw"),  # Olympus, Panasonic, Fuji
}
MOST_FRAMES = 1000  # pages of a TIFF are counted up to here
_MOST_BLOCKS = 2**20  # of a GIF; a block has up to 255 bytes


def kind_of(data: bytes) -> str:
    """`heic`, `avif`, `heif` (of another codec, or of one that no brand names), `jxl`, `jp2`, `raw`; else empty."""
    for mark, kind in _MARKS.items():
        if data.startswith(mark):
            return kind
    if data.startswith(b"II*\0") and data[8:10] == b"CR":  # Canon's CR2: its first image is a preview
        return "raw"
    if data[4:8] != b"ftyp":
        return ""
    size = min(int.from_bytes(data[:4], "big"), len(data), 16 + 4 * _MOST_BRANDS)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, size - 3, 4))]  # the major one, then the others
    known = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    return known[0] if known else "heif" if any(brand in _ANY_CODEC for brand in brands) else ""


def frames_of(image: Image.Image, data: bytes) -> int:
    """How many pictures the file says it holds: frames of a film, pages, further pictures of a phone.

    Counted in bounded time, whatever the file says: a TIFF up to `MOST_FRAMES`.
    """
    if image.format == "GIF":
        return max(1, _gif_frames(data))
    if image.format == "TIFF":
        return max(1, _tiff_pages(data))
    return min(getattr(image, "n_frames", 1), 2**31 - 1)


def _gif_frames(data: bytes) -> int:
    """Image descriptors (0x2c) of a GIF: GIF89a, sections 18 to 26."""

    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 128 else 0

    at, count, inside = 13 + table(data[10]), 0, False
    for _ in range(_MOST_BLOCKS):
        if at + 10 > len(data):
            break
        if inside:
            inside, at = data[at] != 0, at + data[at] + 1
        elif data[at] == 0x2C:
            count, at, inside = count + 1, at + 11 + table(data[at + 9]), True
        elif data[at] == 0x21:
            at, inside = at + 2, True
        else:
            break
    return count


def _tiff_pages(data: bytes) -> int:
    """Directories of a TIFF or BigTIFF, which are a chain."""
    order = "<" if data.startswith(b"II") else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    count, entry, link = ("Q", 20, "Q") if big else ("H", 12, "I")
    met: set[int] = set()
    (at,) = struct.unpack_from(order + link, data, 8 if big else 4)
    while at and at not in met and len(met) < MOST_FRAMES:
        met.add(at)
        try:
            (entries,) = struct.unpack_from(order + count, data, at)
            (at,) = struct.unpack_from(order + link, data, at + struct.calcsize(count) + entries * entry)
        except (struct.error, OverflowError):
            break
    return len(met)


def in_one_pass(data: bytes) -> bool:
    """Whether a JPEG is sequential, with all components in its first scan: libjpeg then holds a few lines of it.

    Of any other (progressive, a scan for each component) it holds every coefficient, 6 bytes a pixel. No, too, where
    the markers cannot be followed to the first scan.
    """
    at, components = 2, -1
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return data[at + 4] == components
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in (0xC0, 0xC1):
            components = data[at + 9]
        elif marker in (0x01, 0xD8, *range(0xD0, 0xD8)) or (0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xCC)):
            return False
        at += 2 + size
    return False

"""Whether a JPEG 2000 file can be decoded in little memory: a small one may ask OpenJPEG for many GB.

OpenJPEG sets up some 400 bytes for each code block and each precinct and 10 kB for each tile before it reads a bit of
the picture. Their sizes stand in the markers SIZ, COD and COC (ITU-T T.800, annex A), which may come anywhere in front
of a tile's data. So markers are sought in all of the file: what is no marker but looks like one is a chance of 1e-14.
"""

import math
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_TILES = 2**12
MAX_BLOCKS = 2**19  # 200 MB
MAX_PACKETS = 2**22  # layers of all precincts
_SIZ = re.compile(rb"\xff\x4f\xff\x51")
_STYLE = re.compile(rb"\xff[\x52\x53]")  # COD, COC
_COMPONENTS = 4  # Pillow takes no more


def fits(data: bytes, pixels: int) -> bool:
    """Whether tiles, code blocks and packets of a picture of so many pixels stay below the limits."""
    for found in _SIZ.finditer(data):
        try:
            _, _, x, y, _, _, width, height, left, top, components = struct.unpack_from(
                ">HHIIIIIIIIH", data, found.end()
            )
        except struct.error:
            continue
        if not width or not height or components > _COMPONENTS:
            return False
        if math.ceil((x - left) / width) * math.ceil((y - top) / height) > MAX_TILES:
            return False
    styles = list(_styles(data))
    layers = max((style.layers for style in styles), default=1)
    return all(_few(style._replace(layers=layers), pixels) for style in styles)


class _Style(NamedTuple):
    """Layers (1 where it does not say), exponents of a code block's width and height, and (across, down) of the
    precincts of each resolution level, the smallest first."""

    layers: int
    width: int
    height: int
    precincts: list[tuple[int, int]]


def _styles(data: bytes) -> Iterator[_Style]:
    for found in _STYLE.finditer(data):
        at = found.end()
        cod = data[at - 1] == 0x52
        if len(data) < at + 12:
            return
        size, style = int.from_bytes(data[at : at + 2], "big"), data[at + 2 if cod else at + 3]
        levels, width, height = data[at + 7 : at + 10] if cod else data[at + 4 : at + 7]
        first = at + (12 if cod else 9)
        given = levels + 1 if style & 1 else 0
        # OpenJPEG, too, refuses a marker whose length is another, or that has larger blocks
        if size != first - at + given or levels > 32 or width > 8 or height > 8 or width + height > 8:
            continue
        sizes = data[first : first + given] or b"\xff" * (levels + 1)
        layers = int.from_bytes(data[at + 4 : at + 6], "big") if cod else 1
        yield _Style(layers, width + 2, height + 2, [(one & 15, one >> 4) for one in sizes])


def _few(style: _Style, pixels: int) -> bool:
    """By areas; a precinct of a level above the first is halved into its bands."""
    blocks = packets = 0
    for level, (across, down) in enumerate(style.precincts):
        area = _COMPONENTS * (pixels >> 2 * (len(style.precincts) - 1 - level))
        halved = 1 if level else 0
        blocks += area >> min(style.width, max(across - halved, 0)) + min(style.height, max(down - halved, 0))
        packets += style.layers * (_COMPONENTS + (area >> across + down))
    return blocks <= MAX_BLOCKS and packets <= MAX_PACKETS

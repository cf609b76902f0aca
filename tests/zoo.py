"""A zoo of odd and hostile image files: name -> (bytes, expected), built in memory.

`expected` is an array (h, w, 3) of uint8, a size (w, h) for lossy codecs, or the reason of `Unreadable`.
"""

import base64
import functools
import importlib.util
import io
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

W, H = 48, 32
HEIC_IS_READ = importlib.util.find_spec("pillow_heif") is not None  # the extra `heic`
GREY16 = (np.arange(W * H, dtype=np.uint16) * 41).reshape(H, W)  # reaches 62935, each high byte many times


def picture(width: int = W, height: int = H, seed: int = 0) -> np.ndarray:
    """Noise on a gradient: compressible, and no row or column equals its neighbour."""
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None] % 200
    return (ramp + np.random.default_rng(seed).integers(0, 56, (height, width, 3))).astype(np.uint8)


def save(image, kind: str, **options) -> bytes:
    """A file's bytes; `image` is a Pillow image or an array."""
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, data: bytes, *extra: bytes) -> bytes:
    """A PNG written by hand, whose header may say anything. Colour types: 0 grey, 2 RGB, 3 palette."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def rows16(values: np.ndarray) -> bytes:
    """PNG scan lines, filter 0, of 16-bit samples."""
    return b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def oriented(orientation: int) -> bytes:
    """A PNG of `picture()` stored turned, as EXIF defines the eight orientations."""
    shown = picture()
    flat = {1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1]}
    turned = {5: flat[1], 6: flat[2], 7: flat[3], 8: flat[4]}
    stored = flat[orientation] if orientation in flat else turned[orientation].swapaxes(0, 1)
    return save(np.ascontiguousarray(stored), "PNG", exif=exif(orientation))


def tiff(width: int, height: int, bits: int, sample_format: int, data: bytes) -> bytes:
    """A little-endian grey TIFF of one strip, written by hand."""
    strip = 8 + 2 + 10 * 12 + 4
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, strip),
        (277, 1),
        (278, height),
    ]
    tags += [(279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


def bmp(width: int, height: int) -> bytes:
    """Only the header of a BMP."""
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def hidden(mode: str) -> tuple[Image.Image, np.ndarray]:
    """An image with colours hidden under alpha 0 in its left half, and what may be seen of it."""
    alpha = np.zeros((H, W), np.uint8)
    alpha[:, W // 2 :] = 255
    colour = picture()
    image = Image.fromarray(np.dstack([colour, alpha])).convert(mode)
    seen = np.asarray(image.convert("RGBA"))[..., :3].copy()
    seen[:, : W // 2] = 255
    return image, seen


def palette_png(transparency: bytes) -> tuple[bytes, np.ndarray]:
    """Two stripes of palette colours; `transparency` holds the alpha of the entries."""
    index = np.zeros((H, W), np.uint8)
    index[:, W // 2 :] = 1
    lines = b"".join(b"\0" + line.tobytes() for line in index)
    table = chunk(b"PLTE", bytes([200, 10, 20, 30, 180, 40]))
    seen = np.array([[255, 255, 255] if transparency[0] == 0 else [200, 10, 20], [30, 180, 40]], np.uint8)[index]
    return png(W, H, 8, 3, lines, table, chunk(b"tRNS", transparency)), seen


def frames(kind: str, **options) -> bytes:
    others = [Image.fromarray(picture(seed=seed)) for seed in (1, 2)]
    return save(picture(), kind, save_all=True, append_images=others, **options)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "<script>alert(1)</script>")
    return buffer.getvalue()


@functools.cache
def files() -> dict[str, tuple[bytes, object]]:
    return whole() | transparent() | deep() | metadata() | broken() | sized() | phones() | unread()


def whole() -> dict[str, tuple[bytes, object]]:
    """Ordinary files of every format and mode."""
    rgb, size = picture(), (W, H)
    lum = Image.fromarray(rgb).convert("L")
    gif = Image.fromarray(rgb).quantize(64)
    return {
        "rgb.png": (save(rgb, "PNG"), rgb),
        "rgb.bmp": (save(rgb, "BMP"), rgb),
        "rgb.webp": (save(rgb, "WEBP", lossless=True), rgb),
        "lossy.webp": (save(rgb, "WEBP", quality=50), size),
        "rgb.tiff": (save(rgb, "TIFF"), rgb),
        "lzw.tiff": (save(rgb, "TIFF", compression="tiff_lzw"), rgb),
        "deflate.tiff": (save(rgb, "TIFF", compression="tiff_deflate"), rgb),
        "rgb.jpg": (save(rgb, "JPEG"), size),
        "progressive.jpg": (save(rgb, "JPEG", progressive=True), size),
        "grey.jpg": (save(lum, "JPEG"), size),
        "grey.png": (save(lum, "PNG"), grey(np.asarray(lum))),
        "bilevel.png": (save(lum.convert("1"), "PNG"), grey(np.asarray(lum.convert("1")) * 255)),
        "bilevel.tiff": (
            save(lum.convert("1"), "TIFF", compression="group4"),
            grey(np.asarray(lum.convert("1")) * 255),
        ),
        "palette.gif": (save(gif, "GIF"), np.asarray(gif.convert("RGB"))),
        "palette.png": (save(gif, "PNG"), np.asarray(gif.convert("RGB"))),
        "cmyk.jpg": (save(Image.fromarray(rgb).convert("CMYK"), "JPEG"), size),
        "cmyk.tiff": (save(Image.fromarray(rgb).convert("CMYK"), "TIFF"), rgb),
        "ycbcr.tiff": (save(Image.fromarray(rgb).convert("YCbCr"), "TIFF"), size),
        "lab.tiff": (save(Image.fromarray(rgb).convert("LAB"), "TIFF"), size),
        "animated.gif": (frames("GIF"), size),
        "animated.webp": (frames("WEBP", lossless=True), rgb),
        "animated.png": (frames("PNG"), rgb),
        "pages.tiff": (frames("TIFF"), rgb),
        "pages.mpo.jpg": (frames("MPO"), size),
    }


def transparent() -> dict[str, tuple[bytes, object]]:
    """Files with colours under transparent pixels: they must come out white."""
    rgba, rgba_seen = hidden("RGBA")
    la, la_seen = hidden("LA")
    half = np.dstack([np.zeros((H, W, 3), np.uint8), np.full((H, W), 128, np.uint8)])
    key = picture()
    key[:, : W // 2] = (9, 8, 7)
    key_seen = np.where((key == (9, 8, 7)).all(2)[..., None], 255, key).astype(np.uint8)
    stripes, stripes_seen = palette_png(b"\0\xff")
    gif_seen = stripes_seen.copy()
    deep_key = GREY16.copy()
    deep_key[:, :7] = 12345
    return {
        "rgba.png": (save(rgba, "PNG"), rgba_seen),
        "rgba.webp": (save(rgba, "WEBP", lossless=True, exact=True), rgba_seen),
        "rgba.tiff": (save(rgba, "TIFF"), rgba_seen),
        "la.png": (save(la, "PNG"), la_seen),
        "half.png": (save(half, "PNG"), np.full((H, W, 3), 127, np.uint8)),
        "palette-alpha.png": (stripes, stripes_seen),
        "palette-opaque.png": palette_png(b"\xff\xff"),
        "key.png": (save(key, "PNG", transparency=(9, 8, 7)), key_seen),
        "key16.png": (
            png(W, H, 16, 0, rows16(deep_key), chunk(b"tRNS", struct.pack(">H", 12345))),
            grey(np.where(deep_key == 12345, 255, deep_key >> 8)),
        ),
        "transparent.gif": (save(Image.open(io.BytesIO(stripes)), "GIF"), gif_seen),
    }


def deep() -> dict[str, tuple[bytes, object]]:
    """More than eight bits a sample."""
    colour = np.dstack([GREY16, GREY16[::-1], GREY16[:, ::-1]])
    return {
        "grey16.png": (save(GREY16, "PNG"), grey(GREY16 >> 8)),
        "grey16.tiff": (save(GREY16, "TIFF"), grey(GREY16 >> 8)),
        "grey16-big-endian.tiff": (save(GREY16.astype(">u2"), "TIFF"), grey(GREY16 >> 8)),
        "rgb16.png": (png(W, H, 16, 2, rows16(colour.reshape(H, -1))), (colour >> 8).astype(np.uint8)),
        "grey12.tiff": (tiff(W, H, 12, 1, bytes(H * W * 3 // 2)), "unsupported-mode"),
        "signed16.tiff": (tiff(W, H, 16, 2, bytes(H * W * 2)), "unsupported-mode"),
        "int32.tiff": (save(GREY16.astype(np.int32), "TIFF"), "unsupported-mode"),
        "float32.tiff": (save(GREY16.astype(np.float32), "TIFF"), "unsupported-mode"),
    }


def metadata() -> dict[str, tuple[bytes, object]]:
    """Orientation, comments, profiles, text, tails."""
    rgb, size = picture(), (W, H)
    turned = {f"orientation{n}.png": (oriented(n), rgb) for n in range(1, 9)}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a cat, Steps: 20")
    tall = Image.fromarray(rgb).transpose(Image.Transpose.ROTATE_90)
    return turned | {
        "orientation6.tiff": (save(tall, "TIFF", tiffinfo={274: 6}), rgb),
        "orientation6.jpg": (save(tall, "JPEG", exif=exif(6)), size),
        "orientation6.webp": (save(tall, "WEBP", lossless=True, exif=exif(6)), rgb),
        "orientation99.png": (save(rgb, "PNG", exif=exif(99)), rgb),
        "exif-damaged.jpg": (save(rgb, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\x07"), size),
        "exif-garbage.png": (save(rgb, "PNG", exif=b"Exif\0\0\x01\x02\x03"), rgb),
        "profile.png": (save(rgb, "PNG", icc_profile=profile), rgb),
        "profile-damaged.jpg": (save(rgb, "JPEG", icc_profile=b"no profile"), size),
        "text.png": (save(rgb, "PNG", pnginfo=text), rgb),
        "comment.jpg": (save(rgb, "JPEG", comment=b"x" * 60000), size),
        "zip-tail.jpg": (save(rgb, "JPEG") + zipped(), size),
        "script-tail.png": (save(rgb, "PNG") + b"<script>alert(1)</script>", rgb),
        "text-bomb.png": (text_bomb(), "corrupt"),
    }


def text_bomb() -> bytes:
    data = b"Comment\0\0" + zlib.compress(bytes(50_000_000))
    return png(W, H, 8, 0, bytes(H * (W + 1)), chunk(b"zTXt", data))


def broken() -> dict[str, tuple[bytes, object]]:
    """Files cut short, damaged, or of another kind."""
    rgb = picture()
    jpg, lossless, webp = save(rgb, "JPEG"), save(rgb, "PNG"), save(rgb, "WEBP")
    avif, jp2 = save(rgb, "AVIF"), save(rgb, "JPEG2000")
    flipped = bytearray(lossless)
    flipped[lossless.index(b"IDAT") + 40] ^= 0xFF
    return {
        "empty.jpg": (b"", "not-an-image"),
        "page.jpg": (b"<!doctype html><title>404</title>", "not-an-image"),
        "document.pdf": (b"%PDF-1.7\n%%EOF", "not-an-image"),
        "vector.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>', "not-an-image"),
        "program.eps": (save(rgb, "EPS"), "not-an-image"),
        "pixmap.ppm": (save(rgb, "PPM"), "not-an-image"),
        "icon.ico": (save(rgb, "ICO"), "not-an-image"),
        "half.avif": (avif[: len(avif) // 2], "corrupt"),
        "half.jp2": (jp2[: len(jp2) // 2], "corrupt"),
        "no-header.avif": (avif[:40], "corrupt"),
        "no-header.jp2": (jp2[:40], "corrupt"),
        "zeros.png": (bytes(4096), "not-an-image"),
        "magic-only.png": (b"\x89PNG\r\n\x1a\n", "not-an-image"),
        "half.jpg": (jpg[: len(jpg) // 2], "truncated"),
        "last-byte.jpg": (jpg[:-40], "truncated"),
        "half.png.png": (lossless[: len(lossless) // 2], "truncated"),
        "half.webp": (webp[: len(webp) // 2], "corrupt"),
        "half.gif": (save(Image.fromarray(rgb).quantize(64), "GIF")[:900], "truncated"),
        "half.bmp": (save(rgb, "BMP")[:2000], "truncated"),
        "half.tiff": (save(rgb, "TIFF")[:2000], "truncated"),
        "header-only.bmp": (bmp(W, H), "truncated"),
        "flipped.png": (bytes(flipped), "corrupt"),
        "no-pixels.png": (png(W, H, 8, 2, b""), "truncated"),
    }


def sized() -> dict[str, tuple[bytes, object]]:
    """Too many pixels, too few, too long: judged by the header."""
    return {
        "1x1.png": (save(picture(1, 1), "PNG"), "too-small"),
        "15x15.png": (save(picture(15, 15), "PNG"), "too-small"),
        "16x16.png": (save(picture(16, 16), "PNG"), picture(16, 16)),
        "320x16.png": (save(picture(320, 16), "PNG"), picture(320, 16)),
        "321x16.png": (save(picture(321, 16), "PNG"), "aspect"),
        "2x20000.png": (save(np.zeros((20000, 2, 3), np.uint8), "PNG"), "aspect"),
        "0x0.png": (png(0, 0, 8, 2, b""), "not-an-image"),
        "bomb9000.png": (png(9000, 9000, 8, 2, bytes(1000)), "too-large"),
        "bomb12000.png": (png(12000, 12000, 8, 2, bytes(1000)), "too-large"),
        "bomb60000.png": (png(60000, 60000, 8, 2, bytes(1000)), "too-large"),
        "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0" + gif_frame(), "too-large"),
        "bomb-frame.gif": (b"GIF89a" + struct.pack("<HH", W, H) + b"\0\0\0" + gif_frame(60000), "too-large"),
        "bomb.bmp": (bmp(30000, 30000), "too-large"),
        "bomb.tiff": (tiff(30000, 30000, 8, 1, bytes(100)), "too-large"),
        "bomb.webp": (webp_header(16384, 16384), "too-large"),
        "bomb.jpg": (jpeg_of(65500, 65500), "too-large"),
        "bomb-long.jpg": (jpeg_of(65500, 3000), "aspect"),
        "bomb-progressive.jpg": (jpeg_of(9000, 9000, progressive=True), "too-large"),
        "bomb.avif": (avif_of(16000, 16000), "too-large"),
        "bomb60000.avif": (avif_of(60000, 60000), "corrupt"),  # libavif's own limit
        "bomb.jp2": (jp2_of(9000, 9000), "too-large"),
        "bomb-blocks.jp2": (jp2_of(5000, 5000, block=0), "too-large"),  # 4 x 4 px each: 2 GB
        "bomb-precincts.jp2": (jp2_of(1024, 1024, precinct=1), "too-large"),  # 2 x 2 px each
        "bomb-tiles.jp2": (jp2_of(250, 250, tile=1), "too-large"),
        "bomb-lie.jp2": (jp2_of(W, H, 20000), "corrupt"),  # by its boxes a small picture
    }


def jpeg_of(width: int, height: int, **options) -> bytes:
    """A small JPEG whose header says another size."""
    data = bytearray(save(picture(16, 16), "JPEG", **options))
    at = re.search(rb"\xff[\xc0\xc2]\0\x11\x08", data).end()
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def avif_of(width: int, height: int) -> bytes:
    """A small AVIF whose property `ispe` says another size."""
    data = save(picture(16, 16), "AVIF")
    return data.replace(
        b"ispe\0\0\0\0" + struct.pack(">II", 16, 16), b"ispe\0\0\0\0" + struct.pack(">II", width, height)
    )


def jp2_of(
    width: int, height: int, side: int = 0, tile: int = 0, block: int | None = None, precinct: int | None = None
) -> bytes:
    """A small JPEG 2000 whose headers say another size (in its codestream `side`), tile, code block or precinct."""
    data = bytearray(save(picture(16, 16), "JPEG2000"))
    at = data.index(b"ihdr") + 4
    data[at : at + 8] = struct.pack(">II", height, width)
    at = data.index(b"\xff\x4f\xff\x51") + 8
    data[at : at + 8] = struct.pack(">II", side or width, side or height)
    data[at + 16 : at + 24] = struct.pack(">II", tile or side or width, tile or side or height)
    at = data.index(b"\xff\x52")
    if block is not None:
        data[at + 10 : at + 12] = bytes([block, block])
    if precinct is not None:
        levels = data[at + 9]
        data[at + 14 : at + 14] = bytes([precinct << 4 | precinct]) * (levels + 1)
        data[at + 3], data[at + 4] = 12 + levels + 1, 1
    return bytes(data)


def cmyk_jp2() -> bytes:
    """`picture()` in four inks: written as if it were RGBA, with another number in its box `colr`."""
    inks = Image.fromarray(picture()).convert("CMYK")
    data = save(Image.frombytes("RGBA", inks.size, inks.tobytes()), "JPEG2000")
    at = data.index(b"colr") + 7
    return data[:at] + struct.pack(">I", 12) + data[at + 4 :]


def quarters() -> np.ndarray:
    """The picture in `HEIC`: each quarter of a colour of its own."""
    shown = np.empty((H, W, 3), np.uint8)
    shown[: H // 2, : W // 2], shown[: H // 2, W // 2 :] = (200, 30, 30), (30, 160, 40)
    shown[H // 2 :, : W // 2], shown[H // 2 :, W // 2 :] = (40, 60, 200), (230, 220, 60)
    return shown


# Columns are the XYZ of Display P3's primaries, adapted to D50 after Bradford.
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])


def profile(space: bytes = b"RGB ", name: str = "Display P3") -> bytes:
    """An ICC profile, version 2, with the primaries of Display P3 and a gamma of 2.2."""

    def s15(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    text = name.encode() + b"\0"
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(79)}
    tags |= {b"wtpt": b"XYZ " + bytes(4) + s15(0.9642, 1.0, 0.8249)}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for i, letter in enumerate(b"rgb"):
            tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + s15(*P3[:, i])
            tags[bytes([letter]) + b"TRC"] = curve
    table, data = b"", b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I", 128 + len(body)) + bytes(4) + b"\x02\x10\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    head += bytes(28) + s15(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + body


def phones() -> dict[str, tuple[bytes, object]]:
    """What phones and newer programs write."""
    rgb, size = picture(), (W, H)
    tall = Image.fromarray(rgb).transpose(Image.Transpose.ROTATE_90)
    rgba, rgba_seen = hidden("RGBA")
    la, la_seen = hidden("LA")
    lum = Image.fromarray(rgb).convert("L")
    return {
        "film.avif": (save(rgb, "AVIF"), size),
        "grey.avif": (save(lum, "AVIF"), size),
        "rgba.avif": (save(rgba, "AVIF"), size),
        "animated.avif": (frames("AVIF"), size),
        "orientation6.avif": (save(tall, "AVIF", exif=exif(6)), size),
        "rgb.jp2": (save(rgb, "JPEG2000"), rgb),
        "rgb.j2k": (save(rgb, "JPEG2000", no_jp2=True), rgb),
        "tiled.jp2": (save(rgb, "JPEG2000", tile_size=(16, 16)), rgb),
        "lossy.jp2": (save(rgb, "JPEG2000", irreversible=True, quality_layers=[8]), size),
        "sycc.jp2": (save(Image.fromarray(rgb).convert("YCbCr"), "JPEG2000"), size),
        "grey.jp2": (save(lum, "JPEG2000"), grey(np.asarray(lum))),
        "grey16.jp2": (save(GREY16, "JPEG2000"), grey(GREY16 >> 8)),
        "rgba.jp2": (save(rgba, "JPEG2000"), rgba_seen),
        "la.jp2": (save(la, "JPEG2000"), la_seen),
        "cmyk.jp2": (cmyk_jp2(), np.asarray(Image.fromarray(rgb).convert("CMYK").convert("RGB"))),
        **{name: (data, size if HEIC_IS_READ else "unsupported: heic") for name, data in HEIC.items()},
    }


def unread() -> dict[str, tuple[bytes, object]]:
    """Images that nothing here decodes, and films, by their first bytes."""
    lum = Image.fromarray(picture()).convert("L")
    return {
        "still.jxl": (b"\xff\x0a" + bytes(100), "unsupported: jxl"),
        "box.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "unsupported: jxl"),
        "photo.cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "unsupported: raw"),
        "photo.cr3": (ftyp(b"crx ", b"isom"), "unsupported: raw"),
        "photo.raf": (b"FUJIFILMCCD-RAW 0201" + bytes(100), "unsupported: raw"),
        "thumbnail-first.dng": (save(lum, "TIFF", tiffinfo={254: 1}), "unsupported: raw-thumbnail"),
        "page-of-many.tiff": (save(lum, "TIFF", tiffinfo={254: 2}), grey(np.asarray(lum))),
        "film.mp4": (ftyp(b"isom", b"iso2", b"avc1", b"mp41"), "not-an-image"),
        "film.mov": (ftyp(b"qt  ", b"qt  "), "not-an-image"),
    }


def ftyp(*brands: bytes) -> bytes:
    """The first box of an ISO base media file with these brands, the major one first, and bytes without meaning."""
    names = brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", 8 + len(names)) + b"ftyp" + names + bytes(4000)


def gif_frame(side: int = 16) -> bytes:
    return b"," + struct.pack("<HHHH", 0, 0, side, side) + b"\x80\0\0\0\xff\xff\xff\x02\x02\x4c\x01\0;"


def webp_header(width: int, height: int) -> bytes:
    """A small lossless picture under an extended header that claims a huge canvas."""
    body = save(picture(16, 16), "WEBP", lossless=True)[12:]
    frame = struct.pack("<I", 0)[:3] * 2 + struct.pack("<I", 15)[:3] * 2 + struct.pack("<I", 100)[:3] + b"\0"
    animation = b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    animation += b"ANMF" + struct.pack("<I", len(frame) + len(body)) + frame + body
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    data = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas + animation
    return b"RIFF" + struct.pack("<I", len(data)) + data


# `quarters()` as HEVC in HEIF, written once by x265: as it is, turned by `irot` with the EXIF tag beside it, and
# followed by a second picture.
HEIC = {
    name: base64.b64decode(text)
    for name, text in {
        "phone.heic": """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAWdtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA
AAAERAAAEAAQAAAAABiwABAAAAAAAAAGcAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA52lwcnAA
AADIaXBjbwAAAHZodmNDAQNwAAAAAAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkA
AAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAMAAAAAEAAAAg
AAAAAf////AAAAAC////4AAAAAIAAAAOcGl4aQAAAAABCAAAABdpcG1hAAAAAAAAAAEAAQSBAgSDAAAAb21kYXQAAABjKAGvCeDivzip//M8b/
78nZe0upKoEHlSsniD/9HSg4F7EQQpj2r3+aikefK1/nduySw8/cEw/mUoUR8kY8h0v8bZHReTh5P7qNW4ocBwOXAdaJaYOz4/N4Teyi+BMRta
v6+A""",
        "orientation6.heic": """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAbJtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAA
AAAERAAAIAAQAAAAAB1gABAAAAAAAAAI0AAgAAAAACYwABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVp
bmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAAA8WlwcnAAAADRaXBjbwAAAHZodmNDAQNwAAAAAAAAAAAAHvAA/P34+AAADwNgAAEAGE
ABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkA
AAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAIAAAAAEAAAAwAAAAAf///+AAAAAC////8AAAAAIAAAAOcGl4aQAAAAABCAAAAAlpcm90Aw
AAABhpcG1hAAAAAAAAAAEAAQWBAgSDhQAAABppcmVmAAAAAAAAAA5jZHNjAAIAAQABAAAAuW1kYXQAAACJKAGvCeAjNS3/2E//+y7//SBGMX8w
+2/qOpX4dCLRrS8/45D+0nfazDQfSxjB/3zsZ6k9fFdH/xXS/xt39GZuCM+2pyStkrfPyl5QgAIXalcKhjjRggwNiJmJ4tU5oT8Ag4rY+xMJnE
Rp0FYl45ygMYYbXMp9clzTWLMnyo8tRNk2AQcVsfY8hJgAAAAGRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA=""",
        "two.heic": """
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAZVtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAA
AAAERAAAIAAQAAAAABuQABAAAAAAAAAGcAAgAAAAACIAABAAAAAAAAAG8AAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVp
bmZlAgAAAAACAABodmMxAAAAAA5waXRtAAAAAAABAAAA7mlwcnAAAADIaXBjbwAAAHZodmNDAQNwAAAAAAAAAAAAHvAA/P34+AAADwNgAAEAGE
ABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkA
AAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAMAAAAAEAAAAgAAAAAf////AAAAAC////4AAAAAIAAAAOcGl4aQAAAAABCAAAAB5pcG1hAA
AAAAAAAAIAAQSBAgSDAAIEgQIEgwAAAN5tZGF0AAAAYygBrwng4r84qf/zPG/+/J2XtLqSqBB5UrJ4g//R0oOBexEEKY9q9/mopHnytf53bsks
PP3BMP5lKFEfJGPIdL/G2R0Xk4eT+6jVuKHAcDlwHWiWmDs+PzeE3sovgTEbWr+vgAAAAGsoAa8J4OOEmpav+oz//74p5C2RMZXz/8fDbvcQ/+
qFBmsgbB4nz+p5+ZjzHD/6gcX+ymr/NGeHH2/xynJVBcCkN37nlaCR836VF5gMqXvT4cnThQHY735u/98Ra9+EKdAbabwrbSunXXGb0g==""",
    }.items()
}


def make_ways_out(root: Path) -> None:
    """Make a folder with links that lead out of it, to a file beside it."""
    (root / "b").mkdir(parents=True)
    (root.parent / "a.png").write_bytes(b"1")
    (root / "up").symlink_to("..")
    (root / "leaf.png").symlink_to("../a.png")
    (root / "up.tar").symlink_to("../a.png")

"""A zoo of odd and hostile image files: name -> (bytes, expected), built in memory.

`expected` is an array (h, w, 3) of uint8, a size (w, h) for lossy codecs, or the reason of `Unreadable`.
"""

import functools
import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

W, H = 48, 32
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
    return whole() | transparent() | deep() | metadata() | broken() | sized()


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
        "film.avif": (save(rgb, "AVIF"), "not-an-image"),
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
    }


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

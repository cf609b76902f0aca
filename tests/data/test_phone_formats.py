"""HEIC, AVIF, JPEG 2000, photographs of 108 Mpx, colour profiles, several pictures in a file: what is read, how."""

import contextlib
import re
import struct
import sys

import numpy as np
import pytest
import zoo
from PIL import Image

from adapt.data import images
from adapt.data.containers import MOST_FRAMES, frames_of, in_one_pass, kind_of
from adapt.data.images import Unreadable, decode, decode_fully, opened
from adapt.data.masks import size_of

FILES = zoo.files()
RGB = zoo.save(zoo.picture(), "PNG")


def reason(data: bytes) -> str:
    with pytest.raises(Unreadable) as caught:
        decode(data)
    return caught.value.reason


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        ([b"heic"], "heic"),
        ([b"mif1", b"mif1", b"heic"], "heic"),
        ([b"heix", b"avif"], "heic"),
        ([b"mif1", b"miaf", b"avif"], "avif"),
        ([b"avis", b"heic"], "avif"),
        ([b"mif1", b"vvic"], "heif"),
        ([b"isom", b"avc1"], ""),
        ([b"qt  "], ""),
        ([b"crx "], "raw"),
    ],
)
def test_a_box_file_is_what_its_brands_say(brands, kind) -> None:
    data = zoo.ftyp(*brands)
    assert kind_of(data) == kind
    # nothing behind the box counts, nor what an absurd length of it takes in beyond its brands
    assert kind_of(data + b"heic" * 100) == kind
    assert kind_of(b"\xff\xff\xff\xff" + data[4:] + bytes(2000) + b"heic" * 100) == kind


def test_a_heic_without_its_decoder_says_so_and_nothing_else_is_touched(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    assert {reason(data) for data in zoo.HEIC.values()} == {"unsupported: heic"}
    assert reason(zoo.ftyp(b"mif1", b"vvic")) == "unsupported: heif"
    np.testing.assert_array_equal(np.asarray(decode(RGB)), zoo.picture())


def test_its_decoder_is_imported_only_for_a_heic(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    for name, (data, _) in FILES.items():
        if name not in zoo.HEIC:
            with contextlib.suppress(Unreadable):
                decode(data)
    assert "pillow_heif" not in sys.modules


needs_heic = pytest.mark.skipif(not zoo.HEIC_IS_READ, reason="needs the extra `heic`")


@needs_heic
@pytest.mark.parametrize("name", zoo.HEIC)
def test_a_heic_comes_upright_and_once_turned(name) -> None:
    decoded = decode_fully(zoo.HEIC[name])
    assert np.abs(np.asarray(decoded.image).astype(int) - zoo.quarters()).mean() < 3
    assert decoded.frames == (2 if name == "two.heic" else 1)


@needs_heic
def test_a_heic_is_within_the_limits_or_refused_before_it_is_decoded(monkeypatch) -> None:
    data = zoo.HEIC["phone.heic"]
    monkeypatch.setattr(images, "MAX_PIXELS", zoo.W * zoo.H)
    assert decode(data).size == (zoo.W, zoo.H)
    monkeypatch.setattr(images, "MAX_PIXELS", zoo.W * zoo.H - 1)
    monkeypatch.setattr("pillow_heif.HeifImageFile.load", lambda image: pytest.fail("was decoded"))
    assert reason(data) == "too-large"


@needs_heic
@pytest.mark.parametrize("size", [(60000, 60000), (8191, 8191)])
def test_a_heic_that_lies_about_its_size_takes_no_memory(size) -> None:
    lie = b"ispe\0\0\0\0" + struct.pack(">II", *size)
    data = re.sub(rb"ispe\0{4}.{8}", lambda _: lie, zoo.HEIC["phone.heic"], flags=re.DOTALL)
    assert data != zoo.HEIC["phone.heic"] and reason(data) in ("corrupt", "too-large")


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_a_pillow_without_a_decoder_says_so(kind, monkeypatch) -> None:
    data = zoo.save(zoo.picture(), kind)
    monkeypatch.setattr(images.features, "check", lambda name: name not in ("avif", "jpg_2000"))
    assert reason(data) == {"AVIF": "unsupported: avif", "JPEG2000": "unsupported: jp2"}[kind]


def test_the_block_of_xmp_turns_no_avif() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decode(zoo.save(zoo.picture(), "AVIF", xmp=xmp)).size == (zoo.W, zoo.H)


def test_jpeg_2000_has_a_limit_of_its_own(monkeypatch) -> None:
    data = zoo.save(zoo.picture(), "JPEG2000")
    monkeypatch.setattr(images, "MAX_JPEG2000_PIXELS", zoo.W * zoo.H)
    assert decode(data).size == (zoo.W, zoo.H)
    monkeypatch.setattr(images, "MAX_JPEG2000_PIXELS", zoo.W * zoo.H - 1)
    assert reason(data) == "too-large"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile_size": (512, 512)},
        {"codeblock_size": (32, 32), "precinct_size": (256, 256)},
        {"irreversible": True, "quality_layers": [40, 20, 10]},
    ],
)
def test_ordinary_jpeg_2000_of_megapixels_is_read(options) -> None:
    picture = zoo.picture(1600, 1200)
    found = np.asarray(decode(zoo.save(picture, "JPEG2000", **options))).astype(int)
    assert np.abs(found - picture).mean() < (20 if options.get("irreversible") else 1e-9)


# photographs of more than MAX_PIXELS


@pytest.mark.parametrize(("limit", "by"), [(1, 1), (2, 2), (4, 2), (5, 4), (16, 4), (17, 8)])
def test_a_large_jpeg_comes_at_the_largest_scale_that_fits(limit, by, monkeypatch) -> None:
    side = 256
    smooth = np.asarray(Image.fromarray(zoo.picture(40, 40)).resize((side, side), Image.Resampling.BICUBIC))
    data = zoo.save(smooth, "JPEG", quality=98, subsampling="4:4:4")
    full = np.asarray(decode(data)).astype(float)
    monkeypatch.setattr(images, "MAX_PIXELS", side * side // limit)
    found, _, scale, _ = decode_fully(data)
    assert found.size == (side // by, side // by) and scale == (1 / by if by > 1 else None)
    mean = full.reshape(side // by, by, side // by, by, 3).mean(axis=(1, 3))  # as if light had fallen on larger pixels
    assert np.abs(np.asarray(found) - mean).mean() < 2


def test_a_turned_large_jpeg_has_the_size_that_masks_are_held_against(monkeypatch, tmp_path) -> None:
    data = zoo.save(zoo.picture(65, 129), "JPEG", exif=zoo.exif(6))
    (tmp_path / "a.jpg").write_bytes(data)
    monkeypatch.setattr(images, "MAX_PIXELS", 65 * 129 // 3)
    assert decode(data).size == size_of(tmp_path / "a.jpg") == (65, 33)
    with opened(data) as image:
        assert image.size == (65, 129)  # headers tell the size of the file


def test_the_limit_of_a_jpeg_is_exact_and_only_that_of_one_pass(monkeypatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64)
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 128 * 128)
    allowed = zoo.save(zoo.picture(128, 128), "JPEG")
    assert decode(allowed).size == (64, 64)
    assert reason(zoo.save(zoo.picture(128, 129), "JPEG")) == "too-large"
    assert reason(zoo.save(zoo.picture(128, 128), "JPEG", progressive=True)) == "too-large"
    assert reason(zoo.save(zoo.picture(128, 128), "PNG")) == "too-large"
    assert decode(zoo.save(zoo.picture(64, 64), "JPEG", progressive=True)).size == (64, 64)
    several = [Image.fromarray(zoo.picture(128, 96, seed)) for seed in (0, 1)]
    found = decode_fully(zoo.save(several[0], "MPO", save_all=True, append_images=several[1:]))
    assert found.image.size == (64, 48) and found.frames == 2  # phones add a gain map


def test_a_jpeg_that_libjpeg_would_hold_whole_is_told_apart() -> None:
    data = zoo.save(zoo.picture(), "JPEG")
    scan = data.index(b"\xff\xda") + 4
    assert in_one_pass(data) and in_one_pass(zoo.save(zoo.picture()[..., 0], "JPEG"))
    assert in_one_pass(data[:2] + b"\xff\xfe\0\x04\xff\xc2" + data[2:])  # a comment is no marker
    assert not in_one_pass(data[:scan] + b"\1" + data[scan + 1 :])  # a scan of one component
    assert not in_one_pass(zoo.save(zoo.picture(), "JPEG", progressive=True))
    assert not in_one_pass(data[:scan]) and not in_one_pass(b"\xff\xd8\xff")
    assert not in_one_pass(data[:2] + b"junk" + data[2:])


def test_photographs_of_108_mpx_are_read() -> None:
    decoded = decode_fully(zoo.save(Image.new("L", (12000, 9000), 90), "JPEG", quality=50))
    assert decoded.image.size == (6000, 4500) and decoded.dct_scale == 0.5
    assert decoded.image.getextrema() == ((90, 90),) * 3


# several pictures in one file


@pytest.mark.parametrize("name", ["gif", "webp", "png", "avif"])
def test_pictures_of_a_film_are_counted_and_the_first_is_judged(name) -> None:
    data = FILES[f"animated.{name}"][0]
    assert decode_fully(data).frames == 3
    mean = np.abs(np.asarray(decode(data)).astype(int) - zoo.picture()).mean()
    assert mean < 25


@pytest.mark.parametrize("name", sorted(FILES))
def test_pillow_counts_the_same(name) -> None:
    try:
        with opened(FILES[name][0]) as image:
            assert frames_of(image, FILES[name][0]) == getattr(image, "n_frames", 1)
    except Unreadable:
        pass


def test_pages_are_counted_in_bounded_time() -> None:
    pages = FILES["pages.tiff"][0]
    assert decode_fully(pages).frames == 3
    big = zoo.save(zoo.picture(), "TIFF", big_tiff=True)
    assert decode_fully(big).frames == 1
    (first,) = struct.unpack_from("<I", pages, 4)
    (entries,) = struct.unpack_from("<H", pages, first)
    last = first + 2 + 12 * entries
    assert decode_fully(pages[:last] + struct.pack("<I", first) + pages[last + 4 :]).frames == 1  # a circle
    chain = b"".join(struct.pack("<HI", 0, len(pages) + 6 * (i + 1)) for i in range(5 * MOST_FRAMES))
    assert decode_fully(pages[:last] + struct.pack("<I", len(pages)) + pages[last + 4 :] + chain).frames == MOST_FRAMES


# colour profiles


# Columns are the primaries' XYZ under D50 of sRGB (IEC 61966-2-1), adapted after Bradford.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])


def in_srgb(pixels: np.ndarray) -> np.ndarray:
    """By hand: through XYZ into sRGB, clipped and rounded."""
    linear = (pixels / 255.0) ** 2.2 @ zoo.P3.T @ np.linalg.inv(SRGB).T
    linear = linear.clip(0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * coded)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_colour_profile_is_ignored_or_converted_as_asked(kind) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (zoo.H, zoo.W, 3), np.uint8)
    data = zoo.save(picture, kind, icc_profile=zoo.profile())
    ignored, seen = decode_fully(data), decode_fully(data, "srgb")
    np.testing.assert_array_equal(np.asarray(ignored.image), picture)
    assert (ignored.profile, seen.profile) == ("Display P3, ignored", "Display P3, to sRGB")
    away = np.abs(np.asarray(seen.image).astype(int) - in_srgb(picture))
    assert away.mean() < 1 and np.percentile(away, 99) <= 3
    assert np.abs(in_srgb(picture) - picture).mean() > 5  # else nothing would be told apart
    assert seen.image.info == {}


def test_orientation_and_transparency_stay_with_a_converted_profile() -> None:
    rgba, seen = zoo.hidden("RGBA")
    found = np.asarray(decode_fully(zoo.save(rgba, "PNG", icc_profile=zoo.profile()), "srgb").image)
    assert np.abs(found.astype(int) - in_srgb(seen)).mean() < 1
    tall = Image.fromarray(zoo.picture()).transpose(Image.Transpose.ROTATE_90)
    data = zoo.save(tall, "PNG", icc_profile=zoo.profile(), exif=zoo.exif(6))
    assert np.abs(np.asarray(decode_fully(data, "srgb").image).astype(int) - in_srgb(zoo.picture())).mean() < 1


def test_a_grey_profile_is_for_grey() -> None:
    grey = zoo.picture()[..., 0]
    data = zoo.save(grey, "PNG", icc_profile=zoo.profile(b"GRAY", "Dot Gain"))
    found = decode_fully(data, "srgb")
    coded = in_srgb(zoo.grey(grey))
    assert found.profile == "Dot Gain, to sRGB"
    assert np.abs(np.asarray(found.image).astype(int) - coded).mean() < 1.5


@pytest.mark.parametrize(
    ("icc", "says"),
    [
        (b"no profile", "unreadable, ignored"),
        (zoo.profile()[:200], "unreadable, ignored"),
        (zoo.profile(b"GRAY"), "Display P3, ignored: made for GRAY"),
        (zoo.profile(name="sRGB IEC61966-2.1"), "sRGB IEC61966-2.1, kept"),
        (zoo.profile(name="a\nb\x1b[31m" + "x" * 60), "ab[31m" + "x" * 34 + ", to sRGB"),
    ],
)
def test_a_profile_that_does_not_fit_is_said_and_ignored(icc, says) -> None:
    picture = zoo.picture()
    found = decode_fully(zoo.save(picture, "PNG", icc_profile=icc), "srgb")
    assert found.profile == says
    if not says.endswith("to sRGB"):
        np.testing.assert_array_equal(np.asarray(found.image), picture)


def test_most_images_have_no_profile() -> None:
    assert decode_fully(RGB, "srgb").profile is None

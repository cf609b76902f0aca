"""Views that part content from trace: what they keep, against brute force."""

import numpy as np
import pytest
import zoo
from PIL import Image

from adapt.data.dissection import bands, plainest_place, random_place, shuffled, turned
from adapt.data.images import Unreadable
from adapt.data.views import parse_view
from adapt.errors import Refusal

YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])  # T.871, rounded


def picture(width: int = 96, height: int = 64, seed: int = 0) -> np.ndarray:
    return zoo.picture(width, height, seed)


def patches(pixels: np.ndarray, side: int) -> list[bytes]:
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    places = ((side * r, side * c) for r in range(rows) for c in range(columns))
    return [pixels[y : y + side, x : x + side].tobytes() for y, x in places]


@pytest.mark.parametrize(
    ("width", "height", "side"), [(96, 64, 32), (96, 64, 8), (100, 70, 16), (33, 17, 16), (40, 20, 20)]
)
def test_shuffling_moves_every_patch_and_loses_none(width, height, side):
    before = picture(width, height)
    after = shuffled(before, side)
    old, new = patches(before, side), patches(after, side)
    assert sorted(old) == sorted(new)
    assert not any(a == b for a, b in zip(old, new, strict=True))
    inner = (slice(0, height // side * side), slice(0, width // side * side))
    rest = np.ones((height, width), bool)
    rest[inner] = False
    np.testing.assert_array_equal(after[rest], before[rest])


def test_images_of_one_size_are_shuffled_alike_and_too_small_ones_are_named():
    one, other = picture(seed=1), picture(seed=2)
    both = shuffled(np.concatenate([one, other], axis=2), 16)
    np.testing.assert_array_equal(both, np.concatenate([shuffled(one, 16), shuffled(other, 16)], axis=2))
    with pytest.raises(Unreadable, match="too-small"):
        parse_view("shuffle64")(Image.fromarray(picture(96, 96)))


def test_a_random_crop_is_native_pixels_somewhere_else_in_every_image():
    places = [random_place(picture(seed=seed)) for seed in range(6)]
    assert len(set(places)) == 6 and all(0 <= x < 1 and 0 <= y < 1 for x, y in places)
    source = picture(60, 50)
    crop = np.asarray(parse_view("spot16")(Image.fromarray(source), at=(0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(source, (16, 16, 3))
    assert (windows == crop).all(axis=(-3, -2, -1)).any()


@pytest.mark.parametrize("seed", range(3))
def test_the_plainest_crop_is_that_of_brute_force(seed):
    source, side = picture(48, 40, seed), 16
    luma = source @ np.array([0.299, 0.587, 0.114])

    def gradient(y: int, x: int) -> float:
        window = luma[y : y + side, x : x + side]
        return np.abs(np.diff(window, axis=0)).sum() + np.abs(np.diff(window, axis=1)).sum()

    least = min(gradient(y, x) for y in range(40 - side + 1) for x in range(48 - side + 1))
    x, y = plainest_place(source, side)
    assert gradient(round(y * (40 - side)), round(x * (48 - side))) == pytest.approx(least)
    crop = np.asarray(parse_view("plain16")(Image.fromarray(source)))
    grey = crop @ np.array([0.299, 0.587, 0.114])
    assert np.abs(np.diff(grey, axis=0)).sum() + np.abs(np.diff(grey, axis=1)).sum() == pytest.approx(least)
    assert parse_view("plain64")(Image.fromarray(source)).size == (64, 64)


@pytest.mark.parametrize("degrees", [90, 180, 300])
def test_hue_turns_chroma_and_leaves_luma(degrees):
    soft = (picture() // 4 + 96).astype(np.uint8)  # near grey: nothing leaves the gamut
    before, after = soft @ YCC.T, turned(soft, degrees) @ YCC.T
    assert np.abs(after[..., 0] - before[..., 0]).max() < 0.6
    angle = np.deg2rad(degrees)
    cb, cr = before[..., 1], before[..., 2]
    assert np.abs(after[..., 1] - (np.cos(angle) * cb - np.sin(angle) * cr)).max() < 1
    assert np.abs(after[..., 2] - (np.sin(angle) * cb + np.cos(angle) * cr)).max() < 1
    assert np.abs(turned(turned(soft, degrees), 360 - degrees).astype(int) - soft).max() <= 2
    grey = np.repeat(soft[..., :1], 3, axis=2)
    np.testing.assert_array_equal(turned(grey, degrees), grey)


@pytest.mark.parametrize("cutoff", [0.02, 0.125, 0.5])
def test_bands_are_complementary_and_gaussian_in_frequency(cutoff):
    source = picture(50, 40).astype(np.float64)
    low, high = bands(source, cutoff)
    np.testing.assert_allclose(low + high, source, rtol=0, atol=1e-10)
    # the same filter as a Fourier transform of the image and its mirror images
    mirrored = np.concatenate([source, source[::-1]], axis=0)
    mirrored = np.concatenate([mirrored, mirrored[:, ::-1]], axis=1)
    y, x = np.fft.fftfreq(80), np.fft.fftfreq(100)
    gain = np.exp(-np.log(2) * (y[:, None] ** 2 + x**2) / cutoff**2)
    expected = np.fft.ifft2(np.fft.fft2(mirrored, axes=(0, 1)) * gain[..., None], axes=(0, 1)).real[:40, :50]
    np.testing.assert_allclose(low, expected, atol=1e-8)


def test_a_grating_at_the_cutoff_is_halved():
    wave = np.cos(np.pi * 32 * (np.arange(64) + 0.5) / 64)[None].repeat(16, 0)  # 1/4 cycle a pixel
    low, high = bands(wave, 0.25)
    np.testing.assert_allclose(low, wave / 2, atol=1e-12)
    np.testing.assert_allclose(high, wave / 2, atol=1e-12)


def test_the_views_of_both_bands_add_up_but_for_rounding():
    soft = (picture() // 4 + 96).astype(np.uint8)
    low, high = (
        np.asarray(parse_view(f"{name}0.125")(Image.fromarray(soft))).astype(int) for name in ("lowpass", "highpass")
    )
    assert np.abs(low + high - 128 - soft).max() <= 1
    assert low.std() > 0 and high.std() > 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shuffle1", "from 2 to 1024"),
        ("shuffle8.5", "whole number"),
        ("hue0", "from 1 to 359"),
        ("lowpass0.6", "cutoff, cycles/px is a number from 0.005 to 0.5"),
        ("highpas0.25", "did you mean highpass0.25"),
        ("spot8", "from 16"),
        ("plain", "did you mean plainN"),
    ],
)
def test_refusals(name, said):
    with pytest.raises(Refusal, match=said):
        parse_view(name)

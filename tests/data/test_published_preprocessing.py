"""How published detectors scale and crop images: as OpenCV, torchvision and transformers do it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapt.data.bilinear import resize
from adapt.data.preprocess import Preprocess

SIDES = st.integers(1, 700)


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 300), st.integers(1, 300))
def test_bilinear_is_that_of_opencv_to_the_bit(width, height, to_width, to_height) -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = noise(width, height)
    expected = cv2.resize(pixels, (to_width, to_height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize(pixels, to_width, to_height), expected)


@pytest.mark.parametrize(("width", "height"), [(448, 448), (448, 300), (224, 448), (224, 224), (1, 5), (3000, 2000)])
def test_bilinear_of_these_sizes_too(width, height) -> None:
    """Of half the size OpenCV has another kernel."""
    cv2 = pytest.importorskip("cv2")
    pixels = noise(width, height)
    found = Preprocess(224, 224, "bilinear", "squash", "opencv")(Image.fromarray(pixels))
    expected = cv2.resize(pixels, (224, 224), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_bilinear_by_hand() -> None:
    """Where OpenCV is not installed: four of two pixels lie at -1/4, 1/4, 3/4 and 5/4; two of four average two."""
    row = np.array([[[0], [100]]], dtype=np.uint8)
    assert resize(row, 4, 1).ravel().tolist() == [0, 25, 75, 100]
    assert resize(np.array([[[10], [20], [40], [250]]], dtype=np.uint8), 2, 1).ravel().tolist() == [15, 145]
    assert resize(np.arange(9, dtype=np.uint8).reshape(1, 9, 1), 3, 1).ravel().tolist() == [1, 4, 7]  # no antialias


@pytest.mark.parametrize("odd", range(1, 8))
def test_the_middle_of_an_odd_margin(odd) -> None:
    """torchvision rounds half a pixel to the even one, transformers drops it."""
    from torchvision.transforms.functional import center_crop

    image = Image.fromarray(noise(32 + odd, 32))
    lower = np.asarray(image)[:, odd // 2 : odd // 2 + 32]
    found = Preprocess(32, 32, geometry="native", middle="lower")(image)
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), lower)
    even = Preprocess(32, 32, geometry="native")(image)
    np.testing.assert_array_equal(even.permute(1, 2, 0).numpy(), np.asarray(center_crop(image, 32)))
    assert torch.equal(found, even) == (odd % 4 != 3)


def test_what_goes_without_saying_is_not_said() -> None:
    assert set(Preprocess(32, 32).facts()) == {"size", "shortest", "interpolation", "geometry"}
    said = Preprocess(32, 32, "bilinear", "squash", "opencv", middle="lower").facts()
    assert said["resizer"] == "opencv" and said["middle"] == "lower"
    with pytest.raises(ValueError, match="interpolation 'bicubic', expected bilinear"):
        Preprocess(32, 32, resizer="opencv")

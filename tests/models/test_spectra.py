"""Spectra of noise residuals: planted periods, a brute-force transform, and the baseline through its recipe."""

import color_fusion
import numpy as np
import pytest
import zoo
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from adapt.data.images import Unreadable
from adapt.evaluation.scores import Scores
from adapt.models.descriptors.spectra import (
    NAMES,
    TILE,
    Spectra,
    describe,
    excess,
    mean_excess,
    peak_name,
    place_of,
    power_spectrum,
    radial_profile,
    strongest,
)


def waves(period: float, direction: str, width: int = 130, height: int = 97, gain: float = 2.0) -> Image.Image:
    """Noise with a wave of this period in it."""
    y, x = (np.cos(2 * np.pi * np.arange(length) / period) for length in (height, width))
    wave = {"across": np.ones(height)[:, None] * x, "down": y[:, None] * np.ones(width), "both": y[:, None] * x}[
        direction
    ]
    noise = np.random.default_rng(0).normal(0, 4, (height, width))
    levels = np.clip(np.rint(128 + noise + gain * wave), 0, 255).astype(np.uint8)
    return Image.fromarray(levels).convert("RGB")


@pytest.mark.parametrize("direction", ["across", "down", "both"])
@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_planted_period_is_the_strongest_peak_and_is_named(period, direction):
    power = power_spectrum(waves(period, direction))
    place = strongest(power)[0]
    name = {"across": "{0} px across", "down": "{0} px down", "both": "{0} px across, {0} px down"}[direction]
    assert peak_name(place) == name.format(period)
    above = dict(zip(NAMES, describe(waves(period, direction)), strict=True))
    peaks = {key: value for key, value in above.items() if key.startswith("peak")}
    assert max(peaks, key=peaks.get) == f"peak_{period}_{direction}" and peaks[f"peak_{period}_{direction}"] > 1
    without = dict(zip(NAMES, describe(waves(period, direction, gain=0)), strict=True))
    assert max(without[key] for key in peaks) < 0.7


def test_two_planted_periods_are_two_peaks_and_none_stands_twice():
    wave = 3 * np.cos(2 * np.pi * np.arange(128) / 4)
    noise = np.asarray(waves(8, "down", 128, 96, gain=3), np.float64)[..., 0]
    image = Image.fromarray(np.clip(np.rint(noise + wave), 0, 255).astype(np.uint8)).convert("RGB")
    assert {peak_name(place) for place in strongest(power_spectrum(image), 2)} == {"8 px down", "4 px across"}


def test_the_spectrum_is_that_of_a_plain_transform():
    image = Image.fromarray(zoo.picture(TILE, TILE, 3))
    luma = np.asarray(image).astype(np.float64) @ [0.299, 0.587, 0.114]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(TILE) / TILE)
    noise = (luma - gaussian_filter(luma, 1.0)) * window[:, None] * window
    wave = np.exp(-2j * np.pi * np.outer(np.arange(TILE), np.arange(TILE)) / TILE)
    power = np.abs(wave @ noise @ wave.T) ** 2 + ((window[:, None] * window) ** 2).sum() / 12
    np.testing.assert_allclose(power_spectrum(image), power / power.sum(), rtol=1e-9)


def test_white_noise_has_a_flat_profile_and_a_flat_image_has_numbers():
    np.testing.assert_allclose(radial_profile(np.full((TILE, TILE), TILE**-2.0)), 0, atol=1e-12)
    flat = describe(Image.new("RGB", (80, 64), (255, 255, 255)))
    np.testing.assert_allclose(flat, 0, atol=1e-5)  # what is left is the rounding, and that is white


def test_rings_are_means_over_their_bins():
    power = np.random.default_rng(1).random((TILE, TILE))
    power /= power.sum()
    axis = np.fft.fftfreq(TILE) * TILE
    ring = [power[y, x] for y in range(TILE) for x in range(TILE) if round(np.hypot(axis[y], axis[x])) == 11]
    assert radial_profile(power)[10] == pytest.approx(np.log(TILE**2 * np.mean(ring)))


def test_the_height_of_a_mean_peak_is_that_of_the_mean_spectrum():
    powers = np.array([power_spectrum(Image.fromarray(zoo.picture(96, 64, seed))) for seed in range(4)])
    place = place_of(4, "across")
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [0, 0, 0, 0]])
    found = mean_excess(powers, place, weights)
    for weight, value in zip(weights[:2], found, strict=False):
        assert value == pytest.approx(excess(np.average(powers, axis=0, weights=weight))[place])
    assert np.isnan(found[2])


def test_an_image_smaller_than_a_tile_has_no_spectrum():
    with pytest.raises(Unreadable, match="too-small"):
        power_spectrum(Image.new("RGB", (100, 63)))
    with pytest.raises(ValueError, match="not L"):
        power_spectrum(Image.new("L", (100, 100)))


def test_the_encoder_gives_the_statistics_and_says_which():
    encoder, image = Spectra(), Image.fromarray(zoo.picture(96, 64, 5))
    np.testing.assert_array_equal(encoder.preprocess(image).numpy(), describe(image))
    assert encoder.shape == (len(NAMES),) and encoder.identity("spectra")["names"] == list(NAMES)


def test_the_baseline_finds_planted_traces_through_its_recipe(planted, tmp_path):
    color_fusion.main(
        color_fusion.Config(
            manifest=(str(planted),),
            output_dir=tmp_path / "run",
            cache=tmp_path / "cache",
            features=("spectra",),
            apart=False,
            train_views=("none",),
            test_views=("none", "qf40"),
            resamples=10,
            num_workers=0,
        )
    )
    scores = Scores.read(tmp_path / "run" / "scores.parquet")
    test = (scores["split"] == "test") & (scores["edit"] == "") & (~scores.fake | (scores["seen"] == "train"))
    plain, qf40 = ((test & (scores["view"] == view)) for view in ("none", "qf40"))
    assert roc_auc_score(scores.fake[plain], scores["logit"][plain]) > 0.9
    assert roc_auc_score(scores.fake[qf40], scores["logit"][qf40]) < roc_auc_score(
        scores.fake[plain], scores["logit"][plain]
    )

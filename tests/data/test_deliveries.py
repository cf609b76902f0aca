"""Views of what happens to pictures on their way, each held to a computation by hand."""

import io
import math

import numpy as np
import pytest
import zoo
from PIL import Image
from scipy import ndimage, stats

from adapt.data import chains
from adapt.data.chains import STRENGTHS, draw_chain, half_normal
from adapt.data.images import Unreadable
from adapt.data.views import DELIVERIES, OPS, parse_view, rng
from adapt.errors import Refusal


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(zoo.picture(width, height, seed))


def seen(name: str, image: Image.Image | None = None) -> np.ndarray:
    return np.asarray(parse_view(name)(photo() if image is None else image))


TRUTH = np.asarray(photo())
IDENTITY = ["noise0", "bright1", "contrast1", "saturate1", "gamma1", "scale1", "scale1only", "rotate0", "fit96"]
IDENTITY += ["area6144", "hflip+hflip", "vflip+vflip", "hvflip+hvflip"]


@pytest.mark.parametrize("name", IDENTITY)
def test_the_value_that_changes_nothing_changes_nothing(name) -> None:
    np.testing.assert_array_equal(seen(name), TRUTH)


def test_a_picture_as_wide_as_the_screen_is_shown_as_it_is() -> None:
    wide = photo(240, 100)
    np.testing.assert_array_equal(seen("screenshot240", wide), np.asarray(wide))


def test_noise_has_its_deviation_and_its_picture() -> None:
    grey = Image.new("RGB", (400, 300), (128, 120, 140))
    for sigma in (2, 9.5, 30):
        added = seen(f"noise{sigma}", grey).astype(float) - np.asarray(grey)
        assert added.std() == pytest.approx(math.sqrt(sigma**2 + 1 / 12), rel=0.01)  # and rounding
        assert abs(added.mean()) < 4 * sigma / math.sqrt(added.size)
        assert stats.kstest((added / sigma).ravel()[:2000], "norm").pvalue > 1e-3 or sigma < 3
        across = np.corrcoef(added[..., 0].ravel(), added[..., 1].ravel())[0, 1]
        assert abs(across) < 0.02  # channels are apart
    other = Image.new("RGB", (400, 300), (129, 120, 140))
    one, two = (seen("noise9", image).astype(float) - np.asarray(image) for image in (grey, other))
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.02  # another picture has other noise


def test_brightness_multiplies() -> None:
    np.testing.assert_allclose(seen("bright0.5"), TRUTH * 0.5, atol=1)
    np.testing.assert_allclose(seen("bright1.5"), np.minimum(255, TRUTH * 1.5), atol=1)


def test_contrast_turns_about_the_mean_grey() -> None:
    mean = int(np.asarray(photo().convert("L")).mean() + 0.5)
    for factor in (0, 0.4, 2):
        wanted = np.clip(mean + factor * (TRUTH.astype(float) - mean), 0, 255)
        np.testing.assert_allclose(seen(f"contrast{factor}"), wanted, atol=1)


def test_saturation_turns_about_each_luma() -> None:
    luma = np.asarray(photo().convert("L"))[..., None].astype(float)
    for factor in (0, 0.4, 2):
        np.testing.assert_allclose(seen(f"saturate{factor}"), np.clip(luma + factor * (TRUTH - luma), 0, 255), atol=1)
    np.testing.assert_array_equal(seen("saturate0"), seen("grey"))


def test_gamma_is_a_power() -> None:
    for exponent in (0.2, 0.7, 5):
        np.testing.assert_array_equal(seen(f"gamma{exponent}"), np.rint(255 * (TRUTH / 255) ** exponent))


def test_scales_go_down_and_back_or_stay() -> None:
    half = photo().resize((48, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(seen("scale0.5only"), np.asarray(half))
    np.testing.assert_array_equal(seen("scale0.5"), np.asarray(half.resize((96, 64), Image.Resampling.BICUBIC)))
    assert seen("scale0.3", photo(5, 3)).shape == (3, 5, 3)


def test_services_make_large_pictures_smaller_and_leave_small_ones() -> None:
    assert seen("fit48").shape == (32, 48, 3)
    assert seen("area1536", photo(96, 64)).shape == (32, 48, 3)
    assert seen("screenshot240").shape == (160, 240, 3)
    np.testing.assert_array_equal(seen("messenger"), seen("qf70"))  # no larger than 1600 px
    large = Image.fromarray(zoo.picture(1700, 300))
    assert seen("messenger", large).shape == (282, 1600, 3)
    np.testing.assert_array_equal(
        seen("cms", large), seen("qf82", large.resize((1024, 181), Image.Resampling.BICUBIC))
    )
    assert seen("social", large).shape == (202, 1143, 3)  # sqrt(230400 * 1700 / 300), by sqrt(230400 * 300 / 1700)
    assert {parse_view(name).name for name in DELIVERIES} == {*DELIVERIES}


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (250, 250)])
@pytest.mark.parametrize("degrees", [0.5, 3, 15])
def test_a_turn_is_a_turn_and_leaves_no_empty_corner(size, degrees) -> None:
    smooth = np.asarray(Image.fromarray(zoo.picture(12, 8)).resize(size, Image.Resampling.BICUBIC))
    turned = seen(f"rotate{degrees}", Image.fromarray(smooth))
    oracle = ndimage.rotate(smooth, degrees, axes=(1, 0), reshape=False, order=3, mode="constant")
    height, width = turned.shape[:2]
    top, left = (smooth.shape[0] - height) // 2, (smooth.shape[1] - width) // 2
    inside = np.abs(turned.astype(int) - oracle[top : top + height, left : left + width])[3:-3, 3:-3]
    assert np.percentile(inside, 99) <= 4
    white = seen(f"rotate{degrees}", Image.new("RGB", size, (255, 255, 255)))
    assert white.min() >= 250
    assert width / height == pytest.approx(size[0] / size[1], rel=0.02)
    larger = Image.new("RGB", size, (255, 255, 255)).rotate(degrees, Image.Resampling.BICUBIC)
    more = round(0.03 * min(size)) + 2  # two per cent more on each side would show a corner
    frame = np.asarray(larger)[top - more : top + height + more, left - more : left + width + more]
    assert frame.min() == 0


def test_flips_and_bars() -> None:
    np.testing.assert_array_equal(seen("hflip"), TRUTH[:, ::-1])
    np.testing.assert_array_equal(seen("vflip"), TRUTH[::-1])
    np.testing.assert_array_equal(seen("hvflip"), TRUTH[::-1, ::-1])
    square = seen("pad")
    assert square.shape == (96, 96, 3) and not square[:16].any() and not square[80:].any()
    np.testing.assert_array_equal(square[16:80], TRUTH)


def through(codec: str, **options: object) -> np.ndarray:
    buffer = io.BytesIO()
    photo().save(buffer, codec, **options)
    return np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))


def test_codecs_are_those_of_pillow() -> None:
    for chroma in ("4:4:4", "4:2:2", "4:2:0"):
        np.testing.assert_array_equal(
            seen(f"jpeg60-{chroma.replace(':', '')}"), through("JPEG", quality=60, subsampling=chroma)
        )
    np.testing.assert_array_equal(seen("jpeg60-420"), seen("qf60"))
    np.testing.assert_array_equal(seen("jpeg60-progressive"), seen("qf60"))
    np.testing.assert_array_equal(seen("avif50"), through("AVIF", quality=50, max_threads=1))
    for name in ("avif", "jp2k"):
        error = [np.abs(seen(f"{name}{n}").astype(float) - TRUTH).mean() for n in (90, 50, 10)]
        assert error == sorted(error, reverse=name == "jp2k") and len({*error}) == 3
    assert np.abs(seen("jp2k1").astype(float) - TRUTH).mean() < 1
    buffer = io.BytesIO()
    photo(256, 256).save(buffer, "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[20])
    assert 0.7 < 256 * 256 * 3 / 20 / len(buffer.getvalue()) < 1.5  # so many times smaller


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (17, 16)])
def test_small_pictures_survive(size) -> None:
    for op, about in OPS.items():
        if op in ("shuffle", "crop", "spot", "plain", "highpass", "lowpass"):  # test_views.py, test_dissection.py
            continue
        number = "" if about.low is None else str(math.ceil(about.low) or 1)
        name = op.replace("#", number) if "#" in op else f"{op}{number}"
        made = seen(name, photo(*size))
        assert made.ndim == 3 and made.shape[2] == 3, name
    for name in ("avif50", "jp2k5", "rotate15", "scale0.1only"):
        assert seen(name, photo(*size)).size


def test_a_picture_that_a_codec_cannot_hold_is_unreadable_under_it() -> None:
    with pytest.raises(Unreadable, match="too-large"):
        parse_view("avif50")(Image.new("RGB", (65536, 1)))


@pytest.mark.parametrize(
    "name", ["scale0.5only", "fit40", "area1500", "screenshot300", "pad", "rotate7", "hflip", "vflip", "hvflip"]
)
def test_a_mask_follows_what_moves_pixels(name) -> None:
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[10:40, 5:50] = 255
    mask = Image.fromarray(picture[..., 0])
    moved, found = parse_view(name)(Image.fromarray(picture)), parse_view(name).follow(mask)
    assert found.size == moved.size
    white, changed = np.asarray(moved)[..., 0] >= 128, np.asarray(found) >= 128
    assert (white != changed).mean() < 0.03 and changed.any()


def test_a_mask_stays_under_what_moves_nothing() -> None:
    mask = Image.fromarray(np.eye(60, dtype=np.uint8) * 255)
    for name in ("scale0.5", "noise9", "avif30", "bright2", "gamma0.5", "jp2k50"):
        assert parse_view(name).follow(mask) is mask


def test_a_group_has_one_chain_and_another_group_another() -> None:
    view = parse_view("resize48+chain3:7+qf90")
    drawn = [view.of(f"group {i}").name for i in range(50)]
    assert drawn == [view.of(f"group {i}").name for i in range(50)]
    assert len({*drawn}) == 50
    assert all(name.startswith("resize48+") and name.endswith("+qf90") and name.count("+") == 4 for name in drawn)
    assert view.of("group 1").name != view.of("group 1", epoch=1).name
    assert view.of("group 1").name != parse_view("resize48+chain3:8+qf90").of("group 1").name
    assert view.drawn and not view.of("group 1").drawn and parse_view("qf40").of("group 1") is not None
    assert parse_view("chain2:1+chain2:1").of("g").steps[:2] != parse_view("chain2:1+chain2:1").of("g").steps[2:]
    with pytest.raises(ValueError, match="drawn for each group"):
        view(photo())


def test_all_that_can_be_drawn_is_a_view_and_kinds_differ() -> None:
    found = set()
    for number in range(400):
        steps = parse_view(draw_chain(chains.LONGEST, rng(0, 0, str(number)))).steps
        assert len(steps) == len(STRENGTHS)
        found |= {op for op, _ in steps}
    assert found == {"qf", "webp", "blur", "scale", "noise", "bright", "gamma", "contrast", "saturate"}


def test_strengths_are_half_normal_below_one() -> None:
    drawn = [half_normal(rng(0, 0, str(number))) for number in range(4000)]
    law = stats.truncnorm(0, 1 / 0.5, scale=0.5)
    assert stats.kstest(drawn, law.cdf).pvalue > 1e-3
    assert stats.kstest(drawn, "uniform").pvalue < 1e-6


@pytest.mark.parametrize(
    "name",
    [
        "chain0:1",
        "chain8:1",
        "chain3",
        "chain3:",
        "chain:1",
        "chain3:-1",
        "jpeg85",
        "scale5",
        "noise65",
        "pad2",
        "rotate16",
    ],
)
def test_what_is_no_view_is_refused(name) -> None:
    with pytest.raises(Refusal):
        parse_view(name)


def test_hints_find_what_was_meant() -> None:
    for wrong, meant in {
        "jpg85": "qf85",
        "jpeg85-44": "jpeg85-444",
        "mesenger": "messenger",
        "nois5": "noise5",
    }.items():
        with pytest.raises(Refusal, match=f"did you mean {meant}[?]"):
            parse_view(wrong)


def test_a_share_weakens_every_drawn_step_alike() -> None:
    """The steps stay; what each is away from no change shrinks with the share, to the digits of its name."""
    factors = ("bright", "gamma", "contrast")
    idle = {"qf": 95, "webp": 95, "blur": 0.3, "noise": 0} | dict.fromkeys(("scale", "saturate", *factors), 1)
    digits = {"qf": 0.51, "webp": 0.51, "noise": 0.051} | dict.fromkeys(factors, 0.02)
    for number in range(60):
        full, half, none = (parse_view("chain7:1").of(f"{number}", share=share).steps for share in (1, 0.5, 0))
        assert [op for op, _ in full] == [op for op, _ in half] == [op for op, _ in none]
        assert all(value == idle[op] for op, value in none)
        for (op, strong), (_, weak) in zip(full, half, strict=True):
            away = [math.log(value) if op in factors else value - idle[op] for value in (strong, weak)]
            assert away[1] == pytest.approx(away[0] / 2, abs=digits.get(op, 0.011)), op

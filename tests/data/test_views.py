import io

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from adapt.data.images import Unreadable
from adapt.data.jpeg import jpeg_tables
from adapt.data.views import jpeg_bytes, parse_view, rng
from adapt.errors import Refusal


def photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    return Image.fromarray(zoo.picture(width, height, seed))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


LUMA = [(40, [20, 14, 13, 20]), (65, [11, 8, 7, 11]), (90, [3, 2, 2, 3])]


@pytest.mark.parametrize(("quality", "luma"), LUMA)
def test_jpeg_is_the_ijg_quality_with_halved_chroma(quality, luma):
    made = Image.open(io.BytesIO(jpeg_bytes(photo(), quality)))
    np.testing.assert_array_equal([made.quantization[0], made.quantization[1]], jpeg_tables(quality))
    assert list(made.quantization[0][:4]) == luma
    assert JpegImagePlugin.get_sampling(made) == 2  # 4:2:0


def test_jpeg_view_is_one_pass_of_pillow():
    buffer = io.BytesIO()
    photo().save(buffer, "JPEG", quality=40)
    assert jpeg_bytes(photo(), 40) == buffer.getvalue()
    np.testing.assert_array_equal(pixels(parse_view("qf40")(photo())), pixels(Image.open(buffer)))


def test_jpeg_and_webp_lose_more_at_lower_quality():
    truth = pixels(photo()).astype(float)
    for op in ("qf", "webp"):
        error = [np.abs(pixels(parse_view(f"{op}{q}")(photo())) - truth).mean() for q in (90, 65, 20)]
        assert 0 < error[0] < error[1] < error[2]


def test_webp_ends_where_its_format_ends():
    strip = Image.new("RGB", (16384, 820))
    with pytest.raises(Unreadable, match="too-large"):
        parse_view("webp80")(strip)
    assert parse_view("crop224+webp80")(strip).size == (224, 224)


@given(
    width=st.integers(16, 60),
    height=st.integers(16, 60),
    side=st.integers(16, 40),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
@settings(deadline=None)
def test_a_crop_is_native_pixels_at_its_place(width, height, side, x, y):
    source = photo(width, height)
    crop = pixels(parse_view(f"crop{side}")(source, at=(x, y)))
    assert crop.shape == (side, side, 3)
    if width >= side and height >= side:
        left, top = round(x * (width - side)), round(y * (height - side))
        np.testing.assert_array_equal(crop, pixels(source)[top : top + side, left : left + side])
    else:  # mirrored: no colour that the picture has not
        colours = {tuple(colour) for colour in pixels(source).reshape(-1, 3)}
        assert {tuple(colour) for colour in crop.reshape(-1, 3)} <= colours


def test_crop_corners_and_centre():
    source = photo(50, 40)
    array = pixels(source)
    view = parse_view("crop20")
    np.testing.assert_array_equal(pixels(view(source, at=(0, 0))), array[:20, :20])
    np.testing.assert_array_equal(pixels(view(source, at=(1, 1))), array[20:, 30:])
    np.testing.assert_array_equal(pixels(view(source)), array[10:30, 15:35])


def test_a_small_image_is_continued_by_reflection():
    array = pixels(photo(20, 30))
    out = pixels(parse_view("crop25")(photo(20, 30), at=(0.5, 0)))
    np.testing.assert_array_equal(out[:, 2:22], array[:25])
    np.testing.assert_array_equal(out[:, 1], array[:25, 1])
    np.testing.assert_array_equal(out[:, 22], array[:25, 18])


SIZES = [((96, 64), (48, 32)), ((64, 96), (32, 48)), ((103, 64), (52, 32)), ((20, 16), (40, 32))]


@pytest.mark.parametrize(("size", "expected"), SIZES)
def test_resize_sets_the_shortest_side(size, expected):
    resized = parse_view("resize32")(photo(*size))
    assert resized.size == expected
    oracle = photo(*size).resize(expected, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels(resized), pixels(oracle))


def test_resize_is_antialiased_and_leaves_the_right_size_alone():
    board = np.repeat(255 * (np.indices((128, 128)).sum(0) % 2)[..., None], 3, 2).astype(np.uint8)
    inner = pixels(parse_view("resize16")(Image.fromarray(board)))[2:-2, 2:-2]
    assert np.abs(inner.astype(int) - 127).max() <= 2
    np.testing.assert_array_equal(pixels(parse_view("resize64")(photo())), pixels(photo()))


@pytest.mark.parametrize("sigma", [0.7, 1, 2, 4.5])
def test_blur_has_its_sigma(sigma):
    step = np.zeros((64, 64, 3), np.uint8)
    step[:, 32:] = 255
    spread = np.diff(pixels(parse_view(f"blur{sigma}")(Image.fromarray(step)))[32, :, 0].astype(float))
    place = np.arange(63)
    centre = (spread * place).sum() / spread.sum()
    assert centre == pytest.approx(31, abs=0.05)
    assert np.sqrt((spread * (place - centre) ** 2).sum() / spread.sum()) == pytest.approx(sigma, rel=0.08)


def test_grey_is_the_luma_of_jpeg_in_all_channels():
    source = photo()
    grey = pixels(parse_view("grey")(source))
    assert (grey == grey[..., :1]).all()
    np.testing.assert_array_equal(grey[..., 0], pixels(source.convert("L")))
    red, green, blue = pixels(source).astype(float).transpose(2, 0, 1)
    assert np.abs(grey[..., 0] - (0.299 * red + 0.587 * green + 0.114 * blue)).max() < 0.51  # rounding
    np.testing.assert_array_equal(pixels(parse_view("grey+grey")(source)), grey)


def test_jpeg_keeps_grey_grey_and_codes_the_same_luma():
    """JPEG codes Y apart from the chroma, so grey before and after it differ only where RGB was rounded or clipped."""
    soft = Image.fromarray((pixels(photo()) // 2 + 64).astype(np.uint8))
    before, after = (pixels(parse_view(name)(soft)).astype(int) for name in ("grey+qf40", "qf40+grey"))
    for made in (before, after):
        assert (made == made[..., :1]).all()
    assert np.abs(before - after).max() <= 1
    assert np.abs(before - pixels(parse_view("grey")(soft))).max() > 5


NAMES = ["none", "grey", "qf40", "qf90", "webp50", "crop32", "resize48", "blur0.5", "blur2"]
NAMES += ["shuffle16", "spot32", "plain32", "hue90", "lowpass0.25", "highpass0.125"]


@given(first=st.sampled_from(NAMES[1:]), second=st.sampled_from(NAMES[1:]), x=st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_steps_apply_from_left_to_right(first, second, x):
    both = parse_view(f"{first}+{second}")(photo(), at=(x, 0.2))
    one = parse_view(first)(photo(), at=(x, 0.2))
    np.testing.assert_array_equal(pixels(both), pixels(parse_view(second)(one, at=(x, 0.2))))


def test_order_matters():
    assert parse_view("crop32+resize48")(photo()).size == (48, 48)
    assert parse_view("resize48+crop32")(photo()).size == (32, 32)


@pytest.mark.parametrize("name", [*NAMES, "resize48+crop32+qf40"])
def test_views_repeat_themselves_and_spare_their_input(name):
    source = photo()
    first, second = parse_view(name)(source), parse_view(name)(source)
    np.testing.assert_array_equal(pixels(first), pixels(second))
    np.testing.assert_array_equal(pixels(source), pixels(photo()))
    assert (first.mode, first.info) == ("RGB", {})


SPELLINGS = {
    "none": "none",
    "grey": "grey",
    "grey+qf040": "grey+qf40",
    "qf40+grey": "qf40+grey",
    "qf040": "qf40",
    "blur1.0": "blur1",
    "qf40.0+crop0224": "qf40+crop224",
}


@pytest.mark.parametrize(("written", "canonical"), SPELLINGS.items())
def test_names_are_canonical(written, canonical):
    assert parse_view(written).name == canonical
    assert parse_view(written) == parse_view(canonical)


@given(
    st.lists(
        st.one_of(
            st.integers(1, 100).map(lambda n: f"qf{n}"),
            st.integers(16, 2048).map(lambda n: f"crop{n}"),
            st.floats(0.1, 64).map(lambda n: f"blur{n}"),
            st.just("grey"),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_names_round_trip(steps):
    view = parse_view("+".join(steps))
    assert parse_view(view.name) == view


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "unknown step ''"),
        ("qf40+", "unknown step ''"),
        ("none+qf40", "none \\(alone\\)"),
        ("qf", "did you mean qfN"),
        ("QF40", "did you mean qf40"),
        ("cropp224", "did you mean crop224"),
        ("resise256", "did you mean resize256"),
        ("nonne", "did you mean none\\?"),
        ("gray", "did you mean grey\\?"),
        ("gray40", "did you mean grey\\?"),
        ("Grey", "did you mean grey\\?"),
        ("grey40", "grey takes no number: write grey"),
        ("qf40+grey1.5", "grey takes no number: write grey"),
        ("grey-", "did you mean grey\\?"),
        ("crop", "did you mean cropN"),
        ("qf-5", "unknown step"),
        ("qf40 ", "unknown step"),
        ("blur1e3", "unknown step"),
        ("qf٤٠", "unknown step"),
        ("qf0", "whole number from 1 to 100"),
        ("qf101", "from 1 to 100"),
        ("qf40.5", "whole number"),
        ("crop4", "from 16 to 2048"),
        ("resize" + "9" * 400, "from 16 to 2048"),
        ("blur0", "a number from 0.1 to 64"),
    ],
)
def test_refusals(name, said):
    with pytest.raises(Refusal, match=said) as caught:
        parse_view(name)
    assert "\n" not in str(caught.value) and repr(name) in str(caught.value)


def test_only_rgb_images_are_viewed():
    with pytest.raises(ValueError, match="RGBA"):
        parse_view("none")(Image.new("RGBA", (32, 32)))


def test_random_choices_depend_on_seed_epoch_and_key_alone():
    assert rng(0, 0, "a.png").random() == rng(0, 0, "a.png").random()
    draws = [rng(s, e, k).random() for s in (0, 1) for e in (0, 1) for k in ("a", "b", "\udcff", "1/'a'")]
    assert len(set(draws)) == len(draws)
    assert rng(3, 5, "x").random() == 0.634195734955659  # pinned: a change would silently change every training run

"""Colour statistics against definitions written out again, and what JPEG does to them."""

import csv
import dataclasses
import json
import math
from fnmatch import fnmatchcase

import color_stability
import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from adapt.data.manifest import Manifest
from adapt.data.views import parse_view
from adapt.embedded.world import make_group
from adapt.errors import Refusal
from adapt.models.descriptors.color import (
    CHROMA_NAMES,
    FRAGILE_NAMES,
    NAMES,
    describe,
    describe_chroma,
    describe_fragile,
    ycc,
)

FLOOR = math.log(1e-4)


def photo(width: int = 150, height: int = 131, seed: int = 0) -> Image.Image:
    """Smooth colour with noise, more pixels than one strip holds, sides no multiple of anything."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))


def named(image: Image.Image) -> dict[str, float]:
    found = dict(zip(NAMES, describe(image).tolist(), strict=True))
    return found | dict(zip(FRAGILE_NAMES, describe_fragile(image).tolist(), strict=True))


def planes(image: Image.Image) -> dict[str, np.ndarray]:
    """Planes of an image as the standards write them: JFIF's decimals, saturation of HSV."""
    red, green, blue = np.asarray(image).astype(float).reshape(-1, 3).T / 255
    cb = -0.168736 * red - 0.331264 * green + 0.5 * blue
    cr = 0.5 * red - 0.418688 * green - 0.081312 * blue
    top, low = np.asarray(image).reshape(-1, 3).max(1), np.asarray(image).reshape(-1, 3).min(1)
    saturation = np.array([0 if t == 0 else (int(t) - int(b)) / int(t) for t, b in zip(top, low, strict=True)])
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    return {"y": y, "cb": cb, "cr": cr, "saturation": saturation, "chroma": np.sqrt(cb**2 + cr**2)} | {
        "r": red,
        "g": green,
        "b": blue,
    }


def test_chroma_statistics_are_those_that_a_step_of_luma_leaves_alone():
    """The same whole number added to R, G and B of a pixel leaves Cb and Cr exactly; every other statistic moves."""
    rng = np.random.default_rng(1)
    pixels = np.asarray(photo()).astype(int).clip(60, 190)
    step = rng.integers(-50, 51, pixels.shape[:2])[..., None] + np.arange(-7, 8).repeat(10)[None, :, None]
    one, other = (Image.fromarray(of.astype(np.uint8)) for of in (pixels, pixels + step))
    np.testing.assert_allclose(describe_chroma(one), describe_chroma(other), rtol=1e-5, atol=1e-6)
    moved = np.abs(describe(one) - describe(other)) > 1e-4
    assert {name for name, of in zip(NAMES, moved, strict=True) if of} == set(NAMES) - set(CHROMA_NAMES)
    assert describe_chroma(one).tolist() == [dict(zip(NAMES, describe(one), strict=True))[n] for n in CHROMA_NAMES]


def test_names_are_distinct_and_in_step():
    assert len(set(NAMES) | set(FRAGILE_NAMES)) == len(NAMES) + len(FRAGILE_NAMES)
    for function, names in ((describe, NAMES), (describe_fragile, FRAGILE_NAMES)):
        found = function(photo())
        assert (found.shape, found.dtype) == ((len(names),), np.float32)


def test_ycc_is_the_colour_space_of_pillow_and_jpeg():
    colours = np.random.default_rng(0).integers(0, 256, (3, 4096), dtype=np.uint8)
    mine = ycc(colours) * 255 + np.array([[0], [128], [128]])
    pillow = np.asarray(Image.fromarray(colours.T[None].copy()).convert("YCbCr"))[0].T
    assert np.abs(mine - pillow).max() <= 1.001  # Pillow drops the fraction
    ends = ycc(np.array([[255, 0, 0, 255], [0, 0, 255, 255], [0, 255, 0, 255]]))
    np.testing.assert_allclose(ends[0], [0.299, 0.114, 0.587, 1])
    assert (ends[2, 0], ends[1, 1]) == (pytest.approx(0.5), pytest.approx(0.5))


def test_ycc_of_grey_has_exactly_no_chroma():
    grey = np.tile(np.arange(256), (3, 1))
    np.testing.assert_array_equal(ycc(grey)[1:], 0)
    np.testing.assert_allclose(ycc(grey)[0], np.arange(256) / 255)


@pytest.mark.parametrize(
    "image",
    [photo(), photo(64, 64, 1), Image.fromarray(zoo.picture())],
    ids=lambda image: "x".join(map(str, image.size)),
)
def test_moments_and_correlations_are_those_of_scipy_and_numpy(image):
    found, truth = named(image), planes(image)
    for name in ("y", "cb", "cr", "saturation", "chroma"):
        plane = truth[name]
        expected = [plane.mean(), plane.std(), stats.skew(plane), stats.kurtosis(plane)]
        mine = [found[f"{moment}_{name}"] for moment in ("mean", "std", "skew", "kurtosis")]
        np.testing.assert_allclose(mine, expected, rtol=2e-5, atol=2e-5, err_msg=name)
    for pair in (("r", "g"), ("r", "b"), ("g", "b"), ("cb", "cr"), ("y", "cb"), ("y", "cr")):
        expected = np.corrcoef(truth[pair[0]], truth[pair[1]])[0, 1]
        assert found["corr_" + "".join(pair)] == pytest.approx(expected, abs=2e-5)


def triangles(length: int, scale: int) -> np.ndarray:
    """Weights (cells, length): a triangle around each cell's centre, down to zero at its neighbours' centres."""
    count = max(1, round(length / scale))
    step = length / count
    rows = [[max(0, 1 - abs(x + 0.5 - (i + 0.5) * step) / step) for x in range(length)] for i in range(count)]
    return np.array(rows) / np.sum(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("scale", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", [(96, 64), (75, 61)])
def test_structure_is_that_of_triangular_means(size, scale):
    image = photo(*size)
    down, across = triangles(size[1], scale), triangles(size[0], scale)
    cells = np.einsum("iy,jx,yxc->ijc", down, across, np.asarray(image) / 255, optimize=True)
    steps = [cells[i + 1, j] - cells[i, j] for i in range(len(cells) - 1) for j in range(cells.shape[1])]
    steps += [cells[i, j + 1] - cells[i, j] for i in range(len(cells)) for j in range(cells.shape[1] - 1)]
    red, green, blue = np.array(steps).T
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    found = named(image)
    for name, plane in {"y": y, "cb": (blue - y) / 1.772, "cr": (red - y) / 1.402}.items():
        assert found[f"gradient{scale}_{name}"] == pytest.approx(np.log(np.abs(plane).mean() + 1e-4), abs=1e-4)
    if scale < 16:
        for name, (a, b) in {"rg": (red, green), "rb": (red, blue), "gb": (green, blue)}.items():
            expected = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
            assert found[f"highpass{scale}_{name}"] == pytest.approx(expected, abs=1e-4)


PURE = {
    "magenta": ((255, 0, 255), "hue_030"),  # 51.7 degrees
    "red": ((255, 0, 0), "hue_090"),  # 108.7
    "yellow": ((255, 255, 0), "hue_150"),  # 170.8
    "green": ((0, 255, 0), "hue_210"),  # 231.7
    "cyan": ((0, 255, 255), "hue_270"),  # 288.7
    "blue": ((0, 0, 255), "hue_330"),  # 350.8
}


@pytest.mark.parametrize("name", PURE)
def test_pure_colours_fall_into_their_sector(name):
    colour, sector = PURE[name]
    found = named(Image.new("RGB", (40, 30), colour))
    assert {key: value for key, value in found.items() if key.startswith("hue_") and value} == {sector: 1}
    assert found["mean_saturation"] == 1


def test_hue_is_weighted_by_chroma():
    image = photo()
    shares = np.zeros(12)
    truth = planes(image)
    for cb, cr in zip(truth["cb"].tolist(), truth["cr"].tolist(), strict=True):
        shares[int(math.degrees(math.atan2(cr, cb)) % 360 // 30)] += math.hypot(cb, cr)
    shares /= shares.sum()
    found = named(image)
    np.testing.assert_allclose([found[f"hue_{d:03d}"] for d in range(0, 360, 30)], shares, atol=1e-5)
    assert found["hue_entropy"] == pytest.approx(stats.entropy(shares) / math.log(12), abs=1e-5)
    halves = Image.new("RGB", (40, 40), (255, 0, 0))
    halves.paste((0, 255, 255), (0, 0, 20, 40))  # cyan: as much chroma as red, opposite
    assert named(halves)["hue_entropy"] == pytest.approx(math.log(2) / math.log(12))


@pytest.mark.parametrize("size", [(150, 131), (64, 48), (37, 16)])
@pytest.mark.parametrize("turn", list(Image.Transpose), ids=lambda turn: turn.name)
def test_a_mirrored_or_turned_picture_has_the_same_colour(size, turn):
    image = photo(*size)
    turned = image.transpose(turn)
    np.testing.assert_allclose(describe(turned), describe(image), atol=2e-5)
    np.testing.assert_allclose(describe_fragile(turned), describe_fragile(image), atol=2e-5)


def test_grey_has_no_colour():
    image = parse_view("grey")(photo())
    found = named(image)
    for name, value in found.items():
        if name.endswith(("_cb", "_cr", "_saturation", "_chroma")):
            assert value == (pytest.approx(FLOOR) if name.startswith("gradient") else 0), name
        elif name.startswith("hue") or name in ("corr_cbcr", "corr_ycb", "corr_ycr"):
            assert value == 0, name
        elif name.startswith(("corr", "highpass")):
            assert value == pytest.approx(1), name
    coloured = named(photo())
    for moment in ("mean", "std", "skew", "kurtosis"):
        assert found[f"{moment}_y"] == pytest.approx(coloured[f"{moment}_y"], abs=5e-3)  # Y is rounded


@pytest.mark.parametrize("colour", ["black", "white", (7, 90, 201), (200, 13, 13)])
@pytest.mark.parametrize("size", [(16, 16), (300, 200)])
def test_a_constant_has_a_mean_a_hue_and_nothing_else(colour, size):
    found = named(Image.new("RGB", size, colour))
    for name, value in found.items():
        if name.startswith(("std", "skew", "kurtosis", "corr", "highpass", "hue_entropy")):
            assert value == 0, name
        elif name.startswith("gradient"):
            assert value == pytest.approx(FLOOR, abs=1e-3), name


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    levels=st.sampled_from([1, 2, 256]),
    seed=st.integers(0, 99),
    blank=st.integers(0, 3),
)
@settings(deadline=None, max_examples=60)
def test_any_picture_gives_finite_numbers(width, height, levels, seed, blank):
    values = np.random.default_rng(seed).integers(0, levels, (height, width, 3), dtype=np.uint8)
    values[..., :blank] = 128
    found = named(Image.fromarray(values))
    assert all(map(math.isfinite, found.values()))
    assert all(abs(v) <= 1 + 1e-6 for name, v in found.items() if name.startswith(("corr", "highpass", "hue")))


def test_a_description_repeats_itself_and_spares_its_image():
    image = photo()
    assert describe(image).tobytes() == describe(image.copy()).tobytes()
    assert describe_fragile(image).tobytes() == describe_fragile(image.copy()).tobytes()
    np.testing.assert_array_equal(np.asarray(image), np.asarray(photo()))


@pytest.mark.parametrize("function", [describe, describe_fragile])
def test_only_rgb_images_are_described(function):
    with pytest.raises(ValueError, match="RGBA"):
        function(Image.new("RGBA", (32, 32)))


def test_jpeg_spares_the_descriptor_and_not_the_fragile_statistics():
    """Drift at quality 40 in deviations between 24 scenes of the embedded world, whose 96 px are a hard case."""
    scenes = [Image.fromarray(make_group(3, "train", i)["real", ""]) for i in range(24)]
    plain, coded = ([named(parse_view(view)(scene)) for scene in scenes] for view in ("none", "qf40"))
    drift = {}
    for name in (*NAMES, *FRAGILE_NAMES):
        before, after = (np.array([found[name] for found in each]) for each in (plain, coded))
        drift[name] = np.median(np.abs(after - before)) / before.std(ddof=1)
    sound, fragile = (np.array([drift[name] for name in names]) for names in (NAMES, FRAGILE_NAMES))
    assert np.median(sound) < np.median(fragile) / 4
    for plane in ("cb", "cr"):
        by_scale = [drift[f"gradient{scale}_{plane}"] for scale in (16, 4, 1)]
        assert by_scale[0] < by_scale[1] < by_scale[2]


@pytest.fixture(scope="module")
def stability(planted, tmp_path_factory) -> color_stability.Config:
    folder = tmp_path_factory.mktemp("stability")
    config = color_stability.Config(manifest=(str(planted),), views=("qf40", "none"), output_dir=folder, resamples=50)
    color_stability.main(config)
    return config


def rows(config: color_stability.Config) -> dict[tuple[str, str], dict[str, str]]:
    with (config.output_dir / "stability.csv").open(encoding="utf-8") as file:
        return {(row["statistic"], row["view"]): row for row in csv.DictReader(file)}


def test_every_statistic_is_of_one_kind():
    for name in (*NAMES, *FRAGILE_NAMES):
        found = [kind for kind, names in color_stability.KINDS.items() if any(fnmatchcase(name, n) for n in names)]
        assert len(found) == 1, (name, found)


def test_stability_is_drift_over_deviation(stability, planted):
    photos = Manifest.read(planted)
    chosen = (photos["generator"] == "real") & (photos["edit"] == "")
    images = [Image.open(file).convert("RGB") for file in photos["file"][chosen]]
    found = rows(stability)
    assert {view for _, view in found} == {"qf40", "none"}
    for name in ("std_cb", "gradient1_cr"):
        before = np.array([named(image)[name] for image in images])
        after = np.array([named(parse_view("qf40")(image))[name] for image in images])
        row = {key: float(found[name, "qf40"][key]) for key in ("value", "low", "high", "images")}
        assert row["value"] == pytest.approx(np.median(np.abs(after - before)) / np.std(before, ddof=1))
        assert row["low"] < row["value"] < row["high"] and row["images"] == len(images)
    assert {row["value"] for (_, view), row in found.items() if view == "none"} == {"0.0"}


def test_stability_page_repeats_its_numbers_and_its_command(stability):
    page = (stability.output_dir / "table.md").read_text(encoding="utf-8")
    record = json.loads((stability.output_dir / "provenance.json").read_text(encoding="utf-8"))
    assert "**Embedded world**" in page and record["command"] in page.replace("\\", "")
    assert record["identity"]["views"] == ["qf40", "none"] and record["unreadable"] == []
    row = rows(stability)["hue_entropy", "qf40"]
    shown = "{:.3f} [{:.3f}, {:.3f}]".format(*(float(row[key]) for key in ("value", "low", "high")))
    assert f"| hue entropy | 1 | descriptor | {shown} | 0.000 [0.000, 0.000] |" in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(color_stability.KINDS)


def test_stability_counts_what_it_cannot_read_and_repeats_itself(stability, planted, tmp_path):
    text = planted.read_text(encoding="utf-8").replace("train/00000-real.png", "train/absent.png")
    other = planted.with_name("absent.csv")
    other.write_text(text, encoding="utf-8")
    try:
        config = dataclasses.replace(stability, manifest=(str(other),), output_dir=tmp_path)
        color_stability.main(config)
        first = (tmp_path / "stability.csv").read_bytes()
        color_stability.main(config)
    finally:
        other.unlink()
    assert (tmp_path / "stability.csv").read_bytes() == first
    record = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))
    assert record["unreadable"] == [["train/absent.png", "missing"]]
    assert rows(config)["std_y", "qf40"]["images"] == str(int(rows(stability)["std_y", "qf40"]["images"]) - 1)


def test_stability_starts_from_another_view(tmp_path):
    """A start of qf40 leaves its own second pass little to do."""
    for i in range(8):
        photo(96, 64, i).save(tmp_path / f"{i}.png")
    table = "".join(f"{i}.png,{i},real,test\n" for i in range(8))
    (tmp_path / "some.csv").write_text("path,group,generator,split\n" + table)
    config = color_stability.Config(
        manifest=(str(tmp_path / "some.csv"),), views=("qf40",), output_dir=tmp_path / "none", resamples=5
    )
    again = dataclasses.replace(config, start="qf40", output_dir=tmp_path / "qf40")
    for each in (config, again):
        color_stability.main(each)
    before = np.array([named(parse_view("qf40")(photo(96, 64, i)))["gradient1_cb"] for i in range(8)])
    after = np.array([named(parse_view("qf40+qf40")(photo(96, 64, i)))["gradient1_cb"] for i in range(8)])
    drift, first = (float(rows(each)["gradient1_cb", "qf40"]["value"]) for each in (again, config))
    assert drift == pytest.approx(np.median(np.abs(after - before)) / np.std(before, ddof=1))
    assert drift < first / 3


def test_stability_needs_two_photographs(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "one.csv").write_text("path,group,generator,split\na.png,a,real,test\n")
    with pytest.raises(Refusal, match="1 readable unedited real images of 1"):
        color_stability.main(color_stability.Config(manifest=(str(tmp_path / "one.csv"),), output_dir=tmp_path))


def test_stability_of_a_statistic_that_never_varies_is_not_a_number(tmp_path):
    """Grey photographs: no chroma to divide by, and no warning."""
    for i in range(3):
        parse_view("grey")(photo(64, 48, i)).save(tmp_path / f"{i}.png")
    table = "".join(f"{i}.png,{i},real,test\n" for i in range(3))
    (tmp_path / "grey.csv").write_text("path,group,generator,split\n" + table)
    config = color_stability.Config(manifest=(str(tmp_path / "grey.csv"),), output_dir=tmp_path / "out", resamples=20)
    color_stability.main(config)
    found = rows(config)
    assert (found["std_cb", "qf40"]["value"], found["std_cb", "qf40"]["low"]) == ("n/a", "n/a")
    assert float(found["std_y", "qf40"]["value"]) > 0
    page = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| hue histogram | 12 | descriptor | n/a | n/a | n/a | n/a |" in page

"""Maps: numbers from histograms against the raw pixels, stitching against the whole, spreading against torch's own."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score

from adapt.data.masks import EXTENTS, GENERATED, PART, REAL
from adapt.detector import localizer as tiles
from adapt.detector.detector import Detector, load_detector
from adapt.detector.localizer import Found, Localizer, Tiling, load_localizer, locate, strips
from adapt.detector.overlay import heat, overlay
from adapt.errors import Refusal
from adapt.evaluation.map_metrics import (
    BINS,
    Maps,
    bins_of,
    confusion,
    edge,
    evaluate_maps,
    local_metrics,
    mean_pixel_auc,
    pick_bin,
)
from adapt.evaluation.scores import Scores
from adapt.models.heads.linear import LinearHead
from adapt.models.heads.map_head import MapHead, Residuals
from adapt.models.towers.backbones import load_backbone
from adapt.pages.map_tables import map_sections, write_map_tables

TOOLS = ("real", "gan", "edit:splice")


def images(n: int = 6, pixels: int = 400) -> list[tuple[np.ndarray, np.ndarray]]:
    """(logits, changed) of some images."""
    draw = np.random.default_rng(0)
    out = []
    for i in range(n):
        changed = draw.uniform(size=pixels) < 0.1 + 0.1 * i
        out.append((draw.normal(size=pixels) * 3 + 1.5 * changed - 0.3 * i, changed))
    return out


def counts(found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return tuple(
        np.array([np.bincount(bins_of(logits[changed == kind]), minlength=BINS) for logits, changed in found])
        for kind in (True, False)
    )


def test_numbers_of_histograms_are_those_of_the_pixels() -> None:
    found = images()
    metrics = local_metrics(*counts(found))
    for i, (logits, changed) in enumerate(found):
        exact = roc_auc_score(changed, logits)
        assert abs(metrics["pixel_auc"][i] - exact) <= metrics["auc_bin_error"][i] + 1e-12
        assert metrics["auc_bin_error"][i] < 0.01
        for k in (40, 128, 200):
            called = logits >= edge(k)
            assert metrics["f1"][i, k] == pytest.approx(f1_score(changed, called, zero_division=0))
            assert metrics["iou"][i, k] == pytest.approx(jaccard_score(changed, called, zero_division=0))


def test_the_bin_error_is_reached_and_never_passed() -> None:
    """Two pixels in one bin, in either order: the histogram cannot tell, and says so."""
    for changed in ([True, False], [False, True]):
        logits, changed = np.array([0.001, 0.002]), np.array(changed)
        metrics = local_metrics(*counts([(logits, changed)]))
        assert metrics["pixel_auc"][0] == 0.5 and metrics["auc_bin_error"][0] == 0.5
        assert abs(metrics["pixel_auc"][0] - roc_auc_score(changed, logits)) == metrics["auc_bin_error"][0]


def test_bins_are_in_order_and_edges_lie_between_them() -> None:
    logits = np.linspace(-60, 60, 5001)
    assert (np.diff(bins_of(logits)) >= 0).all() and bins_of(np.array([-1e9, 1e9])).tolist() == [0, BINS - 1]
    for k in range(1, BINS):
        assert bins_of(np.array([edge(k) - 1e-6, edge(k) + 1e-6])).tolist() == [k - 1, k]


def table(found, extent, view: str = "qf90", split: str = "test", edits=None) -> Maps:
    n = len(found)
    edits = edits or ["splice" if kind == PART and i % 2 else "" for i, kind in enumerate(extent)]
    generators = ["real" if kind == REAL or edit else "a" for kind, edit in zip(extent, edits, strict=True)]
    names = {"path": [f"{split}{i}" for i in range(n)], "group": [f"{split}g{i // 2}" for i in range(n)]}
    scores = Scores(
        names | {"generator": generators, "edit": edits, "split": [split] * n, "view": [view] * n}
        | {"seen": ["train"] * n, "logit": np.arange(n, dtype=float)}
    )  # fmt: skip
    tool = np.array([f"edit:{e}" if e and k == PART else "real" if g == "real" else "gan"
                     for e, g, k in zip(edits, generators, extent, strict=True)], dtype=object)  # fmt: skip
    draw = np.random.default_rng(1)
    return Maps(
        scores, np.array(extent), tool, draw.normal(size=(n, 3)), draw.normal(size=(n, 3)), TOOLS, *counts(found)
    )


def test_every_number_of_the_page_by_brute_force() -> None:
    found = images(8)
    extent = [PART, PART, PART, PART, REAL, REAL, GENERATED, REAL]
    edits = ["", "splice", "", "", "", "sharpen", "", ""]
    for i, kind in enumerate(extent):
        if kind != PART:
            found[i] = (found[i][0], np.full(400, kind == GENERATED))
    maps = table(found, extent, edits=edits)
    start = 140
    rates = {(r.label, r.metric): r for r in evaluate_maps(maps, start, 40)}
    ai = [found[i] for i in (0, 2, 3)]
    assert rates["part", "pixel_auc"].value == pytest.approx(
        np.mean([roc_auc_score(changed, logits) for logits, changed in ai]), abs=rates["part", "auc_bin_error"].value
    )
    pooled = roc_auc_score(np.concatenate([c for _, c in ai]), np.concatenate([v for v, _ in ai]))
    assert rates["part", "pixel_auc_pooled"].value == pytest.approx(pooled, abs=0.01)
    assert rates["part", "f1"].value == pytest.approx(np.mean([f1_score(c, v >= edge(start)) for v, c in ai]))
    best = max(np.mean([f1_score(c, v >= edge(k)) for v, c in ai]) for k in range(1, BINS))
    assert rates["part", "f1_best"].value == pytest.approx(best, abs=1e-9)
    assert rates["part", "iou"].value == pytest.approx(np.mean([jaccard_score(c, v >= edge(start)) for v, c in ai]))
    for label, rows in (("untouched", (4, 7)), ("processed", (5,)), ("generated", (6,))):
        assert rates[label, "area"].value == pytest.approx(
            np.mean([(found[i][0] >= edge(start)).mean() for i in rows])
        )
    large = [i for i in (0, 2, 3) if found[i][1].mean() >= 0.1]
    assert rates["part:large", "pixel_auc"].n == len(large)
    assert rates["edit:splice", "pixel_auc"].n == 1 and rates["a", "pixel_auc"].n == 3
    called = np.array(EXTENTS)[maps.extents.argmax(axis=1)]
    right = [called[i] == "real" for i in (4, 5, 7)]
    assert rates["extents:real", "recall"].value == pytest.approx(np.mean(right))
    recalls = [rates[f"extents:{name}", "recall"].value for name in EXTENTS]
    assert rates["extents", "balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    assert np.isnan([r.low for r in rates.values()]).all()  # of fewer than ten groups
    assert mean_pixel_auc(maps, maps.scores.fake) == pytest.approx(rates["part", "pixel_auc"].value)


def test_intervals_resample_groups_not_images() -> None:
    """Groups of twins: images left out one by one would give narrower intervals than groups do."""
    found = images(9) * 5
    twins = table([pair for pair in found for _ in range(2)], [PART] * 90, edits=[""] * 90)
    lone = Maps(**vars(twins) | {"scores": Scores(twins.scores.columns | {"group": twins.scores["path"]})})
    width = []
    for maps in (twins, lone):
        rate = next(r for r in evaluate_maps(maps, 128, 600) if (r.label, r.metric) == ("part", "pixel_auc"))
        width.append(rate.high - rate.low)
        rates = [r for r in evaluate_maps(maps, 128, 600) if not np.isnan(r.low)]
        assert len(rates) > 5 and all(r.low <= r.value <= r.high for r in rates)
    assert 1.2 < width[0] / width[1] < 1.7  # sqrt(2)


def joined(a: Maps, b: Maps) -> Maps:
    names = ("extent", "tool", "extents", "tools", "changed", "unchanged")
    both = {name: np.concatenate([getattr(a, name), getattr(b, name)]) for name in names}
    return Maps(scores=a.scores.join(b.scores), names=a.names, **both)


def test_the_threshold_is_chosen_on_validation_rows_alone_and_spares_the_reals() -> None:
    draw = np.random.default_rng(2)
    clear = [(np.where(changed, 3.0, -3.0) + draw.normal(size=400) / 2, changed) for _, changed in images()]
    reals = [(draw.normal(size=400) - 3, np.zeros(400, bool)) for _ in range(4)]
    kinds, edits = [PART] * 6 + [REAL] * 4, [""] * 10
    val = table(clear + reals, kinds, split="val", edits=edits)
    assert -1.5 < edge(pick_bin(val)) < 2.5
    blind = [(np.ones(400), changed) for _, changed in clear]
    assert pick_bin(joined(val, table(blind + reals, kinds, edits=edits))) == pick_bin(val)
    hopeless = table([(np.full(400, -3.0), c) for _, c in clear] + reals, kinds, split="val", edits=edits)
    assert edge(pick_bin(hopeless)) > -3  # to call everything changed has the best F1 here, and costs all reals


def test_pages_and_tables(tmp_path) -> None:
    maps = table(images(), [PART, PART, PART, REAL, GENERATED, REAL])
    rates, confused = evaluate_maps(maps, 128, 20), confusion(maps)
    write_map_tables(rates, *confused, tmp_path)
    page = "\n\n".join(map_sections(rates, *confused))
    assert "| part:large |" in page and "| untouched |" in page and "off by at most" in page
    lines = (tmp_path / "localization.csv").read_text().splitlines()
    assert lines[0] == "view,label,metric,value,low,high,n" and len(lines) == len(rates) + 1
    for counted in confused:
        for true in {c.true for c in counted}:
            own = [c for c in counted if c.true == true]
            assert sum(c.share for c in own) == pytest.approx(1) or sum(c.count for c in own) == 0


def localizer(layer: str = "block1", residual: int = 2) -> Localizer:
    torch.manual_seed(0)
    backbone = load_backbone("tiny", layer, "native")
    return Localizer(Detector(backbone, MapHead(backbone.dim, TOOLS, 8, residual))).eval()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@torch.no_grad()
def test_tiles_side_by_side_are_the_tiles_alone() -> None:
    model = localizer()
    picture = model.tiling(noise(192, 128))[None]
    cells = model.cells(picture)
    assert cells.shape == (1, 8, 16, 24)
    for top in range(0, 128, 64):
        for left in range(0, 192, 64):
            alone = model.cells(picture[:, :, top : top + 64, left : left + 64])
            part = cells[:, :, top // 8 : top // 8 + 8, left // 8 : left // 8 + 8]
            torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_tiles_that_lap_are_averaged_and_batches_change_nothing() -> None:
    model = localizer()
    pictures = torch.stack([model.tiling(noise(96, 64, seed)) for seed in (1, 2)])
    cells = model.cells(pictures)
    for i in range(2):
        left, right = (model.cells(pictures[i : i + 1, :, :, x : x + 64])[0] for x in (0, 32))
        torch.testing.assert_close(cells[i, :, :, :4], left[:, :, :4], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cells[i, :, :, 4:8], (left[:, :, 4:] + right[:, :, :4]) / 2, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cells[i, :, :, 8:], right[:, :, 4:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_residuals_see_fine_detail_and_no_brightness() -> None:
    """A pattern of two pixels raises its own cells alone; a constant added to the picture changes no cell."""
    torch.manual_seed(0)
    stream = Residuals(3)
    plain = torch.full((2, 3, 64, 64), 100, dtype=torch.uint8)
    marked = plain.clone()
    marked[1, :, 16:32, 24:48:2] += 40
    found, flat = stream(marked, 8), stream(plain + 60, 8)
    assert found.shape == (2, 12, 8, 8)
    torch.testing.assert_close(stream(plain, 8), flat)
    torch.testing.assert_close(found[0], flat[0])
    moved = (found[1] - flat[1]).abs().amax(dim=0)
    assert moved[2:4, 3:6].min() > 100 * moved[6:, :].max() and moved[2:4, 3:6].min() > 0.1
    # the convolutions by hand, at one cell
    x = marked[1:].float() / 2
    smooth = torch.nn.AvgPool2d(3, 1)(torch.nn.ReflectionPad2d(1)(x))
    y = torch.nn.functional.gelu(stream.second(torch.nn.functional.gelu(stream.first(x - smooth))))
    cell = y[0, :, 16:24, 24:32].flatten(1)
    expected = torch.cat([cell.mean(dim=1), cell.square().mean(dim=1).sqrt()])
    torch.testing.assert_close(found[1, :, 2, 3], expected, rtol=1e-3, atol=2e-3)


@torch.no_grad()
def test_a_change_anywhere_is_felt_everywhere() -> None:
    """Context: the map of one corner depends on the opposite one, far beyond the reach of tile and convolutions."""
    model = localizer()
    picture = model.tiling(noise(256, 256))[None]
    other = picture.clone()
    other[:, :, 192:, 192:] = 0
    assert not torch.equal(model(picture)[0][:, :2, :2], model(other)[0][:, :2, :2])


def test_padding_continues_the_picture_to_whole_cells() -> None:
    tiling = Tiling(64, 8)
    assert tiling(noise(100, 50)).shape == (3, 64, 104)
    padded, plain = tiling(noise(70, 66)), np.asarray(noise(70, 66)).transpose(2, 0, 1)
    assert padded.shape == (3, 72, 72) and (padded[:, :66, :70].numpy() == plain).all()
    assert (padded[:, :66, 70].numpy() == plain[:, :, 69]).all()


def test_a_huge_image_gets_a_coarser_map_of_bounded_size(monkeypatch) -> None:
    assert Tiling(64, 8).pitch(8192, 8192) == 8 and Tiling(64, 32).pitch(8192, 8192) == 8
    monkeypatch.setattr(tiles, "CELLS", 100)
    model = localizer()
    with torch.no_grad():
        found = locate(model, model.tiling(noise(256, 256))[None])[0]
    assert found.pitch == 32 and found.map.shape == (8, 8)
    for width in range(60, 400, 7):
        picture = model.tiling(noise(width, 90))
        pitch = model.tiling.pitch(90, width)
        assert model.tiling.pitch(*picture.shape[1:]) == pitch
        assert picture.shape[1] % pitch == picture.shape[2] % pitch == 0
        assert picture.shape[1] * picture.shape[2] <= 100 * pitch**2


def test_a_map_is_spread_as_torch_spreads_it(monkeypatch) -> None:
    monkeypatch.setattr(tiles, "STRIP", 7)
    cells = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    wide = torch.nn.functional.interpolate(torch.tensor(cells)[None, None], scale_factor=8, mode="bilinear")[0, 0]
    parts = list(strips(cells, 8, 38, 70))
    assert [first for first, _ in parts] == list(range(0, 38, 7))
    np.testing.assert_allclose(np.concatenate([part for _, part in parts]), wide[:38, :70], atol=1e-5)


def test_a_convolutional_tower_has_maps_of_several_stages() -> None:
    backbone = load_backbone("timm:mobilenetv2_100@random", "block2+block3", "native")
    model = Localizer(Detector(backbone, MapHead(backbone.dim, TOOLS, 8))).eval()
    size = backbone.preprocess.size
    with torch.no_grad():
        found = locate(model, model.tiling(noise(size, size))[None])[0]
    assert found.map.shape == (size // found.pitch,) * 2 and found.pitch < 16


@pytest.mark.parametrize("layer", ["proj", "last_both"])
def test_layers_without_places_are_refused(layer) -> None:
    backbone = load_backbone("tiny", layer, "native")
    with pytest.raises(Refusal, match=layer):
        Localizer(Detector(backbone, MapHead(backbone.dim, TOOLS)))


@pytest.mark.parametrize("crop", [32, 68])
def test_crops_that_are_refused(crop) -> None:
    assert Tiling(64, 8).crop(None) == 64
    with pytest.raises(Refusal, match=f"--crop {crop}"):
        Tiling(64, 8).crop(crop)


@pytest.mark.parametrize("residual", [0, 2])
def test_a_localiser_is_saved_and_loaded_as_any_detector(tmp_path, residual) -> None:
    model = localizer("block1+block2", residual)
    model.head.threshold.fill_(-1.25)
    model.detector.threshold = 0.5
    model.detector.save(tmp_path, {})
    again = load_localizer(tmp_path)
    assert again.head.tools == TOOLS and again.head.threshold.item() == -1.25 and again.detector.threshold == 0.5
    picture = model.tiling(noise(100, 80))[None]
    before, after = (locate(m, picture)[0] for m in (model, again))
    np.testing.assert_array_equal(before.map, after.map)
    assert before.fake == after.fake
    with pytest.raises(Refusal, match="whole images"):
        load_detector(tmp_path)(torch.zeros(1, 3, 64, 64))
    plain = load_backbone("tiny", "block1")
    with pytest.raises(Refusal, match=r"localize\.py"):
        Localizer(Detector(plain, LinearHead(plain.dim)))


def test_ai_logit_is_the_chance_of_all_generators_together() -> None:
    head = MapHead(4, ("real", "a", "b", "edit:x"))
    logits = torch.randn(5, 4)
    share = logits.softmax(dim=1)[:, 1:3].sum(dim=1)
    torch.testing.assert_close(head.fake(logits).sigmoid(), share)


def test_an_overlay_marks_what_is_called_changed_and_leaves_the_rest() -> None:
    cells = np.full((8, 8), -4.0, np.float32)
    cells[2:6, 2:6] = 4
    found = Found(cells, 8, np.zeros(3), np.zeros(3), 0.0)
    grey = Image.fromarray(np.full((60, 64, 3), 90, np.uint8))
    seen = np.asarray(overlay(grey, found, 0.0, side=64)).astype(int)
    assert seen.shape == (60, 64, 3) and (seen[:8] == 90).all() and (seen[:, :8] == 90).all()
    assert (seen[28:36, 28:36, 0] > 150).all() and (seen[28:36, 28:36, 2] < 60).all()
    assert ((seen == (255, 230, 0)).all(axis=2)).any()
    assert overlay(grey, found, 0.0, side=256).size == (256, 240) and overlay(grey, found, 0.0, side=32).size == (
        32,
        30,
    )
    assert (np.asarray(overlay(grey, found, 9.0, side=64)) == 90).all()
    assert np.asarray(heat(found, grey.size))[30, 30, 0] > 240

"""Crops at test time: which pixels they hold, that features are averaged, and that several detectors judge as one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adapt.commands import crops as recipe
from adapt.commands import predict
from adapt.data.crops import TILES, Crops
from adapt.data.images import read_image
from adapt.data.inputs import find_inputs
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Preprocess
from adapt.data.tables import read_table
from adapt.data.views import parse_view
from adapt.detector import predict as library
from adapt.detector.detector import Detector, load_detector, score
from adapt.errors import Refusal
from adapt.evaluation.scores import Scores
from adapt.models.heads.linear import LinearHead
from adapt.models.heads.probes import Probe
from adapt.models.towers.backbones import load_backbone

SIDES = st.integers(16, 9000)
NATIVE = Preprocess(32, 32, geometry="native")


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(zoo.picture(width, height))


def as_arrays(crops: torch.Tensor) -> list[np.ndarray]:
    return list(crops.permute(0, 2, 3, 1).numpy())


def test_one_crop_is_what_the_detector_was_trained_on() -> None:
    for geometry in ("resize", "squash", "native"):
        preprocess = Preprocess(32, 40, geometry=geometry)
        assert torch.equal(Crops(preprocess)(picture(90, 50)), preprocess(picture(90, 50))[None])


def test_five_crops_are_corners_and_centre_at_the_scale_of_the_training() -> None:
    image = picture(90, 60)
    scaled = np.asarray(image.resize((60, 40), Image.Resampling.BICUBIC))
    expected = [scaled[y : y + 32, x : x + 32] for x, y in ((0, 0), (0, 8), (28, 0), (28, 8), (14, 4))]
    found = as_arrays(Crops(Preprocess(32, 40), "5")(image))
    assert len(found) == 5
    for wanted in expected:
        assert sum(np.array_equal(wanted, crop) for crop in found) == 1
    flat = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC))  # no room above and below: three differ
    found = as_arrays(Crops(Preprocess(32, 32), "5")(image))
    assert [any(np.array_equal(flat[:, x : x + 32], crop) for crop in found) for x in (0, 16, 8)] == [True] * 3
    assert len(found) == 3 and len(Crops(Preprocess(32, 32), "5")(picture(50, 50))) == 1
    with pytest.raises(Refusal, match="--crops 5: this backbone squeezes"):
        Crops(Preprocess(32, 32, geometry="squash"), "5")


def test_tiles_hold_every_pixel_as_it_is() -> None:
    rows, columns = np.mgrid[:100, :70]
    image = Image.fromarray(np.dstack([columns, rows, rows * 0]).astype(np.uint8))
    for geometry in ("resize", "squash", "native"):  # whatever the training did
        tiles = as_arrays(Crops(Preprocess(32, 32, geometry=geometry), "native")(image))
        assert len(tiles) == 4 * 3
        corners = [(int(tile[0, 0, 1]), int(tile[0, 0, 0])) for tile in tiles]
        seen = np.zeros((100, 70), bool)
        for tile, (y, x) in zip(tiles, corners, strict=True):
            assert np.array_equal(tile, np.asarray(image)[y : y + 32, x : x + 32])
            seen[y : y + 32, x : x + 32] = True
        assert seen.all()
    assert torch.equal(Crops(NATIVE, "native")(picture(20, 20)), NATIVE(picture(20, 20))[None])


@given(SIDES, SIDES)
def test_the_number_of_tiles_is_bounded_and_edges_are_kept(width: int, height: int) -> None:
    places = Crops(NATIVE, "native").places(width, height)
    whole = -(-width // 32) * -(-height // 32)
    assert 1 <= len(set(places)) == len(places) <= min(TILES, whole)
    assert whole > TILES or len(places) == whole
    assert sorted((y, x) for x, y in places) == sorted(Crops(NATIVE, "native").places(height, width))
    for axis, side in enumerate((width, height)):
        used = {place[axis] for place in places}
        assert {0.0, 1.0} <= used or used == {0.5}, side


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two batches of various sizes, some unreadable."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(40):
        data = zoo.save(zoo.picture(60 + 11 * (i % 9), 50 + 17 * (i % 7), seed=i), "PNG")
        (folder / f"{i:02d}.png").write_bytes(data if i % 10 else data[:99])
    return folder


@pytest.fixture(scope="module")
def detectors(photos, tmp_path_factory) -> list[Path]:
    """Two of families and one of two classes; each finds half of the pictures fake."""
    folder, backbone = tmp_path_factory.mktemp("detectors"), load_backbone("tiny")
    generator, kinds = torch.Generator().manual_seed(0), ("real", "gan", "diffusion")
    heads = [Probe(backbone.dim, kinds, "logistic"), Probe(backbone.dim, kinds, "logistic"), LinearHead(backbone.dim)]
    pixels = torch.stack([backbone.preprocess(read_image(photos / f"{i:02d}.png")) for i in range(1, 40, 2)])
    with torch.no_grad():
        features = backbone(pixels)
        for i, head in enumerate(heads):
            for parameter in head.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            Detector(backbone, head, threshold=float(head(features).median())).save(folder / str(i), {})
    return [folder / str(i) for i in range(len(heads))]


def rows_of(path: Path) -> list[dict[str, str]]:
    columns = read_table(path)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@torch.no_grad()
def test_features_are_averaged_and_score_and_predict_agree(detectors, photos, tmp_path, one_thread) -> None:
    detector, names = load_detector(detectors[0]), sorted(path.name for path in photos.iterdir())
    table = {"path": names, "group": names, "generator": ["real"] * 40, "split": ["test"] * 40}
    manifest = Manifest.of(table, photos)
    for crops in ("5", "native"):
        look, views = Crops(detector.backbone.preprocess, crops), ("none", "crop50")
        scored = score(detector, manifest, np.arange(40), views, crops=crops, batch_size=7)
        passes = 0
        for i, name in enumerate(names):
            assert scored.ok[2 * i] == (i % 10 != 0)
            passes += len(look(read_image(photos / name))) if i % 10 else 1
            for v, view in enumerate(views if i in (1, 13) else ()):
                tiles = look(parse_view(view)(read_image(photos / name)))
                mean = torch.stack([detector.backbone(tile[None])[0] for tile in tiles]).mean(dim=0)
                assert scored["logit"][2 * i + v] == pytest.approx(detector.head(mean[None]).item(), abs=1e-4)
        config = predict.Config((detectors[0],), (str(photos),), tmp_path / f"{crops}.csv", crops=crops, num_workers=0)
        predict.main(config)
        found = [float(row["logit"]) if row["logit"] else np.nan for row in rows_of(config.output)]
        np.testing.assert_allclose(found, scored["logit"][::2], rtol=1e-4, atol=1e-4)
        spent = sum(n for *_, n in library.predict([detector], find_inputs([str(photos)])[1], [0, 1], crops=crops))
        assert spent == passes > 60


def test_the_same_bytes_however_crops_are_cut(detectors, photos, tmp_path, one_thread) -> None:
    config = predict.Config((detectors[0],), (str(photos),), tmp_path / "a.csv", crops="native", num_workers=0)
    predict.main(config)
    other = dataclasses.replace(config, output=tmp_path / "b.csv", num_shards=2, num_workers=1)
    for shard in (1, 0):
        predict.main(dataclasses.replace(other, shard=shard))
    assert other.output.read_bytes() == config.output.read_bytes()
    page, again = (path.with_suffix(".html").read_text() for path in (config.output, other.output))
    assert again == page.replace("a.csv", "b.csv")
    with pytest.raises(Refusal, match="rows of another crops"):
        predict.main(dataclasses.replace(config, crops="1"))


def test_several_detectors_judge_by_the_mean_of_what_is_left_above_their_thresholds(
    detectors, photos, tmp_path, monkeypatch, one_thread
) -> None:
    single, decoded = [], []
    for i, folder in enumerate(detectors):
        predict.main(predict.Config((folder,), (str(photos),), tmp_path / f"{i}.csv", gallery=0, num_workers=0))
        single.append(rows_of(tmp_path / f"{i}.csv"))
    decode, thresholds = library.decode_fully, [load_detector(folder).threshold for folder in detectors]
    monkeypatch.setattr(library, "decode_fully", lambda *data: decoded.append(1) or decode(*data))
    for chosen in ((0, 1), (0, 1, 2)):
        decoded.clear()
        config = predict.Config(tuple(detectors[i] for i in chosen), (str(photos),), tmp_path / f"{chosen}.csv")
        predict.main(dataclasses.replace(config, gallery=0, num_workers=0))
        assert len(decoded) == 40  # once for all
        verdicts = set()
        for i, row in enumerate(rows_of(config.output)):
            if not row["logit"]:
                continue
            mean = np.mean([float(single[d][i]["logit"]) - thresholds[d] for d in chosen])
            assert float(row["logit"]) == pytest.approx(mean, abs=2e-4)
            assert row["verdict"] == ("fake" if float(row["logit"]) >= 0 else "real")
            assert bool(row["family"]) == (row["verdict"] == "fake" and chosen == (0, 1))
            verdicts.add(row["verdict"])
        assert verdicts == {"real", "fake"}
    with pytest.raises(Refusal, match="--detector: name the folder"):
        predict.Config((), (str(photos),))


def test_the_recipe_compares_crops_on_the_same_rows(detectors, planted, tmp_path, one_thread) -> None:
    config = recipe.Config(
        detector=detectors[2],
        manifest=(str(planted),),
        output_dir=tmp_path,
        crops=("1", "native"),
        test_views=("none",),
        resamples=20,
        num_workers=0,
    )
    recipe.main(config)
    page = (tmp_path / "table.md").read_text()
    assert "## native minus 1" in page and "| 1 | 1.00 |" in page and "| native | 4.00 |" in page
    rows = Manifest.read(planted)
    held, detector = np.flatnonzero(rows["split"] != "train"), load_detector(detectors[2])
    for kind in ("1", "native"):
        kept = Scores.read(tmp_path / f"scores-{kind}.parquet")
        again = score(detector, rows, held[:9], ("none",), crops=kind)
        np.testing.assert_allclose(kept["logit"][:9], again["logit"], atol=1e-4)
        assert len(kept) == len(held)

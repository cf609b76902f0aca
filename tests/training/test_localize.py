"""A localiser through its real `main`: it finds planted regions, leaves what it promises, and judges unknown files."""

import base64
import csv
import dataclasses
import io
import json
import os
import re
import signal
from pathlib import Path

import localize
import numpy as np
import pytest
import torch
from PIL import Image
from processes import in_children
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adapt.collect.composites import Recipe, write_composites
from adapt.commands import predict
from adapt.data.groups import collate
from adapt.data.manifest import Manifest
from adapt.data.masked_groups import MaskedGroups
from adapt.data.masks import GENERATED, PART, REAL
from adapt.embedded.world import make_world
from adapt.errors import Refusal
from adapt.evaluation.scores import Scores
from adapt.training.run import Run


@pytest.fixture(scope="module")
def manifests(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("parts")
    world = make_world(folder / "world", seed=7, scenes=(8, 4, 4), trace="planted", processes=1)
    recipe = Recipe(edits=("splice",), low=0.1)
    return str(world), str(write_composites(Manifest.read(world), folder / "c" / "manifest.csv", recipe))


@pytest.fixture(scope="module")
def config(manifests, tmp_path_factory) -> localize.Config:
    return localize.Config(
        manifest=manifests,
        output_dir=tmp_path_factory.mktemp("localize") / "run",
        layer="block1",
        crop=64,
        train_views=("none",),
        val_views=("none",),
        test_views=("none",),
        epochs=3,
        groups=4,
        resamples=50,
        num_workers=0,
    )


@pytest.fixture(scope="module")
def trained(config) -> Path:
    localize.main(config)
    return config.output_dir


def rates(folder: Path) -> dict[tuple[str, str], float]:
    with (folder / "localization.csv").open(newline="") as file:
        return {
            (row["label"], row["metric"]): float(row["value"]) for row in csv.DictReader(file) if row["value"] != "n/a"
        }


def test_planted_regions_are_found(trained) -> None:
    found = rates(trained)
    assert found["part:seen", "pixel_auc"] > 0.75
    assert found["generated", "area"] > found["untouched", "area"] + 0.1


def test_what_a_run_leaves_fits_together(trained, manifests) -> None:
    scores, maps = Scores.read(trained / "scores.parquet"), load_file(trained / "maps.safetensors")
    rows = Manifest.read(*manifests)
    assert len(scores) == (rows["split"] != "train").sum() == len(maps["changed"])
    part = np.array([name.startswith("part:") for name in scores["generator"]])
    assert part.sum() == (rows.fake & (rows["mask"] != "") & (rows["split"] != "train")).sum()
    pixels = maps["changed"].sum(axis=1) + maps["unchanged"].sum(axis=1)
    assert (pixels == 96 * 96).all()
    whole = scores.fake & ~part
    assert (maps["unchanged"][whole] == 0).all() and (
        maps["changed"][~scores.fake & (scores["edit"] == "")] == 0
    ).all()
    record = json.loads((trained / "provenance.json").read_text())
    saved = load_file(trained / "detector" / "head.safetensors")["threshold"]
    assert record["map_threshold"] == pytest.approx(float(saved))
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    assert "maps/0" in events.Tags()["images"] and "val/pixel_auc" in events.Tags()["scalars"]
    page = (trained / "table.md").read_text()
    assert "## Where: pixel AUC" in page and "| part:grid |" in page and "edit:splice" in page


def test_a_finished_run_is_shown_again_and_other_settings_are_refused(trained, config, capsys) -> None:
    localize.main(config)
    assert "this run is complete" in capsys.readouterr().out
    with pytest.raises(Refusal, match="other settings"):
        localize.main(dataclasses.replace(config, seed=1))


def test_killed_and_resumed_is_bit_identical(trained, config, tmp_path, monkeypatch) -> None:
    again, step = dataclasses.replace(config, output_dir=tmp_path / "run", checkpointing_steps=1), Run.step

    def strike(run, *values) -> None:
        step(run, *values)
        if run.step_number in (1, 4):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Run, "step", strike)
    assert in_children(lambda: localize.main(again)) == [-signal.SIGKILL]
    monkeypatch.setattr(Run, "step", step)
    localize.main(again)
    for name in ("maps.safetensors", "localization.csv", "detector/head.safetensors"):
        assert (again.output_dir / name).read_bytes() == (trained / name).read_bytes()


def test_two_processes_find_what_one_does(config, tmp_path) -> None:
    alone = dataclasses.replace(config, output_dir=tmp_path / "one", epochs=1)
    both = dataclasses.replace(alone, output_dir=tmp_path / "two")
    assert in_children(lambda: localize.main(alone)) == [0]
    assert in_children(lambda: localize.main(both), world=2) == [0, 0]
    one, two = (Scores.read(folder / "scores.parquet") for folder in (alone.output_dir, both.output_dir))
    assert list(one["path"]) == list(two["path"])
    np.testing.assert_allclose(two["logit"], one["logit"], atol=0.02 * np.std(one["logit"]))
    counts = [load_file(folder / "maps.safetensors") for folder in (alone.output_dir, both.output_dir)]
    for name in ("changed", "unchanged"):
        np.testing.assert_array_equal(*(each[name].sum(axis=1) for each in counts))  # the same pixels


def test_unknown_files_get_extent_tool_area_and_a_picture(trained, manifests, tmp_path, capsys) -> None:
    world = Path(manifests[0]).parent
    (tmp_path / "in").mkdir()
    for name in ("00000-real", "00000-grid"):
        Image.open(world / "test" / f"{name}.png").save(tmp_path / "in" / f"{name}.png")
    Image.open(world / "test" / "00000-real.png").resize((150, 70)).save(tmp_path / "in" / "wide.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"x")
    cfg = predict.Config(
        detector=(trained / "detector",),
        input=(str(tmp_path),),  # the recipe's own files are no inputs
        output=tmp_path / "p.csv",
        maps=tmp_path / "maps",
        num_workers=0,
    )
    predict.main(cfg)
    told = capsys.readouterr()
    assert "extent" in told.out + told.err and " 1.00 encoder passes" not in told.out + told.err  # several tiles
    page = cfg.output.with_suffix(".html").read_bytes()
    predict.main(cfg)
    assert cfg.output.with_suffix(".html").read_bytes() == page
    with cfg.output.open(newline="") as file:
        found = {row["path"].removeprefix("in/"): row for row in csv.DictReader(file)}
    assert len(found) == 4
    assert found["broken.png"]["status"] == "not-an-image" and not found["broken.png"]["map"]
    for name in ("00000-real.png", "00000-grid.png", "wide.png"):
        row = found[name]
        assert row["extent"] in ("real", "generated", "part") and 0 <= float(row["changed"]) <= 1
        assert (row["tool"] == "") == (row["extent"] == "real")
        with Image.open(tmp_path / "maps" / row["map"]) as shown:
            assert shown.format == "JPEG" and max(shown.size) > 512
    assert float(found["00000-grid.png"]["changed"]) > float(found["00000-real.png"]["changed"])
    pairs = page.decode().split('<div class="pair">')[1:]
    assert len(pairs) == 3
    for pair in pairs:
        pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'base64,([^"]+)"', pair)]
        assert [max(picture.size) <= 160 for picture in pictures] == [True, True]
        ratios = [picture.width / picture.height for picture in pictures]
        assert ratios[0] == pytest.approx(ratios[1], rel=0.03)
        row = found[re.search(r"<div>in/(.*?)</div>", pair)[1]]
        assert row["extent"] in pair and f"{100 * float(row['changed']):.1f} % changed" in pair


def test_a_localiser_is_alone_and_looks_at_whole_images(trained, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (96, 96)).save(tmp_path / "in" / "a.png")
    one = trained / "detector"
    cfg = predict.Config((one,), (str(tmp_path / "in"),), tmp_path / "p.csv", num_workers=0)
    for refused in ({"detector": (one, one)}, {"crops": "5"}, {"crops": "native"}):
        with pytest.raises(Refusal, match="whole images, alone"):
            predict.main(dataclasses.replace(cfg, **refused))
    with pytest.raises(Refusal, match="is an input or holds one"):
        predict.main(dataclasses.replace(cfg, maps=tmp_path))
    predict.main(cfg)
    assert '<div class="pair">' not in cfg.output.with_suffix(".html").read_text()
    with pytest.raises(Refusal, match="rows of another maps"):
        predict.main(dataclasses.replace(cfg, maps=tmp_path / "maps"))


def test_maps_of_a_detector_without_any_are_refused(tmp_path) -> None:
    from adapt.detector.detector import Detector
    from adapt.models.heads.linear import LinearHead
    from adapt.models.towers.backbones import load_backbone

    backbone = load_backbone("tiny")
    Detector(backbone, LinearHead(backbone.dim)).save(tmp_path / "d", {})
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    cfg = {"detector": (tmp_path / "d",), "input": (str(tmp_path / "a.png"),), "output": tmp_path / "p.csv"}
    with pytest.raises(Refusal, match=r"localize\.py"):
        predict.main(predict.Config(**cfg, maps=tmp_path / "maps", num_workers=0))


def test_a_manifest_without_masks_is_refused(manifests, tmp_path) -> None:
    with pytest.raises(Refusal, match=r"adapt composites"):
        localize.main(localize.Config(manifest=manifests[:1], output_dir=tmp_path / "run", num_workers=0))


def blocks(folder: Path) -> Manifest:
    """One group of 64 px images: a photograph, a whole fake, a fake of the left half, a blur of the right half."""
    left = np.zeros((64, 64), np.uint8)
    left[:, :32] = 255
    Image.fromarray(left).save(folder / "left.png")
    Image.fromarray(255 - left).save(folder / "right.png")
    rows = [("r", "real", "", ""), ("f", "x", "", ""), ("p", "x", "", "left.png"), ("e", "real", "blur", "right.png")]
    for place, (name, *_) in enumerate(rows):
        Image.fromarray(np.full((64, 64, 3), 60 * place, np.uint8)).save(folder / f"{name}.png")
    names, generators, edits, masks = zip(*rows, strict=True)
    columns = {"path": [f"{n}.png" for n in names], "generator": generators, "edit": edits, "mask": masks}
    return Manifest.of(columns | {"group": ["g"] * 4, "split": ["train"] * 4}, folder)


def test_labels_are_those_of_the_crop(tmp_path) -> None:
    rows, tool = blocks(tmp_path), np.array([0, 1, 1, 2])
    met = set()
    for epoch in range(30):
        batch = MaskedGroups(rows, tool, ("none",), 32, 8, 4, seed=0)[epoch, 0]
        for pixels, changed, extent, made in zip(batch.inputs, batch.changed, batch.extent, batch.tool, strict=True):
            kind, share = int(pixels[0, 0, 0]) // 60, float(changed.mean())
            met.add((kind, 0 < share < 1, int(extent)))
            if kind == 0:
                assert (share, extent, made) == (0, REAL, 0)
            if kind == 1:
                assert (share, extent, made) == (1, GENERATED, 1)
            if kind == 2:
                assert extent == (REAL if share == 0 else GENERATED if share == 1 else PART) and made == (share > 0)
            if kind == 3:  # blurred all over: a processed photograph
                assert share < 1 and extent == (PART if share else REAL) and made == (2 if share else 0)
    assert {(2, True, PART), (3, True, PART), (0, False, REAL), (1, False, GENERATED)} <= met


def test_kinds_take_turns_and_draws_repeat(tmp_path) -> None:
    rows, tool = blocks(tmp_path), np.array([0, 1, 1, 2])
    data = MaskedGroups(rows, tool, ("none", "qf40"), 64, 8, 2, seed=0)
    assert len(data) == 1 and data.group_weight == 2
    for epoch in range(4):
        one, two = data[epoch, 0], data[epoch, 0]
        assert torch.equal(one.inputs, two.inputs) and len(one.fake) == 2
        assert len(set(zip(one.extent.tolist(), one.tool.tolist(), strict=True))) == 2


def test_an_unreadable_image_is_counted_and_a_batch_without_any_has_a_blank(tmp_path) -> None:
    rows = blocks(tmp_path)
    for name in "rfpe":
        (tmp_path / f"{name}.png").write_bytes(b"x")
    item = MaskedGroups(rows, np.array([0, 1, 1, 2]), ("none",), 64, 8, 4, seed=0)[0, 0]
    assert len(item.fake) == 0 and len(item.unreadable) == 4
    batch = collate([item, item])
    assert batch.inputs.shape == (1, 3, 64, 64) and batch.changed.shape == (1, 8, 8) and len(batch.unreadable) == 8
    assert batch.weight.tolist() == [0] and batch.extent.dtype == torch.int64

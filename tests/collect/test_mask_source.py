"""Public sets of images with masks, in miniature: pairs by their names, what is lost and why, what is refused."""

import csv
import importlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.data.manifest import Manifest
from adapt.data.masks import read_mask, require_masks
from adapt.errors import Refusal

SHOWN = ("path", "mask", "group", "generator", "edit")


def source(folder: Path, **options):
    return importlib.import_module("adapt.collect.sources.masks").Source(folder=folder, set="s", **options)


def picture(path: Path, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = list(os.fsencode(path.name + path.parent.name))
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def mask(path: Path, value: int = 255, size: tuple[int, int] = (24, 20), colour: tuple[int, ...] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[5:10, 5:15] = colour or value
    Image.fromarray(pixels).save(path)


def rows(path: Path) -> dict[str, tuple[str, ...]]:
    manifest = Manifest.read(path)
    return {found[0]: found[1:] for found in zip(*(manifest[c] for c in SHOWN), strict=True)}


def lost(path: Path) -> dict[str, str]:
    with path.with_suffix(".lost.csv").open(newline="") as file:
        return {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}


def test_casia(tmp_path) -> None:
    picture(tmp_path / "Au" / "Au_ani_1.png")
    picture(tmp_path / "Tp" / "Tp_D_1.tif")
    picture(tmp_path / "Tp" / "Tp_S_2.png")
    mask(tmp_path / "CASIA 2 Groundtruth" / "Tp_D_1_gt.png")
    mask(tmp_path / "CASIA 2 Groundtruth" / "Tp_S_3_gt.png")
    out = source(tmp_path, layout="casia2").prepare()
    assert rows(out) == {
        "Au/Au_ani_1.png": ("", "s/Au_ani_1", "real", ""),
        "Tp/Tp_D_1.tif": ("CASIA 2 Groundtruth/Tp_D_1_gt.png", "s/Tp_D_1", "real", "casia2"),
    }
    assert lost(out) == {"Tp_S_2.png": "no-mask", "Tp_S_3_gt.png": "no-image"}
    require_masks(Manifest.read(out))


def test_coverage_groups_original_and_forgery(tmp_path) -> None:
    for name in ("image/1.tif", "image/1t.tif"):
        picture(tmp_path / name)
    mask(tmp_path / "mask" / "1forged.tif")
    assert rows(source(tmp_path, layout="coverage").prepare()) == {
        "image/1.tif": ("", "s/1", "real", ""),
        "image/1t.tif": ("mask/1forged.tif", "s/1", "real", "copy-move"),
    }


def test_imd2020_groups_by_folder_and_tells_original_image_and_mask_apart(tmp_path) -> None:
    for name in ("a1/x_orig.jpg", "a1/x_0.png", "a1/x_1.jpg"):
        picture(tmp_path / name)
    for name in ("a1/x_0_mask.png", "a1/x_1_mask.png"):
        mask(tmp_path / name)
    found = rows(source(tmp_path, layout="imd2020").prepare())
    assert {path: (found[path][0], found[path][2]) for path in found} == {
        "a1/x_orig.jpg": ("", "real"),
        "a1/x_0.png": ("a1/x_0_mask.png", "real"),
        "a1/x_1.jpg": ("a1/x_1_mask.png", "real"),
    }
    assert {group for _, group, _, _ in found.values()} == {"s/a1"}


def test_columbia_has_coloured_masks_which_are_written_anew(tmp_path) -> None:
    picture(tmp_path / "4cam_auth" / "a.tif")
    picture(tmp_path / "4cam_splc" / "b.tif")
    mask(tmp_path / "4cam_splc" / "edgemask" / "b_edgemask.png", colour=(0, 200, 0))
    out = source(tmp_path, layout="columbia").prepare()
    made = rows(out)["4cam_splc/b.tif"]
    assert made[0].startswith("manifest.masks/") and made[2:] == ("real", "splice")
    changed = np.asarray(read_mask(tmp_path / made[0], (24, 20))) >= 128
    assert changed.sum() == 50 and changed[5:10, 5:15].all()
    again = source(tmp_path, layout="columbia", split="test").prepare()  # our own masks are no images
    assert len(Manifest.read(again)) == 2


def test_generators_by_patterns_with_full_and_empty_masks(tmp_path) -> None:
    for name in ("fake/sd15/1", "fake/sd15/2", "fake/flux/1", "fake/sd15/3", "photos/1", "whole/flux/9"):
        picture(tmp_path / f"{name}.png")
    mask(tmp_path / "masks/sd15/1.png")
    mask(tmp_path / "masks/sd15/2.png", 0)
    Image.new("L", (24, 20), 255).save(tmp_path / "masks/sd15/3.png")
    mask(tmp_path / "masks/flux/1.png", size=(30, 20))
    options = {"part": ("fake/{tool}/{id}",), "mask": ("masks/{tool}/{id}",), "photo": ("photos/{id}",), "kind": "ai"}
    options |= {"generated": ("whole/{tool}/{id}",)}
    out = source(tmp_path, **options).prepare()
    assert rows(out) == {
        "fake/sd15/1.png": ("masks/sd15/1.png", "s/1", "sd15", ""),
        "fake/sd15/3.png": ("", "s/3", "sd15", ""),
        "photos/1.png": ("", "s/1", "real", ""),
        "whole/flux/9.png": ("", "s/9", "flux", ""),
    }
    assert lost(out) == {"2.png": "mask-empty", "1.png": "mask-size"}
    kept = rows(source(tmp_path, **options, empty="real", output=tmp_path / "b.csv").prepare())
    assert kept["fake/sd15/2.png"] == ("", "s/2", "real", "")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "give a --layout"),
        ({"part": ("a/{id}", "b/{id}"), "mask": ("m/{id}",)}, "one --mask for each --part"),
        ({"part": ("a/{id}",), "mask": ("m/{id}",), "tool": "x"}, "--kind"),
        ({"part": ("a/{id}",), "mask": ("m/{id}",), "kind": "ai"}, "--tool"),
        ({"part": ("b/{id}",), "mask": ("m/{id}",), "kind": "ai", "tool": "x"}, "no image under"),
        ({"part": ("{id}/{id}",), "mask": ("m/{id}",), "kind": "ai", "tool": "x"}, "use each field once"),
    ],
)
def test_what_is_refused(tmp_path, options, why) -> None:
    picture(tmp_path / "a" / "1.png")
    with pytest.raises(Refusal, match=why):
        source(tmp_path, **options).prepare()

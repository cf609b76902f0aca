"""Composites: pixels are exactly what the mask says, regions have their area, and the manifest knows masks."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.collect.align import align
from adapt.collect.composites import EDITS, Recipe, composite, write_composites
from adapt.collect.pack import pack
from adapt.collect.regions import SHAPES, draw_region, soften
from adapt.commands import composites as recipe
from adapt.data.images import Unreadable
from adapt.data.manifest import Manifest
from adapt.data.masks import GENERATED, PART, REAL, extents, read_mask, require_masks, tools
from adapt.data.views import parse_view
from adapt.embedded import read_manifests
from adapt.embedded.world import embedded_composites, embedded_manifest
from adapt.errors import Refusal

SIZE = (40, 32)


def picture(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def make(folder: Path, groups: int = 3, sizes: tuple[tuple[int, int], ...] = ()) -> Manifest:
    """Groups of a photograph, two fakes and a sharpened photograph, all noise."""
    rows = []
    for g in range(groups):
        for place, (generator, edit) in enumerate((("real", ""), ("a", ""), ("b", ""), ("real", "sharpen"))):
            size = sizes[place] if sizes else SIZE
            name = f"{g}-{place}.png"
            folder.mkdir(parents=True, exist_ok=True)
            picture(10 * g + place, size).save(folder / name)
            rows.append((name, f"g{g}", generator, "train", edit, "" if generator == "real" else "gan"))
    names = ("path", "group", "generator", "split", "edit", "family")
    manifest = Manifest.of(dict(zip(names, zip(*rows, strict=True), strict=True)), folder)
    manifest.write(folder / "m.csv")
    return manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Manifest, Manifest]:
    folder = tmp_path_factory.mktemp("composites")
    manifest = make(folder / "in", 6)
    return manifest, Manifest.read(write_composites(manifest, folder / "out" / "c.csv", Recipe(seed=3, parts=2)))


def pixels(file: str) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def test_pixels_are_what_the_mask_says_and_nothing_outside_it_changed(made) -> None:
    source, rows = made
    assert len(rows) == 6 * (2 * 2 + len(EDITS))
    partner = dict(
        zip(zip(source["group"], source["generator"], source["edit"], strict=True), source["file"], strict=True)
    )
    soft = 0
    for row in range(len(rows)):
        photo = pixels(partner[rows["group"][row], "real", ""])
        image, mask = pixels(rows["file"][row]), np.asarray(Image.open(rows.mask_files[row])).astype(int)
        assert mask.shape == image.shape[:2]
        assert (image[mask == 0] == photo[mask == 0]).all()
        assert (image != photo).any()
        soft += bool(((mask > 0) & (mask < 255)).any())
        if rows["generator"][row] != "real":
            fake = pixels(partner[rows["group"][row], rows["generator"][row], ""])
            exact = photo + (fake - photo) * mask[..., None] / 255  # in floats, where the code has integers
            assert (np.abs(image - exact) <= 0.5 + 1e-9).all()
            assert (image[mask == 255] == fake[mask == 255]).all()
    assert 0 < soft < len(rows)


def test_areas_stay_within_bounds_and_are_told(made) -> None:
    rows = made[1]
    for file, share in zip(rows.mask_files, rows["share"].astype(float), strict=True):
        area = (np.asarray(Image.open(file)) >= 128).mean()
        assert 0.01 <= area <= 0.6 and abs(area - share) < 1e-4


def test_every_edit_changes_as_it_says(made) -> None:
    source, rows = made
    photos = {g: f for g, f, n, e in zip(*(source[c] for c in ("group", "file", "generator", "edit")), strict=True)
              if n == "real" and not e}  # fmt: skip
    for row in np.flatnonzero(rows["generator"] == "real"):
        photo, image = pixels(photos[rows["group"][row]]), pixels(rows["file"][row])
        whole = np.asarray(Image.open(rows.mask_files[row])) == 255
        if rows["edit"][row] == "splice":
            others = [pixels(file) for group, file in photos.items() if group != rows["group"][row]]
            assert any((image[whole] == other[whole]).all() for other in others)
        if rows["edit"][row] == "local-brightness":
            inside = (photo > 20) & (photo < 150) & whole[..., None]
            ratio = image[inside] / photo[inside]
            assert np.ptp(ratio) < 0.1 and abs(np.log(ratio.mean())) > np.log(1.1)
        if rows["edit"][row] == "local-blur" and whole.sum() > 30:
            assert image[whole].std() < photo[whole].std()
        if rows["edit"][row] == "copy-move":  # noise: all of its values are the photograph's own
            own = {tuple(pixel) for pixel in photo.reshape(-1, 3)}
            assert {tuple(pixel) for pixel in image[whole]} <= own and (image[whole] != photo[whole]).any()


def test_same_seed_same_bytes_whatever_the_company(made, tmp_path) -> None:
    source, rows = made
    few = source.select(np.isin(source["group"], ["g2"]))
    alone = Manifest.read(write_composites(few, tmp_path / "o" / "c.csv", Recipe(seed=3, parts=2, edits=())))
    other = Manifest.read(write_composites(few, tmp_path / "p" / "c.csv", Recipe(seed=4, parts=2, edits=())))
    digest = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in rows["file"]]
    assert digest == list(rows["sha256"])
    assert set(alone["sha256"]) <= set(digest)
    assert not set(other["sha256"]) & set(digest)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_region_has_the_area_that_was_asked_for(shape) -> None:
    image = picture(0, (90, 70))
    for seed, share in enumerate((0.01, 0.05, 0.3, 0.6)):
        region = draw_region(image, shape, share, np.random.default_rng(seed), 0.01, 0.6)
        slack = 0.06 if shape == "rectangle" else 0.001  # a whole side comes in at once
        assert 0.01 <= region.mean() <= 0.6 and abs(region.mean() - share) <= slack
        soft = soften(region, 2.0, 0.01, 0.6)
        assert 0.01 <= (np.asarray(soft) >= 128).mean() <= 0.6


def test_an_object_follows_the_picture() -> None:
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, 32:] = 255
    follows = []
    for seed in range(20):
        region = draw_region(Image.fromarray(halves), "object", 0.2, np.random.default_rng(seed), 0.01, 0.6)
        left = region[:, :32].sum() / region.sum()
        follows.append(max(left, 1 - left))
    assert np.mean(follows) > 0.95


def test_composite_by_hand() -> None:
    one, other = (Image.fromarray(np.full((1, 3, 3), value, np.uint8)) for value in (10, 210))
    mask = Image.fromarray(np.array([[0, 51, 255]], np.uint8))
    assert np.asarray(composite(one, other, mask))[0, :, 0].tolist() == [10, 50, 210]


def test_what_a_row_with_a_mask_is(made) -> None:
    source, rows = made
    assert set(extents(rows)) == {PART}
    assert extents(source)[:4].tolist() == [REAL, GENERATED, GENERATED, REAL]
    assert set(tools(rows, "family")) == {"gan", *(f"edit:{edit}" for edit in EDITS)}
    assert set(tools(rows, "generator")) == {"a", "b", *(f"edit:{edit}" for edit in EDITS)}
    assert tools(source, "family")[:4].tolist() == ["real", "gan", "gan", "real"]


def test_the_manifest_keeps_masks_and_its_digest_tells_them(made, tmp_path) -> None:
    source, rows = made
    both = Manifest.read(
        *(Path(m["file"][0]).parents[k] / n for m, k, n in ((source, 0, "m.csv"), (rows, 2, "c.csv")))
    )
    assert (both.mask_files[: len(source)] == "").all()
    assert (both.mask_files[len(source) :] == rows.mask_files).all()
    top = Path(rows["file"][0]).parents[3]
    both.write(top / "both.csv")
    again = Manifest.read(top / "both.csv")
    assert (again.mask_files == both.mask_files).all() and all(
        mask.startswith("out/") for mask in again["mask"] if mask
    )
    unmasked = rows.columns | {"mask": np.full(len(rows), "", object)}
    assert rows.digest != Manifest(unmasked).digest


def columns(**changes) -> dict[str, list[str]]:
    row = {"path": "a.png", "group": "g", "generator": "x", "split": "train", "mask": "m.png"} | changes
    return {name: [value] for name, value in row.items()}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mask": "../m.png"}, "leaves the manifest's folder"),
        ({"mask": "/m.png"}, "leaves the manifest's folder"),
        ({"mask": "a.png"}, "is an image of the manifest"),
        ({"generator": "real"}, "without an edit"),
    ],
)
def test_masks_that_a_manifest_refuses(tmp_path, changes, why) -> None:
    with pytest.raises(Refusal, match=why):
        Manifest.of(columns(**changes), tmp_path)


def test_masks_that_do_not_fit_are_refused_by_name_and_count(tmp_path) -> None:
    picture(0).save(tmp_path / "a.png")
    for name, size, value in (("small", (20, 20), 255), ("empty", SIZE, 0), ("faint", SIZE, 100), ("fine", SIZE, 255)):
        Image.new("L", size, value).save(tmp_path / f"{name}.png")
    (tmp_path / "text.png").write_text("no image")
    require_masks(Manifest.of(columns(mask="fine.png"), tmp_path))
    wrong = {"small": "mask-size", "empty": "mask-empty", "faint": "mask-empty", "text": "mask-not-an-image"}
    for name, reason in (wrong | {"nowhere": "mask-missing"}).items():
        with pytest.raises(Refusal, match=rf"1 of 1 masks.*{name}\.png.*{reason}"):
            require_masks(Manifest.of(columns(mask=f"{name}.png"), tmp_path))


def test_masks_of_other_colours(tmp_path) -> None:
    marks = np.zeros((32, 40, 3), np.uint8)
    marks[:10], marks[10:20, :, 1] = 255, 200
    Image.fromarray(marks).save(tmp_path / "m.png")
    read = {c: np.asarray(read_mask(tmp_path / "m.png", SIZE, c)) >= 128 for c in ("white", "black", "green")}
    assert read["green"][10:20].all() and read["green"].sum() == 400
    assert read["white"][:10].all() and not read["white"][20:].any()
    assert (read["black"] == ~read["white"]).all()
    with pytest.raises(Unreadable, match="mask-empty"):
        read_mask(tmp_path / "m.png", SIZE, "red")


def test_a_mask_follows_the_geometry_of_a_view_and_nothing_else() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:50, 10:40] = 255  # the picture is its own mask
    mask = Image.fromarray(image[..., 0])
    for name in ("none", "qf90", "blur1", "grey+qf40", "crop32", "crop100", "resize30", "resize120+crop64"):
        for at in ((0.5, 0.5), (0.0, 1.0)):
            seen = np.asarray(parse_view(name)(Image.fromarray(image), at))[..., 0] >= 128
            followed = np.asarray(parse_view(name).follow(mask, at)) >= 128
            assert followed.shape == seen.shape
            assert (followed != seen).mean() < (0.02 if "qf" in name or "blur" in name else 1e-9)
    assert parse_view("qf40+blur2").follow(mask).tobytes() == mask.tobytes()


def test_what_cannot_be_composited_is_listed(tmp_path) -> None:
    manifest = make(tmp_path / "in", 1, (SIZE, (20, 32), SIZE, SIZE))
    (tmp_path / "in" / "0-2.png").write_bytes(b"broken")
    out = write_composites(manifest, tmp_path / "out" / "c.csv", Recipe(edits=("local-blur",)))
    assert len(Manifest.read(out)) == 1
    lost = out.with_suffix(".lost.csv").read_text()
    assert "other-size" in lost and "not-an-image" in lost and lost.count("\n") == 3
    with pytest.raises(Refusal, match="none of 1 groups"):
        write_composites(manifest, tmp_path / "none" / "c.csv", Recipe(edits=()))
    Image.new("RGB", SIZE).save(tmp_path / "in" / "0-0.png")  # black stays black
    with pytest.raises(Refusal, match="because of no-change"):
        write_composites(manifest.select([0, 3]), tmp_path / "dark" / "c.csv", Recipe(edits=("local-brightness",)))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"edits": ("smudge",)}, "unknown edit 'smudge'"),
        ({"low": 0.0}, "0 < low <= high < 1"),
        ({"low": 0.5, "high": 0.2}, "0 < low <= high < 1"),
        ({"parts": 0, "edits": ()}, "no group has a photograph"),
    ],
)
def test_settings_that_are_refused(tmp_path, settings, why) -> None:
    manifest = make(tmp_path, 1)
    with pytest.raises(Refusal, match=why):
        write_composites(manifest, tmp_path / "out.csv", dataclasses.replace(Recipe(), **settings))


def test_masks_do_not_survive_what_would_move_pixels(made, tmp_path) -> None:
    for call in (lambda: align(made[1], tmp_path / "aligned"), lambda: pack(made[1], tmp_path / "packed.csv")):
        with pytest.raises(Refusal, match="masks"):
            call()


def test_composites_of_the_embedded_world_are_made_once(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    scenes = (2, 1, 1)
    path = embedded_composites(5, scenes)
    rows = Manifest.read(embedded_manifest(5, scenes), path)
    assert {tool for tool in tools(rows, "generator") if tool.startswith("edit:")} == {
        f"edit:{edit}" for edit in EDITS
    }
    require_masks(rows)
    before = Path(rows["file"][-1]).stat().st_mtime_ns
    assert embedded_composites(5, scenes) == path and Path(rows["file"][-1]).stat().st_mtime_ns == before
    with pytest.raises(Refusal, match="embedded-composites@SEED"):
        read_manifests(["embedded-composites@x"])


def test_the_recipe_tells_what_it_made(tmp_path, capsys) -> None:
    make(tmp_path / "in", 2)
    out = tmp_path / "c.csv"
    recipe.main(recipe.Config(manifest=(str(tmp_path / "in" / "m.csv"),), output=out, edits=("splice",)))
    said = capsys.readouterr().out
    assert "| a |  | 2 | 0 | 0 |" in said and "| real | splice | 2 | 0 | 0 |" in said
    assert len(Manifest.read(out)) == 6

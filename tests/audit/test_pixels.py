"""What an audit sees in pixels. Every world is drawn here; what was done to it is the oracle."""

import contextlib
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from adapt.audit.compression import NEVER, compression
from adapt.audit.pixels import FAULTS, FIXED, THUMBNAIL, TRACES, chosen, look, place_of, resampling
from adapt.audit.record import finding_of
from adapt.audit.shortcuts import TOGETHER, examine, fails, place_of_mark, remedies, shortcuts
from adapt.collect.align import align
from adapt.commands import align as align_command
from adapt.commands import audit as audit_command
from adapt.data.manifest import Manifest

PIXEL = {*FAULTS, FIXED, THUMBNAIL}
GROUPS = 40


def jpeg(image: Image.Image, quality: int, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return Image.open(buffer).convert("RGB")


def drawing(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """Smooth colours with noise: one kind for both classes, another one for each seed."""
    rng = np.random.default_rng([41, seed])
    coarse = Image.fromarray(rng.integers(40, 210, (7, 8, 3), np.uint8))
    coarse = coarse.resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 5, (height, width, 1)) + rng.normal(0, 3, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + noise).round().clip(0, 255).astype(np.uint8))


def world(folder: Path, real, fake, groups: int = GROUPS) -> Manifest:
    """Every image is a drawing of its own, changed as its class asks: (image, number) -> image; all are PNG."""
    rows = []
    (folder / "images").mkdir(parents=True)
    for g, (m, (generator, change)) in itertools.product(range(groups), enumerate([("real", real), ("gan", fake)])):
        path = f"images/{np.random.default_rng([g, m]).integers(10**8, 10**9)}.png"
        change(drawing(2 * g + m), 2 * g + m).save(folder / path)
        rows.append((path, f"g{g}", generator, ("train", "val", "test")[g % 3]))
    names = ("path", "group", "generator", "split")
    return Manifest.of(dict(zip(names, zip(*rows, strict=True), strict=True)), folder)


def same(image: Image.Image, number: int) -> Image.Image:
    return image


def audited(manifest: Manifest):
    facts = examine(manifest, pixels=1000)
    cells, findings = shortcuts(manifest, facts, resamples=50)
    values = {cell.factor: cell.value for cell in cells}
    return values, findings, remedies(cells, findings, [], place_of_mark(manifest, facts, cells))


def line_of(lines: list[str], factor: str) -> str:
    return next(line for line in lines if line.startswith(f"{factor}: "))


def shifted_jpeg(image: Image.Image, number: int) -> Image.Image:
    """A grid at another phase in every file, no file of another size."""
    x, y = number % 7, number // 7 % 7
    larger = jpeg(drawing(number, 104, 88), 75)
    return larger.crop((x, y, x + 96, y + 80))


@pytest.mark.parametrize("real", [lambda image, number: jpeg(image, 75), shifted_jpeg])
def test_a_jpeg_history_inside_png_files_is_a_shortcut_at_any_phase_and_align_hides_it(tmp_path, real, capsys):
    manifest = world(tmp_path / "in", real, same)
    values, findings, lines = audited(manifest)
    for factor in ("past quality", "blocking grid", "lossless size", TOGETHER):
        assert values[factor] > 0.98 and findings[factor] == "SHORTCUT"
    assert findings["byte size"] == "SHORTCUT"  # files written alike excuse nothing
    assert findings[FIXED] == findings["quantised histogram"] == "clean"
    assert fails(findings)
    assert "adapt align --codec jpeg --size resizeN" in line_of(lines, "past quality")

    manifest.write(tmp_path / "in" / "manifest.csv")
    source = (str(tmp_path / "in" / "manifest.csv"),)
    align_command.main(align_command.Config(manifest=source, output_dir=tmp_path / "png"))
    said = capsys.readouterr().out
    assert f"JPEG before, which cannot be undone: {GROUPS} real, 0 fake" in said
    assert "100% of the reals and 0% of the fakes were JPEG, 5 % of them at 7" in said
    assert set(Manifest.read(tmp_path / "png" / "manifest.csv")["jpeg_before"][manifest.fake]) == {""}
    cure = {"size": "resize56", "codec": "jpeg", "quality": 60}
    align_command.main(align_command.Config(manifest=source, output_dir=tmp_path / "out", **cure))
    assert "Align with" not in capsys.readouterr().out
    values, findings, _ = audited(Manifest.read(tmp_path / "out" / "manifest.csv"))
    assert "SHORTCUT" not in findings.values()
    assert max(values[factor] for factor in ("past quality", "blocking grid", "lossless size", TOGETHER)) < 0.7
    assert findings["history"] == "allowed"  # what is hidden is still said


def test_classes_of_one_process_have_no_fault(tmp_path):
    values, findings, lines = audited(world(tmp_path, same, same))
    assert not {"SHORTCUT", "possible trace"} & set(findings.values())
    assert {findings[name] for name in ("past quality", "blocking grid", "quantised histogram", FIXED)} == {"clean"}
    assert all(abs(values[name] - 0.5) < 0.2 for name in PIXEL | set(TRACES))
    assert len(lines) == 1 and lines[0].startswith("cannot tell of byte size")  # 40 groups


def marked(side: str):
    def change(image: Image.Image, number: int) -> Image.Image:
        image = image.copy()
        draw = ImageDraw.Draw(image)
        x, y = (image.width - 21, image.height - 6) if side == "lower right" else (3, 3)
        for k, colour in enumerate(("yellow", "cyan", "lime", "red", "blue")):
            draw.rectangle((x + 4 * k, y, x + 3 + 4 * k, y + 3), fill=colour)
        return image

    return change


@pytest.mark.parametrize("side", ["lower right", "upper left"])
def test_a_mark_in_one_corner_is_a_fixed_pattern_and_its_place_is_named(tmp_path, side):
    manifest = world(tmp_path / "in", same, marked(side))
    values, findings, lines = audited(manifest)
    assert values[FIXED] > 0.98 and findings[FIXED] == "SHORTCUT"
    assert f"in the {side} corner" in line_of(lines, FIXED)
    cut = audited(align(manifest, tmp_path / "out", size="crop56"))[1]  # the remedy that the line names
    assert cut[FIXED] == "clean"


def test_topics_that_differ_are_found_in_thumbnails_and_nothing_else_is_blamed(tmp_path):
    def bluish(image: Image.Image, number: int) -> Image.Image:
        return Image.fromarray((np.asarray(image) + np.array([-12, -12, 25])).clip(0, 255).astype(np.uint8))

    values, findings, lines = audited(world(tmp_path, same, bluish))
    assert values[THUMBNAIL] > 0.85 and findings[THUMBNAIL] == "SHORTCUT"
    assert "same scenes" in line_of(lines, THUMBNAIL)
    assert {findings[name] for name in ("past quality", "blocking grid", FIXED)} == {"clean"}


def test_stretched_contrast_leaves_gaps_and_noise_is_a_trace_that_fails_nothing(tmp_path):
    def stretched(image: Image.Image, number: int) -> Image.Image:
        return image.point(lambda level: min(255, int(level * 1.25)))

    values, findings, _ = audited(world(tmp_path / "gaps", same, stretched))
    assert values["quantised histogram"] == 1 and findings["quantised histogram"] == "SHORTCUT"

    findings = {"format": "clean", "noise": "possible trace", "sharpness": "cannot tell"}
    assert not fails(findings)
    assert fails(findings | {"lossless size": "cannot tell"})
    assert fails(findings | {FIXED: "SHORTCUT"})


def test_noise_of_one_class_is_reported_as_a_trace(tmp_path):
    def smoothed(image: Image.Image, number: int) -> Image.Image:
        return image.resize((48, 40), Image.Resampling.BOX).resize((96, 80), Image.Resampling.BICUBIC)

    values, findings, lines = audited(world(tmp_path, same, smoothed))
    assert values["noise"] == values["sharpness"] == 1
    assert findings["noise"] == findings["sharpness"] == "possible trace"
    assert findings["past quality"] == findings["blocking grid"] == "clean"  # no grid where nothing was compressed
    assert "noise 1.000" in lines[-1] and lines[-1].startswith("possible traces of generation (AUC): ")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> list[Image.Image]:
    """Photographs of the embedded world, at the size at which that world is drawn."""
    from adapt.embedded.world import make_world

    manifest = Manifest.read(make_world(tmp_path_factory.mktemp("world"), seed=11, scenes=(24, 8, 8), processes=1))
    rows = (manifest["generator"] == "real") & (manifest["edit"] == "")
    return [Image.open(file).convert("RGB") for file in manifest["file"][rows]]


def test_the_past_quality_of_photographs_is_within_5_of_the_truth(photographs):
    assert len(photographs) == 40
    assert all(compression(np.asarray(image)).quality == NEVER for image in photographs)
    for quality in (40, 50, 65, 75, 85, 90, 95):
        for offset in ((0, 0), (3, 5)):
            cut = [jpeg(image, quality).crop((*offset, *image.size)) for image in photographs]
            found = [compression(np.asarray(image)) for image in cut]
            assert np.mean([abs(one.quality - quality) <= 5 for one in found]) >= 0.9, (quality, offset)
            phase = tuple(-start % 8 for start in offset)
            assert np.mean([(one.column, one.row) == phase for one in found]) >= 0.9, (quality, offset)


def test_tables_of_another_writer_are_seen_too(photographs):
    tables = [[3 + (7 * k) % 23 for k in range(64)], [5 + (5 * k) % 29 for k in range(64)]]
    found = [compression(np.asarray(jpeg(image, 75, qtables=tables))).quality for image in photographs]
    assert np.mean([quality != NEVER for quality in found]) >= 0.9


def test_an_enlargement_shows_its_period():
    rng = np.random.default_rng(0)
    plain = [rng.normal(120, 20, (96, 96)) for _ in range(8)]
    assert all(resampling(image)[1] == 0 for image in plain)
    for factor, period in ((1.25, 0.2), (1.5, 1 / 3)):
        side = int(96 * factor)
        large = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in plain]
        peaks = [resampling(image) for image in large]
        assert np.median([frequency for _, frequency in peaks]) == pytest.approx(period, abs=0.02)
        assert min(peak for peak, _ in peaks) > max(resampling(image)[0] for image in plain)


def test_whole_groups_of_every_generator_are_measured():
    labels = ["real"] * 3000 + ["a"] * 2900 + ["b"] * 30 + ["c"] * 500
    group = [f"g{k}" for k in range(3000)] + [f"g{k}" for k in range(2900)] + [f"h{k}" for k in range(530)]
    n = len(labels)
    columns = {"path": [f"{k}.png" for k in range(n)], "group": group, "generator": labels, "split": ["train"] * n}
    columns |= {"set": [""] * n}
    manifest = Manifest({name: np.array(values, object) for name, values in columns.items()})
    measured = chosen(manifest, 400, 0)
    count = {name: int(measured[manifest["generator"] == name].sum()) for name in ("real", "a", "b", "c")}
    assert count["b"] == 30 and count["c"] == 100 and 100 <= count["a"] <= count["real"] < 120
    inside = set(manifest["group"][measured])
    assert not inside & set(manifest["group"][~measured])
    assert not np.array_equal(measured, chosen(manifest, 400, 1))


def test_places_are_named_where_they_are():
    image = Image.new("RGB", (120, 90), "grey")
    image.putpixel((120 - 1 - 2, 90 - 1 - 7), (255, 255, 255))
    places = look(image).places.astype(int)
    assert place_of(int(np.abs(places).argmax())) == "in the lower right corner, 2 px and 7 px from its sides"
    assert place_of(4 * 24 * 24 * 3) == "at 1 % of the width and 1 % of the height"


def test_a_grey_strip_of_the_smallest_size_can_be_measured():
    for size in ((16, 16), (17, 300), (640, 16)):
        seen = look(Image.new("RGB", size, "grey"))
        assert np.isfinite(list(seen.numbers.values())).all()
        assert seen.numbers["past_quality"] == NEVER and seen.numbers["grid_step"] == 0


def test_the_command_says_how_many_were_measured_and_none_if_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    manifest = world(tmp_path / "in", lambda image, number: jpeg(image, 75), same)
    manifest.write(tmp_path / "in" / "manifest.csv")
    said = {}
    for pixels in (0, 2000):
        out = tmp_path / f"audit-{pixels}"
        config = audit_command.Config(
            manifest=(str(tmp_path / "in" / "manifest.csv"),), output_dir=out, resamples=50, pixels=pixels
        )
        with pytest.raises(SystemExit) if pixels else contextlib.nullcontext():
            audit_command.main(config)
        said[pixels] = capsys.readouterr().out
        kept = json.loads((out / "provenance.json").read_text())
        assert kept["measured in pixels"] == (2 * GROUPS if pixels else 0)
        assert finding_of(manifest).startswith("FOUND on ") == (pixels > 0)
        assert finding_of(manifest).endswith("(pixels not measured)") == (pixels == 0)
    assert "past quality: AUC 1.000" in said[2000] and "past quality" not in said[0]
    assert "byte size (content): AUC 1.000; only the pixels can explain it" in said[0]
    record = next((tmp_path / "cache" / "audits").glob("*.json"))
    record.write_text('{"found": [], "date": "2026-01-02"}')  # as an earlier version wrote it
    assert finding_of(manifest) == "clean on 2026-01-02 (pixels not measured)"

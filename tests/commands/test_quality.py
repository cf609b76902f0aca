"""Known qualities and subsamplings are found exactly; views that stand for a sample; --train_views like:FOLDER."""

import csv
import dataclasses
import importlib
import json
from collections import Counter
from pathlib import Path

import lora
import numpy as np
import pytest
import zoo
from PIL import Image

from adapt.commands import quality
from adapt.data.groups import draw_views
from adapt.data.images import Unreadable
from adapt.data.jpeg import MOST, Header, jpeg_tables, read_header, views_like, with_sample_views
from adapt.data.views import jpeg_bytes, rng
from adapt.detector.detector import Detector
from adapt.errors import Refusal
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import load_backbone
from adapt.sweeps.planned_runs import config_class

RECIPES = {file.stem for file in (Path(__file__).parents[2] / "recipes").glob("*.py")}
WITH_TRAIN_VIEWS = {name for name in RECIPES if "train_views" in config_class(name).__dataclass_fields__}


def jpeg(**options) -> bytes:
    return zoo.save(zoo.picture(), "JPEG", **options)


def of(quality: int | None) -> Header:
    return Header("JPEG", 9, 9, quality, "standard", 0, "4:2:0") if quality else Header("PNG", 9, 9)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_every_quality_of_pillow_is_found_exactly(subsampling) -> None:
    for q in range(1, 101):
        found = read_header(jpeg(quality=q, subsampling=subsampling))
        assert found == ("JPEG", zoo.W, zoo.H, q, "standard", 0, subsampling)
    for q in (40, 65, 90):  # what a view writes
        found = read_header(jpeg_bytes(Image.fromarray(zoo.picture()), q))
        assert (found.jpeg_quality, found.jpeg_tables, found.subsampling) == (q, "standard", "4:2:0")


def test_custom_tables_by_their_distance() -> None:
    luma, chroma = jpeg_tables(70).tolist()
    luma[5], chroma[9] = luma[5] + 2, chroma[9] + 1
    found = read_header(jpeg(qtables=[luma, chroma]))
    every = [np.abs(jpeg_tables(q) - [luma, chroma]).sum() for q in range(1, 101)]
    assert (found.jpeg_quality, found.jpeg_tables, found.table_distance) == (70, "custom", 3)
    assert (1 + int(np.argmin(every)), min(every)) == (70, 3)
    flat = read_header(jpeg(qtables=[[12] * 64, [12] * 64]))
    every = [np.abs(jpeg_tables(q) - 12).sum() for q in range(1, 101)]
    assert (flat.jpeg_quality, flat.table_distance) == (1 + int(np.argmin(every)), min(every))
    assert flat.jpeg_tables == "custom"


@pytest.mark.parametrize(
    ("luma", "chroma", "name"),
    [
        (0x12, 0x11, "4:4:0"),
        (0x41, 0x11, "4:1:1"),
        (0x22, 0x22, "4:4:4"),
        (0x22, 0x12, "4:2:2"),
        (0x31, 0x11, "other"),
    ],
)
def test_subsampling_is_a_ratio_of_factors(luma, chroma, name) -> None:
    """Sampling factors written into the frame header by hand (ITU-T T.81, B.2.2)."""
    data = bytearray(jpeg(subsampling="4:4:4"))
    frame = data.index(b"\xff\xc0") + 10  # marker 2, length 2, precision 1, height 2, width 2, components 1
    assert data[frame - 1] == 3
    for component, factors in enumerate((luma, chroma, chroma)):
        data[frame + 3 * component + 1] = factors
    assert read_header(bytes(data)).subsampling == name


def test_what_is_no_colour_jpeg() -> None:
    files = zoo.files()
    assert read_header(files["grey.jpg"][0]) == ("JPEG", zoo.W, zoo.H, 75, "standard", 0, "grey")
    assert read_header(files["cmyk.jpg"][0]).subsampling == "other"
    assert read_header(files["pages.mpo.jpg"][0])[:4] == ("JPEG", zoo.W, zoo.H, 75)
    assert read_header(files["lossy.webp"][0]) == Header("WEBP", zoo.W, zoo.H)
    assert read_header(files["orientation6.jpg"][0])[1:3] == (zoo.H, zoo.W)  # as stored
    with pytest.raises(Unreadable, match="too-large"):
        read_header(files["bomb.bmp"][0])


@pytest.mark.parametrize(
    ("sample", "views"),
    [
        ({40: 7}, "qf40"),
        ({40: 100, 65: 100, 90: 100}, "qf40 qf65 qf90"),
        ({40: 334, 65: 333, 90: 333}, "qf40 qf65 qf90"),
        ({75: 300, 90: 100}, "qf75 qf75 qf75 qf90"),
        ({None: 50, 90: 50}, "qf90 none"),
        ({60: 999, 95: 1}, "qf60"),
    ],
    ids=str,
)
def test_views_stand_for_the_sample(sample, views) -> None:
    headers = [of(quality) for quality, count in sample.items() for _ in range(count)]
    assert " ".join(views_like(headers)) == views
    assert views_like(headers[::-1]) == views_like(headers)


def test_a_broad_sample_is_spread_evenly() -> None:
    views = views_like([of(quality) for quality in range(1, 101)])
    gaps = np.diff([int(view.removeprefix("qf")) for view in views])
    assert MOST - 1 <= len(views) <= MOST and set(gaps) <= {5, 6}


def test_shares_are_as_near_as_so_many_names_allow() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        kinds = draw.choice(np.arange(1, 101), draw.integers(1, 6), replace=False)
        sample = draw.choice(kinds, 400, p=draw.dirichlet(np.ones(len(kinds)))).tolist()
        shares, views = Counter(sample), Counter(views_like([of(q) for q in sample]))
        n = views.total()
        assert n <= MOST
        for q in kinds:  # a quantile is off by less than one name at either end
            assert abs(views[f"qf{q}"] / n - shares[int(q)] / 400) <= max(1 / n, 0.05)


def test_a_view_that_stands_twice_is_drawn_twice_as_often_and_twins_still_differ() -> None:
    views = ("qf40", "qf40", "none")
    drawn = [[views[i] for i in draw_views(views, rng(0, 0, str(k)), twins=True)] for k in range(600)]
    assert 0.6 < np.mean([first == "qf40" for first, _ in drawn]) < 0.73
    assert all(first != second for first, second in drawn)
    alone = draw_views(("qf40", "qf40"), rng(0, 0, "a"), twins=True)
    assert len(alone) == 2


@pytest.fixture
def sample(tmp_path) -> Path:
    """Six files of quality 40, three of 65 (4:4:4), one of a camera, two PNG, one broken."""
    folder = tmp_path / "sample"
    folder.mkdir()
    for i in range(6):
        (folder / f"a{i}.jpg").write_bytes(jpeg(quality=40))
    for i in range(3):
        (folder / f"b{i}.jpg").write_bytes(jpeg(quality=65, subsampling="4:4:4"))
    tables = jpeg_tables(88).tolist()
    tables[0][0] += 1
    (folder / "camera.jpg").write_bytes(jpeg(qtables=tables))
    for i in range(2):
        (folder / f"c{i}.png").write_bytes(zoo.save(zoo.picture(), "PNG"))
    (folder / "broken.jpg").write_bytes(b"")
    return folder


def test_the_recipe_counts_what_is_there(sample, tmp_path, capsys) -> None:
    quality.main(quality.Config((str(sample), str(sample / "a0.jpg")), tmp_path / "out"))
    said = capsys.readouterr().out
    with (tmp_path / "out" / "qualities.csv").open(newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ("JPEG", "88", "custom", "4:2:0", "", "1", "7.7%", "1"),
        ("JPEG", "65", "standard", "4:4:4", "", "3", "23.1%", ""),
        ("JPEG", "40", "standard", "4:2:0", "", "6", "46.2%", ""),
        ("PNG", "", "", "", "", "2", "15.4%", ""),
        ("", "", "", "", "not-an-image", "1", "7.7%", ""),
    ]
    assert "13 files: 10 JPEG (1 with custom tables), 2 of other formats, 1 unreadable" in said
    assert "--train_views qf40 qf40 qf40 qf40 qf40 qf40 qf65 qf65 qf65 qf88 none none\n" in said
    assert "| JPEG | 40 | standard | 4:2:0 |  | 6 | 46.2% |  |" in said
    with Image.open(tmp_path / "out" / "qualities.png") as drawn:
        assert drawn.width > 500


def test_the_figure_shows_each_quality(sample) -> None:
    headers = [read_header(file.read_bytes()) for file in sample.glob("[abc]*") if file.stat().st_size]
    bars = {bar.get_label(): bar for bar in quality.figure(headers).axes[0].containers}
    assert set(bars) == {"standard tables: 9", "custom tables: 1"}
    heights = [patch.get_height() for patch in bars["standard tables: 9"]]
    assert (heights[40], heights[65], sum(heights)) == (6, 3, 9)
    assert bars["custom tables: 1"][88].get_height() == 1


def test_like_is_resolved_in_place_and_refused_without_images(sample, tmp_path) -> None:
    plain = lora.Config()
    assert with_sample_views(plain) is plain
    config = dataclasses.replace(plain, train_views=("grey", f"like:{sample / 'a0.jpg'}", "none"))
    assert with_sample_views(config).train_views == ("grey", "qf40", "none")
    assert dataclasses.replace(with_sample_views(config), train_views=config.train_views) == config
    chains = dataclasses.replace(plain, train_views=("qf70", "chains"))
    wanted = ("qf70", "none", "chain1:0", "chain2:0", "chain3:0", "chain4:0")
    assert with_sample_views(chains).train_views == wanted
    with pytest.raises(Refusal, match=r"like:.*broken.jpg: the sample has no readable image"):
        with_sample_views(dataclasses.replace(plain, train_views=(f"like:{sample / 'broken.jpg'}",)))
    with pytest.raises(Refusal, match="no input 'absent'"):
        with_sample_views(dataclasses.replace(plain, train_views=("like:absent",)))


@pytest.mark.parametrize("name", sorted(WITH_TRAIN_VIEWS))
def test_every_recipe_resolves_it_before_any_work(name, tmp_path) -> None:
    recipe = importlib.import_module(name)
    given = {"output_dir": tmp_path / "run", "train_views": ("like:absent",)}
    if name == "onboard":
        tower = load_backbone("tiny")
        Detector(tower, LinearHead(tower.dim)).save(tmp_path / "detector", {})
        given |= {"detector": tmp_path / "detector", "generator": "x"}
    given |= {"onboard": "x", "shots": 1} if name == "refine" else {}
    with pytest.raises(Refusal, match="no input 'absent'"):
        recipe.main(recipe.Config(**given))
    assert not (tmp_path / "run").exists()


def test_lora_trains_under_the_views_of_a_sample(planted, sample, tmp_path, monkeypatch, capsys) -> None:
    """All of a run but its page: the record holds what was resolved; the same command finds its run, with another
    sample it is refused."""
    config = lora.Config(
        manifest=(str(planted),),
        output_dir=tmp_path / "run",
        train_views=(f"like:{sample}",),
        test_views=("none",),
        epochs=1,
        num_workers=0,
    )
    monkeypatch.setattr(
        "adapt.training.report.report", lambda run, *_, **__: (run.write_record(run.record()), run.end())
    )
    monkeypatch.setattr("adapt.training.report.show_finished", lambda run: print("this run is complete"))
    lora.main(config)
    expected = ["qf40"] * 6 + ["qf65"] * 3 + ["qf88"] + ["none"] * 2
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert record["identity"]["train_views"] == expected
    assert "6 x qf40, 3 x qf65, 1 x qf88, 2 x none (12 images, 1 unreadable)" in capsys.readouterr().out
    lora.main(config)
    assert "this run is complete" in capsys.readouterr().out
    for i in range(40):
        (sample / f"new{i}.jpg").write_bytes(jpeg(quality=90))
    with pytest.raises(Refusal, match="train_views: "):
        lora.main(config)

"""Manifests as people write them: the same table in other clothes is the same manifest, or is refused by its name."""

import csv
import io
import os
import resource
from pathlib import Path

import pytest

from adapt.commands import audit
from adapt.data.families import read_families
from adapt.data.images import read_bytes
from adapt.data.inputs import find_inputs
from adapt.data.manifest import Manifest, require_files
from adapt.data.spelling import folded
from adapt.errors import Refusal

COLUMNS = ("path", "group", "generator", "split", "set", "note")
ROWS = [
    (f"i/{split}{g}-{name}.png", f"{split}{g}", name, split, "a", "x; y, z")
    for split in ("train", "val", "test")
    for g in range(2)
    for name in ("real", "sd-v1.4", "big gan")
]


def written(folder: Path, name: str, rows=ROWS, header=COLUMNS, encoding="utf-8", **how) -> Path:
    text = io.StringIO()
    csv.writer(text, **how).writerows([header, *rows])
    (folder / name).write_bytes(
        text.getvalue().encode(encoding, *(["surrogateescape"] if encoding == "utf-8" else []))
    )
    return folder / name


@pytest.fixture
def world(tmp_path) -> Path:
    (tmp_path / "i").mkdir()
    for number, (path, *_) in enumerate(ROWS):
        (tmp_path / path).write_bytes(b"%d" % number)
    return tmp_path


@pytest.mark.parametrize(
    "how",
    [
        {"encoding": "utf-8-sig"},
        {"encoding": "utf-16"},
        {"delimiter": ";"},
        {"delimiter": "\t"},
        {"delimiter": ";", "encoding": "utf-8-sig", "lineterminator": "\n"},
        {"header": [" Path", "GROUP", "Generator", "Split ", "SET", "note"]},
    ],
)
def test_the_same_table_in_other_clothes_is_the_same_manifest(world, how) -> None:
    plain = Manifest.read(written(world, "plain.csv"))
    other = Manifest.read(written(world, "other.csv", **how))
    assert other.digest == plain.digest
    assert list(other.columns) == list(plain.columns)
    for name, values in plain.columns.items():
        assert list(other[name]) == list(values), name


def test_absolute_paths_below_the_folder_and_backslashes_are_relative_paths(world, tmp_path_factory) -> None:
    plain = Manifest.read(written(world, "plain.csv"))
    link = tmp_path_factory.mktemp("link") / "here"
    link.symlink_to(world)
    for start in (world.resolve(), link):
        rows = [(f"{start}/{path}", *rest) for path, *rest in ROWS]
        other = Manifest.read(written(world, "absolute.csv", rows) if start != link else link / "absolute.csv")
        assert (other.digest, list(other["path"])) == (plain.digest, list(plain["path"]))
    windows = [(path.replace("/", "\\"), *rest) for path, *rest in ROWS]
    assert Manifest.read(written(world, "windows.csv", windows)).digest == plain.digest
    (world / "i\\train0-real.png").write_bytes(b"another")  # a file whose name has a backslash stays that file
    assert list(Manifest.read(world / "windows.csv")["path"])[:2] == ["i\\train0-real.png", "i/train0-sd-v1.4.png"]
    for outside in (f"{world.parent}/x.png", f"{world}-other/x.png", f"{world}/../x.png"):
        with pytest.raises(Refusal, match=r"row 1: path .* leaves the manifest's folder /.*: move the image"):
            Manifest.read(written(world, "out.csv", [(outside, *ROWS[0][1:])]))


def test_masks_are_written_in_the_same_ways(world) -> None:
    for name in ("m.png", "n.png"):
        (world / "i" / name).write_bytes(name.encode())
    rows = [(*row, mask) for row, mask in zip(ROWS[1:3], (f"{world}/i/m.png", "i\\n.png"), strict=True)]
    read = Manifest.read(written(world, "masks.csv", rows, (*COLUMNS, "mask")))
    assert list(read["mask"]) == ["i/m.png", "i/n.png"]


@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "path"])
def test_bytes_that_are_no_utf_8_are_refused_where_they_are_read(world, column) -> None:
    place = COLUMNS.index(column)
    rows = [list(row) for row in ROWS]
    rows[4][place] = "g\udce9n" if column != "split" else "tr\udce9n"
    with pytest.raises(Refusal, match=rf"row 5, column '{column}': .*Latin-1 it is '.*én'\): save the table as UTF-8"):
        Manifest.read(written(world, "bytes.csv", rows))


def test_paths_and_groups_named_after_them_keep_their_bytes(world) -> None:
    rows = [(f"i/\udce9{n}.png", f"s/\udce9{n}", *row[2:]) for n, row in enumerate(ROWS)]
    read = Manifest.read(written(world, "bytes.csv", rows))
    assert list(read["path"]) == [row[0] for row in rows]
    assert list(read["group"]) == [row[1] for row in rows]
    rows[3] = (rows[3][0], "s/\udcff", *rows[3][2:])
    with pytest.raises(Refusal, match="row 4, column 'group'"):
        Manifest.read(written(world, "bytes.csv", rows))


@pytest.mark.parametrize("other", ["SD-v1.4", "sd_v1.4", "sd v14", "sdv1.4"])
@pytest.mark.parametrize("where", ["one table", "two tables"])
def test_two_spellings_of_a_generator_are_asked_about(world, other, where) -> None:
    rows = [(*row[:2], other if row[2] == "sd-v1.4" and row[3] == "test" else row[2], *row[3:]) for row in ROWS]
    said = rf"generator 'sd-v1.4' \(4 rows\) and '{other}' \(2 rows\) differ only in case.*choose one spelling"
    with pytest.raises(Refusal, match=said):
        if where == "one table":
            Manifest.read(written(world, "m.csv", rows))
        else:
            Manifest.read(
                written(world, "a.csv", [row for row in rows if row[3] != "test"]),
                written(world, "b.csv", [row for row in rows if row[3] == "test"]),
            )


def test_blanks_around_a_name_are_no_part_of_it_and_other_names_stay_two(world) -> None:
    rows = [(*row[:2], f" {row[2]}\t" if row[2] != "real" and row[3] == "test" else row[2], *row[3:]) for row in ROWS]
    read = Manifest.read(written(world, "blanks.csv", rows))
    assert read.digest == Manifest.read(written(world, "plain.csv")).digest
    assert set(read.seen(read["generator"])) == {"train"}
    rows = [(*row[:2], row[2].replace("1.4", "1.5") if row[3] == "test" else row[2], *row[3:]) for row in ROWS]
    read = Manifest.read(written(world, "two.csv", rows))
    assert set(read["generator"][read.seen(read["generator"]) == ""]) == {"sd-v1.5"}
    assert [folded(name) for name in ("SD 1.4", "sd_14", "..", "É-n")] == ["sd14", "sd14", "..", "én"]


@pytest.mark.parametrize(
    ("column", "values"), [("set", "Aa"), ("family", ("GAN", "gan")), ("edit", ("blur", "Blur "))]
)
def test_sets_families_and_edits_have_one_spelling_too(world, column, values) -> None:
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    rows = [row for row in rows if row["generator"] == "real" or column != "edit"]
    for number, row in enumerate(rows):
        row[column] = values[number % 2]
    with pytest.raises(Refusal, match=f"{column} '.*' .* differ only in case"):
        Manifest.read(written(world, "m.csv", [list(row.values()) for row in rows], list(rows[0])))


def test_families_are_read_from_such_tables_too(tmp_path) -> None:
    rows = [("SD v1.4", "latent"), ("BigGAN ", "gan")]
    how = {"delimiter": ";", "encoding": "utf-8-sig"}
    families = read_families(written(tmp_path, "f.csv", rows, ("Generator", "FAMILY"), **how))
    assert [families.of(name) for name in ("sd-v1.4", "SD_V14", "big gan")] == ["latent", "latent", "gan"]
    with pytest.raises(Refusal, match=r"row 1, column 'family': .*'générateur'"):
        read_families(written(tmp_path, "f.csv", [("x", "générateur")], ("generator", "family"), encoding="latin-1"))
    with pytest.raises(Refusal, match=r"family 'GAN' .* and 'gan' .*differ only"):
        read_families(written(tmp_path, "f.csv", [("x1", "GAN"), ("x2", "gan")], ("generator", "family")))


def test_where_every_file_is_missing_the_folder_is_named_and_one_is_enough(
    world, monkeypatch, tmp_path_factory
) -> None:
    away = tmp_path_factory.mktemp("away")
    table = written(away, "m.csv")
    said = (
        rf"every file of the manifest is missing \(18 images\); the first are '{ROWS[0][0]}', '{ROWS[1][0]}', "
        rf"'{ROWS[2][0]}'. Looked in {away}: "
    )
    with pytest.raises(Refusal, match=said):
        audit.main(audit.Config(manifest=(str(table),), output_dir=away / "audit"))
    assert not (away / "audit").exists()
    (away / "i").mkdir()
    (away / ROWS[-1][0]).write_bytes(b"x")
    require_files(Manifest.read(table))


def test_files_of_macos_and_windows_are_no_images(tmp_path, capsys) -> None:
    for name in (
        "a.png",
        "._a.png",
        ".DS_Store",
        "b/Thumbs.db",
        "b/.hidden.png",
        "b/Desktop.ini",
        "__MACOSX/x/._a.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    _, found = find_inputs([str(tmp_path)])
    assert [item.path for item in found] == ["a.png", "b/.hidden.png"]
    assert "left out: 5 files that macOS or Windows wrote" in capsys.readouterr().err
    _, found = find_inputs([str(tmp_path), str(tmp_path / "._a.png")])  # a named file is taken as it is
    assert [os.path.basename(item.file) for item in found] == ["._a.png", "a.png", ".hidden.png"]  # noqa: PTH119


def test_an_image_is_not_blamed_for_too_many_open_files(world, monkeypatch) -> None:
    rows = Manifest.read(written(world, "m.csv"))
    with (world / "m.csv").open() as last:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno(), allowed[1]))
            with pytest.raises(OSError, match="Too many open files"):
                read_bytes(rows["file"][0])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, allowed)
    assert read_bytes(rows["file"][0]) == b"0"

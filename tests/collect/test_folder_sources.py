"""Data sets in miniature: which rows each layout gives, what is lost and why, and what is refused before any work."""

import csv
import functools
import hashlib
import importlib
import json
import os
import random
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import zoo
from fault_server import FaultServer, in_turn, status

from adapt import cli
from adapt.collect import builder
from adapt.collect import download as downloads
from adapt.collect.sources import folders, genimage, listing, real_fake, synthbuster, synthwildx, table
from adapt.commands import prepare
from adapt.data.manifest import Manifest
from adapt.errors import Refusal

PNG = zoo.save(zoo.picture(), "PNG")
ROOT = Path(__file__).parents[2]
SHOWN = ("path", "group", "generator", "split", "set")
download = functools.partial(downloads.download, allow_private=True, min_side=16, progress=False)


def make(root: Path, *names: str, data: bytes | None = None) -> Path:
    """Files under `root`; images whose bytes differ, for each has its name behind the last chunk."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG + os.fsencode(name) if data is None else data)
    return root


def rows(path: Path | None, *columns: str) -> list[tuple[str, ...]]:
    """Rows of a manifest, in its order; the columns of `SHOWN` unless told."""
    manifest = Manifest.read(path)
    return list(zip(*(manifest[column] for column in columns or SHOWN), strict=True))


def lost(path: Path) -> list[tuple[str, str]]:
    """File, relative to the manifest, and reason of what is missing."""
    with path.with_suffix(".lost.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        found = [(row["file"], row["reason"]) for row in csv.DictReader(file)]
    return [(name.removeprefix(f"{os.path.realpath(path.parent)}/"), reason) for name, reason in found]


def share(group: str, seed: int = 0) -> float:
    """Where a group falls between 0 and 1: below `test` it is test, below `test + val` val."""
    return int(hashlib.sha256(json.dumps([seed, group]).encode()).hexdigest()[:16], 16) / 2**64


@pytest.mark.parametrize("name", prepare.SOURCES)
def test_commands_of_the_docstrings_parse(name) -> None:
    module = importlib.import_module(f"adapt.collect.sources.{name}")
    lines = module.__doc__.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line)[3:] for line in lines if line.strip().startswith(f"adapt prepare {name} ")]
    assert commands
    for words in commands:
        assert isinstance(cli.parse(module.Source, words), module.Source)


# --- the walk --------------------------------------------------------------------------------------------------------


def test_walk_finds_images_by_extension_in_the_order_of_bytes(tmp_path, capsys) -> None:
    wanted = ["B/x.JPEG", "B/x.JPG", "a.b/c.jfif", "a/1.png", "a/10.webp", "a/2.gif", "a/b/3.bmp", "a/z.TIF", "ä.tiff"]
    wanted += ["\U0001f600.png", "\udcff.png"]  # by code points their order would be the other
    unread = ["a/phone.HEIC"]
    make(tmp_path, *wanted, *unread)
    make(tmp_path, "a/.hidden.png", ".git/x.png", "__MACOSX/a/x.png", "m.parts/x.png", "m.shards/x.png")
    make(tmp_path, "m.images/0/x.png", "m.aligned/x.png", "a/Thumbs.db", "a/notes.txt", "a/more.txt", "a/README")
    assert listing.walk(tmp_path) == sorted(wanted + unread, key=os.fsencode)
    said = capsys.readouterr().out
    assert "1 .db, 2 .txt, 7 hidden or written by tools, 1 no known suffix" in said


ODD = [
    *("a b.png", "new\nline.png", "com,ma.png", '"quoted".png', "-rf.png", "=cmd().png", "'.png", "a\\b.png"),
    *(unicodedata.normalize("NFC", "é.png"), unicodedata.normalize("NFD", "é.png"), "É.png", "tab\t.png"),
    *("carriage\r.png", "\udcff\udcfe.png", "%2e%2e.png", " .png", "..png.png", "x.tar.png", "CON.png"),
]


def test_odd_names_come_back_from_the_manifest(tmp_path) -> None:
    make(tmp_path, *(f"sd/{name}" for name in ODD), "real/1.png")
    kept = [name for name in ODD if not name.startswith(".")]
    path = folders.Source(folder=tmp_path).prepare()
    found = sorted(Manifest.read(path)["path"], key=os.fsencode)
    assert found == sorted([*(f"sd/{name}" for name in kept), "real/1.png"], key=os.fsencode)
    assert len(set(Manifest.read(path)["group"])) == len(found) == len(kept) + 1
    assert lost(path) == []


def test_links_are_followed_once_and_loops_end(tmp_path) -> None:
    make(tmp_path / "set", "sd/1.png", "sd/deep/2.png", ".store/3.png")
    (tmp_path / "set/sd/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/sd/self.png").symlink_to("self.png")
    (tmp_path / "set/again").symlink_to("sd")  # listed anyway
    for name in ("real9", "real3", "real", "real7", "real1"):  # listed only by a link: the first one
        (tmp_path / "set" / name).symlink_to(".store")
    (tmp_path / "set/sd/4.png").symlink_to("1.png")
    found = listing.walk(tmp_path / "set")
    assert found == ["real/3.png", "sd/1.png", "sd/4.png", "sd/deep/2.png", "sd/self.png"]
    path = folders.Source(folder=tmp_path / "set", split="test").prepare()
    assert [name for (name,) in rows(path, "path")] == found[:-1]
    assert lost(path) == [("sd/self.png", "io-error")]


@pytest.mark.parametrize("target", ["../outside", "../outside/x.png", "/etc"])
def test_a_link_that_leaves_is_refused_unless_the_manifest_lies_above(tmp_path, target) -> None:
    make(tmp_path, "set/sd/1.png", "set/real/2.png", "outside/x.png")
    (tmp_path / "set/sd/link.png").symlink_to(tmp_path / "set" / target)
    with pytest.raises(Refusal, match=r"link.png' is a link that leaves .*: name an --output above all images"):
        folders.Source(folder=tmp_path / "set").prepare()
    source = folders.Source(folder=tmp_path / "set", output=tmp_path / "manifest.csv")
    if target == "/etc":
        with pytest.raises(Refusal, match="leaves"):
            source.prepare()
    else:
        assert sum(name.startswith("set/sd/link.png") for (name,) in rows(source.prepare(), "path")) == 1


def test_folders_that_cannot_be_listed_are_refused(tmp_path) -> None:
    with pytest.raises(Refusal, match=r"nowhere' is no folder"):
        folders.Source(folder=tmp_path / "nowhere").prepare()
    make(tmp_path, "x/real/1.png", "y/1.txt")
    with pytest.raises(Refusal, match=r"x' lies outside .*y': name an --output above all images"):
        folders.Source(folder=tmp_path / "x", output=tmp_path / "y/m.csv").prepare()
    with pytest.raises(Refusal, match=r"no images under .*y in a folder 'real', only in none"):
        folders.Source(folder=tmp_path / "y").prepare()


# --- the choice of some images ---------------------------------------------------------------------------------------


def listed(generator: str, groups, split: str = "") -> list[dict[str, str]]:
    return [{"file": f"{generator}/{g}", "group": str(g), "generator": generator, "split": split} for g in groups]


def files(found: list[dict[str, str]]) -> set[str]:
    return {row["file"] for row in found}


def test_limit_keeps_so_many_of_each_generator_in_each_split() -> None:
    given = (
        listed("a", range(50), "train") + listed("a", range(50, 90), "test") + listed("real", range(90, 200), "train")
    )
    given += [{"file": "x", "group": "x", "generator": "unknown", "reason": "broken"}]
    found = listing.limit(given, 7, 30, seed=0)
    count = [sum(row["generator"] == g and row.get("split") == s for row in found) for g, s in
             (("a", "train"), ("a", "test"), ("real", "train"), ("real", "test"))]  # fmt: skip
    assert count == [7, 7, 30, 0]
    assert found == [row for row in given if row in found]  # in their order, the lost row among them
    assert found[-1]["reason"] == "broken"
    assert listing.limit(given, None, None, 0) == given


def test_limit_depends_on_neither_order_nor_company() -> None:
    given = listed("a", range(100)) + listed("b", range(100, 200))
    found = files(listing.limit(given, 20, None, seed=3))
    shuffled = random.Random(0).sample(given, len(given))
    assert files(listing.limit(shuffled, 20, None, seed=3)) == found
    assert files(listing.limit(listed("a", range(100)), 20, None, 3)) == {f for f in found if f.startswith("a")}
    assert files(listing.limit(given, 20, None, seed=4)) != found
    more = files(listing.limit(given + listed("a", range(200, 205)), 20, None, seed=3))
    assert len(found - more) <= 5  # a new file moves at most one other out
    assert more - found <= {f"a/{g}" for g in range(200, 205)}


def test_limit_does_not_choose_a_split() -> None:
    given = listed("a", range(2000))
    kept = [share(row["group"]) for row in listing.limit(given, 200, None, seed=0)]
    assert 0.4 < sum(kept) / len(kept) < 0.6


def test_limit_keeps_whole_matched_groups() -> None:
    there = {"real": range(60), "a": range(5, 60), "b": range(40)}  # 5 to 39 are complete
    given = [row for generator, groups in there.items() for row in listed(generator, groups)]
    found = listing.limit(given, 12, 20, seed=0)
    groups = {g: {row["group"] for row in found if row["generator"] == g} for g in there}
    assert groups["a"] == groups["b"] and len(groups["a"]) == 12
    assert groups["a"] < groups["real"] and len(groups["real"]) == 20
    assert groups["real"] <= {str(g) for g in range(5, 40)}


@pytest.mark.parametrize("name", ["per_class", "real"])
def test_limits_below_one_are_refused(tmp_path, name) -> None:
    with pytest.raises(Refusal, match=f"--{name} 0: give at least 1"):
        folders.Source(folder=tmp_path, **{name: 0})


# --- folders ---------------------------------------------------------------------------------------------------------


def test_folders(tmp_path) -> None:
    make(tmp_path / "mine", "real/1.png", "real/x/2.png", "sdxl/1.png", "resized/1.png", "stray.png")
    source = folders.Source(folder=tmp_path / "mine", edit_folders=("resized=resize",), split="test")
    path = source.prepare()
    assert path == tmp_path / "mine/manifest.csv"
    assert rows(path, *SHOWN, "edit") == [
        ("real/1.png", "mine/real/1.png", "real", "test", "mine", ""),
        ("real/x/2.png", "mine/real/x/2.png", "real", "test", "mine", ""),
        ("resized/1.png", "mine/resized/1.png", "real", "test", "mine", "resize"),
        ("sdxl/1.png", "mine/sdxl/1.png", "sdxl", "test", "mine", ""),
    ]
    assert lost(path) == [("stray.png", "no-generator-folder")]


def test_a_drawn_split_without_a_class_is_refused_and_what_each_got_is_said(tmp_path, capsys) -> None:
    make(tmp_path, *(f"{kind}/{i}.png" for kind in ("real", "sd") for i in range(5)))
    name = os.path.basename(tmp_path)  # noqa: PTH119
    got = {"train": [0, 0], "val": [0, 0], "test": [0, 0]}
    for fake, kind in enumerate(("real", "sd")):
        for i in range(5):
            place = share(f"{name}/{kind}/{i}.png")
            got["test" if place < 0.25 else "val" if place < 0.4 else "train"][fake] += 1
    empty = [split for fake in (0, 1) for split in got if not got[split][fake]]
    if empty:  # by the name of the folder, whose hash draws the splits; nearly always
        with pytest.raises(
            Refusal, match=f"split '{empty[0]}' got none of the 5 groups with .*--split train and cross-"
        ):
            prepare.main(folders.Source(folder=tmp_path))
        assert not (tmp_path / "manifest.csv").exists()
    said = capsys.readouterr().out
    for split, (reals, fakes) in got.items():
        assert not empty or f"| {split} | {reals + fakes} | {reals} | {fakes} |" in said
    prepare.main(folders.Source(folder=tmp_path, split="train"))  # the remedy
    said = capsys.readouterr().out
    assert "| train | 10 | 5 | 5 |" in said and "| test | 0 | 0 | 0 |" in said
    assert "10 groups are few (below 200)" in said and "--folds 5" in said
    assert set(Manifest.read(tmp_path / "manifest.csv")["split"]) == {"train"}


def test_splits_of_the_layout_and_large_sets_are_left_alone(tmp_path, capsys) -> None:
    make(tmp_path / "a", "train/real/1.png", "train/sd/1.png", "test/real/1.png", "test/sd/2.png")
    prepare.main(folders.Source(folder=tmp_path / "a"))
    assert (tmp_path / "a/manifest.csv").is_file()
    make(tmp_path / "b", *(f"{kind}/{i}.png" for kind in ("real", "sd") for i in range(100)))
    capsys.readouterr()
    prepare.main(folders.Source(folder=tmp_path / "b"))
    assert "are few" not in capsys.readouterr().out
    make(tmp_path / "c", *(f"{kind}/{i}.png" for kind in ("real", "sd") for i in range(3)))
    prepare.main(folders.Source(folder=tmp_path / "c", split="test"))  # a set for the test alone
    assert "are few" not in capsys.readouterr().out


def test_matched_folders_are_groups_by_name(tmp_path) -> None:
    make(tmp_path, "real/1.png", "real/2.png", "real/x/1.png", "sd/1.webp", "sd/2.png", "mj/x/1.png", "mj/7.png")
    path = folders.Source(folder=tmp_path, matched=True, set="m", test=0.5).prepare()
    groups = {group: {n for n, g in rows(path, "path", "group") if g == group} for (group,) in rows(path, "group")}
    assert groups == {
        "m/1": {"real/1.png", "sd/1.webp"},
        "m/2": {"real/2.png", "sd/2.png"},
        "m/7": {"mj/7.png"},
        "m/x/1": {"real/x/1.png", "mj/x/1.png"},
    }
    for group, split in rows(path, "group", "split"):
        assert split == ("test" if share(group) < 0.5 else "val" if share(group) < 0.65 else "train")


def test_split_folders_above_keep_their_splits(tmp_path) -> None:
    make(tmp_path, "train/real/1.png", "train/sd/1.png", "Valid/real/1.png", "test/real/1.png", "test/mj/1.png")
    path = folders.Source(folder=tmp_path, matched=True, set="m").prepare()
    assert rows(path) == [
        ("Valid/real/1.png", "m/Valid/1", "real", "val", "m"),
        ("test/real/1.png", "m/test/1", "real", "test", "m"),
        ("test/mj/1.png", "m/test/1", "mj", "test", "m"),
        ("train/real/1.png", "m/train/1", "real", "train", "m"),
        ("train/sd/1.png", "m/train/1", "sd", "train", "m"),
    ]


def test_val_is_drawn_from_train_where_the_layout_has_none(tmp_path) -> None:
    make(tmp_path, *(f"train/real/{i}.png" for i in range(30)), *(f"test/real/{i}.png" for i in range(10)))
    for path, group, _, split, _ in rows(folders.Source(folder=tmp_path, set="m", val=0.4).prepare()):
        drawn = "val" if share(group) < 0.4 else "train"
        assert split == ("test" if path.startswith("test/") else drawn)


def test_train_and_test_set_of_two_runs_join(tmp_path) -> None:
    train = make(tmp_path / "train_set", *(f"{g}/{i}.png" for g in ("real", "sd") for i in range(20)))
    test = make(tmp_path / "test_set", *(f"{g}/{i}.png" for g in ("real", "mj") for i in range(4)), "sd/new.png")
    for path in test.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"test")
    paths = folders.Source(folder=train, test=0).prepare(), folders.Source(folder=test, split="test").prepare()
    joined = Manifest.read(*paths)
    assert set(joined["split"][:40]) == {"train", "val"} and set(joined["split"][40:]) == {"test"}
    assert list(joined.seen(["sd", "mj"])) == ["train", ""]


def test_families_of_a_csv_are_filled_in_and_unknown_generators_named(tmp_path, capsys) -> None:
    make(tmp_path, "set/real/1.png", "set/house-gan/1.png", "set/sdxl/1.png", "set/zork/1.png")
    (tmp_path / "families.csv").write_text("generator,family\nHouse GAN,gan\n")
    path = folders.Source(folder=tmp_path / "set", families=tmp_path / "families.csv").prepare()
    found = {("real", "real"), ("house-gan", "gan"), ("sdxl", "latent_diffusion"), ("zork", "other")}
    assert set(rows(path, "generator", "family")) == found
    assert "built-in table has zork: family `other`" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names, options, message",
    [
        (["train/sd/1.png", "mj/1.png"], {}, "holds the split 'train' beside 'mj': name one of the two"),
        (["Real/1.png", "sd/1.png"], {}, "in a folder 'real', only in Real, sd: name those of camera images with"),
        (["real/1.png"], {"edit_folders": ("x=blur",)}, "in a folder 'x', only in real"),
        (["real/1.png"], {"edit_folders": ("blur",)}, "--edit_folders blur: write FOLDER=EDIT"),
        (["real/1.png", "REAL/2.png"], {}, "generator 'REAL' would count as a fake"),
        (["real/1.png", "a\nb/2.png"], {}, r"'a\\nb' cannot be printed: rename it"),
        (["real/1.png", "\udcff/2.png"], {}, r"'\\udcff' cannot be printed: rename it"),
        (["real/1.png"], {"set": "all"}, "a set or an edit named 'all'"),
    ],
    ids=["mixed", "no-real", "no-edit", "edit", "capital", "newline", "bytes", "all"],
)
def test_folders_refuse(tmp_path, names, options, message) -> None:
    make(tmp_path, *names)
    with pytest.raises(Refusal, match=message):
        folders.Source(folder=tmp_path, **options).prepare()
    assert not (tmp_path / "manifest.parts").exists()  # before any work


def test_broken_files_are_lost_with_their_reason(tmp_path) -> None:
    make(tmp_path, "real/good.png", "sd/good.png")
    make(tmp_path, "sd/empty.png", data=b"")
    make(tmp_path, "sd/page.jpg", data=b"<html>gone</html>")
    make(tmp_path, "sd/cut.png", data=PNG[:20])
    make(tmp_path, "sd/phone.heic", data=b"\0\0\0\x18ftypheic")
    os.mkfifo(tmp_path / "sd/pipe.png")
    (tmp_path / "sd/dangling.png").symlink_to("nothing.png")
    make(tmp_path, "both/x.png", "real/x.png", data=PNG)  # one picture, two labels
    path = folders.Source(folder=tmp_path).prepare()
    assert [name for (name,) in rows(path, "path")] == ["real/good.png", "sd/good.png"]
    reasons = dict(lost(path))
    cut = reasons.pop("sd/cut.png")
    assert cut in ("not-an-image", "truncated", "corrupt")
    assert reasons == {
        "both/x.png": "same-bytes-two-labels",
        "real/x.png": "same-bytes-two-labels",
        "sd/dangling.png": "missing",
        "sd/empty.png": "not-an-image",
        "sd/page.jpg": "not-an-image",
        "sd/phone.heic": "corrupt" if zoo.HEIC_IS_READ else "unsupported: heic",
        "sd/pipe.png": "not-a-file",
    }


def test_shards_make_the_manifest_of_one_job(tmp_path) -> None:
    make(tmp_path / "set", *(f"{g}/{i}.png" for g in ("real", "sd", "mj") for i in range(12)))
    make(tmp_path / "set", "sd/broken.png", data=b"")
    options = {"folder": tmp_path / "set", "matched": True, "per_class": 8, "real": 10}
    whole = folders.Source(**options, output=tmp_path / "whole.csv").prepare()
    parts = [folders.Source(**options, output=tmp_path / "parts.csv", shard=i, num_shards=2) for i in (1, 0)]
    assert parts[0].prepare() is None
    path = parts[1].prepare()
    assert path.read_bytes() == whole.read_bytes()
    assert path.with_suffix(".lost.csv").read_bytes() == whole.with_suffix(".lost.csv").read_bytes()


def test_a_large_manifest_is_parquet_where_nobody_named_its_file(tmp_path, monkeypatch, capsys) -> None:
    make(tmp_path, *(f"{kind}/{i}.png" for kind in ("real", "sd") for i in range(2)))
    small = folders.Source(folder=tmp_path, split="test").prepare()
    assert small == tmp_path / "manifest.csv"
    monkeypatch.setattr(builder, "LARGE", 4)
    prepare.main(folders.Source(folder=tmp_path, split="test"))
    assert "next: adapt audit --manifest" in capsys.readouterr().out
    assert not small.exists() and len(Manifest.read(tmp_path / "manifest.parquet")) == 4
    assert (tmp_path / "manifest.json").is_file() and (tmp_path / "manifest.lost.csv").is_file()
    named = folders.Source(folder=tmp_path, split="test", output=tmp_path / "named.csv")
    assert named.prepare() == tmp_path / "named.csv"
    make(tmp_path, "sd/\udcff.png")  # what Parquet cannot hold
    assert folders.Source(folder=tmp_path, split="test").prepare() == tmp_path / "manifest.csv"


def test_prepare_from_the_command_line(tmp_path) -> None:
    make(tmp_path / "set", *(f"{g}/{i}.png" for g in ("real", "sd") for i in range(10)), "sd/-x =1.png")
    make(tmp_path / "set", "sd/broken.png", data=b"")
    words = [sys.executable, "-m", "adapt", "prepare", "folders", "--folder", "set", "--test", "0.3", "--real", "8"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = Manifest.read(tmp_path / "set/manifest.csv")
    assert (found.fake.sum(), (~found.fake).sum()) == (11, 8)
    record = json.loads((tmp_path / "set/manifest.json").read_text())
    assert record["digest"] == found.digest and record["lost"] == [["sd", "not-an-image", "1"]]
    assert "next: adapt audit" in done.stdout
    words += ["--real_folder", "photo"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no images under set in a folder 'photo', only in real, sd: name those of")


# --- 0_real and 1_fake -----------------------------------------------------------------------------------------------


def test_forensynths(tmp_path) -> None:
    root = make(tmp_path / "FS", "train/progan/cat/0_real/1.png", "train/progan/cat/1_fake/1.png")
    make(root, "val/progan/cat/0_real/2.png", "test/progan/dog/1_fake/3.png", "test/progan/dog/0_real/3.png")
    make(root, "test/biggan/0_real/4.png", "test/biggan/1_fake/5.png", "test/biggan/readme.png")
    path = real_fake.Source(folder=root).prepare()
    assert rows(path) == [
        (name, f"FS/{name}", generator, split, f"FS/{set}")
        for name, generator, split, set in [
            ("test/biggan/0_real/4.png", "real", "test", "biggan"),
            ("test/biggan/1_fake/5.png", "biggan", "test", "biggan"),
            ("test/progan/dog/0_real/3.png", "real", "test", "progan"),
            ("test/progan/dog/1_fake/3.png", "progan", "test", "progan"),
            ("train/progan/cat/0_real/1.png", "real", "train", "progan"),
            ("train/progan/cat/1_fake/1.png", "progan", "train", "progan"),
            ("val/progan/cat/0_real/2.png", "real", "val", "progan"),
        ]
    ]
    assert lost(path) == [("test/biggan/readme.png", "no-class-folder")]


def test_universal_fake_detect_shares_its_reals(tmp_path, capsys) -> None:
    fakes = ["guided", "ldm_200", "ldm_200_cfg", "ldm_100", "glide_100_10", "glide_100_27", "glide_50_27", "dalle"]
    make(tmp_path, "imagenet/0_real/1.png", "laion/0_real/2.png", *(f"{name}/1_fake/1.png" for name in fakes))
    path = real_fake.Source(folder=tmp_path, set="ufd", split="test").prepare()
    assert {(generator, set) for generator, set in rows(path, "generator", "set")} == {
        ("real", "ufd/imagenet"),
        ("real", "ufd/laion"),
        ("guided", "ufd/imagenet"),
        *((name, "ufd/laion") for name in fakes[1:]),
    }
    assert "no reals" not in capsys.readouterr().out


def test_reals_of_another_folder_are_named_or_the_only_ones(tmp_path, capsys) -> None:
    make(
        tmp_path / "one", "photos/0_real/1.png", "a/1_fake/1.png", "b/1_fake/1.png", "c/1_fake/1.png", "c/0_real/1.png"
    )
    found = rows(real_fake.Source(folder=tmp_path / "one").prepare(), "generator", "set")
    assert set(found) >= {("a", "one/photos"), ("b", "one/photos"), ("c", "one/c"), ("real", "one/c")}
    make(tmp_path / "two", "p/0_real/1.png", "q/0_real/2.png", "a/1_fake/1.png", "b/1_fake/1.png")
    found = rows(real_fake.Source(folder=tmp_path / "two", reals_of=("a=q",)).prepare(), "generator", "set")
    assert set(found) == {("real", "two/p"), ("real", "two/q"), ("a", "two/q"), ("b", "two/b")}
    assert "no reals for b, so nothing to compare with: --reals_of b=FOLDER" in capsys.readouterr().out
    for pair, message in {
        "a=x": "--reals_of a=x: there are fakes in a, b, reals in p, q; name one of each",
        "a": "--reals_of a: write FAKES=REALS",
    }.items():
        with pytest.raises(Refusal, match=message):
            real_fake.Source(folder=tmp_path / "two", reals_of=(pair,)).prepare()


def test_wildrf_has_sites_and_no_generators(tmp_path) -> None:
    names = ["train/0_real/1.png", "train/1_fake/1.png", "val/0_real/1.png", "val/1_fake/1.png"]
    names += [f"test/{site}/{kind}/1.png" for site in ("reddit", "twitter") for kind in ("0_real", "1_fake")]
    make(tmp_path / "WildRF", *names)
    path = real_fake.Source(folder=tmp_path / "WildRF", set="wildrf", generator="wildrf-fake").prepare()
    assert rows(path, "path", "generator", "split", "set") == [
        ("test/reddit/0_real/1.png", "real", "test", "wildrf/reddit"),
        ("test/reddit/1_fake/1.png", "wildrf-fake", "test", "wildrf/reddit"),
        ("test/twitter/0_real/1.png", "real", "test", "wildrf/twitter"),
        ("test/twitter/1_fake/1.png", "wildrf-fake", "test", "wildrf/twitter"),
        ("train/0_real/1.png", "real", "train", "wildrf"),
        ("train/1_fake/1.png", "wildrf-fake", "train", "wildrf"),
        ("val/0_real/1.png", "real", "val", "wildrf"),
        ("val/1_fake/1.png", "wildrf-fake", "val", "wildrf"),
    ]


def test_any_two_folder_names(tmp_path) -> None:
    make(tmp_path / "x", "fake/real/1.png", "real/fake/1.png", "nature/fake/2.png", "nature/real/2.png")
    source = real_fake.Source(folder=tmp_path / "x", real_folder=("real",), fake_folder=("fake",), split="val")
    assert {(path, generator) for path, generator in rows(source.prepare(), "path", "generator")} == {
        ("fake/real/1.png", "real"),
        ("nature/real/2.png", "real"),
        ("nature/fake/2.png", "nature"),
        ("real/fake/1.png", "x-fake"),
    }


def test_a_fake_in_a_folder_called_real_stays_fake(tmp_path) -> None:
    make(tmp_path / "x", "real/1_fake/1.png", "real/0_real/1.png")
    assert rows(real_fake.Source(folder=tmp_path / "x").prepare(), "path", "generator") == [
        ("real/0_real/1.png", "real"),
        ("real/1_fake/1.png", "x-fake"),
    ]


def test_one_name_cannot_be_both_classes(tmp_path) -> None:
    with pytest.raises(Refusal, match="'x' is named by --real_folder and by --fake_folder"):
        real_fake.Source(folder=tmp_path, real_folder=("x",), fake_folder=("y", "x"))


# --- GenImage --------------------------------------------------------------------------------------------------------


def test_genimage(tmp_path) -> None:
    sd, adm = "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4", "ADM/imagenet_ai_0508_adm"
    make(tmp_path, f"{sd}/train/ai/0_sdv4_1.png", f"{sd}/train/nature/n01_10.JPEG", f"{sd}/val/nature/n02_2.JPEG")
    make(tmp_path, f"{adm}/train/nature/n01_10.JPEG", f"{adm}/train/nature/n02_2.JPEG", "notes/x.png")
    make(tmp_path, f"{adm}/val/ai/1_adm_1.PNG", f"{adm}/val/nature/ILSVRC2012_val_00000293.JPEG")
    make(tmp_path, f"{adm}/train/ai/0_adm_2.PNG", data=b"")
    path = genimage.Source(folder=tmp_path, val=0).prepare()
    assert rows(path) == [
        (
            f"{place}/{name}",
            f"genimage/{group or f'{place}/{name}'}",
            generator,
            split,
            f"genimage/{place.split('/')[0]}",
        )
        for place, name, group, generator, split in [
            (adm, "val/ai/1_adm_1.PNG", "", "ADM", "test"),
            (adm, "val/nature/ILSVRC2012_val_00000293.JPEG", "ILSVRC2012_val_00000293", "real", "test"),
            (adm, "train/nature/n01_10.JPEG", "n01_10", "real", "train"),
            (sd, "train/nature/n01_10.JPEG", "n01_10", "real", "train"),
            (adm, "train/nature/n02_2.JPEG", "n02_2", "real", "test"),  # test wherever it lies
            (sd, "val/nature/n02_2.JPEG", "n02_2", "real", "test"),
            (sd, "train/ai/0_sdv4_1.png", "", "stable_diffusion_v_1_4", "train"),
        ]
    ]
    assert lost(path) == [(f"{adm}/train/ai/0_adm_2.PNG", "not-an-image"), ("notes/x.png", "not-in-layout")]


def test_genimage_draws_val_from_train_by_photograph(tmp_path) -> None:
    names = [f"{g}/train/nature/n01_{i}.JPEG" for g in ("ADM", "glide") for i in range(20)]
    make(tmp_path, *names, "ADM/val/ai/1.png")
    for path, group, _, split, _ in rows(genimage.Source(folder=tmp_path, val=0.5).prepare()):
        assert split == ("test" if "/val/" in path else "val" if share(group) < 0.5 else "train")


def test_one_generator_of_genimage(tmp_path) -> None:
    make(tmp_path / "ADM", "imagenet_ai_0508_adm/val/ai/1.png", "imagenet_ai_0508_adm/val/nature/2.JPEG")
    found = rows(genimage.Source(folder=tmp_path / "ADM").prepare(), "generator", "set")
    assert found == [("real", "genimage/ADM"), ("ADM", "genimage/ADM")]


# --- Synthbuster -----------------------------------------------------------------------------------------------------

NINE = [
    *("dalle2", "dalle3", "firefly", "glide", "midjourney-v5", "stable-diffusion-1-3", "stable-diffusion-1-4"),
    *("stable-diffusion-2", "stable-diffusion-xl"),
]
SCENES = ["r000da54ft", "r001d260dt", "r01b4bd37t"]


@pytest.fixture
def busted(tmp_path) -> Path:
    root = make(tmp_path / "sb", *(f"{generator}/{scene}.png" for generator in NINE for scene in SCENES))
    make(root, *(f"real_RAISE_1k/{scene}.png" for scene in SCENES), "real_RAISE_1k/r0lonely.png", "stray.png")
    (root / "dalle2/r001d260dt.png").unlink()
    text = 'image name (matching Raise-1k),Prompt\nr000da54ft,"a house, red"\nr001d260dt.png,a dog\n'
    (root / "prompts.csv").write_text(text)
    return root


def test_synthbuster_is_groups_of_ten(busted, capsys) -> None:
    path = synthbuster.Source(folder=busted).prepare()
    expected = []
    for scene in SCENES:
        expected.append((f"real_RAISE_1k/{scene}.png", f"synthbuster/{scene}", "real", "test", "synthbuster"))
        expected += [(f"{g}/{scene}.png", f"synthbuster/{scene}", g, "test", "synthbuster") for g in NINE]
    expected.remove(("dalle2/r001d260dt.png", "synthbuster/r001d260dt", "dalle2", "test", "synthbuster"))
    assert rows(path) == expected
    assert dict(rows(path, "group", "caption")) == {
        "synthbuster/r000da54ft": "a house, red",
        "synthbuster/r001d260dt": "a dog",
        "synthbuster/r01b4bd37t": "",
    }
    alone = [("real_RAISE_1k/r0lonely.png", "no-fakes-of-it"), ("stray.png", "no-generator-folder")]
    assert sorted(lost(path)) == [("", "missing"), *alone]
    assert "3 scenes, 1 without dalle2" in capsys.readouterr().out


def test_synthbuster_with_reals_elsewhere(busted, tmp_path, capsys) -> None:
    make(tmp_path / "RAISE-1k", *(f"tiff/{scene}.tif" for scene in SCENES[:2]))
    path = synthbuster.Source(folder=busted, reals=tmp_path / "RAISE-1k", split="auto", test=0.5).prepare()
    assert path == tmp_path / "manifest.csv"
    reals = [name for name, generator in rows(path, "path", "generator") if generator == "real"]
    assert reals == [f"RAISE-1k/tiff/{scene}.tif" for scene in SCENES[:2]]
    for group, split in rows(path, "group", "split"):
        assert split == ("test" if share(group) < 0.5 else "val" if share(group) < 0.65 else "train")
    assert "3 scenes, 1 without real, 1 without dalle2" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["sb/coco", "coco"])
def test_synthbuster_and_foreign_reals(busted, tmp_path, place) -> None:
    foreign = make(tmp_path / place, "1.jpg", "deep/2.jpg")
    for against, sets in {
        "raise": {"raise": "synthbuster", "foreign": "synthbuster-foreign"},
        "foreign": {"raise": "synthbuster-raise", "foreign": "synthbuster"},
    }.items():
        path = synthbuster.Source(folder=busted, foreign_reals=foreign, against=against).prepare()
        found = rows(path, "path", "generator", "set", "group")
        reals = {(name.split("/")[-1], set, group) for name, generator, set, group in found if generator == "real"}
        assert reals == {(f"{scene}.png", sets["raise"], f"synthbuster/{scene}") for scene in SCENES} | {
            (f"{Path(name).name}", sets["foreign"], f"synthbuster-foreign/coco/{name}")
            for name in ("1.jpg", "deep/2.jpg")
        }
        assert {set for _, generator, set, _ in found if generator != "real"} == {"synthbuster"}
        assert {generator for _, generator, _, _ in found} == {"real", *NINE}
    for scene in (*SCENES, "r0lonely"):
        (busted / f"real_RAISE_1k/{scene}.png").unlink()
    path = synthbuster.Source(folder=busted, foreign_reals=foreign, against="foreign").prepare()
    assert sorted(set(rows(path, "generator", "set"))) == sorted((g, "synthbuster") for g in ("real", *NINE))
    assert [reason for _, reason in lost(path)] == ["no-generator-folder", "missing"]  # dalle2's, no photograph's


def test_synthbuster_refuses(busted, tmp_path) -> None:
    make(tmp_path / "bare", "dalle2/r1t.png")
    (tmp_path / "void").mkdir()
    for options, message in (
        ({"folder": tmp_path / "bare"}, "no RAISE-1k in .*: name its folder with --reals, or use --against foreign"),
        ({"folder": tmp_path / "void"}, "no generator's folder with images"),
        ({"folder": busted, "against": "foreign"}, "--against foreign: name the folder .* with --foreign_reals"),
    ):
        with pytest.raises(Refusal, match=message):
            synthbuster.Source(**options).prepare()
    (busted / "prompts.csv").write_text("name,Prompt\nr1,x\n")
    with pytest.raises(
        Refusal, match=r"prompts.csv has the columns name, Prompt, not 'image name\.\.\.' and 'Prompt'"
    ):
        synthbuster.Source(folder=busted).prepare()


# --- tables ----------------------------------------------------------------------------------------------------------


def write(path: Path, *lines: tuple[str, ...]) -> Path:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows(lines)
    return path


def test_spai_table(tmp_path) -> None:
    make(tmp_path, *(f"d/{i}.png" for i in range(5)))
    lines = [
        ("d/0.png", "0", "train"),
        ("d/1.png", "1", "Training"),
        ("d/2.png", "1", "dev"),
        ("d/3.png", "0", " valid "),
    ]
    write(tmp_path / "spai.csv", ("image", "class", "split"), *lines, ("d/4.png", "0", "testing"))
    path = table.Source(table=(tmp_path / "spai.csv",), path="image", label="class", split_column="split").prepare()
    assert rows(path) == [
        ("d/0.png", "spai/d/0.png", "real", "train", "spai"),
        ("d/1.png", "spai/d/1.png", "spai-fake", "train", "spai"),
        ("d/2.png", "spai/d/2.png", "spai-fake", "val", "spai"),
        ("d/3.png", "spai/d/3.png", "real", "val", "spai"),
        ("d/4.png", "spai/d/4.png", "real", "test", "spai"),
    ]


def test_commercial_tools_are_quintuples(tmp_path) -> None:
    names = ["synthbuster/dalle2/r1t.png", "synthbuster/firefly/r1t.png", "synthbuster/real_RAISE_1k/r1t.png"]
    make(tmp_path, *names)
    write(tmp_path / "c.csv", ("filename", "typ"), *zip(names, ("dalle2", "firefly", "real"), strict=True))
    source = table.Source(table=(tmp_path / "c.csv",), path="filename", generator="typ", matched=True, split="test")
    assert rows(source.prepare(), "path", "group", "generator") == [
        (names[2], "c/r1t", "real"),
        (names[0], "c/r1t", "dalle2"),
        (names[1], "c/r1t", "firefly"),
    ]


def test_all_columns_of_a_parquet_table(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    make(tmp_path / "data", "1.png", "2.png", "3.png")
    cells = {"f": ["1.png", "2.png", "3.png"], "y": [1, 1, 0], "m": ["sd", None, "x"], "g": [7, 7, 8]}
    cells |= {"b": ["one", "", "two"], "fam": ["ldm", "ldm", ""], "t": ["a cat", "", "b"]}
    pq.write_table(pa.table(cells), tmp_path / "list.parquet")
    columns = {"path": "f", "label": "y", "generator": "m", "group": "g", "set_column": "b", "family": "fam"}
    source = table.Source(
        table=(tmp_path / "list.parquet",), folder=tmp_path / "data", caption="t", set="s", split="val", **columns
    )
    assert rows(source.prepare(), "path", "generator", "group", "set", "family", "caption") == [
        ("2.png", "s-fake", "s/7", "s", "ldm", ""),
        ("1.png", "sd", "s/7", "one", "ldm", "a cat"),
        ("3.png", "real", "s/8", "two", "", "b"),
    ]


def test_rows_of_a_table_that_give_no_image_are_lost(tmp_path) -> None:
    make(tmp_path, "in/good.png", "in/twice.png", "in/torn.png", "in/unsaid.png", "out.png", "in/sub/x.png")
    (tmp_path / "in/link").symlink_to(tmp_path)
    (tmp_path / "in/link.png").symlink_to(tmp_path / "out.png")
    outside = ["../out.png", "/etc/passwd", "link/out.png", "link.png", "nul\0.png", ".", "a.tar::../x.png"]
    absolute = str(tmp_path / "in/sub/x.png")
    lines = [
        ("good.png", "sd"),
        (absolute, "sd"),
        ("gone.png", "sd"),
        ("", "sd"),
        ("unsaid.png", ""),
        ("s.tar::x", "sd"),
    ]
    lines += [("twice.png", "sd"), ("./twice.png", "sd"), ("torn.png", "sd"), ("torn.png", "real")]
    write(tmp_path / "t.csv", ("f", "g"), *lines, *((name, "sd") for name in outside))
    path = table.Source(table=(tmp_path / "t.csv",), folder=tmp_path / "in", path="f", generator="g").prepare()
    assert sorted(name for (name,) in rows(path, "path")) == ["good.png", "sub/x.png", "twice.png"]
    found = sorted(lost(path))
    expected = [("gone.png", "missing"), ("", "no-path"), ("unsaid.png", "no-label"), ("s.tar::x", "missing")]
    expected += [("twice.png", "listed-twice"), ("torn.png", "two-labels"), ("torn.png", "two-labels")]
    assert found == sorted(expected + [(name, "outside") for name in outside])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"path": "f"}, "name the column of generators with --generator, or that of labels with --label"),
        ({"generator": "g"}, "name the column of file names with --path, or that of addresses with --url"),
        ({"path": "file", "generator": "g"}, r"--path file: .*t.csv has only the columns f, g, y, s"),
        ({"path": "f", "generator": "g", "split_column": "z"}, "--split_column z: .* only the columns f, g, y, s"),
        (
            {"path": "f", "generator": "g", "split_column": "s"},
            "row 2: 'holdout' is no split, but one of train, training",
        ),
        (
            {"path": "f", "label": "y", "real": ("photo",)},
            "--real photo: --label y says yes, no; name the values of re",
        ),
        ({"path": "f", "generator": "g", "matched": True, "group": "g"}, "--matched makes groups by the names in"),
        ({"path": "f", "generator": "g", "output": "t.csv"}, "t.csv would be overwritten: name another file with"),
        ({"path": "f", "generator": "g", "table": "no.csv"}, "--table .*no.csv: no such file"),
        ({"path": "f", "generator": "g", "group": "y", "split_column": "g"}, "'sd' is no split"),
    ],
    ids=["label", "path", "column", "split-column", "split", "real", "matched", "output", "table", "value"],
)
def test_tables_refuse(tmp_path, options, message) -> None:
    make(tmp_path, "1.png", "2.png")
    header = ("f", "g", "y", "s")
    write(tmp_path / "t.csv", header, ("1.png", "sd", "yes", "train"), ("2.png", "real", "no", "holdout"))
    options = {"table": "t.csv"} | options
    options |= {"table": (tmp_path / options["table"],)}
    options |= {"output": tmp_path / options["output"]} if "output" in options else {}
    with pytest.raises(Refusal, match=message):
        table.Source(**options).prepare()


def test_a_group_in_two_splits_is_refused_before_the_work(tmp_path) -> None:
    make(tmp_path, "1.png", "2.png", "3.png")
    lines = [("1.png", "real", "a", "train"), ("2.png", "sd", "a", ""), ("3.png", "sd", "b", "test")]
    options = {"path": "f", "generator": "g", "group": "s", "split_column": "p", "table": (tmp_path / "t.csv",)}
    write(tmp_path / "t.csv", ("f", "g", "s", "p"), *lines)
    for val, split in ((0.0, "train"), (0.999, "val")):  # the group's, where a cell is empty
        found = rows(table.Source(**options, val=val, test=0).prepare(), "path", "split")
        assert found == [("1.png", split), ("2.png", split), ("3.png", "test")]
    write(tmp_path / "t.csv", ("f", "g", "s", "p"), *lines[:2], ("3.png", "sd", "a", "test"))
    with pytest.raises(Refusal, match="group 't/a' is in two splits, train and test"):
        table.Source(**options).prepare()
    assert set(rows(table.Source(**options, split="val").prepare(), "split")) == {("val",)}


# --- URLs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "BACKOFF", 0.01)
    with FaultServer() as server:
        for name in "abcd":
            server.pages[f"/{name}"] = status(200, PNG + name.encode())
        server.pages["/page"] = status(200, b"<html>")
        server.pages["/down"] = in_turn(*[status(503)] * 3, status(200, PNG + b"down"))
        yield server


def test_missing_images_are_fetched_and_dead_links_never_asked_again(tmp_path, server) -> None:
    make(tmp_path, "dalle3/1.jpg")
    paths = {
        "dalle3/1.jpg": "/a",
        "dalle3/2.jpg": "/b",
        "real/3.jpg": "/c",
        "real/4.jpg": "/gone",
        "real/5.jpg": "/page",
    }
    paths |= {"firefly/6.jpg": "/down"}
    lines = [(server.url(url), name, name.split("/")[0]) for name, url in paths.items()]
    write(tmp_path / "list.csv", ("url", "filename", "typ"), *lines)
    source = synthwildx.Source(table=(tmp_path / "list.csv",))
    path = source.prepare(download)
    assert server.count("/a") == 0  # it is there
    digest = hashlib.sha256(PNG + b"b").hexdigest()
    assert rows(path, "generator", "split", "set", "group", "url") == [
        ("dalle3", "test", "synthwildx", "synthwildx/dalle3/1.jpg", server.url("/a")),
        ("dalle3", "test", "synthwildx", "synthwildx/dalle3/2.jpg", server.url("/b")),
        ("real", "test", "synthwildx", "synthwildx/real/3.jpg", server.url("/c")),
    ]
    assert rows(path, "path", "sha256")[1] == (f"manifest.images/0-of-1/{digest[:2]}/{digest}.png", digest)
    dead = [("real/4.jpg", "http-404"), ("real/5.jpg", "not-an-image")]
    assert lost(path) == [("firefly/6.jpg", "http-503"), *dead]

    before, asked = path.read_bytes(), len(server.visits)
    assert source.prepare(download).read_bytes() == before
    (tmp_path / "manifest.parts/0-of-1.jsonl").unlink()  # even when all is looked at anew
    assert source.prepare(download).read_bytes() == before
    assert len(server.visits) == asked

    again = synthwildx.Source(table=(tmp_path / "list.csv",), again=True).prepare(download)
    assert server.count("/down") == 4 and server.count("/gone") == 1  # only what may have passed
    assert "firefly" in Manifest.read(again)["generator"] and lost(again) == dead


def test_urls_alone_in_shards(tmp_path, server) -> None:
    lines = [(server.url(f"/{name}"), kind) for name, kind in zip("abcd", ("sd", "real", "sd", "real"), strict=True)]
    server.pages["/twin"] = status(200, PNG + b"a")
    lines += [(server.url("/twin"), "sd"), (server.url("/a"), "sd"), ("file:///etc/passwd", "sd"), ("", "sd")]
    write(tmp_path / "urls.csv", ("u", "g"), *lines)
    options = {"table": (tmp_path / "urls.csv",), "url": "u", "generator": "g", "split": "test"}
    one = table.Source(**options, output=tmp_path / "one/m.csv").prepare(download)
    assert sorted(url for (url,) in rows(one, "url")) == [server.url(f"/{name}") for name in "abcd"]
    reasons = sorted(reason for _, reason in lost(one))
    assert reasons == ["bad-url", "listed-twice", "no-path", "same-bytes-twice"]
    jobs = [table.Source(**options, output=tmp_path / "two/m.csv", shard=i, num_shards=2) for i in range(2)]
    assert jobs[0].prepare(download) is None
    two = jobs[1].prepare(download)
    assert {digest for (digest,) in rows(two, "sha256")} == {digest for (digest,) in rows(one, "sha256")}


def test_a_private_address_is_not_asked(tmp_path, server) -> None:
    make(tmp_path, "1.png")
    write(tmp_path / "t.csv", ("f", "u", "g"), ("1.png", "", "real"), ("2.png", server.url("/a"), "sd"))
    path = table.Source(table=(tmp_path / "t.csv",), path="f", url="u", generator="g").prepare()
    assert lost(path) == [("2.png", "private-address")] and not server.visits


def test_a_tree_without_folders_of_the_classes_is_told_how_to_name_them(tmp_path) -> None:
    make(tmp_path, "train/REAL/1.png", "train/FAKE/1.png", "test/REAL/2.png", "test/FAKE/2.png")
    said = (
        r"none of the 4 images under .* is in a folder '0_real' or '1_fake'; the folders there are 'test', 'FAKE', "
        r"'REAL', 'train': name those of the two classes, --real_folder REAL --fake_folder FAKE"
    )
    with pytest.raises(Refusal, match=said):
        real_fake.Source(folder=tmp_path).prepare()
    path = real_fake.Source(folder=tmp_path, real_folder=("REAL",), fake_folder=("FAKE",)).prepare()
    assert sorted(Manifest.read(path)["split"]) == ["test", "test", "train", "train"]


def test_folders_that_spell_one_generator_in_two_ways_are_asked_about(tmp_path) -> None:
    make(tmp_path, "real/1.png", "SD-1.4/2.png", "sd_14/3.png", "sd_14/4.png")
    with pytest.raises(Refusal, match=r"generator 'SD-1.4' \(1 rows\) and 'sd_14' \(2 rows\).*rename its folder"):
        folders.Source(folder=tmp_path).prepare()

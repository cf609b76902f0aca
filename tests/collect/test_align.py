import csv
import json
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import processes
import pytest
import zoo
from PIL import Image, JpegImagePlugin

from adapt.collect import align as module
from adapt.collect.align import align
from adapt.data.jpeg import jpeg_tables
from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.files import sha256
from adapt.lock import Lock

SOURCES = [  # (generator, name, Pillow format, options, width, height) of each member of a group
    ("real", "photo.jpg", "JPEG", {"quality": 75, "subsampling": "4:4:4", "exif": zoo.exif(6)}, 60, 90),
    ("gan", "gan.png", "PNG", {"icc_profile": b"a profile"}, 64, 64),
    ("diffusion", "diffusion.webp", "WEBP", {"lossless": True}, 50, 40),
]


def dataset(folder: Path, groups: int = 3) -> Manifest:
    rows = []
    for g in range(groups):
        for m, (generator, name, kind, options, width, height) in enumerate(SOURCES):
            path = folder / f"g{g}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(zoo.save(zoo.picture(width, height, seed=10 * g + m), kind, **options))
            rows.append((f"g{g}/{name}", f"g{g}", generator, ("train", "test")[g % 2], str(width), "a caption"))
    names = ("path", "group", "generator", "split", "width", "caption")
    return Manifest.of(dict(zip(names, zip(*rows, strict=True), strict=True)), folder)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "align.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def copies(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted((folder / "images").rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("size", "expected"),
    [("group", (40, 40)), ("resize48", (48, 48)), ("crop32", (32, 32))],
)
@pytest.mark.parametrize(("codec", "subsampling"), [("png", "4:2:0"), ("jpeg", "4:2:0"), ("jpeg", "4:4:4")])
def test_all_members_agree_in_size_format_and_tables(tmp_path, size, expected, codec, subsampling):
    manifest = dataset(tmp_path / "in", groups=2)
    aligned = align(manifest, tmp_path / "out", size=size, codec=codec, quality=83, subsampling=subsampling)
    assert len(aligned) == len(manifest)
    for file in aligned["file"]:
        with Image.open(file) as image:
            assert (image.format, image.mode, image.size) == (codec.upper(), "RGB", expected)
            assert not {"exif", "icc_profile"} & set(image.info)
            if codec == "jpeg":
                tables = [image.quantization[0], image.quantization[1]]
                np.testing.assert_array_equal(tables, jpeg_tables(83))
                assert JpegImagePlugin.get_sampling(image) == {"4:2:0": 2, "4:4:4": 0}[subsampling]


def test_a_group_keeps_the_shape_that_all_members_share(tmp_path):
    columns = {"path": ["a.png", "b.png"], "group": ["g", "g"], "generator": ["real", "gan"], "split": ["test"] * 2}
    (tmp_path / "in").mkdir()
    for name, (width, height) in {"a.png": (120, 60), "b.png": (45, 30)}.items():
        (tmp_path / "in" / name).write_bytes(zoo.save(zoo.picture(width, height), "PNG"))
    align(Manifest.of(columns, tmp_path / "in"), tmp_path / "out")
    # 120 x 60 scaled to a short side of 30 is 60 x 30; 45 x 30 is narrower, so both end 45 wide
    assert [(row["to_width"], row["to_height"], row["scale"]) for row in table(tmp_path / "out")] == [
        ("45", "30", "0.5"),
        ("45", "30", "1.0"),
    ]


def test_pixels_are_the_centre_of_the_picture(tmp_path):
    manifest = dataset(tmp_path / "in", groups=1)
    cropped = align(manifest, tmp_path / "crop", size="crop32")
    scaled = align(manifest, tmp_path / "scaled", size="resize48")
    gan, diffusion = zoo.picture(64, 64, seed=1), zoo.picture(50, 40, seed=2)
    np.testing.assert_array_equal(np.asarray(Image.open(cropped["file"][1])), gan[16:48, 16:48])
    np.testing.assert_array_equal(np.asarray(Image.open(cropped["file"][2])), diffusion[4:36, 9:41])
    by_hand = Image.fromarray(diffusion).resize((60, 48), Image.Resampling.BICUBIC).crop((6, 0, 54, 48))
    np.testing.assert_array_equal(np.asarray(Image.open(scaled["file"][2])), np.asarray(by_hand))


def test_the_record_says_what_was_and_what_was_done(tmp_path):
    aligned = align(dataset(tmp_path / "in", groups=1), tmp_path / "out", size="resize48", codec="jpeg", quality=90)
    photo, gan, diffusion = table(tmp_path / "out")
    assert (photo["format"], photo["width"], photo["height"]) == ("JPEG", "60", "90")  # stored; shown 90 x 60
    assert (photo["jpeg_before"], photo["tables"], photo["subsampling"]) == ("75", "standard", "4:4:4")
    assert "cannot be undone" in photo["note"]
    assert photo["steps"] == "decode + resize 72x48 + crop 48x48+12+0 + jpeg 90 4:2:0"
    assert (gan["format"], gan["jpeg_before"], gan["note"]) == ("PNG", "", "")
    assert diffusion["scale"] == "1.2"
    assert "enlarged" in diffusion["note"]
    for row, source in zip((photo, gan, diffusion), SOURCES, strict=True):
        assert row["source_sha256"] == sha256(tmp_path / "in" / "g0" / source[1])
        assert row["bytes"] == str((tmp_path / "in" / "g0" / source[1]).stat().st_size)
    read = Manifest.read(tmp_path / "out" / "manifest.csv")
    assert list(read["jpeg_before"]) == ["75", "", ""]
    assert list(read["width"]) == ["48"] * 3
    assert list(read["caption"]) == ["a caption"] * 3
    assert list(read["sha256"]) == [sha256(file) for file in read["file"]]
    assert read.digest == aligned.digest
    assert not any(word in path for path in read["path"] for word in ("gan", "photo", "diffusion", "real", "fake"))


def stamps(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in copies(folder)}


def test_finished_copies_are_kept_and_others_made_anew(tmp_path):
    manifest = dataset(tmp_path / "in")
    align(manifest, tmp_path / "out")
    before, bytes_before = stamps(tmp_path / "out"), copies(tmp_path / "out")
    align(manifest, tmp_path / "out")
    assert stamps(tmp_path / "out") == before

    files = [row["file"] for row in table(tmp_path / "out")]
    (tmp_path / "out" / files[0]).unlink()  # group 0: a copy is lost
    (tmp_path / "out" / files[4]).write_bytes(b"damaged")  # group 1: one is damaged
    align(manifest, tmp_path / "out")
    assert copies(tmp_path / "out") == bytes_before
    assert {name for name, stamp in stamps(tmp_path / "out").items() if stamp == before[name]} == set(files[6:])

    mine = tmp_path / "out" / files[0][:9] / "mine.png"  # not written by align: stays
    mine.write_bytes(b"mine")
    source = tmp_path / "in" / "g2" / "gan.png"  # group 2: another source
    source.write_bytes(zoo.save(zoo.picture(64, 64, seed=99), "PNG"))
    middle = stamps(tmp_path / "out")
    align(manifest, tmp_path / "out", size="group")
    new = table(tmp_path / "out")[7]
    expected = Image.fromarray(zoo.picture(64, 64, seed=99)).resize((40, 40), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / new["file"])), np.asarray(expected))
    assert all(stamps(tmp_path / "out")[name] == middle[name] for name in files[:6])
    mine.unlink()
    assert set(copies(tmp_path / "out")) == {row["file"] for row in table(tmp_path / "out")}  # the old one is gone


def test_a_kill_leaves_no_half_file_and_the_rest_is_done_later(tmp_path, monkeypatch):
    manifest = dataset(tmp_path / "in")
    align(manifest, tmp_path / "whole")

    def killed_at_the_fifth_copy():
        real, count = Path.write_bytes, iter(range(100))

        def write(path, data):
            if next(count) < 4:
                return real(path, data)
            real(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        Path.write_bytes = write
        align(manifest, tmp_path / "out")

    assert processes.in_children(killed_at_the_fifth_copy) == [-signal.SIGKILL]
    assert not (tmp_path / "out" / "manifest.csv").exists()
    left = {name: data for name, data in copies(tmp_path / "out").items() if not name.endswith(".tmp")}
    assert len(left) == 4
    assert left.items() <= copies(tmp_path / "whole").items()
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in left}

    journal = next((tmp_path / "out" / "journal").iterdir())
    with journal.open("ab") as log:
        log.write(journal.read_bytes()[:100])  # a line that the kill cut short
    align(manifest, tmp_path / "out")
    assert copies(tmp_path / "out") == copies(tmp_path / "whole")
    first_group = {row["file"] for row in table(tmp_path / "out")[:3]}
    assert all(stamps(tmp_path / "out")[name] == before[name] for name in first_group)
    for name in ("manifest.csv", "align.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len([json.loads(line) for line in journal.read_bytes().splitlines()]) == 3  # the torn line is gone


def test_bad_lines_of_an_old_journal_are_skipped(tmp_path):
    """An earlier version wrote on, after an empty line, behind what a kill had left."""
    manifest = dataset(tmp_path / "in")
    align(manifest, tmp_path / "out")
    before = stamps(tmp_path / "out")
    journal = tmp_path / "out" / "journal" / "0-of-1.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    bad = [lines[1][:40] + b"\n", b"\n", b"[1]\n", b"3\n", b"null\n", b'{"key": "k"}\n']
    journal.write_bytes(b"".join([lines[0], *bad, lines[1], b"\n", lines[2]]))
    align(manifest, tmp_path / "out")
    assert stamps(tmp_path / "out") == before


def test_two_jobs_of_one_shard_are_refused(tmp_path):
    manifest = dataset(tmp_path / "in")
    busy = Lock(tmp_path / "out" / "journal" / ".0-of-2.jsonl.lock", "busy")
    with busy, pytest.raises(Refusal, match=r"another process is working at .*0-of-2\.jsonl: wait for it"):
        align(manifest, tmp_path / "out", shard=0, num_shards=2)
    assert not (tmp_path / "out" / "images").exists()
    with busy:
        assert align(manifest, tmp_path / "out", shard=1, num_shards=2) is None
    assert align(manifest, tmp_path / "out", shard=0, num_shards=2) is not None


def test_a_finished_group_is_on_the_disk(tmp_path, monkeypatch):
    """Its line is there, too, when the next group begins."""
    manifest, synced, real = dataset(tmp_path / "in"), [], os.fsync
    journal = tmp_path / "out" / "journal" / "0-of-1.jsonl"

    def fsync(descriptor):
        if journal.exists() and os.fstat(descriptor).st_ino == journal.stat().st_ino:
            synced.append(journal.stat().st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    align(manifest, tmp_path / "out")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert synced == [sum(map(len, lines[: n + 1])) for n in range(3)]


def test_shards_make_what_one_job_makes(tmp_path):
    manifest = dataset(tmp_path / "in")
    align(manifest, tmp_path / "one")
    assert align(manifest, tmp_path / "two", shard=1, num_shards=2) is None
    assert not (tmp_path / "two" / "manifest.csv").exists()
    assert align(manifest, tmp_path / "two", shard=0, num_shards=2).digest
    assert copies(tmp_path / "two") == copies(tmp_path / "one")
    for name in ("manifest.csv", "align.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_unreadable_members_are_counted_rows_and_do_not_decide_the_size(tmp_path):
    manifest = dataset(tmp_path / "in", groups=2)
    small = zoo.save(zoo.picture(20, 20), "PNG")
    (tmp_path / "in" / "g0" / "gan.png").write_bytes(small[: len(small) // 2])
    (tmp_path / "in" / "g1" / "photo.jpg").unlink()
    aligned = align(manifest, tmp_path / "out")
    assert [row["reason"] for row in table(tmp_path / "out")] == ["", "truncated", "", "missing", "", ""]
    assert list(zip(aligned["group"], aligned["generator"], strict=True)) == [
        ("g0", "real"),
        ("g0", "diffusion"),
        ("g1", "gan"),
        ("g1", "diffusion"),
    ]
    sizes = {(row["to_width"], row["to_height"]) for row in table(tmp_path / "out") if not row["reason"]}
    assert sizes == {("50", "40"), ("40", "40")}  # none is 20 px
    mended = dataset(tmp_path / "in", groups=2)
    assert len(align(mended, tmp_path / "out")) == 6


def test_a_wrong_digest_and_a_picture_too_small_to_crop_have_their_reasons(tmp_path):
    manifest = dataset(tmp_path / "in", groups=1)
    columns = {name: list(manifest[name]) for name in ("path", "group", "generator", "split")}
    columns["sha256"] = [sha256(manifest["file"][0]), "0" * 64, ""]
    align(Manifest.of(columns, tmp_path / "in"), tmp_path / "out", size="crop48")
    assert [row["reason"] for row in table(tmp_path / "out")] == ["", "sha256-mismatch", "too-small"]
    align(manifest, tmp_path / "out", size="crop48")  # the manifest was corrected, the bytes stayed
    assert [row["reason"] for row in table(tmp_path / "out")] == ["", "", "too-small"]


def test_joined_manifests_with_the_same_relative_paths_stay_apart(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(zoo.save(zoo.picture(seed=seed), "PNG"))
        (tmp_path / name / "1.png").write_bytes(zoo.save(zoo.picture(seed=3), "PNG"))
        columns = {"path": ["0.png", "1.png"], "group": [name, "shared"], "generator": ["real"] * 2}
        Manifest.of(columns | {"split": ["train"] * 2}, tmp_path / name).write(tmp_path / name / "m.csv")
    joined = Manifest.read(tmp_path / "a" / "m.csv", tmp_path / "b" / "m.csv")
    for _ in range(2):
        aligned = align(joined, tmp_path / "out")
        for file, seed in zip(aligned["file"], (1, 3, 2, 3), strict=True):
            with Image.open(file) as image:
                np.testing.assert_array_equal(np.asarray(image), zoo.picture(seed=seed))


def test_members_of_an_archive_are_aligned(tmp_path):
    manifest = dataset(tmp_path / "in", groups=1)
    with tarfile.open(tmp_path / "in" / "shard.tar", "w") as tar:
        tar.add(tmp_path / "in" / "g0", "g0")
    columns = {name: list(manifest[name]) for name in ("path", "group", "generator", "split")}
    columns["path"] = [f"shard.tar::{path}" for path in columns["path"]]
    align(Manifest.of(columns, tmp_path / "in"), tmp_path / "archived")
    align(manifest, tmp_path / "plain")
    digests = [[row["sha256"] for row in table(tmp_path / name)] for name in ("archived", "plain")]
    assert digests[0] == digests[1]


def test_what_would_go_wrong_is_refused(tmp_path):
    manifest = dataset(tmp_path / "in")
    for wrong in ({"size": "scale3"}, {"size": "crop9"}, {"codec": "gif"}, {"quality": 0}, {"subsampling": "4:1:1"}):
        with pytest.raises(Refusal, match=str(next(iter(wrong.values())))):
            align(manifest, tmp_path / "out", **wrong)
    with pytest.raises(Refusal, match="another folder"):
        align(manifest, tmp_path)
    align(manifest, tmp_path / "out")
    with pytest.raises(Refusal, match="crop32"):
        align(manifest, tmp_path / "out", size="crop32")
    for path in (tmp_path / "in").rglob("*.*"):
        path.write_bytes(b"not an image")
    with pytest.raises(Refusal, match="none of 9 images"):
        align(manifest, tmp_path / "other")


def test_the_same_picture_under_two_labels_is_refused_by_its_old_name(tmp_path):
    manifest = dataset(tmp_path / "in", groups=2)
    same = zoo.picture(64, 64)
    (tmp_path / "in" / "g0" / "gan.png").write_bytes(zoo.save(same, "PNG"))
    (tmp_path / "in" / "g1" / "diffusion.webp").write_bytes(zoo.save(same, "WEBP", lossless=True))
    with pytest.raises(Refusal, match=r"g0/gan\.png.*g1/diffusion\.webp"):
        align(manifest, tmp_path / "out", size="crop32")


def test_other_versions_of_the_encoder_are_another_alignment(tmp_path, monkeypatch):
    manifest = dataset(tmp_path / "in", groups=1)
    align(manifest, tmp_path / "out")
    monkeypatch.setattr(module.PIL, "__version__", "0.0")
    with pytest.raises(Refusal, match="choose another folder"):
        align(manifest, tmp_path / "out")

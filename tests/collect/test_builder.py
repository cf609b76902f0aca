"""Data sets under construction: nothing half, nothing twice, whatever is killed; tar files that others read too."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zoo

from adapt.collect import builder as parts
from adapt.collect.builder import Part, forget, join
from adapt.collect.pack import pack
from adapt.collect.sources.webdataset import Source
from adapt.commands import pack as pack_recipe
from adapt.commands import prepare as prepare_recipe
from adapt.data import images as reading
from adapt.data.images import FORMATS, read_bytes
from adapt.data.manifest import Manifest
from adapt.errors import Refusal

WHAT = {"made": "for a test"}


def image(seed: int, kind: str = "PNG") -> bytes:
    return zoo.save(zoo.picture(24, 20, seed=seed), kind)


def group(number: int) -> tuple[list[dict[str, str]], list[bytes]]:
    rows = [
        {"group": f"g{number:03d}", "generator": generator, "split": "test", "caption": "é, \n"}
        for generator in ("real", "gan")
    ]
    return rows, [image(2 * number), image(2 * number + 1, "JPEG")]


def build(output: Path, count: int, shard: int = 0, num_shards: int = 1) -> None:
    with Part(output, WHAT, shard=shard, num_shards=num_shards) as part:
        for number in range(shard, count, num_shards):
            if part.at is None or number > part.at:
                rows, images = group(number)
                part.commit(rows, number, images)
        part.finish()


def content(output: Path) -> list[tuple]:
    manifest = Manifest.read(output)
    names = ("group", "generator", "split", "sha256", "width", "height", *{"caption"} & manifest.columns.keys())
    return [
        (*(manifest[name][row] for name in names), read_bytes(manifest["file"][row])) for row in range(len(manifest))
    ]


def lost(output: Path) -> list[dict[str, str]]:
    with output.with_suffix(".lost.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def test_images_come_back_byte_for_byte_and_names_tell_no_class(tmp_path):
    output = tmp_path / "data.csv"
    build(output, 5)
    assert join(output, 1) == output
    expected = []
    for number in range(5):
        rows, images = group(number)
        pairs = sorted(zip(rows, images, strict=True), key=lambda pair: pair[0]["generator"] != "real")
        expected += [(row["group"], row["generator"], data) for row, data in pairs]
    assert [(row[0], row[1], row[-1]) for row in content(output)] == expected
    assert {row[4:6] for row in content(output)} == {("24", "20")}
    for name in members(tmp_path / "data.shards"):
        assert "real" not in name and "gan" not in name
    assert lost(output) == []


def test_a_sample_is_one_group_in_webdataset_s_layout(tmp_path):
    build(tmp_path / "data.csv", 3)
    found = members(tmp_path / "data.shards")
    samples: dict[str, list[str]] = {}
    for name in found:
        samples.setdefault(name.partition(".")[0], []).append(name)
    assert [len(names) for names in samples.values()] == [3, 3, 3]  # two images and their rows
    for names in samples.values():
        rows = json.loads(found[next(name for name in names if name.endswith(".json"))])
        assert {row["path"] for row in rows} | {names[-1]} == set(names)


def test_shards_and_one_job_make_the_same(tmp_path):
    build(tmp_path / "one.csv", 7)
    join(tmp_path / "one.csv", 1)
    for shard in (2, 0):
        build(tmp_path / "many.csv", 7, shard, 3)
        assert join(tmp_path / "many.csv", 3) is None
        assert not (tmp_path / "many.csv").exists()
    build(tmp_path / "many.csv", 7, 1, 3)
    assert join(tmp_path / "many.csv", 3) == tmp_path / "many.csv"
    assert content(tmp_path / "one.csv") == content(tmp_path / "many.csv")


def test_the_work_shared_otherwise_leaves_the_first_result_whole(tmp_path):
    output = tmp_path / "data.csv"
    build(output, 4)
    join(output, 1)
    before = content(output)
    build(output, 4, 1, 2)  # half of a second attempt
    assert join(output, 2) is None
    assert content(output) == before
    build(output, 4, 0, 2)
    join(output, 2)
    assert content(output) == before


def test_a_full_tar_is_closed_and_the_next_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SHARD_BYTES", 8000)
    build(tmp_path / "data.csv", 12)
    join(tmp_path / "data.csv", 1)
    tars = sorted((tmp_path / "data.shards").glob("*.tar"))
    assert len(tars) > 2
    assert all(path.read_bytes().endswith(bytes(1024)) for path in tars)
    assert len(content(tmp_path / "data.csv")) == 24


def test_a_torn_journal_line_and_bytes_behind_the_last_commit_are_forgotten(tmp_path):
    for cut in (1, 40, 200, 700):
        output = tmp_path / f"{cut}" / "data.csv"
        build(output, 3)
        journal = output.with_suffix(".parts") / "0-of-1.jsonl"
        whole = journal.read_bytes()
        journal.write_bytes(whole[: len(whole) - cut])
        tar = output.with_suffix(".shards") / "0-of-1-00000.tar"
        tar.write_bytes(tar.read_bytes() + b"half an image")
        build(output, 3)
        assert join(output, 1)
        assert len(content(output)) == 6
        with tarfile.open(tar, "r:") as archive:
            assert len(archive.getnames()) == 9


def test_a_journal_ahead_of_its_tar_goes_back(tmp_path):
    """A power cut may lose bytes of the tar whose journal line survived."""
    output = tmp_path / "data.csv"
    build(output, 4)
    tar = output.with_suffix(".shards") / "0-of-1-00000.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    build(output, 4)
    join(output, 1)
    assert [row[0] for row in content(output)] == [f"g00{n}" for n in (0, 0, 1, 1, 2, 2, 3, 3)]
    with tarfile.open(tar, "r:") as archive:
        assert len(archive.getnames()) == 12


CHILD = """
import sys
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from pathlib import Path
import test_builder
print("go", flush=True)
test_builder.build(Path(sys.argv[1]), 400)
"""


def test_kill_9_at_twenty_points_loses_and_doubles_nothing(tmp_path):
    output, draw = tmp_path / "data.csv", random.Random(1)
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1])]
    kills = 0
    pids = []
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(60)
                build(output, 400)
            finally:
                os._exit(0)
        pids.append(pid)
        journal = output.with_suffix(".parts") / "0-of-1.jsonl"
        start = journal.stat().st_size if journal.exists() else 0
        wanted = draw.randrange(1, 4000)
        while (journal.stat().st_size if journal.exists() else 0) < start + wanted:
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
    assert kills == 20
    subprocess.run([sys.executable, "-c", CHILD, str(output), *paths], check=True, cwd=here.parent)
    assert join(output, 1)
    build(tmp_path / "calm" / "data.csv", 400)
    join(tmp_path / "calm" / "data.csv", 1)
    assert content(output) == content(tmp_path / "calm" / "data.csv")
    names = [path.name for path in sorted((tmp_path / "data.shards").glob("*"))]
    assert [members(tmp_path / "data.shards"), names] == [
        members(tmp_path / "calm" / "data.shards"),
        [path.name for path in sorted((tmp_path / "calm" / "data.shards").glob("*"))],
    ]


def test_another_identity_is_refused_and_two_writers_too(tmp_path):
    build(tmp_path / "data.csv", 2)
    with pytest.raises(Refusal, match=r"made='for a test', not 'otherwise'.*choose another --output, or delete"):
        Part(tmp_path / "data.csv", {"made": "otherwise"})
    with Part(tmp_path / "data.csv", WHAT), pytest.raises(Refusal, match="another process"):
        Part(tmp_path / "data.csv", WHAT)
    with Part(tmp_path / "data.csv", {"made": "otherwise"}, restart=True) as part:
        assert (part.at, part.done, part.commits) == (None, False, 0)


def test_a_journal_without_a_commit_binds_nobody(tmp_path):
    """One that was begun by a killed command, or by a refused one; a commit of a lost image is work already."""
    output, other = tmp_path / "data.csv", {"made": "otherwise"}
    Part(output, WHAT).__exit__(None, None, None)
    journal = output.with_suffix(".parts") / "0-of-1.jsonl"
    assert json.loads(journal.read_text()) == {"what": WHAT}
    with pytest.raises(Refusal, match="mistyped"), Part(output, other):
        assert json.loads(journal.read_text()) == {"what": other}
        raise Refusal("mistyped")
    assert not journal.exists()
    with pytest.raises(KeyboardInterrupt), Part(output, WHAT):
        raise KeyboardInterrupt
    with pytest.raises(Refusal, match="no network"), Part(output, other) as part:
        part.commit([], 0, lost=[{"group": "g", "reason": "http-404"}])
        raise Refusal("no network")
    with pytest.raises(Refusal, match="was made with"):
        Part(output, WHAT)
    with pytest.raises(Refusal, match="no network"), Part(output, other) as part:
        assert part.at == 0
        raise Refusal("no network")
    with Part(output, other) as part:
        assert part.at == 0


def test_a_journal_whose_images_are_away_is_not_begun_anew_by_another_command(tmp_path):
    output = tmp_path / "data.csv"
    build(output, 2)
    before = (output.with_suffix(".parts") / "0-of-1.jsonl").read_bytes()
    (tmp_path / "data.shards").rename(tmp_path / "away")
    with pytest.raises(Refusal, match="was made with"):
        Part(output, {"made": "otherwise"})
    assert (output.with_suffix(".parts") / "0-of-1.jsonl").read_bytes() == before


def test_a_job_is_forgotten_only_when_nobody_works_at_it(tmp_path):
    output = tmp_path / "data.csv"
    forget(output, 0, 1)
    assert not list(tmp_path.iterdir())
    with Part(output, WHAT) as part:
        rows, images = group(0)
        part.commit(rows, 0, images)
        with pytest.raises(Refusal, match="another process is working at"):
            forget(output, 0, 1)
    with Part(output, WHAT) as part:
        assert part.at == 0
    forget(output, 0, 1)
    with Part(output, WHAT) as part:
        assert part.at is None


def test_lost_images_and_dropped_groups_are_listed_with_their_reasons(tmp_path):
    output = tmp_path / "data.csv"
    with Part(output, WHAT) as part:
        for number in range(3):
            rows, images = group(number)
            part.commit(rows, number, images)
        part.commit([], 3, lost=[{"url": "http://x/1", "group": "g9", "generator": "real", "reason": "http-404"}])
        assert part.lost == {"http-404": 1}
        assert part.met(content_digest(image(0)))
        assert not part.met(content_digest(image(900)))
        part.drop({"g001": "placeholder"})
        part.finish()
    join(output, 1)
    assert [row[0] for row in content(output)] == ["g000", "g000", "g002", "g002"]
    assert [(row["group"], row["generator"], row["reason"]) for row in lost(output)] == [
        ("g001", "gan", "placeholder"),
        ("g001", "real", "placeholder"),
        ("g9", "real", "http-404"),
    ]


def content_digest(data: bytes) -> str:
    return parts.header_facts(data)["sha256"]


@pytest.mark.parametrize("whole", [False, True])
def test_equal_bytes_cannot_stand_in_two_splits_or_under_two_labels(tmp_path, whole):
    output = tmp_path / "data.csv"
    rows = [  # group, generator, split, picture
        ("a", "real", "train", 1),
        ("a", "gan", "train", 2),
        ("b", "real", "test", 1),  # the photograph of a, in another split
        ("b", "gan", "test", 3),
        ("c", "real", "train", 1),  # and in the same one: allowed
        ("d", "real", "val", 5),
        ("d", "gan", "val", 6),
        ("e", "gan", "val", 5),  # the photograph of d called a fake
    ]
    with Part(output, WHAT) as part:
        for number, (name, generator, split, picture) in enumerate(rows):
            part.commit([{"group": name, "generator": generator, "split": split}], number, [image(picture)])
        part.finish()
    join(output, 1, whole)
    gone = {("b", "real"): "same-bytes-two-splits"}
    gone |= {("d", "real"): "same-bytes-two-labels", ("e", "gan"): "same-bytes-two-labels"}
    if whole:
        gone |= {("b", "gan"): "same-bytes-two-splits", ("d", "gan"): "same-bytes-two-labels"}
    assert {(row["group"], row["generator"]): row["reason"] for row in lost(output)} == gone
    assert {row[:2] for row in content(output)} == {row[:2] for row in rows} - set(gone)


def test_nothing_left_is_a_refusal_that_counts(tmp_path):
    with Part(tmp_path / "data.csv", WHAT) as part:
        part.commit([], 0, lost=[{"group": "g", "generator": "gan", "reason": "http-404"}] * 3)
        part.finish()
    with pytest.raises(Refusal, match=r"no image is left of 3 \(3 http-404\): see .*data\.lost\.csv"):
        join(tmp_path / "data.csv", 1)


# -- pack, and back --------------------------------------------------------------------------------------------------


def folder_of_files(folder: Path, count: int = 6) -> Manifest:
    rows = []
    for number in range(count):
        for row, data in zip(*group(number), strict=True):
            path = f"{row['generator']}/{number} ü,\n.{'png' if row['generator'] == 'real' else 'jpg'}"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
            rows.append(row | {"path": path, "set": "mine", "edit": ""})
    names = rows[0]
    manifest = Manifest.of({name: [row[name] for row in rows] for name in names}, folder)
    manifest.write(folder / "manifest.csv")
    return manifest


def test_packed_and_read_back_by_the_source_are_the_same_images(tmp_path, capsys):
    manifest = folder_of_files(tmp_path / "in")
    (tmp_path / "in" / manifest["path"][3]).write_bytes(b"not an image")
    pack_recipe.main(
        pack_recipe.Config(tmp_path / "out" / "all.csv", manifest=(str(tmp_path / "in" / "manifest.csv"),))
    )
    assert "11 images packed, 1 not" in capsys.readouterr().out
    keys = zip(manifest["group"], manifest["generator"], strict=True)
    before = {key: read_bytes(file) for key, file in zip(keys, manifest["file"], strict=True)}
    del before["g001", "gan"]
    assert {(row[0], row[1]): row[-1] for row in content(tmp_path / "out" / "all.csv")} == before
    assert [(row["group"], row["reason"]) for row in lost(tmp_path / "out" / "all.csv")] == [("g001", "not-an-image")]
    # the tar files alone are enough
    source = Source(folder=tmp_path / "out", output=tmp_path / "out" / "again.csv")
    prepare_recipe.main(source)
    assert content(source.output) == content(tmp_path / "out" / "all.csv")
    assert "| mine | gan |  | 0 | 0 | 5 |" in capsys.readouterr().out


def test_a_changed_file_is_not_packed(tmp_path):
    manifest = folder_of_files(tmp_path / "in", 2)
    columns = {name: list(values) for name, values in manifest.columns.items() if name != "file"}
    columns["sha256"] = [content_digest(read_bytes(file)) for file in manifest["file"]]
    manifest = Manifest.of(columns, tmp_path / "in")
    (tmp_path / "in" / manifest["path"][0]).write_bytes(image(99))
    pack(manifest, tmp_path / "out.csv")
    assert [row["reason"] for row in lost(tmp_path / "out.csv")] == ["sha256-mismatch"]


def foreign_tar(path: Path, entries: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def about(**values) -> bytes:
    return json.dumps(values).encode()


def test_foreign_shards_by_json_field(tmp_path):
    foreign_tar(
        tmp_path / "a" / "000.tar",
        {
            "x/001.jpg": image(1, "JPEG"),
            "x/001.json": about(model="photo", scene=7, url="https://example.org/1"),
            "x/002.json": about(model="sdxl", scene=7),
            "x/002.png": image(2),
            "x/003.png": b"broken",
            "x/003.json": about(model="sdxl", scene=8),
            "x/004.png": image(4),
            "x/005.png": image(5),
            "x/005.json": about(other="field"),
            "readme.txt": b"no sample",
        },
    )
    source = Source(folder=tmp_path, label="json:model", real=("photo",), group="json:scene", split="test", set="s")
    output = source.prepare()
    manifest = Manifest.read(output)
    rows = zip(*(manifest[name] for name in ("path", "group", "generator", "split", "set")), strict=True)
    assert list(rows) == [
        ("a/000.tar::x/001.jpg", "7", "real", "test", "s"),
        ("a/000.tar::x/002.png", "7", "sdxl", "test", "s"),
    ]
    assert manifest["url"][0] == "https://example.org/1"
    reasons = {Path(row["file"].partition("::")[2]).name: row["reason"] for row in lost(output)}
    assert reasons == {
        "003.png": "not-an-image",
        "004.png": "no-label: the sample has no json",
        "005.png": "no-label: json has no 'model'",
    }


def test_foreign_shards_by_class_number(tmp_path):
    entries = {}
    for number in range(20):
        entries |= {f"{number:03d}.cls": b"%d\n" % (number % 2), f"{number:03d}.png": image(number)}
    foreign_tar(tmp_path / "s.tar", entries)
    manifest = Manifest.read(Source(folder=tmp_path, label="cls", set="wild").prepare())
    assert list(manifest["generator"]) == [("real", "wild-1")[int(path[-7:-4]) % 2] for path in manifest["path"]]
    assert len(set(manifest["group"])) == 20
    assert len(set(manifest["split"])) > 1
    again = Manifest.read(Source(folder=tmp_path, label="cls", set="wild", output=tmp_path / "b.csv").prepare())
    np.testing.assert_array_equal(again["split"], manifest["split"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "xml"}, "--label xml: use json:FIELD, txt or cls"),
        ({"label": "json:m", "group": "scene"}, "--group scene: use json:FIELD"),
        ({"shard": 2, "num_shards": 2}, "--shard 2: 2 shards are numbered 0 to 1"),
        ({"output": Path("data.txt")}, r"--output data\.txt: name a \.csv or \.parquet"),
        ({"val": 0.6, "test": 0.5}, "leave no training images"),
    ],
)
def test_refusals(tmp_path, options, message):
    with pytest.raises(Refusal, match=message):
        Source(folder=tmp_path, **options)


def test_a_compressed_tar_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(Refusal, match=r"no \.tar files under"):
        Source(folder=tmp_path, label="cls").prepare()
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    with pytest.raises(Refusal, match="no uncompressed tar file"):
        Source(folder=tmp_path, label="cls").prepare()


def test_every_format_that_is_read_has_a_name_and_comes_back(tmp_path) -> None:
    assert {*parts.EXTENSIONS} == {*FORMATS, "MPO"}
    data = [image(0, "AVIF"), image(1, "JPEG2000"), zoo.frames("MPO"), zoo.frames("GIF")]
    with Part(tmp_path / "data.csv", WHAT) as part:
        rows = [{"group": f"g{i}", "generator": "real", "split": "test"} for i in range(len(data))]
        for i, row in enumerate(rows):
            part.commit([row], i, [data[i]])
        part.finish()
    join(tmp_path / "data.csv", 1)
    found = Manifest.read(tmp_path / "data.csv")
    assert [read_bytes(file) for file in found["file"]] == data
    assert [path.rpartition(".")[2] for path in found["path"]] == ["avif", "jp2", "jpg", "gif"]
    assert list(found["frames"]) == ["", "", "3", "3"]  # of which the first counts
    again = Source(folder=tmp_path / "data.shards", output=tmp_path / "again.csv").prepare()  # names that it lists
    assert len(Manifest.read(again)) == len(data)


def test_a_photograph_that_is_scaled_says_so(monkeypatch) -> None:
    data = image(0, "JPEG")
    assert "dct_scale" not in parts.header_facts(data)
    monkeypatch.setattr(reading, "MAX_PIXELS", 24 * 20 - 1)
    facts = parts.header_facts(data)
    assert (facts["width"], facts["height"], facts["dct_scale"]) == ("24", "20", "0.5")

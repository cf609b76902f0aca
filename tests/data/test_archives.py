"""Images in tar files: one seek each, never the wrong member; jobs and epochs by whole tar files."""

import io
import itertools
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import zoo

from adapt.collect.pack import pack
from adapt.collect.sources.webdataset import Source, samples
from adapt.commands import extract
from adapt.data import groups, images
from adapt.data.archives import WINDOW, archives, share, shuffled
from adapt.data.groups import Groups, GroupSampler
from adapt.data.images import Unreadable, read_bytes
from adapt.data.inputs import find_inputs
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Preprocess
from adapt.errors import Refusal
from adapt.features.cache import extract as features_of
from adapt.models.towers.backbones import load_backbone

PREPROCESS = Preprocess(size=16, shortest=16, geometry="native")


def tar_of(path: Path, members: dict[str, bytes], kind: int = tarfile.GNU_FORMAT) -> dict[str, tuple[int, int]]:
    """Write a tar file; the place of each member, as the module `tarfile` finds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return {member.name: (member.offset, member.size) for member in tar}


def many_tars(folder: Path, count: int, each: int = 2, placed: bool = True) -> Manifest:
    """`count` tar files of `each` groups of a photograph and a fake; group k of tar t is `t/k`."""
    picture = zoo.save(zoo.picture(24, 20), "PNG")
    rows: dict[str, list[str]] = {name: [] for name in ("path", "group", "generator", "split")}
    rows |= {"member_offset": [], "member_size": []} if placed else {}
    for t in range(count):
        names = [f"{k}.{kind}.png" for k in range(each) for kind in ("real", "gan")]
        for name, (offset, size) in tar_of(folder / f"{t:05d}.tar", dict.fromkeys(names, picture)).items():
            k, kind, _ = name.split(".")
            cells = [f"{t:05d}.tar::{name}", f"{t}/{k}", kind, "train", str(offset), str(size)]
            for column, cell in zip(rows, cells, strict=False):
                rows[column].append(cell)
    return Manifest.of(rows, folder)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_with_a_place_is_read_without_a_listing(kind, tmp_path, monkeypatch) -> None:
    members = {"a.png": b"first", "./b.png": b"second", "empty.png": b"", "d/" * 20 + "c.png": b"third"}
    if kind != tarfile.USTAR_FORMAT:  # headers of several blocks
        members |= {"long/" + "x" * 200: b"fourth", "ü" * 120 + ".png": b"fifth", "\udcff.png": b"sixth"}
    places = tar_of(tmp_path / "s.tar", members, kind)
    monkeypatch.setattr(images, "_members", None)
    for name, data in members.items():
        assert read_bytes(f"{tmp_path}/s.tar::{name}", places[name]) == data


def reason(file: Path | str, place: tuple[int, int]) -> str:
    with pytest.raises(Unreadable) as problem:
        read_bytes(file, place)
    return problem.value.reason


def test_a_place_that_is_no_longer_right_is_a_reason_and_never_another_image(tmp_path) -> None:
    places = tar_of(tmp_path / "s.tar", {"a.png": b"a" * 600, "b.png": b"b" * 600})
    file = f"{tmp_path}/s.tar::b.png"
    offset, size = places["b.png"]
    wrong = [places["a.png"], (offset, size - 1), (offset, size + 1), (offset + 1, size), (offset + 512, size)]
    for place in [*wrong, (0, size), (10**17, size), (offset + 512 * 4, size)]:
        assert reason(file, place) == "not-at-offset"
    assert reason(file, (offset, 2**40)) == "too-many-bytes"
    tar_of(tmp_path / "s.tar", {"new.png": b"n" * 600, "a.png": b"a" * 600, "b.png": b"b" * 600})
    assert reason(file, (offset, size)) == "not-at-offset"
    assert read_bytes(file) == b"b" * 600
    with tarfile.open(tmp_path / "s.tar", "w") as tar:  # a link has the name, and leads elsewhere
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert reason(file, (0, 0)) == "not-at-offset"
    cut = tmp_path / "cut.tar"
    (offset, size) = tar_of(cut, {"b.png": b"b" * 600})["b.png"]
    cut.write_bytes(cut.read_bytes()[:900])
    assert reason(f"{cut}::b.png", (offset, size)) == "truncated"


def test_long_names_by_the_thousand_end_a_tar_file_and_nothing_else(tmp_path) -> None:
    tar_of(tmp_path / "s.tar", {"a.png": b"a"})
    good = (tmp_path / "s.tar").read_bytes()[:1024]
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 5
    name = header.tobuf(tarfile.GNU_FORMAT) + b"a.png".ljust(512, b"\0")
    (tmp_path / "s.tar").write_bytes(good + 5000 * name + good + bytes(1024))
    file = f"{tmp_path}/s.tar::a.png"
    assert read_bytes(file) == read_bytes(file, (0, 1)) == b"a"
    assert reason(file, (1024, 1)) == "not-at-offset"
    assert {item.reason for item in find_inputs([str(tmp_path / "s.tar")])[1]} == {"", "bad-archive"}
    with pytest.raises(Unreadable, match="bad-archive"):
        list(samples(tmp_path / "s.tar"))


def test_rows_whose_tar_file_was_written_anew_are_named_in_training(tmp_path) -> None:
    rows = many_tars(tmp_path, 2)
    other = zoo.save(zoo.picture(24, 20, seed=5), "PNG")
    tar_of(tmp_path / "00001.tar", {"0.gan.png": other, "0.real.png": other, "1.real.png": other})
    batch = Groups(rows, PREPROCESS, ("none",), 0)[0, 2]
    assert batch.unreadable == [(f"00001.tar::0.{kind}.png", "not-at-offset") for kind in ("real", "gan")]
    assert not len(batch.fake)


@pytest.mark.parametrize(
    ("path", "offset", "size"),
    [
        ("a.tar::b.png", "12", ""), ("a.tar::b.png", "", "12"), ("a.tar::b.png", "-512", "1"), ("b.png", "0", "1"),
        ("a.tar::b.png", "0.0", "1"), ("a.tar::b.png", "9" * 19, "1"), ("a.tar::b.png", "0", "9" * 5000),
    ],
)  # fmt: skip
def test_a_row_with_half_a_place_is_refused(path, offset, size, tmp_path) -> None:
    row = {"path": path, "group": "g", "generator": "real", "split": "test"}
    row |= {"member_offset": offset, "member_size": size}
    with pytest.raises(
        Refusal, match=r"member_offset .*: write two whole numbers of bytes for an image in a tar file"
    ):
        Manifest.of({name: [cell] for name, cell in row.items()}, tmp_path)


class Counted(io.FileIO):
    """A file that counts how often files are opened and read, and how many bytes."""

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self, name, mode: str = "r", *_: object) -> None:
        super().__init__(name, mode.replace("b", ""))
        self.counts["opens"] += 1

    def readinto(self, buffer) -> int:
        count = super().readinto(buffer)
        self.counts["reads"] += 1
        self.counts["bytes"] += count
        return count


def cost(rows: Manifest, monkeypatch) -> dict[str, float]:
    """Opened files, reads and bytes of a group of training, in the order of an epoch."""
    data = Groups(rows, PREPROCESS, ("none",), 0)
    sampler = GroupSampler(len(data), 4, 1, seed=3, accumulation=1, rank=0, world=1, start=0, archive=data.archive)
    images._members.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(images, "open", lambda *a: io.BufferedReader(Counted(*a)), raising=False)
        patch.setattr(tarfile, "bltn_open", lambda *a: io.BufferedReader(Counted(*a)))
        Counted.counts.clear()
        read = [data[key] for keys in itertools.islice(sampler, 15) for key in keys]
    assert all(not batch.unreadable and len(batch.fake) == 2 for batch in read)
    return {name: count / len(read) for name, count in Counted.counts.items()}


def test_a_group_of_five_thousand_tar_files_costs_what_one_of_thirty_does(tmp_path, monkeypatch) -> None:
    few, many = many_tars(tmp_path / "few", 30), many_tars(tmp_path / "many", 5000)
    size = int(many["member_size"][0])
    found = cost(many, monkeypatch)
    print(f"5,000 tar files: {found} a group")
    assert found == cost(few, monkeypatch)
    assert found["opens"] == 2  # one for each image
    assert found["bytes"] <= 2 * (512 + size + io.DEFAULT_BUFFER_SIZE)
    without = {name: values for name, values in many.columns.items() if not name.startswith("member_")}
    listed = cost(Manifest(without), monkeypatch)  # the fault that this test is about
    print(f"without places: {listed} a group")
    assert listed["opens"] > found["opens"]


def old_order(count: int, per_step: int, epochs: int, seed: int) -> list[list[tuple[int, int]]]:
    """What training saw before there were tar files in it: a permutation of all groups, drawn at every step."""
    found = []
    for step in range(epochs * (count // per_step)):
        epoch, position = divmod(step, count // per_step)
        order = np.random.default_rng((seed, epoch)).permutation(count)
        found.append([(epoch, int(g)) for g in order[position * per_step : (position + 1) * per_step]])
    return found


@pytest.mark.parametrize("tars", [None, 0, 1, WINDOW])
def test_without_many_tar_files_the_order_is_what_it_was(tars) -> None:
    archive = None if tars is None else np.arange(103) % tars if tars else np.full(103, -1)
    sampler = GroupSampler(103, 5, 3, seed=7, accumulation=1, rank=0, world=1, start=0, archive=archive)
    assert list(sampler) == old_order(103, 5, 3, 7)


def test_all_groups_are_permuted_once_an_epoch(monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(groups, "shuffled", lambda *a: drawn.append(a) or shuffled(*a))
    assert len(list(GroupSampler(100, 5, 3, 7, accumulation=1, rank=0, world=1, start=25))) == 35
    assert len(drawn) == 2  # the second epoch, from its middle, and the third


ARCHIVE = np.r_[np.repeat(np.arange(200), 3), np.full(150, -1)]  # 600 groups in 200 tar files, 150 in none


def test_an_epoch_reads_few_tar_files_at_a_time_and_every_group_once() -> None:
    epochs = [shuffled(len(ARCHIVE), ARCHIVE, np.random.default_rng((5, epoch))) for epoch in range(2)]
    for order in epochs:
        assert sorted(order) == list(range(len(ARCHIVE)))
        tars = ARCHIVE[order][ARCHIVE[order] >= 0]
        spans = [(np.flatnonzero(tars == t)[0], np.flatnonzero(tars == t)[-1]) for t in range(200)]
        open_at = [sum(first <= place <= last for first, last in spans) for place in range(len(tars))]
        assert WINDOW // 2 < max(open_at) <= WINDOW
        for part in np.array_split(ARCHIVE[order], 7):  # what lies in no tar file is met all along
            assert 0.1 < (part < 0).mean() < 0.3
    assert not np.array_equal(*epochs)
    begins = [set(ARCHIVE[order][ARCHIVE[order] >= 0][:80]) for order in epochs]
    assert begins[0] != begins[1] and all(WINDOW // 2 < len(tars) <= WINDOW for tars in begins)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (3, 2)])
def test_processes_and_restarts_read_the_same_groups(world, accumulation) -> None:
    def keys(rank: int, world: int, accumulation: int, start: int) -> list[list[tuple[int, int]]]:
        sampler = GroupSampler(len(ARCHIVE), 12, 2, 5, accumulation, rank, world, start, archive=ARCHIVE)
        return list(sampler)

    whole = keys(0, 1, 1, 0)
    assert len({key for step in whole for key in step}) == 12 * len(whole)
    for start in (0, 1, 61, 62, 100):  # 62 steps an epoch
        parts = [keys(rank, world, accumulation, start) for rank in range(world)]
        for number, step in enumerate(whole[start:]):
            mine = [part[number * accumulation : (number + 1) * accumulation] for part in parts]
            assert sorted(key for micros in mine for micro in micros for key in micro) == sorted(step)


def test_tar_files_are_numbered_by_name() -> None:
    files = ["/d/b.tar::1", "/d/x.png", "/d/a.tar::1", "/d/b.tar::2", "/d/c.tar"]
    assert archives(files).tolist() == [1, -1, 0, 1, -1]
    assert archives(["/d/x.png"]).tolist() == [-1]


@pytest.mark.parametrize("jobs", [1, 2, 3, 7, 20])
def test_jobs_take_whole_tar_files_that_follow_each_other(jobs) -> None:
    archive = np.random.default_rng(0).permutation(np.repeat(np.arange(20), np.arange(1, 21)))
    shares = [share(archive, job, jobs) for job in range(jobs)]
    assert sorted(np.concatenate(shares)) == list(range(len(archive)))
    tars = [archive[mine] for mine in shares]
    assert all(list(found) == sorted(found) for found in tars)
    assert list(np.concatenate(tars)) == sorted(archive)  # no tar file in two jobs
    if jobs <= 7:
        assert max(map(len, shares)) < 1.7 * len(archive) / jobs


def test_images_outside_of_tar_files_are_dealt_out_one_by_one() -> None:
    nowhere = np.full(11, -1)
    assert [share(nowhere, job, 3).tolist() for job in range(3)] == [list(range(job, 11, 3)) for job in range(3)]
    few = np.array([0, 0, 1, 1, 1])  # whole tar files would leave a job without work
    assert [share(few, job, 3).tolist() for job in range(3)] == [[0, 3], [1, 4], [2]]
    both = np.array([-1, 1, -1, 0, -1, 1])
    assert [share(both, job, 2).tolist() for job in range(2)] == [[3, 0, 4], [1, 5, 2]]


def test_pack_and_prepare_write_places_and_a_packed_set_is_packed_anew(tmp_path) -> None:
    for row in range(12):  # of one size each: a wrong place cannot go unnoticed
        (tmp_path / f"{row}.png").write_bytes(zoo.save(zoo.picture(24 + row, 20, seed=row), "PNG"))
    cells = {"path": [f"{row}.png" for row in range(12)], "group": [f"g{row // 2}" for row in range(12)]}
    rows = Manifest.of(cells | {"generator": ["real", "gan"] * 6, "split": ["train"] * 12}, tmp_path)
    packed = Manifest.read(pack(rows, tmp_path / "packed.csv"))
    again = Manifest.read(pack(packed, tmp_path / "again.csv"))
    listed = Manifest.read(Source(folder=tmp_path / "packed.shards", output=tmp_path / "listed.csv").prepare())
    assert len(packed) == len(again) == len(listed) == 12
    for found in (packed, again, listed):
        for row, file in enumerate(found["file"]):
            archive, _, name = file.partition("::")
            with tarfile.open(archive) as tar:
                member = tar.getmember(name)
            assert found.place(row) == (member.offset, member.size)
            assert read_bytes(file, found.place(row)) == read_bytes(file)
    with tarfile.open(tmp_path / "packed.shards" / "0-of-1-00000.tar") as tar:
        assert (
            b"member_" not in tar.extractfile("0000-00000000.json").read()
        )  # which another writer of the tar file would make wrong


def test_a_shard_of_prepare_looks_at_whole_tar_files(tmp_path) -> None:
    picture = zoo.save(zoo.picture(24, 20), "PNG")
    for t in range(4):
        tar_of(
            tmp_path / "d" / f"{t}.tar", {"a.png": picture + bytes(t), "a.cls": b"0", "b.png": picture, "b.cls": b"0"}
        )
    for shard in (1, 0):
        made = Source(
            folder=tmp_path / "d", label="cls", output=tmp_path / "m.csv", split="test", shard=shard, num_shards=2
        ).prepare()
        lines = (tmp_path / "m.parts" / f"{shard}-of-2.jsonl").read_text().splitlines()
        files = [row["file"] for line in lines for row in json.loads(line).get("rows", ())]
        assert {Path(file.partition("::")[0]).name for file in files} == {f"{2 * shard}.tar", f"{2 * shard + 1}.tar"}
    assert len(Manifest.read(made)) == 8


def test_inputs_know_where_members_lie(tmp_path, monkeypatch) -> None:
    rows = many_tars(tmp_path, 2)
    rows.write(tmp_path / "m.csv")
    for name in (str(tmp_path / "00001.tar"), str(tmp_path / "m.csv")):
        found = {item.file: item.place for item in find_inputs([name])[1]}
        for row, file in enumerate(rows["file"]):
            assert found.get(file, rows.place(row)) == rows.place(row) and len(found) in (4, 8)


def test_a_shard_of_extract_reads_whole_tar_files(tmp_path, monkeypatch) -> None:
    rows = many_tars(tmp_path, 4, placed=False)
    digits = [f"{row:064x}" for row in range(len(rows))]  # no bytes have them: every image is named in the cache
    shuffle = np.random.default_rng(1).permutation(len(rows))
    Manifest(rows.columns | {"sha256": np.array(digits, object)}).select(shuffle).write(tmp_path / "m.csv")
    opened = []
    monkeypatch.setattr(groups, "read_image", lambda file, *_: opened.append(file) or images.read_image(file))
    for shard in range(2):
        opened.clear()
        options = {"cache": tmp_path / str(shard), "num_workers": 0}
        extract.main(
            extract.Config(manifest=(str(tmp_path / "m.csv"),), views=("none",), shard=shard, num_shards=2, **options)
        )
        tars = [Path(file.partition("::")[0]).name for file in opened]
        assert tars == sorted(tars) and set(tars) == {f"{2 * shard:05d}.tar", f"{2 * shard + 1:05d}.tar"}
        assert len(opened) == 8


def test_features_of_a_stale_manifest_are_missing_and_not_remembered(tmp_path) -> None:
    rows, tiny = many_tars(tmp_path / "d", 1), load_backbone("tiny", "proj")
    stale = Manifest(rows.columns | {"member_offset": np.roll(rows["member_offset"], 1)})
    assert set(features_of(tiny, stale, ("none",), cache=tmp_path / "c").reasons("none")) == {"not-at-offset"}
    assert set(features_of(tiny, rows, ("none",), cache=tmp_path / "c").reasons("none")) == {""}

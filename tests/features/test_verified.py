"""A shard that was found whole is not read again; one that changed is, and damage is found."""

import hashlib
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from adapt.data import digests
from adapt.data.manifest import Manifest
from adapt.features import verified
from adapt.features.cache import extract
from adapt.features.shards import Space, shards_of, write_shard
from adapt.models.towers.backbones import load_backbone
from adapt.threads import THREADS, in_threads


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the shards that were read to find their digest."""
    names: list[str] = []
    sha256 = verified.sha256
    monkeypatch.setattr(verified, "sha256", lambda path: names.append(path.name) or sha256(path))
    return names


@pytest.fixture
def settled(monkeypatch) -> None:
    """Files of this very second count as old."""
    monkeypatch.setattr(digests, "SETTLED", -1e9)


def space(folder: Path, shards: int = 6) -> list[str]:
    """Write shards of two images each; their names."""
    rng = np.random.default_rng(0)
    for _ in range(shards):
        write_shard(folder, np.frombuffer(rng.bytes(64), "V32"), [rng.random((2, 4), np.float32)])
    return [path.name for path in shards_of(folder)]


def test_a_shard_is_read_once(tmp_path, settled, read) -> None:
    names = space(tmp_path)
    first = Space.open(tmp_path)
    assert sorted(read) == names and len(first.ids) == 12
    read.clear()
    again = Space.open(tmp_path)
    assert read == [] and np.array_equal(again.ids, first.ids)
    more = write_shard(tmp_path, np.frombuffer(bytes(range(32)), "V32"), [np.ones((1, 4), np.float32)])
    assert len(Space.open(tmp_path).ids) == 13 and read == [more.name]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)


def cut_with_time_kept(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-8])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_another(path: Path) -> None:
    other = write_shard(path.parent / "x", np.frombuffer(bytes(64), "V32"), [np.zeros((2, 4), np.float32)])
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    other.replace(path)


@pytest.mark.parametrize("damage", [flip, cut_with_time_kept, replace_by_another])
def test_a_marked_shard_that_changed_is_found_and_set_aside(damage, tmp_path, settled, read, capsys) -> None:
    names = space(tmp_path)
    Space.open(tmp_path)
    damage(tmp_path / names[2])
    read.clear()
    assert len(Space.open(tmp_path).ids) == 10
    assert read == [names[2]] and "damaged" in capsys.readouterr().err
    assert (tmp_path / names[2]).with_suffix(".damaged").is_file()


def test_a_shard_that_has_only_just_changed_gets_no_mark(tmp_path, read) -> None:
    names = space(tmp_path, 2)
    old = (tmp_path / names[0]).stat().st_mtime - 10
    os.utime(tmp_path / names[0], (old, old))
    Space.open(tmp_path)
    read.clear()
    Space.open(tmp_path)
    assert read == [names[1]]


def test_a_copy_that_keeps_times_keeps_its_marks_and_a_damaged_table_marks_nothing(tmp_path, settled, read) -> None:
    names = space(tmp_path / "a")
    Space.open(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # other inodes, other times of the change of status
    read.clear()
    assert len(Space.open(tmp_path / "b").ids) == 12 and read == []
    (table,) = (tmp_path / "b" / "verified").glob("*.json")
    table.write_text(table.read_text().replace(names[0], names[1]))
    Space.open(tmp_path / "b")
    assert sorted(read) == names


def test_marks_of_several_times_stand_side_by_side(tmp_path, settled, read) -> None:
    """A second writer of the same shard changes its time: the older mark must not hide the newer one."""
    names = space(tmp_path, 1)
    for second in range(6):  # the order of tables is that of their digests
        os.utime(tmp_path / names[0], (second, second))
        Space.open(tmp_path)
    read.clear()
    Space.open(tmp_path)
    assert read == []


def test_processes_read_a_part_each(planted, tmp_path, settled, read, monkeypatch) -> None:
    rows, tiny = Manifest.read(planted).select(np.arange(12)), load_backbone("tiny", "proj")
    for start in range(0, 12, 2):  # a shard for each pair
        extract(tiny, rows.select(np.arange(start, start + 2)), ("none",), cache=tmp_path)
    (folder,) = {path.parent for path in tmp_path.glob("*/*.safetensors")}
    shutil.rmtree(folder / "verified")
    names, by_me = [path.name for path in shards_of(folder)], []
    read.clear()

    def gather(items):
        """The other process reads its part until both meet."""
        if not by_me:
            by_me.append(sorted(read))
            verified.whole(folder, shards_of(folder)[1::2])
            read.clear()
        if isinstance(items, list):
            return items
        digests = [hashlib.sha256(Path(file).read_bytes()).digest() for file in rows["file"]]
        return (
            np.frombuffer(b"".join(digests[::2] + digests[1::2]), "V32") if items.dtype == "V32" else np.tile(items, 2)
        )

    extract(tiny, rows, ("none",), cache=tmp_path, share=(0, 2), gather=gather, cached_only=True)
    assert by_me == [names[::2]] and len(names) == 6
    assert read == []  # opening read none


def test_a_process_marks_what_it_published(planted, tmp_path, settled, read) -> None:
    rows, tiny = Manifest.read(planted).select(np.arange(8)), load_backbone("tiny", "proj")
    seen: list[int] = []
    extract(tiny, rows, ("none",), cache=tmp_path, share=(0, 2), gather=lambda x: seen.append(len(read)) or x)
    assert (seen[0], seen[-1]) == (0, 1) and len(
        read
    ) == 1  # read before the processes met, and not again when all opened it


def test_threads_keep_the_order_and_work_at_once() -> None:
    assert list(in_threads(lambda x: -x, range(70_000))) == [-x for x in range(70_000)]
    assert list(in_threads(str, [])) == []
    together = threading.Barrier(THREADS)  # raises where fewer threads meet
    assert len(list(in_threads(lambda _: together.wait(30), range(THREADS)))) == THREADS
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda x: 1 // (x - 5), range(100)))

"""Large manifests are as small ones: the same columns, digests and refusals, in memory that processes share."""

import gc
import hashlib
import multiprocessing
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapt.data import large
from adapt.data import manifest as module
from adapt.data.columns import Column, GroupRows
from adapt.data.manifest import Manifest, require_files
from adapt.errors import Refusal

SHA = [hashlib.sha256(bytes([i])).hexdigest() for i in range(8)]
COLUMNS = ("path", "group", "generator", "split", "set", "edit", "mask", "sha256", "width")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ADAPT_CACHE", str(folder))
    monkeypatch.setattr(large, "SETTLED", 0.0)
    return folder / "manifests"


def table(folder: Path, *rows: tuple[str, ...], name: str = "m.parquet", columns: tuple[str, ...] = ()) -> Path:
    """A Parquet manifest of rows of cells, in two row groups; columns as in `COLUMNS`, as many as the rows have."""
    folder.mkdir(parents=True, exist_ok=True)
    names = columns or COLUMNS[: len(rows[0])]
    found = pa.table(
        {name: pa.array(cells, pa.string()) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}
    )
    pq.write_table(found, folder / name, row_group_size=max(1, len(rows) // 2))
    return folder / name


def outcome(least: int, *paths: Path) -> object:
    """What reading comes to where manifests of `least` rows are large: columns and what is worked out of them."""
    before, module.LARGE = module.LARGE, least
    try:
        found = Manifest.read(*paths)
    except Refusal as refusal:
        return str(refusal)
    finally:
        module.LARGE = before
    assert all(isinstance(values, Column) == (least == 1) for values in found.columns.values())
    texts = {name: list(values) for name, values in found.columns.items()}
    groups = [rows.tolist() for rows in found.groups()]
    return texts, found.digest, groups, found.fake.tolist(), list(found.seen(found["generator"])), len(found)


def same(*paths: Path) -> object:
    small, big = outcome(10**9, *paths), outcome(1, *paths)
    if isinstance(small, tuple):
        assert isinstance(big, tuple), big
        assert dict(sorted(big[0].items())) == dict(sorted(small[0].items()))
    assert big[1:] == small[1:] if isinstance(small, tuple) else big == small
    return big


def test_columns_digest_and_groups_are_those_of_a_small_manifest(tmp_path) -> None:
    rows = [
        (f"a/{i}.png", f"g{i // 2}", "real" if i % 2 else "sd", ("train", "val", "test")[i // 2]) for i in range(6)
    ]
    assert isinstance(same(table(tmp_path / "1", *rows)), tuple)
    more = [(*row, "s", "", "", SHA[i], "") for i, row in enumerate(rows)]
    same(table(tmp_path / "2", *more))
    some = [(*row, "s", "", "", SHA[i] if i else "", "12") for i, row in enumerate(rows)]  # one digest is missing
    same(table(tmp_path / "3", *some))
    odd = [(f'é "{i}".png', f"g\\{i}", " sd " if i else "real", " train", f"\u2028{i}") for i in range(3)]
    assert same(table(tmp_path / "4", *odd))[0]["generator"] == ["real", "sd", "sd"]
    tars = [(f"x.tar::{i}.png", *row[1:]) for i, row in enumerate(rows)]
    same(table(tmp_path / "5", *tars))
    same(table(tmp_path / "6", *rows), table(tmp_path / "7", *more[:3]))  # two folders, other columns
    same(table(tmp_path / "8", *rows[:3]), table(tmp_path / "8", *rows[3:], name="n.parquet"))
    absolute = [(f"{tmp_path}/9/./{i}.png", *row[1:]) for i, row in enumerate(rows)]
    assert same(table(tmp_path / "9", *absolute))[0]["file"][0] == f"{tmp_path}/9/0.png"


PLACED = (*COLUMNS[:4], "member_offset", "Member_Size")


def test_places_in_tar_files(tmp_path) -> None:
    row, other = ("x.tar::0.png", "g0", "real", "train", "512", "77"), ("1.png", "g1", "sd", "train", "", "")
    texts, *_ = same(table(tmp_path, row, other, columns=PLACED))
    assert texts["member_offset"] == ["512", ""] and texts["member_size"] == ["77", ""]
    module.LARGE, before = 1, module.LARGE
    found = Manifest.read(tmp_path / "m.parquet")
    module.LARGE = before
    assert isinstance(found["path"], Column) and [found.place(0), found.place(1)] == [(512, 77), None]
    for path, offset, size in [
        ("x.tar::2", "1", ""),
        ("x.tar::2", "", "1"),
        ("2.png", "1", "1"),
        ("x.tar::2", "-1", "1"),
    ]:
        bad = (path, "g2", "sd", "val", offset, size)
        assert "write two whole numbers of bytes" in same(table(tmp_path, row, bad, other, columns=PLACED))
    assert "member_size ''" in same(table(tmp_path, row[:5], columns=PLACED[:5]))
    same(table(tmp_path / "1", row, other, columns=PLACED), table(tmp_path / "2", (*other[:4], "s")))


def test_masks(tmp_path) -> None:
    rows = [
        (f"{i}.png", f"g{i}", "real", "train", "", "blur" if i else "", f"m/{i}.png" if i else "") for i in range(3)
    ]
    assert same(table(tmp_path, *rows))[0]["mask_file"] == ["", f"{tmp_path}/m/1.png", f"{tmp_path}/m/2.png"]
    rows[1] = (*rows[1][:6], "2.png")
    assert "the mask '2.png' is an image of the manifest" in same(table(tmp_path, *rows))


GOOD = ("0.png", "g0", "real", "train", "", "", "", SHA[0])
BAD = [
    *((("1.png", "g", "real", word, "", "", "", SHA[1]), "unknown split") for word in ("dev", "", "Train")),
    (("", "g", "real", "train", "", "", "", SHA[1]), "empty path"),
    (("1.png", " ", "real", "train", "", "", "", SHA[1]), "empty path, group"),
    (("1.png", "g", "", "train", "", "", "", SHA[1]), "empty path, group or generator"),
    (("1.png", "g", "Real", "train", "", "", "", SHA[1]), "would count as a fake"),
    (("1.png", "g", " real", "train", "", "", "", SHA[1]), "would count as a fake"),
    (("1.png", "g", "sd", "train", "", "blur", "", SHA[1]), "edit 'blur' on generator 'sd'"),
    (("1.png", "g", "real", "train", "", "", "m.png", SHA[1]), "mask 'm.png' on a camera image"),
    (("1.png", "g", "real", "train", "", "", "", "abc"), "sha256 'abc' is not 64"),
    (("x.tar::", "g", "real", "train", "", "", "", SHA[1]), "names no image inside its archive"),
    *((
        (path, "g", "real", "train", "", "", "", SHA[1]), "leaves the manifest's folder")
        for path in ("../a.png", "b/../../a.png", "/etc/passwd", "a\0b.png", "up/a.png", "leaf.png", "x.tar::../a.png",
                     "x.tar::/etc/passwd", "up.tar::a.png", "b/..")
    ),
    (("./0.png", "g", "real", "train", "", "", "", SHA[1]), "stands in two rows"),
    (("1.png", "g0", "sd", "test", "", "", "", SHA[1]), "group 'g0' is in two splits, train and test"),
    (("1.png", "g", "real", "test", "", "", "", SHA[0]), "the same bytes in two splits"),
    (("1.png", "g", "sd", "train", "", "", "", SHA[0]), "the same bytes under two labels"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "said"), BAD)
def test_refusals_are_those_of_a_small_manifest(tmp_path, row, said) -> None:
    root = tmp_path / "root"
    zoo.make_ways_out(root)
    # a second good row behind: the row that is named is the bad one's
    found = same(table(root, GOOD, row, ("9.png", "g9", "sd", "val", "", "", "", SHA[7])))
    assert isinstance(found, str) and said in found


def test_tables_that_are_no_manifests(tmp_path) -> None:
    assert "no column 'split', only" in same(table(tmp_path, GOOD[:3]))
    assert "is reserved" in same(table(tmp_path, (*GOOD[:4], "x"), columns=(*COLUMNS[:4], "file")))
    names = [("1.png", "a", "sd-1", "train"), ("2.png", "b", "SD_1", "train")]
    assert "differ only in case" in same(table(tmp_path, *names))
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in COLUMNS[:4]}), tmp_path / "m.parquet")
    assert "no column 'file'" not in str(outcome(1, tmp_path / "m.parquet"))
    assert same(tmp_path / "m.parquet").endswith("list at least one image")


CELL = st.sampled_from(
    ["a.png", "b/c.png", "b//c.png", "x.tar::1", "é.png", "", "g", " g ", "real", "sd", "train", "val", SHA[0]]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELL, CELL, st.sampled_from(["real", "sd", "Sd"]), st.sampled_from(["train", "val"]),
                          st.sampled_from(["", "s", "S "]), st.just(""), st.just(""), st.sampled_from(["", *SHA[:2]])),
                min_size=1, max_size=5))  # fmt: skip
def test_any_table_comes_to_the_same(tmp_path, rows) -> None:
    same(table(tmp_path, *rows))


# --- the columns -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.sampled_from(["", "a", "b", "real", "é"]), max_size=30), st.data())
def test_a_column_reads_like_an_object_array(texts, data) -> None:
    array = np.empty(len(texts), object)
    array[:] = texts
    words = pa.array(texts, pa.large_string()).dictionary_encode()
    for column in (Column(pa.array(texts, pa.large_string())), Column(words.dictionary, words.indices.to_numpy())):
        assert list(column) == column.tolist() == texts and len(column) == column.size == column.shape[0] == len(texts)
        np.testing.assert_array_equal(np.asarray(column), array)
        np.testing.assert_array_equal(column == "a", array == "a")
        np.testing.assert_array_equal(column != "a", array != "a")
        np.testing.assert_array_equal(column == array[::-1], array == array[::-1])
        assert ("a" in column) == ("a" in texts) and 3 not in column
        rows = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1))) if texts else [], np.int64)
        np.testing.assert_array_equal(np.asarray(column[rows]), array[rows])
        np.testing.assert_array_equal(np.asarray(column[rows][::2]), array[rows][::2])
        np.testing.assert_array_equal(np.asarray(column[array == "b"]), array[array == "b"])
        np.testing.assert_array_equal(np.unique(column.astype(str)), np.unique(array.astype(str)))
        assert [column[i] for i in range(len(texts))] == texts and all(
            type(column[i]) is str for i in range(len(texts))
        )
        changed = column.copy()
        changed[:] = "x"
        assert list(column) == texts
        assert list(pickle.loads(pickle.dumps(column))) == texts


def test_a_column_of_digests(monkeypatch) -> None:
    monkeypatch.setattr("adapt.data.columns.FEW", 0)
    values = pa.array([bytes.fromhex(SHA[0]), None, bytes.fromhex(SHA[1])], pa.binary(32))
    column = Column(values)
    assert list(column) == [SHA[0], "", SHA[1]] and column[1] == ""
    assert (column == SHA[1]).tolist() == [False, False, True] and (column == "").tolist() == [False, True, False]
    assert not (column == "abc").any() and not (column == "ab").any()


def test_a_column_below_a_folder(monkeypatch) -> None:
    for few in (0, 9):
        monkeypatch.setattr("adapt.data.columns.FEW", few)
        column = Column(pa.array(["a", "b"], pa.large_string()), prefix="/x/")
        assert list(column) == ["/x/a", "/x/b"] and column[1] == "/x/b"
        assert (column == "/x/b").tolist() == [False, True] and not (column == "b").any()


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40))
def test_groups_are_in_the_order_of_first_appearance(codes) -> None:
    wanted: dict[int, list[int]] = {}
    for row, code in enumerate(codes):
        wanted.setdefault(code, []).append(row)
    found = GroupRows(np.array(codes, np.int32))
    assert [rows.tolist() for rows in found] == list(wanted.values()) and len(found) == len(wanted)
    if codes:
        assert found[-1].tolist() == list(wanted.values())[-1]
        assert [rows.tolist() for rows in found[1:3]] == list(wanted.values())[1:3]
    with pytest.raises(IndexError):
        found[len(found)]


# --- the file that is kept -------------------------------------------------------------------------------------------


def rows(count: int, split: str = "train") -> list[tuple[str, ...]]:
    return [(f"{i}.png", f"g{i}", "sd" if i % 2 else "real", split) for i in range(count)]


def test_a_manifest_is_checked_once_and_again_when_it_changed(tmp_path, cache, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)
    path = table(tmp_path, *rows(4))
    first = Manifest.read(path)
    (kept,) = cache.glob("*.arrow")
    monkeypatch.setattr(large, "_joined", lambda paths: pytest.fail("it is kept"))
    again = Manifest.read(path)
    assert again.digest == first.digest and list(again["file"]) == list(first["file"])
    monkeypatch.undo()
    monkeypatch.setenv("ADAPT_CACHE", str(cache.parent))
    monkeypatch.setattr(large, "SETTLED", 0.0)
    monkeypatch.setattr(module, "LARGE", 1)
    table(tmp_path, *rows(5))
    assert len(Manifest.read(path)) == 5
    (other,) = cache.glob("*.arrow")
    assert other != kept and len(first) == 4 and list(first["group"]) == [f"g{i}" for i in range(4)]  # still mapped


def test_a_refused_manifest_is_not_kept_nor_one_that_has_only_just_changed(tmp_path, cache, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)
    path = table(tmp_path, *rows(2, "dev"))
    with pytest.raises(Refusal, match="unknown split 'dev'"):
        Manifest.read(path)
    assert not list(cache.glob("*.arrow"))
    monkeypatch.setattr(large, "SETTLED", 1e6)
    path = table(tmp_path, *rows(3))
    assert len(Manifest.read(path)) == 3 and not list(cache.glob("*.arrow"))


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "file"))
    assert len(Manifest.read(table(tmp_path, *rows(3)))) == 3


def test_processes_that_come_together_read_it_once(tmp_path, cache, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)
    path, read, made = table(tmp_path, *rows(6)), large._joined, []

    def slow(paths):
        made.append(os.getpid())
        return read(paths)

    monkeypatch.setattr(large, "_joined", slow)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(_length, [path] * 3)
    assert found == [6] * 3 and len(list(cache.glob("*.arrow"))) == 1


def _length(path: Path) -> int:
    return len(Manifest.read(path))


def own_memory() -> int:
    """Bytes of this process that are no file's, which another process would have to hold again."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="needs Linux's account of memory")
def test_what_is_read_is_shared_and_takes_little_of_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1000)
    count = 200_000
    text = pa.array([f"folder-{i // 1000}/{'x' * 100}{i}.png" for i in range(count)])
    cells = {
        "path": text,
        "group": text,
        "generator": pa.array(["real", "sd"] * (count // 2)),
        "split": pa.array(["train"] * count),
    }
    pq.write_table(pa.table(cells), tmp_path / "m.parquet")
    Manifest.read(tmp_path / "m.parquet")  # makes the file
    gc.collect()
    before = own_memory()
    found = Manifest.read(tmp_path / "m.parquet")
    assert found["path"][count - 1].endswith(f"{count - 1}.png") and (found["split"] == "train").all()
    assert found.fake.sum() == count // 2 and len(found.select(found.fake)["path"]) == count // 2
    assert (
        own_memory() - before < 30 * count
    )  # two columns of 120 letters a row would take 240; numbers of rows take 8 each


def test_rows_without_digests_are_said(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)
    Manifest.read(table(tmp_path, *rows(4)))
    assert re.search("4 of 4 rows have no sha256: the same bytes in two splits", capsys.readouterr().out)
    full = [(*row, "", "", "", SHA[i]) for i, row in enumerate(rows(4))]
    Manifest.read(table(tmp_path / "x", *full))
    assert "sha256" not in capsys.readouterr().out


def test_a_lock_that_cannot_be_taken_for_another_reason_is_a_refusal(tmp_path, monkeypatch) -> None:
    def broken(file, busy):
        raise Refusal("no locks here")

    monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(large, "Lock", broken)
    with pytest.raises(Refusal, match="no locks here"):
        Manifest.read(table(tmp_path, *rows(3)))


def test_of_a_large_csv_the_remedy_is_said(tmp_path, capsys, monkeypatch) -> None:
    small = Manifest.read(table(tmp_path, *rows(4)))
    small.write(tmp_path / "m.csv")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "LARGE", 4)
    found = Manifest.read(tmp_path / "m.csv")
    said = capsys.readouterr().err
    remedy = re.search(r"\.write\('(.*)'\)\n", said)
    assert "m.csv: 4 rows, of which every process holds a copy" in said and remedy
    found.write(remedy[1])
    assert Manifest.read(remedy[1]).digest == found.digest


def test_nobody_waits_for_ever(tmp_path, cache, monkeypatch) -> None:
    path = table(tmp_path, *rows(3))
    monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(large, "PATIENCE", 0)
    held = []
    take = large.Lock
    monkeypatch.setattr(large, "Lock", lambda file, busy: held.append(take(file, busy)) or take(file, busy))
    with pytest.raises(Refusal, match="another process is reading the manifest"):
        Manifest.read(path)
    held[0].close()


def test_missing_files_of_a_large_manifest(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)
    found = Manifest.read(table(tmp_path, *rows(3)))
    with pytest.raises(Refusal, match=r"every file of the manifest is missing \(3 images\); the first are '0.png'"):
        require_files(found)

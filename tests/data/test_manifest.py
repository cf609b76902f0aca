import hashlib
import io
import os
import random
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.data import checks
from adapt.data.manifest import Manifest, split_by_group
from adapt.data.rows import split_member
from adapt.errors import Refusal

SHARED = Path(__file__).parents[3] / "shared" / "data" / "manifest.csv"
HEADER = "path,group,generator,split"


def write(folder: Path, *rows: str, header: str = HEADER, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8", errors="surrogateescape")
    return path


def columns(count: int = 4, **others) -> dict[str, list[str]]:
    base = {
        "path": [f"{n}.png" for n in range(count)],
        "group": [f"g{n // 2}" for n in range(count)],
        "generator": ["real" if n % 2 == 0 else "gan" for n in range(count)],
        "split": ["train" if n % 4 < 2 else "test" for n in range(count)],
    }
    return base | others


def refused(said: str, *paths) -> str:
    with pytest.raises(Refusal, match=said) as caught:
        Manifest.read(*paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Reading


def test_columns_after_reading(tmp_path):
    path = write(tmp_path, "b/1.png,g1,real,train,12", "2.png,g2,gan,test,", header=HEADER + ",width")
    m = Manifest.read(path)
    assert len(m) == 2
    expected = [
        "path",
        "group",
        "generator",
        "split",
        "set",
        "edit",
        "mask",
        "family",
        "source",
        "sha256",
        "file",
        "width",
    ]
    assert sorted(m.columns) == sorted(expected)
    assert all(values.dtype == object and len(values) == 2 for values in m.columns.values())
    assert list(m["file"]) == [f"{tmp_path}/b/1.png", f"{tmp_path}/2.png"]
    assert list(m["path"]) == ["b/1.png", "2.png"]
    assert list(m["width"]) == ["12", ""] and list(m["edit"]) == ["", ""]
    assert m.fake.dtype == bool and list(m.fake) == [False, True]


def test_parquet_reads_as_csv_does(tmp_path):
    table = columns() | {"group": [0, 0, 1, 1], "width": [1, None, 3, 4], "score": [0.5, 1.0, 2.0, 3.0]}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    m = Manifest.read(tmp_path / "m.parquet")
    assert list(m["group"]) == ["0", "0", "1", "1"]
    assert list(m["width"]) == ["1", "", "3", "4"]
    assert m["file"][3] == f"{tmp_path}/3.png"
    csv = write(tmp_path, *(",".join(row) for row in zip(*(m[c] for c in HEADER.split(",")), strict=True)))
    assert Manifest.read(csv).digest == m.digest


def test_parquet_with_dictionary_columns(tmp_path):
    table = pa.table(columns())
    table = table.set_column(2, "generator", table["generator"].dictionary_encode())
    pq.write_table(table, tmp_path / "m.parquet")
    assert list(Manifest.read(tmp_path / "m.parquet")["generator"]) == ["real", "gan", "real", "gan"]


def test_several_manifests_are_joined_in_order(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = write(tmp_path / "a", "1.png,g1,real,train,x", header=HEADER + ",caption")
    second = write(tmp_path / "b", "1.png,g2,gan,test,s", header=HEADER + ",set")
    m = Manifest.read(first, second)
    assert list(m["file"]) == [f"{tmp_path}/a/1.png", f"{tmp_path}/b/1.png"]
    assert list(m["caption"]) == ["x", ""] and list(m["set"]) == ["", "s"]


def test_byte_order_mark_blank_lines_and_line_endings(tmp_path):
    text = "\ufeffpath,group,generator,split\r\n\r\na.png,g,real,train\r\n\r\n"
    (tmp_path / "m.csv").write_bytes(text.encode())
    assert list(Manifest.read(tmp_path / "m.csv")["path"]) == ["a.png"]


def test_rows_in_archives(tmp_path):
    m = Manifest.read(write(tmp_path, "s/x.tar::./a/b.png,g,real,train", "plain::name.png,h,gan,train"))
    assert list(m["file"]) == [f"{tmp_path}/s/x.tar::a/b.png", f"{tmp_path}/plain::name.png"]
    assert split_member(m["file"][0]) == (f"{tmp_path}/s/x.tar", "a/b.png")
    assert split_member(m["file"][1]) == (f"{tmp_path}/plain::name.png", "")


def test_archive_member_is_found_by_the_decoder(tmp_path):
    from adapt.data.images import read_bytes

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("./a/b.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    m = Manifest.read(write(tmp_path, "x.tar::a//b.png,g,real,train"))
    assert read_bytes(m["file"][0]) == b"abc"


def test_the_manifest_may_lie_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "real", "a.png,g,real,train")
    assert Manifest.read(tmp_path / "link" / "m.csv")["file"][0] == f"{tmp_path}/real/a.png"


# Refusals of one manifest


def test_no_such_manifest(tmp_path):
    refused(r"no manifest .*none\.csv", tmp_path / "none.csv")
    refused("no manifest", tmp_path)
    refused("no manifest given")


def test_unknown_suffix_and_unreadable_tables(tmp_path):
    refused(r"m\.txt is neither", write(tmp_path, name="m.txt"))
    refused("not a readable CSV", write(tmp_path, '"a.png,g,real,train'))
    (tmp_path / "m.parquet").write_bytes(b"PAR1 no")
    refused("not a readable Parquet", tmp_path / "m.parquet")


def test_missing_column_lists_those_found(tmp_path):
    path = write(tmp_path, "a.png,g,train", header="path,group,split")
    assert str(path) in refused("no column 'generator', only path, group, split", path)
    (tmp_path / "empty.csv").write_text("")
    refused("no column 'path', only none", tmp_path / "empty.csv")


def test_column_twice_and_reserved_column(tmp_path):
    refused("column 'group' stands twice", write(tmp_path, "a.png,g,real,train,h", header=HEADER + ",group"))
    refused("column 'file' is reserved", write(tmp_path, "a.png,g,real,train,h", header=HEADER + ",file"))


def test_rows_of_the_wrong_length(tmp_path):
    refused("row 2: 5 cells, not 4", write(tmp_path, "a.png,g,real,train", "b, c.png,g,real,train"))


def test_columns_of_pictures_are_refused(tmp_path):
    pq.write_table(pa.table(columns() | {"image": [b"1", b"2", b"3", b"4"]}), tmp_path / "m.parquet")
    refused("column 'image' holds binary", tmp_path / "m.parquet")


def test_empty_manifest(tmp_path):
    refused("has no rows", write(tmp_path))
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in HEADER.split(",")}), tmp_path / "m.parquet")
    refused("has no rows", tmp_path / "m.parquet")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a.png,g,real,dev", "unknown split 'dev': use train, val or test"),
        ("a.png,g,real,", "unknown split ''"),
        ("a.png,g,real,Train", "unknown split 'Train'"),
        (",g,real,train", "empty path"),
        ("a.png,,real,train", "empty path, group"),
        ("x.tar::,g,real,train", "path 'x.tar::' names no image inside its archive"),
        ("a.png, ,real,train", "empty path, group"),
        ("a.png,g,,train", "empty path, group or generator"),
        ("a.png,g,Real,train", "generator 'Real' would count as a fake"),
        ("a.png,g, real,train", "generator ' real' would count as a fake"),
    ],
)
def test_wrong_values_name_file_row_and_value(tmp_path, row, said):
    path = write(tmp_path, "0.png,g,real,train", row)
    assert f"{path}, row 2: " in refused(said, path)


def test_an_edit_belongs_to_a_real_image(tmp_path):
    header = HEADER + ",edit"
    assert len(Manifest.read(write(tmp_path, "a.png,g,real,train,blur", header=header))) == 1
    refused("row 1: edit 'blur' on generator 'gan'", write(tmp_path, "a.png,g,gan,train,blur", header=header))


def test_a_digest_is_64_hexadecimal_digits(tmp_path):
    header = HEADER + ",sha256"
    digest = hashlib.sha256(b"").hexdigest()
    read = Manifest.read(write(tmp_path, f"a.png,g,real,train,{digest.upper()}", header=header))
    assert read["sha256"][0] == digest
    refused("row 1: sha256 'abc' is not", write(tmp_path, "a.png,g,real,train,abc", header=header))


# Confinement


@pytest.mark.parametrize(
    "path",
    [
        "../a.png",
        "b/../../a.png",
        "b/..",
        "/etc/passwd",
        "//etc/passwd",
        "a\0b.png",
        "up/a.png",
        "leaf.png",
        "../x.tar::a.png",
        "x.tar::../a.png",
        "x.tar::/etc/passwd",
        "up/x.tar::a.png",
        "up.tar::a.png",
    ],
)
def test_a_path_that_leaves_the_folder(tmp_path, path):
    root = tmp_path / "root"
    zoo.make_ways_out(root)
    said = refused("leaves the manifest's folder", write(root, f"ok.png,g,real,train\n{path},g,real,train"))
    assert "row 2" in said and repr(path) in said


def test_a_sibling_folder_with_the_same_beginning_is_outside(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "rooted").mkdir()
    (tmp_path / "root" / "link").symlink_to("../rooted")
    refused("leaves the manifest's folder", write(tmp_path / "root", "link/a.png,g,real,train"))


def test_links_inside_the_folder_are_followed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "a" / "1.png").write_bytes(b"1")
    (tmp_path / "2.png").symlink_to("a/1.png")
    (tmp_path / "loop").symlink_to("loop")
    m = Manifest.read(write(tmp_path, "b/1.png,g,real,train", "2.png,g,real,train", "loop/x.png,g,gan,train"))
    assert Path(m["file"][0]).read_bytes() == Path(m["file"][1]).read_bytes() == b"1"


# Leaks


def test_a_path_twice(tmp_path):
    refused(r"path '\./a\.png' stands in two rows", write(tmp_path, "a.png,g,real,train", "./a.png,g,real,train"))
    path = write(tmp_path, "a.png,g,real,train")
    refused(r"path 'a\.png' stands in two rows", path, path)
    refused("two rows", write(tmp_path, "x.tar::a,g,real,train", "x.tar::./a,g,real,train"))


def test_a_group_in_two_splits(tmp_path):
    path = write(tmp_path, "a.png,g7,real,train", "b.png,g7,gan,test")
    refused("group 'g7' is in two splits, train and test", path)
    (tmp_path / "2").mkdir()
    first = write(tmp_path, "a.png,g7,real,val")
    refused("group 'g7' is in two splits, val and test", first, write(tmp_path / "2", "a.png,g7,real,test"))


def planted(folder: Path, kind: str, digests: bool) -> Path:
    """Six files, one byte string twice: across splits, across labels, or within one split and label."""
    other = {"splits": ("real", "test"), "labels": ("gan", "train"), "inside": ("real", "train")}[kind]
    rows = [("real", "train"), other, ("gan", "train"), ("real", "val"), ("gan", "val"), ("gan", "test")]
    contents = [b"same" * 3000, b"same" * 3000, b"gan1" * 3000, b"val1" * 3000, b"val2" * 2000, b"x"]
    lines = []
    for number, ((generator, split), data) in enumerate(zip(rows, contents, strict=True)):
        (folder / f"{number}.png").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest() if digests else ""
        lines.append(f"{number}.png,g{number},{generator},{split},{digest}")
    return write(folder, *lines, header=HEADER + ",sha256")


@pytest.mark.parametrize("digests", [True, False])
def test_equal_bytes_in_two_splits_or_under_two_labels(tmp_path, digests):
    said = refused("the same bytes in two splits", planted(tmp_path, "splits", digests))
    assert "'0.png' (train, real)" in said and "'1.png' (test, real)" in said
    said = refused("the same bytes under two labels", planted(tmp_path, "labels", digests))
    assert "'0.png' (train, real)" in said and "'1.png' (train, gan)" in said
    assert len(Manifest.read(planted(tmp_path, "inside", digests))) == 6


def test_a_row_with_a_digest_is_compared_with_a_row_without(tmp_path, monkeypatch):
    hashed, hashing = [], checks._digest
    monkeypatch.setattr(checks, "_digest", lambda file: hashed.append(Path(file).name) or hashing(file))
    path = planted(tmp_path, "splits", True)
    digest = hashlib.sha256(b"same" * 3000).hexdigest()
    path.write_text(path.read_text().replace(f"0.png,g0,real,train,{digest}", "0.png,g0,real,train,"))
    refused("the same bytes in two splits", path)
    assert hashed == ["0.png"]


def test_given_digests_are_believed_without_a_look_at_the_files(tmp_path, monkeypatch):
    for name in ("_size", "_tail", "_digest"):
        monkeypatch.setattr(checks, name, lambda file: pytest.fail("looked at a file"))
    assert len(Manifest.read(planted(tmp_path, "inside", True))) == 6


def test_only_files_that_may_be_equal_are_hashed(tmp_path, monkeypatch):
    hashed, digest = [], checks._digest
    monkeypatch.setattr(checks, "_digest", lambda file: hashed.append(Path(file).name) or digest(file))
    refused("the same bytes", planted(tmp_path, "splits", False))
    assert hashed == ["0.png", "1.png"]


def test_files_that_differ_only_in_the_middle_are_different(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1" + bytes(9000))
    (tmp_path / "b.png").write_bytes(b"2" + bytes(9000))
    assert len(Manifest.read(write(tmp_path, "a.png,g,real,train", "b.png,h,gan,test"))) == 2


def test_missing_empty_and_special_files_are_left_to_decoding(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"")
        os.mkfifo(tmp_path / f"{name}.fifo")
    rows = [
        "a.png,1,real,train",
        "b.png,2,gan,test",
        "a.fifo,3,real,train",
        "b.fifo,4,gan,test",
        "c.png,5,gan,val",
    ]
    assert len(Manifest.read(write(tmp_path, *rows))) == 5


# Writing and file names

ODD = [
    "a b.png",
    " lead.png",
    'quo"te.png',
    "com,ma.png",
    "new\nline.png",
    "return\rline.png",
    "-rf.png",
    "=cmd().png",
    "@x.png",
    "#x.png",
    ".hidden",
    "UPPER.JPEG",
    "upper.jpeg",
    unicodedata.normalize("NFC", "é.png"),
    unicodedata.normalize("NFD", "é.png"),
    "日本.png",
    "tab\t.png",
    "semi;colon.png",
    "back\\slash.png",
    "'.png",
    "%41.png",
    "~",
    "\ufeffmark.png",
]
BYTES = ["bad\udcff.png", "\udc80\udcfe"]


def odd(folder: Path, names: list[str]) -> Manifest:
    for number, name in enumerate(names):
        (folder / name).write_bytes(b"%d" % number)
    count = len(names)
    groups = [f"{name}, group" for name in names]
    return Manifest.of(
        {"path": names, "group": groups, "generator": ["real"] * count, "split": ["train"] * count}, folder
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_odd_names_round_trip(tmp_path, suffix):
    names = ODD + (BYTES if suffix == "csv" else [])
    m = odd(tmp_path, names)
    m.write(tmp_path / f"m.{suffix}")
    again = Manifest.read(tmp_path / f"m.{suffix}")
    assert list(again["path"]) == names
    assert list(again["group"]) == list(m["group"])
    assert again.digest == m.digest
    assert [Path(file).read_bytes() for file in again["file"]] == [b"%d" % n for n in range(len(names))]


def test_undecodable_names_do_not_fit_parquet(tmp_path):
    m = odd(tmp_path, BYTES)
    with pytest.raises(Refusal, match=r"not UTF-8.*write a \.csv"):
        m.write(tmp_path / "m.parquet")
    assert not list(tmp_path.glob("*m.parquet*"))


cells = st.text(st.characters(exclude_characters="\0/:", exclude_categories=["Cs"]), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(cells, min_size=1, max_size=6, unique=True),
    caption=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_text_round_trips(tmp_path_factory, names, caption):
    folder = tmp_path_factory.mktemp("text")
    table = columns(len(names), path=[f"x{name}" for name in names], caption=[caption] * len(names))
    m = Manifest.of(table | {"split": ["train"] * len(names)}, folder)
    for suffix in ("csv", "parquet"):
        m.write(folder / f"m.{suffix}")
        again = Manifest.read(folder / f"m.{suffix}")
        assert again.digest == m.digest
        assert list(again.columns.get("caption", [""] * len(names))) == table["caption"]


def test_written_paths_are_relative_to_the_new_folder(tmp_path):
    (tmp_path / "data").mkdir()
    rows = ["a.png,g,real,train,7", "x.tar::b.png,h,gan,test,"]
    m = Manifest.read(write(tmp_path / "data", *rows, header=HEADER + ",width"))
    m.write(tmp_path / "all.csv")
    again = Manifest.read(tmp_path / "all.csv")
    assert list(again["path"]) == ["data/a.png", "data/x.tar::b.png"]
    assert list(again["file"]) == list(m["file"]) and list(again["width"]) == ["7", ""]
    assert (tmp_path / "all.csv").read_text().splitlines()[0] == HEADER + ",width"


def test_files_outside_the_new_folder_are_refused(tmp_path):
    m = Manifest.read(write(tmp_path, "a.png,g,real,train"))
    (tmp_path / "deeper").mkdir()
    with pytest.raises(Refusal, match="lies outside"):
        m.write(tmp_path / "deeper" / "m.csv")
    with pytest.raises(Refusal, match=r"'\.txt' is neither"):
        m.write(tmp_path / "m.txt")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deeper", "m.csv"]


# Rows


def test_of_refuses_what_read_refuses(tmp_path):
    with pytest.raises(Refusal, match="no column 'path'"):
        Manifest.of({}, tmp_path)
    with pytest.raises(Refusal, match="group 'g' is in two splits"):
        Manifest.of(columns() | {"group": ["g"] * 4}, tmp_path)
    assert list(Manifest.of({k: np.array(v) for k, v in columns().items()}, tmp_path)["path"]) == columns()["path"]


def test_select_by_mask_and_by_index(tmp_path):
    m = Manifest.of(columns(6), tmp_path)
    assert list(m.select(m.fake)["path"]) == ["1.png", "3.png", "5.png"]
    assert list(m.select([4, 0])["path"]) == ["4.png", "0.png"]
    assert len(m.select([])) == 0 and len(m.select([]).fake) == 0
    assert list(m.select(m["split"] == "test")["path"]) == ["2.png", "3.png"]
    assert len(m) == 6


@given(st.lists(st.sampled_from("abcde"), max_size=30))
def test_groups_partition_the_rows_in_order(names):
    groups = Manifest({"group": np.array(names, object)}).groups()
    assert sorted(np.concatenate(groups)) == list(range(len(names))) if names else groups == []
    assert [names[rows[0]] for rows in groups] == list(dict.fromkeys(names))
    assert all({names[row] for row in rows} == {names[rows[0]]} and (np.diff(rows) > 0).all() for rows in groups)


def test_seen_says_where_a_generator_was_met(tmp_path):
    table = columns(6, generator=["real", "a", "b", "c", "a", "d"], group=list("012345"))
    table["split"] = ["test", "train", "val", "test", "val", "test"]
    m = Manifest.of(table, tmp_path)
    assert list(m.seen(m["generator"])) == ["train", "train", "val", "", "train", ""]
    assert list(m.seen(["zzz", "real"])) == ["", "train"]
    assert list(m.select(m["split"] == "test").seen(["real", "a"])) == ["train", ""]


def test_digest_is_of_the_rows_and_not_of_the_place(tmp_path):
    digest = Manifest.of(columns(), tmp_path).digest
    assert Manifest.of(columns(), tmp_path / "elsewhere").digest == digest
    assert Manifest.of(columns(caption=["x"] * 4), tmp_path).digest == digest
    changes = {
        "path": ["0.png", "1.png", "2.png", "4.png"],
        "group": ["g0", "g0", "g1", "g2"],
        "generator": ["real", "gan", "real", "gan2"],
        "split": ["train", "train", "val", "val"],
        "set": ["s", "", "", ""],
        "edit": ["blur", "", "", ""],
        "sha256": ["0" * 64, "", "", ""],
    }
    digests = {Manifest.of(columns(**{name: values}), tmp_path).digest for name, values in changes.items()}
    assert len(digests) == len(changes) and digest not in digests
    m = Manifest.of(columns(), tmp_path)
    assert m.select([1, 0, 2, 3]).digest != m.select([0, 1, 2, 3]).digest == digest


def test_digest_cannot_be_fooled_by_moving_text_between_columns(tmp_path):
    first = Manifest.of(columns(1, path=["a"], group=["b,c"]), tmp_path)
    second = Manifest.of(columns(1, path=["a,b"], group=["c"]), tmp_path)
    assert first.digest != second.digest


# Splitting


@given(st.lists(st.text(max_size=5), max_size=40), st.integers(0, 5))
def test_a_group_has_one_split_in_any_order_and_company(groups, seed):
    splits = split_by_group(groups, seed)
    alone = {group: split_by_group([group], seed)[0] for group in groups}
    assert [alone[group] for group in groups] == list(splits)
    order = list(range(len(groups)))
    random.Random(0).shuffle(order)
    assert list(split_by_group([groups[i] for i in order], seed)) == [splits[i] for i in order]


def test_shares_are_kept_and_the_seed_matters():
    groups = [f"scene{n}" for n in range(20000)]
    shares = Counter(split_by_group(groups, 0, val=0.15, test=0.25))
    assert {name: round(count / 20000, 2) for name, count in shares.items()} == {
        "train": 0.6,
        "val": 0.15,
        "test": 0.25,
    }
    assert set(split_by_group(groups, 0, val=0, test=0)) == {"train"}
    agreement = (split_by_group(groups, 0) == split_by_group(groups, 1)).mean()
    assert agreement == pytest.approx(0.6**2 + 0.15**2 + 0.25**2, abs=0.02)


def test_a_larger_test_share_keeps_the_test_groups():
    groups = [str(n) for n in range(2000)]
    small, large = split_by_group(groups, 0, test=0.1), split_by_group(groups, 0, test=0.3)
    assert (large[small == "test"] == "test").all()


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.1, -0.2), (0, 1)])
def test_shares_that_leave_no_train_split_are_refused(shares):
    with pytest.raises(Refusal, match="choose shares with a sum below 1"):
        split_by_group(["a"], 0, *shares)


@pytest.mark.skipif(not SHARED.is_file(), reason="needs the development data")
def test_the_development_data():
    m = Manifest.read(SHARED)
    assert len(m) == 1677 and len(m.groups()) == 552
    assert set(m.seen(["taef2", "real"])) == {"train"} and set(m.seen(["dalle_mini"])) == {""}

"""The Scores table: round trips, defaults, refusals."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.errors import Refusal
from adapt.evaluation.scores import TEXT, Scores


def rows(**changed) -> dict[str, list]:
    """Two photographs with a fake each; `changed` replaces columns."""
    columns = {
        "path": ["r1.png", "f1.png", "r2.png", "f2.png"],
        "group": ["g1", "g1", "g2", "g2"],
        "generator": ["real", "sdxl", "real", "sdxl"],
        "split": ["test"] * 4,
        "logit": [-1.0, 2.0, 0.5, 0.25],
        "p_fake": [0.25, 0.75, 0.5, 0.625],
    }
    return columns | changed


def same(a: Scores, b: Scores) -> bool:
    return list(a.columns) == list(b.columns) and all(
        np.array_equal(a[name], b[name], equal_nan=a[name].dtype != object) for name in a.columns
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_round_trip_keeps_every_column_and_bit(tmp_path, suffix):
    status = ["ok", 'unreadable: truncated, at "byte" 7', "ok", "ok"]
    scores = Scores(
        rows(
            path=[
                "r1\udcff.png",
                'f,"1\n.png',
                "=r2.png",
                "é.png",
            ],  # undecodable, separators, formula, accent
            logit=[np.nextafter(0.1, 1), np.nan, 1e-300, -0.0],
            p_fake=[0.1, np.nan, 0.5, 1 / 3],
            status=status,
            set=["embedded"] * 4,
            edit=["blur", "", "", ""],
            seen=["", "", "", ""],
            view=["crop224+qf40"] * 4,
            logit_gan=[0.25, np.nan, 3.0, 4.0],
            unknown=list("abcd"),
        )
    )
    scores.write(tmp_path / f"scores{suffix}")
    again = Scores.read(tmp_path / f"scores{suffix}")
    assert same(scores, again)
    assert list(again.columns) == [*TEXT, "logit", "p_fake", "logit_gan"]
    assert again["status"].tolist() == status
    before = (tmp_path / f"scores{suffix}").read_bytes()
    again.write(tmp_path / f"scores{suffix}")
    assert (tmp_path / f"scores{suffix}").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [f"scores{suffix}"]  # no temporary file is left


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5, unique=True))
def test_any_name_survives_both_formats(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    paths = [f"x{name}" for name in names]
    generators = [f"{i}x{name}" for i, name in enumerate(names)]  # two spellings of one name would be refused
    scores = Scores({"path": paths, "generator": generators, "logit": np.arange(len(paths))})
    for suffix in (".csv", ".parquet"):
        scores.write(folder / f"s{suffix}")
        assert Scores.read(folder / f"s{suffix}")["path"].tolist() == paths


def test_defaults_of_a_table_of_another_detector(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("\ufeffpath,generator,p_fake,note\na.png,real,0.2,x\nb.png,sdxl,0.9,y\n", encoding="utf-8")
    scores = Scores.read(path)
    assert scores["group"].tolist() == ["a.png", "b.png"]
    assert set(scores["split"]) == {"test"} and set(scores["view"]) == {"none"} and set(scores["status"]) == {"ok"}
    assert scores["seen"].tolist() == ["train", ""]
    np.testing.assert_allclose(scores["logit"], [np.log(0.25), np.log(9)], rtol=1e-14)
    assert scores.fake.tolist() == [False, True]


def test_logit_from_p_is_finite_and_keeps_the_order_at_the_ends():
    p = np.array([0.0, 5e-324, 1e-300, 0.5, 1 - 2**-53, 1.0])
    scores = Scores({"path": list("abcdef"), "generator": ["x"] * 6, "p_fake": p})
    assert np.isfinite(scores["logit"]).all() and (np.diff(scores["logit"]) > 0).all()
    assert scores["logit"][3] == 0


def test_p_from_logit():
    logit = np.array([-1000, -3.0, 0, 3, 1000])
    scores = Scores({"path": list("abcde"), "generator": ["x"] * 5, "logit": logit})
    expected = [0, 1 / (1 + np.exp(3)), 0.5, 1 / (1 + np.exp(-3)), 1]
    np.testing.assert_allclose(scores["p_fake"], expected, atol=1e-15)


def test_select_by_mask_and_by_index():
    scores = Scores(rows())
    assert scores.select(scores.fake)["path"].tolist() == ["f1.png", "f2.png"]
    assert scores.select(np.array([2, 0]))["path"].tolist() == ["r2.png", "r1.png"]
    assert len(scores.select(np.zeros(4, dtype=bool))) == 0


NAN = float("nan")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"split": ["test", "test", "testing", "test"]}, "r2.png"),
        ({"seen": ["", "yes", "", "yes"]}, "f1.png"),
        ({"logit": [-1, NAN, 0, 0]}, "f1.png"),
        ({"logit": [-1, float("inf"), 0, 0]}, "f1.png"),
        ({"p_fake": [0.5, 1.5, 0, 0]}, "f1.png"),
        ({"p_fake": [0.5, -1e-9, 0, 0]}, "f1.png"),
        ({"p_fake": [0.5, NAN, 0, 0]}, "f1.png"),
        ({"p_fake": [0.5, "high", 0, 0]}, "high"),
        ({"status": ["ok", "unreadable: x", "ok", "ok"]}, "f1.png"),
        ({"edit": ["", "blur", "", ""]}, "f1.png"),
        ({"path": ["r1.png", "f1.png", "r2.png", ""]}, "empty"),
        ({"path": ["r1.png", "f1.png", "r2.png", "f1.png"], "group": ["g1"] * 4}, "twice"),
        ({"path": ["r1.png", "r1.png", "r2.png", "f2.png"], "view": ["a", "b", "a", "a"]}, "'sdxl'"),
        ({"split": ["test", "val", "test", "test"]}, "'g1'"),
        ({"generator": ["real", "a", "real", "a"], "seen": ["", "train", "", ""]}, "'a'"),
        ({"logit": [1.0, 2.0]}, "2 values"),
        ({"group": ["g1"]}, "1 values"),
    ],
)
def test_refuses(changed, says):
    with pytest.raises(Refusal, match=says):
        Scores(rows(**changed))


@pytest.mark.parametrize("missing", [("path",), ("generator",), ("logit", "p_fake")])
def test_refuses_a_missing_column(missing):
    columns = {name: values for name, values in rows().items() if name not in missing}
    with pytest.raises(Refusal, match=missing[0]):
        Scores(columns)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.csv", "", "CSV"),
        ("header.csv", "path,generator,logit\n", "no rows"),
        ("ragged.csv", "path,generator,logit\na,real\n", "row 2"),
        ("quote.csv", 'path,generator,logit\n"a,real,1\n', "CSV"),
        ("words.csv", "path,generator,logit\na,real,high\n", "high"),
        ("broken.parquet", "PAR1 and no more", "Parquet"),
        ("scores.txt", "path", ".parquet nor .csv"),
    ],
)
def test_refuses_damaged_files(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(Refusal, match=says):
        Scores.read(tmp_path / name)


def test_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(Refusal, match="no scores"):
        Scores.read(tmp_path / "none.parquet")


def test_a_failed_write_keeps_the_old_table(tmp_path):
    Scores(rows()).write(tmp_path / "s.csv")
    before = (tmp_path / "s.csv").read_bytes()
    with pytest.raises(Refusal, match="cannot be written"):
        Scores(rows(path=["r1.png", "f1.png", "r2.png", "\ud800"])).write(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes() == before


def test_csv_of_a_spreadsheet_reads_as_written_by_hand(tmp_path):
    with (tmp_path / "s.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "generator", "logit"], ["a", "real", "-1"], [], ["b", "x", " 2 "]])
    assert Scores.read(tmp_path / "s.csv")["logit"].tolist() == [-1.0, 2.0]


def test_parquet_with_nulls_categories_and_integers(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "path": pa.array(["a", "b"]).dictionary_encode(),
            "generator": ["real", "x"],
            "group": [7, None],
            "logit": pa.array([1, None]),
            "p_fake": pa.array([0.5, None], type=pa.float32()),
            "status": ["ok", "unreadable: gone"],
        }
    )
    (tmp_path / "split=val").mkdir()  # a folder's name must not become a column
    pq.write_table(table, tmp_path / "split=val" / "s.parquet")
    scores = Scores.read(tmp_path / "split=val" / "s.parquet")
    assert scores["group"].tolist() == ["7", "b"] and scores["split"].tolist() == ["test", "test"]
    assert scores["logit"][0] == 1 and np.isnan(scores["logit"][1])


def test_a_row_taken_twice_is_refused_and_a_part_keeps_equal_texts_once():
    scores = Scores(rows())
    with pytest.raises(Refusal, match=r"'r1.png' stands twice"):
        scores.select(np.array([0, 1, 0]))
    part = scores.select(np.array([3, 0]))
    assert part["path"].tolist() == ["f2.png", "r1.png"] and part["split"][0] is part["split"][1]


def test_a_long_csv_is_read_in_pieces_and_names_the_line_that_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("adapt.evaluation.score_files.PIECE", 3)
    lines = ["path,generator,logit", *(f"{i}.png,{'real' if i % 2 else 'x'},{i}" for i in range(10))]
    (tmp_path / "s.csv").write_text("\n".join(lines))
    assert Scores.read(tmp_path / "s.csv")["logit"].tolist() == list(range(10))
    lines[8] += ",more"
    (tmp_path / "s.csv").write_text("\n".join(lines))
    with pytest.raises(Refusal, match=r"row 9 of .* has 4 cells, the header 3"):
        Scores.read(tmp_path / "s.csv")


@pytest.mark.parametrize(("mark", "encoding"), [(";", "utf-8-sig"), ("\t", "utf-16"), (",", "utf-8-sig")])
def test_tables_as_spreadsheets_write_them(tmp_path, mark, encoding):
    scores = Scores(rows(logit_Gan=[0.0, 1.0, 2.0, 3.0]))
    scores.write(tmp_path / "plain.csv")
    with (tmp_path / "plain.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    header = [name if name == "logit_Gan" else name.upper() for name in header]
    with (tmp_path / "other.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=mark).writerows([header, *lines])
    assert same(Scores.read(tmp_path / "other.csv"), scores)


@pytest.mark.parametrize("column", ["generator", "family", "set", "edit", "status", "group"])
def test_bytes_that_are_no_utf_8_are_refused_outside_of_paths(tmp_path, column):
    scores = Scores(rows(path=["r1\udce9.png", "f1.png", "r2.png", "f2.png"], group=[""] * 4))
    scores.write(tmp_path / "ok.csv")  # a group that was not given is the path
    assert same(Scores.read(tmp_path / "ok.csv"), scores)
    values = scores[column].copy()
    values[3] = "g\udce9n"
    Scores(scores.columns | {"status": np.array(["ok"] * 4, dtype=object)})
    with (tmp_path / "bad.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = scores.columns | {column: values}
        csv.writer(file).writerows([[*table], *zip(*table.values(), strict=True)])
    with pytest.raises(Refusal, match=rf"bad.csv, row 5, column '{column}': .*'gén'\): save the table as UTF-8"):
        Scores.read(tmp_path / "bad.csv")


def test_real_in_another_spelling_is_no_fake():
    with pytest.raises(Refusal, match=r"2 rows of scores have generator \['Real '\], a fake: write 'real'"):
        Scores(rows(generator=["Real ", "sdxl", "Real ", "sdxl"]))


def test_two_spellings_of_a_generator_are_asked_about():
    with pytest.raises(Refusal, match=r"generator 'SD XL' \(1 rows\) and 'sdxl' \(1 rows\) differ only in case"):
        Scores(rows(generator=["real", "sdxl", "real", "SD XL"]))

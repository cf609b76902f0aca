"""Tables of numbers: exact bytes, values that come back, refusals; and every committed table is written again."""

import bz2
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapt.errors import Refusal
from adapt.files import open_table
from adapt.number_table import columns_of, read_rows, read_table, write_rows, write_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
OTHER_RULES = {  # CSV files that are no tables of numbers, see the module's docstring
    *("data/tables", "embedded/world", "collect/align", "collect/builder", "collect/composites", "commands/prepare"),
    *("commands/audit", "evaluation/scores", "evaluation/score_files", "detector/predict", "evaluation/targets"),
    *("csv_as_written", "published"),
}
NOT_NUMBERS = ("called-fake", "mistakes", "runs")  # taken from a report by hand, as the NOTES.md beside them says
COMMITTED = sorted(
    path.with_name(path.name.removesuffix(".bz2"))
    for pattern in ("*/*/*.csv", "*/*/*.csv.bz2")
    for path in RESULTS.glob(pattern)
    if path.name.partition(".")[0] not in NOT_NUMBERS
)
FLOATS = {
    *("value", "low", "high", "a", "b", "p", "share", "auc", "seed_low", "seed_high"),
    *("learning_rate", "training_minutes", "seconds", "peak_mib"),
}
INTS = {
    *("n", "n_real", "n_fake", "groups", "seeds", "count", "images", "rows", "views"),
    *("trainable_parameters", "peak_memory_mib"),
}
SIX_DIGITS = (  # recipes that wrote six digits when these were run, and items, which do today
    *("embedded/understand", "embedded/understand-jpeg"),
    *("photographs/colour", "photographs/jpeg"),
    *("photographs/tip", "photographs/understand"),
)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_a_committed_table_is_written_again_byte_for_byte(path: Path, tmp_path) -> None:
    """Through floats and ints, not as words: a digit that does not survive shows."""
    columns, rows = columns_of(path), []
    for row in read_table(path):
        words = columns[:3] == ("table", "row", "column") and not row["n"]  # of an item: a text under `value`
        read = {} if words else dict.fromkeys(FLOATS, row.number) | dict.fromkeys(INTS, row.count)
        rows.append([read.get(name, row.__getitem__)(name) for name in columns])
    digits = 6 if f"{path.parent.parent.name}/{path.parent.name}" in SIX_DIGITS else None
    write_table(tmp_path / "again.csv", columns, rows, digits)
    with open_table(path) as committed, open_table(tmp_path / "again.csv") as again:
        assert again.read() == committed.read()


def test_no_other_module_has_a_hand_of_its_own() -> None:
    files = [*(ROOT / "adapt").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    importing = [path for path in files if re.search(r"^\s*import csv\b", path.read_text(encoding="utf-8"), re.M)]
    names = {path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("adapt/") for path in importing}
    assert names == OTHER_RULES | {"number_table"}


def test_every_kind_of_committed_table_is_there() -> None:
    kinds = {columns_of(path)[-1] for path in COMMITTED}
    assert kinds >= {"n_fake", "role", "share", "n", "on_frontier", "images", "auc"} and len(COMMITTED) > 60


def test_numbers_stand_in_full_and_words_are_made_safe(tmp_path) -> None:
    rows = [
        ["a,b", 0.1 + 0.2, 3, math.nan, None],
        ['say "x"', 1.0, -1, 1e-07, ""],
        ["line\nend \udcff", math.inf, True, 2 / 3, "n/a"],
    ]
    write_table(tmp_path / "t.csv", ("name", "x", "n", "y", "z"), rows)
    assert (tmp_path / "t.csv").read_bytes() == (
        b"name,x,n,y,z\n"
        b'"a,b",0.30000000000000004,3,n/a,\n'
        b'"say ""x""",1.0,-1,1e-07,\n'
        b"line\\nend \\udcff,inf,True,0.6666666666666666,n/a\n"
    )
    write_table(tmp_path / "t.csv", ("x", "n", "y"), [[2 / 3, 1234567, math.nan], [1.0, 1, 1e-07]], digits=6)
    assert (tmp_path / "t.csv").read_bytes() == b"x,n,y\n0.666667,1234567,n/a\n1,1,1e-07\n"
    write_table(tmp_path / "t.csv", ("x",), [[0.5]], line_end="\r\n")
    assert (tmp_path / "t.csv").read_bytes() == b"x\r\n0.5\r\n"


def test_what_was_written_comes_back_also_from_the_compressed_copy(tmp_path) -> None:
    path = tmp_path / "t.csv"
    write_table(path, ("name", "x", "n"), [["a", 1 / 3, 7], ["b", math.nan, 0]])
    (tmp_path / "t.csv.bz2").write_bytes(bz2.compress(path.read_bytes()))
    for _ in range(2):
        assert columns_of(path) == ("name", "x", "n")
        first, second = read_table(path)
        assert (first["name"], first.number("x"), first.count("n")) == ("a", 1 / 3, 7)
        assert (second["name"], second["x"], second.count("n")) == ("b", "n/a", 0) and math.isnan(second.number("x"))
        path.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"no\.csv"):
        read_table(tmp_path / "no.csv")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name,x,n\na,0.5\n", r"t\.csv, line 2: 2 cells for 3 columns: put back the file"),
        ("name,x,n\na,0.5,1\nb,0.5,1,9\n", r"t\.csv, line 3: 4 cells for 3 columns"),
        ("name,x,n\na,half,1\n", r"t\.csv, line 2: x 'half' is no number: put back"),
        ('name,x,n\n"two\nlines",0.5,n/a\n', r"line 3: n 'n/a' is no whole number: put back"),
        ("name,x\na,0.5\n", r"t\.csv: no column n; it has name, x"),
        ("", r"t\.csv, line 1: no header"),
    ],
)
def test_a_damaged_table_is_refused(text: str, why: str, tmp_path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(Refusal, match=why):
        [(row.number("x"), row.count("n")) for row in read_table(tmp_path / "t.csv")]


def test_a_table_is_whole_or_as_it_was(tmp_path) -> None:
    path = tmp_path / "t.csv"
    write_table(path, ("x",), [[0.5]])
    with pytest.raises(ValueError, match=r"t\.csv: 2 cells for 1 columns"):
        write_table(path, ("x",), [[0.25], [1, 2]])
    assert path.read_bytes() == b"x\n0.5\n" and [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@dataclass(frozen=True)
class Rate:
    label: str
    value: float
    n: int
    note: str = ""


def test_rows_come_back_as_what_they_were(tmp_path) -> None:
    path, rows = tmp_path / "t.csv", [Rate("a", 0.1, 3, "x"), Rate("n/a", 2.0, 0, "y")]
    write_rows(path, ("n", "label", "value"), rows, {"label": "class"})
    assert columns_of(path) == ("n", "class", "value")
    assert read_rows(path, Rate, {"class": "label"}) == [Rate("a", 0.1, 3), Rate("n/a", 2.0, 0)]
    with pytest.raises(Refusal, match="columns n, class, value, expected label, value, n, note"):
        read_rows(path, Rate)
    path.write_text("label,value\na,0.5\n")
    with pytest.raises(Refusal, match="columns label, value, expected label, value, n, note"):
        read_rows(path, Rate)
    assert read_rows(tmp_path / "none.csv", Rate) == []

"""Tables of a page from its files, and the main numbers of a folder: against pages and files written by hand."""

import bz2
import json
import math

import pytest

from adapt.benchmark.report import at_a_glance as of_benchmark
from adapt.benchmark.timing import Ratio
from adapt.errors import Refusal
from adapt.evaluation.metrics import Cell
from adapt.evaluation.replicates import ALL
from adapt.sweeps import frontier
from adapt.sweeps.at_a_glance import Glance, at_a_glance
from adapt.sweeps.tables_again import recipe_of, same_but_rounding, study_of, tables_again, tables_of, with_tables
from adapt.understanding.item import Numbers, Value, read_csv, write_csv

PAGE = """\
# Results

| a | b |
| --- | --- |
| x | 0.500 |

Words | with a bar.

## One

| a |
| --- |
| 1.000 |

### Deep

| a |
| --- |
| 2.000 |

| a |
| --- |
| 3.000 |

## Two

| a |
| --- |
| 4.000 |
"""


def test_recipes_are_known_by_either_command() -> None:
    assert recipe_of("python recipes/lora.py --seed 3") == recipe_of("adapt run lora --seed 3") == "lora"
    assert recipe_of("adapt benchmark --stages heads") == ""


def test_tables_are_found_by_their_headings() -> None:
    found = tables_of(PAGE)
    assert list(found) == [("", ""), ("One", ""), ("One", "Deep"), ("Two", "")]
    assert [len(tables) for tables in found.values()] == [1, 1, 2, 1]
    assert found["One", "Deep"][1] == "| a |\n| --- |\n| 3.000 |"


def test_a_table_is_replaced_in_its_place_and_the_rest_of_the_page_stays() -> None:
    again = {
        ("One", ""): ["| a |\n| --- |\n| 1.001 |"],  # rounding
        ("One", "Deep"): ["| a |\n| --- |\n| 2.000 |", "| a | new |\n| --- | --- |\n| 3.000 | 9 |"],
        ("Two", ""): ["| a |\n| --- |\n| 4.000 |", "one too many"],
        ("Elsewhere", ""): ["| never |"],
    }
    page, stay = with_tables(PAGE, again)
    assert page == PAGE.replace("| a |\n| --- |\n| 3.000 |", "| a | new |\n| --- | --- |\n| 3.000 | 9 |")
    assert stay == ["first table", "Two"]
    assert with_tables(PAGE, tables_of(PAGE)) == (PAGE, [])


def test_rounding_is_one_in_the_third_digit_and_the_same_words() -> None:
    assert same_but_rounding("x 0.500 [0.400, 0.600]", "x 0.501 [0.399, 0.600]")
    assert not same_but_rounding("x 0.500", "x 0.502") and not same_but_rounding("x 0.500", "y 0.500")
    assert not same_but_rounding("n/a", "0.500")


def test_points_of_a_frontier_come_back_from_a_compressed_file(tmp_path) -> None:
    def cell(view, label, value):
        return Cell(ALL, view, label, "auc", value, value - 0.1, value + 0.1, 55, 220)

    def point(name, parameters, value):
        aucs = {
            (view, kind): cell(view, label, value + i / 100)
            for i, view in enumerate((frontier.MEAN, "none", "qf40"))
            for kind, label in frontier.KINDS.items()
        }
        return frontier.Point(name, 0.004, parameters, 1.53, 1195, aucs)

    points = [point("norm", 4033, 0.25), point("lora-all-8", 110785, 0.75)]
    frontier.write_csv(tmp_path / "frontier.csv", points)
    written = (tmp_path / "frontier.csv").read_bytes()
    assert frontier.read_csv(tmp_path / "frontier.csv") == points
    (tmp_path / "frontier.csv").unlink()
    (tmp_path / "frontier.csv.bz2").write_bytes(bz2.compress(written))
    assert frontier.read_csv(tmp_path / "frontier.csv") == points
    found = at_a_glance(tmp_path, {"command": "python recipes/frontier.py"})
    assert found.auc("seen", "none") == "norm: 0.260 [0.160, 0.360]<br>lora-all-8: 0.760 [0.660, 0.860]"
    assert found.images == "seen 55 + 220, unseen 55 + 220"


def test_a_line_shows_means_over_draws_at_the_most_shots(tmp_path) -> None:
    lines = ["method,shots,draw,set,view,generator,metric,value,low,high,n_real,n_fake"]
    for shots, draw, value in ((1, 0, 0.1), (16, 0, 0.5), (16, 1, 0.8)):
        for metric in ("auc", "recall"):
            lines.append(f"tip,{shots},{draw},all,none,mean:seen,{metric},{value},n/a,n/a,10,40")
    lines.append("zero-shot,0,0,all,none,mean:seen,auc,0.6,0.5,0.7,10,40")
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    found = at_a_glance(tmp_path, {"command": "adapt run tip_adapter"})
    assert found.auc("seen", "none") == (
        "tip, 16 shots: 0.650 [0.500, 0.800]<br>zero-shot, 0 shots: 0.600 [0.600, 0.600]"
    )
    assert found.auc("unseen", "none") == "tip, 16 shots: n/a<br>zero-shot, 0 shots: n/a"
    assert found.images == "seen 10 + 40" and found.spread


def test_a_folder_without_its_numbers_is_refused_or_has_a_line_without_any(tmp_path) -> None:
    (tmp_path / "provenance.json").write_text('{"command": "adapt run lora"}')
    with pytest.raises(Refusal, match=r"metrics\.csv is missing: put it back"):
        tables_again(tmp_path)
    assert at_a_glance(tmp_path, {"command": "adapt run reproduce"}) == Glance()
    (tmp_path / "metrics.csv").write_text("head,rows\nsvm,1\n")
    with pytest.raises(Refusal, match=r"metrics\.csv: no column `set`"):
        study_of(tmp_path)


def test_numbers_of_an_item_come_back(tmp_path) -> None:
    cells = {("r", "c"): Value(0.5, 0.25, 0.75, 12), ("r", "d"): "a word", ("s", "c"): Value(math.nan, n=3)}
    tables = [Numbers("First", "", cells), Numbers("Second", "", {("r", "c"): Value(1.5, 1.0, 2.0, 4)})]
    write_csv(tmp_path / "item.csv", tables)
    found = read_csv(tmp_path / "item.csv")
    assert [numbers.caption for numbers in found] == ["First", "Second"]
    assert [numbers.table() for numbers in found] == [numbers.table() for numbers in tables]
    assert found[0].cells["r", "c"] == cells["r", "c"] and json.dumps(found[0].cells["s", "c"].n) == "3"


def test_a_benchmark_at_a_glance_counts_its_goals() -> None:
    def ratio(stage, case, ours, goal=None):
        return Ratio(stage, case, ours, "plain", (1.0, 1.0), (2.0, 3.0), goal=goal)

    lines = of_benchmark([ratio("a", "x", "ours", 2.0), ratio("a", "y", "more", 9.0), ratio("b", "z", "ours")])
    assert lines == [
        "goals met: 1 of 2",
        "a, x: ours against plain 2.5 [2, 3]",
        "b, z: ours against plain 2.5 [2, 3]",
    ]

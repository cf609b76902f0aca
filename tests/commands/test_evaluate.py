"""`adapt evaluate` from the command line: tables as first words, flags that name columns, pages and refusals."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adapt import __main__ as program
from adapt.commands import evaluate
from adapt.commands.evaluate import Config
from adapt.errors import Refusal

N = 200
FAKE = np.arange(N) % 2 == 1
SHIFT = {"good": 1.5, "weak": 0.1}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two detectors on the same images, under two views; names of columns that nobody could guess."""
    for number, (name, shift) in enumerate(SHIFT.items()):
        for view, harm in (("clean", 0.0), ("q40", 0.2)):
            rng = np.random.default_rng([number, int(10 * harm)])
            logit = rng.normal(size=N) + (shift - harm) * FAKE - 0.3
            with (tmp_path / f"{name}-{view}.csv").open("w", newline="") as file:
                out = csv.writer(file, lineterminator="\n")
                out.writerow(("name", "what", "model", "level", "scene"))
                for i in range(N):
                    row = (f"{i}.png", "ai" if FAKE[i] else "human", "sd" if i % 4 == 1 else "mj" if FAKE[i] else "")
                    out.writerow((*row, f"{logit[i]:.6f}", i // 4))
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMED = "--score level --label what --path name --generator model --group_by scene --resamples 40"


def adapt(monkeypatch, words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["adapt", "evaluate", *words.split()])
    program.main()


def scores_of(path: Path) -> np.ndarray:
    with path.open() as file:
        return np.array([float(row["level"]) for row in csv.DictReader(file)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_table_of_a_stranger(folder, monkeypatch, capsys) -> None:
    adapt(monkeypatch, f"good-clean.csv {NAMED} --output_dir out")
    said, page = capsys.readouterr().out, (folder / "out/table.md").read_text(encoding="utf-8")
    taken = (
        "good-clean.csv: 200 rows, 100 fake; path from 'name', label from 'what' (human is real; ai is fake), "
        "generator from 'model', group from 'scene', score from 'level' (logits, higher is fake)"
    )
    nothing = "for no column says which rows validate: every row is a test row, and nothing was fitted"
    for told in (taken, f"threshold: logit 0 (p_fake 0.500), {nothing}"):
        assert told in said
    assert f"- {taken}" in page and f"threshold: logit 0 (p_fake 0.5), {nothing}" in page
    assert (
        "Nothing was fitted: every row is a test row. One threshold, logit 0 (p_fake 0.5), serves all views." in page
    )
    assert "frozen" not in page and "validation rows; give" not in page and "(by --threshold)" not in page
    assert "no column \\`seen\\` says what the detector was trained on" in page and "warning" not in said
    found = {(row["generator"], row["metric"]): row for row in rows_of(folder / "out/metrics.csv") if not row["set"]}
    logit = scores_of(folder / "good-clean.csv")
    for generator, number in (("sd", 1), ("mj", 3)):
        rows = ~FAKE | (np.arange(N) % 4 == number)
        own = float(found[generator, "auc"]["value"])
        assert own == pytest.approx(roc_auc_score(FAKE[rows], logit[rows]), abs=1e-12)
    assert float(found["real", "false_alarm"]["value"]) == np.mean(logit[~FAKE] >= 0)


def test_a_given_threshold_is_said_and_used_for_all_tables(folder, monkeypatch, capsys) -> None:
    adapt(monkeypatch, f"good-clean.csv {NAMED} --threshold 0.5 --compare weak-clean.csv --output_dir out")
    page = (folder / "out/table.md").read_text(encoding="utf-8")
    assert "threshold: logit 0.5 (p_fake 0.622), given" in capsys.readouterr().out
    assert "logit 0.500, given (by --threshold), not picked on these rows" in page
    assert "frozen" not in page and "nothing was fitted" not in page
    rows = {(r["generator"], r["metric"]): r for r in rows_of(folder / "out/comparison.csv") if r["set"] == "all"}
    for side, name in (("a", "good"), ("b", "weak")):
        assert float(rows["real", "false_alarm"][side]) == np.mean(
            scores_of(folder / f"{name}-clean.csv")[~FAKE] >= 0.5
        )


def test_several_tables_are_compared_pairwise(folder, monkeypatch, capsys) -> None:
    (folder / "third.csv").write_text("\n".join((folder / "weak-clean.csv").read_text().splitlines()[:181]))
    adapt(monkeypatch, f"good-clean.csv weak-clean.csv third.csv {NAMED} --names good weak third --output_dir out")
    said, page = capsys.readouterr().out, (folder / "out/table.md").read_text(encoding="utf-8")
    left = "20 rows stand in this table but not in all: left out, 180 are compared"
    assert f"good: {left}" in said and f"- {left}" in page and "third: 20 rows" not in said
    assert re.search(r"none  AUC +good +weak +\+0\.\d{3} \[\+0\.\d{3}, \+0\.\d{3}\]  < 0\.001  surely", said)
    assert re.search(r"none  AUC +weak +third +\+0\.000 \[-0\.\d{3}, \+0\.\d{3}\]  1\.000    not told apart", said)
    assert "every row is a test row, and nothing was fitted" in page and "| none | sd |" in page
    kept = np.arange(N) < 180
    rows = {(r["detector"], r["generator"], r["metric"]): r for r in rows_of(folder / "out/detectors.csv")}
    for name in ("good", "weak"):
        own = roc_auc_score(FAKE[kept], scores_of(folder / f"{name}-clean.csv")[kept])
        assert float(rows[name, "pooled:all", "auc"]["value"]) == pytest.approx(own, abs=1e-12)
    pairs = {(r["a"], r["b"]) for r in rows_of(folder / "out/differences.csv")}
    assert pairs == {("good", "weak"), ("good", "third"), ("weak", "third")}
    written = {name: (folder / "out" / name).read_bytes() for name in ("table.md", "detectors.csv", "differences.csv")}
    adapt(monkeypatch, f"good-clean.csv weak-clean.csv third.csv {NAMED} --names good weak third --output_dir out")
    assert {name: (folder / "out" / name).read_bytes() for name in written} == written


def test_two_tables_give_the_numbers_of_compare(folder, monkeypatch) -> None:
    adapt(monkeypatch, f"good-clean.csv weak-clean.csv {NAMED} --output_dir several")
    adapt(monkeypatch, f"--scores good-clean.csv --compare weak-clean.csv {NAMED} --output_dir compared")
    old, new = rows_of(folder / "compared/comparison.csv"), rows_of(folder / "several/differences.csv")
    names = {"a": "value_a", "b": "value_b"}
    assert len(old) > 50
    assert old == [{name: row[names.get(name, name)] for name in old[0]} for row in new]


def test_a_table_a_view(folder, monkeypatch, capsys) -> None:
    adapt(monkeypatch, f"--views none=good-clean.csv qf40=good-q40.csv {NAMED} --output_dir out")
    assert re.search(r"^none .*\nqf40 ", capsys.readouterr().out, re.MULTILINE)
    rows = {(r["view"], r["generator"], r["metric"]): r for r in rows_of(folder / "out/metrics.csv")}
    for view, name in (("none", "clean"), ("qf40", "q40")):
        own = roc_auc_score(FAKE, scores_of(folder / f"good-{name}.csv"))
        assert float(rows[view, "pooled:all", "auc"]["value"]) == pytest.approx(own, abs=1e-12)


def test_an_auc_that_is_surely_below_a_half_is_warned_of(folder, monkeypatch, capsys) -> None:
    adapt(monkeypatch, f"good-clean.csv {NAMED} --fake_is human --output_dir out")
    said = capsys.readouterr().out
    assert re.search(r"warning: good-clean, view none: AUC 0\.\d+ \[0\.\d+, 0\.\d+\] is surely below 0\.5", said)
    assert "warning" in (folder / "out/table.md").read_text(encoding="utf-8")
    adapt(monkeypatch, f"good-clean.csv weak-clean.csv {NAMED} --higher_is real --output_dir out")
    said = capsys.readouterr().out
    assert "warning: good-clean, view none" in said and "warning: weak-clean" not in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "give tables of scores, as `adapt evaluate scores.csv`, or --views NAME=FILE"),
        ("a.csv --views none=b.csv", "one of both"),
        ("--views none", "--views none: give NAME=FILE"),
        ("a.csv x/a.csv", "two detectors are called 'a': give each its own name with --names"),
        ("a.csv b.csv --names one", "--names one: give one for each of the 2 tables"),
        ("a.csv b.csv --compare c.csv", "--compare goes with one table of scores"),
        ("a.csv b.csv --error_rate 0.1", "--error_rate goes with one table of scores"),
        ("metrics.csv", "metrics.csv would be written over: rename it, or give another folder with --output_dir"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(monkeypatch, capsys, tmp_path, words, says) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "metrics.csv"):
        Path(name).write_text("path,label,score\na,0,0.1\nb,1,0.2\n")
    with pytest.raises(SystemExit) as end:
        adapt(monkeypatch, words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and says in said and said.count("\n") == 1
    assert Path("metrics.csv").read_text().startswith("path")


def test_results_of_the_three_formats_are_the_same_bytes(folder, monkeypatch) -> None:
    from adapt.evaluation.score_files import read_pieces

    pa = pytest.importorskip("pyarrow")
    import json

    import pyarrow.parquet as pq

    (piece,) = read_pieces(folder / "good-clean.csv")
    rows = [dict(zip(piece.cells, row, strict=True)) for row in zip(*piece.cells.values(), strict=True)]
    rows = [row | {"level": None if i == 7 else float(row["level"])} for i, row in enumerate(rows)]
    (folder / "good-clean.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), folder / "good-clean.parquet")
    lines = (folder / "good-clean.csv").read_text().splitlines()
    lines[8] = re.sub(r",[-.\d]+,(\d+)$", r",,\1", lines[8])
    (folder / "good-clean.csv").write_text("\n".join(lines))
    found = {}
    for suffix in ("csv", "jsonl", "parquet"):
        adapt(monkeypatch, f"good-clean.{suffix} {NAMED} --output_dir {suffix}")
        found[suffix] = (folder / suffix / "metrics.csv").read_bytes()
    assert found["csv"] == found["jsonl"] == found["parquet"] and b"unreadable" in found["csv"]


def test_no_slow_library_is_imported_for_several_tables(folder) -> None:
    import subprocess

    code = (
        f"import sys; sys.argv = ['adapt', 'evaluate', 'good-clean.csv', 'weak-clean.csv', *{NAMED.split()!r}]\n"
        "from adapt.__main__ import main\nmain()\n"
        "print('loaded:', sorted({'torch', 'open_clip', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    env = {**__import__("os").environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_saved_config_with_one_table_is_read_as_before(tmp_path, monkeypatch) -> None:
    (tmp_path / "c.yaml").write_text("scores: s.csv\nthreshold: [0.5]\n")
    monkeypatch.setattr(sys, "argv", ["adapt", "--config", str(tmp_path / "c.yaml")])
    found: list[Config] = []
    evaluate.run(found.append, Config, "words")
    assert found[0] == Config((Path("s.csv"),), threshold=(0.5,))
    with pytest.raises(Refusal, match="--threshold 1 2: give one for all 3 tables, or one for each of them"):
        Config((Path("a.csv"), Path("b.csv"), Path("c.csv")), threshold=(1.0, 2.0))

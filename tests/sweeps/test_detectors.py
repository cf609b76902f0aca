"""Detectors from elsewhere in an ablation, end to end: a saved and an imported one beside methods of the sweep."""

import contextlib
import dataclasses
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import ablation as recipe
import linear_probe
import numpy as np
import pytest
import tip_adapter  # noqa: F401 (as open_clip below: loaded once here, inherited by every child)
import torch
from processes import in_children

import adapt.training.report
from adapt.__main__ import main as adapt
from adapt.cli import parse
from adapt.commands import test as test_command  # noqa: F401
from adapt.detector.detector import detector_digest, load_detector
from adapt.errors import Refusal
from adapt.evaluation.metrics import Cell, index
from adapt.evaluation.scores import Scores
from adapt.evaluation.side_by_side import MEAN, METADATA, read_numbers
from adapt.number_table import read_rows
from adapt.pages import leaderboard
from adapt.sweeps import planned_runs
from adapt.sweeps.at_a_glance import at_a_glance
from adapt.sweeps.detectors import gathered, read_detectors, runs_of
from adapt.sweeps.tables_again import tables_again, tables_of

VIEWS = ("none", "qf65")
METHODS = (
    ("logistic", "tip_adapter", {"layer": "proj", "shots": (16,), "draws": 1, "methods": ("logistic",)}, 0.1),
    ("labels-permuted", "linear_probe", {"layer": "proj", "permutations": 3}, 0.1),
)
ROWS = ("lora-2", "univfd")  # a method of the recipe is called lora


def forked(command: list[str], log: Path, *_) -> int:
    """A run in a child of this process: a real start would import everything again."""
    words = command[1:]
    if words[:2] == ["-m", "adapt"]:
        module, flags = importlib.import_module(f"adapt.commands.{words[2]}"), words[3:]
    else:
        module, flags = importlib.import_module(Path(words[0]).stem), words[1:]

    def run() -> None:
        with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            module.main(parse(module.Config, flags))

    return in_children(run)[0]


@pytest.fixture(scope="module")
def config(planted, tmp_path_factory) -> recipe.Config:
    """Of a finished sweep: a probe that never met `codebook`, and an imported head whose training nobody says."""
    root = tmp_path_factory.mktemp("elsewhere")
    given = {"manifest": (str(planted),), "test_views": VIEWS, "resamples": 20, "num_workers": 0}
    linear_probe.main(
        linear_probe.Config(
            **given, output_dir=root / "lora", cache=root / "features", layer="proj", train_views=VIEWS,
            leave_out=("codebook",),
        )
    )  # fmt: skip
    torch.manual_seed(0)
    torch.save({"weight": torch.randn(1, 128), "bias": torch.zeros(1)}, root / "fc_weights.pth")
    with pytest.MonkeyPatch.context() as patch:
        words = ["import", "univfd", root / "fc_weights.pth", "--output", root / "univfd", "--backbone", "tiny"]
        patch.setattr(sys, "argv", ["adapt", *map(str, words)])
        adapt()
        patch.setattr(recipe, "METHODS", METHODS)
        patch.setattr(recipe, "ONCE", ("labels-permuted",))
        patch.setattr(planned_runs, "_run", forked)
        asked = recipe.Config(
            **given, output_dir=root / "page", train_on=("none,qf65",), seeds=(0, 1), cache=root / "features",
            detectors=(str(root / "lora" / "detector"), str(root / "univfd")),
        )  # fmt: skip
        recipe.main(asked)
        yield asked


def of_run(config: recipe.Config, row: str) -> dict:
    return index(read_rows(config.output_dir / f"detector-{row}" / "metrics.csv", Cell))


def numbers_of(config: recipe.Config, row: str) -> dict:
    return {n.place: n for n in read_numbers(config.output_dir / "ablation.csv") if n.method == row}


@pytest.mark.parametrize("row", ROWS)
def test_numbers_and_intervals_are_those_of_adapt_test(config, row) -> None:
    ours, theirs, compared = numbers_of(config, row), of_run(config, row), 0
    for place, cell in theirs.items():
        number = ours.get(place)
        if number is not None and cell.metric != "ece":
            found = (number.value, number.low, number.high, number.n_fake)
            assert found == pytest.approx((cell.value, cell.low, cell.high, cell.n_fake), abs=1e-9, nan_ok=True), place
            compared += 1
    assert compared > 30
    known = {label for _, view, label, metric in ours if (view, metric) == ("none", "auc")}
    seen = {"mean:seen", "mean:unseen", "sample:unseen"}
    assert not known & seen if row == "univfd" else seen <= known
    metric = "false_alarm"
    scores = Scores.read(config.output_dir / f"detector-{row}" / "scores.parquet")
    place = config.detectors[ROWS.index(row)]
    alarms = scores["logit"][~scores.fake & (scores["view"] == "none") & (scores["edit"] == "")]
    rate = np.mean(alarms >= load_detector(place).threshold)
    assert ours["all", "none", "real", metric].value == pytest.approx(rate)


def test_who_was_trained_on_what(config) -> None:
    met = {row: {n.generator: n.met for n in numbers_of(config, row).values() if n.set == "embedded"} for row in ROWS}
    ours = {n.generator: n.met for n in numbers_of(config, "logistic").values() if n.set == "embedded"}
    assert ours["codebook"] == "train" and met["lora-2"] == ours | {"codebook": ""}
    assert set(met["univfd"].values()) == {"unknown"}
    found = {one.name: one for one in read_detectors(config.output_dir)}
    assert found["univfd"].trained_on == "" and found["univfd"].training.startswith("ProGAN of 20 LSUN classes")
    assert found["univfd"].method == "UniversalFakeDetect (arXiv:2302.10174), licence MIT"
    assert found["univfd"].threshold == 0 and found["univfd"].threshold_from.startswith("as published, at p = 0.5")
    page = (config.output_dir / "detector-univfd" / "table.md").read_text(encoding="utf-8")
    assert "Threshold 0.0000, as published, at p = 0.5." in page and "frozen when" not in page
    assert "validation images" in found["lora-2"].threshold_from and found["lora-2"].method == ""
    for row, place in zip(ROWS, config.detectors, strict=True):
        assert (found[row].digest, found[row].base) == (detector_digest(place), "tiny")


def test_what_a_user_says_of_the_training_is_handed_on(config) -> None:
    asked = dataclasses.replace(config, trained_on=("univfd=grid,biggan", "lora-2=grid"))
    other, told = gathered(asked, recipe.NAMES)
    assert (other.name, other.trained_on, told.trained_on) == ("lora-2", "grid", "grid, biggan")
    assert "gan" in told.families.split(", ")
    runs = runs_of(asked, [other, told], config.output_dir.with_name("new"))
    flags = [run.flags["trained_on"] for of_row in runs.values() for run in of_row]
    assert flags == [("lora=grid",), ("univfd=grid,biggan",)]  # alone, each has the name of its folder or run


def test_the_page_shows_them_between_methods_and_controls(config) -> None:
    numbers = read_numbers(config.output_dir / "ablation.csv")
    head = leaderboard.headline(numbers)
    rows = {row[0].value: dict(zip(head.titles, row, strict=True)) for row in head.rows}
    assert list(rows) == ["logistic", *ROWS, "labels-permuted", METADATA[0]] and list(head.lines) == [1, 3]
    assert [rows[name]["seeds"].value for name in ("logistic", *ROWS)] == ["2", "none", "none"]
    for title in ("AUC, seen, none", "AUC, unseen, mean", "AUC, unseen, worst", "Balanced accuracy, seen, qf65"):
        assert rows["univfd"][title].value == "n/a" != rows["lora-2"][title].value
    assert all(rows[name]["AUC, all, mean"].value != "n/a" for name in rows)
    assert all(rows[name]["ECE, equal terms"].value == "n/a" for name in ROWS)
    marked = {name for name in rows if rows[name]["AUC, all, mean"].mark}
    assert marked <= {"logistic", *ROWS} and marked  # the trained probe is far above heads of random weights
    assert "univfd" not in marked
    seen = {name for name in rows for title in head.titles if "seen" in title and rows[name][title].mark}
    assert not seen & set(ROWS)  # means over other generators are compared with nobody's
    worst = rows["lora-2"]["AUC, unseen, worst"].note
    own = {n.generator: n for n in numbers_of(config, "lora-2").values() if n.set == "embedded" and n.view == MEAN}
    assert worst == min((n for n in own.values() if n.met == ""), key=lambda n: n.value).generator
    page = (config.output_dir / "table.md").read_text(encoding="utf-8")
    assert "## Detectors from elsewhere" in page and "UniversalFakeDetect (arXiv:2302.10174), licence MIT" in page
    assert "| not known |" in page and f"adapt test --detector {config.detectors[1]}" in page
    for name in ("report.html", "ablation.tex"):
        text = (config.output_dir / name).read_text(encoding="utf-8")
        assert "Detectors from elsewhere" in text and "UniversalFakeDetect" in text
    html = (config.output_dir / "report.html").read_text(encoding="utf-8")
    assert "fakes, seen or not called fake" in html and "methods with the best AUC on all generators" in html


def test_the_page_comes_from_its_csv_files(config) -> None:
    page = tables_of((config.output_dir / "table.md").read_text(encoding="utf-8"))
    file = config.output_dir / "provenance.json"
    record = json.loads(file.read_text(encoding="utf-8")) | {"command": "python recipes/ablation.py"}  # not pytest
    file.write_text(json.dumps(record), encoding="utf-8")
    assert tables_again(config.output_dir) == page and ("Detectors from elsewhere", "") in page
    glance = at_a_glance(config.output_dir, record)
    assert not set(glance.aucs) & set(ROWS)
    value = numbers_of(config, "univfd")["all", "none", "mean:all", "auc"].value
    assert any(
        line.startswith(f"univfd, from elsewhere: AUC of all generators, none: {value:.3f}") for line in glance.others
    )


def test_started_again_nothing_is_scored_again_and_shards_know_them(config, capsys) -> None:
    files = list(config.output_dir.glob("detector-*/scores.parquet"))
    before = {file: file.stat().st_mtime_ns for file in files}
    page = (config.output_dir / "ablation.csv").read_bytes()
    recipe.main(dataclasses.replace(config, only=("detector-*",)))
    assert {file: file.stat().st_mtime_ns for file in files} == before and len(files) == len(ROWS)
    assert (config.output_dir / "ablation.csv").read_bytes() == page
    capsys.readouterr()
    recipe.main(dataclasses.replace(config, dry_run=True, shard=1, num_shards=2))
    said = capsys.readouterr().out
    assert re.search(r"\ndetector-lora-2 +finished .* min  adapt test --detector ", said)
    without = dataclasses.replace(config, detectors=())
    recipe.main(without)  # the methods alone: their numbers are what they were
    alone = {(n.method, n.place): n for n in read_numbers(config.output_dir / "ablation.csv")}
    recipe.main(config)
    beside = {(n.method, n.place): n for n in read_numbers(config.output_dir / "ablation.csv")}
    for key, number in alone.items():  # as text, in which n/a equals n/a
        assert repr(dataclasses.replace(beside[key], mark="")) == repr(dataclasses.replace(number, mark="")), key
    assert (config.output_dir / "ablation.csv").read_bytes() == page


def test_what_cannot_stand_beside_is_refused_before_anything_runs(config, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    new = dataclasses.replace(config, output_dir=tmp_path / "page")
    with pytest.raises(Refusal, match=r"univfd: UniversalFakeDetect is not here: fetch .*adapt import univfd FILE"):
        recipe.main(dataclasses.replace(new, detectors=("univfd",)))
    with pytest.raises(Refusal, match="is not a complete detector directory"):
        recipe.main(dataclasses.replace(new, detectors=(str(tmp_path / "nothing"),)))
    with pytest.raises(Refusal, match="--trained_on other=grid: no detector has this name; there is lora-2"):
        dataclasses.replace(config, detectors=config.detectors[:1], trained_on=("other=grid",))
    with pytest.raises(Refusal, match="each once"):
        dataclasses.replace(new, detectors=config.detectors[:1] * 2)
    localiser = Path(shutil.copytree(config.detectors[1], tmp_path / "localiser"))
    record = json.loads((localiser / "detector.json").read_text(encoding="utf-8")) | {"head": {"type": "map"}}
    (localiser / "detector.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(Refusal, match="is a localiser, and this measures detectors of whole images"):
        recipe.main(dataclasses.replace(new, detectors=(str(localiser),)))
    assert not (tmp_path / "page").exists()
    file = Path(config.detectors[1]) / "detector.json"
    before = file.read_text(encoding="utf-8")
    file.write_text(before.replace('"threshold": 0.0', '"threshold": 0.5'), encoding="utf-8")
    with pytest.raises(Refusal, match=r"detector-univfd holds scores of another detector than .* is now: delete it"):
        recipe.main(config)
    file.write_text(before, encoding="utf-8")

"""Saved detectors on another labelled set: nothing is fitted there, and what cannot be computed says so."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path

import linear_probe
import numpy as np
import pytest
from processes import in_children
from sklearn.metrics import roc_auc_score

from adapt.commands import test as command
from adapt.data.manifest import Manifest
from adapt.detector import scored_parts
from adapt.detector.detector import load_detector, logits_of, score
from adapt.detector.names import names_of
from adapt.errors import Refusal
from adapt.evaluation.metrics import Cell, evaluate, index
from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import pick_threshold
from adapt.number_table import read_rows

VIEWS = ("none", "qf65")


@pytest.fixture(scope="module")
def trained(planted, tmp_path_factory) -> Path:
    """Two runs: `all`, and `fewer`, an SVM that never met `codebook`."""
    root = tmp_path_factory.mktemp("trained")
    config = linear_probe.Config(
        manifest=(str(planted),), output_dir=root / "all", train_views=VIEWS, test_views=VIEWS,
        cache=root / "features", resamples=20, num_workers=0,
    )  # fmt: skip
    linear_probe.main(config)
    linear_probe.main(dataclasses.replace(config, output_dir=root / "fewer", head="svm", leave_out=("codebook",)))
    return root


def config(detector, manifest, output, **more) -> command.Config:
    detectors = tuple(map(str, detector if isinstance(detector, tuple) else (detector,)))
    return command.Config(
        detector=detectors,
        manifest=(str(manifest),),
        output_dir=output,
        views=VIEWS,
        resamples=20,
        num_workers=0,
        **more,
    )


def cells_of(folder: Path) -> dict:
    return index(read_rows(folder / "metrics.csv", Cell))


def rewritten(manifest: Path, name: str, keep, rename=lambda row: row) -> Path:
    """A copy of the table beside it, as text: rows that `keep`, changed by `rename`."""
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = [rename(row) for row in csv.DictReader(file) if keep(row)]
    path = manifest.with_name(name)
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, rows[0])
        out.writeheader()
        out.writerows(rows)
    return path


def test_scores_are_those_of_the_run_that_saved_the_detector(trained, planted, tmp_path, capsys) -> None:
    detector = trained / "all" / "detector"
    command.main(config(detector, planted, tmp_path / "run"))
    of_run = Scores.read(trained / "all" / "scores.parquet")
    of_run = of_run.select(of_run["split"] == "test")
    found = Scores.read(tmp_path / "run" / "scores.parquet")
    for column in ("path", "view", "generator", "group", "seen", "split"):
        assert list(found[column]) == list(of_run[column]), column
    np.testing.assert_allclose(found["logit"], of_run["logit"], rtol=0, atol=2e-6)
    rows = Manifest.read(planted)
    again = score(load_detector(detector), rows, np.flatnonzero(rows["split"] == "test"), VIEWS)
    np.testing.assert_array_equal(found["logit"], again["logit"])  # to the last bit
    ours, theirs = cells_of(tmp_path / "run"), cells_of(trained / "all")
    same = [key for key in theirs if key[3] in ("auc", "balanced_accuracy", "false_alarm", "recall")]
    assert len(same) > 50
    for key in same:
        assert ours[key].value == pytest.approx(theirs[key].value, nan_ok=True, abs=1e-9), key
    capsys.readouterr()
    command.main(config(detector, planted, tmp_path / "run"))  # nothing is done again
    assert "this run is complete" in capsys.readouterr().out
    with pytest.raises(Refusal, match="detectors"):
        command.main(config(trained / "fewer" / "detector", planted, tmp_path / "run"))


def test_the_threshold_is_the_frozen_one_though_there_are_validation_rows(trained, subtle, tmp_path) -> None:
    place = trained / "all" / "detector"
    command.main(config(place, subtle, tmp_path / "run"))
    detector, rows = load_detector(place), Manifest.read(subtle)
    at = cells_of(tmp_path / "run")
    threshold = at["all", "all", "pooled:val", "threshold"]
    assert threshold.value == pytest.approx(detector.threshold) and (threshold.n_real, threshold.n_fake) == (0, 0)
    refit = pick_threshold(score(detector, rows, np.flatnonzero(rows["split"] != "train"), VIEWS))
    assert abs(refit - detector.threshold) > 0.05  # so that a refit would be seen
    found = Scores.read(tmp_path / "run" / "scores.parquet")
    assert set(found["split"]) == {"test"}
    for view in VIEWS:
        real = (found["view"] == view) & ~found.fake & (found["edit"] == "")
        alarms = np.mean(found["logit"][real] >= detector.threshold)
        assert at["all", view, "real", "false_alarm"].value == pytest.approx(alarms)
    page = (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    val, train = (int((rows["split"] == split).sum()) for split in ("val", "train"))
    assert f"its {train} train and {val} val rows were left alone" in page
    assert "frozen when the detector was trained" in page and "picked on" not in page.partition("## Headline")[0]
    command.main(config(place, subtle, tmp_path / "given", threshold=(1.25,)))
    assert cells_of(tmp_path / "given")["all", "all", "pooled:val", "threshold"].value == 1.25
    assert "given by --threshold" in (tmp_path / "given" / "table.md").read_text(encoding="utf-8")


def test_photographs_alone_have_false_alarms(trained, planted, tmp_path) -> None:
    manifest = rewritten(planted, "reals.csv", lambda row: row["generator"] == "real" and row["split"] == "test")
    command.main(config(trained / "all" / "detector", manifest, tmp_path / "run"))
    whole = cells_of(trained / "all")
    at, page = cells_of(tmp_path / "run"), (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    for view in VIEWS:
        for label in ("real", "edit:all"):
            found, expected = (cells["all", view, label, "false_alarm"] for cells in (at, whole))
            assert (found.value, found.low) == pytest.approx((expected.value, expected.low), abs=1e-9)
        assert np.isnan(at["all", view, "mean:all", "auc"].value)
    assert "The test rows hold no fake: AUC, balanced accuracy and recall are n/a" in page
    assert re.search(r"\| real \| \d\.\d{3} \[", page) and "| none | n/a | n/a | n/a | n/a |" in page
    manifest.unlink()


def test_fakes_alone_of_an_unknown_name_have_recall(trained, planted, tmp_path) -> None:
    def renamed(row):
        return row | {"generator": "Brand New"} if row["generator"] == "grid" else row

    fakes = {"grid", "latent"}
    manifest = rewritten(planted, "fakes.csv", lambda r: r["generator"] in fakes and r["split"] == "test", renamed)
    command.main(config(trained / "all" / "detector", manifest, tmp_path / "run"))
    of_run = Scores.read(trained / "all" / "scores.parquet")
    threshold = load_detector(trained / "all" / "detector").threshold
    at, page = cells_of(tmp_path / "run"), (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    for view in VIEWS:
        for name, was in (("Brand New", "grid"), ("latent", "latent")):
            rows = (of_run["generator"] == was) & (of_run["view"] == view) & (of_run["split"] == "test")
            recall = np.mean(of_run["logit"][rows] >= threshold)
            (cell,) = [c for k, c in at.items() if k[1:] == (view, name, "recall")]
            assert cell.value == pytest.approx(recall) and cell.n_real == 0
    assert "never met Brand New" in page and "it was trained on latent of the generators here" in page
    assert "No readable unedited photograph is among the test rows" in page
    seen = Scores.read(tmp_path / "run" / "scores.parquet")
    assert dict(zip(seen["generator"], seen["seen"], strict=True)) == {"Brand New": "", "latent": "train"}
    manifest.unlink()


def test_two_detectors_are_compared_on_the_same_rows(trained, planted, tmp_path) -> None:
    both = (trained / "fewer" / "detector", trained / "all" / "detector")
    command.main(config(both, planted, tmp_path / "run"))
    tables = {name: Scores.read(tmp_path / "run" / name / "scores.parquet") for name in ("fewer", "all")}
    assert set(tables["fewer"]["seen"][tables["fewer"]["generator"] == "codebook"]) == {""}
    assert set(tables["all"]["seen"][tables["all"]["generator"] == "codebook"]) == {"train"}
    with (tmp_path / "run" / "all" / "comparison.csv").open() as file:
        found = {(r["view"], r["generator"], r["metric"]): r for r in csv.DictReader(file) if r["set"] == "all"}

    def auc(table: Scores, generators, view) -> float:
        each = []
        for name in generators:
            rows = (table["view"] == view) & (table["edit"] == "") & np.isin(table["generator"], ["real", name])
            each.append(roc_auc_score(table.fake[rows], table["logit"][rows]))
        return float(np.mean(each))

    trained_on = json.loads((both[1] / "detector.json").read_text())["facts"]["trained_on"]
    seen = sorted(set(trained_on) - {"real"})  # by one of them: codebook is in
    unseen = sorted(set(tables["all"]["generator"]) - {"real", *seen})
    assert "codebook" in seen and unseen
    for view in VIEWS:
        for label, generators in (("mean:seen", seen), ("mean:unseen", unseen)):
            row = found[view, label, "auc"]
            a, b = (auc(tables[name], generators, view) for name in ("all", "fewer"))
            assert float(row["value"]) == pytest.approx(a - b, abs=1e-6)
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    page = (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert "## all minus fewer" in page and "| fewer |" in page and "no method is better" in page
    for name, place in zip(("fewer", "all"), both, strict=True):  # each at its own threshold
        cell = cells_of(tmp_path / "run" / name)["all", "none", "mean:all", "balanced_accuracy"]
        expected = index(evaluate(tables[name], 0, threshold=load_detector(place).threshold))
        assert cell.value == pytest.approx(expected["all", "none", "mean:all", "balanced_accuracy"].value)


def without_training(detector: Path, folder: Path) -> Path:
    """The same detector, which does not say what it was trained on."""
    shutil.copytree(detector, folder)
    record = json.loads((folder / "detector.json").read_text())
    del record["facts"]["trained_on"]
    (folder / "detector.json").write_text(json.dumps(record))
    return folder


def test_where_nobody_says_what_it_was_trained_on_nothing_is_seen_or_unseen(trained, planted, tmp_path) -> None:
    place = without_training(trained / "all" / "detector", tmp_path / "silent")
    command.main(config(place, planted, tmp_path / "run"))
    scores, at = Scores.read(tmp_path / "run" / "scores.parquet"), cells_of(tmp_path / "run")
    assert set(scores["seen"][scores.fake]) == {"unknown"}
    page, theirs = (tmp_path / "run" / "table.md").read_text(encoding="utf-8"), cells_of(trained / "all")
    for view in VIEWS:
        for label in ("mean:seen", "mean:unseen"):
            assert np.isnan(at["all", view, label, "auc"].value) and theirs["all", view, label, "auc"].value > 0.5
        for metric in ("auc", "balanced_accuracy"):  # of all: the same, whoever trained it
            ours, of_run = (cells["all", view, "mean:all", metric] for cells in (at, theirs))
            assert (ours.value, ours.low) == pytest.approx((of_run.value, of_run.low), abs=1e-9)
    assert not any(key[2].startswith(("sample:unseen", "mean:unseen-")) for key in at)
    assert "no generator here counts as seen or as unseen" in page and "--trained_on silent=" in page
    auc = f"{at['all', 'none', 'mean:all', 'auc'].value:.3f}"
    assert "| view | AUC seen | AUC unseen | AUC all |" in page and f"| none | n/a | n/a | {auc} [" in page
    assert "| not known |" in page and "counts as unseen" not in page

    names = json.loads((trained / "all" / "detector" / "detector.json").read_text())["facts"]["trained_on"]
    told = config(place, planted, tmp_path / "told", trained_on=(f"silent={','.join(names)}",))
    command.main(told)  # as if it had said so itself
    same = [key for key in theirs if key[3] in ("auc", "recall")]
    assert {k: cells_of(tmp_path / "told")[k].value for k in same} == pytest.approx(
        {k: theirs[k].value for k in same}, abs=1e-9, nan_ok=True
    )
    assert "By --trained_on, it was trained on" in (tmp_path / "told" / "table.md").read_text(encoding="utf-8")

    command.main(config((trained / "fewer" / "detector", place), planted, tmp_path / "both"))
    with (tmp_path / "both" / "silent" / "comparison.csv").open() as file:
        found = {(r["generator"], r["metric"]): r for r in csv.DictReader(file) if r["view"] == "none"}
    assert found["mean:unseen", "auc"]["value"] == "n/a" != found["mean:seen", "auc"]["value"]
    assert "AUC, all generators" in (tmp_path / "both" / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("other=grid",), "no detector has this name; there is all"),
        (("all",), "give NAME=GENERATOR,GENERATOR; names are all"),
        (("all=",), "give NAME=GENERATOR,GENERATOR"),
        (("all=grid", "all=latent"), "all stands twice"),
    ],
)
def test_what_does_not_say_a_training_is_refused(tmp_path, words, message) -> None:
    with pytest.raises(Refusal, match=message):
        config("runs/all/detector", "x.csv", tmp_path, trained_on=words)


def test_a_killed_run_continues_to_the_same_bytes(trained, planted, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(scored_parts, "BATCHES", 1)
    place = trained / "all" / "detector"
    command.main(config(place, planted, tmp_path / "whole"))
    calls: list[int] = []

    def counts(*words, **flags):
        calls.append(len(words[2]))
        return logits_of(*words, **flags)

    def dies(*words, **flags):
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return counts(*words, **flags)

    monkeypatch.setattr(scored_parts, "logits_of", dies)
    assert in_children(lambda: command.main(config(place, planted, tmp_path / "killed"))) == [-signal.SIGKILL]
    assert not (tmp_path / "killed" / "scores.parquet").exists()
    lines = (tmp_path / "killed" / "scores.parts.jsonl").read_text().splitlines()
    scored = sum(len(json.loads(line)["logits"]) for line in lines[1:])
    changed = dataclasses.replace(config(place, planted, tmp_path / "killed"), views=("none",))
    assert in_children(lambda: command.main(changed)) == [1]  # refused: these are scores under other views
    monkeypatch.setattr(scored_parts, "logits_of", counts)
    command.main(config(place, planted, tmp_path / "killed"))
    rows = Manifest.read(planted)
    assert scored + sum(calls) == (rows["split"] == "test").sum() and scored > 0  # no part twice
    one, other = ((tmp_path / name / "scores.parquet").read_bytes() for name in ("whole", "killed"))
    assert one == other
    assert not (tmp_path / "killed" / "scores.parts.jsonl").exists()


def test_what_cannot_be_measured_is_refused(trained, planted, tmp_path) -> None:
    place = trained / "all" / "detector"
    manifest = rewritten(planted, "train.csv", lambda row: row["split"] == "train")
    with pytest.raises(Refusal, match="has no row of split test"):
        command.main(config(place, manifest, tmp_path / "run"))
    manifest.unlink()
    with pytest.raises(Refusal, match="unknown step 'blurry'"):
        command.main(dataclasses.replace(config(place, planted, tmp_path / "run"), views=("blurry",)))
    with pytest.raises(Refusal, match="give one logit, or one for each of the 1 detectors"):
        config(place, planted, tmp_path / "run", threshold=(0.0, 1.0))
    with pytest.raises(Refusal, match="each once"):
        config((place, place), planted, tmp_path / "run")
    with pytest.raises(Refusal, match="is not a complete detector"):
        command.main(config(tmp_path / "nothing", planted, tmp_path / "run"))
    record = json.loads((place / "detector.json").read_text())
    localiser = tmp_path / "localiser"
    localiser.mkdir()
    (localiser / "head.safetensors").write_bytes((place / "head.safetensors").read_bytes())
    (localiser / "detector.json").write_text(json.dumps(record | {"head": {"type": "map"}}))
    with pytest.raises(Refusal, match=r"is a localiser.*adapt predict --detector .*localiser --maps FOLDER"):
        command.main(config(localiser, planted, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_names_are_those_of_runs() -> None:
    places = ["results/lora/detector", "other/lora/detector", "hf-hub:owner/name@v1"]
    assert names_of(places) == ["lora", "lora-2", "name@v1"]
    assert names_of([*places, "lora-2"], taken=("lora",)) == ["lora-2", "lora-3", "name@v1", "lora-2-2"]

"""Every recipe through its real `main`: it finds a planted artefact, and nothing where there is nothing to find."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import lora
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adapt.commands import evaluate
from adapt.data.manifest import Manifest
from adapt.detector.detector import load_detector, score
from adapt.evaluation.decision import fit_decision
from adapt.evaluation.permutation import Reached
from adapt.evaluation.scores import Scores
from adapt.number_table import read_rows
from adapt.training import classes, report
from adapt.training.report import GIVEN

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config(planted, tmp_path_factory) -> lora.Config:
    return lora.Config(
        manifest=(str(planted),),
        output_dir=tmp_path_factory.mktemp("lora") / "run",
        train_views=("none", "qf90"),
        test_views=("none", "qf90"),
        epochs=10,
        groups=4,
        resamples=100,
        num_workers=0,
        learning_rate=5e-3,
        head_learning_rate=5e-3,
    )


@pytest.fixture(scope="module")
def trained(config) -> Path:
    lora.main(config)
    return config.output_dir


def auc(folder: Path, seen: str = "train") -> float:
    scores = Scores.read(folder / "scores.parquet")
    rows = (scores["split"] == "test") & (scores["edit"] == "") & (~scores.fake | (scores["seen"] == seen))
    return roc_auc_score(scores.fake[rows], scores["logit"][rows])


def test_lora_finds_the_planted_artefact(trained) -> None:
    assert auc(trained) > 0.9


def test_lora_with_permuted_labels_finds_nothing(config, subtle, tmp_path, monkeypatch) -> None:
    # where fakes resemble each other as much as planted ones, one random direction may still sort them all
    manifest = (str(subtle),)
    judged: list[np.ndarray] = []
    score_of = report.validation_score
    for module in (report, classes):
        monkeypatch.setattr(module, "validation_score", lambda scores: judged.append(scores.fake) or score_of(scores))
    changed = dataclasses.replace(config, manifest=manifest, output_dir=tmp_path / "p", permutations=1, epochs=2)
    lora.main(changed)
    found = read_rows(tmp_path / "p" / "permutations.csv", Reached)
    reached = {
        r.permutation: r.value for r in found if (r.view, r.generator, r.metric) == ("none", "mean:seen", "auc")
    }
    assert 0.25 < reached[1] < 0.75 and reached.keys() == {0, 1}
    assert "| 1 | one permutation: no test |" in (tmp_path / "p" / "table.md").read_text()
    assert len(judged) == 8 and (judged[0] != judged[-1]).any()  # the epoch, too, is chosen by permuted labels
    assert judged[0].sum() == judged[-1].sum()
    # the main run is made again, the finished permutation is not
    kept = (tmp_path / "p" / "permutation-1" / "provenance.json").stat().st_mtime_ns
    (tmp_path / "p" / "provenance.json").unlink()
    lora.main(changed)
    assert (tmp_path / "p" / "permutation-1" / "provenance.json").stat().st_mtime_ns == kept
    assert read_rows(tmp_path / "p" / "permutations.csv", Reached) == found


def test_lora_leaves_what_it_promises(trained, config) -> None:
    for name in (
        "config.yaml",
        "provenance.json",
        "metrics.csv",
        "table.md",
        "log.jsonl",
        "detector/detector.json",
        "figures/roc.png",
    ):
        assert (trained / name).stat().st_size > 0, name
    card, page = ((trained / name).read_text() for name in ("detector/README.md", "table.md"))
    headline = [line for line in page.split("## Headline")[1].splitlines() if line.startswith("|")][:4]
    assert "## Limits" in card and headline[2].startswith("| none ") and all(line in card for line in headline)
    record = json.loads((trained / "provenance.json").read_text())
    rows = Manifest.read(config.manifest[0])
    images = [int(((rows["split"] == "train") & (rows.fake == fake)).sum()) for fake in (False, True)]
    assert [record[fact] for fact in GIVEN] == [*images, config.epochs, config.epochs]
    scores = Scores.read(trained / "scores.parquet")
    assert record["epoch"] in range(1, config.epochs + 1) and record["seed"] == 0
    detector = load_detector(trained / "detector")
    assert detector.threshold == pytest.approx(
        json.loads((trained / "detector" / "detector.json").read_text())["threshold"]
    )
    decision = fit_decision(scores)
    assert detector.decision.describe() == decision.describe() and decision.calibration.kind != "none"
    for name, table in decision.tables.items():
        np.testing.assert_array_equal(detector.decision.tables[name], table)
    assert "## Promises" in (trained / "table.md").read_text(encoding="utf-8")

    rows = Manifest.read(config.manifest[0])
    held = np.flatnonzero(rows["split"] != "train")
    again = score(detector, rows, held, config.test_views)
    np.testing.assert_allclose(again["logit"], scores["logit"], atol=1e-4)
    assert set(scores["split"]) == {"val", "test"}


def test_lora_tensorboard_can_be_read_back(trained, config) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    logged = [json.loads(line)["loss"] for line in (trained / "log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(losses, logged, rtol=1e-6)
    assert len(events.Scalars("val/qf90/auc")) == config.epochs
    tags = events.Tags()
    assert any(tag.startswith("mistakes/none/real_called_fake") for tag in tags["images"])
    assert "test/roc" in tags["images"] and "config/text_summary" in tags["tensors"]


def test_a_finished_run_shows_its_table_and_refuses_other_settings(trained, config, capsys) -> None:
    from adapt.errors import Refusal

    before = (trained / "log.jsonl").read_bytes()
    lora.main(config)
    out = capsys.readouterr().out
    assert "this run is complete" in out and "| none |" in out
    assert (trained / "log.jsonl").read_bytes() == before
    with pytest.raises(Refusal, match="rank: 8 -> 4"):
        lora.main(dataclasses.replace(config, rank=4))


def test_evaluate_recomputes_the_same_numbers(trained, config, tmp_path) -> None:
    cfg = evaluate.Config((trained / "scores.parquet",), output_dir=tmp_path, resamples=config.resamples)
    evaluate.main(cfg)
    assert (tmp_path / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()


def test_a_manifest_without_a_class_is_refused_before_any_work(planted, config, tmp_path) -> None:
    from adapt.errors import Refusal

    lines = planted.read_text().splitlines(keepends=True)
    other = planted.with_name("no_val_reals.csv")
    other.write_text("".join(line for line in lines if ",real,val," not in line))
    try:
        with pytest.raises(Refusal, match="split 'val' has 0 real"):
            lora.main(dataclasses.replace(config, manifest=(str(other),), output_dir=tmp_path / "run"))
    finally:
        other.unlink()


def test_config_of_a_run_repeats_it(trained, config) -> None:
    from adapt.cli import parse

    assert parse(lora.Config, ["--config", str(trained / "config.yaml")]) == config


def test_command_line_refuses_in_one_line(tmp_path) -> None:
    """As a user sees it: no traceback, the name and the remedy, status 2."""
    done = subprocess.run(
        [sys.executable, ROOT / "recipes" / "lora.py", "--output_dir", tmp_path, "--manifest", "absent.csv"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: no manifest 'absent.csv'" in done.stderr

"""Whatever fails behind the scores: they and the detector are on the disk, and the same command does the rest."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import linear_probe
import localize
import lora
import pair
import pytest
import tip_adapter
from processes import in_children

from adapt import cli
from adapt.detector import detector as detectors
from adapt.detector.detector import load_detector
from adapt.errors import Refusal
from adapt.evaluation.scores import Scores
from adapt.features import cache as features
from adapt.training import comparison, localization, on_features, report
from adapt.training.run import Run

TIMES = re.compile(r"(?m)^.*(seconds|training_minutes|peak_memory_mib|command|output_dir)\b.*$")


@pytest.fixture(scope="module")
def start(planted, tmp_path_factory) -> dict[str, object]:
    few = {"train_views": ("none",), "test_views": ("none",), "resamples": 10, "num_workers": 0}
    return few | {"manifest": (str(planted),), "output_dir": tmp_path_factory.mktemp("whole") / "run"}


def made(recipe, start, tmp_path):
    extra = {
        linear_probe: {"cache": Path(start["output_dir"]).parent / "features"},
        lora: {"epochs": 1, "groups": 8, "rank": 2},
        pair: {"epochs": 1, "groups": 8, "arms": ("matched",), "seeds": (0,), "tune": "lora"},
        localize: {"epochs": 1, "groups": 8, "val_views": ("none",), "crop": 64, "manifest": ("embedded",)},
    }[recipe]
    return recipe.Config(**start | extra | {"output_dir": tmp_path / "run"})


def files(folder: Path) -> dict[str, bytes]:
    """Bytes of what a run leaves: tables, page, figures, detector; without the lines that tell time, place, memory."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(("tensorboard", ".lock", "log.jsonl", "checkpoint-")):
            data = path.read_bytes()
            if path.suffix in (".md", ".json", ".yaml"):
                data = TIMES.sub("", data.decode()).encode()
            found[name] = data
    return found


def fail_once(monkeypatch, module, name: str, how: Exception | None = None) -> None:
    """The function raises when it is called first, and is itself again after that."""
    whole = getattr(module, name)

    def fails(*_, **__):
        monkeypatch.setattr(module, name, whole)
        raise how or OSError("no space for that")

    monkeypatch.setattr(module, name, fails)


def forbid_work(monkeypatch) -> None:
    def never(*_, **__):
        raise AssertionError("encoded, trained or scored again")

    for module, name in (
        (features, "extract"), (on_features, "extract"), (on_features, "fit_probe"), (on_features, "score_features"),
        (detectors, "score"), (localization, "score_maps"), (Run, "steps"), (Run, "prepare"), (Run, "begin"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, never)


@pytest.mark.parametrize("recipe", [linear_probe, lora, pair])
def test_each_failure_keeps_scores_and_detector_and_the_same_command_finishes(
    recipe, start, tmp_path, monkeypatch, one_thread
) -> None:
    whole = made(recipe, start, tmp_path / "whole")
    recipe.main(whole)
    config = made(recipe, start, tmp_path)
    steps = [
        "evaluate",
        "_metadata_scores",
        "write_tables",
        "complete_card",
        "licence",
        "write_figures",
        "_log_mistakes",
    ]
    for number, name in enumerate(steps):
        with monkeypatch.context() as patch:
            if number:
                forbid_work(patch)
            fail_once(patch, report, name)
            said = (
                "scores.parquet and detector/ are complete there: mend the cause, and the same command does the rest"
            )
            with pytest.raises(Refusal, match=rf"OSError at test_nothing_lost.py:\d+: no space for that\); {said}"):
                recipe.main(config)
        folder = config.output_dir
        assert len(Scores.read(folder / "scores.parquet")) == len(Scores.read(whole.output_dir / "scores.parquet"))
        load_detector(folder / "detector")
        assert not (folder / "provenance.json").exists() and (folder / "scored.json").is_file()
    with monkeypatch.context() as patch:
        forbid_work(patch)
        recipe.main(config)
        again, wanted = files(config.output_dir), files(whole.output_dir)
        assert sorted(again) == sorted(wanted) and {"metadata.parquet", "figures/roc.png"} <= set(again)
        assert [name for name in wanted if again[name] != wanted[name]] == []
        recipe.main(config)  # a finished run is finished


def test_two_processes_finish_what_two_processes_began(start, tmp_path) -> None:
    config = made(lora, start, tmp_path)

    def broken() -> None:
        report.write_tables = lambda *_: 1 / 0
        lora.main(config)

    def rest() -> None:
        Run.steps = Run.prepare = lambda *_: 1 / 0
        lora.main(config)

    assert in_children(broken, 2)[0] != 0
    assert len(Scores.read(config.output_dir / "scores.parquet")) and not (config.output_dir / "table.md").exists()
    assert in_children(rest, 2) == [0, 0]
    assert (config.output_dir / "provenance.json").is_file() and (config.output_dir / "table.md").is_file()


def test_the_shell_sees_one_line_and_other_settings_are_refused(start, tmp_path, monkeypatch, capsys) -> None:
    config = made(linear_probe, start, tmp_path)
    fail_once(monkeypatch, report, "write_figures", RuntimeError("two\nlines"))
    monkeypatch.setattr(sys, "argv", ["linear_probe.py"])
    monkeypatch.setattr(cli, "parse", lambda *_: config)
    with pytest.raises(SystemExit) as end:
        cli.run(linear_probe.main, linear_probe.Config)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and sum(line.startswith("error: ") for line in lines) == 1
    assert "RuntimeError at test_nothing_lost.py:" in lines[-1] and "two lines" in lines[-1]
    with pytest.raises(Refusal, match=r"holds a run with other settings \(resamples: 10 -> 11\)"):
        linear_probe.main(dataclasses.replace(config, resamples=11))
    saved = config.output_dir / "scored.json"
    record = json.loads(saved.read_text())
    record["record"]["identity"]["data"] = "0" * 64
    saved.write_text(json.dumps(record))
    with pytest.raises(Refusal, match=r"other settings \(data: '000"):  # the images changed meanwhile
        linear_probe.main(config)
    saved.write_text("{")
    with pytest.raises(Refusal, match=r"scored.json is damaged .*: delete it, and the same command scores again"):
        linear_probe.main(config)
    saved.unlink()
    linear_probe.main(config)
    assert (config.output_dir / "provenance.json").is_file()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the logs that a crash leaves open
def test_what_a_recipe_computes_behind_its_scores_loses_nothing_either(start, tmp_path, monkeypatch) -> None:
    config = dataclasses.replace(made(linear_probe, start, tmp_path), classes="generator")
    monkeypatch.setattr("adapt.evaluation.metrics.compare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        linear_probe.main(config)
    assert len(Scores.read(config.output_dir / "scores.parquet"))
    assert load_detector(config.output_dir / "detector").head.classes[0] == "real"


def test_a_study_keeps_its_best_detector_when_its_page_fails(start, tmp_path, monkeypatch) -> None:
    given = {"shots": (2,), "draws": 1, "methods": ("zero-shot", "tip-adapter"), "output_dir": tmp_path / "run"}
    config = tip_adapter.Config(**start | given | {"cache": Path(start["output_dir"]).parent / "features"})
    for module, name in ((comparison, "save_png"), (comparison, "write_page"), (comparison, "complete_card")):
        fail_once(monkeypatch, module, name)
        with pytest.raises(Refusal, match="no space for that"):
            tip_adapter.main(config)
        load_detector(config.output_dir / "detector")
        assert len(Scores.read(config.output_dir / "scores.parquet"))
        assert not (config.output_dir / "provenance.json").exists()
    tip_adapter.main(config)
    assert (config.output_dir / "provenance.json").is_file()
    assert "## Measured" in (config.output_dir / "detector" / "README.md").read_text()

"""Whatever fails behind the scores: they and the detector are on the disk, and the same command does the rest."""

import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path

import color_fusion
import jpeg_matrix
import linear_probe
import localize
import lora
import onboard
import pair
import pytest
import refine
import tip_adapter
import understand
from processes import in_children

from adapt import cli
from adapt.collect.composites import Recipe as Composites
from adapt.collect.composites import write_composites
from adapt.commands import crops
from adapt.data.manifest import Manifest
from adapt.detector import detector as detectors
from adapt.detector.detector import load_detector
from adapt.embedded.world import make_world
from adapt.errors import Refusal
from adapt.evaluation.scores import Scores
from adapt.features import cache as features
from adapt.training import comparison, localization, on_features, report
from adapt.training.comparison import Study
from adapt.training.run import Run
from adapt.understanding import item
from adapt.understanding import subject as understand_subject

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


def left_by(config) -> dict[str, bytes]:
    """`files` of a run; the speeds of crops.py are those of the moment."""
    speed = re.compile(rb"(?m)^(\| (?:1|5|native) \| [\d.]+ \|) [\d.]+ \|$")
    return {name: speed.sub(rb"\1", data) for name, data in files(config.output_dir).items()}


@pytest.fixture(scope="module")
def detector(start, tmp_path_factory) -> Path:
    """Of a LoRA that every command that needs a detector takes."""
    folder = tmp_path_factory.mktemp("detector")
    lora.main(made(lora, start, folder))
    return folder / "run" / "detector"


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> str:
    """The manifest of a small world with partly changed images."""
    folder = tmp_path_factory.mktemp("parts")
    world = make_world(folder / "world", seed=7, scenes=(8, 4, 4), trace="planted", processes=1)
    changed = write_composites(
        Manifest.read(world), folder / "c" / "manifest.csv", Composites(edits=("splice",), low=0.1)
    )
    both = Manifest.read(world, changed)
    both.write(folder / "both.csv")
    return str(folder / "both.csv")


FEW = {"draws": 1, "shots": (2,), "methods": ("zero-shot", "logistic", "tip-adapter")}
ONBOARD = {"generator": "style", "shots": (1,), "seeds": (0,), "methods": ("probe", "tip")}
ALL_OF_A_PROBE = {"rotate": "family", "classes": "generator", "layers": ("last", "proj")}
SCORES_AND_DETECTOR = ("scores.parquet", "detector")
OF_A_PROBE = ("evaluation.rotation.rotation", "training.comparison.Study.write_csv", "evaluation.metrics.compare")
LATE = {  # what fails behind the scores, one after the other, and what is there by then
    linear_probe: (ALL_OF_A_PROBE, OF_A_PROBE, SCORES_AND_DETECTOR),
    refine: ({"onboard": "style", "shots": 2}, ("training.refine.compare",), SCORES_AND_DETECTOR),
    localize: ({}, ("training.localization.evaluate_maps",), SCORES_AND_DETECTOR),
    tip_adapter: (FEW, ("training.comparison.evaluate", "training.comparison.save_png"), SCORES_AND_DETECTOR),
    color_fusion: ({"apart": False}, ("training.comparison.complete_card",), SCORES_AND_DETECTOR),
    jpeg_matrix: ({"heads": ("logistic",)}, ("pages.drawing.heat_map",), ("scored/0.parquet",)),
    onboard: (ONBOARD, ("training.few_shot.gains",), ("scored/0.parquet",)),
    crops: ({"crops": ("1", "5")}, ("training.comparison.write_page",), ("scores-1.parquet",)),
}


@pytest.mark.parametrize("recipe", LATE, ids=lambda recipe: recipe.__name__)
def test_whatever_fails_behind_the_scores_the_same_command_does_that_alone(
    recipe, start, detector, parts, tmp_path, monkeypatch, one_thread
) -> None:
    extra, late, there = LATE[recipe]
    given = start | {"cache": Path(start["output_dir"]).parent / "features", "detector": detector, "init": detector}
    given |= {"epochs": 1, "groups": 8, "rank": 2, "crop": 64, "val_views": ("none",)} | extra
    given |= {"manifest": (parts,)} if recipe is localize else {}
    known = {field.name for field in dataclasses.fields(recipe.Config)}
    given = {name: value for name, value in given.items() if name in known}
    whole, config = (recipe.Config(**given | {"output_dir": tmp_path / name}) for name in ("whole", "run"))
    recipe.main(whole)
    for number, fails in enumerate(late):
        module, _, name = f"adapt.{fails}".rpartition(".")
        owner = Study if module.endswith(".Study") else importlib.import_module(module)
        with monkeypatch.context() as patch:
            if number:
                forbid_work(patch)
            fail_once(patch, owner, name)
            said = r"OSError at test_nothing_lost.py:\d+: no space for that\); .* are complete there"
            with pytest.raises(Refusal, match=said):
                recipe.main(config)
        folder = config.output_dir
        assert not (folder / "provenance.json").exists() and (folder / "scored.json").is_file()
        assert all((folder / name).exists() for name in there)
        if "detector" in there:
            load_detector(folder / "detector")
    with monkeypatch.context() as patch:
        forbid_work(patch)
        recipe.main(config)
        again, wanted = left_by(config), left_by(whole)
        assert sorted(again) == sorted(wanted) and "table.md" in again
        assert [name for name in wanted if again[name] != wanted[name]] == []


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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the logs that a crash leaves open
def test_a_study_of_a_detector_measures_only_what_is_not_measured(start, detector, tmp_path, monkeypatch) -> None:
    few = {"manifest": start["manifest"], "detector": detector, "items": ("content", "spectra", "variance")}
    few |= {"groups": 6, "views": ("shuffle32",), "spectra_views": ("none",), "examples": 1, "num_workers": 0}
    few |= {"resamples": 20, "cache": tmp_path / "features"}
    whole, config = (understand.Config(**few, output_dir=tmp_path / name) for name in ("whole", "run"))
    understand.main(whole)
    measured: list[str] = []
    for module, name in (("content", "content"), ("lowlevel", "spectra"), ("variance", "variance")):
        count_calls(monkeypatch, importlib.import_module(f"adapt.understanding.{module}"), name, measured)
    with monkeypatch.context() as patch:
        fail_once(patch, importlib.import_module("adapt.understanding.variance"), "variance")
        with pytest.raises(OSError, match="no space for that"):  # in the midst of measuring
            understand.main(config)
    fail_once(monkeypatch, item, "write_page")
    with pytest.raises(Refusal, match=r"no space for that\); all measurements are complete there"):
        understand.main(config)
    assert measured == ["content", "spectra", "variance"]  # none twice
    monkeypatch.setattr(understand_subject, "take", lambda *_: 1 / 0)
    understand.main(config)
    again, wanted = files(config.output_dir), files(whole.output_dir)
    assert sorted(again) == sorted(wanted) and {"report.html", "content.csv"} <= set(again)
    same = [name for name in wanted if again[name] == wanted[name]]
    assert [name for name in wanted if name not in same] == ["report.html"]  # which also says time and place
    pictures = [re.findall(rb"<img [^>]+>", data["report.html"]) for data in (again, wanted)]
    assert pictures[0] == pictures[1] and len(pictures[0]) > 3
    understand.main(config)


def count_calls(monkeypatch, module, name: str, called: list[str]) -> None:
    whole = getattr(module, name)

    def counts(*given, **more):
        called.append(name)
        return whole(*given, **more)

    monkeypatch.setattr(module, name, counts)

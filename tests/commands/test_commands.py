"""The command `adapt`: names, hints, and the doctor."""

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

from adapt import __main__ as program
from adapt import provenance
from adapt.commands import doctor

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def call(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["adapt", *words])
    program.main()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["extrct"], "unknown command 'extrct', perhaps you meant 'extract'"),
        (["lora"], "unknown command 'lora': it is an experiment, run `adapt run lora`"),
        (["run", "extract"], "unknown recipe 'extract': run `adapt extract`"),
        (["run", "lroa"], "unknown recipe 'lroa', perhaps you meant 'lora'"),
    ],
)
def test_a_wrong_name_gets_a_hint_and_status_2(monkeypatch, capsys, words, message) -> None:
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, *words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_every_command_has_a_file_and_every_file_a_command() -> None:
    files = {path.stem for path in (ROOT / "adapt/commands").glob("*.py")} - {"__init__"}
    assert files == set(program.COMMANDS)
    for name in program.COMMANDS:
        assert callable(importlib.import_module(f"adapt.commands.{name}").command)


def test_a_refusal_of_a_command_is_one_line(monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, "evaluate", "--scores", "absent.csv")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: no scores at absent.csv: give a Parquet, CSV or JSON lines file\n"


def test_the_record_names_the_command_as_typed(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["adapt extract", "--manifest", "a b.csv"])
    assert provenance.command() == "adapt extract --manifest 'a b.csv'"
    monkeypatch.setattr(sys, "argv", ["/somewhere/recipes/lora.py", "--seed", "1"])
    assert provenance.command() == "python recipes/lora.py --seed 1"
    monkeypatch.setattr(sys, "argv", ["/somewhere/adapt_recipes/lora.py", "--seed", "1"])
    assert provenance.command() == "adapt run lora --seed 1"


def test_the_doctor_says_it_in_about_25_lines(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "absent"))
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "captum" else object())
    doctor.main(doctor.Config(network=False))
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 25
    assert f"{tmp_path / 'absent'}" in out and "empty so far" in out
    assert "missing captum: pip install 'adapt-aigi[explain]'" in out and "[data]        installed" in out


def test_the_doctor_knows_all_extras() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"dev"}
    modules = {"opencv-python-headless": "cv2", "pillow-heif": "pillow_heif", "mlflow-skinny": "mlflow"}
    for extra, (names, _) in doctor.EXTRAS.items():
        packages = [re.match(r"[\w-]+", line)[0] for line in extras[extra]]
        assert [modules.get(name, name) for name in packages] == list(names)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert doctor.hub(doctor.Config(timeout=1)).startswith("cannot be reached (")

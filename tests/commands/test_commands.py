"""The command `adapt`: names, hints, the doctor, and a wheel that is complete."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
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
    assert capsys.readouterr().err == "error: no scores at absent.csv: give a Parquet or CSV file\n"


def test_the_record_names_the_command_as_typed(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["adapt extract", "--manifest", "a b.csv"])
    assert provenance.command() == "adapt extract --manifest 'a b.csv'"
    monkeypatch.setattr(sys, "argv", ["/somewhere/recipes/lora.py", "--seed", "1"])
    assert provenance.command() == "python recipes/lora.py --seed 1"
    monkeypatch.setattr(sys, "argv", ["/somewhere/adapt_recipes/lora.py", "--seed", "1"])
    assert provenance.command() == "adapt run lora --seed 1"


def test_the_doctor_says_it_in_about_20_lines(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "absent"))
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "captum" else object())
    doctor.main(doctor.Config(network=False))
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 20
    assert f"{tmp_path / 'absent'}" in out and "empty so far" in out
    assert "missing captum: pip install 'adapt-aigi[explain]'" in out and "[data]        installed" in out


def test_the_doctor_knows_all_extras() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"dev"}
    modules = {"opencv-python-headless": "cv2"}
    for extra, (names, _) in doctor.EXTRAS.items():
        packages = [re.match(r"[\w-]+", line)[0] for line in extras[extra]]
        assert [modules.get(name, name) for name in packages] == list(names)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert doctor.hub(doctor.Config(timeout=1)).startswith("cannot be reached (")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in names.splitlines():
        if name.split("/")[0] in ("adapt", "recipes", "pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    code = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder], cwd=source, capture_output=True, check=True)
    (made,) = folder.glob("adapt_aigi-*.whl")
    site = folder / "site"
    with zipfile.ZipFile(made) as archive:
        archive.extractall(site)
    return site


def test_the_wheel_holds_every_file(wheel) -> None:
    kinds = ("*.py", "*.csv", "*.css", "*.js", "*.json", "*.safetensors", "*.txt")
    for folder, packed in (("adapt", "adapt"), ("recipes", "adapt_recipes")):
        for kind in kinds:
            expected = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob(kind)}
            assert expected == {path.relative_to(wheel / packed) for path in (wheel / packed).rglob(kind)}
    (entry,) = wheel.glob("*.dist-info/entry_points.txt")
    assert "adapt = adapt.__main__:main" in entry.read_text()


def test_from_a_wheel_the_main_job_runs_and_its_detector_predicts(wheel, planted, tmp_path) -> None:
    """In an empty folder, with the wheel's files in front of everything: no file of this checkout is read."""
    environment = os.environ | {"PYTHONPATH": str(wheel), "ADAPT_CACHE": str(tmp_path / "cache")}

    def adapt(*words: str) -> str:
        command = [sys.executable, "-P", "-m", "adapt", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(wheel / "adapt_recipes") in adapt("doctor", "--no_network")
    adapt("run", "lora", *f"--manifest {planted} --epochs 1 --resamples 20 --test_views none".split())
    assert "adapt run lora" in (tmp_path / "results/runs/lora/table.md").read_text(encoding="utf-8")
    detector = "results/runs/lora/detector"
    adapt("predict", "--detector", detector, "--input", str(planted.parent), "--output", "x.csv", "--gallery", "0")
    assert (tmp_path / "x.csv").read_text().count(",ok,") > 50

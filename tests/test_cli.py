"""Flags, saved configs, and errors in one line."""

import errno
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from adapt import cli
from adapt.errors import Refusal
from adapt.stop import Stopped


@dataclass(frozen=True)
class Config:
    manifest: tuple[str, ...] = ("embedded",)  # tables
    output_dir: Path = Path("out")  # folder
    targets: Literal["qv", "all"] = "all"  # layers
    learning_rate: float = 1e-3  # rate
    last_blocks: int | None = None  # blocks
    permute: bool = False  # control


def parse(*words: str) -> Config:
    return cli.parse(Config, list(words))


def test_repeated_and_listed_values_add_up() -> None:
    expected = ("a.csv", "b.csv", "c.csv")
    assert parse("--manifest", "a.csv", "b.csv", "--permute", "--manifest", "c.csv").manifest == expected
    assert parse("--manifest=a.csv", "--manifest=b.csv", "--manifest=c.csv", "--permute") == Config(
        manifest=expected, permute=True
    )


def test_hyphens_and_underscores() -> None:
    assert parse("--learning-rate", "0.5") == parse("--learning_rate", "0.5") == Config(learning_rate=0.5)


def test_typo_gets_a_hint(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        parse("--lerning_rate", "1")
    assert end.value.code == 2
    assert "--learning_rate" in capsys.readouterr().err


def test_numbers_out_of_range_are_refused() -> None:
    for value, message in ((-0.1, "give at least 0"), (1.0, "give less than 1"), (float("nan"), "give at least 0")):
        with pytest.raises(Refusal, match=f"--learning_rate {value}: {message}"):
            cli.at_least(0, Config(learning_rate=value), "learning_rate", below=1)
    cli.at_least(0, Config(learning_rate=0.999), "learning_rate", below=1)


def test_saved_config_reads_back_equal(tmp_path) -> None:
    config = Config(("a b.csv", "x=1.csv"), Path("some where"), "qv", 3e-5, 2, True)
    file = tmp_path / "config.yaml"
    file.write_text(cli.dump(config))
    assert parse("--config", str(file)) == config
    assert parse(f"--config={file}", "--learning_rate", "1", "--last_blocks", "None").learning_rate == 1


def test_yaml_numbers_written_as_words_are_numbers(tmp_path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("learning_rate: 1e-4\n")  # YAML 1.1 reads this as text
    assert parse("--config", str(file)).learning_rate == 1e-4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "learning_rat: 1\nmanifests: [x]\n",
            "unknown key 'learning_rat', perhaps you meant 'learning_rate'; unknown key 'manifests'",
        ),
        ("a: [", "not YAML"),
        ("- a\n", "expected 'name: value' lines"),
    ],
)
def test_bad_config_files(tmp_path, content, message) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(Refusal, match=message):
        parse("--config", str(file))


def test_missing_config_file() -> None:
    with pytest.raises(Refusal, match="No such file"):
        parse("--config", "absent.yaml")
    with pytest.raises(Refusal, match="needs the name"):
        parse("--config")


def test_a_refusal_is_one_line_and_status_2(monkeypatch, capsys) -> None:
    def main(cfg: Config) -> None:
        raise Refusal(f"no manifest {cfg.manifest[0]}")

    monkeypatch.setattr("sys.argv", ["x.py"])
    with pytest.raises(SystemExit) as end:
        cli.run(main, Config)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: no manifest embedded\n"
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        cli.run(main, Config)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [("run", "ablation"), ("evaluate",)])
def test_help_whose_reader_leaves_ends_quietly(words) -> None:
    """As `adapt ... --help | head -1` does."""
    command = [sys.executable, "-m", "adapt", *words, "--help"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert said == b"" and process.returncode == 0, said


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"),
        RuntimeError("received 0 items of ancdata"),
    ],
)
def test_too_many_open_files_is_one_line_with_the_remedy(error, monkeypatch, capsys):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    monkeypatch.setattr(cli, "parse", lambda *_: None)

    def main(_) -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run(main, object, "about")
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1
    assert lines[0].startswith(f"error: too many open files (this shell allows {limit}): run `ulimit -n 65536` before")
    error = OSError(errno.EIO, "broken disk")
    with pytest.raises(OSError, match="broken disk"):
        cli.run(main, object, "about")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_is_not_to_speak_waits_for_the_first(monkeypatch, capsys, rank) -> None:
    """A launcher stops all when one ends: were this one first, the first process could not say why any more."""
    waited: list[float] = []

    def stopped_meanwhile(seconds: float) -> None:
        waited.append(seconds)
        raise Stopped  # of the launcher, as the first process has spoken and ended

    monkeypatch.setattr(cli.time, "sleep", stopped_meanwhile)
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as end:
        cli._end("error: why", 2)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert (said, waited) == (("error: why\n", []) if rank == "0" else ("", [cli.HEARD]))

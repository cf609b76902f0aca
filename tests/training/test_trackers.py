"""Trackers beside TensorBoard: the same points under the same names, none twice or lost, and none kills a run."""

import dataclasses
import importlib.util
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import lora
import pytest
from accelerate import PartialState
from processes import in_children
from test_run import config, killed  # noqa: F401 (a fixture)
from test_run import points as events_of

from adapt.errors import Refusal
from adapt.training import trackers as module
from adapt.training.run import NOT_IDENTITY, Run
from adapt.training.trackers import Trackers, require_packages

Points = dict[str, list[tuple[int, float]]]


class Recorder:
    """A tracker that writes what it is told to $RECORD, one line a call."""

    fails_at = -1

    def __init__(self, project: str, **given: object) -> None:
        self.given, self.tracker, self.step = given, self, 0

    def write(self, *line: object) -> None:
        with Path(os.environ["RECORD"]).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def start(self) -> None:
        if os.environ.get("UNREACHABLE"):
            raise ConnectionError("no server\nthere")
        self.write("start", self.given["id"])

    def store_init_configuration(self, values: dict) -> None:
        self.write("config", values)

    def log(self, values: dict, step: int, commit: bool) -> None:
        assert commit
        if step == self.fails_at:
            raise ConnectionError("the server went away")
        self.step = step
        self.write("log", step, values)

    def finish(self) -> None:
        self.write("finish")


@pytest.fixture
def record(monkeypatch, tmp_path) -> Path:
    """W&B is replaced by the recorder, also for children."""
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(module, "WandBTracker", Recorder)
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    return tmp_path / "record"


def lines(record: Path, kind: str) -> list[list]:
    return [line for line in map(json.loads, record.read_text().splitlines()) if line[0] == kind]


def points(record: Path) -> Points:
    """As `events_of`: of the speed the steps alone."""
    found: Points = {}
    for _, step, values in lines(record, "log"):
        for name, value in values.items():
            found.setdefault(name, []).append((step, 0 if name == "train/images_per_s" else value))
    return found


def started(config: lora.Config, **change: object) -> lora.Config:  # noqa: F811
    return dataclasses.replace(config, tracker=("wandb",), **change)


def test_a_run_that_is_killed_gives_each_point_once(config, record) -> None:  # noqa: F811
    """As TensorBoard has them."""
    config = started(config)
    kills = (("update", 2), ("writing", 3), ("validation", 4), ("update", 7))
    for where, at in kills:
        assert killed(config, where, at, 1) == [-signal.SIGKILL]
    assert in_children(lambda: lora.main(config)) == [0]
    expected = events_of(config.output_dir)
    found = points(record)
    assert found == {name: [(step, pytest.approx(value)) for step, value in of] for name, of in expected.items()}
    assert [step for step, _ in found["train/loss"]] == list(range(1, 9)) and "val/none/auc" in found
    assert len({line[1] for line in lines(record, "start")}) == 1 and len(lines(record, "start")) == 1 + len(kills)
    assert len(lines(record, "config")) == len(lines(record, "finish")) == 1


def test_a_stopped_run_sends_what_it_holds(config, record, monkeypatch) -> None:  # noqa: F811
    config = started(config)
    step = Run.step

    def stop(run: Run, *rest: object) -> None:
        if run.step_number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        step(run, *rest)

    monkeypatch.setattr(Run, "step", stop)
    assert in_children(lambda: lora.main(config)) == [143]
    assert [step for step, _ in points(record)["train/loss"]] == [1, 2, 3, 4, 5]


def test_a_tracker_that_fails_costs_a_line(config, record, monkeypatch, capfd) -> None:  # noqa: F811
    config = started(config)
    monkeypatch.setenv("UNREACHABLE", "1")
    assert in_children(lambda: lora.main(config)) == [1]
    said = capfd.readouterr().err.splitlines()[-1]
    assert "Refusal: --tracker wandb: no server there: `wandb login`, or WANDB_MODE=offline, or leave" in said
    monkeypatch.delenv("UNREACHABLE")
    monkeypatch.setattr(Recorder, "fails_at", 3)
    assert in_children(lambda: lora.main(config)) == [0]
    said = capfd.readouterr().out
    assert said.count("--tracker wandb: the server went away: the run goes on without it") == 1
    assert [step for step, _ in points(record)["train/loss"]] == [1, 2]
    assert len(events_of(config.output_dir)["train/loss"]) == 8  # TensorBoard has all
    assert "tracker" in NOT_IDENTITY


def test_a_run_that_goes_on_does_so_without_its_server(tmp_path, record, monkeypatch) -> None:
    said: list[str] = []
    Trackers(tmp_path, ("wandb",), {}, said.append).close()
    monkeypatch.setenv("UNREACHABLE", "1")
    again = Trackers(tmp_path, ("tensorboard", "wandb"), {}, said.append)
    again.log({"train/loss": 1.0}, 1)
    again.close()
    assert said == ["--tracker wandb: no server there: the run goes on without it"]


def test_a_missing_package_is_one_line(config, tmp_path, monkeypatch) -> None:  # noqa: F811
    (tmp_path / "mlflow").mkdir()  # a folder of that name is no package
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if "site-packages" not in path)])
    for name in ("mlflow", "wandb"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(
            Refusal, match=rf"--tracker {name}: the package is missing: pip install 'adapt-aigi\[{name}"
        ):
            require_packages(("json", name))
    monkeypatch.setattr("adapt.training.run.require_packages", lambda names: pytest.fail(str(names)))
    with pytest.raises(pytest.fail.Exception, match="wandb"):  # before anything is read
        lora.main(started(config))


def sitting(folder: Path, name: str, steps: range, die: bool) -> None:
    """Steps of a run under the real tracker; its last one has a validation."""
    PartialState()
    trackers = Trackers(folder, (name,), {"rank": 2, "targets": "all", "flags": ["a"]}, print)
    for step in steps:
        trackers.log({"train/loss": 1 / step}, step)
    if die:
        time.sleep(20 if name == "wandb" else 3)  # threads and processes of theirs hand over, W&B's rarely
        os.kill(os.getpid(), signal.SIGKILL)
    trackers.log({"val/blur1.5+qf65/auc": 0.5}, steps[-1])
    trackers.close()


def of_wandb(folder: Path, _: str) -> Points:
    from wandb.proto import wandb_internal_pb2

    found: Points = {}
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(files) == 2 and len({path.name for path in files}) == 1  # one run, for `wandb sync`
    for entry in (wandb_internal_pb2.Record.FromString(data) for file in files for data in logged(file.read_bytes())):
        if entry.WhichOneof("record_type") == "history":
            items = {"".join(i.nested_key) or i.key: json.loads(i.value_json) for i in entry.history.item}
            for name in items.keys() & {"train/loss", "val/blur1.5+qf65/auc"}:
                found.setdefault(name, []).append((items["_step"], items[name]))
    return found


def logged(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format behind seven bytes: blocks of 32 KiB, parts of 1 first, 2 middle..."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""


def of_mlflow(_: Path, run: str) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient()
    assert client.get_run(run).data.params["rank"] == "2" and client.get_run(run).info.status == "FINISHED"
    names = client.get_run(run).data.metrics
    return {
        name.replace("_qf", "+qf"): [(m.step, m.value) for m in client.get_metric_history(run, name)] for name in names
    }


def of_trackio(_: Path, run: str) -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    found: Points = {}
    for entry in SQLiteStorage.get_logs(module.PROJECT, run):
        for name in entry.keys() & {"train/loss", "val/blur1.5+qf65/auc"}:
            found.setdefault(name, []).append((entry["step"], entry[name]))
    return found


@pytest.mark.filterwarnings("ignore")  # of the trackers, about themselves
@pytest.mark.parametrize(("name", "read"), [("wandb", of_wandb), ("mlflow", of_mlflow), ("trackio", of_trackio)])
def test_real_trackers_offline(name, read, tmp_path, monkeypatch) -> None:
    """A run is killed behind step 5 and continues from a checkpoint of step 3."""
    if importlib.util.find_spec(name) is None:  # to import it here would fix its folders before they are chosen
        pytest.skip(f"the extra `{name}` is not installed")
    for variable, value in {
        "WANDB_MODE": "offline",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": f"file://{tmp_path / 'mlruns'}",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(variable, value)
    (tmp_path / "run").mkdir()
    assert in_children(lambda: sitting(tmp_path / "run", name, range(1, 6), die=True)) == [-signal.SIGKILL]
    assert in_children(lambda: sitting(tmp_path / "run", name, range(4, 9), die=False)) == [0]
    run = json.loads((tmp_path / "run" / "trackers.json").read_text())[name]["id"]
    found = read(tmp_path / "run", run)
    assert sorted(found["train/loss"]) == [(step, pytest.approx(1 / step)) for step in range(1, 9)]
    assert found["val/blur1.5+qf65/auc"] == [(8, 0.5)]

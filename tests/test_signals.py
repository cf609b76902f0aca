"""SIGTERM at any moment: a line, status 143, and the same command ends as if nothing had happened.

And kill -9: no data process outlives the one that it works for.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import lora
import numpy as np
import open_clip  # noqa: F401 (as adapt.training.report: loaded once here, inherited by every child)
import pair
import peft  # noqa: F401
import psutil
import pytest
from processes import as_command, in_children
from torch.utils.data import get_worker_info

import adapt.training.report  # noqa: F401
from adapt import stop
from adapt.commands import extract, predict
from adapt.data import groups
from adapt.data.manifest import Manifest
from adapt.detector import detector as detectors
from adapt.detector import finished_batches, scored_parts
from adapt.detector.detector import Detector
from adapt.features import cache
from adapt.files import sha256
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import Backbone, load_backbone
from adapt.training import tokens

ASKED = 128 + signal.SIGTERM
ROOT = Path(__file__).parents[1]


def at_call(number: int, function: Callable, ranks: str = "0123") -> Callable:
    """The function, which sends this process a SIGTERM when it is called for the `number`-th time, before its work."""
    calls = 0

    def counted(*given, **more):
        nonlocal calls
        calls += 1
        if calls == number and os.environ.get("RANK", "0") in ranks:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*given, **more)

    return counted


@pytest.fixture
def config(planted, tmp_path) -> lora.Config:
    return lora.Config(
        manifest=(str(planted),),
        output_dir=tmp_path / "run",
        train_views=("none", "qf65"),
        test_views=("none",),
        epochs=2,
        groups=4,  # of 16: 4 steps an epoch
        rank=2,
        precision="fp32",
        resamples=20,
        checkpointing_steps=100,
        num_workers=2,
    )


def results(folder: Path) -> dict[str, str]:
    names = ("log.jsonl", "scores.parquet", "metrics.csv", "detector/head.safetensors")
    return {name: sha256(folder / name) for name in names}


@pytest.mark.parametrize(("world", "ranks"), [(1, "0"), (2, "01"), (2, "1")])
def test_in_a_validation_no_epoch_is_lost(config, tmp_path, world, ranks, capfd) -> None:
    """Of two processes both are asked, or one alone: the other has lost it."""
    config = dataclasses.replace(config, epochs=3 - world)
    whole = dataclasses.replace(config, output_dir=tmp_path / "whole")
    assert in_children(lambda: lora.main(whole), world) == [0] * world
    capfd.readouterr()

    def terminated() -> None:
        score = tokens.score

        def validation(*given, **more):
            detectors.Detector.features = at_call(1, detectors.Detector.features, ranks)
            return score(*given, **more)

        tokens.score = validation
        as_command(lora.main, config)

    statuses, said = in_children(terminated, world), capfd.readouterr().err
    assert statuses == [ASKED if str(rank) in ranks else 1 for rank in range(world)]
    assert "Traceback" not in said
    words = "stopped: start the same command again to continue" if "0" in ranks else "process 0 has lost another one"
    assert words in said.splitlines()[-1], said
    assert [path.name for path in config.output_dir.glob("checkpoint-*")] == ["checkpoint-3"]
    assert in_children(lambda: lora.main(config), world) == [0] * world
    assert results(config.output_dir) == results(whole.output_dir)


@pytest.mark.parametrize("recipe", [lora, pair])
def test_in_the_scoring_finished_parts_are_kept(recipe, config, tmp_path, capfd) -> None:
    shared = {field.name for field in dataclasses.fields(pair.Config)} & {f.name for f in dataclasses.fields(config)}
    given = {name: getattr(config, name) for name in shared} | {"epochs": 1}
    if recipe is pair:
        given |= {"arms": ("matched",), "seeds": (0,), "tune": "lora"}
    config, whole = (recipe.Config(**given | {"output_dir": tmp_path / name}) for name in ("run", "whole"))
    assert in_children(lambda: recipe.main(whole)) == [0]
    parts = config.output_dir / "scored" / "scoring.jsonl"
    scored_again = tmp_path / "scored again"

    def terminated() -> None:
        scored_parts.BATCHES = 1
        scored_parts.Parts.add = at_call(3, scored_parts.Parts.add)
        as_command(recipe.main, config)

    def rest() -> None:
        scored_parts.BATCHES = 1
        logits_of = scored_parts.logits_of

        def noted(*given, **more):
            with scored_again.open("a") as file:
                file.write(".")
            return logits_of(*given, **more)

        scored_parts.logits_of = noted
        recipe.main(config)

    assert in_children(terminated) == [ASKED]
    assert "stopped: start the same command again" in capfd.readouterr().err.splitlines()[-1]
    kept = parts.read_text().count('"part"')
    assert kept == 2 and not (config.output_dir / "scored.json").exists()
    assert in_children(rest) == [0]
    held = sum(Manifest.read(config.manifest[0])["split"] != "train")
    assert len(scored_again.read_text()) == -(-held // 64) - kept
    assert results(config.output_dir) == results(whole.output_dir)
    assert not parts.parent.exists()


@pytest.fixture
def filling(planted, tmp_path) -> extract.Config:
    return extract.Config(
        manifest=(str(planted),), views=("none",), cache=tmp_path / "cache", batch_size=16, num_workers=2
    )


def features(config: extract.Config) -> np.ndarray:
    rows = Manifest.read(config.manifest[0])
    found = cache.extract(load_backbone("tiny"), rows, ("none",), cache=config.cache, cached_only=True)
    return found.take(np.arange(len(rows)), "none")


def hang(folder: Path) -> None:
    """Data processes never end reading an image, as on a file system whose server is gone; each leaves its number."""
    read = groups.read_image

    def hanging(file, *more):
        if get_worker_info():
            (folder / str(os.getpid())).touch()
            threading.Event().wait()
        return read(file, *more)

    groups.read_image = hanging


def test_in_an_extraction_what_is_encoded_is_kept(filling, tmp_path, capfd) -> None:
    whole = dataclasses.replace(filling, cache=tmp_path / "whole")
    assert in_children(lambda: extract.main(whole)) == [0]
    passes = tmp_path / "passes"

    def terminated() -> None:
        Backbone.encode = at_call(3, Backbone.encode)
        as_command(extract.main, filling)

    def rest() -> None:
        encode = Backbone.encode

        def noted(backbone, pixels, *more):
            with passes.open("a") as file:
                file.write(f"{len(pixels)}\n")
            return encode(backbone, pixels, *more)

        Backbone.encode = noted
        extract.main(filling)

    assert in_children(terminated) == [ASKED]
    assert "stopped: start the same command again" in capfd.readouterr().err.splitlines()[-1]
    assert in_children(rest) == [0]
    one, *again = map(int, passes.read_text().split())  # one image tells how wide a feature is
    assert one == 1 and sum(again) == len(Manifest.read(filling.manifest[0])) - 2 * 16  # the second was finished
    np.testing.assert_array_equal(features(filling), features(whole))


def test_a_data_process_that_hangs_delays_no_sigterm(filling, tmp_path) -> None:
    """It is deaf to SIGTERM itself, and Python would wait for it."""
    workers = tmp_path / "workers"
    workers.mkdir()

    def terminated() -> None:
        hang(workers)
        threading.Thread(target=strike, args=(workers, 2, signal.SIGTERM), daemon=True).start()
        as_command(extract.main, filling)

    assert in_children(terminated) == [ASKED]
    gone(workers)


def strike(workers: Path, count: int, number: signal.Signals) -> None:
    """Signal this process as soon as so many workers hang."""
    while len(list(workers.iterdir())) < count:
        time.sleep(0.05)
    os.kill(os.getpid(), number)


def gone(workers: Path) -> None:
    """Wait for the end of the processes that hang; fails if it does not come."""
    numbers = [int(path.name) for path in workers.iterdir()]
    assert len(numbers) == 2
    deadline = time.monotonic() + 30
    while alive := [number for number in numbers if lives(number)]:
        if time.monotonic() > deadline:
            for number in alive:
                os.kill(number, signal.SIGKILL)
            pytest.fail(f"{len(alive)} live on")
        time.sleep(0.1)


def lives(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("what", ["extract", "training"])
def test_no_data_process_outlives_a_kill_9(what, filling, config, tmp_path) -> None:
    workers = tmp_path / "workers"
    workers.mkdir()

    def killed() -> None:
        hang(workers)
        threading.Thread(target=strike, args=(workers, 2, signal.SIGKILL), daemon=True).start()
        extract.main(filling) if what == "extract" else lora.main(config)

    assert in_children(killed) == [-signal.SIGKILL]
    gone(workers)


def test_in_a_prediction_finished_rows_are_kept(planted, tmp_path, capfd) -> None:
    backbone = load_backbone("tiny")
    Detector(backbone, LinearHead(backbone.dim)).eval().save(tmp_path / "detector", {})
    given = {"detector": (tmp_path / "detector",), "input": (str(planted.parent / "test"),), "num_workers": 2}
    whole, config = (predict.Config(**given, output=tmp_path / name / "x.csv") for name in ("whole", "run"))
    config.output.parent.mkdir()
    assert in_children(lambda: predict.main(whole)) == [0]

    def terminated() -> None:
        finished_batches.BatchJournal.add = at_call(2, finished_batches.BatchJournal.add)
        as_command(predict.main, config)

    assert in_children(terminated) == [ASKED]
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("stopped: 1 of ") and "the same command continues" in said
    assert in_children(lambda: predict.main(config)) == [0]
    assert config.output.read_bytes() == whole.output.read_bytes()


LAUNCHER = """
import subprocess, sys
child = '''
import os, time
from pathlib import Path
from adapt import stop
stop.heed()
Path("child").write_text(str(os.getpid()))
try:
    time.sleep(60)
except stop.Stopped:
    Path("stopped").touch()
'''
subprocess.run([sys.executable, "-c", child])
"""


@pytest.mark.parametrize(("name", "heard"), [("torchrun", True), ("other", False)])
def test_the_end_of_a_launcher_is_a_sigterm(name, heard, tmp_path) -> None:
    """`accelerate launch` dies of a SIGTERM and leaves its process alone; no other parent ends a run with it."""
    (tmp_path / name).write_text(LAUNCHER)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([sys.executable, tmp_path / name], cwd=tmp_path, env=environment)
    child, deadline = tmp_path / "child", time.monotonic() + 30
    while not child.is_file() or not child.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    number, until = int(child.read_text()), time.monotonic() + (30 if heard else 3)
    while lives(number) and time.monotonic() < until:
        time.sleep(0.05)
    assert (tmp_path / "stopped").exists() == heard
    if not heard:
        os.kill(number, signal.SIGKILL)


def test_what_is_whole_is_not_cut() -> None:
    def body() -> None:
        stop.heed()
        done = []
        try:
            with stop.whole(), stop.whole():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append(1)
        except stop.Stopped as stopped:
            assert done == [1] and stop.asked() and stopped.code == ASKED
            os._exit(9)

    assert in_children(body) == [9]

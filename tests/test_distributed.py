"""Several processes, on one machine and as two nodes: one that is killed, a folder without locks, a disk that is full.

The others end with a line, and once the cause is gone the same command ends as if nothing had happened, byte for byte.
"""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lora
import numpy as np
import open_clip  # noqa: F401 (as adapt.training.report: loaded once here, inherited by every child)
import peft  # noqa: F401
import psutil
import pytest
from processes import as_command, in_children

import adapt.training.report  # noqa: F401
from adapt import cli
from adapt.files import sha256
from adapt.training import checkpoint
from adapt.training.run import Run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config(planted, tmp_path_factory) -> lora.Config:
    return lora.Config(
        manifest=(str(planted),),
        output_dir=tmp_path_factory.mktemp("distributed") / "run",
        train_views=("none",),
        test_views=("none",),
        epochs=1,
        groups=4,  # of 16: 4 steps
        rank=2,
        precision="fp32",
        resamples=20,
        checkpointing_steps=1,
        num_workers=1,
    )


def uninterrupted(config: lora.Config, world: int) -> dict[str, str]:
    """What a run of so many processes leaves; it is made once."""
    whole = dataclasses.replace(config, output_dir=config.output_dir.with_name(f"whole-{world}"))
    if not whole.output_dir.exists():
        assert in_children(lambda: lora.main(whole), world) == [0] * world
    return results(whole.output_dir)


def results(folder: Path) -> dict[str, str]:
    weights = ("detector/head.safetensors", "detector/adapter/adapter_model.safetensors")
    return {name: sha256(folder / name) for name in ("log.jsonl", "scores.parquet", "metrics.csv", *weights)}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def kill_at_step(number: int, rank: str) -> None:
    """In one process of a launch: end it when it has updated its weights so many times, before its checkpoint."""
    log = Run._log_step

    def logged(run: Run, *values: float) -> None:
        log(run, *values)
        if run.step_number == number and os.environ["RANK"] == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    Run._log_step = logged


def without_locks() -> None:
    """As on NFS without a lock server."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.lockf = none


def here(*_: object) -> None:
    """As on any disk."""


@pytest.mark.parametrize(("killed", "disk"), [("1", here), ("0", without_locks)])
def test_one_of_three_is_killed(killed, disk: Callable, config, tmp_path, capfd) -> None:
    whole, config = uninterrupted(config, 3), dataclasses.replace(config, output_dir=tmp_path / "run")
    capfd.readouterr()

    def body() -> None:
        disk()
        kill_at_step(3, killed)
        as_command(lora.main, config)

    begin = time.monotonic()
    statuses = in_children(body, 3, along=False)
    assert time.monotonic() - begin < 120  # half of it for what comes before the kill
    assert statuses == [-signal.SIGKILL if str(rank) == killed else 1 for rank in range(3)]
    said = capfd.readouterr().err
    assert "Traceback" not in said and said.count("error: ") == 2, said  # the bar of the one that was killed may stand
    assert said.count("has lost another one (") == said.count("): start the same command again to continue\n") == 2
    marks = [path for path in config.output_dir.iterdir() if path.name.startswith(".lock~")]
    assert len(marks) == (disk is without_locks)  # of the process that was killed

    def rest() -> None:
        disk()
        lora.main(config)

    assert in_children(rest, 3) == [0, 0, 0]
    assert results(config.output_dir) == whole


def test_three_processes_compute_what_one_does(config) -> None:
    for world in (1, 3):
        uninterrupted(config, world)
    one, three = (losses(config.output_dir.with_name(f"whole-{world}")) for world in (1, 3))
    np.testing.assert_allclose(three, one, rtol=1e-4)


def test_a_disk_that_is_full_at_every_checkpoint(config, tmp_path, capfd) -> None:
    """Each sitting comes one checkpoint further: the one that it could not write is written by the next."""
    whole = uninterrupted(config, 2)
    config = dataclasses.replace(config, output_dir=tmp_path / "run", checkpointing_steps=2)

    def full_at(step: int) -> None:
        save = checkpoint.save_file

        def full(tensors: dict, path: Path) -> None:
            if f"checkpoint-{step}" in str(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(tensors, path)

        checkpoint.save_file = full
        as_command(lora.main, config)

    for step in (2, 3, 4):  # by the flag, before the last step, behind the validation
        capfd.readouterr()
        assert in_children(lambda step=step: full_at(step), 2) == [2, 1]
        said = capfd.readouterr().err
        assert "Traceback" not in said
        first, second = sorted(line for line in said.splitlines() if line.startswith("error: "))
        assert first.startswith(f"error: disk full while writing {config.output_dir}/checkpoint-{step} "), said
        assert first.endswith("earlier checkpoints are intact") and "process 1 has lost another one" in second
        assert len(losses(config.output_dir)) == step
    assert in_children(lambda: lora.main(config), 2) == [0, 0]
    assert results(config.output_dir) == whole


RECIPE = """
import runpy, sys
sys.path[:0] = {paths!r}
import test_distributed
test_distributed.kill_at_step({step}, "1")
sys.argv[0] = {recipe!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def two_nodes(script: Path, words: list[str], folder: Path) -> list[int]:
    """Statuses of two launches by `torchrun`, as on two machines, of a process each; what they say is in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launch += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    nodes = []
    for rank in (0, 1):
        with (folder / f"node-{rank}").open("wb") as said:
            command = [*launch, "--node_rank", str(rank), str(script), *words]
            nodes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
    try:
        return [node.wait(240) for node in nodes]
    finally:
        for node in nodes:
            for process in [*psutil.Process(node.pid).children(recursive=True), node] if node.poll() is None else []:
                process.kill()


def test_two_nodes_of_which_one_loses_its_process(config, tmp_path) -> None:
    whole, config = uninterrupted(config, 2), dataclasses.replace(config, output_dir=tmp_path / "run")
    (tmp_path / "config.yaml").write_text(cli.dump(config))
    words, recipe = ["--config", str(tmp_path / "config.yaml")], ROOT / "recipes" / "lora.py"
    paths = [str(ROOT / "recipes"), str(ROOT / "tests")]
    script = tmp_path / "killed.py"
    script.write_text(RECIPE.format(paths=paths, step=3, recipe=str(recipe)))
    assert all(two_nodes(script, words, tmp_path))
    said = (tmp_path / "node-0").read_text()
    assert (
        len([line for line in said.splitlines() if line.startswith(("error: process 0 has lost", "stopped: "))]) == 1
    )
    assert losses(config.output_dir)[2:] and not (config.output_dir / "provenance.json").exists()
    assert two_nodes(recipe, words, tmp_path) == [0, 0]
    assert "resumed at step 2" in (tmp_path / "node-0").read_text()
    assert results(config.output_dir) == whole

"""Commands on a disk that is full, or gets full while they run: one line and status 2, whatever they were writing.

The disk is a tmpfs of 1 MB, which only root may mount: elsewhere these tests are skipped.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zoo
from safetensors.torch import save_file

from adapt import __main__ as program
from adapt.detector.detector import Detector
from adapt.errors import Refusal
from adapt.files import FULL, atomic, disk_full
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import TINY, load_backbone

ROOMS = (0, 4096, 12288, 40960)  # bytes that are free: in pages
WEIGHTS = TINY / "open_clip_model.safetensors"


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A folder on a disk of 1 MB, with the cache and the temporary files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("cannot mount a tmpfs: needs Linux and root")
    for name in ("TMPDIR", "ADAPT_CACHE", "SQLITE_TMPDIR"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    monkeypatch.chdir(tmp_path)
    try:
        yield folder
    finally:
        os.chdir(tmp_path)
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, room: int) -> None:
    """Leave `room` bytes."""
    with (folder / "filling").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert disk_full(error)
        file.truncate(file.tell() - room)


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    folder, backbone = tmp_path_factory.mktemp("full") / "detector", load_backbone("tiny")
    Detector(backbone, LinearHead(backbone.dim)).eval().save(folder, {})
    return folder


COMMANDS = {
    "prepare": "prepare folders --folder {disk}/mine",
    "pack": "pack --manifest {world} --output {disk}/all.csv",
    "align": "align --manifest {world} --output_dir {disk}/aligned --size resize64",
    "audit": "audit --manifest {world} --output_dir {disk}/audit",
    "extract": "extract --manifest {world} --cache {disk}/cache --views none --num_workers 0",
    "predict": "predict --detector {detector} --input {disk}/mine --output {disk}/found.csv --num_workers 0",
    "parquet": "predict --detector {detector} --input {disk}/mine --output {disk}/found.parquet --num_workers 0",
    "composites": "composites --manifest {world} --output {disk}/composites.csv",
    "world": "run linear_probe --output_dir {disk}/probe",
    "probe": "run linear_probe --manifest {world} --output_dir {disk}/probe --test_views none --num_workers 0",
    "ablation": "run ablation --manifest {world} --output_dir {disk}/ablation --only probe-logistic-*seed0 "
    "--test_views none --num_workers 0",
    "hub": "prepare hub --repo {hub} --output {disk}/set.csv",
    "convert": "convert {tiny} --like tiny --output {disk}/tower",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    pictures = [zoo.save(zoo.picture(70, 66, seed=i), "JPEG") for i in range(20)]
    table = {"image": [{"bytes": data, "path": None} for data in pictures], "label": [i % 2 for i in range(20)]}
    pq.write_table(pa.table(table), folder / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_on_a_full_disk_ends_in_one_line(
    name, disk, detector, hub, planted, tmp_path, monkeypatch, capsys
) -> None:
    for room in ROOMS[: {"audit": 1, "world": 1, "ablation": 2}.get(name, 4)]:
        command = COMMANDS[name].format(disk=disk, world=planted, detector=detector, hub=hub, tiny=WEIGHTS)
        for left in disk.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        for kind in ("real", "sd"):
            (disk / "mine" / kind).mkdir(parents=True)
            for i in range(20):
                data = zoo.save(zoo.picture(70, 66, seed=i + 100 * (kind == "sd")), "JPEG")
                (disk / "mine" / kind / f"{i}.jpg").write_bytes(data)
        fill(disk, room)
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(sys, "argv", ["adapt", *command.split()])
        capsys.readouterr()
        try:
            program.main()
        except SystemExit as end:
            status = end.code
        else:
            status = 0
        said = capsys.readouterr().err
        assert "Traceback" not in said and "Exception" not in said, (room, said)
        if status or room == 0:
            errors = [line for line in said.splitlines() if "error" in line]
            assert status == 2 and len(errors) == 1, (room, said)
            assert errors[0].startswith("error: disk full") and str(disk) in errors[0], errors
            assert "free some space" in errors[0]


@pytest.mark.parametrize(("room", "what"), [(4096, "tensorboard"), (40960, "checkpoint-3")])
def test_a_training_on_a_full_disk_ends_in_one_line(disk, planted, room, what) -> None:
    """As a process: TensorBoard writes in a thread of its own, and files are closed at the end."""
    fill(disk, room)
    words = ["--epochs", "1", "--groups", "4", "--test_views", "none", "--num_workers", "0"]
    command = [sys.executable, "-m", "adapt", "run", "lora", "--manifest", planted, "--output_dir", disk / "lora"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: disk full while writing {disk}/lora/{what}") and "free some space" in last, last


def test_what_libraries_write_by_themselves_is_one_line_too(disk) -> None:
    fill(disk, 4096)
    with (
        pytest.raises(Refusal, match=r"disk full while writing .*x\.safetensors"),
        atomic(disk / "x.safetensors") as to,
    ):
        save_file({"x": torch.zeros(10_000)}, to)
    assert not (disk / "x.safetensors").exists()
    index = (
        "from adapt.collect.download_state import Index\n"
        "index = Index()\n"
        "for n in range(40_000):\n"
        "    index.apply({'key': f'k{n}', 'url': f'http://example.org/{n:0100}', 'ask': 1})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", index], env=environment, capture_output=True, text=True)
    assert "Refusal: disk full while writing the index of a download" in done.stderr.splitlines()[-1]


def test_a_full_disk_is_told_from_other_errors() -> None:
    assert disk_full(OSError(28, "No space left on device")) and disk_full(OSError(122, "Disk quota exceeded"))
    assert disk_full(RuntimeError("worker 1: OSError: [Errno 28] No space left on device"))
    for other in (OSError(13, "Permission denied"), ValueError("a number"), MemoryError(), KeyboardInterrupt()):
        assert not disk_full(other)
    assert not disk_full(Refusal(FULL.format("")))

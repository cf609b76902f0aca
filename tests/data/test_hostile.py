"""Thousands of files that mean harm or are merely odd: one row each, little memory, no traceback."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo

from adapt.data.tables import read_table
from adapt.detector.detector import Detector
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import load_backbone

ROOT = Path(__file__).parents[2]
COPIES = 20
BOUND = 2 * 2**20  # kB: torch takes a third, an image of 67 Mpx may take half
RUN = """
import resource, sys
from adapt.commands import predict
from adapt.cli import run
sys.argv = ["adapt predict", *sys.argv[1:]]
run(predict.main, predict.Config)
peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print("peak", max(peaks))
"""


def special(folder: Path, outside: Path) -> dict[str, str]:
    """What is no plain file, or has a name that hurts: path -> status."""
    good = zoo.save(zoo.picture(), "PNG")
    (outside / "secret.png").write_bytes(good)
    expected = {}
    for name in ("new\nline.png", "cr\r.png", "\udcff\udcfe.jpg", "a" * 251 + ".png", "-rf", "%s%n.png", ".png"):
        (folder / name).write_bytes(good)
        expected[name] = "ok"
    (folder / "photo.jpg").write_bytes(good)
    (folder / "picture.exe").write_bytes(zoo.save(zoo.picture(), "JPEG"))
    (folder / "gzip.png").write_bytes(b"\x1f\x8b\x08" + bytes(100))
    (folder / "65500x1.png").write_bytes(zoo.save(zoo.picture(65500, 1), "PNG"))
    (folder / "1x65500.png").write_bytes(zoo.png(1, 65500, 8, 2, bytes(4 * 65500)))
    (folder / "vast.png").write_bytes(zoo.png(8191, 8191, 8, 0, bytes(8191 * 8192)))  # just allowed: 67 Mpx
    (folder / "turned.jpg").write_bytes(zoo.save(np.zeros((2000, 400, 3), np.uint8), "JPEG", exif=zoo.exif(6)))
    expected |= {
        "photo.jpg": "ok",
        "picture.exe": "ok",
        "gzip.png": "not-an-image",
        "vast.png": "ok",
        "turned.jpg": "ok",
    }
    expected |= {"65500x1.png": "aspect", "1x65500.png": "aspect"}
    for name, target in (("out.png", outside / "secret.png"), ("etc", "/etc/passwd"), ("zero", "/dev/zero")):
        (folder / name).symlink_to(target)
        expected[name] = "outside"
    (folder / "up").symlink_to("..")
    (folder / "self.png").symlink_to("self.png")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket may have 107 bytes
        server.bind("socket.png")
        os.chdir(here)
    expected |= {"up": "outside", "self.png": "io-error", "pipe.jpg": "not-a-file", "socket.png": "not-a-file"}
    try:
        os.mknod(folder / "device.png", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        expected["device.png"] = "not-a-file"
    except PermissionError:
        pass
    return expected


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    folder, backbone = tmp_path_factory.mktemp("detector"), load_backbone("tiny")
    head = LinearHead(backbone.dim)
    with torch.no_grad():
        head.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    Detector(backbone, head).save(folder, {})
    return folder


@pytest.mark.timeout(900)
def test_thousands_of_hostile_files(detector, tmp_path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    expected = special(folder, outside)
    for name, (data, status) in zoo.files().items():
        (folder / name).write_bytes(data)
        expected[name] = status if isinstance(status, str) else "ok"
        for i in range(COPIES):  # further names of the same bytes
            copy = f"{i:02d}/{name}"
            (folder / copy).parent.mkdir(exist_ok=True)
            os.link(folder / name, folder / copy)
            expected[copy] = expected[name]
    assert len(expected) > 2000
    command = [sys.executable, "-c", RUN, "--detector", detector, "--input", folder, "--output", tmp_path / "x.csv"]
    command += ["--num_workers", "1"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    table = read_table(tmp_path / "x.csv")
    assert len(table["path"]) == len(expected)
    assert dict(zip(table["path"], table["status"], strict=True)) == expected
    assert all(
        (logit == "") == (status != "ok") for logit, status in zip(table["logit"], table["status"], strict=True)
    )
    assert int(done.stdout.split()[-1]) < BOUND
    assert (tmp_path / "x.html").stat().st_size < 2**21

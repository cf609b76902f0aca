"""Small complete networks for tests, images of odd sizes, and the command line."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from importing import adapt
from PIL import Image
from torch import nn

SIZES = ((90, 61), (32, 32), (57, 130), (20, 33), (200, 24))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPARED = ("--name", "toy", "--size", 32, "--mean", *MEAN, "--std", *STD)


def cnn(outputs: int = 1) -> nn.Sequential:
    """Convolutions, norms with statistics of their own, and what else a classifier has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, groups=8), nn.SiLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(32, outputs),
        )  # fmt: skip
        net(torch.randn(16, 3, 32, 32))  # in training mode: the norms gather statistics
        nn.init.normal_(net[-1].weight)
    return net.eval()


def write_script(net: nn.Module, file: Path, how: str = "scripted") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates what many published files were written with
        script = torch.jit.trace(net, torch.randn(2, 3, 32, 32)) if how == "traced" else torch.jit.script(net)
        torch.jit.save(torch.jit.freeze(script) if how == "frozen" else script, file)
    return file


def rewrite(file: Path, new: Path, change: dict[str, tuple[str, str]]) -> Path:
    """A copy of an archive in which the text of each member whose name ends so is changed from this to that."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(new, "w") as out:
        for info in old.infolist():
            data = old.read(info)
            for end, (before, after) in change.items():
                if info.filename.endswith(end):
                    assert before.encode() in data, data
                    data = data.replace(before.encode(), after.encode(), 1)
            out.writestr(info.filename, data)
    return new


def write_pictures(folder: Path) -> Path:
    """Images larger and smaller than the crop, with odd margins."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    for i, (width, height) in enumerate(SIZES):
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def refused(monkeypatch, capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        adapt(monkeypatch, *words)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 or "Error parsing" in said, said  # a flag's is in a box
    return " ".join(said.split())

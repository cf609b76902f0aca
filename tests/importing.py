"""What tests of imported detectors have in common: pictures, the command, and random weights under published names."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapt.__main__ import main
from adapt.detector.detector import load_detector
from adapt.evaluation.thresholds import AS_PUBLISHED

SIZES = ((90, 61), (57, 131), (40, 33), (200, 20), (303, 448), (451, 389))  # with odd margins, and small ones


def draw_pictures(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> Path:
    """Smooth colours with noise, a PNG of each size."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    for i, (width, height) in enumerate(sizes):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(coarse).astype(int) + draw.integers(-60, 61, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def adapt(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["adapt", *map(str, words)])
    main()


def refused(monkeypatch, capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        adapt(monkeypatch, *words)
    assert end.value.code == 2
    return capsys.readouterr().err


def shaken(model: torch.nn.Module, seed: int = 5) -> torch.nn.Module:
    """Every weight drawn anew, those that are all alike about what they are: none is left out or exchanged unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                same = (tensor == tensor.flatten()[0]).all()
                tensor.mul_(same).add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def same_logits(folder: Path, pictures: Path, prepare: Callable, logit: Callable) -> None:
    """Logits of a saved detector are those of `logit` on the images prepared by `prepare`, and differ by image."""
    detector = load_detector(folder)
    found = [row["logit"] for row in detector.predict([pictures])]
    with torch.no_grad():
        batch = torch.stack([prepare(Image.open(file)) for file in sorted(pictures.iterdir())])
        expected = logit(batch).flatten().tolist()
    assert np.ptp(expected) > 0.01 and detector.threshold == 0 and detector.basis == AS_PUBLISHED
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

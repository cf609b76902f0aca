"""What tests of imported detectors share: odd images, the command itself, and its logits beside a reference."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adapt.__main__ import main
from adapt.detector.detector import Detector, load_detector

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = ((90, 61), (56, 56), (57, 130), (40, 33), (200, 20))  # beside towers of 56 px


def odd_pictures(folder: Path) -> list[Path]:
    """PNG files of random colours, larger and smaller than a tower's images, with odd margins."""
    folder.mkdir()
    draw = np.random.default_rng(1)
    for i, (width, height) in enumerate(SIZES):
        blocks = draw.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
        pixels = np.kron(blocks, np.ones((3, 3, 1), dtype=np.uint8))[:height, :width]
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def transformers_clip(folder: Path, size: int = 56) -> str:
    """The name of a backbone: a random CLIP tower of transformers, patches of 14 px, QuickGELU."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}
    config = CLIPVisionConfig(**sizes, image_size=size, patch_size=14, projection_dim=24, hidden_act="quick_gelu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
    prepares = {"image_mean": MEAN, "image_std": STD, "resample": 3, "do_center_crop": True}
    prepares |= {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepares))
    return f"transformers:{folder}"


def run_adapt(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["adapt", *map(str, words)])
    main()


def imported(monkeypatch, name: str, content: Mapping[str, object], tower: str, folder: Path) -> Detector:
    """The detector that `adapt import` makes of a file with this content, loaded again."""
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "weights.pth")
    words = ("import", name, folder / "weights.pth", "--output", folder / "detector", "--backbone", tower)
    run_adapt(monkeypatch, *words)
    return load_detector(folder / "detector")


def assert_logits(detector: Detector, pictures: list[Path], reference: Callable[[Image.Image], Tensor]) -> None:
    """Every image gets the reference's logit, to 1e-5, and the logits differ between images."""
    found = [row["logit"] for row in detector.predict(pictures)]
    with torch.no_grad():
        expected = [float(reference(Image.open(file).convert("RGB"))) for file in pictures]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.std(expected) > 1e-3


def refusal(monkeypatch, capsys, name: str, content: Mapping[str, object], tower: str, folder: Path) -> str:
    """What `adapt import` says of a file that does not fit; it makes no folder."""
    with pytest.raises(SystemExit) as end:
        imported(monkeypatch, name, content, tower, folder)
    assert end.value.code == 2 and not (folder / "detector").exists()
    return capsys.readouterr().err

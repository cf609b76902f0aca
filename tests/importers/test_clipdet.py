"""ClipBased-SyntheticImageDetection: its logits are those of the published equation, whatever wraps its tensors."""

import open_clip
import pytest
import torch
from PIL import Image
from published_heads import MEAN, STD, assert_logits, imported, odd_pictures, refusal
from random_towers import open_clip_folder
from torchvision import transforms

from adapt.data.preprocess import Preprocess

WRAPPED = {
    "model": lambda head: {"model": {f"module.{key}": value for key, value in head.items()}},
    "bare model": lambda head: {"model": head},
    "state_dict": lambda head: {"state_dict": head, "epoch": 3},
    "net": lambda head: {"net": head},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_logits_are_those_of_the_published_equation(tmp_path, monkeypatch, wrapper) -> None:
    tower = open_clip_folder(tmp_path / "tower", embed_dim=24)
    head = {"fc.weight": 9 * torch.randn(1, 64), "fc.bias": torch.randn(1)}
    detector = imported(monkeypatch, "clipdet", WRAPPED[wrapper](head), tower, tmp_path / "made")
    clip = open_clip.create_model(tower.removeprefix("open_clip:")).eval()
    clip.visual.proj = None
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = transforms.Resize(56, interpolation=bicubic), transforms.CenterCrop(56), transforms.ToTensor()
    prepare = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def reference(image: Image.Image) -> torch.Tensor:
        feature = clip.visual(prepare(image)[None])
        return feature / feature.norm() @ head["fc.weight"].T + head["fc.bias"]

    assert_logits(detector, odd_pictures(tmp_path / "pictures"), reference)
    assert detector.threshold == 0 and detector.backbone.preprocess == Preprocess(56, 56)


def test_another_head_is_refused_by_its_names(tmp_path, monkeypatch, capsys) -> None:
    tower = open_clip_folder(tmp_path / "tower", embed_dim=24)
    content = {"model": {"fc.weight": torch.randn(1, 24), "fc1.bias": torch.zeros(1)}}
    said = refusal(monkeypatch, capsys, "clipdet", content, tower, tmp_path / "made")
    assert all(part in said for part in ("1 missing: fc.bias", "fc1.bias", "fc.weight (1, 24) instead of (1, 64)"))

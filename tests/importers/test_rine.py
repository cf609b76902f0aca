"""RINE: its logits are those of the published equation on hooked norms, for the two depths that were published."""

import open_clip
import pytest
import torch
from PIL import Image
from published_heads import MEAN, STD, assert_logits, imported, odd_pictures, refusal
from random_towers import open_clip_folder
from torch.nn import functional as F
from torchvision import transforms

from adapt.data.preprocess import Preprocess

BLOCKS, WIDTH = 3, 64  # of the random tower


def published(depth: int, hidden: int) -> dict[str, torch.Tensor]:
    """Random weights under the names of the authors' file."""
    draw = torch.Generator().manual_seed(5)
    state = {"alpha": torch.randn(1, BLOCKS, hidden, generator=draw)}
    places = [("proj1", 1 + 3 * i, hidden if i else WIDTH, hidden) for i in range(depth)]
    places += [("proj2", 1 + 3 * i, hidden, hidden) for i in range(depth)]
    places += [("head", 0, hidden, hidden), ("head", 3, hidden, hidden), ("head", 6, hidden, 1)]
    for part, place, wide, out in places:
        state[f"{part}.{place}.weight"] = 1.5 * torch.randn(out, wide, generator=draw) / wide**0.5
        state[f"{part}.{place}.bias"] = 0.1 * torch.randn(out, generator=draw)
    return state


@pytest.mark.parametrize(("depth", "hidden"), [(4, 16), (2, 32)])
def test_logits_are_those_of_the_published_equation(tmp_path, monkeypatch, depth, hidden) -> None:
    tower, state = open_clip_folder(tmp_path / "tower"), published(depth, hidden)
    detector = imported(monkeypatch, "rine", state, tower, tmp_path / "made")
    clip = open_clip.create_model(tower.removeprefix("open_clip:")).eval()
    seen: list[torch.Tensor] = []
    for name, module in clip.visual.named_modules():
        if name.endswith("ln_2"):
            module.register_forward_hook(lambda _, __, output: seen.append(output[0, 0]))
    steps = transforms.CenterCrop(56), transforms.ToTensor(), transforms.Normalize(MEAN, STD)
    prepare = transforms.Compose(steps)

    def layers(x: torch.Tensor, part: str, places: range) -> torch.Tensor:
        for place in places:
            x = F.linear(x, state[f"{part}.{place}.weight"], state[f"{part}.{place}.bias"]).relu()
        return x

    def reference(image: Image.Image) -> torch.Tensor:
        seen.clear()
        clip.encode_image(prepare(image)[None])
        projected = layers(torch.stack(seen), "proj1", range(1, 3 * depth, 3))  # (blocks, hidden)
        mixed = (torch.softmax(state["alpha"][0], dim=0) * projected).sum(dim=0)
        last = layers(layers(mixed, "proj2", range(1, 3 * depth, 3)), "head", range(0, 6, 3))
        return F.linear(last, state["head.6.weight"], state["head.6.bias"])

    assert_logits(detector, odd_pictures(tmp_path / "pictures"), reference)
    assert detector.threshold == 0 and detector.head.describe()["scaled"] is False
    assert detector.backbone.preprocess == Preprocess(56, 56, geometry="native", pad="zero")


def test_another_tower_or_file_is_refused_by_its_names(tmp_path, monkeypatch, capsys) -> None:
    tower = open_clip_folder(tmp_path / "tower", layers=2)
    said = refusal(monkeypatch, capsys, "rine", published(2, 16), tower, tmp_path / "made")
    assert "alpha (1, 3, 16) instead of (1, 2, 16)" in said
    said = refusal(monkeypatch, capsys, "rine", {"fc.weight": torch.zeros(1, 64)}, tower, tmp_path / "other")
    assert "missing: alpha, proj1.1.weight" in said and "fc.weight" in said

"""FGTS: its logits are those of the published equation on timm's own DINOv3, with the tokens that its file lists."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from published_heads import assert_logits, imported, odd_pictures, refusal
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision import transforms

from adapt.data.preprocess import Preprocess
from adapt.detector.detector import load_detector
from adapt.errors import Refusal

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NAME, SMALL = "vit_small_patch16_dinov3", {"embed_dim": 32, "depth": 2, "num_heads": 2}
CHOSEN = [5, 19, 8, 12]  # of 5 + 16 places at 64 px


def tower(folder: Path) -> str:
    """The name of a backbone: a small random DINOv3 of timm, whose own size is another."""
    folder.mkdir()
    torch.manual_seed(3)
    model = timm.create_model(NAME, num_classes=0, **SMALL)
    state = {key: value + 0.1 * torch.randn_like(value) for key, value in model.state_dict().items()}
    save_file(state, folder / "m.safetensors")
    (folder / "m.json").write_text(json.dumps({"architecture": NAME, "num_classes": 0, "model_args": SMALL}))
    return f"timm:{NAME}@{folder / 'm.safetensors'}"


def content(key: str = "model_state_dict", places: object = CHOSEN) -> dict[str, object]:
    """What the authors save, with random weights."""
    draw = torch.Generator().manual_seed(5)
    state = {"fc.weight": torch.randn(2, 32, generator=draw), "fc.bias": torch.randn(2, generator=draw)}
    config = {"model": "dinov3_vit_7b", "img_size": 64, "checkpoint": None, "lr": 0.01, "top_k": 4}
    return {key: state, "token_indices": places, "config": config, "fisher_scores": [0.5] * 21}


@pytest.mark.parametrize("key", ["model_state_dict", "probe_state_dict"])
def test_logits_are_those_of_the_published_equation(tmp_path, monkeypatch, key) -> None:
    name, file = tower(tmp_path / "tower"), content(key)
    detector = imported(monkeypatch, "fgts", file, name, tmp_path / "made")
    model = timm.create_model(NAME, num_classes=0, img_size=64, **SMALL).eval()
    timm.models.load_checkpoint(model, str(tmp_path / "tower" / "m.safetensors"))
    steps = transforms.Resize((64, 64)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)
    prepare = transforms.Compose(steps)

    def reference(image: Image.Image) -> Tensor:
        tokens = model.forward_features(prepare(image)[None])[0]
        real, fake = file[key]["fc.weight"] @ tokens[CHOSEN].mean(dim=0) + file[key]["fc.bias"]
        return torch.logit(torch.softmax(torch.stack([real, fake]).double(), dim=0)[1])

    assert_logits(detector, odd_pictures(tmp_path / "pictures"), reference)
    assert detector.threshold == 0
    assert detector.backbone.preprocess == Preprocess(64, 64, "bilinear", "squash")


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([5, 21], "reads token 21, and patches have 5 to 20"),
        ([0, 7], "reads token 0"),
        ([], "does not list its tokens"),
        ([5.0], "does not list its tokens"),
        (None, "does not list its tokens"),
    ],
)
def test_tokens_that_are_no_patches_are_refused(tmp_path, monkeypatch, capsys, places, words) -> None:
    name = tower(tmp_path / "tower")
    assert words in refusal(monkeypatch, capsys, "fgts", content(places=places), name, tmp_path / "made")


def test_another_head_is_refused_by_its_names(tmp_path, monkeypatch, capsys) -> None:
    file = content() | {"model_state_dict": {"fc.weight": torch.zeros(1, 32), "head.bias": torch.zeros(2)}}
    said = refusal(monkeypatch, capsys, "fgts", file, tower(tmp_path / "tower"), tmp_path / "made")
    assert all(part in said for part in ("missing: fc.bias", "head.bias", "fc.weight (1, 32) instead of (2, 32)"))


def test_a_strangers_head_reads_no_place_that_is_none(tmp_path, monkeypatch) -> None:
    imported(monkeypatch, "fgts", content(), tower(tmp_path / "tower"), tmp_path / "made")
    folder = tmp_path / "made" / "detector"
    record = json.loads((folder / "detector.json").read_text())
    del record["files"]
    (folder / "detector.json").write_text(json.dumps(record))
    tensors = load_file(folder / "head.safetensors")
    for wrong in (torch.tensor([16]), torch.tensor([-1]), torch.tensor([1.0]), torch.zeros(0, dtype=torch.int64)):
        save_file(tensors | {"chosen": wrong}, folder / "head.safetensors")
        with pytest.raises(Refusal, match="does not describe a chosen-tokens head"):
            load_detector(folder)

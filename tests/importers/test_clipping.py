"""CLIPping the Deception: the logits of its probe and of its adapter are those of the published equations."""

from collections.abc import Callable

import numpy as np
import open_clip
import torch
from PIL import Image
from published_heads import MEAN, STD, assert_logits, imported, odd_pictures, refusal
from random_towers import open_clip_folder
from torch import Tensor, nn
from torchvision import transforms

from adapt.data.preprocess import Preprocess
from adapt.detector.detector import load_detector


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of_tower(tower: str) -> tuple[nn.Module, Callable[[list[str]], Tensor]]:
    clip = open_clip.create_model(tower.removeprefix("open_clip:")).eval()
    return clip, open_clip.tokenizer.SimpleTokenizer(context_length=8)


def test_the_linear_probe_reads_images_as_opencv_hands_them_over(tmp_path, monkeypatch) -> None:
    """The whole model is in its file, in half precision but for CLIP; only the probe is taken."""
    tower = open_clip_folder(tmp_path / "tower", embed_dim=24)
    clip, _ = of_tower(tower)
    head = {"fc.linear.weight": drawn(2, 24, seed=1).half(), "fc.linear.bias": drawn(2, seed=2).half()}
    whole = {f"feature_extractor.{key}": torch.zeros_like(value) for key, value in clip.state_dict().items()} | head
    detector = imported(monkeypatch, "clipping", whole, tower, tmp_path / "made")
    steps = transforms.CenterCrop(56), transforms.ToTensor(), transforms.Normalize(MEAN, STD)
    prepare = transforms.Compose(steps)

    def reference(image: Image.Image) -> Tensor:
        blue_first = Image.fromarray(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
        feature = clip.encode_image(prepare(blue_first)[None])[0]
        real, fake = head["fc.linear.weight"].float() @ feature + head["fc.linear.bias"].float()
        return fake - real

    assert_logits(detector, odd_pictures(tmp_path / "pictures"), reference)
    assert detector.threshold == 0
    assert detector.backbone.preprocess == Preprocess(56, 56, geometry="native", pad="zero", channels="bgr")


def dassl(state: dict[str, Tensor]) -> dict[str, object]:
    """What Dassl saves after an epoch: a scheduler that holds another one, and with it the optimizer."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.002, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
    scheduler = {"successor": cosine, "warmup_epoch": 1, "last_epoch": 2, "cons_lr": 1e-5}
    more = {"optimizer": optimizer.state_dict(), "scheduler": scheduler, "val_result": None}
    return {"state_dict": state, "epoch": 2, **more}


def test_the_adapter_is_compared_with_the_texts_of_its_tower(tmp_path, monkeypatch) -> None:
    tower = open_clip_folder(tmp_path / "tower", embed_dim=24, words=49408)
    clip, tokenize = of_tower(tower)
    down, up = drawn(12, 24, seed=1), drawn(24, 12, seed=2)
    content = dassl({"fc.0.weight": down, "fc.2.weight": up})
    detector = imported(monkeypatch, "clipping", content, tower, tmp_path / "made")
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = transforms.Resize(56, interpolation=bicubic), transforms.CenterCrop(56), transforms.ToTensor()
    prepare = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def reference(image: Image.Image) -> Tensor:
        feature = clip.encode_image(prepare(image)[None])[0]
        mixed = 0.4 * torch.relu(up @ torch.relu(down @ feature)) + 0.6 * feature
        texts = clip.encode_text(tokenize(["a real photo.", "a fake photo."]))
        real, fake = 100 * (texts / texts.norm(dim=1, keepdim=True)) @ (mixed / mixed.norm())
        return fake - real

    assert_logits(detector, odd_pictures(tmp_path / "pictures"), reference)
    assert detector.threshold == 0 and detector.backbone.preprocess == Preprocess(56, 56)
    monkeypatch.setattr("adapt.models.prompts.prompt_features", None)  # the texts are in the folder
    assert load_detector(tmp_path / "made" / "detector").head.texts.shape == (2, 24)


def test_another_file_is_refused_by_its_names(tmp_path, monkeypatch, capsys) -> None:
    tower = open_clip_folder(tmp_path / "tower", embed_dim=24)
    said = refusal(monkeypatch, capsys, "clipping", {"fc.weight": drawn(2, 24, seed=1)}, tower, tmp_path / "a")
    assert "2 missing: fc.linear.weight, fc.linear.bias" in said
    state = {"fc.0.weight": drawn(12, 23, seed=1), "fc.2.weight": drawn(24, 12, seed=1)}
    wrong = dassl(state | {"fc.0.bias": drawn(12, seed=1)})
    said = refusal(monkeypatch, capsys, "clipping", wrong, tower, tmp_path / "b")
    assert "1 not in it: fc.0.bias" in said and "fc.0.weight (12, 23) instead of (12, 24)" in said

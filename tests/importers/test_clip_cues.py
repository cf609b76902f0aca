"""CLIP-Cues: the logits of its three kinds of file are those of the published equations, on transformers' own CLIP."""

import pytest
import torch
from PIL import Image
from published_heads import MEAN, STD, assert_logits, imported, odd_pictures, refusal, transformers_clip
from torch import Tensor
from torchvision import transforms
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

from adapt.data.preprocess import Preprocess

BILINEAR, BICUBIC = transforms.InterpolationMode.BILINEAR, transforms.InterpolationMode.BICUBIC


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def file_of(kind: str) -> dict[str, Tensor]:
    """Random weights under the names of the authors' state dict."""
    if kind == "linear":
        layers = {"fc.weight": drawn(1, 64, seed=1), "fc.bias": drawn(1, seed=2)}
    if kind == "clip":
        layers = {"layers.0.weight": drawn(8, 64, seed=1), "layers.0.bias": drawn(8, seed=2)}
        layers |= {"to_logits.weight": drawn(1, 8, seed=3), "to_logits.bias": drawn(1, seed=4)}
    if kind != "concept":
        return {f"model.classification_head.{key}": value for key, value in layers.items()}
    texts = torch.nn.functional.normalize(drawn(9, 24, seed=1), dim=1)
    gate = {"model.W_concepts.weight": 3 * drawn(9, 24, seed=2), "model.W_concepts.bias": drawn(9, seed=3)}
    end = {"model.W_classifier.weight": 5 * drawn(1, 9, seed=4), "model.W_classifier.bias": drawn(1, seed=5)}
    return {"model.text_embeddings": texts, **gate, **end}


def equation(kind: str, state: dict[str, Tensor], pooled: Tensor, projected: Tensor) -> Tensor:
    w = {key.removeprefix("model.").removeprefix("classification_head."): value for key, value in state.items()}
    if kind == "linear":
        return w["fc.weight"][0] @ pooled + w["fc.bias"]
    if kind == "clip":
        return w["to_logits.weight"] @ (w["layers.0.weight"] @ pooled + w["layers.0.bias"]) + w["to_logits.bias"]
    f = projected / projected.norm()
    gates = 1 / (1 + torch.exp(-(w["W_concepts.weight"] @ f + w["W_concepts.bias"])))
    return w["W_classifier.weight"] @ (w["text_embeddings"] @ f * gates) + w["W_classifier.bias"]


def lower_crop(image: Image.Image) -> Image.Image:
    """Of transformers' processor: half a pixel of an odd margin is dropped."""
    left, top = (image.width - 56) // 2, (image.height - 56) // 2
    return image.crop((left, top, left + 56, top + 56))


@pytest.mark.parametrize("kind", ["linear", "clip", "concept"])
def test_logits_are_those_of_the_published_equation(tmp_path, monkeypatch, kind) -> None:
    tower, state = transformers_clip(tmp_path / "tower"), file_of(kind)
    content = {"state_dict": state, "model_type": kind}
    detector = imported(monkeypatch, "clip_cues", content, tower, tmp_path / "made")
    pooler = CLIPVisionModel.from_pretrained(tmp_path / "tower").eval()
    projector = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "tower").eval()
    scale = transforms.Resize(56, interpolation=BICUBIC if kind == "concept" else BILINEAR)
    crop = lower_crop if kind == "concept" else transforms.CenterCrop(56)
    steps = scale, crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)
    prepare = transforms.Compose(steps)

    def reference(image: Image.Image) -> Tensor:
        pixels = prepare(image)[None]
        return equation(kind, state, pooler(pixels).pooler_output[0], projector(pixels).image_embeds[0])

    assert_logits(detector, odd_pictures(tmp_path / "pictures"), reference)
    assert detector.threshold == 0
    wanted = Preprocess(56, 56, "bicubic", middle="lower") if kind == "concept" else Preprocess(56, 56, "bilinear")
    assert detector.backbone.preprocess == wanted


@pytest.mark.parametrize(
    ("kind", "key", "shape", "words"),
    [
        ("linear", "fc.weight", (1, 24), "fc.weight (1, 24) instead of (1, 64)"),
        ("clip", "to_logits.weight", (2, 8), "to_logits.weight (2, 8) instead of (1, 8)"),
        ("clip", "layers.2.weight", (8, 8), "1 not in it: layers.2.weight"),
    ],
)
def test_another_file_is_refused_by_its_names(tmp_path, monkeypatch, capsys, kind, key, shape, words) -> None:
    tower, state = transformers_clip(tmp_path / "tower"), file_of(kind)
    state[f"model.classification_head.{key}"] = torch.zeros(shape)
    content = {"state_dict": state, "model_type": kind}
    assert words in refusal(monkeypatch, capsys, "clip_cues", content, tower, tmp_path / "made")
    state = file_of("concept") | {"model.W_concepts.bias": torch.zeros(8)}
    said = refusal(monkeypatch, capsys, "clip_cues", {"state_dict": state}, tower, tmp_path / "other")
    assert "W_concepts.bias (8,) instead of (9,)" in said

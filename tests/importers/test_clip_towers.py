"""GenD, Effort and C2P-CLIP: their logits are those of the published equations on transformers' own CLIP."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from importing import adapt, draw_pictures, refused, same_logits, shaken
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision import transforms

from adapt.detector.detector import load_detector

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NORMALISE = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
SIZES = ((224, 227), (231, 224), (150, 101), (500, 331), (448, 448))
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def clip() -> torch.nn.Module:
    """OpenAI's image tower, narrow and of two blocks."""
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        **{"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"image_size": 224, "patch_size": 32, "projection_dim": 96, "hidden_act": "quick_gelu"},
    )
    return shaken(transformers.CLIPVisionModelWithProjection(config))


@pytest.fixture
def pictures(tmp_path) -> Path:
    return draw_pictures(tmp_path / "pictures", SIZES)


def pooled(clip: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda batch: clip.vision_model(pixel_values=batch).pooler_output


def two_classes(state: Tensors, features: torch.Tensor) -> torch.Tensor:
    """The log-odds of the second class in a softmax."""
    shares = F.linear(features, *(state[name] for name in ("weight", "bias"))).double().log_softmax(1)
    return shares[:, 1] - shares[:, 0]


def by_processor(image: Image.Image) -> torch.Tensor:
    """transformers' processor of CLIP, by hand: Pillow's bicubic, and a centre that drops half a pixel."""
    short = min(image.size)
    image = image.resize([int(224 * side / short) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - 224) // 2 for side in image.size)
    return transforms.Compose(NORMALISE)(image.crop((left, top, left + 224, top + 224)))


def by_opencv(image: Image.Image) -> torch.Tensor:
    cv2 = pytest.importorskip("cv2")
    return transforms.Compose(NORMALISE)(cv2.resize(np.asarray(image), (224, 224), interpolation=cv2.INTER_LINEAR))


# GenD


def gend(folder: Path, clip: torch.nn.Module, head: str) -> tuple[Path, Tensors]:
    folder.mkdir()
    linear = {"weight": torch.randn(2, 128), "bias": torch.randn(2)}
    state = {f"feature_extractor.{key}": tensor for key, tensor in clip.state_dict().items()}
    save_file(state | {f"model.linear.{key}": one for key, one in linear.items()}, folder / "model.safetensors")
    config = {"backbone": "openai/clip-vit-large-patch14", "head": head, "model_type": "GenD"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors", linear


@pytest.mark.parametrize("head", ["LinearNorm", "linear"])
def test_gend(head, clip, pictures, tmp_path, monkeypatch) -> None:
    file, linear = gend(tmp_path / "hub", clip, head)
    adapt(monkeypatch, "import", "gend", file, "--output", tmp_path / "d")

    def logit(batch: torch.Tensor) -> torch.Tensor:
        features = pooled(clip)(batch)
        return two_classes(linear, features / features.norm(dim=1, keepdim=True) if head == "LinearNorm" else features)

    same_logits(tmp_path / "d", pictures, by_processor, logit)


def test_gend_on_pe(pictures, tmp_path, monkeypatch) -> None:
    """At 224 px, where timm resamples positions in every pass."""
    sizes = {"embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0, "dynamic_img_size": True}
    model = shaken(timm.create_model("vit_pe_core_large_patch14_336", **sizes))
    linear = {"weight": torch.randn(2, 128), "bias": torch.randn(2)}
    (tmp_path / "hub").mkdir()
    state = {f"feature_extractor.backbone.{key}": tensor for key, tensor in model.state_dict().items()}
    state |= {f"model.linear.{key}": tensor for key, tensor in linear.items()}
    save_file(state, tmp_path / "hub" / "model.safetensors")
    config = {"backbone": "vit_pe_core_large_patch14_336", "head": "LinearNorm"}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    adapt(monkeypatch, "import", "gend", tmp_path / "hub" / "model.safetensors", "--output", tmp_path / "d")
    known = timm.data.resolve_model_data_config(model) | {"input_size": (3, 224, 224)}
    prepare = timm.data.create_transform(**known, is_training=False)

    def logit(batch: torch.Tensor) -> torch.Tensor:
        return two_classes(linear, F.normalize(model(batch), p=2, dim=1))

    same_logits(tmp_path / "d", pictures, prepare, logit)


def test_gend_is_what_its_config_says(clip, tmp_path, monkeypatch, capsys) -> None:
    file, _ = gend(tmp_path / "hub", clip, "LinearNorm")
    words = ("import", "gend", file, "--output", tmp_path / "d")
    for changes, said in (
        ({"backbone": "facebook/dinov3-vitl16"}, "backbone is 'facebook/dinov3-vitl16'"),
        ({"backbone": "vit_pe_core_large_patch14_336"}, "no feature_extractor.backbone.cls_token"),
        ({"backbone": "laion/CLIP-ViT-L-14"}, "begin with openai/clip-"),
        ({"head": "mlp"}, "head is 'mlp', not linear or LinearNorm"),
    ):
        config = {"backbone": "openai/clip-vit-large-patch14", "head": "linear"} | changes
        (file.parent / "config.json").write_text(json.dumps(config))
        assert said in refused(monkeypatch, capsys, *words)
    (file.parent / "config.json").unlink()
    assert "config.json is needed" in refused(monkeypatch, capsys, *words)


# Effort


def effort(clip: torch.nn.Module) -> tuple[Tensors, Tensors]:
    """Published keys and values; the weights of attention in `clip` become those that they mean."""
    draw, state = torch.Generator().manual_seed(8), {}
    for key, tensor in clip.vision_model.state_dict().items():
        layer = f"backbone.{key.removesuffix('.weight')}"
        if ".self_attn." not in key or not key.endswith(".weight"):
            state[f"backbone.{key}"] = tensor.clone()
            continue
        main, left = torch.randn(128, 128, generator=draw) * 0.05, torch.randn(128, 1, generator=draw)
        values, right = torch.randn(1, generator=draw), torch.randn(1, 128, generator=draw) * 0.05
        tensor.copy_(main + left @ torch.diag(values) @ right)
        state |= {f"{layer}.weight_main": main, f"{layer}.S_residual": values}
        state |= {f"{layer}.U_residual": left, f"{layer}.V_residual": right}
        state |= {f"{layer}.S_r": torch.ones(127), f"{layer}.U_r": torch.ones(128, 127)}  # of training alone
    head = {"weight": torch.randn(2, 128, generator=draw), "bias": torch.randn(2, generator=draw)}
    state["backbone.embeddings.position_ids"] = torch.arange(50)[None]
    return state | {f"head.{key}": tensor for key, tensor in head.items()}, head


@pytest.mark.parametrize("wrapped", [True, False])
def test_effort(wrapped, clip, pictures, tmp_path, monkeypatch) -> None:
    state, head = effort(clip)
    saved = {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}} if wrapped else state
    torch.save(saved, tmp_path / "effort.pth")
    adapt(monkeypatch, "import", "effort", tmp_path / "effort.pth", "--output", tmp_path / "d")
    same_logits(tmp_path / "d", pictures, by_opencv, lambda batch: two_classes(head, pooled(clip)(batch)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone.encoder.layers.1.self_attn.k_proj.S_residual": None}, "1 missing: backbone.encoder.layers.1"),
        (
            {"backbone.encoder.layers.0.self_attn.k_proj.U_residual": torch.ones(128, 2)},
            "(128, 2) instead of",
        ),
        ({"backbone.encoder.layers.0.self_attn.k_proj.weight_main": torch.ones(3)}, "has not 2 sides"),
        ({"backbone.post_layernorm.bias": None}, "1 missing: backbone.post_layernorm.bias"),
        ({"head.weight": torch.ones(1, 128)}, "head.weight (1, 128) instead of (2, 128)"),
        ({"backbone.embeddings.class_embedding": None}, "no backbone.embeddings.class_embedding (it holds backbone"),
        ({"head.more": torch.ones(1)}, "1 not in it: head.more"),
    ],
)
def test_effort_that_does_not_fit(changes, said, clip, tmp_path, monkeypatch, capsys) -> None:
    state = effort(clip)[0] | changes
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, tmp_path / "effort.pth")
    words = ("import", "effort", tmp_path / "effort.pth", "--output", tmp_path / "d")
    found = refused(monkeypatch, capsys, *words)
    assert said in found and found.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["effort.pth"]


# C2P-CLIP


def test_c2p(clip, pictures, tmp_path, monkeypatch) -> None:
    head = {"weight": torch.randn(1, 96), "bias": torch.randn(1)}
    state = {f"model.{key}": tensor for key, tensor in clip.state_dict().items()}
    torch.save(state | {f"model.fc.{key}": tensor for key, tensor in head.items()}, tmp_path / "c2p.pth")
    adapt(monkeypatch, "import", "c2p", tmp_path / "c2p.pth", "--output", tmp_path / "d")
    prepare = transforms.Compose([transforms.Resize(224), transforms.CenterCrop(224), *NORMALISE])

    def logit(batch: torch.Tensor) -> torch.Tensor:
        features = clip(pixel_values=batch).image_embeds
        return F.linear(features / features.norm(p=2, dim=-1, keepdim=True), **head)

    same_logits(tmp_path / "d", pictures, prepare, logit)
    tower = load_detector(tmp_path / "d").backbone
    assert tower.layer == "proj" and tower.fingerprint["activation"] == "QuickGELUActivation"


def test_c2p_that_does_not_fit(clip, tmp_path, monkeypatch, capsys) -> None:
    state = {f"model.{key}": tensor for key, tensor in clip.state_dict().items()}
    torch.save(state | {"model.fc.weight": torch.ones(1, 128), "model.text.x": torch.ones(1)}, tmp_path / "c2p.pth")
    said = refused(monkeypatch, capsys, "import", "c2p", tmp_path / "c2p.pth", "--output", tmp_path / "d")
    assert "1 missing: model.fc.bias" in said and "model.fc.weight (1, 128) instead of (1, 96)" in said
    assert "1 not in it: model.text.x" in said

"""DDA: its logits are those of the published equation on timm's DINOv2, with positions as DINOv2's code has them."""

import pytest
import timm
import torch
from importing import adapt, draw_pictures, refused, same_logits, shaken
from torch.nn import functional as F
from torchvision import transforms

SIZES = ((336, 339), (401, 350), (250, 340), (101, 90), (500, 333))
TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
Tensors = dict[str, torch.Tensor]


def dda(side: int = 37, rank: int = 8) -> tuple[Tensors, torch.nn.Module, Tensors]:
    """Published keys and values, the model that they mean at 336 px, and its head."""
    sizes = {"embed_dim": 128, "depth": 2, "num_heads": 2}
    model = shaken(timm.create_model("vit_large_patch14_dinov2", num_classes=0, img_size=14 * side, **sizes))
    whole = timm.create_model("vit_large_patch14_dinov2", num_classes=0, img_size=336, **sizes).eval()
    draw, state, merged = torch.Generator().manual_seed(4), {}, {}
    for key, tensor in model.state_dict().items():
        layer, _, kind = key.rpartition(".")
        merged[key] = tensor.clone()
        if not layer.endswith(TARGETS):
            state[f"base_model.model.{key}"] = tensor
            continue
        state[f"base_model.model.{layer}.original_layer.{kind}"] = tensor
        if kind == "weight":
            down = torch.randn(rank, tensor.shape[1], generator=draw)
            up = torch.randn(tensor.shape[0], rank, generator=draw) * 0.1
            state |= {f"base_model.model.{layer}.lora.lora_{x}": y for x, y in (("A", down), ("B", up))}
            merged[key] += (1 / rank) * up @ down
    table = merged["pos_embed"][:, 1:].reshape(1, side, side, 128).permute(0, 3, 1, 2)
    scaled = F.interpolate(table, scale_factor=(24.1 / side, 24.1 / side), mode="bicubic")  # 336 / 14 + 0.1
    scaled = scaled.permute(0, 2, 3, 1).reshape(1, -1, 128)
    merged["pos_embed"] = torch.cat([merged["pos_embed"][:, :1], scaled], 1)
    whole.load_state_dict(merged)
    head = {"weight": torch.randn(1, 128, generator=draw), "bias": torch.randn(1, generator=draw)}
    state |= {f"base_model.fc.{key}": tensor for key, tensor in head.items()}
    return state | {"base_model.model.mask_token": torch.zeros(1, 128)}, whole, head


@pytest.mark.parametrize(("side", "rank"), [(37, 8), (24, 2)])
def test_logits_are_those_of_the_published_equation(side, rank, tmp_path, monkeypatch) -> None:
    state, model, head = dda(37, rank)
    if side == 24:  # no interpolation
        state["base_model.model.pos_embed"] = model.state_dict()["pos_embed"]
    torch.save({"model": state}, tmp_path / "ckpt.pth")
    adapt(monkeypatch, "import", "dda", tmp_path / "ckpt.pth", "--output", tmp_path / "d")
    normalise = transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    prepare = transforms.Compose([transforms.CenterCrop(336), transforms.ToTensor(), normalise])
    pictures = draw_pictures(tmp_path / "pictures", SIZES)
    same_logits(tmp_path / "d", pictures, prepare, lambda batch: F.linear(model(batch), **head))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_model.model.blocks.1.mlp.fc1.lora.lora_B": None}, "1 missing: base_model.model.blocks.1.mlp.fc1"),
        (
            {"base_model.model.blocks.0.attn.qkv.lora.lora_A": torch.ones(3, 128)},
            "lora_B (384, 8) instead of (384, 3)",
        ),
        ({"base_model.model.pos_embed": torch.ones(1, 100, 128)}, "pos_embed (1, 100, 128) instead of (1, 82, 128)"),
        ({"base_model.model.pos_embed": torch.ones(128)}, "has not 3 sides"),
        ({"base_model.model.pos_embed": None}, "pos_embed"),
        ({"base_model.model.cls_token": None}, "no base_model.model.cls_token (it holds model.base_model"),
        ({"base_model.fc.weight": torch.ones(2, 128)}, "base_model.fc.weight (2, 128) instead of (1, 128)"),
        ({"base_model.model.register_tokens": torch.ones(1, 4, 128)}, "1 not in it"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, said, tmp_path, monkeypatch, capsys) -> None:
    state = dda()[0] | changes
    torch.save({"model": {key: one for key, one in state.items() if one is not None}}, tmp_path / "ckpt.pth")
    found = refused(monkeypatch, capsys, "import", "dda", tmp_path / "ckpt.pth", "--output", tmp_path / "d")
    assert said in found and found.count("\n") == 1

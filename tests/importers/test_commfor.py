"""Community Forensics: its logits are those of timm's own model behind torchvision's own transforms."""

import pytest
import timm
import torch
from importing import SIZES, adapt, draw_pictures, refused, same_logits, shaken
from safetensors.torch import save_file
from torchvision import transforms

SMALL = {"embed_dim": 128, "depth": 2, "num_heads": 2}


def authors(side: int, **sizes: int) -> torch.nn.Module:
    """The authors' classifier: timm's model with one output, inside a module that calls it `vit`."""
    whole = torch.nn.Module()
    whole.vit = timm.create_model(f"vit_small_patch16_{side}", num_classes=1, **(sizes or SMALL))
    return shaken(whole)


def prepare(resize: int, crop: int) -> transforms.Compose:
    return transforms.Compose(
        [
            *(transforms.Resize(resize), transforms.CenterCrop(crop), transforms.ToTensor()),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


@pytest.mark.parametrize(("side", "resize"), [(384, 440), (224, 256)])
def test_logits_are_those_of_the_published_model(side, resize, tmp_path, monkeypatch, capsys) -> None:
    model = authors(side)
    state = model.state_dict()
    if side == 384:
        save_file(state, tmp_path / "model.safetensors")
        file = tmp_path / "model.safetensors"
    else:  # as training of a compiled model saves it
        file = tmp_path / "commfor_ckpt.pt"
        compiled = {f"_orig_mod.{key}": tensor for key, tensor in state.items()}
        torch.save({"model": compiled, "optimizer": {"state": {0: torch.ones(3)}}, "epoch": 19}, file)
    adapt(monkeypatch, "import", "commfor", file, "--output", tmp_path / "d")
    assert "Community Forensics" in capsys.readouterr().out
    pictures = draw_pictures(tmp_path / "pictures", SIZES[-3:])
    same_logits(tmp_path / "d", pictures, prepare(resize, side), model.vit)


def test_the_full_size_is_read(tmp_path, monkeypatch) -> None:
    """timm's ViT-S/16 as published: a tower whose description is not that of the architecture would not load."""
    model = authors(224, depth=12)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    adapt(monkeypatch, "import", "commfor", tmp_path / "model.safetensors", "--output", tmp_path / "d")
    same_logits(tmp_path / "d", draw_pictures(tmp_path / "pictures", SIZES[-2:]), prepare(256, 224), model.vit)


def test_what_does_not_fit_is_refused_by_name(tmp_path, monkeypatch, capsys) -> None:
    file = tmp_path / "model.safetensors"

    def said(**changes: torch.Tensor | None) -> str:
        state = authors(224).state_dict() | changes
        save_file({key: tensor for key, tensor in state.items() if tensor is not None}, file)
        return refused(monkeypatch, capsys, "import", "commfor", file, "--output", tmp_path / "d")

    assert "1 missing: vit.norm.bias" in said(**{"vit.norm.bias": None})
    assert "1 not in it: vit.more" in said(**{"vit.more": torch.ones(2)})
    assert "vit.head.weight (2, 128) instead of (1, 128)" in said(**{"vit.head.weight": torch.ones(2, 128)})
    assert "1 missing: vit.patch_embed.proj.weight" in said(**{"vit.patch_embed.proj.weight": None})
    assert "120 positions are no square" in said(**{"vit.pos_embed": torch.ones(1, 120, 128)})
    assert "for images of 16 px" in said(**{"vit.pos_embed": torch.ones(1, 2, 128)})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    words = ("import", "commfor", file, "--output", tmp_path / "d", "--backbone", "tiny")
    assert "--backbone tiny" in refused(monkeypatch, capsys, *words)

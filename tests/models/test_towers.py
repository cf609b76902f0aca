"""Every kind of tower in a small random configuration of its own class, saved, loaded by name, held against itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapt.errors import Refusal
from adapt.models.adapters.lora import add_adapter, load_adapter, merge_adapter, save_adapter, target_modules
from adapt.models.towers.backbones import Backbone, load_backbone
from adapt.models.towers.tokens import bare

SIDE, DEPTH = 32, 3
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
DINO = {key: value for key, value in VISION.items() if key != "intermediate_size"} | {"image_size": 64}
MEAN, STD = [0.1, 0.2, 0.3], [0.3, 0.25, 0.2]

# name: attention layers and others that "all" adapts in a block, class token, registers
OPEN_CLIP = {
    "ViT-B-16-SigLIP2": (4, False, 0),  # qkv, proj, fc1, fc2
    "PE-Core-B-16": (4, True, 0),
    "EVA02-B-16": (7, True, 0),  # q, k, v, proj, fc1_g, fc1_x, fc2
    "EVA01-g-14": (4, True, 0),  # qkv with a bias for q and v alone
    "ViT-H-14-worldwide": (6, True, 0),  # MetaCLIP 2: open_clip's own transformer
}
TRANSFORMERS = {
    "CLIP": (6, True, 0),
    "MetaClip2": (6, True, 0),
    "Siglip": (6, False, 0),
    "Dinov2": (6, True, 0),
    "Dinov2WithRegisters": (6, True, 4),
    "DINOv3ViT": (6, True, 4),
}
TIMM = {
    "vit_base_patch14_reg4_dinov2": (4, True, 4),
    "vit_medium_patch16_reg4_gap_256": (4, False, 4),
    "vit_base_patch16_siglip_224": (4, False, 0),
    "beitv2_base_patch16_224": (4, True, 0),
}
STAGES = {
    "mobilenetv2_035": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "img_size": 32}
    | {"window_size": 4},
}
FACTS = OPEN_CLIP | TRANSFORMERS | TIMM


def shaken(model: nn.Module) -> nn.Module:
    """Random everywhere: zeros and ones of an initialisation would hide a swapped bias or a forgotten norm."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def small_open_clip(name: str, folder: Path, patch: pytest.MonkeyPatch) -> nn.Module:
    """open_clip's own configuration of `name`, made small; timm's own entry function takes the smaller sizes."""
    import open_clip
    import timm

    config = open_clip.get_model_config(name)
    config["embed_dim"] = 32 if "SigLIP" in name else 24
    config["text_cfg"] |= {"width": 32, "heads": 2, "layers": 1, "context_length": 16, "vocab_size": 64}
    config["text_cfg"].pop("hf_tokenizer_name", None)
    config["vision_cfg"] |= {"image_size": SIDE}
    if "timm_model_name" in config["vision_cfg"]:
        create, sizes = timm.create_model, {"embed_dim": 32, "depth": DEPTH, "num_heads": 2, "patch_size": 8}
        sizes |= {"img_size": SIDE, "attn_pool_num_heads": 2} if "PE" in name else {"img_size": SIDE}
        patch.setattr(timm, "create_model", lambda name, **options: create(name, **sizes, **options))
    else:
        config["vision_cfg"] |= {"width": 32, "head_width": 16, "layers": DEPTH, "patch_size": 8}
    folder.mkdir()
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "squash"}
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    clip = shaken(open_clip.create_model(f"local-dir:{folder}", load_weights=False))
    save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, folder / "model.safetensors")
    return clip.visual


def small_transformers(name: str, folder: Path) -> nn.Module:
    """The whole model where there is a text tower, as the hub has it, with its own processor's configuration."""
    import transformers

    if name in ("CLIP", "MetaClip2", "Siglip"):
        both = {} if name == "Siglip" else {"projection_dim": 24}
        text = TEXT | ({"projection_size": 32} if name == "Siglip" else both)
        config = getattr(transformers, f"{name}Config")(vision_config=VISION | both, text_config=text, **both)
    else:
        options = {"num_register_tokens": 4} if FACTS[name][2] else {}
        config = getattr(transformers, f"{name}Config")(**DINO, **options)
    model = shaken(getattr(transformers, f"{name}Model")(config))
    model.save_pretrained(folder)
    crops = {"Siglip": "Siglip", "DINOv3ViT": "DINOv3ViT"}.get(name) is None
    size = {"shortest_edge": 40} if crops else {"height": SIDE, "width": SIDE}
    kind = {"Siglip": "SiglipImageProcessor", "DINOv3ViT": "DINOv3ViTImageProcessor"}.get(name, "CLIPImageProcessor")
    crop = {"crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True} if crops else {}
    processor = getattr(transformers, kind)(size=size, image_mean=MEAN, image_std=STD, resample=3, **crop)
    processor.save_pretrained(folder)
    return model


def small_timm(name: str, folder: Path) -> nn.Module:
    import timm

    sizes = {"embed_dim": 32, "depth": DEPTH, "num_heads": 2, "patch_size": 8, "img_size": SIDE}
    arguments = STAGES.get(name, sizes)
    model = shaken(timm.create_model(name, num_classes=5, **arguments))
    own = {"input_size": [3, SIDE, SIDE], "mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.8}
    config = {"architecture": name, "num_classes": 5, "model_args": arguments, "pretrained_cfg": own}
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(config))
    return model


@pytest.fixture(scope="module", params=FACTS)
def small(request, tmp_path_factory):
    """Name of the kind, name of the backbone, and the library's own model."""
    kind, folder = request.param, tmp_path_factory.mktemp("tower") / "model"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        if kind in OPEN_CLIP:
            yield kind, f"open_clip:local-dir:{folder}", small_open_clip(kind, folder, patch)
        elif kind in TRANSFORMERS:
            yield kind, f"transformers:{folder}", small_transformers(kind, folder)
        else:
            yield kind, f"timm:{kind}@{folder / 'model.safetensors'}", small_timm(kind, folder)


def pixels(n: int = 2) -> Tensor:
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a vision tower of any library."""
    named = bare(model).named_modules()
    lists = [m for name, m in named if isinstance(m, nn.ModuleList | nn.Sequential) and "text" not in name]
    return list(next(blocks for blocks in lists if len(blocks) == DEPTH and hasattr(blocks[0], "mlp")))


def watch(modules: list[nn.Module]) -> list[list[Tensor]]:
    """What each module returned, call by call."""
    seen: list[list[Tensor]] = [[] for _ in modules]
    for module, calls in zip(modules, seen, strict=True):

        def keep(module, inputs, output, calls=calls) -> None:
            calls.append(output[0] if isinstance(output, tuple) else output)

        module.register_forward_hook(keep)
    return seen


def own_end(kind: str, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What the library itself returns behind the last block."""
    first = FACTS[kind][1] + FACTS[kind][2]
    if kind in TIMM:
        model.reset_classifier(0)
        return {"last": model(x), "last_mean": model.forward_features(x)[:, first:].mean(1)}
    if kind in TRANSFORMERS:
        out = getattr(model, "vision_model", model)(pixel_values=x)
        tokens = out.last_hidden_state
        tokens = tokens if kind not in ("CLIP", "MetaClip2") else model.vision_model.post_layernorm(tokens)
        found = {"last": out.pooler_output, "last_mean": tokens[:, first:].mean(1)}
        return found | ({"proj": model.get_image_features(x).pooler_output} if hasattr(model, "vision_model") else {})
    if not hasattr(model, "trunk"):
        model.output_tokens = True
        proj, tokens = model(x)
        model.output_tokens = False
        matrix, model.proj = model.proj, None
        last, model.proj = model(x), matrix
        return {"last": last, "last_mean": tokens.mean(1), "proj": proj}
    inputs = []
    model.trunk.head.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    found = {"proj": model(x), "last_mean": model.trunk.forward_features(x)[:, first:].mean(1)}
    return found | {"last": inputs[0]}


def test_every_layer_is_the_librarys_own_from_one_pass(small) -> None:
    kind, name, model = small
    _, has_class, registers = FACTS[kind]
    backbone = load_backbone(name)
    with_texts = kind in OPEN_CLIP or kind in ("CLIP", "MetaClip2", "Siglip")
    assert backbone.layers() == ("block1", "block2", "block3", "last", *["proj"] * with_texts)
    torch.testing.assert_close(backbone.mean.flatten() / 255, torch.tensor(MEAN))
    torch.testing.assert_close(backbone.std.flatten() / 255, torch.tensor(STD))

    x = (pixels() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    seen = watch(blocks_of(model))
    with torch.no_grad():
        expected = own_end(kind, model, x)
        for k, calls in enumerate(seen, start=1):
            tokens = calls[0]
            patches = tokens[:, has_class + registers :]
            assert patches.shape[1] == (SIDE // 8) ** 2
            expected[f"block{k}_mean"] = patches.mean(1)
            expected[f"block{k}_tokens"] = patches.flatten(1)
            assert backbone.tokens()[f"block{k}"] == patches.shape[1:]
            expected[f"block{k}"] = tokens[:, 0] if has_class else patches.mean(1)
            if has_class:
                expected[f"block{k}_both"] = torch.cat([tokens[:, 0], patches.mean(1)], dim=1)
        expected["last_both"] = torch.cat([expected["last"], expected["last_mean"]], dim=1)
        expected["block3+block1+last"] = torch.cat([expected["block3"], expected["block1"], expected["last"]], dim=1)

        mine = watch(blocks_of(backbone.tower))
        found = backbone.encode(pixels(), list(expected))
        assert [len(calls) for calls in mine] == [1] * DEPTH
        for layer, value in expected.items():
            torch.testing.assert_close(found[layer], value, atol=1e-5, rtol=1e-5, msg=lambda m, at=layer: f"{at}: {m}")
        assert torch.equal(backbone(pixels()), found["last"])
        if not has_class:
            with pytest.raises(Refusal, match="no class token; use block2_mean"):
                backbone.encode(pixels(), ["block2_both"])


def test_a_pass_ends_behind_the_last_block_that_is_needed(small) -> None:
    backbone = load_backbone(small[1], "block2+block1_mean")
    seen = watch(blocks_of(backbone.tower))
    backbone(pixels())
    assert [len(calls) for calls in seen] == [1, 1, 0]
    names = target_modules(backbone, "all")
    assert len(names) == 2 * FACTS[small[0]][0]


def shake(backbone: Backbone) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@pytest.mark.parametrize("targets", ["all", "norm"])
def test_adapters(small, targets, tmp_path) -> None:
    """Equal at the start, a gradient in every adapted layer of every block, equal after reloading and merging."""
    kind, name, _ = small
    backbone = load_backbone(name)
    start = backbone(pixels()).detach()
    names = target_modules(backbone, targets)
    if targets == "all":
        assert len(names) == DEPTH * FACTS[kind][0]
    add_adapter(backbone, targets, rank=2)
    torch.testing.assert_close(backbone(pixels()), start, atol=1e-5, rtol=1e-5)
    shake(backbone)
    backbone.train()
    backbone(pixels()).square().sum().backward()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert len(trained) >= len(names) and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    backbone.eval()
    with torch.no_grad():
        moved = backbone(pixels())
        assert (moved - start).abs().max() > 1e-3
        save_adapter(backbone, tmp_path)
        again = load_backbone(name)
        load_adapter(again, tmp_path)
        torch.testing.assert_close(again(pixels()), moved, atol=1e-6, rtol=1e-6)
        merge_adapter(again)
        torch.testing.assert_close(again(pixels()), moved, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_bf16_changes_little(small) -> None:
    backbone = load_backbone(small[1], "block1+last")
    expected = backbone(pixels())
    found = backbone.to_precision("bf16")(pixels())
    assert torch.cosine_similarity(found, expected).min() > 0.99 and not torch.equal(found, expected)


@pytest.mark.parametrize("kind", STAGES)
@torch.no_grad()
def test_stages_without_tokens_are_averaged_over_positions(kind, tmp_path) -> None:
    model = small_timm(kind, tmp_path / "model")
    backbone = load_backbone(f"timm:{kind}@{tmp_path / 'model' / 'model.safetensors'}")
    x = (pixels() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    seen = watch([model.get_submodule(info["module"]) for info in model.feature_info])
    axes = (1, 2) if "swin" in kind else (2, 3)
    last_mean = model.forward_features(x).mean(axes)
    found = backbone.encode(pixels(), [*backbone.layers(), "last_mean"])
    for k, calls in enumerate(seen, start=1):
        torch.testing.assert_close(found[f"block{k}"], calls[0].mean(axes), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["last_mean"], last_mean, atol=1e-4, rtol=1e-4)
    model.reset_classifier(0)
    torch.testing.assert_close(found["last"], model(x), atol=1e-4, rtol=1e-4)


@pytest.fixture
def siglip(tmp_path) -> Path:
    torch.manual_seed(0)
    small_transformers("Siglip", tmp_path / "my siglip")
    return tmp_path / "my siglip"


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v != "gone"}))


@pytest.mark.parametrize("kind", ["CLIP", "DINOv3ViT"])
def test_pixels_are_those_of_the_models_own_processor(kind, tmp_path) -> None:
    """Up to rounding: this package scales 8-bit images with Pillow, transformers tensors with torchvision."""
    from transformers import AutoImageProcessor

    small_transformers(kind, tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((150, 100), Image.Resampling.BICUBIC)
    backbone = load_backbone(f"transformers:{tmp_path}")
    expected = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
    found = (backbone.preprocess(image) - backbone.mean) / backbone.std
    assert (found - expected).abs().max() < 2.5 / 255 / min(STD)


def test_old_and_new_ways_to_write_a_processor(siglip) -> None:
    path = siglip / "preprocessor_config.json"
    squash = load_backbone(f"transformers:{siglip}").preprocess
    assert (squash.size, squash.geometry, squash.interpolation) == (SIDE, "squash", "bicubic")
    config = json.loads(path.read_text())
    path.unlink()
    (siglip / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    assert load_backbone(f"transformers:{siglip}").preprocess == squash
    path.write_text(json.dumps(config | {"size": 40, "crop_size": SIDE, "do_center_crop": True, "resample": 2}))
    crop = load_backbone(f"transformers:{siglip}").preprocess
    assert (crop.size, crop.shortest, crop.geometry, crop.interpolation) == (SIDE, 40, "resize", "bilinear")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": "gone"}, "must give image_mean"),
        ({"size": {"height": 32, "width": 48}}, "square size"),
        ({"size": {"shortest_edge": 32}}, "must give image_mean"),
        ({"resample": 1}, "resample"),
        ({"do_normalize": False}, "do_normalize"),
        ({"size": {"height": 64, "width": 64}}, "takes 32 px.*64"),
    ],
)
def test_preprocessing_that_cannot_be_done_is_refused(siglip, changes, message) -> None:
    rewrite(siglip / "preprocessor_config.json", **changes)
    with pytest.raises(Refusal, match=message) as refusal:
        load_backbone(f"transformers:{siglip}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("vision_model.post_layernorm.bias"), "lacks 1 tensors, as .*post_layernorm.bias"),
        (lambda t: t.update({"vision_model.post_layernorm.bias": torch.zeros(5)}), "could not be loaded as Siglip"),
        (
            lambda t: t.update({"vision_model.encoder.layers.3.mlp.fc1.bias": torch.zeros(48)}),
            "also holds 1 tensors, as .*layers.3.mlp.fc1.bias",
        ),
    ],
)
def test_incomplete_weights_are_refused(siglip, damage, message) -> None:
    """transformers itself draws what is missing at random, with a warning."""
    path = siglip / "model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(Refusal, match=message) as refusal:
        load_backbone(f"transformers:{siglip}")
    assert "\n" not in str(refusal.value)


def test_pickled_damaged_and_unknown_models_are_refused(siglip) -> None:
    path = siglip / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    with pytest.raises(Refusal, match="could not be loaded"):
        load_backbone(f"transformers:{siglip}")
    path.rename(siglip / "pytorch_model.bin")
    with pytest.raises(Refusal, match="pickled weights are not loaded"):
        load_backbone(f"transformers:{siglip}")
    path.write_bytes(whole)
    rewrite(siglip / "config.json", model_type="siglip2")
    with pytest.raises(Refusal, match="NaFlex"):
        load_backbone(f"transformers:{siglip}")
    rewrite(siglip / "config.json", model_type="llama")
    with pytest.raises(Refusal, match="type 'llama'; known: clip"):
        load_backbone(f"transformers:{siglip}")
    with pytest.raises(Refusal, match=r"hf download acme/absent`.*; 'acme/absent' is no folder"):
        load_backbone("transformers:acme/absent")


def test_hub_name_and_folder_have_one_identity(siglip, tmp_path, monkeypatch) -> None:
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--acme--siglip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    first = load_backbone(f"transformers:{siglip}")
    siglip.rename(repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    second = load_backbone("transformers:acme/siglip")
    assert first.identity(first.layer) == second.identity(second.layer) and first.fingerprint != second.fingerprint
    assert second.fingerprint["commit"] == commit and "commit" not in first.fingerprint
    other = load_backbone("transformers:acme/siglip", "block1")
    assert {
        key
        for key in first.identity(first.layer)
        if first.identity(first.layer)[key] != other.identity(other.layer)[key]
    } == {"layer"}


def test_unknown_layers_list_what_exists(tmp_path) -> None:
    small_timm("vit_base_patch16_siglip_224", tmp_path / "model")
    name = f"timm:vit_base_patch16_siglip_224@{tmp_path / 'model' / 'model.safetensors'}"
    with pytest.raises(Refusal, match=r"layer 'block4'.*expected last or block1 to block3.*_mean"):
        load_backbone(name, "block4")
    backbone = load_backbone(name)
    for layer in ("block4", "block0", "block", "proj", "last_max", "last+", "", "last+proj"):
        with pytest.raises(Refusal, match=r"expected last or block1 to block3"):
            backbone.encode(pixels(), [layer])
    with pytest.raises(Refusal, match="expected proj, last or block1 to block4"):
        load_backbone("tiny", "proj_mean")

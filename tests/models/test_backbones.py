"""Real loading paths on local files: names, preprocessing, layers, and what is refused."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_attention import fused
from torch import nn

from adapt.errors import Refusal
from adapt.models.towers.attention import SplitAttention
from adapt.models.towers.backbones import load_backbone

TINY = Path(__file__).parents[2] / "adapt" / "embedded" / "tiny"


def photo(width: int = 150, height: int = 100) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def local(tmp_path) -> Path:
    folder = tmp_path / "my clip"
    shutil.copytree(TINY, folder)
    return folder


def change_config(folder: Path, **preprocess) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config.pop("adapt", None)
    config["preprocess_cfg"] |= preprocess
    path.write_text(json.dumps(config))


def test_features_equal_open_clips_own(local) -> None:
    """Same weights, same preprocessing, upstream's attention: projected and next-to-last features agree."""
    import open_clip

    change_config(local, mean=[0.3, 0.4, 0.5], std=[0.2, 0.25, 0.3])
    clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{local}", require_pretrained=True)
    clip.eval()
    for image in (photo(), photo(100, 150), photo(64, 64), photo(200, 200)):
        expected = transform(image)[None]
        backbone = load_backbone(f"open_clip:local-dir:{local}", "proj")
        pixels = backbone.preprocess(image)[None]
        normalised = (pixels - backbone.mean) / backbone.std
        torch.testing.assert_close(normalised, expected, atol=1e-5, rtol=0)
        with torch.no_grad():
            want = clip.encode_image(expected)
            torch.testing.assert_close(backbone(pixels), want, atol=1e-4, rtol=1e-4)
            last = load_backbone(f"open_clip:local-dir:{local}", "last")
            torch.testing.assert_close(last(pixels) @ clip.visual.proj, want, atol=1e-4, rtol=1e-4)


def test_last_block_is_the_feature_before_the_final_norm() -> None:
    block, last = load_backbone("tiny", "block4"), load_backbone("tiny", "last")
    pixels = last.preprocess(photo())[None]
    with torch.no_grad():
        torch.testing.assert_close(last.tower.ln_post(block(pixels)), last(pixels), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(load_backbone("tiny", "block1")(pixels), block(pixels))


def test_attention_is_split_and_the_state_dict_comes_back() -> None:
    backbone = load_backbone("tiny", "proj")
    blocks = [m for m in backbone.tower.modules() if isinstance(getattr(m, "attn", None), SplitAttention)]
    assert blocks
    for block in blocks:
        block.attn = fused(block.attn)
    upstream = {k.removeprefix("visual."): v for k, v in load_file(TINY / "open_clip_model.safetensors").items()}
    restored = backbone.tower.state_dict()
    assert restored.keys() == {key for key in upstream if key in restored}
    assert all(torch.equal(restored[key], upstream[key].float()) for key in restored)


def test_tiny_keeps_native_pixels() -> None:
    backbone = load_backbone("tiny")
    image = photo(96, 96)
    pixels = backbone.preprocess(image)
    side = backbone.preprocess.size
    start = (96 - side) // 2
    centre = np.asarray(image)[start : start + side, start : start + side]
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), centre)


def test_hub_path_through_a_cache_on_disk(tmp_path, monkeypatch) -> None:
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--acme--tiny-clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(TINY, repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found, expected = load_backbone("open_clip:hf-hub:acme/tiny-clip"), load_backbone("tiny")
    assert found.fingerprint["commit"] == commit and "commit" not in expected.fingerprint
    assert found.fingerprint["weights"] == expected.fingerprint["weights"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:hf-hub:acme/absent", "weights could not be loaded.*hf download"),
        ("open_clip:ViT-B-32@laion2b_s34b_b79k", "weights could not be loaded.*hf download"),
        ("open_clip:ViT-B-32@laion2b_s34b_b79", "no weights 'laion2b_s34b_b79', perhaps 'laion2b_s34b_b79k'"),
        ("open_clip:ViT-B-32", "no weights ''.*known: openai"),
        ("open_clip:ViT-B-23@openai", "no model 'ViT-B-23', perhaps 'ViT-B-32'"),
        ("open_clip:local-dir:absent", "open_clip_config.json is needed"),
        ("timm:mobilenetv2_10@random", "no model 'mobilenetv2_10', perhaps 'mobilenetv2_1"),
        ("timm:mobilenetv2_100@absent.safetensors", "is no checkpoint: give a file that is there"),
        ("timm:mobilenetv2_100", "hf download timm/mobilenetv2_100.ra_in1k"),
        ("ViT-L-14", "unknown backbone 'ViT-L-14'"),
    ],
)
def test_missing_weights_are_refused(name, message) -> None:
    with pytest.raises(Refusal, match=message) as refusal:
        load_backbone(name)
    assert "\n" not in str(refusal.value)


def test_pickled_weights_are_refused(local) -> None:
    (local / "open_clip_model.safetensors").rename(local / "open_clip_pytorch_model.bin")
    with pytest.raises(Refusal, match="pickled weights are not loaded"):
        load_backbone(f"open_clip:local-dir:{local}")


def test_incomplete_and_damaged_weights_are_refused(local) -> None:
    path = local / "open_clip_model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if k != "visual.proj"}, path)
    with pytest.raises(Refusal, match="could not be loaded"):
        load_backbone(f"open_clip:local-dir:{local}")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(Refusal, match="could not be loaded"):
        load_backbone(f"open_clip:local-dir:{local}")


def test_unknown_layer_names_the_known_ones() -> None:
    with pytest.raises(Refusal, match="expected proj, last or block1 to block4"):
        load_backbone("tiny", "block5")


CLASSY = {  # towers with a class token and plain blocks: path of the list of blocks, the norm before the MLP
    "tiny": ("transformer.resblocks", "ln_2"),
    "transformers:clip": ("encoder.layers", "layer_norm2"),
    "transformers:dinov2": ("encoder.layer", "norm2"),
    "timm:vit_tiny_patch16_224@random": ("blocks", "norm2"),
}


def local_tower(name: str, folder: Path) -> str:
    """The name of a backbone; a random one of transformers is written first."""
    import transformers

    kind = {"transformers:clip": "CLIPVisionModelWithProjection", "transformers:dinov2": "Dinov2Model"}
    kind |= {"transformers:siglip": "SiglipVisionModel"}
    if name not in kind:
        return name
    model = getattr(transformers, kind[name])
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model(model.config_class(**sizes, intermediate_size=48)).save_pretrained(folder)
    prepares = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    prepares |= {"size": {"height": 32, "width": 32}, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepares))
    return f"transformers:{folder}"


@pytest.mark.parametrize("name", CLASSY)
@pytest.mark.parametrize("packed", [False, True])
def test_norm2_is_what_a_hook_on_that_norm_sees(tmp_path, name, packed) -> None:
    """The class token that the MLP of a block gets, whichever other layers are asked for in the same pass."""
    end, norm = CLASSY[name]
    asked = ["block2_norm2", "block1_norm2+block3_norm2", "block3_norm2+last", "block2", "last"]
    backbone = load_backbone(local_tower(name, tmp_path), asked[1])
    plain = load_backbone(backbone.name, "last").tower  # the library's own modules, also where the other is packed
    for tower in (backbone.tower, plain):
        draw = torch.Generator().manual_seed(3)
        for parameter in tower.parameters():
            if parameter.ndim == 1:  # norms that do something
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    if packed:
        backbone.for_features("fp32", "packed")
    blocks = next(module for path, module in plain.named_modules() if path.endswith(end))
    seen: dict[int, torch.Tensor] = {}
    for k, block in enumerate(blocks, 1):
        getattr(block, norm).register_forward_hook(lambda _, __, output, k=k: seen.update({k: output[:, 0]}))
    pixels = torch.rand(2, *backbone.preprocess.shape) * 255
    normalised = (pixels - backbone.mean) / backbone.std
    with torch.no_grad():
        plain(**{"pixel_values": normalised}) if name.startswith("transformers") else plain(normalised)
        found = backbone.encode(pixels, asked)
        near = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(found["block2_norm2"], seen[2], **near)
        torch.testing.assert_close(found[asked[1]], torch.cat([seen[1], seen[3]], dim=1), **near)
        torch.testing.assert_close(found[asked[2]], torch.cat([seen[3], found["last"]], dim=1), **near)
        torch.testing.assert_close(backbone.encode(pixels, ["block2_norm2"])["block2_norm2"], seen[2], **near)
        assert torch.equal(backbone.encode(pixels, ["block2"])["block2"], found["block2"])
    assert not (found["block2"] - found["block2_norm2"]).abs().max() < 1e-2
    assert not any(module._forward_hooks for module in backbone.tower.modules())
    assert backbone.dim == 2 * seen[1].shape[1]


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("transformers:siglip", "block1_norm2", "no class token; use block1_mean"),
        ("timm:mobilenetv2_035@random", "block1_norm2", "not one list of blocks; take a plain vision transformer"),
        ("timm:resnet10t@random", "block2_norm2", "not one list of blocks"),
        ("timm:test_vit2@random", "block1_norm2+last", "no class token"),
        ("timm:eva02_tiny_patch14_224@random", "block3_norm2", "has a EvaBlock"),
        ("tiny", "last_norm2", "blocks with _norm2"),
        ("tiny", "block5_norm2", "unknown layer"),
    ],
)
def test_norm2_is_refused_where_there_is_none(tmp_path, name, layer, message) -> None:
    with pytest.raises(Refusal, match=message):
        load_backbone(local_tower(name, tmp_path), layer)


def test_norm2_has_no_places() -> None:
    backbone = load_backbone("tiny", "block2_norm2")
    pixels = torch.zeros(1, *backbone.preprocess.shape)
    for read in (backbone.patches, backbone.patch_tokens):
        with pytest.raises(Refusal, match="has no p"):
            read(pixels)


def write_timm(folder: Path, name: str, **changes) -> Path:
    """A timm model's random weights with a config of its own, as timm writes both."""
    import timm

    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=7)
    own = {"input_size": model.pretrained_cfg["input_size"], "mean": [0.1] * 3, "std": [0.3] * 3}
    own |= {"interpolation": "bilinear", "crop_pct": 0.8}
    config = {"architecture": name, "num_classes": 7, "pretrained_cfg": own}
    file = folder / "model.safetensors"
    save_file(model.state_dict(), file)
    file.with_suffix(".json").write_text(json.dumps(config | changes))
    return file


@pytest.mark.parametrize("name", ["mobilenetv2_035", "test_vit"])
def test_timm_equals_timms_own(tmp_path, name) -> None:
    import timm

    file = write_timm(tmp_path, name)
    own = timm.create_model(name, num_classes=7)
    own.load_state_dict(load_file(file))
    own.reset_classifier(0)
    backbone = load_backbone(f"timm:{name}@{file}")
    pixels = backbone.preprocess(photo(300, 240))[None]
    assert backbone.preprocess.shortest == int(backbone.preprocess.size / 0.8)
    with torch.no_grad():
        torch.testing.assert_close(backbone(pixels), own.eval()((pixels / 255 - 0.1) / 0.3), atol=1e-4, rtol=1e-4)
        assert load_backbone(backbone.name, "block2")(pixels).ndim == 2


def test_timm_refuses_another_architecture(tmp_path) -> None:
    file = write_timm(tmp_path, "mobilenetv2_035", architecture="resnet18")
    with pytest.raises(Refusal, match="is for 'resnet18'"):
        load_backbone(f"timm:mobilenetv2_035@{file}")
    write_timm(tmp_path, "mobilenetv2_035", num_classes=8)
    with pytest.raises(Refusal, match="does not fit mobilenetv2_035"):
        load_backbone(f"timm:mobilenetv2_035@{file}")


def test_bf16_keeps_norms_in_fp32_and_features_close() -> None:
    backbone = load_backbone("tiny")
    pixels = backbone.preprocess(photo())[None]
    with torch.no_grad():
        expected = backbone(pixels)
        backbone.to_precision("bf16")
        found = backbone(pixels)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, expected).item() > 0.999
    assert not torch.equal(found, expected)
    dtypes = {name: p.dtype for name, p in backbone.tower.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if ".ln_" in name or name.startswith("ln_")} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if name.endswith("q_proj.weight")} == {torch.bfloat16}


def test_fingerprint_tells_weights_and_preprocessing_apart(local) -> None:
    first = load_backbone(f"open_clip:local-dir:{local}").fingerprint
    change_config(local, mean=[0.3, 0.3, 0.3])
    assert load_backbone(f"open_clip:local-dir:{local}").fingerprint["preprocess"] != first["preprocess"]
    path = local / "open_clip_model.safetensors"
    tensors = load_file(path)
    tensors["visual.conv1.weight"][0, 0, 0, 0] += 1
    save_file(tensors, path)
    assert load_backbone(f"open_clip:local-dir:{local}").fingerprint["weights"] != first["weights"]


@pytest.mark.parametrize("trained", [False, True])
def test_a_norm_computes_in_fp32_and_a_frozen_one_keeps_nothing_wide(trained) -> None:
    """On a CPU the tokens of bf16 blocks enter a frozen norm as they are: torch's kernel widens them inside."""
    norm = next(m for m in load_backbone("tiny").to_precision("bf16").tower.modules() if isinstance(m, nn.LayerNorm))
    norm.requires_grad_(trained)
    generator = torch.Generator().manual_seed(0)
    tokens, towards = (torch.randn(3, 65, 192, generator=generator).bfloat16() for _ in range(2))
    kept, found = [], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours = norm(tokens.requires_grad_())
    assert ours.dtype == torch.bfloat16
    assert trained == any(t.dtype == torch.float32 and t.numel() >= tokens.numel() for t in kept)
    wide = tokens.detach().float().requires_grad_()
    for inputs, out in ((tokens, ours), (wide, norm.forward(wide))):  # the second without the hooks
        norm.zero_grad()
        out.backward(towards.to(out.dtype))
        found.append([out, inputs.grad, *(p.grad.clone() for p in norm.parameters() if trained)])
    for value, expected in zip(*found, strict=True):
        assert (value.float() - expected).norm() < 0.004 * expected.norm()  # one rounding to 8 bits


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("open_clip:hf-hub:acme/absent", "acme/absent"),
        ("open_clip:ViT-B-32@laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    ],
)
def test_without_the_hub_one_whole_sentence_says_so(name, repository, caplog) -> None:
    with pytest.raises(Refusal) as refusal:
        load_backbone(name)
    assert str(refusal.value) == (
        f"backbone {name}: weights could not be loaded (the hub is switched off by HF_HUB_OFFLINE, and the cache "
        f"lacks them). On a machine with a network run `hf download {repository}` (or unset HF_HUB_OFFLINE), or give "
        "open_clip:local-dir:FOLDER"
    )
    assert not caplog.records  # open_clip logs what it raises
    logging.getLogger().error("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]

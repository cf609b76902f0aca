"""The fast way to frozen features gives the plain way's features; what cannot be packed is said; nothing is stale."""

import io
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from adapt.benchmark.preprocessing import _scene
from adapt.data import digests, views
from adapt.data.digests import Digests
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Preprocess
from adapt.data.views import jpeg_bytes, parse_view
from adapt.detector.detector import Detector, load_detector
from adapt.errors import Refusal
from adapt.features.cache import extract
from adapt.features.remembered import Remembered, frozen_backbone
from adapt.models.adapters.lora import add_adapter
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import TINY, Backbone, load_backbone
from adapt.models.towers.packed import PackedBlock, pack, packed_blocks, rows_of_a_pass

CPU = torch.device("cpu")
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
HUGGING = {
    "CLIPVisionModelWithProjection": {"intermediate_size": 96},  # QuickGELU
    "SiglipVisionModel": {"intermediate_size": 96},  # tanh GELU, no class token
    "Dinov2Model": {"layerscale_value": 0.3},
    "Dinov2WithRegistersModel": {},
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def photo(width: int, height: int) -> Image.Image:
    small = noise(height // 3 + 1, width // 3 + 1, 3).numpy()
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def randomised(tower: nn.Module) -> nn.Module:
    """Biases, norms and scales that are not zeros and ones, which would hide a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return tower.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", HUGGING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_equals_transformers(kind, dtype) -> None:
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind)
    tower = randomised(model(model.config_class(**SMALL, **HUGGING[kind])))
    pixels = torch.randn(3, 3, 32, 32)
    expected = tower(pixel_values=pixels).last_hidden_state
    assert pack(tower, dtype) == "" and len(packed_blocks(tower)) == 2
    found = tower.to(dtype)(pixel_values=pixels.to(dtype)).last_hidden_state.float()
    error = ((found - expected).norm() / expected.norm()).item()
    assert error < (1e-5 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("name", ["tiny", "timm:test_vit@random", "timm:vit_tiny_patch16_224@random"])
@pytest.mark.parametrize("layer", ["last", "last_both", "last_tokens", "block1+block2_mean"])
def test_packed_features_are_the_plain_ones(name, layer) -> None:
    plain, exact, fast = (load_backbone(name, layer) for _ in range(3))
    for backbone in (plain, exact, fast):
        randomised(backbone.tower)
    exact.for_features("fp32", "packed"), fast.for_features("bf16", "packed")
    pixels = noise(3, 3, plain.preprocess.size, plain.preprocess.size)
    with torch.no_grad():
        expected = plain(pixels)
        torch.testing.assert_close(exact(pixels), expected, atol=1e-4, rtol=1e-4)
        assert torch.cosine_similarity(fast(pixels), expected).min() > 0.9999
        assert not torch.equal(fast(pixels), expected)


def test_quick_gelu_of_open_clip_is_packed() -> None:
    """OpenAI's CLIP needs it; oneDNN has no such operation."""
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock

    from adapt.models.towers.attention import split_all

    block = randomised(ResidualAttentionBlock(64, 2, ls_init_value=0.5, act_layer=QuickGELU, batch_first=True))
    tower = nn.Sequential(block)
    split_all(tower)
    tokens = torch.randn(2, 7, 64)
    expected = tower(tokens)
    assert pack(tower, torch.float32) == ""
    torch.testing.assert_close(tower(tokens), expected, atol=1e-5, rtol=1e-4)
    tower[0].first_only = True
    torch.testing.assert_close(tower(tokens), expected[:, :1], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="no mask"):
        tower[0](tokens, torch.zeros(7, 7))


def test_features_do_not_depend_on_how_images_are_batched() -> None:
    backbone = load_backbone("tiny", "proj").for_features("bf16", "packed")
    rows = rows_of_a_pass(65)
    assert rows == 32
    pixels = noise(rows + 5, 3, 64, 64)
    with torch.no_grad():
        whole = backbone(pixels)
        for size in (1, 3, rows, rows + 4):
            assert torch.equal(torch.cat([backbone(part) for part in pixels.split(size)]), whole)
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
        assert torch.equal(backbone(pixels[order]), whole[order])


def test_the_auc_of_a_head_hardly_moves(subtle, tmp_path) -> None:
    """A head fitted to fp32 features judges packed bf16 features of the same images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    rows = Manifest.read(subtle)
    train, test = (np.flatnonzero(rows["split"] == split) for split in ("train", "test"))
    ways = {"fp32": ("fp32", "plain"), "bf16": ("bf16", "packed")}
    features = {
        name: extract(load_backbone("tiny").for_features(*way), rows, ("none", "qf40"), cache=tmp_path / name)
        for name, way in ways.items()
    }
    for view in ("none", "qf40"):
        head = LogisticRegression(max_iter=1000).fit(features["fp32"].take(train, view), rows.fake[train])
        scores = {name: head.decision_function(found.take(test, view)) for name, found in features.items()}
        auc = {name: roc_auc_score(rows.fake[test], score) for name, score in scores.items()}
        assert 0.5 < auc["fp32"] < 1 and abs(auc["bf16"] - auc["fp32"]) < 0.002
        assert not np.array_equal(scores["bf16"], scores["fp32"])


def test_what_cannot_be_packed_is_refused_by_name_and_plain_by_auto() -> None:
    convolutions = load_backbone("timm:mobilenetv2_035@random")
    with pytest.raises(Refusal, match="--encoder packed: timm:mobilenetv2_035@random: the blocks of EfficientNet"):
        convolutions.for_features("fp32", "packed")
    auto = load_backbone("timm:mobilenetv2_035@random").for_features("bf16")
    assert auto.identity("last").get("encoder") is None
    adapted = load_backbone("tiny")
    add_adapter(adapted, "qv")
    with pytest.raises(Refusal, match="has an adapter"):
        adapted.for_features("bf16", "packed")
    packed = load_backbone("tiny").for_features("bf16", "packed")
    with pytest.raises(Refusal, match="no such layers"):
        add_adapter(packed, "qv")


@pytest.mark.parametrize("change", ["norm", "order", "activation"])
def test_a_block_that_a_library_has_changed_is_not_packed(change) -> None:
    tower = load_backbone("timm:test_vit@random").tower
    block = tower.blocks[1]
    if change == "norm":
        block.attn.q_norm = nn.LayerNorm(block.attn.head_dim)
        block.attn.q_norm.weight.data *= 3
    elif change == "order":
        block.forward = lambda x, mask=None: x + block.mlp(block.norm2(x))
    else:
        block.mlp.act = nn.SiLU()
    assert ("other tokens" in (why := pack(tower, torch.float32))) or "other parts" in why
    assert not packed_blocks(tower)  # nothing is half packed


def test_plain_auto_and_packed_are_different_features_for_the_cache() -> None:
    kinds = [load_backbone("timm:test_vit@random").for_features("bf16", way) for way in ("plain", "packed")]
    assert kinds[0].identity("last") != kinds[1].identity("last")
    assert kinds[1].identity("last")["preprocess"]["resizer"] == "torch"
    before = load_backbone("timm:test_vit@random")
    assert before.identity("last") == before.for_features("fp32", "plain").identity("last")
    assert "resizer" not in before.identity("last")["preprocess"]  # caches and detectors of before still serve


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (300, 411), (533, 300), (900, 507), (1200, 700)])
def test_resize_by_torch_is_within_one_level_of_pillows(interpolation, size) -> None:
    image = Image.fromarray(_scene(3)).resize(size, Image.Resampling.LANCZOS)
    slow, fast = (Preprocess(224, 224, interpolation, "resize", resizer) for resizer in ("pillow", "torch"))
    difference = (slow(image).int() - fast(image).int()).abs()
    assert (difference > 0).float().mean() < 0.005
    assert difference.max() <= 2 and (difference > 1).sum() <= 2  # two roundings, rarely both to the same side
    assert torch.equal(fast(np.array(image)), fast(image))
    assert torch.equal(slow(np.array(image), (0.1, 0.9)), slow(image, (0.1, 0.9)))


@pytest.mark.parametrize("size", [(290, 411), (150, 170), (300, 700), (224, 224), (16, 40)])
@pytest.mark.parametrize("geometry", ["resize", "squash", "native"])
def test_unusual_images_are_scaled_by_pillow_either_way(size, geometry) -> None:
    image = photo(*size)
    slow, fast = (Preprocess(224, 224, "bicubic", geometry, resizer) for resizer in ("pillow", "torch"))
    assert torch.equal(fast(image), slow(image)) and torch.equal(fast(np.array(image)), slow(image))


@pytest.mark.parametrize("name", ["none", "qf1", "qf40", "qf90", "qf100", "crop40+qf65", "qf40+qf90", "qf40+grey"])
def test_jpeg_views_are_pillows_pixel_for_pixel(name, monkeypatch) -> None:
    for size in ((61, 47), (16, 16), (40, 333)):
        fast, fast_array = parse_view(name)(photo(*size)), parse_view(name).pixels(np.array(photo(*size)))
        with monkeypatch.context() as patch:
            patch.setattr(views, "_same_codec", lambda: False)
            slow = parse_view(name)(photo(*size))
        assert np.array_equal(fast, slow) and np.array_equal(fast_array, slow) and fast_array.flags.writeable
        assert fast.mode == "RGB" and fast.info == {}
    image = photo(61, 47)
    by_hand = Image.open(io.BytesIO(jpeg_bytes(image, 40)))
    assert np.array_equal(parse_view("qf40")(image), by_hand)


def test_another_codec_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(views, "_through_opencv", lambda image, quality: np.asarray(image))
    assert views._same_codec.__wrapped__() is False


def asked(cache: Path, backbone: str = "tiny", **other) -> SimpleNamespace:
    flags = {"layer": "proj", "geometry": None, "size": None, "precision": "auto", "encoder": "auto"} | other
    return SimpleNamespace(backbone=backbone, cache=cache, **flags)


@pytest.fixture
def settled(monkeypatch) -> None:
    """Files of this very second count as old."""
    monkeypatch.setattr(digests, "SETTLED", -1e9)


def test_the_second_time_no_network_is_loaded(planted, tmp_path, settled, monkeypatch) -> None:
    rows, folder = Manifest.read(planted).select(np.arange(6)), tmp_path / "clip"
    shutil.copytree(TINY, folder)
    flags = asked(tmp_path / "cache", f"open_clip:local-dir:{folder}")
    first = frozen_backbone(flags, CPU)
    expected = extract(first, rows, ("none", "qf40"), cache=flags.cache)
    second = frozen_backbone(flags, CPU)
    assert isinstance(first, Backbone) and isinstance(second, Remembered)
    found = extract(second, rows, ("none", "qf40"), cache=flags.cache, cached_only=True)
    assert "network" not in vars(second)
    assert second.identity("last") == first.identity("last") and second.layers() == first.layers()
    assert second.fingerprint == first.fingerprint and second.dtype == first.dtype
    assert second.preprocess == first.preprocess
    np.testing.assert_array_equal(found.take(np.arange(6), "qf40"), expected.take(np.arange(6), "qf40"))
    extract(second, rows, ("qf90",), cache=flags.cache)  # an image to encode: now it is
    assert "network" in vars(second)
    assert isinstance(frozen_backbone(asked(flags.cache, flags.backbone, precision="bf16"), CPU), Backbone)
    assert isinstance(frozen_backbone(asked(flags.cache, flags.backbone, geometry="squash"), CPU), Backbone)


@pytest.mark.parametrize("change", ["weights", "config", "joined"])
def test_changed_weights_are_never_remembered(change, tmp_path, settled) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(TINY, folder)
    flags = asked(tmp_path / "cache", f"open_clip:local-dir:{folder}")
    before = frozen_backbone(flags, CPU).identity("proj")
    path = folder / ("open_clip_config.json" if change == "config" else "open_clip_model.safetensors")
    if change == "weights":  # one bit, the same size, and the old time of change put back
        status, data = path.stat(), bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "config":
        path.write_text(path.read_text().replace("0.45", "0.44"))
    else:
        (folder / "more.json").write_text("{}")
    again = frozen_backbone(flags, CPU)
    assert isinstance(again, Backbone)
    assert (again.identity("proj") == before) is (change == "joined")


def test_weights_that_have_only_just_changed_are_not_put_on_record(tmp_path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(TINY, folder)
    flags = asked(tmp_path / "cache", f"open_clip:local-dir:{folder}")
    assert isinstance(frozen_backbone(flags, CPU), Backbone)
    assert isinstance(frozen_backbone(flags, CPU), Backbone)


def test_a_detector_of_packed_features_is_deployed_behind_the_same_resize(tmp_path) -> None:
    name = "timm:test_vit@random"
    backbone = load_backbone(name).for_features("bf16", "packed")
    Detector(backbone, LinearHead(backbone.dim)).save(tmp_path, {})
    loaded = load_detector(tmp_path).backbone
    assert loaded.preprocess == backbone.preprocess and loaded.dtype == torch.bfloat16
    assert not any(isinstance(module, PackedBlock) for module in loaded.modules())  # it may be moved to a GPU
    pixels = noise(2, 3, loaded.preprocess.size, loaded.preprocess.size)
    with torch.no_grad():
        assert torch.cosine_similarity(loaded(pixels), backbone(pixels)).min() > 0.9995


def test_digests_are_those_of_the_bytes_and_follow_every_change(tmp_path, settled, monkeypatch) -> None:
    from adapt.data import digests as module

    reads: list[str] = []
    read = module.read_bytes
    monkeypatch.setattr(module, "read_bytes", lambda file, *more: reads.append(file) or read(file, *more))
    file = tmp_path / "a.jpg"
    file.write_bytes(b"first")

    def ask() -> bytes:
        known = Digests(tmp_path / "known")
        found = known.of(file)
        known.close()
        return found

    first = ask()
    assert ask() == first and len(reads) == 1
    status = file.stat()
    time.sleep(0.02)  # the file system's clock
    file.write_bytes(b"other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, inode and time of change
    assert ask() != first and len(reads) == 2
    (table, *_) = (tmp_path / "known").glob("*.json")
    table.write_text(table.read_text().replace('"', " ", 1))  # damaged: read again
    assert ask() != first


def test_a_file_that_changed_often_is_read_once_for_each_change(tmp_path, settled, monkeypatch) -> None:
    """Tables are named by digests, so an older one may stand behind a newer one: what it says must not count."""
    reads: list[str] = []
    read = digests.read_bytes
    monkeypatch.setattr(digests, "read_bytes", lambda file, *more: reads.append(file) or read(file, *more))
    file = tmp_path / "a.jpg"
    for change in range(1, 9):
        file.write_bytes(bytes(change))
        for _ in range(2):
            time.sleep(0.02)  # the file system's clock
            known = Digests(tmp_path / "known")
            known.of(file)
            known.close()
        assert len(reads) == change


def test_a_file_that_has_only_just_changed_is_read_again(tmp_path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"first")
    known = Digests(tmp_path / "known")
    known.of(file)
    known.close()
    assert not (tmp_path / "known").exists()

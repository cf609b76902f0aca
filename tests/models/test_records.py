"""The tower that is built is the published one: activation and preprocessing come from the record of the weights."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from adapt.detector.detector import Detector, load_detector
from adapt.errors import Refusal
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import load_backbone
from adapt.models.towers.open_clip import load_open_clip
from adapt.models.towers.records import quick_gelu

TINY = Path(__file__).parents[2] / "adapt" / "embedded" / "tiny"


class NoText(nn.Module):
    """In place of a text tower whose configuration lies on the hub."""

    def __init__(self, *_, **__) -> None:
        super().__init__()
        self.context_length, self.vocab_size, self.output_dim = 77, 2, 1


@pytest.fixture
def no_weights(monkeypatch) -> None:
    """Real models of open_clip, of one layer, without memory and without weights."""
    own = open_clip.factory.get_model_config

    def shallow(name: str) -> dict | None:
        config = own(name)
        for part in ("vision_cfg", "text_cfg") if config else ():
            if isinstance(config[part].get("layers"), int):
                config[part]["layers"] = 1
        return config

    for module, name, value in (
        (open_clip.factory, "get_model_config", shallow),
        (open_clip.factory, "download_pretrained", lambda *_, **__: "absent"),
        (open_clip.factory, "load_checkpoint", lambda *_, **__: None),
        (open_clip.factory, "_set_model_device_and_precision", lambda *_, **__: None),
        (open_clip.model, "HFTextEncoder", NoText),
    ):
        monkeypatch.setattr(module, name, value)


def activations(module: nn.Module) -> set[str]:
    return {type(m).__name__ for m in module.modules() if "GELU" in type(m).__name__}


def test_every_published_tower_of_open_clip_is_built_as_published(no_weights) -> None:
    """All names of the table whose towers can be built: activation, mean, std, interpolation, resize mode."""
    seen, other = 0, []
    for model, tag in open_clip.list_pretrained():
        record, config = open_clip.get_pretrained_cfg(model, tag), open_clip.get_model_config(model)
        assert quick_gelu("", f"{model}@{tag}") == bool(record.get("quick_gelu"))
        if "timm_model_name" in config["vision_cfg"] or not isinstance(config["vision_cfg"]["layers"], int):
            continue  # a trunk's name says its activation; ResNets are refused
        with torch.device("meta"):
            loaded = load_open_clip("", f"{model}@{tag}")
        assert activations(loaded.tower) == {"QuickGELU" if record.get("quick_gelu") else "GELU"}, (model, tag)
        assert (list(loaded.mean), list(loaded.std)) == (list(record["mean"]), list(record["std"]))
        squash = record["resize_mode"] == "squash"
        assert loaded.preprocess.interpolation == record["interpolation"]
        assert (loaded.preprocess.geometry == "squash") == squash
        seen += 1
        other += [f"{model}@{tag}"] if bool(config.get("quick_gelu")) != bool(record.get("quick_gelu")) else []
    assert seen > 80
    assert {"ViT-B-32@openai", "ViT-L-14@dfn2b", "ViT-B-32@metaclip_400m", "ViT-H-14@dfn5b"} < set(other)
    assert {"ViT-B-32@laion400m_e31", "ViT-B-32@laion400m_e32", "roberta-ViT-B-32@laion2b_s12b_b32k"} < set(other)
    assert len(other) == 20  # of the 28 of the table; the others are ResNets


def test_preprocessing_of_trunks_comes_from_the_tag(no_weights, monkeypatch) -> None:
    """One tag of each way that the table has: SigLIP, MobileCLIP, PE..."""
    ways: dict[tuple, str] = {}
    for model, tag in open_clip.list_pretrained():
        record, vision = open_clip.get_pretrained_cfg(model, tag), open_clip.get_model_config(model)["vision_cfg"]
        if str(vision.get("timm_model_name", "")).startswith(("vit_", "fastvit")):
            way = (*record["mean"], *record["std"], record["interpolation"], record["resize_mode"])
            ways.setdefault(way, f"{model}@{tag}")
    assert len(ways) >= 3
    for way, name in ways.items():
        with torch.device("meta"):
            loaded = load_open_clip("", name)
        facts = (*loaded.mean, *loaded.std, loaded.preprocess.interpolation)
        assert (*facts, "squash" if loaded.preprocess.geometry == "squash" else "shortest") == way, name


def folder_like(tmp_path: Path, model: str, **preprocess) -> Path:
    config = {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file({"absent": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    return tmp_path


def test_a_folder_that_does_not_say_is_refused_with_both_choices(tmp_path) -> None:
    folder = folder_like(tmp_path, "ViT-B-32")
    message = r'Write "quick_gelu" into its model_cfg: true for weights like .*@openai, false for .*ViT-B-32@laion2b'
    with pytest.raises(Refusal, match=message):
        load_backbone(f"open_clip:local-dir:{folder}")
    (folder / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "gelu"}}))
    assert quick_gelu("", f"local-dir:{folder}") is False  # transformers' configuration beside it says it
    (folder / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "quick_gelu"}}))
    assert quick_gelu("", f"local-dir:{folder}") is True


def test_a_folder_without_doubt_is_not_refused(tmp_path) -> None:
    mean = [0.5, 0.5, 0.5]
    assert quick_gelu("", f"local-dir:{folder_like(tmp_path, 'ViT-B-32', mean=mean)}") is None
    assert quick_gelu("", f"local-dir:{folder_like(tmp_path, 'ViT-B-32-quickgelu')}") is True
    assert quick_gelu("", f"local-dir:{folder_like(tmp_path, 'ViT-g-14')}") is None  # published with GELU alone
    assert quick_gelu("", f"local-dir:{folder_like(tmp_path, 'ViT-B-16-SigLIP')}") is None


def test_a_repository_of_the_table_needs_no_configuration() -> None:
    assert quick_gelu("", "hf-hub:timm/vit_base_patch32_clip_224.openai") is True
    assert quick_gelu("", "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K") is None


def tiny_with(folder: Path, **model) -> Path:
    """The embedded CLIP's weights under another configuration."""
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"] |= model
    path.write_text(json.dumps(config))
    return folder


def pixels(side: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_features_of_one_activation_are_never_those_of_the_other(tmp_path) -> None:
    """Packed or not; and the cache of features keeps them apart though the weights are the same."""
    found, kept = {}, []
    for quick in (False, True):
        name = f"open_clip:local-dir:{tiny_with(tmp_path / str(quick), quick_gelu=quick)}"
        plain = load_backbone(name)
        packed = load_backbone(name).for_features("fp32", "packed")
        with torch.no_grad():
            found[quick] = plain(pixels())
            torch.testing.assert_close(packed(pixels()), found[quick], atol=1e-4, rtol=1e-4)
        assert plain.fingerprint["activation"] == ("QuickGELU" if quick else "GELU")
        kept.append(plain.identity("last"))
    assert (found[True] - found[False]).abs().max() > 0.01
    assert kept[0] != kept[1]
    assert kept[0]["weights"] == kept[1]["weights"]


def test_a_detector_keeps_the_activation_that_it_was_trained_with(tmp_path) -> None:
    """One of before, whose tower was built with GELU, on weights whose record now says QuickGELU."""
    base = tiny_with(tmp_path / "base", quick_gelu=False)
    backbone = load_backbone(f"open_clip:local-dir:{base}")
    detector = Detector(backbone, LinearHead(backbone.dim)).eval()
    detector.head.load_state_dict({k: torch.ones_like(v) for k, v in detector.head.state_dict().items()})
    detector.save(tmp_path / "detector", {})
    assert json.loads((tmp_path / "detector/detector.json").read_text())["backbone"]["activation"] == "GELU"
    tiny_with(base, quick_gelu=True)
    with pytest.warns(UserWarning, match="trained with GELU, its weights were published with QuickGELU"):
        loaded = load_detector(tmp_path / "detector")
    with torch.no_grad():
        assert torch.equal(loaded(pixels()), detector(pixels()))
    assert load_backbone(f"open_clip:local-dir:{base}").fingerprint["activation"] == "QuickGELU"


def test_a_resize_mode_that_the_package_lacks_is_refused(tmp_path) -> None:
    folder = tiny_with(tmp_path / "tiny")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"]["resize_mode"] = "longest"
    path.write_text(json.dumps(config))
    with pytest.raises(Refusal, match="resize_mode 'longest'"):
        load_backbone(f"open_clip:local-dir:{folder}")


SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}


def timm_file(folder: Path, tag: str, **preprocess) -> str:
    model = timm.create_model("vit_base_patch32_clip_224", num_classes=3, **SMALL)
    own = {"tag": tag, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0} | preprocess
    config = {
        "architecture": "vit_base_patch32_clip_224",
        "num_classes": 3,
        "model_args": SMALL,
        "pretrained_cfg": own,
    }
    save_file(model.state_dict(), folder / "m.safetensors")
    (folder / "m.json").write_text(json.dumps(config))
    return f"timm:vit_base_patch32_clip_224@{folder / 'm.safetensors'}"


@pytest.mark.parametrize("tag", ["openai", "laion2b_s34b_b79k"])
def test_timms_natively_quick_weights_get_quick_gelu(tmp_path, tag) -> None:
    """The same function as timm's own variant of that name."""
    from safetensors.torch import load_file

    backbone = load_backbone(timm_file(tmp_path, tag))
    variant = "vit_base_patch32_clip_quickgelu_224" if tag == "openai" else "vit_base_patch32_clip_224"
    own = timm.create_model(variant, num_classes=3, **SMALL).eval()
    own.load_state_dict(load_file(tmp_path / "m.safetensors"))
    own.reset_classifier(0)
    with torch.no_grad():
        want = own((pixels(224) / 255 - 0.5) / 0.5)
        torch.testing.assert_close(backbone(pixels(224)), want, atol=1e-4, rtol=1e-4)
    assert backbone.fingerprint["activation"] == ("QuickGELU" if tag == "openai" else "GELU")


def test_timms_crop_mode_is_heeded(tmp_path) -> None:
    assert load_backbone(timm_file(tmp_path, "x", crop_mode="squash")).preprocess.geometry == "squash"
    for wrong in ({"crop_mode": "border"}, {"crop_mode": "squash", "crop_pct": 0.9}, {"interpolation": "lanczos"}):
        with pytest.raises(Refusal, match="this package has center, squash with crop_pct 1"):
            load_backbone(timm_file(tmp_path, "x", **wrong))


@pytest.mark.parametrize(("said", "built"), [("gelu", "GELUActivation"), ("quick_gelu", "QuickGELUActivation")])
def test_transformers_activation_is_that_of_its_configuration(tmp_path, said, built) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=8, hidden_act=said)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    about = {"size": {"shortest_edge": 32}, "crop_size": 32, "do_center_crop": True, "resample": 3}
    about |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    assert load_backbone(f"transformers:{tmp_path}").fingerprint["activation"] == built

"""Checkpoints of training and merged towers load by path: the tower in memory, whatever prefix its tensors have."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from test_convert import Exploit, model, own_training, pixels, published, scripted  # noqa: F401 (a fixture)
from test_towers import small_transformers

from adapt.detector.detector import Detector, load_detector
from adapt.errors import Refusal
from adapt.features.remembered import weight_files
from adapt.models.adapters.lora import add_adapter, merge_adapter, save_adapter
from adapt.models.heads.linear import LinearHead
from adapt.models.prompts import prompt_features, without_texts
from adapt.models.towers.backbones import Backbone, load_backbone
from adapt.models.towers.convert import convert
from adapt.models.towers.open_clip import checkpoint_in, create_clip

pytestmark = pytest.mark.usefixtures("published")


def test_names_with_a_file() -> None:
    assert checkpoint_in("small@openai") == ("small", "openai", None)
    assert checkpoint_in("small@a/epoch_10.pt") == ("small", "", Path("a/epoch_10.pt"))
    assert checkpoint_in("small@laion@a@b.safetensors") == ("small", "laion", Path("a@b.safetensors"))
    assert checkpoint_in("small@random@x.bin") == ("small", "random", Path("x.bin"))
    assert checkpoint_in("small@me@x.pth") == ("small", "", Path("me@x.pth"))  # no weights of that name
    assert checkpoint_in("local-dir:a@b.pt")[2] is checkpoint_in("hf-hub:me/x@v.pt")[2] is None


@pytest.mark.parametrize("tag", ["openai", "laion", "random"])
def test_a_checkpoint_of_training_is_the_folder_that_convert_makes(tmp_path, tag) -> None:
    file = tmp_path / "epoch_10.pt"
    torch.save(own_training(model()), file)
    done = convert(file, f"open_clip:small@{tag}", tmp_path / "folder")
    name = f"open_clip:small@{tag}@{file}"
    found, expected = load_backbone(name, "proj"), load_backbone(done.name, "proj")
    assert found.identity("proj") == expected.identity("proj")
    assert found.fingerprint["activation"] == ("QuickGELU" if tag == "openai" else "GELU")
    with torch.no_grad():
        assert torch.equal(found(pixels()), expected(pixels()))
    words = torch.randint(1, 512, (2, 16), generator=torch.Generator().manual_seed(0))
    clips = [create_clip(of, of.removeprefix("open_clip:")).eval() for of in (name, done.name)]
    with torch.no_grad():
        assert torch.equal(*(clip.encode_text(words) for clip in clips))
    assert without_texts(name) == ""
    assert weight_files(name) == [file]


def test_what_the_file_does_not_say_is_asked_for(tmp_path) -> None:
    file = tmp_path / "epoch_10.pt"
    torch.save(own_training(model()), file)
    with pytest.raises(Refusal) as refusal:
        load_backbone(f"open_clip:small@{file}")
    said = str(refusal.value)
    assert "does not say with which activation" in said and "\n" not in said
    assert "--like open_clip:small@openai (QuickGELU" in said and "--like open_clip:small@laion (GELU" in said
    assert said.endswith(
        f"`adapt convert`, which makes a folder of it; or a tag stands in the name, open_clip:small@TAG@{file}"
    )
    (tmp_path / "config.json").write_text('{"vision_config": {"hidden_act": "quick_gelu"}}')
    assert load_backbone(f"open_clip:small@{file}").fingerprint["activation"] == "QuickGELU"
    with pytest.raises(Refusal, match="it has GELU, but the file comes from a model with QuickGELU"):
        load_backbone(f"open_clip:small@laion@{file}")


def test_an_archive_of_openai_needs_no_tag_and_takes_no_other_one(tmp_path) -> None:
    clip, file = model(), tmp_path / "ViT.pt"
    for name in ("context_length", "vocab_size"):
        if hasattr(clip, name):
            delattr(clip, name)
    clip.register_buffer("input_resolution", torch.tensor(64))
    scripted(clip, file)
    backbone = load_backbone(f"open_clip:small@{file}", "proj")
    assert backbone.fingerprint["activation"] == "QuickGELU"
    with torch.no_grad():
        want = clip.encode_image((pixels() - backbone.mean) / backbone.std)
        torch.testing.assert_close(backbone(pixels()), want, atol=1e-4, rtol=1e-4)
    with pytest.raises(Refusal, match="it has GELU, but the file comes from a model with QuickGELU"):
        load_backbone(f"open_clip:small@laion@{file}")


def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_run(tmp_path) -> None:
    weights, file, mark = model().state_dict(), tmp_path / "file.pt", tmp_path / "run"
    cases = {
        r"does not fit .*1 missing: visual.proj\.": {k: v for k, v in weights.items() if k != "visual.proj"},
        r"1 missing: token_embedding.weight": {k: v for k, v in weights.items() if k != "token_embedding.weight"}
        | {"text.x": torch.zeros(1)},
        r"1 of another shape: visual.proj": weights | {"visual.proj": torch.zeros(3, 5)},
        r"holds the model 2 times: choose with --prefix a or --prefix b.*flags of `adapt convert`": {
            "a": weights,
            "b": {key: value * 0.5 for key, value in weights.items()},
        },
        "no tensor fits the model": {"a": torch.zeros(2)},
        "asks Python to call": weights | {"optimizer": Exploit(mark)},
    }
    for message, tensors in cases.items():
        torch.save(tensors, file)
        with pytest.raises(Refusal, match=message) as refusal:
            load_backbone(f"open_clip:small@openai@{file}")
        assert str(refusal.value).startswith("backbone open_clip:small@openai@") and "\n" not in str(refusal.value)
    assert not mark.exists()
    with pytest.raises(Refusal, match="no weights 'openia', perhaps 'openai'"):
        load_backbone(f"open_clip:small@openia@{file}")
    with pytest.raises(Refusal, match=r"absent.pt: cannot be read \(No such file"):
        load_backbone(f"open_clip:small@openai@{tmp_path / 'absent.pt'}")


def test_the_text_tower_takes_no_memory_and_may_be_missing(tmp_path) -> None:
    clip = model()
    torch.save(clip.state_dict(), tmp_path / "whole.pt")
    built = create_clip("", f"small@openai@{tmp_path / 'whole.pt'}", texts=False)
    assert all(p.is_meta for p in built.transformer.parameters())
    assert not any(p.is_meta for p in built.visual.parameters())
    torch.save(clip.visual.state_dict() | {"fc.weight": torch.zeros(1, 128)}, tmp_path / "tower.pt")
    with pytest.raises(Refusal, match=r"1 not in the model: visual.fc.weight"):
        load_backbone(f"open_clip:small@openai@{tmp_path / 'tower.pt'}")
    torch.save(clip.visual.state_dict(), tmp_path / "tower.pt")
    name = f"open_clip:small@openai@{tmp_path / 'tower.pt'}"
    whole = load_backbone(f"open_clip:small@openai@{tmp_path / 'whole.pt'}")
    assert load_backbone(name).identity("last") == whole.identity("last")
    with pytest.raises(Refusal, match="has no text tower"):
        prompt_features(name, [["a photo"], ["a fake"]])


def test_a_detector_on_a_checkpoint_is_loaded_again(tmp_path) -> None:
    torch.save(model().state_dict(), tmp_path / "tuned.pt")
    backbone = load_backbone(f"open_clip:small@openai@{tmp_path / 'tuned.pt'}")
    detector = Detector(backbone, LinearHead(backbone.dim)).eval()
    detector.save(tmp_path / "detector", {})
    with torch.no_grad():
        assert torch.equal(load_detector(tmp_path / "detector")(pixels()), detector(pixels()))
    torch.save({key: value + 1 for key, value in model().state_dict().items()}, tmp_path / "tuned.pt")
    with pytest.raises(Refusal, match="with weights"):
        load_detector(tmp_path / "detector")


# Towers with a LoRA in their weights


def adapted(name: str) -> Backbone:
    backbone = load_backbone(name)
    add_adapter(backbone, "all", rank=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in backbone.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return backbone


@torch.no_grad()
def features(backbone: Backbone) -> torch.Tensor:
    side = backbone.preprocess.size
    x = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return backbone(x)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-5 * expected.norm())


PREFIXES = ("", "module.", "base_model.model.", "state_dict.module.visual.")
KINDS = {  # what adapt trains on, and the name of a file of the merged tower
    "open_clip:small@random": "open_clip:small@random@{}",
    "timm:test_vit@random": "timm:test_vit.r160_in1k@{}",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_merged_tower_gives_the_features_of_its_adapter(tmp_path, kind, suffix) -> None:
    backbone = adapted(kind)
    expected = features(backbone)
    assert not close(features(load_backbone(kind)), expected)
    unmerged = backbone.tower.state_dict()
    save_adapter(backbone, tmp_path / "adapter")
    merge_adapter(backbone)
    file = tmp_path / f"merged.{suffix}"
    for prefix in PREFIXES:
        state = {prefix + key: value.contiguous() for key, value in backbone.tower.state_dict().items()}
        save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
        assert close(features(load_backbone(KINDS[kind].format(file))), expected), prefix
    save_file(unmerged, file) if suffix == "safetensors" else torch.save(unmerged, file)
    shutil.copyfile(tmp_path / "adapter/adapter_model.safetensors", adapter := tmp_path / "adapter.safetensors")
    for wrong in (file, adapter):
        with pytest.raises(Refusal, match=r"holds adapters that are not merged .*merge_and_unload\(\)") as refusal:
            load_backbone(KINDS[kind].format(wrong))
        assert "\n" not in str(refusal.value)


def test_a_whole_clip_that_peft_merged_loads_and_one_merged_in_place_does_not(tmp_path) -> None:
    """Of peft's own on stock open_clip: fused attention, both towers."""
    from peft import LoraConfig, get_peft_model

    clip = model()
    lora = get_peft_model(clip, LoraConfig(target_modules=["c_fc", "c_proj"], init_lora_weights=False)).eval()
    name = f"open_clip:small@openai@{tmp_path / 'lora.pt'}"
    mean, std = (
        torch.tensor(getattr(open_clip, f"OPENAI_DATASET_{of}")).view(3, 1, 1) * 255 for of in ("MEAN", "STD")
    )
    with torch.no_grad():
        expected = lora.encode_image((pixels() - mean) / std)
    lora.merge_adapter()
    torch.save(lora.state_dict(), tmp_path / "lora.pt")
    for command in (
        load_backbone,
        lambda name: convert(tmp_path / "lora.pt", "open_clip:small@openai", tmp_path / "x"),
    ):
        with pytest.raises(Refusal, match="adapters that are not merged"):
            command(name)
    bare = {key: value for key, value in lora.state_dict().items() if "lora_" not in key}
    torch.save(bare, tmp_path / "lora.pt")  # may or may not be merged: it does not say
    with pytest.raises(Refusal, match="adapters that are not merged"):
        load_backbone(name)
    lora.unmerge_adapter()
    torch.save({"state_dict": lora.merge_and_unload().state_dict()}, tmp_path / "lora.pt")
    with torch.no_grad():
        torch.testing.assert_close(load_backbone(name, "proj")(pixels()), expected, atol=1e-4, rtol=1e-4)


def test_a_file_of_timm_has_its_configuration_beside_it_or_a_tag(tmp_path) -> None:
    import timm

    file = tmp_path / "trained.pt"
    torch.save({"state_dict": timm.create_model("test_vit", num_classes=3).state_dict()}, file)
    with pytest.raises(Refusal, match=r"trained.json is needed beside the weights; or name .* timm:test_vit.TAG@"):
        load_backbone(f"timm:test_vit@{file}")
    config = {"architecture": "test_vit", "num_classes": 3, "pretrained_cfg": {"mean": [0.1] * 3}}
    file.with_suffix(".json").write_text(json.dumps(config))
    assert load_backbone(f"timm:test_vit@{file}").fingerprint["preprocess"]["mean"] == [0.1] * 3
    with pytest.raises(Refusal, match="no weights 'r160_in1', perhaps 'r160_in1k'"):
        load_backbone(f"timm:test_vit.r160_in1@{file}")
    with pytest.raises(Refusal, match=r"does not fit test_vit: 2 of another shape: head.weight \(3, 64\)") as refusal:
        load_backbone(f"timm:test_vit.r160_in1k@{file}")  # which has 1000 classes
    assert "--" not in str(refusal.value)
    assert weight_files(f"timm:test_vit@{file}") == [file, file.with_suffix(".json")]


def test_a_merged_tower_of_transformers_is_a_folder(tmp_path) -> None:
    base, merged = tmp_path / "base", tmp_path / "merged"
    small_transformers("CLIP", base)
    backbone = adapted(f"transformers:{base}")
    expected, unmerged = features(backbone), backbone.tower.state_dict()
    merge_adapter(backbone)
    backbone.tower.save_pretrained(merged)
    shutil.copyfile(base / "preprocessor_config.json", merged / "preprocessor_config.json")
    assert close(features(load_backbone(f"transformers:{merged}")), expected)
    save_file({key: value.contiguous() for key, value in unmerged.items()}, merged / "model.safetensors")
    with pytest.raises(Refusal, match=r"holds adapters that are not merged .*merge_and_unload\(\)"):
        load_backbone(f"transformers:{merged}")


def test_features_of_a_checkpoint_are_remembered_until_it_changes(tmp_path, monkeypatch) -> None:
    from adapt.features.remembered import Remembered, frozen_backbone

    monkeypatch.setattr("adapt.data.digests.SETTLED", -1e9)
    torch.save(model().state_dict(), tmp_path / "tuned.pt")
    facts = {"geometry": None, "size": None, "precision": "fp32", "encoder": "plain", "cache": tmp_path / "cache"}
    asked = SimpleNamespace(backbone=f"open_clip:small@openai@{tmp_path / 'tuned.pt'}", layer="last", **facts)
    kinds = [type(frozen_backbone(asked, torch.device("cpu"))) for _ in range(2)]
    torch.save({key: value + 1 for key, value in model().state_dict().items()}, tmp_path / "tuned.pt")
    kinds.append(type(frozen_backbone(asked, torch.device("cpu"))))
    assert kinds == [Backbone, Remembered, Backbone]

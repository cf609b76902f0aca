"""A detector whose folder carries its tower: it needs nothing else, and what a stranger writes there is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
from importing import shaken
from safetensors.torch import load_file, save_file

from adapt import hub
from adapt.detector.detector import Detector, Saved, detector_digest, load_detector
from adapt.errors import Refusal
from adapt.models.heads.affine import Affine
from adapt.models.towers import own
from adapt.models.towers.backbones import load_backbone

SIZES = {"img_size": 32, "embed_dim": 128, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "detector"
    folder.mkdir()
    model = shaken(timm.create_model("vit_small_patch16_384", num_classes=0, **SIZES))
    tower = own.write("vit", model.state_dict(), folder)
    backbone = load_backbone(tower.name)
    Detector(backbone, shaken(Affine(backbone.dim)), 0.5, tower=tower).eval().save(folder, {})
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "detector")


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1))


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path) -> str:
    with pytest.raises(Refusal) as refusal:
        load_detector(folder)
    assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)
    return str(refusal.value)


def test_the_folder_is_all_that_is_needed(folder, saved, tmp_path, monkeypatch) -> None:
    record = json.loads((saved / "detector.json").read_text())
    assert record["backbone"]["name"] == "timm:vit_small_patch16_384@tower/model.safetensors"
    assert set(record["files"]) == {"head.safetensors", "tower/model.safetensors", "tower/model.json"}
    assert set(own.FILES) <= set(hub.FILES)
    expected = load_detector(saved)(pixels())
    digest = detector_digest(saved)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tower").mkdir()  # of somebody else: the name is seen from the detector
    assert torch.equal(load_detector(Path("detector"))(pixels()), expected)
    assert Saved.read("detector").name == record["backbone"]["name"]
    load_detector("detector").save(tmp_path / "again", {})
    shutil.rmtree(folder)
    assert torch.equal(load_detector("again")(pixels()), expected)
    assert "its own tower" in (tmp_path / "again" / "README.md").read_text()
    assert detector_digest("again") == digest
    backbone = load_backbone("tiny")
    Detector(backbone, Affine(backbone.dim)).eval().save(Path("again"), {})  # over it
    assert load_detector("again").tower is None


def test_every_changed_file_is_found(folder) -> None:
    digest = detector_digest(folder)
    weights = load_file(folder / "tower/model.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, folder / "tower/model.safetensors")
    assert detector_digest(folder) != digest and "has" in refused(folder)
    with pytest.raises(Refusal, match="SHA-256 differs"):
        Saved.read(folder)
    (folder / "tower/model.safetensors").unlink()
    assert "is not the tower" in refused(folder)


def test_a_tower_that_is_not_listed_is_refused(folder) -> None:
    record = json.loads((folder / "detector.json").read_text())
    name = f"timm:vit_small_patch16_384@{folder}/tower/model.safetensors"
    del record["tower"]
    record["backbone"]["name"] = name
    for listed in ("tower/model.safetensors", "tower/model.json"):
        del record["files"][listed]
    (folder / "detector.json").write_text(json.dumps(record))
    assert "does not list it" in refused(folder)


@pytest.mark.parametrize(
    ("tower", "name"),
    [
        ("vit", "transformers:tower"),
        ("vit", "timm:vit_small_patch16_384@../other/model.safetensors"),
        ("vit", "open_clip:local-dir:tower"),
        ("clip", "transformers:tower/.."),
        ("unknown", "transformers:tower"),
        (["vit"], "timm:vit_small_patch16_384@tower/model.safetensors"),
        (None, "transformers:tower"),
    ],
)
def test_a_name_leads_nowhere_else(folder, tower, name) -> None:
    record = json.loads((folder / "detector.json").read_text())
    record |= {"tower": tower, "backbone": record["backbone"] | {"name": name}}
    (folder / "detector.json").write_text(json.dumps(record))
    assert "this version knows" in refused(folder)


def test_json_says_what_the_weights_say(folder) -> None:
    change(folder / "detector.json", files=None)
    described = json.loads((folder / "tower/model.json").read_text())
    for wrong in (
        {"architecture": "vit_base_patch16_224"},
        {"model_args": described["model_args"] | {"checkpoint_path": "evil.pth"}},
        {"model_args": described["model_args"] | {"num_heads": 4}},
        {"pretrained_cfg": described["pretrained_cfg"] | {"hf_hub_id": "me/evil"}},
        {"more": 1},
    ):
        change(folder / "tower/model.json", **(described | wrong))
        assert "does not describe its weights" in refused(folder)
    (folder / "tower/model.json").write_text("[" * 100_000)
    assert "is not the tower" in refused(folder)
    (folder / "tower/model.json").unlink()
    os.mkfifo(folder / "tower/model.json")
    assert "not a regular file" in refused(folder)


def test_nothing_else_lies_beside_the_weights(folder) -> None:
    (folder / "tower/adapter_config.json").write_text("{}")  # which transformers would read
    assert "adapter_config.json" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_embed.proj.weight": torch.zeros(2**33, 3, 0, 0)}, "no proper patch_embed.proj.weight"),
        ({"patch_embed.proj.weight": torch.zeros(8192, 3, 16, 16)}, "are not those of"),
        ({"pos_embed": torch.zeros(1, 8, 128)}, "no square"),
        ({"blocks.2.norm1.weight": torch.zeros(128)}, "are not those of"),
        ({f"blocks.{k}.norm1.weight": torch.zeros(1) for k in range(20_000)}, "are not those of"),
        ({"norm.bias": None}, "are not those of"),
        ({"pos_embed": None}, "no proper pos_embed"),
    ],
)
def test_weights_are_those_of_the_architecture(folder, changes, words) -> None:
    """And a small file asks for no large model."""
    change(folder / "detector.json", files=None)
    state = load_file(folder / "tower/model.safetensors") | changes
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_file(state, folder / "tower/model.safetensors")
    if words == "are not those of":
        described = own.LAYOUTS["vit"].describe({name: tuple(tensor.shape) for name, tensor in state.items()}.get)
        (folder / "tower/model.json").write_text(json.dumps(described["model.json"]))
    assert words in refused(folder)

"""Weights of the hub by name, from a server on this machine whose repositories look like the true ones."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from hub_server import COMMIT, Hub, hub
from safetensors.torch import load_file, save_file

from adapt.errors import Refusal
from adapt.models.towers import hub as of_hub
from adapt.models.towers.backbones import load_backbone
from adapt.models.towers.tokens import warn_of_satellites

ROOT = Path(__file__).parents[2]
SMALL_DINO = {"embed_dim": 32, "depth": 2, "num_heads": 2}
LOAD = """
import json, sys, torch
from adapt.errors import Refusal
from adapt.models.towers.backbones import load_backbone
for name in json.loads(sys.argv[1]):
    try:
        backbone = load_backbone(name)
        x = torch.arange(3 * backbone.preprocess.size**2).reshape(1, *backbone.preprocess.shape) % 251
        print(json.dumps([backbone.fingerprint, backbone(x.float())[0].tolist()]))
    except Refusal as refusal:
        print(json.dumps(str(refusal)))
"""


def repository(folder: Path, name: str, tag: str, arguments: dict | None = None, **own) -> Path:
    """As timm's push_to_hf_hub writes it: pickled and safe weights, config.json and a card."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=own.get("num_classes", 7), **arguments or {})
    model.pretrained_cfg |= {"tag": tag, "mean": [0.1] * 3, "std": [0.3] * 3, "interpolation": "bilinear"} | own
    timm.models.save_for_hf(model, folder, model_args=arguments, safe_serialization="both")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# a card\n")
    return folder


@pytest.fixture(scope="module")
def repos(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("repositories")
    vit = repository(root / "vit", "test_vit.r160_in1k", "r160_in1k", num_classes=1000)
    lvd = repository(root / "lvd", "vit_small_patch16_dinov3", "lvd1689m", SMALL_DINO, num_classes=0, crop_pct=0.8)
    sat = shutil.copytree(lvd, root / "sat")
    pickled = shutil.copytree(lvd, root / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    poor = shutil.copytree(lvd, root / "poor")
    weights = load_file(lvd / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "blocks.1.mlp.fc2.bias"}, poor / "model.safetensors")
    wide = shutil.copytree(lvd, root / "wide")
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | {"model_args": SMALL_DINO | {"embed_dim": 64}}))
    return {
        "timm/test_vit.r160_in1k": vit, "me/dino.lvd1689m": lvd, "me/dino.sat493m": sat, "me/pickled": pickled,
        "me/poor": poor, "me/wide": wide, "me/gated-dinov3": lvd,
    }  # fmt: skip


@pytest.fixture(scope="module")
def server(repos):
    with hub(repos, gated=("me/gated-dinov3",)) as server:
        yield server


def load(url: str, home: Path, *names: str, offline: bool = False) -> tuple[list, list[str]]:
    """What each name gives, and the lines beside, in a process of its own: huggingface_hub reads its address once."""
    env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    words = [sys.executable, "-c", LOAD, json.dumps(names)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(map(json.loads, done.stdout.splitlines())), done.stderr.splitlines()


def own_features(repo: Path, size: int, **arguments) -> list[float]:
    """timm's own function of the repository's weights."""
    model = timm.create_model(f"local-dir:{repo}", pretrained=True, **arguments).eval()
    model.reset_classifier(0)
    x = (torch.arange(3 * size**2).reshape(1, 3, size, size) % 251).float()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return model((x / 255 - mean) / std)[0].tolist()


def test_timms_names_load_from_the_hub_as_timm_builds_them(repos, server: Hub, tmp_path) -> None:
    """Weights, preprocessing, commit; a pin; then without a network from the cache; and no pickle is fetched."""
    names = ["timm:test_vit", "timm:test_vit.r160_in1k", "timm:hf-hub:me/dino.lvd1689m"]
    names += [f"timm:hf-hub:me/dino.lvd1689m@{COMMIT}"]
    server.asked.clear()
    found, said = load(server.url, tmp_path, *names)
    (plain, tagged, dino, pinned), fetched = found, {path.rpartition("/")[2] for _, path, _ in server.asked}
    assert said == [
        "backbone timm:test_vit: the weights are r160_in1k, timm's own choice for this name: timm:test_vit.r160_in1k"
    ]
    assert "model.safetensors" in fetched and not any(name.endswith((".bin", ".md")) for name in fetched)
    for facts, _ in found:
        assert facts["commit"] == COMMIT
    assert plain[1] == tagged[1] and dino[1] == pinned[1]
    ours = timm.get_pretrained_cfg("test_vit.r160_in1k")  # timm's own table, not the repository's config
    assert tagged[0]["preprocess"]["mean"] == list(ours.mean) and tagged[0]["preprocess"]["size"] == ours.input_size[1]
    assert dino[0]["preprocess"]["mean"] == [0.1] * 3 and dino[0]["preprocess"]["interpolation"] == "bilinear"
    assert (dino[0]["preprocess"]["size"], dino[0]["preprocess"]["shortest"]) == (256, 320)
    own = own_features(repos["me/dino.lvd1689m"], 256)
    assert dino[1] == pytest.approx(own, abs=1e-4)
    again, _ = load("http://127.0.0.1:9", tmp_path, *names[:3], offline=True)
    assert again == found[:3]


def test_what_cannot_be_loaded_from_the_hub_is_one_line(server: Hub, tmp_path) -> None:
    names = ["me/gated-dinov3", "me/absent", "me/dino.lvd1689m@v9", "me/pickled", "me/poor", "me/wide"]
    found, _ = load(server.url, tmp_path / "home", *(f"timm:hf-hub:{name}" for name in names))
    gated, absent, revision, pickled, poor, wide = found
    assert all(isinstance(line, str) and "\n" not in line for line in found)
    assert "is gated: accept its terms on its page" in gated and "take timm's copy, which is not" in gated
    assert "the hub has no repository 'me/absent'" in absent and "has no revision v9" in revision
    assert "me/pickled has no model.safetensors" in pickled and "pickled weights are not loaded" in pickled
    assert "does not fit vit_small_patch16_dinov3: 1 tensors are missing, as blocks.1.mlp.fc2.bias" in poor
    assert "does not fit vit_small_patch16_dinov3: " in wide and "size mismatch" in wide
    for offline, why in ((True, "switched off by HF_HUB_OFFLINE"), (False, "cannot be reached")):
        ((line,), _) = load("http://127.0.0.1:9", tmp_path / "new", "timm:test_vit.r160_in1k", offline=offline)
        assert why in line and "run `hf download timm/test_vit.r160_in1k` (or unset HF_HUB_OFFLINE)" in line


def test_names_that_timms_table_lacks_are_refused() -> None:
    cases = {
        "timm:vit_large_patch16_dinov3.lvd1688m": "no weights 'lvd1688m', perhaps 'lvd1689m'; known: lvd",
        "timm:vit_larg_patch16_dinov3": "no model 'vit_larg_patch16_dinov3', perhaps 'vit_large_patch16_dinov3'",
        "timm:vit_giant_patch14_224": "no weights of vit_giant_patch14_224 at the hub; name a file",
        "timm:gcvit_base.in1k": "no weights of gcvit_base.in1k at the hub; name a file",  # of another address
    }
    for name, message in cases.items():
        with pytest.raises(Refusal, match=message):
            load_backbone(name)


def test_satellites_are_warned_of_once_per_load(server: Hub, tmp_path) -> None:
    names = ["timm:hf-hub:me/dino.sat493m", "timm:hf-hub:me/dino.lvd1689m"]
    _, said = load(server.url, tmp_path, *names)
    assert len(said) == 1
    assert said[0].startswith("backbone timm:hf-hub:me/dino.sat493m: trained on satellite images. On ordinary photo")
    assert "lvd1689m" in said[0]


def test_satellites_of_transformers_are_warned_of(tmp_path, capsys) -> None:
    from test_towers import small_transformers

    for folder, told in ((tmp_path / "dinov3-vitl16-pretrain-sat493m", 1), (tmp_path / "dinov3-lvd1689m", 0)):
        small_transformers("DINOv3ViT", folder)
        load_backbone(f"transformers:{folder}")
        assert capsys.readouterr().err.count("trained on satellite images") == told
    path = folder / "config.json"  # a copy under another name: where it was saved from
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": "facebook/dinov3-vit7b16-SAT493M"}))
    load_backbone(f"transformers:{folder}")
    assert capsys.readouterr().err.count("trained on satellite images") == 1
    for tag in timm.list_pretrained("*sat493m*"):
        warn_of_satellites("", tag)
        assert capsys.readouterr().err.count("\n") == 1


def test_a_commit_is_that_of_the_hubs_cache_alone(tmp_path) -> None:
    cache = tmp_path / "hub" / "models--a--b" / "snapshots" / COMMIT
    assert of_hub.commit_of(cache) == of_hub.commit_of(cache / "x" / "model.safetensors") == COMMIT
    assert of_hub.commit_of(tmp_path / "snapshots" / "mine") is None and of_hub.commit_of(None) is None


def test_remembered_features_card_and_prompts_know_the_names(repos, tmp_path, monkeypatch) -> None:
    from types import SimpleNamespace

    from adapt.detector.model_card import licence
    from adapt.features.remembered import Remembered, frozen_backbone
    from adapt.models.prompts import without_texts

    repository = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(repos["timm/test_vit.r160_in1k"], repository / "snapshots" / COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("adapt.data.digests.SETTLED", 0)  # seconds
    name = "timm:test_vit.r160_in1k"
    facts = {"geometry": None, "size": None, "precision": "fp32", "encoder": "plain", "cache": tmp_path / "cache"}
    asked = SimpleNamespace(backbone=name, layer="last", **facts)
    first, second = (frozen_backbone(asked, torch.device("cpu")) for _ in range(2))
    assert isinstance(second, Remembered) and second.fingerprint == first.fingerprint
    (repository / "snapshots" / COMMIT / "model.safetensors").touch()  # other weights, as far as can be seen
    assert not isinstance(frozen_backbone(asked, torch.device("cpu")), Remembered)
    assert licence(name) == "apache-2.0, says their card"
    assert "has no text tower" in without_texts(name)

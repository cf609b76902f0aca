"""QuickGELU is taken from the weights: what each door to OpenAI's weights under a plain GELU configuration does.

A small architecture stands in for theirs, with two published weights: `openai` with QuickGELU, `laion` with GELU.
"""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from test_convert import TINY, model, published, scripted  # noqa: F401 (a fixture)
from test_hub_weights import COMMIT
from test_towers import small_transformers

from adapt.errors import Refusal
from adapt.models.towers import records
from adapt.models.towers.backbones import load_backbone
from adapt.models.towers.convert import convert
from adapt.models.towers.timm import load_timm

pytestmark = pytest.mark.usefixtures("published")
BUFFERS = {name: torch.tensor(64) for name in ("input_resolution", "context_length", "vocab_size")}


def built(name: str) -> str:
    return load_backbone(name).fingerprint["activation"]


def folder_of(folder: Path, says: bool | None, beside: str | None = None) -> str:
    """A folder of open_clip whose two configurations say these activations."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((TINY / "open_clip_config.json").read_text())
    config["model_cfg"] |= {} if says is None else {"quick_gelu": says}
    if says is None:
        del config["model_cfg"]["quick_gelu"]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model().state_dict(), folder / "open_clip_model.safetensors")
    if beside:
        (folder / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": beside}}))
    return f"open_clip:local-dir:{folder}"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Puts a folder into the hub's cache under a name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder: Path, repository: str) -> None:
        place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(COMMIT)
        shutil.copytree(folder, place / "snapshots" / COMMIT)

    return put


def test_a_tag_of_open_clip_is_corrected_with_a_line(tmp_path, cache, capsys) -> None:
    folder_of(tmp_path / "published", None)
    cache(tmp_path / "published", "a/b")  # of both tags
    assert built("open_clip:small@openai") == "QuickGELU"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "backbone open_clip:small@openai: its weights were trained with QuickGELU and get it, where open_clip's small "
        "has GELU"
    )
    assert built("open_clip:small@laion") == "GELU"
    assert capsys.readouterr().err == ""


def test_a_repository_of_open_clip(tmp_path, cache, capsys) -> None:
    """In the table: as it says, with a line. Else its own configuration, that of transformers where this is silent."""
    folder_of(tmp_path / "silent", None)
    cache(tmp_path / "silent", "a/b")  # the fixture's repository: openai's
    assert built("open_clip:hf-hub:a/b") == "QuickGELU"
    assert "trained with QuickGELU and get it, where its configuration has GELU" in capsys.readouterr().err
    cache(tmp_path / "silent", "me/silent")
    assert built("open_clip:hf-hub:me/silent") == "GELU"
    folder_of(tmp_path / "beside", None, "quick_gelu")
    cache(tmp_path / "beside", "me/beside")
    assert built("open_clip:hf-hub:me/beside") == "QuickGELU"
    folder_of(tmp_path / "lies", False, "quick_gelu")
    cache(tmp_path / "lies", "me/lies")
    with pytest.raises(Refusal, match=r"open_clip_config.json says GELU, config.json beside it QuickGELU"):
        built("open_clip:hf-hub:me/lies")


def test_a_folder_of_open_clip(tmp_path, monkeypatch) -> None:
    """What it says explicitly is believed as long as nothing beside it says otherwise."""
    assert built(folder_of(tmp_path / "1", True)) == "QuickGELU"
    assert built(folder_of(tmp_path / "2", None, "quick_gelu")) == "QuickGELU"
    assert built(folder_of(tmp_path / "3", False, "gelu")) == "GELU"
    for says, beside in ((False, "quick_gelu"), (True, "gelu")):
        with pytest.raises(Refusal, match="One of them is wrong; OpenAI, MetaCLIP and DFN") as refusal:
            built(folder_of(tmp_path / str(says), says, beside))
        assert "\n" not in str(refusal.value)
    silent = folder_of(tmp_path / "4", None)
    config = json.loads((tmp_path / "4/open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = list(records.published()[0][2]["mean"])
    (tmp_path / "4/open_clip_config.json").write_text(json.dumps(config))
    monkeypatch.setattr(
        records, "published", lambda: [("small", "openai", {"quick_gelu": True, **config["preprocess_cfg"]})]
    )
    with pytest.raises(Refusal, match=r'does not say which activation.*Write "quick_gelu"'):
        built(silent)
    unconverted = model().state_dict() | BUFFERS  # OpenAI's archive
    save_file(unconverted, tmp_path / "3/open_clip_model.safetensors")
    with pytest.raises(Refusal, match=r"could not be loaded.*input_resolution"):
        built(f"open_clip:local-dir:{tmp_path / '3'}")


@pytest.mark.parametrize("kind", ["archive", "tensors.pt", "tensors.safetensors"])
def test_openais_archive_or_its_tensors_by_path_and_converted(tmp_path, kind) -> None:
    file = tmp_path / (kind if "." in kind else "ViT.pt")
    if kind == "archive":
        scripted(model(), file)
    elif kind.endswith(".pt"):
        torch.save(model().state_dict() | BUFFERS, file)
    else:
        save_file(model().state_dict() | BUFFERS, file)
    assert built(f"open_clip:small@{file}") == "QuickGELU"
    done = convert(file, "open_clip:small", tmp_path / "out")
    assert done.activation == built(done.name) == "QuickGELU"
    for tag in ("laion", "random"):  # plain GELU
        message = "it has GELU, but the file comes from a model with QuickGELU"
        with pytest.raises(Refusal, match=message):
            built(f"open_clip:small@{tag}@{file}")
        with pytest.raises(Refusal, match=message):
            convert(file, f"open_clip:small@{tag}", tmp_path / "other")


def test_a_state_dict_that_says_nothing_by_path_is_refused_without_a_tag(tmp_path) -> None:
    torch.save(model().state_dict(), file := tmp_path / "tuned.pt")
    with pytest.raises(Refusal, match="does not say with which activation"):
        built(f"open_clip:small@{file}")
    assert built(f"open_clip:small@openai@{file}") == "QuickGELU"


def test_a_folder_of_transformers(tmp_path, cache, monkeypatch) -> None:
    """hidden_act decides, as in transformers itself; two configurations or a table that disagree are refused."""
    small_transformers("CLIP", folder := tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())

    def says(act: str | None) -> str:
        vision = {key: value for key, value in config["vision_config"].items() if key != "hidden_act"}
        vision |= {} if act is None else {"hidden_act": act}
        (folder / "config.json").write_text(json.dumps(config | {"vision_config": vision}))
        return f"transformers:{folder}"

    assert built(says("gelu")) == "GELUActivation"
    assert built(says("quick_gelu")) == built(says(None)) == "QuickGELUActivation"  # the library's own default
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    assert built(says("quick_gelu")) == "QuickGELUActivation"
    with pytest.raises(Refusal, match=r"says QuickGELU, config.json beside it GELU"):
        built(says("gelu"))
    (folder / "open_clip_config.json").unlink()
    says("gelu")
    cache(folder, "a/b")  # which open_clip's table has with QuickGELU
    with pytest.raises(Refusal, match=r"weights of a/b were published with QuickGELU, but its config.json says GELU"):
        built("transformers:a/b")


SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2}


def timm_repository(folder: Path, **own) -> Path:
    tower = timm.create_model("vit_base_patch32_clip_224", num_classes=3, **SMALL)
    tower.pretrained_cfg = {**tower.pretrained_cfg, "notes": None, **own}
    timm.models.save_for_hf(tower, folder, model_args=SMALL, safe_serialization=True)
    return folder


@pytest.mark.parametrize("tag", ["openai", "laion2b_s34b_b79k"])
def test_a_repository_of_timm_is_corrected_with_a_line(tmp_path, cache, capsys, tag) -> None:
    """By timm's own note on the tag, whatever the plain name builds."""
    cache(timm_repository(tmp_path / "r", tag=tag), f"me/clip.{tag}")
    quick = tag == "openai"
    assert built(f"timm:hf-hub:me/clip.{tag}") == ("QuickGELU" if quick else "GELU")
    said = capsys.readouterr().err
    assert ("QuickGELU and get it, where timm's vit_base_patch32_clip_224 has GELU" in said) == quick
    assert said.count("\n") == quick


def test_every_clip_of_timms_table_is_built_as_its_note_says(tmp_path, monkeypatch, capsys) -> None:
    """timm:NAME.TAG of all 300 CLIPs: the activation that is asked for, of the plain and of the quickgelu names."""
    asked: list[dict] = []

    class Built(Exception):
        pass

    def create(name: str, **options) -> None:
        asked.append(options)
        raise Built

    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr("adapt.models.towers.timm.folder_of", lambda *_: tmp_path)
    monkeypatch.setattr(timm, "create_model", create)
    quick = 0
    for full in timm.list_pretrained("*clip*"):
        record = timm.get_pretrained_cfg(full)
        if not record.hf_hub_id:
            continue
        with pytest.raises(Refusal):
            load_timm("", full)
        noted = any("natively QuickGELU" in note for note in record.notes or ())
        assert asked[-1].get("act_layer") == ("quick_gelu" if noted else None), full
        assert ("trained with QuickGELU" in capsys.readouterr().err) == (noted and "quickgelu" not in full), full
        quick += noted
    assert quick == 34


def test_a_file_of_timm_that_does_not_say_is_refused(tmp_path) -> None:
    """As a file of open_clip is: two kinds of weights were published for its architecture."""
    timm_repository(tmp_path / "r")
    file = shutil.copyfile(tmp_path / "r/model.safetensors", tmp_path / "m.safetensors")
    about = {"architecture": "vit_base_patch32_clip_224", "num_classes": 3, "model_args": SMALL}

    def says(**more) -> str:
        own = {key: [0.5] * 3 for key in ("mean", "std")} | more.pop("own", {})
        arguments = SMALL | more
        file.with_suffix(".json").write_text(json.dumps(about | {"model_args": arguments, "pretrained_cfg": own}))
        return f"timm:vit_base_patch32_clip_224@{file}"

    with pytest.raises(
        Refusal, match=r'does not say which activation.*Write "act_layer" into its model_args'
    ) as refusal:
        built(says())
    assert "\n" not in str(refusal.value)
    assert built(says(own={"tag": "openai"})) == built(says(act_layer="quick_gelu")) == "QuickGELU"
    assert built(says(own={"tag": "laion2b_s34b_b79k"})) == built(says(act_layer="gelu")) == "GELU"
    assert len(load_file(file)) > 10

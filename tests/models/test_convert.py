"""`adapt convert`: the tower of a checkpoint is the model that was in memory, and no file gets to run anything."""

import argparse
import json
import os
import pickle
import re
import shutil
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adapt.commands import convert as command
from adapt.errors import Refusal
from adapt.models.prompts import prompt_features
from adapt.models.towers.backbones import load_backbone
from adapt.models.towers.checkpoint import read_checkpoint
from adapt.models.towers.convert import convert

TINY = Path(__file__).parents[2] / "adapt" / "embedded" / "tiny"


@pytest.fixture
def like(tmp_path) -> str:
    """A folder with a configuration alone: the embedded CLIP's, with QuickGELU."""
    folder = tmp_path / "like"
    folder.mkdir()
    config = json.loads((TINY / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"open_clip:local-dir:{folder}"


def model() -> nn.Module:
    """A CLIP in memory, of random weights."""
    config = json.loads((TINY / "open_clip_config.json").read_text())["model_cfg"]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        clip = open_clip.model.CLIP(**config | {"quick_gelu": True}).eval()
        for parameter in clip.parameters():  # no zeros: a bias that is lost must show
            nn.init.normal_(parameter, std=0.1)
    return clip


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()


def own_training(clip: nn.Module) -> dict:
    """What open_clip's training saves, and a little more."""
    optimizer = torch.optim.AdamW(clip.parameters())
    clip.encode_image(pixels()).sum().backward()
    before = {key: value.clone() for key, value in clip.state_dict().items()}
    optimizer.step()
    clip.load_state_dict(before)
    weights = {f"module.{key}": value for key, value in before.items()}
    return {
        "epoch": 3,
        "name": "run",
        "state_dict": weights,
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 2.0},
    }


def detector_of_others(clip: nn.Module) -> dict:
    return {"model": OrderedDict((f"clip.{key}", value) for key, value in clip.state_dict().items())} | {
        "args": argparse.Namespace(lr=0.1, out=Path("x")), "step": torch.tensor(4)
    }  # fmt: skip


def scripted(clip: nn.Module, file: Path) -> None:
    """As OpenAI's archives: the model as TorchScript, half of it in fp16, with three numbers as buffers."""
    for name, value in (("input_resolution", 64), ("context_length", 16), ("vocab_size", 512)):
        clip.visual.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace_module(clip, {"encode_image": pixels()}), file)


SAVED = {
    "bare.pt": lambda clip, file: torch.save(clip.state_dict(), file),
    "training.pt": lambda clip, file: torch.save(own_training(clip), file),
    "detector.pth": lambda clip, file: torch.save(detector_of_others(clip), file),
    "parameters.bin": lambda clip, file: torch.save(dict(clip.named_parameters()), file),
    "model.safetensors": lambda clip, file: save_file(clip.state_dict(), file),
    "archive.pt": scripted,
}


@pytest.mark.parametrize("kind", SAVED)
def test_the_converted_tower_is_the_model_that_was_in_memory(tmp_path, like, kind) -> None:
    """To the bit, by open_clip's own encoder; and adapt's features are those of that tower."""
    clip = model()
    SAVED[kind](clip, tmp_path / kind)
    done = convert(tmp_path / kind, like, tmp_path / "out")
    assert done.activation == "QuickGELU"
    assert done.prefix == {"training.pt": "state_dict.module.", "detector.pth": "model.clip."}.get(kind, "")
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'out'}", require_pretrained=True).eval()
    backbone = load_backbone(done.name, "proj")
    x = (pixels() - backbone.mean) / backbone.std
    texts = torch.randint(1, 512, (2, 16))
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(x), clip.encode_image(x))
        assert torch.equal(loaded.encode_text(texts), clip.encode_text(texts))
        torch.testing.assert_close(backbone(pixels()), clip.encode_image(x), atol=1e-4, rtol=1e-4)
    assert backbone.preprocess.geometry == "native"  # as the folder that it is like


def test_half_precision_stays_what_it_is(tmp_path, like) -> None:
    clip = model().half()
    torch.save(clip.state_dict(), tmp_path / "half.pt")
    convert(tmp_path / "half.pt", like, tmp_path / "out")
    found = load_file(tmp_path / "out/open_clip_model.safetensors")
    assert all(torch.equal(found[key], value) for key, value in clip.state_dict().items())
    assert {value.dtype for value in found.values()} == {torch.float16}


@pytest.mark.parametrize("prefix", ["visual.", "", "backbone.visual."])
def test_an_image_tower_alone_is_taken_only_if_asked_for(tmp_path, like, prefix) -> None:
    clip = model()
    weights = {prefix + key: value for key, value in clip.visual.state_dict().items()}
    torch.save(weights | {"fc.weight": torch.zeros(1, 128)}, tmp_path / "tower.pt")
    ignored = () if prefix.startswith("backbone") else ("fc",)
    with pytest.raises(Refusal, match=r"missing: .*positional_embedding.*--vision_only takes the image tower alone"):
        convert(tmp_path / "tower.pt", like, tmp_path / "out", ignore=ignored)
    assert not (tmp_path / "out").exists()
    done = convert(tmp_path / "tower.pt", like, tmp_path / "out", ignore=ignored, vision_only=True)
    assert done.left == {"fc": 1}
    backbone = load_backbone(done.name, "proj")
    with torch.no_grad():
        want = clip.encode_image((pixels() - backbone.mean) / backbone.std)
        torch.testing.assert_close(backbone(pixels()), want, atol=1e-4, rtol=1e-4)
    with pytest.raises(Refusal, match="has no text tower"):
        prompt_features(done.name, [["a photo"], ["a fake"]])


def test_keys_that_do_not_fit_are_shown_and_refused(tmp_path, like) -> None:
    weights = model().state_dict()
    cases = {
        r"1 missing: visual.proj\.": {key: value for key, value in weights.items() if key != "visual.proj"},
        r"2 not in the model: fc.weight, fc.bias\. --ignore fc": weights
        | {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)},
        r"1 of another shape: visual.positional_embedding \(50, 192\) instead of \(65, 192\)": weights
        | {"visual.positional_embedding": torch.zeros(50, 192)},
        r"no tensor fits the model \(it holds a\.\.\.\)": {"a": torch.zeros(2)},
        r"names of transformers: give --like transformers": {"vision_model.encoder.layers.0.x": torch.zeros(2)},
    }
    for message, tensors in cases.items():
        torch.save(tensors, tmp_path / "file.pt")
        with pytest.raises(Refusal, match=message) as refusal:
            convert(tmp_path / "file.pt", like, tmp_path / "out")
        assert "\n" not in str(refusal.value)
    assert {path.name for path in tmp_path.iterdir()} == {"like", "file.pt"}  # nothing half-made stays


def test_of_two_copies_one_is_chosen(tmp_path, like) -> None:
    weights, averaged = model().state_dict(), {key: value * 0.5 for key, value in model().state_dict().items()}
    torch.save({"state_dict": weights, "ema": averaged}, tmp_path / "two.pt")
    with pytest.raises(Refusal, match=r"holds the model 2 times: choose with --prefix state_dict or --prefix ema"):
        convert(tmp_path / "two.pt", like, tmp_path / "out")
    convert(tmp_path / "two.pt", like, tmp_path / "out", prefix="ema")
    found = load_file(tmp_path / "out/open_clip_model.safetensors")
    assert torch.equal(found["visual.proj"], averaged["visual.proj"])


class Exploit:
    """What a hostile file holds: unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_an_exploit_is_refused_and_not_run(tmp_path, like, monkeypatch, capsys) -> None:
    mark = tmp_path / "run"
    torch.save(model().state_dict() | {"optimizer": Exploit(mark)}, tmp_path / "bad.pt")
    words = ["adapt convert", str(tmp_path / "bad.pt"), "--like", like, "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        command.command()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert re.search(r"bad.pt asks Python to call (posix|nt).mkdir. Nothing of it was run", said)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)  # the file is a true exploit
    assert mark.exists()


def rewrite(file: Path, change, compress: int = zipfile.ZIP_STORED) -> Path:
    """The archive with another pickle."""
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w", compress) as new:
        for name, data in members.items():
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return file


def nested(levels: int) -> list:
    found: list = [1]
    for _ in range(levels):
        found = [found, found]
    return found


def test_hostile_and_damaged_files_are_refused(tmp_path) -> None:
    file = tmp_path / "file.pt"

    def saved(value: object) -> Path:
        torch.save(value, file)
        return file

    part = torch.arange(10.0)[5:]
    outside = rewrite(saved({"a": part}), lambda data: data.replace(b"K\x05K\x05\x85", b"K\x06K\x05\x85"))
    with pytest.raises(Refusal, match="does not lie inside its storage"):
        read_checkpoint(outside).tensors["a"].load()
    assert read_checkpoint(saved({"a": part})).tensors["a"].load().tolist() == part.tolist()
    with pytest.raises(Refusal, match="larger than torch writes them"):  # a zip bomb
        read_checkpoint(rewrite(saved({"a": torch.zeros(10**6)}), bytes, zipfile.ZIP_DEFLATED))
    with pytest.raises(Refusal, match="is damaged"):
        read_checkpoint(rewrite(saved({"a": part}), lambda data: data[:40]))
    assert read_checkpoint(rewrite(saved(1), lambda _: pickle.dumps(nested(60), 2))).tensors == {}
    with pytest.raises(Refusal, match="it holds a whole model, not its weights"):
        read_checkpoint(saved(nn.Linear(2, 2)))
    torch.save({"a": part}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(Refusal, match=r"neither a checkpoint of torch 1.6 or later nor safetensors"):
        read_checkpoint(file)
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(Refusal, match="is damaged"):
        read_checkpoint(file)
    with pytest.raises(Refusal, match="cannot be read"):
        read_checkpoint(tmp_path / "absent.pt")


def test_a_module_in_a_script_is_read_like_its_state_dict(tmp_path) -> None:
    """An oracle of torch's own: every tensor of the archive, tied and strided ones too."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Conv2d(2, 2, 1).to(memory_format=torch.channels_last))
    net[0].weight = nn.Parameter(torch.randn(3, 4).t())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net), tmp_path / "net.pt")
    found = read_checkpoint(tmp_path / "net.pt")
    assert found.tensors.keys() == net.state_dict().keys()
    for key, value in net.state_dict().items():
        assert torch.equal(found.tensors[key].load(), value)
        assert found.tensors[key].load().dtype == value.dtype


@pytest.fixture
def published(tmp_path, monkeypatch) -> None:
    """A small architecture with two published weights: one like OpenAI's, one like LAION's with another mean."""
    config = json.loads((TINY / "open_clip_config.json").read_text())["model_cfg"]
    del config["quick_gelu"]
    usual = {"interpolation": "bicubic", "resize_mode": "shortest", "hf_hub": "a/b/", "url": ""}
    openai = usual | {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, "quick_gelu": True}
    laion = usual | {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small", {"openai": openai, "laion": laion})


def test_the_tag_says_activation_and_preprocessing(tmp_path, published) -> None:
    file = tmp_path / "tuned.pt"
    torch.save(model().state_dict(), file)
    choices = r"--like open_clip:small@openai \(QuickGELU, mean 0.481.*--like open_clip:small@laion \(GELU, mean 0.5"
    with pytest.raises(Refusal, match=f"does not say with which activation.*{choices}.*small@random"):
        convert(file, "open_clip:small", tmp_path / "out")
    for tag, built, mean in (
        ("openai", "QuickGELU", 0.48145466),
        ("laion", "GELU", 0.5),
        ("random", "GELU", 0.48145466),
    ):
        done = convert(file, f"open_clip:small@{tag}", tmp_path / tag)
        backbone = load_backbone(done.name)
        assert done.activation == backbone.fingerprint["activation"] == built
        assert backbone.fingerprint["preprocess"]["mean"][0] == mean
        assert backbone.preprocess.interpolation == ("bilinear" if tag == "laion" else "bicubic")
    with pytest.raises(Refusal, match="no weights 'openia', perhaps 'openai'"):
        convert(file, "open_clip:small@openia", tmp_path / "out")
    with pytest.raises(Refusal, match="openai exists; give a new folder"):
        convert(file, "open_clip:small@openai", tmp_path / "openai")


def test_an_archive_of_openai_says_it_itself(tmp_path, published) -> None:
    clip, file = model(), tmp_path / "ViT.pt"
    for name, value in (("input_resolution", 64), ("context_length", 16), ("vocab_size", 512)):
        if hasattr(clip, name):
            delattr(clip, name)
        clip.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace_module(clip, {"encode_image": pixels()}), file)
    assert convert(file, "open_clip:small", tmp_path / "out").activation == "QuickGELU"
    with pytest.raises(Refusal, match="it has GELU, but the file comes from a model with QuickGELU"):
        convert(file, "open_clip:small@laion", tmp_path / "other")


def test_a_pickled_model_of_transformers_becomes_a_folder(tmp_path) -> None:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"projection_dim": 8}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    text = sizes | {"vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    folder = tmp_path / "hub"
    clip.save_pretrained(folder)
    about = {"size": {"shortest_edge": 32}, "crop_size": 32, "do_center_crop": True, "resample": 3}
    about |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    expected = load_backbone(f"transformers:{folder}", "proj")
    torch.save({f"model.{key}": value for key, value in clip.state_dict().items()}, tmp_path / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    done = convert(tmp_path / "pytorch_model.bin", f"transformers:{folder}", tmp_path / "out")
    found = load_backbone(done.name, "proj")
    x = torch.randint(0, 256, (2, 3, 32, 32)).float()
    with torch.no_grad():
        assert torch.equal(found(x), expected(x))
    torch.save({"vision_model.post_layernorm.weight": torch.ones(32)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Refusal, match="lacks"):
        convert(tmp_path / "pytorch_model.bin", f"transformers:{folder}", tmp_path / "poor")


def test_the_command_says_what_it_did(tmp_path, like, monkeypatch, capsys) -> None:
    torch.save(own_training(model()), tmp_path / "epoch_3.pt")
    words = ["adapt convert", str(tmp_path / "epoch_3.pt"), "--like", like, "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    command.command()
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d+ tensors, in .*epoch_3.pt under state_dict.module; left out: \d+ of optimizer", said[0])
    assert said[1].startswith("activation QuickGELU; mean [0.5, 0.45, 0.45]; std")
    assert said[2] == f"--backbone open_clip:local-dir:{tmp_path / 'out'}"
    shutil.rmtree(tmp_path / "like")
    assert load_backbone(said[2].removeprefix("--backbone ")).dim == 192

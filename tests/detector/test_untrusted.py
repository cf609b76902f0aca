"""What the files of a stranger's detector, or a stranger's tar file, can say wrong: each is one line, none hangs."""

import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file

from adapt.data.images import Unreadable, read_bytes
from adapt.data.inputs import find_inputs
from adapt.detector.detector import Detector, Saved, load_detector
from adapt.errors import Refusal
from adapt.evaluation.decision import Decision
from adapt.models.adapters.lora import add_adapter, load_adapter
from adapt.models.heads.linear import LinearHead
from adapt.models.heads.probes import Probe
from adapt.models.towers.backbones import load_backbone
from adapt.models.towers.networks import NETWORKS

CHECKED = (
    "head.safetensors",
    "decision.safetensors",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
)


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A pipe that is opened, or an expression that never ends, fails the test."""

    def late(*_: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make(targets: str, folder: Path) -> Path:
    backbone = load_backbone("tiny")
    add_adapter(backbone, targets, rank=2, dropout=0.1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    tables = {"real/every": np.arange(5.0), "fake/every": np.arange(4.0)}
    Detector(backbone, LinearHead(backbone.dim), 0.25, Decision({}, tables)).eval().save(
        folder, {"loss": float("nan")}
    )
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return make("qv", tmp_path_factory.mktemp("saved") / "detector")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "detector")


def change(path: Path, edit: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def refused(folder: Path, read: Callable[[Path], object] = load_detector) -> str:
    with pytest.raises(Refusal) as refusal:
        read(folder)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000
    return str(refusal.value)


def test_digests_are_written_and_every_changed_file_is_found(saved, folder, tmp_path) -> None:
    listed = json.loads((saved / "detector.json").read_text())["files"]
    assert set(listed) == set(CHECKED) and load_detector(folder).threshold == 0.25
    for name in CHECKED:
        whole = (folder / name).read_bytes()
        changed = whole.replace(b'"lora_alpha": 2', b'"lora_alpha": 3') if name.endswith("json") else None
        (folder / name).write_bytes(changed or whole[:-1] + bytes([whole[-1] ^ 1]))
        for read in (load_detector, Saved.read):
            said = refused(folder, read)
            assert name in said or "decision" in name
        (folder / name).unlink()
        assert "adapter" in refused(folder) or "detector directory" in refused(folder)
        (folder / name).write_bytes(whole)
    (folder / "README.md").write_text("edited by hand")
    assert load_detector(folder).threshold == 0.25


def test_a_turned_verdict_is_found(folder) -> None:
    change(folder / "adapter/adapter_config.json", lambda settings: settings.update(lora_alpha=2000))
    assert "is not the file that was saved" in refused(folder)


def test_a_file_that_is_not_listed_is_refused_and_older_detectors_load(folder, tmp_path) -> None:
    bare = tmp_path / "bare"
    backbone = load_backbone("tiny")
    Detector(backbone, LinearHead(backbone.dim), 0.5).eval().save(bare, {})
    assert json.loads((bare / "detector.json").read_text())["files"].keys() == {"head.safetensors"}
    shutil.copytree(folder / "adapter", bare / "adapter")
    assert "does not list it" in refused(bare) and "does not list it" in refused(bare, Saved.read)
    Detector(backbone, LinearHead(backbone.dim), 0.5).eval().save(bare, {})  # over an adapted one
    assert load_detector(bare).threshold == 0.5
    for wrong in ([], {}, {"../x": "0"}, {"head.safetensors": "0", "more": "0"}):
        change(bare / "detector.json", lambda record, wrong=wrong: record.update(files=wrong))
        assert "files must be the digests" in refused(bare)
    change(folder / "detector.json", lambda record: record.pop("files", None))
    assert load_detector(folder).threshold == 0.25


DETECTOR = {
    "threshold NaN": (lambda record: record.update(threshold=float("nan")), "threshold"),
    "threshold infinite": (lambda record: record.update(threshold=float("inf")), "threshold"),
    "threshold true": (lambda record: record.update(threshold=True), "threshold"),
    "threshold word": (lambda record: record.update(threshold="0.5"), "threshold"),
    "head a list": (lambda record: record["head"].update(type=["linear"]), "unknown head"),
    "head vast": (lambda record: record.update(head={"type": "map", "tools": ["a"], "hidden": 10**9}), "map head"),
    "head large": (lambda record: record.update(head={"type": "map", "tools": ["a"], "hidden": 60_000}), "holds"),
    "head negative": (lambda record: record.update(head={"type": "map", "tools": ["a"], "hidden": -5}), "map head"),
    "head NaN": (lambda record: record["head"].update(x=float("nan")), "finite"),
    "adapter vast": (
        lambda record: record.update(head={"type": "clip-adapter", "hidden": 10**9}),
        "clip-adapter head",
    ),
    "adapter large": (lambda record: record.update(head={"type": "clip-adapter", "hidden": 60_000}), "holds"),
    "concepts vast": (lambda record: record.update(head={"type": "concepts", "concepts": 10**9}), "concepts head"),
    "concepts many": (lambda record: record.update(head={"type": "concepts", "concepts": 60_000}), "holds"),
    "head strange": (lambda record: record["head"].update(classes={"real": 1}), "head"),
    "name a list": (lambda record: record["backbone"].update(name=["tiny"]), "backbone.name must be a word"),
    "preprocess a list": (lambda record: record["backbone"].update(preprocess=[1]), "lacks backbone.preprocess"),
    "preprocess more": (lambda record: record["backbone"]["preprocess"].update(surprise=1), "preprocess"),
    "threshold_from": (lambda record: record.update(threshold_from=[1]), "threshold_from"),
    "decision a word": (lambda record: record.update(decision="yes"), "detector directory"),
    "format": (lambda record: record.update(format=[2]), "detector format"),
    "statistics": (lambda record: record.update(descriptor=[1]), "statistics"),
}


@pytest.mark.parametrize("name", DETECTOR)
def test_what_detector_json_can_say_wrong(folder, name) -> None:
    edit, words = DETECTOR[name]
    change(folder / "detector.json", lambda record: (record.pop("files", None), edit(record)))
    assert words in refused(folder)


TEXTS = {
    "nested": b'{"format": ' + b"[" * 200_000,
    "twice": b'{"format": 2, "format": 2}',
    "long": b'{"format": 2' + b" " * 2**24 + b"}",
    "overflow": b'{"threshold": 1e999}',
    "latin": b'{"format": "\xe9"}',
    "digits": b'{"format": ' + b"1" * 10_000 + b"}",
    "list": b"[]",
    "empty": b"",
}
JSON = ("detector.json", "adapter/adapter_config.json")


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("text", TEXTS)
def test_json_that_is_none_or_is_meant_to_harm(folder, name, text) -> None:
    if name != "detector.json":
        change(folder / "detector.json", lambda record: record.pop("files", None))
    (folder / name).write_bytes(TEXTS[text])
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("name", ["detector.json", *CHECKED])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
def test_what_is_no_plain_file_is_refused_unopened(folder, name, kind) -> None:
    (folder / name).unlink()
    match kind:
        case "pipe":
            os.mkfifo(folder / name)
        case "folder":
            (folder / name).mkdir()
        case "device":
            (folder / name).symlink_to("/dev/zero")
        case "loop":
            (folder / name).symlink_to(folder / name)
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("name", [name for name in CHECKED if name.endswith("safetensors")])
@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 8 + b"{}", (2**40).to_bytes(8, "little") + b"{", (2).to_bytes(8, "little") + b"[]"]
)
def test_safetensors_that_are_none(folder, name, data) -> None:
    change(folder / "detector.json", lambda record: record.pop("files", None))
    (folder / name).write_bytes(data)
    assert str(folder) in refused(folder)


SETTINGS = {
    "r vast": {"r": 10**9},
    "r word": {"r": "eight"},
    "r list": {"r": [2]},
    "r true": {"r": True},
    "r none": {"r": None},
    "r zero": {"r": 0},
    "r fraction": {"r": 2.0},
    "lora_alpha vast": {"lora_alpha": 1e9},
    "lora_alpha NaN": {"lora_alpha": float("nan")},
    "lora_alpha zero": {"lora_alpha": 0},
    "lora_alpha true": {"lora_alpha": True},
    "lora_alpha negative": {"lora_alpha": -2},
    "lora_dropout one": {"lora_dropout": 1.0},
    "lora_dropout NaN": {"lora_dropout": float("nan")},
    "lora_dropout word": {"lora_dropout": "0.1"},
    "target_modules endless": {"target_modules": "(([a-z.0-9_]*)*)*Z"},
    "target_modules expression": {"target_modules": ".*attn.*"},
    "target_modules all": {"target_modules": "all-linear"},
    "target_modules empty": {"target_modules": []},
    "target_modules numbers": {"target_modules": [1]},
    "target_modules elsewhere": {"target_modules": ["decoder.q_proj"]},
    "target_modules dict": {"target_modules": {"q_proj": 1}},
    "use_dora": {"use_dora": True},
    "use_rslora": {"use_rslora": True},
    "bias": {"bias": "all"},
    "modules_to_save": {"modules_to_save": ["conv1"]},
    "rank_pattern": {"rank_pattern": {"q_proj": 10**9}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 10**9}},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "layers_to_transform": {"layers_to_transform": [0]},
    "layers_pattern": {"layers_pattern": "(a*)*b"},
    "exclude_modules": {"exclude_modules": "(a*)*b"},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "newer_than_this_peft": {"newer_than_this_peft": 3},
    "peft_type list": {"peft_type": ["LORA"]},
    "peft_type OFT": {"peft_type": "OFT"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_an_adapter_come_from_a_whitelist(folder, name) -> None:
    change(folder / "detector.json", lambda record: record.pop("files", None))
    change(folder / "adapter/adapter_config.json", lambda settings: settings.update(SETTINGS[name]))
    said = refused(folder)
    assert str(folder / "adapter") in said and ("known: LORA" in said or name.split()[0] in said)


def test_what_a_newer_peft_leaves_switched_off_is_loaded(folder) -> None:
    change(folder / "detector.json", lambda record: record.pop("files", None))
    change(folder / "adapter/adapter_config.json", lambda s: s.update(use_new=False, new=None, auto_mapping=None))
    assert load_detector(folder).threshold == 0.25


def test_norms_are_named_by_their_own_names_only(tmp_path) -> None:
    folder = make("norm", tmp_path / "norm")
    assert load_detector(folder).threshold == 0.25
    for names in (".*ln_1|ln_post", "(a*)*b", "ln_post|nowhere", "", "ln_post|"):
        change(folder / "adapter/adapter_config.json", lambda s, names=names: s.update(target_modules=names))
        with pytest.raises(Refusal, match=r"target_modules is .*, not "):
            load_adapter(load_backbone("tiny"), folder / "adapter")


def test_what_would_be_refused_later_is_not_made() -> None:
    for more in (
        {"rank": 1025},
        {"rank": 0},
        {"rank": 513, "update": "svd"},
        {"rank": 2, "alpha": 2049.0},
        {"alpha": 0.0},
    ):
        with pytest.raises(Refusal, match=r"--rank|--alpha"):
            add_adapter(load_backbone("tiny"), "qv", **more)


def test_heads_of_every_kind_are_as_large_as_their_tensors(tmp_path) -> None:
    backbone = load_backbone("tiny")
    folder = tmp_path / "probe"
    Detector(backbone, Probe(backbone.dim, ("real", "gan"), "mlp"), 0.5).eval().save(folder, {})
    assert load_detector(folder).threshold == 0.5
    tensors = load_file(folder / "head.safetensors")
    save_file(tensors | {"more": torch.zeros(2)}, folder / "head.safetensors")
    assert "holds" in refused(folder)


@pytest.mark.parametrize("library", NETWORKS)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "none", "text"])
def test_a_complete_network_that_is_none(folder, library, kind) -> None:
    def network(record: dict) -> None:
        record.pop("files")
        record["backbone"] |= {"name": f"{library}:{NETWORKS[library]}", "layer": "proj"}
        record["backbone"]["preprocess"] |= {"by": "authors"}

    change(folder / "detector.json", network)
    file = folder / NETWORKS[library]
    file.parent.mkdir()
    make = {"pipe": lambda: os.mkfifo(file), "folder": file.mkdir, "device": lambda: file.symlink_to("/dev/zero")}
    make |= {"none": lambda: None, "text": lambda: file.write_text("none of it")}
    make[kind]()
    assert str(file) in refused(folder)


# -- tar files -------------------------------------------------------------------------------------------------------


def archive(path: Path, members: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_member_never_appears_as_another_file(tmp_path) -> None:
    pictures = [zoo.save(zoo.picture(seed=n), "PNG") for n in range(8)]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "base.png").write_bytes(pictures[0])
    names = ["../base.png", "../../photos/base.png", f"{tmp_path}/photos/base.png", "..", "a/../b.png", "ok.png"]
    archive(tmp_path / "photos" / "s.tar", list(zip(names, pictures[1:], strict=False)))
    found = find_inputs([str(tmp_path / "photos" / "base.png"), str(tmp_path / "photos" / "s.tar")])[1]
    reasons = {item.path: item.reason for item in found}
    assert len(reasons) == len(found) == 7  # each a path of its own
    assert reasons == {"base.png": "", "s.tar::b.png": "", "s.tar::ok.png": ""} | {
        f"s.tar::{name}": "outside" for name in names[:4]
    }
    of = {item.path: item.file for item in found}
    assert read_bytes(of["base.png"]) == pictures[0] and read_bytes(of["s.tar::b.png"]) == pictures[5]
    for name in names[:4]:
        with pytest.raises(Unreadable, match="missing"):
            read_bytes(of[f"s.tar::{name}"])


def test_members_of_one_name_are_rows_of_their_own(tmp_path) -> None:
    pictures = [zoo.save(zoo.picture(seed=n), "PNG") for n in range(5)]
    names = ["x.png", "y/../x.png", "x.png (member 1)", "./x.png", "z.png"]
    tar = archive(tmp_path / "s.tar", list(zip(names, pictures, strict=True)))
    found = find_inputs([str(tar)])[1]
    reasons = {item.path: item.reason for item in found}
    assert len(reasons) == len(found) == 5
    assert sorted(reasons.values()) == ["", "", "", "member-twice", "member-twice"]
    assert {path for path, reason in reasons.items() if not reason} == {
        "s.tar::x.png",
        "s.tar::z.png",
        "s.tar::x.png (member 1)",
    }
    of = {item.path: item.file for item in found}
    assert read_bytes(of["s.tar::x.png"]) == pictures[3]  # the last, as tar unpacks it
    assert read_bytes(of["s.tar::x.png (member 1)"]) == pictures[2]

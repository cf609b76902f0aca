"""Detectors given away: the card says what the run measured, the hub gets and gives the right files, ONNX agrees."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zoo
from hub_server import hub

from adapt import hub as library
from adapt.commands import share
from adapt.detector.detector import Detector, detector_digest, load_detector
from adapt.detector.export import export_onnx
from adapt.detector.model_card import complete_card, licence
from adapt.errors import Refusal
from adapt.evaluation.metrics import Control, evaluate
from adapt.evaluation.scores import Scores
from adapt.models.adapters.lora import add_adapter
from adapt.models.heads.linear import LinearHead
from adapt.models.heads.probes import Probe
from adapt.models.heads.tip_adapter import TipAdapter
from adapt.models.heads.tip_head import PriorHead
from adapt.models.towers.backbones import load_backbone
from adapt.pages.tables import headline

ROOT = Path(__file__).parents[2]


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """With every trainable parameter away from where it starts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    backbone = load_backbone("tiny")
    add_adapter(backbone, "qv", rank=2)
    folder = tmp_path_factory.mktemp("share") / "detector"
    moved(Detector(backbone, LinearHead(backbone.dim), threshold=0.25)).save(folder, {"command": "python x.py"})
    return folder


# The card


def scores(unseen: str) -> Scores:
    """Two views, one generator that training met and one that it met as `unseen` says."""
    draw, rows = np.random.default_rng(0), []
    for i in range(40):
        for generator, seen, shift in (("real", "train", 0), ("gan", "train", 3), ("new|er", unseen, 1)):
            split = "val" if i < 10 else "test"
            for view in ("none", "qf40"):
                rows.append((f"{generator}{i}", str(i), generator, seen, split, view, shift + draw.normal()))
    names = ("path", "group", "generator", "seen", "split", "view", "logit")
    return Scores(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def test_the_card_has_the_numbers_limits_and_licence(folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path / "d")
    before, digest = (tmp_path / "d" / "README.md").read_text(), detector_digest(tmp_path / "d")
    cells = evaluate(scores(unseen=""), resamples=50)
    failed = Control("processed reals", "qf40", 0.5, 0.4, 0.6, "FAILED", 10, 10)
    complete_card(tmp_path / "d", cells, [failed], "a | b\n<script>")
    card = (tmp_path / "d" / "README.md").read_text()
    assert card.startswith(before.rstrip()) and detector_digest(tmp_path / "d") == digest
    for row in headline(cells)[1:]:
        assert all(word.replace("|", "\\|") in card for word in row) and re.search(r"\d \[\d", row[1])
    assert "## Intended use" in card and "FAILED: processed reals under `qf40`" in card
    assert "Other processing than `none`, `qf40`" in card and "Base weights: a | b\\n<script>" in card
    assert "had not met" not in card
    assert "`p_fake` is for as many fakes as photographs" in card
    assert "holds on average over validation samples" in card
    assert "`--confidence 0.9` it holds for this very detector" in card
    complete_card(tmp_path / "d", evaluate(scores(unseen="train"), resamples=50), [], "x")
    assert "No generator was tested that training had not met" in (tmp_path / "d" / "README.md").read_text()


def test_licences_are_said_only_where_they_are_known(tmp_path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: my-terms\n---\n# x\n")
    assert (
        licence(f"transformers:{tmp_path}")
        == licence(f"open_clip:local-dir:{tmp_path}")
        == "my-terms, says their card"
    )
    (tmp_path / "m.json").write_text('{"pretrained_cfg": {"license": "apache-2.0"}}')
    assert licence(f"timm:mobilenetv2_100@{tmp_path / 'm.safetensors'}") == "apache-2.0"
    (tmp_path / "README.md").write_text("no front matter")
    unknown = "see the page of the base weights"
    assert licence(f"transformers:{tmp_path}") == unknown
    assert (
        licence("open_clip:ViT-L-14@datacomp_xl_s13b_b90k") == licence("transformers:me/absent") == unknown
    )  # offline


# The hub

ASK = """
import json, sys
from pathlib import Path
from adapt.errors import Refusal
from adapt.hub import detector_folder, push_to_hub
for verb, *words in json.loads(sys.argv[1]):
    try:
        print("ok", push_to_hub(*words) if verb == "push" else detector_folder(words[0]))
    except Refusal as refusal:
        print("refused", refusal)
"""


def ask(url: str, home: Path, *questions: tuple[str, ...]) -> list[str]:
    """In a process of its own, for huggingface_hub reads its address and cache when it is imported."""
    env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_" + "x" * 34}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(questions)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_pushed_fetched_and_loaded_from_the_cache(folder, tmp_path, monkeypatch) -> None:
    mine, there = tmp_path / "mine", tmp_path / "there"
    shutil.copytree(folder, mine)
    (mine / "adapter" / "optimizer.bin").write_bytes(b"mine alone")
    (mine / "secret.txt").write_text("mine alone")
    there.mkdir()
    with hub({"me/det": there}) as server:
        (said,) = ask(server.url, tmp_path / "home", ("push", str(mine), "me/det"))
        assert said.startswith(f"ok {server.url}/me/det/commit/")
        pushed = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
        assert pushed == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        (there / "evil.pkl").write_bytes(b"never fetched")
        (there / "adapter" / "adapter_model.bin").write_bytes(b"never fetched")
        found = ask(server.url, tmp_path / "home", ("get", "hf-hub:me/det"), ("get", "hf-hub:me/det@main"))
        fetched = {path.rpartition("/")[2] for _, path, _ in server.asked if "/resolve/" in path}
    assert found[0] == found[1] and not fetched & {"evil.pkl", "adapter_model.bin"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    assert detector_digest("hf-hub:me/det") == detector_digest(folder)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(load_detector(Path("hf-hub:me/det@main"))(pixels), load_detector(folder)(pixels))
    with pytest.raises(Refusal, match=r"no detector\.json"):
        library.push_to_hub(tmp_path, "me/det")


@pytest.mark.parametrize("step", ["create_repo", "upload_folder"])
def test_a_push_that_fails_loses_nothing_and_the_same_command_pushes(
    folder, tmp_path, monkeypatch, capsys, step
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    pushed: list[Path] = []

    def upload(_, folder_path, **__):
        pushed.append(folder_path)
        return SimpleNamespace(commit_url="https://hub/commit/1")

    def fails(*_, **__):  # as hf_xet fails where its server does
        raise RuntimeError("Data processing error: CAS service error : Request failed after 5 retries\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    monkeypatch.setattr(sys, "argv", ["adapt share", "--detector", str(folder), "--push", "me/det"])
    with monkeypatch.context() as patch:
        patch.setattr(f"huggingface_hub.HfApi.{step}", fails)
        with pytest.raises(SystemExit) as end:
            share.command()
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith(
        "error: cannot reach me/det at the hub (RuntimeError: Data processing"
    )
    assert line.endswith("check the network; " + f"{folder} stays as it is, and the same command pushes it")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before and not pushed
    share.command()
    assert pushed == [folder] and "detector at hf-hub:me/det" in capsys.readouterr().out


def test_what_the_hub_refuses_is_one_line(folder, tmp_path) -> None:
    with hub({"me/det": folder, "me/gated": folder}, gated=("me/gated",)) as server:
        asked = [("get", f"hf-hub:{name}") for name in ("me/gated", "me/absent", "me/det@v9", "no name")]
        said = ask(server.url, tmp_path, *asked, ("push", str(folder), "other/new"))
    said += ask("http://127.0.0.1:9", tmp_path, ("get", "hf-hub:me/det2"))
    words = (
        "me/gated is gated: accept",
        "no repository 'me/absent'",
        "me/det has no revision v9",
        "no repository 'no na",
    )
    words += ("the hub refuses other/new: run `hf auth login`", "cannot reach me/det2 at the hub")
    assert len(said) == len(words)
    for line, word in zip(said, words, strict=True):
        assert line.startswith("refused ") and word in line
    with pytest.raises(Refusal, match="me/never: the hub is switched off by HF_HUB_OFFLINE"):
        library.detector_folder("hf-hub:me/never")


# ONNX


def exported(folder: Path, pixels: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": pixels})[0]


def test_the_exported_file_says_what_the_detector_says(folder, tmp_path, capsys) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(zoo.save(zoo.picture(80, 70, seed=i), "PNG"))
    (tmp_path / "cut.png").write_bytes(b"nothing")
    share.main(share.Config(folder, onnx=tmp_path / "d.onnx", images=(str(tmp_path),)))
    assert "on 6 random and 3 real images" in capsys.readouterr().out
    pixels = torch.randint(0, 256, (7, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = load_detector(folder)(pixels).numpy()
    np.testing.assert_allclose(exported(tmp_path / "d.onnx", pixels.numpy()), expected, atol=1e-4)
    assert expected.std() > 0.01  # not a constant


def test_an_export_that_differs_is_refused_and_leaves_no_file(folder, tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    merge = sys.modules["adapt.detector.export"].merge_adapter

    def wrong(backbone) -> None:
        merge(backbone)
        with torch.no_grad():
            next(p for p in backbone.tower.parameters() if p.ndim == 2).mul_(1.1)

    monkeypatch.setattr("adapt.detector.export.merge_adapter", wrong)
    with pytest.raises(Refusal, match=r"logits differ from torch's by .*, over 0.001"):
        export_onnx(load_detector(folder), tmp_path / "d.onnx")
    assert not list(tmp_path.iterdir())


def test_heads_with_classes_export_too(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    backbone = load_backbone("tiny")
    head = moved(Probe(backbone.dim, ("real", "gan", "diffusion"), "mlp").requires_grad_(True))
    assert export_onnx(Detector(backbone, head), tmp_path / "d.onnx") < 1e-4


@pytest.mark.parametrize("prior", ["text", "none"])
def test_a_tip_adapter_exports_too(prior, tmp_path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    backbone, draw = load_backbone("tiny"), torch.Generator().manual_seed(1)
    keys = TipAdapter(torch.randn(10, backbone.dim, generator=draw), [0, 1] * 5, list("abcdefghij"), alpha=50, beta=3)
    texts = torch.randn(2, backbone.dim, generator=draw) if prior == "text" else None
    detector = Detector(backbone, PriorHead(("real", "fake"), texts, cache=keys))
    assert export_onnx(detector, tmp_path / "d.onnx") < 1e-4
    batch = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = detector(batch).numpy()
    np.testing.assert_allclose(exported(tmp_path / "d.onnx", batch.numpy()), expected, atol=1e-3)
    assert expected.std() > 0.01


def test_nothing_to_do_is_refused(folder) -> None:
    with pytest.raises(Refusal, match="--push OWNER/NAME or --onnx FILE"):
        share.Config(folder)

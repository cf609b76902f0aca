"""Heads that read blocks, tokens or texts, each through the real `main` of linear_probe, and what fits may see."""

import dataclasses
import json
import shutil
from pathlib import Path

import linear_probe
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from adapt.commands import extract as extract_command
from adapt.data.manifest import Manifest
from adapt.detector.detector import load_detector, score
from adapt.errors import Refusal
from adapt.evaluation.scores import Scores
from adapt.features.cache import Features, extract
from adapt.models.heads import prototypes
from adapt.models.heads.attention_pooling import AttentionPooling
from adapt.models.heads.block_weighting import BlockWeighting
from adapt.models.heads.prototypes import Prototypes
from adapt.models.heads.token_choice import TokenChoice
from adapt.models.prompts import prompt_features
from adapt.models.towers.backbones import load_backbone
from adapt.training import part_heads
from adapt.training.part_heads import AT_ONCE, fit_head, layer_read_by, width_of

VIEWS = ("none", "qf65")
HEADS = {
    "rine": (BlockWeighting, "block1+block2+block3+block4"),
    "attention": (AttentionPooling, "last_tokens"),
    "prototypes": (Prototypes, "proj"),
    "fisher": (TokenChoice, "last_tokens"),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def config(planted, cache, tmp_path_factory) -> linear_probe.Config:
    return linear_probe.Config(
        manifest=(str(planted),),
        output_dir=tmp_path_factory.mktemp("heads") / "run",
        train_views=VIEWS,
        test_views=VIEWS,
        cache=cache,
        resamples=20,
        num_workers=0,
    )


@pytest.fixture(scope="module", params=HEADS)
def fitted(request, config, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    linear_probe.main(dataclasses.replace(config, head=request.param, output_dir=folder))
    return request.param, folder


def auc(scores: Scores) -> float:
    rows = (scores["split"] == "test") & (scores["edit"] == "") & (~scores.fake | (scores["seen"] == "train"))
    return roc_auc_score(scores.fake[rows], scores["logit"][rows])


def test_a_saved_head_scores_as_in_its_run(fitted, config) -> None:
    head, folder = fitted
    kind, layer = HEADS[head]
    scores, record = Scores.read(folder / "scores.parquet"), json.loads((folder / "provenance.json").read_text())
    detector = load_detector(folder / "detector")
    assert isinstance(detector.head, kind) and record["layer"] == detector.backbone.layer == layer
    rows = Manifest.read(config.manifest[0])
    again = score(detector, rows, np.flatnonzero(rows["split"] != "train"), VIEWS)
    np.testing.assert_allclose(again["logit"], scores["logit"], atol=1e-3)
    predicted = {row["path"]: row["logit"] for row in detector.predict([config.manifest[0]])}
    plain = scores.select(scores["view"] == "none")
    logits = np.array([predicted[path] for path in plain["path"]])
    np.testing.assert_allclose(logits, plain["logit"], atol=1e-3)
    assert np.std(logits) > 1e-3 and record["trainable_parameters"] == sum(
        p.numel() for p in detector.head.parameters()
    )


def test_a_head_finds_the_planted_artefact(fitted) -> None:
    head, folder = fitted
    found = auc(Scores.read(folder / "scores.parquet"))
    assert found > 0.9 or head == "prototypes"  # which stay near texts that know nothing of this artefact


def test_prototypes_find_it_at_a_rate_that_lets_them_leave_the_texts(config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(prototypes, "RATE", 3e-2)
    linear_probe.main(dataclasses.replace(config, head="prototypes", output_dir=tmp_path / "run"))
    assert auc(Scores.read(tmp_path / "run" / "scores.parquet")) > 0.9


def test_the_tried_settings_are_all_on_the_record(fitted) -> None:
    head, folder = fitted
    record = json.loads((folder / "provenance.json").read_text())
    settings = {"rine": 2 * 15, "attention": 2 * 15, "prototypes": 1 + prototypes.EPOCHS, "fisher": 5 * 6}
    assert record["configurations"] == settings[head]
    chosen = {"rine": "hidden", "attention": "rate", "prototypes": "epoch", "fisher": "tokens"}
    assert chosen[head] in record


@pytest.mark.parametrize("head", HEADS)
def test_families_and_a_binary_head_beside_them(head, config, tmp_path) -> None:
    out = tmp_path / "families"
    linear_probe.main(dataclasses.replace(config, output_dir=out, head=head, classes="family"))
    scores = Scores.read(out / "scores.parquet")
    names = [name for name in scores.columns if name.startswith("logit_")]
    assert names == ["logit_real", "logit_autoregressive", "logit_diffusion", "logit_gan"]
    logits = np.stack([scores[name] for name in names], axis=1)
    np.testing.assert_allclose(scores["logit"], np.log(np.exp(logits[:, 1:]).sum(axis=1)) - logits[:, 0], atol=1e-4)
    assert "## Comparison" in (out / "table.md").read_text()
    detector = load_detector(out / "detector")
    assert {row["family"] for row in detector.predict([config.manifest[0]])} - {None, "unknown", ""}
    assert len(detector.head.classes) == 4


def features_of(config: linear_probe.Config, head: str) -> tuple[Features, str, int]:
    backbone = load_backbone("tiny")
    layer = layer_read_by(head, "last", backbone)
    return (
        extract(backbone, Manifest.read(config.manifest[0]), VIEWS, (layer,), cache=config.cache),
        layer,
        width_of(layer, backbone),
    )


def fit(features: Features, head: str, layer: str, width: int, seed: int = 0):
    return fit_head(features, head, "binary", VIEWS, seed, layer, width, linear_texts)


def linear_texts(classes):
    return prompt_features("tiny", [linear_probe.PROTOTYPES[name] for name in classes])


@pytest.mark.parametrize("head", HEADS)
def test_fits_repeat_by_seed_and_never_see_test_labels(head, config) -> None:
    features, layer, width = features_of(config, head)
    first, picked = fit(features, head, layer, width)
    state = torch.random.get_rng_state()
    torch.manual_seed(99)  # of the caller
    again, _ = fit(features, head, layer, width)
    torch.random.set_rng_state(state)
    table, test = features.manifest, features.manifest["split"] == "test"
    order = np.arange(len(table))
    order[test] = np.random.default_rng(0).permutation(order[test])
    labels = {name: table[name][order] for name in ("generator", "family", "edit")}
    shuffled = dataclasses.replace(features, manifest=Manifest(table.columns | labels))
    blind, _ = fit(shuffled, head, layer, width)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) and torch.equal(value, blind.state_dict()[name])
    assert picked["training_fakes"] > 0


@pytest.mark.parametrize("head", ["attention", "fisher"])
def test_memory_holds_few_rows_of_tokens(head, config, monkeypatch) -> None:
    read, take = [], Features.take
    monkeypatch.setattr(part_heads, "AT_ONCE", 16)
    monkeypatch.setattr("adapt.training.on_features.CHUNK_BYTES", 20 * 4 * 64 * 192)
    monkeypatch.setattr(part_heads.attention, "BATCH", 16)
    monkeypatch.setattr(Features, "take", lambda self, rows, *rest: read.append(len(rows)) or take(self, rows, *rest))
    features, layer, width = features_of(config, head)
    fit(features, head, layer, width)
    assert AT_ONCE == 128 and 1 < max(read) <= 31  # tensor_split makes batches of less than twice the size


def test_prototypes_move_at_most_by_rate_and_steps(config, monkeypatch) -> None:
    features, layer, width = features_of(config, "prototypes")
    monkeypatch.setattr(part_heads, "validation_judge", lambda *_: rising())  # the last epoch wins
    head, picked = fit(features, "prototypes", layer, width)
    texts = linear_texts(("real", "fake"))
    batches = max(1, int(picked["training_reals"] + picked["training_fakes"]) // prototypes.BATCH)
    moved = (head.prototypes - texts).abs().max()
    assert picked["epoch"] == prototypes.EPOCHS
    assert 0 < moved <= 1.01 * prototypes.RATE * batches * prototypes.EPOCHS


def rising():
    count = iter(range(1000))
    return lambda head: float(next(count))


def test_tokens_of_a_convolutional_tower(config, tmp_path) -> None:
    out = tmp_path / "mobile"
    name = "timm:mobilenetv2_035@random"
    linear_probe.main(dataclasses.replace(config, backbone=name, layer="block3", head="attention", output_dir=out))
    detector = load_detector(out / "detector")
    assert detector.backbone.layer == "block3_tokens"
    scores = Scores.read(out / "scores.parquet")
    plain = scores.select(scores["view"] == "none")
    predicted = {row["path"]: row["logit"] for row in detector.predict([config.manifest[0]])}
    np.testing.assert_allclose([predicted[path] for path in plain["path"]], plain["logit"], atol=2e-3)


def test_the_linear_entry_of_ntire_is_patch_means_of_squashed_images(config, tmp_path) -> None:
    out = tmp_path / "squash"
    linear_probe.main(dataclasses.replace(config, layer="last_mean", geometry="squash", output_dir=out))
    record = json.loads((out / "detector" / "detector.json").read_text())
    assert record["backbone"]["layer"] == "last_mean" and record["backbone"]["preprocess"]["geometry"] == "squash"
    detector, rows = load_detector(out / "detector"), Manifest.read(config.manifest[0])
    from PIL import Image

    row = int(np.flatnonzero(rows["split"] == "test")[0])
    with Image.open(rows["file"][row]) as image:
        squashed = np.array(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(squashed).permute(2, 0, 1)[None]
    with torch.no_grad():
        tokens = detector.backbone.patch_tokens(pixels)[0].double().numpy()
        mean = tokens.mean(axis=0)
        x = (mean / np.linalg.norm(mean) - detector.head.mean.numpy()) / detector.head.deviation.numpy()
        logit = x @ detector.head.net.weight[0].numpy() + detector.head.net.bias[0].numpy()
    scores = Scores.read(out / "scores.parquet")
    here = (scores["path"] == rows["path"][row]) & (scores["view"] == "none")
    assert scores["logit"][here].tolist() == pytest.approx([logit], abs=1e-3)


def test_heads_refuse_what_they_cannot_do(config, tmp_path, monkeypatch) -> None:
    with pytest.raises(Refusal, match="--head rine --layers: it reads layers of its own; leave --layers out"):
        dataclasses.replace(config, head="rine", layers=("all",))
    out = dataclasses.replace(config, output_dir=tmp_path / "no")
    with pytest.raises(Refusal, match="has no text tower"):
        linear_probe.main(dataclasses.replace(out, head="prototypes", backbone="timm:mobilenetv2_035@random"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    with pytest.raises(Refusal, match=r"layer last_tokens: \d+ images x 2 views x 49.2 kB = .* take fewer views"):
        linear_probe.main(dataclasses.replace(out, head="fisher", cache=tmp_path / "cache"))
    wide = extract_command.Config(manifest=config.manifest, layers=("block1+last_tokens",), cache=tmp_path / "cache")
    with pytest.raises(Refusal, match=r"layer block1\+last_tokens: \d+ images x 4 views x 49.2 kB"):
        extract_command.main(wide)
    with pytest.raises(Refusal, match="unknown layer 'block99_tokens'"):
        linear_probe.main(dataclasses.replace(out, layer="block99_tokens"))


@pytest.mark.parametrize("value", [0, 7, None])
def test_a_description_that_does_not_fit_is_refused(fitted, value, tmp_path) -> None:
    head, folder = fitted
    shutil.copytree(folder / "detector", tmp_path / "d")
    file = tmp_path / "d" / "detector.json"
    record = json.loads(file.read_text())
    record["head"]["classes" if head == "prototypes" else "width"] = value
    file.write_text(json.dumps(record))
    with pytest.raises(Refusal, match=r"detector.json does not describe a [a-z-]+ head") as refused:
        load_detector(tmp_path / "d")
    assert "\n" not in str(refused.value)


def test_chosen_places_outside_of_the_grid_are_refused() -> None:
    for chosen in (torch.tensor([64]), torch.tensor([-1]), torch.tensor([0.5]), torch.zeros(0, dtype=torch.int64)):
        with pytest.raises(ValueError, match="chosen tokens"):
            TokenChoice.from_state(64 * 192, {"chosen": chosen}, ("real", "fake"), 192)

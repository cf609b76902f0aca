"""Hyper-parameters from the shots alone: against scikit-learn, and what validation images must not change."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tip_adapter
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from adapt.cli import parse
from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.models.heads.probes import GRID
from adapt.models.heads.tip_adapter import TipAdapter
from adapt.models.heads.tip_head import PriorHead
from adapt.training.shots import FOLDS, OnShots, Shots, how_chosen

CLASSES = ("real", "fake")
VIEWS = ("none", "qf65")


def made(groups: int, signal: float = 0.7, sets: tuple[str, ...] = ("a",), seed: int = 0) -> Shots:
    """A photograph and its fake a group, whose content is shared; sets in turn."""
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(groups) for _ in CLASSES]
    columns = {"path": [f"{i}.png" for i in range(2 * groups)], "group": names, "generator": ["real", "gan"] * groups}
    columns |= {"split": ["train"] * (2 * groups), "set": [sets[i % len(sets)] for i in range(groups) for _ in "12"]}
    x = rng.normal(size=(groups, 1, 24)) + rng.normal(size=(groups, 2, 24))
    x[:, 1, :4] += signal
    labels = np.tile([0, 1], groups)
    return Shots(Manifest.of(columns, "/nowhere"), np.arange(2 * groups), x.reshape(-1, 24).astype(np.float32), labels)


def test_the_penalty_is_that_of_scikit_learns_cross_validation() -> None:
    """Folds are of whole groups; logits of the rows held back give one AUC for each penalty, the largest wins."""
    found = set()
    for seed, signal in ((0, 0.7), (1, 0.7), (2, 0.3)):
        shots = made(40, signal, seed=seed)
        folds = list(shots.folds(FOLDS, seed))
        assert sorted(np.concatenate([rest for _, rest in folds])) == list(range(80))
        assert not any(set(shots.groups[train]) & set(shots.groups[rest]) for train, rest in folds)
        unit = shots.x.astype(np.float64) / np.linalg.norm(shots.x, axis=1, keepdims=True)
        aucs = []
        for strength in GRID["logistic"]:
            logits = np.empty(80)
            for train, rest in folds:
                mean, deviation = unit[train].mean(axis=0), unit[train].std(axis=0)
                model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000, tol=1e-6)
                model.fit((unit[train] - mean) / deviation, shots.labels[train])
                logits[rest] = model.decision_function((unit[rest] - mean) / deviation)
            aucs.append(roc_auc_score(shots.labels, logits))
        probe, own, tried = OnShots().probe(shots, CLASSES, seed)
        best = GRID["logistic"][int(np.argmax(aucs))]
        whole = LogisticRegression(C=best, class_weight="balanced", max_iter=1000)
        whole.fit((unit - unit.mean(axis=0)) / unit.std(axis=0), shots.labels)
        np.testing.assert_allclose(probe.net.weight.numpy(), whole.coef_, rtol=1e-2, atol=1e-4)
        assert tried == len(GRID["logistic"])
        assert roc_auc_score(shots.labels, (own[:, 1] - own[:, 0]).numpy()) == pytest.approx(max(aucs), abs=2e-3)
        found.add(best)
    assert len(found) > 1  # the choice depends on the shots


def test_what_is_too_little_to_choose_by_is_fixed() -> None:
    """Seven groups choose nothing; nor do eight reals of one set and eight fakes of another."""
    few, enough = made(7), made(8)
    assert enough.enough() and not few.enough()
    assert made(16, sets=("a", "b")).enough() and not made(14, sets=("a", "b")).enough()
    apart = dict(made(16).manifest.columns)
    apart["set"] = np.where(apart["generator"] == "real", "x", "y").astype(object)
    assert not dataclasses.replace(made(16), manifest=Manifest(apart)).enough()
    prior = PriorHead(CLASSES)
    for shots, fixed in ((few, True), (enough, False)):
        tried = OnShots().probe(shots, CLASSES, 0)[2]
        adapter = TipAdapter(shots.x, shots.labels.tolist(), shots.groups, alpha=50)
        assert (tried == 1) == fixed
        assert (OnShots().tip(adapter, shots, prior, torch.zeros(len(shots.x), 2)) == 1) == fixed
        if fixed:  # a mean of 7 votes times 7 is the published sum
            assert (float(adapter.alpha), float(adapter.beta)) == (7.0, 5.5)
            published = TipAdapter(shots.x, shots.labels.tolist(), shots.groups, values="sum")
            torch.testing.assert_close(adapter(made(9, seed=4).x), published(made(9, seed=4).x))
            before = adapter.keys.clone()
            assert OnShots().tip_f(adapter, shots, prior, torch.zeros(14, 2), 0, 3, 1e-2) == 1
            assert not torch.equal(adapter.keys, before) and (float(adapter.alpha), float(adapter.beta)) == (7.0, 5.5)


def test_the_page_says_what_chose() -> None:
    fake = np.repeat([False, True], [10, 30])
    said = " ".join(how_chosen("shots", {4: False, 16: True, 64: True}, 2, fake, 3).split())
    assert (
        "on the shots themselves at 16, 64 images a class, by cross-validation over their groups. At 4, where" in said
    )
    assert "the 40 validation images (10 real, 30 fake, 3 views) froze" in said
    said = " ".join(how_chosen("validation", {4: False, 16: True, 64: True}, 2, fake, 3).split())
    assert "on 40 validation images (10 real, 30 fake, 3 views), which are more than the shots at 4, 16 images" in said
    assert "more than" not in how_chosen("validation", {64: True}, 2, fake, 3)


def aucs(folder: Path) -> dict[tuple[str, ...], str]:
    """Every AUC of metrics.csv, as it is written."""
    names = ("method", "shots", "draw", "set", "view", "generator")
    with (folder / "metrics.csv").open(newline="") as file:
        return {tuple(row[n] for n in names): row["value"] for row in csv.DictReader(file) if row["metric"] == "auc"}


def test_validation_images_change_no_few_shot_curve(subtle, tmp_path) -> None:
    """Half of them are taken away: chosen on the shots every AUC stays, chosen on validation images some do not."""
    rows = Manifest.read(subtle)
    groups = sorted(set(rows["group"][rows["split"] == "val"]))
    with subtle.open(newline="") as file:
        header, *lines = csv.reader(file)
    kept = [line for line in lines if line[header.index("group")] not in groups[::2]]
    half = subtle.with_name("half.csv")
    with half.open("w", newline="") as file:
        csv.writer(file).writerows([header, *kept])
    found = {}
    for how in ("shots", "validation"):
        for manifest in (subtle, half):
            config = tip_adapter.Config(
                manifest=(str(manifest),),
                output_dir=tmp_path / f"{how}-{manifest.stem}",
                select_on=how,
                methods=("logistic", "tip-adapter", "tip-adapter-f"),
                shots=(4, 12),
                draws=1,
                epochs=3,
                train_views=VIEWS,
                test_views=VIEWS,
                cache=tmp_path / "cache",
                resamples=2,
                num_workers=0,
            )
            tip_adapter.main(config)
            found[how, manifest] = aucs(config.output_dir)
    half.unlink()
    assert found["shots", subtle] == found["shots", half] and len(found["shots", half]) > 30
    assert found["validation", subtle] != found["validation", half]
    page = (tmp_path / "shots-half" / "table.md").read_text()
    assert f"{sum(line[header.index('split')] == 'val' for line in kept)} validation images" in " ".join(page.split())


def test_all_training_images(planted, tmp_path) -> None:
    """`all` is a number of images, the largest class's; what the head was given stands in the record."""
    config = tip_adapter.Config(
        manifest=(str(planted),), output_dir=tmp_path / "all", methods=("tip-adapter",), shots=("all",), draws=1,
        train_views=VIEWS, test_views=VIEWS, cache=tmp_path / "cache", resamples=2, num_workers=0,
    )  # fmt: skip
    assert parse(tip_adapter.Config, ["--shots", "4", "all"]).shots == (4, "all")
    tip_adapter.main(config)
    rows = Manifest.read(planted)
    reals, fakes = (int(((rows["split"] == "train") & (rows.fake == fake)).sum()) for fake in (False, True))
    record = json.loads((tmp_path / "all" / "provenance.json").read_text())
    assert (record["training_reals"], record["training_fakes"], record["views_per_image"]) == (reals, fakes, 1)
    assert record["configurations"] == 1 + 12 * 12
    assert {key[1] for key in aucs(tmp_path / "all")} == {str(max(reals, fakes))}
    with pytest.raises(Refusal, match="--shots 0: give at least 1, or all"):
        dataclasses.replace(config, shots=(0, "all"))

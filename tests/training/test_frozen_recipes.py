"""The recipes on frozen features, each through its real `main`."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import color_fusion
import head_scaling
import jpeg_matrix
import linear_probe
import numpy as np
import onboard
import pyarrow.parquet as pq
import pytest
import refine
import tip_adapter
import understand
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from adapt.commands import extract
from adapt.data import manifest as module
from adapt.data.columns import Column
from adapt.data.groups import Groups
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Preprocess
from adapt.detector.detector import load_detector, score
from adapt.errors import Refusal
from adapt.evaluation.metrics import Control
from adapt.evaluation.permutation import Reached
from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import pick_threshold
from adapt.models.towers.backbones import Backbone
from adapt.number_table import read_rows
from adapt.training import on_features

VIEWS = ("none", "qf65")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def probe(planted, cache, tmp_path_factory) -> linear_probe.Config:
    return linear_probe.Config(
        manifest=(str(planted),),
        output_dir=tmp_path_factory.mktemp("probe") / "run",
        train_views=VIEWS,
        test_views=VIEWS,
        cache=cache,
        resamples=20,
        num_workers=0,
    )


@pytest.fixture(scope="module")
def fitted(probe) -> Path:
    linear_probe.main(probe)
    return probe.output_dir


def auc(scores: Scores) -> float:
    rows = (scores["split"] == "test") & (scores["edit"] == "") & (~scores.fake | (scores["seen"] == "train"))
    return roc_auc_score(scores.fake[rows], scores["logit"][rows])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_probe_finds_the_planted_artefact_and_its_detector_gives_the_same_scores(fitted, probe) -> None:
    scores = Scores.read(fitted / "scores.parquet")
    assert auc(scores) > 0.9
    detector = load_detector(fitted / "detector")
    rows = Manifest.read(probe.manifest[0])
    again = score(detector, rows, np.flatnonzero(rows["split"] != "train"), VIEWS)
    np.testing.assert_allclose(again["logit"], scores["logit"], atol=1e-3)
    assert not (fitted / "detector" / "adapter").exists()


def test_a_run_says_how_its_threshold_was_chosen_on_page_in_json_in_csv_and_in_the_terminal(
    fitted, probe, capsys
) -> None:
    """Counted by hand from the manifest: 8 photographs are too few for more than a guess."""
    rows = Manifest.read(probe.manifest[0])
    val = rows.select((rows["split"] == "val") & (rows["edit"] == ""))
    groups, reals = len(set(val["group"])), int((~val.fake).sum())
    chosen = f"best balanced accuracy on {len(val)} validation images ({reals} real) in {groups} groups, 2 views"
    record = json.loads((fitted / "provenance.json").read_text())
    threshold = load_detector(fitted / "detector").threshold
    assert (record["threshold"], record["threshold_from"]) == (threshold, f"a guess: {chosen}") and reals < 20
    page = (fitted / "table.md").read_text()
    said = f"Threshold: logit {threshold:.3f}, **a guess** (fewer than 20 validation photographs), {chosen} ("
    assert said in page
    (cell,) = (row for row in read(fitted / "metrics.csv") if row["metric"] == "threshold")
    assert (float(cell["value"]), int(cell["groups"]), int(cell["n_real"])) == (threshold, groups, reals * len(VIEWS))
    capsys.readouterr()
    linear_probe.main(probe)  # finished: shown again
    assert f"threshold    logit {threshold:.4g}, a guess: {chosen}\n" in capsys.readouterr().out


@pytest.mark.parametrize("head", ["svm", "logistic", "mlp"])
def test_permuted_labels_are_at_chance(head, probe, subtle, tmp_path) -> None:
    config = dataclasses.replace(probe, manifest=(str(subtle),), output_dir=tmp_path / "p", permutations=3)
    linear_probe.main(dataclasses.replace(config, head=head))
    found = {c.name: c for c in read_rows(tmp_path / "p" / "controls.csv", Control) if c.view == "none"}
    control = found["labels permuted: mean:seen AUC"]
    assert 0.25 < control.value < 0.75 and control.low < control.value < control.high and control.permutations == 3
    reached = read_rows(tmp_path / "p" / "permutations.csv", Reached)
    each = {r.permutation: r.value for r in reached if (r.view, r.generator, r.metric) == ("none", "mean:seen", "auc")}
    cells = {(row["view"], row["generator"], row["metric"]): row for row in read(tmp_path / "p" / "metrics.csv")}
    assert each[0] == pytest.approx(float(cells["none", "mean:seen", "auc"]["value"]), abs=1e-12)
    assert np.mean([each[k] for k in (1, 2, 3)]) == pytest.approx(control.value)
    assert control.p == (1 + sum(each[k] >= each[0] for k in (1, 2, 3))) / 4
    page = (tmp_path / "p" / "table.md").read_text()
    assert "### Labels permuted" in page and f"| 3 | {control.p:.3f}, cannot tell |" in page


def test_selection_and_calibration_see_permuted_validation_labels(probe, subtle, tmp_path, monkeypatch) -> None:
    """A head that learns from permuted labels, but is chosen by true ones, is no control."""
    shown: list[list[np.ndarray]] = []  # for each fit the labels of training, of selection and of calibration
    fit, judged = on_features.fit_probe, on_features.validation_score

    def fit_probe(kind, x, labels, classes, judge, calibration, *rest):
        shown.append([labels, calibration[1]])
        return fit(kind, x, labels, classes, judge, calibration, *rest)

    def validation_score(scores):
        shown[-1].append(scores.fake[scores["view"] == VIEWS[0]])
        return judged(scores)

    monkeypatch.setattr(on_features, "fit_probe", fit_probe)
    monkeypatch.setattr(on_features, "validation_score", validation_score)
    config = dataclasses.replace(probe, manifest=(str(subtle),), output_dir=tmp_path / "p", permutations=2, head="svm")
    linear_probe.main(config)
    rows, (true, *others) = Manifest.read(subtle), shown
    groups = {split: rows["group"][rows["split"] == split] for split in ("train", "val")}
    assert len(others) == 2 and all(np.array_equal(labels, rows.fake[rows["split"] == "val"]) for labels in true[1:])
    for permuted in others:
        splits = ["train", *["val"] * (len(permuted) - 1)]
        for split, labels, before in zip(splits, permuted, true, strict=True):
            assert 0.1 < np.mean(labels != before) < 0.9
            for group in set(groups[split]):
                here = groups[split] == group
                assert labels[here].sum() == before[here].sum()
        assert all(np.array_equal(labels, permuted[1]) for labels in permuted[2:])
    assert not np.array_equal(others[0][0], others[1][0])


def test_twenty_permutations_tell_a_planted_artefact_and_one_is_no_test(fitted, probe, tmp_path) -> None:
    out = tmp_path / "p"
    linear_probe.main(dataclasses.replace(probe, output_dir=out, permutations=1))
    assert "| 1 | one permutation: no test |" in (out / "table.md").read_text()
    assert "Labels permuted" not in (fitted / "table.md").read_text()
    assert not (fitted / "permutations.csv").exists()
    assert (
        Scores.read(out / "scores.parquet")["logit"].tolist()
        == Scores.read(fitted / "scores.parquet")["logit"].tolist()
    )  # the control changes nothing of what it controls
    with pytest.raises(Refusal, match="--permutations -1"):
        dataclasses.replace(probe, permutations=-1)


def test_families_give_the_binary_score_and_a_comparison(probe, tmp_path) -> None:
    out = tmp_path / "families"
    linear_probe.main(dataclasses.replace(probe, output_dir=out, classes="family", head="svm"))
    scores = Scores.read(out / "scores.parquet")
    classes = [name for name in scores.columns if name.startswith("logit_")]
    assert classes == ["logit_real", "logit_autoregressive", "logit_diffusion", "logit_gan"]
    logits = np.stack([scores[name] for name in classes], axis=1)
    np.testing.assert_allclose(scores["logit"], logsumexp(logits[:, 1:], axis=1) - logits[:, 0], atol=1e-5)
    assert auc(scores) > 0.9
    page = (out / "table.md").read_text()
    assert "## Attribution" in page and "## Comparison" in page
    assert {row["true"] for row in read(out / "confusion.csv")} >= {"real", "gan", "diffusion", "autoregressive"}
    assert (out / "figures" / "confusion_none.png").is_file() and (out / "comparison.csv").is_file()


def test_a_sweep_reports_the_layer_that_validation_prefers(probe, tmp_path, monkeypatch) -> None:
    passes: list[tuple[str, ...]] = []
    encode = Backbone.encode
    monkeypatch.setattr(
        Backbone, "encode", lambda self, x, layers: passes.append(tuple(layers)) or encode(self, x, layers)
    )
    out = tmp_path / "layers"
    linear_probe.main(dataclasses.replace(probe, output_dir=out, layers=("all",), cache=tmp_path / "cache"))
    wide = [layers for layers in passes if len(layers) > 1]
    assert {*wide} == {("block1", "block2", "block3", "block4", "last", "proj")}  # one pass for all of them
    rows = read(out / "layers.csv")
    best = max({(row["validation"], row["layer"]) for row in rows})
    record = json.loads((out / "provenance.json").read_text())
    assert len({row["layer"] for row in rows}) == 6
    assert f"{record['validation_score']:.4f}" == best[0]
    assert load_detector(out / "detector").backbone.layer == record["layer"]


def test_two_processes_share_the_encoding_and_give_the_same_scores(fitted, probe, tmp_path) -> None:
    from processes import in_children

    def run() -> None:
        os.environ["ADAPT_PROCESSES"] = "2"
        linear_probe.main(dataclasses.replace(probe, output_dir=tmp_path / "two", cache=tmp_path / "cache"))

    assert in_children(run, world=2) == [0, 0]
    names = (tmp_path / "cache").glob("*/fingerprint.json")
    spaces = [len(list(name.parent.glob("*.safetensors"))) for name in names]
    assert spaces == [2, 2]  # each process wrote its half of each view
    one, two = (Scores.read(folder / "scores.parquet") for folder in (fitted, tmp_path / "two"))
    assert (one["path"] == two["path"]).all()
    np.testing.assert_allclose(two["logit"], one["logit"], atol=1e-3)


def test_extract_fills_what_the_probe_reads(probe, planted, tmp_path, monkeypatch) -> None:
    cache = tmp_path / "cache"
    config = dataclasses.replace(probe, output_dir=tmp_path / "run", cache=cache, cached_only=True)
    with pytest.raises(Refusal, match="run `adapt extract`"):
        linear_probe.main(config)
    common = {"manifest": (str(planted),), "views": VIEWS, "cache": cache, "num_workers": 0}
    for shard in range(3):  # three jobs of an array
        extract.main(extract.Config(**common, shard=shard, num_shards=3))
    before = sorted(cache.glob("*/*.safetensors"))
    extract.main(extract.Config(**common))
    linear_probe.main(config)
    assert sorted(cache.glob("*/*.safetensors")) == before
    shots = tip_adapter.Config(manifest=(str(planted),), output_dir=tmp_path / "t", cache=cache, cached_only=True)
    colour = color_fusion.Config(manifest=(str(planted),), output_dir=tmp_path / "c", cache=cache, cached_only=True)
    for recipe, other in ((tip_adapter, shots), (color_fusion, colour)):  # other layers and views
        with pytest.raises(Refusal, match="run `adapt extract`"):
            recipe.main(other)
    with pytest.raises(Refusal, match="numbered 0 to 2"):
        extract.Config(shard=3, num_shards=3)


def test_the_jpeg_matrix_holds_what_single_probes_give(probe, cache, planted, tmp_path) -> None:
    out = tmp_path / "matrix"
    config = jpeg_matrix.Config(
        manifest=(str(planted),),
        output_dir=out,
        heads=("logistic",),
        classes=("binary",),
        train_views=VIEWS,
        test_views=(*VIEWS, "qf90+qf40"),
        cache=cache,
        resamples=20,
        num_workers=0,
    )
    jpeg_matrix.main(config)
    cells = {
        (row["trained on"], row["view"]): float(row["value"])
        for row in read(out / "metrics.csv")
        if row["generator"] == "mean:seen" and row["metric"] == "auc"
    }
    assert set(cells) == {(a, b) for a in (*VIEWS, "mixed") for b in (*VIEWS, "qf90+qf40")}
    alone = tmp_path / "alone"
    linear_probe.main(dataclasses.replace(probe, output_dir=alone, train_views=("qf65",)))
    for row in read(alone / "metrics.csv"):
        if (row["generator"], row["metric"]) == ("mean:seen", "auc"):
            assert cells["qf65", row["view"]] == pytest.approx(float(row["value"]), abs=1e-6)
    assert min(cells.values()) > 0.8
    assert (out / "figures" / "logistic_binary_seen.png").is_file()
    page = (out / "table.md").read_text()
    assert "| trained on | none | qf65 | qf90+qf40 |" in page and "python" in page
    before = (out / "metrics.csv").read_bytes()
    jpeg_matrix.main(config)  # finished: shows its table
    assert (out / "metrics.csv").read_bytes() == before


def test_tip_adapter_over_shots(planted, cache, tmp_path, capsys) -> None:
    config = tip_adapter.Config(
        manifest=(str(planted),),
        output_dir=tmp_path / "tip",
        shots=(1, 8),
        draws=2,
        epochs=3,
        train_views=VIEWS,
        test_views=VIEWS,
        cache=cache,
        resamples=5,
        num_workers=0,
    )
    tip_adapter.main(config)
    rows = read(tmp_path / "tip" / "metrics.csv")
    seen = {
        (row["method"], row["shots"], row["draw"]): float(row["value"])
        for row in rows
        if (row["generator"], row["metric"], row["view"]) == ("mean:seen", "auc", "none")
    }
    assert {key[0] for key in seen} == {
        "zero-shot", "logistic", "Tip-Adapter, published", "Tip-Adapter", "Tip-Adapter-F",
    }  # fmt: skip
    for method in ("Tip-Adapter", "Tip-Adapter-F"):
        assert min(seen[method, "8", draw] for draw in "01") > 0.85
    assert "Mean over 2 draws" in (tmp_path / "tip" / "table.md").read_text()
    assert (tmp_path / "tip" / "figures" / "shots.png").is_file()
    kept = best_of_validation(tmp_path / "tip", planted)
    assert "method Tip-Adapter" in kept  # zero-shot and logistic are what it is compared with
    deployed = json.loads((tmp_path / "tip" / "detector" / "detector.json").read_text())
    assert deployed["head"]["type"] == "tip-adapter" and deployed["head"]["prior"] == "text"
    with pytest.raises(Refusal, match="texts are compared with layer proj"):
        tip_adapter.main(dataclasses.replace(config, output_dir=tmp_path / "no", layer="last"))
    families = dataclasses.replace(config, output_dir=tmp_path / "probe", layer="last", prior="probe", shots=(8,))
    tip_adapter.main(dataclasses.replace(families, classes="family", draws=1))
    assert "zero-shot" not in (tmp_path / "probe" / "table.md").read_text()
    best_of_validation(tmp_path / "probe", planted)
    rows = load_detector(tmp_path / "probe" / "detector").predict([planted.parent])
    assert {row["family"] for row in rows if row["verdict"] == "fake"} - {None, "unknown"}
    with pytest.raises(Refusal, match="is a Tip-Adapter, whose cache holds features of the tower"):
        refine.main(refine.Config(init=tmp_path / "tip" / "detector", manifest=config.manifest,
                                  output_dir=tmp_path / "refined", num_workers=0))  # fmt: skip
    only = dataclasses.replace(families, output_dir=tmp_path / "only", methods=("logistic",), draws=1)
    tip_adapter.main(only)
    assert best_of_validation(tmp_path / "only", planted) == "method logistic, shots 8, draw 0"


def best_of_validation(run: Path, manifest: Path) -> str:
    """What the saved detector is; its logits on the image files are those of scores.parquet, where they are tested."""
    scores, record = Scores.read(run / "scores.parquet"), json.loads((run / "provenance.json").read_text())
    detector = load_detector(run / "detector")
    assert detector.threshold == pick_threshold(scores)
    found = {row["path"]: row for row in detector.predict([manifest])}
    plain = scores.select(scores["view"] == "none")
    logits = np.array([found[path]["logit"] for path in plain["path"]])
    assert np.std(logits) > 0.01 and len(plain) > 50
    np.testing.assert_allclose(logits, plain["logit"], rtol=2e-4, atol=2e-4)
    assert "Measured" in (run / "detector" / "README.md").read_text()
    return record["detector"]


def test_colour_alone_the_backbone_alone_and_both(planted, cache, tmp_path) -> None:
    config = color_fusion.Config(
        manifest=(str(planted),),
        output_dir=tmp_path / "colour",
        train_views=("qf65",),
        test_views=("qf65",),
        cache=cache,
        resamples=5,
        num_workers=0,
    )
    color_fusion.main(config)
    seen = {
        (row["features"], row["trained on"]): float(row["value"])
        for row in read(tmp_path / "colour" / "metrics.csv")
        if (row["generator"], row["metric"]) == ("mean:seen", "auc")
    }
    assert min(seen[name, "qf65"] for name in ("both", "colour", "chroma")) > 0.9
    assert len({name for name, _ in seen}) == 6
    page = (tmp_path / "colour" / "table.md").read_text(encoding="utf-8")
    assert "Each row has one threshold of its own" in page and "{" not in page
    fused = tmp_path / "fused"
    views = {"train_views": ("none",), "test_views": ("none",)}
    color_fusion.main(dataclasses.replace(config, output_dir=fused, features=("colour", "both"), **views))
    assert best_of_validation(fused, planted) == "features both, trained on none"
    detector, scores = load_detector(fused / "detector"), Scores.read(fused / "scores.parquet")
    rows = Manifest.read(planted)
    again = score(detector, rows, np.flatnonzero(rows["split"] != "train"), ("none", "qf40"), batch_size=10)
    plain = again["view"] == "none"  # the evaluator's way to the same numbers
    assert set(again["path"]) == set(scores["path"])
    ours = dict(zip(again["path"][plain], again["logit"][plain], strict=True))
    np.testing.assert_allclose([ours[path] for path in scores["path"]], scores["logit"], rtol=2e-4, atol=2e-4)
    assert np.abs(again["logit"][plain] - again["logit"][~plain]).max() > 0.1  # statistics are of the view
    wanted = {"detector": fused / "detector", "manifest": config.manifest, "output_dir": tmp_path / "no"}
    with pytest.raises(Refusal, match="also reads colour statistics of the whole image"):
        understand.main(understand.Config(**wanted, num_workers=0))
    with pytest.raises(Refusal, match="also reads statistics of the whole image"):
        onboard.main(onboard.Config(**wanted, generator="new", num_workers=0))
    alone = dataclasses.replace(config, output_dir=tmp_path / "alone", features=("colour",))
    color_fusion.main(alone)
    assert not (tmp_path / "alone" / "detector").exists()


def test_head_scaling_measures_every_head_alone(tmp_path) -> None:
    config = head_scaling.Config(
        output_dir=tmp_path / "scaling", rows=(600,), heads=("logistic", "tip-adapter-f"), dim=24, views=(2,)
    )
    head_scaling.main(config)
    rows = read(tmp_path / "scaling" / "metrics.csv")
    assert [(row["head"], row["rows"], row["views"]) for row in rows] == [
        ("logistic", "600", "2"),
        ("tip-adapter-f", "600", "2"),
    ]
    assert all(float(row["seconds"]) > 0 and float(row["peak_mib"]) > 50 for row in rows)
    assert float(rows[0]["auc"]) > 0.65
    with pytest.raises(Refusal, match="--rows 50: give at least 100"):
        head_scaling.Config(rows=(50,))


def test_a_manifest_in_shared_memory_gives_the_same_run(probe, fitted, planted, tmp_path, monkeypatch) -> None:
    """The probe's scores, and what training reads of each group, are those of the same rows as a small table."""
    small, path = Manifest.read(planted), planted.with_name("shared.parquet")
    small.write(path)
    monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    shared = Manifest.read(path)
    assert isinstance(shared["group"], Column) and shared.digest == small.digest
    cfg = dataclasses.replace(probe, manifest=(str(path),), output_dir=tmp_path / "run")
    linear_probe.main(cfg)
    assert pq.read_table(cfg.output_dir / "scores.parquet").equals(pq.read_table(fitted / "scores.parquet"))
    train = [manifest.select(manifest["split"] == "train") for manifest in (small, shared)]
    one, other = (Groups(manifest, Preprocess(64, 64, "bicubic", "resize"), VIEWS, seed=3) for manifest in train)
    assert len(one) == len(other)
    for g in (0, 5, len(one) - 1):
        for field in dataclasses.fields(one[1, g]):
            mine, theirs = (getattr(batches[1, g], field.name) for batches in (one, other))
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))

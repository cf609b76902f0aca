"""Cross-validation through the real `main` of the recipes: --folds."""

import contextlib
import dataclasses
import importlib
import json
from pathlib import Path

import color_fusion
import linear_probe
import lora
import numpy as np
import pytest
import tip_adapter
from processes import in_children
from sklearn.metrics import roc_auc_score

import adapt.training.report  # loaded once here, inherited by every child
from adapt.cli import parse
from adapt.data.folds import of_fold
from adapt.data.manifest import Manifest
from adapt.detector.detector import load_detector
from adapt.errors import Refusal
from adapt.evaluation.attribution import Count
from adapt.evaluation.metrics import Cell, Control, index
from adapt.evaluation.scores import Scores
from adapt.number_table import read_rows
from adapt.sweeps import planned_runs

VIEWS = ("none", "qf65")


def forked(command: list[str], log: Path, *_) -> int:
    """A run in a child of this process: a real start would import everything again."""
    module = importlib.import_module(Path(next(word for word in command if word.endswith(".py"))).stem)

    def run() -> None:
        with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            module.main(parse(module.Config, command[2:]))

    return in_children(run)[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(planned_runs, "_run", forked)
    monkeypatch.setattr(adapt.training.report, "write_figures", lambda *_: None)  # of the folds; slow
    monkeypatch.setattr(adapt.training.report, "_log_mistakes", lambda *_: None)


@pytest.fixture(scope="module")
def small(planted) -> Path:
    """Twelve groups of a world with a plain trace, all of them train rows but for two generators of test rows."""
    rows = Manifest.read(planted)
    kept = np.isin(rows["generator"], ["real", "grid", "latent", "style"]) & (rows["edit"] == "")
    test = list(dict.fromkeys(rows["group"][rows["split"] == "test"]))[:9]
    train = list(dict.fromkeys(rows["group"][rows["split"] == "train"]))[:6]
    path = planted.with_name("folded.csv")
    rows.select(kept & np.isin(rows["group"], [*test, *train])).write(path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def probe(small, cache, tmp_path) -> linear_probe.Config:
    return linear_probe.Config(
        manifest=(str(small),), output_dir=tmp_path / "folds", train_views=VIEWS, test_views=VIEWS, cache=cache,
        resamples=20, num_workers=0, folds=3,
    )  # fmt: skip


def test_a_probe_is_tested_on_every_image_by_a_detector_that_has_not_seen_it(probe, small, capsys) -> None:
    linear_probe.main(probe)
    root, rows = probe.output_dir, Manifest.read(small)
    scores = Scores.read(root / "scores.parquet")
    assert sorted(set(scores["path"])) == sorted(rows["path"]) and len(scores) == len(rows) * len(VIEWS)
    assert set(scores["seen"][scores["generator"] == "style"]) == {""}  # it has test rows only
    assert set(scores["seen"][scores["generator"] == "grid"]) == {"train"}
    wrong, aucs, pairs = [], [], []
    for k in (1, 2, 3):
        part = of_fold(rows, 3, k, probe.seed)
        detector = load_detector(root / f"fold-{k}" / "detector")
        assert json.loads((root / f"fold-{k}/detector/detector.json").read_text())["facts"]["trained_on"] == [
            "grid", "latent", "real",
        ]  # fmt: skip
        tested = scores.select(scores["fold"] == str(k))
        assert set(tested["path"]) == set(part["path"][part["split"] == "test"])
        assert not set(tested["group"]) & set(part["group"][part["split"] != "test"])
        own = Scores.read(root / f"fold-{k}" / "scores.parquet")
        own = own.select(own["split"] == "test")
        np.testing.assert_allclose(tested["logit"], own["logit"] - detector.threshold, atol=1e-12)
        np.testing.assert_array_equal(tested["p_fake"], own["p_fake"])
        here = (own["view"] == "none") & np.isin(own["generator"], ["real", "grid"])
        aucs.append(roc_auc_score(own.fake[here], own["logit"][here]))
        pairs.append(int((own.fake & here).sum()) * int((~own.fake & here).sum()))
        wrong += list((own["logit"] >= detector.threshold)[(own["view"] == "none") & ~own.fake])
    at = index(read_rows(root / "metrics.csv", Cell))
    assert at[
        "planted" if ("planted", "none", "grid", "auc") in at else rows["set"][0], "none", "grid", "auc"
    ].value == (pytest.approx(np.average(aucs, weights=pairs), abs=1e-6))
    assert at["all", "none", "real", "false_alarm"].value == pytest.approx(np.mean(wrong), abs=1e-6)
    page = (root / "table.md").read_text(encoding="utf-8")
    assert "## Folds" in page and "**The training sets overlap**" in page and "Each fold has its own threshold" in page
    assert not (root / "detector").exists() and "No detector is saved for the set as a whole" in page
    assert not (root / "figures" / "roc.png").exists() and (root / "figures" / "auc_per_view.png").is_file()
    assert any(c.name.startswith("metadata only") for c in read_rows(root / "controls.csv", Control))
    before = {path: path.stat().st_mtime_ns for path in root.glob("fold-*/provenance.json")}
    assert len(before) == 3 and (root / "provenance.json").is_file()
    linear_probe.main(probe)  # nothing finished runs again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(Refusal, match="has not 4 folds"):
        linear_probe.main(dataclasses.replace(probe, folds=4))


def test_a_fold_that_was_run_by_hand_is_taken_and_a_changed_manifest_is_refused(probe, small, tmp_path) -> None:
    linear_probe.main(dataclasses.replace(probe, fold=2, output_dir=probe.output_dir / "fold-2"))
    made = (probe.output_dir / "fold-2" / "provenance.json").stat().st_mtime_ns
    linear_probe.main(probe)
    assert (probe.output_dir / "fold-2" / "provenance.json").stat().st_mtime_ns == made
    less = small.with_name("less.csv")
    less.write_text("".join(small.read_text().splitlines(keepends=True)[:-1]), encoding="utf-8")
    content, kept = less.read_text(encoding="utf-8"), small.read_text(encoding="utf-8")
    try:
        small.write_text(content, encoding="utf-8")
        with pytest.raises(Refusal, match=r"fold-\d saw other images than the manifest names now"):
            linear_probe.main(probe)
    finally:
        small.write_text(kept, encoding="utf-8")
        less.unlink()


def test_a_generator_that_is_left_out_is_unseen_in_every_fold(probe) -> None:
    linear_probe.main(dataclasses.replace(probe, leave_out=("latent",)))
    scores = Scores.read(probe.output_dir / "scores.parquet")
    assert set(scores["seen"][scores["generator"] == "latent"]) == {""}
    for k in (1, 2, 3):
        record = json.loads((probe.output_dir / f"fold-{k}" / "provenance.json").read_text())
        assert record["trained_on"] == ["grid", "real"]


def test_classes_are_those_of_the_own_fold_and_folds_of_other_classes_are_refused(probe, small) -> None:
    linear_probe.main(dataclasses.replace(probe, classes="generator"))
    root = probe.output_dir
    right, known, counted = 0, 0, {"grid": 0, "latent": 0}
    for k in (1, 2, 3):  # by hand from the scores of each fold
        own = Scores.read(root / f"fold-{k}" / "scores.parquet")
        own = own.select((own["split"] == "test") & (own["view"] == "none"))
        called = np.array(["real", "grid", "latent"], dtype=object)[
            np.stack([own[f"logit_{name}"] for name in ("real", "grid", "latent")], axis=1).argmax(axis=1)
        ]
        right += int((called == own["generator"]).sum())
        known += int(np.isin(own["generator"], ["real", "grid", "latent"]).sum())
        for name in counted:
            counted[name] += int(((own["generator"] == name) & (called == name)).sum())
    counts = read_rows(root / "confusion.csv", Count)
    found = {(c.true, c.predicted): c.count for c in counts if c.view == "none"}
    closed = {name: n for name, n in found.items() if not name[0].startswith("absent")}
    assert sum(n for (true, called), n in closed.items() if true == called) == right and sum(closed.values()) == known
    assert {name: found[name, name] for name in counted} == counted and right > known / 2
    assert any(true == "absent: style" for true, _ in found)
    page = (root / "table.md").read_text(encoding="utf-8")
    assert "## Attribution" in page and "a is 1 - p(real)" not in page and "logits of its own fold" in page
    rows = Manifest.read(small)
    rare = rows["group"][(rows["generator"] == "latent") & (rows["split"] == "train")][0]
    path = small.with_name("rare.csv")
    rows.select((rows["generator"] != "latent") | (rows["group"] == rare)).write(path)
    lacking = dataclasses.replace(probe, classes="generator", manifest=(str(path),), output_dir=root / "rare")
    with pytest.raises(
        Refusal, match=r"trained on different classes \(latent in one of them only\): give fewer folds"
    ):
        linear_probe.main(lacking)
    assert not lacking.output_dir.exists()  # before any work


@pytest.mark.parametrize("recipe", [lora, tip_adapter, color_fusion], ids=lambda module: module.__name__)
def test_the_other_recipes_pool_the_head_that_they_keep(recipe, small, cache, tmp_path) -> None:
    of_recipe = {
        lora: {"epochs": 1, "groups": 4, "test_views": ("none",), "train_views": ("none",)},
        tip_adapter: {"shots": (2,), "draws": 1, "methods": ("tip-adapter",), "cache": cache,
                      "test_views": ("none",), "train_views": ("none",)},
        color_fusion: {"features": ("both",), "apart": False, "cache": cache,
                       "test_views": ("none",), "train_views": ("none",)},
    }  # fmt: skip
    config = recipe.Config(
        manifest=(str(small),),
        output_dir=tmp_path / "folds",
        resamples=20,
        num_workers=0,
        folds=3,
        **of_recipe[recipe],
    )
    recipe.main(config)
    scores, rows = Scores.read(config.output_dir / "scores.parquet"), Manifest.read(small)
    assert sorted(scores["path"]) == sorted(rows["path"])
    for k in (1, 2, 3):
        threshold = load_detector(config.output_dir / f"fold-{k}" / "detector").threshold
        own = Scores.read(config.output_dir / f"fold-{k}" / "scores.parquet")
        own = own.select(own["split"] == "test")
        found = scores.select(scores["fold"] == str(k))
        np.testing.assert_allclose(found["logit"], own["logit"] - threshold, atol=1e-6)
    assert "## Folds" in (config.output_dir / "table.md").read_text(encoding="utf-8")


def test_what_does_not_go_with_folds_is_refused(probe, small) -> None:
    for change, message in (
        ({"folds": 2}, "--folds 2: give at least 3"),
        ({"fold": 4}, "--fold 4: folds are numbered 1 to 3"),
        ({"folds": None, "fold": 1}, "--fold 1: add --folds"),
        ({"rotate": "generator"}, "--folds does not go with --rotate: .*; --leave_out NAME goes with it"),
        ({"permutations": 3}, "--folds does not go with --permutations: labels permuted in each fold are no perm.*"),
    ):
        with pytest.raises(Refusal, match=message):
            dataclasses.replace(probe, **change)
    with pytest.raises(Refusal, match="--folds pools one head"):
        color_fusion.Config(folds=3, features=("colour", "grey"))
    with pytest.raises(Refusal, match="needs both: give fewer folds"):
        linear_probe.main(dataclasses.replace(probe, folds=16))
    assert not probe.output_dir.exists()  # before any work

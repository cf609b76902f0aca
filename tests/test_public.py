"""The public names of `adapt`: documented, lazy, and doing what the commands do."""

import subprocess
import sys

import numpy as np
import pytest

import adapt
from adapt.errors import Refusal
from adapt.evaluation import metrics
from adapt.evaluation.scores import Scores


def test_importing_adapt_costs_nothing() -> None:
    code = "import sys; before = set(sys.modules); import adapt; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    names = {name.strip("'").split(".")[0] for name in done.stdout.strip("[]\n").split(", ")}
    assert names <= set(sys.stdlib_module_names) | {"adapt"}


@pytest.mark.parametrize("name", adapt.__all__)
def test_public_names_are_documented(name) -> None:
    assert len(getattr(adapt, name).__doc__) > 80 and name in adapt.__doc__ and name in dir(adapt)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode_detector'"):
        adapt.lode_detector  # noqa: B018


def test_evaluate_takes_files_mappings_and_frames(tmp_path) -> None:
    pa = pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    columns = {
        "path": [f"{i}.png" for i in range(80)],
        "generator": ["real", "sd"] * 40,
        "group": [str(i // 2) for i in range(80)],
        "logit": (rng.normal(size=80) + np.tile([0, 1.5], 40)).tolist(),
    }
    table = pa.table(columns)
    Scores({name: np.array(values, object) for name, values in columns.items()}).write(tmp_path / "s.csv")
    expected = metrics.evaluate(Scores.read(tmp_path / "s.csv"), 50, 1, 0.0)
    assert any(cell.metric == "auc" and 0.7 < cell.value < 1 for cell in expected)
    for given in (tmp_path / "s.csv", columns, table, Scores.read(tmp_path / "s.csv")):
        assert repr(adapt.evaluate(given, resamples=50, seed=1, threshold=0.0)) == repr(expected)
    columns["scene"] = columns.pop("group")
    named = pa.table(columns)
    Scores({**columns, "group": columns["scene"]}).write(tmp_path / "t.csv")
    for given, by in ((columns, "scene"), (named, "scene"), (tmp_path / "t.csv", "group"), (tmp_path / "t.csv", None)):
        assert repr(adapt.evaluate(given, resamples=50, seed=1, threshold=0.0, group_by=by)) == repr(expected)
    assert repr(adapt.evaluate(columns, resamples=50, seed=1, threshold=0.0)) != repr(expected)
    with pytest.raises(Refusal, match=r"--group_by group: there is no such column \(found: path, generator, logit"):
        adapt.evaluate(columns, group_by="group")
    for nothing in ("", None, float("nan")):
        with pytest.raises(Refusal, match="--group_by scene: 1 of 80 rows say nothing there"):
            adapt.evaluate(columns | {"scene": [nothing, *columns["scene"][1:]]}, group_by="scene")
    with pytest.raises(Refusal, match="int has no columns"):
        adapt.evaluate(3)


def test_a_detector_predicts_what_the_encoder_and_head_say(planted) -> None:
    import torch

    from adapt.detector.detector import Detector
    from adapt.models.heads.linear import LinearHead

    backbone = adapt.load_backbone("tiny")
    head = LinearHead(backbone.dim)
    with torch.no_grad():
        head.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    detector = Detector(backbone, head).eval()
    rows = detector.predict([planted])
    manifest = adapt.read_manifest(planted)
    assert len(rows) == len(manifest) and {row["status"] for row in rows} == {"ok"}
    features = adapt.extract_features(backbone, manifest, ["none"], cache=planted.parent / "cache")
    with torch.no_grad():
        logits = head(torch.from_numpy(features.take(np.arange(len(manifest)), "none"))).numpy()
    by_path = dict(zip(manifest["path"], logits, strict=True))
    for row in rows:
        assert row["logit"] == pytest.approx(by_path[row["path"]], abs=1e-3)
        assert row["verdict"] == ("fake" if row["logit"] >= 0 else "real")


def test_who_changes_the_versions_changes_a_copy() -> None:
    from adapt import provenance

    provenance.versions().clear()
    assert provenance.versions()["adapt"] == adapt.__version__

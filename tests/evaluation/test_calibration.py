"""Calibration against scikit-learn's own, and what must hold of any map from logits to probabilities."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold

from adapt.evaluation.calibration import FITS, Calibration, fit_calibration, fit_temperature
from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import balanced_weights

LOGITS = np.linspace(-60, 60, 501)


def validation(groups: int = 40, scale: float = 3.0, shift: float = 1.0, seed: int = 0, **changed) -> Scores:
    """A photograph and two fakes a group, scored by a detector that is too sure of itself and leans to one side."""
    rng = np.random.default_rng(seed)
    generator = np.tile(["real", "gan", "diffusion"], groups)
    columns = {
        "path": [str(i) for i in range(3 * groups)],
        "group": np.repeat([f"g{i}" for i in range(groups)], 3),
        "generator": generator,
        "split": ["val"] * (3 * groups),
        "logit": scale * (rng.normal(size=3 * groups) + np.where(generator == "real", -0.7, 0.7)) + shift,
    }
    return Scores(columns | changed)


class Given(ClassifierMixin, BaseEstimator):
    """Scores are what it is given: calibration alone is left for scikit-learn to do."""

    def fit(self, X, y):
        self.classes_ = np.array([0, 1])
        return self

    def decision_function(self, X):
        return X[:, 0]

    def predict(self, X):
        return X[:, 0] > 0


@pytest.mark.filterwarnings("ignore:Since FrozenEstimator does not appear to accept sample_weight")
@pytest.mark.parametrize("kind", ["temperature", "sigmoid"])
@pytest.mark.parametrize("scale", [0.01, 3.0, 15.0])
def test_equals_scikit_learn(kind, scale) -> None:
    if kind == "temperature":
        pytest.importorskip("sklearn", "1.8")
    val = validation(scale=scale)
    weight = 40 * balanced_weights(val)
    X, y = val["logit"][:, None], val.fake.astype(int)
    theirs = CalibratedClassifierCV(FrozenEstimator(Given().fit(X, y)), method=kind, ensemble=False)
    theirs.fit(X, y, sample_weight=weight)
    x = np.linspace(-5, 5, 101) * scale
    np.testing.assert_allclose(
        fit_calibration(val)(x, kind), theirs.predict_proba(x[:, None])[:, 1], rtol=2e-3, atol=1e-5
    )


def test_isotonic_is_scikit_learns_kept_off_the_ends() -> None:
    val = validation()
    theirs = IsotonicRegression(out_of_bounds="clip").fit(val["logit"], val.fake, sample_weight=balanced_weights(val))
    expected = theirs.predict(val["logit"]).clip(1 / 42, 41 / 42)  # between two logits a line joins the clipped ends
    np.testing.assert_allclose(fit_calibration(val)(val["logit"], "isotonic"), expected, atol=1e-12)


def test_the_kind_with_the_lowest_loss_on_other_groups_is_used() -> None:
    val = validation()
    found = fit_calibration(val)
    weight = balanced_weights(val)
    for kind, fit in FITS.items():
        p = np.zeros(len(val))
        for train, rest in GroupKFold(5).split(weight, groups=val["group"]):
            one = fit(val["logit"][train], val.fake[train], 40 * weight[train])
            p[rest] = Calibration(kind, {kind: one})(val["logit"][rest])
        assert found.losses[kind] == pytest.approx(log_loss(val.fake, p, sample_weight=weight), rel=1e-6)
    assert found.kind == min(found.losses, key=found.losses.get) == "sigmoid"  # what these scores were drawn by
    assert fit_calibration(validation(shift=0.0)).kind == "temperature"


def test_calibrated_scores_are_calibrated() -> None:
    """Logits of known odds, stretched and moved: on new rows the map gives back the odds."""
    found = fit_calibration(validation(groups=4000))
    x = np.linspace(-4, 6, 21)
    truth = 1 / (1 + np.exp(-1.4 * (x - 1) / 3))  # equal normals 1.4 deviations apart
    for kind, tolerance in (("sigmoid", 0.01), ("isotonic", 0.06)):
        np.testing.assert_allclose(found(x, kind), truth, atol=tolerance)


@pytest.mark.parametrize("kind", ["none", *FITS])
def test_p_never_falls_and_is_finite(kind) -> None:
    for val in (validation(), validation(scale=-3.0), validation(groups=3), validation(scale=0.0)):
        p = fit_calibration(val)(LOGITS, kind)
        assert (np.diff(p) >= 0).all() and (p >= 0).all() and (p <= 1).all()
    assert fit_calibration(validation(scale=-3.0))(2.0, "sigmoid") == 0.5  # turned around: no information


def test_row_order_changes_no_bit_and_other_rows_nothing() -> None:
    val = validation()
    order = np.random.default_rng(1).permutation(len(val))
    test = validation(seed=5, split=["test"] * 120, path=[f"t{i}" for i in range(120)])
    test = Scores(test.columns | {"group": np.array([f"t{g}" for g in test["group"]], dtype=object)})
    edited = Scores({"path": ["e"], "group": ["g0"], "generator": ["real"], "edit": ["resize"], "split": ["val"],
                     "logit": [50.0]})  # fmt: skip
    one = fit_calibration(val)
    for other in (val.select(order), val.join(test), val.join(edited)):
        found = fit_calibration(other)
        assert found.losses == one.losses and all((found.numbers[k] == one.numbers[k]).all() for k in FITS)


def test_too_little_to_compare_or_to_fit() -> None:
    one = fit_calibration(validation(groups=1))
    assert one.kind == "temperature" and one.losses == {}
    nothing = fit_calibration(validation(generator=["gan"] * 120))
    assert nothing.kind == "none" and nothing(0.3) == pytest.approx(1 / (1 + np.exp(-0.3)))


def test_the_temperature_alone_minimises_the_balanced_log_loss() -> None:
    """Against a general minimiser; sets of unequal size have the same say, edited and test rows none."""
    small, large = validation(10, scale=8.0, seed=1), validation(200, scale=0.3, seed=2)
    blocks = [
        small.columns | {"set": ["A"] * 30},
        large.columns | {"set": ["B"] * 600, "path": [f"b{i}" for i in range(600)]},
    ]
    for block, word in zip(blocks, "ab", strict=True):
        block["group"] = [f"{word}{name}" for name in block["group"]]
    val = Scores(blocks[0]).join(Scores(blocks[1]))
    found = fit_temperature(val)
    weight, sign = balanced_weights(val), np.where(val.fake, 1, -1)
    assert weight[val["set"] == "A"].sum() == pytest.approx(1.0)  # half of each class
    loss = lambda x: weight @ np.logaddexp(0, -sign * val["logit"] * np.exp(-x[0]))  # noqa: E731
    expected = np.exp(minimize(loss, [0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}).x[0])
    assert found.kind == "temperature" and 1 / found.numbers["temperature"][0] == pytest.approx(expected, rel=1e-5)
    assert found(2.0) == pytest.approx(1 / (1 + np.exp(-2.0 / expected)), rel=1e-5)
    other = val.columns | {"path": val["path"] + "x", "group": val["group"] + "x", "logit": 9 * val["logit"]}
    more = val.join(Scores(other | {"split": ["test"] * len(val)}))
    edits = np.where(val.fake, "", "blur")
    edited = Scores(other | {"edit": edits}).select(~val.fake)
    for table in (more, val.join(edited)):
        assert fit_temperature(table).numbers["temperature"] == pytest.approx(found.numbers["temperature"])
    assert fit_temperature(val.select(~val.fake)).kind == "none"

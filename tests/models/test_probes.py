"""Heads on frozen features, against scikit-learn, and what fits them."""

import re
import warnings

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.multiclass import OneVsOneClassifier
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.svm import LinearSVC
from threadpoolctl import ThreadpoolController, threadpool_limits

from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.models.heads import probes
from adapt.models.heads.linear import binary_logit
from adapt.models.heads.probes import GRID, Probe, fit_probe
from adapt.training.on_features import class_names, drawn_views, known_classes, numbers

FOUR = ("real", "diffusion", "gan", "other")


def toy(n: int, classes: int, seed: int = 0, dim: int = 12, spread: float = 1.6) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping Gaussian classes, more of class 0 than of the others."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=np.array([2, *[1] * (classes - 1)]) / (classes + 1))
    centres = np.random.default_rng(99).standard_normal((classes, dim))
    return (centres[labels] + spread * rng.standard_normal((n, dim)) + 3).astype(np.float32), labels


def prefer(strength: float, kind: str):
    """A judge that picks the candidate fitted with this strength."""
    order = iter(float(value == strength) for value in GRID[kind])
    return lambda probe: next(order)


def standard(features: np.ndarray, like: np.ndarray) -> np.ndarray:
    return StandardScaler().fit(normalize(like)).transform(normalize(features))


def test_logistic_is_scikit_learns() -> None:
    x, y = toy(400, 2)
    new, _ = toy(50, 2, seed=1)
    head, picked = fit_probe("logistic", x, y, ("real", "fake"), prefer(1e-2, "logistic"))
    oracle = LogisticRegression(C=1e-2, class_weight="balanced", max_iter=1000).fit(standard(x, x), y)
    assert picked["C"] == 1e-2
    np.testing.assert_allclose(head(torch.from_numpy(new)), oracle.decision_function(standard(new, x)), atol=2e-3)


def test_multinomial_logistic_is_scikit_learns_and_gives_the_binary_score() -> None:
    x, y = toy(600, 4)
    new, _ = toy(50, 4, seed=1)
    head, _ = fit_probe("logistic", x, y, FOUR, prefer(1e-1, "logistic"))
    oracle = LogisticRegression(C=1e-1, class_weight="balanced", max_iter=1000).fit(standard(x, x), y)
    p = oracle.predict_proba(standard(new, x))
    np.testing.assert_allclose(head.class_logits(torch.from_numpy(new)).softmax(1), p, atol=2e-3)
    np.testing.assert_allclose(torch.sigmoid(head(torch.from_numpy(new))), 1 - p[:, 0], atol=2e-3)


def test_svm_is_scikit_learns() -> None:
    x, y = toy(400, 2)
    new, _ = toy(50, 2, seed=1)
    head, _ = fit_probe("svm", x, y, ("real", "fake"), prefer(1e-3, "svm"))
    oracle = LinearSVC(C=1e-3, class_weight="balanced", random_state=0, max_iter=2000).fit(standard(x, x), y)
    np.testing.assert_allclose(head(torch.from_numpy(new)), oracle.decision_function(standard(new, x)), atol=1e-3)


def test_many_classes_of_the_svm_are_one_vs_one() -> None:
    x, y = toy(600, 4)
    new, _ = toy(80, 4, seed=1)
    head, _ = fit_probe("svm", x, y, FOUR, prefer(1e-3, "svm"))
    machine = LinearSVC(C=1e-3, class_weight="balanced", random_state=0, max_iter=2000)
    oracle = OneVsOneClassifier(machine).fit(standard(x, x), y)
    scores = head.scores(torch.from_numpy(new))
    np.testing.assert_allclose(scores, oracle.decision_function(standard(new, x)), atol=1e-2)
    assert (scores.argmax(1).numpy() == oracle.predict(standard(new, x))).all()


def test_platt_scaling_is_the_logistic_regression_of_validation_labels_on_margins() -> None:
    x, y = toy(400, 2)
    val = toy(300, 2, seed=2)
    plain, _ = fit_probe("svm", x, y, ("real", "fake"), prefer(1e-3, "svm"))
    head, _ = fit_probe("svm", x, y, ("real", "fake"), prefer(1e-3, "svm"), val)
    margin = plain(torch.from_numpy(val[0])).numpy()
    oracle = LogisticRegression(C=1e6, class_weight="balanced").fit(margin[:, None], val[1])
    np.testing.assert_allclose(head(torch.from_numpy(val[0])), oracle.decision_function(margin[:, None]), atol=1e-2)


def test_temperature_of_the_votes_lowers_the_validation_loss() -> None:
    x, y = toy(600, 4)
    val_x, val_y = toy(400, 4, seed=2)
    plain, _ = fit_probe("svm", x, y, FOUR, prefer(1e-3, "svm"))
    head, _ = fit_probe("svm", x, y, FOUR, prefer(1e-3, "svm"), (val_x, val_y))

    def loss(probe: Probe) -> float:
        logits = probe.class_logits(torch.from_numpy(val_x))
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(val_y)))

    assert loss(head) < loss(plain)


def test_the_perceptron_separates_what_no_line_can() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1500, 6)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)

    def judge(probe: Probe) -> float:
        return roc_auc_score(y[1000:1250], probe(torch.from_numpy(x[1000:1250])).detach().numpy())

    scores = {}
    for kind in ("mlp", "logistic"):
        head, _ = fit_probe(kind, x[:1000], y[:1000], ("real", "fake"), judge)
        scores[kind] = roc_auc_score(y[1250:], head(torch.from_numpy(x[1250:])).numpy())
    assert scores["mlp"] > 0.7 > 0.6 > scores["logistic"]


@pytest.mark.parametrize("kind", ["svm", "logistic", "mlp"])
def test_permuted_labels_are_at_chance(kind) -> None:
    x, y = toy(1200, 2)
    val, test = toy(400, 2, seed=1), toy(1000, 2, seed=2)

    def judge(probe: Probe) -> float:
        return roc_auc_score(val[1], probe(torch.from_numpy(val[0])).detach().numpy())

    honest, _ = fit_probe(kind, x, y, ("real", "fake"), judge)
    shuffles = [np.random.default_rng(seed).permutation(y) for seed in range(8)]
    fooled = [
        fit_probe(kind, x, labels, ("real", "fake"), lambda probe: 0.0, seed=seed)[0]
        for seed, labels in enumerate(shuffles)
    ]
    auc = [roc_auc_score(test[1], head(torch.from_numpy(test[0])).numpy()) for head in (honest, *fooled)]
    # one random direction may part two Gaussians well, but it does so as often the wrong way round
    assert auc[0] > 0.8 and abs(np.mean(auc[1:]) - 0.5) < 0.12


@pytest.mark.parametrize(("kind", "classes"), [("svm", 2), ("svm", 4), ("logistic", 4), ("mlp", 2)])
def test_a_head_is_rebuilt_from_its_description_and_tensors(kind, classes) -> None:
    x, y = toy(300, classes)
    names = FOUR if classes == 4 else ("real", "fake")
    head, _ = fit_probe(kind, x, y, names, lambda probe: 0.0, (x, y))
    settings = head.describe()
    assert settings.pop("type") == "probe"
    again = Probe(x.shape[1], **settings).eval()
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(torch.from_numpy(x)), head(torch.from_numpy(x)))


def test_the_same_seed_gives_the_same_perceptron() -> None:
    x, y = toy(300, 2)
    a, b, c = (fit_probe("mlp", x, y, ("real", "fake"), lambda probe: 0.0, seed=seed)[0] for seed in (0, 0, 1))
    new = torch.from_numpy(x)
    assert torch.equal(a(new), b(new)) and not torch.equal(a(new), c(new))


def test_validation_picks_and_ties_go_to_the_stronger_penalty() -> None:
    x, y = toy(200, 2)
    assert fit_probe("logistic", x, y, ("real", "fake"), lambda probe: 0.5)[1]["C"] == min(GRID["logistic"])
    assert fit_probe("mlp", x, y, ("real", "fake"), lambda probe: 0.5)[1]["epoch"] == 1


def test_refusals() -> None:
    x, y = toy(100, 4)
    y[y == 3] = 2
    y[np.flatnonzero(y == 2)[0]] = 3
    with pytest.raises(Refusal, match="class 'other' has 1 training images"):
        fit_probe("logistic", x, y, FOUR, lambda probe: 0.0)
    x[5, 2] = np.nan
    with pytest.raises(Refusal, match="1 rows have features that are not finite"):
        fit_probe("logistic", x, (y > 0).astype(int), ("real", "fake"), lambda probe: 0.0)


def manifest(tmp_path) -> Manifest:
    generators = ["real", "SDXL", "StyleGAN2", "real", "unheard_of"]
    columns = {"path": [f"{i}.png" for i in range(5)], "group": ["a", "a", "a", "b", "b"]}
    return Manifest.of(columns | {"generator": generators, "split": ["train"] * 5}, tmp_path)


def test_classes_of_a_manifest(tmp_path) -> None:
    rows = manifest(tmp_path)
    assert list(class_names(rows, "binary")) == ["real", "fake", "fake", "real", "fake"]
    assert list(class_names(rows, "family")) == ["real", "latent_diffusion", "gan", "real", "other"]
    known = known_classes(class_names(rows, "generator")[:3])
    assert known == ("real", "SDXL", "StyleGAN2")
    assert list(numbers(rows["generator"], known)) == [0, 1, 2, 0, -1]
    with pytest.raises(Refusal, match="hold only real"):
        known_classes(np.array(["real", "real"], dtype=object))


def test_one_view_is_drawn_for_all_members_of_a_group(tmp_path) -> None:
    rows = manifest(tmp_path)
    names = [f"qf{q}" for q in range(30, 90)]
    drawn = drawn_views(rows, np.arange(5), names, 0)
    assert len(set(drawn[:3])) == 1 and drawn[3] == drawn[4] != drawn[0]
    assert list(drawn_views(rows, np.array([4, 0]), names, 0)) == [drawn[4], drawn[0]]
    assert list(drawn_views(rows, np.arange(5), names, 1)) != list(drawn)


def test_every_grid_runs_from_strong_to_weak() -> None:
    assert all(list(grid) == sorted(grid) for grid in probes.GRID.values())


def test_binary_logit_is_the_logit_of_one_minus_the_softmax_of_real():
    logits = np.random.default_rng(0).normal(size=(200, 5)) * 4

    def binary(values) -> np.ndarray:
        return binary_logit(torch.tensor(np.array(values, np.float64))).numpy()

    np.testing.assert_allclose(expit(binary(logits)), 1 - softmax(logits, axis=1)[:, 0], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(binary(logits[:, :2]), logits[:, 1] - logits[:, 0])
    np.testing.assert_allclose(binary([[0, 1e4, 1e4], [1e4, 0, 0]]), [1e4 + np.log(2), np.log(2) - 1e4])
    assert np.isnan(binary([[np.nan] * 3, [0.0] * 3])).tolist() == [True, False]


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2, 2)])
def test_binary_logit_refuses_other_shapes(shape):
    with pytest.raises(Refusal, match=re.escape(str(shape))):
        binary_logit(torch.zeros(shape))


def test_a_fit_holds_scipys_threads_back_and_changes_nothing(monkeypatch) -> None:
    """Where scipy brings a BLAS of its own; numpy's keeps its threads, and the weights are scikit-learn's own."""

    def threads() -> dict[bool, list[int]]:
        blas = [lib for lib in ThreadpoolController().lib_controllers if lib.user_api == "blas"]
        return {
            own: [lib.num_threads for lib in blas if ("scipy.libs" in lib.filepath) == own] for own in (True, False)
        }

    seen, fit = [], LogisticRegression.fit

    def watched(model, *given):
        seen.append(threads())
        return fit(model, *given)

    rows, labels = toy(400, 2)
    expected = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000).fit(rows, labels)
    with threadpool_limits(2):
        before = threads()
        monkeypatch.setattr(LogisticRegression, "fit", watched)
        found = probes.fit_one("logistic", rows, labels, 0.1)
        assert threads() == before
    assert seen[0][False] == before[False] and set(seen[0][True]) <= {1}
    assert np.array_equal(found.coef_, expected.coef_)


@pytest.mark.parametrize(("kind", "strength"), [("svm", 1e6), ("svm", 1e-3), ("logistic", 1e-2)])
def test_a_fit_that_stopped_before_it_converged_is_recorded(kind, strength) -> None:
    rng = np.random.default_rng(0)  # fewer rows than columns, and rows that nearly agree but for their labels
    x = np.repeat(rng.standard_normal((6, 13)), 2, axis=0) + 1e-3 * rng.standard_normal((12, 13))
    x, y = x.astype(np.float32), rng.integers(0, 2, 12)
    picked = fit_probe(kind, x, y, ("real", "fake"), lambda probe: 0.0, strengths=(strength,))[1]
    model = {
        "svm": LinearSVC(C=strength, class_weight="balanced", max_iter=2000, random_state=0),
        "logistic": LogisticRegression(C=strength, class_weight="balanced", max_iter=1000),
    }[kind]
    with warnings.catch_warnings(record=True) as heard:  # an oracle: scikit-learn's own warning
        warnings.simplefilter("always")
        model.fit(standard(x, x), y)
    warned = any(issubclass(one.category, ConvergenceWarning) for one in heard)
    assert warned == (strength == 1e6)
    assert picked.get("not_converged", 0) == warned

"""The distribution over permuted labels: p is honest under no effect, small under one, and says if it cannot tell."""

import numpy as np
import pytest
from scipy.stats import rankdata, ttest_1samp

from adapt.data.manifest import Manifest
from adapt.data.permutation import permuted
from adapt.evaluation.jackknife import Interval
from adapt.evaluation.permutation import Reached, mean_interval, outcome_of_permutations, p_of, permutation_controls
from adapt.evaluation.scores import Scores
from adapt.evaluation.side_by_side import reached

NAN = float("nan")


def auc(fake: np.ndarray, score: np.ndarray) -> float:
    n = fake.sum()
    return (rankdata(score)[fake].sum() - n * (n + 1) / 2) / (n * (~fake).sum())


def world(seed: int, effect: float, groups: int = 60) -> tuple[Manifest, np.ndarray]:
    """Groups of a real and two fakes with content of their own; features (n, 20), all moved by `effect`."""
    rng = np.random.default_rng(seed)
    splits = np.repeat(np.array(["train", "val", "test"], object)[np.arange(groups) % 3], 3)
    words = {"path": [str(i) for i in range(3 * groups)], "group": np.repeat(np.arange(groups), 3).astype(str)}
    words |= {"generator": ["real", "a", "b"] * groups, "split": splits}
    words |= dict.fromkeys(("set", "edit", "family", "sha256", "mask"), [""] * 3 * groups)
    rows = Manifest({name: np.array(list(values), object) for name, values in words.items()})
    x = np.repeat(rng.normal(size=(groups, 20)), 3, axis=0) + rng.normal(size=(3 * groups, 20))
    x += effect * rows.fake[:, None]
    return rows, x


def selected_head(rows: Manifest, x: np.ndarray) -> np.ndarray:
    """Scores of a mean difference of as many features as the validation rows prefer: fit and selection on labels."""
    train, val = ((rows["split"] == split).astype(bool) for split in ("train", "val"))
    w = x[train & rows.fake].mean(axis=0) - x[train & ~rows.fake].mean(axis=0)
    order = np.argsort(-abs(w))
    heads = [np.where(np.isin(np.arange(20), order[:k]), w, 0) for k in (2, 5, 20)]
    return x @ max(heads, key=lambda head: auc(rows.fake[val], x[val] @ head))


def p_value(seed: int, effect: float, permutations: int = 20) -> float:
    rows, x = world(seed, effect)
    test = (rows["split"] == "test").astype(bool)
    found = [auc(rows.fake[test], selected_head(rows, x)[test])]
    for number in range(1, permutations + 1):
        found.append(auc(rows.fake[test], selected_head(permuted(rows, number), x)[test]))
    return p_of(found[0], found[1:])


def test_under_no_effect_p_is_uniform_and_with_one_it_is_small():
    null = np.array([p_value(seed, 0.0) for seed in range(100)])
    assert (null <= 0.05).mean() <= 0.1 and 0.4 < null.mean() < 0.62 and (null > 0.5).mean() > 0.35
    assert np.mean([p_value(seed, 1.0) <= 0.05 for seed in range(20)]) >= 0.9


def test_one_permutation_misleads_where_the_distribution_does_not():
    """One AUC of a good head's permuted labels is seldom near 0.5; the mean over 20 is, and it never fails."""
    outside, failed = [], 0
    for seed in range(20):
        rows, x = world(seed, 1.0)
        test = (rows["split"] == "test").astype(bool)
        found = [auc(rows.fake[test], selected_head(permuted(rows, k), x)[test]) for k in range(1, 21)]
        outside.append(abs(found[0] - 0.5) > 0.1)
        failed += outcome_of_permutations(0.5, mean_interval(found)) == "FAILED"
    assert np.mean(outside) > 0.4 and failed == 0


def test_p_counts_the_true_labelling_too():
    assert p_of(0.9, [0.5] * 20) == pytest.approx(1 / 21)
    assert p_of(0.5, [0.4, 0.5, 0.6]) == pytest.approx(3 / 4)  # a tie counts
    assert np.isnan(p_of(NAN, [0.5])) and np.isnan(p_of(0.5, [NAN]))


@pytest.mark.parametrize(
    ("p", "low", "high", "outcome"),
    [(1 / 21, 0.3, 0.7, "passed"), (2 / 21, 0.3, 0.7, "cannot tell"), (0.5, 0.45, 0.55, "cannot tell"),
     (1 / 21, 0.61, 0.9, "FAILED"), (0.9, 0.1, 0.39, "FAILED"), (0.5, NAN, NAN, "cannot tell"),
     (NAN, 0.4, 0.6, "n/a")],
)  # fmt: skip
def test_what_p_and_the_mean_tell(p, low, high, outcome):
    assert outcome_of_permutations(p, Interval(low, high)) == outcome


def test_the_interval_of_a_mean_over_permutations_is_that_of_t():
    values = np.random.default_rng(0).normal(0.5, 0.1, 20)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert tuple(mean_interval(values)) == pytest.approx((expected.low, expected.high))
    few = mean_interval([0.7] * 9)  # equal by chance: no more sure than one
    assert all(np.isnan(few)) and all(np.isnan(mean_interval([*values, NAN])))


def test_controls_hold_mean_range_and_p_of_each_view_and_kind():
    values = {("none", "mean:seen"): [0.8, 0.5, 0.7, 0.4], ("none", "mean:unseen"): [NAN, NAN, NAN, NAN]}
    values[("qf40", "mean:all")] = [0.6, 0.7, 0.5, 0.6]
    found = [
        Reached(number, "all", view, label, "auc", value)
        for (view, label), row in values.items()
        for number, value in enumerate(row)
    ]
    found += [Reached(0, "s", "none", "a", "auc", 0.9, "train"), Reached(0, "all", "none", "mean:seen", "ap", 0.9)]
    one, two = permutation_controls(found)
    assert (one.name, one.view, one.low, one.high, one.permutations) == (
        "labels permuted: mean:seen AUC", "none", 0.4, 0.7, 3,
    )  # fmt: skip
    assert one.value == pytest.approx(1.6 / 3) and one.p == 0.25 and one.outcome == "cannot tell"
    assert (two.name, two.view, two.p) == ("labels permuted: mean:all AUC", "qf40", 0.75)


def test_what_is_reached_is_measured_on_the_test_rows_at_the_threshold_of_its_validation_labels():
    rows, x = world(5, 1.0)
    held = np.flatnonzero(rows["split"] != "train")
    columns = {name: rows[name][held] for name in ("path", "group", "generator", "split")}
    columns |= {"seen": np.full(len(held), "train", object), "logit": x[held, 0]}
    scores = Scores(columns)
    found = {(r.generator, r.metric): r for r in reached(scores, 7)}
    test = scores.select(scores["split"] == "test")
    each = [auc(test.fake[keep], test["logit"][keep]) for keep in
            (np.isin(test["generator"], ["real", name]) for name in "ab")]  # fmt: skip
    assert found["mean:seen", "auc"].value == pytest.approx(np.mean(each), abs=1e-12)
    assert found["a", "auc"].seen == "train" and {r.permutation for r in found.values()} == {7}
    turned = np.where(scores["split"] == "val", -scores["logit"], scores["logit"])
    other = {(r.generator, r.metric): r for r in reached(Scores({**columns, "logit": turned}), 7)}
    assert other["mean:seen", "auc"] == found["mean:seen", "auc"]
    assert other["mean:seen", "balanced_accuracy"] != found["mean:seen", "balanced_accuracy"]

"""What verdicts are worth where fakes are rare: against Bayes by counting, and simulations with a known truth."""

import math

import numpy as np
import pytest
from scipy.special import expit, logit
from test_decision import world

from adapt.errors import Refusal
from adapt.evaluation.base_rates import expected, predictive_cells, shifted
from adapt.evaluation.decision import EVERY, fit_decision
from adapt.evaluation.jackknife import leave_out, share_interval
from adapt.evaluation.metrics import Cell, evaluate, index
from adapt.evaluation.thresholds import pick_threshold


def test_p_fake_moves_by_the_log_odds_of_the_prevalence() -> None:
    p = np.array([0.0, 1e-9, 0.2, 0.5, 0.99, 1.0])
    for prevalence in (0.01, 0.5, 0.9):
        inside = expit(logit(p[1:-1]) + math.log(prevalence / (1 - prevalence)))
        np.testing.assert_allclose(shifted(p, prevalence)[1:-1], inside, rtol=1e-6)
        assert (shifted(p, prevalence)[0], shifted(p, prevalence)[-1]) == (0, 1)
    np.testing.assert_allclose(shifted(p, 0.5), p)


def test_a_calibrated_p_is_calibrated_at_the_prevalence_once_it_is_shifted() -> None:
    """A world of 2 % fakes: among images of a shifted p of about x a share x is fake; of the unshifted p far less."""
    rng, n, prevalence = np.random.default_rng(0), 400_000, 0.02
    fake = rng.random(n) < prevalence
    score = rng.normal(size=n) + 2 * fake
    p = expit(2 * score - 2)  # exact for as many fakes as photographs: log N(2, 1) / N(0, 1)
    moved = shifted(p, prevalence)
    for low, high in ((0.1, 0.2), (0.4, 0.6), (0.7, 0.9)):
        inside = (moved >= low) & (moved < high)
        assert fake[inside].mean() == pytest.approx(moved[inside].mean(), abs=0.03)
    likely = (p > 0.8) & (p < 0.9)
    assert fake[likely].mean() < 0.2 < 0.8


def test_predictive_values_are_counts_of_a_large_population() -> None:
    scores = world(groups=80)
    cells = evaluate(scores, 40)
    at, prevalence = index(cells), 0.05
    found = index(predictive_cells(cells, prevalence))
    assert {key[2] for key in found} == {"mean:all", "mean:seen", "mean:unseen"}
    for view in ("none", "qf40"):
        recall, alarm = at["all", view, "mean:seen", "recall"], at["all", view, "mean:seen", "false_alarm"]
        fakes, reals = 1e6 * prevalence, 1e6 * (1 - prevalence)
        ppv = found["all", view, "mean:seen", "ppv_at_0.05"]
        npv = found["all", view, "mean:seen", "npv_at_0.05"]
        called = fakes * recall.value + reals * alarm.value
        assert ppv.value == pytest.approx(fakes * recall.value / called)
        assert npv.value == pytest.approx(reals * (1 - alarm.value) / (1e6 - called))
        worst = fakes * recall.low / (fakes * recall.low + reals * alarm.high)
        best = fakes * recall.high / (fakes * recall.high + reals * alarm.low)
        assert (ppv.low, ppv.high) == (pytest.approx(worst), pytest.approx(best)) and worst < ppv.value < best
        assert npv.low < npv.value < npv.high
        assert math.isnan(found["all", view, "mean:unseen", "ppv_at_0.05"].value)  # this world has none
    with pytest.raises(Refusal, match="--prevalence 1: give a share of fakes between 0 and 1"):
        predictive_cells(cells, 1)


@pytest.mark.parametrize(("recall", "alarm"), [(0.8, 0.1), (0.6, 0.02), (0.95, 0.4)])
def test_the_interval_of_a_predictive_value_covers_it(recall, alarm) -> None:
    """Scenes of a photograph and a fake whose luck is shared; 95 % and no less, within noise of 600 draws."""
    rng, n, prevalence, draws = np.random.default_rng(1), 60, 0.02, 600
    counts, _ = leave_out(np.full(n, "s"), np.arange(n), 60, 0)
    truth = prevalence * recall / (prevalence * recall + (1 - prevalence) * alarm)
    missed = 0
    for _ in range(draws):
        shared, own = rng.random(n), rng.random((2, n))
        lucky = np.where(rng.random((2, n)) < 0.5, shared, own)
        rows = {"recall": lucky[0] < recall, "false_alarm": lucky[1] < alarm}
        cells = []
        for metric, hit in rows.items():
            values = counts @ hit.astype(float) / counts.sum(axis=1)
            cells.append(Cell("all", "v", "mean:all", metric, float(values[0]), *share_interval(values, n), n, n))
        ppv = predictive_cells(cells, prevalence)[0]
        missed += not ppv.low <= truth <= ppv.high
    assert missed / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_what_validation_says_of_verdicts() -> None:
    real = np.array(["fake"] * 2 + ["unsure"] * 8 + ["real"] * 90, dtype=object)
    fake = np.array(["real"] * 5 + ["unsure"] * 15 + ["fake"] * 60, dtype=object)
    found = expected(real, fake, 0.1)
    assert found.ppv.value == pytest.approx(0.1 * 0.75 / (0.1 * 0.75 + 0.9 * 0.02))
    assert found.npv.value == pytest.approx(0.9 * 0.9 / (0.9 * 0.9 + 0.1 * 5 / 80))
    assert found.ppv.low < found.ppv.value < found.ppv.high and (found.real, found.fake) == (100, 80)
    rare = expected(real, fake, 0.001)
    assert rare.ppv.value < 0.05 < 0.99 < rare.npv.value
    none = expected(np.full(30, "real", dtype=object), np.full(30, "fake", dtype=object), 0.01)
    assert none.ppv.value == none.npv.value == 1  # no error in 30 scenes
    assert none.ppv.low < 0.1  # which does not say that there are fewer than one in ten


def test_rules_at_a_prevalence_move_no_verdict() -> None:
    scores = world(groups=120)
    decision, threshold = fit_decision(scores), pick_threshold(scores)
    plain, rare = decision.rules(threshold, 0.1), decision.rules(threshold, 0.1, prevalence=0.01)
    assert rare.cuts == plain.cuts and not plain.expected and set(rare.expected) == {EVERY}
    assert rare.expected[EVERY].ppv.value < 0.5 < rare.expected[EVERY].npv.value
    named = decision.rules(threshold, thresholds="quality", prevalence=0.01)
    assert set(named.expected) == set(named.cuts) == {EVERY, "qf90", "qf40"}
    with pytest.raises(Refusal, match=r"--prevalence 0.01: without calibration p_fake is for no known share of fakes"):
        decision.rules(threshold, calibration="none", prevalence=0.01)
    with pytest.raises(Refusal, match="--prevalence 0: give a share"):
        decision.rules(threshold, prevalence=0)

"""Verdicts: conformal promises by brute force and simulation, cuts for each quality, and what a detector keeps."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.stats import beta, norm
from sklearn.metrics import roc_auc_score

from adapt.errors import Refusal
from adapt.evaluation.conformal import exceeded, fewest_groups, group_quantiles, promised, rank, share_bounds, tail
from adapt.evaluation.decision import EVERY, FILE, Cuts, Decision, fit_decision, read_decision
from adapt.evaluation.open_set import OPEN_SET, familiarity
from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import pick_threshold

VIEWS = ("none", "qf90", "qf40")


def world(seed: int = 0, groups: int = 60, views: tuple[str, ...] = VIEWS) -> Scores:
    """Groups of a photograph, a processed one and up to three fakes, with class logits; half are test."""
    rng = np.random.default_rng(seed)
    rows = []
    for g in range(groups):
        split = ("val", "test")[g % 2]
        lift = rng.normal()  # what a scene's images share
        images = [("real", "", "real", "train", -1.5), ("real", "resize", "real", "train", -0.5)]
        images += [("stylegan", "", "gan", "train", 1.5), ("sd", "", "diffusion", "train", 1.0)][: 1 + (g % 3 > 0)]
        images += [("new", "", "other", "val", 0.3)]
        for generator, edit, family, seen, mean in images:
            for view in views:
                logit = lift + mean + rng.normal() - (view == "qf40")
                of = {f"logit_{name}": rng.normal() + 3 * (name == family) for name in ("real", "gan", "diffusion")}
                path = f"{g}/{generator}{edit}"
                rows.append({"path": path, "group": f"g{g}", "generator": generator, "edit": edit, "family": family,
                             "seen": seen, "split": split, "view": view, "logit": logit, **of})  # fmt: skip
    return Scores({name: [row[name] for row in rows] for name in rows[0]})


def test_one_row_a_group_is_the_usual_conformal_quantile() -> None:
    values = np.random.default_rng(0).normal(size=57)
    table = group_quantiles(values, np.arange(57), np.zeros(57))
    np.testing.assert_array_equal(table, np.sort(values))
    for rate in (0.02, 0.05, 0.1, 0.5, 0.9):
        k = math.ceil(58 * (1 - Fraction(str(rate))))
        expected = np.quantile(values, min(1, k / 57), method="inverted_cdf")
        assert promised(table, rate, "--x", "y") == expected == np.sort(values)[k - 1]


def test_groups_vote_with_their_distribution_functions() -> None:
    """By exact fractions: the j-th is the least value at which the functions of all groups sum to j."""
    rng = np.random.default_rng(1)
    n = 80
    group, kind = rng.integers(12, size=n), rng.integers(3, size=n)
    values = rng.integers(25, size=n).astype(float)  # with ties
    found = group_quantiles(values, group, kind)
    weight = []
    for g, k in zip(group, kind, strict=True):
        same = (group == g) & (kind == k)
        weight.append(Fraction(1, int(same.sum()) * len(set(kind[group == g]))))
    groups = len(set(group))
    assert sum(weight) == groups == len(found)
    for j in range(1, groups + 1):
        sums = {v: sum(w for w, x in zip(weight, values, strict=True) if x <= v) for v in values}
        assert found[j - 1] == min(v for v, total in sums.items() if total >= j)
    order = rng.permutation(n)
    np.testing.assert_array_equal(group_quantiles(values[order], group[order], kind[order]), found)


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (30, 0.1), (60, 0.05)])
def test_a_new_image_of_a_new_group_errs_at_the_stated_rate_at_most(n, rate) -> None:
    """Groups of 1 to 6 dependent rows; a member of one more group is drawn. Within 4 binomial deviations."""
    rng, draws = np.random.default_rng(n), 2000
    wrong = 0
    for _ in range(draws):
        size = rng.integers(1, 7, size=n + 1)
        group = np.repeat(np.arange(n + 1), size)
        values = rng.normal(size=n + 1)[group] + 0.5 * size[group] + 0.3 * rng.normal(size=len(group))
        old = group < n
        cut = promised(group_quantiles(values[old], group[old], np.arange(old.sum())), rate, "--x", "y")
        wrong += rng.choice(values[~old]) > cut
    spread = math.sqrt(rate * (1 - rate) / draws)
    assert wrong / draws <= rate + 4 * spread  # the promise
    assert wrong / draws >= rate - 1 / (n + 1) - 4 * spread  # and not by calling next to nothing


def test_rates_that_so_few_groups_cannot_promise() -> None:
    table = np.arange(19.0)
    assert promised(table, 0.05, "--error_rate", "fakes") == 18
    with pytest.raises(Refusal, match=r"0.04 takes 24 validation groups with fakes, this .* has 19: ask for 0.05 or"):
        promised(table, 0.04, "--error_rate", "fakes")
    with pytest.raises(Refusal, match=r"takes 99 .* has 0: validate on some"):
        promised(np.zeros(0), 0.01, "--error_rate", "fakes")
    for rate in (0, 1, -0.1, 1.5, math.nan):
        with pytest.raises(Refusal, match="give a rate between 0 and 1"):
            promised(table, rate, "--error_rate", "fakes")


@pytest.mark.parametrize(("n", "rate"), [(19, 0.12), (48, 0.05), (99, 0.05)])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_stated_confidence_is_about_the_detector_at_hand(n, rate, rows) -> None:
    """Many validation samples, and the true rate of each cut, which is known: how often is it above the promised one?

    Groups of 1 to 2 `rows` - 1 dependent rows; all scores are normal, of variance 1.
    """
    rng, draws, confidence = np.random.default_rng(n + rows), 2000, 0.9
    above = {None: 0, confidence: 0}
    for _ in range(draws):
        group = np.repeat(np.arange(n), rng.integers(1, 2 * rows, size=n))
        values = np.sqrt(0.7) * rng.normal(size=n)[group] + np.sqrt(0.3) * rng.normal(size=len(group))
        table = group_quantiles(values, group, np.arange(len(group)))
        for sure in above:
            above[sure] += norm.sf(promised(table, rate, "--x", "y", sure)) > rate
    found = {sure: count / draws for sure, count in above.items()}
    assert found[confidence] <= 1 - confidence + 3 * math.sqrt(0.09 / draws)
    assert found[None] > found[confidence]
    if rows == 1:
        assert found[None] > 0.25  # a promise on average is not one about this detector
        assert found[None] == pytest.approx(exceeded(n, rate), abs=4 * math.sqrt(0.25 / draws))


def test_how_often_a_promise_on_average_is_exceeded_by_a_detector() -> None:
    assert [round(exceeded(n, 0.05), 2) for n in (19, 48, 99)] == [0.38, 0.30, 0.44]


def test_the_rank_at_a_confidence_against_the_beta_distribution() -> None:
    """With one row a group the coverage of the j-th value is Beta(j, n - j + 1): never too few, hardly more."""
    assert (fewest_groups(0.05, 0.9), fewest_groups(0.1, 0.9), fewest_groups(0.01, 0.95)) == (45, 22, 299)
    for n in range(45, 600, 7):
        j = rank(n, 0.05, 0.9)
        exact = next(k for k in range(1, n + 1) if beta.sf(0.95, k, n - k + 1) >= 0.9)
        assert exact <= j <= exact + 3
        assert j >= rank(n, 0.05)


def test_the_tail_bounds_sums_of_any_shares() -> None:
    """Against exact sums (convolutions) of shares of tenths with a mean of the rate."""
    n, rate, rng = 12, 0.2, np.random.default_rng(5)
    two = np.zeros(11)
    two[[0, 3]] = 1 / 3, 2 / 3  # 0 or .3
    laws = [two, *rng.dirichlet(np.full(11, 0.3), size=40)]
    for law in laws:
        mean = law @ np.arange(11) / 10
        total = np.ones(1)
        for _ in range(n):
            total = np.convolve(total, law)
        exact = np.cumsum(total)
        below = np.flatnonzero(np.arange(len(exact)) / 10 / n <= mean)
        assert (exact[below] <= tail(below / 10 / n, n, mean) + 1e-12).all()
    assert tail(np.zeros(1), n, rate)[0] == pytest.approx(0.8**12)  # what n of n right come to
    assert tail(np.array([0.5]), n, rate)[0] == 1


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.9])
def test_bounds_of_a_share_hold_its_true_mean(share) -> None:
    rng, n, draws = np.random.default_rng(3), 40, 1500
    drawn = rng.binomial(3, share, size=(draws, n)).mean(axis=1) / 3  # three images a group
    ends = {mean: share_bounds(mean, n, 0.025) for mean in set(drawn.tolist())}
    missed = np.mean([not ends[mean][0] <= share <= ends[mean][1] for mean in drawn.tolist()])
    assert missed <= 0.05 and share_bounds(0.0, n, 0.025)[0] == 0 and share_bounds(1.0, n, 0.025)[1] == 1
    assert share_bounds(0.0, n, 0.025)[1] == pytest.approx(1 - 0.025 ** (1 / n))  # the exact one


def test_what_a_confidence_takes_is_refused_with_its_numbers() -> None:
    table = np.arange(30.0)
    with pytest.raises(
        Refusal, match=r"0.05 at --confidence 0.9 takes 45 validation groups with fakes, .* has 30: ask for 0.0739 or"
    ):
        promised(table, 0.05, "--error_rate", "fakes", 0.9)
    assert promised(table, 0.0739, "--error_rate", "fakes", 0.9) == 29  # what it asks for is what it takes
    with pytest.raises(Refusal, match="has 0: validate on some"):
        promised(np.zeros(0), 0.05, "--error_rate", "fakes", 0.9)
    for sure in (0, 1, 90, math.nan):
        with pytest.raises(Refusal, match=r"--confidence .*: give a probability between 0 and 1"):
            promised(table, 0.1, "--error_rate", "fakes", sure)
    decision = fit_decision(world(groups=120))
    with pytest.raises(Refusal, match="none is stated: add --error_rate or --max_false_positive_rate"):
        decision.rules(0.0, confidence=0.9)
    usual, sure = (decision.rules(0.0, 0.1, confidence=c, known_recall=0.9).cuts[EVERY] for c in (None, 0.9))
    assert sure.not_real > usual.not_real and sure.not_fake < usual.not_fake and sure.known < usual.known
    few = fit_decision(world(groups=40)).rules(0.0, 0.2, confidence=0.9).cuts[EVERY]
    assert few.known == -np.inf  # as many groups keep all families as cannot promise this share of them


def test_a_verdict_rules_the_other_class_out() -> None:
    logit = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
    assert list(Cuts(0.0).verdicts(logit)) == ["real", "real", "fake", "fake", "fake"]
    overlap = Cuts(0.0, not_real=1.0, not_fake=-1.0)
    assert list(overlap.verdicts(logit)) == ["real", "unsure", "unsure", "unsure", "fake"]
    apart = Cuts(0.5, not_real=-2.0, not_fake=2.0)  # both are ruled out between: the threshold decides
    assert list(apart.verdicts(logit)) == ["real", "real", "real", "fake", "fake"]
    assert list(Cuts(math.nan).verdicts(logit)) == ["real"] * 5


def test_rates_of_the_rules_on_the_rows_they_come_from() -> None:
    """By counting: each class errs at the rate at most when groups and, in them, kinds weigh the same."""
    scores = world(groups=120)
    val = scores.select(scores["split"] == "val")
    decision = fit_decision(scores)
    threshold = pick_threshold(scores)

    def share(rows: np.ndarray, hit: np.ndarray) -> float:
        means = []
        for g in dict.fromkeys(val["group"][rows]):
            own = rows & (val["group"] == g)
            names = zip(*(val[column][own] for column in ("generator", "edit", "view")), strict=True)
            kinds = [own & (val["generator"] == n) & (val["edit"] == e) & (val["view"] == v) for n, e, v in {*names}]
            means.append(np.mean([hit[kind].mean() for kind in kinds]))
        return float(np.mean(means))

    for quality, view in ((None, ""), (40, "qf40")):
        rows = (val["view"] == view) | (view == "")
        rules = decision.rules(threshold, 0.1, thresholds="quality")
        verdict = rules.at(quality).verdicts(val["logit"])
        alarms, misses = share(rows & ~val.fake, verdict == "fake"), share(rows & val.fake, verdict == "real")
        assert 0.03 < alarms <= 0.1 and 0.03 < misses <= 0.1
    alone = decision.rules(threshold, max_false_positive_rate=0.05).at(None).verdicts(val["logit"])
    assert set(alone) == {"real", "fake"} and 0.01 < share(~val.fake, alone == "fake") <= 0.05
    both = decision.rules(threshold, 0.2, 0.05).at(None).verdicts(val["logit"])
    ten = decision.rules(threshold, 0.2).at(None).verdicts(val["logit"])
    assert share(~val.fake, both == "fake") <= 0.05 < share(~val.fake, ten == "fake") <= 0.2
    np.testing.assert_array_equal(both == "real", ten == "real")


def test_the_nearest_quality_chooses_the_cuts() -> None:
    scores = world()
    decision = fit_decision(scores)
    for view in ("qf90", "qf40"):
        alone = scores.select(scores["view"] == view)
        assert decision.thresholds[view] == pick_threshold(alone)
    assert set(decision.thresholds) == {"qf90", "qf40"} and decision.thresholds["qf40"] != decision.thresholds["qf90"]
    rules = decision.rules(7.0, 0.1, thresholds="quality")
    for quality, name in ((1, "qf40"), (40, "qf40"), (65, "qf40"), (66, "qf90"), (100, "qf90"), (None, EVERY)):
        assert rules.at(quality) is rules.cuts[name]
    assert rules.at(None).threshold == 7.0
    one = decision.rules(7.0, 0.1)
    assert one.at(40) is one.at(None) and one.at(40) == rules.at(None)


def test_families_that_training_lacked_are_unknown() -> None:
    scores = world(groups=200)
    decision = fit_decision(scores)
    val, logits = scores["split"] == "val", np.stack([scores[f"logit_{n}"] for n in ("real", "gan", "diffusion")], 1)
    sizes, known = familiarity(logits), np.isin(scores["family"], ("gan", "diffusion"))
    fakes = val & scores.fake
    aucs = {name: roc_auc_score(known[fakes], sizes[name][fakes]) for name in OPEN_SET}
    assert decision.familiarity == max(aucs, key=aucs.get) and aucs[decision.familiarity] > 0.8
    size = sizes[decision.familiarity]
    lost = []
    for recall in (0.95, 0.8):
        cut = decision.rules(0.0, known_recall=recall).at(None).known
        lost.append((size[fakes & known] < cut).mean())
        assert 0.5 * (1 - recall) < lost[-1] <= (1 - recall) * 1.2  # rows weigh by their groups in the promise
        test = ~val & scores.fake
        assert (size[test & known] < cut).mean() < (size[test & ~known] < cut).mean() - 0.3
    assert decision.rules(0.0, known_recall=1.0).at(None).known == -np.inf
    few = fit_decision(world(groups=20))  # 10 of validation: 95 % cannot be told from all
    assert few.rules(0.0).at(None).known == -np.inf and few.rules(0.0, known_recall=0.8).at(None).known > -np.inf


def equal(a: Decision, b: Decision) -> None:
    assert a.describe() == b.describe()
    assert a.tables.keys() == b.tables.keys() and a.calibration.numbers.keys() == b.calibration.numbers.keys()
    for one, other in ((a.tables, b.tables), (a.calibration.numbers, b.calibration.numbers)):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_only_validation_rows_in_any_order() -> None:
    scores = world()
    decision, rng = fit_decision(scores), np.random.default_rng(3)
    equal(fit_decision(scores.select(rng.permutation(len(scores)))), decision)
    test = scores["split"] == "test"
    other = {**scores.columns, "logit": np.where(test, rng.normal(size=len(scores)), scores["logit"])}
    other["generator"] = np.where(test & scores.fake, "fresh", scores["generator"])
    other["seen"] = np.where(other["generator"] == "fresh", "", scores["seen"])
    equal(fit_decision(Scores(other)), decision)
    equal(fit_decision(scores.select(~test)), decision)


def saved(folder, decision: Decision, **changed: object) -> None:
    folder.mkdir(exist_ok=True)
    decision.save(folder)
    record = {"format": 2, "threshold": 0.25, "decision": decision.describe() | changed}
    (folder / "detector.json").write_text(json.dumps(record))


def test_kept_with_a_detector_to_the_last_bit(tmp_path) -> None:
    decision = fit_decision(world())
    saved(tmp_path / "d", decision)
    threshold, found = read_decision(tmp_path / "d")
    equal(found, decision)
    assert threshold == 0.25
    logits = np.linspace(-6, 6, 400)
    for stated in ({}, {"error_rate": 0.05, "thresholds": "quality"}, {"max_false_positive_rate": 0.1}):
        one, other = decision.rules(0.25, **stated), found.rules(0.25, **stated)
        assert one.cuts == other.cuts
        np.testing.assert_array_equal(one.calibration(logits), other.calibration(logits))
    saved(tmp_path / "d", Decision())
    assert not (tmp_path / "d" / FILE).exists()
    equal(read_decision(tmp_path / "d")[1], Decision())


def test_an_older_detector_has_its_threshold_and_the_logistic_function(tmp_path) -> None:
    (tmp_path / "detector.json").write_text(json.dumps({"format": 2, "threshold": 0.25}))
    threshold, decision = read_decision(tmp_path)
    rules = decision.rules(threshold)
    assert list(rules.at(40).verdicts(np.array([0.2, 0.25]))) == ["real", "fake"]
    assert rules.calibration(1.0) == pytest.approx(1 / (1 + math.exp(-1)))
    for stated, message in (
        ({"error_rate": 0.05}, "--error_rate 0.05 takes 19 validation groups with fakes, this detector has 0"),
        ({"max_false_positive_rate": 0.01}, "takes 99 validation groups with photographs, this detector has 0"),
        ({"thresholds": "quality"}, "no threshold of a JPEG quality; score views such as"),
        ({"calibration": "isotonic"}, "--calibration isotonic: this detector has none"),
        ({"known_recall": 0.0}, "--known_recall 0: give a share above 0"),
    ):
        with pytest.raises(Refusal, match=message):
            decision.rules(threshold, **stated)


def test_damage_is_refused(tmp_path) -> None:
    decision = fit_decision(world())

    def change(name: str, value: np.ndarray | None):
        def apply(folder) -> None:
            tensors = load_file(folder / FILE) | {name: value}
            save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, folder / FILE)

        return apply

    damages = {
        "not a complete detector directory": [lambda folder: (folder / FILE).unlink()],
        "counts of groups that differ": [change("real/every", None), change("real/every", np.arange(3.0))],
        "no ascending list": [
            change("fake/every", np.array([3.0, 2.0])),
            change("fake/every", np.array([1.0, np.nan])),
            change("fake/every", np.zeros((2, 2))),
        ],
        "calibration of shape": [
            change("calibration/sigmoid", np.zeros(3)),
            change("calibration/isotonic", np.zeros((3, 4))),
        ],
        "calibration that falls": [
            change("calibration/sigmoid", np.array([-1.0, 0.0])),
            change("calibration/isotonic", np.array([[0.0, 1.0], [0.9, 0.1]])),
        ],
        "no calibration": [change(f"calibration/{decision.calibration.kind}", None)],
    }
    for message, changes in damages.items():
        for damage in changes:
            saved(tmp_path / "d", decision)
            damage(tmp_path / "d")
            with pytest.raises(Refusal, match=message):
                read_decision(tmp_path / "d")
    for name, value in (("familiarity", "luck"), ("groups", 3), ("thresholds", None), ("thresholds", {"x": 1.0})):
        saved(tmp_path / "d", decision, **{name: value})
        with pytest.raises(Refusal):
            read_decision(tmp_path / "d")

"""The numbers: against sklearn, brute force, and simulations in which the truth is known."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score, roc_curve

from adapt.errors import Refusal
from adapt.evaluation.jackknife import Interval, leave_out, paired, share_interval
from adapt.evaluation.metrics import Cell, compare, compare_means, controls, evaluate, outcome_of, weakest
from adapt.evaluation.replicates import METRICS, WITHIN, WITHOUT_INTERVAL, measure, measure_without, replicate
from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import pick_threshold

NAN = float("nan")


def logistic(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


def table(blocks, view="none", **common) -> Scores:
    """One row a logit, row i of group i. A block: (generator, logits) or (generator, logits, columns)."""
    columns = {}
    for generator, logits, *rest in blocks:
        extra = {"set": "s", "edit": "", "split": "test", "seen": "train", "view": view, "prefix": ""}
        extra |= common | (rest[0] if rest else {})
        prefix = extra.pop("prefix")
        for i, logit in enumerate(logits):
            name = f"{extra['set']}/{extra['split']}/{prefix}{i}"
            row = {
                "path": f"{generator}/{extra['edit']}/{name}",
                "group": name,
                "generator": generator,
                **extra,
            }
            row |= {"logit": logit, "p_fake": logistic(logit), "status": "ok"}
            if np.isnan(logit):
                row["status"] = "unreadable: broken"
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
    return Scores(columns)


def join(*tables: Scores) -> Scores:
    return Scores({name: np.concatenate([t[name] for t in tables]) for name in tables[0].columns})


def find(cells, generator, metric, view="none", set_="s"):
    found = [c for c in cells if (c.set, c.view, c.generator, c.metric) == (set_, view, generator, metric)]
    assert len(found) == 1, (generator, metric, len(found))
    return found[0]


@pytest.fixture
def rng():
    return np.random.default_rng(7)


# -- one set of rows under many weightings --


@pytest.mark.parametrize("levels", [0, 3, 12])  # 0: no ties; 3: hardly anything but ties
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("prevalence", [0.5, 0.03])
def test_every_metric_equals_sklearn_with_weights(levels, seed, prevalence):
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=80) if levels == 0 else rng.integers(-levels, levels + 1, size=80).astype(float)
    fake, threshold = rng.random(80) < 0.4, 0.3
    weights = np.concatenate([np.ones((1, 80), int), rng.integers(0, 4, size=(20, 80))])
    found = measure(logit, logistic(logit), fake, weights, threshold, prevalence)
    assert set(found) == set(METRICS)
    for row, w in enumerate(weights):
        fpr, tpr, _ = roc_curve(fake, logit, sample_weight=w, drop_intermediate=False)
        expected = {
            "auc": roc_auc_score(fake, logit, sample_weight=w),
            "ap": average_precision_score(fake, logit, sample_weight=w * at_prevalence(fake, w, prevalence)),
            "balanced_accuracy": balanced_accuracy_score(fake, logit >= threshold, sample_weight=w),
            "balanced_accuracy_at_0.5": balanced_accuracy_score(fake, logistic(logit) >= 0.5, sample_weight=w),
            "balanced_accuracy_oracle": max((1 + tpr - fpr) / 2),
            "tpr_at_fpr_1": max(tpr[fpr <= 0.01 + 1e-12]),
            "tpr_at_fpr_5": max(tpr[fpr <= 0.05 + 1e-12]),
            "recall": np.average(logit[fake] >= threshold, weights=w[fake]),
            "recall_at_0.5": np.average(logit[fake] >= 0, weights=w[fake]),
            "false_alarm": np.average(logit[~fake] >= threshold, weights=w[~fake]),
            "false_alarm_at_0.5": np.average(logit[~fake] >= 0, weights=w[~fake]),
        }
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=1e-12), name


def at_prevalence(fake, w, prevalence):
    """(n,) weights under which a share `prevalence` is fake."""
    return np.where(fake, prevalence / w[fake].sum(), (1 - prevalence) / w[~fake].sum())


def test_average_precision_does_not_follow_the_ratio_of_the_rows(rng):
    """Twice the photographs are twice the same photographs."""
    logit, fake = rng.normal(size=60) + (np.arange(60) < 20), np.arange(60) < 20
    once = np.ones((1, 60), int)
    twice = np.where(fake, 1, 2)[None]
    one, two = (measure(logit, logistic(logit), fake, w, 0.0)["ap"][0] for w in (once, twice))
    assert one == pytest.approx(two, abs=1e-12)
    own = [average_precision_score(fake, logit, sample_weight=w[0]) for w in (once, twice)]
    assert own[0] > own[1] + 0.05  # the usual number does follow it
    low = measure(logit, logistic(logit), fake, once, 0.0, prevalence=1 / 3)["ap"][0]
    assert low == pytest.approx(own[0], abs=1e-12) and low < one


def test_auc_counts_pairs(rng):
    logit = rng.integers(0, 6, size=20).astype(float)
    fake = np.arange(20) % 3 == 0
    pairs = [(f > r) + 0.5 * (f == r) for f, r in itertools.product(logit[fake], logit[~fake])]
    found = measure(logit, logistic(logit), fake, np.ones((1, 20), int), 0.0)
    assert found["auc"][0] == pytest.approx(np.mean(pairs), abs=1e-12)


def test_ece_equals_a_loop_over_bins_with_both_classes_at_half_the_weight(rng):
    p = np.concatenate([rng.random(50), [0.0, 1.0, 1 / 15, 0.2]])  # an edge is of the bin above
    fake = rng.random(54) < 0.2
    weights = rng.integers(0, 3, size=(4, 54))
    found = measure(np.zeros(54), p, fake, weights, 0.0)["ece"]
    for row, w in enumerate(weights):
        share = np.where(fake, w / w[fake].sum(), w / w[~fake].sum()) / 2
        ece = 0.0
        for k in range(15):
            inside = (p * 15 >= k) & ((p * 15 < k + 1) | (k == 14))
            total = share[inside].sum()
            if total > 0:
                confidence = (share * p)[inside].sum() / total
                ece += total * abs(confidence - (share * fake)[inside].sum() / total)
        assert found[row] == pytest.approx(ece, abs=1e-12)
    calibrated = measure(np.zeros(100), np.full(100, 0.5), np.arange(100) < 20, np.ones((1, 100), int), 0.0)
    assert calibrated["ece"][0] == pytest.approx(0, abs=1e-12)


def test_tpr_at_a_false_alarm_rate_allows_exactly_that_rate():
    real, fake = np.arange(100.0), np.array([98.5, 99.5, 0.5])
    logit, labels = np.concatenate([real, fake]), np.arange(103) >= 100
    found = measure(logit, logistic(logit), labels, np.ones((1, 103), int), 0.0)
    assert found["tpr_at_fpr_1"][0] == 2 / 3  # one real of a hundred above, not two
    assert found["tpr_at_fpr_5"][0] == 2 / 3


def test_one_class_gives_nan_for_what_needs_two(rng):
    logit = rng.normal(size=10)
    two = set(METRICS) - {"recall", "recall_at_0.5", "false_alarm", "false_alarm_at_0.5"}
    for fake, defined in ((np.ones(10, bool), "recall"), (np.zeros(10, bool), "false_alarm")):
        found = measure(logit, logistic(logit), fake, np.ones((1, 10), int), 0.0)
        assert all(np.isnan(found[name][0]) for name in two)
        assert found[defined][0] == np.mean(logit >= 0)
        assert sum(~np.isnan(found[name][0]) for name in METRICS) == 2
    found = measure(logit, logistic(logit), logit > 0, np.ones((1, 10), int), NAN)
    assert np.isnan(found["balanced_accuracy"][0]) and not np.isnan(found["balanced_accuracy_at_0.5"][0])


# -- groups left out --


def test_resamples_equal_tables_without_the_groups(rng):
    """The same resamples, carried out: a table without the rows of the groups that are left out."""
    groups = np.array([f"g{i}" for i in rng.integers(0, 12, size=60)], dtype=object)
    sets = np.where(groups < "g5", "a", "b").astype(object)
    logit, fake = np.round(rng.normal(size=60), 1), rng.random(60) < 0.5
    counts, column = leave_out(sets, groups, resamples=50, seed=3)
    found = measure(logit, logistic(logit), fake, counts[:, column], 0.1)
    for row in range(len(counts)):
        copies = [i for i in range(60) if counts[row, column[i]]]
        again = measure(logit[copies], logistic(logit[copies]), fake[copies], np.ones((1, len(copies)), int), 0.1)
        for metric in METRICS:
            assert found[metric][row] == pytest.approx(again[metric][0], abs=1e-12, nan_ok=True), metric


@pytest.mark.parametrize("levels", [0, 2, 9])  # 0: no ties; 2: hardly anything but ties
@pytest.mark.parametrize("blocks", [0, 2, 7, 40])
def test_what_a_block_takes_away_gives_the_metrics_of_the_rows_without_it(levels, blocks):
    rng = np.random.default_rng([levels, blocks])
    logit = rng.normal(size=90) if levels == 0 else rng.integers(-levels, levels + 1, size=90).astype(float)
    fake, block = rng.random(90) < 0.6, rng.integers(0, max(1, blocks), size=90)
    fake[block == 0] = True  # a block of one class
    if blocks == 2:
        fake[block == 1] = False  # without either block a class is absent
    found = measure_without(logit, logistic(logit), fake, block, blocks, 0.3)
    assert set(found) == set(METRICS)
    for left in range(-1, blocks):
        rows = block != left
        again = measure(logit[rows], logistic(logit[rows]), fake[rows], np.ones((1, rows.sum()), int), 0.3)
        for metric, values in found.items():
            if metric in WITHOUT_INTERVAL:
                assert len(values) == 1
            if left == -1 or metric not in WITHOUT_INTERVAL:
                assert values[1 + left] == pytest.approx(again[metric][0], abs=1e-12, nan_ok=True), metric


def test_groups_give_wider_intervals_than_images_when_fakes_are_correlated(rng):
    n = 50
    base = 2 * rng.normal(size=n)
    fakes = [(f"x{i}", base + 1 + 0.1 * rng.normal(size=n)) for i in range(4)]
    columns = table([("real", rng.normal(size=n)), *fakes]).columns
    columns = columns | {"generator": np.where(columns["generator"] == "real", "real", "x")}  # one with 4 images each
    by_group = find(evaluate(Scores(columns), 500), "x", "auc")
    by_image = find(evaluate(Scores(columns | {"group": columns["path"]}), 500), "x", "auc")
    assert by_group.value == by_image.value
    assert by_group.high - by_group.low > 1.3 * (by_image.high - by_image.low)


# -- the threshold --


def val(blocks, **common):
    return table([(g, x, *(rest or [{}])) for g, x, *rest in blocks], split="val", **common)


def test_threshold_is_the_best_cut_of_validation_by_brute_force(rng):
    reals, a, b = rng.normal(size=31), rng.normal(1, 1, size=40), rng.normal(2, 1, size=7)
    scores = val([("real", reals), ("a", a), ("b", b)])
    found = pick_threshold(scores)

    def quality(cut):
        return ((reals < cut).mean() + ((a >= cut).mean() + (b >= cut).mean()) / 2) / 2

    every = np.unique(np.concatenate([reals, a, b]))
    cuts = np.concatenate([(every[1:] + every[:-1]) / 2, [every[0] - 1, every[-1] + 1]])
    assert quality(found) == pytest.approx(max(map(quality, cuts)), abs=1e-12)
    assert np.abs(cuts - found).min() < 1e-12


def test_threshold_pools_views_weighs_generators_and_leaves_processed_reals_out():
    blocks = [("real", [0.0, 0.0, 0.0]), ("a", [1.0] * 50), ("b", [-2.0])]
    assert pick_threshold(val(blocks)) in (0.5, -1.0)
    many = val([("real", [0.0, -1.0]), ("a", [4.0] * 9)])
    other = val([("real", [0.0, 6.0]), ("a", [8.0] * 9)], view="qf40")
    assert pick_threshold(join(many, other)) == 2.0  # 7 would lose one view's fakes, 2 loses one real of four
    edited = val([("real", [2.5] * 30, {"edit": "blur"})])  # as plain reals they would push it to 3.25
    assert pick_threshold(join(many, edited)) == pick_threshold(many) == 2.0


def test_threshold_takes_the_middle_of_the_widest_best_gap():
    # cutting at 1.5 (one real lost) and at 6 (one fake lost) are equally good; the second gap is wider
    scores = val([("real", [0.0, 1.0, 2.5, 3.0]), ("a", [2.0, 9.0, 10.0, 2.75])])
    assert pick_threshold(scores) == 6.0
    close = val([("real", [1.0, np.nextafter(1.0, 2)]), ("a", [np.nextafter(1.0, 2), 1.0 + 4e-16])])
    cut = pick_threshold(close)
    assert (close["logit"] >= cut).any() and not (close["logit"] >= cut).all()


def test_threshold_without_two_classes_or_any_skill():
    assert np.isnan(pick_threshold(val([("real", [0.0, 1.0])])))
    assert np.isnan(pick_threshold(table([("real", [0.0]), ("a", [1.0])])))
    backwards = val([("real", [3.0, 4.0]), ("a", [1.0, 2.0])])
    assert not (backwards["logit"] >= pick_threshold(backwards)).any()


def test_test_rows_never_move_the_threshold(rng):
    tuned = val([("real", rng.normal(size=20)), ("a", rng.normal(1, 1, size=20))])
    cells = [
        evaluate(join(tuned, table([("real", x), ("a", x + shift)])), 0)
        for x, shift in ((rng.normal(size=9), 1.0), (50 + rng.normal(size=9), -3.0))
    ]
    found = [find(c, "pooled:val", "threshold", "all", "all").value for c in cells]
    assert found[0] == found[1] == pick_threshold(tuned)


# -- cells and aggregates --


@pytest.fixture
def world(rng):
    """Two sets, three views of meaning: seen a and b, unseen c in the other set, v met in validation only."""
    tables = []
    for view, shift in (("none", 0.0), ("qf40", -0.5)):
        first = {"view": view, "set": "s"}
        tables.append(table([("real", rng.normal(size=40)), ("a", rng.normal(2 + shift, 1, 40)),
                             ("b", rng.normal(1 + shift, 1, 40)), ("v", rng.normal(size=40), {"seen": "val"}),
                             ("real", rng.normal(1, 1, 40), {"edit": "blur"}),
                             ("real", rng.normal(0, 1, 40), {"edit": "webp"})], **first))  # fmt: skip
        tables.append(table([("real", rng.normal(-3, 1, 25)), ("c", rng.normal(-2, 1, 30), {"seen": ""})],
                            view=view, set="ood"))  # fmt: skip
        tables.append(table([("real", rng.normal(size=30)), ("a", rng.normal(2, 1, 30))], view=view, split="val"))
    return join(*tables)


def test_each_generator_is_scored_against_the_unedited_reals_of_its_own_set_and_view(world):
    cells = evaluate(world, resamples=20)
    for view, (set_, generator) in itertools.product(("none", "qf40"), (("s", "a"), ("s", "v"), ("ood", "c"))):
        rows = (world["view"] == view) & (world["set"] == set_) & (world["split"] == "test") & (world["edit"] == "")
        rows &= np.isin(world["generator"], ["real", generator])
        cell = find(cells, generator, "auc", view, set_)
        assert cell.value == pytest.approx(roc_auc_score(world.fake[rows], world["logit"][rows]), abs=1e-12)
        assert (cell.n_real, cell.n_fake) == ((25, 30) if set_ == "ood" else (40, 40))
        assert cell.low < cell.value < cell.high


def test_means_and_worst_cover_the_sets_and_leave_selection_out(world):
    cells = evaluate(world, resamples=20)
    for metric in METRICS:
        a, b, v, c = (
            find(cells, g, metric, set_=s).value for g, s in (("a", "s"), ("b", "s"), ("v", "s"), ("c", "ood"))
        )
        means = {"seen": [a, b], "unseen": [c], "all": [a, b, c], "selection": [v]}
        for name, values in means.items():
            assert find(cells, f"mean:{name}", metric, set_="all").value == pytest.approx(np.mean(values), abs=1e-12)
        worst = max if metric in ("ece", "false_alarm", "false_alarm_at_0.5") else min
        assert find(cells, "worst:all", metric, set_="all").value == worst(a, b, c)
    mean = find(cells, "mean:all", "auc", set_="all")
    assert (mean.n_real, mean.n_fake) == (65, 110)  # each set's reals once


def test_intervals_of_a_mean_come_from_the_same_resamples(world):
    """The mean of a generator and its copy is that generator, interval included."""
    one = world.select((world["generator"] != "b") & (world["set"] == "s"))
    twin = one.select(one["generator"] == "a").columns
    paths = np.array([f"{path} (copy)" for path in twin["path"]], dtype=object)
    twin = Scores(twin | {"generator": np.full(len(paths), "a2", dtype=object), "path": paths})
    alone = find(evaluate(one, 200), "a", "auc")
    mean = find(evaluate(join(one, twin), 200), "mean:seen", "auc", set_="all")
    assert (mean.value, mean.low, mean.high) == (alone.value, alone.low, alone.high)


def test_false_alarms_of_reals_and_processed_reals(world):
    cells = evaluate(world, resamples=20)
    threshold = pick_threshold(world)
    test = world.select((world["split"] == "test") & ~world.fake & (world["view"] == "none"))
    for label, rows in {
        "real": test["edit"] == "",
        "edit:blur": test["edit"] == "blur",
        "edit:all": test["edit"] != "",
    }.items():
        cell = find(cells, label, "false_alarm", set_="all")
        assert cell.value == np.mean(test["logit"][rows] >= threshold)
        assert (cell.n_real, cell.n_fake) == (rows.sum(), 0)
        assert find(cells, label, "false_alarm_at_0.5", set_="all").value == np.mean(test["logit"][rows] >= 0)
    assert find(cells, "real", "false_alarm", set_="ood").n_real == 25


def test_pooled_fakes(world):
    rows = (world["view"] == "none") & (world["split"] == "test") & (world["edit"] == "") & (world["generator"] != "v")
    cell = find(evaluate(world, 0), "pooled:all", "ap", set_="all")
    fake = world.fake[rows]
    even = at_prevalence(fake, np.ones(len(fake)), 0.5)
    expected = average_precision_score(fake, world["logit"][rows], sample_weight=even)
    assert cell.value == pytest.approx(expected, abs=1e-12)
    assert np.isnan(cell.low) and np.isnan(cell.high)  # no resamples, no interval


def test_row_order_does_not_matter(world, rng):
    a = evaluate(world, 30)
    b = evaluate(world.select(rng.permutation(len(world))), 30)
    by_key = {(c.set, c.view, c.generator, c.metric): c for c in b}
    assert len(a) == len(b)
    for cell in a:
        other = by_key[cell.set, cell.view, cell.generator, cell.metric]
        for name in ("value", "low", "high", "n_real", "n_fake", "skipped"):
            assert getattr(cell, name) == pytest.approx(getattr(other, name), abs=1e-12, nan_ok=True)


def test_a_set_without_reals_is_not_applicable_and_spoils_nothing(world):
    whole = evaluate(world, 30)
    lonely = world.select((world["set"] != "ood") | world.fake)
    cells = evaluate(lonely, 30)
    cell = find(cells, "c", "auc", set_="ood")
    assert np.isnan(cell.value) and (cell.n_real, cell.n_fake, cell.skipped) == (0, 30, 0)
    assert find(cells, "c", "recall", set_="ood").value == find(whole, "c", "recall", set_="ood").value
    assert np.isnan(find(cells, "mean:unseen", "auc", set_="all").value)
    assert find(cells, "mean:all", "auc", set_="all").value == find(cells, "mean:seen", "auc", set_="all").value
    assert find(cells, "mean:seen", "auc", set_="all") == find(whole, "mean:seen", "auc", set_="all")
    assert find(cells, "pooled:all", "auc", set_="all").n_fake == 80


def test_only_reals_and_only_fakes_do_not_crash(rng):
    for generator in ("real", "a"):
        cells = evaluate(table([(generator, rng.normal(size=5))]), 10)
        assert np.isnan(find(cells, "mean:all", "auc", set_="all").value)
        assert np.isnan(find(cells, "pooled:val", "threshold", "all", "all").value)


def test_a_class_in_one_group_alone_has_no_interval(rng):
    reals = ("real", rng.normal(size=30))
    one = table([reals, ("a", [1.0, 0.25], {"prefix": "f"})])
    one = Scores(one.columns | {"group": np.where(one["generator"] == "a", "only", one["group"])})
    cell = find(evaluate(one, 400), "a", "auc")
    assert cell.skipped == 1 and not np.isnan(cell.value) and np.isnan([cell.low, cell.high]).all()
    few, enough = (table([reals, ("a", rng.normal(1, 1, n), {"prefix": "f"})]) for n in (9, 10))
    assert np.isnan(find(evaluate(few, 400), "a", "auc").low)  # fewer than ten groups
    cell = find(evaluate(enough, 400), "a", "auc")
    assert cell.skipped == 0 and 0 <= cell.low < cell.value < cell.high <= 1


def test_unreadable_rows_are_counted_not_scored(rng):
    real, fake = rng.normal(size=20), rng.normal(1, 1, size=20)
    broken = fake.copy()
    broken[[3, 5]] = NAN
    lost = [("b", [NAN, NAN])]
    tuned = val([("real", [0.0, NAN]), ("a", [1.0, 2.0])])
    cells = evaluate(join(tuned, table([("real", real), ("a", broken), *lost])), 20)
    assert find(cells, "a", "unreadable").value == 2
    assert find(cells, "b", "unreadable").value == 2
    assert find(cells, "pooled:val", "unreadable", "all", "all").value == 1
    kept = ~np.isnan(broken)
    cell = find(cells, "a", "auc")
    expected = roc_auc_score([0] * 20 + [1] * 18, np.concatenate([real, broken[kept]]))
    assert (cell.value, cell.n_fake) == (pytest.approx(expected, abs=1e-12), 18)
    assert np.isnan(find(cells, "b", "auc").value)
    assert find(cells, "mean:seen", "auc", set_="all").value == cell.value


def test_a_given_threshold_replaces_the_picked_one(world):
    cells = evaluate(world, 0, threshold=-100.0)
    assert find(cells, "a", "recall").value == 1 and find(cells, "real", "false_alarm").value == 1
    assert find(cells, "a", "balanced_accuracy").value == 0.5
    given, picked = (find(c, "pooled:val", "threshold", "all", "all") for c in (cells, evaluate(world, 0)))
    assert (given.value, given.n_real, given.n_fake) == (-100, 0, 0)  # no row stands behind it
    assert picked.n_real and picked.n_fake


def test_refuses_no_test_rows_and_reserved_names():
    with pytest.raises(Refusal, match="test"):
        evaluate(val([("real", [0.0])]))
    with pytest.raises(Refusal, match="mean:x"):
        evaluate(table([("mean:x", [0.0])]))
    with pytest.raises(Refusal, match="'all'"):
        evaluate(table([("a", [0.0])], set="all"))
    with pytest.raises(Refusal, match="-1"):
        evaluate(table([("a", [0.0]), ("real", [0.0])]), resamples=-1)


# -- within groups --


@pytest.fixture
def grouped(rng):
    """Two sets that share names of groups; groups without a real, without fakes, with two reals; ties."""
    kinds = [("real", "", "train"), ("real", "", "train"), ("real", "blur", "train"), ("a", "", "train")]
    kinds += [("a", "", "train"), ("b", "", "train"), ("c", "", ""), ("d", "", ""), ("v", "", "val")]
    rows = []
    for view, set_, g in itertools.product(("none", "qf40"), ("s", "t"), range(14)):
        for k, (generator, edit, seen) in enumerate(kinds):
            if np.random.default_rng([g, k, set_ == "t"]).random() < 0.55 and (generator, set_) != ("v", "s"):
                path, logit = f"{set_}{g}-{k}", float(rng.integers(-2, 3) + (generator == "a"))
                status = "unreadable: x" if (view, g, k) in (("qf40", 3, 0), ("none", 5, 6)) else "ok"
                logit = logit if status == "ok" else NAN
                rows.append((path, f"g{g}", generator, edit, seen, set_, view, logit, status))
    names = ("path", "group", "generator", "edit", "seen", "set", "view", "logit", "status")
    return Scores({name: [row[i] for row in rows] for i, name in enumerate(names)})


def by_loops(scores, view, set_, met):
    """{(set, group): the three numbers}, for the groups that have a plain real and a fake met in one of `met`."""
    out = {}
    rows = [i for i in range(len(scores)) if scores["view"][i] == view and scores["status"][i] == "ok"]
    for key in sorted({(scores["set"][i], scores["group"][i]) for i in rows}):
        own = [i for i in rows if (scores["set"][i], scores["group"][i]) == key and set_ in (key[0], "all")]
        reals = [scores["logit"][i] for i in own if scores["generator"][i] == "real" and scores["edit"][i] == ""]
        fakes = [scores["logit"][i] for i in own if scores["generator"][i] != "real" and scores["seen"][i] in met]
        if reals and fakes:
            first = [(1 / (1 + fakes.count(r))) if r <= min(fakes) else 0 for r in reals]
            pairs = [1.0 if r < f else 0.5 if r == f else 0.0 for r in reals for f in fakes]
            out[key] = (np.mean(first), 1 / (1 + len(fakes)), np.mean(pairs), len(reals), len(fakes))
    return out


def test_group_metrics_equal_loops_under_every_resample(grouped):
    counts, column = leave_out(grouped["set"], grouped["group"], 40, 5)
    at = {(s, g): c for s, g, c in zip(grouped["set"], grouped["group"], column, strict=True)}
    replicates = replicate(grouped, 0.0, 40, 5)
    labels = {"within:all": ("train", ""), "within:seen": ("train",), "within:unseen": ("",)}
    seen = set()
    for view, set_, (label, met) in itertools.product(("none", "qf40"), ("s", "t", "all"), labels.items()):
        expected, found = by_loops(grouped, view, set_, met), replicates[set_, view, label]
        assert (found.n_real, found.n_fake) == tuple(sum(row[i] for row in expected.values()) for i in (3, 4))
        seen |= {row[3] for row in expected.values()}
        for i, metric in enumerate(WITHIN):
            for resample in range(len(counts)):
                weights = [counts[resample, at[key]] for key in expected]
                value = np.average([row[i] for row in expected.values()], weights=weights)
                assert found.values[metric][resample] == pytest.approx(value, abs=1e-12)
    assert seen == {1, 2} and len(expected) < 28  # several reals, and groups that lack one of the classes
    cell = find(evaluate(grouped, 40, 5), "within:unseen", "real_first", "qf40", "t")
    found = replicates["t", "qf40", "within:unseen"]
    values = found.values["real_first"]
    assert found.groups == len(by_loops(grouped, "qf40", "t", ("",)))
    expected = (values[0], *share_interval(values, found.groups))
    assert (cell.value, cell.low, cell.high) == pytest.approx(expected, nan_ok=True)


def test_group_metrics_by_hand_with_ties():
    blocks = [("real", [0.0, 0.0, 0.0, 9.0]), ("a", [1.0, 0.0, -1.0]), ("b", [2.0, 0.0, 5.0]), ("c", [1.0, 1.0, 0.0])]
    cells = evaluate(table(blocks), 0)
    assert find(cells, "within:all", "real_first").value == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert find(cells, "within:all", "pair_ranking").value == pytest.approx((3 + 2 + 1.5) / 9)
    assert find(cells, "within:all", "real_first_chance").value == 0.25
    assert find(cells, "within:all", "real_first").n_real == 3  # the fourth has no fake


def test_a_content_offset_of_a_group_moves_the_auc_and_not_the_group_metrics(rng):
    n = 60
    scores = table(
        [("real", rng.normal(size=n)), ("a", rng.normal(1, 1, n)), ("b", rng.normal(1, 1, n), {"seen": ""})]
    )
    content = {name: 5 * rng.normal() for name in set(scores["group"])}
    moved = changed(scores, scores["logit"] + [content[name] for name in scores["group"]])
    before, after = evaluate(scores, 50), evaluate(moved, 50)
    for label, metric in itertools.product(("within:all", "within:seen", "within:unseen"), WITHIN):
        assert find(before, label, metric) == find(after, label, metric)
        assert find(compare(scores, moved, 20), label, metric).value == 0
    assert find(before, "a", "auc").value > find(after, "a", "auc").value + 0.1


def test_one_score_for_all_is_at_chance_exactly_and_a_coin_nearly(grouped, rng):
    flat = evaluate(changed(grouped, np.where(grouped.ok, 0.0, NAN)), 30)
    for label in ("within:all", "within:seen", "within:unseen"):
        one, chance = (find(flat, label, metric, "none", "all") for metric in WITHIN[:2])
        assert (one.value, one.low, one.high) == (chance.value, chance.low, chance.high)
        assert find(flat, label, "pair_ranking", "none", "all").value == 0.5
    coin = evaluate(table([(name, rng.normal(size=4000)) for name in ("real", "a", "b", "c")]), 0)
    assert find(coin, "within:all", "real_first").value == pytest.approx(0.25, abs=0.03)
    assert find(coin, "within:all", "pair_ranking").value == pytest.approx(0.5, abs=0.03)


def test_without_pairs_there_are_no_group_metrics(rng):
    apart = table([("real", rng.normal(size=9), {"prefix": "r"}), ("a", rng.normal(size=9), {"prefix": "f"})])
    edited = table([("real", rng.normal(size=9), {"edit": "blur"}), ("a", rng.normal(size=9))])
    for scores in (apart, edited):
        assert not [cell for cell in evaluate(scores, 5) if cell.generator.startswith("within:")]
    mixed = join(apart, table([("real", [0.0, NAN]), ("b", [1.0, 1.0]), ("v", [1.0, 1.0], {"seen": "val"})]))
    cell = find(evaluate(mixed, 200), "within:all", "real_first")
    assert (cell.value, cell.n_real, cell.n_fake) == (1, 1, 1)  # one real is unreadable, v served selection
    assert cell.skipped == 1 and np.isnan(cell.low)  # without the one group
    assert not [c for c in evaluate(mixed, 5) if c.generator == "within:unseen"]
    with pytest.raises(Refusal, match="within:x"):
        evaluate(table([("within:x", [0.0])]))


# -- weakest cells --


def test_weakest_cells_come_by_the_upper_end_of_their_intervals():
    def cell(generator, value, low, high, view="none", metric="auc", seen="train", set_="s"):
        return Cell(set_, view, generator, metric, value, low, high, 9, 9, 0, seen)

    rare, weak, weaker = (
        cell("rare", 0.5, 0.1, 0.9),
        cell("a", 0.65, 0.6, 0.7),
        cell("b", 0.66, 0.6, 0.69, "qf40", seen=""),
    )
    fine, twin = cell("a", 0.9, 0.8, 0.95, "qf40"), cell("a", 0.65, 0.6, 0.7, set_="r")
    picked = cell("v", 0.3, 0.2, 0.4, seen="val")
    others = [
        cell("x", NAN, NAN, NAN),
        cell("mean:all", 0.1, 0.1, 0.1, set_="all"),
        cell("a", 0.2, 0.1, 0.3, metric="ap"),
    ]
    cells = [fine, *others, rare, weak, picked, twin, weaker]
    expected = [weaker, twin, weak, rare, fine]
    assert weakest(cells) == weakest(cells[::-1]) == expected
    assert weakest(cells, 2) == expected[:2]
    assert weakest(cells, generators=("a", "v")) == [picked, twin, weak, fine]
    assert weakest(cells, generators=()) == []


def test_weakest_cells_of_an_evaluation_are_its_auc_cells(world):
    cells = evaluate(world, 20)
    found = weakest(cells, 99)
    assert {(c.set, c.generator, c.view) for c in found} == set(
        itertools.chain(*([("s", "a", v), ("s", "b", v), ("ood", "c", v)] for v in ("none", "qf40")))
    )
    assert [c.high for c in found] == sorted(c.high for c in found)
    assert all(find(cells, c.generator, "auc", c.view, c.set) is c for c in found)
    plain = weakest(evaluate(world, 0), 99)  # no intervals: by value
    assert [c.value for c in plain] == pytest.approx(sorted(c.value for c in found), abs=1e-12)


# -- two detectors --


def changed(scores: Scores, logit: np.ndarray) -> Scores:
    return Scores(scores.columns | {"logit": logit, "p_fake": logistic(logit)})


def test_a_table_compared_with_itself_differs_by_exactly_nothing(world, rng):
    for d in compare(world, world.select(rng.permutation(len(world))), 50):
        if not np.isnan(d.a):
            none = d.metric in WITHOUT_INTERVAL or d.generator == "worst:all"
            assert d.value == 0 and np.isnan(d.p) == none
            assert none or (d.p == 1 and -0.05 < d.low == -d.high < 0)


def test_means_over_pairs_are_means_of_values_under_the_same_resamples(world, rng):
    """In whatever order the rows of the second pair stand, each against its own threshold."""
    noisy = [changed(world, world["logit"] + scale * rng.normal(size=len(world))) for scale in (0.5, 1.0, 2.0)]
    pairs = [(world, noisy[0]), (noisy[1].select(rng.permutation(len(world))), noisy[2])]
    for label, metric in (("mean:all", "auc"), ("mean:all", "balanced_accuracy"), ("real", "false_alarm")):
        mean = find(compare_means(pairs, 200), label, metric, set_="all")
        each = [find(compare(*pair, 0), label, metric, set_="all") for pair in pairs]
        assert mean.a == pytest.approx(np.mean([d.a for d in each]))
        assert mean.value == pytest.approx(np.mean([d.value for d in each]))
        assert mean.low < mean.value < mean.high
    # a pair beside itself reversed cancels, and twice the same changes nothing
    there_and_back = compare_means([(world, noisy[2]), (noisy[2].select(rng.permutation(len(world))), world)], 50)
    d = find(there_and_back, "mean:all", "auc", set_="all")
    assert d.value == pytest.approx(0, abs=1e-12) and d.low < 0 < d.high and d.p > 0.9
    once, twice = (find(compare_means([pairs[0]] * n, 50), "mean:all", "auc", set_="all") for n in (1, 2))
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high))


def test_a_better_detector_is_found_and_the_sign_is_a_minus_b(world, rng):
    better = changed(world, world["logit"] + 2.0 * world.fake)
    d = find(compare(better, world, 200), "mean:all", "auc", set_="all")
    assert d.low > 0 and d.p < 0.02 and d.value == pytest.approx(d.a - d.b)
    d = find(compare(world, better, 200), "mean:all", "auc", set_="all")
    assert d.high < 0 and d.p < 0.02
    values = {m: find(evaluate(world, 0), "mean:all", m, set_="all").value for m in METRICS}
    assert all(
        find(compare(world, better, 0), "mean:all", m, set_="all").a == pytest.approx(values[m]) for m in METRICS
    )


def test_p_and_interval_come_from_the_paired_differences(world, rng):
    other = changed(world, world["logit"] + 0.5 * rng.normal(size=len(world)))
    test = [table.select(table["split"] == "test") for table in (world, other)]
    a, b = (replicate(rows, 0.0, 99, 4)["s", "none", "b"].values["auc"] for rows in test)
    d = find(compare(world, other, 99, seed=4), "b", "auc")
    assert (d.a, d.b, d.value) == (a[0], pytest.approx(b[0]), a[0] - b[0])
    groups = len({g for g, x in zip(test[0]["group"], test[0]["generator"], strict=True) if x == "b"})
    assert (d.low, d.high, d.p) == pytest.approx(paired(a - b, groups))


def test_p_values_are_level_when_two_detectors_are_equally_good():
    rng, small = np.random.default_rng(5), 0
    for seed in range(60):
        base = table([("real", rng.normal(size=40)), ("a", rng.normal(1, 1, size=40))])
        a, b = (changed(base, base["logit"] + rng.normal(size=80)) for _ in range(2))
        small += find(compare(a, b, 100, seed), "a", "auc").p < 0.1
    assert 1 <= small <= 14  # about 6 of 60


def test_pairing_narrows_the_interval_when_the_noise_is_shared(world, rng):
    other = changed(world, world["logit"] + 0.1 * rng.normal(size=len(world)))
    d = find(compare(world, other, 300), "a", "auc")
    a, b = find(evaluate(world, 300), "a", "auc"), find(evaluate(other, 300, seed=1), "a", "auc")
    unpaired = np.hypot(a.high - a.low, b.high - b.low)
    assert d.high - d.low < 0.5 * unpaired


def test_comparison_refuses_other_rows_and_counts_them(world):
    one_less = world.select(np.arange(len(world)) != int(np.flatnonzero(world["split"] == "test")[4]))
    with pytest.raises(Refusal, match=r"differ in 1 test rows.*real//s/test/4"):
        compare(world, one_less)
    one_view = world.select((world["view"] == "none") | (world["split"] == "val"))
    with pytest.raises(Refusal, match="differ in 295 test rows"):  # the 240 + 55 of the other view
        compare(world, one_view)
    renamed = np.where(world["generator"] == "a", "z", world["generator"])
    with pytest.raises(Refusal, match="differ in 160 test rows"):  # 80 of "a" are missing and 80 of "z" are new
        compare(world, Scores(world.columns | {"generator": renamed}))


def test_rows_unreadable_in_one_table_are_left_out_of_both(world):
    row = int(np.flatnonzero((world["generator"] == "a") & (world["split"] == "test"))[0])
    logit, p, status = world["logit"].copy(), world["p_fake"].copy(), world["status"].copy()
    logit[row] = p[row] = NAN
    status[row] = "unreadable: broken"
    broken = Scores(world.columns | {"logit": logit, "p_fake": p, "status": status})
    d = find(compare(world, broken, 30), "a", "auc")
    assert (d.value, d.n_fake) == (0, 39) and d.low < 0 < d.high < 0.05 and d.p == 1
    d = find(compare(broken, world, 30), "a", "auc")
    assert (d.value, d.n_fake) == (0, 39) and d.low < 0 < d.high < 0.05 and d.p == 1


# -- controls --


def test_controls_pass_at_chance_and_fail_above_it(world, rng):
    chance = changed(world, rng.normal(size=len(world)))
    first_view = world.select(world["view"] == "none")
    found = {
        (c.name.split(":")[0], c.view): c for c in controls(world, permuted=chance, metadata=first_view, resamples=100)
    }
    for view in ("none", "qf40"):
        control = found["labels permuted", view]
        inside = control.low >= 0.4 and control.high <= 0.6
        assert control.outcome == ("passed" if inside else "cannot tell")
    assert found["metadata only", "none"].outcome == "FAILED"
    assert ("metadata only", "qf40") not in found  # it was not scored under that view
    assert found["processed reals, blur", "none"].outcome == "FAILED"
    backwards = changed(world, -world["logit"])
    assert {c.outcome for c in controls(world, permuted=backwards, resamples=100) if "permuted" in c.name} == {
        "FAILED"
    }
    with pytest.raises(Refusal, match="differ"):
        controls(world, permuted=chance.select(chance["generator"] != "a"), resamples=10)


def test_controls_at_chance_pass_with_enough_images(rng):
    reals = [("real", rng.normal(size=400)), ("real", rng.normal(size=400), {"edit": "webp", "prefix": "e"})]
    chance = table([*reals, ("a", rng.normal(size=400))])
    found = {c.name.split(":")[0]: c.outcome for c in controls(chance, permuted=chance, threshold=2.0)}
    assert found["labels permuted"] == found["processed reals, webp"] == "passed"


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.45, 0.55, "passed"), (0.524, 0.636, "cannot tell"), (0.61, 0.7, "FAILED"), (0.2, 0.39, "FAILED"),
     (0.3, 0.7, "cannot tell"), (NAN, NAN, "n/a")],
)  # fmt: skip
def test_what_an_interval_tells_of_a_control(low, high, outcome):
    assert outcome_of(Interval(low, high), 0.4, 0.6) == outcome


def test_a_control_above_chance_does_not_pass_for_want_of_images():
    """A true AUC of .70 and 12 groups: an interval that touches chance proves nothing."""
    told = []
    for run in range(60):
        rng = np.random.default_rng(run)
        bad = table([("real", rng.normal(size=12)), ("a", rng.normal(0.742, 1, 12))])
        told += [c.outcome for c in controls(bad, metadata=bad, resamples=100, threshold=0.0)
                 if c.name.startswith("metadata")]  # fmt: skip
    assert len(told) == 60 and told.count("passed") <= 1


def test_a_detector_is_compared_with_metadata_on_the_same_groups(rng):
    """As good as metadata: said so. Much better: passed. Worse: FAILED. The difference is that of `compare`."""
    blocks = [("real", 0.0, "train"), ("a", 1.0, "train"), ("b", 1.0, "")]
    given = [(name, rng.normal(up, 1, 60), {"seen": seen}) for name, up, seen in blocks]
    metadata = table(given)
    outcomes = {}
    for name, up in (("alike", 1.0), ("better", 4.0), ("worse", -1.0)):
        own = table([(g, rng.normal(up * (g != "real"), 1, 60), more) for g, _, more in given])
        found = {c.name: c for c in controls(own, metadata=metadata, resamples=100, threshold=0.0)}
        for kind, generator in (("seen", "a"), ("unseen", "b")):
            control = found[f"above metadata only: mean:{kind} AUC"]
            outcomes.setdefault(name, []).append(control.outcome)
            d = find(compare(own, metadata, 100, thresholds=(0.0, 0.0)), generator, "auc")
            assert (control.value, control.low, control.high) == pytest.approx((d.value, d.low, d.high), abs=1e-12)
    assert outcomes == {"alike": ["cannot tell"] * 2, "better": ["passed"] * 2, "worse": ["FAILED"] * 2}
    seen_only = metadata.select(metadata["generator"] != "b")
    names = {c.name for c in controls(seen_only, metadata=seen_only, resamples=100, threshold=0.0)}
    assert "above metadata only: mean:unseen AUC" not in names  # no such generators, no such control


def test_a_detector_as_good_as_metadata_hardly_ever_passes_as_better():
    told = []
    for run in range(60):
        rng = np.random.default_rng(run)
        own, metadata = (table([("real", rng.normal(size=30)), ("a", rng.normal(0.8, 1, 30))]) for _ in range(2))
        told += [
            c.outcome for c in controls(own, metadata=metadata, resamples=100, threshold=0.0) if "above" in c.name
        ]
    assert len(told) == 60 and told.count("passed") <= 5


def test_control_without_a_threshold_or_reals_is_not_applicable(world):
    test = world.select(world["split"] == "test")
    assert {c.outcome for c in controls(test, resamples=10)} == {"n/a"}
    edited = world.select((world["edit"] != "") | world.fake | (world["split"] == "val"))
    assert {c.outcome for c in controls(edited, resamples=10)} == {"n/a"}


# -- what selects sees what is measured --


def test_selection_and_evaluation_compare_a_generator_with_the_same_reals() -> None:
    """Two sets that differ as a whole: against the reals of the other set a useless score looks excellent."""
    from adapt.training.report import validation_aucs, validation_score

    rng, blocks = np.random.default_rng(0), []
    for of_set, generator, count, level in (
        *(("A", "real", 60, 0), ("A", "gan", 60, 0)),
        *(("B", "real", 300, -4), ("B", "sd", 60, -4)),
    ):
        blocks += [(of_set, generator, level + rng.normal()) for _ in range(count)]
    columns = {"path": [str(i) for i in range(len(blocks))], "seen": ["train"] * len(blocks)}
    columns |= {name: [block[i] for block in blocks] for i, name in enumerate(("set", "generator", "logit"))}
    val = Scores(columns | {"split": ["val"] * len(blocks)})
    as_test = evaluate(Scores(columns | {"split": ["test"] * len(blocks)}), 0, threshold=0.0)
    selected = validation_aucs(val)
    assert set(selected) == {("A", "none", "gan"), ("B", "none", "sd")}
    for (of_set, view, generator), auc in selected.items():
        assert auc == pytest.approx(find(as_test, generator, "auc", view, of_set).value)
        assert 0.35 < auc < 0.65
    mean = find(as_test, "mean:all", "auc", set_="all").value
    assert validation_score(val) == pytest.approx(mean)


def test_alpha_and_beta_are_chosen_by_what_the_evaluator_sees(tmp_path) -> None:
    """Two sets that differ as a whole, most reals in one and most fakes in the other, and a prior that tells within.

    A cache that votes for the set adds noise within sets, and looks excellent where all reals meet all fakes.
    """
    import torch

    from adapt.data.manifest import Manifest
    from adapt.models.heads.tip_adapter import Rows, TipAdapter, tune
    from adapt.training.on_features import judge_of

    rng, rows, features, prior = np.random.default_rng(3), [], [], []
    for name, generator, count, level in (
        *(("A", "real", 60, 1.0), ("A", "gan", 15, 1.0)),
        *(("B", "real", 15, -1.0), ("B", "sd", 60, -1.0)),
    ):
        for i in range(count):
            fake = generator != "real"
            rows.append({"set": name, "generator": generator, "path": f"{name}{generator}{i}.png"})
            features.append([level, *rng.normal(size=2)])
            prior.append([0.0, (0.5 if fake else -0.5) + rng.normal()])  # a sound prior, the same in both sets
    columns = {name: np.array([row[name] for row in rows], dtype=object) for name in ("path", "set", "generator")}
    columns |= {"group": columns["path"], "split": np.full(len(rows), "val", dtype=object)}
    manifest = Manifest.of(columns, tmp_path)
    labels = manifest.fake.astype(np.int64)
    # the cache: reals of A and fakes of B, so that its votes say which set a row is of
    keys, of_keys = np.array([[1.0, 0, 0], [-1.0, 0, 0]], np.float32), [0, 1]
    x, p = np.array(features, np.float32), torch.tensor(prior, dtype=torch.float32)
    every, under = np.arange(len(rows)), np.full(len(rows), "none", dtype=object)
    found = {}
    for how, judge in (("pooled", None), ("ours", judge_of(manifest, every, under, labels))):
        adapter = TipAdapter(keys, of_keys, ["k0", "k1"])
        found[how] = tune(adapter, Rows(x, labels.tolist(), manifest["group"], p, judge))
    seen = {}
    for how, tuned in found.items():
        logits = TipAdapter(keys, of_keys, ["k0", "k1"], alpha=tuned.alpha, beta=tuned.beta)(x, p)
        table = {name: manifest[name] for name in ("path", "set", "generator", "group")}
        logit = (logits[:, 1] - logits[:, 0]).double().numpy()
        scores = Scores(table | {"seen": ["train"] * len(rows), "logit": logit})
        seen[how] = find(evaluate(scores, 0, threshold=0.0), "mean:all", "auc", set_="all").value
    assert found["pooled"].score > found["pooled"].prior_score + 0.05 and found["pooled"].alpha > 1
    assert found["ours"].score == pytest.approx(seen["ours"]) and seen["ours"] > seen["pooled"] + 0.01


def test_each_set_has_the_same_say_where_heads_name_families(tmp_path) -> None:
    """A head that is always right in the small set, and in the large one for photographs alone."""
    import torch

    from adapt.data.manifest import Manifest
    from adapt.training.on_features import judge_of, validation_judge

    names = ("real", "gan", "diffusion")
    blocks = [("A", name, 2) for name in names] + [("B", name, 50) for name in names]
    lines = [(of_set, name, f"{of_set}{name}{i}.png") for of_set, name, count in blocks for i in range(count)]
    of_set, generator, path = (list(column) for column in zip(*lines, strict=True))
    columns = {"set": of_set, "generator": generator, "path": path, "group": path, "split": ["val"] * len(path)}
    manifest, labels = Manifest.of(columns, tmp_path), np.array([names.index(name) for name in generator])

    class Features:
        def __init__(self) -> None:
            self.manifest = manifest

        def reasons(self, view: str) -> np.ndarray:
            return np.full(len(manifest), "", dtype=object)

        def take(self, rows: np.ndarray, view: object, layer: object = None) -> np.ndarray:
            called = np.where(manifest["set"][rows] == "A", labels[rows], 0)
            return np.eye(3, dtype=np.float32)[called]

    class Head:
        classes = names

        def class_logits(self, features: torch.Tensor) -> torch.Tensor:
            return 4 * features

        __call__ = class_logits

    found = validation_judge(Features(), ("none", "qf65"), np.array(generator, dtype=object))(Head())
    assert found == pytest.approx((1 + 1 / 3) / 2)  # all images together: (1 + 2 / 52 + 2 / 52) / 3
    every = np.arange(len(manifest))
    logits = torch.from_numpy(4 * Features().take(every, "none"))
    judge = judge_of(manifest, every, np.full(len(every), "none", dtype=object), labels)
    right, wrong = -np.log(np.exp(4) / (np.exp(4) + 2)), -np.log(1 / (np.exp(4) + 2))
    expected = (right + (right + 2 * wrong) / 3) / 2
    assert judge(torch.stack([logits, 0 * logits])) == pytest.approx([-expected, -np.log(3)], abs=1e-6)


def test_each_set_has_the_same_say_in_threshold_and_selection() -> None:
    from adapt.evaluation.thresholds import balanced_weights

    sets = ["A"] * 6 + ["B"] * 30
    generators = ["real", "real", "x", "x", "y", "y"] + ["real"] * 20 + ["z"] * 10
    rows = Scores({"path": [str(i) for i in range(36)], "set": sets, "generator": generators, "logit": np.zeros(36)})
    weight, of_set = balanced_weights(rows), np.array(sets)
    for fake in (False, True):
        for name in "AB":
            assert weight[(rows.fake == fake) & (of_set == name)].sum() == pytest.approx(0.5)
    assert weight[2:4].sum() == pytest.approx(0.25)

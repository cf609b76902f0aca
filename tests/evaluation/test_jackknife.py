"""What an interval promises: simulated coverage, and formulas that are known by hand."""

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp

from adapt.errors import Refusal
from adapt.evaluation.jackknife import (
    FEWEST,
    difference_interval,
    interval,
    leave_out,
    paired,
    sample_chance,
    sample_interval,
    share_interval,
    standard_error,
    surely_above,
    worst_interval,
)
from adapt.evaluation.replicates import measure

GENERATORS = 4


def names(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(n, "s", dtype=object), np.array([f"g{i}" for i in range(n)], dtype=object)


def without_each(values: np.ndarray) -> np.ndarray:
    """The mean of (..., n) values, then the means without each of them: (..., 1 + n)."""
    n = values.shape[-1]
    whole = values.mean(axis=-1, keepdims=True)
    return np.concatenate([whole, (n * whole - values) / (n - 1)], axis=-1)


# -- which groups are left out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "resamples", "blocks"), [(7, 200, 7), (500, 200, 200), (9, 4, 4), (1, 200, 0)])
def test_every_group_is_left_out_once(groups, resamples, blocks) -> None:
    counts, column = leave_out(*names(groups), resamples, seed=0)
    assert counts.shape == (1 + blocks, groups) and counts.dtype == np.uint8
    assert (counts[0] == 1).all() and set(column) == set(range(groups))
    if blocks:
        assert ((counts[1:] == 0).sum(axis=0) == 1).all()
        sizes = (counts[1:] == 0).sum(axis=1)
        assert sizes.max() - sizes.min() <= 1


def test_the_order_of_rows_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    sets = np.array(["a", "b"], dtype=object)[rng.integers(2, size=60)]
    groups = np.array([f"g{i}" for i in rng.integers(12, size=60)], dtype=object)
    counts, column = leave_out(sets, groups, 5, seed=3)
    order = rng.permutation(60)
    again, moved = leave_out(sets[order], groups[order], 5, seed=3)
    np.testing.assert_array_equal(counts[:, column][:, order], again[:, moved])
    assert (counts != leave_out(sets, groups, 5, seed=4)[0]).any()
    with pytest.raises(Refusal, match="-1 resamples"):
        leave_out(sets, groups, -1, 0)
    assert len(leave_out(sets, groups, 0, 0)[0]) == 1


# -- formulas --------------------------------------------------------------------------------------------------------


def test_of_a_mean_it_is_the_textbook_interval() -> None:
    values = np.random.default_rng(1).normal(3, 2, 25)
    drawn = without_each(values)
    assert standard_error(drawn) == pytest.approx(values.std(ddof=1) / 5, rel=1e-9)
    low, high = interval(drawn, 25)
    textbook = ttest_1samp(values, 0).confidence_interval()
    assert (low, high) == pytest.approx((textbook.low, textbook.high), rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.003, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("groups", [FEWEST, 40, 1000])
def test_a_share_lies_in_its_interval_and_this_between_0_and_1(value, groups) -> None:
    drawn = np.concatenate([[value], np.full(min(groups, 200), value)])
    low, high = share_interval(drawn, groups)
    assert 0 <= low <= value <= high <= 1
    assert 0 < high - low < (0.42 if groups == FEWEST else 0.12 if groups == 40 else 0.01)


def test_few_groups_have_no_interval() -> None:
    drawn = without_each(np.random.default_rng(0).random(9))
    assert np.isnan(share_interval(drawn, 9)).all() and np.isnan(interval(drawn, 9)).all()
    assert np.isnan(paired(drawn, 9)).all() and np.isnan(share_interval(np.array([0.5]), 50)).all()
    unknown = np.where(np.arange(31) == 4, np.nan, without_each(np.random.default_rng(0).random(30)))
    assert np.isnan(share_interval(unknown, 30)).all()


def test_more_groups_and_a_lower_level_are_narrower() -> None:
    values = np.random.default_rng(2).random(80)
    few, many = (share_interval(without_each(values[:n]), n) for n in (20, 80))
    assert many.high - many.low < few.high - few.low
    narrow = share_interval(without_each(values), 80, level=0.8)
    assert many.low < narrow.low and narrow.high < many.high


# -- simulated coverage ----------------------------------------------------------------------------------------------


def scenes(rng: np.random.Generator, n: int, shift: float, grid: float, matched: bool) -> np.ndarray:
    """Logits (n, 1 + generators) of a real image and fakes; `matched`: they share the content of their scene."""
    content = rng.normal(size=(n, 1)) * 0.7 if matched else 0.7 * rng.normal(size=(n, 1 + GENERATORS))
    logits = content + 0.51**0.5 * rng.normal(size=(n, 1 + GENERATORS))
    logits[:, 1:] += shift
    logits -= shift / 2
    return np.round(logits / grid) * grid if grid else logits


def measured(logits: np.ndarray, generator: int, counts: np.ndarray) -> dict[str, np.ndarray]:
    n = len(logits)
    both, fake = np.concatenate([logits[:, 0], logits[:, generator]]), np.repeat([False, True], n)
    return measure(both, np.full(2 * n, 0.5), fake, np.concatenate([counts, counts], axis=1), 0.0)


@pytest.mark.parametrize(
    ("auc", "groups", "grid", "matched"),
    [(0.75, 12, 0, True), (0.99, 12, 0, True), (0.95, 30, 0.5, True), (0.99, 60, 0, False), (0.95, 200, 0, True)],
)
def test_intervals_cover_what_they_say(auc, groups, grid, matched) -> None:
    shift = norm.ppf(auc) * 2**0.5
    large = scenes(np.random.default_rng(0), 200_000, shift, grid, matched)
    true = {name: value[0] for name, value in measured(large, 1, np.ones((1, len(large)), np.uint8)).items()}
    counts, _ = leave_out(*names(groups), 200, 0)
    runs, hits = 120, {}
    for run in range(runs):
        logits = scenes(np.random.default_rng([run, groups]), groups, shift, grid, matched)
        found = [measured(logits, g, counts) for g in range(1, 1 + GENERATORS)]
        for metric in ("auc", "ap", "balanced_accuracy", "recall"):
            for label, values in (("one", found[0][metric]), ("mean", np.mean([f[metric] for f in found], axis=0))):
                low, high = share_interval(values, groups)
                assert low <= values[0] <= high
                hits[label, metric] = hits.get((label, metric), 0) + (low <= true[metric] <= high)
        low, high = worst_interval(np.stack([f["auc"] for f in found]), np.full(GENERATORS, groups))
        hits["worst"] = hits.get("worst", 0) + (low <= true["auc"] <= high)
    # of 120 runs at .95 fewer than 106 are seen once in 1,000 times
    assert {key: count for key, count in hits.items() if count < 106} == {}
    assert np.mean(list(hits.values())) / runs < 0.985


def test_the_worst_of_unequal_shares_is_covered_too() -> None:
    rng, hits, shares = np.random.default_rng(3), 0, np.array([0.6, 0.62, 0.8, 0.9])
    for _ in range(300):
        parts = without_each((rng.random((4, 40)) < shares[:, None]).astype(float))
        low, high = worst_interval(parts, np.full(4, 40))
        up = worst_interval(1 - parts, np.full(4, 40), highest=True)
        assert (1 - up.high, 1 - up.low) == pytest.approx((low, high))
        hits += low <= 0.6 <= high
    assert hits / 300 >= 0.93


def drawn_differences(
    rng: np.random.Generator, seeds: int, groups: int, columns: int, of_seeds: float
) -> list[np.ndarray]:
    """`columns` differences (seeds, 1 + groups) of two methods that are equal in expectation."""
    shared = rng.normal(0, 0.1, (1, groups))  # what the columns have in common
    return [
        without_each(
            shared + rng.normal(0, 0.1, (1, groups)) + rng.normal(0, 0.1, (seeds, groups))
        ) + rng.normal(0, of_seeds, (seeds, 1))
        for _ in range(columns)
    ]  # fmt: skip


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("of_seeds", [0.0, 0.01, 0.05])
def test_equal_methods_are_seldom_called_different(seeds, of_seeds) -> None:
    runs, single, together = 600, 0, 0
    for run in range(runs):
        rng = np.random.default_rng([run, seeds])
        differences = drawn_differences(rng, seeds, 40, 6, of_seeds)
        one = differences[0]
        low, high, p = paired(one.mean(axis=0), 40, one[:, 0])
        assert (p < 0.05) == (low > 0 or high < 0)
        single += p < 0.05
        if run < 150:
            together += any(surely_above([sign * d for d in differences for sign in (1, -1)], [40] * 12))
    assert single / runs <= 0.07
    assert together / 150 <= 0.09


def test_a_large_difference_is_seen_with_seeds_and_never_with_one() -> None:
    rng = np.random.default_rng(0)
    clear = [d + 0.5 for d in drawn_differences(rng, 3, 40, 2, 0.01)]
    assert surely_above(clear, [40, 40]) == [True, True]
    assert surely_above([clear[0], -clear[1]], [40, 40]) == [True, False]
    assert surely_above([clear[0][:1]], [40]) == [False] and surely_above([], []) == []
    assert surely_above(clear, [5, 40])[0] is False  # too few groups
    low, high = difference_interval(clear[0].mean(axis=0), 40, clear[0][:, 0])
    assert low > 0 and high > low


# -- generators as a sample ------------------------------------------------------------------------------------------


def with_generators(rng: np.random.Generator, groups: int, shifts: np.ndarray) -> np.ndarray:
    """AUC of each generator, of all groups and without each: (k, 1 + groups). All share the photographs."""
    content = 0.7 * rng.normal(size=groups)
    real = content + 0.51**0.5 * rng.normal(size=groups)
    fakes = content + 0.51**0.5 * rng.normal(size=(len(shifts), groups)) + shifts[:, None]
    found = []
    for fake in fakes:
        above = (fake[:, None] > real).astype(float)
        rest = above.sum() - above.sum(axis=0) - above.sum(axis=1) + np.diag(above)  # pairs without each group
        found.append(np.concatenate([[above.mean()], rest / (groups - 1) ** 2]))
    return np.stack(found)


@pytest.mark.parametrize("k", [3, 4, 7, 12])
@pytest.mark.parametrize("groups", [30, 100])
def test_intervals_for_generators_like_these_cover_their_population(k, groups) -> None:
    runs = 400
    for middle, spread in ((1.2, 0.0), (1.2, 0.3), (1.2, 0.8), (2.2, 0.8), (2.5, 1.2)):
        drawn = middle + spread * np.random.default_rng(0).normal(size=200_000)
        true = norm.cdf(drawn / 2**0.5).mean()  # an unrelated photograph and fake differ with variance 2
        of_sample, of_these = 0, 0
        for run in range(runs):
            rng = np.random.default_rng([run, k, groups])
            parts = with_generators(rng, groups, middle + spread * rng.normal(size=k))
            fixed = share_interval(parts.mean(axis=0), groups)
            two_way = sample_interval(parts, [f"g{i}" for i in range(k)], groups)
            assert two_way.low <= fixed.low + 1e-9 and fixed.high <= two_way.high + 1e-9
            of_sample += two_way.low <= true <= two_way.high
            of_these += fixed.low <= true <= fixed.high
        # the last population has most AUCs near 1 and some near .5: a mean of few says least of it
        assert (0.88 if spread > 1 else 0.93) <= of_sample / runs <= 0.99, (middle, spread)
        if spread >= 0.8:  # the interval for these generators is none for others
            assert of_these / runs < (0.85 if groups == 30 else 0.65), (middle, spread)
        elif not spread:  # where generators do not differ the two are nearly one
            assert of_these / runs >= 0.93


def test_without_chance_over_groups_it_is_the_spread_of_the_generators() -> None:
    values, names = np.array([0.6, 0.7, 0.9, 0.95]), ["a", "b", "c", "d"]
    parts = np.repeat(values[:, None], 41, axis=1)
    error, freedom = sample_chance(parts, names, 1_000_000)
    assert error == pytest.approx((5 / 3 * values.var(ddof=1) / 4) ** 0.5, rel=1e-6)
    assert freedom == pytest.approx(3, rel=1e-3)
    # a generator in two sets is one draw, with the weight of its parts in the mean
    twice = np.concatenate([parts, parts[:1]])
    weight = np.array([2, 1, 1, 1]) / 5
    between = 4 / 3 * (weight**2 * (values - weight @ values) ** 2).sum()
    assert sample_chance(twice, [*names, "a"], 1_000_000).error == pytest.approx((5 / 3 * between) ** 0.5, rel=1e-6)
    assert np.isnan(sample_interval(parts[:2], names[:2], 40)).all()  # two generators are no sample
    assert np.isnan(sample_interval(parts, ["a", "a", "b", "b"], 40)).all()  # nor are two in two sets
    assert np.isnan(sample_interval(parts, names, FEWEST - 1)).all()
    seeds = np.array([0.7, 0.8, 0.9])
    more = sample_chance(parts, names, 1_000_000, seeds)
    assert more.error**2 == pytest.approx(error**2 + seeds.var(ddof=1) / 3, rel=1e-6)

"""Cross-validation: how groups are dealt, what pooling does to each metric, and what the intervals cover."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from adapt.data.folds import deal_folds, of_fold
from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.evaluation.attribution import attribute
from adapt.evaluation.folds import pool_folds
from adapt.evaluation.jackknife import share_interval, standard_error
from adapt.evaluation.metrics import compare, evaluate, index
from adapt.evaluation.replicates import OF_ONE_DETECTOR, OVERLAP, auc_without
from adapt.evaluation.scores import Scores

# -- dealing ---------------------------------------------------------------------------------------------------------


def manifest(groups: dict[str, list[str]], split=lambda group, kind: "train", of_set=lambda group: "s") -> Manifest:
    """Rows `kind` (generator or generator/edit) of each group; the files are not there, and none is opened."""
    rows = [
        (g, *[*kind.split("/"), ""][:2], split(g, kind), of_set(g)) for g, kinds in groups.items() for kind in kinds
    ]
    columns = dict(zip(("group", "generator", "edit", "split", "set"), zip(*rows, strict=True), strict=True))
    paths = [f"{g}-{kind}-{edit}.png" for g, kind, edit, *_ in rows]
    return Manifest.of({"path": paths, **columns}, "/nowhere")


def counts(rows: Manifest, fold: np.ndarray, name: str, folds: int) -> np.ndarray:
    """Groups with this generator in each fold."""
    return np.array([len(set(rows["group"][(fold == k) & (rows["generator"] == name)])) for k in range(folds)])


def test_folds_have_all_generators_and_keep_groups_and_sets_balanced() -> None:
    singles = {f"r{i}": ["real"] for i in range(23)} | {f"a{i}": ["a"] for i in range(11)}
    singles |= {f"b{i}": ["b"] for i in range(7)}
    matched = {f"m{i}": ["real", "a", "b"] for i in range(13)}
    for groups in (singles, matched):
        rows = manifest(groups)
        fold = deal_folds(rows, 5, seed=3)
        for name in ("real", "a", "b"):
            found = counts(rows, fold, name, 5)
            assert found.max() - found.min() <= 1 and found.min() >= 1, (name, found)
        for members in rows.groups():
            assert len(set(fold[members])) == 1
    two = manifest(singles | matched, of_set=lambda group: "matched" if group[0] == "m" else "single")
    fold = deal_folds(two, 5, seed=3)
    for name in ("matched", "single"):
        found = np.bincount(fold[two["set"] == name], minlength=5)
        assert found.max() - found.min() <= 3  # a matched group has three rows
    order = np.random.default_rng(0).permutation(len(two))
    np.testing.assert_array_equal(deal_folds(two.select(order), 5, seed=3), fold[order])  # names and seed decide
    assert (deal_folds(two, 5, seed=4) != fold).any()


def test_every_image_is_tested_once_and_what_is_test_only_is_never_trained_on() -> None:
    groups = {f"g{i:02}": ["real", "real/blur", "a", "chosen", "new"] for i in range(20)}
    groups |= {f"other{i}": ["real", "a"] for i in range(10)}

    def split(group: str, kind: str) -> str:
        number = int(group[-2:]) if group[0] == "g" else 99
        return "test" if number == 99 or number >= 12 else "val" if number >= 8 else "train"

    held = {"real/blur": ("test",), "new": ("test",), "chosen": ("val", "test")}
    kept = {
        g: [k for k in kinds if split(g, k) in held.get(k, ("train", "val", "test"))] for g, kinds in groups.items()
    }
    rows = manifest(kept, split, lambda group: "s" if group[0] == "g" else "other")
    tested, validated, trained = [], [], []
    for k in range(1, 6):
        part = of_fold(rows, 5, k, seed=0)
        for name, into in (("test", tested), ("val", validated), ("train", trained)):
            here = part["split"] == name
            into += list(zip(part["path"][here], part["generator"][here], part["edit"][here], part["set"][here],
                             strict=True))  # fmt: skip
        assert not set(part["group"][part["split"] == "test"]) & set(part["group"][part["split"] != "test"])
        assert part.seen(["new", "chosen", "a"]).tolist() == ["", "val", "train"]
    assert sorted(path for path, *_ in tested) == sorted(rows["path"])  # once each
    assert len(set(validated)) == len(validated)
    assert {(g, e) for _, g, e, _ in trained} == {("real", ""), ("a", "")} and {s for *_, s in trained} == {"s"}
    assert {(g, e) for _, g, e, _ in validated} == {("real", ""), ("a", ""), ("chosen", "")}


def test_too_few_groups_are_refused_with_a_remedy() -> None:
    few = manifest({"r0": ["real"], "r1": ["real"], "a0": ["a"], "a1": ["a"], "a2": ["a"], "a3": ["a"]})
    with pytest.raises(Refusal, match=r"--folds 4: in fold \d, split '\w+' has 0 real.*fewer folds"):
        for k in range(1, 5):
            of_fold(few, 4, k, seed=0)
    all_test = manifest({f"g{i}": ["real", "a"] for i in range(9)}, lambda *_: "test")
    with pytest.raises(Refusal, match=r"split 'train' has 0 real and 0 fake.*--split train"):
        of_fold(all_test, 3, 1, seed=0)


# -- pooling ---------------------------------------------------------------------------------------------------------


def fold_table(number: int, logit: np.ndarray, fake: np.ndarray, val=(-1.0, 1.0), name="a", seen="train") -> Scores:
    """Scores of one fold: test rows, and two validation rows between which the threshold lies in the middle."""
    n = len(logit)
    return Scores(
        {
            "path": [f"f{number}-{i}" for i in range(n)] + [f"v{number}-real", f"v{number}-fake"],
            "generator": [*np.where(fake, name, "real"), "real", name],
            "split": ["test"] * n + ["val"] * 2,
            "seen": [*np.where(fake, seen, "train"), "train", seen],
            "logit": [*logit, *val],
        }
    )


def test_each_metric_is_that_of_the_folds_by_hand() -> None:
    rng = np.random.default_rng(1)
    tables, cuts, scales = [], [], (1.0, 7.0, 0.2)
    for k, scale in enumerate(scales):
        fake = rng.random(30) < (0.3, 0.5, 0.7)[k]
        shift = -5.0 * k  # the more fakes in a fold, the lower its logits
        logit = scale * (rng.normal(size=30) + 1.0 * fake) + shift
        cuts.append(shift + 0.4 * scale)
        tables.append(fold_table(k, logit, fake, (cuts[-1] - 0.1, cuts[-1] + 0.1)))
    pooled = pool_folds(tables)
    tests = [t.select(t["split"] == "test") for t in tables]
    at = index(evaluate(pooled, resamples=200))
    each = [roc_auc_score(t.fake, t["logit"]) for t in tests]
    pairs = [int(t.fake.sum()) * int((~t.fake).sum()) for t in tests]
    cell = at["", "none", "a", "auc"]
    assert cell.value == pytest.approx(np.average(each, weights=pairs)) and cell.low < cell.value < cell.high
    raw = roc_auc_score(np.concatenate([t.fake for t in tests]), np.concatenate([t["logit"] for t in tests]))
    assert abs(raw - cell.value) > 0.05  # logits of three scales: another number
    called = np.concatenate([t["logit"] >= cut for t, cut in zip(tests, cuts, strict=True)])
    at_half = np.concatenate([t["logit"] >= 0 for t in tests])
    fake = np.concatenate([t.fake for t in tests])
    assert at["all", "none", "real", "false_alarm"].value == pytest.approx(called[~fake].mean())
    assert at["", "none", "a", "recall"].value == pytest.approx(called[fake].mean())
    assert at["", "none", "a", "recall_at_0.5"].value == pytest.approx(at_half[fake].mean())
    assert at["all", "all", "pooled:val", "threshold"].value == 0.0
    one = index(evaluate(Scores({k: v for k, v in pooled.columns.items() if k != "fold"}), threshold=0.0, resamples=0))
    assert at["", "none", "a", "ece"].value == pytest.approx(one["", "none", "a", "ece"].value)
    for metric in OF_ONE_DETECTOR:
        assert np.isnan(at["", "none", "a", metric].value), metric


def test_leaving_a_group_out_is_measuring_without_it() -> None:
    rng = np.random.default_rng(2)
    logit, fake, fold = rng.normal(size=60).round(1), rng.random(60) < 0.5, rng.integers(0, 3, 60)
    group = np.arange(60) // 2

    def by_hand(kept: np.ndarray) -> float:
        wins = total = 0.0
        for k in range(3):
            reals, fakes = (logit[kept & (fold == k) & (fake == which)] for which in (False, True))
            difference = fakes[:, None] - reals[None]
            wins, total = wins + (difference > 0).sum() + 0.5 * (difference == 0).sum(), total + difference.size
        return wins / total

    found = auc_without(logit, fake, group, 30, fold)
    assert found == pytest.approx([by_hand(np.ones(60, bool)), *(by_hand(group != g) for g in range(30))])
    np.testing.assert_array_equal(
        auc_without(logit, fake, group, 30, np.zeros(60)), auc_without(logit, fake, group, 30)
    )


def test_a_table_of_folds_survives_the_file_and_is_compared_fold_by_fold(tmp_path) -> None:
    rng = np.random.default_rng(3)
    fake = np.arange(24) % 2 == 0
    make = lambda gain: pool_folds([fold_table(k, rng.normal(size=24) + gain * fake, fake) for k in range(3)])  # noqa: E731
    strong, weak = make(3.0), make(0.5)
    for suffix in ("parquet", "csv"):
        strong.write(tmp_path / f"scores.{suffix}")
        again = Scores.read(tmp_path / f"scores.{suffix}")
        assert list(again["fold"]) == list(strong["fold"])
        np.testing.assert_array_equal(again["logit"], strong["logit"])
        found, expected = (
            [(c.generator, c.metric, c.value, c.low) for c in evaluate(table, 20) if c.low == c.low]
            for table in (again, strong)
        )
        assert found == expected and len(found) > 10
    (difference,) = [d for d in compare(strong, weak, 50) if d.generator == "mean:all" and d.metric == "auc"]
    a, b = (index(evaluate(table, 50))["all", "none", "mean:all", "auc"].value for table in (strong, weak))
    assert difference.value == pytest.approx(a - b) and difference.low > 0


def test_contradictions_between_folds_are_refused_and_the_closest_contact_counts() -> None:
    fake = np.arange(6) % 2 == 0
    tables = [fold_table(0, np.arange(6.0), fake, seen="train"), fold_table(1, np.arange(6.0), fake, seen="val")]
    pooled = pool_folds(tables)
    assert set(pooled["seen"][pooled.fake]) == {"train"}
    with pytest.raises(Refusal, match="stands twice"):
        pool_folds([tables[0], tables[0]])
    only_reals = Scores({k: v[tables[1]["generator"] == "real"] for k, v in tables[1].columns.items()})
    with pytest.raises(Refusal, match="fold 2 has no readable validation images of both classes"):
        pool_folds([tables[0], only_reals])
    leak = pooled.columns | {"group": np.array(["same"] * len(pooled), dtype=object)}
    with pytest.raises(Refusal, match="group 'same' has fold '1' and '2'"):
        Scores(leak)


# -- simulations -----------------------------------------------------------------------------------------------------


def cross_validated(
    x: np.ndarray, fake: np.ndarray, folds: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a mean difference, fold by fold as of_fold trains (on all but two), and the fold of each row."""
    fold = np.empty(len(fake), np.int64)
    for which in (False, True):
        rows = rng.permutation(np.flatnonzero(fake == which))
        fold[rows] = np.arange(len(rows)) % folds
    logit = np.empty(len(fake))
    for k in range(folds):
        train = (fold != k) & (fold != (k + 1) % folds)
        weight = x[train & fake].mean(axis=0) - x[train & ~fake].mean(axis=0)
        logit[fold == k] = x[fold == k] @ weight / np.linalg.norm(weight)
    return logit, fold


def intervals(gain: float, folds: int, worlds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AUC, lower and upper ends in worlds of 60 images with 40 features, of which the first differs by `gain`."""
    rng, out = np.random.default_rng(5), []
    for _ in range(worlds):
        fake = np.arange(60) % 2 == 0
        x = rng.normal(size=(60, 40))
        x[:, 0] += gain * fake
        logit, fold = cross_validated(x, fake, folds, rng)
        rows = [f"i{i}" for i in range(60)]
        scores = Scores({"path": rows, "generator": np.where(fake, "a", "real"), "logit": logit, "fold": fold + 1})
        cell = index(evaluate(scores, 60))["", "none", "a", "auc"]
        out.append((cell.value, cell.low, cell.high))
    return tuple(np.array(out).T)


def test_without_a_signal_the_pooled_auc_is_half_and_its_interval_covers_that() -> None:
    value, low, high = intervals(gain=0.0, folds=5, worlds=150)
    assert abs(value.mean() - 0.5) < 3 * value.std() / np.sqrt(150) and value.std() > 0.05  # no negative bias
    covered = np.mean((low <= 0.5) & (high >= 0.5))
    assert 0.92 <= covered <= 1.0, covered


def test_with_a_signal_it_covers_the_mean_auc_of_such_detectors() -> None:
    value, low, high = intervals(gain=2.5, folds=5, worlds=100)
    rng, truth = np.random.default_rng(6), []
    for _ in range(200):  # detectors of as many images, on fresh ones without end
        x, fake = rng.normal(size=(36, 40)), np.arange(36) % 2 == 0
        x[:, 0] += 2.5 * fake
        weight = x[fake].mean(axis=0) - x[~fake].mean(axis=0)
        new = rng.normal(size=(400, 40))
        new[:200, 0] += 2.5
        truth.append(roc_auc_score(np.arange(400) < 200, new @ weight))
    assert abs(value.mean() - np.mean(truth)) < 0.02
    assert np.mean((low <= np.mean(truth)) & (np.mean(truth) <= high)) >= 0.9


def test_raw_logits_of_folds_would_be_biased_against_chance() -> None:
    """Intercepts of logistic regressions on noise, in folds with unequal shares of fakes: pooled they say the contrary
    of the labels (Parker et al. 2007); pairs of one fold do not."""
    rng, raw, within = np.random.default_rng(7), [], []
    for _ in range(60):
        fake, x = np.arange(60) % 2 == 0, rng.normal(size=(60, 3))
        fold, logit = rng.integers(0, 5, 60), np.empty(60)
        for k in range(5):
            model = LogisticRegression(C=0.01).fit(x[fold != k], fake[fold != k])
            logit[fold == k] = model.decision_function(x[fold == k])
        raw.append(roc_auc_score(fake, logit))
        scores = Scores(
            {
                "path": [f"i{i}" for i in range(60)],
                "generator": np.where(fake, "a", "real"),
                "logit": logit,
                "fold": fold + 1,
            }
        )
        within.append(index(evaluate(scores, 0))["", "none", "a", "auc"].value)
    assert np.mean(raw) < 0.42
    assert abs(np.mean(within) - 0.5) < 3 * np.std(within) / np.sqrt(60)


def test_a_narrower_interval_would_not_cover_without_a_signal() -> None:
    """What doubling the variance is for: the plain jackknife misses .5 far more often than in one of twenty."""
    rng, values, plain = np.random.default_rng(8), [], []
    for _ in range(300):
        fake = np.arange(200) % 2 == 0
        logit, fold = cross_validated(rng.normal(size=(200, 300)), fake, 10, rng)
        values.append(auc_without(logit, fake, np.arange(200), 200, fold))
        low, high = share_interval(values[-1], 100)
        plain.append(low <= 0.5 <= high)
    assert np.mean(plain) < 0.92, np.mean(plain)
    spread = np.var([each[0] for each in values]) / np.mean([standard_error(each) ** 2 for each in values])
    assert 1.3 < spread < OVERLAP, spread


def class_table(number: int, rng: np.random.Generator, scale: float, classes: tuple[str, ...]) -> Scores:
    """Rows of three classes, and test rows of an absent one, in 12 groups; logits on an own scale and place."""
    names = np.tile([*classes, "new"], 12)
    n = len(names)
    logits = {f"logit_{c}": scale * (rng.normal(size=n) + 1.5 * (names == c)) + 5 * number for c in classes}
    binary = np.logaddexp.reduce([logits[f"logit_{c}"] for c in classes[1:]], axis=0) - logits[f"logit_{classes[0]}"]
    rows = Scores(
        {
            "path": [f"{number}-{i}" for i in range(n)],
            "group": [f"{number}-{i // 4}" for i in range(n)],
            "generator": names,
            "family": names,
            "seen": np.where(names == "new", "", "train"),
            "logit": binary,
        }
        | logits
    )
    val = Scores(rows.columns | {"split": ["val"] * n, "path": "v" + rows["path"], "group": "v" + rows["group"]})
    val = val.select(val["generator"] != "new")
    return Scores({name: np.concatenate([rows[name], val[name]]) for name in rows.columns})


def test_classes_are_attributed_by_the_own_fold_and_familiarity_is_compared_inside_it() -> None:
    rng, classes = np.random.default_rng(4), ("real", "a", "b")
    tables = [class_table(k, rng, scale, classes) for k, scale in ((1, 1.0), (2, 5.0), (3, 0.3))]
    pooled = pool_folds(tables)
    rates = {(r.label, r.metric): r for r in attribute(pooled, 50, 0, "generator").rates}
    right, aucs, pairs = [], [], []
    for table in tables:
        test = table.select(table["split"] == "test")
        logits = np.stack([test[f"logit_{name}"] for name in classes], axis=1)
        right += list((np.array(classes)[logits.argmax(axis=1)] == "a")[test["generator"] == "a"])
        size, absent = logits.max(axis=1), test["generator"] == "new"
        known, new = size[test.fake & ~absent], size[absent]
        aucs.append((known[:, None] > new).mean())
        pairs.append(len(known) * len(new))
    assert rates["a", "recall"].value == pytest.approx(np.mean(right), abs=1e-12)
    assert rates["all", "auroc_max_logit"].value == pytest.approx(np.average(aucs, weights=pairs), abs=1e-12)
    one = Scores({name: values for name, values in pooled.columns.items() if name != "fold"})
    plain = {(r.label, r.metric): r for r in attribute(one, 50, 0, "generator").rates}
    assert plain["all", "auroc_max_logit"].value != pytest.approx(rates["all", "auroc_max_logit"].value, abs=0.02)
    logit = [np.log(p / (1 - p)) for r in (rates, plain) for p in (r["a", "recall"].low, r["a", "recall"].high)]
    assert (logit[1] - logit[0]) / (logit[3] - logit[2]) == pytest.approx(np.sqrt(OVERLAP), rel=0.02)


def test_folds_of_other_classes_are_refused() -> None:
    rng = np.random.default_rng(4)
    tables = [class_table(1, rng, 1.0, ("real", "a", "b")), class_table(2, rng, 1.0, ("real", "a", "c"))]
    with pytest.raises(Refusal, match=r"folds 1 and 2 are trained on different classes \(b, c in one of them only\)"):
        pool_folds(tables)

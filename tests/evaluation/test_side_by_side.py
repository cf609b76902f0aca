"""Detectors from elsewhere beside methods with training seeds: what they met, marks, and how often these are wrong."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adapt.evaluation.metrics import compare_means
from adapt.evaluation.scores import Scores
from adapt.evaluation.side_by_side import MEAN, METADATA, SAMPLE, WORST, Drawn, Fixed, Mark, Row, SideBySide, rank

VIEWS = ("none", "qf65")
AUC = ("all", MEAN, "mean:all", "auc")


def drawn(rng: np.random.Generator, seeds: int, shared: np.ndarray, of_seeds: float, up: float = 0.0) -> Drawn:
    """A method of so many seeds, or with none a fixed detector, whose expected AUC is 0.9 + up."""
    groups = len(shared)
    values = 0.9 + up + shared + rng.normal(0, 0.1, groups) + rng.normal(0, 0.1, (max(seeds, 1), groups))
    values = values + rng.normal(0, of_seeds, (seeds, 1)) if seeds else values
    whole = values.mean(axis=1, keepdims=True)
    without = (groups * whole - values) / (groups - 1)
    return Drawn(np.concatenate([whole, without], axis=1), groups, groups, groups, fixed=not seeds)


def called_best(
    run: int, trained: int, fixed: int, of_seeds: float, ups: tuple[float, ...] = (), blind: bool = False
) -> list[dict[Row, Mark]]:
    """Marks of three columns of a table; `blind`: the seeds' mean is taken for a fixed detector."""
    rng, columns = np.random.default_rng([run, trained, fixed]), {}
    for column in range(3):
        shared = rng.normal(0, 0.1, 40)
        rows = {
            (f"m{k}", ""): drawn(rng, 3 if k < trained else 0, shared, of_seeds, ups[k] if ups else 0.0)
            for k in range(trained + fixed)
        }
        if blind:
            rows = {row: Drawn(one.values.mean(axis=0)[None], 40, 40, 40, fixed=True) for row, one in rows.items()}
        columns["all", str(column), "mean:all", "auc"] = rows
    return list(rank(columns).values())


@pytest.mark.parametrize(("trained", "fixed"), [(1, 1), (1, 2), (2, 1), (0, 2)])
@pytest.mark.parametrize("of_seeds", [0.0, 0.1])
def test_of_equal_rows_none_is_often_called_the_best(trained, fixed, of_seeds) -> None:
    """A fixed detector is as good as what a method reaches on average over its seeds."""
    runs = 200
    wrong = sum(
        any("best" in marks.values() for marks in called_best(run, trained, fixed, of_seeds)) for run in range(runs)
    )
    assert wrong / runs <= 0.095  # three standard errors above .05


def test_without_the_seeds_of_the_methods_it_would_be_often() -> None:
    wrong = [any("best" in m.values() for m in called_best(run, 1, 1, 0.1, blind=True)) for run in range(60)]
    assert np.mean(wrong) > 0.25


def test_what_is_far_ahead_is_the_best_whether_it_is_fixed_or_not() -> None:
    for ups in ((0.0, 0.0, 0.3), (0.3, 0.0, 0.0)):
        best = (f"m{int(np.argmax(ups))}", "")
        assert called_best(0, 2, 1, 0.005, ups) == [{best: "best"}] * 3


def test_beside_methods_of_one_seed_nothing_is_marked() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.1, 40)
    one, other = drawn(rng, 1, shared, 0.0, 0.3), drawn(rng, 0, shared, 0.0)
    assert rank({AUC: {("trained", ""): one, ("fixed", ""): other}}) == {}
    assert rank({AUC: {("ahead", ""): drawn(rng, 0, shared, 0.0, 0.3), ("fixed", ""): other}}) == {
        AUC: {("ahead", ""): "best"}
    }  # both are fixed: groups alone decide


def scores(shift: float, seed: int, seen: dict[str, str], splits: tuple[str, ...] = ("val", "test")) -> Scores:
    """40 groups of a real and the fakes a, b, c, d under two views; `seen`: by generator."""
    rng, noise = np.random.default_rng(seed), np.random.default_rng(99)
    rows = [(s, g, name, v) for s in ("val", "test") for g in range(40) for name in ("real", *"abcd") for v in VIEWS]
    logit = noise.normal(size=len(rows)) + 0.3 * rng.normal(size=len(rows))
    kept = [i for i, row in enumerate(rows) if row[0] in splits]
    return Scores(
        {
            "path": [f"{rows[i][0]}-{rows[i][1]}-{rows[i][2]}" for i in kept],
            "group": [f"{rows[i][0]}-{rows[i][1]}" for i in kept],
            "generator": [rows[i][2] for i in kept],
            "family": ["" if rows[i][2] == "real" else "gan" if rows[i][2] in "ab" else "diffusion" for i in kept],
            "split": [rows[i][0] for i in kept],
            "set": ["s"] * len(kept),
            "seen": [seen.get(rows[i][2], "") for i in kept],
            "view": [rows[i][3] for i in kept],
            "logit": [logit[i] + shift * (rows[i][2] != "real") for i in kept],
        }
    )


OURS = {"a": "train", "b": "train", "c": ""}
NOBODY = dict.fromkeys("abcd", "unknown")
OTHER = {"c": "train", "a": "", "b": ""}


def beside_all(resamples: int = 40) -> tuple[dict[Row, list[Scores]], SideBySide]:
    tables = {
        ("ours", "x"): [scores(1.0, 1, OURS), scores(1.1, 2, OURS)],
        ("silent", ""): [scores(2.5, 3, NOBODY, ("test",))],
        ("other", ""): [scores(0.5, 4, OTHER, ("test",))],
        ("same", ""): [scores(1.0, 5, OURS, ("test",))],
    }
    fixed = {("silent", ""): Fixed(0.7), ("other", ""): Fixed(-0.2, ("gan",)), ("same", ""): Fixed(0.5)}
    metadata = scores(0.0, 6, OURS)
    metadata = metadata.select(metadata["view"] == VIEWS[0])
    beside = SideBySide(resamples)
    beside.add(tables, {METADATA: [metadata]}, fixed=fixed)
    return tables, beside


def auc(table: Scores, view: str, generators: str) -> float:
    each = []
    for name in generators:
        rows = (table["split"] == "test") & (table["view"] == view) & np.isin(table["generator"], ["real", name])
        each.append(roc_auc_score(table.fake[rows], table["logit"][rows]))
    return float(np.mean(each))


def test_a_detector_from_elsewhere_has_its_own_seen_its_own_threshold_and_no_seeds() -> None:
    tables, beside = beside_all()
    numbers = beside.numbers(tables, [])
    at = {(n.method, *n.place[1:]): n for n in numbers if n.set == "all"}
    assert not [key for key in at if key[0] == "silent" and key[2] in ("mean:seen", "mean:unseen", WORST, SAMPLE)]
    for name, met in (("silent", NOBODY), ("other", OTHER), ("same", OURS)):
        (table,) = tables[name, ""]
        for view in VIEWS:
            found = at[name, view, "mean:all", "auc"]
            assert (found.value, found.role) == (pytest.approx(auc(table, view, "abcd"), abs=1e-12), "detector")
        own = {n.generator: n.met for n in numbers if n.method == name and n.set == "s"}
        assert own == {g: met.get(g, "") for g in "abcd"}
        cut = {"silent": 0.7, "other": -0.2, "same": 0.5}[name]
        alarms = ~table.fake & (table["view"] == "none")
        assert at[name, "none", "real", "false_alarm"].value == pytest.approx(np.mean(table["logit"][alarms] >= cut))
        assert (name, "none", "mean:all", "ece_temperature") not in at  # nothing is fitted for it
    other = tables["other", ""][0]
    assert at["other", "none", "mean:seen", "auc"].value == pytest.approx(auc(other, "none", "c"), abs=1e-12)
    assert at["other", "none", "mean:unseen", "auc"].value == pytest.approx(auc(other, "none", "abd"), abs=1e-12)
    # families of its training, of which no generator is here, count as seen
    assert ("other", "none", "mean:unseen-family", "auc") not in at
    unseen = at["other", "none", "mean:unseen-generator", "auc"].value
    assert unseen == pytest.approx(auc(other, "none", "abd"), abs=1e-12)
    assert at["ours", "none", "mean:seen", "auc"].value == pytest.approx(
        np.mean([auc(table, "none", "ab") for table in tables["ours", "x"]]), abs=1e-12
    )


def test_marks_stand_only_between_means_over_the_same_generators() -> None:
    tables, beside = beside_all(200)
    places = [AUC, *(("all", MEAN, label, "auc") for label in ("mean:seen", "mean:unseen"))]
    numbers = beside.numbers(tables, places)
    marks = {(n.method, n.generator): n.mark for n in numbers if n.place in places and n.mark}
    assert marks["silent", "mean:all"] == "best" and ("other", "mean:all") not in marks
    assert {method for method, label in marks if label == "mean:seen"} <= {"ours", "same"}
    assert {("ours", "mean:seen"), ("same", "mean:seen")} <= set(marks)  # the same generators: compared
    # the difference behind the mark is the paired one over groups and our seeds
    a, b = (beside.drawn[row]["all", "none", "mean:all", "auc"].values for row in (("silent", ""), ("ours", "x")))
    pairs = [(tables["silent", ""][0], table) for table in tables["ours", "x"]]
    expected = next(d for d in compare_means(pairs, 200) if (d.set, d.view, d.generator, d.metric) == (
        "all", "none", "mean:all", "auc"
    ))  # fmt: skip
    assert (a - b).mean(axis=0)[0] == pytest.approx(expected.value, abs=1e-12)
    above = {(n.method, n.generator): n for n in numbers if n.metric == "auc_above_metadata"}
    assert set(above) == {
        *((name, "mean:all") for name in ("ours", "silent", "other", "same")),
        *((name, label) for name in ("ours", "same") for label in ("mean:seen", "mean:unseen")),
    }
    assert above["silent", "mean:all"].mark == "above" and above["silent", "mean:all"].role == "detector"

"""Images and groups behind the numbers: against AUCs computed again, and copies of few pictures."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adapt.evaluation.samples import auc_error, samples
from adapt.evaluation.scores import Scores


@pytest.mark.parametrize("grid", [0, 1])  # 1: many ties
def test_errors_equal_those_of_aucs_computed_again(grid) -> None:
    rng, n = np.random.default_rng(grid), 70
    fake, group = rng.random(n) < 0.4, rng.integers(0, 15, size=n)
    logit = rng.normal(size=n) + fake
    logit = np.round(logit) if grid else logit
    for unit in (group, np.arange(n)):
        without = np.array([roc_auc_score(fake[unit != u], logit[unit != u]) for u in np.unique(unit)])
        b = len(without)
        expected = math.sqrt((b - 1) / b * ((without - without.mean()) ** 2).sum())
        assert auc_error(logit, fake, unit) == pytest.approx(expected, rel=1e-9)
    assert math.isnan(auc_error(logit, np.ones(n, dtype=bool), group))
    assert math.isnan(auc_error(logit, fake, fake.astype(int)))  # each class in one group


def copies(rng: np.random.Generator, sources: int, images: int, spread: float) -> dict[str, np.ndarray]:
    """So many images of so few sources, half of these fake; a copy differs from its source by `spread`."""
    of = np.sort(np.concatenate([np.arange(sources), rng.integers(0, sources, size=images - sources)]))
    logit = (rng.normal(size=sources) + 1.2 * (np.arange(sources) % 2))[of] + spread * rng.normal(size=images)
    columns = {"path": np.arange(images).astype(str).astype(object), "source": of.astype(str).astype(object)}
    return columns | {"generator": np.where(of % 2, "viral", "real").astype(object), "logit": logit}


def test_copies_of_few_pictures_are_worth_few_pictures() -> None:
    """9,646 images of 162 sources: the spread of the AUC over new draws of sources is what the groups say."""
    rng = np.random.default_rng(0)
    drawn = copies(rng, 162, 9646, 0.2)
    (by_source,) = samples(Scores(drawn | {"group": drawn["source"]}))
    (by_image,) = samples(Scores(drawn))
    assert by_source.counts["real"][1] + by_source.counts["unseen fakes"][1] == 162
    assert 6 < by_source.too_narrow < 11.5
    assert by_image.too_narrow == pytest.approx(1) and not by_image.grouped and by_source.grouped
    aucs = []
    for _ in range(150):
        again = copies(rng, 162, 9646, 0.2)
        aucs.append(roc_auc_score(again["generator"] != "real", again["logit"]))
    fake = drawn["generator"] != "real"
    by_group, by_row = (auc_error(drawn["logit"], fake, unit) for unit in (drawn["source"], np.arange(9646)))
    assert np.std(aucs) == pytest.approx(by_group, rel=0.25)
    assert np.std(aucs) > 5 * by_row


def test_counts_of_a_view() -> None:
    """Unreadable and validation rows do not count; a name in two sets is two groups; processed reals stand apart."""
    rows = [
        ("a", "g1", "real", "s", "", "", "test", "ok"),
        ("b", "g1", "real", "s", "blur", "", "test", "ok"),
        ("c", "g1", "x", "s", "", "train", "test", "ok"),
        ("d", "g1", "x", "t", "", "train", "test", "ok"),
        ("e", "g2", "y", "s", "", "", "test", "ok"),
        ("f", "g2", "real", "s", "", "", "test", "unreadable: gone"),
        ("g", "g9", "real", "s", "", "", "val", "ok"),
        ("h", "g2", "z", "s", "", "val", "test", "ok"),
    ]
    names = ("path", "group", "generator", "set", "edit", "seen", "split", "status")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    columns["logit"] = [float("nan") if row[-1] != "ok" else 0.5 for row in rows]
    (found,) = samples(Scores(columns))
    assert found.counts == {
        "real": (1, 1), "seen fakes": (2, 2), "unseen fakes": (1, 1), "processed reals": (1, 1),
    }  # fmt: skip
    assert found.shown("seen fakes") == "2 in 2" and math.isnan(found.too_narrow)

"""What the page says of promises: against images counted one by one in resamples that are really built."""

import csv
from pathlib import Path

import numpy as np
import pytest
from test_decision import world

from adapt.commands import evaluate as recipe
from adapt.evaluation.decision import fit_decision
from adapt.evaluation.jackknife import leave_out, share_interval
from adapt.evaluation.metrics import evaluate, index
from adapt.evaluation.promises import arms_of, keep
from adapt.evaluation.replicates import BINS
from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import pick_threshold
from adapt.pages.promises import promises_section

RESAMPLES = 40


def unseen(scores: Scores) -> Scores:
    """The validation-only generator becomes one that only the test has, besides."""
    test = scores["split"] == "test"
    fresh = scores.select(test & (scores["generator"] == "new"))
    path = np.array([f"{p}-fresh" for p in fresh["path"]], dtype=object)
    columns = fresh.columns | {"generator": np.full(len(fresh), "fresh", dtype=object), "path": path}
    columns |= {"seen": np.full(len(fresh), "", dtype=object), "logit": fresh["logit"] - 1, "set": fresh["set"]}
    columns.pop("p_fake")
    return scores.join(Scores(columns))


@pytest.fixture(scope="module")
def scores() -> Scores:
    table = unseen(world(groups=80))
    lost = np.isin(np.arange(len(table)), np.flatnonzero(table["split"] == "test")[::37])
    blank = {name: np.where(lost, np.nan, table[name]) for name in ("logit", "p_fake")}
    return Scores(table.columns | blank | {"status": np.where(lost, "unreadable: truncated", "ok")})


def ece(p: np.ndarray, fake: np.ndarray) -> float:
    total, weight = 0.0, np.where(fake, 0.5 / fake.sum(), 0.5 / (~fake).sum())
    for low in range(BINS):
        inside = np.minimum((p * BINS).astype(int), BINS - 1) == low
        total += abs((weight[inside] * (p[inside] - fake[inside])).sum())
    return total


def test_cells_equal_resamples_really_built(scores) -> None:
    decision, threshold = fit_decision(scores), pick_threshold(scores)
    found = index(keep(scores, decision, threshold, 0.1, RESAMPLES, seed=4))
    test = scores.select(scores["split"] == "test")
    counts, column = leave_out(test["set"], test["group"], RESAMPLES, 4)
    p = decision.calibration(test["logit"])
    for view, generator in (("none", "stylegan"), ("qf40", "fresh")):
        built: dict[str, list[float]] = {}
        for weight in counts:
            rows = np.repeat(np.arange(len(test)), weight[column])
            rows = rows[test.ok[rows] & (test["view"][rows] == view)]
            part = {name: test[name][rows] for name in ("generator", "edit", "logit")}
            real, fake = (part["generator"] == "real") & (part["edit"] == ""), part["generator"] == generator
            for suffix, cuts in arms_of(view, decision, threshold, 0.1).items():
                called = cuts.verdicts(part["logit"])
                alarm, miss = (called[real] == "fake").mean(), (called[fake] == "real").mean()
                coverage = ((called[real] != "unsure").mean() + (called[fake] != "unsure").mean()) / 2
                above = part["logit"] >= cuts.threshold
                values = {"sure_miss": miss, "coverage": coverage, "selective_error": (alarm + miss) / 2 / coverage}
                values["balanced_accuracy"] = (above[fake].mean() + 1 - above[real].mean()) / 2
                edited = part["edit"] == "resize"
                values["alarm"], values["alarm on resize"] = alarm, (called[edited] == "fake").mean()
                for name, value in values.items():
                    built.setdefault(name + suffix, []).append(value)
            both = real | fake
            built.setdefault("ece_calibrated", []).append(ece(p[rows][both], fake[both]))
        assert built.pop("balanced_accuracy")[0] == pytest.approx(
            index(evaluate(scores, 0))["", view, generator, "balanced_accuracy"].value
        )
        assert len(built) == 12
        for name, values in built.items():
            key = ("", view, generator, name)
            if name.startswith("alarm"):
                suffix = "_per_quality" if name.endswith("_per_quality") else ""
                key = ("all", view, "edit:resize" if "resize" in name else "real", "sure_false_alarm" + suffix)
            cell = found[key]
            part = test["generator"] == ("real" if name.startswith("alarm") else generator)
            part &= (test["edit"] == "resize") if "on resize" in name else (test["edit"] == "")
            groups = min(
                len(set(test["group"][rows & test.ok & (test["view"] == view)]))
                for rows in (part, (test["generator"] == "real") & (test["edit"] == "") if part.any() else part)[
                    : 1 if name.startswith("alarm") else 2
                ]
            )
            expected = share_interval(np.array(values), groups)
            if name == "ece_calibrated":
                assert np.isnan([cell.low, cell.high]).all()
            else:
                assert [cell.low, cell.high] == pytest.approx(expected), key
            assert cell.value == pytest.approx(values[0])


def test_means_the_worst_and_the_page(scores) -> None:
    decision, threshold = fit_decision(scores), pick_threshold(scores)
    cells = keep(scores, decision, threshold, 0.1, RESAMPLES)
    at = index(cells)
    assert len(at) == len(cells)
    for metric, worst in (("coverage", min), ("selective_error", max), ("sure_miss_per_quality", max)):
        one = {name: at["", "qf40", name, metric].value for name in ("stylegan", "sd", "fresh", "new")}
        assert at["all", "qf40", "mean:seen", metric].value == pytest.approx((one["stylegan"] + one["sd"]) / 2)
        assert at["all", "qf40", "mean:unseen", metric].value == one["fresh"]
        assert at["all", "qf40", "mean:selection", metric].value == one["new"]
        assert at["all", "qf40", "worst:all", metric].value == worst(one[name] for name in ("stylegan", "sd", "fresh"))
    page = promises_section(evaluate(scores, 0) + cells, decision, 0.1)
    assert "Stated error rate 0.1, promised from 40 validation groups with photographs and 40 with fakes" in page
    miss = at["all", "qf40", "mean:unseen", "sure_miss"]
    row = next(line for line in page.splitlines() if line.startswith("| unseen fakes called real"))
    assert f"{miss.value:.3f} [{miss.low:.3f}, {miss.high:.3f}]" in row
    assert "| one threshold |" in page and "| a threshold for each quality |" in page
    assert f"ECE, {decision.calibration.kind}" in page


def test_a_rate_that_validation_cannot_promise(scores) -> None:
    decision, threshold = fit_decision(scores), pick_threshold(scores)
    cells = keep(scores, decision, threshold, 0.01, 0)
    assert {cell.metric for cell in cells} == {"ece_calibrated", "balanced_accuracy_per_quality"}
    page = promises_section(evaluate(scores, 0) + cells, decision, 0.01)
    assert "0.01 takes 99 validation groups with fakes, this detector has 40: ask for 0.0244 or more" in page
    assert "one threshold |" not in page.split("all generators")[0]


def test_evaluate_measures_what_a_table_of_scores_promises(scores, tmp_path: Path) -> None:
    scores.write(tmp_path / "scores.parquet")
    recipe.main(recipe.Config((tmp_path / "scores.parquet",), resamples=20, error_rate=0.1))
    with (tmp_path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = {tuple(row.values())[:4]: row for row in csv.DictReader(file)}
    expected = index(keep(scores, fit_decision(scores), pick_threshold(scores), 0.1, 20))
    for key, cell in expected.items():
        assert rows[key]["value"] == ("n/a" if cell.value != cell.value else str(cell.value))
    assert "## Promises" in (tmp_path / "table.md").read_text(encoding="utf-8")
    val = Scores({"path": list("abcd"), "generator": ["real", "x", "real", "x"], "logit": [0.0, 1, 2, 3]})
    val.write(tmp_path / "alone.parquet")  # no validation rows: everything is n/a or as it was scored
    recipe.main(recipe.Config((tmp_path / "alone.parquet",), output_dir=tmp_path / "alone", resamples=5))
    assert "this detector has 0: validate on some" in (tmp_path / "alone" / "table.md").read_text(encoding="utf-8")

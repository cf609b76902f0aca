"""Were the promises kept? Everything that was fitted on validation rows, measured on test rows with intervals.

Metrics beside those of replicates.py, in the cells of metrics.py; a resample counts groups, so that each is a sum over
groups. At the stated error rate an image is called real, fake, or `unsure`:

    sure_false_alarm  share of photographs called fake        sure_miss  share of fakes called real
    coverage          share that is called at all             selective_error  share of wrong ones among those

The last two give each class half of the weight; for photographs alone coverage is theirs. `_per_quality` marks the
same with the thresholds of a view's own quality (of other views: the global ones); balanced_accuracy_per_quality is
about the threshold alone. ece_calibrated is the expected calibration error of the calibrated p_fake.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from adapt.errors import Refusal
from adapt.evaluation.decision import EVERY, Cuts, Decision, Thresholds
from adapt.evaluation.jackknife import NONE, Interval, deal, share_interval, worst_interval
from adapt.evaluation.metrics import Cell
from adapt.evaluation.replicates import ALL, BINS, MEANS, distinct
from adapt.evaluation.scores import Scores

ERROR_RATE = 0.05  # that pages measure
OWN = "_per_quality"
HIGHER_IS_BETTER = ("coverage", "balanced_accuracy")
Values = dict[str, np.ndarray]  # metric -> (1 + b,), of all groups first, then without some of them


class Part(NamedTuple):
    """A generator beside the photographs of its set."""

    values: Values
    n_real: int
    n_fake: int
    groups: int  # that have rows of the rarer class


def keep(
    scores: Scores,
    decision: Decision,
    threshold: float,
    rate: float = ERROR_RATE,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float | None = None,
) -> list[Cell]:
    """Cells of every (set, view, generator), of photographs and processed ones, of means and the worst.

    The resamples are those of all other metrics. Where validation cannot promise this `rate` (with this
    `confidence`), what is about thresholds and calibration alone.
    """
    test = scores.select(scores["split"] == "test")
    dealt = deal(test["set"], test["group"], resamples, seed)
    seen = dict(zip(test["generator"], test["seen"], strict=True))
    p_fake, cells = decision.calibration(test["logit"]), []
    for view in distinct(test["view"]):
        here = (test["view"] == view) & test.ok
        arms = arms_of(view, decision, threshold, rate, confidence)

        def values(rows: np.ndarray, here: np.ndarray = here, arms: dict[str, Cuts] = arms) -> tuple[Values, int, int]:
            used = np.flatnonzero(rows & here)
            sums = dealt.sums(used, _facts(test["logit"][used], p_fake[used], test.fake[used], arms))
            return _shares(sums, arms), len(used), len(np.unique(dealt.group[used]))

        plain, edited = ~test.fake & (test["edit"] == ""), test["edit"] != ""
        parts = {}
        for name in distinct(test["set"][here]):
            real, n_real, of_real = values(plain & (test["set"] == name))
            cells += _photographs(name, view, "real", real, n_real, of_real)
            for generator in distinct(test["generator"][here & test.fake & (test["set"] == name)]):
                fake, n_fake, of_fake = values((test["generator"] == generator) & (test["set"] == name))
                groups = min(of_real, of_fake)
                parts[name, generator] = Part(_both(real, fake), n_real, n_fake, groups)
                both = parts[name, generator].values
                cells += _cells((name, view, generator), both, n_real, n_fake, groups, seen[generator])
        cells += _photographs(ALL, view, "real", *values(plain))
        for edit in distinct(test["edit"][here & edited]):
            cells += _photographs(ALL, view, f"edit:{edit}", *values(test["edit"] == edit))
        if (here & edited).any():
            cells += _photographs(ALL, view, "edit:all", *values(edited))
        cells += _means(view, parts, seen)
    return cells


def arms_of(
    view: str, decision: Decision, threshold: float, rate: float, confidence: float | None = None
) -> dict[str, Cuts]:
    """Suffix of a metric -> cuts for a view; the threshold alone where the rate cannot be promised."""
    found = {}
    arms: tuple[tuple[str, Thresholds], ...] = (("", "global"), (OWN, "quality"))
    for suffix, name in arms:
        if name == "quality" and not decision.thresholds:
            continue
        try:
            rules = decision.rules(threshold, rate, thresholds=name, confidence=confidence)
        except Refusal:
            rules = decision.rules(threshold, thresholds=name)
        found[suffix] = rules.cuts.get(view, rules.cuts[EVERY])
    return found


def _facts(logit: np.ndarray, p_fake: np.ndarray, fake: np.ndarray, arms: dict[str, Cuts]) -> np.ndarray:
    """(n, k): 1, the gap of p_fake in its bin, then for each arm: called fake, called real, reaches the threshold."""
    facts = np.zeros((len(logit), 1 + BINS + 3 * len(arms)))
    facts[:, 0] = 1
    facts[np.arange(len(logit)), 1 + np.minimum((p_fake * BINS).astype(np.int64), BINS - 1)] = p_fake - fake
    for i, cuts in enumerate(arms.values()):
        called, first = cuts.verdicts(logit), 1 + BINS + 3 * i
        facts[:, first : first + 3] = np.stack([called == "fake", called == "real", logit >= cuts.threshold], axis=1)
    return facts


def _shares(sums: np.ndarray, arms: dict[str, Cuts]) -> Values:
    """Of rows of one class: gap (r, BINS), and for each arm the shares called fake, called real, above the threshold.

    The first two only where the rate is promised.
    """
    with np.errstate(invalid="ignore"):
        shares = sums[:, 1:] / sums[:, :1]
    found = {"gap": shares[:, :BINS]}
    for i, (suffix, cuts) in enumerate(arms.items()):
        names = ("above",) if np.isinf(cuts.not_real) else ("fake", "real", "above")
        found |= {name + suffix: shares[:, BINS + 3 * i + ("fake", "real", "above").index(name)] for name in names}
    return found


def _both(real: Values, fake: Values) -> Values:
    """Metrics of a generator's fakes and their photographs."""
    found: Values = {}
    for suffix in ("", OWN):
        if "fake" + suffix in real:
            alarm, miss = real["fake" + suffix], fake["real" + suffix]
            coverage = 0.5 * (alarm + real["real" + suffix] + miss + fake["fake" + suffix])
            with np.errstate(invalid="ignore"):
                error = 0.5 * (alarm + miss) / coverage
            rates = {"sure_miss": miss, "coverage": coverage, "selective_error": error}
            found |= {name + suffix: values for name, values in rates.items()}
    if "above" + OWN in real:
        found["balanced_accuracy" + OWN] = 0.5 * (1 + fake["above" + OWN] - real["above" + OWN])
    return found | {"ece_calibrated": 0.5 * np.abs(real["gap"] + fake["gap"]).sum(axis=1)}


def _photographs(name: str, view: str, label: str, found: Values, n: int, groups: int) -> list[Cell]:
    values = {}
    for suffix in ("", OWN):
        if "fake" + suffix in found:
            values["sure_false_alarm" + suffix] = found["fake" + suffix]
            values["coverage" + suffix] = found["fake" + suffix] + found["real" + suffix]
    return _cells((name, view, label), values, n, 0, groups)


def _means(view: str, parts: dict[tuple[str, str], Part], seen: dict[str, str]) -> list[Cell]:
    """Over the generators of one view that have photographs, resample by resample, as in replicates.py."""
    cells = []
    for label, which in {**MEANS, "worst:all": MEANS["mean:all"]}.items():
        used = {key: part for key, part in parts.items() if part.n_real and part.n_fake and seen[key[1]] in which}
        if not used:
            continue
        n_real = sum({name: part.n_real for (name, _), part in used.items()}.values())
        groups = np.array([part.groups for part in used.values()])
        values, worst_of = {}, {}
        for metric in next(iter(used.values())).values:
            stack = np.stack([part.values[metric] for part in used.values()])
            highest = not metric.startswith(HIGHER_IS_BETTER)
            values[metric] = stack.mean(axis=0)
            if label == "worst:all":
                values[metric] = stack.max(axis=0) if highest else stack.min(axis=0)
                worst_of[metric] = worst_interval(stack, groups, highest)
        n_fake = sum(part.n_fake for part in used.values())
        cells += _cells((ALL, view, label), values, n_real, n_fake, int(groups.mean()), worst_of=worst_of)
    return cells


def _cells(
    key: tuple[str, str, str],
    values: Values,
    n_real: int,
    n_fake: int,
    groups: int,
    seen: str = "",
    worst_of: Mapping[str, Interval] | None = None,
) -> list[Cell]:
    """`worst_of`: intervals of the worst of several generators, by metric."""
    out = []
    for metric, found in values.items():
        low, high = (worst_of or {}).get(metric) or share_interval(found, groups)
        if metric.startswith("ece"):
            low, high = NONE  # see WITHOUT_INTERVAL
        value = float(found[0])
        skipped = 0 if np.isnan(value) else int(np.isnan(found).sum())
        out.append(Cell(*key, metric, value, low, high, n_real, n_fake, skipped, seen, groups))
    return out

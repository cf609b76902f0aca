"""Every metric of one set of scores, of all groups and without each block of them, all at once.

No table is built again without a block: the scores are sorted once, and what a block adds to a number of rows or of
pairs is taken away from the total. What is left out: jackknife.py.
"""

import itertools
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from adapt.evaluation.jackknife import (
    NONE,
    Interval,
    deal,
    sample_interval,
    share_interval,
    sums_without,
    worst_interval,
)
from adapt.evaluation.scores import UNKNOWN, Comparison, Scores, comparisons

BINS = 15  # of the expected calibration error
PREVALENCE = 0.5  # share of fakes that average precision is stated for
FALSE_ALARM_RATES = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_5": 0.05}
METRICS = (
    *("auc", "ap", "balanced_accuracy", "balanced_accuracy_at_0.5", "balanced_accuracy_oracle"),
    *(*FALSE_ALARM_RATES, "ece", "recall", "recall_at_0.5", "false_alarm", "false_alarm_at_0.5"),
)
ALARMS = ("false_alarm", "false_alarm_at_0.5")
LOWER_IS_BETTER = ("ece", *ALARMS)
# Gaps and cuts that are sought on the very rows they are measured on: they have a bias that leaving groups out does
# not see, and no interval would cover them as often as it says.
WITHOUT_INTERVAL = ("ece", "balanced_accuracy_oracle", *FALSE_ALARM_RATES)
OF_ONE_DETECTOR = ("ap", "balanced_accuracy_oracle", *FALSE_ALARM_RATES)  # rank all images: n/a over folds
OVERLAP = 2.0  # what the variance over groups is multiplied by where several detectors share training groups
WITHIN = ("real_first", "real_first_chance", "pair_ranking")  # inside groups
Item = TypeVar("Item", bound=Hashable)
ALL = "all"  # in place of a set: over all sets
MEANS = {
    "mean:seen": ("train",),
    "mean:unseen": ("",),
    "mean:all": ("train", "", UNKNOWN),
    "mean:selection": ("val",),
}
UNSEEN = {"mean:unseen-generator": "generator", "mean:unseen-family": "family"}  # what is unseen of these
SAMPLES = {f"sample:{label.removeprefix('mean:')}": label for label in (*MEANS, *UNSEEN) if label != "mean:selection"}
SAMPLED = ("auc", "balanced_accuracy")  # metrics whose generators count as a sample
UNKNOWN_FAMILIES = ("", "other")  # `other`: what the table of families does not hold
GROUPED = {"within:all": "mean:all", "within:seen": "mean:seen", "within:unseen": "mean:unseen"}  # the same fakes
BLOCK = 65_536  # resamples x rows that are computed together: 0.5 MB an array, what a core's cache holds

Key = tuple[str, str, str]  # set, view, generator


@dataclass(frozen=True)
class Replicates:
    """The metrics of one cell: (1 + b,) each, of which the first is the sample itself; the others lack a block.

    Those of `WITHOUT_INTERVAL` are (1,): of the sample alone.
    """

    values: dict[str, np.ndarray]
    n_real: int
    n_fake: int
    groups: int  # that have readable rows, of the rarer class
    seen: str = ""
    unreadable: int = 0
    worst_of: tuple["Replicates", ...] = ()  # of `worst:all`: the generators among which it is the worst
    sample_of: tuple["Replicates", ...] = ()  # of `sample:...`: the generators whose mean it is
    sampled: tuple[str, ...] = ()  # their names


def measure(
    logit: np.ndarray,
    p_fake: np.ndarray,
    fake: np.ndarray,
    weights: np.ndarray,
    threshold: float,
    prevalence: float = PREVALENCE,
) -> dict[str, np.ndarray]:
    """Every metric of `METRICS` under each row of integer weights: (n,), (n,), (n,) bool, (r, n) -> (r,).

    auc: P(fake above real) + P(tie) / 2. ap: step-wise area under precision-recall, where a share `prevalence` of all
    is fake, whatever the ratio of these rows. balanced_accuracy: at `threshold` (logit >= threshold is called fake),
    at logit 0, and at the best threshold of these very rows (`oracle`: an upper bound, not a result). tpr_at_fpr_x:
    largest recall with at most x % false alarms, no interpolation. recall, false_alarm: share of fakes, of reals,
    called fake. ece: expected calibration error of p_fake (1706.04599 eq. 3), 15 equal bins, half of the weight to
    each class. A metric that needs a class that is absent, or a threshold that is NaN, is NaN.
    """
    if not len(logit):
        return {name: np.full(len(weights), np.nan) for name in METRICS}
    distinct_logits, place = np.unique(-logit, return_inverse=True)  # from the highest on
    cuts = {"": threshold, "_at_0.5": 0.0}
    above = {
        suffix: None if np.isnan(cut) else int(np.count_nonzero(-distinct_logits >= cut))
        for suffix, cut in cuts.items()
    }
    k = len(distinct_logits)
    cells = place + k * fake  # reals of each distinct logit, then fakes: tied rows meet here, whatever their order
    deviation = p_fake - fake
    bins = np.minimum((p_fake * BINS).astype(np.int64), BINS - 1) + BINS * fake
    step = max(1, BLOCK // len(logit))
    blocks = []
    for first in range(0, len(weights), step):
        block = weights[first : first + step].astype(np.float64)
        counts = np.stack([np.bincount(cells, row, 2 * k) for row in block]).reshape(-1, 2, k).cumsum(axis=2)
        fp, tp = counts[:, 0], counts[:, 1]
        found = _from_counts(tp, fp + tp, above, prevalence)
        sums = np.stack([np.bincount(bins, row * deviation, 2 * BINS) for row in block])
        blocks.append(found | {"ece": _ece(sums, tp[:, -1], fp[:, -1])})
    return {name: np.concatenate([block[name] for block in blocks]) for name in METRICS}


def _from_counts(
    tp: np.ndarray, called: np.ndarray, above: dict[str, int | None], prevalence: float
) -> dict[str, np.ndarray]:
    """Metrics from (r, k) numbers of fakes, and of rows, at or above the k-th distinct logit; counts stay exact.

    `above`: how many distinct logits reach each threshold, None for a threshold that is NaN.
    """
    fp, n_fake, total = called - tp, tp[:, -1], called[:, -1]
    n_real, d_tp = total - n_fake, np.diff(tp, prepend=0)
    odds = (1 - prevalence) / prevalence  # so many photographs to a fake
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = np.vecdot(d_tp, fp) + np.vecdot(
            d_tp[:, 1:], fp[:, :-1]
        )  # twice the pairs that are the wrong way round
        best = (tp * total[:, None] - called * n_fake[:, None]).max(axis=1) / (n_fake * n_real)
        out = {
            "auc": 1 - 0.5 * pairs / (n_fake * n_real),
            "ap": np.vecdot(d_tp, tp / np.maximum(tp + (odds * n_fake / n_real)[:, None] * fp, 1e-9)) / n_fake,
            "balanced_accuracy_oracle": 0.5 + 0.5 * np.maximum(best, 0),
        }
        for name, rate in FALSE_ALARM_RATES.items():
            allowed = rate * n_real + 1e-9
            ends = [np.searchsorted(row, most, "right") for row, most in zip(fp, allowed, strict=True)]
            out[name] = np.array([row[end - 1] if end else 0.0 for row, end in zip(tp, ends, strict=True)]) / n_fake
        for suffix, count in above.items():
            found, alarms = (row[:, count - 1] if count else 0 * row[:, 0] for row in (tp, fp))
            found, alarms = (found / n_fake, alarms / n_real) if count is not None else (n_fake * np.nan,) * 2
            out |= {f"recall{suffix}": found, f"false_alarm{suffix}": alarms}
            out[f"balanced_accuracy{suffix}"] = 0.5 * (found + 1 - alarms)
    absent = (n_fake == 0) | (n_real == 0)
    one_class = ("recall", "recall_at_0.5", "false_alarm", "false_alarm_at_0.5")
    return {name: value if name in one_class else np.where(absent, np.nan, value) for name, value in out.items()}


def _ece(sums: np.ndarray, n_fake: np.ndarray, n_real: np.ndarray) -> np.ndarray:
    """Sum over the bins of |mean of p_fake - share of fakes| x weight, each class weighing half, NaN without one.

    `sums` (r, 2 x bins): p_fake - fake, summed over the reals of each bin, then over the fakes of each bin.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums[:, :BINS] / n_real[:, None] + sums[:, BINS:] / n_fake[:, None]
    return np.where((n_fake == 0) | (n_real == 0), np.nan, 0.5 * np.abs(gap).sum(axis=1))


def measure_without(
    logit: np.ndarray,
    p_fake: np.ndarray,
    fake: np.ndarray,
    block: np.ndarray,
    blocks: int,
    threshold: float,
    prevalence: float = PREVALENCE,
    only: Collection[str] = METRICS,
    fold: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Some metrics of `METRICS`, of all rows and without each block of them: (n,), (n,), (n,) bool, (n,) -> (1 + b,).

    Those of `WITHOUT_INTERVAL` are (1,), of all rows. `measure` says what they are and would give the same numbers.
    With `fold` (n,) int64 the rows are scored by several detectors: see folds.py for what becomes of each metric.
    """
    if not len(logit):
        return {name: np.full(1 if name in WITHOUT_INTERVAL else 1 + blocks, np.nan) for name in only}
    found: dict[str, np.ndarray] = {}
    if not set(WITHOUT_INTERVAL).isdisjoint(only):
        found = measure(logit, p_fake, fake, np.ones((1, len(logit)), np.uint8), threshold, prevalence)
    every = np.ones(len(logit))
    n_fake, n_real = (sums_without(block[rows], blocks, every[rows]) for rows in (fake, ~fake))
    with np.errstate(divide="ignore", invalid="ignore"):
        for suffix, cut in (("", threshold), ("_at_0.5", 0.0)):
            reached = logit >= cut if fold is None or suffix == "" else p_fake >= 0.5
            called = np.full(len(logit), np.nan) if np.isnan(cut) else reached.astype(float)
            hit, alarm = (sums_without(block[rows], blocks, called[rows]) for rows in (fake, ~fake))
            recall, false_alarm = hit / n_fake, alarm / n_real
            found |= {f"recall{suffix}": recall, f"false_alarm{suffix}": false_alarm}
            found[f"balanced_accuracy{suffix}"] = 0.5 * (recall + 1 - false_alarm)
    if "auc" in only:
        found["auc"] = auc_without(logit, fake, block, blocks, fold)
    if "ap" in only:
        found["ap"] = _ap_without(logit, fake, block, blocks, prevalence)
    for name in OF_ONE_DETECTOR if fold is not None else ():
        if name in only:
            found[name] = np.full_like(found[name], np.nan)
    return {name: found[name] for name in only}


def auc_without(
    logit: np.ndarray, fake: np.ndarray, block: np.ndarray, blocks: int, fold: np.ndarray | None = None
) -> np.ndarray:
    """AUC of logits (n,) of all rows, then without each block: (1 + b,); NaN where a class is absent.

    With `fold` (n,) only pairs of one fold count: the mean of the folds' AUCs by their numbers of pairs.
    """
    places = [np.arange(len(logit))] if fold is None else [np.flatnonzero(fold == k) for k in np.unique(fold)]
    pairs = [_wrong_pairs(logit[rows], fake[rows], block[rows], blocks) for rows in places]
    wrong, every = (np.sum(counts, axis=0) for counts in zip(*pairs, strict=True)) if pairs else (np.nan, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(every == 0, np.nan, 1 - 0.5 * wrong / every)


def _wrong_pairs(logit: np.ndarray, fake: np.ndarray, block: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Twice the pairs that are the wrong way round, ties once, and all pairs: of all rows, then without each block.

    Of all pairs that are the wrong way round, a block takes away those of its fakes with any real and of its reals
    with any fake, of which those inside the block were counted twice.
    """
    highest_first, place = np.unique(-logit, return_inverse=True)
    k = len(highest_first)
    reals, fakes = (np.bincount(place[rows], minlength=k) for rows in (~fake, fake))
    over_fake = (2 * reals.cumsum() - reals)[place[fake]].astype(np.float64)  # twice the reals above, ties once
    under_real = (2 * (fakes.sum() - fakes.cumsum()) + fakes)[place[~fake]].astype(np.float64)
    wrong = np.full(1 + blocks, over_fake.sum())
    if blocks:
        cells, inverse = np.unique(block.astype(np.int64) * k + place, return_inverse=True)
        reals, fakes = (np.bincount(inverse[rows], minlength=len(cells)) for rows in (~fake, fake))
        of_cell = cells // k
        before = np.concatenate([[0], np.bincount(of_cell, reals, blocks).cumsum()])[of_cell]  # of earlier blocks
        inside = np.bincount(of_cell, fakes * (2 * (reals.cumsum() - before) - reals), blocks)
        lost = np.bincount(block[fake], over_fake, blocks) + np.bincount(block[~fake], under_real, blocks)
        wrong[1:] -= lost - inside
    n_fake, n_real = (sums_without(block[rows], blocks, np.ones(rows.sum())) for rows in (fake, ~fake))
    return wrong, n_fake * n_real


def _ap_without(logit: np.ndarray, fake: np.ndarray, block: np.ndarray, blocks: int, prevalence: float) -> np.ndarray:
    """Average precision of all rows, then without each block: (1 + b,); NaN where a class is absent."""
    out = np.full(1 + blocks, np.nan)
    if fake.all() or not fake.any():
        return out
    highest_first = np.unique(-logit[fake])  # precision is wanted where there are fakes
    place = np.searchsorted(highest_first, -logit)  # from there on a row is called fake
    k, odds = len(highest_first) + 1, (1 - prevalence) / prevalence
    d_tp, d_fp = (np.bincount(place[rows], minlength=k).astype(np.float64) for rows in (fake, ~fake))
    order = np.argsort(block, kind="stable")
    own = [order[:0], *np.split(order, np.bincount(block, minlength=blocks).cumsum()[:-1])][: 1 + blocks]
    for i, rows in enumerate(own):
        lost = fake[rows]
        gained = d_tp - np.bincount(place[rows[lost]], minlength=k)
        tp, fp = gained.cumsum(), (d_fp - np.bincount(place[rows[~lost]], minlength=k)).cumsum()
        if tp[-1] and fp[-1]:
            fp *= odds * tp[-1] / fp[-1]
            fp += tp
            np.maximum(fp, 1e-9, out=fp)
            out[i] = gained @ np.divide(tp, fp, out=fp) / tp[-1]
    return out


def within_groups(logit: np.ndarray, fake: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """How the reals of each group rank among its fakes: (n,), (n,) bool, (n,) ints -> groups (g,), `WITHIN` (g,).

    real_first: 1 if the real's logit is below those of all fakes, 1 / (1 + t) if t of them share the lowest place,
    else 0. real_first_chance: 1 / (1 + fakes), what equal scores or a coin reach. pair_ranking: share of the fakes
    above the real, a tie counting half (chance 0.5). Several reals: each is compared with the fakes alone, then their
    mean. Groups without a real or without a fake are left out. Nothing that all images of a group share, as content,
    can move these numbers.
    """
    values, rank = np.unique(logit, return_inverse=True)
    start = group.astype(np.int64) * len(values)
    place = start + rank  # by group, then by logit
    fakes = np.sort(place[fake])
    places = np.stack([start, place, start + len(values)])[:, ~fake]
    first, left, end = np.searchsorted(fakes, places)
    right = np.searchsorted(fakes, places[1], "right")
    kept = end > first  # reals with a fake in their group
    first, left, right, end = (index[kept] for index in (first, left, right, end))
    found = {
        "real_first": (left == first) / (1 + right - left),
        "real_first_chance": 1 / (1 + end - first),
        "pair_ranking": (end - right + (right - left) / 2) / (end - first),
    }
    groups, own, number = np.unique(group[~fake][kept], return_inverse=True, return_counts=True)
    return groups, {name: np.bincount(own, found[name], len(groups)) / number for name in WITHIN}


def interval_of(found: Replicates, metric: str) -> Interval:
    """The 95 % interval of one metric; none for those of `WITHOUT_INTERVAL`."""
    if metric in WITHOUT_INTERVAL:
        return NONE
    if found.worst_of:
        parts = np.stack([part.values[metric] for part in found.worst_of])
        groups = np.array([part.groups for part in found.worst_of])
        return worst_interval(parts, groups, highest=metric in LOWER_IS_BETTER)
    if found.sample_of:
        parts = np.stack([part.values[metric] for part in found.sample_of])
        return sample_interval(parts, found.sampled, found.groups)
    return share_interval(found.values[metric], found.groups)


def unseen_kinds(scores: Scores, families_met: Collection[str] = ()) -> dict[str, str]:
    """What is unseen of each generator that neither training nor selection met: `generator` alone, or `family` too.

    A family is seen if training or selection met one of its generators, as far as the rows of all splits show it, or
    if it is one of `families_met`. Generators of an unknown family are in neither.
    """
    of = dict(zip(scores["generator"], zip(scores["family"], scores["seen"], strict=True), strict=True))
    known = {name: pair for name, pair in of.items() if name != "real" and pair[0] not in UNKNOWN_FAMILIES}
    met = {family for family, seen in known.values() if seen in ("train", "val")} | set(families_met)
    return {name: "generator" if family in met else "family" for name, (family, seen) in known.items() if not seen}


def replicate(
    test: Scores,
    threshold: float,
    resamples: int,
    seed: int,
    prevalence: float = PREVALENCE,
    kinds: Mapping[str, str] | None = None,
    metrics: Collection[str] = METRICS,
) -> dict[Key, Replicates]:
    """All cells of these rows (see metrics.py) under one draw of resamples, shared by all views and means.

    `kinds`: what is unseen of a generator, as `unseen_kinds` of a table that has further rows says; None: of these.
    `metrics`: which are wanted, of `METRICS`.
    """
    kinds = unseen_kinds(test) if kinds is None else kinds
    dealt = deal(test["set"], test["group"], resamples, seed)
    seen = dict(zip(test["generator"], test["seen"], strict=True))
    fake, ok = test.fake, test.ok
    plain = ~fake & (test["edit"] == "")
    block_of = np.zeros(dealt.groups, dtype=np.int32)
    block_of[dealt.group] = dealt.block
    grouped = {label: fake & np.isin(test["seen"], MEANS[mean]) for label, mean in GROUPED.items()}
    fold = test.folds

    def cell(
        rows: np.ndarray, own: np.ndarray | None = None, seen: str = "", only: Collection[str] = METRICS
    ) -> Replicates:
        """Metrics of the readable `rows`; the unreadable ones among `own` are counted."""
        used = np.flatnonzero(rows & ok)
        real_or_fake = fake[used]
        values = measure_without(
            *(test["logit"][used], test["p_fake"][used], real_or_fake, dealt.block[used]),
            *(dealt.blocks, threshold, prevalence, [name for name in only if name in metrics]),
            None if fold is None else fold[used],
        )
        lost = 0 if own is None else int((own & ~ok).sum())
        classes = [dealt.group[used[which]] for which in (real_or_fake, ~real_or_fake) if which.any()]
        groups = min((len(np.unique(of_class)) for of_class in classes), default=0)
        if fold is not None:
            values = {metric: overlapping(of_metric) for metric, of_metric in values.items()}
        return Replicates(values, int((~real_or_fake).sum()), int(real_or_fake.sum()), groups, seen, lost)

    def inside(rows: np.ndarray) -> Replicates | None:
        """Means over the groups that have both classes among the readable `rows`; None without such a group."""
        used = np.flatnonzero(rows & ok)
        groups, found = within_groups(test["logit"][used], fake[used], dealt.group[used])
        if not len(groups):
            return None
        number = sums_without(block_of[groups], dealt.blocks, np.ones(len(groups)))
        with np.errstate(invalid="ignore"):  # without the only block that has any of these groups it is NaN
            values = {
                metric: sums_without(block_of[groups], dealt.blocks, each) / np.where(number, number, np.nan)
                for metric, each in found.items()
            }
        values = values if fold is None else {metric: overlapping(each) for metric, each in values.items()}
        held = np.zeros(dealt.groups, dtype=bool)
        held[groups] = True
        both = fake[used[held[dealt.group[used]]]]
        return Replicates(values, int((~both).sum()), int(both.sum()), len(groups))

    out: dict[Key, Replicates] = {}
    found: dict[str, list[Comparison]] = {}
    for one in comparisons(test):
        found.setdefault(one.view, []).append(one)
    for view in distinct(test["view"]):
        here = test["view"] == view
        sets = {name: here & (test["set"] == name) for name in distinct(test["set"][here])}
        parts = {}
        for one in found.get(view, []):
            key = one.set, view, one.generator
            parts[key] = cell(one.fakes | (one.reals & plain), one.fakes, seen[one.generator])
        out |= parts
        # a fake whose set has no reals is compared with nothing, and one that served selection stands apart
        matched = np.isin(test["set"], distinct(test["set"][here & plain & ok]))
        pooled = fake & matched & (test["seen"] != "val")
        alone = next(iter(sets)) if len(sets) == 1 else None  # all sets are this one: its numbers are theirs
        for name, rows in (sets | {ALL: here}).items():
            if name == ALL and alone is not None:
                labels = [label for of_set, of_view, label in out if (of_set, of_view) == (alone, view)]
                plural = {label: out[alone, view, label] for label in labels if (alone, view, label) not in parts}
                out |= {(ALL, view, label): replace(one, unreadable=0) for label, one in plural.items()}
                continue
            out[name, view, "pooled:all"] = cell(rows & (pooled | plain))
            edits = {f"edit:{edit}": test["edit"] == edit for edit in distinct(test["edit"][rows]) if edit}
            edits = {"real": plain, **edits, "edit:all": test["edit"] != ""} if edits else {"real": plain}
            for label, which in edits.items():
                own = None if name == ALL or label == "edit:all" else rows & which
                out[name, view, label] = cell(rows & which, own, only=ALARMS)
        out |= {(ALL, view, label): found for label, found in _aggregates(parts, dealt.blocks, kinds, metrics).items()}
        for (name, rows), (label, fakes) in itertools.product((sets | {ALL: here}).items(), grouped.items()):
            known = out.get((alone, view, label)) if name == ALL and alone is not None else None
            if groups := known or inside(rows & (fakes | plain)):
                out[name, view, label] = groups
    return out


def overlapping(values: np.ndarray) -> np.ndarray:
    """Values (1 + b,) whose jackknife variance is `OVERLAP` times as large."""
    known = ~np.isnan(values[1:])
    if not known.any():
        return values
    middle = values[1:][known].mean()
    return np.concatenate([values[:1], middle + np.sqrt(OVERLAP) * (values[1:] - middle)])


def _aggregates(
    parts: dict[Key, Replicates], blocks: int, kinds: Mapping[str, str], metrics: Collection[str]
) -> dict[str, Replicates]:
    """Means and the worst over the cells of one view that have both classes, resample by resample."""
    out: dict[str, Replicates] = {}
    both = {key: part for key, part in parts.items() if part.n_real and part.n_fake}
    chosen = {
        label: {key: part for key, part in both.items() if part.seen in which}
        for label, which in {**MEANS, "worst:all": MEANS["mean:all"]}.items()
    }
    for label, kind in UNSEEN.items():
        chosen[label] = {key: part for key, part in chosen["mean:unseen"].items() if kinds.get(key[2]) == kind}
    for label, used in chosen.items():
        values = {name: np.full(1 if name in WITHOUT_INTERVAL else 1 + blocks, np.nan) for name in metrics}
        for metric in metrics if used else ():
            stack = np.stack([part.values[metric] for part in used.values()])
            worst = stack.max(axis=0) if metric in LOWER_IS_BETTER else stack.min(axis=0)
            values[metric] = worst if label == "worst:all" else stack.mean(axis=0)
        n_real = sum({key[0]: part.n_real for key, part in used.items()}.values())  # once a set
        groups = int(np.mean([part.groups for part in used.values()])) if used else 0
        worst_of = tuple(used.values()) if label == "worst:all" else ()
        n_fake = sum(part.n_fake for part in used.values())
        out[label] = Replicates(values, n_real, n_fake, groups, worst_of=worst_of)
    for label in ("mean:selection", *UNSEEN):
        if not out[label].n_fake:
            del out[label]
    for label, mean in SAMPLES.items():
        if mean in out and (used := chosen[mean]):
            values = {metric: out[mean].values[metric] for metric in SAMPLED if metric in metrics}
            names = tuple(key[2] for key in used)
            out[label] = replace(out[mean], values=values, sample_of=tuple(used.values()), sampled=names)
    return out


def distinct(values: Iterable[Item]) -> list[Item]:
    """In order of first appearance."""
    return list(dict.fromkeys(values))

"""Which class of generator made an image: confusion, recall, and whether an unknown class can be told as such.

The classes are `real` and whatever else the columns `logit_<class>` of the scores name: families or generators. An
image belongs to the class with the largest logit; of equal ones to the first, and `real` is the first. A test row of a
class without a logit is of a class *absent* in training: no answer is right for it, so it has no recall and no part in
macro recall and macro-F1, but its row in the confusion matrix, and the open set is about it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from adapt.errors import Refusal
from adapt.evaluation.decision import EVERY, Decision
from adapt.evaluation.jackknife import Dealt, deal, share_interval
from adapt.evaluation.numbering import numbered
from adapt.evaluation.open_set import OPEN_SET, class_logits, classes_of, familiarity
from adapt.evaluation.replicates import ALL, auc_without, distinct, overlapping
from adapt.evaluation.scores import Scores

ABSENT, EDIT = "absent: ", "edit:"  # how the labels of rows begin that are not those of a class

Column = Literal["family", "generator"]


@dataclass(frozen=True)
class Rate:
    """One number with its 95 % interval. NaN is "not applicable": there is no row to count."""

    view: str
    label: str  # a class, or `all`
    metric: str  # recall, processed_reals; of all: macro_recall, macro_f1, auroc_X (of OPEN_SET), unknown_absent...
    value: float
    low: float
    high: float
    n: int  # readable rows that the value rests on
    skipped: int = 0  # resamples without such rows


@dataclass(frozen=True)
class Measured:
    """One number of all groups, then without some of them, (1 + b,); and the groups of the n rows behind it."""

    view: str
    label: str
    metric: str
    values: np.ndarray
    n: int
    groups: int
    folds: bool = False  # the rows are scored by several detectors, whose training rows overlap

    def rate(self) -> Rate:
        low, high = share_interval(overlapping(self.values) if self.folds else self.values, self.groups)
        skipped = 0 if np.isnan(self.values[0]) else int(np.isnan(self.values).sum())
        return Rate(self.view, self.label, self.metric, float(self.values[0]), low, high, self.n, skipped)


@dataclass(frozen=True)
class Count:
    """One cell of a confusion matrix."""

    view: str
    true: str  # a class, `absent: NAME`, or processed reals: `edit:NAME` and `edit:all`
    predicted: str
    count: int  # readable rows
    share: float  # of the rows of this true class; NaN if it has none


@dataclass(frozen=True)
class Attribution:
    """All numbers of one table of scores."""

    column: Column  # what the classes are
    classes: tuple[str, ...]  # `real`, then the others in the order of their columns
    absent: tuple[str, ...]  # classes of test rows that training did not have
    untested: tuple[str, ...]  # classes that training had and no unedited test row has
    rates: tuple[Rate, ...]
    counts: tuple[Count, ...]


def attribute(
    scores: Scores,
    resamples: int = 1000,
    seed: int = 0,
    column: Column | None = None,
    decision: Decision | None = None,
) -> Attribution:
    """Attribution of the readable test rows of each view, with intervals from the resamples of all other metrics.

    recall: share of a class's rows attributed to it. macro_recall, macro_f1: mean over the classes that the rows (of
    a resample: the drawn rows) hold, of rows of trained classes only. auroc_x: chance that a fake of a trained class
    has a larger max_logit, energy (logsumexp of all logits) or max_softmax than a fake of an absent class, ties half.
    processed_reals: share of the processed reals attributed to a class; they have no part in the others.
    unknown_absent, unknown_trained: share of the fakes of absent classes, and of trained ones, that are too unfamiliar
    for a family by the `decision` fitted on validation rows.

    In a table of folds each image is attributed by the logits of its own fold, and auroc_x compares fakes of one fold.

    `column` says what the classes are; without it the one of the two that has their names. Refuses classes without
    `real` or without a fake, names that could be either, a fake without a class, a readable row without its logits.
    """
    return attribute_measured(scores, resamples, seed, column, decision)[0]


def attribute_measured(
    scores: Scores,
    resamples: int = 1000,
    seed: int = 0,
    column: Column | None = None,
    decision: Decision | None = None,
) -> tuple[Attribution, list[Measured]]:
    """`attribute`, and what its rates are made of: the same groups are left out of any other scores of these rows."""
    classes = classes_of(scores)
    if classes[:1] != ("real",) or len(classes) < 2:
        given = ", ".join(classes) or "no class"
        raise Refusal(f"class logits of {given}: give logit_real and one a fake class, or leave all logit_<class> out")
    column = column or _column(scores, classes)
    test = scores.select(scores["split"] == "test")
    if not len(test):
        raise Refusal("the scores have no row with split 'test': there is nothing to report")
    true = _true(test, column)
    names = (*classes, *sorted(set(true) - set(classes)))
    if bad := [name for name in names if name.startswith((ABSENT, EDIT)) or not name]:
        raise Refusal(f"class {bad[0]!r}: a name cannot be empty or begin with {ABSENT!r} or {EDIT!r}; rename it")
    logits = class_logits(test)
    if lost := int((test.ok & ~np.isfinite(logits).all(axis=1)).sum()):
        raise Refusal(f"{lost} readable test rows lack a finite logit of a class: score them again or drop them")
    dealt, fold = deal(test["set"], test["group"], resamples, seed), test.folds
    held_names, of_row = numbered(true)
    number = np.array([names.index(name) for name in held_names])[of_row]
    measure, cut = (decision.familiarity, decision.rules(0.0).cuts[EVERY].known) if decision else ("energy", -np.inf)
    measured: list[Measured] = []
    cells = []
    for view in distinct(test["view"]):
        rows = np.flatnonzero((test["view"] == view) & test.ok)
        edit, fake, truth = test["edit"][rows], test.fake[rows], number[rows]
        called = logits[rows].argmax(axis=1)
        cells += _confusion(view, names, classes, truth, called, edit)
        closed, edited = (edit == "") & (truth < len(classes)), edit != ""
        measured += _closed_set(view, classes, truth[closed], called[closed], dealt, rows[closed], fold)
        known = truth[fake] < len(classes)
        measured += _open_set(view, logits[rows][fake], known, dealt, rows[fake], fold)
        if cut > -np.inf:
            rejected = familiarity(logits[rows][fake])[measure] < cut
            measured += _rejected(view, rejected, known, dealt, rows[fake], fold)
        measured += _processed(view, classes, called[edited], dealt, rows[edited], fold)
    held = set(true[test["edit"] == ""])
    untested = tuple(name for name in classes if name not in held)
    rates = tuple(one.rate() for one in measured)
    return Attribution(column, classes, names[len(classes) :], untested, rates, tuple(cells)), measured


def _column(scores: Scores, classes: tuple[str, ...]) -> Column:
    """Which of the two columns has all the names of classes that occur at all."""
    fakes = scores.select(scores.fake)
    columns: tuple[Column, ...] = ("family", "generator")
    found = {column: set(classes[1:]) & set(fakes[column]) for column in columns}
    either = found["family"] | found["generator"]
    holding = [column for column in found if either and found[column] == either]
    if len(holding) == 1 or (holding and (fakes["family"] == fakes["generator"]).all()):
        return holding[0]
    what = "as well families as generators" if holding else "neither all families nor all generators"
    raise Refusal(
        f"the classes {', '.join(classes[1:])} of the logit columns could be {what} of the fakes: say which they are "
        "with --classes family or --classes generator"
    )


def _true(test: Scores, column: Column) -> np.ndarray:
    """(n,) true class; every real image is `real`, whatever its family says."""
    true = np.where(test.fake, test[column], "real")
    wrong = test.fake & np.isin(true, ("", "real"))
    if wrong.any():
        generator = test["generator"][wrong][0]
        raise Refusal(f"fakes of {generator!r} have the {column} {true[wrong][0]!r}: fill in its {column}")
    return true


def _confusion(
    view: str,
    names: tuple[str, ...],
    classes: tuple[str, ...],
    truth: np.ndarray,
    called: np.ndarray,
    edit: np.ndarray,
) -> list[Count]:
    """Rows of the classes, of the absent ones, and of processed reals if the view has any."""
    kinds = {name if i < len(classes) else ABSENT + name: (edit == "") & (truth == i) for i, name in enumerate(names)}
    edits = [name for name in distinct(edit) if name]
    kinds |= {EDIT + name: edit == name for name in edits} | ({EDIT + ALL: edit != ""} if edits else {})
    cells = []
    for label, rows in kinds.items():
        found, n = np.bincount(called[rows], minlength=len(classes)).tolist(), int(rows.sum())
        pairs = zip(classes, found, strict=True)
        cells += [Count(view, label, name, count, count / n if n else float("nan")) for name, count in pairs]
    return cells


def _closed_set(
    view: str,
    classes: tuple[str, ...],
    truth: np.ndarray,
    called: np.ndarray,
    dealt: Dealt,
    rows: np.ndarray,
    fold: np.ndarray | None,
) -> list[Measured]:
    """Recall per class and the two means, from rows of trained classes."""
    right = truth == called
    hits = _counts(dealt, rows[right], truth[right], len(classes))
    trues, calls = (_counts(dealt, rows, number, len(classes)) for number in (truth, called))
    held = trues > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = hits / trues
        f1 = 2 * hits / (trues + calls)
        means = {
            name: np.where(held, values, 0).sum(axis=1) / held.sum(axis=1)
            for name, values in (("macro_recall", recall), ("macro_f1", f1))
        }
    rates = [
        _measured(view, name, "recall", recall[:, i], int(trues[0, i]), dealt.group[rows[truth == i]], fold)
        for i, name in enumerate(classes)
    ]
    return rates + [
        _measured(view, ALL, name, values, len(truth), dealt.group[rows], fold) for name, values in means.items()
    ]


def _open_set(
    view: str, logits: np.ndarray, known: np.ndarray, dealt: Dealt, rows: np.ndarray, fold: np.ndarray | None
) -> list[Measured]:
    """AUROC of known (n,) bool against the other fakes by what the logits (n, c) say."""
    values = np.full((len(OPEN_SET), 1 + dealt.blocks), np.nan)
    if known.any() and not known.all():
        for i, size in enumerate(familiarity(logits).values()):
            values[i] = auc_without(size, known, dealt.block[rows], dealt.blocks, None if fold is None else fold[rows])
    group = dealt.group[rows]
    rarer = min(group[known], group[~known], key=lambda of_kind: len(np.unique(of_kind)))
    return [
        _measured(view, ALL, f"auroc_{name}", values[i], len(known), rarer, fold) for i, name in enumerate(OPEN_SET)
    ]


def _rejected(
    view: str, rejected: np.ndarray, known: np.ndarray, dealt: Dealt, rows: np.ndarray, fold: np.ndarray | None
) -> list[Measured]:
    """Shares of the fakes (n,) bool of absent and of trained classes that are rejected."""
    every, found = (_counts(dealt, rows[used], known[used].astype(int), 2) for used in (slice(None), rejected))
    with np.errstate(invalid="ignore"):
        shares = found / every
    return [
        _measured(view, ALL, name, shares[:, i], int(every[0, i]), dealt.group[rows[known == i]], fold)
        for i, name in enumerate(("unknown_absent", "unknown_trained"))
    ]


def _processed(
    view: str, classes: tuple[str, ...], called: np.ndarray, dealt: Dealt, rows: np.ndarray, fold: np.ndarray | None
) -> list[Measured]:
    """Share of the processed reals attributed to each class."""
    if not len(called):
        return []
    found = _counts(dealt, rows, called, len(classes))
    with np.errstate(invalid="ignore"):
        shares = found / found.sum(axis=1, keepdims=True)
    group = dealt.group[rows]
    return [
        _measured(view, name, "processed_reals", shares[:, i], len(called), group, fold)
        for i, name in enumerate(classes)
    ]


def _counts(dealt: Dealt, rows: np.ndarray, number: np.ndarray, width: int) -> np.ndarray:
    """How many of these rows have each number (n,), of all groups first, then without each block: (1 + b, width)."""
    return np.stack([dealt.sums(rows, number == i) for i in range(width)], axis=1)


def _measured(
    view: str, label: str, metric: str, values: np.ndarray, n: int, groups: np.ndarray, fold: np.ndarray | None
) -> Measured:
    """With `fold`, of all test rows, the rows are scored by several detectors."""
    return Measured(view, label, metric, values, n, len(np.unique(groups)), fold is not None)

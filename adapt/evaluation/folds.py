"""Scores of cross-validation: several detectors of one recipe, each of other test images, as one table.

Their logits are on scales of their own, so nothing may rank an image of one fold against one of another. Even
detectors that learnt nothing would look worse than chance so: a fold with more fakes leaves fewer for its training,
which lowers its logits (Parker, Guenter and Bedo 2007, doi:10.1186/1471-2105-8-326). What becomes of each metric:

    auc                      pairs of one fold only: the mean of the folds' AUCs by their numbers of pairs
    balanced accuracy, recall, false alarms   each image at the threshold of its own fold, frozen on its validation
    ..._at_0.5, ece          each image by the p_fake of its own fold
    real_first, pair_ranking inside groups, which lie in one fold
    recall of classes, F1    each image by the class logits of its own fold (its largest needs no other image)
    open set (auroc_x)       pairs of one fold only
    ap, oracle, tpr_at_fpr   n/a: they rank all images

AUCs within folds were chosen rather than logits calibrated to one scale: a calibration of each fold rests on its few
validation images, and its error would be mixed into the ranking; pairs of one fold need none. It costs pairs: K folds
keep a K-th of them, and the interval says what that costs.

Intervals leave groups out in turn, with the detectors as they are. Two folds that train on each other's images tell
the same chance twice: where nothing is learnt, the score of a linear head is a sum over pairs of images, and each pair
counts in both. So the variance over groups is doubled (`OVERLAP` of replicates.py), the most that this can do;
Bengio and Grandvalet 2004 (JMLR 5, 1089) show that no estimate from one cross-validation alone is unbiased.
"""

from collections.abc import Sequence

import numpy as np

from adapt.errors import Refusal
from adapt.evaluation.open_set import classes_of
from adapt.evaluation.scores import FOLD, TEXT, Scores
from adapt.evaluation.thresholds import pick_threshold

MET = ("", "val", "train")  # where a generator was met; the last of several folds stands


def same_classes(of_folds: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The classes that the heads of all folds have, in the order of the first; refuses folds that differ."""
    first = of_folds[0]
    for number, classes in enumerate(of_folds[1:], 2):
        if differ := sorted(set(first) ^ set(classes)):
            raise Refusal(
                f"folds 1 and {number} are trained on different classes ({', '.join(differ)} in one of them only): "
                "give fewer folds, --leave_out for classes of few groups, or --classes binary"
            )
    return tuple(first)


def pool_folds(tables: Sequence[Scores], thresholds: Sequence[float] | None = None) -> Scores:
    """The test rows of one table a fold, with the column `fold` (from 1), logits above each fold's own threshold.

    `thresholds`: None, those that each table's validation rows pick. A generator counts as met in training, or in
    validation, if any fold met it there. Logits of classes stay those of each fold. Refuses a fold without a
    threshold, an image in two folds, and folds of different classes.
    """
    found = [pick_threshold(table) for table in tables] if thresholds is None else list(thresholds)
    classes = [f"logit_{name}" for name in same_classes([classes_of(table) for table in tables])]
    parts = []
    for number, (table, threshold) in enumerate(zip(tables, found, strict=True), 1):
        if threshold != threshold:
            raise Refusal(f"fold {number} has no readable validation images of both classes: it has no threshold")
        parts.append(table.select(table["split"] == "test"))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in (*TEXT, "p_fake", *classes)}
    columns["logit"] = np.concatenate([part["logit"] - t for part, t in zip(parts, found, strict=True)])
    columns[FOLD] = np.repeat(np.arange(1, 1 + len(parts)).astype(str).astype(object), [len(part) for part in parts])
    generators, of_row = np.unique(columns["generator"].astype(str), return_inverse=True)
    met = np.zeros(len(generators), np.int64)
    for rank, where in enumerate(MET):
        np.maximum.at(met, of_row[columns["seen"] == where], rank)
    columns["seen"] = np.array(MET, dtype=object)[met[of_row]]
    return Scores(columns)

"""Groups dealt to folds, for sets that are too small to be split once: every group is the test of one run.

Run k of K has fold k as its test, the next fold as validation (after the last the first), and trains on the rest: each
image is a test image once and a validation image once. What the manifest keeps from training stays so: a set without
train rows, and a generator (or a kind of processing) without any, is scored in the fold of its group and never trained
on; one that only validation has validates and is scored. Groups are dealt by the seed and their names alone.
"""

import numpy as np

from adapt.data.manifest import Manifest
from adapt.errors import Refusal

SMALL = 200  # groups: with fewer, one split leaves a test too small to say much


def deal_folds(rows: Manifest, folds: int, seed: int) -> np.ndarray:
    """The fold of each row's group, (n,) int64 from 0.

    Groups are ordered by set, then by the rarest generator that they hold, at random inside, and dealt in turn: each
    fold has as many groups of each generator as any other, but for one, wherever that generator is the rarest of its
    groups (it is where a photograph and its fakes are one group, and where each image is a group of its own).
    """
    (sets, of_set), (kinds, of_kind), (groups, of_group) = (
        np.unique(rows[name].astype(str), return_inverse=True) for name in ("set", "generator", "group")
    )
    pairs = np.unique(np.stack([of_group, of_kind], axis=1), axis=0)
    frequent = np.bincount(pairs[:, 1], minlength=len(kinds))  # groups that hold each generator
    rank = np.empty(len(kinds), np.int64)
    rank[np.lexsort((np.arange(len(kinds)), frequent))] = np.arange(len(kinds))
    rarest = np.full(len(groups), len(kinds))
    np.minimum.at(rarest, pairs[:, 0], rank[pairs[:, 1]])
    first_set = np.full(len(groups), len(sets))
    np.minimum.at(first_set, of_group, of_set)
    chance = np.random.default_rng([seed, folds]).permutation(len(groups))
    fold = np.empty(len(groups), np.int64)
    fold[np.lexsort((chance, rarest, first_set))] = np.arange(len(groups)) % folds
    return fold[of_group]


def of_fold(rows: Manifest, folds: int, fold: int, seed: int) -> Manifest:
    """The rows as run `fold` (from 1) of `folds` sees them; refuses one without both classes in each split."""
    dealt, number = deal_folds(rows, folds, seed), fold - 1
    split = np.where(dealt == number, "test", np.where(dealt == (number + 1) % folds, "val", "train")).astype(object)
    (_, of_set), (_, generator), (edits, edit) = (
        np.unique(rows[name].astype(str), return_inverse=True) for name in ("set", "generator", "edit")
    )
    kind = generator * len(edits) + edit
    trained, selected = (
        _have(of_set, held) & _have(kind, held) for held in (rows["split"] == "train", rows["split"] != "test")
    )
    kept = (split == "test") | (trained & (split == "train")) | (selected & (split == "val"))
    rows = rows.select(kept).resplit(split[kept])
    for name in ("train", "val", "test"):
        fake = rows.fake[rows["split"] == name]
        if not len(fake) or fake.all() or not fake.any():
            raise Refusal(
                f"--folds {folds}: in fold {fold}, split {name!r} has {(~fake).sum()} real and {fake.sum()} fake "
                "images and needs both: give fewer folds (at least 3), or more groups with train rows (`adapt prepare "
                "SOURCE --split train` makes all rows such)"
            )
    return rows


def _have(number: np.ndarray, held: np.ndarray) -> np.ndarray:
    """(n,) bool: whether some row of the same number is `held`."""
    return np.bincount(number, held, number.max() + 1)[number] > 0

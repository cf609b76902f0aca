"""A new generator learnt from few of its images: which groups are lent to training, and which test rows stay.

A pool of test groups that hold the generator leaves the test split for good, whatever the number of shots and the
seed: all numbers of a recovery curve are measured on the same test rows. The first K groups of the pool, in an order
drawn from the seed, are the shots.
"""

import difflib
import hashlib
import json

import numpy as np

from adapt.data.manifest import Manifest
from adapt.errors import Refusal

POOL = 64  # groups of the new generator that leave the test split, at most; and at most half of what it has


def pool(rows: Manifest, generator: str) -> list[str]:
    """Groups that leave the test split: by a hash of their names, so that a new group moves no other.

    Refuses a generator that training or validation has met, or that is not in the manifest, or has one group.
    """
    unseen = sorted(g for g, met in zip(rows["generator"], rows.seen(rows["generator"]), strict=True) if not met)
    names = list(dict.fromkeys(unseen))
    if generator not in names:
        known = generator != "real" and generator in rows["generator"]
        why = "is in the training or validation rows already" if known else "is no generator of this manifest"
        near = difflib.get_close_matches(generator, names, n=1)
        hint = f", perhaps you meant {near[0]!r}" if near and not known else ""
        raise Refusal(f"{generator!r} {why}{hint}; new (with test rows only): {', '.join(names) or 'none'}")
    groups = sorted(set(rows["group"][rows["generator"] == generator]), key=_place)
    if len(groups) < 2:
        raise Refusal(f"{generator!r} has {len(groups)} test group: one to learn from and one to test on are needed")
    return groups[: min(POOL, len(groups) // 2)]


def onboard(rows: Manifest, generator: str, shots: int, seed: int) -> tuple[np.ndarray, Manifest]:
    """Row numbers (n,) that stay, and the manifest of these rows, with `shots` groups of the generator in training.

    A group that is lent brings the generator's images and its photographs, processed ones where training knows that
    processing; its fakes of other generators are left out, for they would no longer be unseen. None of the shots is
    a validation row. With 0 shots the pool is left out and nothing is learnt. More shots hold those of fewer.
    Refuses what `pool` refuses, more shots than the pool has, and bytes that would be in two splits.
    """
    groups = pool(rows, generator)
    if not 0 <= shots <= len(groups):
        total = len(set(rows["group"][rows["generator"] == generator]))
        raise Refusal(
            f"{shots} shots of {generator!r}: {len(groups)} of its {total} test groups may be lent to training, at "
            f"most half of them and at most {POOL}"
        )
    chosen = sorted(groups, key=lambda group: _place(group, seed))[:shots]
    pooled, lent = np.isin(rows["group"], groups), np.isin(rows["group"], chosen)
    edits = {"", *rows["edit"][rows["split"] == "train"]}
    wanted = (rows["generator"] == generator) | (~rows.fake & np.isin(rows["edit"], list(edits)))
    kept = np.flatnonzero(~pooled | (lent & wanted))
    split = np.where(lent, "train", rows["split"])
    return kept, rows.select(kept).resplit(split[kept])


def _place(group: str, seed: int | None = None) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(["onboard", seed, group]).encode()).digest()[:8], "big")

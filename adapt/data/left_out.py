"""Generators that are left out of training and selection, so that a manifest says how well unseen ones are found."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from adapt.data.families import Families, read_families
from adapt.data.manifest import Manifest
from adapt.errors import Refusal

By = Literal["generator", "family"]
UNKNOWN = "other"  # the family of what the table of families does not hold


def kept_rows(rows: Manifest, names: Sequence[str]) -> np.ndarray:
    """(n,) bool: False for train and val rows of the generators and families `names`; test rows stay.

    Refuses a name that no train or val row has, and names that leave one of the two splits without fakes.
    """
    held = rows.fake & (rows["split"] != "test")
    families = read_families(manifest=rows)
    family = {generator: families.of(generator) for generator in dict.fromkeys(rows["generator"][held])}
    known = dict.fromkeys([*family, *(kind for kind in family.values() if kind != UNKNOWN)])
    for name in names:
        if name not in known:
            raise Refusal(
                f"--leave_out {name}: no generator or family of train and val rows; there are: {', '.join(known)}"
            )
    gone = [generator for generator, kind in family.items() if generator in names or kind in names]
    kept = ~(held & np.isin(rows["generator"], gone))
    for split in ("train", "val"):
        if not (kept & held & (rows["split"] == split)).any():
            raise Refusal(f"--leave_out {' '.join(names)}: no fakes are left in split {split!r}: leave out fewer")
    return kept


def leave_out(rows: Manifest, names: Sequence[str]) -> Manifest:
    """The manifest without train and val rows of these generators and families; refuses what `kept_rows` refuses."""
    return rows.select(kept_rows(rows, names)) if names else rows


def rotation_of(rows: Manifest, by: By) -> dict[str, tuple[str, ...]]:
    """What a rotation leaves out in turn: each generator, or family, and the generators that it is measured on.

    Those are generators with train and test rows. A family that is not known (`other`) is no family and always stays.
    Refuses fewer than two, and one without which a split has no fakes.
    """
    families: Families = read_families(manifest=rows)
    splits = {split: set(rows["generator"][rows["split"] == split]) for split in ("train", "test")}
    both = [g for g in dict.fromkeys(rows["generator"][rows.fake]) if g in splits["train"] and g in splits["test"]]
    found: dict[str, tuple[str, ...]] = {}
    for generator in both:
        name = generator if by == "generator" else families.of(generator)
        if by == "generator" or name != UNKNOWN:
            found[name] = (*found.get(name, ()), generator)
    if len(found) < 2:
        remedy = "rotate generators" if by == "family" and len(both) > 1 else "add images of another to train and test"
        have = ", ".join(found) or "none"
        raise Refusal(f"--rotate {by}: only {have} has train and test rows, and a rotation takes two: {remedy}")
    for name in found:
        kept_rows(rows, (name,))
    return found

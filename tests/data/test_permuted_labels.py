"""Permuted labels: what stays, what moves, and that nothing else does."""

from collections import Counter

import numpy as np

from adapt.data.manifest import Manifest
from adapt.data.permutation import permuted


def manifest(rows: list[tuple[str, str, str, str]], of_set: str = "") -> Manifest:
    """Rows of (group, generator, split, edit); families are named after the generators."""
    words = {"path": [f"{i}.png" for i in range(len(rows))]}
    words |= {name: [row[i] for row in rows] for i, name in enumerate(("group", "generator", "split", "edit"))}
    words |= {"set": [of_set] * len(rows), "family": ["" if row[1] == "real" else f"of {row[1]}" for row in rows]}
    words |= {"sha256": [""] * len(rows), "mask": [""] * len(rows)}
    return Manifest({name: np.array(values, object) for name, values in words.items()})


def matched(groups: int = 30) -> Manifest:
    kinds = [("real", ""), ("real", "webp"), ("a", ""), ("b", "")]
    splits = ("train", "val", "test")
    return manifest([(f"g{g}", name, splits[g % 3], edit) for g in range(groups) for name, edit in kinds])


def labels(rows: Manifest) -> list[tuple[str, str, str]]:
    return list(zip(*(rows[name] for name in ("generator", "edit", "family")), strict=True))


def test_a_photograph_and_its_fakes_exchange_labels_among_themselves():
    rows = matched()
    found = permuted(rows, 1)
    for group in rows.groups():
        before, after = ([labels(m)[row] for row in group] for m in (rows, found))
        assert Counter(before) == Counter(after)
        if rows["split"][group[0]] == "test":
            assert before == after
    for split in ("train", "val"):
        here = (rows["split"] == split).astype(bool)
        moved = np.mean(rows["generator"][here] != found["generator"][here])
        assert 0.3 < moved < 0.9  # expected: 10 of 16
    for name in ("path", "group", "split", "set"):
        assert list(rows[name]) == list(found[name])
    assert rows.digest != found.digest and labels(matched()) == labels(rows)  # the given rows stay as they are


def test_the_number_alone_decides():
    rows = matched()
    assert labels(permuted(rows, 1)) == labels(permuted(rows, 1)) != labels(permuted(rows, 2))


def test_every_image_of_a_group_is_as_often_the_real_one():
    rows = manifest([(f"g{g}", name, "train", "") for g in range(50) for name in ("real", "a", "b", "c")])
    real = np.mean([permuted(rows, number)["generator"] == "real" for number in range(1, 41)], axis=0)
    of_place = real.reshape(50, 4).mean(axis=0)
    assert np.allclose(of_place, 0.25, atol=0.04)  # 2000 draws: four deviations


def test_groups_of_one_class_exchange_it_as_a_whole_within_their_split_and_set():
    kinds = [("real", 3), ("a", 1), ("b", 2)]
    rows = []
    for split in ("train", "val", "test"):
        for g in range(12):
            name, size = kinds[g % 3]
            rows += [(f"{split}{g}", name, split, "")] * size
    both = [manifest(rows, of_set) for of_set in ("x", "y")]
    given = Manifest({name: np.concatenate([m[name] for m in both]) for name in both[0].columns})
    given.columns["group"] = np.char.add(given["group"].astype(str), given["set"].astype(str)).astype(object)
    given.columns["generator"] = np.where(
        (given["set"] == "y") & given.fake, given["generator"] + "y", given["generator"]
    )
    found = permuted(given, 3)
    changed = 0
    for group in given.groups():
        names = set(found["generator"][group])
        assert len(names) == 1  # still one class a group
        changed += names != set(given["generator"][group])
        assert all(name == "real" or name.endswith("y") == (given["set"][group[0]] == "y") for name in names)
    assert changed > 20
    first = [group[0] for group in given.groups()]
    for split in ("train", "val"):
        here = [row for row in first if given["split"][row] == split]
        assert Counter(given["generator"][here]) == Counter(found["generator"][here])

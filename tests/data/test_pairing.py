"""Controls of pair training: the same images, other company."""

from collections import Counter

import numpy as np
import pytest
import torch

from adapt.data.groups import Groups, collate, make_batch
from adapt.data.manifest import Manifest
from adapt.data.pairing import rematched, unpaired
from adapt.data.preprocess import Preprocess
from adapt.training.run import GroupSampler


def manifest(scenes: int = 9) -> Manifest:
    """Scenes of a real, a processed real, two fakes of `a`, one of `b`, and `c` in every second scene."""
    rows = []
    for g in range(scenes):
        members = [("real", ""), ("real", "blur"), ("a", ""), ("a", ""), ("b", ""), *([("c", "")] if g % 2 else [])]
        for number, (generator, edit) in enumerate(members):
            rows.append((f"s{g}-{number}.png", f"s{g}", generator, "train", edit))
    names = ("path", "group", "generator", "split", "edit")
    return Manifest.of(dict(zip(names, zip(*rows, strict=True), strict=True)), ".")


def scene(path: str) -> str:
    return path.split("-")[0]


def test_rematched_keeps_the_images_and_the_make_up_and_parts_every_fake_from_its_scene():
    before, after = manifest(), rematched(manifest(), 3)
    for name in ("path", "generator", "edit", "split", "file"):
        np.testing.assert_array_equal(before[name], after[name])
    for path, group, fake in zip(after["path"], after["group"], after.fake, strict=True):
        assert (scene(path) == group) != fake

    def make_up(rows: Manifest) -> Counter:
        return Counter(zip(rows["group"], rows["generator"], rows["edit"], strict=True))

    assert make_up(before) == make_up(after)
    # the fakes of one group come from different scenes
    apart = [len({scene(after["path"][row]) for row in rows}) for rows in after.groups()]
    assert np.mean(apart) > 2.5
    assert list(rematched(manifest(), 3)["group"]) == list(after["group"])
    assert list(rematched(manifest(), 4)["group"]) != list(after["group"])


def test_a_generator_with_one_group_stays():
    rows = manifest(2)
    assert list(rematched(rows, 0)["group"][rows["generator"] == "c"]) == ["s1"]


def test_unpaired_leaves_every_image_alone():
    rows = unpaired(manifest())
    assert all(len(members) == 1 for members in rows.groups())
    np.testing.assert_array_equal(rows.fake, manifest().fake)


def test_an_epoch_has_the_same_steps_however_the_images_are_grouped():
    for images, steps in ((101, 10), (109, 10), (53, 12)):
        sampler = GroupSampler(images, images // steps, 3, 0, 1, 0, 1, 0, steps)
        epochs = Counter(keys[0][0] for keys in sampler)
        assert (len(sampler), set(epochs.values())) == (3 * steps, {steps})


def test_twins_are_the_same_images_under_another_view_with_the_weight_shared(planted):
    rows = Manifest.read(planted)
    rows = rows.select(rows["split"] == "train")
    preprocess = _preprocess()
    views = ("none", "qf40")
    single, twin = (Groups(rows, preprocess, views, 5, twins=twins) for twins in (False, True))
    for g in range(6):
        one, two = single[(1, g)], twin[(1, g)]
        count = len(one.fake)
        assert two.twin.tolist() == [False] * count + [True] * count
        assert torch.equal(two.fake[:count], two.fake[count:]) and torch.equal(two.group[:count], two.group[count:])
        assert two.weight.sum() == pytest.approx(float(one.weight.sum()))
        assert not torch.equal(two.inputs[:count], two.inputs[count:])
        same = Groups(rows, preprocess, ("none",), 5, twins=True)[(1, g)]  # the same place, once more
        assert torch.equal(same.inputs[:count], same.inputs[count:])


def _preprocess() -> Preprocess:
    from adapt.models.towers.backbones import load_backbone

    return load_backbone("tiny", "last").preprocess


def test_a_batch_without_images_is_a_blank_of_weight_0_in_the_shape_of_its_items():
    nothing = np.zeros(0)
    features = make_batch(torch.empty(0, 7), nothing, nothing, 3, 2, [("a", "missing")])
    blank = collate([features])
    assert blank.inputs.shape == (1, 7) and blank.weight.tolist() == [0] and blank.twin.tolist() == [False]
    assert blank.unreadable == [("a", "missing")]

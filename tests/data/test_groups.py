"""Groups stay whole, draws depend on (seed, epoch, group) alone, and nothing is silently replaced."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from adapt.data.groups import Groups, GroupSampler, Images, collate
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Preprocess
from adapt.data.views import parse_view


@pytest.fixture
def world(tmp_path) -> Manifest:
    rng = np.random.default_rng(0)
    rows = []
    for g in range(6):
        for generator in ["real", *"ab"[: 1 + g % 2]]:
            path = f"{g}-{generator}.png"
            Image.fromarray(rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)).save(tmp_path / path)
            rows.append((path, f"g{g}", generator, "train"))
    columns = dict(zip(("path", "group", "generator", "split"), zip(*rows, strict=True), strict=True))
    return Manifest.of(columns, tmp_path)


PREPROCESS = Preprocess(size=24, shortest=24, geometry="native")
VIEWS = ("none", "qf40", "crop30+qf65")


def batches(
    world: Manifest, workers: int, start: int = 0, rank: int = 0, size: int = 1, accumulation: int = 1
) -> list:
    sampler = GroupSampler(6, 4, 3, seed=5, accumulation=accumulation, rank=rank, world=size, start=start)
    train = Groups(world, PREPROCESS, VIEWS, seed=5)
    return list(DataLoader(train, batch_sampler=sampler, collate_fn=collate, num_workers=workers))


def equal(a, b) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("inputs", "fake", "weight", "group"))


def test_workers_and_restarts_change_nothing(world) -> None:
    whole = batches(world, 0)
    assert len(whole) == 3
    assert all(equal(a, b) for a, b in zip(whole, batches(world, 2), strict=True))
    assert all(equal(a, b) for a, b in zip(whole[1:], batches(world, 0, start=1), strict=True))


@pytest.mark.parametrize(("size", "accumulation"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_micro_batches_share_a_step(world, size, accumulation) -> None:
    whole = batches(world, 0)
    parts = [batches(world, 0, rank=rank, size=size, accumulation=accumulation) for rank in range(size)]
    for step, batch in enumerate(whole):
        mine = [part[i] for part in parts for i in range(step * accumulation, (step + 1) * accumulation)]
        rows = torch.cat([p.inputs.flatten(1) for p in mine])
        assert Counter(map(bytes, rows.numpy())) == Counter(map(bytes, batch.inputs.flatten(1).numpy()))


def test_groups_are_never_divided_and_every_epoch_takes_others(world) -> None:
    sizes = {g: len(rows) for g, rows in enumerate(world.groups())}
    left_out = set()
    for batch in batches(world, 0):
        found = Counter(batch.group.tolist())
        assert len(found) == 4 and all(sizes[g] == n for g, n in found.items())
        left_out |= set(sizes) - set(found)
    assert len(left_out) > 2


def test_members_share_view_and_crop(tmp_path) -> None:
    """The same picture under two names: whatever is drawn must be drawn for both."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name)
    columns = {"path": ["a.png", "b.png"], "group": ["g", "g"], "generator": ["real", "real"], "split": ["train"] * 2}
    alike = Manifest.of(columns, tmp_path)  # which refuses the same bytes under two labels
    both = Manifest(alike.columns | {"generator": np.array(["real", "gan"], object)})
    pair = Groups(both, PREPROCESS, VIEWS, 0)
    draws = [pair[epoch, 0].inputs for epoch in range(12)]
    assert all(torch.equal(*pixels) for pixels in draws)
    assert len({bytes(pixels[0].numpy()) for pixels in draws}) > 8


def test_weights_balance_the_classes(world) -> None:
    train = Groups(world, PREPROCESS, ("none",), 0)
    assert train.weight[train.fake].sum() == pytest.approx(train.weight[~train.fake].sum())
    assert train.weight.mean() == pytest.approx(1)
    assert train.group_weight == pytest.approx(len(world) / 6)


def test_unreadable_members_are_named_not_replaced(world) -> None:
    Path(world["file"][0]).write_bytes(b"no image")
    Path(world["file"][3]).unlink()
    train = Groups(world, PREPROCESS, ("none",), 0)
    batch = collate([train[0, g] for g in range(3)])
    assert len(batch.fake) == sum(len(rows) for rows in world.groups()[:3]) - 2
    assert dict(batch.unreadable) == {world["path"][0]: "not-an-image", world["path"][3]: "missing"}
    for file in world["file"]:
        Path(file).unlink(missing_ok=True)
    empty = collate([train[0, g] for g in range(3)])
    assert empty.weight.tolist() == [0.0] and len(empty.unreadable) == 7  # a blank of weight 0: every process steps


def test_scoring_decodes_once_and_reports_each_view(world, monkeypatch) -> None:
    from adapt.data import groups

    calls = []
    read = groups.read_image
    monkeypatch.setattr(groups, "read_image", lambda *a: calls.append(a) or read(*a))
    item = Images(world, np.array([2, 1]), PREPROCESS, ("none", "qf40"))[0]
    assert item.row == 2 and item.reasons == ["", ""] and len(calls) == 1
    assert not torch.equal(item.pixels[0], item.pixels[1])
    Path(world["file"][1]).unlink()
    assert Images(world, np.array([1]), PREPROCESS, ("none", "qf40"))[0].reasons == ["missing", "missing"]


def test_preprocess_geometries() -> None:
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 80, 3), dtype=np.uint8))
    pixels = np.asarray(image)
    assert np.array_equal(Preprocess(24, 24, geometry="native")(image).permute(1, 2, 0), pixels[8:32, 28:52])
    corner = Preprocess(24, 24, geometry="native")(image, (1.0, 0.0))
    assert np.array_equal(corner.permute(1, 2, 0), pixels[:24, 56:])
    squashed = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR))
    found = Preprocess(24, 24, "bilinear", "squash")(image)
    assert np.array_equal(found.permute(1, 2, 0), squashed)
    halved = np.asarray(image.resize((60, 30), Image.Resampling.BICUBIC))[3:27, 18:42]
    assert np.array_equal(Preprocess(24, 30)(image).permute(1, 2, 0), halved)


@pytest.mark.parametrize("workers", [0, 2])
def test_members_of_a_group_get_the_same_steps(world, workers) -> None:
    """Under a chain: every file of a group is a copy of one picture here, so that the same steps give equal pixels."""
    for rows in world.groups():
        for row in rows[1:]:
            shutil.copy(world["file"][rows[0]], world["file"][row])
    views = ("chain3:1", "chain2:9+qf70")
    train = Groups(world, PREPROCESS, views, seed=5, twins=True)
    loader = DataLoader(
        train, sampler=[(e, g) for e in (0, 1) for g in range(6)], batch_size=None, num_workers=workers
    )
    found = list(loader)
    for batch in found:
        for half in (batch.inputs[~batch.twin], batch.inputs[batch.twin]):
            assert (half == half[:1]).all()
        assert not torch.equal(batch.inputs[~batch.twin], batch.inputs[batch.twin])
    assert not torch.equal(found[0].inputs, found[6].inputs)  # another epoch, another chain
    scored = Images(world, np.arange(len(world)), Preprocess(24, 24), views)
    of_row = [scored[i].pixels for i in range(len(world))]
    for rows in world.groups():
        assert all(torch.equal(of_row[row], of_row[rows[0]]) for row in rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_members_get_the_quality_of_their_photograph(tmp_path, workers) -> None:
    draw, rows = np.random.default_rng(2), []
    qualities = {"a": 60, "b": 85, "c": None}
    for group, quality in qualities.items():
        kind = {"format": "PNG"} if quality is None else {"format": "JPEG", "quality": quality}
        for generator, edit, options in (("real", "", kind), ("x", "", {}), ("y", "", {}), ("real", "sharpen", {})):
            pixels = Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8))
            pixels.save(tmp_path / f"{group}-{generator}{edit}", **{"format": "PNG", **options})
            rows.append((f"{group}-{generator}{edit}", group, generator, edit, "train"))
    columns = dict(zip(("path", "group", "generator", "edit", "split"), zip(*rows, strict=True), strict=True))
    world = Manifest.of(columns, tmp_path)
    plain = Preprocess(40, 40, geometry="native")
    for own in (True, False):
        data = Groups(world, plain, ("none",), 0, own_quality=own)
        loader = DataLoader(data, sampler=[(0, g) for g in range(3)], batch_size=None, num_workers=workers)
        for batch, members, quality in zip(loader, world.groups(), qualities.values(), strict=True):
            for place, row in enumerate(members):
                image = Image.open(world["file"][row]).convert("RGB")
                again = own and quality and (world["generator"][row] != "real" or world["edit"][row])
                wanted = parse_view(f"qf{quality}")(image) if again else image
                assert np.array_equal(batch.inputs[place].permute(1, 2, 0), np.asarray(wanted)), (own, row)

"""The cache of features: what is a hit, what is a miss, and what a kill leaves."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_children
from safetensors.numpy import load_file

from adapt.data.images import read_image
from adapt.data.manifest import Manifest
from adapt.data.views import parse_view
from adapt.errors import Refusal
from adapt.features import cache as module
from adapt.features.cache import extract, fingerprint
from adapt.features.shards import Shard, Space
from adapt.files import sha256
from adapt.models.towers.backbones import Backbone, load_backbone
from adapt.processes import Processes

VIEWS = ("none", "qf40")


@pytest.fixture(scope="module")
def rows(planted) -> Manifest:
    return Manifest.read(planted).select(np.arange(24))


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny", "proj")


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Images that went through the encoder, one number a pass."""
    seen: list[int] = []
    encode = Backbone.encode
    monkeypatch.setattr(Backbone, "encode", lambda self, x, layers: seen.append(len(x)) or encode(self, x, layers))
    return seen


def test_features_are_those_of_the_backbone(rows, tiny, tmp_path) -> None:
    features = extract(tiny, rows, VIEWS, cache=tmp_path, batch_size=7)
    for view in VIEWS:
        pixels = torch.stack([tiny.preprocess(parse_view(view)(read_image(file))) for file in rows["file"]])
        with torch.no_grad():
            expected = tiny(pixels).numpy()
        order = np.random.default_rng(0).permutation(len(rows))
        np.testing.assert_allclose(features.take(order, view), expected[order], atol=2e-5)
    mixed = np.array([VIEWS[i % 2] for i in range(len(rows))], dtype=object)
    both = features.take(np.arange(len(rows)), mixed)
    np.testing.assert_array_equal(features.take(order, "qf040"), features.take(order, "qf40"))
    np.testing.assert_array_equal(both[::2], features.take(np.arange(0, len(rows), 2), "none"))
    np.testing.assert_array_equal(both[1::2], features.take(np.arange(1, len(rows), 2), "qf40"))


def test_nothing_is_encoded_twice(rows, tiny, tmp_path, passes) -> None:
    extract(tiny, rows.select(np.arange(10)), ("none",), cache=tmp_path)
    assert sum(passes) == 10
    extract(tiny, rows, VIEWS, cache=tmp_path)
    assert sum(passes) == 10 + 14 * 2 + 10  # the first ten lacked one view, the others both
    passes.clear()
    again = extract(tiny, rows.select(np.arange(23, -1, -1)), VIEWS[::-1], cache=tmp_path)
    assert passes == []
    assert again.views == VIEWS[::-1]


def test_layers_that_lack_different_images_are_filled_by_one_pass(rows, tiny, tmp_path, passes) -> None:
    """Whole batches bring nothing new for the layer that has them already."""
    extract(tiny, rows.select(np.arange(12)), ("none",), ("last",), cache=tmp_path)
    both = extract(tiny, rows, ("none",), ("last", "block2"), cache=tmp_path, batch_size=4)
    assert sum(passes) == 12 + 24
    alone = extract(tiny, rows, ("none",), ("last", "block2"), cache=tmp_path / "alone")
    for layer in both.layers:
        found, expected = (features.take(np.arange(24), "none", layer) for features in (both, alone))
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_one_decoding_serves_all_views(rows, tiny, tmp_path, monkeypatch) -> None:
    from adapt.data import groups

    decoded: list[str] = []
    read = groups.read_image
    monkeypatch.setattr(groups, "read_image", lambda file, *more: decoded.append(file) or read(file, *more))
    extract(tiny, rows, (*VIEWS, "qf90"), cache=tmp_path)
    assert sorted(decoded) == sorted(rows["file"])


def test_equal_bytes_are_one_image(rows, tiny, tmp_path, passes) -> None:
    columns = {name: rows[name][:4] for name in ("path", "group", "generator", "split")}
    copy = tmp_path / "copies"
    for path in columns["path"]:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_bytes((Path(rows["file"][0])).read_bytes())
    same = Manifest.of(columns | {"generator": ["real"] * 4, "split": ["train"] * 4}, copy)
    features = extract(tiny, same, ("none",), cache=tmp_path / "cache")
    assert sum(passes) == 1
    assert np.ptp(features.take(np.arange(4), "none"), axis=0).max() == 0


@pytest.mark.parametrize("change", ["weights", "geometry", "view", "layer", "version", "precision"])
def test_a_change_is_a_miss(change, rows, tiny, tmp_path, passes, monkeypatch) -> None:
    few = rows.select(np.arange(3))
    extract(tiny, few, ("none",), cache=tmp_path)
    other, view = load_backbone("tiny", "proj"), "none"
    if change == "weights":
        monkeypatch.setitem(other.fingerprint, "weights", "0" * 64)  # the digest of any other weights
    elif change == "geometry":
        other = load_backbone("tiny", "proj", "squash")
    elif change == "view":
        view = "qf41"
    elif change == "layer":
        other = load_backbone("tiny", "last")
    elif change == "version":
        monkeypatch.setattr(module.provenance, "versions", lambda: dict.fromkeys(module.MAKERS, "0"))
    else:
        other = other.to_precision("bf16")
    passes.clear()
    extract(other, few, (view,), cache=tmp_path)
    assert sum(passes) == 3


def test_the_fingerprint_does_not_name_the_folder_of_the_weights(tiny) -> None:
    assert "name" not in json.dumps(list(fingerprint(tiny, "proj", "none")["encoder"]))
    assert fingerprint(tiny, "proj", "qf040") == fingerprint(tiny, "proj", "qf40")


def test_unreadable_images_are_rows_with_a_reason(rows, tiny, tmp_path, passes) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "good.png").write_bytes(Path(rows["file"][0]).read_bytes())
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    columns = {"path": ["good.png", "bad.png", "gone.png"], "group": ["a", "b", "c"]}
    manifest = Manifest.of(columns | {"generator": ["real"] * 3, "split": ["train"] * 3}, folder)
    lines: list[str] = []
    features = extract(tiny, manifest, ("none",), cache=tmp_path / "cache", say=lines.append)
    reasons = features.reasons("none")
    assert reasons[0] == "" and reasons[1] and reasons[2] == "missing"
    assert any("unreadable: 2 images" in line for line in lines)
    passes.clear()
    (folder / "gone.png").write_bytes(Path(rows["file"][1]).read_bytes())
    assert extract(tiny, manifest, ("none",), cache=tmp_path / "cache").reasons("none")[2] == ""
    assert sum(passes) == 1  # what was bad stays bad under its digest; what was missing is looked for again


def test_a_missing_file_with_a_known_digest_is_not_remembered_as_unreadable(rows, tiny, tmp_path) -> None:
    data = Path(rows["file"][0]).read_bytes()
    columns = {"path": ["a.png"], "group": ["a"], "generator": ["real"], "split": ["train"]}
    columns["sha256"] = [hashlib.sha256(data).hexdigest()]
    (tmp_path / "images").mkdir()
    manifest = Manifest.of(columns, tmp_path / "images")
    assert extract(tiny, manifest, ("none",), cache=tmp_path / "c").reasons("none")[0] == "missing"
    (tmp_path / "images" / "a.png").write_bytes(data)
    assert extract(tiny, manifest, ("none",), cache=tmp_path / "c").reasons("none")[0] == ""


def test_a_damaged_shard_is_set_aside_and_encoded_again(rows, tiny, tmp_path, passes, capsys) -> None:
    extract(tiny, rows, ("none",), cache=tmp_path)
    (shard,) = tmp_path.glob("*/*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])  # half written
    passes.clear()
    features = extract(tiny, rows, ("none",), cache=tmp_path)
    assert sum(passes) == len(rows) and "damaged" in capsys.readouterr().err
    assert shard.with_suffix(".damaged").is_file()
    assert np.isfinite(features.take(np.arange(len(rows)), "none")).all()


def test_a_shard_with_a_flipped_bit_is_not_believed(rows, tiny, tmp_path, passes) -> None:
    extract(tiny, rows, ("none",), cache=tmp_path)
    (shard,) = tmp_path.glob("*/*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    passes.clear()
    extract(tiny, rows, ("none",), cache=tmp_path)
    assert sum(passes) == len(rows)


def test_a_cache_of_another_manifest_is_refused_when_nothing_may_be_encoded(rows, tiny, tmp_path) -> None:
    extract(tiny, rows.select(np.arange(4)), ("none",), cache=tmp_path)
    extract(tiny, rows.select(np.arange(3)), ("none",), cache=tmp_path, cached_only=True)
    with pytest.raises(Refusal, match=r"20 of 24 images have no features .*adapt extract"):
        extract(tiny, rows, ("none",), cache=tmp_path, cached_only=True)


def test_features_that_are_not_finite_are_refused_by_name(rows, tiny, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Backbone, "encode", lambda self, x, layers: {"proj": torch.full((len(x), 8), torch.nan)})
    features = extract(tiny, rows, ("none",), cache=tmp_path)
    with pytest.raises(Refusal, match="not finite, such as"):
        features.take(np.arange(3), "none")


def test_shares_of_two_processes_make_one_cache(rows, tiny, tmp_path) -> None:
    lost = rows.columns | {"file": rows["file"].copy()}
    lost["file"][[4, 9]] = str(tmp_path / "gone.png"), str(tmp_path)
    rows = Manifest(lost)
    readable = np.setdiff1d(np.arange(len(rows)), [4, 9])
    alone = extract(tiny, rows, VIEWS, cache=tmp_path / "alone")

    def member() -> None:
        encoded: list[int] = []
        encode = Backbone.encode
        Backbone.encode = lambda self, x, layers: encoded.append(len(x)) or encode(self, x, layers)
        processes = Processes()
        both = extract(tiny, rows, VIEWS, cache=tmp_path / "both", **processes.encoding(0))
        assert both.missing == alone.missing == {4: "missing", 9: "not-a-file"}
        assert (both.ids == alone.ids).all()
        for view in VIEWS:
            assert np.abs(both.take(readable, view) - alone.take(readable, view)).max() < 1e-5
        assert sum(processes.gather([sum(encoded)])) == 2 * len(readable)  # each image once, under two views

    assert in_children(member, 2) == [0, 0]


CHILD = """
import sys, numpy as np
from pathlib import Path
import adapt.features.cache as f
import adapt.features.shards
from adapt.data.manifest import Manifest
from adapt.models.towers.backbones import load_backbone
adapt.features.shards.SHARD_BYTES = 1  # every image is published alone
rows = Manifest.read(sys.argv[1]).select(np.arange(24))
f.extract(load_backbone("tiny", "proj"), rows, ("none", "qf40"), cache=Path(sys.argv[2]), batch_size=2)
"""


def child(planted, cache: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, str(planted), str(cache)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_kill_9_loses_no_published_shard_and_leaves_no_half_one(planted, rows, tiny, tmp_path, passes) -> None:
    process = child(planted, tmp_path)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/*.safetensors"))) < 6 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = list(tmp_path.glob("*/*.safetensors"))
    assert len(kept) >= 6
    assert all(sha256(path) == path.stem for path in kept)
    extract(tiny, rows, VIEWS, cache=tmp_path)
    assert sum(passes) == 48 - len(kept)


def test_two_writers_at_once_leave_one_readable_cache(planted, rows, tiny, tmp_path, passes) -> None:
    writers = [child(planted, tmp_path) for _ in range(2)]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    features = extract(tiny, rows, VIEWS, cache=tmp_path, cached_only=True)
    assert passes == []
    alone = extract(tiny, rows, VIEWS, cache=tmp_path / "alone")
    for view in VIEWS:
        np.testing.assert_allclose(features.take(np.arange(24), view), alone.take(np.arange(24), view), atol=2e-5)


def test_a_large_space_is_mapped_and_not_read_into_memory(tmp_path) -> None:
    """100,000 x 768 float32 are 293 MiB; opening them and reading 1,000 rows must not cost that much."""
    psutil = pytest.importorskip("psutil")
    rng = np.random.default_rng(0)
    shard, expected = Shard(tmp_path), {}
    for start in range(0, 100_000, 20_000):
        shard.ids = [rng.bytes(32) for _ in range(20_000)]
        block = np.zeros((20_000, 768), np.float32)
        block[:, 0] = np.arange(start, start + 20_000)
        shard.rows = [block]
        expected |= {image: start + i for i, image in enumerate(shard.ids)}
        shard.publish()
    del block, shard
    memory = psutil.Process().memory_full_info()
    space = Space.open(tmp_path)
    chosen = list(expected)[::100]
    found = space.take(np.frombuffer(b"".join(chosen), "V32"))
    after = psutil.Process().memory_full_info()
    np.testing.assert_array_equal(found[:, 0], [expected[image] for image in chosen])
    assert len(space.ids) == 100_000
    # pages of the mapped file are shared; what is private to this process stays far below the size of the features
    assert after.uss - memory.uss < 60 << 20


def test_shards_are_plain_safetensors(rows, tiny, tmp_path) -> None:
    features = extract(tiny, rows, ("none",), cache=tmp_path)
    (shard,) = tmp_path.glob("*/*.safetensors")
    tensors = load_file(shard)
    assert tensors["features"].shape == (24, 128) and tensors["features"].dtype == np.float32
    place = {ids.tobytes(): row for row, ids in enumerate(tensors["ids"])}
    order = [place[image.tobytes()] for image in features.ids]
    np.testing.assert_array_equal(tensors["features"][order], features.take(np.arange(24), "none"))


def test_one_picture_in_two_groups_has_two_features_under_a_chain(rows, tiny, tmp_path, passes) -> None:
    """Its steps are drawn for each group; under other views it is encoded once."""
    columns = {name: np.concatenate([rows[name][:3], rows[name][:3]]) for name in ("generator", "split")}
    files = [tmp_path / f"{i}.png" for i in range(6)]
    for i, file in enumerate(files):
        shutil.copy(rows["file"][i % 3], file)
    columns |= {"path": np.array([file.name for file in files], object), "group": np.array([*"abcdef"], object)}
    twice = Manifest.of(columns, tmp_path)
    features = extract(tiny, twice, ("none", "chain3:4"), cache=tmp_path)
    for i, file in enumerate(twice["file"]):
        image = parse_view("chain3:4").of(twice["group"][i])(read_image(file))
        with torch.no_grad():
            wanted = tiny(tiny.preprocess(image)[None]).numpy()
        np.testing.assert_allclose(features.take(np.array([i]), "chain3:4"), wanted, atol=2e-5)
    assert (features.reasons("chain3:4") == "").all()
    np.testing.assert_array_equal(features.take(np.arange(3), "none"), features.take(np.arange(3, 6), "none"))
    before = sum(passes)
    extract(tiny, twice, ("none", "chain3:4"), cache=tmp_path)
    assert sum(passes) == before
    extract(tiny, twice, ("chain3:5",), cache=tmp_path)
    assert sum(passes) > before

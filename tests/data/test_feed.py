"""Data processes hand over whole batches: few descriptors, whatever the batch, and pinned where a GPU waits."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo

from adapt.data.feed import AHEAD, feed
from adapt.data.groups import Images, join_views
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Preprocess

COUNT = 260  # images: a whole batch of 256 and a rest
FILES = 96  # descriptors that a process may have; torch and its data processes hold some 40

CHILD = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from adapt.data.inputs import find_inputs
from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector, logits_of
from adapt.detector.localizer import Localizer
from adapt.detector.predict import batches, predict
from adapt.features.cache import extract
from adapt.models.heads.linear import LinearHead
from adapt.models.heads.map_head import MapHead
from adapt.models.towers.backbones import load_backbone
from adapt.training.localization import score_maps

folder, files = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
torch.set_num_threads(1)
rows, tiny, patches = Manifest.read(folder / "m.csv"), load_backbone("tiny", "proj"), load_backbone("tiny", "last")
inputs, every = find_inputs([str(folder / "images")])[1], np.arange(len(rows))
detector = Detector(tiny, LinearHead(tiny.dim)).eval()
localizer = Localizer(Detector(patches, MapHead(patches.dim, tools=("real", "gan"))))
for workers in (0, 3):
    if workers:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    many = {"batch_size": 256, "workers": workers}
    features = extract(tiny, rows, ("none",), cache=folder / str(workers), **many)
    readable = np.flatnonzero(features.reasons("none") == "")
    logits, reasons = logits_of(detector, rows, every, ("none",), **many)
    found = predict([detector], inputs, range(batches(len(inputs))), workers)
    judged = [row for _, rows_of, _ in found for row in rows_of]
    maps = score_maps(localizer, rows, every[:40], ("none", "qf40"), rows["generator"], batch_size=80, workers=workers)
    np.savez(
        folder / f"{workers}.npz", features=features.take(readable, "none"), logits=logits, changed=maps.changed,
        reasons=reasons.astype(str), status=[row["status"] for row in judged],
        judged=[row["logit"] or 0 for row in judged], fake=maps.scores["logit"],
    )
"""


def run(folder: Path) -> list[dict[str, np.ndarray]]:
    """What the child finds alone, and with data processes; one that hangs is ended with all of them."""
    command = [sys.executable, "-c", CHILD, str(folder), str(FILES)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said = child.communicate(timeout=240)[1]
    except subprocess.TimeoutExpired:
        said = "it hangs"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert child.returncode == 0, said[-2000:]
    return [dict(np.load(folder / f"{workers}.npz")) for workers in (0, 3)]


def test_a_batch_of_256_needs_few_descriptors(tmp_path) -> None:
    (tmp_path / "images").mkdir()
    paths = [f"images/{i:03d}.png" for i in range(COUNT)]
    for i, path in enumerate(paths[:-1]):  # of three sizes; the last one is missing
        (tmp_path / path).write_bytes(zoo.save(zoo.picture(32 + 8 * (i % 3), 40, seed=i), "PNG"))
    (tmp_path / paths[7]).write_bytes(b"no image")
    cells = {"path": paths, "group": paths, "generator": ["real", "gan"] * (COUNT // 2), "split": ["test"] * COUNT}
    Manifest.of(cells, tmp_path).write(tmp_path / "m.csv")
    alone, with_processes = run(tmp_path)
    assert alone["features"].shape[0] == COUNT - 2
    assert alone["reasons"][[7, COUNT - 1], 0].tolist() == ["not-an-image", "missing"]
    for name, found in with_processes.items():
        np.testing.assert_array_equal(found, alone[name], err_msg=name)


@pytest.mark.parametrize(("workers", "ahead"), [(1, AHEAD), (2, AHEAD // 2)])
def test_a_gpu_gets_pinned_batches_ahead_of_time(workers, ahead) -> None:
    data = torch.utils.data.TensorDataset(torch.arange(8))
    gpu, cpu = (feed(data, torch.device(name), workers, None, batch_size=4) for name in ("cuda", "cpu"))
    assert gpu.pin_memory and gpu.prefetch_factor == ahead
    assert not cpu.pin_memory and feed(data, torch.device("cuda"), 0, None).pin_memory


def test_joined_views_are_those_of_each_image(tmp_path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(zoo.save(zoo.picture(30, 30, seed=i), "PNG"))
    cells = {"path": [f"{i}.png" for i in (0, 1, 2, 3)], "group": list("abcd")}
    rows = Manifest.of(cells | {"generator": ["real"] * 4, "split": ["test"] * 4}, tmp_path)
    images = Images(rows, np.array([2, 3, 0]), Preprocess(16, 16, geometry="native"), ("none", "qf40"))
    joined = join_views([images[i] for i in range(3)])
    assert joined.rows == [2, 3, 0] and joined.crops == [[1, 1]] * 3
    assert joined.reasons == [["", ""], ["missing", "missing"], ["", ""]]
    for i in range(3):
        assert torch.equal(joined.pixels[2 * i : 2 * i + 2], images[i].pixels)

"""Encoding on a cluster of Ray: features equal those of the plain way bit for bit, also when a worker is killed."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from adapt.cli import parse
from adapt.commands import extract as command
from adapt.data.images import Unreadable, read_image
from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.features import cache, on_ray
from adapt.features.on_ray import passes
from adapt.features.shards import Space

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray, about itself
VIEWS = ("none", "qf40")
LAYERS = ("last", "proj")


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray", reason="the extra `ray` is not installed")


@pytest.fixture(scope="module")
def rows(planted, tmp_path_factory) -> Path:
    """48 images, of which one is no image and one is there twice."""
    folder, lines = tmp_path_factory.mktemp("rows"), ["path,group,generator,split"]
    for place, file in enumerate(Manifest.read(planted)["file"][:48]):
        shutil.copy(file, folder / f"{place}.png")
        lines.append(f"{place}.png,{place},real,test")
    (folder / "5.png").write_bytes(b"no image")
    shutil.copy(folder / "3.png", folder / "7.png")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return folder / "rows.csv"


def extracted(rows: Path, folder: Path, *words: str, views: tuple[str, ...] = VIEWS) -> dict[str, Space]:
    """The spaces that the command leaves, by the name of their folder."""
    flags = ["--manifest", str(rows), "--views", *views, "--layers", *LAYERS, "--cache", str(folder)]
    command.main(parse(command.Config, [*flags, "--batch_size", "6", *words]))
    return {place.parent.name: Space.open(place.parent) for place in folder.glob("*/fingerprint.json")}


def assert_equal(found: dict[str, Space], expected: dict[str, Space]) -> None:
    assert found.keys() == expected.keys() and len(found) == len(VIEWS) * len(LAYERS)
    for name, space in expected.items():
        np.testing.assert_array_equal(found[name].ids, space.ids)  # each image once
        assert found[name].reasons == space.reasons and len(space.reasons) == 1
        np.testing.assert_array_equal(
            found[name].take(space.ids).view(np.uint32), space.take(space.ids).view(np.uint32)
        )


def test_a_killed_worker_costs_nothing(ray, rows, tmp_path, monkeypatch, capfd, one_thread) -> None:
    """Two workers beside a head that computes nothing; one is killed in the middle of its passes."""
    from ray.cluster_utils import Cluster

    plain = extracted(rows, tmp_path / "plain", "--num_workers", "0")
    monkeypatch.setenv("RAY_ENABLE_AUTO_CONNECT", "0")
    two = Cluster(True, False, {"num_cpus": 0, "object_store_memory": on_ray.STORE, "include_dashboard": False})
    nodes = [two.add_node(num_cpus=2, object_store_memory=on_ray.STORE) for _ in range(2)]
    two.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", two.address)
    stream, killed = on_ray._stream, []

    def interrupted(*given) -> Iterator[dict]:
        for place, row in enumerate(stream(*given)):
            if place == 2:
                two.remove_node(nodes[0], allow_graceful=False)
                killed.append(len([node for node in ray.nodes() if node["Alive"]]))
            yield row

    monkeypatch.setattr(on_ray, "_stream", interrupted)
    try:
        found = extracted(rows, tmp_path / "ray", "--engine", "ray")
    finally:
        two.shutdown()
    assert killed and len(passes(np.ones((2, 47), bool), VIEWS, 6)) == 16
    assert_equal(found, plain)
    assert "features: 47 images x 2 views, 0 images found in the cache" in capfd.readouterr().out


def test_one_machine_and_what_is_there_already(ray, rows, tmp_path, monkeypatch, capfd, one_thread) -> None:
    """Without a cluster Ray starts here and ends; half of the work was done before, without Ray."""
    plain = extracted(rows, tmp_path / "plain", "--num_workers", "0")
    extracted(rows, tmp_path / "ray", "--num_workers", "0", views=("none",))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert_equal(extracted(rows, tmp_path / "ray", "--engine", "ray"), plain)
    assert not ray.is_initialized() and "0 images found" in capfd.readouterr().out.splitlines()[-2]
    seen: list[int] = []
    monkeypatch.setattr(on_ray, "cluster", lambda: seen.append(1))
    assert_equal(extracted(rows, tmp_path / "ray", "--engine", "ray"), plain)  # nothing to do: no Ray
    assert not seen


def test_a_worker_with_another_encoder_is_refused(ray, rows, tmp_path, monkeypatch, one_thread) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    encode = on_ray.encode_on_ray

    def elsewhere(asked, *given):
        other = parse(command.Config, ["--precision", "bf16"])
        return encode(other, *given)

    monkeypatch.setattr(on_ray, "encode_on_ray", elsewhere)
    with pytest.raises(Refusal, match=r"a worker has another encoder .* give --precision"):
        extracted(rows, tmp_path, "--engine", "ray")
    assert not list(tmp_path.glob("*/*.safetensors"))


def test_passes_are_those_of_the_plain_way(rows, tmp_path, monkeypatch) -> None:
    """Recorded at the encoder, with images that lack one view, the other, both or none."""
    seen: list[int] = []
    some = Manifest.read(rows)
    backbone = command_backbone()
    encode = backbone.encode
    monkeypatch.setattr(type(backbone), "encode", lambda self, x, layers: seen.append(len(x)) or encode(x, layers))
    cache.extract(backbone, some.select(np.arange(10)), ["none"], cache=tmp_path)
    cache.extract(backbone, some.select(np.arange(20, 31)), ["qf40"], cache=tmp_path)
    seen.clear()
    features = cache.extract(backbone, some, VIEWS, cache=tmp_path, batch_size=6)
    assert not set(features.reasons("none")) - {"", "not-an-image"}
    first = np.unique(features.ids, return_index=True)[1]
    images = np.sort(first)
    has = {"none": set(range(10)), "qf40": set(range(20, 31))}
    wanted = np.array([[row not in has[view] for row in images] for view in VIEWS])
    assert seen == [len(places) * len(needed) for places, needed in passes(wanted, VIEWS, 6)]


def command_backbone():
    from adapt.models.towers.backbones import load_backbone

    return load_backbone("tiny", "last")


def test_decoding_is_that_of_the_manifest(rows) -> None:
    backbone, some = command_backbone(), Manifest.read(rows).select(np.arange(4, 7))
    row = on_ray.Decode(backbone.preprocess)({"number": 9, "images": some, "views": ["none"]})
    assert row["number"] == 9 and [why[0] for why in row["reasons"]] == ["", "not-an-image", ""]
    image = backbone.preprocess(read_image(some["file"][2]))
    assert torch.equal(torch.from_numpy(row["pixels"][2]), image[0] if image.ndim == 4 else image)
    with pytest.raises(Unreadable):
        read_image(some["file"][1])


def test_what_ray_could_not_do_is_refused(rows, tmp_path, monkeypatch) -> None:
    with pytest.raises(Refusal, match="--num_workers does not go with --engine ray"):
        command.Config(engine="ray", num_workers=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Refusal, match=r"--engine ray needs Ray: pip install 'adapt-aigi\[ray\]'"):
        extracted(rows, tmp_path, "--engine", "ray")


def test_a_cluster_that_does_not_answer_is_one_line(ray, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(Refusal, match=r"RAY_ADDRESS=127.0.0.1:9: .*refused: start Ray there"):
        extracted(rows, tmp_path, "--engine", "ray")

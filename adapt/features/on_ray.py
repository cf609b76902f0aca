"""Encoding on a cluster of Ray: its CPUs decode, its GPUs encode (CPUs where it has none), this process keeps.

The same passes of the encoder as without Ray, each one item of a Ray Data set: an actor decodes its images for all
views, another one encodes them, and what comes back goes into the shards of the cache here. Ray holds decoding back
where encoding is slower, starts a killed actor again and gives it its pass once more; a node that is gone costs what
it held. Features therefore equal those of the plain way bit for bit, if processors and threads are of the same kind.
"""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from adapt import stop
from adapt.data.groups import Images
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Prepare
from adapt.errors import Refusal
from adapt.features.cache import Encoder, Found, fingerprint
from adapt.features.remembered import Asked
from adapt.features.shards import stored
from adapt.models.towers.backbones import load_backbone
from adapt.progress import bar
from adapt.provenance import cores

STORE = 200 << 20  # bytes of shared memory of a Ray that is started here: some passes in flight; more goes to the disk


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """The Ray of $RAY_ADDRESS, else one of this machine alone, which ends with the block."""
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_BACKEND_LOG_LEVEL", "fatal")):
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise Refusal("--engine ray needs Ray: pip install 'adapt-aigi[ray]'") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address, folder = os.environ.get("RAY_ADDRESS"), tempfile.mkdtemp(prefix="ray-")
    try:
        if address:
            _ask(address)
            try:
                ray.init(address, **quiet)
            except ConnectionError as error:
                raise Refusal(f"RAY_ADDRESS={address}: {error}: is RAY_AUTH_MODE the same on all nodes?") from error
        else:
            own: dict[str, Any] = {"num_cpus": max(2, cores()), "object_store_memory": STORE, "_temp_dir": folder}
            ray.init("local", include_dashboard=False, **own, **quiet)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


class Pass(TypedDict):
    """Images for one pass of the encoder, and the views that they lack."""

    number: int
    images: Manifest
    views: list[str]


class Decoded(TypedDict):
    """A pass after its CPUs."""

    number: int
    pixels: np.ndarray  # (n * views, ...)
    reasons: list[list[str]]  # of each image by view


class Encoded(TypedDict):
    """A pass after its encoder."""

    number: int  # -1: the worker has another encoder
    features: dict[str, np.ndarray]  # of each layer, (n * views, d), as they are stored
    reasons: list[list[str]]


def _ask(address: str) -> None:
    """Refuse an address HOST:PORT where nothing answers: Ray would try for minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        if port.isdecimal():
            socket.create_connection((host, int(port)), 10).close()
    except OSError as error:
        raise Refusal(f"RAY_ADDRESS={address}: {error}: start Ray there, or unset the variable") from error


class Decode:
    """An actor that decodes the images of a pass for the views that they lack."""

    def __init__(self, preprocess: Prepare) -> None:
        self.preprocess = preprocess

    def __call__(self, row: Pass) -> Decoded:
        images = Images(row["images"], np.arange(len(row["images"])), self.preprocess, tuple(row["views"]))
        items = [images[i] for i in range(len(images))]
        pixels = torch.cat([item.pixels for item in items]).numpy()
        return {"number": row["number"], "pixels": pixels, "reasons": [item.reasons for item in items]}


class Encode:
    """An actor with the encoder on its device."""

    def __init__(
        self,
        asked: Asked,
        layers: Sequence[str],
        identity: list[dict[str, object]],
        device: str,
        threads: int,
        cwd: str,
    ) -> None:
        torch.set_num_threads(threads)
        os.chdir(cwd)  # the name of the weights may be a relative path
        backbone = load_backbone(asked.backbone, asked.layer, asked.geometry).to(torch.device(device))
        self.encoder = backbone.for_features(asked.precision, asked.encoder).eval()
        self.layers = layers
        self.same = [fingerprint(self.encoder, layer, "none") for layer in layers] == identity

    @torch.no_grad()
    def __call__(self, row: Decoded) -> Encoded:
        if not self.same:  # as data: what an actor raises at its start is buried in a traceback of Ray
            return {"number": -1, "reasons": [], "features": {}}
        pixels = torch.from_numpy(np.array(row["pixels"])).to(self.encoder.device)  # a copy: Ray's memory is read-only
        found = {layer: stored(values.cpu()) for layer, values in self.encoder.encode(pixels, self.layers).items()}
        return {"number": row["number"], "reasons": row["reasons"], "features": found}


def passes(wanted: np.ndarray, views: Sequence[str], batch_size: int) -> list[tuple[np.ndarray, tuple[str, ...]]]:
    """Places of images that lack the same views, (n,), and these views, for each pass: those of the plain way.

    `wanted`: (views, images) bool.
    """
    out = []
    lacking = np.flatnonzero(wanted.any(axis=0))
    for pattern in np.unique(wanted[:, lacking], axis=1).T:
        here = lacking[(wanted[:, lacking] == pattern[:, None]).all(axis=0)]
        needed = tuple(view for view, lacks in zip(views, pattern, strict=True) if lacks)
        size = max(1, batch_size // len(needed))
        out += [(here[begin : begin + size], needed) for begin in range(0, len(here), size)]
    return out


def encode_on_ray(
    asked: Asked,
    encoder: Encoder,
    manifest: Manifest,
    keys: Mapping[str, np.ndarray],
    rows: np.ndarray,
    wanted: np.ndarray,
    absent: dict[tuple[str, str], np.ndarray],
    folders: dict[tuple[str, str], Path],
    views: Sequence[str],
    layers: Sequence[str],
    batch_size: int,
    workers: int,
    share: tuple[int, int],
    say: Callable[[str], object] | None,
) -> list[tuple[int, str]]:
    """As `adapt.features.cache._encode`, whose place it takes, with the encoder that is `asked` for."""
    todo = passes(wanted, views, batch_size)
    identity = [fingerprint(encoder, layer, "none") for layer in layers]
    found = Found(folders, absent, keys, rows)
    progress = bar(
        say is not None, total=sum(len(places) for places, _ in todo), unit="image", desc="encoding", leave=False
    )
    with cluster(), found.published():
        items: list[Pass] = [
            {"number": number, "images": manifest.select(rows[places]), "views": list(needed)}
            for number, (places, needed) in enumerate(todo)
        ]
        for row in _stream(items, asked, encoder.preprocess, layers, identity):
            if row["number"] < 0:
                raise Refusal(
                    "a worker has another encoder (device, precision, weights or library versions) than this process: "
                    "give --precision and --encoder, and the same environment on all nodes"
                )
            places, needed = todo[row["number"]]
            with stop.whole():
                reasons = [list(why) for why in row["reasons"]]
                of_layers = {
                    layer: np.array(values).reshape(len(places), len(needed), -1)
                    for layer, values in row["features"].items()
                }
                found.add(places, needed, reasons, of_layers)
                progress.update(len(places))
    progress.close()
    return found.lost


def _stream(
    items: list[Pass], asked: Asked, preprocess: Prepare, layers: Sequence[str], identity: list[dict[str, object]]
) -> Iterator[Encoded]:
    """The items, decoded and encoded, in the order in which they are ready."""
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    has = ray.cluster_resources()
    cpus, gpus, threads = int(has.get("CPU", 0)), int(has.get("GPU", 0)), torch.get_num_threads()
    device, own = ("cuda", 1) if gpus else ("cpu", min(threads, cpus - 1))
    if cpus < 2:
        raise Refusal(f"--engine ray: the cluster has {cpus} CPUs: at least 2 are needed, to decode and to encode")
    encoders = gpus or max(1, cpus * 3 // 4 // own)
    each = {"num_gpus": 1} if gpus else {"num_cpus": own}
    pool = ray.data.ActorPoolStrategy
    yield from (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map(
            Decode,
            fn_constructor_args=(preprocess,),
            compute=pool(min_size=1, max_size=max(1, cpus if gpus else cpus - encoders * own)),
            num_cpus=1,
        )
        .map(
            Encode,
            fn_constructor_args=(asked, tuple(layers), identity, device, threads, str(Path.cwd())),
            compute=pool(min_size=1, max_size=encoders),
            **each,
        )
        .iter_rows()
    )

"""Features on disk: our shards against a tar of one .npy a row, as WebDataset keeps them."""

import io
import shutil
import tarfile
import tracemalloc

import numpy as np

from adapt.benchmark.timing import Ratio, Settings, in_turns
from adapt.features.shards import Shard, Space

DIM, BATCH = 768, 64  # of the features; images that an encoder hands over at once


def measure(settings: Settings) -> list[Ratio]:
    rows = 200 if settings.small else 20_000
    rng = np.random.default_rng(0)
    features = rng.standard_normal((rows, DIM), dtype=np.float32)
    ids = np.frombuffer(rng.bytes(32 * rows), "V32")
    folder, tar = settings.folder / "store", settings.folder / "store.tar"

    def write() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shard = Shard(folder)
        for start in range(0, rows, BATCH):
            here = slice(start, start + BATCH)
            shard.add(ids[here], features[here].copy(), [""] * len(ids[here]))
        shard.publish()

    def write_tar() -> None:
        with tarfile.open(tar, "w") as archive:
            for image, feature in zip(ids, features, strict=True):
                buffer = io.BytesIO()
                np.save(buffer, feature)
                member = tarfile.TarInfo(f"{image.tobytes().hex()}.npy")
                member.size = buffer.tell()
                buffer.seek(0)
                archive.addfile(member, buffer)

    def read() -> float:
        return float(Space.open(folder).take(ids).sum())

    def read_tar() -> float:
        with tarfile.open(tar) as archive:
            files = (file for member in archive if (file := archive.extractfile(member)) is not None)
            return float(sum(np.load(io.BytesIO(file.read())).sum() for file in files))

    def write_bytes() -> None:
        (settings.folder / "store.bin").write_bytes(features.data)

    written = in_turns({"tar": write_tar, "ours": write, "bytes": write_bytes}, settings)
    red = in_turns({"tar": read_tar, "ours": read}, settings)
    if abs(read() - read_tar()) > 1e-4 * rows:
        raise RuntimeError("the shards and the tar hold different features")
    tracemalloc.start()
    write()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    case, tarred = f"{rows} x {DIM} float32", "tar of .npy"
    return [
        Ratio("store", case, "write shards, synced", tarred, written["ours"], written["tar"], goal=40),
        Ratio("store", case, "write shards, synced", "the bytes in one file, no digest, no sync", written["ours"],
              written["bytes"]),
        Ratio("store", case, "read shards, verified", tarred, red["ours"], red["tar"], goal=10),
        Ratio("store", case, "memory of the writer", "100 MiB", (peak,), (100.0,), "MiB", goal=1),
    ]  # fmt: skip

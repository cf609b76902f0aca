"""Images of a manifest into tar files in WebDataset's layout, so that millions of images are a few thousand files."""

import hashlib
from pathlib import Path

from adapt.collect.builder import Part, header_facts, join
from adapt.data.archives import archives_of_groups, share
from adapt.data.images import Unreadable, read_bytes
from adapt.data.manifest import Manifest
from adapt.data.rows import MEMBER, Place
from adapt.errors import Refusal
from adapt.progress import bar


def pack(manifest: Manifest, output: Path, shard: int = 0, num_shards: int = 1) -> Path | None:
    """Copy all images, byte for byte, into tar files beside the manifest `output`; returns it, None before the last
    of `num_shards` jobs is done.

    A group is one sample, its images stand beside each other. An image that cannot be read, or no longer has its
    sha256, is a line of the table of lost images. Killed and started again, it continues behind the last whole group.
    """
    if output.suffix.lower() not in (".csv", ".parquet"):
        raise Refusal(f"output {str(output)!r}: name a .csv or .parquet file, the manifest to write")
    if any(manifest["mask"]):
        raise Refusal("the manifest has masks, which tar files do not take: pack the rows without a mask")
    groups = manifest.groups()
    names = [name for name in manifest.columns if name not in ("path", "file", *MEMBER)]
    archive = archives_of_groups(manifest["file"], groups)
    what = {"packed": manifest.digest} | ({"shared": "by tar file"} if archive.max() >= 0 else {})
    with Part(output, what, shard=shard, num_shards=num_shards) as part:
        mine = [groups[index] for index in share(archive, shard, num_shards)]
        start = len(mine) if part.done else part.at or 0
        for number in bar(iterable=range(start, len(mine)), initial=start, total=len(mine), unit="group", desc="pack"):
            rows, images, lost = [], [], []
            for index in mine[number]:
                row = {name: manifest[name][index] for name in names if manifest[name][index]}
                row["file"] = str(manifest["file"][index])
                try:
                    images.append(_bytes(row, manifest.place(index)))
                    rows.append(row)
                except Unreadable as problem:
                    lost.append(row | {"reason": problem.reason})
            part.commit(rows, number + 1, images, lost)
        part.finish()
    return join(output, num_shards)


def _bytes(row: dict[str, str], place: Place | None) -> bytes:
    data = read_bytes(row["file"], place)
    header_facts(data)  # what is no image stays out
    if row.get("sha256") and row["sha256"] != hashlib.sha256(data).hexdigest():
        raise Unreadable("sha256-mismatch")
    return data

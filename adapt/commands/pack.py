"""Copy the images of a manifest into tar files: millions of images become a few thousand files.

    adapt pack --manifest data.csv --output packed/data.csv
    adapt pack --manifest data.csv --output packed/data.csv --shard $SLURM_ARRAY_TASK_ID --num_shards 32

Writes packed/data.shards/*.tar (1 GiB each) and packed/data.csv, whose rows say where in them each image lies: reading
one costs one seek, however many tar files there are. The layout is WebDataset's: each group is one sample, whose json
member holds the rows. Bytes are copied as they are. The same command continues after a kill. The job that finishes
last writes the manifest.
"""

from dataclasses import dataclass
from pathlib import Path

from adapt.cli import run
from adapt.flags import Rows, Shards


@dataclass(frozen=True)
class Config(Rows, Shards):
    output: Path  # manifest to write, .csv or .parquet; the tar files go beside it


def main(cfg: Config) -> None:
    from adapt.collect.pack import pack
    from adapt.data.manifest import Manifest, require_files
    from adapt.embedded import read_manifests

    rows = read_manifests(cfg.manifest)
    require_files(rows)
    if pack(rows, cfg.output, cfg.shard, cfg.num_shards) is None:
        print(f"shard {cfg.shard} is done, others are not: the last of them writes {cfg.output}")
        return
    packed = Manifest.read(cfg.output)
    print(f"{len(packed)} images packed, {len(rows) - len(packed)} not ({cfg.output.with_suffix('.lost.csv')})")
    print(f"{cfg.output}: the new manifest")


def command() -> None:
    """Parse the command line and run."""
    run(main, Config)

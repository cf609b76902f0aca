"""Make a data set fair: every image through one decoder, one size policy and one codec, and a record of what was done.

    adapt align --manifest data.csv --output_dir data-aligned --size resize256 --codec png
    adapt align --manifest data.csv --output_dir data-aligned --shard 3 --num_shards 16

Reads a manifest; writes images/, manifest.csv (for recipes and commands), align.csv (format, size, JPEG quality and
subsampling of each source, steps, reason where it could not be read). The same command continues after a kill; images
that are finished stay as they are. The shard that finishes last writes the tables. Run `adapt audit` before and
after. Files that are no JPEG are looked at for an earlier one.
Time on one core: 30 images per second at 224 px.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapt.cli import run
from adapt.flags import Rows, Shards

if TYPE_CHECKING:
    from adapt.data.manifest import Manifest


@dataclass(frozen=True)
class Config(Rows, Shards):
    output_dir: Path  # folder of the copies; not the one that holds the sources
    size: str = "group"  # group: the smallest shortest side in each group; resizeN; cropN: native pixels
    codec: Literal["png", "jpeg"] = "png"
    quality: int = 95  # quality of --codec jpeg
    subsampling: Literal["4:2:0", "4:2:2", "4:4:4"] = "4:2:0"  # chroma of --codec jpeg


def main(cfg: Config) -> None:
    import json
    from collections import Counter

    from adapt import provenance
    from adapt.cli import as_dict, dump
    from adapt.collect.align import align
    from adapt.data.manifest import require_files
    from adapt.embedded import read_manifests
    from adapt.files import write_text

    rows, revision = read_manifests(cfg.manifest), provenance.revision()
    require_files(rows)
    settings = {
        name: getattr(cfg, name) for name in ("size", "codec", "quality", "subsampling", "shard", "num_shards")
    }
    aligned = align(rows, cfg.output_dir, **settings)
    if aligned is None:
        print(f"shard {cfg.shard} is done, others are not: the last of them writes {cfg.output_dir / 'manifest.csv'}")
        return
    record = {"command": provenance.command(), "revision": revision, "versions": provenance.versions()}
    record |= {"source digest": rows.digest, "digest": aligned.digest, "identity": as_dict(cfg)}
    write_text(cfg.output_dir / "config.yaml", dump(cfg))
    write_text(cfg.output_dir / "provenance.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    before = Counter(("fake" if fake else "real") for fake in aligned.fake[aligned["jpeg_before"] != ""])
    print(f"{len(aligned)} images aligned, {len(rows) - len(aligned)} not (reasons in align.csv)")
    print(f"JPEG before, which cannot be undone: {before['real']} real, {before['fake']} fake (by header or pixels)")
    if advice := advice_on_jpeg(aligned, cfg):
        print(advice)
    print(f"{cfg.output_dir / 'manifest.csv'}: the new manifest")


def advice_on_jpeg(aligned: "Manifest", cfg: Config) -> str:
    """How to hide that one class was JPEG before, or "" where the classes are alike or it was done."""
    import numpy as np

    before = aligned["jpeg_before"] != ""
    shares = [float(before[rows].mean()) if rows.any() else 0.0 for rows in (~aligned.fake, aligned.fake)]
    if abs(shares[0] - shares[1]) <= 0.05:
        return ""
    lowest = int(np.quantile(aligned["jpeg_before"][before].astype(int), 0.05))
    smaller = bool((aligned["scale"].astype(float) < 1).all())
    if cfg.codec == "jpeg" and cfg.quality < lowest and smaller:
        return ""
    return (
        f"{shares[0]:.0%} of the reals and {shares[1]:.0%} of the fakes were JPEG, 5 % of them at {lowest} or less: a "
        f"detector can learn that. Align with --codec jpeg --quality {max(30, lowest - 5)} and a --size resizeN "
        "below all sources, then audit"
    )


def command() -> None:
    """Parse the command line and run."""
    run(main, Config)

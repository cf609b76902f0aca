"""Fill the cache of features ahead of time, on one machine or on many.

    accelerate launch -m adapt extract --manifest data.csv --views none qf90 qf65 qf40 \\
        --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k
    adapt extract --manifest data.csv --shard 3 --num_shards 16      (one job of an array)
    RAY_ADDRESS=HOST:6379 adapt extract --manifest data.csv --engine ray

Every image is decoded once for all views and encoded once for all layers; what the cache holds already is skipped,
so the same command continues after a kill. Several writers may fill one cache; of a manifest of tar files each job
takes whole ones. The recipes on frozen features then read the cache, with --cached_only without encoding anything.
Time: results/README.md gives images per second.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from adapt.cli import at_least
from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Rows, Shards, Waiting


@dataclass(frozen=True)
class Config(Rows, Waiting, Shards):
    backbone: str = "tiny"  # LIBRARY:MODEL[@WEIGHTS], see adapt/models/towers/backbones.py
    layers: tuple[str, ...] = ("last",)  # all, or of last, proj, blockK; _mean, _both, _tokens, _norm2; joined by +
    geometry: Literal["resize", "squash", "native"] | None = None  # native: crop; None: as the backbone was trained
    size: int | None = None  # side of its input in pixels, of any ViT; None: as the backbone was trained
    views: tuple[str, ...] = ("none", "qf90", "qf65", "qf40")  # an image is decoded once for all of them
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the encoder's weights
    encoder: Literal["auto", "plain", "packed"] = (
        "auto"  # plain: the library's own tower; see adapt/models/towers/packed.py
    )
    cache: Path | None = None  # folder of the feature cache; None: $ADAPT_CACHE/features
    batch_size: int = 32  # inputs (image x view) per pass of the encoder
    num_workers: int | None = None  # data processes; None: 1 on a CPU; a GPU: its share of cores, less one
    engine: Literal["processes", "ray"] = "processes"  # ray: the Ray of $RAY_ADDRESS or of this machine (extra `ray`)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "batch_size")
        if self.engine == "ray" and self.num_workers is not None:
            raise Refusal(
                "--num_workers does not go with --engine ray, which starts as many as its cluster has CPUs for"
            )

    @property
    def layer(self) -> str:
        """The layer that the encoder is loaded with; it hands back all `layers` from one pass."""
        return "last"


def main(cfg: Config) -> None:
    from adapt.data.archives import archives, share
    from adapt.data.manifest import require_files
    from adapt.embedded import read_manifests
    from adapt.features.cache import extract
    from adapt.features.remembered import frozen_backbone, state_tokens
    from adapt.processes import Processes

    processes, encode = Processes(cfg), None
    if cfg.engine == "ray":
        from adapt.features.on_ray import encode_on_ray

        if processes.accelerator.num_processes > 1:
            raise Refusal("--engine ray starts its own processes: use plain `adapt extract`")
        encode = partial(encode_on_ray, cfg)
    rows = read_manifests(cfg.manifest)
    require_files(rows)
    rows = rows.select(share(archives(rows["file"]), cfg.shard, cfg.num_shards))
    backbone = frozen_backbone(cfg, processes.device)
    layers = backbone.layers() if cfg.layers == ("all",) else cfg.layers
    encoding = processes.encoding(cfg.num_workers)
    state_tokens(backbone, rows, cfg.views, layers, cfg.cache, processes.say)
    extract(backbone, rows, cfg.views, layers, cache=cfg.cache, batch_size=cfg.batch_size, encode=encode, **encoding)
    processes.leave()


def command() -> None:
    """Parse the command line and run."""
    run_recipe(main, Config)

"""Hours and disk for a large set, from rates that were measured.

    adapt benchmark --output_dir results/benchmark             (first, on a machine of the kind you mean)
    adapt plan --benchmark results/benchmark/benchmark.json --images 1000000 100000000 5000000000
    adapt plan --images_per_s 2000 --devices 1 8 64            (a rate of your own)

Prints, for each number of images and of devices, the hours of one pass over all images under all views, what the
features, the tokens of a cached prefix and the image files take on disk, what the manifest takes in memory that all
processes share, and the commands. A device is whatever the
rate was measured on: a GPU with the processor cores that feed it, or a machine without one. Several devices are taken
to do as much as one each, which holds for independent jobs with storage that keeps up (`MB/s read` says what that is).
Takes a second and computes nothing but these products.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from adapt.cli import at_least
from adapt.cli import run as run_recipe
from adapt.errors import Refusal

ROW_BYTES = 130  # of a Parquet manifest in memory, with paths of 40 letters, groups and digests
MOST_ROWS = 50_000_000  # of one manifest: checking it takes minutes, and 6.5 GB of each node
PIPELINE = re.compile(r"(\S+), (\d+) photographs x (\d+) views")  # the work of a line of that stage


@dataclass(frozen=True)
class Config:
    benchmark: Path | None = None  # benchmark.json; its stage `pipeline` gives the rate
    images_per_s: float | None = None  # images per second and device, under all views; None: from the benchmark
    backbone: str = "open_clip:ViT-L-14@datacomp_xl_s13b_b90k"  # the encoder; its architecture chooses the rate
    images: tuple[int, ...] = (1_000_000, 100_000_000, 5_000_000_000)  # numbers of images in the set
    devices: tuple[int, ...] = (1, 8, 64)  # numbers of GPUs, or of machines without one
    views: tuple[str, ...] = ("none", "qf90", "qf65", "qf40")  # each image is encoded under all of them
    dim: int = 1024  # numbers per feature; float32 on disk
    tokens: int = 257 * 1024  # numbers per image of --cache_prefix; two bytes each
    image_kb: float = 300.0  # average size of an image file
    gpus_per_node: int = 8  # GPUs per node in the printed commands

    def __post_init__(self) -> None:
        at_least(1, self, "images", "devices", "dim", "tokens", "gpus_per_node")
        if self.images_per_s is not None and not self.images_per_s > 0:
            raise Refusal(f"--images_per_s {self.images_per_s}: give a rate above 0")


def rate_of(cfg: Config) -> tuple[float, str]:
    """Images per second of one device under all views, and where that was measured."""
    import json
    import statistics

    if cfg.images_per_s is not None:
        return cfg.images_per_s, "as given"
    if cfg.benchmark is None:
        raise Refusal("give --benchmark, a benchmark.json of the kind of machine that is meant, or --images_per_s")
    try:
        found = json.loads(cfg.benchmark.read_text(encoding="utf-8"))["ratios"]
        rows = [(row, PIPELINE.match(row["case"])) for row in found if row["stage"] == "pipeline"]
        rates = {
            match[1]: int(match[2]) / statistics.median(row["costs"]) * int(match[3]) / len(cfg.views)
            for row, match in rows
            if match and row["ours"] == "extract"
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"--benchmark {cfg.benchmark} is no benchmark.json ({error!r})") from error
    architecture = cfg.backbone.partition(":")[2].partition("@")[0] or cfg.backbone
    if architecture not in rates:
        has = ", ".join(rates) or "none"
        raise Refusal(f"{cfg.benchmark} has no rate of {architecture} (it has: {has}): measure it, or --images_per_s")
    return rates[architecture], f"{cfg.benchmark.name}, stage pipeline"


def lines(cfg: Config, rate: float) -> list[list[str]]:
    """One row per number of images and devices."""
    views = len(cfg.views)
    table = [["images", "devices", "hours", "features", "tokens", "image files", "manifest", "MB/s read"]]
    for images in cfg.images:
        for devices in cfg.devices:
            hours = images / (rate * devices) / 3600
            features, tokens = images * views * (4 * cfg.dim + 32), images * views * 2 * cfg.tokens
            sizes = (features, tokens, images * 1e3 * cfg.image_kb, images * ROW_BYTES)
            read = rate * devices * cfg.image_kb / 1e3
            table.append([f"{images:,}", f"{devices}", f"{hours:,.2f}", *map(size, sizes), f"{read:,.0f}"])
    return table


def size(count: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def commands(cfg: Config) -> str:
    """What runs the largest plan: an array of jobs over shards, and training on several nodes."""
    devices, per_node = max(cfg.devices), cfg.gpus_per_node
    nodes, views = -(-devices // per_node), " ".join(cfg.views)
    parts = max(cfg.images) > MOST_ROWS
    manifest = "part-$SLURM_ARRAY_TASK_ID.parquet" if parts else "data.parquet"
    share = "" if parts else f" --shard $SLURM_ARRAY_TASK_ID --num_shards {devices}"
    return f"""\
sbatch --array=0-{devices - 1} --gpus-per-task 1 --signal=TERM@60 --requeue --open-mode=append \\
    --wrap 'srun adapt extract --manifest {manifest} \\
    --backbone {cfg.backbone} \\
    --views {views}{share}'
srun --nodes {nodes} --ntasks-per-node 1 bash -c 'accelerate launch --multi_gpu --num_machines {nodes} \\
    --num_processes {devices} --machine_rank $SLURM_NODEID --main_process_port 29500 \\
    --main_process_ip $(scontrol show hostnames $SLURM_JOB_NODELIST | head -1) \\
    recipes/lora.py --manifest {"part-0.parquet" if parts else manifest} --backbone {cfg.backbone} \\
    --groups {2 * devices} --output_dir results/lora'"""


def advice(cfg: Config) -> str:
    """What to do with a manifest of the largest size."""
    if max(cfg.images) > MOST_ROWS:
        return (
            f"manifest: more than {MOST_ROWS:,} rows are too many for one. Prepare a part for each job "
            "(part-0.parquet ...) from folders or tables of its own: splits are drawn by the hash of a group, so "
            "parts agree. Train on one part, or on several that together stay below"
        )
    return (
        f"manifest: Parquet from 100,000 rows, {ROW_BYTES} bytes per row in memory that the processes of a node "
        "share; it is checked once, and every later start maps what was checked"
    )


def main(cfg: Config) -> None:
    rate, source = rate_of(cfg)
    table = lines(cfg, rate)
    wide = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    print(f"{rate:,.1f} images/s per device, each under {len(cfg.views)} views ({source})\n")
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, wide, strict=True)))
    print(f"\nfeatures: {4 * cfg.dim + 32} bytes per image and view; tokens: {2 * cfg.tokens}")
    print(f"{advice(cfg)}\n\n{commands(cfg)}")


def command() -> None:
    """Parse the command line and run."""
    run_recipe(main, Config)

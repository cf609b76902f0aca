"""How much faster than the usual way is each stage, here? Ratios, both ways timed in turns in one run.

    adapt benchmark --output_dir results/benchmark              (a quiet machine; all its cores)
    adapt benchmark --clock cpu --threads 1                     (a machine that others use too)
    adapt benchmark --device cuda                               (the same on a GPU)
    adapt benchmark --compare results/benchmark/benchmark.json  (has anything become slower?)

Every round runs all ways of doing the same work; a ratio is the median of the rounds, in brackets their least and
greatest. `bf16 products of its shapes` is what this machine's matrix multiplication reaches on bare products in the
same run: that ratio is the fraction of the peak. Weights are random, which changes no speed. The goals of the encoder
are for a processor with AMX. The last stage compares accuracy, not time: a probe on bf16 features against fp32. Writes
benchmark.json and table.md; ends with status 1 if --compare finds something slower. Time: about 35 minutes on 2
cores, of which ViT-L/14 in fp32 and 100,000 images take most.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapt.cli import at_least
from adapt.cli import run as run_recipe

Stage = Literal["encoder", "preprocessing", "pipeline", "store", "training", "heads", "metrics", "growth", "accuracy"]
STAGES: dict[Stage, str] = {  # module with a function `measure(settings) -> list[Ratio]`
    "encoder": "adapt.benchmark.encode",
    "preprocessing": "adapt.benchmark.preprocessing",
    "pipeline": "adapt.benchmark.pipeline",
    "store": "adapt.benchmark.store",
    "training": "adapt.benchmark.training",
    "heads": "adapt.benchmark.heads",
    "metrics": "adapt.benchmark.metrics",
    "growth": "adapt.benchmark.growth",
    "accuracy": "adapt.benchmark.accuracy",
}


@dataclass(frozen=True)
class Config:
    output_dir: Path = Path("results/runs/benchmark")  # benchmark.json, table.md
    stages: tuple[Stage, ...] = tuple(STAGES)
    backbones: tuple[str, ...] = ("open_clip:ViT-B-32@random", "open_clip:ViT-L-14@random")  # of open_clip
    device: Literal["cpu", "cuda"] = "cpu"
    clock: Literal["wall", "cpu"] = "wall"  # cpu: processor time, for a machine that others use too
    threads: int | None = None  # for both ways alike; None: every core
    rounds: int = 5  # how often each pair is timed; a ratio is the median
    photos: Path | None = None  # folder of JPEG photographs; None: 640 x 480 px of 1/f noise
    trained: str = "tiny"  # stage accuracy: a backbone with trained weights
    manifest: tuple[str, ...] = ("embedded",)  # stage accuracy: images that train and test a probe
    geometry: Literal["resize", "squash", "native"] | None = None  # stage accuracy: how images reach its size
    compare: Path | None = None  # benchmark.json of an earlier run; status 1 if anything is slower now
    small: bool = False  # as little work as possible: for a test of the code, not a measurement

    def __post_init__(self) -> None:
        at_least(1, self, "rounds")
        if self.threads is not None:
            at_least(1, self, "threads")


def main(cfg: Config) -> None:
    import importlib
    import json
    import logging
    import sys
    import tempfile

    import torch

    from adapt import provenance
    from adapt.benchmark.report import as_lines, compare, read, table
    from adapt.benchmark.timing import Settings
    from adapt.errors import Refusal
    from adapt.files import write_text
    from adapt.pages.markdown_page import write_page

    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise Refusal("--device cuda: torch sees no GPU here")
    old = None if cfg.compare is None else read(cfg.compare)
    photos = () if cfg.photos is None else tuple(sorted(cfg.photos.glob("*.jp*g")))
    if cfg.photos is not None and not photos:
        raise Refusal(f"--photos {cfg.photos}: no .jpg or .jpeg in this folder")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns of every random tower
    ratios = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        settings = Settings(
            *(cfg.rounds, cfg.clock, cfg.device, cfg.small, Path(folder), photos, cfg.backbones),
            *(cfg.trained, cfg.manifest, cfg.geometry),
        )
        for stage in cfg.stages:
            ratios += (found := importlib.import_module(STAGES[stage]).measure(settings))
            print(table(found) + "\n", flush=True)
    facts: dict[str, object] = {"command": provenance.command(), "revision": provenance.revision(), "clock": cfg.clock}
    facts |= {"rounds": cfg.rounds, **provenance.hardware(), "peak_memory_mib": provenance.peak_memory()}
    facts |= {"bf16": f"AMX {torch.cpu._is_amx_tile_supported()}, AVX512 {torch.cpu._is_avx512_bf16_supported()}"}
    facts |= provenance.versions()
    lines = as_lines(ratios)
    write_text(cfg.output_dir / "benchmark.json", json.dumps({"facts": facts, "ratios": lines}, indent=1) + "\n")
    about = "Ratio: cost of the baseline over ours, median of the rounds [least, greatest]; more than 1 is cheaper."
    sections = [about, table(ratios)]
    if old is not None and cfg.compare is not None:
        changes, slower = compare(old, lines)
        sections += [f"## Against {cfg.compare.name} of {old['facts'].get('revision', '?')}", changes]
        print(changes)
    write_page(cfg.output_dir / "table.md", "Benchmark", sections, facts)
    if old is not None and slower:
        print("slower than before: " + "; ".join(slower), file=sys.stderr)
        sys.exit(1)


def command() -> None:
    """Parse the command line and run."""
    run_recipe(main, Config)

"""Two ways to do the same work, timed in turns: what a benchmark's stage measures and hands back."""

import gc
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from adapt.data.preprocess import Geometry


def _cpu() -> float:
    """Seconds of all threads of this process and of the data processes that it has seen end."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


CLOCKS = {"wall": time.perf_counter, "cpu": _cpu}


@dataclass(frozen=True)
class Settings:
    """How every stage measures. Each stage is a function `measure(settings) -> list[Ratio]`."""

    rounds: int = 5
    clock: Literal["wall", "cpu"] = "wall"  # cpu: time that cores spent, for a machine that others use too
    device: str = "cpu"
    small: bool = False  # the smallest work that runs the same code: a test, no measurement
    folder: Path = Path()  # scratch space, deleted afterwards
    photos: tuple[Path, ...] = ()  # JPEG files; none: drawn
    backbones: tuple[str, ...] = ("open_clip:ViT-B-32@random", "open_clip:ViT-L-14@random")
    trained: str = "tiny"  # the backbone, manifest and geometry of what bf16 costs in accuracy
    manifest: tuple[str, ...] = ("embedded",)
    geometry: Geometry | None = None


@dataclass(frozen=True)
class Ratio:
    """Ours against a baseline: cost of the same work in each round, in the same unit.

    A fraction of a limit (a matrix product of the same shapes, say) is a ratio too: the limit is its baseline.
    """

    stage: str  # encoder, preprocessing, pipeline, store, training, heads, metrics, growth, accuracy
    case: str  # the work: model, batch, size
    ours: str
    baseline: str
    costs: tuple[float, ...]  # ours, one a round
    baseline_costs: tuple[float, ...]
    unit: Literal["s", "MiB", "AUC"] = "s"
    goal: float | None = None  # the least value that is wanted
    facts: Mapping[str, float | str] = field(default_factory=dict)  # what belongs to it: agreement, bytes...

    @property
    def each(self) -> list[float]:
        """Baseline over ours, round by round: more than 1 is cheaper than the baseline."""
        return [b / o for o, b in zip(self.costs, self.baseline_costs, strict=True)]

    @property
    def value(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.each)

    @property
    def spread(self) -> tuple[float, float]:
        """Least and greatest of the rounds."""
        return min(self.each), max(self.each)


def in_turns(
    ways: Mapping[str, Callable[[], object]], settings: Settings, warm_up: int = 1
) -> dict[str, tuple[float, ...]]:
    """Seconds of each way in each round: first all ways unmeasured, then every round all of them in turn.

    The order is reversed in every second round, so that a drift of the machine favours none.
    """
    for _ in range(warm_up):
        for way in ways.values():
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(settings.rounds):
        names = list(ways) if number % 2 == 0 else list(ways)[::-1]
        for name in names:
            seconds[name].append(once(ways[name], settings))
    return {name: tuple(times) for name, times in seconds.items()}


def once(way: Callable[[], object], settings: Settings) -> float:
    """Seconds of one call, everything that it started on the device included."""
    clock = CLOCKS[settings.clock]
    gc.collect()
    _finish(settings)
    began = clock()
    way()
    _finish(settings)
    return clock() - began


def _finish(settings: Settings) -> None:
    if settings.device == "cuda":
        torch.cuda.synchronize()

"""Photographs under four views to features, end to end: the field's loops, ours, and ours again from the cache.

The loops are those of UniversalFakeDetect's validation (a DataLoader, one pass a quality) and of ClipBased's
evaluation (one image at a time), re-typed around open_clip in fp32.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from adapt.benchmark.encode import upstream
from adapt.benchmark.preprocessing import QUALITIES, VIEWS, Pillow, kind_of, photographs
from adapt.benchmark.timing import CLOCKS, Ratio, Settings, in_turns
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Geometry
from adapt.features.cache import Encoder, extract
from adapt.features.remembered import frozen_backbone
from adapt.models.towers.backbones import Backbone, Precision, Way

GOALS = {"ViT-L-14": 6.0, "ViT-B-32": 5.5}
FASTER = "one image at a time"


@dataclass(frozen=True)
class _Asked:
    """What a recipe's flags would say."""

    backbone: str
    cache: Path
    layer: str = "proj"
    geometry: Geometry | None = None
    size: int | None = None
    precision: Precision = "bf16"
    encoder: Way = "auto"


class _Photos(Dataset):
    def __init__(self, files: list[Path], quality: int | None, transform: Pillow) -> None:
        self.files, self.quality, self.transform = files, quality, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(self.files[i].read_bytes(), self.quality)


def measure(settings: Settings) -> list[Ratio]:
    return [ratio for name in settings.backbones for ratio in _one(name, settings)]


@torch.no_grad()
def _one(name: str, settings: Settings) -> list[Ratio]:
    model = name.partition(":")[2].partition("@")[0] or name
    large = "-L-" in model or "-H-" in model
    files = photographs(settings, 2 if settings.small else 8 if large else 32)
    asked = _Asked(name, settings.folder / f"cache-{model}")
    theirs, device = upstream(name, settings), torch.device(settings.device)
    backbone, manifest = frozen_backbone(asked, device), _manifest(files)
    usual = Pillow(backbone.preprocess.size)

    def loader(batch: int, workers: int) -> Callable[[], None]:
        def loop() -> None:
            for quality in QUALITIES:
                for x in DataLoader(_Photos(files, quality, usual), batch, num_workers=workers):
                    theirs(x.to(device)).cpu()

        return loop

    inside: list[float] = []

    def fresh(encoder: Encoder) -> None:
        shutil.rmtree(asked.cache, ignore_errors=True)
        extract(encoder, manifest, VIEWS, cache=asked.cache, workers=1)

    def ours() -> None:
        inside.append(0.0)
        fresh(_Timed(backbone, inside, settings))

    def first() -> None:
        shutil.rmtree(asked.cache, ignore_errors=True)
        extract(frozen_backbone(asked, device), manifest, VIEWS, cache=asked.cache, workers=1)

    def second() -> None:
        encoder = frozen_backbone(asked, device)
        extract(encoder, manifest, VIEWS, cache=asked.cache, cached_only=True)
        if "network" in vars(encoder) or isinstance(encoder, Backbone):
            raise RuntimeError("the network was loaded although every feature is in the cache")

    workers = 0 if settings.small else 4
    ways = {"loader": loader(128, workers), "ours": ours} | ({} if large else {FASTER: loader(1, 0)})
    seconds = in_turns(ways, settings)
    again = in_turns({"first": first, "second": second}, settings)
    network = tuple(inside[-settings.rounds :])
    case, goal = f"{model}, {len(files)} {kind_of(settings)} x {len(VIEWS)} views", GOALS.get(model)
    ratios = [
        Ratio("pipeline", case, "extract", "DataLoader, a pass a quality, fp32", seconds["ours"], seconds["loader"],
              goal=goal),
        Ratio("pipeline", case, "extract", "its time inside the network", seconds["ours"], network, goal=0.85),
        Ratio("pipeline", case, "extract again, from the cache", "extract, loading the network", again["second"],
              again["first"], goal=50),
    ]  # fmt: skip
    if not large:
        ratios.insert(1, Ratio("pipeline", case, "extract", FASTER + ", fp32", seconds["ours"], seconds[FASTER],
                               goal=8 if goal else None))  # fmt: skip
    return ratios


class _Timed:
    """A backbone that adds the time inside its network to the last of `inside`."""

    def __init__(self, backbone: Encoder, inside: list[float], settings: Settings) -> None:
        self._backbone, self._inside, self._clock = backbone, inside, CLOCKS[settings.clock]
        self.name, self.layer = backbone.name, backbone.layer
        self.preprocess, self.device = backbone.preprocess, backbone.device

    def identity(self, layer: str) -> dict[str, object]:
        return self._backbone.identity(layer)

    def eval(self) -> object:
        return self._backbone.eval()

    def encode(self, pixels: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        began = self._clock()
        found = {name: value.cpu() for name, value in self._backbone.encode(pixels, layers).items()}
        self._inside[-1] += self._clock() - began
        return found


def _manifest(files: list[Path]) -> Manifest:
    names = [path.name for path in files]
    count = len(names)
    columns = {"path": names, "group": names, "generator": ["real"] * count, "split": ["test"] * count}
    return Manifest.of(columns, files[0].parent)

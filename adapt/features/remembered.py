"""Encoders for frozen features that load no network as long as every feature is in the cache.

    CACHE/encoders/<digest of the question>.json     fingerprint, precision and layers of the encoder that answered it

The question is the name, geometry, size, precision and way as asked, the kind of device and processor, the library
versions and this package's own code. The answer holds while the files of the weights have the status they had.
"""

import hashlib
import json
import platform
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from adapt import provenance
from adapt.data import digests
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Geometry, Preprocess
from adapt.features.cache import MAKERS, feature_cache, space_folder, state_room
from adapt.files import write_text
from adapt.models.towers import timm
from adapt.models.towers.backbones import TINY, Backbone, Fingerprint, Precision, Way, load_backbone
from adapt.models.towers.open_clip import checkpoint_in
from adapt.models.towers.transformers import snapshot

ROOMS = Path(__file__).parents[1]
CODE = [*sorted((ROOMS / "models").rglob("*.py")), ROOMS / "data" / "preprocess.py"]


class Record(TypedDict):
    """What is known of an encoder without its network."""

    fingerprint: Fingerprint
    identity: dict[str, object]
    layers: list[str]
    dim: int
    tokens: dict[str, list[int]]  # number and width of the patch tokens of each part
    files: dict[str, digests.Status]  # of the weights


class Asked(Protocol):
    """The flags of a recipe that say which frozen encoder is meant."""

    @property
    def backbone(self) -> str: ...

    @property
    def layer(self) -> str: ...

    @property
    def geometry(self) -> Geometry | None: ...

    @property
    def size(self) -> int | None: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def encoder(self) -> Way: ...

    @property
    def cache(self) -> Path | None: ...


def frozen_backbone(asked: Asked, device: torch.device, layer: str | None = None) -> "Backbone | Remembered":
    """The encoder asked for, from its record where there is one, else loaded and put on record."""
    cache = feature_cache() if asked.cache is None else Path(asked.cache)
    path = cache / "encoders" / f"{_question(asked, device)}.json"
    layer = layer or asked.layer
    record = _read(path)
    named = (re.sub("_(mean|both|tokens)$", "", part) for part in layer.split("+"))
    if record is not None and set(named) <= set(record["layers"]):
        return Remembered(record, asked, layer, device)
    backbone = _load(asked, layer, device)  # refuses a layer that it does not have
    files = weight_files(asked.backbone)
    found = {str(file): digests.status(file) for file in files or ()}
    statuses = {file: status for file, status in found.items() if status is not None}
    if files is not None and len(statuses) == len(found):
        record = {
            "fingerprint": backbone.fingerprint,
            "identity": backbone.identity(layer),
            "layers": list(backbone.layers()),
            "dim": backbone.dim,
            "tokens": {name: list(shape) for name, shape in backbone.tokens().items()},
            "files": statuses,
        }
        write_text(path, json.dumps(record, indent=1) + "\n")
    return backbone


class Remembered:
    """A frozen backbone by its record; the network is loaded when an image has to be encoded."""

    adapted = False

    def __init__(self, record: Record, asked: Asked, layer: str, device: torch.device) -> None:
        self.name, self.layer, self.device = asked.backbone, layer, device
        self.fingerprint: Fingerprint = {**record["fingerprint"], "layer": layer}
        self.dtype: torch.dtype = getattr(torch, str(record["identity"]["precision"]))
        facts: dict[str, Any] = {
            key: value for key, value in self.fingerprint["preprocess"].items() if key not in ("mean", "std")
        }
        self.preprocess = Preprocess(**facts)
        self._record, self._asked = record, asked

    def layers(self) -> tuple[str, ...]:
        return tuple(self._record["layers"])

    def tokens(self) -> dict[str, tuple[int, int]]:
        return {name: (count, width) for name, (count, width) in self._record["tokens"].items()}

    def identity(self, layer: str) -> dict[str, object]:
        return self._record["identity"] | {"layer": layer}

    def eval(self) -> "Remembered":
        return self

    @cached_property
    def network(self) -> Backbone:
        return _load(self._asked, self.layer, self.device)

    def encode(self, pixels: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        return self.network.encode(pixels, layers)


def state_tokens(
    backbone: "Backbone | Remembered",
    rows: Manifest,
    views: Sequence[str],
    layers: Sequence[str],
    cache: Path | None,
    say: Callable[[str], object],
) -> None:
    """For layers of all patch tokens: say what the features of these rows take on disk, and refuse where it lacks."""
    cache = feature_cache() if cache is None else Path(cache)
    for layer in layers:
        places = [part.removesuffix("_tokens") for part in layer.split("+") if part.endswith("_tokens")]
        shapes = backbone.tokens() if places else {}
        if each := sum(4 * shapes[place][0] * shapes[place][1] for place in places if place in shapes):
            folders = [space_folder(cache, backbone, layer, view) for view in dict.fromkeys(views)]
            remedy = "take fewer views, or a layer that pools its tokens"
            state_room(cache, folders, len(rows), each, say, f"layer {layer}", remedy)


def weight_files(name: str) -> list[Path] | None:
    """What decides the weights of a backbone that has just been loaded; None where that cannot be told."""
    library, _, model = name.partition(":")
    if model.endswith("@random"):
        return []  # drawn from a fixed seed
    if library == "timm" and timm.repository_of(name, model):
        return _folder(timm.folder_of(name, model))
    if library == "timm":
        file = Path(model.partition("@")[2])
        return _with(file, file.with_suffix(".json"))
    if library == "transformers":
        return _folder(snapshot(name, model))
    if name == "tiny" or model.startswith("local-dir:"):
        return _folder(TINY if name == "tiny" else Path(model.removeprefix("local-dir:")))
    if model.startswith("hf-hub:"):
        return None
    if checkpoint := checkpoint_in(model)[2]:
        return _with(checkpoint, checkpoint.parent / "config.json")  # which may say the activation
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    architecture, _, tag = model.partition("@")
    return [Path(download_pretrained(get_pretrained_cfg(architecture, tag)))]


def _with(file: Path, beside: Path) -> list[Path]:
    return [file.absolute(), *([beside.absolute()] if beside.is_file() else [])]


def _folder(folder: Path) -> list[Path]:
    """The folder too: its status changes when a file joins it."""
    folder = folder.absolute()
    return [folder, *sorted(folder.iterdir())]


def _load(asked: Asked, layer: str, device: torch.device) -> Backbone:
    backbone = load_backbone(asked.backbone, layer, asked.geometry, size=asked.size).to(device)
    return backbone.for_features(asked.precision, asked.encoder)


def _question(asked: Asked, device: torch.device) -> str:
    versions, code = provenance.versions(), hashlib.sha256()
    for path in sorted(CODE):
        code.update(path.read_bytes())
    cpu = torch.cpu
    question = {
        "asked": [asked.backbone, asked.geometry, asked.size, asked.precision, asked.encoder],
        "folder": str(Path.cwd()),  # the name may hold a relative path
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": [platform.machine(), cpu._is_amx_tile_supported(), cpu._is_avx512_bf16_supported()],
        "versions": {name: versions[name] for name in MAKERS},
        "code": code.hexdigest(),
    }
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Record | None:
    """The record, if the files of the weights are still those."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        same = all(digests.status(file) == tuple(was) for file, was in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent or damaged: the network is loaded
        return None
    return record if same else None

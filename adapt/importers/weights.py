"""What the importers share: their flags, how tensors leave a stranger's file, and the folder that is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.errors import Refusal
from adapt.flags import Checked
from adapt.published import Published, published

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.detector.detector import Detector

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SHOWN = 6  # keys of each kind that do not fit


@dataclass(frozen=True, kw_only=True)
class File(Checked):
    """Flags of every importer."""

    weights: Path  # the authors' file; --weights may be left out
    output: Path | None = None  # folder to make; None: results/runs/detectors/NAME
    trained_on: tuple[str, ...] = field(default=())  # generators that count as seen when it is measured; unknown: none

    @property
    def known(self) -> Published:
        """What is known of the detector: the row of the table that has the importer's name."""
        return published()[type(self).__module__.rpartition(".")[2]]

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Importing(File):
    """Flags of an importer whose detector stands on a tower."""

    backbone: str | None = None  # the tower at another place; None: the published one


def state_of(file: Path, prefix: str = "") -> dict[str, "Tensor"]:
    """The tensors of a file under `prefix`, which is cut off, in float32 where they are floats.

    Nothing in the file is run: see adapt/models/towers/checkpoint.py.
    """
    from adapt.models.towers.checkpoint import read_checkpoint

    if not file.is_file():
        raise Refusal(f"no weights at {file}: give the authors' file (`adapt detectors` says where it is)")
    stored = read_checkpoint(file).tensors
    found = {key.removeprefix(prefix): one.load() for key, one in stored.items() if key.startswith(prefix)}
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in found.items()}


def check_shapes(file: Path, found: Mapping[str, "Tensor"], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse missing, additional and misshapen tensors, by their names."""
    have = {key: tuple(tensor.shape) for key, tensor in found.items()}
    shapes = [
        f"{key} {have[key]} instead of {wanted[key]}" for key in wanted if key in have and have[key] != wanted[key]
    ]
    kinds = (
        ([key for key in wanted if key not in have], "missing"),
        ([key for key in have if key not in wanted], "not in it"),
    )
    said = [_few(keys, word) for keys, word in (*kinds, (shapes, "of another shape")) if keys]
    if said:
        raise Refusal(
            f"{file} does not fit: {'; '.join(said)}: give the authors' own file for this detector and tower"
        )


def _few(keys: list[str], word: str) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{len(keys)} {word}: {', '.join(keys[:SHOWN])}{more}"


def write_detector(detector: "Detector", source: File, name: str) -> Path:
    """Save an imported detector with where it is from on its card; its threshold is the authors' p = 0.5."""
    from adapt import provenance
    from adapt.evaluation.thresholds import AS_PUBLISHED
    from adapt.files import sha256

    known = source.known
    output = source.output or known.folder
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise Refusal(f"--output {output} exists: give a new folder")
    detector.basis = AS_PUBLISHED
    facts: dict[str, object] = {"imported": name, "method": known.method, "paper": known.paper}
    facts |= {"licence": known.licence, "weights from": known.weights, "trained by the authors on": known.training}
    facts |= {"weights": source.weights.name, "weights (SHA-256)": sha256(source.weights)}
    if source.trained_on:
        facts["trained_on"] = list(source.trained_on)
    detector.eval().save(output, facts | {"command": provenance.command()})
    return output

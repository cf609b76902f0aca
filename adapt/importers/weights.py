"""What the importers share: their flags, how tensors leave a stranger's file, and the folder that is written."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.errors import Refusal
from adapt.flags import Checked
from adapt.published import Published, published

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.detector.detector import Detector
    from adapt.models.heads.affine import Affine
    from adapt.models.towers.checkpoint import Stored
    from adapt.models.towers.own import Own, Shape

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


@dataclass(frozen=True, kw_only=True)
class WithTower(Importing):
    """Flags of importers whose file holds the tower, too: the detector's folder carries it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone is not None:
            raise Refusal(f"--backbone {self.backbone}: {self.weights} holds its own tower; leave the flag out")

    def write_tower(self, folder: Path) -> "Own":
        """Write the tower into the detector's folder."""
        raise NotImplementedError


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


def plain_of(file: Path, *place: str) -> object:
    """What a file holds beside tensors at a place in its dicts, as ("config", "size"); None where there is nothing."""
    from adapt.models.towers.checkpoint import read_checkpoint

    found = read_checkpoint(file).plain
    for key in place:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def under(state: Mapping[str, "Tensor"], *wrappers: str) -> dict[str, "Tensor"]:
    """What lies under each wrapper in turn ("state_dict.", "module."), where there is one."""
    found = dict(state)
    for wrapper in wrappers:
        inside = {key.removeprefix(wrapper): value for key, value in found.items() if key.startswith(wrapper)}
        found = inside or found
    return found


def stored_of(file: Path, anchor: str, leave: Iterable[str] = ()) -> dict[str, "Stored"]:
    """What a file holds, still in it, under whatever wrappers (`state_dict.`, `module.`) stand before its tensor
    `anchor`; without what ends in one of `leave`."""
    from adapt.models.towers.checkpoint import read_checkpoint

    if not file.is_file():
        raise Refusal(f"no weights at {file}: give the authors' file (`adapt detectors` says where it is)")
    stored = read_checkpoint(file).tensors
    wrapper = next((key.removesuffix(anchor) for key in stored if f".{key}".endswith(f".{anchor}")), None)
    if wrapper is None:
        held = f"it holds {', '.join(list(stored)[:SHOWN]) or 'no tensor'}"
        raise Refusal(f"{file} does not fit: no {anchor} ({held}...): give the authors' own file for this detector")
    found = {key.removeprefix(wrapper): one for key, one in stored.items() if key.startswith(wrapper)}
    return {key: one for key, one in found.items() if not key.endswith(tuple(leave))}


def check_sides(file: Path, stored: Mapping[str, "Stored"], sides: Mapping[str, int]) -> None:
    """Refuse tensors whose keys end in one of `sides` and that have another number of them."""
    for key, one in stored.items():
        for end, count in sides.items():
            if key.endswith(end) and len(one.shape) != count:
                raise Refusal(
                    f"{file} does not fit: {key} {one.shape} has not {count} sides: give the authors' own file"
                )


def fit_tower(
    file: Path,
    stored: Mapping[str, "Stored"],
    layout: str,
    key_of: Callable[[str], str],
    beside: Mapping[str, "Shape"],
    given: Mapping[str, "Shape"] | None = None,
) -> dict[str, "Shape"]:
    """The shapes of a tower's tensors by their names in its library, found in the authors' file under `key_of` them.

    `beside` are keys and shapes of what else the file must hold, `given` shapes of what is not in it as it will be.
    Refuses what is missing, what is more, and what has another shape.
    """
    from adapt.models.towers import own

    fixed = given or {}

    def shape_of(name: str) -> "Shape | None":
        if name in fixed:
            return fixed[name]
        return stored[key_of(name)].shape if key_of(name) in stored else None

    try:
        shapes = own.shapes(layout, shape_of)
    except own.Lacks as error:
        key = key_of(str(error))
        have = f"{key} {stored[key].shape} is none of its" if key in stored else f"1 missing: {key}"
        raise Refusal(f"{file} does not fit: {have}: give the authors' own file for this detector") from error
    except ValueError as error:
        raise Refusal(f"{file} does not fit: {error}: give the authors' own file for this detector") from error
    wanted = {key_of(name): shape for name, shape in shapes.items() if name not in fixed}
    check_shapes(file, stored, wanted | dict(beside))
    return shapes


def two_classes(weight: "Tensor", bias: "Tensor", unit: bool = False) -> "Affine":
    """A softmax over (real, fake) as one logit: weight (2, d) and bias (2,)."""
    from adapt.models.heads.affine import Affine

    head = Affine(weight.shape[1], unit)
    rows, numbers = weight.double(), bias.double()
    head.load_state_dict({"weight": (rows[1:] - rows[:1]).float(), "bias": (numbers[1:] - numbers[:1]).float()})
    return head


def check_shapes(file: Path, found: Mapping[str, "Tensor | Stored"], wanted: Mapping[str, tuple[int, ...]]) -> None:
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


def write_detector(source: File) -> "tuple[Detector, Path]":
    """Make and save an imported detector with where it is from on its card; its threshold is the authors' p = 0.5."""
    from adapt import provenance
    from adapt.evaluation.thresholds import AS_PUBLISHED
    from adapt.files import new_folder, sha256

    known = source.known
    output = source.output or known.folder
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise Refusal(f"--output {output} exists: give a new folder")
    with new_folder(output) as folder:
        if isinstance(source, WithTower):
            tower = source.write_tower(folder)
            detector = source.detector(tower.name)
            detector.tower = tower
        else:
            detector = source.detector(getattr(source, "backbone", None) or known.tower)
        detector.basis = AS_PUBLISHED
        facts: dict[str, object] = {"imported": known.name, "method": known.method, "paper": known.paper}
        facts |= {"licence": known.licence, "weights from": known.weights, "trained by the authors on": known.training}
        facts |= {"weights": source.weights.name, "weights (SHA-256)": sha256(source.weights)}
        if source.trained_on:
            facts["trained_on"] = list(source.trained_on)
        detector.eval().save(folder, facts | {"command": provenance.command()})
    return detector, output

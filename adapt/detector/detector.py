"""What a user deploys: backbone, adapter, head, threshold and rules of verdicts in one directory."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import adapt
from adapt.data.crops import Crops, Kind
from adapt.data.families import read_families
from adapt.data.feed import feed
from adapt.data.groups import Images, join_views
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Preprocess
from adapt.errors import Refusal
from adapt.evaluation.decision import FILE, Decision, fit_decision, read_decision
from adapt.evaluation.scores import UNKNOWN, Scores
from adapt.evaluation.thresholds import NOT_RECORDED, Basis, basis_of, pick_threshold
from adapt.files import atomic, not_finite, read_json, require_regular, sha256, write_text
from adapt.hub import detector_folder
from adapt.models.adapters.lora import load_adapter, merged, save_adapter
from adapt.models.descriptors.color import Colours
from adapt.models.descriptors.descriptor import Descriptor
from adapt.models.heads.affine import Affine
from adapt.models.heads.attention_pooling import AttentionPooling
from adapt.models.heads.block_weighting import BlockWeighting
from adapt.models.heads.classifier import Classifier
from adapt.models.heads.clip_adapter import ClipAdapter
from adapt.models.heads.concepts import Concepts
from adapt.models.heads.linear import LinearHead, classes_of
from adapt.models.heads.map_head import MapHead
from adapt.models.heads.output import Output
from adapt.models.heads.probes import Probe
from adapt.models.heads.prototypes import Prototypes
from adapt.models.heads.tip_head import PriorHead
from adapt.models.heads.token_choice import ChosenTokens, TokenChoice
from adapt.models.towers import own
from adapt.models.towers.backbones import AUTHORS, COMPLETE, Backbone, Precision, load_backbone
from adapt.models.towers.networks import NETWORKS, load_network, save_network
from adapt.processes import Gather, alone, dealt, gather_words
from adapt.progress import bar
from adapt.text import one_line

if TYPE_CHECKING:
    from adapt.detector.predict import Row

FORMAT = 2
ADAPTER = tuple(f"adapter/adapter_{name}" for name in ("config.json", "model.safetensors"))
CHECKED = ("head.safetensors", FILE, *ADAPTER, *own.FILES, *NETWORKS.values())
MOST = 2**16  # of any number or list that says how large a head is
NEEDED: tuple[tuple[str, ...], ...] = (  # of detector.json
    *(("precision",), ("threshold",), ("backbone", "preprocess", "geometry")),
    *(("backbone", key) for key in ("name", "layer", "weights", "activation")),
)
Head = LinearHead | Affine | Output | ClipAdapter | Concepts | Classifier | MapHead
HEADS: dict[str, Callable[..., Head]] = {  # of the features' length, the tensors, and what `describe` said
    "linear": lambda dim, _, **settings: LinearHead(dim, **settings),
    "affine": lambda dim, _, **settings: Affine(dim, **settings),
    "output": lambda dim, _, **settings: Output(dim, **settings),
    "clip-adapter": lambda dim, _, **settings: ClipAdapter(dim, **settings),
    "concepts": lambda dim, _, **settings: Concepts(dim, **settings),
    "probe": lambda dim, _, **settings: Probe(dim, **settings),
    "map": lambda dim, _, **settings: MapHead(dim, **settings),
    "tip-adapter": PriorHead.from_state,
    "block-weighting": lambda dim, _, **settings: BlockWeighting(dim, **settings),
    "attention-pooling": lambda dim, _, **settings: AttentionPooling(dim, **settings),
    "prototypes": lambda dim, _, **settings: Prototypes(dim, **settings),
    "token-choice": TokenChoice.from_state,
    "chosen-tokens": ChosenTokens.from_state,
}
CARD = """---
library_name: peft
tags: [ai-generated-image-detection]
---

# Detector of AI-generated images

Base `{name}`, layer `{layer}`, {adapter}, {head} head in `head.safetensors`{beside}. Load it with
`adapt.load_detector(FOLDER)`.

An image whose logit reaches {threshold:.4f} (frozen on validation data) is called AI-generated. A score says how much
an image resembles the training fakes. It is no proof, and it holds for the kinds of image named here.
The threshold's basis: {basis}.

| fact | value |
|---|---|
{facts}
"""


class Detector(nn.Module):
    """Pixels (n, 3, size, size) in 0..255 -> logit of "AI-generated" (n,) float32.

    `threshold` is the logit from which an image is called that; `decision` has what else validation says of verdicts.
    With a `descriptor` the head reads the backbone's features at unit length and, behind them, statistics of the whole
    image before any resize: such a detector judges image files, never bare pixels. `tower` is where the weights of the
    backbone lie that its folder carries; None: the folder names a public backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        threshold: float = 0.0,
        decision: Decision | None = None,
        descriptor: Descriptor | None = None,
        basis: Basis | None = None,
        tower: own.Own | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.threshold = backbone, head, threshold
        self.decision, self.descriptor, self.basis = decision or Decision(), descriptor, basis
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        self.refuse_statistics("a network of pixels alone")
        return self.head(self.backbone(pixels))

    def refuse_statistics(self, wanted: str) -> None:
        """Refuse a detector with a descriptor where `wanted` needs pixels, or the backbone's features, alone."""
        if self.descriptor is not None:
            raise Refusal(
                f"this detector also reads {self.descriptor.name} statistics of the whole image, which {wanted} does "
                "not have: use `adapt predict`, or a detector without statistics"
            )

    def refuse_complete(self, wanted: str) -> None:
        """Refuse a complete network where `wanted` needs an encoder of this package."""
        if self.backbone.name.partition(":")[0] in COMPLETE:
            raise Refusal(
                f"this detector is a complete network, {self.backbone.name}, which {wanted} does not take: it is for "
                "`adapt predict` and `adapt test`"
            )

    def features(self, crops: Tensor, counts: Sequence[int], most: int, described: Tensor | None = None) -> Tensor:
        """What the head reads of n images, (n, d): the mean over the crops of each, `counts` of them side by side in
        `crops`; with a descriptor at unit length, and behind it what it `described` (n, statistics).

        The tower gets at most `most` crops at a time.
        """
        device = self.backbone.device
        found = torch.cat([self.backbone(part.to(device, non_blocking=True)) for part in crops.split(most)])
        mean = torch.stack([of_image.mean(dim=0) for of_image in found.split(list(counts))])
        if self.descriptor is None:
            return mean
        if described is None:
            raise ValueError(f"a detector with {self.descriptor.name} statistics needs those of each image")
        return torch.cat([F.normalize(mean, dim=-1), described.to(mean)], dim=-1)

    def freeze(self, scores: Scores) -> None:
        """Fit the threshold and the other rules of verdicts on the validation rows of this detector's own scores."""
        self.threshold, self.decision, self.basis = pick_threshold(scores), fit_decision(scores), basis_of(scores)

    def predict(self, paths: Sequence[str | Path], crops: Kind = "1", workers: int = 0) -> "list[Row]":
        """One row per image in folders, image files, manifests or tar files; see `predict.COLUMNS` for its columns.

        Verdicts follow this detector's own threshold. A file that cannot be read is a row whose `status` says why.
        `workers` are data processes. Raises `Refusal` where there is no input.
        """
        from adapt.data.inputs import find_inputs
        from adapt.detector.predict import batches, predict

        inputs = find_inputs([str(path) for path in paths])[1]
        found = predict([self], inputs, range(batches(len(inputs))), workers, crops)
        return [row for _, rows, _ in found for row in rows]

    def save(self, folder: Path, facts: Mapping[str, object]) -> None:
        """Write detector.json, head.safetensors, adapter/ (peft's format, if there is one) and a model card README.md;
        decision.safetensors where anything but the threshold was fitted on validation scores; tower/ where the
        detector has a tower of its own, or is a complete network. detector.json has the SHA-256 of each but the card.

        `threshold` is a logit, frozen on validation data. `facts` are shown in the card and kept in detector.json.
        """
        folder.mkdir(parents=True, exist_ok=True)
        network = save_network(self.backbone, folder)
        kept = own.FILES if self.tower else (network,)
        for name in CHECKED[2:]:  # of a detector that stood here before
            if name not in kept:
                (folder / name).unlink(missing_ok=True)
        if self.tower:
            self.tower.copy(folder)
        if self.backbone.adapted:
            save_adapter(self.backbone, folder / "adapter")
        with atomic(folder / "head.safetensors") as temporary:
            save_file({name: value.cpu().contiguous() for name, value in self.head.state_dict().items()}, temporary)
        self.decision.save(folder)
        record = {
            "format": FORMAT,
            "adapt": adapt.__version__,
            **({"tower": self.tower.layout} if self.tower else {}),
            "backbone": {**self.backbone.fingerprint, **({"name": self.tower.said} if self.tower else {})},
            "precision": str(self.backbone.dtype).removeprefix("torch."),
            "adapter": self.backbone.adapted,
            "head": self.head.describe(),
            **({"descriptor": self.descriptor.identity(self.descriptor.layer)} if self.descriptor else {}),
            "threshold": self.threshold,
            **({"threshold_from": asdict(self.basis)} if self.basis else {}),
            "decision": self.decision.describe(),
            "files": {name: sha256(folder / name) for name in CHECKED if (folder / name).is_file()},
            "facts": facts,
        }
        write_text(folder / "detector.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write_text(folder / "README.md", card_of(folder))


@dataclass(frozen=True)
class Saved:
    """What detector.json says of a detector to someone who needs no network."""

    name: str  # of the backbone
    preprocess: Preprocess
    threshold: float
    decision: Decision
    basis: Basis | None  # of the threshold
    descriptor: bool  # whether it also reads statistics of the whole image
    made: "Made"

    @classmethod
    def read(cls, folder: str | Path) -> "Saved":
        """Of a saved detector; refuses what `load_detector` refuses of detector.json."""
        folder = detector_folder(folder)
        record = _read(folder)[0]
        base = record["backbone"]
        preprocess = _prepared(base["preprocess"], folder)
        decision, basis, described = read_decision(folder), _basis(record, folder), "descriptor" in record
        _check_files(record, folder)
        return cls(base["name"], preprocess, *decision, basis, described, _made(record))


def load_detector(folder: str | Path, backbone: str | None = None, precision: Precision | None = None) -> Detector:
    """The detector saved in `folder`, or at `hf-hub:OWNER/NAME[@REVISION]`, on the CPU and in evaluation mode.

    `backbone` names the same weights at another place (a local copy, say), `precision` another one than that of the
    training. A base whose weights, layer or preprocessing are not those of the training is refused, as are missing,
    additional and misshapen tensors, and files that are not those that detector.json has the digests of. The tower has
    the activation that it was trained with, even where versions before built another one than the weights were
    published with; a warning says so.
    """
    folder = detector_folder(folder)
    record, head_tensors = _read(folder)
    wanted = record["backbone"]
    size = wanted["preprocess"].get("size")
    tower = own.read(record["tower"], wanted["name"], folder) if "tower" in record else None
    remedy = "give the original weights with --backbone"
    if wanted["name"].partition(":")[0] in COMPLETE:
        remedy = "copy the whole detector again"
        if backbone is not None:
            raise Refusal(f"--backbone {backbone}: {folder} is a complete network; leave the flag out")
        _check_files(record, folder)
        base = load_network(wanted["name"], folder, _prepared(wanted["preprocess"], folder), wanted["layer"])
    else:
        base = load_backbone(
            backbone or (tower.name if tower else wanted["name"]),
            wanted["layer"],
            wanted["preprocess"]["geometry"],
            wanted["activation"],
            size if type(size) is int else None,  # any other is no preprocessing, as is found below
        )
    if wanted["preprocess"].get("by") == AUTHORS:
        preprocess = _prepared(wanted["preprocess"], folder)
        base.prepare_by(preprocess, wanted["preprocess"]["mean"], wanted["preprocess"]["std"])
    base.resize_by(wanted["preprocess"].get("resizer", "pillow"))
    have = dict(base.fingerprint)
    for key in ("weights", "preprocess", "activation", "layer"):
        if have[key] != wanted[key]:
            raise Refusal(
                f"{folder} was trained on {wanted['name']} with {key} {_short(wanted[key])}, but "
                f"{base.name} has {_short(have[key])}: {remedy}"
            )
    base.to_precision(precision or ("bf16" if record["precision"] == "bfloat16" else "fp32"))
    if record.get("adapter", True):
        load_adapter(base, folder / "adapter")
    descriptor = _descriptor(record, folder)
    dim = base.dim + (len(descriptor.names) if descriptor else 0)
    head = _head(dim, record.get("head", {"type": "linear"}), head_tensors, folder)
    decision = read_decision(folder)
    _check_files(record, folder)
    return Detector(base, head, *decision, descriptor, _basis(record, folder), tower).eval()


def _prepared(facts: dict[str, Any], folder: Path) -> Preprocess:
    """The preprocessing of detector.json, mean and std aside, which must be three numbers each."""
    where = f"{folder / 'detector.json'} does not describe a preprocessing: "
    for key in ("mean", "std"):
        numbers = facts.get(key)
        if not isinstance(numbers, list) or [type(n) for n in numbers] not in ([float] * 3, [int] * 3):
            raise Refusal(f"{where}{key} {_short(numbers)}")
    try:
        return Preprocess(**{key: value for key, value in facts.items() if key not in ("mean", "std", "by")})
    except (TypeError, ValueError) as error:
        raise Refusal(f"{where}{error}") from error


def _basis(record: dict[str, Any], folder: Path) -> Basis | None:
    """What the threshold was chosen from, None where the detector is older than that record."""
    if (found := record.get("threshold_from")) is None:
        return None
    try:
        return Basis(**found)
    except (TypeError, ValueError) as error:
        raise Refusal(
            f"{folder / 'detector.json'}: threshold_from {found!r} is not what this version writes"
        ) from error


def _head(dim: int, described: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> Head:
    """The head of features (n, dim) that detector.json describes, with these tensors and no others."""
    settings = dict(described)
    if not isinstance(kind := settings.pop("type", None), str) or kind not in HEADS:
        raise Refusal(f"{folder}: unknown head {kind!r}; this version knows {', '.join(HEADS)}")
    try:
        for key, value in settings.items():
            if (isinstance(value, int) and not 0 <= value <= MOST) or (isinstance(value, list) and len(value) > MOST):
                raise ValueError(f"{key} is out of bounds")
        if HEADS[kind].__name__ != "from_state":  # which is as large as the tensors that are there already
            with torch.device("meta"):  # what would take more memory than the file is refused before it does
                _same_shapes(tensors, HEADS[kind](dim, tensors, **settings), folder)
        head = HEADS[kind](dim, tensors, **settings)
    except Refusal:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        words = one_line(str(error), 200)
        raise Refusal(f"{folder / 'detector.json'} does not describe a {kind} head: {words}") from error
    _same_shapes(tensors, head, folder)
    head.load_state_dict(tensors)
    return head


def _same_shapes(tensors: dict[str, Tensor], head: Head, folder: Path) -> None:
    have, want = ({k: tuple(v.shape) for k, v in t.items()} for t in (tensors, head.state_dict()))
    if have != want:
        raise Refusal(f"{folder / 'head.safetensors'} holds {have}, expected {want}")


def _check_files(record: dict[str, Any], folder: Path) -> None:
    """Refuse files of a detector that are not those that were saved with its detector.json; detectors from before the
    digests pass. Who rewrites both is not found out."""
    if (listed := record.get("files")) is None:
        return
    if not isinstance(listed, dict) or not {"head.safetensors"} <= listed.keys() <= {*CHECKED}:
        raise Refusal(f"{folder / 'detector.json'}: files must be the digests of {', '.join(CHECKED)}")
    for name in CHECKED:
        if name in listed and not (folder / name).is_file():
            raise Refusal(f"{folder / name} is missing, detector.json lists it: copy the whole detector again")
        if name not in listed and os.path.lexists(folder / name):
            raise Refusal(f"{folder / name} is no part of this detector, detector.json does not list it: delete it")
        if name in listed and sha256(folder / name) != listed[name]:
            raise Refusal(
                f"{folder / name} is not the file that was saved with detector.json (its SHA-256 differs): copy the "
                "whole detector again"
            )


def _descriptor(record: dict[str, Any], folder: Path) -> Descriptor | None:
    """The descriptor beside the backbone, if there is one; refuses statistics that this version defines otherwise."""
    if (wanted := record.get("descriptor")) is None:
        return None
    known = Colours("sound")
    if wanted != known.identity(known.layer):
        raise Refusal(
            f"{folder} reads other statistics than this version computes (detector.json, `descriptor`): use the "
            f"version of adapt that made it, {record.get('adapt', 'unknown')}"
        )
    return known


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """detector.json with everything that loading asks for, and the tensors of the head."""
    try:
        record: Any = read_json(folder / "detector.json")
        require_regular(folder / "head.safetensors")
        tensors = load_file(folder / "head.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise Refusal(f"{folder} is not a complete detector directory: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise Refusal(f"{folder}: detector format {found!r}, this version reads {FORMAT}")
    for place in NEEDED:
        found = record
        for key in place:
            found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            raise Refusal(f"{folder / 'detector.json'} lacks {'.'.join(place)}: copy the whole detector again")
        if place != ("threshold",) and not isinstance(found, str):
            raise Refusal(f"{folder / 'detector.json'}: {'.'.join(place)} must be a word")
    threshold = record["threshold"]
    if not isinstance(threshold, int | float) or not isinstance(record.get("head", {}), dict):
        raise Refusal(f"{folder / 'detector.json'}: threshold must be a number and head an object")
    if isinstance(threshold, bool) or not math.isfinite(threshold):
        raise Refusal(f"{folder / 'detector.json'}: the threshold {threshold} is no logit: fetch the detector again")
    if wrong := not_finite({key: record.get(key) for key in ("backbone", "head", "descriptor")}):
        raise Refusal(f"{folder / 'detector.json'}: {wrong} is no finite number: fetch the detector again")
    return record, tensors


class Made(NamedTuple):
    """What detector.json says of the training; empty where it does not say."""

    trained_on: tuple[str, ...]  # generators
    selected_on: tuple[str, ...]  # those of validation rows alone
    data: str
    published: str = ""  # which published detector it is, with paper and licence

    def seen(self, generators: np.ndarray) -> np.ndarray:
        """(n,) `seen` of scores, from the names of generators (n,): "unknown" where nothing says what trained it."""
        if not self.trained_on:
            return np.full(len(generators), UNKNOWN, dtype=object)
        met = dict.fromkeys(self.selected_on, "val") | dict.fromkeys(self.trained_on, "train")
        return np.array([met.get(generator, "") for generator in generators], dtype=object)


def detector_facts(folder: str | Path) -> Made:
    """How a saved detector was made; refuses a localiser, whose head maps what was changed, and what is none."""
    folder = detector_folder(folder)
    record, _ = _read(folder)
    if record.get("head", {}).get("type") == "map":
        raise Refusal(
            f"{folder} is a localiser, and this measures detectors of whole images: recipes/localize.py measures maps "
            f"on the test rows of its own run, and `adapt predict --detector {folder} --maps FOLDER` draws those of "
            "other images"
        )
    _check_files(record, folder)
    return _made(record)


def _made(record: dict[str, Any]) -> Made:
    facts = record.get("facts")
    facts = facts if isinstance(facts, dict) else {}
    names = [facts.get(key) for key in ("trained_on", "selected_on")]
    trained, selected = (tuple(map(str, found)) if isinstance(found, list) else () for found in names)
    about = [facts.get(key, "not stated") for key in ("method", "paper", "licence")]
    published = "{} ({}), licence {}".format(*about) if "imported" in facts else ""
    return Made(trained, selected, str(facts.get("data", facts.get("trained by the authors on", ""))), published)


def detector_digest(folder: str | Path) -> str:
    """SHA-256 (hex) over the files of a saved detector, its card aside: the same wherever the folder lies."""
    folder = detector_folder(folder)
    if not (folder / "detector.json").is_file():
        raise Refusal(f"{folder} is not a complete detector directory: it has no detector.json")
    files = [folder / name for name in ("detector.json", "head.safetensors", FILE)]
    files += [*sorted((folder / "adapter").glob("adapter_*"))]
    files += [folder / name for name in (*own.FILES, *NETWORKS.values())]
    found = [(path.name, sha256(path)) for path in files if path.is_file()]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def score(
    detector: Detector,
    manifest: Manifest,
    rows: np.ndarray,
    views: tuple[str, ...],
    *,
    batch_size: int = 64,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    gather: Gather = alone,
    progress: str | None = None,
    crops: Kind = "1",
) -> Scores:
    """Score the given rows of the manifest under every view; an unreadable file is a row that says why.

    A head of more than two classes gives a logit for each beside the binary one.

    An image is decoded once for all its views; `crops` says what is looked at of each (adapt/data/crops.py). `share`
    (rank, world) splits the rows over processes and `gather` joins their lists; results are placed by row number, so
    neither padding nor order can move a score. The whole manifest is asked where each generator was met in training.
    """
    views = tuple(dict.fromkeys(views))
    with merged(detector.backbone):
        logits, reasons = logits_of(
            detector, manifest, rows, views,
            batch_size=batch_size, workers=workers, share=share, gather=gather, progress=progress, crops=crops,
        )  # fmt: skip
    return as_scores(manifest, rows, views, logits, reasons, classes_of_head(detector))


@torch.no_grad()
def logits_of(
    detector: Detector,
    manifest: Manifest,
    rows: np.ndarray,
    views: tuple[str, ...],
    *,
    batch_size: int = 64,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    gather: Gather = alone,
    progress: str | None = None,
    crops: Kind = "1",
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, views, 1 + classes) float64, NaN where there is none, and the reasons (rows, views), "" for none.

    The arguments are those of `score`, each view once; `classes_of_head` names the classes. Call it with the adapters
    `merged`, as `score` does.
    """
    detector.eval()
    classes = classes_of_head(detector)
    look = Crops(detector.backbone.preprocess, crops)
    images = Images(manifest, rows[share[0] :: share[1]], look, views, detector.descriptor)
    device = detector.backbone.device
    loader = feed(images, device, workers, join_views, batch_size=images_at_once(views, batch_size))
    logits_found = np.empty((len(images), len(views), 1 + len(classes)))
    reasons: list[str] = []  # of each image, under each view
    done = 0
    shown = progress is not None and share[0] == 0
    progress_bar = bar(shown, total=len(images), unit="image", desc=progress, leave=False)
    for batch in loader:
        counts = [count for crops_of in batch.crops for count in crops_of]
        described = batch.described if detector.descriptor else None
        features = detector.features(batch.pixels, counts, max(batch_size, len(views)), described)
        logits = detector.head(features)[:, None]
        if classes and isinstance(detector.head, LinearHead | Classifier):
            logits = torch.cat([logits, detector.head.class_logits(features).to(logits)], dim=1)
        count = len(batch.rows)
        logits_found[done : done + count] = logits.view(count, len(views), 1 + len(classes)).cpu()
        reasons += [reason for reasons_of in batch.reasons for reason in reasons_of]
        done += count
        progress_bar.update(count)
    progress_bar.close()
    logits_found = dealt(gather(logits_found), share[1])
    why = dealt(gather_words(gather, reasons).reshape(len(rows), len(views)), share[1])
    logits_found[why != ""] = np.nan
    return logits_found, why


def images_at_once(views: Sequence[str], batch_size: int = 64) -> int:
    """Images of one batch of `logits_of`, each under all views."""
    return max(1, batch_size // len(views))


def classes_of_head(detector: Detector) -> tuple[str, ...]:
    """The classes, real first, of a head that has more than two; else none."""
    return classes_of(detector.head)


def as_scores(
    manifest: Manifest,
    rows: np.ndarray,
    views: tuple[str, ...],
    logits: np.ndarray,
    reasons: np.ndarray,
    classes: Sequence[str] = (),
) -> Scores:
    """Scores from logits (rows, views, 1 + classes) and the reasons (rows, views), "" where there is a logit.

    The first logit is the binary one. The whole manifest is asked where each generator was met in training.
    """
    table = read_families(manifest=manifest)
    family = [table.of(generator) for generator in manifest["generator"][rows]]
    paths = manifest["path"]
    if len(set(paths)) < len(paths):  # several manifests may use one name: tell their folders apart
        common = os.path.commonpath([os.path.dirname(file) for file in manifest["file"]])  # noqa: PTH120
        paths = np.array([os.path.relpath(file, common) for file in manifest["file"]], dtype=object)
    columns = {name: manifest[name][rows] for name in ("group", "generator", "split", "set", "edit")}
    columns |= {"path": paths[rows], "family": family, "seen": manifest.seen(columns["generator"])}
    repeated = {name: np.repeat(np.array(values, dtype=object), len(views)) for name, values in columns.items()}
    return Scores(
        {
            **repeated,
            "view": np.tile(np.array(views, dtype=object), len(rows)),
            "status": np.array([f"unreadable: {why}" if why else "ok" for why in reasons.ravel()], dtype=object),
            "logit": logits[:, :, 0].ravel(),
            **{f"logit_{name}": logits[:, :, 1 + c].ravel() for c, name in enumerate(classes)},
        }
    )


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text


def card_of(folder: Path) -> str:
    """The model card of a saved detector, from its detector.json, before anything was measured."""
    record: Any = read_json(folder / "detector.json")
    facts = "\n".join(f"| {key} | {value} |" for key, value in record["facts"].items())
    base = record["backbone"]
    adapter = "adapter in `adapter/` (peft's format)" if record["adapter"] else "frozen"
    adapter = f"its own tower in `tower/`, {adapter}" if "tower" in record else adapter
    head = record["head"].get("kind", record["head"]["type"])
    statistics = record.get("descriptor")
    beside = f", which also reads {statistics['descriptor']} statistics of the whole image" if statistics else ""
    return CARD.format(
        name=base["name"], layer=base["layer"], adapter=adapter, head=head, beside=beside,
        threshold=record["threshold"], basis=_basis(record, folder) or NOT_RECORDED, facts=facts,
    )  # fmt: skip

"""Which tensors of a checkpoint are those of a model: where they stand in the file, and what does not fit."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapt.errors import Refusal
from adapt.models.towers.checkpoint import Checkpoint, Stored

NO_WEIGHTS = ("attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size")
SHOWN = 6  # keys of each kind that do not fit
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fit:
    """Which tensor of the file becomes which of the model, and what does not fit."""

    names: dict[str, str]  # of the model -> of the file
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]  # in words


def place_of(checkpoint: Checkpoint, shapes: Shapes, prefix: str | None = None, flags: bool = True) -> tuple[str, str]:
    """Where in the file most of the model's tensors stand, and what their names lack ("visual." of a tower alone).

    A refusal names the `flags` of `adapt convert` that help.
    """
    named: Counter[tuple[str, str]] = Counter()
    fitting: Counter[tuple[str, str]] = Counter()
    wanted = None if prefix is None else f"{prefix.strip('.')}." if prefix.strip(".") else ""
    for key, stored in checkpoint.tensors.items():
        parts = key.split(".")
        for at in range(len(parts)):
            place, rest = "".join(f"{part}." for part in parts[:at]), ".".join(parts[at:])
            if wanted is None or place == wanted:
                for added in ("", "visual."):
                    if added + rest in shapes:
                        named[place, added] += 1
                        fitting[place, added] += _same(shapes[added + rest], stored)
    if not named:
        keys = sorted(checkpoint.tensors)
        names = any("encoder.layer" in key for key in keys)
        remedy = (
            "these are names of transformers: give --like transformers:FOLDER, with its config.json"
            if names
            else ("give the model that it was trained as with --like")
        )
        shown = ", ".join(keys[:SHOWN]) or "none"
        raise Refusal(
            f"{checkpoint.file}: no tensor fits the model (it holds {shown}...){f'; {remedy}' if flags else ''}"
        )
    most = max((count, fitting[found]) for found, count in named.items())
    best = [found for found, count in named.items() if (count, fitting[found]) == most]
    whole = [found for found in best if not found[1]] or best
    if len(whole) > 1:
        places = " or ".join(f"{'--prefix ' if flags else ''}{place.rstrip('.')}" for place, _ in whole)
        choose = "choose with" if flags else "save one alone, that under"
        raise Refusal(f"{checkpoint.file} holds the model {len(whole)} times: {choose} {places}")
    return whole[0]


def _same(shape: tuple[int, ...], stored: Stored) -> bool:
    """Scalars are stored as () or (1,)."""
    return shape == stored.shape or math.prod(shape) == 1 == math.prod(stored.shape)


def fit_of(
    tensors: Mapping[str, Stored],
    shapes: Shapes,
    place: str,
    added: str,
    ignore: Collection[str],
    vision_only: bool,
) -> Fit:
    names, unexpected, misshapen = {}, [], []
    for key in tensors:
        rest = key.removeprefix(place)
        if not key.startswith(place) or any(f"{rest}.".startswith(f"{word.strip('.')}.") for word in ignore):
            continue
        name = added + rest
        others = (name, f"text.{name}", name.removeprefix("text."))  # open_clip has two layouts of the text tower
        found = next((other for other in others if other in shapes), None)
        if found is None:
            of_interest = not vision_only or name.startswith("visual.")
            unexpected += [name] if of_interest and name.rpartition(".")[2] not in NO_WEIGHTS else []
        elif not _same(shapes[found], tensors[key]):
            misshapen.append(f"{found} {tensors[key].shape} instead of {shapes[found]}")
            names[found] = key
        else:
            names[found] = key
    missing = [name for name in shapes if name not in names]
    return Fit(names, missing, unexpected, misshapen)


def refuse_misfits(fit: Fit, file: Path, like: str, flags: bool = True) -> None:
    kinds = ((fit.missing, "missing"), (fit.unexpected, "not in the model"), (fit.shapes, "of another shape"))
    said = [
        f"{len(keys)} {word}: {', '.join(keys[:SHOWN])}{f' and {len(keys) - SHOWN} more' if len(keys) > SHOWN else ''}"
        for keys, word in kinds
        if keys
    ]
    if not said:
        return
    if not flags:
        raise Refusal(f"{file} does not fit {like}: {'; '.join(said)}")
    remedies = []
    if fit.missing and not any(key.startswith("visual.") for key in fit.missing):
        remedies.append("--vision_only takes the image tower alone")
    if fit.unexpected:
        remedies.append(f"--ignore {fit.unexpected[0].partition('.')[0]} leaves out keys that begin so")
    if fit.shapes or not remedies:
        remedies.append("--like names the model that it was trained as, with its image size")
    raise Refusal(f"{file} does not fit {like}: {'; '.join(said)}. {', or '.join(remedies)}")


def refuse_unmerged(file: Path | str, keys: Collection[str]) -> None:
    """Refuse weights of peft in which updates stand beside the layers: without them the tower is another one."""
    found = [key for key in keys if ".base_layer." in key or ".lora_" in key]
    if found:
        raise Refusal(
            f"{file} holds adapters that are not merged ({len(found)} tensors, as {min(found)}). Merge them: model = "
            "model.merge_and_unload(), then save its state_dict(); or load the tower and the adapter's own folder"
        )

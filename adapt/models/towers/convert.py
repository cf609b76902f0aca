"""From a checkpoint file to a local folder that `load_backbone` reads: names, shapes, activation, preprocessing."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adapt.errors import Refusal
from adapt.files import new_folder, write_text
from adapt.models.towers.backbones import TINY
from adapt.models.towers.checkpoint import Checkpoint, Stored, read_checkpoint
from adapt.models.towers.open_clip import WEIGHTS, unfilled
from adapt.models.towers.records import PLAIN, QUICK, hidden_act, quick_gelu
from adapt.models.towers.tokens import message_of, near, read_json
from adapt.models.towers.transformers import VISION, create, read_preprocessor

PREPARES = ("mean", "std", "interpolation", "resize_mode")  # of images, in open_clip_config.json
NO_WEIGHTS = ("attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size")
SHOWN = 6  # keys of each kind that do not fit
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Converted:
    """What was written, for a report."""

    name: str  # of the backbone
    tensors: int
    prefix: str  # where they stood in the file
    left: dict[str, int]  # tensors that were left out, by the first part of their place
    activation: str
    prepares: dict[str, object]


@dataclass(frozen=True)
class _Fit:
    """Which tensor of the file becomes which of the model, and what does not fit."""

    names: dict[str, str]  # of the model -> of the file
    missing: list[str]
    unexpected: list[str]
    shapes: list[str]  # in words


def convert(
    file: Path,
    like: str,
    output: Path,
    *,
    vision_only: bool = False,
    prefix: str | None = None,
    ignore: Collection[str] = (),
) -> Converted:
    """Write the weights in `file` into the new folder `output`, named as those of the model `like`.

    Its preprocessing is written beside them.

    `like` is open_clip:MODEL[@TAG] (the tag that the weights began from), open_clip:local-dir:FOLDER, tiny, or
    transformers:FOLDER. `prefix` is where the tensors stand in the file (found where only one place fits), keys that
    begin with one of `ignore` are left out, and `vision_only` takes the image tower alone. No code in the file runs.
    Refuses what does not fit, and a model whose published weights differ in activation or preprocessing without a tag.
    """
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise Refusal(f"--output {output} exists; give a new folder")
    checkpoint = read_checkpoint(file)
    with new_folder(output) as folder:
        if like.startswith("transformers:"):
            return _transformers(checkpoint, like, folder, output, prefix, ignore)
        config = _config(checkpoint, like)
        if vision_only:
            config["adapt"] = {**config.get("adapt", {}), "vision_only": True}
        write_text(folder / "open_clip_config.json", json.dumps(config, indent=1) + "\n")
        shapes = _shapes(folder, like)
        if vision_only:
            shapes = {key: shape for key, shape in shapes.items() if key.startswith("visual.")}
        place, added = _place(checkpoint, shapes, prefix)
        fit = _fit(checkpoint.tensors, shapes, place, added, ignore, vision_only)
        _refuse_misfits(fit, file, like)
        save_file(_tensors(checkpoint, fit.names, shapes), folder / WEIGHTS)
    return Converted(
        f"open_clip:local-dir:{output}",
        len(fit.names),
        place,
        _left(checkpoint.tensors, fit.names.values()),
        QUICK if config["model_cfg"].get("quick_gelu") else PLAIN,
        {key: config["preprocess_cfg"][key] for key in PREPARES},
    )


def _config(checkpoint: Checkpoint, like: str) -> dict[str, Any]:
    """open_clip_config.json with every choice written out."""
    import open_clip

    library, _, model = like.partition(":")
    if like == "tiny" or (library == "open_clip" and model.startswith("local-dir:")):
        folder = TINY if like == "tiny" else Path(model.removeprefix("local-dir:"))
        config = read_json(folder / "open_clip_config.json", like)
        quick = quick_gelu(like, f"local-dir:{folder}")
        prepares = {**_prepares({}), **config.get("preprocess_cfg", {})}
        config["adapt"] = {key: value for key, value in config.get("adapt", {}).items() if key != "vision_only"}
        said = _said(checkpoint)
        return config | {"model_cfg": config["model_cfg"] | _quick(like, quick, said), "preprocess_cfg": prepares}
    architecture, _, tag = model.partition("@")
    if library != "open_clip" or architecture not in open_clip.list_models():
        hint = near(architecture, open_clip.list_models())
        raise Refusal(
            f"--like {like}: expected open_clip:MODEL[@TAG], open_clip:local-dir:FOLDER or transformers:FOLDER{hint}"
        )
    own = open_clip.get_model_config(architecture)
    tags = {known: open_clip.get_pretrained_cfg(architecture, known) for known in _tags(architecture)}
    if tag == "random":
        record = {"quick_gelu": bool(own.get("quick_gelu"))}
    elif tag:
        if tag not in tags:
            raise Refusal(f"--like {like}: no weights {tag!r}{near(tag, tags)}; known: {', '.join(tags)}")
        record = tags[tag]
    else:
        record = _only(checkpoint, architecture, tags) or {"quick_gelu": bool(own.get("quick_gelu"))}
    quick = _quick(like, bool(record.get("quick_gelu")), _said(checkpoint))
    return {"model_cfg": own | quick, "preprocess_cfg": _prepares(record)}


def _tags(architecture: str) -> list[str]:
    import open_clip

    return open_clip.list_pretrained_tags_by_model(architecture)


def _said(checkpoint: Checkpoint) -> str | None:
    """The activation, if the file or transformers' config.json beside it says it. OpenAI's archives are QuickGELU."""
    if checkpoint.scripted and "input_resolution" in checkpoint.tensors:
        return QUICK
    return hidden_act(checkpoint.file.parent, str(checkpoint.file))


def _quick(like: str, quick: bool | None, said: str | None) -> dict[str, bool]:
    if quick is None:  # the configuration's own business
        return {}
    if said is not None and (said == QUICK) != quick:
        raise Refusal(
            f"--like {like}: it has {QUICK if quick else PLAIN}, but the file comes from a model with {said}; "
            "give the weights that it began from, as --like open_clip:ViT-L-14@openai"
        )
    return {"quick_gelu": quick}


def _prepares(record: Mapping[str, Any]) -> dict[str, Any]:
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    usual = {
        "mean": OPENAI_DATASET_MEAN,
        "std": OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    found = {key: record.get(key, usual[key]) for key in PREPARES}
    return found | {key: list(found[key]) for key in ("mean", "std")}


def _only(checkpoint: Checkpoint, architecture: str, tags: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The record that all published weights of a model share; None if there are none. Refuses where they differ."""
    said, kinds = _said(checkpoint), {}
    for tag, record in tags.items():
        quick = bool(record.get("quick_gelu"))
        if said is None or (said == QUICK) == quick:
            kinds.setdefault((quick, *map(str, _prepares(record).values())), (tag, record))
    if len(kinds) > 1:
        choices = "; ".join(
            f"--like open_clip:{architecture}@{tag} ({QUICK if record.get('quick_gelu') else PLAIN}, mean "
            f"{record['mean'][0]:.3g}, {record['interpolation']}, {record['resize_mode']})"
            for tag, record in kinds.values()
        )
        raise Refusal(
            f"{checkpoint.file} does not say with which activation and preprocessing it was trained, and published "
            f"weights of {architecture} differ. Name weights like those that it began from: {choices}; "
            f"or --like open_clip:{architecture}@random for one that began from nothing"
        )
    return next(iter(kinds.values()))[1] if kinds else None


def _shapes(folder: Path, like: str) -> Shapes:
    """Names and shapes of the tensors that the folder's model needs."""
    import open_clip

    try:
        with torch.device("meta"), unfilled():
            clip = open_clip.create_model(
                f"local-dir:{folder}", load_weights=False, pretrained_text=False, device="meta"
            )
    except Exception as error:
        raise Refusal(f"--like {like}: the model could not be built ({message_of(error)})") from error
    return {key: tuple(value.shape) for key, value in clip.state_dict().items()}


def _place(checkpoint: Checkpoint, shapes: Shapes, prefix: str | None) -> tuple[str, str]:
    """Where in the file most of the model's tensors stand, and what their names lack ("visual." of a tower alone)."""
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
        raise Refusal(f"{checkpoint.file}: no tensor fits the model (it holds {shown}...); {remedy}")
    most = max((count, fitting[found]) for found, count in named.items())
    best = [found for found, count in named.items() if (count, fitting[found]) == most]
    whole = [found for found in best if not found[1]] or best
    if len(whole) > 1:
        places = " or ".join(f"--prefix {place.rstrip('.')}" for place, _ in whole)
        raise Refusal(f"{checkpoint.file} holds the model {len(whole)} times: choose with {places}")
    return whole[0]


def _same(shape: tuple[int, ...], stored: Stored) -> bool:
    """Scalars are stored as () or (1,)."""
    return shape == stored.shape or math.prod(shape) == 1 == math.prod(stored.shape)


def _fit(
    tensors: Mapping[str, Stored],
    shapes: Shapes,
    place: str,
    added: str,
    ignore: Collection[str],
    vision_only: bool,
) -> _Fit:
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
    return _Fit(names, missing, unexpected, misshapen)


def _refuse_misfits(fit: _Fit, file: Path, like: str) -> None:
    kinds = ((fit.missing, "missing"), (fit.unexpected, "not in the model"), (fit.shapes, "of another shape"))
    said = [
        f"{len(keys)} {word}: {', '.join(keys[:SHOWN])}{f' and {len(keys) - SHOWN} more' if len(keys) > SHOWN else ''}"
        for keys, word in kinds
        if keys
    ]
    if not said:
        return
    remedies = []
    if fit.missing and not any(key.startswith("visual.") for key in fit.missing):
        remedies.append("--vision_only takes the image tower alone")
    if fit.unexpected:
        remedies.append(f"--ignore {fit.unexpected[0].partition('.')[0]} leaves out keys that begin so")
    if fit.shapes or not remedies:
        remedies.append("--like names the model that it was trained as, with its image size")
    raise Refusal(f"{file} does not fit {like}: {'; '.join(said)}. {', or '.join(remedies)}")


def _tensors(checkpoint: Checkpoint, names: Mapping[str, str], shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: checkpoint.tensors[key].load().reshape(shapes[name]).contiguous() for name, key in names.items()}


def _left(tensors: Mapping[str, Stored], taken: Collection[str]) -> dict[str, int]:
    return dict(Counter(key.partition(".")[0] for key in tensors if key not in set(taken)))


def _transformers(
    checkpoint: Checkpoint, like: str, folder: Path, output: Path, prefix: str | None, ignore: Collection[str]
) -> Converted:
    """Tensors, config.json and preprocessor of a model of transformers; its own loader says what does not fit."""
    import transformers

    source = Path(like.removeprefix("transformers:"))
    kind = read_json(source / "config.json", like).get("model_type")
    if kind not in VISION:
        raise Refusal(f"--like {like}: transformers model of type {kind!r}; known: {', '.join(sorted(VISION))}")
    prepares = read_preprocessor(source, like)
    cls = getattr(transformers, VISION[kind])
    with torch.device("meta"):
        tower = cls(cls.config_class.from_pretrained(source))
    shapes = {key: tuple(value.shape) for key, value in tower.state_dict().items()}
    place, _ = _place(checkpoint, shapes, prefix)
    taken = {
        rest: key
        for key in checkpoint.tensors
        if key.startswith(place)
        and (rest := key.removeprefix(place))
        and rest.rpartition(".")[2] not in NO_WEIGHTS
        and not any(f"{rest}.".startswith(f"{word.strip('.')}.") for word in ignore)
    }
    save_file({name: checkpoint.tensors[key].load() for name, key in taken.items()}, folder / "model.safetensors")
    for path in source.glob("*.json"):
        if not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    create(like, folder, VISION[kind])
    keys = {"mean": "image_mean", "std": "image_std", "interpolation": "resample", "resize_mode": "size"}
    return Converted(
        f"transformers:{output}",
        len(taken),
        place,
        _left(checkpoint.tensors, taken.values()),
        hidden_act(source, like) or str(getattr(tower.config, "hidden_act", "")),
        {key: prepares.get(of) for key, of in keys.items()},
    )

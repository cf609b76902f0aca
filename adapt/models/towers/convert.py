"""From a checkpoint file to a local folder that `load_backbone` reads: names, shapes, activation, preprocessing."""

import json
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapt.errors import Refusal
from adapt.files import new_folder, write_text
from adapt.models.towers.backbones import TINY
from adapt.models.towers.checkpoint import Checkpoint, Stored, read_checkpoint
from adapt.models.towers.fitting import NO_WEIGHTS, Shapes, fit_of, place_of, refuse_misfits, refuse_unmerged
from adapt.models.towers.open_clip import WEIGHTS, unfilled
from adapt.models.towers.records import PLAIN, PREPARES, QUICK, config_of_folder, config_of_tag, hidden_act
from adapt.models.towers.tokens import message_of, read_json
from adapt.models.towers.transformers import VISION, create, read_preprocessor


@dataclass(frozen=True)
class Converted:
    """What was written, for a report."""

    name: str  # of the backbone
    tensors: int
    prefix: str  # where they stood in the file
    left: dict[str, int]  # tensors that were left out, by the first part of their place
    activation: str
    prepares: dict[str, object]


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
    refuse_unmerged(file, checkpoint.tensors)
    with new_folder(output) as folder:
        if like.startswith("transformers:"):
            return _transformers(checkpoint, like, folder, output, prefix, ignore)
        if like == "tiny" or like.startswith("open_clip:local-dir:"):
            source = TINY if like == "tiny" else Path(like.removeprefix("open_clip:local-dir:"))
            config = config_of_folder(checkpoint, like, source)
        else:
            config = config_of_tag(checkpoint, like)
        if vision_only:
            config["adapt"] = {**config.get("adapt", {}), "vision_only": True}
        write_text(folder / "open_clip_config.json", json.dumps(config, indent=1) + "\n")
        shapes = _shapes(folder, like)
        if vision_only:
            shapes = {key: shape for key, shape in shapes.items() if key.startswith("visual.")}
        place, added = place_of(checkpoint, shapes, prefix)
        fit = fit_of(checkpoint.tensors, shapes, place, added, ignore, vision_only)
        refuse_misfits(fit, file, like)
        save_file(_tensors(checkpoint, fit.names, shapes), folder / WEIGHTS)
    return Converted(
        f"open_clip:local-dir:{output}",
        len(fit.names),
        place,
        _left(checkpoint.tensors, fit.names.values()),
        QUICK if config["model_cfg"].get("quick_gelu") else PLAIN,
        {key: config["preprocess_cfg"][key] for key in PREPARES},
    )


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
    place, _ = place_of(checkpoint, shapes, prefix)
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

"""Which activation weights were trained with. Their tensors do not say: GELU and QuickGELU fit the same shapes.

QuickGELU(x) = x * sigmoid(1.702 x) is that of OpenAI, MetaCLIP and DFN (1606.08415, section 2). The record of a tag in
open_clip's table says so, or the configuration in a folder, or that of transformers beside it. Nor do tensors say how
images enter the tower: that, too, comes from the record.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.errors import Refusal
from adapt.models.towers.checkpoint import Checkpoint
from adapt.models.towers.tokens import near, read_json

QUICK, PLAIN = "QuickGELU", "GELU"
CORRECTED = f"its weights were trained with {QUICK} and get it, where {{}} has {PLAIN}"
OF_OPENAI = {"input_resolution", "context_length", "vocab_size"}  # numbers that its archives alone keep as tensors
PREPARES = ("mean", "std", "interpolation", "resize_mode")  # of images, in open_clip_config.json
SHAPE = ("layers", "width", "patch_size")  # of an image tower; a fine-tuned one may have another image size


def quick_gelu(name: str, model: str) -> bool | None:
    """Whether the weights MODEL@TAG, hf-hub:ORG/NAME or local-dir:FOLDER need QuickGELU.

    None means: as their own configuration builds them. Refuses a folder that does not say, if there are published
    weights of its shape with QuickGELU.
    """
    from open_clip import get_pretrained_cfg

    if model.startswith("local-dir:"):
        return _of_folder(name, Path(model.removeprefix("local-dir:")))
    if model.startswith("hf-hub:"):
        return _of_repository(name, model.removeprefix("hf-hub:"))
    architecture, _, tag = model.partition("@")
    record = get_pretrained_cfg(architecture, tag)
    return bool(record.get("quick_gelu")) if record else None  # silence means GELU, as in open_clip's own check


def hidden_act(folder: Path, name: str) -> str | None:
    """QuickGELU or GELU if a config.json of transformers in the folder names one of them."""
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json", name)
    vision = config.get("vision_config") or config
    return {"quick_gelu": QUICK, "gelu": PLAIN}.get(str(vision.get("hidden_act")))


def published() -> list[tuple[str, str, dict[str, Any]]]:
    """Architecture, tag and record of all weights in open_clip's table."""
    import open_clip

    return [(model, tag, open_clip.get_pretrained_cfg(model, tag)) for model, tag in open_clip.list_pretrained()]


def _of_repository(name: str, repository: str) -> bool | None:
    """QuickGELU where the table says so of a repository; else its own configuration is what was published: that of
    open_clip, or where this is silent that of transformers beside it."""
    from huggingface_hub import errors, hf_hub_download

    recorded = of_table(repository)
    if recorded is not None:
        return recorded or None
    try:
        folder = Path(hf_hub_download(repository, "open_clip_config.json")).parent
        hf_hub_download(repository, "config.json")
    except (errors.HTTPError, OSError, ValueError):  # has none; or nothing can be had, which loading will say
        return None
    refuse_contradiction(name, folder)
    explicit = "quick_gelu" in read_json(folder / "open_clip_config.json", name).get("model_cfg", {})
    said = None if explicit else hidden_act(folder, name)
    return None if said is None else said == QUICK


def of_table(repository: str) -> bool | None:
    """Whether open_clip's table says QuickGELU of the weights in a repository; None of others."""
    wanted = repository.strip("/")
    found = {bool(r.get("quick_gelu")) for _, _, r in published() if r.get("hf_hub", "").strip("/") == wanted}
    return any(found) if found else None


def refuse_contradiction(name: str, folder: Path, repository: str = "") -> None:
    """Refuse a folder, or one of a repository, whose configurations give the same weights two activations."""
    said, file = hidden_act(folder, name), folder / "open_clip_config.json"
    config = read_json(file, name).get("model_cfg", {}) if file.is_file() else {}
    if said is not None and isinstance(quick := config.get("quick_gelu"), bool) and quick != (said == QUICK):
        raise Refusal(
            f"backbone {name}: {file} says {QUICK if quick else PLAIN}, config.json beside it {said}. One of them is "
            "wrong; OpenAI, MetaCLIP and DFN trained with QuickGELU. Correct it (quick_gelu, hidden_act)"
        )
    if said == PLAIN and repository and of_table(repository):
        raise Refusal(
            f"backbone {name}: the weights of {repository} were published with {QUICK}, but its config.json says "
            f"{said}: load them by their open_clip name"
        )


def _of_folder(name: str, folder: Path) -> bool | None:
    file = folder / "open_clip_config.json"
    config = read_json(file, name)
    model, vision = config.get("model_cfg", {}), config.get("model_cfg", {}).get("vision_cfg", {})
    if "quick_gelu" in model:
        if not isinstance(model["quick_gelu"], bool):
            raise Refusal(f"backbone {name}: {file}: quick_gelu is {model['quick_gelu']!r}; write true or false")
        refuse_contradiction(name, folder)
        return model["quick_gelu"]
    if "timm_model_name" in vision:
        return None  # which names its own activation
    if (said := hidden_act(folder, name)) is not None:
        return said == QUICK
    quick, plain = _twins(vision, config.get("preprocess_cfg", {}))
    if not quick:
        return None
    choices = f"true for weights like {quick}" + (f", false for weights like {plain}" if plain else ", else false")
    raise Refusal(
        f"backbone {name}: {file} does not say which activation the weights need, and there are published ones of "
        f'this shape with QuickGELU. Write "quick_gelu" into its model_cfg: {choices}'
    )


def _twins(vision: dict[str, Any], preprocess: dict[str, Any]) -> tuple[str, str]:
    """Published weights of this shape and mean with QuickGELU, and others with GELU: one name each, or ""."""
    import open_clip

    mean, found = list(preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN)), ["", ""]
    for architecture, tag, record in published():
        like = open_clip.get_model_config(architecture)["vision_cfg"]
        if [like.get(key) for key in SHAPE] == [vision.get(key) for key in SHAPE] and list(record["mean"]) == mean:
            place = 0 if record.get("quick_gelu") else 1
            found[place] = found[place] or f"open_clip:{architecture}@{tag}"
    return found[0], found[1]


def config_of_folder(checkpoint: Checkpoint, like: str, folder: Path) -> dict[str, Any]:
    """open_clip_config.json for a checkpoint of the model `like` in this folder, with every choice written out."""
    config = read_json(folder / "open_clip_config.json", like)
    quick = quick_gelu(like, f"local-dir:{folder}")
    prepares = {**_prepares({}), **config.get("preprocess_cfg", {})}
    config["adapt"] = {key: value for key, value in config.get("adapt", {}).items() if key != "vision_only"}
    said = _said(checkpoint)
    return config | {"model_cfg": config["model_cfg"] | _quick(like, quick, said), "preprocess_cfg": prepares}


def config_of_tag(checkpoint: Checkpoint, like: str) -> dict[str, Any]:
    """open_clip_config.json for a checkpoint of open_clip:MODEL[@TAG], with every choice written out.

    The tag is that of the weights which it began from, or `random`. Without one a model is refused whose published
    weights differ in activation or preprocessing.
    """
    import open_clip

    library, _, model = like.partition(":")
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
    """The activation, if the file or transformers' config.json beside it says it. OpenAI's archives are QuickGELU, and
    so are their tensors in another file."""
    if {key.rpartition(".")[2] for key in checkpoint.tensors} >= OF_OPENAI:
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

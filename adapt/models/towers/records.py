"""Which activation weights were trained with. Their tensors do not say: GELU and QuickGELU fit the same shapes.

QuickGELU(x) = x * sigmoid(1.702 x) is that of OpenAI, MetaCLIP and DFN (1606.08415, section 2). The record of a tag in
open_clip's table says so, or the configuration in a folder, or that of transformers beside it.
"""

from pathlib import Path
from typing import Any

from adapt.errors import Refusal
from adapt.models.towers.tokens import read_json

QUICK, PLAIN = "QuickGELU", "GELU"
CORRECTED = f"its weights were trained with {QUICK} and get it, where {{}} has {PLAIN}"
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
        return _of_repository(model.removeprefix("hf-hub:").partition("@")[0])
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


def _of_repository(repository: str) -> bool | None:
    """QuickGELU where the table says so of a repository; else its own configuration is what was published."""
    wanted = repository.strip("/")
    return any(r.get("quick_gelu") and r.get("hf_hub", "").strip("/") == wanted for _, _, r in published()) or None


def _of_folder(name: str, folder: Path) -> bool | None:
    file = folder / "open_clip_config.json"
    config = read_json(file, name)
    model, vision = config.get("model_cfg", {}), config.get("model_cfg", {}).get("vision_cfg", {})
    if "quick_gelu" in model:
        if not isinstance(model["quick_gelu"], bool):
            raise Refusal(f"backbone {name}: {file}: quick_gelu is {model['quick_gelu']!r}; write true or false")
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

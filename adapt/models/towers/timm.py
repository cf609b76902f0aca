"""Towers of timm, of the hub (NAME.TAG) or of a file, and the trunks inside open_clip's SigLIP and PE."""

import contextlib
import inspect
import warnings
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapt.data.preprocess import FILTERS, Preprocess
from adapt.errors import Refusal
from adapt.models.towers import hub
from adapt.models.towers.checkpoint import SUFFIXES, read_checkpoint
from adapt.models.towers.fitting import fit_of, place_of, refuse_misfits, refuse_unmerged
from adapt.models.towers.records import CORRECTED, PLAIN, QUICK
from adapt.models.towers.tokens import (
    Cut,
    End,
    Loaded,
    Resize,
    Tokens,
    bare,
    message_of,
    near,
    read_json,
    tell,
    warn_of_satellites,
)

NOTE = "natively QuickGELU"  # of timm's table, on weights of OpenAI, MetaCLIP and DFN
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of a repository of timm's


def load_timm(name: str, model: str, activation: str | None = None) -> Loaded:
    """`activation` is that which a detector was trained with, if one is loaded; else the weights' record decides."""
    architecture, _, weights = model.partition("@")
    if repository := repository_of(name, model):
        folder = folder_of(name, model)
        tower, commit = _published(name, model, repository, folder, activation), hub.commit_of(folder)
        cfg = tower.pretrained_cfg
    else:
        _known(name, architecture.partition(".")[0])
        tower, cfg = _of_file(name, architecture, weights, activation)
        commit = None
    warn_of_satellites(name, model, repository, str(cfg.get("tag")))
    tower.reset_classifier(0)
    preprocess = _preprocess(cfg, name)
    depth = depth_of(tower, name)
    first, cut = pools_first(tower), Cut("blocks", end) if has_blocks(tower) else None
    facts = preprocess, tuple(cfg["mean"]), tuple(cfg["std"]), depth, False, walk, first, cut
    return Loaded(tower, *facts, resize_of(tower), commit)


def repository_of(name: str, model: str) -> str:
    """OWNER/NAME[@REVISION] at the hub of timm:NAME[.TAG] or timm:hf-hub:OWNER/NAME[@REVISION]; "" of other names.

    Refuses an architecture, a tag, and one without weights at the hub, as timm's own table has them.
    """
    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:")
    if "@" in model:
        return ""
    architecture, _, tag = model.partition(".")
    record = _record(name, architecture, tag)
    if record is None or not record.hf_hub_id:
        raise Refusal(
            f"backbone {name}: timm has no weights of {model} at the hub; name a file, timm:{model}@FILE.safetensors"
        )
    return str(record.hf_hub_id)


def _record(name: str, architecture: str, tag: str) -> Any:
    """What timm's table says of NAME.TAG, or of its own choice where TAG is ""; None where it has no weights."""
    import timm

    _known(name, architecture)
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        raise Refusal(
            f"backbone {name}: {architecture} has no weights {tag!r}{near(tag, known)}; known: {', '.join(known)}"
        )
    return timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture) if known else None


def folder_of(name: str, model: str) -> Path:
    """The repository's folder in the hub's cache."""
    return hub.snapshot(name, repository_of(name, model), [CONFIG, WEIGHTS])


def _known(name: str, architecture: str) -> None:
    import timm

    if not timm.is_model(architecture):
        raise Refusal(f"backbone {name}: timm has no model {architecture!r}{near(architecture, timm.list_models())}")


def _published(name: str, model: str, repository: str, folder: Path, activation: str | None) -> nn.Module:
    """The model with its weights from a repository's folder, as timm itself builds it: from its table where the name
    is one of that, else from the folder's config.json."""
    import timm

    if not (folder / WEIGHTS).is_file():
        repo = repository.partition("@")[0]
        raise Refusal(
            f"backbone {name}: {repo} has no {WEIGHTS}, or the cache lacks it (pickled weights are not loaded). Run "
            f"`hf download {repo}`; of a pickle give the file, as timm:NAME.TAG@pytorch_model.bin"
        )
    if model.startswith("hf-hub:"):
        config = read_json(folder / CONFIG, name)
        architecture, source = str(config.get("architecture")), f"local-dir:{folder}"
        config = config if "pretrained_cfg" in config else {"pretrained_cfg": config}  # as it once was written
        _known(name, architecture)
        options: dict[str, Any] = {}
    else:
        record = timm.get_pretrained_cfg(model)
        architecture, source = record.architecture, f"{record.architecture}.{record.tag}"
        config = {"pretrained_cfg": {"tag": record.tag}}
        options = {"pretrained_cfg_overlay": {"file": str(folder / WEIGHTS), "custom_load": False}}
        if "." not in model:
            tell(name, f"the weights are {record.tag}, timm's own choice for this name: timm:{source}")
    options |= _activation(name, architecture, config, activation)
    try:
        with _nothing_missing():
            return timm.create_model(source, pretrained=True, **options)
    except Exception as error:
        raise Refusal(
            f"backbone {name}: {folder / WEIGHTS} does not fit {architecture}: {message_of(error)}"
        ) from error


@contextlib.contextmanager
def _nothing_missing() -> Iterator[None]:
    """Where timm is lax about a model, what its weights lack stays random: here that is an error."""
    from timm.models import _builder as builder

    own = builder.load_pretrained

    def refuse(_: nn.Module, keys: Any) -> None:
        if keys.missing_keys:
            raise ValueError(f"{len(keys.missing_keys)} tensors are missing, as {keys.missing_keys[0]}")

    def load(model: nn.Module, *given: Any, **options: Any) -> None:
        hook = model.register_load_state_dict_post_hook(refuse)
        own(model, *given, **options)
        hook.remove()

    builder.load_pretrained = load
    try:
        yield
    finally:
        builder.load_pretrained = own


def _of_file(name: str, architecture: str, weights: str, activation: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """The model NAME[.TAG] with the weights of FILE, or random ones, and how images enter it.

    A file has its configuration in FILE.json, or that of the TAG which it began from.
    """
    import timm

    file, (architecture, _, tag) = Path(weights), architecture.partition(".")
    config: dict[str, Any] = {}
    if weights != "random" and (not weights.endswith(SUFFIXES) or not file.is_file()):
        raise Refusal(
            f"backbone {name}: {weights} is no checkpoint: give a file that is there and ends in {', '.join(SUFFIXES)}"
        )
    if weights != "random" and not tag:
        if not file.with_suffix(".json").is_file():
            raise Refusal(
                f"backbone {name}: {file.with_suffix('.json')} is needed beside the weights; or name those that they "
                f"began from, as timm:{architecture}.TAG@{file}"
            )
        config = read_json(file.with_suffix(".json"), name)
        if config.get("architecture") != architecture:
            raise Refusal(f"backbone {name}: {file.with_suffix('.json')} is for {config.get('architecture')!r}")
        if activation is None:
            _refuse_silence(name, architecture, config, file.with_suffix(".json"))
    elif tag:
        _record(name, architecture, tag)
        config = {"pretrained_cfg": {"tag": tag}}
    arguments = {**config.get("model_args", {}), **_activation(name, architecture, config, activation)}
    if "num_classes" in config or not tag:
        arguments["num_classes"] = config.get("num_classes", 1000)
    tower = timm.create_model(f"{architecture}.{tag}" if tag else architecture, pretrained=False, **arguments)
    if weights != "random":
        _fill(name, architecture, tower, file)
    return tower, {**tower.pretrained_cfg, **config.get("pretrained_cfg", {})}


@torch.no_grad()
def _fill(name: str, architecture: str, tower: nn.Module, file: Path) -> None:
    """Copy the weights of a file, under whatever prefix, tensor by tensor; the classifier may be missing."""
    classified = {key: tuple(tensor.shape) for key, tensor in tower.state_dict().items()}
    tower.reset_classifier(0)
    own = tower.state_dict()
    try:
        checkpoint = read_checkpoint(file)
        refuse_unmerged(file, checkpoint.tensors)
        place, _ = place_of(checkpoint, classified, flags=False)
        fit = fit_of(checkpoint.tensors, classified, place, "", (), False)
        needed = replace(fit, missing=[key for key in fit.missing if key in own])
        refuse_misfits(needed, file, architecture, flags=False)
    except Refusal as refusal:
        raise Refusal(f"backbone {name}: {refusal}") from refusal
    for key, tensor in own.items():
        tensor.copy_(checkpoint.tensors[fit.names[key]].load().reshape(tensor.shape))


def _refuse_silence(name: str, architecture: str, config: dict[str, Any], file: Path) -> None:
    """Refuse a file that does not say its activation, where timm has weights of its architecture with either one."""
    import timm

    own = config.get("pretrained_cfg", {})
    said = "act_layer" in config.get("model_args", {}) or own.get("notes") or own.get("tag")
    records = [timm.get_pretrained_cfg(full) for full in timm.list_pretrained(f"{architecture}.*")]
    if not said and len({any(NOTE in note for note in record.notes or ()) for record in records}) == 2:
        raise Refusal(
            f"backbone {name}: {file} does not say which activation the weights need, and timm has weights of "
            f'{architecture} with {QUICK} and with {PLAIN}. Write "act_layer" into its model_args ("quick_gelu" as '
            'OpenAI\'s, or "gelu"), or the "tag" of the weights that they began from into its pretrained_cfg'
        )


def _activation(name: str, architecture: str, config: dict[str, Any], activation: str | None) -> dict[str, str]:
    """timm notes of OpenAI's, MetaCLIP's and DFN's weights that they are "natively QuickGELU", whatever is built."""
    import timm

    own = config.get("pretrained_cfg", {})
    published = f"{architecture}.{own.get('tag')}"
    known = timm.get_pretrained_cfg(published) if published in timm.list_pretrained(f"{architecture}.*") else None
    notes = own.get("notes") or (known.notes if known else None) or ()
    if "act_layer" in config.get("model_args", {}) or not any(NOTE in note for note in notes):
        return {}
    if "quickgelu" in architecture:
        return {"act_layer": "quick_gelu"}
    if activation == PLAIN:
        warnings.warn(
            f"backbone {name}: a detector was trained with {PLAIN}, its weights were published with {QUICK}. It is "
            "loaded as it was trained; train anew for the published tower",
            stacklevel=2,
        )
        return {}
    tell(name, CORRECTED.format(f"timm's {architecture}"))
    return {"act_layer": "quick_gelu"}


def _preprocess(cfg: dict[str, Any], name: str) -> Preprocess:
    """Size, scale and interpolation; whatever this package cannot do exactly is refused."""
    (_, height, width), crop, mode = cfg["input_size"], cfg["crop_pct"], cfg.get("crop_mode") or "center"
    plain = mode == "center" or (mode == "squash" and crop == 1)
    if height != width or not plain or cfg["interpolation"] not in FILTERS:
        raise Refusal(
            f"backbone {name}: its images are prepared by crop_mode {mode!r} with crop_pct {crop} and interpolation "
            f"{cfg['interpolation']!r} to {height} x {width}; this package has center, squash with crop_pct 1, "
            f"{' and '.join(FILTERS)}, and squares"
        )
    return Preprocess(height, int(height / crop), cfg["interpolation"], "squash" if mode == "squash" else "resize")


def pools_first(trunk: nn.Module) -> bool:
    """Whether the pooled feature is the class token."""
    return getattr(trunk, "global_pool", "") == "token" and getattr(trunk, "attn_pool", None) is None


def has_blocks(trunk: nn.Module) -> bool:
    """Whether tokens run through one list of blocks and a norm, as in a vision transformer."""
    return isinstance(getattr(trunk, "blocks", None), nn.ModuleList | nn.Sequential) and hasattr(trunk, "norm")


def resize_of(trunk: nn.Module) -> Resize | None:
    """By timm's own `set_input_size`, of vision transformers; not of BEiT, whose tables it indexes in a way of which
    torch says that it will mean something else."""
    embed = getattr(trunk, "patch_embed", None)
    tables = any("rel_pos" in name or "relative_position" in name for name, _ in trunk.named_parameters())
    if tables or not has_blocks(trunk) or not all(hasattr(module, "set_input_size") for module in (trunk, embed)):
        return None
    return Resize(embed.feat_ratio(), lambda trunk, size: trunk.set_input_size(img_size=size))


def depth_of(trunk: nn.Module, name: str) -> int:
    if not hasattr(trunk, "forward_intermediates"):
        raise Refusal(f"backbone {name}: timm gives no features of {type(trunk).__name__}'s blocks")
    return len(trunk.feature_info)


def walk(tower: nn.Module, pixels: Tensor, blocks: Collection[int], end: bool) -> tuple[dict[int, Tokens], End | None]:
    """See adapt.models.towers.tokens.Walk."""
    trunk = bare(tower)
    found, tokens = walk_trunk(trunk, pixels, blocks, end)
    return found, End(pooled(trunk, tokens), patches(trunk, tokens)) if end else None


def walk_trunk(
    trunk: nn.Module, pixels: Tensor, blocks: Collection[int], end: bool
) -> tuple[dict[int, Tokens], Tensor | None]:
    """Tokens by block, and what timm's own forward_features returns if the end is asked for."""
    # class token and registers, in this order; where they join behind the blocks timm has no such option
    knows = "return_prefix_tokens" in inspect.signature(trunk.forward_intermediates).parameters
    prefix = trunk.num_prefix_tokens if knows else 0
    options: dict[str, Any] = {"return_prefix_tokens": True} if prefix else {}
    given = trunk.forward_intermediates(
        pixels,
        indices=[k - 1 for k in sorted(blocks)] or [0],
        stop_early=not end,
        intermediates_only=not end,
        **options,
    )
    tokens, grids = given if end else (None, given)
    found = {}
    for k, grid in zip(sorted(blocks), grids, strict=False):  # no block asked for: timm still returns one
        grid, before = grid if prefix else (grid, None)
        cls = before[:, 0] if prefix and trunk.cls_token is not None else None
        found[k] = Tokens(cls, grid.flatten(2).transpose(1, 2))  # (n, d, h, w) -> (n, h * w, d)
    return found, tokens


def end(trunk: nn.Module, tokens: Tensor) -> tuple[Tensor, None]:
    """See adapt.models.towers.tokens.Cut."""
    return pooled(trunk, trunk.norm(tokens)), None


def pooled(trunk: nn.Module, tokens: Tensor) -> Tensor:
    """The feature before the classifier (n, d): class token, mean or attention pooling, as the model was trained."""
    feature = trunk.forward_head(tokens, pre_logits=True)
    return feature.mean(dim=(2, 3)) if feature.ndim == 4 else feature


def patches(trunk: nn.Module, tokens: Tensor) -> Tensor:
    """Patch tokens (n, p, d) of forward_features."""
    if tokens.ndim == 4:
        channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        return tokens.flatten(1, 2) if channels_last else tokens.flatten(2).transpose(1, 2)
    return tokens[:, getattr(trunk, "num_prefix_tokens", 0) :]

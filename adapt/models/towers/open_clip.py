"""Image towers of open_clip: its own vision transformers, and those around a timm trunk (SigLIP, PE, EVA)."""

import contextlib
import logging
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from adapt.data.preprocess import FILTERS, Geometry, Preprocess
from adapt.errors import Refusal
from adapt.models.towers.attention import split_all
from adapt.models.towers.checkpoint import SUFFIXES, Checkpoint, read_checkpoint
from adapt.models.towers.fitting import fit_of, place_of, refuse_misfits, refuse_unmerged
from adapt.models.towers.hub import commit_of
from adapt.models.towers.records import CORRECTED, PLAIN, QUICK, config_of_tag, quick_gelu
from adapt.models.towers.timm import depth_of, has_blocks, patches, pools_first, resize_of, walk_trunk
from adapt.models.towers.tokens import Cut, End, Loaded, Resize, Tokens, bare, message_of, near, read_json, tell

WEIGHTS = "open_clip_model.safetensors"
RESIZE_MODES: dict[str, Geometry] = {"shortest": "resize", "squash": "squash"}


def checkpoint_in(model: str) -> tuple[str, str, Path | None]:
    """MODEL, TAG and FILE of `MODEL[@TAG]@FILE`; TAG is "" and FILE None where the name has none.

    What ends as a checkpoint does is a file, and TAG one of open_clip's for MODEL, or `random`.
    """
    import open_clip

    architecture, _, weights = model.partition("@")
    if ":" in architecture or not weights.endswith(SUFFIXES):
        return architecture, weights, None
    tag, _, file = weights.partition("@")
    if file and tag in ("random", *open_clip.list_pretrained_tags_by_model(architecture)):
        return architecture, tag, Path(file)
    return architecture, "", Path(weights)


def create_clip(name: str, model: str, activation: str | None = None, texts: bool = True) -> nn.Module:
    """Both towers of MODEL@TAG, MODEL[@TAG]@FILE, hf-hub:ORG/NAME or local-dir:FOLDER, all weights loaded or refused.

    They get the activation of the weights' own record, or that which a detector was trained with. Of a folder with the
    image tower alone (`vision_only`) the text tower is random. Without `texts` the text tower takes no memory: its
    names and shapes are checked against the weights, and it holds none of them.
    """
    import open_clip

    architecture, tag, file = checkpoint_in(model)
    options: dict[str, Any] = {"require_pretrained": True}
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:"))
        config = read_json(folder / "open_clip_config.json", name)
        if not list(folder.glob("*.safetensors")):
            raise Refusal(
                f"backbone {name}: no .safetensors weights in {folder} (pickled weights are not loaded: `adapt "
                "convert FILE` makes a folder of them)"
            )
        if vision_only(config):
            options = {"load_weights": False, "pretrained_text": False}
    elif not model.startswith("hf-hub:"):
        if architecture not in open_clip.list_models():
            hint = near(architecture, open_clip.list_models())
            raise Refusal(f"backbone {name}: open_clip has no model {architecture!r}{hint}")
        if file:
            return _of_checkpoint(name, architecture, tag, file, activation, texts)
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if tag == "random":
            options = {"pretrained": None, "pretrained_text": False}
        elif tag not in tags:
            raise Refusal(
                f"backbone {name}: {architecture} has no weights {tag!r}{near(tag, tags)}; known: {', '.join(tags)}"
            )
        else:
            options["pretrained"] = tag
    without = options.get("load_weights") is False
    quick = _quick_gelu(name, model, activation)
    if quick is not None:
        options["quick_gelu"] = quick
    heard = logging.root.manager.disable
    logging.disable(logging.ERROR)  # open_clip writes what it raises to the log, too
    try:
        with (
            warnings.catch_warnings(),
            unfilled() if without else contextlib.nullcontext(),
            contextlib.nullcontext() if texts else _texts_on_meta(),
        ):
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")  # looks before `options` are applied
            warnings.filterwarnings("ignore", message=".*to a meta parameter.*which is a no-op")
            built = model if ":" in model else architecture
            corrected = quick and not texts and activation is None
            if corrected and not open_clip.get_model_config(built).get("quick_gelu"):
                tell(name, CORRECTED.format("its configuration" if ":" in model else f"open_clip's {architecture}"))
            clip = open_clip.create_model(built, **options)
        if without:
            _fill_vision(clip.visual, Path(model.removeprefix("local-dir:")) / WEIGHTS)
        return clip
    except Exception as error:  # open_clip wraps every cause (offline, refused, corrupt, wrong shape) in its own
        found = (open_clip.get_pretrained_cfg(architecture, tag) or {}).get("hf_hub", "").strip("/")
        repository = model.removeprefix("hf-hub:") if model.startswith("hf-hub:") else found or "OWNER/NAME"
        raise Refusal(
            f"backbone {name}: weights could not be loaded ({message_of(error)}). On a machine with a network run "
            f"`hf download {repository}` (or unset HF_HUB_OFFLINE), or give open_clip:local-dir:FOLDER"
        ) from error
    finally:
        logging.disable(heard)


def has_texts(checkpoint: Checkpoint) -> bool:
    """Whether a text tower is among its tensors."""
    return any({"text", "token_embedding"} & set(key.split(".")) for key in checkpoint.tensors)


@torch.no_grad()
def _of_checkpoint(
    name: str, architecture: str, tag: str, file: Path, activation: str | None, texts: bool
) -> nn.Module:
    """The model with weights of a checkpoint of training, or of its image tower alone.

    The file is read as data, tensor by tensor into its place; `adapt convert` would make a folder of the same tower.
    Attention may be split as that of this package is.
    """
    import open_clip

    if not file.is_file() and "@" in str(file):
        tag = str(file).partition("@")[0]
        hint = near(tag, open_clip.list_pretrained_tags_by_model(architecture))
        raise Refusal(f"backbone {name}: {file} is no file, and {architecture} has no weights {tag!r}{hint}")
    like = f"open_clip:{architecture}{f'@{tag}' if tag else ''}"
    try:
        checkpoint = read_checkpoint(file)
        refuse_unmerged(file, checkpoint.tensors)
        config = config_of_tag(checkpoint, like)
        quick = _quick_of_detector(name, activation, config["model_cfg"]["quick_gelu"])
        with unfilled(), contextlib.nullcontext() if texts else _texts_on_meta():
            clip = open_clip.create_model(
                architecture, pretrained_text=False, quick_gelu=quick, force_preprocess_cfg=config["preprocess_cfg"]
            )
        if any(".attn.q_proj." in key for key in checkpoint.tensors):
            split_all(clip.get_submodule("visual"))
        own = clip.state_dict()
        shapes = {key: tuple(tensor.shape) for key, tensor in own.items()}
        alone = not has_texts(checkpoint)
        if alone:
            shapes = {key: shape for key, shape in shapes.items() if key.startswith("visual.")}
        place, added = place_of(checkpoint, shapes)
        fit = fit_of(checkpoint.tensors, shapes, place, added, (), alone)
        refuse_misfits(fit, file, like)
    except Refusal as refusal:
        flags = "" if "--" not in str(refusal) else ". These are flags of `adapt convert`, which makes a folder of it"
        tags = "" if tag or not flags else f"; or a tag stands in the name, open_clip:{architecture}@TAG@{file}"
        raise Refusal(f"backbone {name}: {refusal}{flags}{tags}") from refusal
    if texts and alone:
        raise Refusal(f"backbone {name} has no text tower: {file} holds the image tower alone")
    for key, of_file in fit.names.items():
        if not own[key].is_meta:
            own[key].copy_(checkpoint.tensors[of_file].load().reshape(own[key].shape))
    return clip


@contextlib.contextmanager
def _texts_on_meta() -> Iterator[None]:
    """open_clip builds text towers without memory, and moves no model: a tower on the meta device cannot be moved."""
    from open_clip import factory
    from open_clip import model as towers

    build, move, load = towers._build_text_tower, factory._set_model_device_and_precision, factory.load_checkpoint

    def build_on_meta(*args: Any, **options: Any) -> nn.Module:
        with torch.device("meta"):
            return build(*args, **options)

    def load_in_place(model: nn.Module, path: str, **options: Any) -> object:
        model.get_submodule("visual").weights_file = path
        return None if _loaded_in_place(model, path) else load(model, path, **options)

    towers._build_text_tower = build_on_meta
    factory._set_model_device_and_precision = lambda *_: None  # it is built where it is wanted: in fp32 on the CPU
    factory.load_checkpoint = load_in_place
    try:
        yield
    finally:
        towers._build_text_tower, factory._set_model_device_and_precision = build, move
        factory.load_checkpoint = load


@torch.no_grad()
def _loaded_in_place(model: nn.Module, path: str) -> bool:
    """Copy the weights tensor by tensor, so that no more than one of the file is in memory; of the meta device none.

    False, and nothing is done, where names or shapes are not the model's own: open_clip converts, resizes or refuses.
    """
    from safetensors import safe_open

    own = model.state_dict()
    if not str(path).endswith(".safetensors"):
        return False
    with safe_open(path, "pt") as file:
        if {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} != {  # noqa: SIM118
            name: tuple(tensor.shape) for name, tensor in own.items()
        }:
            return False
    for name, tensor in own.items():
        if not tensor.is_meta:
            with safe_open(path, "pt") as file:  # anew, for what was read stays in memory until the file is closed
                tensor.copy_(file.get_tensor(name))
    return True


@contextlib.contextmanager
def unfilled() -> Iterator[None]:
    """No warning of open_clip's that a model is random: its weights come afterwards, or are not wanted."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def vision_only(config: dict[str, Any]) -> bool:
    """Whether a folder's open_clip_config.json says that its weights are those of the image tower alone."""
    return bool(config.get("adapt", {}).get("vision_only"))


def _fill_vision(visual: nn.Module, file: Path) -> None:
    from safetensors.torch import load_file

    visual.load_state_dict({key.removeprefix("visual."): value for key, value in load_file(file).items()}, strict=True)


def _quick_gelu(name: str, model: str, activation: str | None) -> bool | None:
    try:
        recorded = quick_gelu(name, model)
    except Refusal:
        if activation not in (QUICK, PLAIN):
            raise
        recorded = None  # the folder does not say: the detector does
    return _quick_of_detector(name, activation, recorded)


def _quick_of_detector(name: str, activation: str | None, recorded: bool | None) -> bool | None:
    """That of the record, or the activation that a detector was trained with, if one is loaded."""
    if activation not in (QUICK, PLAIN):
        return recorded
    if recorded is not None and recorded != (activation == QUICK):
        warnings.warn(
            f"backbone {name}: a detector was trained with {activation}, its weights were published with "
            f"{QUICK if recorded else PLAIN}. It is loaded as it was trained; train anew for the published tower",
            stacklevel=2,
        )
    return activation == QUICK


def load_open_clip(name: str, model: str, activation: str | None = None) -> Loaded:
    visual = create_clip(name, model, activation, texts=False).visual
    extra: dict[str, Any] = {}
    if model.startswith("local-dir:"):
        extra = read_json(Path(model.removeprefix("local-dir:")) / "open_clip_config.json", name).get("adapt", {})
    config = visual.preprocess_cfg
    sides = {config["size"]} if isinstance(config["size"], int) else set(config["size"])
    known = config["resize_mode"] in RESIZE_MODES and config["interpolation"] in FILTERS
    if len(sides) != 1 or not known:
        raise Refusal(
            f"backbone {name}: its images are prepared by resize_mode {config['resize_mode']!r} and interpolation "
            f"{config['interpolation']!r} to size {config['size']}; this package has {' and '.join(RESIZE_MODES)}, "
            f"{' and '.join(FILTERS)}, and one side length"
        )
    size = sides.pop()
    geometry = extra.get("geometry") or RESIZE_MODES[config["resize_mode"]]
    preprocess = Preprocess(size, size, config["interpolation"], geometry)
    if hasattr(visual, "trunk"):
        walk, depth, first = walk_trunk_tower, depth_of(visual.trunk, name), pools_first(visual.trunk)
        cut = Cut("trunk.blocks", end_of_trunk_tower) if has_blocks(visual.trunk) else None
        own = resize_of(visual.trunk)
        resize = own and Resize(own.patch, lambda visual, size: visual.set_input_size(size))
    elif hasattr(visual, "transformer"):
        split_all(visual)
        walk, depth = walk_transformer, len(visual.transformer.resblocks)
        first = visual.attn_pool is None and visual.pool_type == "tok"
        cut, learned = Cut("transformer.resblocks", end_of_transformer), visual.positional_embedding.requires_grad
        resize = (
            Resize(max(visual.patch_size), _resize_transformer) if learned else None
        )  # others are sines and cosines
    else:
        raise Refusal(f"backbone {name}: {type(visual).__name__} has no transformer blocks; take a ViT")
    facts = preprocess, tuple(config["mean"]), tuple(config["std"]), depth, True, walk, first, cut
    return Loaded(visual, *facts, resize, commit_of(getattr(visual, "weights_file", None)))


def walk_transformer(
    tower: nn.Module, pixels: Tensor, blocks: Collection[int], end: bool
) -> tuple[dict[int, Tokens], End | None]:
    """See adapt.models.towers.tokens.Walk; the steps of open_clip's own forward, [class token, patches] throughout."""
    visual = bare(tower)
    chosen = sorted(blocks)
    tokens, states = visual.transformer.forward_intermediates(
        visual._embeds(pixels), indices=[k - 1 for k in chosen] or [0], stop_early=not end
    )
    found = {k: Tokens(state[:, 0], state[:, 1:]) for k, state in zip(chosen, states, strict=False)}
    if not end:
        return found, None
    last, normed = visual._pool(tokens)
    if visual.attn_pool is not None:  # CoCa: what it returns are answers to its queries, behind a norm of their width
        normed = tokens[:, 1:]
    return found, End(last, normed, last if visual.proj is None else last @ visual.proj)


def _resize_transformer(visual: nn.Module, size: int) -> None:
    """Positions interpolated by open_clip's own function, as it does for `force_image_size`."""
    from open_clip.model import resize_pos_embed

    grid, name = (size // visual.patch_size[0], size // visual.patch_size[1]), "visual.positional_embedding"
    state = {name: visual.positional_embedding.data}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
    visual.positional_embedding = nn.Parameter(state[name], requires_grad=False)
    visual.image_size, visual.grid_size = (size, size), grid


def end_of_transformer(visual: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """See adapt.models.towers.tokens.Cut."""
    last, _ = visual._pool(tokens)
    return last, last if visual.proj is None else last @ visual.proj


def walk_trunk_tower(
    tower: nn.Module, pixels: Tensor, blocks: Collection[int], end: bool
) -> tuple[dict[int, Tokens], End | None]:
    """See `tokens.Walk`. The projection is the trunk's classifier (PE, EVA), the tower's head, or none
    at all (SigLIP: the attention-pooled feature itself is compared with texts)."""
    visual = bare(tower)
    trunk = visual.trunk
    found, tokens = walk_trunk(trunk, pixels, blocks, end)
    if not end:
        return found, None
    last, proj = _trunk_end(visual, tokens)
    return found, End(last, patches(trunk, tokens), proj)


def end_of_trunk_tower(visual: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """See adapt.models.towers.tokens.Cut."""
    return _trunk_end(visual, visual.trunk.norm(tokens))


def _trunk_end(visual: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled feature and projected embedding of tokens behind the trunk's norm."""
    feature = visual.trunk.forward_head(tokens, pre_logits=True)
    last = feature.mean(dim=(2, 3)) if feature.ndim == 4 else feature
    return last, visual.head(visual.trunk.get_classifier()(feature))

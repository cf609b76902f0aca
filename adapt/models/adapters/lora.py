"""Low-rank adapters (LoRA, arXiv:2106.09685, section 4.1), SVD residuals and norm tuning on a frozen backbone.

    W' = W + alpha / rank * B A,   A (rank, in) random, B (out, rank) zero: at the start W' = W

SVD residuals (residual.py) are a LoRA whose A and B are tied to the singular directions of W. Adapters
are peft's, saved in peft's own format; which layers they may touch is found in the tower itself.
"""

import contextlib
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from adapt.errors import Refusal
from adapt.files import read_json, require_regular
from adapt.models.adapters.residual import plain_state, settle, train_change, train_residual
from adapt.models.towers.backbones import NORMS, Backbone
from adapt.text import one_line

Targets = Literal["qv", "qkvo", "mlp", "all", "norm"]
Update = Literal["lora", "svd"]
BLOCK = re.compile(r"(?:^|\.)(?:resblocks|blocks|layers|layer|stages)\.(\d+)\.")
LAYERS = {  # of open_clip, timm and transformers (whose DINOv2 still had query, key, value, output.dense in 5.17)
    "qv": re.compile(r"\.(q_proj|v_proj|query|value)$"),
    "qkvo": re.compile(
        r"\.(attn|self_attn|attention)\.(q_proj|k_proj|v_proj|out_proj|o_proj|qkv|proj|query|key|value|output\.dense)$"
    ),
    "mlp": re.compile(r"\.mlp\.(c_fc|c_proj|fc1|fc1_g|fc1_x|fc2|up_proj|gate_proj|down_proj|weights_in|weights_out)$"),
}
MAX_RANK = 1024  # of a LoRA; half of it of an SVD residual, which is saved as one of twice its rank
SAYS_NOTHING = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
}  # of the update
MAX_SCALE = 1024  # of alpha / rank: four times what 8 bits of bf16 keep, so that no digit of the frozen weight is left
ANY = re.compile("|".join(pattern.pattern for pattern in LAYERS.values()))


def target_modules(backbone: Backbone, targets: Targets, last_blocks: int | None = None) -> list[str]:
    """Names of the layers of the tower that `targets` means, in the last `last_blocks` blocks or in all.

    qv, qkvo, mlp: these projections of every transformer block; all: every one of them, or every pointwise (1 x 1)
    convolution of a convolutional tower; norm: every normalisation layer, inside blocks and outside. Only layers
    that the forward pass to the backbone's feature layer runs through are named: others would never be trained.
    """
    modules = _reached(backbone)
    if targets == "norm":
        names = [name for name, module in modules.items() if isinstance(module, NORMS)]
    else:
        pattern = LAYERS.get(targets, ANY)
        linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
        names = [
            name for name in linears if pattern.search(name) and BLOCK.search(name)
        ]  # a pooling head has no number
        if targets == "all" and not names:
            names = [name for name, module in modules.items() if _pointwise(module)]
    if not names:
        raise Refusal(f"--targets {targets}: {backbone.name} has no such layers; use --targets all or norm")
    if last_blocks is not None:
        blocks = sorted({int(match[1]) for name in modules if (match := BLOCK.search(name))})
        if not 1 <= last_blocks <= len(blocks):
            raise Refusal(f"--last_blocks {last_blocks}: {backbone.name} has {len(blocks)} blocks")
        kept = set(blocks[-last_blocks:])
        names = [name for name in names if (match := BLOCK.search(name)) and int(match[1]) in kept]
    return names


def _reached(backbone: Backbone) -> dict[str, nn.Module]:
    """Modules of the tower that a forward pass calls, by name."""
    called: set[nn.Module] = set()
    modules = dict(backbone.tower.named_modules())
    hooks = [m.register_forward_pre_hook(lambda module, _: called.add(module)) for m in modules.values()]
    size = backbone.preprocess.size
    with torch.no_grad():
        backbone(torch.zeros(1, 3, size, size, device=backbone.mean.device))
    for hook in hooks:
        hook.remove()
    return {name: module for name, module in modules.items() if module in called}


def _pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def add_adapter(
    backbone: Backbone,
    targets: Targets,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    last_blocks: int | None = None,
    seed: int = 0,
    update: Update = "lora",
) -> None:
    """Put a fresh adapter on the backbone; afterwards only the adapter requires gradients, and it is fp32.

    `alpha` is the rank unless it is given. `update` svd trains the last `rank` singular directions of each weight; it
    has no `alpha`.
    """
    from peft import LNTuningConfig, LoraConfig, get_peft_model

    if targets == "norm" and update == "svd":
        raise Refusal("--update svd: norm layers have no singular directions; choose other --targets")
    if targets != "norm" and not 1 <= rank <= (MAX_RANK // 2 if update == "svd" else MAX_RANK):
        raise Refusal(f"--rank {rank}: give 1 to {MAX_RANK}, with --update svd to {MAX_RANK // 2}")
    if targets != "norm" and alpha is not None and not 0 < alpha <= MAX_SCALE * rank:
        raise Refusal(f"--alpha {alpha:g}: give a number above 0 and at most {MAX_SCALE} times the rank")
    names = target_modules(backbone, targets, last_blocks)
    doubled = 2 * rank if update == "svd" else None
    if targets == "norm":
        # as one expression: in a list `norm` would also mean `patch_embed.norm`, which may be no norm at all
        config = LNTuningConfig(target_modules=_as_expression(names))
    else:
        scale = rank if alpha is None else alpha
        size = {"r": doubled or rank, "lora_alpha": doubled or scale}  # alpha / r = 1: a residual is not scaled
        config = LoraConfig(**size, lora_dropout=dropout, target_modules=names, bias="none")
        _train_fast(config)
    with torch.random.fork_rng(devices=[]), _known_warnings_ignored():
        torch.manual_seed(seed)
        backbone.tower = get_peft_model(backbone.tower, config)
    if targets == "norm":
        for name in names:
            layer = backbone.tower.get_submodule(f"base_model.model.{name}")
            train_change(layer.ln_tuning_layers["default"])
    if update == "svd":
        for name in names:
            train_residual(backbone.tower.get_submodule(f"base_model.model.{name}"), name, rank)
    config.base_model_name_or_path = backbone.name  # set now: peft would clear it above


def save_adapter(backbone: Backbone, folder: Path) -> None:
    """`adapter_config.json` and `adapter_model.safetensors`, as `PeftModel.from_pretrained` reads them.

    An SVD residual becomes a LoRA of twice its rank.
    """
    backbone.tower.save_pretrained(folder, save_embedding_layers=False, state_dict=plain_state(backbone.tower))
    (folder / "README.md").unlink(missing_ok=True)  # peft's template; the detector writes its own card


def load_adapter(backbone: Backbone, folder: Path) -> None:
    """Put a saved adapter on its base. Every key must be there, with its shape, and no other.

    peft itself only warns when keys are missing and would then predict with the bare backbone. Of the settings, which
    may be a stranger's, only those are taken over that `add_adapter` chooses; any other that says something else than
    `save_adapter` writes is refused.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    path = folder / "adapter_model.safetensors"
    try:
        settings = read_json(folder / "adapter_config.json")
        require_regular(path)
        found = load_file(path)
        if not isinstance(settings, dict):
            raise ValueError("adapter_config.json holds no object")
    except (OSError, ValueError, SafetensorError) as error:
        raise Refusal(f"adapter in {folder} cannot be read: {error}") from error
    config = _config(settings, backbone, folder)
    if config.peft_type == "LORA":
        _train_fast(config)
    try:
        with torch.random.fork_rng(devices=[]), _known_warnings_ignored():
            tower = get_peft_model(backbone.tower, config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise Refusal(f"adapter in {folder} does not fit {backbone.name}: {one_line(str(error), 200)}") from error
    expected = get_peft_model_state_dict(tower, save_embedding_layers=False)
    for key in sorted(expected.keys() | found.keys()):
        want = tuple(expected[key].shape) if key in expected else "no such key"
        have = tuple(found[key].shape) if key in found else "missing"
        if want != have:
            raise Refusal(f"{path} does not fit {backbone.name}: {key} is {have}, expected {want}")
    set_peft_model_state_dict(tower, found)
    backbone.tower = tower


def _config(settings: dict[str, object], backbone: Backbone, folder: Path) -> Any:
    """peft's config of settings from a file: kind, rank, alpha, dropout and the layers, and for all else our own."""
    from peft import LNTuningConfig, LoraConfig

    where, modules = f"adapter in {folder}", [name for name, _ in backbone.tower.named_modules() if name]

    def refuse(key: str, wanted: str) -> Refusal:
        return Refusal(f"{where}: {key} is {one_line(repr(settings.get(key)), 80)}, not {wanted}")

    kind, names = settings.get("peft_type"), settings.get("target_modules")
    if kind not in ("LORA", "LN_TUNING"):
        raise Refusal(f"{where} is a {one_line(repr(kind), 80)}; known: LORA, LN_TUNING")
    if kind == "LN_TUNING" and isinstance(names, str):  # as `add_adapter` writes it
        names = [name for name in modules if re.escape(name) in set(names.split("|"))]
        if _parts(names) != _parts(settings["target_modules"]):
            raise refuse("target_modules", "names of this tower's layers")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise refuse("target_modules", "a list of names of layers")
    ends = {".".join(name.split(".")[i:]) for name in modules for i in range(name.count(".") + 1)}
    if unknown := [name for name in names if name not in ends]:  # of many names peft keeps only their common ends
        word = one_line(repr(unknown[0]), 80)
        raise Refusal(f"{where} does not fit {backbone.name}: target_modules has {word}, which is none of its layers")
    if kind == "LN_TUNING":
        config: Any = LNTuningConfig(target_modules=_as_expression(names))
    else:
        rank, alpha, dropout = (settings.get(key) for key in ("r", "lora_alpha", "lora_dropout"))
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise refuse("r", f"a whole number from 1 to {MAX_RANK}")
        if type(alpha) not in (int, float) or not 0 < alpha <= MAX_SCALE * rank:
            raise refuse("lora_alpha", f"a number above 0 and at most {MAX_SCALE} times the rank")
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise refuse("lora_dropout", "a share below 1")
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, bias="none")
    ours = json.loads(json.dumps(config.to_dict(), default=sorted)) | {"target_modules": settings["target_modules"]}
    for key in sorted(settings.keys() - SAYS_NOTHING):
        # of another version of peft, a setting that this one does not know may only be switched off
        if settings[key] != ours[key] if key in ours else settings[key] not in (None, False, {}, []):
            raise refuse(key, f"{ours[key]!r}" if key in ours else "known to this version of peft")
    return config


def _as_expression(names: list[str]) -> str:
    """Names of layers as the one expression that means them and no other."""
    return "|".join(map(re.escape, names))


def _parts(names: list[str] | object) -> list[str]:
    """Those of such an expression, or of names, in an order that does not depend on theirs."""
    return sorted(map(re.escape, names) if isinstance(names, list) else str(names).split("|"))


def merge_adapter(backbone: Backbone) -> None:
    """Add the adapter into the weights, for inference without overhead."""
    if backbone.tower.peft_config["default"].peft_type == "LN_TUNING":
        settle(backbone.tower)  # peft assigns the weights of a norm once more, as if they were tensors
    backbone.tower = backbone.tower.merge_and_unload()


@contextlib.contextmanager
def merged(backbone: Backbone) -> Iterator[None]:
    """For scoring: low-rank adapters stand in copies of the weights, so that a pass takes no longer than without them.

    Afterwards the weights are those from before, to the bit: they are laid aside, and nothing is subtracted.
    """
    if not backbone.adapted:
        yield
        return
    from peft.tuners.lora import LoraLayer

    layers = [m for m in backbone.tower.modules() if isinstance(m, LoraLayer) and not m.merged]
    bases = [layer.get_base_layer() for layer in layers]
    aside = [base.weight.data for base in bases]
    try:
        with torch.no_grad():
            for layer, base in zip(layers, bases, strict=True):
                base.weight.data = base.weight.data.clone()
                layer.merge()
        yield
    finally:
        for layer, base, weight in zip(layers, bases, aside, strict=True):
            base.weight.data = weight
            layer.merged_adapters.clear()


def _train_fast(config: Any) -> None:
    """Have peft build linear layers whose training pass is that of adapt/models/adapters/low_rank.py."""
    from adapt.models.adapters.low_rank import LowRankLinear

    config._register_custom_module({nn.Linear: LowRankLinear})


@contextlib.contextmanager
def _known_warnings_ignored() -> Iterator[None]:
    """peft copies a norm layer whole, yet warns of every class that is not torch's own; and it asks models of
    transformers for a property under its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield

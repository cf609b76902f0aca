"""Adapters: exact at the start, exact after merging, exact after reloading, and only where they were asked for."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapt.errors import Refusal
from adapt.models.adapters.lora import add_adapter, load_adapter, merge_adapter, save_adapter, target_modules
from adapt.models.towers.backbones import Backbone, load_backbone

EVERY = ["qv", "qkvo", "mlp", "all", "norm"]


def pixels(n: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def shake(backbone: Backbone) -> None:
    """Values an optimizer could have reached."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def adapted(targets: str, layer: str = "last", **options) -> Backbone:
    backbone = load_backbone("tiny", layer)
    add_adapter(backbone, targets, **options)
    return backbone


@pytest.mark.parametrize("targets", EVERY)
def test_starts_as_the_base_and_ends_merged(targets) -> None:
    base = load_backbone("tiny")
    backbone = adapted(targets, rank=4, alpha=8)
    with torch.no_grad():
        start, expected = backbone(pixels()), base(pixels())
        torch.testing.assert_close(start, expected, atol=1e-6, rtol=0)
        shake(backbone)
        moved = backbone(pixels())
        assert (moved - expected).abs().max() > 1e-2
        merge_adapter(backbone)
        torch.testing.assert_close(backbone(pixels()), moved, atol=1e-4, rtol=1e-4)


def test_the_update_is_alpha_over_rank_b_a() -> None:
    """Against the formula itself, on the layers' weights."""
    backbone = adapted("qkvo", rank=4, alpha=6)
    shake(backbone)
    layers = {
        n: m for n, m in backbone.tower.named_modules() if n.endswith(("q_proj", "out_proj")) and hasattr(m, "lora_A")
    }
    assert len(layers) == 8
    expected = {
        name: m.base_layer.weight + 6 / 4 * m.lora_B["default"].weight @ m.lora_A["default"].weight
        for name, m in layers.items()
    }
    merge_adapter(backbone)
    merged = dict(backbone.tower.named_modules())
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name.removeprefix("base_model.model.")].weight, weight, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("targets", EVERY)
def test_every_trainable_parameter_gets_a_gradient_and_nothing_else_moves(targets) -> None:
    backbone = adapted(targets, rank=2)
    frozen = {n: p.detach().clone() for n, p in backbone.named_parameters() if not p.requires_grad}
    shake(backbone)  # B = 0 at the start would hide A
    trainable = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    backbone.train()
    backbone(pixels()).square().sum().backward()
    assert trainable and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable.values())
    optimizer.step()
    assert all(torch.equal(p, frozen[n]) for n, p in backbone.named_parameters() if n in frozen)


@pytest.mark.parametrize(("targets", "count"), [("qv", 8), ("qkvo", 16), ("mlp", 8), ("all", 24), ("norm", 10)])
def test_target_names(targets, count) -> None:
    backbone = load_backbone("tiny")
    assert len(target_modules(backbone, targets)) == count
    last = target_modules(backbone, targets, last_blocks=1)
    assert last and all(".3." in name for name in last)


def test_layers_behind_the_feature_are_not_adapted() -> None:
    """They would never get a gradient, and several processes would wait for it for ever."""
    names = target_modules(load_backbone("tiny", "block2"), "all")
    assert len(names) == 12 and not any(".2." in name or ".3." in name for name in names)


def test_convolutions_are_adapted_where_there_is_no_attention() -> None:
    backbone = load_backbone("timm:mobilenetv2_035@random")
    names = target_modules(backbone, "all")
    assert names and all(dict(backbone.tower.named_modules())[n].kernel_size == (1, 1) for n in names)
    add_adapter(backbone, "all", rank=2)
    shake(backbone)
    batch = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    running = {n: b.clone() for n, b in backbone.named_buffers()}
    expected = backbone.eval()(batch)
    torch.testing.assert_close(backbone.train()(batch), expected)  # frozen batch statistics, training or not
    assert all(torch.equal(b, running[n]) for n, b in backbone.named_buffers())
    with pytest.raises(Refusal, match=r"--targets qv.*use --targets all or norm"):
        target_modules(backbone, "qv")


def test_last_blocks_out_of_range() -> None:
    with pytest.raises(Refusal, match="has 4 blocks"):
        target_modules(load_backbone("tiny"), "all", last_blocks=5)


def test_dropout_acts_in_training_only() -> None:
    backbone = adapted("all", dropout=0.5)
    shake(backbone)
    backbone.train()
    assert not torch.equal(backbone(pixels()), backbone(pixels()))
    backbone.eval()
    assert torch.equal(backbone(pixels()), backbone(pixels()))


def test_seed_decides_the_start_and_leaves_the_global_generator_alone() -> None:
    def first(seed: int) -> torch.Tensor:
        return next(p for n, p in adapted("qv", seed=seed).named_parameters() if "lora_A" in n)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = first(1), first(1), first(2)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.rand(3), expected)


def test_adapters_stay_fp32_on_bf16_weights() -> None:
    backbone = load_backbone("tiny").to_precision("bf16")
    add_adapter(backbone, "all")
    shake(backbone)
    assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}
    backbone.train()
    backbone(pixels()).sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in backbone.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, torch.Tensor]:
    backbone = adapted("all", rank=2)
    shake(backbone)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(backbone, folder)
    with torch.no_grad():
        return folder, backbone(pixels())


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    shutil.copytree(saved[0], tmp_path / "adapter")
    return tmp_path / "adapter"


@torch.no_grad()
def test_reloaded_equals_saved(saved) -> None:
    backbone = load_backbone("tiny")
    load_adapter(backbone, saved[0])
    assert torch.equal(backbone(pixels()), saved[1])
    assert sorted(path.name for path in saved[0].iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert not any("base_layer" in key or "conv1" in key for key in load_file(saved[0] / "adapter_model.safetensors"))


@torch.no_grad()
def test_peft_itself_loads_it(saved) -> None:
    from peft import PeftModel

    backbone = load_backbone("tiny")
    backbone.tower = PeftModel.from_pretrained(backbone.tower, saved[0])
    assert torch.equal(backbone.eval()(pixels()), saved[1])
    assert json.loads((saved[0] / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


def test_norm_tuning_round_trip(tmp_path) -> None:
    backbone = adapted("norm")
    shake(backbone)
    save_adapter(backbone, tmp_path)
    other = load_backbone("tiny")
    load_adapter(other, tmp_path)
    assert torch.equal(other(pixels()), backbone(pixels()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop(min(t)), "is missing, expected"),
        (lambda t: t.update({"base_model.model.more.weight": torch.zeros(2)}), "expected no such key"),
        (lambda t: t.update({min(t): torch.zeros(3, 3)}), r"is \(3, 3\), expected"),
    ],
)
def test_adapter_tensors_that_do_not_fit_are_refused(copy, damage, message) -> None:
    path = copy / "adapter_model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(Refusal, match=message):
        load_adapter(load_backbone("tiny"), copy)


def test_pickled_and_damaged_adapters_are_refused(copy) -> None:
    path = copy / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Refusal, match="cannot be read"):
        load_adapter(load_backbone("tiny"), copy)
    path.rename(copy / "adapter_model.bin")
    with pytest.raises(Refusal, match="cannot be read"):
        load_adapter(load_backbone("tiny"), copy)


def test_adapter_of_another_architecture_is_refused(copy) -> None:
    with pytest.raises(Refusal, match="does not fit timm:mobilenetv2_035@random"):
        load_adapter(load_backbone("timm:mobilenetv2_035@random"), copy)


def test_unknown_kind_of_adapter_is_refused(copy) -> None:
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "PROMPT_TUNING"}))
    with pytest.raises(Refusal, match="'PROMPT_TUNING'; known: LORA, LN_TUNING"):
        load_adapter(load_backbone("tiny"), copy)

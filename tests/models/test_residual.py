"""SVD residuals: exact at the start, exact after reloading, only the last directions move, resume is exact."""

import dataclasses
import json
import signal

import lora
import numpy as np
import open_clip  # noqa: F401 (as peft and adapt.training.report: loaded once here, inherited by every child)
import peft  # noqa: F401
import pytest
import torch
from processes import in_children
from safetensors.torch import load_file, save_file
from test_run import killed, results
from test_towers import small_timm, small_transformers
from torch.nn.utils import parametrize

import adapt.training.report  # noqa: F401
from adapt.detector.detector import load_detector
from adapt.errors import Refusal
from adapt.models.adapters.lora import add_adapter, load_adapter, merge_adapter, save_adapter, target_modules
from adapt.models.adapters.residual import Left, Right
from adapt.models.towers.backbones import Backbone, load_backbone
from adapt.training import checkpoint


@pytest.fixture(params=["tiny", "transformers", "timm", "convolutions"])
def name(request, tmp_path) -> str:
    """open_clip's split attention, separate and fused projections, 1 x 1 kernels."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    if request.param == "transformers":
        small_transformers("Dinov2WithRegisters", folder)
        return f"transformers:{folder}"
    if request.param == "timm":
        small_timm("vit_base_patch14_reg4_dinov2", folder)
        return f"timm:vit_base_patch14_reg4_dinov2@{folder / 'model.safetensors'}"
    return "tiny" if request.param == "tiny" else "timm:mobilenetv2_035@random"


def pixels(backbone: Backbone) -> torch.Tensor:
    size = backbone.preprocess.size
    return torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def residual(name: str, targets: str = "all", rank: int = 2, **options) -> Backbone:
    backbone = load_backbone(name)
    add_adapter(backbone, targets, rank=rank, update="svd", **options)
    return backbone


def tied(backbone: Backbone) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in backbone.tower.named_modules() if hasattr(m, "lora_A")}


def trainable(backbone: Backbone) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in backbone.named_parameters() if p.requires_grad}


def train(backbone: Backbone, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(trainable(backbone).values(), lr=1e-2)
    backbone.train()
    for _ in range(steps):
        backbone(pixels(backbone)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    backbone.eval()


def test_only_the_last_directions_are_trained(name) -> None:
    """Start, counts, gradients and frozen bits, in every kind of tower."""
    backbone, base = residual(name), load_backbone(name)
    with torch.no_grad():
        start, expected = backbone(pixels(base)), base(pixels(base))
        torch.testing.assert_close(start, expected, atol=1e-5, rtol=1e-5)
    weights = {n: dict(base.tower.named_modules())[n].weight.detach() for n in target_modules(base, "all")}
    assert len(tied(backbone)) == len(weights) > 0
    count = sum(2 * (1 + sum(weight.flatten(1).shape)) for weight in weights.values())
    assert sum(p.numel() for p in trainable(backbone).values()) == count

    frozen = {n: t.clone() for n, t in backbone.state_dict().items() if n not in trainable(backbone)}
    backbone.train()
    backbone(pixels(base)).square().mean().backward()
    for n, p in backbone.named_parameters():
        assert (p.grad is not None and p.grad.abs().sum() > 0) if p.requires_grad else p.grad is None, n
    train(backbone)
    state = backbone.state_dict()
    assert all(torch.equal(tensor, state[n]) for n, tensor in frozen.items())
    with torch.no_grad():
        assert (backbone(pixels(base)) - expected).abs().max() > 1e-4


def test_the_trained_weight_is_the_formula() -> None:
    """Merged weights against numpy's SVD in double precision: principal part kept, U' S' V' instead of the rest."""
    backbone, base = residual("tiny", rank=3), dict(load_backbone("tiny").tower.named_modules())
    train(backbone)
    expected = {}
    for n, layer in tied(backbone).items():
        (v,), (u, s) = (
            [p.detach().double().numpy() for p in module["default"].parametrizations.weight.parameters()]
            for module in (layer.lora_A, layer.lora_B)
        )
        start_v, start = (module["default"].parametrizations.weight[0] for module in (layer.lora_A, layer.lora_B))
        v, u, s = v + start_v.v.double().numpy(), u + start.u.double().numpy(), s + start.s.double().numpy()
        left, size, right = np.linalg.svd(base[n.removeprefix("base_model.model.")].weight.detach().double().numpy())
        principal = (left[:, : len(size)] * size)[:, :-3] @ right[: len(size)][:-3]
        expected[n.removeprefix("base_model.model.")] = principal + (u * s) @ v
        assert np.abs(s - size[-3:]).max() > 1e-3  # moved
    merge_adapter(backbone)
    merged = dict(backbone.tower.named_modules())
    for n, weight in expected.items():
        np.testing.assert_allclose(merged[n].weight.detach().numpy(), weight, atol=2e-6)


@torch.no_grad()
def test_reloaded_equals_saved_bit_for_bit(name, tmp_path) -> None:
    with torch.enable_grad():
        backbone = residual(name)
        train(backbone)
    save_adapter(backbone, tmp_path / "adapter")
    before = backbone(pixels(backbone))
    again = load_backbone(name)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again(pixels(again)), before)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(tied(backbone)) and all(".lora_" in key for key in tensors)
    merge_adapter(again)
    torch.testing.assert_close(again(pixels(again)), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", [0.001, 0.003, 0.05])
def test_a_small_update_keeps_its_digits_in_bf16(change) -> None:
    """Against the update in double precision: of a difference of two rounded products nothing would be left."""
    draw = torch.Generator().manual_seed(0)
    u, s, vt = torch.linalg.svd(0.05 * torch.randn(96, 96, generator=draw))
    right, left = Right(vt[-2:].clone(), (4, 96)), Left(u[:, -2:].clone(), s[-2:].clone(), (96, 4))
    dv, du = (change * torch.randn(shape, generator=draw) / 96**0.5 for shape in ((2, 96), (96, 2)))
    ds = change * s[-2:] * torch.randn(2, generator=draw)
    x = torch.randn(64, 96, generator=draw)
    exact = ((u[:, -2:] + du).double() * (s[-2:] + ds).double()) @ (vt[-2:] + dv).double()
    exact = x.double() @ (exact - (u[:, -2:].double() * s[-2:].double()) @ vt[-2:].double()).T
    a, b, x = right(dv).bfloat16(), left(du, ds).bfloat16(), x.bfloat16()
    found = ((x @ a.T) @ b.T).double()
    assert ((found - exact).norm() / exact.norm()).item() < 0.02


@pytest.mark.parametrize("kind", ["svd", "norm"])
def test_weight_decay_pulls_to_the_start(kind) -> None:
    backbone, base = residual("tiny") if kind == "svd" else load_backbone("tiny"), load_backbone("tiny")
    if kind == "norm":
        add_adapter(backbone, "norm")
    train(backbone)
    moved = [p.detach().clone() for p in trainable(backbone).values()]
    optimizer = torch.optim.AdamW(trainable(backbone).values(), lr=0.1, weight_decay=1.0)
    for p in trainable(backbone).values():
        p.grad = torch.zeros_like(p)
    for _ in range(200):
        optimizer.step()
    assert all(p.abs().max() < 1e-6 for p in trainable(backbone).values()) and any(m.abs().max() > 1e-3 for m in moved)
    with torch.no_grad():
        torch.testing.assert_close(backbone(pixels(base)), base(pixels(base)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_peft_itself_loads_it(tmp_path) -> None:
    from peft import PeftModel

    with torch.enable_grad():
        backbone = residual("tiny")
        train(backbone)
    save_adapter(backbone, tmp_path)
    other = load_backbone("tiny")
    other.tower = PeftModel.from_pretrained(other.tower, tmp_path)
    assert torch.equal(other.eval()(pixels(other)), backbone(pixels(other)))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t, c: t.pop(min(t)), "is missing, expected"),
        (lambda t, c: t.update({"base_model.model.more.weight": torch.zeros(2)}), "expected no such key"),
        (lambda t, c: t.update({min(t): t[min(t)][:3]}), r"is \(3, 192\), expected \(4, 192\)"),
        (lambda t, c: c.update(r=6), r"is \(4, 192\), expected \(6, 192\)"),
    ],
    ids=["missing", "extra", "shape", "rank"],
)
def test_what_does_not_fit_is_refused(tmp_path, damage, message) -> None:
    save_adapter(residual("tiny", "qv"), tmp_path)
    path, config_path = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors, config = load_file(path), json.loads(config_path.read_text())
    damage(tensors, config)
    save_file(tensors, path)
    config_path.write_text(json.dumps(config))
    with pytest.raises(Refusal, match=message):
        load_adapter(load_backbone("tiny"), tmp_path)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(Refusal, match=r"--rank 192: .*q_proj is \(192, 192\)"):
        residual("tiny", "qv", rank=192)
    with pytest.raises(Refusal, match="norm layers have no singular directions"):
        residual("tiny", "norm")


def test_factors_stay_fp32_on_bf16_weights() -> None:
    backbone = load_backbone("tiny").to_precision("bf16")
    with torch.no_grad():
        start = backbone(pixels(backbone))
        add_adapter(backbone, "all", rank=2, update="svd")
        torch.testing.assert_close(backbone(pixels(backbone)), start, atol=1e-2, rtol=1e-2)
    train(backbone)
    assert {p.dtype for p in trainable(backbone).values()} == {torch.float32}


def test_factors_lie_in_memory_as_processes_expect_them() -> None:
    """Several processes share gradients in buckets, and warn of any parameter whose strides are not the usual ones."""
    factors = trainable(residual("tiny", rank=1))
    assert len(factors) == 24 * 3
    assert all(p.stride() == torch.empty(p.shape).stride() for p in factors.values())


@pytest.fixture
def config(planted, tmp_path) -> lora.Config:
    return lora.Config(
        manifest=(str(planted),),
        output_dir=tmp_path / "run",
        update="svd",
        targets="qkvo",
        rank=1,
        train_views=("none", "qf65"),
        test_views=("none",),
        epochs=1,
        groups=4,
        precision="fp32",
        resamples=20,
        checkpointing_steps=2,
        num_workers=0,
    )


def test_killed_and_resumed_is_bit_identical(config, tmp_path) -> None:
    whole = dataclasses.replace(config, output_dir=tmp_path / "whole")
    assert in_children(lambda: lora.main(whole)) == [0]
    assert killed(config, "update", 3, 1) == [-signal.SIGKILL]
    held = checkpoint.load_checkpoint(config.output_dir)[0]["model"]
    assert sum(value.numel() for name, value in held.items() if "lora_" in name) == 16 * (192 + 192 + 1)
    assert in_children(lambda: lora.main(config)) == [0]
    assert results(config.output_dir) == results(whole.output_dir)

    record = json.loads((config.output_dir / "provenance.json").read_text())
    assert record["trainable_parameters"] == 16 * 385 + 193  # of the tower, and of the head
    assert 0 < record["training_minutes"] * 60 <= record["seconds"] + 0.5 and record["peak_memory_mib"] > 100
    page = (config.output_dir / "table.md").read_text()
    for fact in ("trainable_parameters", "training_minutes", "peak_memory_mib"):
        assert f"- {fact}: {record[fact]}" in page
    detector = load_detector(config.output_dir / "detector")
    assert not any(parametrize.is_parametrized(module) for module in detector.modules())

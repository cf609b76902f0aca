"""The fast pass of a LoRA layer: peft's own values and gradients, and less kept for the backward pass."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from adapt.models.adapters import lora, low_rank
from adapt.models.adapters.cut_tower import join_qkv
from adapt.models.adapters.low_rank import LowRankLinear
from adapt.models.towers.attention import SplitAttention
from adapt.models.towers.backbones import Backbone, load_backbone
from adapt.training.micro_batches import kept_bytes


def adapted(monkeypatch, fast: bool, precision: str, **options) -> Backbone:
    with monkeypatch.context() as patch:
        if not fast:
            patch.setattr(lora, "_train_fast", lambda config: None)
        backbone = load_backbone("tiny").to_precision(precision)
        lora.add_adapter(backbone, "all", rank=4, alpha=6, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in backbone.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return backbone.train()


def pefts_draw(x: torch.Tensor, share: float) -> tuple[torch.Tensor, float]:
    return nn.functional.dropout(torch.ones(x.shape), share) > 0, 1 / (1 - share)


def gradients(backbone: Backbone) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    pixels = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.manual_seed(2)  # of dropout
    features = backbone(pixels)
    (features * torch.linspace(-1, 1, features.shape[1])).sum().backward()
    return features.detach(), {n: p.grad for n, p in backbone.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"update": "svd"}, {"last_blocks": 2}])
def test_features_and_gradients_are_pefts(monkeypatch, options) -> None:
    """In fp32 every tensor to 1e-5 of its size; in bf16 all gradients together to 1 %, as far as each is from fp32."""
    monkeypatch.setattr(low_rank, "draw_kept", pefts_draw)
    for precision, within in (("fp32", 1e-5), ("bf16", 0.01)):
        fast, plain = (adapted(monkeypatch, which, precision, **options) for which in (True, False))
        kinds = [{type(m) for m in backbone.modules() if isinstance(m, Linear)} for backbone in (fast, plain)]
        assert kinds == [{LowRankLinear}, {Linear}]
        (found, ours), (expected, pefts) = gradients(fast), gradients(plain)
        assert (found - expected).norm() <= within * expected.norm()
        assert ours.keys() == pefts.keys() and all(grad.dtype == torch.float32 for grad in ours.values())
        for names in ([name] for name in ours) if precision == "fp32" else [ours]:
            a, b = (torch.cat([grads[name].flatten() for name in names]) for grads in (ours, pefts))
            assert (a - b).norm() <= within * b.norm(), list(names)[:3]


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_")
        return operation(*args, **kwargs or {})


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"update": "svd"}, {"last_blocks": 2}])
@pytest.mark.parametrize(("precision", "within"), [("fp32", 5e-5), ("bf16", 0.01)])
def test_query_key_and_value_at_once_are_those_one_by_one(monkeypatch, options, precision, within) -> None:
    one_by_one, joined = (adapted(monkeypatch, True, precision, **options) for _ in range(2))
    before = {name: value.clone() for name, value in joined.state_dict().items()}
    blocks = join_qkv(joined)
    assert blocks == options.get("last_blocks", joined.depth)
    assert all(torch.equal(value, before[name]) for name, value in joined.state_dict().items())
    counts, found = [], []
    for backbone in (one_by_one, joined):
        with Products() as products:
            found.append(gradients(backbone))
        counts.append(products.count)
    (expected, theirs), (features, ours) = found
    assert (features - expected).norm() <= within * expected.norm() and ours.keys() == theirs.keys()
    for names in ([name] for name in ours) if precision == "fp32" else [ours]:
        a, b = (torch.cat([grads[name].flatten() for name in names]) for grads in (ours, theirs))
        assert (a - b).norm() <= within * b.norm(), list(names)[:3]
    if "dropout" in options:  # each of the three drops other entries
        assert counts[0] == counts[1]
    else:
        assert counts[0] - counts[1] >= 14 * blocks  # 8 instead of 24; the first block's x has no gradient


def test_layers_that_were_joined_are_merged_and_come_back(monkeypatch) -> None:
    joined = adapted(monkeypatch, True, "fp32")
    join_qkv(joined)
    attention = next(m for m in joined.modules() if isinstance(m, SplitAttention))
    shared = attention.joined.weight.untyped_storage().data_ptr()
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    with torch.no_grad():
        expected = joined.eval()(torch.full((1, 3, 64, 64), 9.0))
        with lora.merged(joined):
            assert torch.allclose(joined(torch.full((1, 3, 64, 64), 9.0)), expected, atol=1e-4)
    assert {layer.get_base_layer().weight.untyped_storage().data_ptr() for layer in layers} == {shared}


def test_losses_are_those_of_pefts_own_passes(monkeypatch) -> None:
    """Twenty steps: in fp32 every loss to 1e-4 of itself; in bf16 to 3 % of the first, beside peft's in fp32."""
    monkeypatch.setattr(low_rank, "draw_kept", pefts_draw)
    pixels = torch.randint(0, 256, (8, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    fake = (torch.arange(8) % 2).float()

    def losses(fast: bool, precision: str) -> torch.Tensor:
        backbone = adapted(monkeypatch, fast, precision, dropout=0.1)
        optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=3e-3)
        torch.manual_seed(2)  # of dropout
        found = []
        for _ in range(20):
            logits = backbone(pixels) @ torch.linspace(-1, 1, backbone.dim)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, fake)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        return torch.stack(found)

    expected, fp32, bf16 = losses(False, "fp32"), losses(True, "fp32"), losses(True, "bf16")
    assert expected[-1] < 0.5 * expected[0]
    torch.testing.assert_close(fp32, expected, rtol=1e-4, atol=0)
    assert (bf16 - expected).abs().max() < 0.03 * expected[0]


def test_gradients_against_finite_differences() -> None:
    """In fp64, through every input."""
    layer = nn.Sequential(nn.Linear(5, 4).double())
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0"])
    lora._train_fast(config)
    module = get_peft_model(layer, config).double().base_model.model[0]
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def value(x, new_a, new_b):
        return torch.func.functional_call(module, {"lora_A.default.weight": new_a, "lora_B.default.weight": new_b}, x)

    start = (x, a.detach().clone().requires_grad_(), torch.randn_like(b).requires_grad_())
    assert torch.autograd.gradcheck(value, start)
    expected = x @ (layer[0].base_layer.weight + 3 / 2 * start[2] @ start[1]).T + layer[0].base_layer.bias
    torch.testing.assert_close(value(*start), expected)


def test_drawing_what_is_kept() -> None:
    torch.manual_seed(0)
    x = torch.ones(101, 1001)
    for share, exact in ((0.25, 0.25), (0.1, round(0.1 * 65536) / 65536), (1e-6, 0), (0.995, 0.995)):
        stays, grown = low_rank.draw_kept(x, share)
        assert stays.dtype == torch.bool and stays.shape == x.shape and grown == pytest.approx(1 / (1 - exact), 1e-12)
        found, error = 1 - stays.double().mean().item(), (exact * (1 - exact) / x.numel()) ** 0.5
        assert abs(found - exact) <= 4 * error
    again = [low_rank.draw_kept(x, 0.5)[0] for _ in range(2)]
    together = (again[0] & again[1]).double().mean().item()
    assert abs(together - 0.25) < 4 * (0.25 * 0.75 / x.numel()) ** 0.5  # draws are independent


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_a_layer_sees_is_the_product_with_what_is_kept(dtype) -> None:
    x = torch.tensor([[1.5, -2.0, float("nan"), float("inf"), -0.0, 7.0]], dtype=dtype)
    stays = torch.tensor([[True, False, False, False, True, True]])
    assert low_rank._seen(x, stays).tolist() == [[1.5, 0.0, 0.0, 0.0, 0.0, 7.0]]
    assert low_rank._seen(x, None).data_ptr() == x.data_ptr()


def kept(backbone: Backbone) -> int:
    return kept_bytes(backbone, torch.zeros(8, 3, 64, 64, dtype=torch.uint8))


def test_less_is_kept_and_nothing_below_the_adapted_blocks(monkeypatch) -> None:
    fast, plain = (adapted(monkeypatch, which, "bf16") for which in (True, False))
    assert kept(fast) < 0.7 * kept(plain)
    dropping = [kept(adapted(monkeypatch, which, "bf16", dropout=0.25)) for which in (True, False)]
    assert dropping[0] < 0.5 * dropping[1]
    assert kept(adapted(monkeypatch, True, "bf16", last_blocks=1)) < 0.35 * kept(fast)  # one block of four


def test_switched_off_or_merged_it_is_pefts(monkeypatch) -> None:
    backbone = adapted(monkeypatch, True, "fp32")
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    with backbone.tower.disable_adapter():
        torch.testing.assert_close(backbone(pixels), load_backbone("tiny")(pixels))
    adapted_features = backbone(pixels).detach()
    backbone.tower.merge_adapter()
    torch.testing.assert_close(backbone(pixels), adapted_features, atol=1e-4, rtol=1e-4)

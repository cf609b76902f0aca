"""Split attention is nn.MultiheadAttention, exactly enough, and can be taken back."""

import pytest
import torch
from torch import nn

from adapt.models.towers.attention import SplitAttention, _Mixed, split


def fused(attention: SplitAttention) -> nn.MultiheadAttention:
    """Back to `nn.MultiheadAttention`: the inverse of `split`."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight = attention.q_proj.weight
    factory = {"dtype": weight.dtype, "device": weight.device}
    new = nn.MultiheadAttention(weight.shape[1], attention.heads, batch_first=True, **factory)
    with torch.no_grad():
        new.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
        new.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
        new.out_proj.load_state_dict(attention.out_proj.state_dict())
    return new.train(attention.training)


@pytest.fixture
def attention() -> nn.MultiheadAttention:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    nn.init.normal_(attention.in_proj_bias)  # zeros would hide a swapped bias
    nn.init.normal_(attention.out_proj.bias)
    return attention


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_multihead_attention(attention, grad, masked) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, 7, 32, requires_grad=grad)
    mask = torch.full((7, 7), float("-inf")).triu(1) if masked else None
    expected = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
    with torch.set_grad_enabled(grad):
        found = split(attention)(x, x, x, attn_mask=mask)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_cross_attention(attention) -> None:
    query, memory = torch.randn(2, 3, 32), torch.randn(2, 9, 32)
    expected = attention(query, memory, memory, need_weights=False)[0]
    torch.testing.assert_close(split(attention)(query, memory, memory)[0], expected, atol=1e-5, rtol=0)


def test_gradients_agree(attention) -> None:
    x = torch.randn(2, 5, 32)
    attention(x, x, x, need_weights=False)[0].square().sum().backward()
    new = split(attention)
    new(x, x, x)[0].square().sum().backward()
    grads = torch.cat([new.q_proj.weight.grad, new.k_proj.weight.grad, new.v_proj.weight.grad])
    torch.testing.assert_close(grads, attention.in_proj_weight.grad, atol=1e-4, rtol=1e-4)


def test_fuse_restores_the_state_dict(attention) -> None:
    before, after = attention.state_dict(), fused(split(attention)).state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_refuses_what_it_cannot_represent() -> None:
    for other in (
        nn.MultiheadAttention(8, 2),
        nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1),
        nn.MultiheadAttention(8, 2, batch_first=True, bias=False),
        nn.MultiheadAttention(8, 2, batch_first=True, kdim=4),
        nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
    ):
        with pytest.raises(ValueError, match="can be split"):
            split(other)


def test_gradients_of_the_products_are_those_of_the_fused_kernel(attention) -> None:
    """Training in bf16 on a CPU takes another way than fp32 does: same function, same gradients."""
    x = torch.randn(2, 5, 32)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        new, seen = split(attention).to(dtype), x.to(dtype, copy=True).requires_grad_()
        new(seen, seen, seen)[0].square().sum().backward()
        found.append(torch.cat([seen.grad.flatten().float(), new.q_proj.weight.grad.flatten().float()]))
    assert (found[1] - found[0]).norm() < 0.05 * found[0].norm()


def test_weights_that_are_computed_again_give_the_gradients_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, tokens, 4, generator=generator, dtype=torch.float64) for tokens in (1, 5, 5)]
    inputs = [tensor.requires_grad_() for tensor in inputs]  # one query, as for a class token alone
    assert torch.autograd.gradcheck(_Mixed.apply, inputs)
    expected = nn.functional.scaled_dot_product_attention(*inputs)
    torch.testing.assert_close(_Mixed.apply(*inputs), expected, atol=1e-12, rtol=0)

"""Group losses: against loops, torch and finite differences, and unchanged by what must not matter."""

import math

import pytest
import torch
from torch.nn import functional as F

from adapt.models.heads.losses import consistency, ranking, softmax_over_group, supervised_contrastive

GROUP_LOSSES = (ranking, softmax_over_group)
# group 3 is complete, 8 has two reals, 5 lacks its real, 1 all its fakes; members lie scattered
GROUP = torch.tensor([3, 8, 3, 5, 8, 3, 1, 8, 3, 5, 8, 3, 1])
FAKE = torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0])


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(len(GROUP), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def by_loops(loss, logits, fake, group) -> float:
    total = 0.0
    for name in set(group.tolist()):
        own = [row for row, g in enumerate(group.tolist()) if g == name]
        reals = [logits[row].item() for row in own if fake[row] == 0]
        fakes = [logits[row].item() for row in own if fake[row] == 1]
        if not reals or not fakes:
            continue
        if loss is ranking:
            each = [math.log1p(math.exp(-(f - r))) for r in reals for f in fakes]
        else:
            each = [-math.log(math.exp(-r) / (math.exp(-r) + sum(math.exp(-f) for f in fakes))) for r in reals]
        total += sum(each) / len(each)
    return total


@pytest.mark.parametrize("loss", GROUP_LOSSES)
def test_group_losses_equal_loops(loss, logits) -> None:
    assert loss(logits, FAKE, GROUP).item() == pytest.approx(by_loops(loss, logits, FAKE, GROUP), rel=1e-12)


@pytest.mark.parametrize("loss", GROUP_LOSSES)
def test_a_constant_per_group_changes_nothing_and_gradients_cancel_in_each_group(loss, logits) -> None:
    offset = torch.tensor([0.0, -7.0, 0, 100.0, 0, 3.0, 0, 0, 41.0], dtype=torch.float64)[GROUP]
    moved = logits.clone().requires_grad_()
    before, after = loss(logits, FAKE, GROUP), loss(moved + offset, FAKE, GROUP)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(after, moved)
    for name in (1, 3, 5, 8):
        own = gradient[GROUP.eq(name)]
        assert own.sum().abs() < 1e-12
        assert (own.abs().max() > 0.05) == (name in (3, 8))  # the incomplete ones are not moved at all
    assert (gradient[GROUP == 5] == 0).all() and (gradient[GROUP == 1] == 0).all()
    assert (gradient[(FAKE == 1) & (GROUP == 3)] < 0).all()  # descent raises fakes and lowers the real
    assert (gradient[(FAKE == 0) & (GROUP == 8)] > 0).all()


@pytest.mark.parametrize("loss", GROUP_LOSSES)
def test_order_and_names_of_groups_change_nothing(loss, logits) -> None:
    value = loss(logits, FAKE, GROUP)
    order = torch.randperm(len(GROUP), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(logits[order], FAKE[order], GROUP[order]), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(logits, FAKE, 10**12 - 5 * GROUP), value, rtol=0, atol=0)
    swapped = logits.clone()
    fakes = ((GROUP == 3) & (FAKE == 1)).nonzero().squeeze(1)
    swapped[fakes] = logits[fakes.roll(1)]  # the fakes of one group exchange their scores
    torch.testing.assert_close(loss(swapped, FAKE, GROUP), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", GROUP_LOSSES)
def test_the_sum_over_batches_is_the_sum_over_groups(loss, logits) -> None:
    first = (GROUP == 3) | (GROUP == 5)
    parts = [loss(logits[rows], FAKE[rows], GROUP[rows]) for rows in (first, ~first)]
    torch.testing.assert_close(sum(parts), loss(logits, FAKE, GROUP), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", GROUP_LOSSES)
@pytest.mark.parametrize("fakes", [[1.0, 1.0, 1.0], [0.0, 0.0], [1.0], [0.0], []], ids=str)
def test_without_a_real_or_a_fake_the_loss_is_exactly_zero_with_zero_gradients(loss, fakes) -> None:
    logits = torch.linspace(-3, 5, len(fakes)).requires_grad_()
    value = loss(logits, torch.tensor(fakes), torch.zeros(len(fakes)).long())
    value.backward()
    assert value.item() == 0 and (logits.grad == 0).all()


def test_softmax_equals_cross_entropy_on_a_dense_matrix_of_groups() -> None:
    table = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)  # column 0 is real
    fake, group = (torch.arange(5) > 0).float().repeat(6), torch.arange(6).repeat_interleave(5)
    expected = F.cross_entropy(-table, torch.zeros(6).long(), reduction="sum")
    torch.testing.assert_close(softmax_over_group(table.flatten(), fake, group), expected)


def test_values_by_hand() -> None:
    two = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([4, 4])
    assert ranking(*two).item() == softmax_over_group(*two).item() == pytest.approx(math.log(2))
    five = torch.zeros(5), torch.tensor([1.0, 1, 0, 1, 1]), torch.ones(5).long()
    assert ranking(*five).item() == pytest.approx(math.log(2))  # a mean over the pairs
    assert softmax_over_group(*five).item() == pytest.approx(math.log(5))
    # a real at 0, fakes at log 3 and -log 3: pairs lose log(4/3) and log 4
    spread = torch.tensor([0.0, math.log(3), -math.log(3)]), torch.tensor([0.0, 1, 1]), torch.zeros(3).long()
    assert ranking(*spread).item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert softmax_over_group(*spread).item() == pytest.approx(math.log(1 + 1 / 3 + 3))
    # two reals that the fake beats by log 3 and loses to by log 3; a softmax among the reals would say log 3 + ...
    reals = torch.tensor([0.0, 2 * math.log(3), math.log(3)]), torch.tensor([0.0, 0, 1]), torch.zeros(3).long()
    assert softmax_over_group(*reals).item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    # p = 0.75 and 0.25: 0.5 log 3 in either direction
    a, b = torch.tensor([math.log(3), 2.0]), torch.tensor([-math.log(3), 2.0])
    assert consistency(a, b).item() == pytest.approx(0.5 * math.log(3))


@pytest.mark.parametrize("n_fake", [0, 1, 4, 9], ids=str)
def test_contrastive_equals_a_double_loop(n_fake) -> None:
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    fake = (torch.arange(9) < n_fake).float()
    z, total = features / features.norm(dim=1, keepdim=True), 0.0
    for i in range(9):
        mates = [p for p in range(9) if p != i and fake[p] == fake[i]]
        below = sum(math.exp(float(z[i] @ z[a]) / 0.2) for a in range(9) if a != i)
        for p in mates:
            total -= math.log(math.exp(float(z[i] @ z[p]) / 0.2) / below) / len(mates)
    assert supervised_contrastive(features, fake, 0.2).item() == pytest.approx(total, rel=1e-12)
    scaled = features * torch.linspace(0.1, 30, 9, dtype=torch.float64)[:, None]
    assert supervised_contrastive(scaled, fake, 0.2).item() == pytest.approx(total, rel=1e-12)


def test_contrastive_by_hand_and_without_company() -> None:
    pairs = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), torch.tensor([0.0, 0, 1, 1])
    assert supervised_contrastive(*pairs, 1.0).item() == pytest.approx(4 * math.log(1 + 2 / math.e))
    for features in (torch.randn(1, 3), torch.randn(2, 3), torch.zeros(2, 3), torch.empty(0, 3)):
        features = features.requires_grad_()
        value = supervised_contrastive(features, torch.tensor([0.0, 1.0])[: len(features)])
        value.backward()
        assert value.item() == 0 and (features.grad == 0).all()
    half = torch.randn(8, 16, generator=torch.Generator().manual_seed(4)).bfloat16()
    fake = (torch.arange(8) < 3).float()
    assert supervised_contrastive(half, fake).dtype == torch.float32
    torch.testing.assert_close(supervised_contrastive(half, fake), supervised_contrastive(half.float(), fake))


def test_consistency_is_the_mean_of_both_kl_divergences() -> None:
    a, b = torch.randn(2, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    p, q = torch.distributions.Bernoulli(logits=a), torch.distributions.Bernoulli(logits=b)
    kl = torch.distributions.kl_divergence
    torch.testing.assert_close(consistency(a, b), 0.5 * (kl(p, q) + kl(q, p)).sum())
    torch.testing.assert_close(consistency(a, b), consistency(b, a), rtol=0, atol=0)
    assert consistency(a, a) == 0


def test_gradients_agree_with_finite_differences(logits) -> None:
    logits = logits.requires_grad_()
    for loss in GROUP_LOSSES:
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, FAKE, GROUP), logits)
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: supervised_contrastive(z, FAKE[:7]), features)
    other = logits.detach().flip(0).clone().requires_grad_()
    assert torch.autograd.gradcheck(consistency, (logits, other))


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_stay_finite(size) -> None:
    logits = (torch.tensor([1.0, -1, 1, 0, 1, -1, 0, 1, -1, 1, 1, -1, 1]) * size).requires_grad_()
    for loss in GROUP_LOSSES:
        (gradient,) = torch.autograd.grad(loss(logits, FAKE, GROUP), logits)
        assert loss(logits, FAKE, GROUP).isfinite() and gradient.isfinite().all()
    value = consistency(logits, logits.detach().flip(0))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite() and gradient.isfinite().all()
    features = torch.stack([logits.detach(), logits.detach().flip(0)], 1).mul(1e-20).requires_grad_()
    value = supervised_contrastive(features, FAKE, 1e-3)
    (gradient,) = torch.autograd.grad(value, features)
    assert value.isfinite() and gradient.isfinite().all()

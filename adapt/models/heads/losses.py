"""Losses that look at a whole group (a photograph and its fakes), at all pairs of a batch, or at two views.

Each returns a SUM over groups, anchors or images. A caller divides by the number that one optimizer step has over all
processes, as with `balanced_bce` (heads.py) and `run.share`, so that the number of processes changes nothing. The sum
over a batch is right only if the batch holds whole groups, as all of data/groups.py do.

A group may have any number of fakes and several reals (processed reals stay real). One that lacks its real, or all of
its fakes, contributes exactly zero. All but `consistency` build a matrix (n, n), for n images of a batch: 5,000 are
100 MB each. They are dense, without scattered sums, so that a GPU computes the same bits every time.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def ranking(logits: Tensor, fake: Tensor, group: Tensor) -> Tensor:
    """Logits, labels (1 fake), group ids, all (n,) -> sum over groups of mean over pairs softplus(-(s_fake - s_real)).

    A group's pairs are all its (real, fake). The likelihood of Bradley and Terry that each fake beats its real, in
    the form of 2203.02155, eq. 1, whose mean over the pairs of one prompt is ours over those of one group. A constant
    added to a group's logits changes nothing: what its images share cancels, and the bias stays free, so add a
    balanced loss for a threshold.
    """
    pair, reals, fakes = _pairs(fake, group)
    gap = logits[None, :] - logits[:, None]  # s_fake - s_real where `pair`
    return (F.softplus(-gap) * pair / (reals * fakes).clamp(min=1)[:, None]).sum()


def softmax_over_group(logits: Tensor, fake: Tensor, group: Tensor) -> Tensor:
    """Logits, labels (1 fake), group ids, all (n,) -> sum over groups of -log softmax(-s)[real] over real and fakes.

    Cross-entropy with the real, which has the lowest logit, as the target: InfoNCE (1807.03748, eq. 4) inside the
    group. Several reals do not compete: each has its own softmax beside all the fakes, and their mean counts.
    Against `ranking`, the weight goes to the fake that looks most real. Also unchanged by a constant per group.
    """
    pair, reals, _ = _pairs(fake, group)
    lead = (logits[:, None] - logits[None, :]).masked_fill(~pair, float("-inf"))  # s_real - s_fake
    # log(1 + sum exp(lead)); the 1 is the real itself, and all that is left in a row without pairs: log 1 = 0
    losses = torch.cat([lead, lead.new_zeros(len(lead), 1)], dim=1).logsumexp(dim=1)
    return (losses / reals.clamp(min=1)).sum()


def supervised_contrastive(features: Tensor, fake: Tensor, temperature: float = 0.07) -> Tensor:
    """Features (n, d) of any length, labels (n,) -> sum over anchors; 2004.11362, eq. 2 (L_out), base temperature 1.

    For anchor i: -1/|P| sum over p in P of log(exp(z_i z_p / t) / sum over a != i of exp(z_i z_a / t)), with unit z,
    and P the other images of its label. An anchor without any contributes zero. Where whole groups are a batch, an
    anchor's own counterparts are its hardest negatives. Every anchor is compared with all images of its batch: unlike
    the other losses, this one depends on how many share a process and a micro-batch.
    """
    unit = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
    similarity = unit @ unit.T / temperature
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    positive = (fake[:, None] == fake[None, :]) & ~itself
    # not -inf: an anchor alone in its batch would have NaN for a gradient
    others = similarity.masked_fill(itself, torch.finfo(similarity.dtype).min)
    log_p = similarity - others.logsumexp(dim=1, keepdim=True)
    return -(log_p * positive / positive.sum(dim=1, keepdim=True).clamp(min=1)).sum()


def consistency(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Logits of the same images under two views, both (n,) -> sum of (KL(p_a || p_b) + KL(p_b || p_a)) / 2.

    The prediction term between clean and degraded copies of 2604.10102 (symmetric KL), with the factor of 2106.14448.
    For two Bernoulli distributions it is (p_a - p_b) (s_a - s_b) / 2, which needs no logarithm and cannot overflow
    before the logits do. Both views receive a gradient. A constant detector satisfies it: never train on it alone.
    """
    return 0.5 * ((logits_a.sigmoid() - logits_b.sigmoid()) * (logits_a - logits_b)).sum()


def _pairs(fake: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, n) bool: row is a real, column a fake of its group; (n,) reals and (n,) fakes in each row's group."""
    same, is_fake = group[:, None] == group[None, :], fake > 0.5
    pair = same & ~is_fake[:, None] & is_fake[None, :]
    return pair, (same & ~is_fake).sum(dim=1), (same & is_fake).sum(dim=1)

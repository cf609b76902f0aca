"""Tip-Adapter and Tip-Adapter-F (arXiv:2207.09519, eq. 5): a cache of training features as a head.

    logits = prior + alpha * exp(-beta (1 - f K^T)) V      f (n, d) and K (k, d) unit vectors, V (k, c) one-hot

For unit vectors the affinity is an RBF kernel with gamma = beta / 2, so the cache votes like a kernel density of each
class. Class 0 is `real`, all others are fakes. Tip-Adapter trains nothing; Tip-Adapter-F (`fit`) trains the keys.
Where we leave the publication: values="mean" divides each class by its number of keys, which makes alpha independent
of shots and imbalance (values="sum" is the published form); rows are scored without the keys of their own group
while training, since a row that meets itself in the cache learns nothing; alpha, beta and the epoch are chosen on
validation rows whose groups are neither in the cache nor in training, or on the shots themselves with each row's group
left out of the cache, where the published code looks at test rows.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from adapt.errors import Refusal

Values = Literal["mean", "sum"]
Groups = Tensor | Sequence[str] | np.ndarray
Judge = Callable[[Tensor], np.ndarray]  # logits (p, n, c) of some rows under p settings -> (p,), higher is better
PUBLISHED = 1.0, 5.5  # alpha and beta of the paper, for sums of votes
ALPHAS = tuple(np.geomspace(0.01, 10_000, 12))
BETAS = tuple(np.geomspace(0.5, 100, 12))
CHUNK = 2**22  # affinities held at once, 16 MiB


class Rows:
    """Cached features (n, d), classes (n,), groups (n,) and prior logits (n, c) of some images.

    Groups are names, or a tensor of `group_ids`. Without a prior it is zero. `judge` says which setting is the best by
    its logits of these rows; None is for rows of one set, as `pooled`. Refuses what is not finite.
    """

    def __init__(
        self,
        features: Tensor | np.ndarray,
        labels: Sequence[int],
        groups: Groups,
        prior: Tensor | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.features = _matrix(features, "features")
        self.labels = _labels(labels)
        self.groups = group_ids(groups)
        self.prior = None if prior is None else _matrix(prior, "prior")
        lengths = {len(part) for part in (self.features, self.labels, self.groups, self.prior) if part is not None}
        if len(lengths) > 1 or not len(self.labels):
            raise Refusal(f"features, labels, groups, prior have {sorted(lengths)} rows: give each one a row an image")
        self.judge: Judge = judge or pooled(self.labels)

    def __len__(self) -> int:
        return len(self.labels)


class TipAdapter(nn.Module):
    """Features (n, d), prior logits (n, c) -> logits (n, c); features of any length are made unit vectors.

    `centre` (d,), the mean of the unit training features, is subtracted from features and keys before they are made
    unit vectors again: features of one encoder lie in a narrow cone. It changes the scale of beta. `alpha` and `beta`
    are those of the paper until `tune` chooses others. Everything is a buffer: `state_dict()` is the whole adapter.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(
        self,
        keys: Tensor | np.ndarray,
        labels: Sequence[int],
        groups: Groups,
        classes: int = 2,
        values: Values = "mean",
        alpha: float = 1.0,
        beta: float = 5.5,
        centre: Tensor | np.ndarray | None = None,
    ) -> None:
        super().__init__()
        rows = Rows(keys, labels, groups)
        check_labels(rows.labels, classes)
        if missing := sorted(set(range(classes)) - set(rows.labels.tolist())):
            raise Refusal(f"the cache has no key of class {missing[0]}: draw shots of every class")
        if values not in ("mean", "sum"):
            raise Refusal(f"values {values!r}: choose mean (each class divided by its number of keys) or sum")
        if not (0 <= alpha < math.inf and 0 < beta < math.inf):
            raise Refusal(f"alpha {alpha}, beta {beta}: neither may be infinite, alpha at least 0, beta above 0")
        dim = rows.features.shape[1]
        centre = torch.zeros(dim) if centre is None else _matrix(centre[None], "centre")[0]
        if len(centre) != dim:
            raise Refusal(f"the centre has {len(centre)} entries, the keys {dim}: take both from the same features")
        self.register_buffer("centre", centre.clone())
        self.register_buffer("keys", self.unit(rows.features))
        self.register_buffer("values", F.one_hot(rows.labels, classes).float())  # divided later: counts vary by row
        self.register_buffer("groups", rows.groups.clone())
        self.register_buffer("mean", torch.tensor(values == "mean"))
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32))
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float32))

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor]) -> "TipAdapter":
        """The adapter whose `state_dict()` this is; missing, additional and misshapen tensors are refused."""
        keys, values = (tensors.get(name, torch.zeros(0)) for name in ("keys", "values"))
        k, d, c = (*keys.shape, *values.shape[1:])[:3] if keys.ndim == values.ndim == 2 else (0, 0, 0)
        wanted = dict.fromkeys(("mean", "alpha", "beta"), ())
        wanted |= {"centre": (d,), "keys": (k, d), "values": (k, c), "groups": (k,)}
        kinds = dict.fromkeys(wanted, torch.float32) | {"groups": torch.int64, "mean": torch.bool}
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        if not k or found != {name: (shape, kinds[name]) for name, shape in wanted.items()}:
            shapes = ", ".join(f"{name} {shape}" for name, (shape, _) in sorted(found.items()))
            raise Refusal(f"these tensors are no Tip-Adapter ({shapes or 'none'}): save its state_dict again")
        if not torch.equal(values, F.one_hot(values.argmax(1), c).float()):
            raise Refusal("the values of this Tip-Adapter are not one-hot: save its state_dict again")
        form: Values = "mean" if tensors["mean"] else "sum"
        alpha, beta = float(tensors["alpha"]), float(tensors["beta"])
        adapter = cls(keys, values.argmax(1), tensors["groups"], c, form, alpha, beta, tensors["centre"])
        adapter.load_state_dict(tensors)  # trained keys are neither centred nor made unit vectors again
        return adapter

    @property
    def classes(self) -> int:
        return self.values.shape[1]

    def unit(self, features: Tensor) -> Tensor:
        return F.normalize(F.normalize(features, dim=-1) - self.centre, dim=-1)

    def forward(
        self, features: Tensor | np.ndarray, prior: Tensor | None = None, groups: Groups | None = None
    ) -> Tensor:
        """Logits (n, c). With `groups`, no row sees keys of its own group, neither as votes nor as counts."""
        votes = self.votes(features, groups, [self.beta])[0]
        if prior is None:
            return self.alpha * votes
        prior = _matrix(prior, "prior").to(votes.device)
        if prior.shape != votes.shape:
            raise Refusal(f"prior {tuple(prior.shape)} for logits {tuple(votes.shape)}: give one a row and class")
        return prior + self.alpha * votes

    def votes(self, features: Tensor | np.ndarray, groups: Groups | None, betas: Sequence[float | Tensor]) -> Tensor:
        """What alpha multiplies, for each beta (betas, n, c): affinities, summed or averaged over the keys of a class.

        A class whose keys are all masked has no votes: 0.
        """
        features = _matrix(features, "features").to(self.keys.device)
        if features.shape[1] != self.keys.shape[1]:
            raise Refusal(f"features of {features.shape[1]} columns, keys of {self.keys.shape[1]}: use one backbone")
        ids = None if groups is None else group_ids(groups).to(self.keys.device)
        if ids is not None and len(ids) != len(features):
            raise Refusal(f"{len(ids)} groups for {len(features)} rows of features: give one a row")
        size = max(1, CHUNK // len(self.keys))
        chunks = features.split(size)
        masks = [None] * len(chunks) if ids is None else ids.split(size)
        return torch.cat([self._votes(*pair, betas) for pair in zip(chunks, masks, strict=True)], dim=1)

    def beside(self, prior: Tensor, features: Tensor) -> Tensor:
        """Logits (n, c) of prior logits (n, c) and features (n, d) that nobody checked, as a detector meets them.

        A row that is not finite gets logits that are not finite. `torch.export` can follow: no value decides a shape.
        """
        size = max(1, CHUNK // len(self.keys))
        chunks = [features] if torch.compiler.is_exporting() else features.split(size)
        return prior + self.alpha * torch.cat([self._votes(chunk, None, [self.beta])[0] for chunk in chunks])

    def _votes(self, features: Tensor, ids: Tensor | None, betas: Sequence[float | Tensor]) -> Tensor:
        nearness = self.unit(features) @ self.keys.T - 1  # (n, k), 0 where equal
        count = self.values.sum(0)
        if ids is not None:
            same = ids[:, None] == self.groups
            nearness = nearness.masked_fill(same, -torch.inf)  # affinity 0, gradient 0
            count = count - same.float() @ self.values
        votes = torch.stack([(beta * nearness).exp() @ self.values for beta in betas])
        return torch.where(self.mean, votes / count.clamp(min=1), votes)


def text_prior(features: Tensor, prompts: Tensor, scale: float = 100.0) -> Tensor:
    """Zero-shot logits (n, c) of features (n, d) and one embedding a class (c, d): scale * cosine.

    `scale` is the exponential of the model's own logit scale: 100 for OpenAI's CLIP, 14.3 where never trained.
    """
    return scale * F.normalize(features.float(), dim=-1) @ F.normalize(prompts.float(), dim=-1).T


def probe_prior(logit: Tensor, classes: int = 2) -> Tensor:
    """Prior (n, c) of a probe's logit (n,): `binary_logit` gives it back, fake classes are equally likely."""
    fake = (logit.float() - math.log(classes - 1))[:, None].expand(-1, classes - 1)
    return torch.cat([torch.zeros(len(logit), 1, device=logit.device), fake], dim=1)


def group_ids(groups: Groups) -> Tensor:
    """Names (n,) -> int64 (n,), the same for a name in every table and run. A tensor of ids stays as it is."""
    if isinstance(groups, Tensor):
        if groups.dtype != torch.int64 or groups.ndim != 1:
            raise Refusal(f"groups {groups.dtype} {tuple(groups.shape)}: give names, or what group_ids made of them")
        return groups
    names = list(groups)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise Refusal(f"group {wrong[0]!r} is not a name: give groups as text")  # 7 and '7' would never meet
    ids = {name: _number(name) - 2**63 for name in dict.fromkeys(names)}
    return torch.tensor([ids[name] for name in names], dtype=torch.int64)


def draw_shots(
    labels: Sequence[int], groups: Groups, shots: int, seed: int, classes: Sequence[str] = ("real", "fake")
) -> tuple[np.ndarray, dict[str, int]]:
    """Row indices of `shots` rows a class, and the classes that had fewer, {name: rows}, and gave all they had.

    Groups come in one order, the hash of (seed, group), for all classes: real images and their own fakes enter
    the cache together. No group gives a class a second row before each has given one. More shots keep the rows
    of fewer. Refuses a class without rows.
    """
    if shots < 1:
        raise Refusal(f"{shots} shots: ask for 1 or more of each class")
    labels = _labels(labels)
    check_labels(labels, len(classes))
    ids = group_ids(groups).tolist()
    if len(ids) != len(labels):
        raise Refusal(f"{len(ids)} groups for {len(labels)} labels: give one a row")
    place = {group: _number(seed, group) for group in dict.fromkeys(ids)}
    seen: Counter[int] = Counter()
    lot = []
    for group in ids:
        lot.append(_number(seed, group, seen[group]))  # which row of a group comes first is drawn, too
        seen[group] += 1
    drawn, short = [], {}
    for number, name in enumerate(classes):
        members = sorted(np.flatnonzero(labels == number).tolist(), key=lot.__getitem__)
        if not members:
            raise Refusal(f"class {name!r} has no rows to draw shots from: leave it out or add images")
        turn: Counter[int] = Counter()
        order = []
        for row in members:
            order.append((turn[ids[row]], place[ids[row]], row))
            turn[ids[row]] += 1
        drawn += [row for *_, row in sorted(order)[:shots]]
        if len(members) < shots:
            short[name] = len(members)
    return np.array(drawn), short


@dataclass(frozen=True)
class Tuned:
    """The best point on validation rows, and its score by their judge."""

    alpha: float
    beta: float
    score: float
    prior_score: float  # at alpha = 0: the prior alone
    tried: int  # settings among which it is the best


@torch.no_grad()
def tune(
    adapter: TipAdapter,
    val: Rows,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
    leave_out: bool = False,
) -> Tuned:
    """Choose alpha and beta on validation rows, by their judge, and put them into the adapter.

    alpha = 0 is always tried, so the choice is never worse than the prior. Ties go to the smaller alpha, then the
    smaller beta. Where two classes meet a prior that is equal in all rows, alpha changes no order: it stays.
    Refuses rows whose group is in the cache; with `leave_out` they may be those of the cache itself, since no row
    sees the keys of its own group: a cross-validation that leaves a group out.
    """
    _check_val(adapter, val, leave_out)
    if not (len(alphas) and len(betas) and min(alphas) > 0 and min(betas) > 0):
        raise Refusal(f"alphas {list(alphas)}, betas {list(betas)}: give one or more of each, all above 0")
    prior = torch.zeros(len(val), adapter.classes) if val.prior is None else val.prior
    if adapter.classes == 2 and adapter.alpha > 0 and torch.equal(prior, prior[:1].expand_as(prior)):
        alphas = [float(adapter.alpha)]
    alphas, betas = (torch.tensor(sorted(grid), dtype=torch.float32) for grid in (alphas, betas))
    votes = adapter.votes(val.features, val.groups if leave_out else None, betas.to(adapter.keys.device)).cpu()
    prior_score = float(val.judge(prior[None])[0])
    tried = 1 + len(alphas) * len(betas)
    best = Tuned(0.0, float(betas[0]), prior_score, prior_score, tried)
    for alpha in alphas:
        for beta, score in zip(betas, val.judge(prior + alpha * votes), strict=True):
            if score > best.score:
                best = Tuned(float(alpha), float(beta), float(score), prior_score, tried)
    adapter.alpha.fill_(best.alpha)
    adapter.beta.fill_(best.beta)
    return best


@dataclass(frozen=True)
class Fitted:
    """What Tip-Adapter-F did; entry 0 of the lists is the cache before training, with a loss of NaN."""

    epoch: int  # the one that was kept; 0: training did not help on validation rows
    losses: list[float]  # mean over the rows of an epoch
    scores: list[float]  # on validation rows, at the alpha and beta of the training; none without them
    tuned: Tuned | None

    @property
    def tried(self) -> int:
        """Settings that validation rows chose among: epochs, then alpha and beta."""
        return len(self.scores) + (self.tuned.tried if self.tuned else 0)


def fit(
    adapter: TipAdapter,
    train: Rows,
    val: Rows | None,
    seed: int = 0,
    epochs: int = 20,
    learning_rate: float = 1e-3,
    batch: int = 256,
    eps: float = 1e-8,
    renormalise: bool = False,
    stop_after: int | None = None,
) -> Fitted:
    """Tip-Adapter-F: train the keys at the adapter's present alpha and beta, keep the best epoch, then `tune`.

    Without `val` nothing is chosen: the last epoch is kept, and alpha and beta stay. `stop_after` ends after that many
    epochs of the same schedule.
    Class-balanced cross-entropy, AdamW, half a cosine to 0 over all steps. Published: `eps` 1e-4, which fp16 weights
    needed and which damps training in fp32. Keys drift from length 1 as published, unless `renormalise`d after each
    step; the affinity is then no kernel. Prior and values stay as they are.
    """
    check_labels(train.labels, adapter.classes)
    if val is not None:
        _check_val(adapter, val)
        _refuse_shared(val, train.groups, "training")
    count = torch.bincount(train.labels, minlength=adapter.classes)
    if not count.all():
        raise Refusal(f"class {int(count.argmin())} has no training rows: leave it out or add images")
    if adapter.alpha == 0:
        raise Refusal("alpha 0: the keys change nothing and cannot be trained; start from a fresh TipAdapter")
    device = adapter.keys.device
    weight = (len(train) / (adapter.classes * count)).to(device)  # of a row, 1 on average
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([adapter.keys], lr=learning_rate, eps=eps, weight_decay=0.01)
    steps = epochs * math.ceil(len(train) / batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    losses, scores = [math.nan], [] if val is None else [_score(adapter, val)]
    best, kept = 0, adapter.keys.clone()
    adapter.keys.requires_grad_(True)
    try:
        for epoch in range(1, (epochs if stop_after is None else stop_after) + 1):
            total = 0.0
            for rows in torch.randperm(len(train), generator=order).split(batch):
                prior = None if train.prior is None else train.prior[rows]
                logits = adapter(train.features[rows], prior, train.groups[rows])
                labels = train.labels[rows].to(device)
                loss = (weight[labels] * F.cross_entropy(logits, labels, reduction="none")).mean()
                if not loss.isfinite():
                    raise Refusal(
                        f"loss {loss.item()} in epoch {epoch} at alpha {adapter.alpha:.3g}, beta {adapter.beta:.3g}: "
                        f"lower the learning rate ({learning_rate}) or renormalise the keys"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                if renormalise:
                    with torch.no_grad():
                        adapter.keys.copy_(F.normalize(adapter.keys, dim=-1))
                total += loss.item() * len(rows)
            losses.append(total / len(train))
            if val is not None:
                scores.append(_score(adapter, val))
            if val is None or scores[-1] > scores[best]:
                best, kept = epoch, adapter.keys.detach().clone()
    finally:
        adapter.keys.requires_grad_(False).grad = None
    adapter.keys.copy_(kept)
    return Fitted(best, losses, scores, None if val is None else tune(adapter, val))


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels outside 0..classes-1, and fewer than two classes."""
    if classes < 2:
        raise Refusal(f"{classes} classes: name real and at least one kind of fake")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise Refusal(f"{len(wrong)} labels such as {int(wrong[0])} are none of the {classes} classes: use 0 for real")


def _check_val(adapter: TipAdapter, val: Rows, leave_out: bool = False) -> None:
    check_labels(val.labels, adapter.classes)
    if not leave_out:
        _refuse_shared(val, adapter.groups.cpu(), "the cache")
    if adapter.classes == 2 and len(val.labels.unique()) < 2:
        raise Refusal("all validation rows are of one class: give real and fake ones to choose alpha and beta")


def _refuse_shared(val: Rows, groups: Tensor, where: str) -> None:
    shared = torch.isin(val.groups, groups).nonzero().flatten()
    if len(shared):
        raise Refusal(
            f"{len(shared)} of {len(val)} validation rows (the first is row {int(shared[0])}) have their group in "
            f"{where}: choose alpha, beta and the epoch on other groups"
        )


@torch.no_grad()
def _score(adapter: TipAdapter, val: Rows) -> float:
    return float(val.judge(adapter(val.features, val.prior).cpu()[None])[0])


def pooled(labels: Tensor) -> Judge:
    """The judge of rows (n,) of one set: AUC with two classes, else minus the mean log-loss."""
    fake = labels.numpy() == 1

    def judge(logits: Tensor) -> np.ndarray:
        p, n, c = logits.shape
        if c > 2:
            losses = F.cross_entropy(logits.reshape(p * n, c), labels.repeat(p), reduction="none")
            return -losses.reshape(p, n).double().mean(1).numpy()
        ranks = rankdata((logits[..., 1] - logits[..., 0]).numpy(), axis=1)
        fakes, reals = int(fake.sum()), int((~fake).sum())
        return (ranks[:, fake].sum(1) - fakes * (fakes + 1) / 2) / (fakes * reals)  # Mann-Whitney

    return judge


def _matrix(values: Tensor | np.ndarray, name: str) -> Tensor:
    """Values (n, m) as float32; refuses another number of dimensions and rows that are not finite."""
    tensor = values.float() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, np.float32))
    if tensor.ndim != 2:
        raise Refusal(f"{name} of shape {tuple(tensor.shape)}: give one row an image")
    bad = (~tensor.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise Refusal(
            f"{len(bad)} of {len(tensor)} rows of {name} (the first is row {int(bad[0])}) are not finite: "
            "leave out images that could not be read"
        )
    return tensor


def _labels(labels: Sequence[int]) -> Tensor:
    array = labels.numpy() if isinstance(labels, Tensor) else np.array(labels)
    if array.ndim != 1 or array.dtype.kind not in "biu":
        raise Refusal(f"labels {array.dtype} {array.shape}: give one class number a row, 0 for real")
    return torch.from_numpy(array.astype(np.int64))


def _number(*parts: str | int) -> int:
    """0..2**64-1, the same on every machine."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big")

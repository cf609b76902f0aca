"""Heads on frozen features: support vector machine, logistic regression, two-layer perceptron.

All of them see features of unit length, standardised with the statistics of the training rows. They are fitted in
seconds by scikit-learn (the perceptron by torch) and kept as one torch module, so that a detector can hold them.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapt.errors import Refusal
from adapt.models.heads.classifier import Classifier, train_by_steps

Kind = Literal["svm", "logistic", "mlp"]
GRID = {  # inverse strength of the L2 penalty; the perceptron's is its weight decay
    "logistic": (1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1),
    "svm": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    "mlp": (1e0,),
}
HIDDEN = 256  # of the perceptron


class Probe(Classifier):
    """Features (n, d) -> logit of "AI-generated" (n,).

    `classes` is ("real", "fake") or "real" followed by families or generators; `class_logits` gives one logit for
    each of them. With more than two classes the svm is one-vs-one: a class's score is its number of won duels, and
    the margins decide among equals (Hsu and Lin 2002, section 3). `scale` and `shift` make logits of scores that
    carry no probability (Platt 1999); they are fitted on validation rows.
    """

    mean: Tensor
    deviation: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, dim: int, classes: Sequence[str], kind: Kind, unit: bool = True) -> None:
        super().__init__(classes)
        self.kind, self.unit = kind, unit
        count = len(classes)
        self.pairs = [(a, b) for a in range(count) for b in range(a + 1, count)] if kind == "svm" and count > 2 else []
        out = len(self.pairs) or (1 if count == 2 else count)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))
        if kind == "mlp":
            self.net = nn.Sequential(nn.Linear(dim, HIDDEN), nn.GELU(), nn.Dropout(0.2), nn.Linear(HIDDEN, out))
        else:
            self.net = nn.Linear(dim, out)

    def standardised(self, features: Tensor) -> Tensor:
        """Features of unit length, less the training mean, over the training deviation.

        Without `unit` (columns that are no vector: colour statistics) lengths stay, and 8 deviations are the end.
        """
        if self.unit:
            return (F.normalize(features.float(), dim=-1) - self.mean) / self.deviation
        return ((features.float() - self.mean) / self.deviation).clamp(-8, 8)

    def scores(self, features: Tensor) -> Tensor:
        """(n,) with two classes, else (n, classes), before `scale` and `shift`."""
        raw = self.net(self.standardised(features))
        if not self.pairs:
            return raw.squeeze(-1) if len(self.classes) == 2 else raw
        votes, margins = (torch.zeros(len(raw), len(self.classes), device=raw.device) for _ in range(2))
        for k, (a, b) in enumerate(self.pairs):
            margin = raw[:, k]  # above 0 speaks for b
            votes[:, b] += margin > 0
            votes[:, a] += margin <= 0
            margins[:, b] += margin
            margins[:, a] -= margin
        return votes + margins / (3 * (margins.abs() + 1))  # less than half a vote

    def class_logits(self, features: Tensor) -> Tensor:
        """(n, classes); softmax gives probabilities."""
        scores = self.scores(features) * self.scale + self.shift
        return torch.stack([torch.zeros_like(scores), scores], dim=1) if len(self.classes) == 2 else scores

    def describe(self) -> dict[str, object]:
        return {"type": "probe", "classes": list(self.classes), "kind": self.kind, "unit": self.unit}


def refuse_small_classes(labels: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse a class, by the place of its name, with fewer than two of the labels (n,)."""
    for number, name in enumerate(classes):
        if (count := int((labels == number).sum())) < 2:
            raise Refusal(f"class {name!r} has {count} training images: each needs two or more, or leave it out")


def fit_probe(
    kind: Kind,
    features: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    judge: Callable[[Probe], float],
    calibration: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
    unit: bool = True,
    strengths: Sequence[float] = (),
) -> tuple[Probe, dict[str, float]]:
    """Fit a head on training features (n, d) and class numbers (n,), 0 is real; classes weigh equally.

    `judge` scores a candidate on validation data, higher is better: it picks the strength of the penalty among those
    of `GRID` (or `strengths`), and the epoch of the perceptron; the stronger penalty and the earlier epoch win ties.
    `calibration` (validation features and labels, of the classes' numbers) fits `scale` and `shift` of the svm.
    Returns the head, what was picked, and among how many `configurations`; `not_converged` says how many of the svm's
    or logistic models that were picked (one a pair of classes) stopped at their last iteration, if any did.
    Refuses a class without rows or with one row, and features that are not finite.
    """
    refuse_small_classes(labels, classes)
    if not np.isfinite(features).all():
        raise Refusal(f"{(~np.isfinite(features).all(axis=1)).sum()} rows have features that are not finite")
    probe = Probe(features.shape[1], classes, kind, unit)
    with torch.no_grad():
        rows = torch.from_numpy(features)
        deviation, mean = torch.std_mean(F.normalize(rows, dim=-1) if unit else rows, dim=0, correction=0)
        probe.mean.copy_(mean)
        probe.deviation.copy_(torch.where(deviation > 1e-12, deviation, 1.0))  # a constant feature stays 0
        standard = probe.standardised(rows)
    fit = _fit_mlp if kind == "mlp" else _fit_linear
    best: dict[str, Tensor] = {}
    picked: dict[str, float] = {}
    tried = 0
    for strength in strengths or GRID[kind]:
        for state, choice in fit(probe, standard, labels, strength, seed):
            tried += 1
            probe.eval().load_state_dict(probe.state_dict() | state)
            if (value := judge(probe)) > picked.get("validation_score", -np.inf):
                best, picked = dict(state), choice | {"validation_score": float(value)}
    probe.load_state_dict(probe.state_dict() | best)
    if kind == "svm" and calibration is not None:
        _calibrate(probe, *calibration)
    return probe.eval().requires_grad_(False), picked | {"configurations": tried}


def _fit_linear(probe: Probe, features: Tensor, labels: np.ndarray, strength: float, seed: int):
    """Yield one candidate: scikit-learn's LinearSVC or L-BFGS logistic regression."""
    rows = features.numpy()
    if probe.pairs:
        fitted = [fit_one(probe.kind, rows[(labels == a) | (labels == b)], labels[(labels == a) | (labels == b)] == b,
                          strength, seed) for a, b in probe.pairs]  # fmt: skip
    else:
        fitted = [fit_one(probe.kind, rows, labels, strength, seed)]
    weight, bias = (np.concatenate([getattr(model, name) for model in fitted]) for name in ("coef_", "intercept_"))
    state = {"net.weight": torch.from_numpy(weight).float(), "net.bias": torch.from_numpy(bias).float()}
    stopped = sum(int(np.max(model.n_iter_)) >= model.max_iter for model in fitted)
    yield state, {"C": strength} | ({"not_converged": stopped} if stopped else {})


def fit_one(kind: Kind, rows: np.ndarray, labels: np.ndarray, strength: float, seed: int = 0) -> Any:
    """scikit-learn's svm or logistic model of standardised rows (n, d) and labels (n,), at one strength."""
    from sklearn import config_context
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if kind == "svm":
        model = LinearSVC(C=strength, class_weight="balanced", max_iter=2000, random_state=seed)
    else:
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    # that rows are finite was seen before; asking again for every strength takes a tenth of a fit
    with warnings.catch_warnings(), config_context(assume_finite=True), _scipy_on_one_thread():
        warnings.simplefilter("ignore", ConvergenceWarning)  # judged as it is; `not_converged` is recorded
        return model.fit(rows, labels)


def _scipy_on_one_thread() -> AbstractContextManager:
    """While numpy's BLAS multiplies by the rows.

    scipy's wheels bring a BLAS of their own. Between the steps of L-BFGS, on vectors as short as a row, its threads
    wait busily for more work, on the cores that numpy's need: on two cores a fit took nearly twice as long.
    """
    from threadpoolctl import ThreadpoolController

    every = ThreadpoolController()
    scipys = [lib.filepath for lib in every.lib_controllers if Path(lib.filepath).parent.name == "scipy.libs"]
    return every.select(filepath=scipys).limit(limits=1)


def _fit_mlp(probe: Probe, features: Tensor, labels: np.ndarray, strength: float, seed: int, epochs: int = 15):
    """Yield the perceptron after each epoch: AdamW, 256 rows a step, cosine to zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in probe.net:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5, generator=generator)
            nn.init.zeros_(module.bias)
    targets, count = torch.from_numpy(labels), len(probe.classes)

    def logits(rows: Tensor) -> Tensor:
        raw = probe.net(features[rows])
        return torch.cat([torch.zeros_like(raw), raw], dim=1) if count == 2 else raw

    steps = train_by_steps(
        probe.net, logits, targets, count,
        epochs=epochs, batch=256, rate=1e-3, decay=strength, generator=generator, seed=seed,
    )  # fmt: skip
    for epoch in steps:
        yield (
            {f"net.{name}": value.detach().clone() for name, value in probe.net.state_dict().items()},
            {"epoch": epoch},
        )


@torch.no_grad()
def _calibrate(probe: Probe, features: np.ndarray, labels: np.ndarray) -> None:
    """Fit scale (and, for two classes, shift) by logistic regression of validation labels on scores."""
    from scipy.optimize import minimize_scalar
    from sklearn.linear_model import LogisticRegression

    scores = probe.scores(torch.from_numpy(features))
    if len(probe.classes) == 2:
        if len(set(labels.tolist())) == 2:
            fitted = LogisticRegression(C=1e6, class_weight="balanced").fit(scores[:, None].numpy(), labels)
            probe.scale.fill_(max(float(fitted.coef_[0, 0]), 1e-3))  # never turned around
            probe.shift.fill_(float(fitted.intercept_[0]))
        return
    targets = torch.from_numpy(labels)

    def loss(log_scale: float) -> float:
        return float(F.cross_entropy(scores * float(np.exp(log_scale)), targets))

    probe.scale.fill_(float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x)))

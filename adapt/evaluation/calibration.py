"""From logits to probabilities, fitted on validation rows and kept as plain numbers.

A calibrated p_fake is the chance of "AI-generated" where photographs and fakes are equally frequent, and among the
fakes all generators. Three maps are fitted; a cross-validation over groups picks the one that is used.

    temperature  logistic(logit / T): keeps p = 0.5 where the logit is 0 (1706.04599)
    sigmoid      logistic(a logit + b), with Platt's targets (Platt 1999, section 2.2)
    isotonic     the best non-decreasing function: steps joined by lines
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import expit

from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import balanced_weights, unedited_validation

Kind = Literal["none", "temperature", "sigmoid", "isotonic"]
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Calibration:
    """`numbers`: temperature (1,): 1 / T; sigmoid (2,): a, b; isotonic (2, k): ascending logits, their p.

    `kind` is the map that is used, "none" is the logistic function of the logit itself. `losses` are the
    cross-validated log losses (nat) that the kind was picked by.
    """

    kind: Kind = "none"
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)

    def __call__(self, logit: np.ndarray, kind: Kind | None = None) -> np.ndarray:
        """p_fake of logits, any shape, by this or another of the fitted kinds. It never falls as the logit rises."""
        kind = kind or self.kind
        return expit(logit) if kind == "none" else _apply(kind, self.numbers[kind], logit)


def _apply(kind: Kind, numbers: np.ndarray, logit: np.ndarray) -> np.ndarray:
    if kind == "isotonic":
        return np.interp(logit, *numbers)
    slope, intercept = (*numbers, 0.0)[:2]
    return expit(slope * np.asarray(logit) + intercept)


def fit_calibration(scores: Scores) -> Calibration:
    """All three maps from the unedited `val` rows, pooled over views, classes and generators weighing equally.

    The weights of a class sum to the number of groups, which is the amount of evidence that Platt's targets and the
    ends of the isotonic map (rule of succession, so that p is never 0 or 1) go by. Where a fold would lack a class
    nothing can be compared, and `temperature`, which has one number to fit, is used; without validation rows of both
    classes there is nothing to fit.
    """
    val = unedited_validation(scores)
    if val.fake.all() or not val.fake.any():
        return Calibration()
    group = np.unique(val["group"], return_inverse=True)[1]
    order = np.lexsort((balanced_weights(val), group, val.fake, val["logit"]))  # sums do not depend on row order
    logit, fake, group = val["logit"][order], val.fake[order], group[order]
    weight = balanced_weights(val)[order] * (group.max() + 1)
    numbers: dict[str, np.ndarray] = {kind: fit(logit, fake, weight) for kind, fit in FITS.items()}
    losses = _cross_validated(logit, fake, weight, group)
    best: Kind = min(losses, key=losses.__getitem__) if losses else "temperature"
    return Calibration(best, numbers, dict(losses.items()))


def fit_temperature(scores: Scores) -> Calibration:
    """The temperature alone, on the rows and with the weights of `fit_calibration`: sets weigh equally.

    With it methods are compared on equal terms, whether they calibrate themselves or not. Without validation rows of
    both classes there is nothing to fit.
    """
    val = unedited_validation(scores)
    if val.fake.all() or not val.fake.any():
        return Calibration()
    return Calibration("temperature", {"temperature": _temperature(val["logit"], val.fake, balanced_weights(val))})


def _cross_validated(logit: np.ndarray, fake: np.ndarray, weight: np.ndarray, group: np.ndarray) -> dict[Kind, float]:
    """Log loss of each kind on groups that it was not fitted on; empty if a fit would lack a class."""
    from sklearn.model_selection import GroupKFold

    if group.max() < 1:
        return {}
    total = dict.fromkeys(FITS, 0.0)
    for train, rest in GroupKFold(min(FOLDS, int(group.max()) + 1)).split(logit, fake, group):
        if len(set(fake[train])) < 2:
            return {}
        for kind, fit in FITS.items():
            p = _apply(kind, fit(logit[train], fake[train], weight[train]), logit[rest]).clip(1e-12, 1 - 1e-12)
            total[kind] -= float(weight[rest] @ np.log(np.where(fake[rest], p, 1 - p)))
    return {kind: float(loss / weight.sum()) for kind, loss in total.items()}


def _temperature(logit: np.ndarray, fake: np.ndarray, weight: np.ndarray) -> np.ndarray:
    from scipy.optimize import minimize_scalar

    away = np.where(fake, -logit, logit)

    def loss(log_slope: float) -> float:
        return float(weight @ np.logaddexp(0, np.exp(log_slope) * away))

    return np.exp([minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-10}).x])


def _sigmoid(logit: np.ndarray, fake: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Every row counts twice, as a fake and as a real, by its target. A slope that would turn scores around is 0."""
    from sklearn.linear_model import LogisticRegression

    mean, spread = logit.mean(), logit.std()
    if spread == 0:
        return np.zeros(2)
    reals, fakes = weight[~fake].sum(), weight[fake].sum()
    target = np.where(fake, (fakes + 1) / (fakes + 2), 1 / (reals + 2))
    x = np.tile((logit - mean) / spread, 2)[:, None]
    labels = np.repeat([True, False], len(logit))
    # C: no penalty but one that keeps the curvature from vanishing
    model = LogisticRegression(C=1e8, solver="newton-cholesky", tol=1e-8, max_iter=200)
    model.fit(x, labels, np.concatenate([weight * target, weight * (1 - target)]))
    slope = model.coef_[0, 0] / spread
    return np.array([slope, model.intercept_[0] - slope * mean]) if slope > 0 else np.zeros(2)


def _isotonic(logit: np.ndarray, fake: np.ndarray, weight: np.ndarray) -> np.ndarray:
    from sklearn.isotonic import IsotonicRegression

    end = 1 / (weight[fake].sum() + 2)
    model = IsotonicRegression(y_min=end, y_max=1 - end, out_of_bounds="clip").fit(logit, fake, sample_weight=weight)
    return np.stack([model.X_thresholds_, model.y_thresholds_])


FITS: dict[Kind, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "temperature": _temperature,
    "sigmoid": _sigmoid,
    "isotonic": _isotonic,
}

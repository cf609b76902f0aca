"""Heads on frozen features: the logistic head against LinearSVC, one fit each, and how its time grows with rows."""

import functools
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.svm import LinearSVC

from adapt.benchmark.timing import Ratio, Settings, in_turns, once
from adapt.models.heads.probes import fit_one

DIM = 768


def rows(count: int, dim: int = DIM) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, dim) float32 of two Gaussian classes whose best linear AUC is about 0.83, standardised; labels."""
    rng = np.random.default_rng(0)
    labels = (rng.random(count) < 0.5).astype(np.int64)
    direction = np.random.default_rng(1).standard_normal(dim) / dim**0.5
    x = rng.standard_normal((count, dim), dtype=np.float32)
    x += (1.35 * labels[:, None] * direction).astype(np.float32)
    return (x - x.mean(axis=0)) / x.std(axis=0), labels


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """b of seconds = a * size^b, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measure(settings: Settings) -> list[Ratio]:
    """LinearSVC as it comes (C = 1) against the logistic head at the same C, on the same rows."""
    sizes = [200, 400, 800] if settings.small else [10_000, 25_000, 50_000, 100_000]
    dim, middle = (16 if settings.small else DIM), sizes[-2]
    x, y = rows(2 * sizes[-1], dim)
    test, truth = x[sizes[-1] :], y[sizes[-1] :]
    models: dict[str, Any] = {}  # of scikit-learn
    ways = {
        "ours": lambda: models.update(ours=fit_one("logistic", x[:middle], y[:middle], 1.0)),
        "svm": lambda: models.update(svm=LinearSVC(C=1.0).fit(x[:middle], y[:middle])),
    }
    costs = in_turns(ways, settings)
    auc = {name: float(roc_auc_score(truth, model.decision_function(test))) for name, model in models.items()}
    times = []
    for size in sizes:
        fit = functools.partial(fit_one, "logistic", x[:size], y[:size], 1.0)
        times.append(min(once(fit, settings) for _ in range(3)))
    facts = {
        "AUC of ours": round(auc["ours"], 5),
        "AUC of LinearSVC": round(auc["svm"], 5),
        f"time exponent, {sizes[0]:,} to {sizes[-1]:,} rows": round(exponent(sizes, times), 3),
    }
    facts |= {f"seconds, {size:,} rows": round(time, 3) for size, time in zip(sizes, times, strict=True)}
    case = f"{middle:,} x {dim}, one fit"
    return [Ratio("heads", case, "logistic head", "LinearSVC", costs["ours"], costs["svm"], goal=15, facts=facts)]

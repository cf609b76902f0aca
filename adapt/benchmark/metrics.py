"""Resampling: every metric of all resamples from one sort, against AUC and AP of each resample by scikit-learn."""

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from adapt.benchmark.timing import Ratio, Settings, in_turns
from adapt.evaluation.replicates import measure as all_metrics


def measure(settings: Settings) -> list[Ratio]:
    """The same drawn rows for both; scores rounded so that many are tied. Ours finds eleven further metrics."""
    count, resamples = (500, 5) if settings.small else (50_000, 1000)
    rng = np.random.default_rng(0)
    fake = rng.random(count) < 0.5
    logit = np.round(rng.standard_normal(count) + 1.35 * fake, 3)
    p_fake = 1 / (1 + np.exp(-logit))
    drawn = [rng.integers(count, size=count) for _ in range(resamples)]
    found = {}

    def ours() -> None:
        values: list[np.ndarray] = []
        for first in range(0, resamples, 200):
            chosen = drawn[first : first + 200]
            counts = np.empty((len(chosen), count), np.int32)
            for row, index in zip(counts, chosen, strict=True):
                row[:] = np.bincount(index, minlength=count)
            out = all_metrics(logit, p_fake, fake, counts, 0.0)
            values.append(np.stack([out["auc"], out["ap"]]))
        found["ours"] = np.concatenate(values, axis=1)

    def loop() -> None:
        values = []
        for index in drawn:
            truth, score = fake[index], logit[index]
            even = np.where(truth, 0.5 / truth.sum(), 0.5 / (~truth).sum())  # AP is for as many fakes as photographs
            values.append((roc_auc_score(truth, score), average_precision_score(truth, score, sample_weight=even)))
        found["loop"] = np.array(values).T

    costs = in_turns({"ours": ours, "loop": loop}, settings, warm_up=0)
    facts = {
        "largest difference": float(np.abs(found["ours"] - found["loop"]).max()),
        "distinct scores": len(np.unique(logit)),
    }
    case = f"{resamples:,} resamples of {count:,} scores, AUC and AP"
    return [
        Ratio("metrics", case, "one sort", "scikit-learn's loop", costs["ours"], costs["loop"], goal=15, facts=facts)
    ]

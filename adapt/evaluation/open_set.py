"""How familiar an image looks: what class logits say of whether its class was among those of the training."""

import numpy as np

from adapt.evaluation.scores import Scores

# Each is higher for what looks more like the training: 1911.11132, 2010.03759 (minus the energy), 1610.02136.
OPEN_SET = ("max_logit", "energy", "max_softmax")


def familiarity(logits: np.ndarray) -> dict[str, np.ndarray]:
    """Logits (n, classes) -> (n,) for each of `OPEN_SET`: largest logit, logsumexp, log of the largest softmax.

    The logarithm has the order of the softmax, without ties where that itself rounds to 1.
    """
    steps = np.sort(logits, axis=1)
    top, below = steps[:, -1], np.logaddexp.reduce(steps[:, :-1], axis=1)
    return {
        "max_logit": top,
        "energy": np.logaddexp(top, below),
        "max_softmax": -np.logaddexp(0, below - top),
    }


def classes_of(scores: Scores) -> tuple[str, ...]:
    """Classes that the scores have logits of, `real` first; empty if there are none."""
    names = [name.removeprefix("logit_") for name in scores.columns if name.startswith("logit_")]
    return tuple(sorted(names, key=lambda name: name != "real"))


def class_logits(scores: Scores) -> np.ndarray:
    """(n, classes), in the order of `classes_of`."""
    return np.stack([scores[f"logit_{name}"] for name in classes_of(scores)], axis=1)


def known_fakes(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool each: fakes whose family or generator is one of several classes of fakes, and fakes of no class.

    Rows without finite logits are neither, and with fewer than two classes of fakes there are none.
    """
    classes = classes_of(scores)
    if len(classes) < 3:
        return np.zeros(len(scores), dtype=bool), np.zeros(len(scores), dtype=bool)
    fake = scores.fake & np.isfinite(class_logits(scores)).all(axis=1)
    named = np.isin(scores["family"], classes[1:]) | np.isin(scores["generator"], classes[1:])
    return fake & named, fake & ~named


def best_measure(sizes: dict[str, np.ndarray], known: np.ndarray, unknown: np.ndarray) -> str:
    """That of `OPEN_SET` which tells known fakes from unknown ones best (AUROC); without unknown ones the energy."""
    from sklearn.metrics import roc_auc_score

    if not unknown.any():
        return "energy"
    both = known | unknown
    return max(OPEN_SET, key=lambda name: roc_auc_score(known[both], sizes[name][both]))

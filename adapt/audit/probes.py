"""Small classifiers for what a tree cannot read: thumbnails, and a difference that stays at one place.

Both are fitted on groups other than those that they judge.
"""

import numpy as np

FOLDS = 5


def thumbnail_probe(vectors: np.ndarray, fake: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """p (n,) of fake for vectors (n, d) from a logistic regression fitted on the other folds, (n,).

    The penalty is fixed and strong (C 0.01 on standardised columns): with few images little is learned by heart.
    """
    from sklearn.linear_model import LogisticRegression

    p = np.full(len(fake), 0.5)
    for fold in range(FOLDS):
        held, rest = folds == fold, folds != fold
        if not held.any() or len(set(fake[rest])) < 2:
            continue
        mean, deviation = vectors[rest].mean(axis=0), vectors[rest].std(axis=0) + 1e-6
        model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=200)
        model.fit((vectors[rest] - mean) / deviation, fake[rest])
        p[held] = model.predict_proba((vectors[held] - mean) / deviation)[:, 1]
    return p.round(3)  # few values: cheap to count group by group


def fixed_probe(places: np.ndarray, fake: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """p (n,) of fake for places (n, p) by the difference of the class means on the other folds, (n,).

    Only places count where the means differ surely (5 % over all p together), as in nearest shrunken centroids
    (Tibshirani and others 2002, doi:10.1073/pnas.082099299). Where there is none, p is 0.5.
    """
    score = np.zeros(len(fake))
    for fold in range(FOLDS):
        held, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not len(held) or min(fake[rest].sum(), (~fake[rest]).sum()) < 3:
            continue
        difference, middle, deviation, sure = _template(places[rest], fake[rest])
        if sure.any():
            weight = difference[sure] / deviation[sure] ** 2
            of_rest = (places[rest][:, sure] - middle[sure]) @ weight
            score[held] = (places[held][:, sure] - middle[sure]) @ weight / (of_rest.std() + 1e-9)
    return (1 / (1 + np.exp(-score.clip(-20, 20)))).round(3)


def fixed_place(places: np.ndarray, fake: np.ndarray, first: int) -> int | None:
    """The entry of places (n, p) at which the class means differ most surely; None: nowhere.

    One of the `first` entries, which are the finer ones, if the means differ at any of these.
    """
    if min(fake.sum(), (~fake).sum()) < 3:
        return None
    difference, _, deviation, sure = _template(places, fake)
    if not sure.any():
        return None
    size = np.where(sure, np.abs(difference) / deviation, -1)
    return int(size[:first].argmax() if sure[:first].any() else size.argmax())


def _template(places: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, ...]:
    """Difference of the class means, their middle, deviation inside the classes, and where it is sure: (p,) each."""
    from scipy.stats import t

    of = [places[rows].astype(np.float32) for rows in (~fake, fake)]
    means, variances = [part.mean(axis=0) for part in of], [part.var(axis=0, ddof=1) for part in of]
    deviation = np.sqrt((variances[0] + variances[1]) / 2)
    # A floor (Tusher and others 2001): where almost nothing varies, a level of one pixel is no mark.
    deviation += np.float32(0.5 * np.median(deviation) + 0.5)
    error = deviation * np.sqrt(1 / len(of[0]) + 1 / len(of[1]))
    difference = means[1] - means[0]
    sure = np.abs(difference) / error > t.isf(0.025 / places.shape[1], len(places) - 2)
    return difference, (means[0] + means[1]) / 2, deviation, sure

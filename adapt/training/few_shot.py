"""A generator learnt from few shots: heads on cached features of a detector's own tower, and the recovery curve.

In these scores the new generator is the only one that counts as met in validation: then `mean:selection` of the
evaluator is the new generator, `mean:all` all others, `mean:seen` and `mean:unseen` those that were seen and unseen
before; whatever is learnt, the means are over the same generators.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from adapt.data.manifest import Manifest
from adapt.data.onboarding import pool
from adapt.evaluation.attribution import Column
from adapt.evaluation.metrics import Difference, compare_means
from adapt.evaluation.open_set import class_logits, classes_of
from adapt.evaluation.replicates import ALL, distinct
from adapt.evaluation.scores import Scores
from adapt.features.cache import Features
from adapt.models.heads.probes import Probe, fit_probe
from adapt.models.heads.tip_adapter import PUBLISHED, Judge, Rows, TipAdapter, fit, tune
from adapt.models.heads.tip_head import PriorHead
from adapt.pages.drawing import curves
from adapt.pages.tables import grid, show
from adapt.training.comparison import Study
from adapt.training.on_features import (
    Classes,
    class_names,
    judge_of,
    known_classes,
    numbers,
    readable_rows,
    under_every_view,
    validation_judge,
)
from adapt.training.refine import outcome
from adapt.training.scored import Key

CLASSES = ("real", "fake")
NEW, OTHERS = "AUC, new generator", "AUC, all other generators"
SHOWN = {
    NEW: ("mean:selection", "auc"),
    OTHERS: ("mean:all", "auc"),
    "AUC, seen before": ("mean:seen", "auc"),
    "AUC, others still unseen": ("mean:unseen", "auc"),
    "New generator found, at the threshold": ("mean:selection", "recall"),
    "False alarms": ("real", "false_alarm"),
}
ABOUT = """\
Learnt: {generator}, from groups of a pool of {pool} that left the test split; at most {pool} shots can be asked for,
and draws that take nearly all of the pool hold nearly the same images. {rows} test rows remain, the same everywhere.
Mean over {seeds} draws of the shots; in brackets the smallest and the largest of them. Shots: groups, of which
the photographs and the fakes of the new generator are used. 0 shots: the detector as it is, and as controls a probe
and a LoRA without any, the LoRA trained as long: what goes beyond them is what the shots taught.
In metrics.csv `mean:selection` is the new generator, `mean:all` all others."""
ABOUT_GAINS = """\
Intervals (95 %): over the test groups and the draws, paired; about one in twenty would exclude 0
by chance where nothing has changed. `All others` below 0 is what was forgotten."""
ABOUT_ATTRIBUTED = """\
Heads with classes: share of the unedited test images of {generator} that are attributed to its {column}
(n/a: the head has no such class), and macro recall over the other classes of the head. Means over draws, in brackets
the least and the greatest. Tip-Adapter and Tip-Adapter-F tell real from fake only."""
AS_IS = "the detector as it is"
HALVES, TRAINABLE = 2, 4  # shots from which some can be held back, and from which two are left to train keys with


def recast(scores: Scores, rows: Manifest, generator: str) -> Scores:
    """The scores with `seen` of the manifest as it was, and the new generator set apart."""
    seen = np.where(scores["generator"] == generator, "val", rows.seen(scores["generator"]))
    return Scores(scores.columns | {"seen": seen})


def shot_rows(features: Features, generator: str, views: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Readable rows (m,) of the groups that were lent, and views (m,): every image under each view."""
    manifest = features.manifest
    train = manifest["split"] == "train"
    lent = np.isin(manifest["group"], list(set(manifest["group"][train & (manifest["generator"] == generator)])))
    pairs = []
    for view in views:
        readable = features.reasons(view) == ""
        pairs += [(row, view) for row in np.flatnonzero(train & lent & readable)]
    return np.array([row for row, _ in pairs], dtype=int), np.array([view for _, view in pairs], dtype=object)


def refitted(
    features: Features, generator: str, views: Sequence[str], seed: int, classes: Classes = "binary"
) -> Probe:
    """Logistic regression on the training rows and the shots; its strength is picked on validation rows.

    The new generator's images, under every view, are repeated until they are as many as a trained generator has on
    average. Without shots: on the training rows alone.
    """
    manifest = features.manifest
    rows, drawn = readable_rows(features, "train", views, seed)
    shots, under = shot_rows(features, generator, views)
    fakes = manifest["generator"][shots] == generator
    old = manifest["generator"][rows] != generator
    trained = manifest["generator"][rows[old & manifest.fake[rows]]]
    if fakes.any():
        count = max(int(fakes.sum()), len(trained) // max(1, len(set(trained))))
        again = np.resize(np.flatnonzero(fakes), count)
        rows, drawn = np.concatenate([rows[old], shots[again]]), np.concatenate([drawn[old], under[again]])
    names = class_names(manifest, classes)
    known = known_classes(names[rows])
    judge = validation_judge(features, views, names)
    return fit_probe("logistic", features.take(rows, drawn), numbers(names[rows], known), known, judge, seed=seed)[0]


def tip_heads(
    features: Features, generator: str, views: Sequence[str], seed: int, head: torch.nn.Module, train_keys: bool
) -> dict[str, PriorHead]:
    """Tip-Adapter on the logit of `head`, and Tip-Adapter-F with `train_keys` and enough shots.

    The cache holds the shots, photographs and fakes, under every view. alpha and beta are chosen with every other
    shot in the cache, on validation rows and the shots held back, all under every view: each generator against the
    reals of its own set, the new one with half of the say. Class means make the choice valid for all shots. A single
    shot leaves none to hold back, and where the new generator's set has no reals among these rows it would have no
    say: then alpha 1 and beta 5.5, as published. Tip-Adapter-F keeps to that half, since the other chooses its epoch.
    """
    manifest = features.manifest
    names = class_names(manifest, "binary")
    rows, under = shot_rows(features, generator, views)
    if not (~manifest.fake[rows]).any():  # shots without photographs of their own
        train, drawn = readable_rows(features, "train", views, seed)
        reals = np.flatnonzero(~manifest.fake[train])[: len(rows)]
        rows, under = np.concatenate([rows, train[reals]]), np.concatenate([under, drawn[reals]])
    prior = PriorHead(CLASSES, head=head)

    def of(which: np.ndarray, seen_as: np.ndarray, judge: Judge | None = None) -> Rows:
        x = features.take(which, seen_as)
        with torch.no_grad():
            labels = numbers(names[which], CLASSES).tolist()
            return Rows(x, labels, manifest["group"][which], prior.prior(torch.from_numpy(x)), judge)

    def cache(these: Rows, alpha: float, beta: float) -> TipAdapter:
        return TipAdapter(these.features, these.labels.tolist(), these.groups, alpha=alpha, beta=beta)

    groups = distinct(manifest["group"][rows[manifest["generator"][rows] == generator]])
    every = of(rows, under)
    published = {"Tip-Adapter": prior.beside(cache(every, *PUBLISHED))}
    if len(groups) < HALVES:
        return published
    back = np.isin(manifest["group"][rows], groups[1::2])
    val, seen_as = under_every_view(features, np.flatnonzero(manifest["split"] == "val"), views)
    which, seen_as = np.concatenate([val, rows[back]]), np.concatenate([seen_as, under[back]])
    new, sets = manifest["generator"][which] == generator, manifest["set"][which]
    if not np.isin(sets[new], sets[~manifest.fake[which]]).any():
        return published
    met = np.where(new, "val", "train")  # half of the say is the new one's
    judge = judge_of(manifest, which, seen_as, numbers(names[which], CLASSES), met)
    judges, half = of(which, seen_as, judge), of(rows[~back], under[~back])
    tuned = tune(cache(half, 50.0, 5.5), judges)
    heads = {"Tip-Adapter": prior.beside(cache(every, tuned.alpha, tuned.beta))}
    if train_keys and len(groups) >= TRAINABLE:
        trained = cache(half, tuned.alpha or 50.0, tuned.beta)
        fit(trained, half, judges, seed)
        heads["Tip-Adapter-F"] = prior.beside(trained)
    return heads


def attributed(scores: Mapping[Key, Scores], generator: str, column: Column, views: Sequence[str]) -> list[str]:
    """Sections of a page: how the heads with classes attribute the new generator and all other classes.

    By (method, shots, seed); means over seeds, in brackets the smallest and the largest. Nothing without such heads.
    """
    found: dict[tuple[str, str], list[list[list[float]]]] = {}  # (draws, 2, views)
    for (method, shots, _), of_draw in scores.items():
        if classes_of(of_draw):
            shares = [attributed_shares(of_draw, generator, column, view) for view in views]
            found.setdefault((method, shots), []).append(list(map(list, zip(*shares, strict=True))))
    if not found:
        return []
    page = ["## Attribution", ABOUT_ATTRIBUTED.format(column=column, generator=generator)]
    for i, title in enumerate((f"{generator}, attributed to its {column}", "Macro recall of the other images")):
        table = [["method", "shots", *views]]
        for name, draws in found.items():
            values = np.array([draw[i] for draw in draws])
            ends = zip(values.mean(axis=0), values.min(axis=0), values.max(axis=0), strict=True)
            table.append([*name, *("n/a" if a != a else f"{a:.3f} [{low:.3f}, {high:.3f}]" for a, low, high in ends)])
        page += [f"### {title}", grid(table)]
    return page


def attributed_shares(scores: Scores, generator: str, column: Column, view: str) -> tuple[float, float]:
    """Of the unedited test rows of a view: the share of the generator's that are attributed to its class, NaN where
    the head has none for it; and the mean over classes of that share, of all others that the head has a class for."""
    classes = np.array(classes_of(scores), dtype=object)
    rows = scores.ok & (scores["split"] == "test") & (scores["edit"] == "") & (scores["view"] == view)
    true = np.where(scores.fake, scores[column], "real")
    right = classes[class_logits(scores).argmax(axis=1)] == true
    new = scores["generator"] == generator
    own = right[rows & new & np.isin(true, classes)]
    others = [right[part].mean() for name in classes if (part := rows & ~new & (true == name)).any()]
    return float(own.mean()) if len(own) else float("nan"), float(np.mean(others))


def gains(scores: Mapping[Key, Scores], base: Scores, views: Sequence[str], resamples: int, seed: int) -> list[str]:
    """Sections of a page: AUC less that of the detector as it is, of the new generator and of all others.

    By (method, shots, seed); means over seeds, with paired intervals over test groups.
    """
    found: dict[Key, dict[tuple[str, str], Difference]] = {}
    for name in dict.fromkeys(key[:2] for key in scores):
        pairs = [(table, base) for key, table in scores.items() if key[:2] == name]
        differences = compare_means(pairs, resamples, seed)
        found[name] = {(d.view, d.generator): d for d in differences if (d.set, d.metric) == (ALL, "auc")}
    page = []
    for title, which in (("New generator", NEW), ("All others", OTHERS)):
        table = [["method", "shots", *views]]
        cells = {name: [of[view, SHOWN[which][0]] for view in views] for name, of in found.items()}
        table += [[*name, *(show(d, "+") for d in of)] for name, of in cells.items()]
        words = [outcome(d) for of in cells.values() for d in of]
        counts = f"{words.count('better')} of {len(words)} surely better, {words.count('worse')} surely worse"
        page += [f"## {title}, less the detector as it is: {counts}", grid(table)]
    return page


def recovery(
    rows: Manifest,
    generator: str,
    tables: Mapping[Key, Scores],
    views: Sequence[str],
    draws: int,
    resamples: int,
    seed: int,
) -> tuple[Study, list[str], dict[str, Figure]]:
    """The study, sections and figures of a page, from `recast` scores by (method, shots, seed).

    The first table of `AS_IS` is what gains are measured from. `generator` is the new one, `draws` counts the seeds.
    """
    methods = list(dict.fromkeys(name for name, *_ in tables))
    scores = dict(sorted(tables.items(), key=lambda item: methods.index(item[0][0])))  # stable: shots stay in order
    study = Study(("method", "shots", "draw"), resamples, seed, SHOWN)
    for key, table in scores.items():
        study.add(key, table)
    mean, base = study.over_last_key(), next(table for (name, *_), table in scores.items() if name == AS_IS)
    drawn = {key: cells for key, cells in mean.cells.items() if key[1] != "0" or key[0] == AS_IS}
    lines = {"new generator": SHOWN[NEW][0], "all others": SHOWN[OTHERS][0]}
    test = int((base["split"] == "test").sum()) // len(views)
    spared = len(pool(rows, generator))
    about = ABOUT.format(generator=generator, pool=spared, rows=test, seeds=draws)
    learnt = {key: table for key, table in scores.items() if key[0] != AS_IS}
    found = gains(learnt, base, views, resamples, seed)
    figures = {"recovery": curves(drawn, views, lines, "groups of the new generator")}
    return study, [about, *mean.grids(), *found, ABOUT_GAINS], figures

"""How well maps show where: from a histogram of each image's pixels to numbers with intervals.

An image's sufficient statistics are two histograms of its map's logits, over its changed and its unchanged pixels, in
`BINS` bins: every threshold between bins, hence AUC, F1 and IoU, and every resample of groups, comes from them. F1,
IoU and areas are exact, because the frozen threshold lies between two bins; an AUC counts pixels of one bin as ties,
so it differs from that of the logits by at most half the chance that a changed and an unchanged pixel share a bin
(`auc_bin_error`).
"""

from dataclasses import dataclass

import numpy as np

from adapt.data.masks import EXTENTS, GENERATED, PART, REAL
from adapt.evaluation.attribution import Count, Rate
from adapt.evaluation.jackknife import NONE, leave_out, share_interval
from adapt.evaluation.replicates import distinct
from adapt.evaluation.scores import Scores

BINS = 256
SLOPE = 4.0  # logits from -4 to 4 take about half of the bins
SIZES = {"1 to 3 %": (0.0, 0.03), "3 to 10 %": (0.03, 0.1), "10 to 30 %": (0.1, 0.3), "over 30 %": (0.3, 1.1)}
LARGE = 0.1  # share of the area from which a region is called large
LOCAL = ("pixel_auc", "pixel_auc_pooled", "f1", "f1_best", "iou", "auc_bin_error")


@dataclass(frozen=True)
class Maps:
    """What a localiser said of the rows of `scores`, row by row. An unreadable row has empty histograms."""

    scores: Scores
    extent: np.ndarray  # (n,) int: the true one of EXTENTS
    tool: np.ndarray  # (n,) str: what made or changed the image
    extents: np.ndarray  # (n, 3) logits
    tools: np.ndarray  # (n, t) logits
    names: tuple[str, ...]  # of the t tools
    changed: np.ndarray  # (n, BINS) counts of changed pixels
    unchanged: np.ndarray  # (n, BINS) counts of the others


def bins_of(logits: np.ndarray) -> np.ndarray:
    """The bin of each logit: even steps of 1 / (1 + exp(-logit / SLOPE))."""
    return np.minimum((BINS * (0.5 + 0.5 * np.tanh(logits / (2 * SLOPE)))).astype(np.int64), BINS - 1)


def edge(k: int) -> float:
    """The logit at which bin k begins."""
    share = min(max(k / BINS, 1e-6), 1 - 1e-6)
    return float(SLOPE * np.log(share / (1 - share)))


def local_metrics(changed: np.ndarray, unchanged: np.ndarray) -> dict[str, np.ndarray]:
    """Per image (n, BINS) counts -> `pixel_auc` and `auc_bin_error` (n,), `f1` and `iou` (n, BINS): of calling
    changed what lies in bin k or above. NaN where an image has only one kind of pixels, or none."""
    p, u = changed.sum(axis=1, keepdims=True), unchanged.sum(axis=1, keepdims=True)
    found, alarms = (np.cumsum(counts[:, ::-1], axis=1)[:, ::-1].astype(np.float64) for counts in (changed, unchanged))
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = (unchanged * (found - changed / 2)).sum(axis=1) / (p * u)[:, 0]
        error = 0.5 * (changed.astype(np.float64) * unchanged).sum(axis=1) / (p * u)[:, 0]
        f1, iou = 2 * found / (found + p + alarms), found / (p + alarms)
    both = (p > 0) & (u > 0)
    out = {"pixel_auc": np.where(both[:, 0], auc, np.nan), "auc_bin_error": np.where(both[:, 0], error, np.nan)}
    return out | {"f1": np.where(p > 0, f1, np.nan), "iou": np.where(p > 0, iou, np.nan)}


def pick_bin(maps: Maps) -> int:
    """The bin from which a pixel counts as changed, chosen on the readable `val` rows; the threshold is `edge` of it.

    Best mean of two: the mean F1 over partly modified images, and the mean share of real images, processed ones too,
    that is left alone. F1 alone would call everything changed where regions are hard to find.
    """
    val = (maps.scores["split"] == "val") & maps.scores.ok
    part, real = val & (maps.extent == PART), val & (maps.extent == REAL)
    f1 = local_metrics(maps.changed[part], maps.unchanged[part])["f1"]
    f1 = f1[~np.isnan(f1).any(axis=1)]
    alone = 1 - _areas(maps.unchanged[real])
    score = sum((each.mean(axis=0) for each in (f1, alone) if len(each)), start=np.zeros(BINS))
    return int(np.argmax(score[1:])) + 1


def _areas(counts: np.ndarray) -> np.ndarray:
    """(n, BINS) counts -> share of each image's pixels in bin k or above (n, BINS); 0 of an image without pixels."""
    above = np.cumsum(counts[:, ::-1].astype(np.float64), axis=1)[:, ::-1]
    return above / np.maximum(above[:, :1], 1)


def mean_pixel_auc(maps: Maps, rows: np.ndarray) -> float:
    """Mean over these rows' images; NaN without one that has changed and unchanged pixels."""
    found = local_metrics(maps.changed[rows], maps.unchanged[rows])["pixel_auc"]
    return float(found[~np.isnan(found)].mean()) if (~np.isnan(found)).any() else float("nan")


def evaluate_maps(maps: Maps, start: int, resamples: int = 1000, seed: int = 0) -> list[Rate]:
    """All numbers of the readable test rows; `start` is the frozen bin (`pick_bin`).

    Labels: `part` and what begins so are images in which a generator changed a part (`part:seen`, `part:unseen`: by
    training; `part:large`: at least a tenth of the area; `size:RANGE`; generators by name); `edits` and `edit:NAME`
    those changed by ordinary tools; `set:NAME`, where there are several sets, all parts in one. Of these: pixel_auc,
    the mean over images of the chance that a changed pixel stands above an unchanged one of the same image;
    pixel_auc_pooled, the same over the pixels of all images; f1 and iou, means over images at the frozen threshold;
    f1_best, at the best threshold of these very rows, an upper bound. `untouched`, `processed` and `generated` are
    whole images: area, the share of their pixels called changed. Of extents and tools: recall, and of `extents` and
    `tools` their mean, balanced_accuracy.
    """
    test = np.flatnonzero((maps.scores["split"] == "test") & maps.scores.ok)
    counts, column = leave_out(maps.scores["set"][test], maps.scores["group"][test], resamples, seed)
    rates = []
    for view in distinct(maps.scores["view"][test]):
        here = maps.scores["view"][test] == view
        rows, group = test[here], column[here]
        found = local_metrics(maps.changed[rows], maps.unchanged[rows])
        values = {name: found[name] for name in ("pixel_auc", "auc_bin_error")}
        values |= {name: found[name][:, start] for name in ("f1", "iou")}
        area = _areas(maps.changed[rows] + maps.unchanged[rows])[:, start]
        for label, chosen in _parts(maps, rows).items():
            picked = np.flatnonzero(chosen & ~np.isnan(values["pixel_auc"]))
            if not len(picked):
                continue
            w, own = counts[:, group[picked]], rows[picked]
            made = {name: _mean(each[picked], w) for name, each in values.items()}
            made["pixel_auc_pooled"] = _pooled_auc(maps.changed[own], maps.unchanged[own], w)
            made["f1_best"] = _mean(found["f1"][picked], w).max(axis=1)
            rates += [_rate(view, label, name, made[name], len(picked), group[picked]) for name in LOCAL]
        for label, chosen in _whole(maps, rows).items():
            if chosen.any():
                means = _mean(area[chosen], counts[:, group[chosen]])
                rates.append(_rate(view, label, "area", means, int(chosen.sum()), group[chosen]))
        rates += _recalls(view, maps, rows, counts[:, group], group)
    return rates


def _parts(maps: Maps, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Which of the partly modified rows each label means."""
    scores, part = maps.scores, maps.extent[rows] == PART
    ai, share = part & scores.fake[rows], _share(maps, rows)
    edits, generators, seen = scores["edit"][rows], scores["generator"][rows], scores["seen"][rows]
    labels = {"part": ai, "part:large": ai & (share >= LARGE)}
    for name, met in (("seen", "train"), ("unseen", "")):
        labels |= {f"part:{name}": ai & (seen == met), f"part:{name}:large": ai & (seen == met) & (share >= LARGE)}
    labels |= {f"size:{name}": ai & (low <= share) & (share < high) for name, (low, high) in SIZES.items()}
    labels |= {name: ai & (generators == name) for name in distinct(generators[ai])}
    changed = part & ~ai
    return (
        labels | {"edits": changed} | {f"edit:{name}": changed & (edits == name) for name in distinct(edits[changed])}
    )


def _share(maps: Maps, rows: np.ndarray) -> np.ndarray:
    """Of the area of each image that was changed."""
    changed, unchanged = (counts[rows].sum(axis=1) for counts in (maps.changed, maps.unchanged))
    return changed / np.maximum(changed + unchanged, 1)


def _whole(maps: Maps, rows: np.ndarray) -> dict[str, np.ndarray]:
    real, processed = maps.extent[rows] == REAL, maps.scores["edit"][rows] != ""
    return {"untouched": real & ~processed, "processed": real & processed, "generated": maps.extent[rows] == GENERATED}


def _recalls(view: str, maps: Maps, rows: np.ndarray, w: np.ndarray, group: np.ndarray) -> list[Rate]:
    """Recall of every extent and tool that the rows hold, and the mean of each kind. Tools that training lacked have
    no recall, for no answer is right; tools are asked only where something was made or changed, and where not."""
    out = []
    extent = np.array(EXTENTS, dtype=object)
    kinds = {
        "extents": (extent[maps.extent[rows]], extent[maps.extents[rows].argmax(axis=1)], EXTENTS),
        "tools": (maps.tool[rows], np.array(maps.names, dtype=object)[maps.tools[rows].argmax(axis=1)], maps.names),
    }
    for kind, (true, called, names) in kinds.items():
        recalls = []
        for name in names:
            own = true == name
            if own.any():
                recalls.append(_mean((called[own] == name).astype(float), w[:, own]))
                out.append(_rate(view, f"{kind}:{name}", "recall", recalls[-1], int(own.sum()), group[own]))
        known = int(np.isin(true, names).sum())
        out.append(_rate(view, kind, "balanced_accuracy", np.mean(recalls, axis=0), known, group))
    return out


def confusion(maps: Maps) -> tuple[list[Count], list[Count]]:
    """Test rows of each view by true and called extent; by true and called tool, also tools that training lacked."""
    out: tuple[list[Count], list[Count]] = ([], [])
    for view in distinct(maps.scores["view"]):
        rows = np.flatnonzero((maps.scores["split"] == "test") & maps.scores.ok & (maps.scores["view"] == view))
        extent, tools = np.array(EXTENTS, dtype=object)[maps.extent[rows]], maps.tool[rows]
        both = ((extent, maps.extents, EXTENTS), (tools, maps.tools, maps.names))
        for counts, (true, logits, names) in zip(out, both, strict=True):
            called = logits[rows].argmax(axis=1)
            for name in (*names, *sorted(set(true) - set(names))):
                found = np.bincount(called[true == name], minlength=len(names)).tolist()
                n = sum(found)
                pairs = zip(names, found, strict=True)
                counts += [Count(view, name, other, k, k / n if n else float("nan")) for other, k in pairs]
    return out


def _pooled_auc(changed: np.ndarray, unchanged: np.ndarray, w: np.ndarray) -> np.ndarray:
    p, u = (w.astype(np.float64) @ counts.astype(np.float64) for counts in (changed, unchanged))
    above = np.cumsum(p[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(invalid="ignore"):
        return (u * (above - p / 2)).sum(axis=1) / (p.sum(axis=1) * u.sum(axis=1))


def _mean(values: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Means of values (n,) or (n, k) under each row of the weights (r, n)."""
    w = w.astype(np.float64)
    with np.errstate(invalid="ignore"):
        total = w.sum(axis=1)
        return (w @ values) / (total if values.ndim == 1 else total[:, None])


def _rate(view: str, label: str, metric: str, values: np.ndarray, n: int, groups: np.ndarray) -> Rate:
    low, high = NONE if metric in ("f1_best", "auc_bin_error") else share_interval(values, len(np.unique(groups)))
    skipped = 0 if np.isnan(values[0]) else int(np.isnan(values).sum())
    return Rate(view, label, metric, float(values[0]), low, high, n, skipped)

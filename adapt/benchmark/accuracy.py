"""What bf16 costs in accuracy: AUC of a probe on bf16 features against fp32, for every view and generator."""

import numpy as np

from adapt.benchmark.preprocessing import VIEWS
from adapt.benchmark.timing import Ratio, Settings
from adapt.data.manifest import Manifest
from adapt.embedded import read_manifests
from adapt.evaluation.replicates import Key, replicate
from adapt.features.cache import Features, extract
from adapt.models.heads.probes import Probe
from adapt.models.towers.backbones import Precision, load_backbone
from adapt.training.on_features import fit_on_features, score_features

LIMIT = 0.001  # of |AUC (bf16) - AUC (fp32)|


def measure(settings: Settings) -> list[Ratio]:
    """The backbone must have trained weights: of random ones there is no accuracy to lose."""
    rows = read_manifests(settings.manifest)
    if settings.small:
        rows = rows.select(np.flatnonzero(np.isin(rows["group"], _some(rows))))
    features = {"fp32": _features(rows, "fp32", settings), "bf16": _features(rows, "bf16", settings)}
    heads = {name: fit_on_features(found, "logistic", "binary", VIEWS, 0)[0] for name, found in features.items()}
    fp32 = _aucs(features["fp32"], heads["fp32"])
    ways = {"bf16, its own probe": heads["bf16"], "bf16, the probe of fp32": heads["fp32"]}
    name, data = settings.trained.partition("@")[0], " ".join(map(_named, settings.manifest))
    case = f"{name}, {data}, {len(fp32)} views x generators"
    return [_against(case, way, fp32, _aucs(features["bf16"], head)) for way, head in ways.items()]


def _against(case: str, way: str, fp32: dict[Key, float], found: dict[Key, float]) -> Ratio:
    off = {key: abs(found[key] - fp32[key]) for key in fp32}
    worst = max(off, key=off.__getitem__)
    facts: dict[str, float | str] = {
        "largest change of AUC": round(off[worst], 6),
        "its view and generator": " ".join(worst[1:]),
        "its AUC in fp32": round(fp32[worst], 4),
        "mean change": round(float(np.mean(list(off.values()))), 6),
        "cells above the limit": sum(value > LIMIT for value in off.values()),
    }
    cost = (max(off[worst], 1e-9),)  # equal ones would have no ratio
    return Ratio("accuracy", case, way, f"a change of AUC by {LIMIT:g}", cost, (LIMIT,), "AUC", goal=1, facts=facts)


def _features(rows: Manifest, precision: Precision, settings: Settings) -> Features:
    encoder = load_backbone(settings.trained, geometry=settings.geometry).to(settings.device).for_features(precision)
    return extract(encoder, rows, VIEWS, cache=settings.folder / "accuracy", workers=1)


def _aucs(features: Features, head: Probe) -> dict[Key, float]:
    test = np.flatnonzero(features.manifest["split"] == "test")
    scores = score_features(features, test, VIEWS, head)
    cells = replicate(scores, float("nan"), 0, 0)
    own = set(scores["generator"]) - {"real"}
    return {key: float(cell.values["auc"][0]) for key, cell in cells.items() if key[2] in own and cell.n_real}


def _some(rows: Manifest) -> list[str]:
    groups = {split: list(dict.fromkeys(rows["group"][rows["split"] == split])) for split in ("train", "val", "test")}
    return [group for found in groups.values() for group in found[:6]]


def _named(manifest: str) -> str:
    """A manifest by its folder's name: pages hold no paths of a machine."""
    return "/".join(manifest.split("/")[-2:])

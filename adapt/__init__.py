"""Adapt vision foundation models to tell camera photographs from AI-generated images.

    import adapt

    detector = adapt.load_detector("results/runs/lora/detector")
    rows = detector.predict(["photos/"])          # one dict per image; pandas.DataFrame(rows) makes a frame
    cells = adapt.evaluate("scores.csv")          # metrics with 95 % intervals, of any detector's scores
    manifest = adapt.read_manifest("data.csv")
    backbone = adapt.load_backbone("open_clip:ViT-L-14@datacomp_xl_s13b_b90k")
    features = adapt.extract_features(backbone, manifest, ["none", "qf40"])

These names are the public ones. Each is imported when it is first used, so that `import adapt` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapt.detector.detector import load_detector
    from adapt.embedded import read_manifest
    from adapt.evaluation.foreign import evaluate
    from adapt.features.cache import extract as extract_features
    from adapt.models.towers.backbones import load_backbone

__version__ = "0.1.0"
__all__ = ["evaluate", "extract_features", "load_backbone", "load_detector", "read_manifest"]
PLACES = {
    "evaluate": ("adapt.evaluation.foreign", "evaluate"),
    "extract_features": ("adapt.features.cache", "extract"),
    "load_backbone": ("adapt.models.towers.backbones", "load_backbone"),
    "load_detector": ("adapt.detector.detector", "load_detector"),
    "read_manifest": ("adapt.embedded", "read_manifest"),
}


def __getattr__(name: str) -> object:
    if name not in PLACES:
        raise AttributeError(f"module 'adapt' has no attribute {name!r}")
    module, attribute = PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

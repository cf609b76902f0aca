"""Numbers of maps as long CSV files and as sections of the page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from adapt.evaluation.attribution import Count, Rate
from adapt.evaluation.replicates import distinct
from adapt.number_table import write_rows
from adapt.pages.tables import grid, show

ABOUT = (
    "Partly modified images: a region of a fake in its photograph. Pixel AUC: the chance that a changed pixel stands "
    "above an unchanged one of the same image (0.5 is guessing), mean over images; pooled: over the pixels of all "
    "images on one scale. F1 and IoU: means over images, of the pixels called changed at the one threshold frozen on "
    "validation images; best F1: at the best threshold of the test rows themselves, an upper bound. Pixel AUCs come "
    "from 256 bins of each image's logits; pixels of one bin count as ties, so an AUC is off by at most {error:.4f} "
    "(the largest mean of half the chance that a changed and an unchanged pixel share a bin). In long form: "
    "localization.csv, confusion-extents.csv, confusion-tools.csv."
)
ABOUT_AREAS = (
    "Share of an image's pixels called changed: false alarms where nothing was, recall where all was generated."
)
ABOUT_IMAGES = (
    "The decisions over whole images, from the pooled map: three extents, and the tool among {tools}. Recall of each, "
    "and their mean (balanced accuracy; guessing reaches 1 / number of classes). A tool that training lacked has no "
    "recall; its row below shows what it is taken for."
)
REGIONS = {"part:large": "regions of at least a tenth of the area", "part": "regions of any size"}
METRICS = {"pixel_auc": "pixel AUC", "pixel_auc_pooled": "pooled", "f1": "F1", "f1_best": "best F1", "iou": "IoU"}
DECISIONS = {"recall": "(recall)", "balanced_accuracy": "(mean recall: balanced accuracy)"}


def write_map_tables(rates: Sequence[Rate], extents: Sequence[Count], tools: Sequence[Count], folder: Path) -> None:
    """localization.csv, confusion-extents.csv and confusion-tools.csv; numbers in full, NaN as n/a."""
    write_rows(folder / "localization.csv", ("view", "label", "metric", "value", "low", "high", "n"), rates)
    for name, counts in (("extents", extents), ("tools", tools)):
        write_rows(folder / f"confusion-{name}.csv", ("view", "true", "predicted", "count", "share"), counts)


def map_sections(rates: Sequence[Rate], extents: Sequence[Count], tools: Sequence[Count]) -> list[str]:
    """Sections of Markdown: where, by region and tool; areas; extents and tools, and what they are confused with."""
    at = {(rate.view, rate.label, rate.metric): rate for rate in rates}
    views, labels = distinct(rate.view for rate in rates), distinct(r.label for r in rates if r.metric == "pixel_auc")
    error = max((rate.value for rate in rates if rate.metric == "auc_bin_error"), default=0.0)
    page = ["## Where: pixel AUC", _by_view(at, labels, views, "pixel_auc"), ABOUT.format(error=error)]
    for label, what in REGIONS.items():
        rows = [[v, *(show(at[v, label, m]) for m in METRICS)] for v in views if (v, label, "f1") in at]
        page += [f"## Where: {what}", grid([["view", *METRICS.values()], *rows])] if rows else []
    areas = distinct(rate.label for rate in rates if rate.metric == "area")
    page += ["## Area called changed in whole images", _by_view(at, areas, views, "area"), ABOUT_AREAS]
    rows = []
    for label, metric in dict.fromkeys((r.label, r.metric) for r in rates if r.metric in DECISIONS):
        found = [at.get((view, label, metric)) for view in views]
        rows.append([f"{label} {DECISIONS[metric]}", *map(show, found), str(max(rate.n for rate in found if rate))])
    names = ", ".join(distinct(count.predicted for count in tools))
    page += ["## What the image is", grid([["decision", *views, "n"], *rows]), ABOUT_IMAGES.format(tools=names)]
    for view in views:
        for kind, counts in (("Extents", extents), ("Tools", tools)):
            page += [f"## {kind} under {view}: what each true one (row) is called", _shares(counts, view)]
    return page


def _by_view(at: Mapping[tuple[str, str, str], Rate], labels: Sequence[str], views: Sequence[str], metric: str) -> str:
    rows = []
    for label in labels:
        found = [at.get((view, label, metric)) for view in views]
        rows.append([label, *map(show, found), str(max(rate.n for rate in found if rate))])
    return grid([["images", *views, "n"], *rows])


def _shares(counts: Sequence[Count], view: str) -> str:
    own = [count for count in counts if count.view == view and count.share == count.share]
    called = distinct(count.predicted for count in own)
    shares = {(count.true, count.predicted): f"{count.share:.2f}" for count in own}
    rows = [[true, *(shares[true, name] for name in called)] for true in distinct(count.true for count in own)]
    return grid([["true", *called], *rows])

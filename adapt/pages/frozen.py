"""The parts of a page about a saved detector on another set: what is frozen, and what cannot be computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapt.evaluation.metrics import Cell, Difference, index
from adapt.evaluation.replicates import ALL
from adapt.pages.tables import generators_of, grid, name_of, show, views_of
from adapt.text import escape_markdown

SHOWN = {  # title: generator and metric
    "AUC, seen generators": ("mean:seen", "auc"),
    "AUC, unseen generators": ("mean:unseen", "auc"),
    "AUC, all generators": ("mean:all", "auc"),
    "Balanced accuracy, all generators": ("mean:all", "balanced_accuracy"),
    "False alarms": ("real", "false_alarm"),
    "False alarms on processed reals": ("edit:all", "false_alarm"),
}
ABOUT_CALLED = (
    "Share of the readable images that reach the threshold: false alarms of real images, recall of fakes. This needs "
    "no image of the other class."
)
ABOUT_DIFFERENCES = (
    "Paired by group, each detector at its own threshold; p is two-sided, not corrected for their number. "
    "Seen: generators that one or more of these detectors were trained on; unseen: those that none of them met, n/a "
    "where one of them does not say what it was trained on. The intervals count other groups like these, not other "
    "trainings: of one training each, no method is better."
)


@dataclass(frozen=True)
class Frozen:
    """A saved detector, as it stands on a page."""

    name: str
    place: str  # as it was given
    threshold: float
    given: bool  # the threshold is one of --threshold
    published: bool  # it is the authors', if it was not given
    trained_on: tuple[str, ...]  # generators; empty: nobody says
    told: bool  # they are those of --trained_on
    data: str  # what it says of its training images


def frozen_section(one: Frozen, cells: Sequence[Cell], counts: Mapping[str, int]) -> str:
    """What was frozen, which generators count as seen, and why some numbers are n/a; `counts`: rows of each split."""
    here = {name: seen for (_, name), seen in generators_of(cells).items()}
    other = " and ".join(f"{counts[split]} {split}" for split in ("train", "val"))
    lines = [f"Detector {one.place}."]
    if one.threshold != one.threshold:
        lines.append("It has no threshold: what needs one is n/a. `--threshold LOGIT` gives one.")
    else:
        frozen = "as published, at p = 0.5" if one.published else "frozen when the detector was trained"
        rates = "" if one.published else "Calibration and error rates are those of its training, too. "
        lines.append(
            f"Threshold {one.threshold:.4f}, {'given by --threshold' if one.given else frozen}. {rates}"
            f"Nothing was fitted on this manifest: its {other} rows were left alone."
        )
    if one.trained_on:
        seen, chosen, new = (sorted(n for n, met in here.items() if met == kind) for kind in ("train", "val", ""))
        lines.append(
            f"By {'--trained_on' if one.told else 'name'}, it was trained on {', '.join(seen) or 'none'} of the "
            "generators here"
            + (f", selected on {', '.join(chosen)}" if chosen else "")
            + f", and never met {', '.join(new) or 'none'}. It was trained on: {', '.join(one.trained_on)}. Another "
            "name for one of these would count as unseen."
        )
    else:
        lines.append(
            "It does not say what it was trained on (no `trained_on`): no generator here counts as seen or as unseen, "
            f"and what is said of those is n/a; `--trained_on {one.name}=GENERATOR,GENERATOR` says it."
        )
    if one.data:
        lines.append(f"Its training data: {one.data}. Whether images of this set are among them is not checked.")
    lines += why_not(cells)
    lines.append(
        "Metadata control: n/a, for it is fitted on training rows, which the detector does not bring. `adapt audit` "
        "says whether format, size or compression of this set give the label away."
    )
    return "\n\n".join(["## A frozen detector", "\n".join(f"- {escape_code(line)}" for line in lines)])


def why_not(cells: Sequence[Cell]) -> list[str]:
    """A line for what these test rows cannot say as a whole: without fakes, without photographs."""
    at, view = index(cells), views_of(cells)[0]
    lines = []
    if not generators_of(cells):
        lines.append(
            "The test rows hold no fake: AUC, balanced accuracy and recall are n/a; false alarms are measured."
        )
    elif not at[ALL, view, "real", "false_alarm"].n_real:
        lines.append(
            "No readable unedited photograph is among the test rows: AUC, balanced accuracy and false alarms are n/a, "
            "recall is not."
        )
    return lines


def called_section(cells: Sequence[Cell]) -> str:
    """Shares called fake: photographs, each kind of processing, each generator."""
    at, views, generators = index(cells), views_of(cells), generators_of(cells)
    rows = [["called fake", *views, "images"]]
    edits = sorted({c.generator for c in cells if c.set == ALL and c.generator.startswith("edit:")} - {"edit:all"})
    for label in ("real", *edits):
        found = [at.get((ALL, view, label, "false_alarm")) for view in views]
        first = next((cell for cell in found if cell), None)
        if first is not None and first.n_real:
            name = label if label == "real" else f"real, {label.removeprefix('edit:')}"
            rows.append([name, *map(show, found), str(first.n_real)])
    for name, generator in generators:
        found = [at.get((name, view, generator, "recall")) for view in views]
        first = next(cell for cell in found if cell)
        rows.append([name_of((name, generator), list(generators)), *map(show, found), str(first.n_fake)])
    return "\n\n".join(["## Called fake at the threshold", grid(rows), ABOUT_CALLED])


def side_by_side_sections(
    detectors: Sequence[Frozen],
    cells_of: Mapping[str, Sequence[Cell]],
    differences: Mapping[str, Sequence[Difference]],
) -> list[str]:
    """A row for each detector, then each of the others minus the first; `differences` by its name."""
    first = detectors[0].name
    rows = [["detector", "folder", "threshold", "trained on"]]
    for one in detectors:
        threshold = f"{one.threshold:.4f}" if one.threshold == one.threshold else "n/a"
        rows.append([one.name, one.place, threshold, ", ".join(one.trained_on) or "it does not say"])
    page = ["## Detectors", grid(rows), *(f"- {line}" for line in why_not(cells_of[first]))]
    views = views_of(cells_of[first])
    for title, place in SHOWN.items():
        found = {name: index(cells) for name, cells in cells_of.items()}
        rows = [["detector", *views]]
        rows += [[name, *(show(at.get((ALL, view, *place))) for view in views)] for name, at in found.items()]
        if any(word != "n/a" for row in rows[1:] for word in row[1:]):
            page += [f"## {title}", grid(rows)]
    for name, found_differences in differences.items():
        places = {(d.set, d.view, d.generator, d.metric): d for d in found_differences}
        rows = [["view", "what", name, first, "difference", "p"]]
        kinds = {title: (ALL, *place) for title, place in SHOWN.items()}
        alone = {k: None for k in places if k[3] == "recall" and k[0] != ALL and places[k].n_real == 0}
        kinds |= {f"Recall, {of}": (of_set, of, metric) for of_set, _, of, metric in alone}
        for view in views:
            for title, (of_set, generator, metric) in kinds.items():
                d = places.get((of_set, view, generator, metric))
                if d is not None and d.value == d.value:
                    p = f"{d.p:.3f}" if d.p == d.p else "n/a"
                    rows.append([view, title, f"{d.a:.3f}", f"{d.b:.3f}", show(d, "+"), p])
        page += [f"## {escape_markdown(name)} minus {escape_markdown(first)}", grid(rows), ABOUT_DIFFERENCES]
    return page


def escape_code(line: str) -> str:
    """A line of a page in which `code` stays code and everything else is text."""
    parts = line.split("`")
    return "`".join(part if i % 2 else escape_markdown(part) for i, part in enumerate(parts))

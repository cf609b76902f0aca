"""Many scores side by side: one page for a recipe that compares heads, layers, qualities or numbers of shots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector, Saved
from adapt.detector.model_card import complete_card, licence
from adapt.evaluation.attribution import Attribution, Column, attribute
from adapt.evaluation.metrics import Cell, Difference, compare_means, evaluate, index
from adapt.evaluation.open_set import classes_of
from adapt.evaluation.replicates import ALL
from adapt.evaluation.scores import Scores
from adapt.number_table import write_table
from adapt.pages.drawing import save_png
from adapt.pages.figures import confusions
from adapt.pages.markdown_page import picture, write_page
from adapt.pages.tables import (
    COLUMNS,
    HOW_TO_READ,
    THRESHOLDS,
    attribution_sections,
    grid,
    show,
    views_of,
    write_attribution,
)
from adapt.training.report import (
    GIVEN,
    describe,
    frozen_at,
    places,
    save_detector,
    selected_on,
    shown,
    trained_on,
    validation_score,
)
from adapt.training.run import Run, RunRecord
from adapt.training.scored import (
    Kept,
    Key,
    Scored,
    clear_scored,
    finish_behind,
    finishing,
    kept_of,
    read_scored,
    write_scored,
)

KEPT = ("auc", "balanced_accuracy", "recall", "false_alarm", "real_first", "pair_ranking", "threshold", "unreadable")
OF_ONE = ("training_minutes", "trainable_parameters", *GIVEN)  # mean nothing where there are many
CONTRASTED = {
    "AUC, seen generators": ("mean:seen", "auc"),
    "AUC, unseen generators": ("mean:unseen", "auc"),
    "real first in its group": ("within:all", "real_first"),
    "pair ranking in groups": ("within:all", "pair_ranking"),
    "false alarms on processed reals": ("edit:all", "false_alarm"),
}
SHOWN = {
    "AUC, seen generators": ("mean:seen", "auc"),
    "AUC, unseen generators": ("mean:unseen", "auc"),
    "Balanced accuracy, all generators": ("mean:all", "balanced_accuracy"),
    "False alarms": ("real", "false_alarm"),
    "False alarms on processed reals": ("edit:all", "false_alarm"),
    "Real first in its group": ("within:all", "real_first"),
}


@dataclass(frozen=True)
class Best:
    """The head of a comparison that can be kept as a detector."""

    key: Key
    head: nn.Module
    score: float  # of its validation rows: see `validation_score`


class Heads(Kept):
    """The scores of many heads, and which of them its validation rows like most."""

    best: Best | None = None

    def add(self, key: Key, scores: Scores, head: nn.Module | None = None) -> None:
        """Write the scores. Of those with a `head` the best on validation rows is kept, the first of equals."""
        super().add(key, scores)
        if head is not None:
            score = validation_score(scores.select(scores["split"] == "val"))
            if self.best is None or score > self.best.score:
                self.best = Best(key, head, score)


class Study:
    """Named scores and what they say. `keys` names the parts of a name; rows keep the order in which they came.

    `classes_are` says what the class logits of scores are of, where they have some: these are attributed, too.
    """

    def __init__(
        self,
        keys: Sequence[str],
        resamples: int,
        seed: int,
        shown: Mapping[str, tuple[str, str]] = SHOWN,
        classes_are: Column | None = None,
    ) -> None:
        self.keys, self.resamples, self.seed, self.shown = tuple(keys), resamples, seed, shown
        self.classes_are = classes_are
        self.cells: dict[Key, list[Cell]] = {}
        self.attributed: dict[Key, Attribution] = {}

    @classmethod
    def of(cls, tables: Kept, resamples: int, seed: int, classes_are: Column | None = None) -> "Study":
        """Every table, in the order in which they came."""
        study = cls(tables.names, resamples, seed, classes_are=classes_are)
        for key, scores in tables.items():
            study.add(key, scores)
        return study

    def add(self, key: Key, scores: Scores) -> None:
        """Evaluate one table of scores; its threshold comes from its own validation rows."""
        self.cells[key] = evaluate(scores, self.resamples, self.seed)
        if self.classes_are and classes_of(scores):
            self.attributed[key] = attribute(scores, self.resamples, self.seed, self.classes_are)

    def under(self, first: Key) -> "Study":
        """The rows whose names begin so, without this beginning."""
        part = Study(self.keys[len(first) :], self.resamples, self.seed, self.shown)
        part.cells = {key[len(first) :]: cells for key, cells in self.cells.items() if key[: len(first)] == first}
        return part

    def at(self, key: Key, view: str, shown: str) -> Cell | None:
        """The cell that a table of `shown` has at one row and view."""
        return index(self.cells[key]).get((ALL, view, *self.shown[shown]))

    def grids(self, level: str = "##") -> list[str]:
        """One Markdown table for each of `shown`: a row for each name, a column for each view."""
        views = list(dict.fromkeys(view for cells in self.cells.values() for view in views_of(cells)))
        page = []
        for title in self.shown:
            rows = [[*self.keys, *views]]
            for key, cells in self.cells.items():
                found = index(cells)
                rows.append([*key, *(show(found.get((ALL, view, *self.shown[title]))) for view in views)])
            if any(word != "n/a" for row in rows[1:] for word in row[len(self.keys) :]):
                page += [f"{level} {title}", grid(rows)]
        return page

    def attribution(self) -> list[str]:
        """A table of macro recall, a row for each name whose head has classes; nothing where none has."""
        views = list(dict.fromkeys(rate.view for found in self.attributed.values() for rate in found.rates))
        rows = [[*self.keys, *views]]
        for key, found in self.attributed.items():
            at = {rate.view: rate for rate in found.rates if (rate.label, rate.metric) == (ALL, "macro_recall")}
            rows.append([*key, *(show(at.get(view)) for view in views)])
        return [f"## Macro recall, {self.classes_are} classes", grid(rows)] if self.attributed else []

    def over_last_key(self) -> "Study":
        """Means over the last key (draws, seeds); instead of intervals the smallest and the largest value."""
        mean = Study(self.keys[:-1], self.resamples, self.seed, self.shown)
        for name in dict.fromkeys(key[:-1] for key in self.cells):
            found = [index(cells) for key, cells in self.cells.items() if key[:-1] == name]
            for place, cell in found[0].items():
                values = [cells[place].value for cells in found if place in cells]
                spread = replace(cell, value=float(np.mean(values)), low=min(values), high=max(values))
                mean.cells.setdefault(name, []).append(spread)
        return mean

    def write_csv(self, path: Path) -> None:
        """The metrics of `KEPT`, of every row and generator, in long form and in full: `grids` can be made of them."""
        kept = ((key, cell) for key, cells in self.cells.items() for cell in cells if cell.metric in KEPT)
        rows = ([*key, *(getattr(cell, column) for column in COLUMNS)] for key, cell in kept)
        write_table(path, [*self.keys, *COLUMNS], rows)


def contrast(names: tuple[str, str], pairs: Sequence[tuple[Scores, Scores]], resamples: int, seed: int) -> list[str]:
    """Heading and table of a page: the first detector minus the second, means over pairs (of training seeds).

    `better` and `worse` are said only where there are several training seeds and the interval, over groups and seeds,
    excludes 0; the smallest and the largest difference of a single pair stand beside it.
    """
    found = compare_means(pairs, resamples, seed)
    single = [{_place(d): d.value for d in compare_means([pair], 0, seed)} for pair in pairs]
    rows = [["view", "what", *names, "difference", "p", "single seeds", "outcome"]]
    places = {_place(d): d for d in found}
    for view in dict.fromkeys(d.view for d in found):
        for title, (generator, metric) in CONTRASTED.items():
            if (d := places.get((ALL, view, generator, metric))) is None or d.value != d.value:
                continue
            each = [values[_place(d)] for values in single]
            more, less = ("worse", "better") if metric == "false_alarm" else ("better", "worse")
            outcome = more if d.low > 0 else less if d.high < 0 else "not separated"
            if d.low != d.low:
                outcome = "n/a"  # too few groups
            elif len(pairs) == 1:
                outcome = "one seed"
            spread = f"{min(each):+.3f} to {max(each):+.3f}"
            rows.append([view, title, f"{d.a:.3f}", f"{d.b:.3f}", show(d, "+"), f"{d.p:.3f}", spread, outcome])
    return [f"## {names[0]} minus {names[1]}", grid(rows)]


def _place(d: Difference) -> tuple[str, str, str, str]:
    return d.set, d.view, d.generator, d.metric


# the study, sections of Markdown and figures of a page, made of the tables of scores. It runs behind the scores and
# again where it failed, so it may train, encode and score nothing.
Page = Callable[[Kept], tuple[Study, Sequence[str], Mapping[str, Figure]]]


def finish(
    run: Run,
    rows: Manifest,
    tables: Kept,
    page: Page,
    detector: Detector | None = None,
    train_views: Sequence[str] = (),
    **facts: object,
) -> None:
    """Write metrics.csv, table.md, figures/NAME.png and the record into the run's folder, and show the first ones.

    `page` makes them of the `tables`; the recipe gives the same to `finish_compared`. A single table stays as
    scores.parquet, with what its training cost. `detector` is made of the head of `Heads.best`: it is frozen on the
    scores of that head and saved, and scores.parquet holds these; its card names the `train_views`.
    """
    best = tables.best if isinstance(tables, Heads) and detector is not None else None
    if best is not None:
        facts["detector"] = ", ".join(map(" ".join, zip(tables.names, best.key, strict=True)))
    record = run.record(**facts, data=describe(rows))
    if detector is not None and best is not None:
        scores = tables[best.key]
        detector.freeze(scores)
        scores.write(run.folder / "scores.parquet")
        of_detector = record | {"trained_on": trained_on(rows)} | selected_on(rows)
        save_detector(run, detector, of_detector, facts, train_views)
        record |= frozen_at(detector)
    if len(tables) == 1:
        next(iter(tables.values())).write(run.folder / "scores.parquet")
    else:
        record = {name: value for name, value in record.items() if name not in OF_ONE}
    mark = Scored(
        cast("RunRecord", record), run.step_number, best=best.key if best else None,
        names=tables.names, keys=list(tables), notes=tables.notes,
    )  # fmt: skip
    write_scored(run.folder, mark)
    with finishing(run):
        _write_page(run, rows, page)
    run.end()


def finish_compared(run: Run, rows: Manifest, page: Page, **identity: object) -> bool:
    """Finish a comparison of these rows that has scored already: True if there is nothing else to do.

    `page` is that of `finish`. Refuses a directory that holds the scores of other settings or rows.
    """
    return finish_behind(run, rows, partial(_write_page, run, rows, page), **identity)


def _write_page(run: Run, rows: Manifest, page: Page) -> None:
    """The page, figures and card, from what is on the disk."""
    mark = read_scored(run.folder)
    assert mark is not None
    study, sections, figures = page(kept_of(run.folder, mark))
    study.write_csv(run.folder / "metrics.csv")
    about = mark.best or (mark.keys[0] if len(mark.keys) == 1 else ())
    if found := study.attributed.get(tuple(about)):
        write_attribution(run.folder, found)
        sections = [*sections, f"The sections below are about {', '.join(about)}.", *attribution_sections(found)]
        figures = {**figures, **confusions(found)}
    if mark.best is not None:
        name = Saved.read(run.folder / "detector").name
        complete_card(run.folder / "detector", study.cells[mark.best], (), licence(name))
    for name, figure in figures.items():
        save_png(figure, run.folder / "figures" / f"{name}.png")
        with run.track.writing() as writer:
            writer.add_figure(name, figure, 0)
    if mark.best is not None:
        record = mark.record
        kept = f"In detector/: {record['detector']}. Its threshold: logit {record['threshold']:.4g}, "
        sections = [*sections, "## Detector", f"{kept}{record['threshold_from']}."]
    parts = [HOW_TO_READ.format(threshold=THRESHOLDS["each"]), *sections, *map(picture, figures)]
    write_page(run.folder / "table.md", "Results", parts, shown(mark.record), embedded="embedded" in rows["set"])
    run.write_record(mark.record)
    clear_scored(run.folder)
    run.say("\n" + "\n\n".join(sections[:6]) + "\n\n" + places(run))

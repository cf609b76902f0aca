"""The ablation as one HTML page: its tables, figures, confusions, worst mistakes in pictures, and how it was made."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from adapt.data.images import Unreadable, read_image
from adapt.data.manifest import Manifest
from adapt.data.views import parse_view
from adapt.evaluation.attribution import Attribution, Column, Count, attribute
from adapt.evaluation.open_set import classes_of
from adapt.evaluation.replicates import ALL, distinct
from adapt.evaluation.scores import UNKNOWN, Scores
from adapt.evaluation.side_by_side import MEAN, Row
from adapt.evaluation.thresholds import pick_threshold
from adapt.pages import leaderboard
from adapt.pages.drawing import png
from adapt.pages.figures import confusion, reliabilities
from adapt.pages.html import Commands, Facts, Gallery, Heading, Part, Picture, Table, TableCell, Text
from adapt.pages.html import page as html_page
from adapt.pages.markdown_page import EMBEDDED, without_marks
from adapt.pages.thumbnails import placeholder, thumbnail
from adapt.sweeps.ablation_page import Page
from adapt.text import plain
from adapt.training.run import RunRecord

BEST, MISTAKES = 3, 6  # methods whose mistakes are shown; pictures of each kind, method and view
KINDS = {  # of test images: real or not, where the generator was met, processed or not
    "reals": (False, "train", False),
    "processed reals": (False, "train", True),
    "seen fakes": (True, "train", False),
    "fakes of selection": (True, "val", False),
    "unseen fakes": (True, "", False),
    "fakes, seen or not": (True, UNKNOWN, False),
}
ALT = {
    "generators": "AUC of every method and generator, as in the table above",
    "auc_per_view": "lines of the AUC of each method over the views, with bands",
    "cost": "parameters, minutes and memory of each method against its AUC",
}
ABOUT_RELIABILITY = """\
On the diagonal a probability is what it says: of images with p_fake near 0.8, a share of 0.8 are fakes, each class
given half of the weight. Readable unedited test images in 15 bins, all seeds together."""
ABOUT_CONFUSION = """\
What each detector calls fake at its one threshold, frozen on validation images: share and number of readable test
images of a kind, all seeds together. Of reals these are false alarms; of fakes the rest are misses."""
ABOUT_FAMILIES = """\
Heads with classes of fakes, all seeds together: an image belongs to the class with the largest logit. Classes that
training lacked and processed photographs stand below a line. The first and the last of the views."""
ABOUT_MISTAKES = """\
Of the {n} methods with the best AUC on {kind} generators (mean over views), under the first and the last view: the
photographs that look most like fakes and the fakes that look most like photographs, by the distance of a logit from
the frozen threshold, mean over seeds, one image a scene. Pictures show what the view left; nothing was chosen by them.
"""
NOT_SHOWN = "Pictures are left out, as was asked (--no_pictures)."
NO_IMAGES = "The manifest is gone or has changed since these runs: their images are not shown."


def report(page: Page, figures: Mapping[str, bytes], images: Manifest | None, pictures: bool = True) -> str:
    """The page; `figures` are PNG by name, `images` the manifest of the runs, None if there is none any more.

    Without `pictures` mistakes are named only.
    """
    return html_page("Ablation", list(Report(page, figures, images, pictures).parts()))


class Report:
    """What the sections share: the finished runs' scores, read once."""

    def __init__(self, page: Page, figures: Mapping[str, bytes], images: Manifest | None, pictures: bool) -> None:
        self.page, self.figures, self.images, self.pictures = page, figures, images, pictures
        self.at = leaderboard.by_row(page.numbers)
        self.scores = {  # not of controls: their tables of numbers are of permuted labels, their scores are not
            row: [Scores.read(run / "scores.parquet") for run in of]
            for row, of in page.runs.items()
            if not self.control(row)
        }
        self.elsewhere = {one.row: one.threshold for one in page.detectors}
        self.cuts = {
            row: [self.elsewhere.get(row, pick_threshold(scores)) for scores in of] for row, of in self.scores.items()
        }
        self.views = leaderboard.views_of(page.numbers)

    def parts(self) -> Iterator[Part]:
        """The whole page from top to bottom."""
        yield from self.warnings()
        pictures = {"Methods": ["auc_per_view", "cost"], "AUC per generator, mean over views": ["generators"]}
        for table in self.page.tables():
            yield Heading(table.title)
            yield html_table(table)
            yield from [Text(without_marks(table.about))] if table.about else []
            for name in pictures.get(table.title, ()):
                yield Picture(self.figures[name], ALT[name])
        yield from self.calibration()
        yield from self.confusions()
        yield from self.mistakes()
        for title, reasons in (("Not applicable", self.page.impossible), ("Failed", self.page.failed)):
            if reasons:
                yield Heading(title)
                yield Facts(reasons)
        yield Heading("Commands")
        yield Commands("\n".join(f"# {name}\n{command}" for name, command in self.page.commands.items()))
        yield Heading("Provenance")
        yield self.records()
        yield Facts(self.page.facts)

    def warnings(self) -> Iterator[Part]:
        """What a reader must know before any number."""
        if "embedded" in str(self.page.facts["data"]).partition(";")[0]:
            yield Text(without_marks(EMBEDDED), warning=True)
        if self.page.missing:
            yield Text(f"Not finished: {', '.join(map(plain, self.page.missing))}.", warning=True)

    def calibration(self) -> Iterator[Part]:
        yield Heading("Reliability")
        yield Text(ABOUT_RELIABILITY)
        methods = {self.name(row): of for row, of in self.scores.items() if not self.control(row)}
        yield Picture(png(reliabilities(methods)), "share of fakes against p_fake, a panel for each method")

    def confusions(self) -> Iterator[Part]:
        """Real and fake at the frozen threshold for all, classes for those that have them."""
        yield Heading("Confusion")
        yield Heading("Real and fake", 3)
        yield Text(ABOUT_CONFUSION)
        kinds = [name for name in KINDS if any(_of_kind(of[0], name).any() for of in self.scores.values())]
        rows = {row: [[self.name(row), *words] for words in self.called_fake(row, kinds)] for row in self.scores}
        own, controls = ([x for row in rows if self.control(row) == is_one for x in rows[row]] for is_one in (0, 1))
        yield Table(["method", "view", *(f"{name} called fake" for name in kinds)], own, controls)
        with_classes = [row for row, of in self.scores.items() if classes_of(of[0]) and row not in self.elsewhere]
        if with_classes:
            yield Heading("Classes of fakes", 3)
            yield Text(ABOUT_FAMILIES)
        for row in with_classes:
            found = pooled([attribute(scores, 0, 0, _classes(run)) for scores, run in self.runs(row)])
            for view in distinct([self.views[0], self.views[-1]]):
                what = f"{self.name(row)}, view {view}: predicted against true {found.column}"
                yield Text(plain(what))
                yield Picture(png(confusion(found, view)), what)

    def called_fake(self, row: Row, kinds: Sequence[str]) -> Iterator[list[str]]:
        """A line of words for each view."""
        for view in distinct(self.scores[row][0]["view"]):
            words = []
            for kind in kinds:
                called = total = 0
                for scores, cut in zip(self.scores[row], self.cuts[row], strict=True):
                    chosen = _of_kind(scores, kind) & (scores["view"] == view)
                    called, total = called + int((scores["logit"][chosen] >= cut).sum()), total + int(chosen.sum())
                words.append(f"{called / total:.3f} ({called} of {total})" if total else "n/a")
            yield [view, *words]

    def mistakes(self) -> Iterator[Part]:
        kind = "all" if self.elsewhere else "unseen" if self.best("unseen") else "seen"
        best = self.best(kind)
        yield Heading("Worst mistakes")
        yield Text(ABOUT_MISTAKES.format(n=len(best), kind=kind))
        if not self.pictures:
            yield Text(NOT_SHOWN)
        elif not self.images:
            yield Text(NO_IMAGES, warning=True)
        for row in best:
            yield Heading(self.name(row), 3)
            for view in distinct([self.views[0], self.views[-1]]):
                for fake, words in ((False, "photographs most like fakes"), (True, "fakes most like photographs")):
                    tiles, caption = self.tiles(row, view, fake), f"view {view}: {words}"
                    named = Table(["image", "kind", "score"], [tile.lines for tile in tiles], caption=caption)
                    yield Gallery(tiles, caption) if self.pictures else named

    def best(self, kind: str) -> list[Row]:
        """At most `BEST` rows by the AUC on seen, unseen or all generators; none if there are no such generators."""
        found = {row: self.at[row].get((ALL, MEAN, f"mean:{kind}", "auc")) for row in self.scores}
        known = {row: number.value for row, number in found.items() if number and number.value == number.value}
        return sorted((row for row in known if not self.control(row)), key=lambda row: -known[row])[:BEST]

    def tiles(self, row: Row, view: str, fake: bool) -> list[Picture]:
        """The images of one class that lie farthest on the wrong side, one a scene."""
        first, cuts = self.scores[row][0], np.array(self.cuts[row])
        chosen = (first["split"] == "test") & (first["view"] == view) & (first.fake == fake)
        logits = np.stack([scores["logit"][chosen] for scores in self.scores[row]])  # (seeds, images), rows aligned
        p_fake = np.stack([scores["p_fake"][chosen] for scores in self.scores[row]]).mean(axis=0)
        beyond = (logits - cuts[:, None]).mean(axis=0) * (-1 if fake else 1)
        held = first.select(chosen)
        worst: dict[str, int] = {}
        for i in np.argsort(-beyond, kind="stable"):
            if beyond[i] == beyond[i]:
                worst.setdefault(held["group"][i], int(i))
        tiles = []
        for i in list(worst.values())[:MISTAKES]:
            wrong = int(((logits[:, i] >= cuts) != fake).sum())
            judged = f"wrong in {wrong} of {len(cuts)} seeds" if len(cuts) > 1 else "wrong" if wrong else "right"
            kind = held["generator"][i] + (f", {held['edit'][i]}" if held["edit"][i] else "")
            lines = (held["path"][i], kind, f"p(fake) {p_fake[i]:.3f}, {judged}")
            tiles.append(Picture(self.picture(held["path"][i], view), f"{kind} {held['path'][i]}", lines))
        return tiles

    def picture(self, path: str, view: str) -> bytes:
        """A thumbnail of what the view leaves of an image, or of the reason why there is none."""
        if self.images is None or (number := self.place_of.get(path)) is None:
            return placeholder("missing")
        try:
            image = read_image(self.images["file"][number], self.images["sha256"][number], self.images.place(number))
            return thumbnail(parse_view(view).of(self.images["group"][number])(image))
        except Unreadable as error:
            return placeholder(error.reason)

    @cached_property
    def place_of(self) -> dict[str, int]:
        """Row of the manifest of each test image, by the path that scores have."""
        if self.images is None:
            return {}
        test = np.flatnonzero(self.images["split"] == "test")
        return dict(zip(self.images["path"][test], test, strict=True))

    def records(self) -> Table:
        """Where and when each run was made."""
        header = ["run", "minutes", "date", "revision", "processor", "GPUs", "torch"]
        rows: list[list[str | TableCell]] = []
        for run in (run for of in self.page.runs.values() for run in of):
            record = _record(run)
            hardware = [record["hardware"]["processor"], record["hardware"]["gpus"], record["versions"]["torch"]]
            words = [record["date"], record["revision"], *hardware]
            minutes = f"{record['seconds'] / 60:.2f}"
            rows.append([run.name, minutes, *(TableCell(str(word)) for word in words)])
        return Table(header, rows, caption="Finished runs; the facts below are those of the first.")

    def runs(self, row: Row) -> Iterator[tuple[Scores, Path]]:
        return zip(self.scores[row], self.page.runs[row], strict=True)

    def name(self, row: Row) -> str:
        return leaderboard.label(row, self.page.numbers)

    def control(self, row: Row) -> bool:
        return leaderboard.is_control(self.at[row])


def html_table(table: leaderboard.Table) -> Table:
    """The same table to sort; controls set apart."""
    rows = [[_cell(entry) for entry in row] for row in table.rows]
    competitors = len(rows) - table.controls
    return Table(table.titles, rows[:competitors], rows[competitors:])


def pooled(found: Sequence[Attribution]) -> Attribution:
    """The confusion of several tables of the same rows together; without rates."""
    counts: dict[tuple[str, str, str], int] = {}
    totals: dict[tuple[str, str], int] = {}
    for one in (count for each in found for count in each.counts):
        cell, line = (one.view, one.true, one.predicted), (one.view, one.true)
        counts[cell] = counts.get(cell, 0) + one.count
        totals[line] = totals.get(line, 0) + one.count
    of_all = []
    for cell, n in counts.items():
        total = totals[cell[:2]]
        of_all.append(Count(*cell, n, n / total if total else float("nan")))
    return replace(found[0], rates=(), counts=tuple(of_all))


def _cell(entry: leaderboard.Entry) -> TableCell:
    key = None if isinstance(entry.key, str) else float("nan") if entry.value == "n/a" else entry.key
    return TableCell(entry.text, key, entry.mark == "best")


def _of_kind(scores: Scores, kind: str) -> np.ndarray:
    """(n,) readable test rows of one of `KINDS`."""
    fake, seen, edited = KINDS[kind]
    rows = (scores["split"] == "test") & scores.ok & (scores.fake == fake) & (scores["seen"] == seen)
    return rows & ((scores["edit"] != "") == edited)


def _record(run: Path) -> RunRecord:
    return json.loads((run / "provenance.json").read_text(encoding="utf-8"))


def _classes(run: Path) -> Column:
    """What the classes of a head are: family or generator."""
    return "generator" if _record(run)["identity"]["classes"] == "generator" else "family"

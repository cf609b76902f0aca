"""The main numbers of a finished run, for one line of a table: read from its files, nothing is measured again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapt.evaluation.attribution import Rate
from adapt.evaluation.metrics import Cell, index
from adapt.evaluation.replicates import ALL
from adapt.evaluation.side_by_side import Number, Place, read_numbers
from adapt.files import has_table
from adapt.number_table import read_rows
from adapt.pages import leaderboard
from adapt.pages.map_tables import REGIONS
from adapt.pages.tables import show
from adapt.sweeps import frontier
from adapt.sweeps.reproduction import Decided
from adapt.sweeps.tables_again import recipe_of, study_of, tables_of
from adapt.text import escape_markdown
from adapt.training.run import RunRecord

VIEWS = ("none", "qf40")  # that are shown
SEEN = ("seen", "unseen")
SPREAD = ("draw", "seed")  # columns of metrics.csv over which a page takes means


@dataclass(frozen=True)
class Glance:
    """What a line shows, in words of Markdown. `aucs`: by the name of a score, '' for the only one, and by place."""

    aucs: Mapping[str, Mapping[Place, Cell | Number]] = field(default_factory=dict)
    others: Sequence[str] = ()  # numbers of another kind, each with its name
    images: str = ""  # how many test images
    spread: bool = False  # brackets hold the smallest and the largest of several seeds, not a 95 % interval

    def auc(self, seen: str, view: str) -> str:
        """The mean AUC over seen or unseen generators under a view: a line for each score."""
        lines = []
        for name, cells in self.aucs.items():
            value = show(cells.get(_place(seen, view)))
            lines.append(f"{escape_markdown(name)}: {value}" if name else value)
        return "<br>".join(lines)


def at_a_glance(folder: Path, record: RunRecord) -> Glance:
    """The main numbers of a run's folder; `record` is what its provenance.json holds."""
    recipe = recipe_of(record["command"])
    if recipe == "ablation":
        numbers = read_numbers(folder / "ablation.csv")
        rows = leaderboard.by_row(numbers)
        elsewhere = [row for row, found in rows.items() if leaderboard.is_detector(found)]
        aucs = {leaderboard.label(row, numbers): found for row, found in rows.items() if row not in elsewhere}
        others = [
            f"{escape_markdown(row[0])}, from elsewhere: AUC of all generators, {view}: "
            + show(rows[row].get(_place("all", view)))
            for row in elsewhere
            for view in VIEWS
        ]
        return replace(_of_aucs(aucs), others=others)
    if recipe == "frontier":
        points = frontier.read_csv(folder / "frontier.csv")
        return _of_aucs({point.name: index(list(point.aucs.values())) for point in points})
    if recipe in OF_PAGES:
        page = tables_of((folder / "table.md").read_text(encoding="utf-8"))
        return OF_PAGES[recipe](rows_of(page["", ""][0]), record)
    if patterns := read_rows(folder / "patterns.csv", Decided):
        lines = [f"{d.pattern}: {show(d, '+')} ({d.outcome})" for d in patterns]
        return Glance(others=lines, images=f"{patterns[0].n_real} + {patterns[0].n_fake}")
    if not has_table(folder / "metrics.csv"):  # of a recipe that leaves other numbers: its line links the page
        return Glance()
    return replace(_of_metrics(folder), others=_of_maps(folder))


def rows_of(table: str) -> list[list[str]]:
    """The words of a table of Markdown without its header."""
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.splitlines()[2:]]


def _place(seen: str, view: str) -> Place:
    return ALL, view, f"mean:{seen}", "auc"


def _of_aucs(aucs: Mapping[str, Mapping[Place, Cell | Number]]) -> Glance:
    first, counts = next(iter(aucs.values())), []
    for seen in SEEN:
        cell = first.get(_place(seen, VIEWS[0]))
        counts += [f"{seen} {cell.n_real} + {cell.n_fake}"] if cell and cell.n_fake else []
    return Glance(aucs, images=", ".join(counts))


def _of_metrics(folder: Path) -> Glance:
    """Of a page that compares many scores only those trained on all qualities, and on the most shots."""
    study = study_of(folder)
    spread = study.keys[-1:] and study.keys[-1] in SPREAD
    study = study.over_last_key() if spread else study
    named = {key: dict(zip(study.keys, key, strict=True)) for key in study.cells}
    most = max((int(of.get("shots", 0)) for of in named.values()), default=0)
    aucs = {}
    for key, of in named.items():
        if int(of.get("shots", 0)) in (0, most) and of.pop("trained on", "mixed") == "mixed":
            words = (f"{word} shots" if name == "shots" else word for name, word in of.items())
            aucs[", ".join(words)] = index(study.cells[key])
    return replace(_of_aucs(aucs), spread=bool(spread))


def _of_maps(folder: Path) -> list[str]:
    """Pixel AUC of the large regions, for a detector that says where."""
    rates = read_rows(folder / "localization.csv", Rate)
    large = [r for r in rates if (r.label, r.metric) == ("part:large", "pixel_auc") and r.view in VIEWS]
    return [f"pixel AUC, {REGIONS[rate.label]}, {rate.view}: {show(rate)}, {rate.n} images" for rate in large]


def _of_understanding(rows: Sequence[Sequence[str]], record: Mapping[str, Any]) -> Glance:
    """The first known number of each item."""
    first = {item: (what, value) for item, what, value, _ in reversed(rows) if value != "n/a"}
    lines = [f"{item}: {what} {value}" for item, (what, value) in reversed(first.items())]
    return Glance(others=lines, images=f"{record['identity']['groups']} groups")


def _of_stability(rows: Sequence[Sequence[str]], record: Mapping[str, Any]) -> Glance:
    """What moves most at the last quality: of the descriptor, and of what it leaves out."""
    lines = []
    for part in dict.fromkeys(row[2] for row in rows):
        kind, *_, drift, _ = max((row for row in rows if row[2] == part), key=lambda row: float(row[-2].split()[0]))
        lines.append(f"{part}, largest drift of a kind at {record['identity']['views'][-1]}: {kind} {drift}")
    return Glance(others=lines, images=record["data"].partition(",")[0])


def _of_scaling(rows: Sequence[Sequence[str]], record: Mapping[str, Any]) -> Glance:
    """Seconds and memory at the most rows and views."""
    largest = max((int(row[1]), int(row[2])) for row in rows)
    lines = [
        f"{head}, {rows_} rows, {views} views: {seconds} s, {peak} MiB"
        for head, rows_, views, seconds, peak, _ in rows
        if (int(rows_), int(views)) == largest
    ]
    return Glance(others=lines)


def _of_worlds(rows: Sequence[Sequence[str]], record: Mapping[str, Any]) -> Glance:
    """How each bound stands; the first number of a line is what was measured."""
    return Glance(others=[f"{name}: {value} ({bound}: {outcome})" for name, bound, value, _, outcome in rows])


OF_PAGES = {
    "check_world": _of_worlds,
    "understand": _of_understanding,
    "color_stability": _of_stability,
    "head_scaling": _of_scaling,
}

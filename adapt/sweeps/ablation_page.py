"""What the finished runs of an ablation say, as tables and figures; all made from the numbers of ablation.csv."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from adapt.evaluation.metrics import PREFIXES
from adapt.evaluation.replicates import ALL
from adapt.evaluation.rotation import Rotated
from adapt.evaluation.side_by_side import MEAN, Number, Row, write_numbers
from adapt.files import write_text
from adapt.pages import leaderboard
from adapt.pages.drawing import cost_against_accuracy, heat_map, methods_over_views
from adapt.pages.latex import table as latex_table
from adapt.pages.leaderboard import COSTS, Table
from adapt.pages.rotation import rotation_table
from adapt.sweeps.detectors import Elsewhere
from adapt.sweeps.detectors import table as detectors_table
from adapt.sweeps.frontier import undominated

ABOUT_COSTS = """\
Minutes: training with its validation and choices, mean over seeds; decoding and encoding, which methods on frozen
features share through their cache, are left out. Memory: peak of the {memory}, the largest of the seeds."""

SOURCES = {  # of methods of recipes/ablation.py that are others' heads: what each is, and where it comes from
    "rine": "the class tokens of all blocks under a learnt importance (RINE, arXiv:2402.19091)",
    "attention-pooling": "attention over patch tokens with a learnt query (after TAP, arXiv:2604.26772)",
    "fisher-tokens": "the mean of the patch tokens with the highest Fisher scores (FGTS, arXiv:2511.22471)",
    "prototypes": "a linear head that starts at the texts of the classes (PE-SPC, arXiv:2608.04935)",
    "patch-mean-squash": "the mean of the patch tokens of whole, squashed images (NTIRE 2026, arXiv:2604.11487)",
}


@dataclass(frozen=True)
class Page:
    """What the finished runs say, for a page of any kind; tables and figures are made from `numbers` alone."""

    numbers: Sequence[Number]
    memory: str  # what the peak memory is the peak of
    commands: Mapping[str, str] = field(default_factory=dict)  # by run, as a shell takes them
    facts: Mapping[str, object] = field(default_factory=dict)  # provenance
    runs: Mapping[Row, Sequence[Path]] = field(default_factory=dict)  # folders of the finished runs, one a seed
    missing: Sequence[str] = ()  # runs that are not finished
    impossible: Mapping[str, str] = field(default_factory=dict)  # methods, and why this backbone cannot do them
    failed: Mapping[str, str] = field(default_factory=dict)  # runs, and their last words
    rotation: Sequence[Rotated] = ()  # of methods that were run without each generator, or family, in turn
    detectors: Sequence[Elsewhere] = ()  # those from elsewhere

    def tables(self) -> list[Table]:
        head = leaderboard.headline(self.numbers)
        shown = dict.fromkeys(name for name, _ in leaderboard.by_row(self.numbers))
        sources = "; ".join(f"{name}: {SOURCES[name]}" for name in shown if name in SOURCES)
        about = [head.about, ABOUT_COSTS.format(memory=self.memory), *([f"Sources. {sources}."] if sources else [])]
        head = replace(head, about="\n\n".join(about))
        whose = [detectors_table(self.detectors)] if self.detectors else []
        parts = [leaderboard.budgets, leaderboard.unseen, leaderboard.attribution, leaderboard.transfer]
        parts += [leaderboard.by_generator, leaderboard.controls]
        tables = [head, *whose, *(table for make in parts if (table := make(self.numbers)).rows)]
        return [*tables, rotation_table(self.rotation)] if self.rotation else tables

    def figures(self) -> dict[str, Figure]:
        """By name: heat map, AUC over views, and cost against accuracy."""
        return {
            "generators": _heat_map(self.numbers),
            "auc_per_view": _over_views(self.numbers),
            "cost": _cost_figure(self.numbers),
        }


def write_tables(root: Path, page: Page) -> list[str]:
    """Write ablation.tex and generators.csv; returns the `sections_of` a page of Markdown."""
    tables = page.tables()
    names = [f"tab:{re.sub('[^a-z]+', '-', table.title.lower()).strip('-')}" for table in tables]
    write_text(root / "ablation.tex", "\n".join(map(latex_table, tables, names)))
    own = [n for n in page.numbers if n.metric == "auc" and not n.generator.startswith(PREFIXES)]
    write_numbers(root / "generators.csv", own)
    return sections_of(page)


def sections_of(page: Page) -> list[str]:
    """The tables as sections of Markdown; the first one has no heading."""
    tables = page.tables()
    sections = [tables[0].markdown(), tables[0].about]
    for table in tables[1:]:
        sections += [f"## {table.title}", table.markdown(), *([table.about] if table.about else [])]
    return sections


def _at(numbers: Sequence[Number]) -> dict[str, dict[tuple[str, str, str, str], Number]]:
    """By the name of a row; controls left out."""
    rows = leaderboard.by_row(numbers).items()
    return {leaderboard.label(row, numbers): found for row, found in rows if not leaderboard.is_control(found)}


def _heat_map(numbers: Sequence[Number]) -> Figure:
    table = leaderboard.by_generator(numbers)
    rows = leaderboard.by_row(numbers)
    skipped = len(table.header) - len(leaderboard.generators_of(numbers))
    values = [[entry.key if entry.value != "n/a" else np.nan for entry in row[skipped:]] for row in table.rows]
    columns = [f"{name} ({met.split()[0]})" for met, name in table.header[skipped:]]
    methods = sum(not leaderboard.is_control(found) for found in rows.values())
    return heat_map(
        np.array(values, dtype=np.float64),
        [leaderboard.label(row, numbers) for row in rows],
        columns,
        "AUC, mean over views",
        limits=(0.5, 1.0),
        digits=2,
        lines=[methods] if methods < len(rows) else [],
    )


def _over_views(numbers: Sequence[Number]) -> Figure:
    views, at = leaderboard.views_of(numbers), _at(numbers)
    missing, kinds = replace(numbers[0], value=np.nan, low=np.nan, high=np.nan), {}
    for kind in ("seen", "unseen", *(["all"] if any(map(leaderboard.is_detector, at.values())) else [])):
        places = [(ALL, view, f"mean:{kind}", "auc") for view in views]
        kinds[f"{kind} generators"] = {
            name: [found.get(place, missing) for place in places] for name, found in at.items()
        }
    return methods_over_views(views, kinds)


def _cost_figure(numbers: Sequence[Number]) -> Figure:
    at = {name: found for name, found in _at(numbers).items() if not leaderboard.is_detector(found)}
    costs = {title: [found["", "", "", metric].value for found in at.values()] for metric, title in COSTS.items()}
    kinds = {}
    for kind in ("unseen", "seen"):
        kinds[f"AUC, {kind}"] = [found[ALL, MEAN, f"mean:{kind}", "auc"] for found in at.values()]
    on = {
        (cost, kind): undominated(place, [cell.value for cell in cells])
        for cost, place in costs.items()
        for kind, cells in kinds.items()
    }
    return cost_against_accuracy(list(at), costs, kinds, on)

"""Several detectors on the same images: a page with a row for each, every pair compared, and the same as CSV files."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from adapt.evaluation.joined import SHOWN, Measured, Pair
from adapt.evaluation.metrics import Cell, index
from adapt.evaluation.replicates import ALL, distinct
from adapt.evaluation.samples import Sample
from adapt.number_table import write_table
from adapt.pages.markdown_page import write_page
from adapt.pages.tables import COLUMNS, COMPARISON, behind_section, generators_of, grid, name_of, show, views_of
from adapt.text import escape_markdown

HEADLINE = {
    "AUC": ("mean:all", "auc"),
    "AUC worst": ("worst:all", "auc"),
    "balanced accuracy": ("mean:all", "balanced_accuracy"),
    "false alarms": ("real", "false_alarm"),
    "ECE": ("mean:all", "ece"),
}
HOW_TO_READ = """\
Read `0.874 [0.851, 0.896]` as the value and its 95 % interval over groups (jackknife), given the threshold. All rows
are measured on the same images: those that all tables hold and all detectors could read. AUC: the chance that a fake
scores above a real image, mean over generators; 0.5 is guessing. AUC worst: the hardest generator. Balanced accuracy
(mean over generators) and false alarms (share of real images called fake): at each detector's own threshold."""
ABOUT_PAIRS = """\
a - b on the same images, with its 95 % interval; the same groups are left out of both. p is two-sided, and not
corrected for the number of comparisons. Surely: not 0 at 95 % for all differences of this table together."""
PLAIN = {"auc": "AUC", "balanced_accuracy": "balanced accuracy"}


def headline(cells: Mapping[str, Sequence[Cell]]) -> list[list[str]]:
    """The header and one row a view and detector."""
    rows = [["view", "detector", *HEADLINE]]
    found = {name: index(of_one) for name, of_one in cells.items()}
    for view in views_of(next(iter(cells.values()))):
        for name, at in found.items():
            rows.append([view, name, *(show(at.get((ALL, view, *key))) for key in HEADLINE.values())])
    return rows


def shown_pairs(pairs: Sequence[Pair]) -> list[list[str]]:
    """The header and one row a view, metric and pair."""
    rows = [["view", "of", "a", "b", "a - b", "p", ""]]
    views = distinct(pair.difference.view for pair in pairs)
    order = {(view, metric): place for place, (view, metric) in enumerate(itertools.product(views, SHOWN))}
    for pair in sorted(pairs, key=lambda pair: order.get((pair.difference.view, pair.difference.metric), -1)):
        one = pair.difference
        if one.set == ALL and one.generator == "mean:all" and one.metric in SHOWN:
            p = "n/a" if one.p != one.p else "< 0.001" if one.p < 0.001 else f"{one.p:.3f}"
            told = "surely" if pair.surely else "not told apart" if one.p == one.p else ""
            rows.append([one.view, PLAIN[one.metric], pair.a, pair.b, show(one, "+"), p, told])
    return rows


def write_detectors(
    folder: Path, measured: Measured, sections: Sequence[str], facts: Mapping[str, object], behind: Sequence[Sample]
) -> None:
    """Write table.md, detectors.csv (every number) and differences.csv (every difference) into `folder`."""
    cells = measured.cells
    rows = [[name, *(getattr(cell, column) for column in COLUMNS)] for name, found in cells.items() for cell in found]
    write_table(folder / "detectors.csv", ("detector", *COLUMNS), rows)
    names = {"a": "value_a", "b": "value_b"}  # a and b are the detectors
    header = ("a", "b", *(names.get(column, column) for column in COMPARISON), "surely")
    write_table(folder / "differences.csv", header, [
        [pair.a, pair.b, *(asdict(pair.difference)[column] for column in COMPARISON), int(pair.surely)]
        for pair in measured.pairs
    ])  # fmt: skip
    parts = [HOW_TO_READ, "## Detectors", grid(headline(cells)), "## Differences", grid(shown_pairs(measured.pairs))]
    parts += [ABOUT_PAIRS, *_generators(cells), *behind_section(behind), *sections]
    write_page(folder / "table.md", "Detectors compared", parts, facts)


def _generators(cells: Mapping[str, Sequence[Cell]]) -> list[str]:
    """AUC of each generator, a column a detector; nothing where there is one generator."""
    first = next(iter(cells.values()))
    generators = generators_of(first)
    if len(generators) < 2:
        return []
    found = {name: index(of_one) for name, of_one in cells.items()}
    rows = [["view", "generator", *cells, "real", "fake"]]
    for view in views_of(first):
        for key in generators:
            own = [at.get((key[0], view, key[1], "auc")) for at in found.values()]
            if own[0]:
                counts = str(own[0].n_real), str(own[0].n_fake)
                rows.append([view, name_of(key, list(generators)), *map(show, own), *counts])
    return ["## AUC per generator", grid(rows)]


def table_section(title: str, lines: Sequence[str]) -> str:
    """What was taken from a table, and what a reader must know of it."""
    return "\n\n".join([f"## {title}", "\n".join(f"- {escape_markdown(line)}" for line in lines)])

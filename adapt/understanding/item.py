"""What one item hands over: numbers with intervals, figures, pictures; and the page that they make together."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from adapt.errors import Refusal
from adapt.evaluation.jackknife import interval, share_interval
from adapt.evaluation.replicates import distinct
from adapt.files import write_text
from adapt.number_table import read_table, write_table
from adapt.pages import html
from adapt.pages.drawing import save_png
from adapt.pages.markdown_page import EMBEDDED, picture, without_marks, write_page
from adapt.pages.tables import grid, show
from adapt.text import escape_markdown
from adapt.training.scored import FOLDER

TITLE = "Understanding a detector"
HOW_TO_READ = """\
Read `0.874 [0.851, 0.896]` as a value and its 95 % interval: jackknife over groups (a photograph and its
fakes are one group), unless an item says else. All numbers are of unedited test images of {groups} groups ({real}
real, {fake} fake), drawn by seed {seed}; the detector and its threshold are as they were saved. Where the summary says
most, highest or lowest, that one was picked among several on these very images. An interval that holds the value of
chance, or of no effect, says nothing against it."""


class Value(NamedTuple):
    """A number with its 95 % interval; n counts the images behind it."""

    value: float
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0


def of_resamples(values: np.ndarray, n: int) -> Value:
    """From a statistic (1 + b,): of all groups first, then without each block of them (evaluation/jackknife.py)."""
    return Value(float(values[0]), *interval(values, len(values) - 1), int(n))


def of_shares(values: np.ndarray, n: int) -> Value:
    """`of_resamples` of a number between 0 and 1, such as a share or an AUC: so is its interval."""
    return Value(float(values[0]), *share_interval(values, min(int(n), len(values) - 1)), int(n))


def mean(values: np.ndarray, weights: np.ndarray) -> Value:
    """Mean of (n,) numbers under weights (1 + r, n); NaN are left out. Of yes and no (1, 0; .5 for both) a share."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without any of them is NaN
        found = weights[:, known] @ values[known] / weights[:, known].sum(axis=1)
    is_share = np.isin(values[known], (0, 0.5, 1)).all()
    return of_shares(found, known.sum()) if is_share else of_resamples(found, known.sum())


def jackknifed(statistic: Callable[[np.ndarray], np.ndarray], units: int, n: int) -> list[Value]:
    """Values of a statistic (k,) of `units` groups, given how often (0 or 1) each of them counts.

    Intervals: value +- 1.96 standard errors of the delete-one jackknife (Efron 1982, section 3.2). For statistics such
    as shares of variance, which a resample that holds groups twice would bias.
    """
    whole = statistic(np.ones(units))
    without = np.array([statistic((np.arange(units) != unit).astype(float)) for unit in range(units)])
    spread = 1.96 * np.sqrt((units - 1) / units * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    return [Value(float(v), float(v - s), float(v + s), int(n)) for v, s in zip(whole, spread, strict=True)]


@dataclass(frozen=True)
class Numbers:
    """A table: cells by (row, column), in the order in which they came; text stands as it is."""

    caption: str
    corner: str  # over the names of the rows
    cells: Mapping[tuple[str, str], Value | str]

    def table(self) -> list[list[str]]:
        """Header and rows."""
        columns = distinct(column for _, column in self.cells)
        lines = [[self.corner, *columns]]
        for row in distinct(row for row, _ in self.cells):
            found = (self.cells.get((row, column), Value(float("nan"))) for column in columns)
            lines.append([row, *(cell if isinstance(cell, str) else show(cell) for cell in found)])
        return lines


def number_at(cells: Mapping[tuple[str, str], Value | str], row: str, column: str) -> Value:
    """A cell that holds a number."""
    found = cells[row, column]
    assert isinstance(found, Value), f"{row}, {column} is the text {found!r}"
    return found


@dataclass(frozen=True)
class Item:
    """One part of the page. `headline`: what it says in a line or two, each a name and a cell of its tables."""

    name: str
    title: str
    about: str  # how it was measured, how to read it
    numbers: Sequence[Numbers]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    galleries: Sequence[html.Gallery] = ()
    headline: Sequence[tuple[str, Value]] = ()
    drawn: Sequence[str] = ()  # names of the figures that are files already: see `write_item`


def write_item(folder: Path, item: Item) -> Item:
    """Write NAME.csv, the figures, and the item for `read_item`, as soon as they are measured; returns the item."""
    for name, figure in item.figures.items():
        save_png(figure, _figure_path(folder, item, name))
    write_csv(folder / f"{item.name}.csv", item.numbers)
    written = replace(item, figures={}, drawn=tuple(item.figures))
    write_text(_item_path(folder, item.name), json.dumps(_as_json(written), ensure_ascii=False))
    return written


def read_item(folder: Path, name: str) -> Item | None:
    """What `write_item` wrote and returned, None where there is nothing; its figures are files."""
    path = _item_path(folder, name)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        numbers = [
            Numbers(of["caption"], of["corner"], {(row, column): _cell(cell) for row, column, cell in of["cells"]})
            for of in found["numbers"]
        ]
        galleries = [
            html.Gallery([_pictures(one) for one in of["pictures"]], of["caption"]) for of in found["galleries"]
        ]
        headline = [(what, Value(*value)) for what, value in found["headline"]]
        words = {key: found[key] for key in ("name", "title", "about", "drawn")}
        return Item(**words, numbers=numbers, galleries=galleries, headline=headline)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{path} is damaged ({error}): delete it, and the same command measures it again") from error


def _item_path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.json"


def _as_json(item: Item) -> dict[str, object]:
    def image(picture: html.Picture) -> dict[str, object]:
        text = isinstance(picture.image, str)
        data = picture.image if isinstance(picture.image, str) else base64.b64encode(picture.image).decode("ascii")
        return {"text" if text else "bytes": data, "alt": picture.alt, "lines": picture.lines}

    numbers = [
        {"caption": of.caption, "corner": of.corner, "cells": [(*place, cell) for place, cell in of.cells.items()]}
        for of in item.numbers
    ]
    galleries = [
        {
            "caption": of.caption,
            "pictures": [image(one) if isinstance(one, html.Picture) else [*map(image, one)] for one in of.pictures],
        }
        for of in item.galleries
    ]
    words = {"name": item.name, "title": item.title, "about": item.about, "drawn": item.drawn}
    return words | {"numbers": numbers, "galleries": galleries, "headline": item.headline}


def _cell(found: str | list) -> Value | str:
    return found if isinstance(found, str) else Value(*found)


def _pictures(found: Any) -> html.Picture | tuple[html.Picture, html.Picture]:
    if isinstance(found, list):
        first, second = (_picture(one) for one in found)
        return first, second
    return _picture(found)


def _picture(found: Mapping[str, Any]) -> html.Picture:
    image = found["text"] if "text" in found else base64.b64decode(found["bytes"])
    return html.Picture(image, found["alt"], tuple(found["lines"]))


def _figure_path(folder: Path, item: Item, name: str) -> Path:
    return folder / "figures" / f"{item.name}_{name}.png"


def write_report(
    folder: Path,
    items: Sequence[Item],
    about: str,
    left_out: Mapping[str, str],
    record: Mapping[str, object],
    own: bool,
    pictures: bool = True,
) -> str:
    """Write report.html and table.md of written items; returns the summary table.

    `own`: of the embedded world. Without `pictures` no image that was looked at is on the page, only figures.
    """
    summary = [["item", "what", "value", "images"]]
    summary += [[item.name, what, show(value), str(value.n)] for item in items for what, value in item.headline]
    said = [f"Left out: {name}: {why}" for name, why in left_out.items()]
    sections = [about, grid(summary), *map(escape_markdown, said)]
    parts: list[html.Part] = [html.Text(without_marks(EMBEDDED), warning=True)] if own else []
    parts += [html.Text(without_marks(about)), html.Table(summary[0], summary[1:], caption="Summary")]
    parts += [html.Text(line) for line in said]
    parts += [] if pictures else [html.Text("Pictures are left out, as was asked (--no_pictures).")]
    for item in items:
        sections += [f"## {item.title}", "\n".join(map(escape_markdown, item.about.splitlines()))]
        parts += [html.Heading(item.title), html.Text(item.about)]
        for numbers in item.numbers:
            table = numbers.table()
            sections += [f"{numbers.caption}:", grid(table)]
            parts.append(html.Table(table[0], table[1:], caption=numbers.caption))
        for name in item.drawn:
            path = _figure_path(folder, item, name)
            sections.append(picture(path.stem, f"{item.name}, {name}"))
            parts.append(html.Picture(path.read_bytes(), f"{item.title}: {name}"))
        parts += item.galleries if pictures else ()
    write_page(folder / "table.md", TITLE, sections, record, embedded=own)
    parts += [html.Heading("Provenance"), html.Facts(json.loads(json.dumps(record, default=str)))]
    write_text(folder / "report.html", html.page(TITLE, parts))
    return grid(summary)


def write_csv(path: Path, tables: Sequence[Numbers]) -> None:
    """All cells in long form, to six digits; a text stands under `value`."""
    rows: list[tuple[object, ...]] = []
    for numbers in tables:
        for (row, column), cell in numbers.cells.items():
            rows.append((numbers.caption, row, column, *((cell, "", "", "") if isinstance(cell, str) else cell)))
    write_table(path, ("table", "row", "column", *Value._fields), rows, digits=6)


def read_csv(path: Path) -> list[Numbers]:
    """The tables of a file that `write_csv` left, as it is or compressed; their corners are not in the file."""
    cells: dict[str, dict[tuple[str, str], Value | str]] = {}
    for line in read_table(path):
        cell: Value | str = line["value"]
        if line["n"]:
            cell = Value(line.number("value"), line.number("low"), line.number("high"), line.count("n"))
        cells.setdefault(line["table"], {})[line["row"], line["column"]] = cell
    return [Numbers(caption, "", of) for caption, of in cells.items()]

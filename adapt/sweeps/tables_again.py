"""The tables of a committed page, made again from the CSV files beside it."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from adapt.errors import Refusal
from adapt.evaluation.attribution import Count, Rate
from adapt.evaluation.side_by_side import read_numbers
from adapt.files import has_table
from adapt.number_table import columns_of, read_rows
from adapt.pages.map_tables import map_sections
from adapt.pages.read_back import read_run
from adapt.pages.rotation import read_rotation, rotation_sections
from adapt.pages.tables import grid, markdown
from adapt.sweeps import frontier, worlds
from adapt.sweeps.ablation_page import Page, sections_of
from adapt.sweeps.detectors import read_detectors
from adapt.sweeps.planned_runs import read_metrics
from adapt.sweeps.reproduction import read_pattern_sections
from adapt.training import few_shot
from adapt.training.comparison import SHOWN, Study
from adapt.training.localization import PARTLY
from adapt.training.run import RunRecord

Place = tuple[str, str]  # headings of the second and the third level above a table; "" where there is none
SINGLE = ("lora", "refine", "linear_probe", "localize")  # recipes of one detector
SEVERAL = ("pair", "tip_adapter", "onboard", "color_fusion")  # recipes whose page compares scores
KNOWN = (*SINGLE, *SEVERAL, "jpeg_matrix", "frontier", "ablation", "check_world")
PART = re.compile(r"^(?P<level>##|###) (?P<title>.*)\n|^(?P<table>(?:\|.*\n)+)", re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.\d+")
LAST_DIGIT = 0.0011  # numbers on pages have three digits


def record_of(folder: Path) -> RunRecord:
    """The provenance.json of a finished run."""
    return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))


def recipe_of(command: str) -> str:
    """The recipe of `python recipes/NAME.py ...` or `adapt run NAME ...`; '' for another command."""
    words = shlex.split(command)
    files = [Path(word).stem for word in words if word.endswith(".py")]
    return files[0] if files else words[2] if words[:2] == ["adapt", "run"] else ""


def tables_of(page: str) -> dict[Place, list[str]]:
    """The tables of a page by the headings that they stand under, in their order."""
    found: dict[Place, list[str]] = {}
    for place, part in _parts(page):
        found.setdefault(place, []).append(part["table"].rstrip("\n"))
    return found


def with_tables(page: str, again: Mapping[Place, Sequence[str]]) -> tuple[str, list[str]]:
    """The page with these tables in place of its own, and the headings whose tables stay as they are.

    A table stays if there is none for it, or if the two differ by rounding alone: the page was made from more digits
    than some files hold, so a number on the edge between two thousandths may fall to the other side.
    """
    own, end = tables_of(page), 0
    seen: dict[Place, int] = {}
    out: list[str] = []
    stay: list[str] = []
    for place, part in _parts(page):
        seen[place] = number = seen.get(place, -1) + 1
        made = again.get(place, ())
        old = part["table"].rstrip("\n")
        if len(made) != len(own[place]):
            stay.append(" > ".join(filter(None, place)) or "first table")
        elif not same_but_rounding(old, made[number]):
            out += [page[end : part.start()], made[number] + "\n"]
            end = part.end()
    return "".join([*out, page[end:]]), list(dict.fromkeys(stay))


def same_but_rounding(a: str, b: str) -> bool:
    """Whether two tables have the same words, and numbers that differ by one in the third digit at most."""
    if NUMBER.sub("0", a) != NUMBER.sub("0", b):
        return False
    pairs = zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    return all(abs(float(x) - float(y)) < LAST_DIGIT for x, y in pairs)


def tables_again(folder: Path) -> dict[Place, list[str]]:
    """What the CSV files of a finished run give of its page; nothing for a recipe whose page they cannot give.

    Refuses a folder without the file that its recipe always writes.
    """
    record = record_of(folder)
    recipe = recipe_of(record["command"])
    needed = {"frontier": "frontier.csv", "ablation": "ablation.csv", "check_world": "bounds.csv"}.get(
        recipe, "metrics.csv"
    )
    turned = read_rotation(folder)
    if turned and recipe == "lora":  # a page of several runs
        return tables_of(_page(rotation_sections(turned)[1]))
    if recipe in KNOWN and not has_table(folder / needed):
        raise Refusal(f"{folder / needed} is missing: put it back, or run the command of the page again")
    if recipe in SINGLE:
        return tables_of(_single(folder, record, recipe == "localize"))
    if recipe in SEVERAL:
        study = study_of(folder, shown=few_shot.SHOWN if recipe == "onboard" else SHOWN)
        grids = (study if recipe == "color_fusion" else study.over_last_key()).grids()
        return tables_of(_page(*([grids[1]] if recipe == "pair" else []), *grids))
    if recipe == "jpeg_matrix":
        return tables_of(_page(*_matrices(study_of(folder))))
    if recipe == "frontier":
        points = frontier.read_csv(folder / "frontier.csv")
        return tables_of(
            _page(grid(frontier.headline(points)), "## AUC unseen, per view", grid(frontier.per_view(points)))
        )
    if recipe == "check_world":
        return tables_of(_page(grid(worlds.lines(read_rows(folder / "bounds.csv", worlds.Measured)))))
    if has_table(folder / "patterns.csv"):
        return tables_of(_page(*read_pattern_sections(folder)))
    if recipe == "ablation":
        numbers, detectors = read_numbers(folder / "ablation.csv"), read_detectors(folder)
        return tables_of(_page(*sections_of(Page(numbers, "", rotation=turned, detectors=detectors))))
    return {}


def study_of(folder: Path, table: str = "metrics.csv", shown: Mapping[str, tuple[str, str]] = SHOWN) -> Study:
    """The numbers of a page that compares scores; `shown` as of `Study`."""
    names = columns_of(folder / table)
    if "set" not in names:
        raise Refusal(f"{folder / table}: no column `set`, so not the numbers of scores: put back the file of the run")
    study = Study(names[: names.index("set")], resamples=0, seed=0, shown=shown)
    study.cells = read_metrics(folder / table)
    return study


def _single(folder: Path, record: Mapping[str, Any], localizes: bool) -> str:
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    parts = [PARTLY + name for name in record["trained_on"]] if localizes else []
    column = record.get("classes_are") or config.get("classes", "family")  # of a tower; of a head on features
    found = read_run(folder, [*record["trained_on"], *parts], column)
    sections = []
    if has_table(folder / "layers.csv"):
        sections = ["## Layers", *study_of(folder, "layers.csv").grids(level="###")]
    sections += rotation_sections(read_rotation(folder))
    if localizes:
        confused = [read_rows(folder / f"confusion-{name}.csv", Count) for name in ("extents", "tools")]
        sections = map_sections(read_rows(folder / "localization.csv", Rate), *confused)
    return markdown(found.cells, None, found.controls, found.differences, sections, found.attribution)


def _matrices(every: Study) -> list[str]:
    page = []
    for name in dict.fromkeys(key[:2] for key in every.cells):
        page += [f"## {', '.join(name)}", *every.under(name).grids(level="###")]
    return page


def _page(*sections: str) -> str:
    return "\n\n".join(sections) + "\n"


def _parts(page: str) -> Iterator[tuple[Place, re.Match[str]]]:
    """Each table with its place, as the match of `PART`."""
    place = ("", "")
    for part in PART.finditer(page):
        if part["table"]:
            yield place, part
        else:
            place = (part["title"], "") if part["level"] == "##" else (place[0], part["title"])

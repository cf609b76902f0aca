"""Write results/README.md from the folders of the results: a table for each group, a line for each folder.

    adapt summarise            (the summary; a few seconds)
    adapt summarise --pages    (before it the tables of all committed pages, from the CSV files beside them)

What stands before the first `## ` of results/README.md is written by hand and stays. A folder's NOTES.md begins with
`# TITLE`, which names the folder in its line; words below the title are linked. Without one the folder is refused.
--pages leaves a table as it is where the files cannot give it, or differ from it by rounding alone, and names it. It
makes no figure: those come from the command of the page, like the rest of a folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.cli import run
from adapt.errors import Refusal

GROUPS = {  # folders of results, their headings and what a reader must know; runs/ is the user's own
    "ablation": ("Ablations", "Many methods on the same test images. The embedded world is simulated."),
    "embedded": (
        "Embedded world",
        "Simulated: scenes and generators drawn by this package, not photographs. These numbers show how the methods\n"
        "behave there; they say nothing about real cameras or generators.",
    ),
    "photographs": ("Photographs", "Real photographs and real neural decoders."),
    "speed": (
        "Speed",
        "Ratio: cost of the baseline over ours, the median of the rounds [least, greatest]; more than 1 is cheaper.\n"
        "Of each stage of a benchmark the first ratio is shown.",
    ),
}
RECORDS = ("provenance.json", "benchmark.json")  # a folder with one of these is a result


@dataclass(frozen=True)
class Config:
    results: Path = Path("results")  # folder of the results and their README.md
    pages: bool = False  # also make the tables of every table.md again


def main(cfg: Config) -> None:
    from adapt.files import write_text

    path = cfg.results / "README.md"
    if not path.is_file():
        raise Refusal(f"{path} is missing: create it with a heading and an introduction, or give --results")
    intro = path.read_text(encoding="utf-8").partition("\n## ")[0].strip()
    found = {group: folders(cfg.results / group) for group in GROUPS}
    count = sum(map(len, found.values()))
    if not count:
        raise Refusal(f"{cfg.results}: no folder GROUP/NAME with a {' or a '.join(RECORDS)}; give --results")
    if cfg.pages:
        for folder in (folder for of_group in found.values() for folder in of_group):
            print(remake(folder), flush=True)
    parts = [intro]
    for group, of_group in found.items():
        title, about = GROUPS[group]
        parts += [f"## {title}", about, table([line(folder) for folder in of_group])] if of_group else []
    write_text(path, "\n\n".join(parts) + "\n")
    print(f"{path}: {count} folders")


def folders(group: Path) -> list[Path]:
    """The results of a group by name; one with a page but without a record is refused."""
    have = sorted({path.parent for name in RECORDS for path in group.glob(f"*/{name}")})
    if lost := sorted({path.parent for path in group.glob("*/table.md")} - set(have)):
        raise Refusal(f"{lost[0]} has a table.md but no {' or '.join(RECORDS)}: put the record back, or delete it")
    return have


def remake(folder: Path) -> str:
    """Write the folder's page with the tables that its files give; returns what became of them."""
    from adapt.benchmark import report
    from adapt.files import write_text
    from adapt.sweeps.tables_again import recipe_of, record_of, tables_again, tables_of, with_tables

    path = folder / "table.md"
    page = path.read_text(encoding="utf-8")
    if (folder / "benchmark.json").is_file():
        again = {("", ""): [report.table(report.read_ratios(folder / "benchmark.json"))]}
    elif recipe_of(record_of(folder)["command"]) == "understand":
        again = of_items(folder, record_of(folder)["items"], page)
    else:
        again = tables_again(folder)
    text, stay = with_tables(page, again)
    if text != page:
        write_text(path, text)
    count = sum(map(len, tables_of(page).values()))
    left = f"; as they were, for the files cannot give them: {', '.join(stay)}" if stay else ""
    return f"{path}: {'changed' if text != page else 'the same'}, {count} tables{left}"


def of_items(folder: Path, items: Sequence[str], page: str) -> dict[tuple[str, str], list[str]]:
    """The tables of a page of adapt.understanding by their places; the corner of each is in the page alone."""
    from adapt.pages.tables import grid
    from adapt.sweeps.tables_again import tables_of
    from adapt.understanding.item import read_csv

    found = iter([numbers for item in items for numbers in read_csv(folder / f"{item}.csv")])
    again: dict[tuple[str, str], list[str]] = {}
    for place, tables in tables_of(page).items():
        for old in tables if place != ("", "") else ():
            (_, *header), *rows = next(found).table()
            again.setdefault(place, []).append(grid([[old.split(" | ")[0].removeprefix("| "), *header], *rows]))
    return again


def line(folder: Path) -> dict[str, str]:
    """What the summary says of a folder, by column; the columns are the same for all."""
    from adapt.benchmark import report
    from adapt.sweeps.at_a_glance import SEEN, VIEWS, Glance, at_a_glance
    from adapt.sweeps.tables_again import record_of

    if (folder / "benchmark.json").is_file():
        record: Mapping[str, Any] = report.read(folder / "benchmark.json")["facts"]
        hardware = record
        found = Glance(others=report.at_a_glance(report.read_ratios(folder / "benchmark.json")))
    else:
        of_run = record_of(folder)
        record, hardware, found = of_run, of_run["hardware"], at_a_glance(folder, of_run)
    place = f"{folder.parent.name}/{folder.name}"
    title, words = title_and_words(folder)
    notes = f", [notes]({place}/NOTES.md)" if words else ""
    return {
        "what was compared": f"[{title}]({place}/table.md){notes}",
        **{f"AUC {seen}, {view}": found.auc(seen, view) for view in VIEWS for seen in SEEN},
        "other numbers": "<br>".join(found.others),
        "test images": found.images,
        "seeds": _seeds(record.get("identity", {})) + (" (brackets: least to greatest)" if found.spread else ""),
        "made": _made(record, hardware),
        "command": code(record["command"]),
    }


def title_and_words(folder: Path) -> tuple[str, str]:
    """The title of a folder's NOTES.md, and what it says below."""
    path = folder / "NOTES.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    title, _, words = text.partition("\n")
    if not title.startswith("# "):
        raise Refusal(f"{path}: begin it with `# ` and a title that says what was compared; it names the folder")
    return title.removeprefix("# ").strip(), words.strip()


def _seeds(identity: Mapping[str, Any]) -> str:
    """The training seeds, and how many draws of shots each has."""
    of_run = identity.get("seeds", [identity["seed"]] if "seed" in identity else [])
    draws = identity.get("draws", 1)
    return ", ".join(map(str, of_run)) + (f", {draws} draws" if draws > 1 else "")


def _made(record: Mapping[str, Any], hardware: Mapping[str, Any]) -> str:
    """Date, revision, hardware, and minutes, as far as they are known. A benchmark's own numbers are times."""
    words = [record["date"]] if "date" in record else []
    words += [record["revision"], f"{hardware['threads']} of {hardware['cores']} cores of {hardware['processor']}"]
    words += [] if hardware["gpus"] == "none" else [hardware["gpus"]]
    return ", ".join([*words, *([f"{record['seconds'] / 60:.1f} minutes"] if "seconds" in record else [])])


def code(command: str) -> str:
    """A command as it was typed, in a cell of a table."""
    return f"`{command.replace('|', chr(92) + '|')}`"


def table(lines: Sequence[Mapping[str, str]]) -> str:
    """Markdown: a line for each folder; a column that is empty in all of them is left out."""
    columns = [name for name in lines[0] if any(of_folder[name] for of_folder in lines)]
    rows = [columns, ["---"] * len(columns), *([of_folder[name] for name in columns] for of_folder in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def command() -> None:
    """Parse the command line and run."""
    run(main, Config)

"""Bring results/README.md up to date: every section's command and first table, and the summary of all of them.

    adapt summarise

A section is `## [title](GROUP/FOLDER/table.md)`; its words are written by hand. Under it come the command with
its time, from its provenance.json, and the first table of its table.md, to the letter. Ablations come first. The table
"At a glance" behind them is made from the metrics.csv of all sections. A folder with a record but without a section is
refused, and the reverse. Takes a second.
"""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

from adapt.cli import run
from adapt.errors import Refusal
from adapt.files import has_table, open_table

GLANCE = ("none", "qf40")  # views of the summary
GLANCE_TITLE = "## At a glance"
GROUPS = ("ablation", "embedded", "photographs", "speed")  # folders of results; runs/ is the user's own
RECORDS = ("provenance.json", "benchmark.json")  # a folder with one of these is a result
SECTION = re.compile(r"^## \[(?P<title>.*?)\]\((?P<folder>[\w-]+/[\w-]+)/table\.md\)$", re.MULTILINE)


@dataclass(frozen=True)
class Config:
    results: Path = Path("results")  # folder of the results and their README.md


def first_table(page: str) -> str:
    """Header, rule and rows of the first table."""
    found = re.search(r"^\|.*\n(?:\|.*\n)*", page, flags=re.MULTILINE)
    return found[0].rstrip("\n") if found else ""


def command_of(folder: Path) -> str:
    """The command, its time, and the cores it had. A benchmark's own numbers are times: none beside its command."""
    if (folder / "benchmark.json").is_file():
        facts = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))["facts"]
        return f"`{facts['command']}` (on {facts['threads']} of {facts['cores']} cores)"
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    hardware = record["hardware"]
    threads = f"{hardware['threads']} of {hardware['cores']} cores"
    return f"`{record['command']}` ({record['seconds'] / 60:.1f} minutes on {threads})"


def glance(title: str, folder: Path) -> list[str]:
    """Rows of the summary: AUC seen and unseen under the two views, means over draws and seeds.

    Of a page that compares many scores only those trained on all qualities, or on the most shots.
    """
    if not has_table(folder / "metrics.csv"):
        return []
    with open_table(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    if "generator" not in rows[0]:
        return []
    keys = list(rows[0])[: list(rows[0]).index("set")]
    if "shots" in keys:
        most = str(max(int(row["shots"]) for row in rows))
        rows = [row for row in rows if row["shots"] in (most, "0")]
    if "trained on" in keys:
        rows = [row for row in rows if row["trained on"] == "mixed"]
    found: dict[tuple[str, ...], dict[tuple[str, str], list[float]]] = {}
    for row in rows:
        wanted = row["metric"] == "auc" and row["generator"] in ("mean:seen", "mean:unseen") and row["value"] != "n/a"
        if row["set"] == "all" and wanted:
            name = tuple(row[key] for key in keys if key not in ("draw", "seed", "trained on"))
            found.setdefault(name, {}).setdefault((row["generator"], row["view"]), []).append(float(row["value"]))
    lines = []
    for name, values in found.items():
        places = [(f"mean:{kind}", view) for view in GLANCE for kind in ("seen", "unseen")]
        shown = [f"{sum(v) / len(v):.3f}" if (v := values.get(place)) else "n/a" for place in places]
        label = f"[{title}]({folder.parent.name}/{folder.name}/table.md)" + (f": {', '.join(name)}" if name else "")
        lines.append(f"| {label} | {' | '.join(shown)} |")
    return lines


def main(cfg: Config) -> None:
    from adapt.files import write_text

    path = cfg.results / "README.md"
    text = path.read_text(encoding="utf-8")
    sections = list(SECTION.finditer(text))
    found = [record.parent for group in GROUPS for name in RECORDS for record in cfg.results.glob(f"{group}/*/{name}")]
    have = {folder.relative_to(cfg.results).as_posix() for folder in found}
    named = {section["folder"] for section in sections}
    if have != named:
        raise Refusal(f"folders without a section: {sorted(have - named)}, sections without: {sorted(named - have)}")
    header = " | ".join(f"AUC {kind}, {view}" for view in GLANCE for kind in ("seen", "unseen"))
    summary = [f"| result | {header} |", "|" + " --- |" * (1 + 2 * len(GLANCE))]
    front: list[str] = []
    parts: list[str] = []
    for i, section in enumerate(sections):
        end = sections[i + 1].start() if i + 1 < len(sections) else len(text)
        below = text[section.end() : end].split(f"\n{GLANCE_TITLE}")[0]
        words = [part for part in below.strip().split("\n\n") if not re.match(r"\||`python ", part)]
        folder = cfg.results / section["folder"]
        table = first_table((folder / "table.md").read_text(encoding="utf-8"))
        place = front if has_table(folder / "ablation.csv") else parts
        place += [section[0], command_of(folder), *words, table]
        summary += glance(section["title"], folder)
    intro = text[: sections[0].start()].split(f"\n{GLANCE_TITLE}")[0].strip() if sections else text.strip()
    write_text(path, "\n\n".join([intro, *front, GLANCE_TITLE, "\n".join(summary), *parts]) + "\n")
    print(f"{path}: {len(sections)} sections")


def command() -> None:
    """Parse the command line and run."""
    run(main, Config)

"""Every command of every README is one that exists, with flags that exist; links lead somewhere."""

import csv
import dataclasses
import importlib
import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml

from adapt import __main__ as program
from adapt import cli
from adapt.evaluation.base_rates import PREDICTIVE
from adapt.evaluation.metrics import PREFIXES
from adapt.evaluation.replicates import GROUPED, MEANS, METRICS, SAMPLES, UNSEEN, WITHIN
from adapt.files import open_table
from adapt.published import importers
from adapt.sweeps.planned_runs import config_class

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "recipes/README.md", *sorted((ROOT / "adapt").rglob("README.md"))]
READMES += [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", ROOT / "results/scores/README.md"]
RESULTS = [ROOT / "results/README.md", *sorted(ROOT.glob("results/*/*/NOTES.md"))]
RESULTS += sorted(path.with_name("table.md") for path in RESULTS[1:])
PAGES = [*READMES, *RESULTS]
LAUNCHERS = ("accelerate", "python", "adapt", "./launch.sh", "torchrun")


def commands(page: Path) -> list[list[str]]:
    """The words of each command line in a block of shell, without those in front of the program."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for part in re.split(r";|'|\$\(", line):
                words = shlex.split(part, comments=True)
                starts = [i for i, word in enumerate(words) if word in LAUNCHERS]
                if starts:
                    found.append(words[starts[0] :])
    return found


def inline_commands(page: Path) -> list[list[str]]:
    """The words of each command in backticks, as `adapt audit` or `lora.py --targets norm`.

    Names in capitals stand for a command, a source or a recipe.
    """
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = [shlex.split(code) for code in re.findall(r"`([^`\n]+)`", text) if "\\" not in code]
    recipes = {f"{name}.py": f"recipes/{name}.py" for name in program.recipes()}
    found = [["python", recipes[words[0]], *words[1:]] if words[0] in recipes else words for words in found]
    found = [words for words in found if len(words) > 1 and words[0] in ("adapt", "python", "./launch.sh")]
    return [words for words in found if not any(word.isupper() and word.isalpha() for word in words[1:3])]


def of(words: list[str]) -> tuple[type | None, list[str]]:
    """The Config that a command line is parsed by, and its flags; None for one that has no flags of ours."""
    names = [(i, word) for i, word in enumerate(words) if word.startswith("recipes/") and word.endswith(".py")]
    if names:
        place, name = names[0]
        return config_class(Path(name).stem), words[place + 1 :]
    if words[0] == "python" and words[1].startswith("tests/"):
        assert (ROOT / words[1]).is_file(), words[1]
        return None, []
    at = words.index("adapt") if "adapt" in words else None
    rest = words[at + 1 :] if at is not None else words[1:]
    if words[0] == "./launch.sh" and (not rest or rest[0] == "test"):
        return None, []
    if not rest or rest[0].startswith("-"):
        return None, []
    if rest[0] == "run" or rest[0] in program.recipes():
        rest = rest[1:] if rest[0] == "run" else rest
        return config_class(rest[0]), rest[1:]
    assert rest[0] in program.COMMANDS, f"no command {rest[0]!r}"
    module = importlib.import_module(f"adapt.commands.{rest[0]}")
    if rest[0] == "prepare":
        if len(rest) == 1:
            return None, []
        assert rest[1] in module.SOURCES
        return importlib.import_module(f"adapt.collect.sources.{rest[1]}").Source, rest[2:]
    if rest[0] == "import":
        if len(rest) < 3 or rest[1].isupper():  # `adapt import NAME FILE` says how, not what
            return None, []
        return importlib.import_module(importers()[rest[1]]).Source, ["--weights", *rest[2:]]
    return module.Config, rest[1:]


@pytest.mark.parametrize("page", READMES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_flags_exist(page) -> None:
    for words in commands(page) + inline_commands(page):
        config, flags = of(words)
        if config is not None:
            known = {field.name for field in dataclasses.fields(config)} | {"config", "help"}
            given = {word[2:].partition("=")[0].removeprefix("no_") for word in flags if word.startswith("--")}
            given = {name.replace("-", "_") for name in given}
            assert given <= known | {f"no_{name}" for name in known}, (shlex.join(words), given - known)


def test_commands_are_found_at_all() -> None:
    assert sum(len(commands(page)) for page in READMES) > 25
    assert sum(len(inline_commands(page)) for page in READMES) > 25
    assert of(["accelerate", "launch", "-m", "adapt", "extract", "--views", "none"])[1] == ["--views", "none"]


@pytest.mark.parametrize("page", READMES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse_with_their_values(page) -> None:
    """A missing flag or a value of the wrong kind is an error of the page; shell variables stand for numbers."""
    for words in commands(page):
        config, flags = of(words)
        if config is None or {"--config", "--help"} & {*flags}:
            continue
        flags = ["0" if word.startswith("$") else word for word in flags]
        first = {"adapt.commands.convert": "--file", "adapt.commands.evaluate": "--scores"}.get(config.__module__)
        if first and not flags[0].startswith("-"):
            flags.insert(0, first)  # which may be left out
        try:
            cli.parse(config, flags)
        except (SystemExit, TypeError) as error:  # TypeError: tyro fails to show the error of a recipe's class
            pytest.fail(f"{shlex.join(words)}: {error}")


def test_the_changelog_names_the_versions_of_the_formats() -> None:
    from adapt.collect import composites
    from adapt.detector import detector
    from adapt.embedded import world
    from adapt.features import cache

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = f"detector.json {detector.FORMAT}, cache of features {cache.FORMAT}, embedded world {world.VERSION}"
    assert f"{versions}, composites {composites.VERSION}." in text


def anchors(page: Path) -> set[str]:
    """What a link may name behind `#`: GitHub's names of the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    names = [re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles]
    return {name + (f"-{n}" if (n := names[:i].count(name)) else "") for i, name in enumerate(names)}


def test_anchors_are_those_of_the_headings() -> None:
    assert "how-to-read-the-table" in anchors(ROOT / "README.md")
    assert {"results", "embedded-world"} <= anchors(ROOT / "results/README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith(("http", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170


def row_of(page: str, start: str) -> str:
    """The first row of the page's first table that begins with these words."""
    lines = (ROOT / "results" / page / "table.md").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"| {start} |"))


def test_numbers_of_the_readme_are_those_of_their_own_rows() -> None:
    """Each number with its interval stands in the row of its own view or method, and none is unchecked."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {f"| {view} |": row_of("embedded/lora", view) for view in ("none", "qf90", "qf65", "qf40")}
    methods = {
        *{("`lora.py`", "lora"), ("`lora.py --targets norm`", "norm"), ("`pair.py --tune lora`", "lora-pair")},
        *{
            ("`linear_probe.py`", "probe-logistic"),
            ("`color_fusion.py`", "fusion"),
            ("`tip_adapter.py`", "tip-adapter"),
        },
    }
    rows |= {f"| {recipe} |": row_of("ablation/embedded", method) for recipe, method in methods}
    number, checked = r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", 0
    for start, row in rows.items():
        shown = re.findall(number, next(line for line in text.splitlines() if line.startswith(start)))
        assert shown and all(value in row for value in shown), start
        checked += len(shown)
    photographs = re.search(r"- On photographs.*?(?=\n- )", text, re.DOTALL)[0]
    shown = re.findall(number, photographs)
    assert len(shown) == 3 and all(value in row_of("ablation/photographs", "lora") for value in shown)
    elsewhere = ("## How to read the table", "## The scores of any detector")  # an example; test_quick_commands.py
    others = sum(len(re.findall(number, text.partition(title)[2].partition("\n## ")[0])) for title in elsewhere)
    assert checked + len(shown) + others == len(re.findall(number, text))


def test_the_citation_is_that_of_the_citation_file_and_the_package() -> None:
    from adapt import __version__

    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (entry,) = re.findall(r"^```bibtex\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.DOTALL)
    found = dict(re.findall(r"^ +(\w+) = \{+(.*?)\}+,?$", entry, re.MULTILINE))
    assert found == {"author": cff["authors"][0]["name"], **{key: cff[key] for key in ("title", "version", "license")}}
    assert found["version"] == __version__


def vocabulary(heading: str) -> set[str]:
    """The words in backticks in the first column of the table with this heading."""
    text = (ROOT / "adapt" / "evaluation" / "README.md").read_text(encoding="utf-8")
    lines = text.partition(f"| `{heading}` | is |\n|---|---|\n")[2].splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_the_vocabulary_of_metrics_csv_is_one_table() -> None:
    """Every word of the code and of the committed files stands in the tables, and the tables have no other words."""
    metrics, generators = vocabulary("metric"), vocabulary("generator")
    used, names = set(), set()
    for path in (ROOT / "results").glob("*/*/metrics.csv.bz2"):
        with open_table(path.with_suffix("")) as file:
            for line in csv.DictReader(file):
                if "metric" in line:
                    used.add(line["metric"])
                    names.add(line["generator"])
    used |= {*METRICS, *WITHIN, "threshold", "unreadable", *(f"{name}_at_PREVALENCE" for name in PREDICTIVE)}
    names |= {*MEANS, *UNSEEN, *SAMPLES, *GROUPED}
    ours = {name.removesuffix("_per_quality") for name in used}
    assert ours == metrics - {"..._per_quality"}
    aggregates = {re.sub(r"^(edit|part):(?!all$).*", r"\1:NAME", name) for name in names if ":" in name} | {"real"}
    assert aggregates == generators
    assert {name.partition(":")[0] + ":" for name in generators - {"real", "part:NAME"}} == set(PREFIXES)

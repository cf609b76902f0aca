"""Every committed result names its command, its tables come again from its numbers, and the summary repeats them."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from adapt.benchmark.report import read_ratios
from adapt.benchmark.report import table as benchmark_table
from adapt.cli import as_dict, parse
from adapt.commands import summarise
from adapt.errors import Refusal
from adapt.evaluation.replicates import WITHOUT_INTERVAL
from adapt.evaluation.side_by_side import read_numbers
from adapt.files import has_table, open_table
from adapt.number_table import columns_of, read_table
from adapt.pages.tables import grid
from adapt.sweeps.ablation_page import Page, write_tables
from adapt.sweeps.planned_runs import config_class
from adapt.sweeps.tables_again import recipe_of, record_of, tables_again, tables_of, with_tables
from adapt.understanding.item import read_csv

RESULTS = Path(__file__).parents[1] / "results"
RUNS = sorted(path.parent for group in summarise.GROUPS for path in RESULTS.glob(f"{group}/*/provenance.json"))
BENCHMARKS = sorted(path.parent for path in RESULTS.glob("speed/*/benchmark.json"))


def name_of(folder: Path) -> str:
    """GROUP/NAME."""
    return f"{folder.parent.name}/{folder.name}"


OF_A_RUN = ("metrics.csv", "config.yaml", "log.jsonl")
FILES = {  # of recipes whose page compares many scores, or none
    "recipes/ablation.py": (
        "ablation.csv",
        "ablation.tex",
        "config.yaml",
        "figures/generators.png",
        "runs.csv",
        "mistakes.csv",
    ),
    "recipes/check_world.py": ("bounds.csv", "config.yaml"),
    "recipes/color_stability.py": ("stability.csv", "config.yaml"),
    "recipes/frontier.py": ("frontier.csv", "config.yaml", "figures/frontier.png"),
    "recipes/localize.py": (*OF_A_RUN, "localization.csv", "confusion-extents.csv", "confusion-tools.csv"),
    "recipes/pair.py": ("metrics.csv", "config.yaml"),
    "recipes/onboard.py": ("metrics.csv", "config.yaml", "figures/recovery.png"),
    "recipes/reproduce.py": ("patterns.csv", "figures.csv", "config.yaml"),
    "recipes/head_scaling.py": ("metrics.csv", "config.yaml"),
    "recipes/understand.py": ("adversarial.csv", "config.yaml"),
    "recipes/jpeg_matrix.py": ("metrics.csv", "config.yaml", "figures/svm_binary_seen.png"),
    "recipes/tip_adapter.py": ("metrics.csv", "config.yaml", "figures/shots.png"),
    "recipes/color_fusion.py": ("metrics.csv", "config.yaml"),
}


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: name_of(folder))
def test_a_result_says_how_it_was_made(folder: Path) -> None:
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert record["command"].startswith("python recipes/") and record["revision"]
    assert record["hardware"]["processor"] and record["versions"]["torch"] and record["seconds"] > 0
    page = (folder / "table.md").read_text(encoding="utf-8")
    assert record["command"] in page.replace("\\", "")
    assert not re.search(r"^\{\w+\}$", page, flags=re.MULTILINE)  # a word that was to be filled in
    assert ("**Embedded world**" in page) == ("embedded" in record["identity"].get("manifest", [""])[0])
    for name in FILES.get(record["command"].split()[1], OF_A_RUN):
        assert has_table(folder / name), name


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: name_of(folder))
def test_every_interval_contains_its_value(folder: Path) -> None:
    """Of every committed table of numbers; an interval that does not says something else than it promises."""
    names = {path.name.removesuffix(".bz2") for path in folder.glob("*.csv*")}
    for name in sorted(names):
        columns = columns_of(folder / name)
        if not {"value", "low", "high"} <= set(columns):
            continue
        for row in read_table(folder / name):
            if {row["value"], row["low"]} & {"-", ""}:  # no number, or none that has an interval
                continue
            value, low, high = (row.number(column) for column in ("value", "low", "high"))
            assert low != low or low - 1e-12 <= value <= high + 1e-12, (name, row)
            if "role" in columns and row["role"] == "control":  # of permuted labels: over permutations, not groups
                continue
            if "metric" in columns and row["metric"] in (*WITHOUT_INTERVAL, "ece_calibrated", "gap_oracle_frozen"):
                assert low != low and high != high, (name, row)


def test_benchmarks_are_their_json() -> None:
    """Every round's cost is kept: the ratios and goals of the page come from them."""
    assert BENCHMARKS
    for folder in BENCHMARKS:
        found = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
        ratios = read_ratios(folder / "benchmark.json")
        assert [ratio.value for ratio in ratios] == pytest.approx([line["ratio"] for line in found["ratios"]])
        page = (folder / "table.md").read_text(encoding="utf-8")
        assert benchmark_table(ratios) in page and found["facts"]["command"] in page.replace("\\", "")
        assert found["facts"]["processor"] and found["facts"]["revision"] and found["facts"]["torch"]


# Tables of committed pages that their CSV files cannot give, by recipe and heading, and why.
NOT_IN_THE_FILES = {
    ("lora", "Controls"): "controls.csv is written since, these runs are older",
    ("linear_probe", "Controls"): "controls.csv is written since, these runs are older",
    ("lora", "Images and groups|Promises"): "errors by group and by image, and bands of thresholds, need the scores",
    ("linear_probe", "Images and groups|Promises"): "as of lora",
    ("refine", "Holes.*|Elsewhere.*|Before and after.*|New generator.*"): "paired differences need both scores",
    ("pair", ".* minus .*"): "paired differences need both scores",
    ("refine", "Images and groups|Promises"): "as of lora",
    ("localize", "Images and groups|Promises"): "as of lora",
    ("onboard", ".*, less the detector as it is.*"): "paired differences need both scores",
    ("frontier", "Validation score per learning rate"): "of runs that were not chosen, so in no file",
    ("color_stability", ""): "intervals of means over statistics need all resamples",
}
# Written with six digits: a number on the edge between two thousandths may fall to the other side.
SIX_DIGITS = {
    ("photographs/jpeg", "svm, family", "Balanced accuracy, all generators"),
    ("photographs/jpeg", "mlp, family", "AUC, seen generators"),
}
THREE_DIGITS = ("head-scaling",)  # its page is older than the fourth digit of its recipe


def made_again(folder: Path, recipe: str) -> dict[tuple[str, str], list[str]]:
    """What the numbers in the committed files give; head_scaling.py rounds in the recipe itself."""
    if recipe != "head_scaling":
        return tables_again(folder)
    with open_table(folder / "metrics.csv") as file:
        header, *rows = csv.reader(file)
    digits = 3 if folder.name in THREE_DIGITS else 4
    rows = [[*row[:3], *(f"{float(word):.{digits}g}" for word in row[3:])] for row in rows]
    return {("", ""): [grid([header, *rows])]}


def differing(a: str, b: str) -> list[tuple[float, float]]:
    """Numbers that differ between two tables of the same words."""
    number = r"-?\d+\.\d+"
    assert re.sub(number, "0", a) == re.sub(number, "0", b)
    pairs = zip(re.findall(number, a), re.findall(number, b), strict=True)
    return [(float(x), float(y)) for x, y in pairs if x != y]


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: name_of(folder))
def test_every_table_comes_again_from_the_committed_numbers(folder: Path, tmp_path) -> None:
    record = record_of(folder)
    recipe = recipe_of(record["command"])
    page = (folder / "table.md").read_text(encoding="utf-8")
    if recipe == "ablation":
        return ablation_again(folder, record, page, tmp_path)
    if recipe == "understand":
        return understood_again(folder, page)
    committed, again = tables_of(page), made_again(folder, recipe)
    assert committed
    for place, tables in committed.items():
        reasons = [
            why for (of, title), why in NOT_IN_THE_FILES.items() if of == recipe and re.fullmatch(title, place[0])
        ]
        if place in again and (name_of(folder), *place) in SIX_DIGITS:
            for one, other in zip(tables, again[place], strict=True):
                assert all(abs(x - y) < 0.0011 for x, y in differing(one, other))
        elif place in again or not reasons:
            assert tables == again.get(place), place


def ablation_again(folder: Path, record: dict, page: str, tmp_path: Path) -> None:
    """From the first table to before the commands; LaTeX and the table of generators; all from ablation.csv."""
    memory = "first process, libraries included" if record["hardware"]["gpus"] == "none" else "GPU's tensors"
    sections = write_tables(tmp_path, Page(read_numbers(folder / "ablation.csv"), memory))
    shown = page.partition("\n\n| ")[2].partition("\n\n![")[0]
    assert without_words_about_intervals("| " + shown) == without_words_about_intervals("\n\n".join(sections))
    made, committed = ((place / "ablation.tex").read_text(encoding="utf-8") for place in (tmp_path, folder))
    assert rows_of_latex(made) == rows_of_latex(committed)
    with open_table(tmp_path / "generators.csv") as made, open_table(folder / "generators.csv") as committed:
        assert made.read() == committed.read()


def without_words_about_intervals(page: str) -> list[str]:
    """The paragraphs but the one on intervals and marks: it is that of the version that measured them."""
    parts = page.split("\n\n")
    rest = [part for part in parts if not part.startswith("`0.874 [0.851, 0.896] ±0.004`")]
    assert len(rest) == len(parts) - 1
    return rest


def rows_of_latex(text: str) -> list[str]:
    """All lines but the captions, which speak of intervals and marks."""
    lines = text.splitlines()
    rest = [line for line in lines if not line.startswith("\\caption")]
    assert 0 < len(lines) - len(rest) == text.count("\\begin{table*}")  # one caption for each table
    return rest


def understood_again(folder: Path, page: str) -> None:
    """Every table of an item from its CSV file (six digits), and every number of the summary from one of them."""
    made: dict[str, list[str]] = {}
    for item in record_of(folder)["items"]:
        for numbers in read_csv(folder / f"{item}.csv"):
            made.setdefault(numbers.caption, []).append(grid(numbers.table()[1:]))
    (summary, *tables) = re.findall(r"(?:\n\n([^\n|]+):)?\n\n(\|.*?)(?=\n\n)", page, flags=re.DOTALL)
    assert len(tables) == sum(map(len, made.values()))
    again = [words for texts in made.values() for text in texts for words in re.findall(r"[^|]+", text)]
    for line in summary[1].splitlines()[2:]:
        value = line.split(" | ")[2]
        assert any(close(value, words.strip()) for words in again), line
    for caption, table in tables:
        shown = grid([line.strip("| ").split(" | ") for line in table.splitlines()[2:]])
        assert any(close(text, shown) for text in made[caption]), caption


def close(a: str, b: str) -> bool:
    """The same words, and numbers that differ by no more than rounding of what was rounded to six digits before."""
    number = r"-?\d+\.\d+"
    return re.sub(number, "0", a) == re.sub(number, "0", b) and all(abs(x - y) < 0.0011 for x, y in differing(a, b))


def test_the_exceptions_are_no_more_than_needed() -> None:
    recipes, titles = {}, {}
    for folder in RUNS:
        record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        recipe = Path(record["command"].split()[1]).stem
        places = set(tables_of((folder / "table.md").read_text(encoding="utf-8")))
        recipes.setdefault(recipe, set()).update(title for title, _ in places)
        titles[name_of(folder)] = places
    for recipe, title in NOT_IN_THE_FILES:
        assert any(re.fullmatch(title, place) for place in recipes[recipe]), (recipe, title)
    assert all((title, part) in titles[name] for name, title, part in SIX_DIGITS)


@pytest.fixture(scope="module")
def committed(tmp_path_factory) -> Path:
    """A copy of the committed folders to write into, without figures."""
    root = tmp_path_factory.mktemp("results")
    for folder in (*RUNS, *BENCHMARKS):
        shutil.copytree(folder, root / name_of(folder), ignore=lambda _, names: {"figures", "tensorboard", "detector"})
    shutil.copy(RESULTS / "README.md", root)
    return root


def lines_of(summary: Path) -> dict[str, list[str]]:
    """The cells of each folder's line, by the folder that its first cell links."""
    found = {}
    for line in summary.read_text(encoding="utf-8").splitlines():
        if page := re.match(r"\| \[.*?\]\((\w+/[\w-]+)/table\.md\)", line):
            assert page[1] not in found
            found[page[1]] = line.removeprefix("| ").removesuffix(" |").split(" | ")
    return found


def test_the_summary_is_what_the_command_makes_and_has_a_line_for_each_folder(committed) -> None:
    before = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert set(lines_of(RESULTS / "README.md")) == {name_of(folder) for folder in (*RUNS, *BENCHMARKS)}
    assert len(before.splitlines()) < 150
    (committed / "README.md").write_text(before.partition("\n## ")[0] + "\n\n## Old\n", encoding="utf-8")
    summarise.main(summarise.Config(results=committed))
    assert (committed / "README.md").read_text(encoding="utf-8") == before


def test_the_numbers_of_the_summary_are_those_of_the_files() -> None:
    """AUCs against metrics.csv, read here a second time, or against the page."""
    lines, checked = lines_of(RESULTS / "README.md"), 0
    for folder in RUNS:
        if not has_table(folder / "metrics.csv") or name_of(folder) == "speed/head-scaling":
            continue
        with open_table(folder / "metrics.csv") as file:
            rows = [row for row in csv.DictReader(file) if (row["set"], row["metric"]) == ("all", "auc")]
        for i, (view, seen) in enumerate((view, seen) for view in ("none", "qf40") for seen in ("seen", "unseen")):
            values = [row for row in rows if (row["view"], row["generator"]) == (view, f"mean:{seen}")]
            for words in lines[name_of(folder)][1 + i].split("<br>"):
                name, _, shown = words.rpartition(": ")
                chosen = [float(row["value"]) for row in values if row["value"] != "n/a" and score_of(row) == name]
                assert (shown == "n/a") == (not chosen)
                assert not chosen or abs(float(shown.split()[0]) - sum(chosen) / len(chosen)) < 0.00051, words
                checked += 1
    on_page = {"ablation/embedded": (1, 3), "ablation/photographs": (1, 3), "photographs/tiny-frontier": (2, 4)}
    on_page |= dict.fromkeys(("embedded/localize", "photographs/localize", "embedded/understand"), (5,))
    for name, columns in on_page.items():
        shown = [words for column in columns for words in re.findall(r"\d\.\d{3} \[.*?\]", lines[name][column])]
        page = (RESULTS / name / "table.md").read_text(encoding="utf-8")
        assert len(shown) >= 2 and all(words in page for words in shown), name
    assert checked > 250


def score_of(row: dict[str, str]) -> str:
    """How a line calls the score of a row, as `Tip-Adapter, 512 shots`; seeds and draws share a name."""
    if row.get("trained on", "mixed") != "mixed":
        return "not shown"
    names = list(row)[: list(row).index("set")]
    words = (row[name] + " shots" * (name == "shots") for name in names if name not in ("draw", "seed", "trained on"))
    return ", ".join(words)


def test_pages_are_made_again_and_none_changes(committed, capsys) -> None:
    """Bytes of every page; a table that was changed by hand is put right, and nothing else of its page is touched."""
    pages = {path: path.read_bytes() for path in committed.glob("*/*/table.md")}
    lora, understood = committed / "embedded/lora/table.md", committed / "embedded/understand/table.md"
    for path, right, wrong in (
        (lora, "| none | 0.811 [", "| none | 0.998 ["),
        (understood, "| none | 0.809 [", "| none | 0.819 ["),
        (committed / "ablation/embedded/table.md", "| lora | 3 | 0.806", "| lora | 3 | 0.816"),
        (
            committed / "speed/benchmark/table.md",
            "| packed bf16 | open_clip fp32 | 2.22",
            "| packed bf16 | open_clip fp32 | 9.22",
        ),
        (committed / "photographs/tiny-frontier/table.md", "| norm | 0.004 | 4,033", "| norm | 0.004 | 9,033"),
    ):
        text = path.read_text(encoding="utf-8")
        assert right in text
        path.write_text(text.replace(right, wrong, 1), encoding="utf-8")
    summarise.main(summarise.Config(results=committed, pages=True))
    assert {path: path.read_bytes() for path in pages} == pages
    said = capsys.readouterr().out
    assert f"{lora}: changed" in said and said.count(": changed") == 5
    assert f"{committed / 'embedded/jpeg/table.md'}: the same, 24 tables\n" in said


def test_a_page_follows_its_numbers(committed) -> None:
    """A changed CSV file changes the page that is made of it; what has no table in the files stays."""
    folder = committed / "embedded/lora-seed3"
    page = (folder / "table.md").read_text(encoding="utf-8")
    with open_table(folder / "metrics.csv") as file:
        text = file.read()
    line = next(line for line in text.splitlines() if line.startswith("all,qf40,mean:seen,auc,"))
    (folder / "metrics.csv").write_text(
        text.replace(line, "all,qf40,mean:seen,auc,0.123,0.1,0.2,1,1,1"), encoding="utf-8"
    )
    again, stay = with_tables(page, tables_again(folder))
    (folder / "metrics.csv").unlink()
    changed = [(a, b) for a, b in zip(page.splitlines(), again.splitlines(), strict=True) if a != b]
    assert (
        len(changed) == 1
        and changed[0][1].startswith("| qf40 | 0.123 [0.100, 0.200] |")
        and stay == ["Images and groups", "Promises"]
    )


def test_a_folder_without_title_or_record_is_refused(committed, tmp_path) -> None:
    root = tmp_path / "results"
    shutil.copytree(committed, root)
    notes = root / "embedded/lora/NOTES.md"
    notes.write_text("LoRA\n", encoding="utf-8")
    with pytest.raises(Refusal, match=r"NOTES\.md: begin it with"):
        summarise.main(summarise.Config(results=root))
    notes.write_text("# Mine\n", encoding="utf-8")
    summarise.main(summarise.Config(results=root))
    assert "| [Mine](embedded/lora/table.md) |" in (root / "README.md").read_text(
        encoding="utf-8"
    )  # no words, no link
    (root / "embedded/lora/provenance.json").unlink()
    with pytest.raises(Refusal, match=r"embedded/lora has a table\.md but no provenance"):
        summarise.main(summarise.Config(results=root))
    with pytest.raises(Refusal, match=r"README\.md is missing"):
        summarise.main(summarise.Config(results=tmp_path))


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: name_of(folder))
def test_figures_are_those_that_the_page_shows(folder: Path) -> None:
    shown = re.findall(r"!\[[^\]]*\]\((figures/[^)]+)\)", (folder / "table.md").read_text(encoding="utf-8"))
    readme = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    shown += re.findall(rf"!\[[^\]]*\]\(results/{name_of(folder)}/(figures/[^)]+)\)", readme)
    assert sorted(shown) == sorted(path.relative_to(folder).as_posix() for path in folder.glob("figures/*"))


def test_every_committed_config_can_be_run_again() -> None:
    """`--config results/GROUP/NAME/config.yaml` reads it; going on from a detector is recipes/refine.py today."""
    read = 0
    for folder in RUNS:
        record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        recipe = Path(record["command"].split()[1]).stem
        recipe = "refine" if recipe == "lora" and record["identity"].get("init") else recipe
        config = parse(config_class(recipe), ["--config", str(folder / "config.yaml")])
        wanted = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        assert as_dict(config).items() >= wanted.items(), folder
        read += recipe == "refine"
    assert read == 4

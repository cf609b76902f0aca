"""Every committed result names its command, its tables come again from its numbers, and the summary repeats them."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from adapt.benchmark.report import table as benchmark_table
from adapt.benchmark.timing import Ratio
from adapt.cli import as_dict, parse
from adapt.commands import summarise
from adapt.errors import Refusal
from adapt.evaluation.attribution import Count, Rate
from adapt.evaluation.side_by_side import read_numbers
from adapt.files import has_table, open_table
from adapt.pages.map_tables import map_sections
from adapt.pages.read_back import read_rows, read_run
from adapt.pages.tables import grid, markdown
from adapt.sweeps import frontier
from adapt.sweeps.ablation_page import Page, write_tables
from adapt.sweeps.planned_runs import config_class, read_metrics
from adapt.training import few_shot as shots
from adapt.training.comparison import Study
from adapt.training.localization import PARTLY
from adapt.understanding.item import Numbers, Value

RESULTS = Path(__file__).parents[1] / "results"
RUNS = sorted(path.parent for group in summarise.GROUPS for path in RESULTS.glob(f"{group}/*/provenance.json"))
BENCHMARKS = sorted(path.parent for path in RESULTS.glob("speed/*/benchmark.json"))


def name_of(folder: Path) -> str:
    """GROUP/NAME."""
    return f"{folder.parent.name}/{folder.name}"


OF_A_RUN = ("metrics.csv", "config.yaml", "log.jsonl")
FILES = {  # of recipes whose page compares many scores, or none
    "recipes/ablation.py": ("ablation.csv", "ablation.tex", "report.html", "config.yaml", "figures/generators.png"),
    "recipes/color_stability.py": ("stability.csv", "config.yaml"),
    "recipes/frontier.py": ("frontier.csv", "config.yaml", "figures/frontier.png"),
    "recipes/localize.py": (*OF_A_RUN, "localization.csv", "confusion-extents.csv", "confusion-tools.csv"),
    "recipes/pair.py": ("metrics.csv", "config.yaml"),
    "recipes/onboard.py": ("metrics.csv", "config.yaml", "figures/recovery.png"),
    "recipes/head_scaling.py": ("metrics.csv", "config.yaml"),
    "recipes/understand.py": ("report.html", "config.yaml"),
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
    assert ("**Embedded world**" in page) == ("embedded" in record["identity"].get("manifest", [""])[0])
    for name in FILES.get(record["command"].split()[1], OF_A_RUN):
        assert has_table(folder / name), name


def test_benchmarks_are_their_json() -> None:
    """Every round's cost is kept: the ratios and goals of the page come from them."""
    assert BENCHMARKS
    for folder in BENCHMARKS:
        found = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
        kept = ("stage", "case", "ours", "baseline", "costs", "baseline_costs", "unit", "goal", "facts")
        ratios = [Ratio(**{name: line[name] for name in kept}) for line in found["ratios"]]
        page = (folder / "table.md").read_text(encoding="utf-8")
        assert benchmark_table(ratios) in page and found["facts"]["command"] in page.replace("\\", "")
        assert found["facts"]["processor"] and found["facts"]["revision"] and found["facts"]["torch"]


# Tables of committed pages that their CSV files cannot give, by recipe and heading, and why.
NOT_IN_THE_FILES = {
    ("lora", "Controls"): "controls.csv is written since, these runs are older",
    ("linear_probe", "Controls"): "controls.csv is written since, these runs are older",
    ("lora", "Comparison.*"): "comparison.csv of these runs was not kept: paired differences need both scores",
    ("lora", "Holes.*|Elsewhere.*|Before and after.*|New generator.*"): "paired differences need both scores",
    ("pair", ".* minus .*"): "paired differences need both scores",
    ("localize", "Promises"): "the name of the calibration is in the detector, which is not kept",
    ("onboard", ".*, less the detector as it is.*"): "paired differences need both scores",
    ("frontier", "Validation score per learning rate"): "of runs that were not chosen, so in no file",
    ("color_stability", ""): "intervals of means over statistics need all resamples",
}
# Written with six digits: a number on the edge between two thousandths may fall to the other side.
SIX_DIGITS = {
    ("embedded/colour", "AUC, seen generators", ""),
    *(("embedded/onboard-heads", title, "") for title in ("AUC, new generator", "AUC, seen before")),
    ("embedded/tip", "Balanced accuracy, all generators", ""),
    ("embedded/jpeg", "svm, family", "AUC, unseen generators"),
    ("embedded/jpeg", "mlp, binary", "Balanced accuracy, all generators"),
    ("photographs/jpeg", "svm, family", "Balanced accuracy, all generators"),
    ("photographs/jpeg", "mlp, family", "AUC, seen generators"),
}
THREE_DIGITS = ("head-scaling",)  # its page is older than the fourth digit of its recipe


def tables_of(page: str) -> dict[tuple[str, str], list[str]]:
    """The tables under each heading of the second and third level."""
    found, place = {}, ("", "")
    for block in re.split(r"\n\n+|\n(?=#)", page):
        level, _, title = block.partition(" ")
        if level in ("##", "###"):
            place = (title, "") if level == "##" else (place[0], title)
        elif block.startswith("|"):
            found.setdefault(place, []).append(block.strip("\n"))
    return found


def of_study(folder: Path, table: str = "metrics.csv", **of_study) -> Study:
    with open_table(folder / table) as file:
        keys = file.readline().partition(",set,")[0].split(",")
    study = Study(keys, resamples=0, seed=0, **of_study)
    study.cells = read_metrics(folder / table)
    return study


def made_again(folder: Path, recipe: str, record: dict) -> str:
    """What the library makes of the numbers in the committed files, as Markdown."""
    if recipe in ("lora", "linear_probe", "localize"):
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        parts = [PARTLY + name for name in record["trained_on"]] if recipe == "localize" else []
        found = read_run(folder, [*record["trained_on"], *parts], config.get("classes", "family"))
        layers = of_study(folder, "layers.csv").grids(level="###") if has_table(folder / "layers.csv") else []
        sections = ["## Layers", *layers] if layers else []
        if recipe == "localize":
            confused = [read_rows(folder / f"confusion-{name}.csv", Count) for name in ("extents", "tools")]
            sections = map_sections(read_rows(folder / "localization.csv", Rate), *confused)
        return markdown(found.cells, None, found.controls, found.differences, sections, found.attribution)
    if recipe == "jpeg_matrix":
        every, page = of_study(folder), []
        for name in dict.fromkeys(key[:2] for key in every.cells):
            one = Study(every.keys[2:], 0, 0)
            one.cells = {key[2:]: cells for key, cells in every.cells.items() if key[:2] == name}
            page += [f"## {', '.join(name)}", *one.grids(level="###")]
        return "\n\n".join(page)
    if recipe in ("pair", "tip_adapter", "onboard", "color_fusion"):
        study = of_study(folder, **({"shown": shots.SHOWN} if recipe == "onboard" else {}))
        grids = (study if recipe == "color_fusion" else study.over_last_key()).grids()
        return "\n\n".join([grids[1] if recipe == "pair" else "", *grids])
    if recipe == "frontier":
        points = frontier.read_csv(folder / "frontier.csv")
        unseen = grid(frontier.per_view(points))
        return "\n\n".join([grid(frontier.headline(points)), "## AUC unseen, per view", unseen])
    if recipe == "head_scaling":
        with open_table(folder / "metrics.csv") as file:
            header, *rows = csv.reader(file)
        digits = 3 if folder.name in THREE_DIGITS else 4
        return grid([header, *([*row[:3], *(f"{float(word):.{digits}g}" for word in row[3:])] for row in rows)])
    return ""


def differing(a: str, b: str) -> list[tuple[float, float]]:
    """Numbers that differ between two tables of the same words."""
    number = r"-?\d+\.\d+"
    assert re.sub(number, "0", a) == re.sub(number, "0", b)
    pairs = zip(re.findall(number, a), re.findall(number, b), strict=True)
    return [(float(x), float(y)) for x, y in pairs if x != y]


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: name_of(folder))
def test_every_table_comes_again_from_the_committed_numbers(folder: Path, tmp_path) -> None:
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    recipe = Path(record["command"].split()[1]).stem
    page = (folder / "table.md").read_text(encoding="utf-8")
    if recipe == "ablation":
        return ablation_again(folder, record, page, tmp_path)
    if recipe == "understand":
        return understood_again(folder, page)
    committed, again = tables_of(page), tables_of(made_again(folder, recipe, record))
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
    assert "| " + shown == "\n\n".join(sections)
    assert (tmp_path / "ablation.tex").read_bytes() == (folder / "ablation.tex").read_bytes()
    with open_table(tmp_path / "generators.csv") as made, open_table(folder / "generators.csv") as committed:
        assert made.read() == committed.read()


def understood_again(folder: Path, page: str) -> None:
    """Every table of an item from its CSV file (six digits), and every number of the summary from one of them."""
    made: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for caption in dict.fromkeys(row["table"] for row in rows):
            cells = {(r["row"], r["column"]): cell_of(r) for r in rows if r["table"] == caption}
            made.setdefault(caption, []).append(grid(Numbers(caption, "", cells).table()[1:]))
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


def cell_of(row: dict[str, str]) -> Value | str:
    """A cell of understand.py's CSV: a text stands alone."""
    if not row["n"]:
        return row["value"]
    value, low, high = (float("nan") if word in ("n/a", "") else float(word) for word in list(row.values())[3:6])
    return Value(value, low, high, int(row["n"]))


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


def first_table(text: str) -> list[str]:
    """Header and rows of the first table of a page."""
    table = re.search(r"^\|.*\n(?:\|.*\n)*", text, flags=re.MULTILINE)
    return [line for line in table[0].splitlines() if not line.startswith("| ---")] if table else []


def test_the_summary_repeats_the_pages() -> None:
    summary = (RESULTS / "README.md").read_text(encoding="utf-8")
    sections = re.split(r"^## .*?\(([\w-]+/[\w-]+)/table\.md\).*$", summary, flags=re.MULTILINE)
    assert set(sections[1::2]) == {name_of(folder) for folder in (*RUNS, *BENCHMARKS)}
    for name, text in zip(sections[1::2], sections[2::2], strict=True):
        page = (RESULTS / name / "table.md").read_text(encoding="utf-8")
        assert len(first_table(text)) >= 2 and first_table(text) == first_table(page), name


def test_the_summary_is_what_the_recipe_makes(tmp_path) -> None:
    for folder in (*RUNS, *BENCHMARKS):
        (tmp_path / name_of(folder)).mkdir(parents=True)
        for name in ("table.md", "metrics.csv.gz", "ablation.csv.gz", "provenance.json", "benchmark.json"):
            if (folder / name).is_file():
                (tmp_path / name_of(folder) / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "README.md").write_bytes((RESULTS / "README.md").read_bytes())
    summarise.main(summarise.Config(results=tmp_path))
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (RESULTS / "README.md").read_text(encoding="utf-8")
    with open_table(RESULTS / "embedded/lora" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if (row["set"], row["view"], row["generator"], row["metric"]) == ("all", "qf40", "mean:unseen", "auc"):
            line = next(
                line for line in (tmp_path / "README.md").read_text().splitlines() if "(embedded/lora/" in line
            )
            assert line.endswith(f"| {float(row['value']):.3f} |")
    place = f"({name_of(RUNS[0])}/table.md)\n\n"
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(page.replace(place, place + "`x` in words, which stay.\n\n"), encoding="utf-8")
    summarise.main(summarise.Config(results=tmp_path))
    assert (tmp_path / "README.md").read_text(encoding="utf-8").count("`x` in words, which stay.") == 1
    (tmp_path / name_of(RUNS[0]) / "provenance.json").unlink()
    with pytest.raises(Refusal, match="sections without"):
        summarise.main(summarise.Config(results=tmp_path))


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

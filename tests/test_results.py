"""Every committed result names its command, and the summary repeats its page to the letter."""

import csv
import json
import re
from pathlib import Path

import pytest
import summarise

from adapt.errors import Refusal

RESULTS = Path(__file__).parents[1] / "results"
RUNS = sorted(path.parent for path in RESULTS.glob("*/provenance.json"))
OF_A_RUN = ("metrics.csv", "config.yaml", "log.jsonl", "figures/auc_per_view.png")
FILES = {  # of recipes whose page compares many scores, or none
    "recipes/ablation.py": ("ablation.csv", "ablation.tex", "generators.csv", "config.yaml", "figures/generators.png"),
    "recipes/color_stability.py": ("stability.csv", "config.yaml"),
    "recipes/frontier.py": ("frontier.csv", "config.yaml", "figures/frontier.png"),
    "recipes/pair.py": ("metrics.csv", "config.yaml"),
    "recipes/onboard.py": ("metrics.csv", "config.yaml", "figures/recovery.png"),
    "recipes/head_scaling.py": ("metrics.csv", "config.yaml"),
    "recipes/understand.py": ("report.html", "config.yaml"),
    "recipes/jpeg_matrix.py": ("metrics.csv", "config.yaml", "figures/svm_binary_seen.png"),
    "recipes/tip_adapter.py": ("metrics.csv", "config.yaml", "figures/shots.png"),
    "recipes/color_fusion.py": ("metrics.csv", "config.yaml"),
}


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_a_result_says_how_it_was_made(folder: Path) -> None:
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert record["command"].startswith("python recipes/") and record["revision"]
    assert record["hardware"]["processor"] and record["versions"]["torch"] and record["seconds"] > 0
    page = (folder / "table.md").read_text(encoding="utf-8")
    assert record["command"] in page.replace("\\", "")
    assert ("**Embedded world**" in page) == ("embedded" in record["identity"].get("manifest", [""])[0])
    for name in FILES.get(record["command"].split()[1], OF_A_RUN):
        assert (folder / name).is_file(), name


def first_table(text: str) -> list[str]:
    """Header and rows of the first table of a page."""
    table = re.search(r"^\|.*\n(?:\|.*\n)*", text, flags=re.MULTILINE)
    return [line for line in table[0].splitlines() if not line.startswith("| ---")] if table else []


def test_the_summary_repeats_the_pages() -> None:
    summary = (RESULTS / "README.md").read_text(encoding="utf-8")
    sections = re.split(r"^## .*?\(([\w-]+)/table\.md\).*$", summary, flags=re.MULTILINE)
    assert set(sections[1::2]) == {folder.name for folder in RUNS}
    for name, text in zip(sections[1::2], sections[2::2], strict=True):
        page = (RESULTS / name / "table.md").read_text(encoding="utf-8")
        assert len(first_table(text)) >= 2 and first_table(text) == first_table(page), name


def test_the_summary_is_what_the_recipe_makes(tmp_path) -> None:
    for folder in RUNS:
        (tmp_path / folder.name).mkdir()
        for name in ("table.md", "metrics.csv", "provenance.json"):
            if (folder / name).is_file():
                (tmp_path / folder.name / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "README.md").write_bytes((RESULTS / "README.md").read_bytes())
    summarise.main(summarise.Config(results=tmp_path))
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (RESULTS / "README.md").read_text(encoding="utf-8")
    with (RESULTS / "embedded-lora" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if (row["set"], row["view"], row["generator"], row["metric"]) == ("all", "qf40", "mean:unseen", "auc"):
            line = next(
                line for line in (tmp_path / "README.md").read_text().splitlines() if "(embedded-lora/" in line
            )
            assert line.endswith(f"| {float(row['value']):.3f} |")
    (tmp_path / RUNS[0].name / "provenance.json").unlink()
    with pytest.raises(Refusal, match="sections without"):
        summarise.main(summarise.Config(results=tmp_path))

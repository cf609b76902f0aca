"""The notebook in recipes/: every cell runs, and gives what is saved in it."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks import code_cells, differences, execute, read, shown

import adapt

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "recipes/tour.ipynb"
RUNNER = ROOT / "tests/notebooks.py"


def run(source: Path, folder: Path) -> subprocess.CompletedProcess:
    """Execute a notebook in a fresh process, in an empty folder with its own cache; the result is fresh.ipynb."""
    (folder / "work").mkdir()
    environment = os.environ | {"MPLBACKEND": "Agg", "HOME": str(folder), "TMPDIR": str(folder)}
    environment["ADAPT_CACHE"] = str(folder / "cache")
    command = [sys.executable, str(RUNNER), str(source), str(folder / "fresh.ipynb")]
    return subprocess.run(command, cwd=folder / "work", env=environment, capture_output=True, text=True, check=False)


def notebook(*sources: str) -> dict:
    """A notebook without outputs of these code cells."""
    cells = [{"cell_type": "code", "source": [source], "outputs": []} for source in sources]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def test_the_tour_gives_what_is_saved_in_it(tmp_path) -> None:
    done = run(TOUR, tmp_path)
    assert done.returncode == 0, done.stderr
    assert differences(read(TOUR), read(tmp_path / "fresh.ipynb")) == []
    assert str(tmp_path) not in (tmp_path / "fresh.ipynb").read_text(encoding="utf-8")
    assert not any((tmp_path / "work").iterdir())  # it leaves nothing where it is started


def test_the_saved_tour_is_whole_small_and_of_no_machine() -> None:
    tour, text = read(TOUR), TOUR.read_text(encoding="utf-8")
    assert [cell["execution_count"] for cell in code_cells(tour)] == list(range(1, len(code_cells(tour)) + 1))
    assert sum(bool(cell["outputs"]) for cell in code_cells(tour)) >= len(code_cells(tour)) - 1  # one only trains
    assert TOUR.stat().st_size < 400_000
    assert not re.search(r"(?<![\w.:])/(home|root|tmp|work|usr|opt|mnt|Users)/|[A-Z]:\\\\", text)
    assert set(tour["metadata"]) == {"kernelspec", "language_info"}


def test_the_tour_explains_each_step_and_shows_the_public_names() -> None:
    tour = read(TOUR)
    assert "**simulated**" in "".join(tour["cells"][0]["source"])
    assert [cell["cell_type"] for cell in tour["cells"]] == ["markdown", "code"] * len(code_cells(tour)) + ["markdown"]
    assert 8 <= len(code_cells(tour)) <= 12
    code = "\n".join("".join(cell["source"]) for cell in code_cells(tour))
    assert set(re.findall(r"\badapt\.([a-z_]+)\(", code)) == set(adapt.__all__)


def test_outputs_that_differ_or_are_missing_are_found() -> None:
    saved = notebook("print('AUC', 0.75, 'of', 24, 'groups')", "import matplotlib.pyplot as plt; f = plt.figure()")
    execute(saved)
    assert shown(code_cells(saved)[0]) == ("AUC 0.75 of 24 groups\n", 0) and shown(code_cells(saved)[1]) == ("", 1)

    def printed(text: str) -> list[str]:
        fresh = copy.deepcopy(saved)
        fresh["cells"][0]["outputs"][0]["text"] = [text]
        return differences(saved, fresh)

    assert printed("AUC  0.77 of 24 groups\n") == []  # the last digit may follow the processor
    assert printed("AUC 0.78 of 24 groups\n") == ["cell 1: saved 0.75, printed 0.78"]
    assert printed("AUC -0.75 of 24 groups\n") == ["cell 1: saved 0.75, printed -0.75"]
    assert printed("AUC 0.75 of 25 groups\n") == ["cell 1: saved 24, printed 25"]
    assert len(printed("AUC 0.75 of 24 images\n")) == len(printed("AUC nan of 24 groups\n")) == 1
    bare = notebook(*(cell["source"][0] for cell in saved["cells"]))
    assert len(differences(bare, saved)) == 2 and differences(saved, copy.deepcopy(saved)) == []


def test_a_cell_that_raises_ends_the_run_and_nothing_is_saved(tmp_path) -> None:
    source = tmp_path / "broken.ipynb"
    source.write_text(json.dumps(notebook("a = 1", "a / 0")), encoding="utf-8")
    done = run(source, tmp_path)
    assert done.returncode == 1 and "<cell 2>" in done.stderr and "ZeroDivisionError" in done.stderr
    assert not (tmp_path / "fresh.ipynb").exists()
    with pytest.raises(NameError):
        execute(notebook("a = 1", "b"))
    with pytest.raises(ValueError, match="cell 2 ends with the value 1"):
        execute(notebook("a = 1; print(a)", "a"))

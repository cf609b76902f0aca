"""Started with a Python that lacks the packages: one line that says what to do, and status 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def bare(*words: object, has_adapt: bool) -> subprocess.CompletedProcess[str]:
    """Python without its installed packages: -S reads no site-packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(ROOT)} if has_adapt else {}
    command = [sys.executable, "-S", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_without_adapt_a_recipe_says_how_it_is_started(recipe) -> None:
    done = bare(recipe, "--epochs", "1", has_adapt=False)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "has no package adapt" in line
    assert f"`./launch.sh {recipe.stem}`" in line and f"recipes/{recipe.name}`" in line


@pytest.mark.parametrize("words", [["recipes/lora.py"], ["-m", "adapt", "extract"], ["-m", "adapt", "run", "lora"]])
def test_without_the_other_packages_a_line_names_the_first(words) -> None:
    done = bare(*(ROOT / word if word.endswith(".py") else word for word in words), has_adapt=True)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {sys.executable} has no package ") and "`./launch.sh " in line

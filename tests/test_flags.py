"""Shared flags: inherited once, documented in --help, overridden where a recipe says so."""

import ast
import dataclasses
import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from adapt import flags
from adapt.cli import parse
from adapt.errors import Refusal
from adapt.sweeps.planned_runs import config_class

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
GROUPS = [value for value in vars(flags).values() if dataclasses.is_dataclass(value) and dataclasses.fields(value)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_declares_again_what_a_group_says(recipe) -> None:
    """A Config that has all of a group's flags with their defaults inherits them."""
    config = config_class(recipe)
    own = {field.name: (field.type, field.default) for field in dataclasses.fields(config)}
    for group in GROUPS:
        shared = {field.name: (field.type, field.default) for field in dataclasses.fields(group)}
        if shared.items() <= own.items():
            assert issubclass(config, group), f"{recipe} declares the flags of flags.{group.__name__} itself"


def test_inherited_flags_have_their_words_in_help() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "recipes/lora.py", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    words = " ".join(done.stdout.replace("│", " ").split())
    for said in ("tables of images; embedded[@SEED] is built in", "share of the steps with a rising rate", "AdamW"):
        assert said in words


def test_an_inherited_flag_may_be_overridden() -> None:
    assert parse(config_class("tip_adapter"), []).layer == "proj"
    assert parse(config_class("tip_adapter"), ["--layer", "last", "--prior", "none"]).layer == "last"
    assert issubclass(config_class("tip_adapter"), flags.Encoder)


@pytest.mark.parametrize(
    ("values", "message"),
    [((2, 2), "2 shards are numbered 0 to 1"), ((-1, 2), "numbered 0 to 1"), ((0, 0), "at least 1")],
)
def test_impossible_shards_are_refused(values, message) -> None:
    with pytest.raises(Refusal, match=message):
        flags.Shards(shard=values[0], num_shards=values[1])


def code_lines(path: Path) -> list[str]:
    """The lines of a recipe that say something: no imports, docstrings, comments or short words."""
    source = path.read_text(encoding="utf-8")
    out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            out |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            out |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate((line.partition("  #")[0].strip() for line in source.splitlines()), 1)
    return [line for number, line in lines if number not in out and len(line) >= 8 and not line.startswith("#")]


def test_no_two_recipes_share_a_fifth_of_their_lines() -> None:
    """What two experiments share stands in the library. Not counted: the frame, lines of eight recipes and more."""
    lines = {name: code_lines(ROOT / "recipes" / f"{name}.py") for name in RECIPES}
    often = Counter(line for of_recipe in lines.values() for line in set(of_recipe))
    own = {name: [line for line in found if often[line] < 8] for name, found in lines.items()}
    for one, other in itertools.combinations(RECIPES, 2):
        small, large = sorted((own[one], own[other]), key=len)
        share = sum(line in large for line in small) / len(small)
        assert share < 0.2, f"{one} and {other} share {share:.0%} of their lines"

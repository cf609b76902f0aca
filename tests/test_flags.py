"""Shared flags: inherited once, documented in --help, overridden where a recipe says so."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from adapt import flags
from adapt.cli import parse
from adapt.errors import Refusal
from adapt.sweeps.planned_runs import config_class

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
GROUPS = [value for value in vars(flags).values() if dataclasses.is_dataclass(value)]


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
    assert parse(config_class("tip_adapter"), ["--layer", "last"]).layer == "last"
    assert issubclass(config_class("tip_adapter"), flags.Encoder)


@pytest.mark.parametrize(
    ("values", "message"),
    [((2, 2), "2 shards are numbered 0 to 1"), ((-1, 2), "numbered 0 to 1"), ((0, 0), "at least 1")],
)
def test_impossible_shards_are_refused(values, message) -> None:
    with pytest.raises(Refusal, match=message):
        flags.Shards(shard=values[0], num_shards=values[1])

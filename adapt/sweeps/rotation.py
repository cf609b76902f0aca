"""Each generator, or family, left out of training in turn: a run of the recipe for each, and the page of all."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Protocol

import yaml

from adapt.data.left_out import By, leave_out, rotation_of
from adapt.embedded import read_manifests
from adapt.errors import Refusal
from adapt.evaluation.rotation import Rotated, rotation
from adapt.evaluation.scores import Scores
from adapt.evaluation.side_by_side import Row
from adapt.pages.rotation import rotation_sections, write_rotation
from adapt.sweeps.planned_runs import PlannedRun, run_all, write_sweep
from adapt.training.run import RunConfig

Members = Mapping[str, Sequence[str]]  # what is left out in turn, and the generators that it is measured on
Runs = Mapping[Row, Sequence[PlannedRun]]  # one a seed


class Rotates(RunConfig, Protocol):
    """The flags of a recipe that are read here; all of them are passed on."""

    @property
    def manifest(self) -> tuple[str, ...]: ...

    @property
    def leave_out(self) -> tuple[str, ...]: ...

    @property
    def resamples(self) -> int: ...


def members_of(manifest: Sequence[str], gone: Sequence[str], by: By) -> dict[str, tuple[str, ...]]:
    """`rotation_of` the manifests without what is `gone` anyway."""
    return rotation_of(leave_out(read_manifests(manifest), gone), by)


def without(run: PlannedRun, name: str) -> PlannedRun:
    """The same run, with this generator or family left out, too, and without the control of permuted labels."""
    gone = run.flags.get("leave_out", ())
    assert isinstance(gone, tuple)
    word = re.sub(r"[^\w.@+-]+", "_", name, flags=re.ASCII)
    if word != name:  # two names may come to one word
        word += f"-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"
    flags = {**run.flags, "leave_out": (*gone, name)}
    if "permutations" in flags:
        flags["permutations"] = 0
    return replace(run, name=f"{run.name}-without-{word}", flags=flags)


def run_rotation(config: Rotates, recipe: str, by: By) -> None:
    """Run `recipe` with all generators and without each, in folders of their own, and write rotation.csv and the page.

    Started again it continues. A run that was made by hand with the same flags in its folder is taken as it is.
    """
    root = Path(config.output_dir)
    if (file := root / "config.yaml").is_file() and yaml.safe_load(file.read_text(encoding="utf-8")).get(
        "rotate"
    ) != by:
        raise Refusal(f"{root} holds a run that is no rotation by {by}: choose another --output_dir, or delete it")
    members = members_of(config.manifest, config.leave_out, by)
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    flags = {name: value for name, value in given.items() if name not in ("output_dir", "rotate") and value != ()}
    whole = PlannedRun("all", recipe, flags)
    runs = {name: without(whole, name) for name in members}
    if failed := run_all([whole, *runs.values()], root):
        raise Refusal(f"{', '.join(failed)} failed, see the .log files in {root}: the same command tries again")
    numbers = measure_rotation(
        {(recipe, ""): [whole]}, {(recipe, ""): {n: [r] for n, r in runs.items()}}, members, config.resamples, root
    )
    write_rotation(root, numbers)
    write_sweep(config, [whole, *runs.values()], root, rotation_sections(numbers)[1:])


def measure_rotation(
    whole: Runs,
    rotated: Mapping[Row, Mapping[str, Sequence[PlannedRun]]],
    members: Members,
    resamples: int,
    root: Path,
) -> list[Rotated]:
    """Numbers of finished runs, row by row."""
    out = []
    for row, of_names in rotated.items():
        tables = {name: [_scores(root, run) for run in runs] for name, runs in of_names.items()}
        out += rotation([_scores(root, run) for run in whole[row]], tables, members, resamples, 0, *row)
    return out


def _scores(root: Path, run: PlannedRun) -> Scores:
    return Scores.read(root / run.name / "scores.parquet")

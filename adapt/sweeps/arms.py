"""Variants of one recipe, each with several seeds: run, averaged over the seeds, compared with the first variant."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Protocol

from adapt.errors import Refusal
from adapt.evaluation.attribution import Column
from adapt.evaluation.scores import Scores
from adapt.sweeps.attribution import attribution_sections
from adapt.sweeps.launch import Where
from adapt.sweeps.planned_runs import PlannedRun, run_all, write_sweep
from adapt.training.comparison import Study, contrast
from adapt.training.run import RunConfig

ABOUT = """\
Means over {seeds} seed(s); every run picks its epoch on validation data. Differences: paired, with intervals over
test groups and seeds (95 %, p not corrected for the number of comparisons), and the range of the differences of
single seeds. `better` and `worse` are said only where the interval excludes 0; with one seed never. In the tables of
means the brackets hold the smallest and the largest value of a seed."""


class VariantsConfig(RunConfig, Where, Protocol):
    """What a recipe that compares its variants has, beside the fields that it passes on."""

    @property
    def resamples(self) -> int: ...


def run_variants(
    config: VariantsConfig,
    recipe: str,
    variants: Mapping[str, Mapping[str, object]],
    seeds: Mapping[int, Mapping[str, object]],
    classes_are: Column | None = None,
) -> None:
    """Run `recipe` once for each variant and seed, in folders VARIANT-seedN, and write the page that compares them.

    `variants` and `seeds` say which fields of `config` each of them changes; all others are passed on. `classes_are`:
    what the classes of the heads are, if they have some; the page then says how well they attribute.
    """
    root = Path(config.output_dir)
    changed = {name for change in (*variants.values(), *seeds.values()) for name in change}
    changed |= {"output_dir", "launcher", "slurm"}
    given = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in changed}
    planned = {
        (variant, seed): PlannedRun(f"{variant}-seed{seed}", recipe, {**given, **change, **of_seed})
        for seed, of_seed in seeds.items()
        for variant, change in variants.items()
    }
    if failed := run_all(list(planned.values()), root, launched=config):
        raise Refusal(f"{', '.join(failed)} failed, see the .log files in {root}: the same command tries again")
    sections, study = _compare(config, planned, list(variants), list(seeds), root)
    if classes_are:
        of_variants = {variant: [planned[variant, seed] for seed in seeds] for variant in variants}
        sections += attribution_sections(of_variants, root, classes_are, config.resamples)
    study.write_csv(root / "metrics.csv")
    write_sweep(config, list(planned.values()), root, sections)


def _compare(
    config: VariantsConfig,
    planned: Mapping[tuple[str, int], PlannedRun],
    variants: Sequence[str],
    seeds: Sequence[int],
    root: Path,
) -> tuple[list[str], Study]:
    scores = {run: Scores.read(root / one.name / "scores.parquet") for run, one in planned.items()}
    study = Study(("variant", "seed"), config.resamples, config.seed)
    for variant in variants:
        for seed in seeds:
            study.add((variant, str(seed)), scores[variant, seed])
    sections = []
    for other in variants[1:]:
        pairs = [(scores[variants[0], seed], scores[other, seed]) for seed in seeds]
        sections += contrast((variants[0], other), pairs, config.resamples, config.seed)
    means = study.over_last_key().grids()
    return [means[1], ABOUT.format(seeds=len(seeds)), *sections, *means], study

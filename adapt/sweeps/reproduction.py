"""From published figures to runs of recipes: what is missing, ours beside theirs, and their pattern in our figures."""

import fnmatch
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from adapt.cli import Flags
from adapt.errors import Refusal
from adapt.evaluation import metrics
from adapt.evaluation.attribution import Rate
from adapt.evaluation.jackknife import paired, share_interval
from adapt.evaluation.metrics import PREFIXES, Index, align, index
from adapt.evaluation.replicates import ALL, Replicates, replicate
from adapt.evaluation.scores import Scores
from adapt.evaluation.targets import OTHER, OURS, Comparison, Pattern, Target, TargetSet, compare, ours
from adapt.models.towers.backbones import load_backbone
from adapt.models.towers.timm import repository_of
from adapt.number_table import read_rows, write_rows, write_table
from adapt.pages.tables import grid, show
from adapt.sweeps.planned_runs import PlannedRun, read_metrics, write_sweep
from adapt.text import escape_markdown

RUN = "run"  # folder of the run inside that of its page
PATTERNS = "patterns"  # folder of the page about patterns, with its runs
SEEN = "mean:seen"  # patterns are about generators that training met, as those of the papers are
ABOUT = """\
Match: the published figure lies in our 95 % interval (over groups), widened at both ends by half a unit of
its last digit, and by 0.001 if it was decoded from a plot; else miss. Difference: ours minus theirs. The interval is
that of our test rows and one training seed; papers print none. There is an outcome only where method, encoder and data
are the published ones. A published accuracy at p = 0.5 stands beside our balanced accuracy at 0.5, which is the same
on sets of as many real images as fakes."""
ABOUT_PATTERNS = """\
A pattern says that the mean of some published figures is above that of others, on any data and with any encoder. Ours:
the same difference between means of our figures, paired over the groups of the test rows (95 %, p not corrected for
the number of patterns). Match: the interval lies above 0; miss: below 0; open: it holds 0. It says what other test
images of this kind could have given, not what other training images could. Figures are means over the generators that
training met, of balanced accuracy at 0.5 where a paper has accuracy."""
COLUMNS = ("target", "metric", "view", "read", "published", "ours", "low", "high", "difference", "outcome", "setting")


@dataclass(frozen=True)
class Configuration:
    """A recipe with flags for the targets whose names match; `same`: it is the published method, else the nearest."""

    name: str
    targets: Sequence[str]
    recipe: str
    flags: Mapping[str, object]
    backbone: str
    same: bool
    note: str  # what differs from the published method


@dataclass(frozen=True)
class Job:
    """One run, and the chosen targets that it answers. `views`: those of all targets that this run could answer."""

    configuration: Configuration
    train_set: str
    test_set: str
    targets: Sequence[Target]
    views: Sequence[str]

    @property
    def name(self) -> str:
        words = (self.configuration.name, self.train_set or "unknown", "to", self.test_set)
        return re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower())


@dataclass(frozen=True)
class Answer:
    """A target, our number for it, and whether they say the same; a outcome in the published setting only."""

    target: Target
    cell: metrics.Cell | None
    comparison: Comparison
    setting: str

    @property
    def outcome(self) -> str:
        return self.comparison.outcome if self.setting == "published" else f"none: {self.setting}"

    @property
    def difference(self) -> str:
        found = self.comparison.difference
        return "n/a" if found != found else f"{found:+.4f}"


@dataclass(frozen=True)
class Decided:
    """A pattern in our own figures: the difference, its interval over groups, and what it came to."""

    pattern: str
    says: str
    published: float
    value: float
    low: float
    high: float
    p: float
    groups: int
    n_real: int
    n_fake: int
    outcome: Literal["match", "miss", "open", "n/a"]


@dataclass(frozen=True)
class Figure:
    """A published figure and our number for it, on generators that training met."""

    figure: str
    metric: str  # ours
    published: float
    value: float
    low: float
    high: float


def configure(target: Target, configurations: Sequence[Configuration]) -> Configuration:
    """The first configuration that is meant for a target; the last one is meant for all."""
    return next(c for c in configurations if any(fnmatch.fnmatchcase(target.name, p) for p in c.targets))


def jobs(
    chosen: Sequence[Target], every: Sequence[Target], configurations: Sequence[Configuration], instead: str | None
) -> list[Job]:
    """Runs for the chosen targets: one for each configuration, training set and test set.

    A run tests the views of every target in the table that it could answer, so that it serves any later choice.
    `instead` names a configuration that takes the place of the one that is meant, and is not the published method.
    """
    by_name = {c.name: c for c in configurations}
    if instead is not None and instead not in by_name:
        raise Refusal(f"--configuration {instead}: choose one of {', '.join(by_name)}")

    def key(target: Target) -> tuple[str, str, str]:
        return instead or configure(target, configurations).name, target.train_set, target.data

    groups: dict[tuple[str, str, str], list[Target]] = {}
    for target in chosen:
        groups.setdefault(key(target), []).append(target)
    out = []
    for place, targets in groups.items():
        views = dict.fromkeys(t.view for t in every if key(t) == place and not t.view.startswith(OTHER))
        meant = all(configure(t, configurations).name == place[0] for t in targets)
        configuration = replace(by_name[place[0]], same=meant and by_name[place[0]].same)
        out.append(Job(configuration, *place[1:], targets, tuple(views) or ("none",)))
    return out


def run_of(
    name: str,
    job: Job,
    sets: Mapping[str, TargetSet],
    given: Sequence[str],
    backbone: str,
    shared: Mapping[str, object],
) -> PlannedRun:
    """The run of a job, on the `given` manifests, or without any on those of the published sets."""
    own = {"manifest": tuple(given) or manifests_of(job, sets), "backbone": backbone, "test_views": tuple(job.views)}
    return PlannedRun(name, job.configuration.recipe, {**job.configuration.flags, **own, **shared})


def manifests_of(job: Job, sets: Mapping[str, TargetSet]) -> tuple[str, ...]:
    """Where the commands of `adapt prepare` leave the manifests of the published training and test set."""
    found = [sets[name].manifest for name in (job.train_set, job.test_set) if name in sets]
    return tuple(dict.fromkeys(str(path) for path in found if path is not None))


def missing(job: Job, sets: Mapping[str, TargetSet], given: Sequence[str], backbone: str) -> list[str]:
    """Data (unless manifests are `given`) and weights that are not there, each with how to get it."""
    weights = missing_weights(backbone)
    return [*([] if given else missing_data(job, sets)), *([weights] if weights else [])]


def missing_data(job: Job, sets: Mapping[str, TargetSet]) -> list[str]:
    """What to get, from where, and the command that makes the manifest of it; nothing if all is there."""
    own = "give tables of your own with --manifest"
    lines = []
    for what, name in (("training", job.train_set), ("test", job.test_set)):
        if name not in sets:
            why = "the authors' released weights, which no recipe trains" if name else "not recorded"
            lines.append(f"{what} data: {why}; {own}")
        elif (manifest := sets[name].manifest) is None:
            lines.append(f"{what} data: {name}: {sets[name].origin}; no source of `adapt prepare` makes it: {own}")
        elif not manifest.is_file():
            lines.append(f"{what} data: {name}: {sets[name].origin}\n  adapt prepare {sets[name].prepare}")
    return lines


@functools.cache  # many runs have one encoder
def missing_weights(backbone: str) -> str:
    """Why an encoder cannot be had, and where it is from; "" if it loads."""
    try:
        load_backbone(backbone)
    except Refusal as problem:
        repository = hub_repository(backbone)
        return f"weights: {problem}" + (f"\n  hf download {repository}" if repository else "")
    return ""


def hub_repository(backbone: str) -> str:
    """The hub's repository of a backbone's weights; "" where its name does not lead to one."""
    library, _, model = backbone.partition(":")
    if library == "transformers" and not Path(model).is_dir():
        return model.partition("@")[0]
    if library == "timm":
        return repository_of(backbone, model).partition("@")[0]
    if library == "open_clip" and model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:")
    if library == "open_clip" and "@" in model:
        import open_clip

        return open_clip.get_pretrained_cfg(*model.split("@", 1)).get("hf_hub", "").rstrip("/")
    return ""


def answer(job: Job, at: Index, differs: Sequence[str]) -> list[Answer]:
    """Ours beside theirs for every target of a job; `at` is our evaluation, `differs` what is not as published."""
    method = "published" if job.configuration.same else "comparable, not the same method"
    setting = "not the published setting" if differs else method
    found = [(target, ours(target, at)) for target in job.targets]
    return [Answer(target, cell, compare(target, cell), setting) for target, cell in found]


def differences(job: Job, run: PlannedRun, at: Index, sets: Mapping[str, TargetSet]) -> list[str]:
    """How the encoder and the data of a run differ from the published ones."""
    lines = []
    if (backbone := run.flags["backbone"]) != job.configuration.backbone:
        lines.append(f"encoder {backbone} instead of {job.configuration.backbone}")
    known = all(name in sets and sets[name].manifest is not None for name in (job.train_set, job.test_set))
    if not known or run.flags["manifest"] != manifests_of(job, sets):
        lines.append(f"data of your own instead of {job.train_set or 'an unknown set'} -> {job.test_set}")
    elif (expected := sets[job.test_set].generators) is not None:
        tested = {key[::2] for key in at if key[1] == job.views[0] and key[3] == "auc" and is_generator(key[2])}
        if len(tested) != expected:
            lines.append(f"{len(tested)} generators are tested, {expected} were published")
    return lines


def is_generator(name: str) -> bool:
    """Whether a row of metrics.csv is of one generator, not of an aggregate or of the reals."""
    return name != "real" and not name.startswith(PREFIXES)


def write_reproduction(config: Flags, job: Job, run: PlannedRun, root: Path, sets: Mapping[str, TargetSet]) -> None:
    """table.md, reproduce.csv, config.yaml and provenance.json of one finished run; prints the table."""
    at = evaluated(root / run.name)
    differs = differences(job, run, at, sets)
    answers = answer(job, at, differs)
    rows = [["target", "read", "published", "ours", "difference", "outcome"]]
    rows += [[a.target.name, a.target.read, a.target.shown, show(a.cell), a.difference, a.outcome] for a in answers]
    kind = "same method" if job.configuration.same else "comparable, not the same method"
    facts = [f"not the published setting: {line}" for line in differs]
    facts += [f"{kind} ({job.configuration.name}, recipes/{run.recipe}.py): {job.configuration.note}"]
    facts += [f"{a.target.name}: {why}" for a in answers if (why := no_number(a))]
    about = [["target", "paper", "method", "encoder", "training -> test set", "view", "metric", "source", "note"]]
    for t in job.targets:
        where = f"{t.train_set or '?'} -> {t.test_set}"
        about.append([t.name, t.paper, t.method, t.backbone or "?", where, t.view, t.metric, t.source, t.note])
    write_csv(root / "reproduce.csv", answers)
    said = "\n".join(f"- {escape_markdown(fact)}" for fact in facts)
    write_sweep(config, [run], root, [f"{grid(rows)}\n\n{said}", ABOUT, "## The published figures", grid(about)])


def evaluated(folder: Path) -> Index:
    """The numbers of a finished run; those of its maps, where it has some, stand under their labels."""
    cells = read_metrics(folder / "metrics.csv")[()]
    rates = read_rows(folder / "localization.csv", Rate)  # none of another recipe
    maps = [metrics.Cell(ALL, r.view, r.label, r.metric, r.value, r.low, r.high, 0, r.n) for r in rates]
    return index([*cells, *maps])


def no_number(answer: Answer) -> str:
    """Why we have nothing to put beside a target; "" if we have."""
    if answer.cell is not None:
        return ""
    if answer.target.metric == "unnamed":
        return "what the published figure measures was not recorded"
    if answer.target.view.startswith(OTHER):
        return f"{answer.target.view.removeprefix(OTHER)} is no view of ours"
    return f"no generator {answer.target.generator!r} in the test rows" if answer.target.generator else "not measured"


def write_csv(path: Path, answers: Sequence[Answer]) -> None:
    """One line for each target."""
    rows, nan = [], float("nan")
    for a in answers:
        numbers = (a.cell.value, a.cell.low, a.cell.high) if a.cell else (nan, nan, nan)
        words = (a.target.name, a.target.metric, a.target.view, a.target.read, a.target.value)
        outcome = a.comparison.outcome if a.setting == "published" else "none"
        rows.append([*words, *numbers, a.comparison.difference, outcome, a.setting])
    write_table(path, COLUMNS, rows)


def figures_of(patterns: Sequence[Pattern]) -> list[Target]:
    """The figures that some patterns speak of, each once."""
    return list({t.name: t for pattern in patterns for t in (*pattern.above, *pattern.below)}.values())


def write_patterns(
    config: Flags,
    patterns: Sequence[Pattern],
    finished: Sequence[tuple[Job, PlannedRun]],
    root: Path,
    resamples: int,
    seed: int,
) -> None:
    """table.md, patterns.csv, figures.csv and the record of the finished runs that measured the patterns' figures."""
    measured: dict[str, Replicates] = {}
    scores = [Scores.read(root / run.name / "scores.parquet") for _, run in finished]
    for (job, _), table in zip(finished, scores, strict=True):
        same_rows = align(scores[0], table)[1]
        wanted = {_metric(target) for target in job.targets}
        found = replicate(same_rows, float("nan"), resamples, seed, metrics=wanted)
        measured |= {target.name: found[ALL, target.view, SEEN] for target in job.targets}
    decided = [decide(pattern, measured) for pattern in patterns]
    figures = [_figure(target, measured[target.name]) for target in figures_of(patterns)]
    write_rows(root / "patterns.csv", tuple(Decided.__dataclass_fields__), decided)
    write_rows(root / "figures.csv", tuple(Figure.__dataclass_fields__), figures)
    facts = [f"recipes/{job.configuration.recipe}.py: {job.configuration.note}" for job, _ in finished]
    facts += [f"encoder {run.flags['backbone']}, published: {job.configuration.backbone}" for job, run in finished]
    first, *rest = pattern_sections(decided, figures)
    said = "\n".join(f"- {escape_markdown(fact)}" for fact in dict.fromkeys(facts))
    write_sweep(config, [run for _, run in finished], root, [first, ABOUT_PATTERNS, said, *rest])


def decide(pattern: Pattern, measured: Mapping[str, Replicates]) -> Decided:
    """The difference that a pattern speaks of; `measured`: our figures by the names of the published ones."""
    above, below = ([measured[t.name] for t in side] for side in (pattern.above, pattern.below))
    metric, parts = _metric(pattern.above[0]), [*above, *below]
    d = np.mean([m.values[metric] for m in above], axis=0) - np.mean([m.values[metric] for m in below], axis=0)
    groups = min(part.groups for part in parts)
    low, high, p = paired(d, groups)
    outcome: Literal["match", "miss", "open", "n/a"] = "match" if low > 0 else "miss" if high < 0 else "open"
    counts = groups, min(part.n_real for part in parts), min(part.n_fake for part in parts)
    numbers = pattern.published, float(d[0]), low, high, p
    return Decided(pattern.name, pattern.says, *numbers, *counts, "n/a" if low != low else outcome)


def pattern_sections(decided: Sequence[Decided], figures: Sequence[Figure]) -> list[str]:
    """The table of patterns, and that of the figures behind them."""
    rows = [["pattern", "says", "published", "ours", "p", "real + fake", "groups", "outcome"]]
    for d in decided:
        images = f"{d.n_real} + {d.n_fake}"
        p = "n/a" if d.p != d.p else f"{d.p:.3f}"
        rows.append([d.pattern, d.says, f"{d.published:+.4f}", show(d, "+"), p, images, str(d.groups), d.outcome])
    lines = [["figure", "metric", "published", "ours"]]
    lines += [[f.figure, f.metric, f"{f.published:.4f}", show(f)] for f in figures]
    return [grid(rows), "## The figures", grid(lines)]


def read_pattern_sections(folder: Path) -> list[str]:
    """The same from the files of a page."""
    return pattern_sections(read_rows(folder / "patterns.csv", Decided), read_rows(folder / "figures.csv", Figure))


def _metric(target: Target) -> str:
    """Ours that answers a figure of a pattern."""
    counterpart = OURS[target.metric]
    assert counterpart is not None  # patterns of other figures are refused
    return counterpart[1]


def _figure(target: Target, found: Replicates) -> Figure:
    values = found.values[_metric(target)]
    interval = share_interval(values, found.groups)
    return Figure(target.name, _metric(target), float(target.value), float(values[0]), *interval)

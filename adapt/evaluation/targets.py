"""Published figures as a table, the sets they were measured on, and the comparison of a number of ours with one.

    targets.csv           the figures, one a row: the fields of Target
    target_patterns.csv   what figures say of each other, where that is claimed of any data: the fields of Pattern
    target_sets.csv       training and test sets: the fields of TargetSet

`read` says how a figure was read: `verified` in a file or an abstract of the source, `decoded` from a plot, to about
0.1 points, or `second hand`, in somebody else's copy of the figure: look it up in the source before you rest on it.
Values are fractions with the digits of the source. `test_set` may end in /GENERATOR. A view is one of ours, or
`other: ...` where the published degradation has no exact counterpart. An empty cell was not recorded. `prepare` is
what follows `adapt prepare`, if a source of ours makes the set; `generators` is the number of generators (pairs of a
set and a generator) that the published mean is over. `above` and `below` are names of figures, with spaces between.
"""

import csv
import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar

from adapt.data.views import parse_view
from adapt.errors import Refusal
from adapt.evaluation.metrics import Cell, Index

FOLDER = Path(__file__).parent
READ = ("verified", "decoded", "second hand")
OTHER = "other: "  # a view that none of ours is
OURS = {  # a published metric -> the evaluator's, and the aggregate over all generators
    "auc": ("mean:all", "auc"),
    "ap": ("mean:all", "ap"),  # at as many reals as fakes, and so is the published one on such sets
    "accuracy": ("mean:all", "balanced_accuracy_at_0.5"),  # equal on sets of as many reals as fakes
    "worst_accuracy": ("worst:all", "balanced_accuracy_at_0.5"),
    "balanced_accuracy": ("mean:all", "balanced_accuracy"),
    "balanced_accuracy_at_0.5": ("mean:all", "balanced_accuracy_at_0.5"),
    "balanced_accuracy_oracle": ("mean:all", "balanced_accuracy_oracle"),
    "recall_at_0.5": ("mean:all", "recall_at_0.5"),
    "false_alarm_at_0.5": ("real", "false_alarm_at_0.5"),
    "pixel_f1": ("edits", "f1"),  # of recipes/localize.py, over images that ordinary tools changed
    "unnamed": None,  # the figure was read, what it measures was not recorded: nothing to compare
}
PLOT = 0.001  # how far a decoded value may be off
SLACK = 1e-9  # of float arithmetic, so that a value on the edge counts as inside
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
Row = TypeVar("Row", "Target", "TargetSet", "Pattern")
Named = TypeVar("Named", bound="Target | Pattern")


@dataclass(frozen=True)
class Target:
    """One published figure. `value` and `spread` keep the digits of the source."""

    name: str
    paper: str
    method: str
    backbone: str
    train_set: str
    test_set: str
    view: str
    metric: str
    value: Decimal
    spread: Decimal | None
    read: Literal["verified", "decoded", "second hand"]
    source: str
    note: str

    @property
    def tolerance(self) -> float:
        """Half a unit of the last published digit; of a decoded value also what a plot leaves open."""
        half = 0.5 * 10.0 ** int(self.value.as_tuple().exponent)
        return half + (PLOT if self.read == "decoded" else 0.0)

    @property
    def data(self) -> str:
        """Name of the test set in target_sets.csv."""
        return self.test_set.partition("/")[0]

    @property
    def generator(self) -> str:
        """The one generator that is tested, or "" for the mean over all."""
        return self.test_set.partition("/")[2]

    @property
    def shown(self) -> str:
        """The figure as it was published, as a fraction."""
        return f"{self.value}" if self.spread is None else f"{self.value} ±{self.spread}"


@dataclass(frozen=True)
class Pattern:
    """The mean of some published figures is above that of others, and that is claimed of any data and encoder."""

    name: str
    says: str
    above: tuple[Target, ...]
    below: tuple[Target, ...]

    @property
    def published(self) -> float:
        """By how much."""
        above, below = ([float(target.value) for target in side] for side in (self.above, self.below))
        return sum(above) / len(above) - sum(below) / len(below)


@dataclass(frozen=True)
class TargetSet:
    """Where a training or test set is from, and the command that makes its manifest, if a source of ours does."""

    name: str
    origin: str
    prepare: str
    generators: int | None

    @property
    def manifest(self) -> Path | None:
        """What the command writes."""
        return Path(self.prepare.split("--output ")[1].split()[0]) if self.prepare else None


@dataclass(frozen=True)
class Comparison:
    """`n/a`: one of the two numbers is missing. The difference is ours minus theirs."""

    outcome: Literal["match", "miss", "n/a"]
    difference: float


def read_targets(path: Path = FOLDER / "targets.csv") -> list[Target]:
    """The table of published figures; refuses unknown columns, marks, metrics and views, and a name that comes twice.

    Two figures of one method, setting and metric in one paper are refused as well.
    """
    targets = _read(path, Target, _target)
    places: dict[tuple[str, ...], str] = {}
    for t in targets:
        place = (t.paper, t.method, t.backbone, t.train_set, t.test_set, t.view, t.metric)
        if place in places:
            raise Refusal(f"{path}: {places[place]} and {t.name} are figures of one thing: keep one")
        places[place] = t.name
    return targets


def read_sets(path: Path = FOLDER / "target_sets.csv") -> dict[str, TargetSet]:
    """The sets by name; refuses unknown columns, a command without --output, and a name that comes twice."""
    return {found.name: found for found in _read(path, TargetSet, _target_set)}


def read_patterns(targets: Sequence[Target], path: Path = FOLDER / "target_patterns.csv") -> list[Pattern]:
    """The patterns of these figures; refuses names that there are not or that come twice, figures of several papers or
    metrics, and what the figures deny."""
    by_name = {target.name: target for target in targets}

    def pattern(row: dict[str, str]) -> Pattern:
        if row["name"] in by_name or not NAME.fullmatch(row["name"]):
            raise Refusal(f"name {row['name']!r}: no figure's name, of small letters, digits, . and - only")
        for name in (*row["above"].split(), *row["below"].split()):
            if name not in by_name:
                raise Refusal(f"{name!r} is no figure of targets.csv")
        above, below = (tuple(by_name[name] for name in row[side].split()) for side in ("above", "below"))
        if not above or not below or not row["says"].strip():
            raise Refusal("says, above and below: none may be empty")
        if len({(t.paper, t.metric) for t in (*above, *below)}) > 1 or OURS[above[0].metric] is None:
            raise Refusal("its figures must be one paper's, and one metric that we have")
        found = Pattern(row["name"], row["says"], above, below)
        if found.published <= 0:
            raise Refusal(f"the published figures deny it: {found.published:+.4f}")
        return found

    return _read(path, Pattern, pattern)


def select(targets: Sequence[Named], patterns: Sequence[str]) -> list[Named]:
    """Those whose name matches one of the patterns (none: all), in their order; a pattern without any is refused."""
    names = [target.name for target in targets]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.4)
            hint = f", perhaps you meant {near[0]!r}" if near else ""
            raise Refusal(f"no published target {pattern!r}{hint}; --list shows all of them")
    return [t for t in targets if not patterns or any(fnmatch.fnmatchcase(t.name, pattern) for pattern in patterns)]


def ours(target: Target, at: Index) -> Cell | None:
    """The cell of an evaluation (by set, view, generator and metric) that answers the target; None if there is none.

    Generators are compared by their letters and digits alone; one that several sets have answers nothing.
    """
    counterpart = OURS[target.metric]
    if counterpart is None or target.view.startswith(OTHER):
        return None
    aggregate, metric = counterpart
    if not target.generator:
        return at.get(("all", target.view, aggregate, metric))
    found = [
        cell
        for (_, view, generator, name), cell in at.items()
        if (view, name) == (target.view, metric) and _letters(generator) == _letters(target.generator)
    ]
    return found[0] if len(found) == 1 else None


def compare(target: Target, cell: Cell | None) -> Comparison:
    """`match` if the target lies in our 95 % interval, widened at both ends by the target's tolerance."""
    if cell is None or any(x != x for x in (cell.value, cell.low, cell.high)):
        return Comparison("n/a", float("nan"))
    theirs, widened = float(target.value), target.tolerance + SLACK
    inside = cell.low - widened <= theirs <= cell.high + widened
    return Comparison("match" if inside else "miss", cell.value - theirs)


def listing(targets: Iterable[Target]) -> str:
    """A table for a terminal, under a heading for each paper and source."""
    papers: dict[tuple[str, str], list[Target]] = {}
    for target in targets:
        papers.setdefault((target.paper, target.source), []).append(target)
    lines = []
    for (paper, source), found in papers.items():
        rows = [(t.name, t.shown, t.metric, t.view, f"{t.train_set or '?'} -> {t.test_set}", t.read) for t in found]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines += [f"{paper} ({source})"]
        lines += ["  " + "  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]
    return "\n".join(lines)


def pattern_listing(patterns: Iterable[Pattern]) -> str:
    """A table for a terminal."""
    lines = [f"  {p.name:22}  {p.published:+.4f}  {p.says}" for p in patterns]
    return "\n".join(
        ["Patterns, claimed of any data, and the difference of the published figures:", *lines] if lines else []
    )


def _read(path: Path, kind: type[Row], make: Callable[[dict[str, str]], Row]) -> list[Row]:
    columns = [field.name for field in fields(kind)]
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if reader.fieldnames != columns:
            found = ", ".join(reader.fieldnames or ()) or "none"
            raise Refusal(f"{path}: columns {found}, expected {', '.join(columns)}")
        rows, names = [], set()
        for number, row in enumerate(reader, start=1):
            try:
                if None in row or None in row.values():
                    raise Refusal(f"the row has not {len(columns)} cells: check its commas and quotes")
                if row["name"] in names:
                    raise Refusal(f"name {row['name']!r} stands twice")
                rows.append(make(row))
            except Refusal as problem:
                raise Refusal(f"{path}, row {number}: {problem}") from problem
            names.add(row["name"])
    return rows


def _target(row: dict[str, str]) -> Target:
    if not NAME.fullmatch(row["name"]):
        raise Refusal(f"name {row['name']!r}: small letters, digits, . and - only")
    for column, allowed in (("read", READ), ("metric", tuple(OURS))):
        if row[column] not in allowed:
            raise Refusal(f"{column} {row[column]!r} is none of {', '.join(allowed)}")
    for column in ("paper", "method", "test_set", "source"):
        if not row[column].strip():
            raise Refusal(f"column {column} is empty")
    if not row["view"].startswith(OTHER):
        parse_view(row["view"])
    value, spread = _fraction(row["value"]), _fraction(row["spread"]) if row["spread"] else None
    given: dict[str, Any] = {**row, "value": value, "spread": spread}
    return Target(**given)


def _target_set(row: dict[str, str]) -> TargetSet:
    if not row["name"].strip() or not row["origin"].strip():
        raise Refusal("a set needs a name and an origin")
    if row["prepare"] and not re.search(r"--output \S+\.(csv|parquet)\b", row["prepare"]):
        raise Refusal(f"prepare {row['prepare']!r} names no --output")
    if row["generators"] and not row["generators"].isdecimal():
        raise Refusal(f"generators {row['generators']!r} is no whole number")
    generators = int(row["generators"]) if row["generators"] else None
    return TargetSet(row["name"], row["origin"], row["prepare"], generators)


def _fraction(text: str) -> Decimal:
    if not re.fullmatch(r"[01]\.\d+", text) or Decimal(text) > 1:
        raise Refusal(f"value {text!r} is no fraction from 0 to 1 with the digits of the source, such as 0.897")
    return Decimal(text)


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())

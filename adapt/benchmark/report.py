"""Ratios as a table and as a file, and two such files against each other."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

from adapt.benchmark.timing import Ratio
from adapt.errors import Refusal
from adapt.pages.tables import grid
from adapt.text import escape_markdown


class Line(TypedDict):
    """A ratio in benchmark.json."""

    stage: str
    case: str
    ours: str
    baseline: str
    unit: Literal["s", "MiB", "AUC"]
    goal: float | None
    ratio: float
    spread: tuple[float, float]
    costs: tuple[float, ...]  # of each round
    baseline_costs: tuple[float, ...]
    facts: dict[str, float | str]


class Measured(TypedDict):
    """benchmark.json."""

    facts: dict[str, object]
    ratios: list[Line]


SLOWER = 0.95  # of the old ratio: less is no noise where the rounds do not overlap either


def table(ratios: Sequence[Ratio]) -> str:
    """Markdown: a line a ratio."""
    head = ["stage", "work", "ours", "against", "ratio", "goal", "facts"]
    lines = [
        [
            ratio.stage,
            ratio.case,
            ratio.ours,
            ratio.baseline,
            _shown(ratio),
            "" if ratio.goal is None else f"{ratio.goal:g}, {'met' if ratio.value >= ratio.goal else 'missed'}",
            ", ".join(f"{name} {value}" for name, value in ratio.facts.items()),
        ]
        for ratio in ratios
    ]
    return grid([head, *lines])


def _shown(ratio: Ratio) -> str:
    return f"{ratio.value:.3g}" + (" [{:.3g}, {:.3g}]".format(*ratio.spread) if len(ratio.costs) > 1 else "")


def as_lines(ratios: Sequence[Ratio]) -> list[Line]:
    """For JSON: every round's cost, so that a reader can compute another statistic."""
    return [
        {
            "stage": ratio.stage,
            "case": ratio.case,
            "ours": ratio.ours,
            "baseline": ratio.baseline,
            "unit": ratio.unit,
            "goal": ratio.goal,
            "ratio": ratio.value,
            "spread": ratio.spread,
            "costs": ratio.costs,
            "baseline_costs": ratio.baseline_costs,
            "facts": dict(ratio.facts),
        }
        for ratio in ratios
    ]


def read(path: Path) -> Measured:
    """A file that this recipe wrote before."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for line in found["ratios"]:
            _key(line), float(line["ratio"]), [float(value) for value in line["spread"]]
    except OSError as error:
        raise Refusal(f"--compare {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(f"--compare {path}: not a benchmark.json of this recipe ({error!r})") from error
    return found


def read_ratios(path: Path) -> list[Ratio]:
    """The ratios of a file that `adapt benchmark` wrote, with the cost of every round."""
    return [
        Ratio(
            line["stage"], line["case"], line["ours"], line["baseline"],
            line["costs"], line["baseline_costs"], line["unit"], line["goal"], line["facts"],
        )
        for line in read(path)["ratios"]
    ]  # fmt: skip


def at_a_glance(ratios: Sequence[Ratio]) -> list[str]:
    """How many goals are met, and the first ratio of each stage."""
    goals = [ratio.value >= ratio.goal for ratio in ratios if ratio.goal is not None]
    first = {ratio.stage: ratio for ratio in reversed(ratios)}
    lines = [f"goals met: {sum(goals)} of {len(goals)}"]
    for ratio in reversed(first.values()):
        words = f"{ratio.stage}, {ratio.case}: {ratio.ours} against {ratio.baseline} {_shown(ratio)}"
        lines.append(escape_markdown(words))
    return lines


def compare(old: Measured, new: Sequence[Line]) -> tuple[str, list[str]]:
    """New ratio over old for what both have measured, as Markdown, and the names of what has surely got slower.

    Surely: by more than 5 %, and the best round now is worse than the worst one then.
    """
    before = {_key(line): line for line in old["ratios"]}
    lines, slower = [], []
    for line in new:
        was = before.get(_key(line))
        if was is None:
            continue
        change = line["ratio"] / was["ratio"]
        worse = change < SLOWER and max(line["spread"]) < min(was["spread"])
        word = "slower" if worse else ""
        lines.append([*_key(line), f"{was['ratio']:.3g}", f"{line['ratio']:.3g}", f"{change:.3g}", word])
        slower += [" | ".join(_key(line))] if worse else []
    if not lines:
        raise Refusal(
            "--compare: the two runs have measured nothing in common; give the same --stages and --backbones"
        )
    return grid([["stage", "work", "ours", "against", "then", "now", "now / then", ""], *lines]), slower


def _key(line: Line) -> tuple[str, str, str, str]:
    return line["stage"], line["case"], line["ours"], line["baseline"]

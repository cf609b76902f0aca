"""Where a detector is weak, what further training aims at, and what it mended and broke, cell by cell."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapt import flags
from adapt.data.focus import Focus
from adapt.data.manifest import Manifest
from adapt.data.spelling import folded
from adapt.data.views import parse_view
from adapt.detector.detector import Detector, Saved, detector_digest, score
from adapt.errors import Refusal
from adapt.evaluation.metrics import PREFIXES, Cell, Difference, compare, evaluate, weakest
from adapt.evaluation.scores import Scores
from adapt.pages.tables import MET, grid, show
from adapt.processes import Scoring

ABOUT = (
    "a: this detector, b: the one it goes on from, at {folder}. AUC against the unedited reals of the same set and "
    "view, on the same test rows; 95 % intervals over groups, paired. Better and worse are said where "
    "the interval excludes 0, as about one in twenty would by chance where nothing has changed."
)
ABOUT_HOLES = (
    "Holes were named on validation rows, test rows took no part: the weakest of many are in part the unluckiest, and "
    "rise by themselves on other rows (regression to the mean). So the AUC found on validation is no start to measure "
    "recovery from; a - b compares two detectors on the same test rows and holds no such gain. {share:.0%} of the "
    "groups of an epoch showed a hole: photographs and fakes of its generator, under its view."
)
ABOUT_NEW = (
    "Learnt from {shots} of its groups, which left the test split together with the rest of their pool, whatever the "
    "number of shots. {share:.0%} of the groups of an epoch showed one of them. The last epoch is kept: validation "
    "rows have no image of {generator} and would choose by the others alone."
)


@dataclass(frozen=True)
class Aim:
    """What training shows more often: cells (generator, view), or none; and how a page speaks of them."""

    cells: list[tuple[str, str]]
    new: bool = False  # a generator that validation rows do not have
    focus: Focus | None = None
    title: str = ""
    about: str = ""
    found: dict[tuple[str, str], Cell] = field(default_factory=dict)  # of holes: what they were on validation rows

    def noted(self) -> dict[str, object]:
        """What a page says of it, in JSON."""
        found = [asdict(cell) for cell in self.found.values()]
        return {"cells": self.cells, "new": self.new, "title": self.title, "about": self.about, "found": found}

    @classmethod
    def of(cls, notes: Mapping[str, object]) -> "Aim":
        """Of what `noted` says; without what training needs, `focus`."""
        noted: Any = notes  # as JSON it has no types
        found = [Cell(**cell) for cell in noted["found"]]
        by_place = {_key(cell.generator, cell.view): cell for cell in found}
        cells = [(name, view) for name, view in noted["cells"]]
        return cls(cells, noted["new"], None, noted["title"], noted["about"], by_place)


def origin(folder: Path, new: str | None = None) -> dict[str, str]:
    """The digest of a saved detector, for a run's identity; refuses one that knows the `new` generator already, and
    one that reads statistics beside its encoder."""
    digest = detector_digest(folder)
    saved = Saved.read(folder)
    if saved.descriptor:
        raise Refusal(f"{folder} also reads statistics of the whole image: give a detector of one encoder")
    for name in saved.made.trained_on if new else ():
        if folded(name) == folded(new or ""):
            raise Refusal(f"{folder} was trained on {name!r} already: give the detector from before")
    return {"init_digest": digest}


def find_holes(
    val: Scores, trained: Collection[str], count: int, resamples: int, seed: int
) -> tuple[list[Cell], list[Cell]]:
    """The `count` weakest cells of validation rows that training can show, and the weaker ones that it cannot.

    By `weakest`: sure weakness. A cell at AUC 1 is no hole. Refuses if there is none.
    """
    as_test = Scores(val.columns | {"split": np.full(len(val), "test", dtype=object)})
    cells = evaluate(as_test, resamples, seed, threshold=0.0)
    holes: list[Cell] = []
    passed: list[Cell] = []
    for cell in weakest(cells, len(cells), set(val["generator"][val.fake])):
        if len(holes) < count and cell.value < 1:
            (holes if cell.generator in trained else passed).append(cell)
    if not holes:
        raise Refusal("--focus holes: no generator of the training rows is below AUC 1 on validation: nothing to mend")
    return holes, passed


def aim_of(
    asked: flags.Aim,
    views: tuple[str, ...],
    detector: Detector,
    rows: Manifest,
    resamples: int,
    seed: int,
    scoring: Scoring,
    say: Callable[[str], object],
) -> Aim:
    """What --focus or --onboard aims at under the training `views`. Holes are those of the detector as it is."""
    found: dict[tuple[str, str], Cell] = {}
    if asked.onboard and asked.shots:
        cells, title = [(asked.onboard, view) for view in views], "New generator"
        about = ABOUT_NEW.format(shots=asked.shots, share=asked.focus_share, generator=asked.onboard)
    elif asked.focus:
        val = np.flatnonzero(rows["split"] == "val")
        scores = score(detector, rows, val, views, progress="looking for holes", **scoring)
        trained = set(rows["generator"][rows["split"] == "train"])
        holes, passed = find_holes(scores, trained, asked.holes, resamples, seed)
        for cell in holes:  # a generator of several sets has one place in training
            found.setdefault(_key(cell.generator, cell.view), cell)
        cells, about, title = list(found), ABOUT_HOLES.format(share=asked.focus_share), "Holes"
        if passed:
            names = ", ".join(f"{cell.generator} under {cell.view} ({show(cell)})" for cell in passed)
            about += f" Weak, too, but without training rows, and passed over: {names}."
            say(f"no training rows, passed over: {names}")
    else:
        return Aim([], asked.onboard is not None)
    say("shown more often: " + ", ".join(f"{name} under {view}" for name, view in cells))
    focus = Focus(rows.select(rows["split"] == "train"), cells, views, asked.focus_share)
    return Aim(cells, asked.onboard is not None, focus, title, about, found)


def before_and_after(
    init: Path | None, aim: Aim, scores: Scores, before: Scores | None, resamples: int, seed: int
) -> tuple[list[Difference], list[str]]:
    """Differences to the detector `init` that the run went on from, and sections of a page.

    `before`: its scores of the same rows. Without `init` there are neither, and no differences.
    """
    if init is None or before is None:
        return [], [f"## {aim.title}", aim.about] if aim.cells else []
    found = compare(scores, before, resamples, seed, (None, Saved.read(init).threshold))
    seen = dict(zip(scores["generator"], scores["seen"], strict=True))
    return found, changes(found, aim, seen, init)


def changes(found: Sequence[Difference], aim: Aim, seen: dict[str, str], folder: Path) -> list[str]:
    """Sections: AUC cells that were aimed at, the largest gain first, and all others, the worst loss first."""
    cells = [d for d in found if d.metric == "auc" and not d.generator.startswith(PREFIXES) and d.value == d.value]
    about = ABOUT.format(folder=folder)
    if not aim.cells:
        return [f"## Before and after: {_count(cells)}", about, _table(_worst_first(cells), seen, {})]
    wanted = {_key(*cell) for cell in aim.cells}
    hit = [d for d in cells if _key(d.generator, d.view) in wanted]
    rest = [d for d in cells if _key(d.generator, d.view) not in wanted]
    page = [f"## {aim.title}: {_count(hit)}", aim.about, _table(_worst_first(hit)[::-1], seen, aim.found)]
    if missing := wanted - {_key(d.generator, d.view) for d in hit}:
        page.append("Not among the test rows and views: " + ", ".join(f"{g} under {v}" for g, v in sorted(missing)))
    return [*page, f"## Elsewhere: {_count(rest)}", about, _table(_worst_first(rest), seen, {})]


def outcome(d: Difference) -> str:
    if d.low != d.low:
        return "n/a"  # too few groups
    return "better" if d.low > 0 else "worse" if d.high < 0 else "not separated"


def _key(generator: str, view: str) -> tuple[str, str]:
    return generator, parse_view(view).name


def _worst_first(cells: Sequence[Difference]) -> list[Difference]:
    return sorted(cells, key=lambda d: d.value)


def _count(cells: Sequence[Difference]) -> str:
    better, worse = (sum(outcome(d) == word for d in cells) for word in ("better", "worse"))
    return f"{better} of {len(cells)} cells surely better, {worse} surely worse"


def _table(cells: Sequence[Difference], seen: dict[str, str], found: dict[tuple[str, str], Cell]) -> str:
    if not cells:
        return "None."
    header = ["generator", "set", "met in", "view", "a", "b", "a - b", "p", "outcome"]
    rows = [[*header, "b on validation rows"] if found else header]
    for d in cells:
        was = [show(found.get(_key(d.generator, d.view)))] if found else []
        line = [d.generator, d.set or "-", MET[seen[d.generator]], d.view, f"{d.a:.3f}", f"{d.b:.3f}", show(d, "+")]
        rows.append([*line, f"{d.p:.3f}", outcome(d), *was])
    return grid(rows)

"""Detectors from elsewhere beside the methods of an ablation: `adapt test` scores them, the page says what they are.

ROOT/detector-NAME/    what `adapt test` leaves
ROOT/detectors.csv     a row for each: what it is, its threshold, what it was trained on
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from adapt.cli import Flags
from adapt.data.families import read_families
from adapt.detector.detector import Saved, detector_digest, detector_facts
from adapt.detector.names import names_of, told_of
from adapt.errors import Refusal
from adapt.evaluation.side_by_side import Fixed, Row
from adapt.evaluation.thresholds import NOT_RECORDED
from adapt.files import has_table
from adapt.number_table import read_rows, write_rows
from adapt.pages.leaderboard import Entry, Table
from adapt.sweeps.planned_runs import PlannedRun

FILE = "detectors.csv"
NOT_SAID = "not known"
ABOUT = """\
Detectors that were trained elsewhere, scored on the same test rows and views by `adapt test`, each at the threshold
that it was saved with; nothing is fitted here, so ECE on equal terms and costs are n/a. Each is one fixed detector: a
comparison with it counts the groups, and the training seeds of the other row. Generators are seen or unseen by what it
was itself trained on. Where that is not known both are n/a; where they are other generators than those of the methods
there is no mark. The columns over all generators compare every row. Each has a page of its own in `detector-NAME/`."""


class WithDetectors(Flags, Protocol):
    """The flags of an ablation that are read here."""

    @property
    def manifest(self) -> tuple[str, ...]: ...

    @property
    def test_views(self) -> tuple[str, ...]: ...

    @property
    def resamples(self) -> int: ...

    @property
    def num_workers(self) -> int | None: ...

    @property
    def detectors(self) -> tuple[str, ...]: ...

    @property
    def trained_on(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Elsewhere:
    """A line of detectors.csv; lists are joined by ", "."""

    name: str  # of its row
    detector: str  # the folder, or place at the hub, as it was given
    method: str  # with paper and licence, if it is a published one
    base: str  # the backbone
    digest: str
    threshold: float
    threshold_from: str
    trained_on: str  # generators; "" where nobody says
    families: str  # that its training, or selection, met
    training: str  # in words

    @property
    def row(self) -> Row:
        return self.name, ""

    @property
    def fixed(self) -> Fixed:
        return Fixed(self.threshold, tuple(filter(None, self.families.split(", "))))


def gathered(asked: WithDetectors, taken: Sequence[str]) -> list[Elsewhere]:
    """What the detectors of a sweep are; refuses one that is not here, saying what to fetch, and a localiser.

    `taken` are names of other rows.
    """
    names = names_of(asked.detectors, taken)
    told, found, families = told_of(asked.trained_on, names), [], read_families()
    for name, place in zip(names, asked.detectors, strict=True):
        made, saved = detector_facts(place), Saved.read(place)
        trained = told.get(name, made.trained_on)
        met = {families.of(generator) for generator in (*trained, *made.selected_on)} - {"real", "other"}
        kept = saved.name, detector_digest(place), saved.threshold, str(saved.basis or NOT_RECORDED)
        joined = ", ".join(trained), ", ".join(sorted(met))
        found.append(Elsewhere(name, place, made.published, *kept, *joined, made.data))
    return found


def runs_of(asked: WithDetectors, found: Sequence[Elsewhere], root: Path) -> dict[Row, list[PlannedRun]]:
    """A run of `adapt test` for each; refuses a finished one of another detector in the same place."""
    rows = {}
    for one in found:
        flags: dict[str, object] = {
            "detector": (one.detector,),
            "manifest": asked.manifest,
            "views": asked.test_views,
            "resamples": asked.resamples,
        }
        if asked.num_workers is not None:
            flags["num_workers"] = asked.num_workers
        if any(word.partition("=")[0] == one.name for word in asked.trained_on):
            flags["trained_on"] = (f"{names_of([one.detector])[0]}={one.trained_on.replace(', ', ',')}",)
        run = PlannedRun(f"detector-{one.name}", "adapt test", flags)
        if run.state(root) == "finished" and run.record(root)["identity"]["detectors"] != [one.digest]:
            raise Refusal(f"{root / run.name} holds scores of another detector than {one.detector} is now: delete it")
        rows[one.row] = [run]
    return rows


def write_detectors(root: Path, found: Sequence[Elsewhere]) -> None:
    """detectors.csv; none where there are no detectors."""
    if found:
        write_rows(root / FILE, [field.name for field in fields(Elsewhere)], found)
    else:
        (root / FILE).unlink(missing_ok=True)


def read_detectors(root: Path) -> list[Elsewhere]:
    """What `write_detectors` wrote; nothing where there is no such file."""
    return read_rows(root / FILE, Elsewhere) if has_table(root / FILE) else []


def table(found: Sequence[Elsewhere]) -> Table:
    """What each detector is, a row for each."""
    header = ["detector", "folder", "what", "base", "digest", "threshold", "chosen", "trained on", "its training"]
    rows = []
    for one in found:
        threshold = Entry(f"{one.threshold:.4f}", one.threshold)
        words = (one.name, one.detector, one.method or "n/a", one.base, one.digest[:12])
        behind = (one.threshold_from, one.trained_on or NOT_SAID, one.training or NOT_SAID)
        rows.append([*(Entry(word, word) for word in words), threshold, *(Entry(word, word) for word in behind)])
    return Table("Detectors from elsewhere", [("", name) for name in header], rows, ABOUT)

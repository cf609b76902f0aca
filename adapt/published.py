"""Published detectors that `adapt import` reads: published.csv, one row each.

name, method, paper, tower (the backbone that it stands on, or `its own` and its kind), licence, weights (where the
authors put them), training (what they trained on), note (what a user should know). People edit the table; the
importers are in adapt/importers.
"""

import csv
from dataclasses import dataclass, fields
from pathlib import Path

ITS_OWN = "its own"  # how the tower column begins where the weights hold the tower, too
FOLDER = Path("results/runs/detectors")  # where `adapt import` puts a detector unless --output says else


@dataclass(frozen=True)
class Published:
    """One row of the table."""

    name: str
    method: str
    paper: str
    tower: str
    licence: str
    weights: str
    training: str
    note: str

    @property
    def folder(self) -> Path:
        """Where it lies once it was imported, seen from the working directory."""
        return FOLDER / self.name

    @property
    def here(self) -> bool:
        """Whether it was imported."""
        return (self.folder / "detector.json").is_file()

    @property
    def to_fetch(self) -> str:
        """What to do so that it is here."""
        tower = "" if self.tower.startswith(ITS_OWN) else f", which also needs the tower {self.tower}"
        return (
            f"fetch {self.weights}; then `adapt import {self.name} FILE`{tower} (licence {self.licence}; {self.paper})"
        )


def published() -> dict[str, Published]:
    """The table, by name."""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = [field.name for field in fields(Published)]
    assert all(list(row) == wanted for row in rows), wanted
    return {row["name"]: Published(**row) for row in rows}


def importers() -> dict[str, str]:
    """The module of each name that `adapt import` takes: published detectors, and libraries of complete networks."""
    return {name: f"adapt.importers.{name}" for name in (*published(), "onnx", "torchscript")}

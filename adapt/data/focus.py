"""Over-sampling of (generator, view) cells: in which part of an epoch a group shows one of them."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adapt.data.manifest import Manifest
from adapt.data.views import parse_view
from adapt.errors import Refusal


class Shown(NamedTuple):
    """What stands for a group: rows (n,), what their weights are multiplied by (n,), the number of the view."""

    rows: np.ndarray
    scale: np.ndarray
    view: int


class Focus:
    """Every epoch has as many groups as without it; a `share` of them, drawn anew each epoch, shows a cell.

    Cells are equally likely, and whatever stands in such a group stands under the cell's view, photographs too: a
    view that came with fakes only would betray them. Of the fakes those of the cell's generator remain; a group
    without them shows those of another group, beside that group's photographs if both have some. The classes keep
    the weight that they have in the group, so the loss stays balanced. All draws come from the generator that is
    handed in, of (seed, epoch, group).
    """

    def __init__(
        self, manifest: Manifest, cells: Sequence[tuple[str, str]], views: Sequence[str], share: float
    ) -> None:
        names = [parse_view(view).name for view in views]
        self.cells = [(generator, names.index(parse_view(view).name)) for generator, view in cells]
        self.generator, self.fake, self.share = manifest["generator"], manifest.fake, share
        groups = manifest.groups()
        self.holders = {
            generator: [rows for rows in groups if (self.generator[rows] == generator).any()]
            for generator, _ in self.cells
        }
        for generator, found in self.holders.items():
            if not found:
                raise Refusal(f"{generator!r} has no training rows: it cannot be shown more often")

    def choose(self, rows: np.ndarray, draw: random.Random) -> Shown | None:
        """What stands for the group of these rows in this epoch; None: the group itself, under a view of its own."""
        if draw.random() >= self.share:
            return None
        generator, view = self.cells[draw.randrange(len(self.cells))]
        real, fake = rows[~self.fake[rows]], rows[self.fake[rows]]
        if not len(fake):
            return Shown(real, np.ones(len(real)), view)
        source = rows
        if not (self.generator[rows] == generator).any():
            source = self.holders[generator][draw.randrange(len(self.holders[generator]))]
        fakes, reals = source[self.generator[source] == generator], source[~self.fake[source]]
        reals = reals if len(reals) and len(real) else real
        scale = [np.full(len(reals), len(real) / max(1, len(reals))), np.full(len(fakes), len(fake) / len(fakes))]
        return Shown(np.concatenate([reals, fakes]), np.concatenate(scale), view)

"""What a rotation found: a table for one method, and a row a method for several."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from adapt.evaluation.rotation import LOWEST, OVER_ALL, Rotated
from adapt.evaluation.side_by_side import MEAN
from adapt.number_table import read_rows, write_rows
from adapt.pages.leaderboard import Entry, Table
from adapt.pages.tables import grid, show

FILE = "rotation.csv"
TITLE = "Rotation"
ABOUT = """\
AUC, mean over test views, on what was left out of training and selection in turn, on its own test images: when it was
left out, when it was trained on, and the difference. Intervals of rows: over groups. Interval of the mean: what was
left out counts as a sample, too, so it says what others like these could have given (fewer than 3 have none). Worst:
its interval knows that it is the lowest of several. A training without one of them has fewer fakes by as many."""


@dataclass(frozen=True)
class _Number:
    value: float
    low: float
    high: float


def write_rotation(folder: Path, numbers: Sequence[Rotated]) -> None:
    """All numbers as rotation.csv."""
    write_rows(folder / FILE, [field.name for field in fields(Rotated)], numbers)


def read_rotation(folder: Path) -> list[Rotated]:
    """What `write_rotation` left in a folder; nothing where there is no such file."""
    return read_rows(folder / FILE, Rotated)


def rotation_sections(numbers: Sequence[Rotated]) -> list[str]:
    """Of one method, as sections of Markdown: a row for each that was left out, then the mean and the worst."""
    over_views = [number for number in numbers if number.view == MEAN]
    if not over_views:
        return []
    rows = [["left out", "real", "fake", "AUC left out", "AUC trained on", "drop"]]
    for n in over_views:
        rows.append([_name(n, over_views), str(n.n_real), str(n.n_fake), *_shown(n)])
    return [f"## {TITLE}", grid(rows), ABOUT]


def rotation_table(numbers: Sequence[Rotated]) -> Table:
    """Of several methods, a row each: the mean over what was left out, the worst, and what training on it adds."""
    rows = []
    for method in dict.fromkeys((n.method, n.trained_on) for n in numbers):
        own = [n for n in numbers if (n.method, n.trained_on) == method and n.view == MEAN]
        at = {n.left_out: n for n in own}
        mean, worst = at[OVER_ALL], at[LOWEST]
        shown = [*_shown(mean)[:2], _shown(worst)[0], _shown(mean)[2]]
        keys = [mean.value, mean.trained, worst.value, mean.drop]
        notes = ["", "", _lowest(own), ""]
        cells = [Entry(word, key, note=note) for word, key, note in zip(shown, keys, notes, strict=True)]
        rows.append(
            [Entry(method[0], method[0]), Entry(method[1], method[1]), Entry(str(mean.seeds), mean.seeds), *cells]
        )
    header = [("", "method"), ("", "trained on"), ("", "seeds")]
    header += [("AUC, left out", "mean"), ("AUC, trained on", "mean"), ("AUC, left out", "worst"), ("", "drop")]
    return Table(TITLE, header, rows, ABOUT)


def _shown(n: Rotated) -> tuple[str, str, str]:
    return (
        show(_Number(n.value, n.low, n.high)),
        show(_Number(n.trained, n.trained_low, n.trained_high)),
        show(_Number(n.drop, n.drop_low, n.drop_high), "+"),
    )


def _lowest(numbers: Sequence[Rotated]) -> str:
    own = [n for n in numbers if n.left_out not in (OVER_ALL, LOWEST)]
    return min(own, key=lambda n: n.value).left_out


def _name(n: Rotated, numbers: Sequence[Rotated]) -> str:
    k = len(numbers) - 2
    return {OVER_ALL: f"mean of {k}", LOWEST: f"worst of {k}: {_lowest(numbers)}"}.get(n.left_out, n.left_out)

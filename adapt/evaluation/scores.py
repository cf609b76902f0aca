"""Scores: the table every method ends in and the only thing the evaluator reads. One row an (image, view)."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adapt.data.spelling import folded, refuse_two_spellings
from adapt.errors import Refusal
from adapt.evaluation.numbering import numbered
from adapt.evaluation.score_files import NUMBERS, TEXT, csv_pieces, floats, is_number, read_parquet, texts
from adapt.files import atomic

if TYPE_CHECKING:
    import pyarrow as pa

FOLD = "fold"  # text column of tables that hold the scores of several detectors, each of other images: folds.py
DEFAULTS = {"split": "test", "view": "none", "status": "ok"}  # of the other optional text columns: ''
NOTHING = ("", "None", "nan", "<NA>")  # what an empty cell of some library's table reads like
SPELLED = ("generator", "set", "edit")  # one name, one spelling
UNKNOWN = "unknown"  # `seen` of every generator where nobody says what the detector was trained on
ALLOWED = {"split": ("train", "val", "test"), "seen": ("train", "val", "", UNKNOWN)}
KEYS = ("path", "group", "generator", "split", "set", "edit", "seen", "view")  # columns that are compared by name
# A table in which one key has two values contradicts itself; a group in two splits is a leak.
ONE_VALUE = (
    *(("path", column) for column in ("generator", "group", "split", "set", "edit")),
    ("group", "split"),
    ("generator", "seen"),
)


@dataclass(frozen=True, eq=False)
class Scores:
    """Columns of equal length, checked and completed on construction.

    Text (object arrays of str): path; group (default: the path); generator ("real" for a camera image);
    family; split (default test); set; edit (ordinary processing of a real image, which stays real); seen:
    where the generator was met before the test, "train", "val", "" for never or "unknown" (real rows: always "train");
    view (default none); status: "ok" or "unreadable: reason".
    Numbers (float64): logit (> 0 speaks for fake) and p_fake in 0..1, of which one may be left out: it
    follows from the other through the logistic function; any `logit_<family>`. An unreadable row has NaN for
    both. Other columns are left behind, but `fold`: which of several detectors scored the row. Then logits are those
    above its own threshold, p_fake is its own, and images of two folds are never ranked against each other.

    Refuses a missing column, a logit that is not finite under status ok, a score under another status, p_fake
    outside 0..1, an unknown split, a (path, view) twice, a fake with an `edit`, and contradictions: a path
    with two generators, groups, splits, sets or edits, a group in two splits or folds, a generator with two `seen`.
    """

    columns: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        columns = _complete(self.columns)
        _check(columns)
        object.__setattr__(self, "columns", columns)

    def __len__(self) -> int:
        return len(self.columns["path"])

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    @property
    def fake(self) -> np.ndarray:
        """(n,) bool: the label."""
        return self["generator"] != "real"

    @property
    def ok(self) -> np.ndarray:
        """(n,) bool: the row has a score."""
        return self["status"] == "ok"

    @property
    def folds(self) -> np.ndarray | None:
        """(n,) int64: the number of each row's fold; None of a table of one detector."""
        return numbered(self[FOLD])[1] if FOLD in self.columns else None

    def select(self, rows: np.ndarray) -> "Scores":
        """The rows of a boolean mask or an array of indices, in that order."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        if rows.dtype != bool and len(np.unique(rows)) < len(rows):
            return Scores(columns)  # which refuses the row that stands twice
        some = object.__new__(Scores)  # rows of a table that was checked need no second check
        object.__setattr__(some, "columns", columns)
        return some

    def join(self, other: "Scores") -> "Scores":
        """The rows of both tables, with the columns that both have."""
        names = [name for name in self.columns if name in other.columns]
        return Scores({name: np.concatenate([self[name], other[name]]) for name in names})

    @classmethod
    def read(cls, path: str | Path, group_by: str | None = None) -> "Scores":
        """Read Parquet or CSV (UTF-8, with a header), by suffix; refuses an empty or damaged table.

        `group_by` names the column that says which images belong together, in place of `group`.
        """
        path = Path(path)
        if not path.is_file():
            raise Refusal(f"no scores at {path}: give a Parquet or CSV file")
        columns = read_parquet(path) if _suffix(path) == ".parquet" else _read_csv(path)
        scores = cls(columns if group_by is None else grouped_by(columns, group_by))
        if not len(scores):
            raise Refusal(f"{path} has no rows: score some images first")
        return scores

    def write(self, path: str | Path) -> None:
        """Write Parquet or CSV, by suffix, atomically and the same bytes every time.

        Names with undecodable bytes survive: in CSV as those bytes, in Parquet as a binary column.
        """
        path = Path(path)
        write = {".parquet": _write_parquet, ".csv": _write_csv}[_suffix(path)]
        try:
            with atomic(path) as temporary:
                write(temporary, self.columns)
        except UnicodeEncodeError as error:
            raise Refusal(f"{error.object!r} cannot be written to {path.name}: rename that file") from error


def grouped_by(columns: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The columns of a table with this one as its `group`; refuses one that is absent, or empty in some row."""
    if name not in columns:
        raise Refusal(f"--group_by {name}: there is no such column (found: {', '.join(columns)})")
    if empty := sum(str(value) in NOTHING for value in columns[name]):
        raise Refusal(
            f"--group_by {name}: {empty} of {len(columns[name])} rows say nothing there; give each its group"
        )
    return {**columns, "group": columns[name]}


def _complete(given: Mapping[str, Sequence | np.ndarray]) -> dict[str, np.ndarray]:
    """All columns, in a fixed order: text as str, numbers as float64, defaults filled in."""
    for column in ("path", "generator"):
        if column not in given:
            raise Refusal(f"scores lack the column {column!r}: add it (found: {', '.join(given)})")
    if "logit" not in given and "p_fake" not in given:
        raise Refusal(f"scores need a column 'logit' or 'p_fake' (found: {', '.join(given)})")
    given = {name: given[name] for name in given if name in (*TEXT, FOLD) or is_number(name)}
    n = len(given["path"])
    for name, values in given.items():
        if len(values) != n:
            raise Refusal(f"column {name!r} has {len(values)} values but 'path' has {n}: give one a row")
    columns = {}
    for name in TEXT:
        values = given.get(name, given["path"] if name == "group" else [DEFAULTS.get(name, "")] * n)
        columns[name] = texts(values, DEFAULTS.get(name, ""))
    columns["group"] = np.where(columns["group"] == "", columns["path"], columns["group"])
    columns["seen"][columns["generator"] == "real"] = "train"
    columns |= {name: floats(name, values) for name, values in given.items() if name not in (*TEXT, FOLD)}
    if FOLD in given:
        columns[FOLD] = texts(given[FOLD], "")
    if "logit" not in given:
        columns["logit"] = _logit(columns["p_fake"])
    if "p_fake" not in given:
        columns["p_fake"] = 0.5 * (1 + np.tanh(0.5 * columns["logit"]))  # the logistic function, no overflow
    return {name: columns[name] for name in (*TEXT, *NUMBERS, *columns)}


def _logit(p: np.ndarray) -> np.ndarray:
    """log(p / (1-p)) with finite ends, which stay apart from the nearest float64: no two p become a tie."""
    with np.errstate(divide="ignore", invalid="ignore"):  # what is outside 0..1 becomes NaN and is refused
        logit = np.log(p) - np.log1p(-p)
    return np.clip(logit, -745.0, 37.0)


class Comparison(NamedTuple):
    """A generator under a view, and the reals that it is scored against."""

    set: str
    view: str
    generator: str
    fakes: np.ndarray  # (n,) bool over the rows of a table, readable or not
    reals: np.ndarray  # (n,) bool: of the same set under the same view, processed ones (`edit`) included


def comparisons(scores: Scores) -> Iterator[Comparison]:
    """What is measured of a table, and so what may choose between settings: every generator beside its own reals.

    Reals of another set differ from its fakes by more than by being real.
    """
    for view in dict.fromkeys(scores["view"]):
        here = scores["view"] == view
        for name in dict.fromkeys(scores["set"][here]):
            rows = here & (scores["set"] == name)
            for generator in dict.fromkeys(scores["generator"][rows & scores.fake]):
                fakes = rows & (scores["generator"] == generator)
                yield Comparison(name, view, generator, fakes, rows & ~scores.fake)


def _check(columns: dict[str, np.ndarray]) -> None:
    """Every refusal of a complete table; see `Scores`."""

    def refuse_any(bad: np.ndarray, why: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            where = f"{columns['path'][row]!r}, view {columns['view'][row]!r}"
            raise Refusal(f"{int(bad.sum())} rows of scores {why}; the first is {where}")

    numbers = {name: numbered(columns[name]) for name in KEYS}
    for name, allowed in ALLOWED.items():
        if strange := set(numbers[name][0]) - set(allowed):
            refuse_any(np.isin(columns[name], list(strange)), f"have {name} {strange}, not one of {allowed}")
    called_real = [name for name in numbers["generator"][0] if name != "real" and folded(name) == "real"]
    refuse_any(np.isin(columns["generator"], called_real), f"have generator {called_real}, a fake: write 'real'")
    for name in SPELLED:
        refuse_two_spellings(name, numbers[name][0], columns[name])
    ok = columns["status"] == "ok"
    logit, p = columns["logit"], columns["p_fake"]
    refuse_any((columns["path"] == "") | (columns["generator"] == ""), "have an empty path or generator")
    refuse_any(ok & ~((p >= 0) & (p <= 1)), "have a p_fake outside 0..1: write probabilities")
    refuse_any(ok & ~np.isfinite(logit), "have status ok but no finite logit: say 'unreadable: why' instead")
    refuse_any(~ok & ~(np.isnan(logit) & np.isnan(p)), "have a score but a status other than ok: drop one")
    edited = columns["edit"] != ""
    refuse_any(edited & (columns["generator"] != "real"), "are fakes with an edit: use a view instead")
    _, first = _pairs(numbers["path"], numbers["view"])
    if len(first) < len(ok):
        row = int(np.setdiff1d(np.arange(len(ok)), first)[0])
        path, view = columns["path"][row], columns["view"][row]
        raise Refusal(f"{path!r} stands twice under view {view!r}: keep one score a (path, view)")
    if FOLD in columns:
        numbers[FOLD] = numbered(columns[FOLD])
        refuse_any(columns[FOLD] == "", "have no fold though others have: name the fold of every row")
    for key, value in (*ONE_VALUE, *([("group", FOLD)] if FOLD in columns else [])):
        of_key, first = _pairs(numbers[key], numbers[value])
        if (twice := np.flatnonzero(np.bincount(of_key) > 1)).size:
            found = [columns[value][row] for row in first[of_key == twice[0]][:2]]
            raise Refusal(f"{key} {numbers[key][0][twice[0]]!r} has {value} {found[0]!r} and {found[1]!r}: keep one")


def _pairs(a: tuple[list[str], np.ndarray], b: tuple[list[str], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct pairs of names: the number of the first name of each, and the first row that has it."""
    pairs, first = np.unique(a[1] * len(b[0]) + b[1], return_index=True)
    return pairs // max(1, len(b[0])), first


def _suffix(path: Path) -> str:
    if path.suffix not in (".parquet", ".csv"):
        raise Refusal(f"{path.name} is neither .parquet nor .csv: choose one of the two")
    return path.suffix


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    """Columns of text, and of numbers where a column holds scores; rows are read a piece at a time."""
    pieces = [{name: _cells(name, cells) for name, cells in piece.cells.items()} for piece in csv_pieces(path)]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _cells(name: str, values: Sequence[object]) -> np.ndarray:
    return floats(name, values) if is_number(name) else texts(values, "")


def _write_csv(path: Path, columns: dict[str, np.ndarray]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        # all text is quoted: the writer would leave a lone carriage return bare, where the reader ends a row
        out = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        out.writerow(columns)
        cells = (["" if value != value else value for value in values.tolist()] for values in columns.values())
        out.writerows(zip(*cells, strict=True))


def _write_parquet(path: Path, columns: dict[str, np.ndarray]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def arrow(values: np.ndarray) -> "pa.Array":
        if values.dtype != object:
            return pa.array(values)
        try:
            return pa.array(values, type=pa.string())
        except UnicodeEncodeError:
            return pa.array([value.encode("utf-8", "surrogateescape") for value in values], type=pa.binary())

    table = pa.table({name: arrow(values) for name, values in columns.items()})
    memory = pa.BufferOutputStream()  # so that a full disk shows as Python's own OSError
    pq.write_table(table, memory, compression="zstd")
    path.write_bytes(memory.getvalue())

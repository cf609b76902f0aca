"""Which column of somebody's table of scores is what, and its cells as numbers and text.

A role (score, label, path ...) is a column that was named, one of ours, or the only one with a common name. Where two
may be meant, neither is guessed. Whatever is refused is refused with its row, column and value.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from adapt.data.spelling import folded
from adapt.errors import Refusal
from adapt.evaluation.score_files import NUMBERS, TEXT, Piece, is_number, texts
from adapt.evaluation.scores import FOLD
from adapt.flags import Columns
from adapt.text import plain

COMMON = {  # names that people give, folded; a column of ours comes first
    "score": (
        *("score", "scores", "prob", "probs", "probability", "p", "pfake", "fakeprob", "probfake", "fakeprobability"),
        *("probabilityfake", "fakescore", "scorefake", "prediction", "predictions", "pred", "output", "logits"),
        *("yscore", "yprob", "ypred", "logit", "fakelogit"),
    ),
    "label": (
        *("label", "labels", "isfake", "fake", "isai", "isgenerated", "aigenerated", "isaigenerated", "target"),
        *("targets", "ytrue", "y", "gt", "groundtruth", "truth", "class", "isreal", "real"),
    ),
    "path": (
        *("path", "file", "files", "filename", "filepath", "image", "imagepath", "imagefile", "imagename"),
        *("img", "imgpath", "imgname"),
    ),
}
MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>"}  # a value that is not there, in small letters
SHOWN = 3  # rows or values that a line names


@dataclass
class Table:
    """Columns of one file or frame, under the names it has, and what they are."""

    where: str  # what to call it
    first: int = 1  # number of its first row
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # text as objects, scores as float64
    roles: dict[str, str] = field(default_factory=dict)  # score, label, path ... -> column
    meant: str = ""  # what the values of the label mean

    def __len__(self) -> int:
        return len(self["score"])

    def __getitem__(self, role: str) -> np.ndarray:
        return self.columns[self.roles[role]]

    def refuse(self, bad: np.ndarray, role: str, why: Callable[[str], str]) -> None:
        """Refuse the first row of a mask, by its number, column and value."""
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            value = self[role][row]
            raise Refusal(f"{self.where}, row {self.first + row}, column {self.roles[role]!r}: {why(value)}")

    def rows(self, which: np.ndarray) -> str:
        """`3 rows (4, 9, 12)`, the first ones by number."""
        found = self.first + np.flatnonzero(which)
        return f"{len(found)} row{'s' if len(found) > 1 else ''} ({some(found.tolist())})"


def read_table(where: str, pieces: Iterable[Piece], columns: Columns) -> Table:
    """Read the columns that have a role, or that are ours."""
    table, numeric = Table(where), set[str]()
    kept: dict[str, list[np.ndarray]] = {}
    for piece in pieces:
        if not table.roles:
            header = list(piece.cells)
            table.roles, table.first = _roles(where, header, columns), piece.first
            numeric = {name for name in header if is_number(name)} if as_it_is(table, columns) else set()
            numeric |= {table.roles["score"]}
            texts_of_ours = {name for name in header if name in (*TEXT, FOLD)}
            kept = {name: [] for name in header if name in numeric | texts_of_ours | {*table.roles.values()}}
        for name, found in kept.items():
            convert = _numbers if name in numeric else _texts
            found.append(convert(where, name, piece.cells[name], piece.first))
    table.columns = {name: np.concatenate(found) for name, found in kept.items()}
    if not len(table):
        raise Refusal(f"{where} has no rows: score some images first")
    return table


def as_it_is(table: Table, columns: Columns) -> bool:
    """Whether the scores are ours, so that a second column of them and those of classes are what they are called."""
    return table.roles["score"] in NUMBERS and columns.score is columns.score_is is columns.higher_is is None


def _roles(where: str, header: Sequence[str], columns: Columns) -> dict[str, str]:
    """The column of each role that the table has; refuses two that may be meant, and none where one is needed."""
    roles: dict[str, str] = {}
    for role in ("path", "label", "generator", "view", "split", "group", "score"):
        flag = "group_by" if role == "group" else role
        name = getattr(columns, flag)
        ours = [one for one in (NUMBERS if role == "score" else (role,)) if one in header and one in (*TEXT, *NUMBERS)]
        if name is not None:
            roles[role] = _column(f"--{flag}", name, header)
        elif ours:
            roles[role] = ours[0]
        elif role in COMMON and (found := _common(where, role, header, columns)):
            roles[role] = found
    if "score" not in roles:
        raise Refusal(_lacking(where, header, "scores", "--score"))
    if "label" not in roles and "generator" not in roles:
        raise Refusal(_lacking(where, header, "labels", "--label, or of generators, --generator"))
    return roles


def _column(flag: str, name: str, header: Sequence[str]) -> str:
    """The column that a flag names, whatever its capitals."""
    alike = [name] if name in header else [one for one in header if one.strip().lower() == name.strip().lower()]
    if len(alike) != 1:
        raise Refusal(f"{flag} {name}: there is no such column (found: {', '.join(header)})")
    return alike[0]


def _common(where: str, role: str, header: Sequence[str], columns: Columns) -> str | None:
    """The one column whose name is common for a role, and which no flag gives another one."""
    named = {getattr(columns, other) for other in ("score", "label", "path", "group_by", "generator", "view", "split")}
    found = [name for name in header if folded(name) in COMMON[role] and name not in named]
    if role == "label" and "generator" in header and len(found) > 1:
        return None  # the generators say it
    if len(found) > 1:
        raise Refusal(f"{where}: {' and '.join(map(repr, found))} may each be the {role}: say which, with --{role}")
    return found[0] if found else None


def _lacking(where: str, header: Sequence[str], what: str, flag: str) -> str:
    if any(_is_a_number(name) for name in header):
        return (
            f"{where}: the first row ({', '.join(map(str, header))[:80]}) looks like values, not names of columns: "
            "put a row such as path,label,score in front"
        )
    return f"{where}: no column is known to hold {what}: name it with {flag} (found: {', '.join(header)})"


def _is_a_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return word.lower() not in ("nan", "inf", "infinity")


def _texts(where: str, name: str, values: Sequence[object], first: int) -> np.ndarray:
    """Objects of str, what is missing as ''; refuses a list or an object in a cell."""
    if {list, dict, tuple} & set(map(type, values)):
        row = next(row for row, value in enumerate(values) if isinstance(value, list | dict | tuple))
        raise Refusal(f"{where}, row {first + row}, column {name!r} holds {values[row]!r:.40}: give one value a row")
    return texts(values, "")


def _numbers(where: str, name: str, values: Sequence[object], first: int) -> np.ndarray:
    """float64 of numbers and words; what is missing is NaN. Refuses the first that is neither, with its remedy."""
    found = np.empty(len(values))
    for row, value in enumerate(values):
        try:
            number, wrong = _number(value), ""
        except (TypeError, ValueError, OverflowError):
            number, wrong = math.nan, f"is no score: {_remedy(value)}"
        if math.isinf(number):
            wrong = "is not finite: leave it empty if there is no score"
        if wrong:
            raise Refusal(f"{where}, row {first + row}, column {name!r}: {value!r:.60} {wrong}")
        found[row] = number
    return found


def _number(value: object) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, str):
        word = value.strip()
        if word.lower() in MISSING:
            return float("nan")
        if "_" in word:
            raise ValueError(word)  # Python reads 1_000
        return float(word)
    if isinstance(value, bool | np.bool_ | bytes):
        raise TypeError(value)
    return float(value)  # type: ignore[arg-type]


def _remedy(value: object) -> str:
    word = str(value).strip()
    if isinstance(value, list | dict | tuple):
        return "give one number a row, how much it speaks for fake"
    if word.endswith("%") and _is_a_number(word.removesuffix("%").replace(",", ".")):
        return f"write {float(word.removesuffix('%').replace(',', '.')) / 100:g}"
    if word.count(",") == 1 and _is_a_number(word.replace(",", ".")):
        return f"write {word.replace(',', '.')}, with a point"
    return "write a number, leave it empty if there is none, or name another column with --score"


def some(words: Sequence[object]) -> str:
    """The first few of them, for a line."""
    return ", ".join(plain(str(word)) for word in words[:SHOWN]) + (", ..." if len(words) > SHOWN else "")

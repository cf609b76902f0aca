"""Tables of scores that somebody brings: what labels and scores mean in them.

Columns are found as roles.py says; what was taken for what is said. A table whose columns are all ours (`README.md`)
is read as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adapt.data.spelling import folded
from adapt.errors import Refusal
from adapt.evaluation.numbering import numbered
from adapt.evaluation.roles import MISSING, Table, as_it_is, read_table, some
from adapt.evaluation.score_files import TEXT, Piece, is_number, read_pieces, texts
from adapt.evaluation.scores import FOLD, UNKNOWN, Scores, grouped_by
from adapt.flags import Columns
from adapt.text import plain

REAL = {
    *("real", "human", "natural", "nature", "photo", "photograph", "camera", "authentic", "genuine", "original"),
    *("pristine", "0real", "realimage", "realphoto", "notai", "nonai"),
}
FAKE = {
    *("fake", "ai", "aigc", "aigenerated", "generated", "synthetic", "artificial", "deepfake", "1fake"),
    *("fakeimage", "aiimage"),
}
NO, YES = {"0", "false", "no", "f", "n"}, {"1", "true", "yes", "t", "y"}  # to what the column's name says
SPLITS = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


@dataclass(frozen=True)
class Brought:
    """A table of scores, and what was made of it."""

    name: str
    scores: Scores
    ours: bool  # every role was a column of ours: nothing was chosen
    has: frozenset[str]  # columns of `Scores` that the table says something of; others have their defaults
    taken: str  # what was taken for what, in one line
    notes: tuple[str, ...] = ()  # what a reader must know, a line each

    @property
    def without_splits(self) -> bool:
        """Whether every row is a test row because nothing says otherwise: no threshold can be fitted."""
        return "split" not in self.has

    def cut(self, given: float | None) -> float | None:
        """The threshold that was given, or the border of a table that has no rows to fit one on; None: fit it."""
        return 0.0 if given is None and self.without_splits and self.scores.folds is None else given


def read(
    paths: Sequence[Path], columns: Columns | None = None, views: Sequence[str] = (), name: str | None = None
) -> Brought:
    """The scores of one detector, from one file or from a file a view; refuses what cannot be understood.

    `views` names the view of each file. A table whose columns are all ours is what `Scores.read` gives.
    """
    columns = columns or Columns()
    tables = [read_table(str(path), read_pieces(path), columns) for path in paths]
    if views:
        if columns.view is not None:
            raise Refusal(f"--view {columns.view} does not go with --views: the view is that of the file, or a column")
        for table, view in zip(tables, views, strict=True):
            if "path" not in table.roles:
                raise Refusal(f"{table.where} has no column of paths to join the views by: name it with --path")
            if "view" in table.roles:
                raise Refusal(f"{table.where} has a column 'view' already: give the table without --views")
            table.columns["view"], table.roles["view"] = texts([view] * len(table), ""), "view"
    return _brought(tables, columns, name or paths[0].stem)


def from_columns(table: Mapping[str, object], columns: Columns) -> Brought:
    """The scores of a mapping of columns; row 1 is the first."""
    cells = {str(name): np.asarray(values) for name, values in table.items()}
    lengths = {name: len(values) for name, values in cells.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise Refusal(f"columns differ in length ({shown}): give one value a row")
    listed = {name: values.tolist() for name, values in cells.items()}
    return _brought([read_table("the table", [Piece(1, listed)], columns)], columns, "table")


def _brought(tables: Sequence[Table], columns: Columns, name: str) -> Brought:
    """One table of scores, of one file or several that follow each other."""
    notes: list[str] = []
    parts = [_meaning(table, columns, notes) for table in tables]
    roles = tables[0].roles
    for table in tables[1:]:
        if table.roles != roles:
            raise Refusal(f"{table.where} has other columns than {tables[0].where}: --views takes tables alike")
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    kind = _kind(tables, columns, notes)
    if not as_it_is(tables[0], columns):
        score = whole.pop("score")
        if columns.higher_is == "real":
            score = -score if kind == "logit" else (100 if kind == "percent" else 1) - score
        whole["logit" if kind == "logit" else "p_fake"] = score / 100 if kind == "percent" else score
    ours = replace(columns, group_by=None) == Columns() and as_it_is(tables[0], columns)
    ours &= roles.get("path") == "path" and roles.get("generator") == "generator" and "label" not in roles
    if not ours and "seen" not in whole:
        whole["seen"] = np.full(len(whole["path"]), UNKNOWN, dtype=object)
    try:
        scores = Scores(whole)
    except Refusal as refusal:
        raise Refusal(f"{' '.join(table.where for table in tables)}: {refusal}") from refusal
    fakes = int(scores.fake.sum())
    if not ours and fakes in (0, len(scores)):
        which = "label" if "label" in roles else "generator"
        raise Refusal(
            f"{tables[0].where}, column {roles[which]!r}: all {len(scores)} rows are {'fake' if fakes else 'real'}: "
            "give rows of both classes, or say with --fake_is which values mean fake"
        )
    words = {"logit": "logits", "probability": "probabilities", "percent": "per cent"}
    about = {"score": f"{words[kind]}, higher is {columns.higher_is or 'fake'}"}
    about["label" if "label" in roles else "generator"] = tables[0].meant
    said = [
        (role if role == column else f"{role} from {plain(column)!r}")
        + (f" ({about[role]})" if about.get(role) else "")
        for role, column in roles.items()
    ]
    said += [key for key in whole if key in (*TEXT, FOLD) and key in tables[0].columns and key not in roles]
    counts = f"{' '.join(table.where for table in tables)}: {len(scores)} rows, {fakes} fake"
    has = frozenset({*roles, *(key for key in tables[0].columns if key in TEXT)})
    return Brought(name, scores, ours, has, f"{counts}; {', '.join(said)}", tuple(notes))


def _meaning(table: Table, columns: Columns, notes: list[str]) -> dict[str, np.ndarray]:
    """The columns of ours that one file gives; `score` if it is to be understood still."""
    found = {name: values for name, values in table.columns.items() if name in (*TEXT, FOLD)}
    if as_it_is(table, columns):
        found |= {name: values for name, values in table.columns.items() if is_number(name)}
    else:
        found["score"] = table["score"]
    found |= {role: table[role] for role in ("path", "view") if role in table.roles}
    if columns.group_by is not None:
        name = table.roles["group"]
        found["group"] = grouped_by({name: table["group"]}, name)["group"]
    if "path" in found:
        table.refuse(found["path"] == "", "path", lambda _: "no path: name the image")
    else:
        found["path"] = texts([f"row {table.first + row}" for row in range(len(table))], "")
        notes.append(f"{table.where}: no column of paths, so each row counts as an image of its own (--path COLUMN)")
    if "split" in table.roles:
        known = {word: word for word in ("train", "val", "test")} | SPLITS | {"": "test"}
        split = np.array([known.get(folded(word), "") for word in table["split"]], dtype=object)
        table.refuse(split == "", "split", lambda word: f"{word!r} is none of train, val, test: write one of them")
        found["split"] = split
    found["generator"] = _generators(table, columns, notes)
    _refuse_twice(table, found)
    if "status" not in found and (lost := np.isnan(table["score"])).any():
        notes.append(f"{table.where}: {table.rows(lost)} without a score, unreadable and in no number")
        found["status"] = np.where(lost, "unreadable: no score", "ok").astype(object)
    elif "status" not in found:
        found["status"] = texts(["ok"] * len(table), "")
    return found


def _generators(table: Table, columns: Columns, notes: list[str]) -> np.ndarray:
    """(n,) names of generators, `real` for a camera image, from labels, names of generators, or both."""
    roles = table.roles
    if columns.label is None and not columns.fake_is and "generator" in roles and (table["generator"] == "real").any():
        roles.pop("label", None)  # that of another question, such as a class of things
    if "label" not in roles:
        names = table["generator"]
        table.refuse(names == "", "generator", lambda _: "no generator: name it, or write real")
        if not columns.fake_is and ((names == "real").any() or not _some_say_real(names)):
            return names
        return np.where(_fake(table, "generator", columns), names, "real").astype(object)
    fake = _fake(table, "label", columns)
    if "generator" not in roles:
        notes.append(f"{table.where}: no column of generators, so all fakes count as one, 'fake' (--generator COLUMN)")
        return np.where(fake, "fake", "real").astype(object)
    names = table["generator"]
    wrong = fake & np.array([folded(name) in REAL for name in names])
    table.refuse(wrong, "generator", lambda name: f"{name!r}, but {roles['label']!r} says fake: mend one of the two")
    return np.where(fake, np.where(names == "", "fake", names), "real").astype(object)


def _some_say_real(names: np.ndarray) -> bool:
    return any(_says_fake(name, turned=False) is False for name in set(names.tolist()))


def _fake(table: Table, role: str, columns: Columns) -> np.ndarray:
    """(n,) bool: what the label says; a generator's name that does not say real says fake."""
    values, name = table[role], table.roles[role]
    distinct, place = numbered(values)
    if columns.fake_is:
        given, there = {_value(word) for word in columns.fake_is}, [_value(word) for word in distinct]
        if absent := [word for word in columns.fake_is if _value(word) not in there]:
            found = f"{table.where} has no such value in column {name!r} (found: {some(distinct)})"
            raise Refusal(f"--fake_is {absent[0]}: {found}")
        meaning: list[bool | None] = [word in given for word in there]
    else:
        turned = folded(name).removeprefix("is") in REAL
        meaning = [_says_fake(word, turned) for word in distinct]
        meaning = [one is not False for one in meaning] if role == "generator" else meaning
    missing = np.array([word.strip().lower() in MISSING for word in distinct])[place]
    table.refuse(missing, role, lambda _: "no label: say real or fake, or leave the row out")
    unknown = np.array([one is None for one in meaning])[place]
    remedy = "says neither real nor fake: name the values that mean fake with --fake_is (all others then mean real)"
    table.refuse(unknown, role, lambda word: f"{word!r} {remedy}")
    table.meant = "; ".join(
        f"{some([word for word, one in zip(distinct, meaning, strict=True) if one == side])} {what}"
        for side, what in ((False, "is real"), (True, "is fake"))
        if side in meaning
    )
    return np.array(meaning, dtype=bool)[place]


def _value(word: str) -> str:
    """A label in one spelling: 1, 1.0 and `1 ` are one."""
    try:
        return f"{float(word):g}"
    except ValueError:
        return folded(word)


def _says_fake(word: str, turned: bool) -> bool | None:
    """What one label says; `turned`: its column asks for real, so that 1 means real."""
    value = _value(word)
    if value in NO or value in YES:
        return (value in YES) != turned
    return True if value in FAKE else False if value in REAL else None


def _kind(tables: Sequence[Table], columns: Columns, notes: list[str]) -> str:
    """Whether scores are logits, probabilities or per cent; refuses what could be two of them."""
    name = tables[0].roles["score"]
    if columns.higher_is is None and "real" in folded(name):
        raise Refusal(
            f"{tables[0].where}: column {name!r} seems to speak for real: say --higher_is real, or --higher_is fake"
        )
    every = np.concatenate([table["score"] for table in tables])
    values = every[~np.isnan(every)]
    if not len(values):
        raise Refusal(f"{tables[0].where}, column {name!r}: no row has a score: name another column with --score")
    kind = columns.score_is or ("probability" if name == "p_fake" else "logit" if "logit" in folded(name) else None)
    low, high = float(values.min()), float(values.max())
    inside = low >= 0 and high <= 1
    if kind in ("probability", "percent"):
        most = 1 if kind == "probability" else 100
        remedy = f"lies outside 0..{most}: mend it, or say what it is with --score_is"
        for table in tables:
            table.refuse((table["score"] < 0) | (table["score"] > most), "score", lambda value: f"{value:g} {remedy}")
    elif kind is None and inside:
        kind = "probability"
    elif kind is None and (low >= 0 or high <= 0):
        side = "below" if low >= 0 else "above"
        percent = "per cent (--score_is percent), or " if low >= 0 and high <= 100 else ""
        raise Refusal(
            f"{tables[0].where}, column {name!r}: scores lie in {low:g}..{high:g}, none {side} 0: {percent}logits, of "
            "which 0 is the border (--score_is logit)? Say which"
        )
    elif kind == "logit" and inside and columns.score_is is None:
        notes.append(
            f"{tables[0].where}: column {name!r} is taken as logits, as its name says, though all its values lie in "
            "0..1: --score_is probability if they are probabilities"
        )
    if np.isin(values, (0, 1)).all() and columns.score_is is None:
        notes.append(
            f"{tables[0].where}: column {name!r} holds nothing but 0 and 1: decisions? Scores before the cut say more"
        )
    return kind or "logit"


def _refuse_twice(table: Table, found: Mapping[str, np.ndarray]) -> None:
    """Refuse a path that stands twice under one view, by the numbers of both rows."""
    path = numbered(found["path"])[1]
    view = numbered(found["view"])[1] if "view" in found else np.zeros(len(path), np.int64)
    key = path * (int(view.max()) + 1) + view
    _, first, place = np.unique(key, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[place] != np.arange(len(key)))
    if again.size:
        row, before = int(again[0]), int(first[place[again[0]]])
        where = f"{table.where}, row {table.first + row}, column {table.roles['path']!r}: {found['path'][row]!r}"
        remedy = "" if "view" in found else ", or name the column of its views with --view"
        raise Refusal(f"{where} stands in row {table.first + before} already: keep one{remedy}")

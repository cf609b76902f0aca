"""Unknown images as a user names them (folders, files, manifests, tar files) -> one sorted list, each file once."""

import hashlib
import json
import os
import posixpath
import sys
import tarfile
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from adapt.csv_as_written import known_columns
from adapt.data.images import BAD_TAR, stays_inside
from adapt.data.manifest import Manifest
from adapt.data.rows import MEMBER, Place, split_member
from adapt.data.tables import read_table
from adapt.errors import Refusal
from adapt.files import SYSTEM_FILES, left_by_system, too_many_files

TEXTS = (".json", ".txt", ".cls")  # members of a tar file that describe its images in WebDataset's layout

SYSTEM = "zz-system"  # reason of a file that is no input; behind any other, so that a file that is named stays one


class Input(NamedTuple):
    """One file to judge. `file` is absolute; `path` is relative to the folder that all inputs share."""

    path: str
    file: str
    sha256: str = ""  # of a manifest, checked when the file is read
    reason: str = ""  # what the listing knows already: no-access, io-error, outside, archive-name, bad-archive...
    place: Place | None = None  # in its tar file, where that was listed or a manifest says it


def find_inputs(names: Sequence[str]) -> tuple[str, list[Input]]:
    """The folder that all inputs share, and the inputs in the order of their paths' bytes.

    In a folder every file is an input, whatever its name, but those of macOS and Windows (`.DS_Store`, `Thumbs.db`,
    `._photo.jpg`, `__MACOSX`), which a printed line counts. One that cannot be listed or that links out of the folder
    is an input with a reason, links to folders are not followed. A named file or link is taken as it is. A manifest is
    any .csv or .parquet table with a column `path`; of a tar file all members count but `TEXTS`, and one whose name
    leaves the archive, or that a later one of its name replaces, is an input of its own with a reason. What is named
    twice, by whatever way, comes once. Refuses a name that is not there, and inputs without a single file.
    """
    folders: list[str] = []
    found: dict[str, tuple[str, str, Place | None]] = {}  # file -> sha256, reason, place
    for name in names:
        folder, files = _look(name)
        folders.append(folder)
        for file, sha256, reason, place in files:
            had = found.get(file, (sha256, reason, place))
            # in any order: a digest wins, a reason loses
            found[file] = (max(sha256, had[0]), min(reason, had[1]), max(place, had[2], key=lambda p: p or (-1, -1)))
    if (system := [file for file, (_, reason, _) in found.items() if reason == SYSTEM]) and os.environ.get(
        "RANK", "0"
    ) == "0":
        print(
            f"left out: {len(system)} files that macOS or Windows wrote ({', '.join(SYSTEM_FILES[:2])}, ._*...)",
            file=sys.stderr,
        )
    found = {file: what for file, what in found.items() if what[1] != SYSTEM}
    if not found:
        raise Refusal(f"no file in {', '.join(map(repr, names)) or 'no --input'}: name a folder that holds images")
    root = os.path.commonpath(folders)
    ordered = sorted(found, key=os.fsencode)
    return root, [Input(_relative(file, root), file, *found[file]) for file in ordered]


def inputs_for(names: Sequence[str], outputs: Sequence[Path], maps: Path | None = None) -> tuple[str, list[Input]]:
    """`find_inputs` without the files that predictions are written to: these, their temporary ones, OUTPUT.parts,
    and the folder `maps`.

    Refuses an output or a folder that would overwrite an input, and an output that could not hold an input's name.
    """
    root, inputs = find_inputs(names)
    first = outputs[0]
    folder = os.path.realpath(first.parent)
    ours = [os.path.join(folder, path.name) for path in outputs]  # noqa: PTH118
    named = {os.path.realpath(name) for name in names}
    for path, file in zip(outputs, ours, strict=True):
        if path.is_dir() or os.path.realpath(file) in named:
            raise Refusal(f"--output {path} is a folder or an input: name a file of its own")
    made = [os.path.join(folder, f"{first.stem}.parts", "")]  # noqa: PTH118
    made += [os.path.join(folder, f".{path.name}.") for path in outputs]  # noqa: PTH118
    if maps:
        pictures = os.path.join(os.path.realpath(maps), "")  # noqa: PTH118
        if any(os.path.join(name, "").startswith(pictures) for name in named):  # noqa: PTH118
            raise Refusal(f"--maps {maps} is an input or holds one: name a folder of its own")
        made.append(pictures)
    inputs = [item for item in inputs if item.file not in ours and not item.file.startswith(tuple(made))]
    if not inputs:
        raise Refusal(f"no file in {', '.join(names)} but this recipe's own: name a folder that holds images")
    if first.suffix == ".parquet":
        for item in inputs:
            if any("\ud800" <= letter <= "\udfff" for letter in item.path):
                raise Refusal(f"{item.path!r} is not UTF-8, which Parquet needs: name a .csv or .jsonl as --output")
    return root, inputs


def inputs_digest(inputs: Sequence[Input]) -> str:
    """SHA-256 (hex) over names, sizes and times of change: another one where a file came, went or was replaced."""
    digest, states = hashlib.sha256(), {}
    for path, file, *rest, _ in inputs:  # a place follows from the state of its tar file
        if (name := split_member(file)[0]) not in states:
            states[name] = _state(name)
        digest.update(json.dumps([path, *rest, *states[name]]).encode() + b"\n")
    return digest.hexdigest()


Found = Iterator[tuple[str, str, str, Place | None]]  # file, sha256, reason, place in its tar file


def _look(name: str) -> tuple[str, Found]:
    """The folder that a name speaks of, and the files it stands for."""
    path, suffix = Path(name), posixpath.splitext(name)[1].lower()
    if path.is_dir():
        root = os.path.realpath(name)
        return root, _folder(root)
    archive, member = split_member(name)
    if not os.path.lexists(archive):
        raise Refusal(f"no input {name!r}: name folders, image files, tar files or manifests (.csv, .parquet)")
    parent, base = posixpath.split(archive)
    folder = os.path.realpath(parent or ".")
    file = posixpath.join(folder, base)
    if member:
        if not stays_inside(member):
            return folder, iter([(f"{file}::{member}", "", "outside", None)])
        return folder, iter([(f"{file}::{posixpath.normpath(member)}", "", "", None)])
    if suffix == ".tar":
        return folder, _tar(file)
    if suffix in (".csv", ".parquet"):
        return folder, _table(path)
    return folder, iter([(file, "", "", None)])


def _folder(root: str) -> Found:
    inside, waiting = posixpath.join(root, ""), [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listed:
                entries = list(listed)
        except OSError as error:
            if too_many_files(error):
                raise
            yield folder, "", "no-access" if isinstance(error, PermissionError) else "io-error", None
            continue
        for entry in entries:
            if split_member(entry.path)[1]:
                yield entry.path, "", "archive-name", None  # would be read as a member of an archive
            elif left_by_system(entry.name) or entry.name == "__MACOSX":
                yield entry.path, "", SYSTEM, None
            elif entry.is_symlink():
                target = os.path.realpath(entry.path)
                if not f"{target}/".startswith(inside):
                    yield entry.path, "", "outside", None
                elif not Path(target).is_dir():  # a folder in here is listed under its own name
                    yield entry.path, "", "", None
            elif entry.is_dir():
                waiting.append(entry.path)
            else:
                yield entry.path, "", "", None


def _relative(file: str, root: str) -> str:
    """Path of a file from the folder of all inputs. What a tar file calls its member is taken as it is: by `..` in it
    the member would get another file's path."""
    archive, member = split_member(file)
    path = os.path.relpath(archive, root)
    return f"{path}::{member}" if member else path


def _tar(file: str) -> Found:
    met: list[tuple[str, str, Place | None]] = []  # name, reason and place
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                name = posixpath.normpath(member.name)
                if left_by_system(posixpath.basename(name)):
                    yield f"{file}::{name}", "", SYSTEM, None
                elif not stays_inside(member.name):
                    met.append((member.name, "outside", None))
                elif not member.isdir() and not name.lower().endswith(TEXTS):
                    plain = member.isreg() and not member.issparse()
                    met.append((name, "", (member.offset, member.size)) if plain else (name, "not-a-file", None))
    except (*BAD_TAR, OSError) as error:  # the members before the damage have been listed
        if too_many_files(error):
            raise
        yield file, "", "bad-archive", None
    last = {name: number for number, (name, *_) in enumerate(met)}
    last |= {name: number for number, (name, reason, _) in enumerate(met) if not reason}  # the one that is read
    for number, (name, reason, place) in enumerate(met):
        if number == last[name]:
            yield f"{file}::{name}", "", reason, place
        else:
            yield f"{file}::{_unused(name, number, last)}", "", reason or "member-twice", None


def _unused(name: str, number: int, used: Container[str]) -> str:
    """A name for the member of this number that no member of the archive has."""
    name = f"{name} (member {number + 1})"
    return _unused(name, number, used) if name in used else name


def _table(path: Path) -> Found:
    columns = read_table(path)
    names = known_columns([*columns], ("path", "sha256", *MEMBER), str(path))
    columns = dict(zip(names, columns.values(), strict=True))
    if "path" not in columns:
        raise Refusal(f"{path}: no column 'path', only {', '.join(columns) or 'none'}: add or rename it")
    known = [name for name in ("sha256", *MEMBER) if name in columns]
    rows = {tuple(map(posixpath.normpath, split_member(name))): name for name in columns["path"][::-1]}
    of = {name: row for row, name in enumerate(columns["path"])}
    paths = list(rows.values())
    same = {"group": "g", "generator": "real", "split": "test"}  # nothing is known of them: only paths are checked
    table = Manifest.of(
        {"path": paths}
        | {key: [columns[key][of[name]] for name in paths] for key in known}
        | {key: [value] * len(paths) for key, value in same.items()},
        path.parent,
    )
    for row, file in enumerate(table["file"]):
        yield file, table["sha256"][row], "", table.place(row)


def _state(name: str) -> tuple[int, int]:
    try:
        status = os.stat(name)  # noqa: PTH116 (a Path refuses no name that os does not)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns

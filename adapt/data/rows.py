"""What a row of a manifest may hold, and where its files lie: checks and places of single rows."""

import functools
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from adapt.data.spelling import folded
from adapt.errors import Refusal

SPLITS = ("train", "val", "test")
REQUIRED = ("path", "group", "generator", "split")
PLACES = ("file", "mask_file")  # absolute names, which are found and never written
OPTIONAL = ("set", "edit", "mask", "family", "source", "sha256")
FILES = ("path", "mask")  # names of files, which may hold any bytes
MEMBER = ("member_offset", "member_size")  # where in its archive an image lies, if the table says so
WORDS = ("group", "generator", "split", "set", "edit", "family", "source", "sha256")  # blanks around mean nothing
SPELLED = ("generator", "set", "edit", "family")  # one name, one spelling
WHOLE = "[0-9]{1,18}"  # a number of bytes, below 2^63
LARGE = 100_000  # rows from which a manifest is better Parquet, which processes share
Words = Sequence[str] | np.ndarray  # (n,) strings: a list, or a column of a table
Place = tuple[int, int]  # of a member in its tar file: the byte at which its header begins, and its size in bytes


def split_member(path: str) -> tuple[str, str]:
    """`shard.tar::member` -> (`shard.tar`, `member`); any other path -> (path, "")."""
    stem, archived, member = path.partition(".tar::")
    return (stem + ".tar", member) if archived else (path, "")


def place_of(member_offset: str, member_size: str) -> Place | None:
    """Two cells of a table as a place in a tar file; None where they are empty."""
    return (int(member_offset), int(member_size)) if member_offset else None


def strings(values: Words) -> np.ndarray:
    """An object array (n,) of strings."""
    array = np.empty(len(values), object)
    array[:] = list(values)
    return array


def problem(
    path: str,
    group: str,
    generator: str,
    split: str,
    edit: str,
    mask: str,
    digest: str,
    member_offset: str = "",
    member_size: str = "",
) -> str:
    """What is wrong with one row's values, and the remedy; empty if nothing is."""
    if not (path and group.strip() and generator.strip()):
        return f"empty path, group or generator ({path!r}, {group!r}, {generator!r}): fill it in"
    if path.endswith(".tar::") and not split_member(path)[1]:
        return f"path {path!r} names no image inside its archive: write {path}MEMBER"
    if split not in SPLITS:
        return f"unknown split {split!r}: use train, val or test"
    if generator != "real" and folded(generator) == "real":
        return f"generator {generator!r} would count as a fake: write 'real'"
    if edit and generator != "real":
        return f"edit {edit!r} on generator {generator!r}: only a camera image ('real') may have an edit"
    if mask and generator == "real" and not edit:
        return f"mask {mask!r} on a camera image without an edit: name the edit or the generator that changed a part"
    if digest and not re.fullmatch("[0-9a-f]{64}", digest):
        return f"sha256 {digest!r} is not 64 hexadecimal digits: correct it or leave it empty"
    place = member_offset, member_size
    if any(place) and not (split_member(path)[1] and all(re.fullmatch(WHOLE, number) for number in place)):
        return (
            f"member_offset {member_offset!r}, member_size {member_size!r} of {path!r}: write two whole numbers of "
            "bytes for an image in a tar file, else leave both empty"
        )
    return ""


def inside_of(root: str) -> Callable[[str], bool]:
    """Whether a folder lies in `root`, links followed: one look at each folder, not one for each of its files."""

    @functools.cache
    def inside(place: str) -> bool:
        return os.path.commonpath([os.path.realpath(place), root]) == root

    return inside


def refusal_of_place(name: str, number: int, path: str, root: str) -> Refusal:
    """What is said of a path that leaves the folder `root` of the manifest `name`."""
    return Refusal(
        f"{name}, row {number}: path {path!r} leaves the manifest's folder {root}: move the image, or the "
        "manifest, so that the image lies below it"
    )


def locate(
    paths: Words, folder: Path, name: str, numbers: Iterable[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Paths relative to the folder, and absolute file names ("" of ""); `numbers` are those of the rows, from 1.

    An absolute path becomes the relative one, and `a\\b.png` becomes `a/b.png` where only that is a file. Refuses a
    path that leaves the folder by its text or through a symbolic link.
    """
    root = os.path.realpath(folder)
    starts = tuple(f"{place.rstrip('/')}/" for place in (root, str(Path(folder).absolute())))
    inside = inside_of(root)
    written, files = [], []
    for number, given in zip(range(1, len(paths) + 1) if numbers is None else numbers, paths, strict=True):
        path = given
        if not path:
            written.append("")
            files.append("")
            continue
        if path.startswith("/"):
            path = next((path[len(start) :] for start in starts if path.startswith(start)), path)
        if "\\" in path:
            path = _with_slashes(path, root)
        archive, member = split_member(path)
        file = posixpath.normpath(f"{root}/{archive}")
        stays = "\0" not in path and not path.startswith("/") and not member.startswith("/")
        stays = stays and ".." not in f"{archive}/{member}".split("/") and inside(posixpath.dirname(file))
        if not stays or (posixpath.islink(file) and not inside(file)):
            raise refusal_of_place(name, number, given, root)
        written.append(path)
        files.append(f"{file}::{posixpath.normpath(member)}" if member else file)
    return strings(written), strings(files)


def _with_slashes(path: str, root: str) -> str:
    """A path as Windows writes it, where a file of that name is there and none of the name as it stands."""
    archive, member = split_member(path)
    other = archive.replace("\\", "/")
    if "\0" in path or posixpath.lexists(f"{root}/{archive}") or not posixpath.lexists(f"{root}/{other}"):
        return path
    return f"{other}::{member}" if member else other

"""What all sources share: where the manifest goes, how splits are drawn, and one pass over files that lie in place."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapt.cli import at_least
from adapt.collect.builder import Part, header_facts, join
from adapt.data.archives import archives, share
from adapt.data.images import Unreadable, read_bytes
from adapt.data.manifest import split_by_group
from adapt.data.rows import MEMBER, place_of
from adapt.data.spelling import folded, refuse_two_spellings
from adapt.errors import Refusal
from adapt.progress import bar

BATCH = 256  # groups of one commit
THREADS = 4  # that read files: a disk, or a network drive, serves several requests at once


@dataclass(frozen=True, kw_only=True)
class Output:
    """Options of every source."""

    # manifest to write, .csv or .parquet, above its images; default: manifest.csv there, .parquet from 100,000 rows
    output: Path | None = None
    split: Literal["auto", "train", "val", "test"] = "auto"  # of all rows; auto: as in the layout, else drawn by group
    val: float = 0.15  # share of the groups, where splits are drawn
    test: float = 0.25  # share of the groups, where splits are drawn
    seed: int = 0  # seed of the splits and of every choice of images
    rename: tuple[str, ...] = ()  # OLD=NEW: another name for a generator, such as stylegan_2=StyleGAN2
    align: str = ""  # also write aligned copies, as `adapt align` does: group, resizeN or cropN
    shard: int = 0  # which part of the work this job does
    num_shards: int = 1  # how many jobs share the work

    def __post_init__(self) -> None:
        at_least(1, self, "num_shards")
        if not 0 <= self.shard < self.num_shards:
            raise Refusal(f"--shard {self.shard}: {self.num_shards} shards are numbered 0 to {self.num_shards - 1}")
        if self.output is not None and self.output.suffix.lower() not in (".csv", ".parquet"):
            raise Refusal(f"--output {self.output}: name a .csv or .parquet file, the manifest to write")
        split_by_group([], self.seed, self.val, self.test)  # refuses shares that leave no train split
        if wrong := [pair for pair in self.rename if not all(pair.partition("=")[::2])]:
            raise Refusal(f"--rename {wrong[0]}: write OLD=NEW, such as stylegan_2=StyleGAN2")
        if wrong := [pair for pair in self.rename if "real" in pair.split("=")]:
            raise Refusal(f"--rename {wrong[0]}: a new name makes no fake real, nor a photograph a fake")

    def identity(self, *names: str) -> dict[str, object]:
        """The values of these options, on which rows depend; with --rename, if it is given."""
        found: dict[str, object] = {name: getattr(self, name) for name in names}
        return found | ({"rename": list(self.rename)} if self.rename else {})

    def named(self, generator: str) -> str:
        """The name of a generator after --rename."""
        return dict(pair.split("=", 1) for pair in self.rename).get(generator, generator)

    def renamed(self, rows: Iterable[dict[str, str]]) -> list[dict[str, str]]:
        """All rows of a listing with their generators' names after --rename; refuses a name that no row has."""
        rows = list(rows)
        found = dict.fromkeys(row["generator"] for row in rows)
        if unknown := [pair for pair in self.rename if pair.partition("=")[0] not in found]:
            raise Refusal(f"--rename {unknown[0]}: the generators are {', '.join(found) or 'none'}; write OLD=NEW")
        return [row | {"generator": self.named(row["generator"])} for row in rows]

    def split_of(self, group: str, given: str = "") -> str:
        """Split of a group: the one asked for, else the `given` one of the layout, else drawn by its hash."""
        if self.split != "auto":
            return self.split
        return given or str(split_by_group([group], self.seed, self.val, self.test)[0])

    def home(self, folders: Sequence[Path]) -> Path:
        """Folder of the manifest: that of `output`, which must hold all `folders`, else the deepest that does."""
        real = [os.path.realpath(folder) for folder in folders]
        home = Path(os.path.commonpath(real) if self.output is None else os.path.realpath(self.output.parent))
        if home == home.parent:
            raise Refusal(f"{' and '.join(map(str, folders))} share no folder: name an --output above all images")
        for folder in real:
            if not Path(folder).is_relative_to(home):
                raise Refusal(f"{folder!r} lies outside {str(home)!r}: name an --output above all images")
        return home

    def write_listing(
        self,
        rows: Iterable[dict[str, str]],
        folders: Sequence[Path],
        fetch: Callable[[list[dict[str, str]]], object] | None = None,
    ) -> Path | None:
        """Look once at every listed file, write the manifest and return its path; None if other shards have work left.

        `rows`: `file` (absolute, or `shard.tar::member`), `group`, `generator`, and further columns of a manifest;
        `split` where the layout has one; `reason` where it is known that there is no image. `folders` hold the
        files: the manifest goes above them if no `output` is named. A file that is no image is counted and listed
        with its reason. Pixels are not decoded. `fetch` gets the rows of this job before the look, and may give each
        another `file`, or a `reason`.
        """
        rows = list(rows)
        if not rows:
            raise Refusal(f"no images under {', '.join(map(str, folders))}: check the folder and its layout")
        _check_names(rows)
        home = self.home(folders)
        output = self.output or home / "manifest.csv"
        groups: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            groups.setdefault(row["group"], []).append(row)
        for group, members in groups.items():
            given = list(dict.fromkeys(row["split"] for row in members if row.get("split")))
            if len(given) > 1 and self.split == "auto":
                raise Refusal(
                    f"group {group!r} is in two splits, {given[0]} and {given[1]}: "
                    "keep a scene in one split, or give different scenes different groups"
                )
            split = self.split_of(group, *given[:1])
            for row in members:
                row["split"] = split
        # What was listed is the identity of this work: after files came or went, or other shares, all begins anew.
        listed = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        archive = archives(members[0]["file"] for members in groups.values())
        every = [*groups.values()]
        mine = [every[number] for number in share(archive, self.shard, self.num_shards)]
        what = {"listing": listed} | ({"shared": "by tar file"} if archive.max() >= 0 else {})
        jobs = {"shard": self.shard, "num_shards": self.num_shards}
        with Part(output, what, **jobs, restart=True) as part, ThreadPoolExecutor(THREADS) as pool:
            start = part.at or 0
            if fetch is not None and not part.done:
                fetch([row for members in mine for row in members])
            progress = bar(total=len(mine), initial=start, unit="group", desc="look at files")
            for first in range(start if not part.done else len(mine), len(mine), BATCH):
                batch = mine[first : first + BATCH]
                found = list(pool.map(_look, (row for members in batch for row in members)))
                lost = [row for row in found if row.get("reason")]
                part.commit([row for row in found if not row.get("reason")], first + len(batch), lost=lost)
                progress.update(len(batch))
            progress.close()
            part.finish()
        return join(output, self.num_shards, as_suits=self.output is None)


def among(label: str, values: Iterable[str]) -> bool:
    """Whether a label is one of these values, in any case of letters."""
    return label.casefold() in {value.casefold() for value in values}


def _check_names(rows: list[dict[str, str]]) -> None:
    """Refuse before the work what would be refused, or break the tables, after it."""
    columns = ("generator", "set", "edit")
    for name in dict.fromkeys(row[column] for row in rows for column in columns if row.get(column)):
        if not name.strip() or not name.isprintable():
            raise Refusal(f"the generator, set or edit {name!r} cannot be printed: rename it")
    for name in dict.fromkeys(row["generator"] for row in rows):
        if name != "real" and folded(name) in ("real", ""):
            raise Refusal(f"generator {name!r} would count as a fake: rename it, to 'real' if these are camera images")
    for column in columns:
        found = [row[column] for row in rows if row.get(column) and not row.get("reason")]
        refuse_two_spellings(column, dict.fromkeys(found), found, "rename its folder, or the name in its table")
    if "all" in {row.get(column) for row in rows for column in ("set", "edit")}:
        raise Refusal("a set or an edit named 'all': that name is kept for means over all; choose another")


def _look(row: dict[str, str]) -> dict[str, str]:
    if row.get("reason"):
        return row
    try:
        facts = header_facts(read_bytes(row["file"], place_of(*(row.get(name, "") for name in MEMBER))))
    except Unreadable as problem:
        return row | {"reason": problem.reason}
    facts.pop("format")
    return row | facts

"""Make a manifest, which every recipe and command reads, from a public data set or from your own folders.

    adapt prepare SOURCE --help
    adapt prepare folders --folder data/mine --test 0.3
    adapt prepare elsa_d3 --hub_split validation --members all --limit 1000 --output data/elsa/manifest.csv

Every image that was listed is in the manifest or, with its reason, in the table beside it (.lost.csv). The same
command continues after a kill, and with --shard I --num_shards N several jobs share the work: the one that finishes
last writes the manifest. Afterwards: `adapt audit`, `adapt align`, `adapt pack` (many files, few tar files).

Sources:
"""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from adapt.cli import Flags, run_one
from adapt.errors import Refusal

if TYPE_CHECKING:
    from adapt.data.manifest import Manifest

SOURCES = (
    *("community_forensics", "elsa_d3", "folders", "genimage", "hub", "masks", "openfake"),
    *("real_fake", "synthbuster", "synthwildx", "table", "tree", "webdataset"),
)


class Source(Flags, Protocol):
    """The options of a source, and what it does."""

    @property
    def shard(self) -> int: ...

    @property
    def align(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def val(self) -> float: ...

    @property
    def test(self) -> float: ...

    @property
    def seed(self) -> int: ...

    def prepare(self) -> Path | None:
        """The manifest; None where other jobs are not done."""


def main(source: Source) -> None:
    import json

    from adapt import provenance
    from adapt.cli import as_dict
    from adapt.collect.align import align
    from adapt.data.manifest import Manifest
    from adapt.files import write_text
    from adapt.pages.tables import grid

    revision = provenance.revision()
    path = source.prepare()
    if path is None:
        print(f"shard {source.shard} is done, others are not: the last of them writes the manifest")
        return
    rows, lost = Manifest.read(path), read_lost(path)
    print("\n\n".join([grid(count(rows)), grid(splits(rows)), *([grid(lost)] if len(lost) > 1 else [])]))
    if empty := empty_split(source, rows):
        path.unlink()
        raise Refusal(f"{empty}; no manifest is left")
    if offer := offer_folds(rows):
        print(f"\n{offer}")
    if names := unlike_names(rows):
        print(f"\n{names}")
    record: dict[str, object] = {"command": provenance.command(), "revision": revision}
    record |= {"versions": provenance.versions()}
    record |= {"digest": rows.digest, "images": len(rows), "lost": lost[1:], "options": as_dict(source)}
    write_text(path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    print(f"\n{path}: the manifest; {path.with_suffix('.lost.csv')}: what is missing, and why")
    if source.align:
        path = path.with_suffix(".aligned") / "manifest.csv"
        aligned = align(rows, path.parent, size=source.align)
        assert aligned is not None  # this job aligns all of them
        print(f"{path}: aligned copies of {len(aligned)} images; align.csv beside it says what was done")
    print(f"next: adapt audit --manifest {path}")


def count(rows: "Manifest") -> list[list[str]]:
    """Images of each set and generator in each split."""
    from collections import Counter

    names = ("train", "val", "test")
    images = Counter(zip(rows["set"], rows["generator"], rows["edit"], rows["split"], strict=True))
    kinds = sorted({key[:3] for key in images}, key=lambda kind: (kind[0], kind[1] != "real", kind))
    table = [["set", "generator", "edit", *names]]
    return table + [[*kind, *(str(images[*kind, split]) for split in names)] for kind in kinds]


def splits(rows: "Manifest") -> list[list[str]]:
    """What each split got: groups, and images of each class."""
    import numpy as np

    table, fake = [["split", "groups", "real", "fake"]], rows.fake
    for name in ("train", "val", "test"):
        here = rows["split"] == name
        counts = len(np.unique(rows["group"][here].astype(str))), (here & ~fake).sum(), (here & fake).sum()
        table.append([name, *map(str, counts)])
    return table


def empty_split(source: Source, rows: "Manifest") -> str:
    """What is wrong where splits were drawn so that one lacks a class, which no recipe can use; else nothing.

    Each group is drawn by itself: of ten photographs none falls into the test with probability .06. Splits of the
    layout are as the user made them, and masks are read beside another set.
    """
    from adapt.data.manifest import split_by_group

    drawn = split_by_group(rows["group"], source.seed, source.val, source.test)
    if source.split != "auto" or (drawn != rows["split"]).any() or any(rows["mask"]):
        return ""
    wanted = ["train", *(name for name in ("val", "test") if getattr(source, name) > 0)]
    for what, of_class in (("real", ~rows.fake), ("fake", rows.fake)):
        got = {name: len(set(rows["group"][of_class & (rows["split"] == name)])) for name in ("train", "val", "test")}
        if any(got.values()) and (empty := [name for name in wanted if not got[name]]):
            counts = ", ".join(f"{name} {count}" for name, count in got.items())
            return (
                f"split {empty[0]!r} got none of the {sum(got.values())} groups with {what} images ({counts}): for so "
                "few give --split train and cross-validate (--folds 5 of linear_probe.py, tip_adapter.py, "
                f"color_fusion.py or lora.py), or larger shares (now --val {source.val:g} --test {source.test:g}), "
                "or another --seed"
            )
    return ""


def offer_folds(rows: "Manifest") -> str:
    """For a small set that training has a part in: what to do instead of splitting it once; else nothing."""
    from adapt.data.folds import SMALL

    groups = len(dict.fromkeys(rows["group"]))
    if groups >= SMALL or not (rows["split"] == "train").any():
        return ""
    return (
        f"{groups} groups are few (below {SMALL}): intervals of a single test split will be wide. --folds 5 of "
        "linear_probe.py, tip_adapter.py, color_fusion.py or lora.py tests every image once"
        + ("" if (rows["split"] == "train").all() else "; add --split train here, so that all may be trained on")
    )


def unlike_names(rows: "Manifest") -> str:
    """What to check where training and test have generators of their own: one generator may have two names."""
    train, test = (set(rows["generator"][(rows["split"] == name) & rows.fake]) for name in ("train", "test"))
    if train <= test or test <= train:
        return ""
    seen, unseen = ", ".join(sorted(train - test)), ", ".join(sorted(test - train))
    return (
        f"generators that only training has: {seen}; that only the test has, and that count as unseen: {unseen}. "
        "Where two of these are one generator, give it one name: --rename OLD=NEW"
    )


def read_lost(path: Path) -> list[list[str]]:
    """How many images are missing, by generator and reason."""
    import csv
    from collections import Counter

    with path.with_suffix(".lost.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        reasons = Counter((row["generator"], row["reason"]) for row in csv.DictReader(file))
    return [["generator", "missing because", "images"], *([*key, str(n)] for key, n in reasons.most_common())]


def command() -> None:
    """Parse the command line and run."""
    run_one({name: f"adapt.collect.sources.{name}" for name in SOURCES}, main)

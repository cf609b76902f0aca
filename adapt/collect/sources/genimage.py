"""GenImage: eight generators trained on ImageNet, each with photographs of its own.

    adapt prepare genimage --folder data/GenImage
    adapt prepare genimage --folder data/GenImage --per_class 2000 --real 2000 --align crop224

The layout is ADM/imagenet_ai_0508_adm/{train,val}/{ai,nature} and so on. GenImage has no third split: its `val`
becomes our test, and a share of the groups of its `train` (--val) our val. Each generator is a set, compared with its
own photographs. One ImageNet photograph may lie in several generators' folders: its file name makes it one group, and
if it is anywhere in GenImage's `val`, it is test everywhere. Photographs are JPEG and fakes PNG: align before
anything is learned. Some of the published PNG files are empty; they are listed as lost.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adapt.collect.sources.listing import Listing

SPLITS = {"train": "train", "val": "test"}


@dataclass(frozen=True, kw_only=True)
class Source(Listing):
    set: str = "genimage"  # name of the benchmark

    def prepare(self) -> Path | None:
        rows = list(self._rows())
        test = {row["group"] for row in rows if row.get("split") == "test"}
        return self.write([row | {"split": "test"} if row["group"] in test else row for row in rows])

    def _rows(self) -> Iterator[dict[str, str]]:
        for name in self.files():
            *folders, file = name.split("/")
            row = {"file": name, "group": f"{self.name}/{name}", "set": self.name}
            if len(folders) < 2 or folders[-1] not in ("ai", "nature") or folders[-2] not in SPLITS:
                yield row | {"generator": "unknown", "reason": "not-in-layout"}
                continue
            above = [folder for folder in folders[:-2] if not folder.startswith("imagenet_")]
            generator = above[0] if above else Path(os.path.realpath(self.folder)).name
            row |= {"split": SPLITS[folders[-2]], "set": f"{self.name}/{generator}", "generator": generator}
            if folders[-1] == "nature":  # n01440764_10026.JPEG, ILSVRC2012_val_00000293.JPEG
                row |= {"group": f"{self.name}/{PurePosixPath(file).stem}", "generator": "real"}
            yield row

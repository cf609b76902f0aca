"""GenImage: eight generators trained on ImageNet, each with photographs of its own.

    adapt prepare genimage --folder data/GenImage
    adapt prepare genimage --folder data/GenImage --per_class 2000 --real 2000 --align crop224

The layout is ADM/imagenet_ai_0508_adm/{train,val}/{ai,nature} and so on, or the archives side by side as they are
unpacked, without ADM/ above: then the archive's name says which generator it is. GenImage has no third split: its
`val` becomes our test, and a share of the groups of its `train` (--val) our val. Each generator is a set, compared
with its own photographs. One ImageNet photograph may lie in several generators' folders: its file name makes it one
group, and if it is anywhere in GenImage's `val`, it is test everywhere. Photographs are JPEG and fakes PNG: align
before anything is learned. Some of the published PNG files are empty; they are listed as lost.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adapt.collect.sources.listing import Listing
from adapt.errors import Refusal

SPLITS = {"train": "train", "val": "test"}
ARCHIVES = {  # as published: archive -> the folder of its generator
    "imagenet_ai_0508_adm": "ADM",
    "imagenet_ai_0419_biggan": "BigGAN",
    "imagenet_glide": "glide",
    "imagenet_midjourney": "Midjourney",
    "imagenet_ai_0419_sdv4": "stable_diffusion_v_1_4",
    "imagenet_ai_0424_sdv5": "stable_diffusion_v_1_5",
    "imagenet_ai_0419_vqdm": "VQDM",
    "imagenet_ai_0424_wukong": "wukong",
}


@dataclass(frozen=True, kw_only=True)
class Source(Listing):
    set: str = "genimage"  # name of the benchmark

    def prepare(self) -> Path | None:
        rows = list(self._rows())
        test = {row["group"] for row in rows if row.get("split") == "test"}
        return self.write([row | {"split": "test"} if row["group"] in test else row for row in rows])

    def _rows(self) -> Iterator[dict[str, str]]:
        top, places = Path(os.path.realpath(self.folder)).name, {}
        for name in self.files():
            *folders, file = name.split("/")
            row = {"file": name, "group": f"{self.name}/{name}", "set": self.name}
            if len(folders) < 2 or folders[-1] not in ("ai", "nature") or folders[-2] not in SPLITS:
                yield row | {"generator": "unknown", "reason": "not-in-layout"}
                continue
            above = folders[:-2]
            generator = _generator(above, top)
            if (place := places.setdefault(generator, above)) != above:
                both = " and ".join("/".join(folders) or "." for folders in (place, above))
                raise Refusal(
                    f"{both} under {self.folder} would both be generator {generator!r}: give each archive a folder of "
                    "its own, named after its generator"
                )
            row |= {"split": SPLITS[folders[-2]], "set": f"{self.name}/{generator}", "generator": generator}
            if folders[-1] == "nature":  # n01440764_10026.JPEG, ILSVRC2012_val_00000293.JPEG
                row |= {"group": f"{self.name}/{PurePosixPath(file).stem}", "generator": "real"}
            yield row


def _generator(above: list[str], top: str) -> str:
    """The generator by the folders above train and val: that which holds an archive, else by the archive's name.

    `top` is the folder that was given, which is a generator's or an archive's own where no folder is above.
    """
    named = [folder for folder in above if not folder.startswith("imagenet_")]
    if named:
        return named[0]
    archive = above[0] if above else top
    return ARCHIVES.get(archive.lower()) or re.sub(r"^imagenet_(ai_\d+_)?", "", archive) or archive

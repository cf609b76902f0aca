"""One folder per generator, `real` among them: the layout of AID, and the simplest for sets of your own.

    adapt prepare folders --folder data/mine
    adapt prepare folders --folder data/mine --matched --per_class 2000 --real 10000 --seed 1
    adapt prepare folders --folder data/mine --real_folder coco flickr --edit_folders flickr_small=resize

Train and test set as in the AID challenge (17 generators with 2,000 images each and 165,000 photographs; 32
generators with 1,500 each and 40,000 photographs; not public, so bring a substitute of this shape):

    adapt prepare folders --folder data/aid_train --test 0 --per_class 2000 --families families.csv
    adapt prepare folders --folder data/aid_test --split test --families families.csv
    python recipes/lora.py --manifest data/aid_train/manifest.csv data/aid_test/manifest.csv

Folders train, val and test above those of the generators keep their splits; without val it is drawn from train.
Folders within a generator's folder may have any depth.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adapt.collect.sources.listing import SPLITS, Listing
from adapt.errors import Refusal


@dataclass(frozen=True, kw_only=True)
class Source(Listing):
    real_folder: tuple[str, ...] = ("real",)  # folders of camera images
    edit_folders: tuple[str, ...] = ()  # FOLDER=EDIT: camera images after ordinary processing, which stay real
    matched: bool = False  # files of one name (without suffix) show one scene and form a group

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := [pair for pair in self.edit_folders if not all(pair.partition("=")[::2])]:
            raise Refusal(f"--edit_folders {wrong[0]}: write FOLDER=EDIT, such as real_small=resize")

    def prepare(self) -> Path | None:
        files = self.files()
        above = {name.split("/")[0].lower() for name in files if "/" in name}
        if above & SPLITS.keys() and above - SPLITS.keys():
            split, other = min(above & SPLITS.keys()), min(above - SPLITS.keys())
            raise Refusal(f"--folder {self.folder} holds the split {split!r} beside {other!r}: name one of the two")
        edits = dict(pair.rsplit("=", 1) for pair in self.edit_folders)
        rows = list(self._rows(files, bool(above & SPLITS.keys()), edits))
        found = dict.fromkeys(row.pop("class") for row in rows)
        if missing := [name for name in (*self.real_folder, *edits) if name not in found]:
            raise Refusal(
                f"no images under {self.folder} in a folder {missing[0]!r}, only in {', '.join(found) or 'none'}: "
                "name those of camera images with --real_folder, of processed ones with --edit_folders"
            )
        return self.write(rows)

    def _rows(self, files: list[str], split_above: bool, edits: dict[str, str]) -> Iterator[dict[str, str]]:
        for name in files:
            folders, row = name.split("/")[:-1], {"file": name, "set": self.name, "group": f"{self.name}/{name}"}
            split = folders.pop(0) if split_above and folders else ""
            row["split"] = SPLITS.get(split.lower(), "")
            if not folders:
                yield row | {"class": "", "generator": "unknown", "reason": "no-generator-folder"}
                continue
            generator = folders[0]
            if self.matched:  # the split in the name: numbered files of two splits need not be one scene
                row["group"] = "/".join(filter(None, (self.name, split, *folders[1:], PurePosixPath(name).stem)))
            if generator in edits:
                row["edit"] = edits[generator]
            real = generator in edits or generator in self.real_folder
            yield row | {"class": generator, "generator": "real" if real else generator}

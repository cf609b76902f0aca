"""Synthbuster: nine generators whose images are named after photographs of RAISE-1k, so that 1 + 9 form a group.

    adapt prepare synthbuster --folder data/synthbuster
    adapt prepare synthbuster --folder data/synthbuster --reals data/RAISE-1k/tiff
    adapt prepare synthbuster --folder data/synthbuster --foreign_reals data/other --against foreign

Folders dalle2, glide, stable-diffusion-xl...; more generators of the same scenes may lie beside them. RAISE-1k is
found in the folder as real_RAISE_1k. A scene's missing partner, and a photograph without fakes, is listed as lost.
Prompts of prompts.csv become the column `caption`. All rows are test; --split auto draws splits by scene.

An image stands in one row, hence in one set, and fakes are compared with the reals of their set. With
--foreign_reals both kinds of reals are in the manifest: --against says which are in the fakes' set; the others are a
set `synthbuster-raise` or `synthbuster-foreign`, whose false alarms are reported apart. For both comparisons write
two manifests (--output) and evaluate each: encoded features are shared. Photographs of the kind that a detector was
trained on flatter it, so RAISE is the default.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from adapt.collect.sources.listing import walk
from adapt.collect.sources.output import Output
from adapt.data.tables import read_table
from adapt.errors import Refusal

Scenes = dict[str, list[str]]  # base name -> files, one as a rule
RAISE = ("real_raise_1k", "raise-1k", "raise_1k", "raise1k", "raise", "real")  # in small letters


@dataclass(frozen=True, kw_only=True)
class Source(Output):
    folder: Path  # holds the generators' folders
    reals: Path | None = None  # RAISE-1k; default: real_RAISE_1k in the folder
    foreign_reals: Path | None = None  # other photographs, at any depth
    against: Literal["raise", "foreign"] = "raise"  # reals that the fakes are compared with
    split: Literal["auto", "train", "val", "test"] = "test"  # split of all rows; auto: drawn by scene
    set: str = "synthbuster"  # name of the benchmark

    def prepare(self) -> Path | None:
        folders = [folder for folder in (self.folder, self.reals, self.foreign_reals) if folder is not None]
        home = self.home(folders)
        reals = {} if self.reals is None else _by_scene(walk(self.reals, home), self.reals)
        apart = tuple(os.path.realpath(folder) + "/" for folder in folders[1:])  # when they lie within the folder
        of: dict[str, list[str]] = {}
        for name in walk(self.folder, home):
            if not f"{os.path.realpath(self.folder)}/{name}".startswith(apart):
                of.setdefault(name.split("/")[0] if "/" in name else "", []).append(name)
        own = [name for folder in list(of) if folder.lower() in RAISE for name in of.pop(folder)]
        if self.reals is None:
            reals = _by_scene(own, self.folder)
        stray = _by_scene(of.pop("", []), self.folder)
        fakes = {generator: _by_scene(names, self.folder) for generator, names in of.items()}
        if not fakes:
            raise Refusal(f"no generator's folder with images in {self.folder}: name the one that holds dalle2, glide")
        if self.against == "raise" and not reals:
            raise Refusal(f"no RAISE-1k in {self.folder}: name its folder with --reals, or use --against foreign")
        if self.against == "foreign" and self.foreign_reals is None:
            raise Refusal("--against foreign: name the folder of these photographs with --foreign_reals")
        rows = self._matched(fakes, reals) + self._foreign(home)
        row = {"generator": "unknown", "set": self.set, "reason": "no-generator-folder"}
        rows += [row | {"file": file, "group": f"{self.set}/{file}"} for files in stray.values() for file in files]
        return self.write_listing(self._with_captions(self.renamed(rows)), folders)

    def _matched(self, fakes: dict[str, Scenes], reals: Scenes) -> list[dict[str, str]]:
        """One row for each member of each scene, there or not."""
        rows, missing = [], Counter()
        scenes = sorted({scene for files in fakes.values() for scene in files})
        for generator, files in {"real": reals, **fakes}.items() if reals else fakes.items():
            own = self.set if generator != "real" or self.against == "raise" else f"{self.set}-raise"
            for scene in scenes:
                row = {"group": f"{self.set}/{scene}", "generator": generator, "set": own}
                rows += [row | {"file": file} for file in files.get(scene, ())]
                if scene not in files:
                    rows.append(row | {"file": "", "reason": "missing"})
                    missing[generator] += 1
        for scene in sorted(reals.keys() - set(scenes)):
            row = {"group": f"{self.set}/{scene}", "generator": "real", "set": self.set, "reason": "no-fakes-of-it"}
            rows += [row | {"file": file} for file in reals[scene]]
        without = ", ".join(f"{n} without {generator}" for generator, n in missing.items()) or "all complete"
        print(f"{len(scenes)} scenes, {without}")
        return rows

    def _foreign(self, home: Path) -> list[dict[str, str]]:
        if self.foreign_reals is None:
            return []
        root = Path(os.path.realpath(self.foreign_reals))
        row = {"generator": "real", "set": self.set if self.against == "foreign" else f"{self.set}-foreign"}
        names = walk(self.foreign_reals, home)
        return [row | {"file": f"{root}/{name}", "group": f"{self.set}-foreign/{root.name}/{name}"} for name in names]

    def _with_captions(self, rows: list[dict[str, str]]) -> list[dict[str, str]]:
        path = self.folder / "prompts.csv"
        if not path.is_file():
            return rows
        table = read_table(path)
        names = next((values for column, values in table.items() if column.lower().startswith("image name")), None)
        if names is None or "Prompt" not in table:
            raise Refusal(f"{path} has the columns {', '.join(table)}, not 'image name...' and 'Prompt': move it away")
        prompts = {f"{self.set}/{_scene(name)}": text for name, text in zip(names, table["Prompt"], strict=True)}
        return [row | {"caption": prompts.get(row["group"], "")} for row in rows]


def _scene(name: str) -> str:
    """r000da54ft of dalle2/r000da54ft.png."""
    return PurePosixPath(name.strip()).stem


def _by_scene(names: list[str], folder: Path) -> Scenes:
    scenes: Scenes = {}
    for name in names:
        scenes.setdefault(_scene(name), []).append(f"{os.path.realpath(folder)}/{name}")
    return scenes

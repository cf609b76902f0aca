"""Trees that end in 0_real and 1_fake: ForenSynths, UniversalFakeDetect, AIGIBench, WildRF, or any two folder names.

    adapt prepare real_fake --folder data/ForenSynths
    adapt prepare real_fake --folder data/diffusion_datasets --split test
    adapt prepare real_fake --folder data/AIGIBench
    adapt prepare real_fake --folder data/WildRF --generator wildrf-fake
    adapt prepare real_fake --folder data/mine --real_folder real --fake_folder fake

The first folder that is no split names the generator and, behind the benchmark's name, the set: progan/cat/1_fake is
`progan`, compared with progan/cat/0_real and all other classes of progan. Where a folder has fakes only, as in
UniversalFakeDetect's (guided with the reals of imagenet, ldm_*, glide_* and dalle with those of laion), its set is
that of the reals. WildRF's folders name sites, not generators: --generator names all its fakes alike. Folders train,
val and test at any depth keep their splits; without val it is drawn from train, without any all are drawn.

The training sets of ForenSynths and AIGIBench have classes of objects where others have generators (train/car/1_fake):
ProGAN made all of these, so that is what their fakes are called, unless --generator says otherwise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapt.collect.sources.listing import SPLITS, Listing
from adapt.data.spelling import folded
from adapt.errors import Refusal

# UniversalFakeDetect: fakes -> the folder whose reals are theirs
SHARED = {"guided": "imagenet"} | dict.fromkeys(
    ("ldm_200", "ldm_200_cfg", "ldm_100", "glide_100_10", "glide_100_27", "glide_50_27", "dalle"), "laion"
)
# ForenSynths: the classes of LSUN that ProGAN was trained on; a set of four of them is common, too
OBJECTS = {
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
}
FEWEST = 4  # classes without a split above that count as such a training set


@dataclass(frozen=True, kw_only=True)
class Source(Listing):
    real_folder: tuple[str, ...] = ("0_real",)  # folders of camera images
    fake_folder: tuple[str, ...] = ("1_fake",)  # folders of generated images
    generator: str = ""  # name of all fakes; empty: the first folder that is no split
    reals_of: tuple[str, ...] = ()  # FAKES=REALS: the fakes of one folder are compared with the reals of another

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := [pair for pair in self.reals_of if not all(pair.partition("=")[::2])]:
            raise Refusal(f"--reals_of {wrong[0]}: write FAKES=REALS, such as guided=imagenet")
        if both := set(self.real_folder) & set(self.fake_folder):
            raise Refusal(f"{min(both)!r} is named by --real_folder and by --fake_folder: which is it?")

    def prepare(self) -> Path | None:
        rows = list(self._rows())
        if rows and all("reason" in row for row in rows):
            raise self._no_class_folder([row["file"] for row in rows])
        if not self.generator:
            self._name_objects([row for row in rows if "reason" not in row])
        for row in rows:
            if row["generator"] == "fake":
                # a folder of fakes may be called real; they are not
                row["generator"] = self.generator or (row["top"] if row["top"] not in ("", "real") else "")
                row["generator"] = row["generator"] or f"{self.name}-fake"
        reals = {row["top"] for row in rows if row["generator"] == "real"}
        fakes = {row["top"] for row in rows if row["generator"] != "real" and "reason" not in row}
        partner = self._partners(fakes, reals)
        for row in rows:
            top = row.pop("top")
            row["set"] = "/".join(filter(None, (self.name, partner.get(top, top))))
        return self.write(rows)

    def _rows(self) -> Iterator[dict[str, str]]:
        leaves = {**dict.fromkeys(self.real_folder, True), **dict.fromkeys(self.fake_folder, False)}
        files = self.files()
        classes = _are_classes({name.split("/")[0] for name in files})
        for name in files:
            folders = name.split("/")[:-1]
            row = {"file": name, "group": f"{self.name}/{name}", "top": ""}
            leaf = max((i for i, folder in enumerate(folders) if folder in leaves), default=None)
            if leaf is None:
                yield row | {"generator": "unknown", "reason": "no-class-folder"}
                continue
            above = folders[:leaf]
            at = next((i for i, folder in enumerate(above) if folder.lower() in SPLITS and not classes), len(above))
            split, below = (above[at : at + 1] or [""])[0], above[at + 1 :]
            row["split"] = SPLITS.get(split.lower(), "")
            # below a split, a folder `train` is a class of objects
            tops = [folder for folder in above[:at] + below if folder not in leaves]
            row["top"] = tops[0] if tops else ""
            yield row | {"generator": "real" if leaves[folders[leaf]] else "fake"}

    def _name_objects(self, rows: list[dict[str, str]]) -> None:
        """Say ProGAN where the folders below a split, or all folders of a tree without splits, are its classes."""
        tops = {row["top"] for row in rows}
        classes = _are_classes({row["file"].split("/")[0] for row in rows})
        below = [row for row in rows if classes or row["file"].split("/")[0].lower() in SPLITS]
        objects = [row for row in below if row["top"] in OBJECTS]
        if objects:
            name = next((top for top in sorted(tops) if folded(top) == "progan"), "progan")
            classes = ", ".join(sorted({row["top"] for row in objects}))
            print(f"{classes}: classes of ProGAN's training images, generator {name}; --generator NAME for another")
            for row in objects:
                row["top"] = name

    def _no_class_folder(self, files: list[str]) -> Refusal:
        """What is said of a tree in which not one folder has the name of a class."""
        folders = list(dict.fromkeys(part for name in files for part in name.split("/")[:-1]))
        wanted = (("--real_folder", self.real_folder), ("--fake_folder", self.fake_folder))
        guess = []
        for flag, names in wanted:
            kind = flag[2:6]
            own = [name for name in folders if kind in name.lower() or any(name.lower() == n.lower() for n in names)]
            guess.append(f"{flag} {' '.join(own[:3]) or 'NAME'}")
        missing = " or ".join(repr(name) for _, names in wanted for name in names)
        return Refusal(
            f"none of the {len(files)} images under {self.folder} is in a folder {missing}; the folders there are "
            f"{', '.join(map(repr, folders[:8])) or 'none'}: name those of the two classes, {' '.join(guess)}"
        )

    def _partners(self, fakes: set[str], reals: set[str]) -> dict[str, str]:
        """Folder of fakes -> folder of their reals, where that is another."""
        alone = fakes - reals
        partners = {top: SHARED[top] for top in alone if SHARED.get(top) in reals}
        if len(reals - fakes) == 1:  # one folder has reals only: they are everybody's who has none
            partners = dict.fromkeys(alone, min(reals - fakes)) | partners
        for pair in self.reals_of:
            top, _, partner = pair.partition("=")
            if top not in fakes or partner not in reals:
                lists = f"fakes in {', '.join(sorted(fakes)) or 'none'}, reals in {', '.join(sorted(reals)) or 'none'}"
                raise Refusal(f"--reals_of {pair}: there are {lists}; name one of each")
            partners[top] = partner
        if without := sorted(alone - partners.keys()):
            print(f"no reals for {', '.join(without)}, so nothing to compare with: --reals_of {without[0]}=FOLDER")
        return partners


def _are_classes(folders: set[str]) -> bool:
    """Whether the folders of a tree without splits are ProGAN's classes, of which one is called train."""
    return len(folders) >= FEWEST and folders <= OBJECTS

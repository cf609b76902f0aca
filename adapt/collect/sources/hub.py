"""Any data set at the Hugging Face hub whose Parquet files hold the images: say which column holds what.

    adapt prepare hub --repo nebula/OpenSDI_test --hub_split sd3 --fakes sd3 --output data/opensdi/sd3.csv
    adapt prepare hub --repo saberzl/So-Fake-OOD --hub_split test_image --label label --generator generator \\
        --mask mask --split test --per_class 2000 --real 5000 --output data/so_fake/manifest.csv
    adapt prepare hub --repo data/downloaded --image picture --label is_fake --output data/set.csv

Only the rows that are needed are fetched, and a killed run continues at its row. A folder that holds the Parquet files
works in place of a name at the hub. Columns that are not named are found: the one of images by its type, others by the
names that are usual (label, is_fake; generator, model; mask); a printed line says which, and `-` leaves one out. Where
none fits, the columns are listed with their types. The label decides what is real: a value, or the published name of
its number, that is one of --real_label. --generator names the generators of fakes; without it they are --fakes, or
`SET-fake`. Without label and generator all rows are by --fakes or, with --reals, camera images.

A fake with a mask was changed in part, one whose mask marks every pixel is generated as a whole. Splits of the hub
that are called test or eval become ours, others are drawn by group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapt.cli import at_least
from adapt.collect.sources.hub_tables import Mask, Reading, Table, pin, split_named, write_images
from adapt.collect.sources.output import Output, among
from adapt.data.masks import White
from adapt.errors import Refusal

USUAL = {  # option -> names of columns that mean it, in lower case
    "image": ("image", "img", "image_data"),
    "label": ("label", "labels", "class", "target", "is_fake", "fake"),
    "generator": ("generator", "model", "model_name"),
    "mask": ("mask",),
}


@dataclass(frozen=True, kw_only=True)
class Source(Output):
    repo: str  # name at the hub, or a folder that holds its Parquet files
    revision: str = "main"  # branch, tag or commit; a continued run stays at the commit it began with
    subset: str = ""  # configuration at the hub; may be left out where there is only one or a default
    hub_split: str = ""  # the hub's split; may be left out where there is only one
    image: str = ""  # column of images; empty: found by its type
    label: str = ""  # column that tells camera images from fakes; empty: found by its name; -: none
    real_label: tuple[str, ...] = ("real", "0")  # values of the label, else of the generator, that mean a camera image
    fake_label: tuple[str, ...] = ()  # values that mean a fake, all others are lost; empty: all but --real_label
    generator: str = ""  # column of generators' names; empty: found by its name; -: none
    fakes: str = ""  # name of all fakes, where no column tells it
    reals: bool = False  # all rows are camera images
    group: str = ""  # column of scenes; empty: each image is its own group
    mask: str = ""  # column of masks of what was changed; empty: found by its name; -: none
    changed: White = "white"  # how masks mark what was changed
    empty: Literal["lost", "generated"] = "lost"  # what a fake with an empty mask becomes
    caption: str = ""  # column of captions
    set: str = ""  # name of the benchmark; empty: that of the repository
    per_class: int | None = None  # images of each generator at most, shared evenly by the jobs; default: all
    real: int | None = None  # real images at most, shared evenly by the jobs; default: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is None:
            raise Refusal("--output: name the manifest to write, such as data/set/manifest.csv")
        if self.reals and (self.fakes or self.label not in ("", "-") or self.generator not in ("", "-")):
            raise Refusal("--reals: all rows are camera images, so leave out --fakes, --label and --generator")
        if self.fakes == "real":
            raise Refusal("--fakes real: name what made the fakes, or say --reals if all rows are camera images")
        at_least(0, self, *(name for name in ("per_class", "real") if getattr(self, name) is not None))

    @property
    def name(self) -> str:
        return self.set or Path(self.repo).name

    def prepare(self) -> Path | None:
        names = ("repo", "subset", "hub_split", "image", "label", "generator", "fakes", "reals", "group", "mask")
        names += ("changed", "empty", "caption", "set", "per_class", "real", "seed", "split", "val", "test")
        what = self.identity(*names) | {"real_label": list(self.real_label), "fake_label": list(self.fake_label)}
        what["commit"] = pin(self.repo, self.revision, self.output)

        def reading() -> Reading:
            jobs = {"shard": self.shard, "num_shards": self.num_shards}
            table = Table.open(self.repo, what["commit"], self.hub_split, config=self.subset, **jobs)
            classes = table.classes()
            found = self._find_columns(table.types(), classes)
            names = classes.get(found.get("label", ""), ())
            mask = Mask(found["mask"], self.changed, self.empty) if "mask" in found else None
            told = tuple(found[option] for option in ("label", "generator", "group", "caption") if option in found)
            return Reading(table, found["image"], lambda row: self._tell(row, found, names), mask, told)

        return write_images(self, what, reading, grouped=bool(self.group))

    def _find_columns(self, types: Mapping[str, str], classes: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        """Option -> column: those named, and those found; refuses with the table's columns where one is not there."""
        images = [column for column, kind in types.items() if kind == "image"]
        found = {}
        for option in ("image", "label", "generator", "group", "mask", "caption"):
            named = getattr(self, option)
            if named and named != "-":
                if named not in types or (option in ("image", "mask")) != (named in images):
                    raise Refusal(f"--{option} {named}: {self._schema(types, classes)}; name one that fits")
                found[option] = named
            elif not named and option in USUAL and not (self.reals and option in ("label", "generator")):
                able = [column for column in types if (column in images) == (option in ("image", "mask"))]
                fitting = [column for column in able if column.lower() in USUAL[option]]
                if option == "image" and len(able) == 1:
                    fitting = able
                if len(fitting) > 1 or (option == "image" and not fitting):
                    raise Refusal(f"--{option}: {self._schema(types, classes)}; name the one that holds it")
                if fitting:
                    found[option] = fitting[0]
        if not (self.reals or self.fakes or found.keys() & {"label", "generator"}):
            raise Refusal(
                f"--label: {self._schema(types, classes)}; name the one that tells real from fake, or say what all "
                "rows are with --fakes NAME or --reals"
            )
        names = classes.get(found.get("label", ""), ())
        if names and not any(among(name, self.real_label) for name in names):
            raise Refusal(
                f"--real_label {' '.join(self.real_label)}: {self.repo} names the values of {found['label']} "
                f"{', '.join(names[:8])}; name those of camera images, or leave the column out with --label -"
            )
        print(f"{self.repo}: {', '.join(f'--{option} {column}' for option, column in found.items())}")
        return found

    def _schema(self, types: Mapping[str, str], classes: Mapping[str, tuple[str, ...]]) -> str:
        about = [f"{column} ({', '.join([kind, *classes.get(column, ())[:4]])})" for column, kind in types.items()]
        return f"{self.repo} has the columns {', '.join(about)}"

    def _tell(self, row: dict, found: Mapping[str, str], classes: tuple[str, ...]) -> dict[str, str]:
        def cell(option: str) -> str:
            value = row.get(found.get(option, ""))
            return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value).strip()

        about = {"set": self.name, "split": split_named(self.hub_split), "caption": cell("caption")}
        label = cell("label" if "label" in found else "generator")
        if classes and label.isdecimal() and int(label) < len(classes):
            label = classes[int(label)]
        if self.reals or among(label, self.real_label):
            about["generator"] = "real"
        else:
            about["generator"] = cell("generator") or self.fakes or f"{self.name}-fake"
        if found.keys() & {"label", "generator"} and not label:
            about |= {"generator": "unknown", "reason": "no-label"}
        elif self.fake_label and about["generator"] != "real" and not among(label, self.fake_label):
            about |= {"generator": "unknown", "reason": "other-label"}
        elif not about["generator"].isprintable():
            about |= {"generator": "unknown", "reason": "bad-label"}
        return about | ({"group": f"{self.name}/{cell('group')}"} if cell("group") else {})

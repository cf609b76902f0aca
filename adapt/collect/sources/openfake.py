"""OpenFake: images of recent generators, commercial ones among them, and real ones, as cells of a table.

    adapt prepare openfake --output data/openfake/manifest.csv --subset core --hub_split train \\
        --per_class 500 --real 5000

The subsets have changed their names over time: without --subset, or with an unknown one, those that are there are
named. Labels are read first and images only where they are wanted. The licence is CC-BY-NC-4.0.
"""

from dataclasses import dataclass
from pathlib import Path

from adapt.cli import at_least
from adapt.collect.sources.hub_tables import Reading, Table, need, pin, split_named, write_images
from adapt.collect.sources.output import Output
from adapt.errors import Refusal

LABELS = ("real", "fake")


@dataclass(frozen=True, kw_only=True)
class Source(Output):
    repo: str = "ComplexDataLab/OpenFake"  # name at the hub, or a folder that holds its Parquet files
    revision: str = "main"  # branch, tag or commit; a continued run stays at the commit it began with
    subset: str = ""  # configuration at the hub; may be left out where there is only one or a default
    hub_split: str = "train"  # the hub's split; `test` and `validation` become ours
    per_class: int | None = None  # images of each generator at most, shared evenly by the jobs; default: all
    real: int | None = None  # real images at most, shared evenly by the jobs; default: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is None:
            raise Refusal("--output: name the manifest to write, such as data/openfake/manifest.csv")
        at_least(0, self, *(name for name in ("per_class", "real") if getattr(self, name) is not None))

    def prepare(self) -> Path | None:
        names = ("repo", "subset", "hub_split", "per_class", "real", "seed", "split", "val", "test")
        what = self.identity(*names)
        what["commit"] = pin(self.repo, self.revision, self.output)

        def reading() -> Reading:
            jobs = {"shard": self.shard, "num_shards": self.num_shards}
            found = Table.open(self.repo, what["commit"], self.hub_split, config=self.subset, **jobs)
            need(["image", "prompt", "label", "model"], found.columns(), self.repo)
            return Reading(found, "image", self._tell)

        return write_images(self, what, reading)

    def _tell(self, row: dict) -> dict[str, str]:
        generator = "real" if row["label"] == "real" else row["model"] or "unknown"
        about = {"generator": generator, "caption": row["prompt"] or "", "source": "openfake"}
        if row["label"] not in LABELS:
            about["reason"] = f"bad-label: {row['label']}"
        name = f"openfake-{self.subset}" if self.subset else "openfake"
        return about | {"set": name, "split": split_named(self.hub_split)}

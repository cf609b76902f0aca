"""Community Forensics: images of thousands of generators, and real ones, as cells of a table.

    adapt prepare community_forensics --output data/cf/manifest.csv --per_class 20 --real 20000
    adapt prepare community_forensics --repo OwensLab/CommunityForensics-Eval --hub_split CompEval \\
        --output data/cf-eval/manifest.csv

The default is the Small set, 278 GB: labels are read first and images only where they are wanted. `PublicEval` and
`CompEval` become the test split. Small is CC BY-NC-SA 4.0, as five of its users record, and has no commercial
generators; the full set (--repo OwensLab/CommunityForensics) is CC BY 4.0. Formats alone tell 71 % of its classes, and
every fake is 256, 512 or 1,024 pixels square: align before anything is learned.
"""

from dataclasses import dataclass
from pathlib import Path

from adapt.cli import at_least
from adapt.collect.sources.hub_tables import Reading, Table, need, pin, split_named, write_images
from adapt.collect.sources.output import Output
from adapt.errors import Refusal


@dataclass(frozen=True, kw_only=True)
class Source(Output):
    repo: str = "OwensLab/CommunityForensics-Small"  # name at the hub, or a folder that holds its Parquet files
    revision: str = "main"  # branch, tag or commit; a continued run stays at the commit it began with
    hub_split: str = ""  # the hub's split; may be left out where there is only one
    per_class: int | None = None  # images of each generator at most, shared evenly by the jobs; default: all
    real: int | None = None  # real images at most, shared evenly by the jobs; default: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is None:
            raise Refusal("--output: name the manifest to write, such as data/cf/manifest.csv")
        at_least(0, self, *(name for name in ("per_class", "real") if getattr(self, name) is not None))

    def prepare(self) -> Path | None:
        names = ("repo", "hub_split", "per_class", "real", "seed", "split", "val", "test")
        what = self.identity(*names)
        what["commit"] = pin(self.repo, self.revision, self.output)

        def reading() -> Reading:
            jobs = {"shard": self.shard, "num_shards": self.num_shards}
            found = Table.open(self.repo, what["commit"], self.hub_split, **jobs)
            need(["image_data", "label", "model_name", "real_source", "subset", "prompt"], found.columns(), self.repo)
            return Reading(found, "image_data", self._tell)

        return write_images(self, what, reading)

    def _tell(self, row: dict) -> dict[str, str]:
        fake = row["label"] != 0
        generator = row["model_name"] or "unknown" if fake else "real"
        source = row["subset"] if fake else row["real_source"]
        about = {"generator": generator, "source": source or "", "caption": row["prompt"] or ""}
        if row["label"] not in (0, 1):
            about["reason"] = f"bad-label: {row['label']}"
        return about | {"set": "community_forensics", "split": split_named(self.hub_split)}

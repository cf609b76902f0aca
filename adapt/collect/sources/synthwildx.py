"""SynthWildX: 500 images each of DALL-E 3, Firefly, Midjourney v5 and cameras, as they circulate on X.

    adapt prepare synthwildx --table data/synthwildx/list.csv
    adapt prepare synthwildx --table data/synthwildx/list.csv --folder data/synthwildx/images --again

list.csv (url,filename,typ) comes with ClipBased; images that are not in the folder are fetched. Many links are dead:
the table of lost images says which, and why. All rows are test.
"""

from dataclasses import dataclass
from typing import Literal

from adapt.collect.sources import table


@dataclass(frozen=True, kw_only=True)
class Source(table.Source):
    path: str = "filename"  # column of file names
    url: str = "url"  # column of addresses
    generator: str = "typ"  # column of generators' names
    split: Literal["auto", "train", "val", "test"] = "test"  # split of all rows; auto: drawn by group
    set: str = "synthwildx"  # name of the benchmark

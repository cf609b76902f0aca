"""ELSA_D3: a real image by its URL and up to four fakes of its caption, embedded; one group per scene.

    adapt prepare elsa_d3 --output data/elsa/manifest.csv --members all --limit 1000
    adapt prepare elsa_d3 --output data/elsa/manifest.csv --hub_split train --limit 100000 \\
        --shard 0 --num_shards 16

`validation` has 4,800 rows (5.3 GB of fakes); of `train` (2.5 TB) only the rows that are needed are fetched. Many
URLs are dead: each is asked a few times, its reason is recorded, and it is never asked again, except with
--retry_dead where the failure may pass. A group is complete or lost: with `all` a row that lacks one of the
generators is lost (member-missing). A higher --limit later continues where the lower one ended. Images go into tar
files as they are, bytes unchanged: real and fake differ in codec and size, so look at --align and `adapt audit`.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Literal

from adapt.cli import at_least
from adapt.collect.builder import Part, header_facts, join, parts_folder
from adapt.collect.download import download
from adapt.collect.download_state import Outcome, is_transient, read_outcomes
from adapt.collect.sources.hub_tables import Place, Table, cell_bytes, need, pin, share
from adapt.collect.sources.output import Output
from adapt.data.images import Unreadable, decode, read_bytes
from adapt.errors import Refusal

REPO = "elsaEU/ELSA_D3"
BLOCK = (256, 50_000)  # rows whose real images are downloaded before their fakes are read
END = [2**31, 0]  # place behind all rows
TEXTS = ("original_prompt", "positive_prompt")  # of the real image, of the fakes


@dataclass(frozen=True, kw_only=True)
class Source(Output):
    repo: str = REPO  # name at the hub, or a folder that holds its Parquet files
    revision: str = "main"  # branch, tag or commit; a continued run stays at the commit it began with
    hub_split: str = "validation"  # the hub's split, train or validation; ours are drawn from its rows
    members: Literal["pair", "random", "all"] = "all"  # fakes per group: the first, a random one, or one of each
    limit: int | None = None  # complete groups, over all shards; default: all rows
    retry_dead: bool = False  # ask again where the failure may pass: timeouts, errors of servers
    concurrency: int = 64  # requests at the same time
    user_agent: str = "adapt/0.1"  # sent to servers; add a contact

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is None:
            raise Refusal("--output: name the manifest to write, such as data/elsa/manifest.csv")
        at_least(1, self, "concurrency", *(["limit"] if self.limit is not None else []))

    def prepare(self) -> Path | None:
        what = self.identity("repo", "hub_split", "members", "seed", "split", "val", "test")
        what["commit"] = pin(self.repo, self.revision, self.output)
        with Part(self.output, what, shard=self.shard, num_shards=self.num_shards) as part:
            work = _Groups(self, what["commit"], part)
            if self.retry_dead or (work.missing() > 0 and not work.at_end()):
                work.run()
            part.finish()
        return join(self.output, self.num_shards, whole=True, once=True)


class _Groups:
    """The groups of one job. Of a block of rows first the real images are downloaded, then the fakes are read."""

    def __init__(self, source: Source, commit: str, part: Part) -> None:
        self.source, self.commit, self.part = source, commit, part
        job = f"{source.shard}-of-{source.num_shards}"
        self.folder = parts_folder(source.output) / f"downloads-{job}"  # goes when the journals go
        self.state = self.folder / "download.jsonl"

    def missing(self) -> float:
        """Groups that are wanted and not there."""
        source = self.source
        return share(source.limit, source.shard, source.num_shards) - len(self.part.groups)

    def at_end(self) -> bool:
        """Whether the table has no more rows."""
        return self.part.at is not None and self.part.at[0] == END

    def run(self) -> None:
        source = self.source
        jobs = {"shard": source.shard, "num_shards": source.num_shards}
        self.table = Table.open(source.repo, self.commit, source.hub_split, **jobs)
        self._find_columns()
        self._again()
        at, end = ((0, 0), (0, 0)) if self.part.at is None else map(tuple, self.part.at)
        while self.missing() > 0 and not self.at_end():
            rows = self.table.scan(["url", *self.texts], at)
            if at == end:
                self._clear()
                low, high = BLOCK
                block = list(islice(rows, int(min(max(2 * self.missing(), low), high))))
                if not block:
                    self.part.commit([], [END, END])
                    return
                end = (block[-1][0][0], block[-1][0][1] + 1)
                self.part.commit([], [at, end])  # from now on the downloads are those of this block
            else:  # a killed run was in the middle of it
                block = list(takewhile(lambda found, end=end: found[0] < end, rows))
            at = self._take(dict(block), end)

    def _find_columns(self) -> None:
        """Fakes by their number: columns come and go between versions of the data set."""
        found = self.table.columns()
        need(["url"], found, self.source.repo)
        numbers = sorted(int(match[1]) for name in found if (match := re.fullmatch(r"image_gen(\d+)", name)))
        need([f"model_gen{k}" for k in numbers] or ["image_gen0"], found, self.source.repo)
        self.numbers = numbers[:1] if self.source.members == "pair" else numbers
        self.columns = [f"{kind}_gen{k}" for k in self.numbers for kind in ("image", "model")]
        self.texts = [name for name in TEXTS if name in found]

    def _group(self, place: Place) -> str:
        return f"elsa-{self.source.hub_split}-{place[0]:05d}-{place[1]:06d}"

    def _again(self) -> None:
        """Rows that were passed: those asked for once more, and what a kill left downloaded and not committed."""
        if not self.state.exists():
            return
        places = []
        for outcome in read_outcomes(self.state, self.folder):
            place = tuple(map(int, outcome.key.rsplit("-", 2)[1:]))
            passed = self.part.at is not None and place < tuple(self.part.at[0])
            if passed and outcome.key not in self.part.groups:
                left = outcome.path is not None and outcome.path.exists()
                if left or (self.source.retry_dead and is_transient(outcome.reason)):
                    places.append(place)
        for first in range(0, len(places), BLOCK[1]):
            self._take(dict(self.table.pick(places[first : first + BLOCK[1]], ["url", *self.texts])))

    def _take(self, block: dict[Place, dict], end: Place | None = None) -> Place:
        """Make groups of a block of rows until there are enough; the place to go on from.

        Without `end` the block is one of rows that the journal has passed, and knows as lost.
        """
        outcomes = self._download(block)
        good = [place for place in block if outcomes[place].reason == "ok"]
        fakes, lost = self.table.pick(good, self.columns), []
        for place, row in block.items():
            next_at = [(place[0], place[1] + 1), end] if end else self.part.at
            try:
                if self.missing() <= 0:
                    break
                if outcomes[place].reason != "ok":
                    raise _Lost("real", outcomes[place].reason)
                rows, images = self._members(place, row, next(fakes)[1], outcomes[place])
            except _Lost as why:
                about = {"url": row["url"] or "", "file": f"{self.table.files[place[0]]}#{place[1]}"}
                lost.append(self._row(place, why.generator) | about | {"reason": why.reason})
                at = next_at
            else:
                self.part.commit(rows, next_at, images, lost if end else ())
                lost = []
        fakes.close()
        if lost and end:
            self.part.commit([], at, lost=lost)
        return tuple(self.part.at[0]) if self.part.at else (0, 0)

    def _download(self, block: dict[Place, dict]) -> dict[Place, Outcome]:
        """Fetch the real images; groups whose image has turned out to be a placeholder are dropped."""
        keys = {self._group(place): place for place in block}
        report = download(
            [(key, block[place]["url"] or "") for key, place in keys.items()],
            self.folder,
            state=self.state,
            again=self.source.retry_dead,
            concurrency=self.source.concurrency,
            user_agent=self.source.user_agent,
        )
        outcomes, fallen = {}, {}
        for outcome in report.outcomes():
            if outcome.key in keys:
                outcomes[keys[outcome.key]] = outcome
            if outcome.reason == "placeholder" and outcome.key in self.part.groups:
                fallen[outcome.key] = outcome.reason
        if fallen:
            self.part.drop(fallen)
        return outcomes

    def _members(self, place: Place, row: dict, fakes: dict, outcome: Outcome) -> tuple[list[dict], list[bytes]]:
        """Rows and bytes of a complete group; raises `_Lost`."""
        there = [k for k in self.numbers if cell_bytes(fakes[f"image_gen{k}"])]
        numbers = self.numbers
        if self.source.members == "random" and there:
            digest = hashlib.sha256(json.dumps([self.source.seed, self._group(place)]).encode()).digest()
            numbers = [there[int.from_bytes(digest[:8], "big") % len(there)]]
        texts = [str(row.get(name) or "") for name in TEXTS]
        rows, images = [self._row(place, "real") | {"caption": texts[0], "url": outcome.url}], []
        for k in numbers:
            rows.append(self._row(place, fakes[f"model_gen{k}"] or f"gen{k}") | {"caption": texts[1] or texts[0]})
        for row, k in zip(rows, [None, *numbers], strict=True):
            if k is not None and k not in there:
                raise _Lost(row["generator"], "member-missing")
            try:
                data = read_bytes(outcome.path) if k is None else cell_bytes(fakes[f"image_gen{k}"])
                decode(data)
            except Unreadable as problem:
                raise _Lost(row["generator"], problem.reason) from problem
            if self.part.met(header_facts(data)["sha256"]):
                raise _Lost(row["generator"], "same-bytes-two-groups")
            images.append(data)
        return rows, images

    def _row(self, place: Place, generator: str) -> dict[str, str]:
        group = self._group(place)
        row = {"group": group, "generator": self.source.named(generator), "split": self.source.split_of(group)}
        return row | {"set": "elsa_d3", "source": REPO}

    def _clear(self) -> None:
        """The downloads of finished blocks lie in tar files, or belong to rows that are lost."""
        for folder in self.folder.glob("??"):
            shutil.rmtree(folder)


class _Lost(Exception):
    """Why a row of the table makes no group, and whose image was the reason."""

    def __init__(self, generator: str, reason: str) -> None:
        super().__init__(reason)
        self.generator, self.reason = generator, reason

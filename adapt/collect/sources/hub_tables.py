"""Tables of the Hugging Face hub, read from afar: any row, only the columns asked for, never a whole file.

`datasets` finds the Parquet files of a split, `pyarrow` reads them: a place is (file, row), so a continued job begins
at the exact row, and row groups in which no row is wanted are not fetched. (A stream of `datasets` continues exactly
too, but fetches the file it was in from its start: hundreds of megabytes.) Images are cells of bytes and stay as they
are; no feature is decoded. A folder with the files of such a repository works in place of its name.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from adapt.collect.builder import Part, header_facts, join, parts_folder
from adapt.collect.sources.output import Output
from adapt.collect.sources.partial import marks_all, write_mask
from adapt.data.images import Unreadable, decode
from adapt.data.masks import White, decode_mask
from adapt.errors import Refusal
from adapt.hub import cause_of
from adapt.progress import bar

BLOCK = 1024  # rows whose labels are read before their images
BATCH = 16  # rows with images at a time, beside the row group they lie in (270 MB of one took 650 MB of memory)
VALIDATION = ("validation", "val", "valid", "dev")  # one split under four names

Place = tuple[int, int]  # file, row in it


@dataclass(frozen=True)
class Table:
    """The Parquet files of one split in their order; a job reads those whose number is in `mine`."""

    files: tuple[str, ...]
    mine: tuple[int, ...]
    published: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # names of the numbers of a column

    @classmethod
    def open(
        cls, repo: str, commit: str, split: str, *, config: str = "", shard: int = 0, num_shards: int = 1
    ) -> "Table":
        """Find a split's files and take every `num_shards`-th, beginning with `shard`."""
        builder = _builder(repo, commit, config)
        splits = builder.config.data_files or {}
        same = [name for name in splits if name == split or (split in VALIDATION and name in VALIDATION)]
        if not split and len(splits) == 1:
            same = list(splits)
        if len(same) != 1:
            raise Refusal(f"--hub_split {split or '(none)'}: {repo} has the splits {', '.join(splits) or '(none)'}")
        files = tuple(str(file) for file in splits[same[0]])
        if other := [file for file in files if not file.endswith(".parquet")]:
            raise Refusal(f"{repo} holds {Path(other[0]).name}: only Parquet files can be read row by row")
        if num_shards > len(files):
            raise Refusal(f"--num_shards {num_shards}: {same[0]} of {repo} has {len(files)} files, one job reads one")
        return cls(files, tuple(range(len(files)))[shard::num_shards], _classes(builder.info.features))

    def columns(self) -> list[str]:
        """Names of the columns, as the first file has them."""
        return list(self.types())

    def types(self) -> dict[str, str]:
        """What each column of the first file holds: `image` for bytes, alone or beside a path, else its Arrow type."""
        with _parquet(self.files[self.mine[0]]) as file:
            return {column.name: _type(column.type) for column in file.schema_arrow}

    def classes(self) -> dict[str, tuple[str, ...]]:
        """The names of class numbers by column, as the data set or its first file publishes them."""
        from datasets import Features

        with _parquet(self.files[self.mine[0]]) as file:
            return dict(self.published) or _classes(Features.from_arrow_schema(file.schema_arrow))

    def scan(self, columns: list[str], start: Place = (0, 0)) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Every row of this job from `start` on."""
        for number in self.mine:
            if number >= start[0]:
                yield from self._rows(number, columns, lambda row, n=number: (n, row) >= start)

    def pick(self, places: Iterable[Place], columns: list[str]) -> Iterator[tuple[Place, dict[str, Any]]]:
        """These rows, in the order of the table."""
        chosen: dict[int, set[int]] = {}
        for file, row in places:
            chosen.setdefault(file, set()).add(row)
        for number in sorted(chosen):
            yield from self._rows(number, columns, chosen[number].__contains__)

    def _rows(
        self, number: int, columns: list[str], wanted: Callable[[int], bool]
    ) -> Iterator[tuple[Place, dict[str, Any]]]:
        with _parquet(self.files[number], columns) as file:
            first = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if any(wanted(row) for row in range(first, first + count)):
                    start = first
                    for batch in file.iter_batches(BATCH, row_groups=[group], columns=columns):
                        rows = [i for i in range(batch.num_rows) if wanted(start + i)]
                        for i, row in zip(rows, batch.take(rows).to_pylist() if rows else (), strict=True):
                            yield (number, start + i), row
                        start += batch.num_rows
                first += count


def pin(repo: str, revision: str, output: Path) -> str:
    """The commit that `revision` of a repository names now, or named when a job for `output` began.

    Of a folder: a digest over the names and sizes of its files.
    """
    if Path(repo).is_dir():
        files = sorted(path for path in Path(repo).rglob("*.parquet") if path.is_file())
        known = [(path.relative_to(repo).as_posix(), path.stat().st_size) for path in files]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()
    if revision == "main":  # moves on; a data set under construction stays where it was
        for journal in sorted(parts_folder(output).glob("*.jsonl")):
            with journal.open(encoding="utf-8") as file, contextlib.suppress(ValueError, KeyError, TypeError):
                what = json.loads(file.readline())["what"]
                if what["repo"] == repo:
                    return what["commit"]
    with _reaching(repo, revision):
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(repo, revision=revision).sha
    print(f"{repo}: {revision} is commit {commit}; --revision {commit} pins it for later runs")
    return commit


def _type(arrow: Any) -> str:
    import pyarrow.types as kinds

    if kinds.is_struct(arrow) and arrow.get_field_index("bytes") >= 0:
        return "image"
    return "image" if kinds.is_binary(arrow) or kinds.is_large_binary(arrow) else str(arrow)


def _classes(features: Any) -> dict[str, tuple[str, ...]]:
    """The names of class numbers that a data set publishes, by column."""
    return {name: tuple(kind.names) for name, kind in (features or {}).items() if hasattr(kind, "names")}


def need(columns: Iterable[str], found: list[str], file: str) -> None:
    """Refuse a table that lacks columns."""
    missing = [name for name in columns if name not in found]
    if missing:
        raise Refusal(
            f"{file} has no column {', '.join(missing)}; it has {', '.join(found)}: "
            "its layout has changed, name an older commit with --revision"
        )


def cell_bytes(cell: Any) -> bytes:
    """The bytes of an image file in a cell, which holds bytes, or bytes beside a path; none where it is empty."""
    return (cell.get("bytes") if isinstance(cell, dict) else cell) or b""


def share(total: int | None, shard: int, num_shards: int) -> float:
    """How many of `total` fall to a job; all, where there is no limit."""
    return float("inf") if total is None else total * (shard + 1) // num_shards - total * shard // num_shards


def split_named(hub_split: str) -> str:
    """Our split, where the hub's name for a split says it; empty for others, whose groups are drawn."""
    name = hub_split.lower()
    return "test" if "test" in name or "eval" in name else "val" if name in VALIDATION else ""


@dataclass(frozen=True)
class Reading:
    """What is read of a table.

    `tell` makes the manifest's columns of a row without its `image`, with a `reason` where the row cannot be used, and
    with a `group` where several images show one scene. It gets the `columns`; without these all but the image. `mask`
    says where the masks of fakes are.
    """

    table: Table
    image: str
    tell: Callable[[dict], dict[str, str]]
    mask: "Mask | None" = None
    columns: tuple[str, ...] | None = None


def write_images(
    source: Output, what: dict[str, Any], open_table: Callable[[], Reading], grouped: bool = False
) -> Path | None:
    """Every image of a table, as a group of its own unless `grouped`; the manifest, or None if others have work left.

    The table is opened only if there is work. `source` has `per_class` and `real`, the most images of each generator
    and of camera images.
    """
    jobs = {"shard": source.shard, "num_shards": source.num_shards}
    most = {name: share(getattr(source, name), **jobs) for name in ("per_class", "real")}

    def full(generator: str) -> bool:
        return part.generators[generator] >= most["real" if generator == "real" else "per_class"]

    with Part(source.output, what, **jobs) as part:
        if not part.done:
            reading = open_table()
            rows, image, mask = reading.table, reading.image, reading.mask
            progress = bar(unit="img", desc="images", initial=sum(part.generators.values()))
            names = reading.columns
            names = [name for name in rows.columns() if name != image] if names is None else list(names)
            while block := list(islice(rows.scan(names, tuple(part.at or (0, 0))), BLOCK)):
                about = {place: _renamed(source, reading.tell(row)) for place, row in block}
                wanted = [place for place in about if not full(about[place]["generator"])]
                for place, cells in rows.pick(wanted, [image, *([mask.column] if mask else [])]):
                    row = {"group": f"{about[place]['set']}-{place[0]:05d}-{place[1]:06d}"} | about[place]
                    row["split"] = source.split_of(row["group"], row.get("split", ""))
                    if not full(row["generator"]):
                        _commit(part, row, cells[image], place, mask, cells[mask.column] if mask else None)
                        progress.update()
                part.commit([], (block[-1][0][0], block[-1][0][1] + 1))
            progress.close()
            part.finish()
    return join(source.output, source.num_shards, whole=not grouped, once=True)


def _renamed(source: Output, row: dict[str, str]) -> dict[str, str]:
    return row | {"generator": source.named(row["generator"])}


@dataclass(frozen=True)
class Mask:
    """Where the masks of fakes are, how they mark what was changed, and what a fake with an empty mask becomes."""

    column: str
    changed: White
    empty: Literal["lost", "generated"]

    def told(self, row: dict[str, str], size: tuple[int, int], cell: Any, name: str, output: Path) -> dict[str, str]:
        """`mask` of a fake of this size (width, height), written white on black; nothing where all of it is generated.

        `name` is the mask's alone. Raises `Unreadable`.
        """
        data = cell_bytes(cell)
        if row["generator"] == "real" or not data:
            return {}
        try:
            found = decode_mask(data, size, self.changed)
        except Unreadable as problem:
            if problem.reason == "mask-empty" and self.empty == "generated":
                return {}
            raise
        return {} if marks_all(found) else {"mask": write_mask(found, name, output)}


def _commit(part: Part, row: dict[str, str], cell: Any, place: Place, mask: Mask | None, mask_cell: Any) -> None:
    at = (place[0], place[1] + 1)
    try:
        data = cell_bytes(cell)
        if row.get("reason") or not data:
            raise Unreadable(row.get("reason") or "member-missing")
        size = decode(data).size
        if part.met(header_facts(data)["sha256"]):
            raise Unreadable("same-bytes-two-groups")
        if mask is not None:
            row |= mask.told(row, size, mask_cell, f"{row['set']}-{place[0]:05d}-{place[1]:06d}", part.output)
    except Unreadable as problem:
        part.commit([], at, lost=[row | {"reason": problem.reason}])
    else:
        part.commit([row], at, [data])


def _builder(repo: str, commit: str, config: str) -> Any:
    with _reaching(repo, commit):
        from datasets import get_dataset_config_names, load_dataset_builder

        revision = None if Path(repo).is_dir() else commit
        try:
            return load_dataset_builder(repo, config or None, revision=revision)
        except ValueError as error:
            names = get_dataset_config_names(repo, revision=revision)
            if config not in names:
                raise Refusal(f"--subset {config or '(none)'}: {repo} has {', '.join(names)}") from error
            raise


@contextlib.contextmanager
def _parquet(name: str, columns: Iterable[str] = ()) -> Iterator[Any]:
    """An open Parquet file that has these columns; each column of a row group is fetched by one request."""
    import pyarrow.parquet

    with _reaching(name), contextlib.ExitStack() as stack:
        source: Any = name
        if "://" in name:
            from huggingface_hub import HfFileSystem

            source = stack.enter_context(HfFileSystem().open(name, cache_type="none"))
        file = stack.enter_context(pyarrow.parquet.ParquetFile(source))
        need(columns, file.schema_arrow.names, name)
        yield file


@contextlib.contextmanager
def _reaching(repo: str, revision: str = "") -> Iterator[None]:
    """What fails between here and the hub becomes one line."""
    try:
        yield
    except ImportError as error:
        raise Refusal(f"the hub's tables need {error.name}: run `pip install 'adapt-aigi[data]'`") from error
    except Exception as error:
        from huggingface_hub import errors

        if isinstance(error, Refusal) or not isinstance(error, OSError | ValueError | errors.HTTPError):
            raise
        raise Refusal(_explain(error, repo, revision)) from error


def _explain(error: Exception, repo: str, revision: str) -> str:
    words, cause = str(error).strip().splitlines() or [""], cause_of(error)
    if cause == "offline":
        return f"{repo}: the hub is switched off by HF_HUB_OFFLINE: unset it, or give --repo a folder with its files"
    if cause == "gated" or "is a gated dataset" in words[0]:
        return f"{repo} is gated: accept its terms on its page at the hub, then run `hf auth login`"
    if cause == "revision":
        return f"{repo} has no revision {revision}: name a branch, a tag or a commit with --revision"
    if cause == "missing":
        return f"no data set {repo} at the hub, and no such folder: check --repo; if it is private, `hf auth login`"
    return (
        f"cannot read {repo} ({type(error).__name__}: {words[0]}): check file and network; the same command continues"
    )

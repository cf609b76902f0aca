"""Manifests of millions of rows: Parquet is checked once and kept as an Arrow file, which all processes map.

    $ADAPT_CACHE/manifests/PATHS-STATE.arrow

PATHS is the digest of the manifests' places, STATE that of their sizes and times of change: a changed manifest has
another file, and the old one goes. A manifest that has only just changed is not kept. The checks are those of small
manifests: whole columns are compared, and the few rows that stand out get the very checks of `adapt/data/rows.py`.
"""

import binascii
import contextlib
import hashlib
import json
import os
import posixpath
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adapt.csv_as_written import known_columns
from adapt.data.checks import check_bytes, check_files_differ, check_groups, refusal_of_mask, refuse_columns
from adapt.data.columns import Column
from adapt.data.rows import (
    MEMBER,
    OPTIONAL,
    REQUIRED,
    SPELLED,
    SPLITS,
    WHOLE,
    WORDS,
    inside_of,
    locate,
    problem,
    refusal_of_place,
    strings,
)
from adapt.data.spelling import folded, refuse_two_spellings
from adapt.data.tables import parquet_columns
from adapt.errors import Refusal
from adapt.files import atomic
from adapt.lock import Lock

BLOCK = 65536  # rows by which a column shows whether its values repeat
BUSY = "another process is reading the manifest"
FORMAT = 1
PATIENCE = 1200  # seconds for another process, which takes some minutes for 50 M rows
SETTLED = 2.0  # seconds after which a file's times tell whether it changed
DIGESTED = 100_000  # rows whose lines are hashed at a time
# A path with one of these is looked at by itself: absolute, a backslash, NUL, empty or dotted parts, a member with /
ODD_PATH = r"^/|\\|\x00|//|(^|/|::)\.\.?(/|::|$)|::/|/$|/::"
PLAIN = r"^[ !#-\[\]-~]*$"  # what JSON writes as it is
Arrays = dict[str, pa.Array]


def rows_of(paths: Sequence[Path]) -> int:
    """How many rows Parquet manifests have together; 0 where one is no Parquet file or cannot be read."""
    count = 0
    for path in paths:
        if path.suffix.lower() != ".parquet" or not path.is_file():
            return 0
        try:
            count += pq.ParquetFile(path).metadata.num_rows
        except (pa.ArrowException, OSError):
            return 0
    return count


def read_large(paths: Sequence[Path]) -> tuple[dict[str, Column], str]:
    """Columns of Parquet manifests, joined and checked, and the manifest's digest; refuses what a small one is for."""
    folder = Path(os.environ.get("ADAPT_CACHE") or Path.home() / ".cache" / "adapt") / "manifests"
    places = _hash([os.path.realpath(path) for path in paths])
    status = [os.stat(path) for path in paths]  # noqa: PTH116
    state = _hash([FORMAT, *([s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for s in status)])
    kept = folder / f"{places}-{state}.arrow"
    young = time.time() - max(max(s.st_mtime, s.st_ctime) for s in status) < SETTLED
    if young or not _can_write(folder):
        with tempfile.TemporaryDirectory() as temporary:  # what is mapped outlives the name of its file
            return _mapped(_write(_joined(paths), Path(temporary) / "manifest.arrow"))
    for _ in _turn(folder / f".{places}.lock"):
        if not kept.is_file():
            _write(_joined(paths), kept)
            for other in set(folder.glob(f"{places}-*.arrow")) - {kept}:
                other.unlink(missing_ok=True)
    return _mapped(kept)


def _can_write(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


def _turn(lock: Path) -> Iterator[None]:
    """One turn under a lock, after those of other processes: what the first of them makes, the others only map."""
    begun = time.monotonic()
    while True:
        try:
            with Lock(lock, BUSY):
                yield
            return
        except Refusal as error:
            if not str(error).startswith(BUSY) or time.monotonic() - begun > PATIENCE:
                raise
        time.sleep(0.2)


def _hash(what: object) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]


def _write(made: tuple[Arrays, dict[str, str]], path: Path) -> Path:
    arrays, about = made
    with atomic(path) as temporary:
        batch = pa.record_batch(arrays).replace_schema_metadata(about)
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
            file.write_batch(batch)
    return path


def _mapped(path: Path) -> tuple[dict[str, Column], str]:
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    batch, about = file.get_batch(0), file.schema.metadata
    columns = {name: _column(batch.column(name)) for name in batch.schema.names}
    if "file" not in columns:
        paths = columns["path"]
        columns["file"] = Column(paths.values, paths.codes, about[b"root"].decode().rstrip("/") + "/")
    return columns, about[b"digest"].decode()


def _column(array: pa.Array) -> Column:
    if not pa.types.is_dictionary(array.type):
        return Column(array)
    return Column(array.dictionary, array.indices.to_numpy())


# -- one manifest -----------------------------------------------------------------------------------------------------


def _joined(paths: Sequence[Path]) -> tuple[Arrays, dict[str, str]]:
    """All columns of all manifests, and beside them their digest and the folder that the paths of a file begin in."""
    parts = [_checked(path) for path in paths]
    roots = list(dict.fromkeys(root for _, root in parts))
    if len(roots) > 1 or any("file" in arrays for arrays, _ in parts):  # absolute names have to be written out
        for arrays, root in parts:
            arrays.setdefault("file", _absolute(arrays["path"], root))
    counts = [len(arrays["path"]) for arrays, _ in parts]
    names = dict.fromkeys(name for arrays, _ in parts for name in arrays)
    arrays = {name: _concat([part.pop(name, None) for part, _ in parts], counts) for name in names}
    for name in SPELLED:
        refuse_two_spellings(name, arrays[name].dictionary.to_pylist(), _column(arrays[name]))
    for check, rows in (
        (check_files_differ, _twice(arrays.get("file", arrays["path"]))),
        (check_groups, _in_two_splits(arrays["group"], arrays["split"])),
        (check_bytes, _under_two_labels(arrays)),
    ):
        if len(rows):
            check(_small(arrays, rows, roots[0]))
    return arrays, {"root": roots[0], "digest": _digest(arrays)}


def _checked(path: Path) -> tuple[Arrays, str]:
    """The columns of one manifest after the checks of its rows, and its folder; `file` where paths do not tell it."""
    name, root = str(path), os.path.realpath(path.parent)
    file = pq.ParquetFile(path)
    given, count = file.schema_arrow.names, file.metadata.num_rows
    known = dict(zip(given, known_columns(given, (*REQUIRED, *OPTIONAL, *MEMBER), name), strict=True))
    refuse_columns(dict.fromkeys(known.values(), range(count)), name)
    arrays = {column: _blank(count) for column in OPTIONAL}
    arrays |= {known[column]: _encoded(known[column], cells) for column, cells in parquet_columns(path)}
    _check_rows(arrays, name)
    odd = np.flatnonzero(pc.match_substring_regex(arrays["path"], ODD_PATH).to_numpy(zero_copy_only=False))
    if len(odd):
        written, files = locate(arrays["path"].take(pa.array(odd)).to_pylist(), path.parent, name, (odd + 1).tolist())
        arrays["file"] = _replaced(_absolute(arrays["path"], root), odd, files)
        arrays["path"] = _replaced(arrays["path"], odd, written)
    _check_places(arrays["path"], odd, root, name)
    if _any(arrays["mask"]):
        masks = arrays["mask"].dictionary_decode() if pa.types.is_dictionary(arrays["mask"].type) else arrays["mask"]
        written, files = locate(masks.to_pylist(), path.parent, name)
        arrays |= {"mask": pa.array(written, pa.large_string()), "mask_file": pa.array(files, pa.large_string())}
        images = arrays.get("file")
        images = _absolute(arrays["path"], root) if images is None else images
        both = np.flatnonzero(pc.is_in(arrays["mask_file"], images).to_numpy(zero_copy_only=False))
        if len(both):
            raise refusal_of_mask(name, int(both[0]) + 1, written[both[0]])
    return arrays, root


def _encoded(column: str, cells: pa.ChunkedArray) -> pa.Array:
    """One column as it is kept: text as it is, words by number, digests as bytes."""
    if column == "sha256":
        return _digests(pc.ascii_lower(pc.utf8_trim_whitespace(cells)))
    if column == "path":
        return _one(cells)
    if column in WORDS or pc.count_distinct(cells[:BLOCK]).as_py() < BLOCK // 4:
        found = _one(cells).dictionary_encode()
        if column not in WORDS:
            return found
        trimmed = pc.utf8_trim_whitespace(found.dictionary)
        mend = pc.and_(pc.not_equal(trimmed, found.dictionary), pc.not_equal(trimmed, "real"))
        if not pc.any(mend).as_py():
            return found
        words = pc.if_else(mend, trimmed, found.dictionary).dictionary_encode()  # two may have become one
        return pa.DictionaryArray.from_arrays(words.indices.take(found.indices), words.dictionary)
    return _one(cells)


def _blank(count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([""], pa.large_string()))


def _one(cells: pa.ChunkedArray | pa.Array) -> pa.Array:
    found = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def _digests(cells: pa.ChunkedArray) -> pa.Array:
    """SHA-256 in hex as 32 bytes each, null for ""; text where one is neither, which the checks of rows refuse."""
    good = pc.match_substring_regex(cells, "^([0-9a-f]{64})?$")
    if not pc.all(good).as_py():
        return _one(cells).dictionary_encode()
    parts = []
    for chunk in cells.chunks:
        there = pc.greater(pc.binary_length(chunk), 0)
        filled = pc.if_else(there, chunk, "0" * 64)
        data = binascii.unhexlify(filled.buffers()[2][: 64 * len(chunk)])
        whole = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(chunk), [None, pa.py_buffer(data)])
        parts.append(whole if pc.all(there).as_py() else pc.if_else(there, whole, pa.scalar(None, pa.binary(32))))
    return pa.concat_arrays(parts) if parts else pa.array([], pa.binary(32))


def _any(array: pa.Array) -> bool:
    """Whether any row says something."""
    values = array.dictionary if pa.types.is_dictionary(array.type) else array
    return bool(pc.any(pc.not_equal(values, "")).as_py())


def _is(array: pa.Array, words: Sequence[str]) -> np.ndarray:
    """Which rows (n,) of a dictionary hold one of these words."""
    wanted = pc.is_in(array.dictionary, pa.array(words, array.dictionary.type)).to_numpy(zero_copy_only=False)
    return wanted[array.indices.to_numpy()]


def _check_rows(arrays: Arrays, name: str) -> None:
    """Give the rows that stand out to `problem`, in their order."""

    def lengths(array: pa.Array) -> np.ndarray:
        values = array.dictionary if pa.types.is_dictionary(array.type) else array
        blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(values)), 0).to_numpy(zero_copy_only=False)
        return blank[array.indices.to_numpy()] if pa.types.is_dictionary(array.type) else blank

    def matches(array: pa.Array, pattern: str) -> np.ndarray:
        values = array.dictionary if pa.types.is_dictionary(array.type) else array
        found = pc.match_substring_regex(values, pattern).to_numpy(zero_copy_only=False)
        return found[array.indices.to_numpy()] if pa.types.is_dictionary(array.type) else found

    generator = arrays["generator"]
    real, photo = _is(generator, ["real"]), [v for v in generator.dictionary.to_pylist() if folded(v) == "real"]
    blank = {column: lengths(arrays[column]) for column in ("path", "group", "generator", "edit", "mask")}
    odd = blank["path"] | blank["group"] | blank["generator"] | ~_is(arrays["split"], SPLITS)
    odd |= pc.ends_with(arrays["path"], ".tar::").to_numpy(zero_copy_only=False)
    odd |= (_is(generator, photo) & ~real) | (~blank["edit"] & ~real) | (~blank["mask"] & real & blank["edit"])
    if pa.types.is_dictionary(arrays["sha256"].type):
        odd |= True
    places = [arrays[column] for column in MEMBER if column in arrays]
    if places:
        given = [matches(array, f"^{WHOLE}$") for array in places]
        none = [matches(array, "^$") for array in places]
        inside = matches(arrays["path"], r"\.tar::.")
        odd |= ~((np.all(given, axis=0) & inside & (len(places) == 2)) | np.all(none, axis=0))
    for row in np.flatnonzero(odd):
        cells = [
            arrays[column][int(row)].as_py() if column in arrays else ""
            for column in (*REQUIRED, "edit", "mask", "sha256", *MEMBER)
        ]
        cells[6] = cells[6].hex() if isinstance(cells[6], bytes) else cells[6] or ""
        if wrong := problem(*cells):
            raise Refusal(f"{name}, row {row + 1}: {wrong}")


def _check_places(paths: pa.Array, looked_at: np.ndarray, root: str, name: str) -> None:
    """Refuse a file that lies outside the folder by a link: each folder is listed once, not each file asked for."""
    inside = inside_of(root)
    files = pc.replace_substring_regex(paths, r"^(.*?\.tar)::.*$", r"\1")  # of members their archive
    folders = pc.replace_substring_regex(files, r"/?[^/]*$", "")
    for folder in pc.unique(folders).to_pylist():
        place = posixpath.join(root, folder) if folder else root
        links = [] if not inside(place) else _links(place)
        leaving = [posixpath.join(folder, link) for link in links if not inside(posixpath.join(place, link))]
        there = pc.is_in(files, pa.array(leaving, files.type)) if inside(place) else pc.equal(folders, folder)
        rows = np.setdiff1d(np.flatnonzero(there.to_numpy(zero_copy_only=False)), looked_at)
        if (leaving or not inside(place)) and len(rows):
            raise refusal_of_place(name, int(rows[0]) + 1, paths[int(rows[0])].as_py(), root)


def _links(folder: str) -> list[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_symlink()]
    return []


def _absolute(paths: pa.Array, root: str) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar(root.rstrip("/"), paths.type), paths, pa.scalar("/", paths.type))


def _replaced(array: pa.Array, rows: np.ndarray, values: np.ndarray) -> pa.Array:
    mask = np.zeros(len(array), bool)
    mask[rows] = True
    return pc.replace_with_mask(array, pa.array(mask), pa.array(list(values), array.type))


# -- all of them ------------------------------------------------------------------------------------------------------


def _concat(parts: list[pa.Array | None], counts: list[int]) -> pa.Array:
    """One column of all manifests; "" where one does not have it."""
    if len(parts) == 1:
        return parts[0]
    sizes = zip(parts, counts, strict=True)
    plain = [_blank(count) if part is None else part for part, count in sizes]
    if any(pa.types.is_fixed_size_binary(part.type) for part in plain):  # digests, beside manifests without
        digest = pa.binary(32)
        return pa.concat_arrays([part if part.type == digest else pa.nulls(len(part), digest) for part in plain])
    kinds = {str(part.type) for part in plain}
    if len(kinds) == 1 and not pa.types.is_dictionary(plain[0].type):
        return pa.concat_arrays(plain)
    if all(pa.types.is_dictionary(part.type) for part in plain):
        return _one(pa.chunked_array(plain).unify_dictionaries())
    texts = [part.dictionary_decode() if pa.types.is_dictionary(part.type) else part for part in plain]
    return pa.concat_arrays(texts)


def _small(arrays: Arrays, rows: np.ndarray, root: str) -> dict[str, np.ndarray]:
    """These rows as the columns of a small manifest."""
    found = {name: np.asarray(_column(arrays[name])[rows]) for name in (*REQUIRED, "sha256")}
    own = _column(arrays["file"])[rows] if "file" in arrays else [f"{root}/{path}" for path in found["path"]]
    return found | {"file": strings(list(own))}


def _twice(files: pa.Array) -> np.ndarray:
    """Rows of files that stand in more than one."""
    if pc.count_distinct(files).as_py() == len(files):
        return np.array([], np.int64)
    counts = pc.value_counts(files)
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return np.flatnonzero(pc.is_in(files, twice).to_numpy(zero_copy_only=False))


def _in_two_splits(group: pa.Array, split: pa.Array) -> np.ndarray:
    """Rows of groups that are in more than one split."""
    codes, splits = group.indices.to_numpy(), split.indices.to_numpy()
    first = np.zeros(len(group.dictionary), splits.dtype)
    first[codes[::-1]] = splits[::-1]  # the last to be written is the first row's
    both = np.zeros(len(group.dictionary), bool)
    both[codes[first[codes] != splits]] = True
    return np.flatnonzero(both[codes])


def _under_two_labels(arrays: Arrays) -> np.ndarray:
    """Rows whose bytes also stand in another split or under another label, by their digests."""
    digests = arrays["sha256"]
    if pa.types.is_dictionary(digests.type):  # of a manifest that has none
        there = np.zeros(len(digests), bool)
    else:
        there = pc.is_valid(digests).to_numpy(zero_copy_only=False)
    if not there.all():
        print(
            f"{(~there).sum():,} of {len(there):,} rows have no sha256: the same bytes in two splits, or under two "
            "labels, are not looked for among them. `adapt prepare` writes digests; `adapt audit` compares pixels"
        )
    rows = np.flatnonzero(there)
    if not len(rows):
        return rows
    data = np.frombuffer(digests.buffers()[1], np.uint8, 32 * len(digests), 32 * digests.offset).reshape(-1, 32)
    keys = data[rows, :8].copy().view(np.uint64).ravel()  # two that agree in these are compared as a whole
    kinds = arrays["split"].indices.to_numpy()[rows].astype(np.int64) * 2 + _is(arrays["generator"], ["real"])[rows]
    order = np.argsort(keys, kind="stable")
    keys, kinds = keys[order], kinds[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    mixed = np.minimum.reduceat(kinds, starts) != np.maximum.reduceat(kinds, starts)
    of_run = np.repeat(mixed, np.diff(np.r_[starts, len(keys)]))
    return np.sort(rows[order[of_run]])


def _digest(arrays: Arrays) -> str:
    """What `Manifest.digest` is: SHA-256 over the rows as lines of JSON, which whole columns are joined to."""
    names = ["path", "group", "generator", "split", "set", "edit", "sha256"] + ["mask"] * _any(arrays["mask"])
    digest, count = hashlib.sha256(), len(arrays["path"])
    comma, begin, end, nothing = (pa.scalar(text, pa.large_string()) for text in ('", "', '["', '"]\n', ""))
    words = [arrays[name].dictionary for name in names if pa.types.is_dictionary(arrays[name].type)]
    plain = all(map(_is_plain, words))
    for start in range(0, count, DIGESTED):
        parts = {name: arrays[name][start : start + DIGESTED] for name in names}
        if plain and all(_is_plain(part) for part in parts.values() if pa.types.is_large_string(part.type)):
            lines = pc.binary_join_element_wise(*map(_text, parts.values()), comma)
            digest.update(memoryview(pc.binary_join_element_wise(begin, lines, end, nothing).buffers()[2]))
        else:
            for row in zip(*map(_column, parts.values()), strict=True):
                digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _is_plain(texts: pa.Array) -> bool:
    """Whether JSON writes all of them as they are."""
    return bool(pc.all(pc.match_substring_regex(texts, PLAIN)).as_py())


def _text(array: pa.Array) -> pa.Array:
    """Cells as `large_string`; digests in hex."""
    if not pa.types.is_fixed_size_binary(array.type):
        return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    if array.null_count:
        return pa.array(_column(array).tolist(), pa.large_string())
    data = binascii.hexlify(array.buffers()[1][32 * array.offset : 32 * (array.offset + len(array))])
    ends = 64 * np.arange(len(array) + 1, dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(array), pa.py_buffer(ends), pa.py_buffer(data))

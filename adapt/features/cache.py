"""Features of images, encoded once, ever: a cache on disk that every head reads.

    CACHE/<space>/fingerprint.json        everything that made these features
    CACHE/<space>/<sha256>.safetensors    their rows (adapt/features/shards.py)
    CACHE/<space>/verified/               which of those were found whole (adapt/features/verified.py)
    CACHE/files/                          digests of files that need not be read again (adapt.data.digests)

A space is one (encoder, layer, precision, view, library versions). An image is known by the SHA-256 of its bytes, so a
cache serves every manifest that holds the image; under a view that is drawn for each group (a chain) by that of its
bytes and the group's name. Images of a shard that is damaged are encoded again.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from adapt import provenance, stop
from adapt.data.chains import CHAINS
from adapt.data.digests import Digests
from adapt.data.feed import feed
from adapt.data.groups import Images, join_views
from adapt.data.images import Unreadable
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Prepare
from adapt.data.views import parse_view
from adapt.errors import Refusal
from adapt.features.shards import Shard, Space, shards_of, stored
from adapt.features.verified import whole
from adapt.files import write_text
from adapt.processes import Gather, alone, dealt, gather_words
from adapt.progress import bar
from adapt.stop import Stopped
from adapt.threads import in_threads

FORMAT = 1
# of the file, not of the image
OF_THE_FILE = ("missing", "not-a-file", "no-access", "io-error", "bad-archive", "not-at-offset", "sha256-mismatch")
MAKERS = ("torch", "torchvision", "open_clip_torch", "transformers", "timm", "numpy", "pillow")


class Encoder(Protocol):
    """What makes features: a `Backbone`, or a descriptor without weights."""

    @property
    def name(self) -> str: ...

    @property
    def layer(self) -> str: ...

    @property
    def preprocess(self) -> Prepare:
        """What is done where an image is decoded."""

    @property
    def device(self) -> torch.device:
        """Where `encode` wants what `preprocess` made."""

    def encode(self, pixels: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """What `preprocess` made, (n, ...) -> features (n, d) of every layer, from one pass."""

    def identity(self, layer: str) -> dict[str, object]:
        """All that decides these features."""

    def eval(self) -> object:
        """Before encoding."""


@dataclass(frozen=True)
class Features:
    """Features of the rows of a manifest under views, on disk. Made by `extract`."""

    manifest: Manifest
    views: tuple[str, ...]
    layers: tuple[str, ...]
    ids: np.ndarray  # (n,) 32 raw bytes of each content; zeros for a file that could not be opened
    missing: dict[int, str]  # row -> why its file could not be opened
    spaces: dict[tuple[str, str], Space]  # by layer and view

    def select(self, rows: np.ndarray, manifest: Manifest) -> "Features":
        """Features of these rows, as those of a manifest that holds the same images in this order."""
        if list(self.manifest["file"][rows]) != list(manifest["file"]):
            raise ValueError("the manifest does not hold the images of these rows")
        missing = {place: self.missing[row] for place, row in enumerate(rows) if row in self.missing}
        return replace(self, manifest=manifest, ids=self.ids[rows], missing=missing)

    def reasons(self, view: str) -> np.ndarray:
        """(n,) object: "" where the image has features under this view, else why not."""
        space = self.spaces[self.layers[0], parse_view(view).name]
        keys = keys_of(self.ids, self.manifest["group"], view)
        why = np.array([space.reasons.get(key.tobytes(), "") for key in keys], dtype=object)
        for row, reason in self.missing.items():
            why[row] = reason
        return why

    def take(self, rows: np.ndarray, views: str | np.ndarray, layer: str | None = None) -> np.ndarray:
        """Features (len(rows), d) float32 of readable rows, under one view or under one view a row.

        Refuses features that are not finite, naming the first image.
        """
        layer = layer or self.layers[0]
        views = np.full(len(rows), views, dtype=object) if isinstance(views, str) else views
        out: np.ndarray | None = None
        for view in dict.fromkeys(views):
            here = np.flatnonzero(views == view)
            keys = keys_of(self.ids[rows[here]], self.manifest["group"][rows[here]], view)
            found = self.spaces[layer, parse_view(view).name].take(keys)
            if out is None:
                out = np.empty((len(rows), found.shape[1]), np.float32)
            out[here] = found
        if out is None:
            raise Refusal("no readable image is left: the reasons stand in the table of scores or above")
        if not np.isfinite(out).all():
            bad = np.flatnonzero(~np.isfinite(out).all(axis=1))
            path = self.manifest["path"][rows[bad[0]]]
            raise Refusal(
                f"{len(bad)} images have features that are not finite, such as {path!r}: use --precision fp32"
            )
        return out

    def unit(self, view: str) -> np.ndarray:
        """Features (n, d) float32 of all rows at unit length, NaN where there are none."""
        rows = np.flatnonzero(self.reasons(view) == "")
        found = self.take(rows, view)
        out = np.full((len(self.manifest), found.shape[1]), np.nan, np.float32)
        out[rows] = found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12)
        return out


@dataclass(frozen=True)
class Joined:
    """Features of several encoders side by side, each of unit length if its place in `unit` says so."""

    parts: tuple[Features, ...]
    unit: tuple[bool, ...]

    @property
    def manifest(self) -> Manifest:
        return self.parts[0].manifest

    def reasons(self, view: str) -> np.ndarray:
        """As those of `Features`: the first part that lacks an image says why."""
        first, *others = (part.reasons(view) for part in self.parts)
        for reasons in others:
            first = np.where(first == "", reasons, first)
        return first

    def take(self, rows: np.ndarray, views: str | np.ndarray, layer: str | None = None) -> np.ndarray:
        """Features (len(rows), sum of the dims) float32; each part has its own layer."""
        blocks = [part.take(rows, views) for part in self.parts]
        lengths = (np.linalg.norm(block, axis=1, keepdims=True).clip(1e-12) for block in blocks)
        return np.hstack([b / n if unit else b for b, n, unit in zip(blocks, lengths, self.unit, strict=True)])


def keys_of(ids: np.ndarray, groups: np.ndarray, view: str) -> np.ndarray:
    """Names (n,) of images in the space of a view, 32 raw bytes each; `ids` are those of their contents."""
    if not parse_view(view).drawn:
        return ids
    pairs = zip(ids, groups, strict=True)
    keys = [hashlib.sha256(content.tobytes() + group.encode("utf-8", "surrogateescape")) for content, group in pairs]
    return np.array([np.frombuffer(key.digest(), "V32")[0] for key in keys], "V32")


def feature_cache() -> Path:
    """`$ADAPT_CACHE/features`, by default ~/.cache/adapt/features."""
    return Path(os.environ.get("ADAPT_CACHE") or Path.home() / ".cache" / "adapt") / "features"


def fingerprint(encoder: Encoder, layer: str, view: str) -> dict[str, object]:
    """Everything that changes a feature; its digest names the space."""
    versions = provenance.versions()
    return {
        "format": FORMAT,
        "encoder": encoder.identity(layer),
        "view": parse_view(view).name,
        **({"chains": CHAINS} if parse_view(view).drawn else {}),
        "versions": {name: versions[name] for name in MAKERS},
    }


def space_folder(cache: Path, encoder: Encoder, layer: str, view: str) -> Path:
    """Where the features of this encoder, layer and view lie."""
    return cache / _digest(fingerprint(encoder, layer, view))[:32]


def state_room(
    cache: Path, folders: Sequence[Path], images: int, each: int, say: Callable[[str], object], why: str, remedy: str
) -> None:
    """Say how much disk the features of `images` images take, `each` bytes in each of the spaces' folders; refuse if
    the disk lacks it. `why`: what asks for it."""
    total = images * len(folders) * each
    there = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    above = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(above).free
    size = f"{images} images x {len(folders)} views x {each / 1e3:.1f} kB = {total / 1e9:.2f} GB"
    say(f"{why}: {size} in {cache}, {there / 1e9:.2f} GB of it there; {free / 1e9:.2f} GB free")
    if total - there > free:
        raise Refusal(
            f"{why}: {size}, of which {there / 1e9:.2f} GB are there, and {free / 1e9:.2f} GB are free in "
            f"{cache}: set ADAPT_CACHE to a larger disk, {remedy}"
        )


def extract(
    encoder: Encoder,
    manifest: Manifest,
    views: Sequence[str],
    layers: Sequence[str] = (),
    *,
    cache: Path | None = None,
    batch_size: int = 32,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    gather: Gather = alone,
    cached_only: bool = False,
    say: Callable[[str], object] | None = None,
    encode: "Callable[..., list[tuple[int, str]]] | None" = None,
) -> Features:
    """Features of every row under every view, from the cache where they are there, encoded where they are not.

    `layers` are read from one pass of the encoder (default: the backbone's own). `share` (rank, world) splits the
    work over processes, `gather` joins their lists. With `cached_only` nothing is encoded: what is missing is
    refused. `say` gets one line about what was found, encoded and unreadable. `encode` takes the place of `_encode`.
    """
    views = tuple(dict.fromkeys(parse_view(view).name for view in views))
    layers = tuple(dict.fromkeys(layers)) or (encoder.layer,)
    cache = feature_cache() if cache is None else Path(cache)
    folders = {(a, v): space_folder(cache, encoder, a, v) for a in layers for v in views}
    if share[1] > 1:  # each process reads a part of what has no mark, and `_identify` waits for all
        for folder in folders.values():
            whole(folder, shards_of(folder)[share[0] :: share[1]])
    ids, missing = _identify(manifest, share, gather, cache / "files")
    spaces = {key: Space.open(folder) for key, folder in folders.items()}

    keys = {view: keys_of(ids, manifest["group"], view) for view in views}
    first = np.unique(np.concatenate([np.unique(of_view, return_index=True)[1] for of_view in keys.values()]))
    rows = np.setdiff1d(
        first, list(missing)
    )  # one row for each content that can be opened, and where drawn each group
    absent = {(layer, view): space.find(keys[view][rows]) < 0 for (layer, view), space in spaces.items()}
    wanted = np.array([np.any([absent[layer, view] for layer in layers], axis=0) for view in views])  # (views, rows)
    todo = int(wanted.any(axis=0).sum())
    if todo and cached_only:
        raise Refusal(
            f"{todo} of {len(rows)} images have no features in {cache} for {encoder.name}, layer "
            f"{' '.join(layers)}, views {' '.join(views)}, with these library versions: run `adapt extract` with "
            "the same flags first (a cache of another manifest, weights or version does not serve)"
        )
    lost: list[tuple[int, str]] = []
    if todo:
        for (layer, view), folder in folders.items():
            if not (folder / "fingerprint.json").is_file():
                write_text(folder / "fingerprint.json", json.dumps(fingerprint(encoder, layer, view), indent=1) + "\n")
        lost = (encode or _encode)(
            encoder, manifest, keys, rows, wanted, absent, folders, views, layers, batch_size, workers, share, say
        )
    # All processes meet here, also those that had nothing to do: until then not all shards are published.
    for row, reason in zip(
        gather(np.array([row for row, _ in lost], dtype=np.int64)).tolist(),
        gather_words(gather, [reason for _, reason in lost]),
        strict=True,
    ):
        missing |= dict.fromkeys(np.flatnonzero(ids == ids[row]).tolist(), reason)
    if todo:
        spaces = {key: Space.open(folder) for key, folder in folders.items()}
    features = Features(manifest, views, layers, ids, missing, spaces)
    if say:
        say(f"features: {len(rows)} images x {len(views)} views, {len(rows) - todo} images found in the cache")
        bad = {manifest["path"][row]: why for v in views for row, why in enumerate(features.reasons(v)) if why}
        for path, why in list(bad.items())[:1]:
            say(f"unreadable: {len(bad)} images, such as {path!r} ({why})")
    return features


class Found:
    """What an extraction has encoded: it goes to the shards of the spaces that lack it.

    `folders` and `absent`, which of the images `rows` a space lacks, are by layer and view, `keys` by view. `lost`:
    rows whose file could not be opened after all, and why.
    """

    def __init__(
        self,
        folders: Mapping[tuple[str, str], Path],
        absent: Mapping[tuple[str, str], np.ndarray],
        keys: Mapping[str, np.ndarray],
        rows: np.ndarray,
    ) -> None:
        self.absent, self.keys, self.rows = absent, keys, rows
        self.shards = {key: Shard(folder) for key, folder in folders.items()}
        self.lost: list[tuple[int, str]] = []

    def add(
        self,
        places: np.ndarray,
        views: Sequence[str],
        reasons: Sequence[Sequence[str]],
        features: Mapping[str, np.ndarray],
    ) -> None:
        """Features (n, views, d) of every layer, as `stored` makes them, of the images at `places` (n,) of `rows`;
        `reasons` of each image under each view, "" where it has features."""
        of_rows = self.rows[places]
        self.lost += [(int(row), why[0]) for row, why in zip(of_rows, reasons, strict=True) if why[0] in OF_THE_FILE]
        for layer, found in features.items():
            for v, view in enumerate(views):
                lacks = self.absent[layer, view][places]
                kept = [i for i, why in enumerate(reasons) if lacks[i] and why[v] not in OF_THE_FILE]
                self.shards[layer, view].add(
                    self.keys[view][of_rows[kept]], found[kept, v], [reasons[i][v] for i in kept]
                )

    @contextlib.contextmanager
    def published(self) -> Iterator[None]:
        """At the end, and where a SIGTERM ends it, all is in the cache."""
        try:
            yield
        except Stopped:
            with stop.whole():
                self._publish()
            raise
        self._publish()

    def _publish(self) -> None:
        for shard in self.shards.values():
            shard.publish()


@torch.no_grad()
def _encode(
    encoder: Encoder,
    manifest: Manifest,
    keys: Mapping[str, np.ndarray],
    rows: np.ndarray,
    wanted: np.ndarray,
    absent: dict[tuple[str, str], np.ndarray],
    folders: dict[tuple[str, str], Path],
    views: Sequence[str],
    layers: Sequence[str],
    batch_size: int,
    workers: int,
    share: tuple[int, int],
    say: Callable[[str], object] | None,
) -> list[tuple[int, str]]:
    """Decode each image once for the views it lacks, encode, and publish shards as they fill."""
    device, rank = encoder.device, share[0]
    mine = np.arange(len(rows))[rank :: share[1]]
    mine = mine[wanted[:, mine].any(axis=0)]
    found = Found(folders, absent, keys, rows)
    progress = bar(say is not None, total=len(mine), unit="image", desc="encoding", leave=False)
    encoder.eval()
    with found.published():
        for pattern in np.unique(wanted[:, mine], axis=1).T:  # images that lack the same views
            here = mine[(wanted[:, mine] == pattern[:, None]).all(axis=0)]
            needed = tuple(view for view, lacks in zip(views, pattern, strict=True) if lacks)
            images = Images(manifest, rows[here], encoder.preprocess, needed)
            loader = feed(images, device, workers, join_views, batch_size=max(1, batch_size // len(needed)))
            done = 0
            for batch in loader:
                with stop.whole():
                    count = len(batch.rows)
                    made = encoder.encode(batch.pixels.to(device, non_blocking=True), layers)
                    of_layers = {layer: stored(x.view(count, len(needed), -1).cpu()) for layer, x in made.items()}
                    found.add(here[done : done + count], needed, batch.reasons, of_layers)
                    done += count
                    progress.update(count)
    if share[1] > 1:
        for shard in found.shards.values():
            whole(shard.folder, shard.published)  # marked here, they are not read by every process
    progress.close()
    return found.lost


def _identify(manifest: Manifest, share: tuple[int, int], gather: Gather, folder: Path) -> tuple[np.ndarray, dict]:
    """The SHA-256 of every row's bytes, (n,) 32 raw bytes, and why a file could not be opened, by row.

    A digest in the manifest is believed here: reading checks it before an image is encoded. So is one in `folder`.
    """
    rows = range(share[0], len(manifest), share[1])
    ids, reasons = np.zeros(len(rows), "V32"), [""] * len(rows)
    given = [bytes.fromhex(manifest["sha256"][row]) for row in rows]
    unknown = [place for place, found in enumerate(given) if not found]
    with contextlib.closing(Digests(folder)) as known:

        def digest(place: int) -> bytes | str:
            row = rows[place]
            try:
                return known.of(manifest["file"][row], manifest.place(row))
            except Unreadable as problem:
                return str(problem)

        hashed = dict(zip(unknown, in_threads(digest, unknown), strict=True))
    for place, found in enumerate(given):
        if isinstance(value := found or hashed[place], str):
            reasons[place] = value
        else:
            ids[place] = np.frombuffer(value, "V32")[0]
    why = dealt(gather_words(gather, reasons), share[1])
    missing = {int(row): why[row] for row in np.flatnonzero(why != "")}
    return dealt(gather(ids), share[1]), missing


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

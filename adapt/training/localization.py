"""A localiser on rows of a manifest: scores, pictures for TensorBoard, its page."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from adapt.data.families import read_families
from adapt.data.feed import feed
from adapt.data.images import Unreadable, read_image
from adapt.data.manifest import Manifest
from adapt.data.masked_groups import mask_of
from adapt.data.masks import CHANGED, extents
from adapt.data.views import parse_view
from adapt.detector.detector import as_scores
from adapt.detector.localizer import Found, Localizer, locate, strips
from adapt.detector.overlay import heat
from adapt.evaluation.map_metrics import BINS, Maps, bins_of, confusion, edge, evaluate_maps, pick_bin
from adapt.evaluation.metrics import Difference
from adapt.evaluation.replicates import distinct
from adapt.evaluation.scores import Scores
from adapt.files import atomic
from adapt.models.adapters.lora import merged
from adapt.pages.map_tables import map_sections, write_map_tables
from adapt.processes import Gather, alone, dealt, gather_words
from adapt.progress import bar
from adapt.training.report import Adds, keep_scores, report
from adapt.training.run import Run
from adapt.training.scored import Kept

SHOWN = 6  # validation images on TensorBoard
MAPS, BY_ROW = (
    "maps.safetensors",
    ("extents", "tools", "changed", "unchanged"),
)  # file beside scores.parquet, row by row
PARTLY = "part:"  # before the generator's name in the scores of a composite: cells of their own beside whole fakes


def scored_as(rows: Manifest) -> Manifest:
    """The same rows, those of which a generator changed a part under a generator of their own, `part:NAME`."""
    part, families = rows.fake & (rows["mask"] != ""), read_families(manifest=rows)
    names = np.where(part, PARTLY + rows["generator"], rows["generator"])
    family = np.array([families.of(generator) for generator in rows["generator"]], dtype=object)
    return Manifest(rows.columns | {"generator": names, "family": family})


class _Joined(NamedTuple):
    """What `_Whole` gives of several images, joined where it was made, though they differ in size."""

    rows: list[int]
    reasons: list[str]  # this and what follows: image by image, of each its views
    masks: list[np.ndarray | None]
    shapes: list[tuple[int, ...]]  # (0,) where there are no pixels
    pixels: Tensor  # all of them, flat


def _joined(items: Sequence[tuple[int, list[tuple[str, Tensor | None, np.ndarray | None]]]]) -> _Joined:
    rows, made = zip(*items, strict=True)
    reasons, images, masks = zip(*(each for of_image in made for each in of_image), strict=True)
    tensors = [torch.empty(0, dtype=torch.uint8) if image is None else image for image in images]
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    return _Joined([*rows], [*reasons], [*masks], [tuple(tensor.shape) for tensor in tensors], flat)


class _Whole(Dataset):
    """Item i: row, then (reason, pixels, mask) of row `rows[i]` under each view; decoded once."""

    def __init__(self, localizer: Localizer, manifest: Manifest, rows: np.ndarray, views: tuple[str, ...]) -> None:
        # without the localiser itself: its weights would travel to every data process
        self.manifest, self.rows, self.views = manifest, rows, [parse_view(name) for name in views]
        self.tiling = localizer.tiling

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[int, list[tuple[str, Tensor | None, np.ndarray | None]]]:
        row = int(self.rows[i])
        made: list[tuple[str, Tensor | None, np.ndarray | None]] = []
        try:
            image = read_image(self.manifest["file"][row], self.manifest["sha256"][row], self.manifest.place(row))
            mask = mask_of(self.manifest, row, image)
        except Unreadable as problem:
            return row, [(str(problem), None, None)] * len(self.views)
        for view in (view.of(self.manifest["group"][row]) for view in self.views):
            try:
                made.append(("", self.tiling(view(image)), np.asarray(view.follow(mask)) >= CHANGED))
            except Unreadable as problem:
                made.append((str(problem), None, None))
        return row, made


def score_maps(
    localizer: Localizer,
    manifest: Manifest,
    rows: np.ndarray,
    views: tuple[str, ...],
    tool: np.ndarray,
    *,
    batch_size: int = 16,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    gather: Gather = alone,
    progress: str | None = None,
) -> Maps:
    """Maps and decisions on rows of the manifest under every view; an unreadable file is a row that says why.

    `tool` names what made or changed each row of the whole manifest. `share` and `gather` as in `detector.score`.
    """
    localizer.eval()
    views = tuple(dict.fromkeys(views))
    data, device = _Whole(localizer, manifest, rows[share[0] :: share[1]], views), localizer.detector.backbone.device
    loader = feed(data, device, workers, _joined, batch_size=max(1, batch_size // len(views)))
    lines: list[tuple] = []  # of each image, under each view
    shown = bar(progress is not None and share[0] == 0, total=len(rows[share[0] :: share[1]]), unit="image",
                desc=progress, leave=False)  # fmt: skip
    with merged(localizer.detector.backbone):
        for numbers, why_not, masks, shapes, pixels in loader:
            parts = pixels.to(device, non_blocking=True).split([math.prod(shape) for shape in shapes])
            images = [part.view(shape) if len(part) else None for part, shape in zip(parts, shapes, strict=True)]
            results = _locate_all(localizer, images)
            lines += [_statistics(*each) for each in zip(why_not, masks, results, strict=True)]
            shown.update(len(numbers))
    shown.close()
    reasons, fake, extent, tools, changed, unchanged = map(list, zip(*lines, strict=True)) if lines else [[]] * 6
    count = len(localizer.head.tools)
    of_extents, of_tools = (
        np.array([v if v is not None else np.full(k, np.nan) for v in values], np.float64).reshape(-1, k)
        for values, k in ((extent, 3), (tools, count))
    )
    of_changed, of_unchanged = (np.array(counts, np.uint32).reshape(-1, BINS) for counts in (changed, unchanged))

    def whole(own: np.ndarray) -> np.ndarray:
        """The rows of all processes in the order of the images, each with its views."""
        return dealt(gather(own.reshape(-1, len(views), *own.shape[1:])), share[1])

    why = dealt(gather_words(gather, reasons).reshape(len(rows), len(views)), share[1])
    repeated = np.repeat(rows, len(views))
    of_extents, of_tools, of_changed, of_unchanged = (
        whole(own).reshape(-1, *own.shape[1:]) for own in (of_extents, of_tools, of_changed, of_unchanged)
    )
    return Maps(
        as_scores(scored_as(manifest), rows, views, whole(np.array(fake, np.float64))[:, :, None], why),
        extents(manifest)[repeated], tool[repeated], of_extents, of_tools, localizer.head.tools,
        of_changed, of_unchanged,
    )  # fmt: skip


def _locate_all(localizer: Localizer, images: list[Tensor | None]) -> list[Found | None]:
    """`locate`, images of one size together."""
    shapes: dict[tuple, dict[int, Tensor]] = {}
    for place, image in enumerate(images):
        if image is not None:
            shapes.setdefault(tuple(image.shape), {})[place] = image
    results: list[Found | None] = [None] * len(images)
    for alike in shapes.values():
        for place, one in zip(alike, locate(localizer, torch.stack([*alike.values()])), strict=True):
            results[place] = one
    return results


def _statistics(reason: str, mask: np.ndarray | None, found: Found | None) -> tuple:
    """reason, AI logit, extent and tool logits, histograms of the changed and of the other pixels."""
    counts = np.zeros((2, BINS), np.int64)
    if found is None or mask is None:
        return reason, np.nan, None, None, *counts
    for first, logits in strips(found.map, found.pitch, *mask.shape):
        bins, own = bins_of(logits), mask[first : first + len(logits)]
        counts += [np.bincount(bins[own == kind], minlength=BINS) for kind in (True, False)]
    return reason, found.fake, found.extent, found.tools, *counts


def show_maps(run: Run, localizer: Localizer, rows: Manifest, which: np.ndarray, view: str) -> None:
    """Some partly modified images beside their masks and maps, to TensorBoard."""
    if not run.main:
        return
    chosen = [row for row in which if rows["mask"][row]]
    chosen = chosen[:: max(1, len(chosen) // SHOWN)][:SHOWN]
    for place, row in enumerate(chosen):
        try:
            image = read_image(rows["file"][row], rows["sha256"][row], rows.place(row))
            drawn = parse_view(view).of(rows["group"][row])
            mask = drawn.follow(mask_of(rows, row, image))
            image = drawn(image)
        except Unreadable:
            continue
        found = locate(localizer.eval(), localizer.tiling(image)[None])[0]
        panels = [image, mask.convert("RGB"), heat(found, image.size)]
        picture = np.concatenate([np.asarray(panel) for panel in panels], axis=1)
        with run.track.writing() as writer:
            writer.add_image(f"maps/{place}", picture, run.step_number, dataformats="HWC")


def report_maps(
    run: Run,
    localizer: Localizer,
    rows: Manifest,
    maps: Maps,
    resamples: int,
    adds: Adds,
    *,
    train_views: Sequence[str],
    facts: Mapping[str, object],
) -> None:
    """Freeze the map's threshold on validation rows, keep the maps, then write what every run writes.

    `adds` is `of_maps` of these rows.
    """
    start = pick_bin(maps)
    localizer.head.threshold.fill_(edge(start))
    localizer.detector.freeze(maps.scores)
    facts, kept = {"map_threshold": edge(start), **facts}, Kept(run.folder, notes={"tools": maps.names})
    if run.main:
        keep_scores(run, localizer.detector, rows, maps.scores, train_views=train_views, facts=facts)
        with atomic(run.folder / MAPS) as temporary:
            save_file({name: getattr(maps, name) for name in BY_ROW}, temporary)
    report(
        run, localizer.detector, rows, maps.scores, resamples, adds, kept,
        train_views=train_views, facts=facts,
    )  # fmt: skip


def of_maps(
    rows: Manifest, tool: np.ndarray, resamples: int, seed: int, scores: Scores, kept: Kept
) -> tuple[list[Difference], list[str]]:
    """What maps add to a page; writes their tables. `tool` as in `score_maps`; the maps lie beside the scores."""
    held = np.flatnonzero(rows["split"] != "train")
    row, by_row = np.repeat(held, len(distinct(scores["view"]))), load_file(kept.folder / MAPS)
    names = tuple(cast("list[str]", kept.notes["tools"]))
    maps = Maps(scores, extents(rows)[row], tool[row], names=names, **by_row)
    rates, confused = evaluate_maps(maps, pick_bin(maps), resamples, seed), confusion(maps)
    write_map_tables(rates, *confused, kept.folder)
    return [], map_sections(rates, *confused)

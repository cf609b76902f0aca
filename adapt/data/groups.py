"""Batches of whole groups for training, and single images under many views for scoring.

Every random choice is a function of (seed, epoch, group): the number of workers, of processes and of restarts never
changes what a model sees.
"""

import copy
import dataclasses
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from adapt.data.archives import archives_of_groups, shuffled
from adapt.data.crops import Crops
from adapt.data.focus import Focus
from adapt.data.images import Unreadable, read_bytes, read_image
from adapt.data.jpeg import read_header
from adapt.data.manifest import Manifest
from adapt.data.preprocess import Prepare, Preprocess
from adapt.data.views import View, parse_view, rng
from adapt.stop import end_with_parent


@dataclass
class Batch:
    """Images of whole groups, side by side; a group's members share one view and one crop position."""

    inputs: Tensor  # of the model that is trained: pixels (n, 3, h, w) uint8, or cached features (n, d)
    fake: Tensor  # (n,) float32: 1 is AI-generated
    weight: Tensor  # (n,) float32: balances real and fake over the training set, mean 1
    label: Tensor  # (n,) int64: number of the class, 0 is real; -1 is none of the head's classes
    class_weight: Tensor  # (n,) float32: balances the classes of `label`, mean 1
    group: Tensor  # (n,) int64
    twin: Tensor  # (n,) bool: the same images once more, in the same order, under another view
    unreadable: list[tuple[str, str]]  # (path, reason) of the members that could not be read

    def to(self, device: torch.device) -> Self:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with every tensor changed, those of a subclass too."""
        copied = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(copied, name, change(value))
        return copied


@dataclass(frozen=True)
class ClassLabels:
    """The class of each training row, and what it weighs: n / (C n_c) in class c, for n rows and C classes with rows.

    So every class has the same sum of weights, real too, and the mean is 1 (`class_weight="balanced"` of scikit-learn,
    as of the heads on frozen features).
    """

    number: np.ndarray  # (n,) int64: 0 is real, -1 no class

    @property
    def weight(self) -> np.ndarray:
        """(n,) float64, 0 for no class."""
        known = self.number >= 0
        counts = np.bincount(self.number[known])
        each = len(self.number) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return np.where(known, each[self.number], 0.0)

    def shown(self, group: np.ndarray, rows: np.ndarray, scale: np.ndarray, fake: np.ndarray) -> np.ndarray:
        """Weights (n,) of `rows` that stand for a group: reals those of `scale`, fakes together what its fakes have.

        Its fakes are of other classes than those that are shown. Were each image's own weight kept, a rare class that
        is shown often would outweigh all others.
        """
        weight = self.weight
        found, fakes = weight[rows] * scale, fake[rows]
        found[fakes] = weight[group][fake[group]].sum() / max(1, fakes.sum())
        return found


class Groups(Dataset):
    """Training data: item (epoch, g) is group g under the view and the crop drawn for that epoch.

    With `twins` every image comes a second time at the same place under another of the views. With `focus` some groups
    show a cell instead. With `own_quality` every member but the photograph is first compressed at the JPEG quality of
    the photograph's file, as DDA does, so that the history of the files tells nothing; a photograph that is no JPEG
    leaves them as they are. Drawn chains reach their full strength in epoch `ramp`, evenly from the first on.
    """

    def __init__(
        self,
        manifest: Manifest,
        preprocess: Preprocess,
        views: tuple[str, ...],
        seed: int,
        twins: bool = False,
        focus: Focus | None = None,
        labels: ClassLabels | None = None,
        own_quality: bool = False,
        ramp: int = 0,
    ) -> None:
        if twins and focus:
            raise ValueError("a group that shows a cell stands under the view of that cell only")
        self.manifest = manifest
        self.preprocess = preprocess
        self.views = [parse_view(name) for name in views]
        self.seed = seed
        self.groups = manifest.groups()
        self.fake = manifest.fake
        self.twins, self.focus, self.own_quality, self.ramp = twins, focus, own_quality, ramp
        self.weight = class_weights(self.fake)
        self.labels = labels or ClassLabels(self.fake.astype(np.int64))
        self.class_weight = self.labels.weight
        self.group_weight = len(self.fake) / len(self.groups)  # mean of the summed weights of a group
        self.archive = archives_of_groups(manifest["file"], self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, g = key
        rows = self.groups[g]
        group = self.manifest["group"][rows[0]]
        draw = rng(self.seed, epoch, group)
        shown = self.focus.choose(rows, draw) if self.focus else None
        views = [shown.view] if shown else draw_views(self.views, draw, self.twins)
        rows, scale = shown[:2] if shown else (rows, np.ones(len(rows)))
        photograph, quality = self._photograph(self.groups[g]) if self.own_quality else (None, None)
        share = min(1.0, (epoch + 1) / max(1, self.ramp))
        steps = [self.views[view].of(group, epoch, share) for view in views]
        at, crop_at = (draw.random(), draw.random()), (draw.random(), draw.random())
        pixels: list[list[Tensor]] = [[] for _ in views]
        read, unreadable = [], []
        for place, row in enumerate(rows):
            try:
                image = read_image(self.manifest["file"][row], self.manifest["sha256"][row], self.manifest.place(row))
                if quality is not None and row != photograph:
                    image = parse_view(f"qf{quality}")(image)
                made = [self.preprocess(view(image, at), crop_at) for view in steps]
            except Unreadable as problem:
                unreadable.append((self.manifest["path"][row], str(problem)))
                continue
            read.append(place)
            for under_view, tensor in zip(pixels, made, strict=True):
                under_view.append(tensor)
        size = self.preprocess.size
        stacked = [torch.stack(p) if p else torch.empty(0, 3, size, size, dtype=torch.uint8) for p in pixels]
        of_class = self.labels.shown(self.groups[g], rows, scale, self.fake) if shown else self.class_weight[rows]
        rows, scale, of_class = rows[read], scale[read], of_class[read]
        weight, label = self.weight[rows] * scale, self.labels.number[rows]
        return make_batch(torch.cat(stacked), self.fake[rows], weight, g, len(views), unreadable, label, of_class)

    def _photograph(self, rows: np.ndarray) -> tuple[int | None, int | None]:
        """The unedited real row of a group, and the JPEG quality of its file; None where there is none."""
        plain = [row for row in rows if not self.fake[row] and not self.manifest["edit"][row]]
        if not plain:
            return None, None
        try:
            header = read_header(read_bytes(self.manifest["file"][plain[0]], self.manifest.place(plain[0])))
        except Unreadable:
            return plain[0], None  # which is counted where it is read
        return plain[0], header.jpeg_quality


def class_weights(fake: np.ndarray) -> np.ndarray:
    """(n,) weights with mean 1 that give both classes half of the sum."""
    share = fake.mean()
    return np.where(fake, 0.5 / share, 0.5 / (1 - share))


def draw_views(views: Sequence, draw: random.Random, twins: bool) -> list[int]:
    """Place in `views` of a group's view, and with `twins` of a second one that differs where there is another.

    A view that stands there several times is drawn as many times as often.
    """
    first = draw.randrange(len(views))
    if not twins:
        return [first]
    others = [place for place, view in enumerate(views) if view != views[first]] or [first]
    return [first, others[draw.randrange(len(others))]]


def make_batch(
    inputs: Tensor,
    fake: np.ndarray,
    weight: np.ndarray,
    g: int,
    copies: int,
    unreadable: list[tuple[str, str]],
    label: np.ndarray | None = None,
    class_weight: np.ndarray | None = None,
) -> Batch:
    """A batch of one group whose rows stand `copies` times in `inputs`, the weights shared by the copies.

    Without a `label` the classes are real and fake, with `weight`.
    """
    label, of_class = fake if label is None else label, weight if class_weight is None else class_weight
    return Batch(
        inputs=inputs,
        fake=torch.tensor(fake, dtype=torch.float32).repeat(copies),
        weight=torch.tensor(weight / copies, dtype=torch.float32).repeat(copies),
        label=torch.tensor(label, dtype=torch.int64).repeat(copies),
        class_weight=torch.tensor(of_class / copies, dtype=torch.float32).repeat(copies),
        group=torch.full((copies * len(fake),), g),
        twin=torch.arange(copies * len(fake)) >= len(fake),
        unreadable=unreadable,
    )


def collate(items: list[Batch]) -> Batch:
    """One batch of several groups. A batch without any image gets a blank one of weight 0: every process must step."""
    names = [name for name, value in vars(items[0]).items() if isinstance(value, Tensor)]
    joined = {name: torch.cat([getattr(item, name) for item in items]) for name in names}
    if not len(joined["fake"]):
        joined = {name: value.new_zeros(1, *value.shape[1:]) for name, value in joined.items()}
    return dataclasses.replace(items[0], **joined, unreadable=[each for item in items for each in item.unreadable])


def heed_main_process(_: int) -> None:
    """For data workers: schedulers and Ctrl-C signal a whole process group, but only the main process may decide to
    stop, after its checkpoint; workers end when it does, however it ends."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    end_with_parent()


class GroupSampler(Sampler):
    """Micro-batches of (epoch, group) keys for one process, from any optimizer step on.

    An epoch is a permutation of the groups drawn from (seed, epoch), cut into steps of `per_step` groups over all
    processes; the remainder that fills no step is left out, another one each epoch. One step is `accumulation`
    micro-batches of equal size in each process. `steps_per_epoch` ends an epoch earlier. `archive` is the number of
    each group's tar file, where groups lie in some: of more than a few only some are read from at a time (`shuffled`).
    """

    def __init__(
        self,
        groups: int,
        per_step: int,
        epochs: int,
        seed: int,
        accumulation: int,
        rank: int,
        world: int,
        start: int,
        steps_per_epoch: int | None = None,
        archive: np.ndarray | None = None,
    ) -> None:
        self.archive = archive
        self.groups, self.per_step, self.epochs, self.seed = groups, min(per_step, groups), epochs, seed
        self.accumulation, self.rank, self.world, self.start = accumulation, rank, world, start
        self.steps_per_epoch = min(groups // self.per_step, steps_per_epoch or groups)

    def __len__(self) -> int:
        return (self.epochs * self.steps_per_epoch - self.start) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        drawn, order = -1, np.empty(0, np.int64)
        for step in range(self.start, self.epochs * self.steps_per_epoch):
            epoch, position = divmod(step, self.steps_per_epoch)
            if epoch != drawn:
                drawn, order = epoch, shuffled(self.groups, self.archive, np.random.default_rng((self.seed, epoch)))
            chosen = order[position * self.per_step : (position + 1) * self.per_step]
            for part in np.array_split(chosen, self.world * self.accumulation)[self.rank :: self.world]:
                yield [(epoch, int(g)) for g in part]


class Statistics(Protocol):
    """Statistics (d,) float32 of an RGB image."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(d,)"""

    def __call__(self, image: Image.Image) -> Tensor:
        """Raises `Unreadable` where an image has none."""


@dataclass
class Views:
    """One image under every requested view; where a view could not be made, a blank and the reason."""

    row: int
    pixels: Tensor  # (views, 3, h, w) uint8, or what else `preprocess` makes of an image; all crops of all views
    reasons: list[str]  # "" where there are pixels
    crops: list[int]  # how many of each view
    described: Tensor  # (views, d) float32: statistics of the whole image, d = 0 where none are asked for


class ViewBatch(NamedTuple):
    """`Views` of several images, joined where they were made: on its way from a data process each tensor holds a file
    descriptor, and there are few."""

    rows: list[int]
    pixels: Tensor  # image by image
    reasons: list[list[str]]  # of each image, by view
    crops: list[list[int]]
    described: Tensor  # (images * views, d)


def join_views(items: Sequence[Views]) -> ViewBatch:
    """What `Images` gives, as the `collate_fn` of a loader."""
    return ViewBatch(
        [item.row for item in items],
        torch.cat([item.pixels for item in items]),
        [item.reasons for item in items],
        [item.crops for item in items],
        torch.cat([item.described for item in items]),
    )


class Images(Dataset):
    """Scoring data: item i is row `rows[i]` of the manifest, decoded once and put under all views.

    `describe` makes statistics of the whole image, before `preprocess` resizes it.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: np.ndarray,
        preprocess: Prepare,
        views: tuple[str, ...],
        describe: Statistics | None = None,
    ) -> None:
        self.manifest, self.rows, self.preprocess, self.describe = manifest, rows, preprocess, describe
        self.views = [parse_view(name) for name in views]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Views:
        row = int(self.rows[i])
        made = [torch.zeros(self.preprocess.shape, dtype=self.preprocess.dtype)] * len(self.views)
        described = [torch.zeros(self.describe.shape if self.describe else 0)] * len(self.views)
        reasons = [""] * len(self.views)
        try:
            image = read_image(self.manifest["file"][row], self.manifest["sha256"][row], self.manifest.place(row))
            prepared = self._prepare(image)
            for v, view in enumerate(self.views):
                try:
                    made[v], described[v] = prepared(view.of(self.manifest["group"][row]))
                except Unreadable as problem:
                    reasons[v] = str(problem)
        except Unreadable as problem:
            reasons = [str(problem)] * len(self.views)
        if isinstance(self.preprocess, Crops):
            return Views(row, torch.cat(made), reasons, [len(crops) for crops in made], torch.stack(described))
        return Views(row, torch.stack(made), reasons, [1] * len(made), torch.stack(described))

    def _prepare(self, image: Image.Image) -> Callable[[View], tuple[Tensor, Tensor]]:
        """What makes a tensor of the image under a view, and its statistics."""
        preprocess, describe = self.preprocess, self.describe or (lambda _: torch.zeros(0))
        if isinstance(preprocess, Preprocess) and preprocess.resizer == "torch":
            pixels = np.array(image)  # this one takes arrays, which spares copies to Pillow and back

            def of_array(view: View) -> tuple[Tensor, Tensor]:
                seen = view.pixels(pixels)
                return preprocess(seen), describe(Image.fromarray(seen))

            return of_array

        def of_image(view: View) -> tuple[Tensor, Tensor]:
            seen = view(image)
            return preprocess(seen), describe(seen)

        return of_image

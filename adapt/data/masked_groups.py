"""Training batches of whole groups in which some images are changed in part only."""

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from adapt.data.archives import archives_of_groups
from adapt.data.groups import Batch, draw_views
from adapt.data.images import Unreadable, read_image
from adapt.data.manifest import Manifest
from adapt.data.masks import CHANGED, GENERATED, PART, REAL, extents, read_mask
from adapt.data.views import parse_view, rng


@dataclass
class MaskedBatch(Batch):
    """Crops of images of whole groups with what was changed in them. All weights are 1, blanks have 0."""

    changed: Tensor  # (n, h, w) float32: the share of each cell that was changed
    extent: Tensor  # (n,) int64: which of EXTENTS the crop is
    tool: Tensor  # (n,) int64: the number of what made or changed what the crop shows, 0 is nothing


class MaskedGroups(Dataset):
    """Training data: item (epoch, g) is at most `members` images of group g under one view and one crop.

    Which ones is drawn so that untouched, generated, partly generated and ordinarily edited images come equally
    often; the view's compression comes behind the compositing, and the mask follows its geometry.
    """

    def __init__(
        self,
        manifest: Manifest,
        tool: np.ndarray,
        views: tuple[str, ...],
        crop: int,
        pitch: int,
        members: int,
        seed: int,
    ) -> None:
        self.manifest, self.tool, self.pitch, self.members, self.seed = manifest, tool, pitch, members, seed
        self.views, self.side = [parse_view(name) for name in views], crop
        self.crop = parse_view(f"crop{crop}")
        self.extent = extents(manifest)
        self.groups = manifest.groups()
        self.archive = archives_of_groups(manifest["file"], self.groups)
        self.group_weight = float(np.mean([min(members, len(rows)) for rows in self.groups]))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: tuple[int, int]) -> MaskedBatch:
        epoch, g = key
        group = self.manifest["group"][self.groups[g][0]]
        draw = rng(self.seed, epoch, group)
        view = self.views[draw_views(self.views, draw, False)[0]].of(group, epoch)
        at, crop_at = (draw.random(), draw.random()), (draw.random(), draw.random())
        rows, pixels, changed, unreadable = [], [], [], []
        for row in self._members(self.groups[g], draw):
            try:
                image = read_image(self.manifest["file"][row], self.manifest["sha256"][row], self.manifest.place(row))
                mask = self.crop.follow(view.follow(mask_of(self.manifest, row, image), at), crop_at)
                image = self.crop(view(image, at), crop_at)
            except Unreadable as problem:
                unreadable.append((self.manifest["path"][row], str(problem)))
                continue
            rows.append(row)
            pixels.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
            changed.append(torch.from_numpy(_shares(np.asarray(mask), self.pitch)))
        if not rows:
            pixels.append(torch.empty(0, 3, self.side, self.side, dtype=torch.uint8))
            changed.append(torch.empty(0, self.side // self.pitch, self.side // self.pitch))
            return self._batch(g, rows, pixels[0], changed[0], unreadable)
        return self._batch(g, rows, torch.stack(pixels), torch.stack(changed), unreadable)

    def _batch(
        self, g: int, rows: list[int], pixels: Tensor, changed: Tensor, unreadable: list[tuple[str, str]]
    ) -> MaskedBatch:
        """Labels by what the crops show: a crop without the region is real, one inside it is generated, or, edited
        all over as a processed photograph is, real."""
        fake, part = torch.tensor(self.manifest.fake[rows]), torch.tensor(self.extent[rows] == PART)
        share, count = changed.mean(dim=(1, 2)), len(rows)
        nothing = part & ((share == 0) | ((share == 1) & ~fake))
        extent = torch.tensor(self.extent[rows]).masked_fill(part & (share == 1), GENERATED).masked_fill(nothing, REAL)
        return MaskedBatch(
            inputs=pixels,
            fake=fake.float(),
            weight=torch.ones(count),
            label=fake.long(),
            class_weight=torch.ones(count),
            group=torch.full((count,), g),
            twin=torch.zeros(count, dtype=torch.bool),
            unreadable=unreadable,
            changed=changed.masked_fill(nothing[:, None, None], 0),
            extent=extent,
            tool=torch.tensor(self.tool[rows]).masked_fill(nothing, 0),
        )

    def _members(self, rows: np.ndarray, draw: Random) -> list[int]:
        """At most `members` rows, one of each kind in turn."""
        kinds: dict[tuple, list[int]] = {}
        for row in draw.sample(rows.tolist(), len(rows)):
            kinds.setdefault((int(self.extent[row]), bool(self.manifest.fake[row])), []).append(row)
        order = draw.sample(sorted(kinds), len(kinds))
        turns = [kinds[kind][turn : turn + 1] for turn in range(len(rows)) for kind in order]
        return [row for members in turns for row in members][: self.members]


def _shares(mask: np.ndarray, pitch: int) -> np.ndarray:
    """Grey mask (h, w) -> share of each cell that was changed (h / pitch, w / pitch) float32."""
    height, width = (length // pitch for length in mask.shape)
    changed = (mask >= CHANGED).reshape(height, pitch, width, pitch)
    return changed.mean(axis=(1, 3), dtype=np.float32)


def mask_of(manifest: Manifest, row: int, image: Image.Image) -> Image.Image:
    """Grey mask of a row: of its file, else all white for a generated image and all black for a real one."""
    if manifest["mask"][row]:
        return read_mask(manifest.mask_files[row], image.size)
    return Image.new("L", image.size, 255 if manifest["generator"][row] != "real" else 0)

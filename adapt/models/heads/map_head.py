"""A head that shows where: patch tokens -> a map of logits, and from the map what the whole image is.

The tokens of a tile become `cells` on their own, if asked beside `Residuals` of its pixels; `read` then sees the cells
of the whole image, stitched: its convolutions run across the borders of tiles, and the mean over all cells tells each
of them what the rest looks like.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapt.data.masks import EXTENTS
from adapt.errors import Refusal


class Residuals(nn.Module):
    """Pixels (n, 3, h, w) uint8 -> traces (n, 4 * channels, h / pitch, w / pitch) float32 of their finest detail.

    What is left without the 3 x 3 mean, through two convolutions; then mean and root mean square over each cell. A
    second stream beside content, for what a tower has learnt to overlook, as the noise stream of 1805.04953, section
    3.2; here the filters behind the first are learnt.
    """

    AT_ONCE = 16  # images: at full resolution their activations are large

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 5, padding=2)
        self.second = nn.Conv2d(channels, 2 * channels, 3, padding=1)

    def forward(self, pixels: Tensor, pitch: int) -> Tensor:
        return torch.cat([self._traces(some.float() / 2, pitch) for some in pixels.split(self.AT_ONCE)])

    def _traces(self, x: Tensor, pitch: int) -> Tensor:
        x = x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
        x = F.gelu(self.second(F.gelu(self.first(x))))
        return torch.cat([F.avg_pool2d(x, pitch), (F.avg_pool2d(x * x, pitch) + 1e-6).sqrt()], dim=1)


class MapHead(nn.Module):
    """Patch tokens -> logits of "changed" for each cell; logits of the extents and of the tools for the image.

    `dim` is the length of all parts' tokens together, `residual` the channels of `Residuals`, 0 for none. `tools`
    names what makes or changes images: `real` first, then generators (or families), then ordinary edits, `edit:NAME`.
    `threshold` is the logit from which a cell counts as changed, frozen on validation data.
    """

    threshold: Tensor

    def __init__(self, dim: int, tools: Sequence[str], hidden: int = 48, residual: int = 0) -> None:
        super().__init__()
        self.tools, self.hidden, self.residual = tuple(tools), hidden, residual
        self.residuals = Residuals(residual) if residual else None
        self.project = nn.Linear(dim + 4 * residual, hidden)
        self.rest = nn.Linear(hidden, hidden)
        self.near = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.wide = nn.Conv2d(hidden, hidden, 3, padding=2, dilation=2)
        self.cell = nn.Linear(hidden, 1)
        self.sharpness = nn.Parameter(torch.ones(()))
        self.extent = nn.Linear(2 * hidden + 2, len(EXTENTS))
        self.tool = nn.Linear(2 * hidden + 2, len(self.tools))
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        raise Refusal("a localiser looks at whole images, not at one crop: use `adapt predict --maps`")

    def cells(self, patches: Sequence[Tensor], pixels: Tensor) -> Tensor:
        """Tokens (n, d, s, s) of each part, and their pixels -> cells (n, hidden, s, s) on the finest of the grids.

        Each part is scaled to unit root mean square: whatever their lengths, one learning rate fits. Coarser grids
        are repeated, not interpolated: on a GPU the gradient of that is reproducible.
        """
        side = max(tokens.shape[-1] for tokens in patches)
        unit = [F.normalize(tokens, dim=1) * tokens.shape[1] ** 0.5 for tokens in patches]
        same = [t if t.shape[-1] == side else F.interpolate(t, size=(side, side)) for t in unit]
        if self.residuals is not None:
            same.append(self.residuals(pixels, pixels.shape[-1] // side))
        return self.project(torch.cat(same, dim=1).movedim(1, -1)).movedim(-1, 1)

    def read(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cells (n, hidden, h, w) of whole images -> map (n, h, w), extents (n, 3), tools (n, t): all logits.

        The image's logits are linear in a pooling with learnt sharpness: the mean over the cells, the mean weighted
        by softmax(sharpness * map), the same of the map's logits, and the mean of the map's probabilities.
        """
        rest = self.rest(cells.mean(dim=(2, 3)))[:, :, None, None]
        found = F.gelu(cells + rest)
        found = found + F.gelu(self.near(found))
        found = found + F.gelu(self.wide(found))
        flat = found.flatten(2)
        logits = self.cell(flat.transpose(1, 2)).squeeze(-1)
        weight = (self.sharpness * logits).softmax(dim=1)
        where, share = (weight * logits).sum(dim=1), logits.sigmoid().mean(dim=1)
        pooled = torch.cat([flat.mean(dim=2), (flat * weight[:, None]).sum(dim=2)], dim=1)
        pooled = torch.cat([pooled, where[:, None], share[:, None]], dim=1)
        return logits.unflatten(1, cells.shape[2:]), self.extent(pooled), self.tool(pooled)

    def fake(self, tools: Tensor) -> Tensor:
        """Logits of the tools (n, t) -> logit of "by a generator" (n,) against real and ordinary edits together."""
        ai = torch.tensor([is_ai(name) for name in self.tools], device=tools.device)
        return tools[:, ai].logsumexp(dim=1) - tools[:, ~ai].logsumexp(dim=1)

    def describe(self) -> dict[str, Any]:
        """The head's type and what rebuilds it, for detector.json."""
        return {"type": "map", "tools": list(self.tools), "hidden": self.hidden, "residual": self.residual}


def is_ai(tool: str) -> bool:
    """Whether a tool is a generator or a family of them."""
    return tool != "real" and not tool.startswith("edit:")

"""A head that shows where: patch tokens -> a map of logits, and from the map what the whole image is.

The tokens of a tile become `cells` on their own; `read` then sees the cells of the whole image, stitched: its
convolutions run across the borders of tiles, and the mean over all cells tells each of them what the rest looks like.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapt.data.masks import EXTENTS
from adapt.errors import Refusal


class MapHead(nn.Module):
    """Patch tokens -> logits of "changed" for each cell; logits of the extents and of the tools for the image.

    `dim` is the length of all parts' tokens together. `tools` names what makes or changes images: `real` first, then
    generators (or families), then ordinary edits, `edit:NAME`. `threshold` is the logit from which a cell counts as
    changed, frozen on validation data.
    """

    def __init__(self, dim: int, tools: Sequence[str], hidden: int = 48) -> None:
        super().__init__()
        self.tools, self.hidden = tuple(tools), hidden
        self.project = nn.Linear(dim, hidden)
        self.rest = nn.Linear(hidden, hidden)
        self.near = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.wide = nn.Conv2d(hidden, hidden, 3, padding=2, dilation=2)
        self.cell = nn.Linear(hidden, 1)
        self.sharpness = nn.Parameter(torch.ones(()))
        self.extent = nn.Linear(2 * hidden + 2, len(EXTENTS))
        self.tool = nn.Linear(2 * hidden + 2, len(self.tools))
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        raise Refusal("a localiser looks at whole images, not at one crop: use recipes/predict.py --maps")

    def cells(self, patches: Sequence[Tensor]) -> Tensor:
        """Tokens (n, d, s, s) of each part -> cells (n, hidden, s, s) on the finest of the grids.

        Each part is scaled to unit root mean square: whatever their lengths, one learning rate fits. Coarser grids
        are repeated, not interpolated: on a GPU the gradient of that is reproducible.
        """
        side = max(tokens.shape[-1] for tokens in patches)
        unit = [F.normalize(tokens, dim=1) * tokens.shape[1] ** 0.5 for tokens in patches]
        same = [t if t.shape[-1] == side else F.interpolate(t, size=(side, side)) for t in unit]
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
        return {"type": "map", "tools": list(self.tools), "hidden": self.hidden}


def is_ai(tool: str) -> bool:
    """Whether a tool is a generator or a family of them."""
    return tool != "real" and not tool.startswith("edit:")

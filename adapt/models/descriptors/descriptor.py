"""Statistics of an image as an encoder of `adapt.features.cache`: no weights, computed where images are decoded."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image


class Descriptor:
    """`describe` gives the statistics (d,) float32, called `names`, of an RGB image.

    `layer` tells descriptors of one kind apart; `version` is raised when the same image gives other numbers.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(
        self, name: str, layer: str, names: Sequence[str], describe: Callable[[Image.Image], np.ndarray], version: int
    ) -> None:
        self.name, self.layer, self.names, self.version = name, layer, tuple(names), version
        self.preprocess, self.shape, self._describe = self, (len(self.names),), describe

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(self._describe(image))

    def encode(self, described: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """They are the features already."""
        return {self.layer: described}

    def identity(self, layer: str) -> dict[str, object]:
        """The names of the statistics and the version of their definition."""
        return {"descriptor": self.name, "layer": layer, "version": self.version, "names": list(self.names)}

    def eval(self) -> "Descriptor":
        return self

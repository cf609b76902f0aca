"""Complete networks that lie in a detector's own folder: from images to the outputs that a head reads.

    onnx:tower/network.onnx[@OUTPUT]         see onnx.py
    torchscript:tower/network.pt[@OUTPUT]    see torchscript.py; OUTPUT is a number, or the key of a dict
    tiny_ladeda:tower/network.safetensors    see tiny_ladeda.py

Such a network is a backbone of depth 0: its outputs (n, d) are `proj` and `last`, there are no blocks and no patches.
Its name is relative to the folder, and one of these three whatever the folder says.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapt.data.preprocess import Preprocess
from adapt.errors import Refusal
from adapt.files import atomic, require_regular, sha256
from adapt.models.towers.backbones import LARGEST, Backbone
from adapt.models.towers.onnx import Onnx
from adapt.models.towers.tiny_ladeda import TinyLaDeDa
from adapt.models.towers.tokens import End, Loaded, Tokens
from adapt.models.towers.torchscript import TorchScript
from adapt.text import one_line

NETWORKS = {  # where a detector's folder has them
    "onnx": "tower/network.onnx",
    "torchscript": "tower/network.pt",
    "tiny_ladeda": "tower/network.safetensors",
}
WIDEST = 16  # numbers per image: two are what a head reads


class Complete(nn.Module):
    """Normalised pixels (n, 3, h, w) -> the outputs (n, d) of a stranger's network, of which `file` is all."""

    digest: Tensor  # of the file: it stands for weights and code

    def __init__(self, network: nn.Module, file: Path, output: str | None) -> None:
        super().__init__()
        self.network, self.file, self.output = network, file, output
        self.register_buffer("digest", torch.frombuffer(bytearray.fromhex(sha256(file)), dtype=torch.uint8))

    def forward(self, pixels: Tensor) -> Tensor:
        found = self._chosen(self.network(pixels.float()))
        if not isinstance(found, Tensor) or not found.ndim or len(found) != len(pixels):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise Refusal(f"{self.file} gives {shape} for {len(pixels)} images: expected a row of numbers for each")
        rows = found.reshape(len(pixels), -1).float()
        if not 1 <= rows.shape[1] <= WIDEST or found.is_complex():
            raise Refusal(f"{self.file} gives {tuple(found.shape[1:])} per image: expected one number or two")
        return rows

    def _chosen(self, found: Any) -> Any:
        """One of several outputs, by its number or by its key."""
        if isinstance(found, Tensor) and (self.output is None or isinstance(self.network, Onnx)):
            return found
        several = {str(i): one for i, one in enumerate(found)} if isinstance(found, list | tuple) else found
        if not isinstance(several, dict) or self.output not in several:
            known = ", ".join(map(str, several)) if isinstance(several, dict) else "one"
            raise Refusal(
                f"{self.file} has the outputs {known}: choose one with --output_name, or leave it out for one"
            )
        return several[self.output]


def read_network(library: str, file: Path, preprocess: Preprocess, output: str | None = None) -> Backbone:
    """The backbone whose tower is a network of this kind (see above), in `file` wherever that lies.

    Normalisation is left to `Backbone.prepare_by`. Refuses what cannot be read, or would do more than to compute.
    """
    tower: nn.Module
    sides = preprocess.size, preprocess.shortest
    if not all(type(side) is int and 1 <= side <= LARGEST for side in sides):
        raise Refusal(f"{file}: images of {sides[0]} px out of {sides[1]} px: sides are whole numbers up to {LARGEST}")
    try:
        require_regular(file)
        with file.open("rb"):
            pass
    except OSError as error:
        raise Refusal(f"{file}: cannot be read ({error.strerror})") from error
    if library == "tiny_ladeda":
        tower = _tiny_ladeda(file)
    else:
        own = Onnx(file, preprocess.size, output) if library == "onnx" else TorchScript(file)
        tower = Complete(own, file, output)
    return complete_backbone(library, tower, preprocess, output)


def complete_backbone(library: str, tower: nn.Module, preprocess: Preprocess, output: str | None = None) -> Backbone:
    """A backbone of depth 0 around a network that is in memory."""
    name = f"{library}:{NETWORKS[library]}" + ("" if output is None else f"@{output}")
    return Backbone(name, Loaded(tower, preprocess, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0, True, _walk), "proj")


def load_network(name: str, folder: Path, preprocess: Preprocess, layer: str) -> Backbone:
    """The complete network of a saved detector; refuses a name that means another place than its own."""
    library, _, place = name.partition(":")
    place, at, output = place.partition("@")
    if place != NETWORKS[library] or layer != "proj":
        raise Refusal(f"{folder / 'detector.json'}: {name}, layer {layer}, is not {library}:{NETWORKS[library]}, proj")
    return read_network(library, folder / place, preprocess, output if at else None)


def save_network(backbone: Backbone, folder: Path) -> str | None:
    """Put the file of a complete network into a detector's folder; returns its place there, None of other towers."""
    library, tower = backbone.name.partition(":")[0], backbone.tower
    if library not in NETWORKS:
        return None
    target = folder / NETWORKS[library]
    target.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(tower, Complete):
        with atomic(target) as temporary:
            save_file({name: value.cpu().contiguous() for name, value in tower.state_dict().items()}, temporary)
    elif not (target.exists() and target.samefile(tower.file)):
        with atomic(target) as temporary:
            shutil.copyfile(tower.file, temporary)
    return NETWORKS[library]


def _walk(tower: nn.Module, pixels: Tensor, _: Collection[int], end: bool) -> tuple[dict[int, Tokens], End | None]:
    """See adapt.models.towers.tokens.Walk; there is the end alone."""
    found = tower(pixels)
    return {}, End(found, found[:, None, :0], found) if end else None


def _tiny_ladeda(file: Path) -> nn.Module:
    tower = TinyLaDeDa()
    try:
        tower.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise Refusal(f"{file} does not hold a Tiny-LaDeDa: {one_line(str(error), 200)}") from error
    return tower

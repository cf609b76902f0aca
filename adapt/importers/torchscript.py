"""Any complete network as a TorchScript file (torch.jit.save), traced or scripted.

    adapt import torchscript FILE --name NAME --size 224 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 \\
        --output_is fake_logit
    adapt import torchscript FILE --name NAME ... --resize shortest --shortest 256 --interpolation bilinear

The file is not given to torch, which would run its code while reading it. Its weights and its code are read as data,
each operator must be one of tensor arithmetic, and what it asks for beside that is refused by name before anything is
computed (adapt/models/towers/torchscript.py). Networks of a library's own operators are exported to ONNX instead.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.importers.network import Network

if TYPE_CHECKING:
    from adapt.detector.detector import Detector


@dataclass(frozen=True, kw_only=True)
class Source(Network):
    """A network of TorchScript."""

    def detector(self, tower: str) -> "Detector":
        """The detector; it stands on no other tower."""
        return self.read("torchscript")

"""Any complete network as one ONNX file, run by ONNX Runtime on the CPU (extra `export`).

    adapt import onnx FILE --name NAME --size 224 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 \\
        --output_is fake_logit
    adapt import onnx FILE --name NAME ... --resize shortest --shortest 256 --interpolation bilinear
    adapt import onnx FILE --name NAME ... --licence MIT --paper arXiv:... --source ADDRESS

Its one input is float32 (n, 3, h, w), with n free or 1. --output_is says what its output means; the logit follows
exactly. Refused are weights in other files, operators that are not ONNX's own, loops, and random numbers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.importers.network import Network

if TYPE_CHECKING:
    from adapt.detector.detector import Detector


@dataclass(frozen=True, kw_only=True)
class Source(Network):
    """A network of ONNX."""

    def detector(self, tower: str) -> "Detector":
        """The detector; it stands on no other tower."""
        return self.read("onnx")

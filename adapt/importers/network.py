"""What the importers of complete networks share: how images enter, and what the outputs mean."""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from adapt.cli import at_least
from adapt.errors import Refusal
from adapt.importers.weights import File
from adapt.published import ITS_OWN, Published, published

if TYPE_CHECKING:
    from adapt.data.preprocess import Geometry
    from adapt.detector.detector import Detector

NOT_STATED = "not stated"
GEOMETRIES: "dict[str, Geometry]" = {"shortest": "resize", "squash": "squash", "none": "native"}
OutputIs = Literal[  # as adapt/models/heads/output.py, which is not imported for --help
    "fake_logit",
    "real_logit",
    "fake_probability",
    "real_probability",
    "real_fake_logits",
    "fake_real_logits",
    "real_fake_probabilities",
    "fake_real_probabilities",
]


@dataclass(frozen=True, kw_only=True)
class Network(File):
    """Flags of any complete network: nothing of it is guessed."""

    name: str  # of the detector: it goes onto the card, and `--detector NAME` then means it
    size: int  # side of the images that it takes, in pixels
    mean: tuple[float, float, float]  # of red, green, blue on the scale 0..1; it gets (pixels - mean) / std
    std: tuple[float, float, float]  # 1 1 1 with mean 0 0 0: numbers from 0 to 1
    output_is: OutputIs  # of AI-generated (fake) or not (real); of two outputs, in their order
    output_name: str | None = None  # which of several outputs; of a tuple its number, from 0
    resize: Literal["shortest", "squash", "none"] = "shortest"  # scale the short side, or both, or only crop
    shortest: int | None = None  # length of the short side, of which the centre is cropped; None: as --size
    interpolation: Literal["bicubic", "bilinear"] = "bilinear"  # of the resize
    licence: str = NOT_STATED  # of the network; it goes onto the card, as --paper and --source
    paper: str = NOT_STATED
    source: str = NOT_STATED  # where the file is from

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "size")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name) or self.name in published():
            raise Refusal(f"--name {self.name}: give letters, digits, _ . and -, and no name of `adapt detectors`")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise Refusal(f"--std {' '.join(map(str, self.std))}: give three numbers above 0, and a finite --mean")
        if self.shortest is not None and (self.resize != "shortest" or self.shortest < self.size):
            raise Refusal(f"--shortest {self.shortest}: give at least --size, and leave it out with another --resize")

    @property
    def known(self) -> Published:
        """A row as those of published detectors."""
        return Published(
            self.name, self.name, self.paper, ITS_OWN, self.licence, self.source, NOT_STATED, "a complete network"
        )

    def read(self, library: str) -> "Detector":
        """The detector whose backbone is the network, by the library that runs it."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.heads.output import Output
        from adapt.models.towers.networks import read_network

        preprocess = Preprocess(
            self.size, self.shortest or self.size, self.interpolation, GEOMETRIES[self.resize], pad="zero"
        )
        backbone = read_network(library, self.weights, preprocess, self.output_name)
        backbone.prepare_by(preprocess, self.mean, self.std)
        try:
            head = Output(backbone.dim, self.output_is)
        except ValueError as error:
            raise Refusal(f"--output_is {error}: choose another, or another --output_name") from error
        return Detector(backbone, head)

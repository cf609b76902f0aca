"""Read a published detector's weights into a detector's folder, which every command then takes.

    adapt import univfd fc_weights.pth
    adapt import NAME FILE --output detector/
    adapt import onnx FILE --name NAME --size 224 ...     (or torchscript: any complete network)
    adapt import NAME --help

Preprocessing is that of the authors, and so is the threshold, p = 0.5: nothing is fitted. Weights are read as data
(nothing in a file is run), and what does not fit is refused by its name. Licence and source go onto the card. Where
the file holds a head alone, the tower's own weights must be at hand, too; a tower that the authors trained comes with
the file, and goes into the folder. `adapt detectors` lists what each needs. Without --output the folder is
results/runs/detectors/NAME, and `--detector NAME` then means it.

Detectors:
"""

import sys
from typing import TYPE_CHECKING

from adapt.cli import run_one
from adapt.published import importers

if TYPE_CHECKING:
    from adapt.importers.weights import File


def main(source: "File") -> None:
    from adapt.importers.weights import write_detector

    known = source.known
    detector, folder = write_detector(source)
    preprocess = detector.backbone.preprocess
    print(f"{known.method} ({known.paper}), licence {known.licence}: {known.weights}")
    facts = "; ".join(f"{key} {value}" for key, value in preprocess.facts().items())
    print(f"images: {facts}; an image is called fake from logit {detector.threshold:g} on, as published")
    print(f"{folder}: the detector; next: adapt predict --detector {folder} --input FOLDER")


def command() -> None:
    """Parse the command line and run; the second word may be the file."""
    if len(sys.argv) > 2 and not sys.argv[2].startswith("-"):
        sys.argv.insert(2, "--weights")
    run_one(importers(), main, "detector")

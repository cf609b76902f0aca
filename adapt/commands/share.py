"""Share a detector: as a repository on the Hugging Face hub, or as one ONNX file.

    adapt share --detector results/lora/detector --push OWNER/NAME
    adapt share --detector results/lora/detector --onnx detector.onnx --images photos/

A push uploads detector.json, the safetensors of head and adapter, and the card; log in with `hf auth login` first.
Everybody then loads it by `load_detector("hf-hub:OWNER/NAME")` and by `--detector hf-hub:OWNER/NAME`. The ONNX file
has the adapter merged and the head included: `pixels` (n, 3, size, size) uint8 -> `logit` (n,); it is compared with
torch on random pixels and on the first --images, and kept only if no logit differs by more than 0.001. Needs the extra
`export`. Time: 20 s for `tiny` on one core. Expected: a largest difference of about 1e-6.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.cli import at_least
from adapt.cli import run as run_recipe
from adapt.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


@dataclass(frozen=True)
class Config:
    detector: Path  # folder of a saved detector, or hf-hub:OWNER/NAME[@REVISION]
    push: str | None = None  # OWNER/NAME on the hub; created if it does not exist
    private: bool = False  # a repository that is created is visible to its owner only
    onnx: Path | None = None  # ONNX file to write
    images: tuple[str, ...] = ()  # folders or files: pictures on which ONNX and torch are compared
    count: int = 16  # how many of these pictures
    backbone: str | None = None  # another place of the detector's base weights

    def __post_init__(self) -> None:
        at_least(1, self, "count")
        if self.push is None and self.onnx is None:
            raise Refusal("nothing to do: give --push OWNER/NAME or --onnx FILE")


def main(cfg: Config) -> None:
    from adapt.detector.detector import Saved
    from adapt.hub import push_to_hub

    if cfg.onnx is not None:
        export(cfg, cfg.onnx)
    if cfg.push is not None:
        Saved.read(cfg.detector)  # refuses one that is damaged, and that nobody could load
        print(f"{push_to_hub(cfg.detector, cfg.push, cfg.private)}: detector at hf-hub:{cfg.push}")


def export(cfg: Config, file: Path) -> None:
    import itertools

    from adapt.data.images import Unreadable, read_image
    from adapt.data.inputs import find_inputs
    from adapt.detector.detector import load_detector
    from adapt.detector.export import export_onnx

    detector = load_detector(cfg.detector, cfg.backbone, precision="fp32")

    def pictures() -> "Iterator[Tensor]":
        for item in find_inputs(cfg.images)[1] if cfg.images else ():
            try:
                if not item.reason:
                    yield detector.backbone.preprocess(read_image(item.file, item.sha256, item.place))
            except Unreadable:  # whoever wants to know why asks `adapt predict`
                continue

    chosen = list(itertools.islice(pictures(), cfg.count))
    preprocess, threshold = detector.backbone.preprocess, detector.threshold
    worst = export_onnx(detector, file, chosen)
    print(
        f"{file}: largest difference of a logit between ONNX Runtime and torch {worst:.2g}, on 6 random and "
        f"{len(chosen)} real images\n"
        f"feed RGB, {preprocess.geometry} to {preprocess.size} px ({preprocess.interpolation}), uint8; from "
        f"{threshold:.6g} on a logit says AI-generated"
    )


def command() -> None:
    """Parse the command line and run."""
    run_recipe(main, Config)

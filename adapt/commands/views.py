"""List what can be done to an image before it is judged, or show a picture under each of it.

    adapt views
    adapt views --output views.png                           (a photograph of the embedded world)
    adapt views --output views.png --image photo.jpg --views qf40 avif50 messenger chain3:1

A view is a name for --train_views, --test_views and --views: steps joined by `+`, from left to right. Without --output
a table is printed: each step, the range of its number, and what it does. With it a picture is written that shows the
central crop of --side px under each view. A chain is drawn as for a group that is named like the file. Time: seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.cli import at_least, run
from adapt.errors import Refusal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = (  # one strong step of each operation
    *(
        "none",
        "qf40",
        "jpeg40-444",
        "jpeg40-422",
        "webp30",
        "avif20",
        "jp2k60",
        "resize64",
        "scale0.4",
        "scale0.5only",
    ),
    *(
        "screenshot240",
        "rotate10",
        "hflip",
        "vflip",
        "hvflip",
        "pad",
        "blur1.5",
        "noise15",
        "bright0.6",
        "contrast0.5",
    ),
    *("saturate2.5", "gamma2", "grey", "shuffle16", "hue90", "lowpass0.1", "highpass0.1"),
    *("messenger", "social", "cms", "chain3:1", "chain3:2"),
)
COLUMNS = 7


@dataclass(frozen=True)
class Config:
    output: Path | None = None  # picture to write, .png
    image: Path | None = None  # of which; None: a photograph of the embedded world
    views: tuple[str, ...] = SHOWN  # that are shown
    side: int = 96  # px of the crop that is shown

    def __post_init__(self) -> None:
        at_least(16, self, "side")


def main(cfg: Config) -> None:
    from adapt.pages.drawing import save_png

    if cfg.output is None:
        print(listing())
        return
    if cfg.output.suffix != ".png":
        raise Refusal(f"--output {cfg.output}: end its name in .png")
    image = cfg.image or photograph()
    save_png(figure(image, cfg.views, cfg.side), cfg.output)
    print(f"{cfg.output}: {len(cfg.views)} views of {image}")


def photograph() -> Path:
    """A test photograph of the embedded world."""
    from adapt.embedded import read_manifests

    rows = read_manifests(["embedded"])
    plain = (rows["split"] == "test") & ~rows.fake & (rows["edit"] == "")
    return Path(rows["file"][plain][3])


def listing() -> str:
    """All operations as a table, then the services and chains."""
    from adapt.data.chains import LONGEST
    from adapt.data.views import DELIVERIES, OPS, spelling
    from adapt.pages.tables import grid

    rows = [["step", "from", "to", "does"]]
    for op, about in OPS.items():
        ends = ["", ""] if about.low is None else [f"{about.low:g}", f"{about.high:g}"]
        rows.append([spelling(op), *ends, about.meaning])
    rows += [[name, "", "", f"as {steps}"] for name, steps in DELIVERIES.items()]
    rows.append(["chainK:SEED", "1", f"{LONGEST}", "K steps, drawn for each group"])
    return grid(rows) + "\n\nnone is the image as it is; steps are joined with +: resize256+qf40"


def figure(file: Path, names: "tuple[str, ...]", side: int) -> "Figure":
    """The central crop under each view, enlarged without smoothing."""
    from matplotlib.figure import Figure
    from PIL import Image

    from adapt.data.images import Unreadable, read_image
    from adapt.data.views import parse_view

    views = [parse_view(name) for name in names]
    try:
        image = read_image(file)
    except Unreadable as problem:
        raise Refusal(f"--image {file}: {problem.reason}: give an image") from problem
    rows = -(-len(views) // COLUMNS)
    drawn = Figure(figsize=(1.35 * COLUMNS, 1.6 * rows), layout="constrained")
    panels = drawn.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, view in zip(panels, views, strict=False):
        steps = view.of(file.name)
        try:
            seen = steps(image)
            left, top = (seen.width - side) // 2, (seen.height - side) // 2
            crop = seen.crop((left, top, left + side, top + side))
        except Unreadable as problem:
            crop = Image.new("RGB", (side, side), (255, 255, 255))
            axes.text(0.5, 0.5, problem.reason, ha="center", transform=axes.transAxes, fontsize=7)
        axes.imshow(crop, interpolation="nearest")
        axes.set_title(
            view.name if steps is view else f"{view.name}\n{steps.name.replace('+', '+' + chr(10), 1)}", fontsize=6
        )
    for axes in panels:
        axes.set_axis_off()
    return drawn


def command() -> None:
    """Parse the command line and run."""
    run(main, Config)

"""Count the JPEG qualities of a sample: files per quality, subsampling, tables and format.

    adapt quality --input photos/ --output_dir results/runs/quality
    python recipes/lora.py --train_views like:photos/ ...          (train under the views that stand for the sample)

Reads headers only; --input as for `adapt predict`. Prints a table; qualities.csv and qualities.png hold the same. A
quality is that of the nearest tables of the IJG's libjpeg, exact where the tables are `standard`; `custom` ones (many
cameras, Photoshop, mozjpeg) come with their distance. Time: some 600 files per second on one core.

The last line says which views stand for the sample: the `qfNN` of its files, `none` for other formats, each repeated
as often as it shall be drawn. There are at most 20 names, so neighbours represent what is rarer than one in 40.
`like:FOLDER` among --train_views becomes these names, and config.yaml holds them. A training image that is already a
JPEG is compressed once more by its view. Views write 4:2:0, whatever the sample has, and custom tables count as the
nearest quality.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.cli import run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from adapt.data.jpeg import Header

COLUMNS = ("format", "jpeg_quality", "jpeg_tables", "subsampling", "reason", "files", "share", "table_distance")


@dataclass(frozen=True)
class Config:
    input: tuple[str, ...] = ()  # folders, image files, manifests (a column `path` will do), tar files
    output_dir: Path = Path("results/runs/quality")


def main(cfg: Config) -> None:
    from adapt.data.inputs import find_inputs
    from adapt.data.jpeg import read_headers, views_like
    from adapt.number_table import write_table
    from adapt.pages.drawing import save_png
    from adapt.pages.tables import grid

    found = list(read_headers(find_inputs(cfg.input)[1]))
    table = [list(map(str, line)) for line in histogram(found)]
    write_table(cfg.output_dir / "qualities.csv", COLUMNS, table)
    headers = [header for header, _ in found if header]
    save_png(figure(headers), cfg.output_dir / "qualities.png")
    print(grid([list(COLUMNS), *table]))
    custom = sum(header.jpeg_tables == "custom" for header in headers)
    jpegs = sum(header.format == "JPEG" for header in headers)
    others = len(headers) - jpegs
    print(f"{len(found)} files: {jpegs} JPEG ({custom} with custom tables), {others} of other formats, "
          f"{len(found) - len(headers)} unreadable")  # fmt: skip
    if headers:
        print(f"--train_views {' '.join(views_like(headers))}")
    print(f"{cfg.output_dir}: qualities.csv and qualities.png")


def histogram(found: "list[tuple[Header | None, str]]") -> list[tuple]:
    """Lines of `COLUMNS`: JPEGs by quality, other formats, what could not be read; distance: median of custom ones."""
    import statistics

    lines: Counter[tuple[str, int | str, str, str, str]] = Counter()
    distances: dict[tuple[str, int | str, str, str, str], list[int]] = {}
    for header, reason in found:
        kind: tuple[str, int | str, str, str, str] = ("", "", "", "", reason)
        if header:
            quality, tables, subsampling = (
                header.jpeg_quality or "",
                header.jpeg_tables or "",
                header.subsampling or "",
            )
            kind = (header.format, quality, tables, subsampling, "")
            distances.setdefault(kind, []).append(header.table_distance or 0)
        lines[kind] += 1
    ordered = sorted(lines, key=lambda kind: (kind[4], kind[0] != "JPEG", kind[0], -int(kind[1] or 0), *kind[2:4]))
    return [
        (
            *kind,
            lines[kind],
            f"{lines[kind] / len(found):.1%}",
            f"{statistics.median(distances[kind]):g}" if kind[2] == "custom" else "",
        )
        for kind in ordered
    ]


def figure(headers: "list[Header]") -> "Figure":
    """Files for each JPEG quality, custom tables on top of standard ones."""
    from matplotlib.figure import Figure

    from adapt.pages.drawing import COLOURS

    drawn = Figure(figsize=(8, 3.5), layout="constrained")
    axes = drawn.subplots()
    below = [0] * 101
    for tables, colour, hatch in (("standard", COLOURS[0], ""), ("custom", COLOURS[1], "//")):
        counts = Counter(header.jpeg_quality for header in headers if header.jpeg_tables == tables)
        heights = [counts[quality] for quality in range(101)]
        label = f"{tables} tables: {sum(heights)}"
        axes.bar(range(101), heights, bottom=below, color=colour, hatch=hatch, label=label, width=0.9)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    without = sum(header.jpeg_quality is None for header in headers)
    axes.set(xlabel="JPEG quality (nearest IJG tables)", ylabel="files", xlim=(0, 101))
    axes.set_title(f"{len(headers)} readable files, {without} of them without JPEG tables", fontsize=10)
    axes.legend(frameon=False)
    return drawn


def command() -> None:
    """Parse the command line and run."""
    run(main, Config)

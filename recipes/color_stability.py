"""How far JPEG moves each colour statistic of a photograph: which of them a detector may rely on.

    python recipes/color_stability.py --manifest data.csv --views qf90 qf65 qf40 --output_dir results/color-stability

Describes every unedited real image of the manifest as it is and under each view, and divides the median |drift| by
the deviation between images: at 0.05 JPEG changes a statistic by a twentieth of what the picture does, at 1 as much.
Photographs that were JPEG files before drift less: `--start resize112` scales such traces away first. Writes table.md
(by kind), stability.csv (every statistic), config.yaml and provenance.json. Time on one core: one minute for 284
photographs of 224 to 640 px. To expect: results/README.md; chroma above 0.5 at 1 px, but below 0.3 from 4 px on.
"""

import fnmatch
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import as_dict, at_least, dump, run
from adapt.flags import Intervals, Rows

CHROMA = ("cb", "cr", "saturation", "chroma")
KINDS = {  # rows of the page: patterns of names
    "mean of Cb, Cr, saturation, chroma": [f"mean_{plane}" for plane in CHROMA],
    "std of the same": [f"std_{plane}" for plane in CHROMA],
    "skewness, kurtosis of the same": [f"{moment}_{plane}" for plane in CHROMA for moment in ("skew", "kurtosis")],
    "moments of Y": [f"{moment}_y" for moment in ("mean", "std", "skew", "kurtosis")],
    "correlations RG, RB, GB, CbCr, YCb, YCr": ["corr_*"],
    "hue histogram": ["hue_[0-9]*"],
    "hue entropy": ["hue_entropy"],
    **{f"log gradient of Cb, Cr, {scale} px": [f"gradient{scale}_c?"] for scale in (16, 8, 4, 2, 1)},
    **{f"log gradient of Y, {scale} px": [f"gradient{scale}_y"] for scale in (16, 8, 4, 2, 1)},
    **{f"high-pass correlations, {scale} px": [f"highpass{scale}_*"] for scale in (8, 4, 2, 1)},
}
BLOCKS = 16  # a median asks for blocks of more than the root of the number of groups (Shao and Wu 1989)
ABOUT = """\
Read `0.105 [0.091, 0.120]` as the median |drift| of a statistic between a view and the image as it is, divided by its
deviation between the images, with a 95 % interval over groups. A kind shows the mean over its
statistics; *worst* is the one that moves most under any view. Descriptor: `describe` of descriptors/color.py;
ablation: `describe_fragile`, what JPEG does to colour at 1 and 2 px."""


@dataclass(frozen=True)
class Config(Rows, Intervals):
    views: tuple[str, ...] = ("qf90", "qf65", "qf40")  # compared with the image as it is
    start: str = "none"  # view applied first; the others follow it and are compared with it
    output_dir: Path = Path("results/runs/color-stability")

    def __post_init__(self) -> None:
        at_least(0, self, "resamples", "seed")


class Drift(NamedTuple):
    """One statistic under one view, in deviations between photographs; NaN where these do not differ at all."""

    statistic: str
    view: str
    value: float
    low: float
    high: float
    images: int


def main(cfg: Config) -> None:
    import numpy as np

    from adapt import provenance
    from adapt.data.images import Unreadable, read_image
    from adapt.data.manifest import require_files
    from adapt.data.views import parse_view
    from adapt.embedded import read_manifests
    from adapt.errors import Refusal
    from adapt.evaluation.jackknife import interval, leave_out
    from adapt.models.descriptors.color import FRAGILE_NAMES, NAMES, describe, describe_fragile
    from adapt.progress import bar

    started, revision = time.monotonic(), provenance.revision()
    start, views = parse_view(cfg.start), [parse_view(name) for name in cfg.views]
    rows = read_manifests(cfg.manifest)
    require_files(rows)
    photos = rows.select(~rows.fake & (rows["edit"] == ""))

    described, read, unreadable = [], [], []
    for i, file in enumerate(bar(iterable=photos["file"], unit="image", desc="describe")):
        try:
            group = photos["group"][i]
            image = start.of(group)(read_image(file, photos["sha256"][i], photos.place(i)))
            seen = [image, *(view.of(group)(image) for view in views)]
        except Unreadable as problem:
            unreadable.append([photos["path"][i], problem.reason])
            continue
        described.append([np.append(describe(each), describe_fragile(each)) for each in seen])
        read.append(i)
    if len(read) < 2:
        raise Refusal(f"{len(read)} readable unedited real images of {len(photos)}: a deviation needs at least 2")
    values = np.array(described, np.float64).transpose(1, 0, 2)  # (1 + views, images, statistics)

    counts, column = leave_out(photos["set"][read], photos["group"][read], min(cfg.resamples, BLOCKS), cfg.seed)
    drawn, shift = [], np.abs(values[1:] - values[0])
    for count in counts:  # the first is the sample itself
        chosen = np.repeat(np.arange(len(read)), count[column])
        deviation = values[0, chosen].std(axis=0, ddof=1)
        drawn.append(np.median(shift[:, chosen], axis=1) / np.where(deviation > 0, deviation, np.nan))
    ratios, names = np.array(drawn), np.array([*NAMES, *FRAGILE_NAMES])  # (1 + resamples, views, statistics)

    def drift(label: str, which: np.ndarray, v: int) -> Drift:
        mean = ratios[:, v, which].mean(axis=1) if which.any() else np.full(len(ratios), np.nan)
        return Drift(label, views[v].name, float(mean[0]), *interval(mean, counts.shape[1]), len(read))

    every = [drift(name, names == name, v) for name in names for v in range(len(views))]
    kinds = {}
    for kind, patterns in KINDS.items():
        of = np.array([any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) for name in names])
        used = of & ~np.isnan(ratios[0]).any(axis=0)
        worst = max((each for each in every if each.statistic in names[used]), key=lambda d: d.value, default=None)
        part = "descriptor" if set(names[of]) <= set(NAMES) else "ablation"
        kinds[kind] = (part, of.sum(), [drift(kind, used, v) for v in range(len(views))], worst)
    data = f"{len(read)} unedited real images, {counts.shape[1]} groups; manifest digest {rows.digest[:12]}"
    facts = {"command": provenance.command(), "revision": revision, "seed": cfg.seed}
    facts |= {"seconds": round(time.monotonic() - started, 1), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    facts |= {"data": data, "unreadable": unreadable}
    facts |= {"hardware": provenance.hardware(), "versions": provenance.versions()}
    write(cfg, facts, every, kinds, embedded="embedded" in photos["set"])


def write(cfg: Config, facts: dict, every: list[Drift], kinds: dict, embedded: bool) -> None:
    """The four files of the result, and the table on the terminal."""
    from adapt.files import write_text
    from adapt.number_table import write_table
    from adapt.pages.markdown_page import write_page
    from adapt.pages.tables import grid, show

    table = [["statistics", "number", "part", *dict.fromkeys(each.view for each in every), "worst"]]
    for kind, (part, number, drifts, worst) in kinds.items():
        last = f"{worst.value:.3f} {worst.statistic}, {worst.view}" if worst else "n/a"
        table.append([kind, str(number), part, *map(show, drifts), last])
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    title = "How far a view moves colour statistics"
    write_page(cfg.output_dir / "table.md", title, [ABOUT, grid(table)], shown, embedded=embedded)
    write_table(cfg.output_dir / "stability.csv", Drift._fields, every)
    write_text(cfg.output_dir / "config.yaml", dump(cfg))
    record = facts | {"identity": as_dict(cfg)}
    write_text(cfg.output_dir / "provenance.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"{grid(table)}\n\n{cfg.output_dir / 'table.md'}: the page; every statistic is in stability.csv beside it")


if __name__ == "__main__":
    run(main, Config)

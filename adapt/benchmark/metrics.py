"""Evaluation: metrics without each block of groups, against scikit-learn's loop; and how time and memory grow by rows.

A large table is drawn (a photograph, the same resized, and four fakes of two families in every group, under four
views, with a logit per family) and goes through `adapt evaluate` with full output, in a process of its own.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from adapt.benchmark.heads import exponent
from adapt.benchmark.timing import CLOCKS, Ratio, Settings, in_turns
from adapt.evaluation.replicates import measure_without

PROGRAM = "from adapt.__main__ import main; from adapt.provenance import peak_memory; main(); print(peak_memory())"
VIEWS = ("none", "qf90", "qf65", "qf40")
KINDS = (  # generator, family, seen, edit
    *(("real", "", "train", ""), ("real", "", "train", "resized"), ("a1", "a", "train", ""), ("a2", "a", "", "")),
    *(("b1", "b", "train", ""), ("b2", "b", "", "")),
)
SIZES, SMALL = (100_000, 1_000_000, 5_000_000), (960, 1_920)
SECONDS = 180.0  # that a million rows may take on two cores
LIMITS = {1_000_000: 2048.0, 5_000_000: 4096.0}  # MiB, by rows


def measure(settings: Settings) -> list[Ratio]:
    """One sort against a loop in turns; every size of table once, whatever the rounds."""
    return [blocks_left_out(settings), *growth(settings)]


def blocks_left_out(settings: Settings) -> Ratio:
    """The same rows for both; scores rounded so that many are tied. Ours finds eleven further metrics."""
    count, blocks = (500, 5) if settings.small else (50_000, 200)
    rng = np.random.default_rng(0)
    fake, block = rng.random(count) < 0.5, rng.integers(blocks, size=count)
    logit = np.round(rng.standard_normal(count) + 1.35 * fake, 3)
    p_fake = 1 / (1 + np.exp(-logit))
    found = {}

    def ours() -> None:
        out = measure_without(logit, p_fake, fake, block, blocks, 0.0)
        found["ours"] = np.stack([out["auc"], out["ap"]])

    def loop() -> None:
        values = []
        for left in range(-1, blocks):
            truth, score = fake[block != left], logit[block != left]
            even = np.where(truth, 0.5 / truth.sum(), 0.5 / (~truth).sum())  # AP is for as many fakes as photographs
            values.append((roc_auc_score(truth, score), average_precision_score(truth, score, sample_weight=even)))
        found["loop"] = np.array(values).T

    costs = in_turns({"ours": ours, "loop": loop}, settings, warm_up=0)
    facts = {
        "largest difference": float(np.abs(found["ours"] - found["loop"]).max()),
        "distinct scores": len(np.unique(logit)),
    }
    case = f"{blocks:,} blocks left out of {count:,} scores, AUC and AP"
    return Ratio(
        "metrics", case, "one sort", "scikit-learn's loop", costs["ours"], costs["loop"], goal=15, facts=facts
    )


def growth(settings: Settings) -> Iterator[Ratio]:
    """Time and peak memory of `adapt evaluate` against what they may be, and time against rows x log rows."""
    sizes = SMALL if settings.small else SIZES
    cost = {}
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        for size in sizes:
            path = Path(folder) / f"{size}.parquet"
            write_scores(path, size)
            cost[size] = evaluate(path, settings.clock)
    for size, (seconds, peak) in cost.items():
        rows = f"{size:,} rows"
        if size == 1_000_000:
            limit = f"{SECONDS / 60:.0f} minutes"
            yield Ratio("metrics", f"adapt evaluate, {rows}", "full output", limit, (seconds,), (SECONDS,), goal=1)
        if size in LIMITS:
            case, limit = f"adapt evaluate, {rows}, peak memory", f"{LIMITS[size] / 1024:.0f} GiB"
            yield Ratio("metrics", case, "full output", limit, (peak,), (LIMITS[size],), "MiB", goal=1)
    first, last = sizes[-2:]
    facts: dict[str, float | str] = {f"seconds, {size:,} rows": round(cost[size][0], 1) for size in sizes}
    facts |= {f"MiB, {size:,} rows": round(cost[size][1]) for size in sizes}
    facts["time exponent"] = round(exponent(list(sizes), [cost[size][0] for size in sizes]), 3)
    per = [(cost[size][0] / (size * np.log(size)),) for size in (last, first)]
    case = "seconds per rows x log rows"
    yield Ratio("metrics", case, f"{last:,} rows", f"{first:,}", per[0], per[1], goal=0.9, facts=facts)


def write_scores(path: Path, rows: int) -> None:
    """About so many rows of scores; a tenth of the groups validates."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups, rng = rows // (len(KINDS) * len(VIEWS)), np.random.default_rng(0)
    kind, group = (x.ravel() for x in np.meshgrid(np.arange(len(KINDS)), np.arange(groups)))
    scene = rng.standard_normal(groups)[group] * 0.7
    fake = np.array([generator != "real" for generator, *_ in KINDS])[kind]
    columns = {
        name: [pa.array([row[i] for row in KINDS]).take(pa.array(kind))] * len(VIEWS)
        for i, name in enumerate(("generator", "family", "seen", "edit"))
    }
    columns["path"] = [pa.array([f"{k}/{g:08d}.jpg" for k, g in zip(kind, group, strict=True)])] * len(VIEWS)
    columns["group"] = [pa.array([f"scene{g:08d}" for g in group])] * len(VIEWS)
    columns["split"] = [pa.array(np.where(group % 10 == 0, "val", "test"))] * len(VIEWS)
    columns["view"] = [pa.array(np.full(len(kind), view)) for view in VIEWS]
    logits = [scene + rng.standard_normal(len(kind)) + fake * (1.5 - 0.3 * i) for i in range(len(VIEWS))]
    columns["logit"] = [pa.array(logit) for logit in logits]
    for name in ("real", "a", "b"):
        columns[f"logit_{name}"] = [pa.array(rng.standard_normal(len(kind))) for _ in VIEWS]
    pq.write_table(pa.table({name: pa.chunked_array(parts) for name, parts in columns.items()}), path)


def evaluate(path: Path, clock: str) -> tuple[float, float]:
    """Seconds and peak MiB of `adapt evaluate` on this table, start of the program included."""
    words = ["evaluate", "--scores", str(path), "--output_dir", str(path.with_suffix(""))]
    began = CLOCKS[clock]()
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], check=True, capture_output=True, text=True)
    return CLOCKS[clock]() - began, float(done.stdout.splitlines()[-1])

"""How time and memory of the heads grow with the number of images.

    python recipes/head_scaling.py --rows 10000 50000 100000 --output_dir results/head-scaling

Writes a cache of synthetic features (Gaussian classes whose best linear AUC is about 0.83), fits each head through the
same code as the recipes (penalty or epoch picked on validation rows), each in a process of its own, and reports
seconds, peak memory and test AUC; with one view in the cache and with four. Tip-Adapter-F has 500 keys per class.
Time: about 20 minutes on one busy core; Tip-Adapter-F at 100,000 rows is most of it. To expect: results/README.md.
"""

from dataclasses import dataclass
from pathlib import Path

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import at_least
from adapt.cli import run as run_recipe


@dataclass(frozen=True)
class Config:
    output_dir: Path = Path("results/runs/head_scaling")  # run directory
    rows: tuple[int, ...] = (10_000, 50_000, 100_000)  # training images; a tenth as many validate, and a tenth test
    heads: tuple[str, ...] = ("logistic", "svm", "mlp", "tip-adapter-f")
    dim: int = 768  # numbers per feature
    views: tuple[int, ...] = (1, 4)  # numbers of views in the cache; a head draws one per group
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(100, self, "rows")
        at_least(1, self, "views", "dim")


def write_features(cfg: Config, rows: int, views: int, folder: str):
    """Features of `rows` training images and a tenth as many for validation and test, as `extract` leaves them."""
    import numpy as np

    from adapt.data.manifest import Manifest
    from adapt.features.cache import Features
    from adapt.features.shards import Space, write_shard

    rng = np.random.default_rng(cfg.seed)
    split = np.repeat(["train", "val", "test"], [rows, rows // 10, rows // 10])
    fake = rng.random(len(split)) < 0.5
    direction = np.random.default_rng(1).standard_normal(cfg.dim) / cfg.dim**0.5
    ids = rng.bytes(32 * len(split))
    columns = {
        "path": [f"{i}.png" for i in range(len(split))],
        "group": [f"g{i}" for i in range(len(split))],
        "generator": np.where(fake, "synthetic", "real"),
        "split": split,
        "sha256": [ids[32 * i : 32 * i + 32].hex() for i in range(len(split))],
    }
    names = ("none", "qf90", "qf65", "qf40")[:views]
    ids = np.frombuffer(ids, "V32")
    spaces = {}
    for view in names:
        for start in range(0, len(split), 20_000):
            here = slice(start, start + 20_000)
            x = rng.standard_normal((len(fake[here]), cfg.dim), dtype=np.float32)
            x += (1.35 * fake[here, None] * direction).astype(np.float32) + 0.5
            write_shard(Path(folder) / view, ids[here], [x])
        spaces["synthetic", view] = Space.open(Path(folder) / view)
    return Features(Manifest.of(columns, folder), names, ("synthetic",), ids, {}, spaces)


def measure(cfg: Config, head: str, features) -> dict[str, float]:
    """Fit one head on cached features: seconds, peak memory of this process in MiB, test AUC."""
    import resource
    import time

    import numpy as np
    import torch
    from sklearn.metrics import roc_auc_score

    from adapt.models.heads.tip_adapter import Rows, TipAdapter, draw_shots, fit
    from adapt.models.heads.tip_head import PriorHead
    from adapt.training.on_features import class_names, fit_on_features, numbers, readable_rows, validation_rows

    rows, known = features.manifest, ("real", "fake")
    names = class_names(rows, "binary")
    torch.zeros(8, 8) @ torch.zeros(8, 8)  # libraries are loaded before the clock starts
    started = time.monotonic()
    if head == "tip-adapter-f":
        train, drawn = readable_rows(features, "train", features.views, cfg.seed)
        x, y = features.take(train, drawn), numbers(names[train], known)
        val, val_drawn = validation_rows(features, features.views, names, known, cfg.seed)
        keys, _ = draw_shots(y, rows["group"][train], 500, cfg.seed)
        cache = TipAdapter(x[keys], y[keys], rows["group"][train[keys]], alpha=50)
        seen = Rows(features.take(val, val_drawn), numbers(names[val], known), rows["group"][val])
        fit(cache, Rows(x, y, rows["group"][train]), seen, cfg.seed)
        fitted = PriorHead(known, cache=cache)
    else:
        fitted, _ = fit_on_features(features, head, "binary", features.views, cfg.seed)
    seconds = time.monotonic() - started
    test = np.flatnonzero(rows["split"] == "test")
    with torch.no_grad():
        logits = fitted(torch.from_numpy(features.take(test, "none")))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mib": peak, "auc": float(roc_auc_score(rows.fake[test], logits.numpy()))}


def main(cfg: Config) -> None:
    import shutil
    import tempfile
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from adapt.number_table import write_table
    from adapt.pages.markdown_page import write_page
    from adapt.pages.tables import grid
    from adapt.stop import end_with_parent
    from adapt.training.report import show_finished
    from adapt.training.run import Run

    run = Run(cfg)
    if run.finished():
        return show_finished(run)
    run.begin()
    table = []
    for rows in cfg.rows:
        for views in cfg.views:
            folder = tempfile.mkdtemp(prefix="head-scaling-")
            try:
                features = write_features(cfg, rows, views, folder)
                for head in cfg.heads:
                    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as alone:
                        found = alone.submit(measure, cfg, head, features).result()
                    table.append({"head": head, "rows": rows, "views": views} | found)
                    run.say(
                        f"{head}, {rows} rows, {views} views: {found['seconds']:.1f} s, {found['peak_mib']:.0f} MiB"
                    )
            finally:
                shutil.rmtree(folder)
    write_table(run.folder / "metrics.csv", list(table[0]), [list(line.values()) for line in table])
    record = run.record()
    lines = [[str(x) if isinstance(x, int | str) else f"{x:.4g}" for x in line.values()] for line in table]
    about = (
        f"Synthetic features of {cfg.dim} float32 (10,000 rows: {10_000 * cfg.dim * 4 / 2**20:.0f} MiB). Seconds: "
        "reading, fitting all candidates, validation. Peak: the whole process with its libraries. One run each."
    )
    facts = {key: value for key, value in record.items() if key != "identity"}
    write_page(run.folder / "table.md", "Results", [grid([list(table[0]), *lines]), about], facts)
    run.write_record(record)
    run.end()


if __name__ == "__main__":
    run_recipe(main, Config)

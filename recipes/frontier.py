"""Cost against accuracy of small updates: targets x update x rank x depth, each a run of recipes/lora.py.

    python recipes/frontier.py --manifest data.csv --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k \\
        --configurations norm lora-qv-8 lora-all-8 lora-all-8-last6 svd-qkvo-1 --learning_rates 1e-4 5e-4 \\
        --seeds 0 1 2 --output_dir results/frontier-l14

A configuration is UPDATE-TARGETS-RANK[-lastK]: `lora` or `svd` (Effort's residual) of `qv`, `qkvo`, `mlp` or `all`,
in the last K blocks or in all; or `norm[-lastK]`. A LoRA's alpha is its rank. Each is trained at every learning rate,
and its mean validation score over the seeds chooses one. With --classes family or generator that score is the mean
recall of these classes, and the page says how well each configuration attributes. Started again it continues; a
finished run is not run again, a failed one is named and the rest goes on. Without flags: 8 configurations at 2 rates
on the embedded world with the embedded tiny CLIP, 16 runs of about 3 minutes on 2 cores. Results to expect:
results/README.md.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import at_least, each_once
from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Classes, Encoder, Rows, Sweep, Views

WORD = re.compile(
    r"(?:(?P<update>lora|svd)-(?P<targets>qv|qkvo|mlp|all)-(?P<rank>[1-9]\d*)|norm)(?:-last(?P<last>[1-9]\d*))?"
)
PASSED_ON = (
    *("manifest", "backbone", "layer", "geometry", "size", "classes", "train_views", "test_views", "epochs", "groups"),
    *("head_learning_rate", "precision", "resamples", "num_workers"),
)
ABOUT = """\
AUC: mean over the test views and over {seeds} seed(s); 95 % intervals over groups
and seeds, the same resamples for all rows.
Minutes: training with its validation, of the learning rate that validation data chose.
Memory: peak of the {memory}.
Frontier: no other row trains at most as many parameters with at least that AUC. It describes these runs: nothing was
chosen on test data, and rows whose intervals overlap are not told apart."""


@dataclass(frozen=True)
class Config(Rows, Encoder, Classes, Views, Sweep):
    output_dir: Path = Path("results/runs/frontier")  # folder of the page and of all runs
    configurations: tuple[str, ...] = (
        *("norm", "svd-qkvo-1", "svd-qkvo-8", "lora-all-1", "lora-qv-8", "lora-mlp-8", "lora-all-8"),
        "lora-all-8-last2",
    )
    learning_rates: tuple[float, ...] = (4e-3, 2e-2)  # validation chooses one for each configuration
    seeds: tuple[int, ...] = (0,)  # each configuration runs with each of them
    epochs: int = 5  # passes over the training groups
    groups: int = 8  # groups per optimizer step, over all processes
    head_learning_rate: float = 4e-3  # step size for the linear head
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the frozen weights
    resamples: int = 200  # most blocks of groups that are left out in turn behind every interval
    num_workers: int | None = None  # data processes per process; None: 1 on a CPU; a GPU: its share of cores, less one

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "learning_rates")
        each_once(self, "configurations", "learning_rates", "seeds")
        for word in self.configurations:
            if not WORD.fullmatch(word):
                raise Refusal(
                    f"--configurations {word}: expected e.g. lora-all-8, svd-qkvo-1, lora-qv-4-last2 or norm"
                )


def main(cfg: Config) -> None:
    from adapt.data.jpeg import with_sample_views
    from adapt.sweeps.planned_runs import PlannedRun, carry_out, end

    cfg = with_sample_views(cfg)
    shared = {name: value for name in PASSED_ON if (value := getattr(cfg, name)) is not None}
    runs: dict[tuple[str, float], list[PlannedRun]] = {}
    for word in cfg.configurations:
        found = WORD.fullmatch(word)
        assert found is not None  # any other word was refused
        size = {"update": found["update"], "targets": found["targets"]} if found["update"] else {"targets": "norm"}
        size |= {"rank": int(found["rank"]), "alpha": float(found["rank"])} if found["update"] else {}
        size |= {"last_blocks": int(found["last"])} if found["last"] else {}
        for rate in cfg.learning_rates:
            runs[word, rate] = [
                PlannedRun(
                    f"{word}-lr{rate:g}-seed{seed}", "lora", {**size, "learning_rate": rate, "seed": seed, **shared}
                )
                for seed in cfg.seeds
            ]
    every = [run for of_one in runs.values() for run in of_one]
    failed = carry_out(every, cfg, cfg.output_dir)
    if failed is not None:
        write_frontier(cfg, runs)
        end(failed)


def write_frontier(cfg: Config, runs: dict) -> None:
    """The page of the configurations whose runs are all finished; the record only when that is every one of them."""
    from adapt.pages.drawing import save_png
    from adapt.pages.markdown_page import picture
    from adapt.pages.tables import grid
    from adapt.sweeps.attribution import attribution_sections
    from adapt.sweeps.frontier import figure, headline, measure, per_view, validation, write_csv
    from adapt.sweeps.planned_runs import uses_gpu, write_sweep

    root = cfg.output_dir
    missing = [run.name for of_one in runs.values() for run in of_one if run.state(root) != "finished"]
    runs = {key: of_one for key, of_one in runs.items() if not any(n.startswith(f"{key[0]}-lr") for n in missing)}
    if not runs:
        return print("no page yet: no configuration has all its runs")
    every = [run for of_one in runs.values() for run in of_one]
    scores = {key: validation(of_one, root) for key, of_one in runs.items()}
    points, rates = [], [["configuration", *(f"{rate:g}" for rate in cfg.learning_rates)]]
    for word in dict.fromkeys(word for word, _ in runs):
        of_rates = {rate: scores[word, rate] for rate in cfg.learning_rates}
        rate = max(of_rates, key=of_rates.__getitem__)
        points.append(measure(word, rate, runs[word, rate], root, cfg.resamples))
        rates.append([word, *(f"{scores[word, rate]:.4f}" for rate in cfg.learning_rates)])
    save_png(figure(points), root / "figures" / "frontier.png")
    write_csv(root / "frontier.csv", points)

    memory = "GPU's tensors" if uses_gpu(every[0], root) else "first process, libraries included"
    page = [
        grid(headline(points)),
        ABOUT.format(seeds=len(cfg.seeds), memory=memory),
        picture("frontier"),
    ]
    page += ["## AUC unseen, per view", grid(per_view(points)), "## Validation score per learning rate", grid(rates)]
    if cfg.classes != "binary":
        chosen = {point.name: runs[point.name, point.learning_rate] for point in points}
        page += attribution_sections(chosen, root, cfg.classes, cfg.resamples)
    write_sweep(cfg, every, root, page, missing)


if __name__ == "__main__":
    run_recipe(main, Config)

"""The ablation: many methods, one manifest, one evaluator, one table with intervals.

    python recipes/ablation.py --dry_run                                # the plan, with an estimate of the time
    python recipes/ablation.py --manifest data.csv --backbone open_clip:ViT-L-14@datacomp_xl_s13b_b90k \\
        --learning_rate 1e-4 --train_on none none,qf90,qf65,qf40 --processes 4 --output_dir results/ablation-l14

Runs every method of METHODS on every set of training views with every seed, each as a run of its recipe under the
output folder, and makes one page of all that are finished. Features are encoded once and shared through their cache.

    table.md, ablation.tex   a row per method, best in bold where a paired test separates it from all others; what each
                             was given (images, settings tried on validation); the price of a frozen threshold, every
                             generator, controls (permuted labels, metadata only). LaTeX
                             needs booktabs and graphicx; wide or long tables come in parts
    report.html              one file for a browser, without network: those tables, sorted by a click on a header; AUC
                             against quality with bands, methods x generators, cost against accuracy, reliability, what
                             is called fake at the frozen threshold, confusion of families, the worst mistakes of the
                             best three methods as pictures with their scores; what failed or does not apply, and why;
                             command, date, revision and hardware of every run
                             table.md has attribution to families, too: towers beside heads on frozen features
    ablation.csv             every number; all of the above is made from it
    detectors.csv            what the detectors of --detectors are
    generators.csv, figures/, tensorboard/

--detectors univfd results/runs/lora/detector hf-hub:OWNER/NAME puts imported and saved detectors beside the methods:
the same test rows and views, their own thresholds, the same intervals and marks. What they were trained on is
read from them, or said by --trained_on univfd=progan,biggan; else seen and unseen are n/a for them.

--rotate generator (or family) also runs every method without each generator of the training in turn, and adds a table:
how well each method finds what it was not trained on (rotation.csv).

Started again it continues: finished runs stay and give the same bytes, a failed one is named and the rest goes on.
The row `labels-permuted` is the logistic probe on 20 permutations of the labels; `--permutations N` trains every
lora.py run on N as well. `--shard i --num_shards n` shares the runs with other machines. A further method is one line.
Without flags: the embedded world and tiny CLIP, 3 seeds, about 90 minutes on 2 cores by the plan.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import each_once
from adapt.cli import run as run_recipe
from adapt.detector.names import names_of, told_of
from adapt.flags import Encoder, Permutations, Rotation, Rows, Sweep

SHOTS = {"shots": (512,), "draws": 1, "select_on": "validation"}  # images per class; all rows choose on validation
TIP = {"layer": "proj", **SHOTS}  # where texts are met
ALL = {"shots": ("all",)}  # the images of all other rows: with them, and with the probe of 512, budgets are equal
Line = tuple[str, str, dict[str, object], float]
METHODS: tuple[Line, ...] = (  # name, recipe, its flags, minutes of one run on the embedded world with 2 cores
    ("zero-shot", "tip_adapter", {**TIP, "methods": ("zero-shot",)}, 0.5),
    ("probe-svm", "linear_probe", {"head": "svm"}, 0.5),
    ("probe-logistic", "linear_probe", {"head": "logistic"}, 0.5),
    ("probe-logistic-512", "tip_adapter", {**SHOTS, "methods": ("logistic",), "prior": "none"}, 0.5),
    ("probe-mlp", "linear_probe", {"head": "mlp"}, 0.5),
    ("probe-svm-family", "linear_probe", {"head": "svm", "classes": "family"}, 0.5),
    ("probe-logistic-family", "linear_probe", {"head": "logistic", "classes": "family"}, 0.5),
    ("probe-mlp-family", "linear_probe", {"head": "mlp", "classes": "family"}, 0.5),
    ("rine", "linear_probe", {"head": "rine", "layer": "last"}, 1.0),
    ("attention-pooling", "linear_probe", {"head": "attention", "layer": "last"}, 1.5),
    ("fisher-tokens", "linear_probe", {"head": "fisher", "layer": "last"}, 1.5),
    ("prototypes", "linear_probe", {"head": "prototypes", "layer": "proj"}, 0.5),
    ("patch-mean-squash", "linear_probe", {"head": "logistic", "layer": "last_mean", "geometry": "squash"}, 1.0),
    ("colour", "color_fusion", {"features": ("colour",), "apart": False}, 0.5),
    ("chroma", "color_fusion", {"features": ("chroma",), "apart": False}, 0.5),
    ("spectra", "color_fusion", {"features": ("spectra",), "apart": False}, 0.5),
    ("fusion", "color_fusion", {"features": ("both",), "apart": False}, 0.5),
    ("fusion-family", "color_fusion", {"features": ("both",), "apart": False, "classes": "family"}, 0.5),
    ("tip-adapter", "tip_adapter", {**TIP, "methods": ("tip-adapter",)}, 0.5),
    ("tip-adapter-all", "tip_adapter", {**TIP, **ALL, "methods": ("tip-adapter",)}, 0.5),
    ("tip-adapter-f", "tip_adapter", {**TIP, "methods": ("tip-adapter-f",)}, 0.5),
    ("tip-adapter-f-all", "tip_adapter", {**TIP, **ALL, "methods": ("tip-adapter-f",)}, 0.5),
    ("tip-adapter-f-family", "tip_adapter", {**TIP, "methods": ("tip-adapter-f",), "classes": "family"}, 0.5),
    ("tip-adapter-f-probe", "tip_adapter", {**SHOTS, "methods": ("tip-adapter-f",), "prior": "probe"}, 0.5),
    ("pair-head", "pair", {"tune": "head", "arms": ("matched",)}, 0.5),
    ("pair-head-family", "pair", {"tune": "head", "arms": ("matched",), "classes": "family"}, 0.5),
    ("lora", "lora", {}, 3.0),
    ("lora-family", "lora", {"classes": "family"}, 3.0),
    ("lora-pair", "pair", {"tune": "lora", "arms": ("matched",)}, 3.0),
    ("norm", "lora", {"targets": "norm"}, 3.0),
    ("norm-family", "lora", {"targets": "norm", "classes": "family"}, 3.0),
    ("labels-permuted", "linear_probe", {"head": "logistic", "permutations": 20}, 1.0),
)
NEED_TEXTS = (  # a backbone with a text tower
    *("zero-shot", "prototypes", "tip-adapter", "tip-adapter-all"),
    *("tip-adapter-f", "tip-adapter-f-all", "tip-adapter-f-family"),
)
ONCE = ("zero-shot",)  # neither the seed nor training images change it
NAMES = [name for name, *_ in METHODS]
CONTROLS = ("labels-permuted",)  # their rows are what permuted labels reach; metadata alone joins them


@dataclass(frozen=True)
class Config(Rows, Rotation, Encoder, Permutations, Sweep):
    output_dir: Path = Path("results/runs/ablation")  # folder of the page and of all runs
    train_on: tuple[str, ...] = ("none,qf90,qf65,qf40",)  # sets of training views, each joined by commas
    test_views: tuple[str, ...] = ("none", "qf90", "qf65", "qf40")  # all are scored
    seeds: tuple[int, ...] = (0, 1, 2)  # each method runs with each of them
    learning_rate: float | None = None  # step size for adapters; None: the recipes' own; 1e-4 suits CLIP ViT-L/14
    epochs: int | None = None  # of lora.py and pair.py; None: their own
    groups: int | None = None  # groups per optimizer step of lora.py and pair.py; None: their own
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the frozen weights
    cache: Path | None = None  # folder of the feature cache; None: $ADAPT_CACHE/features
    resamples: int = 200  # most blocks of groups that are left out in turn behind every interval
    num_workers: int | None = None  # data processes per process; None: 1 on a CPU; a GPU: its share of cores, less one
    detectors: tuple[str, ...] = ()  # further rows: folders of saved detectors, imported ones, hf-hub:OWNER/NAME
    trained_on: tuple[str, ...] = ()  # NAME=GENERATOR,GENERATOR: what a detector was trained on, if it does not say
    pictures: bool = True  # show the worst mistakes in report.html; off: for photographs that are not yours to share

    def __post_init__(self) -> None:
        super().__post_init__()
        each_once(self, "train_on", "seeds", "test_views", *(["detectors"] if self.detectors else []))
        told_of(self.trained_on, names_of(self.detectors, NAMES))


def main(cfg: Config) -> None:
    from adapt.sweeps.ablation import Method, not_applicable, write_ablation
    from adapt.sweeps.detectors import gathered, runs_of
    from adapt.sweeps.planned_runs import carry_out, end
    from adapt.sweeps.rotation import members_of, without

    elsewhere = gathered(cfg, NAMES)  # before anything runs: what is not here is refused
    members = members_of(cfg.manifest, cfg.leave_out, cfg.rotate) if cfg.rotate else {}
    methods = [
        Method(name, recipe, flags, minutes, name in NEED_TEXTS, name in ONCE)
        for name, recipe, flags, minutes in METHODS
    ]
    impossible = not_applicable(methods, cfg.backbone)
    for name, why in impossible.items():
        print(f"{name}: not applicable: {why}")
    methods = [method for method in methods if method.name not in impossible]
    rows = {row: runs for method in methods for row, runs in method.runs(cfg).items()}
    of_detectors = runs_of(cfg, elsewhere, cfg.output_dir)
    rotated = {
        row: {name: [without(run, name) for run in runs] for name in members}
        for row, runs in rows.items()
        if row[0] not in CONTROLS
    }
    rows |= of_detectors
    at_home = cfg.manifest == ("embedded",) and cfg.backbone == "tiny"
    minutes = {method.name: method.minutes for method in methods} if at_home else {}
    every = [(row[0], run) for row, runs in rows.items() for run in runs]
    every += [(row[0], run) for row, of in rotated.items() for runs in of.values() for run in runs]
    guess = {run.name: minutes[name] for name, run in every if name in minutes}
    failed = carry_out([run for _, run in every], cfg, cfg.output_dir, guess)
    if failed is not None:
        write_ablation(cfg, rows, CONTROLS, cfg.output_dir, impossible, failed, rotated, members, elsewhere)
        end(failed)


if __name__ == "__main__":
    run_recipe(main, Config)

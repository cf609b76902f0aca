"""Published figures: show them, run the configuration that matches one, and print ours beside theirs.

    python recipes/reproduce.py --list                                  # all of them; --list --only 'cozzolino*'
    python recipes/reproduce.py 'clipping-linear-10k-gan-*'
    python recipes/reproduce.py cozzolino-svm-n1k-auc --manifest mine.csv --backbone tiny --output_dir results/try

The first word (or --only, which takes several) is the name of a target or a pattern. adapt/evaluation/targets.csv has
the targets: paper, method, encoder, training and test set, view, metric, value with the digits of its source, and how
it was read. Each run trains and tests on the published sets, with the published encoder, and leaves table.md,
reproduce.csv and provenance.json in a folder of its own.

The outcome is `match` if the figure lies in our 95 % interval, widened by its rounding, else `miss` with the
difference. With --manifest or --backbone a run is marked *not the published setting*; a method that no recipe has
(FatFormer, B-Free) is run as its nearest one, *comparable, not the same method*. Both get no outcome.

What is missing is named, with where to get it (repository of the hub, Zenodo record) and the command of `adapt
prepare` that makes its manifest, and the status is 2. Started again it continues. Time: that of the recipe on your
data; a probe with tiny on the embedded world about a minute. Expected: unknown, none of these figures has been run for
yet.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Intervals, Launched

OPENAI = "open_clip:ViT-L-14-quickgelu@openai"
COMMONPOOL = "open_clip:ViT-L-14@commonpool_xl_s13b_b90k"
DATACOMP = "open_clip:ViT-L-14@datacomp_xl_s13b_b90k"
DINOV2 = "transformers:facebook/dinov2-large"
CLEAN = {"train_views": ("none",)}
HALF = {"train_views": ("none", "blur1.5", "qf65", "blur1.5+qf65")}  # blur and JPEG, each on half of the images
PROBE = {"head": "logistic", "layer": "proj"}
SVM = {"head": "svm", "layer": "last"}
MLP = {"head": "mlp", "layer": "last"}
NAMED = {"classes": "generator"}
LORA = {"targets": "all", "rank": 8, "alpha": 8.0, "learning_rate": 1e-4}
EFFORT = {"update": "svd", "targets": "qkvo", "rank": 1, "alpha": 1.0, "learning_rate": 2e-4}
DDA = {"targets": "all", "rank": 8, "alpha": 1.0, "learning_rate": 1e-4}
SEED = "the report's encoder is not recorded; DataComp-XL is a guess"
CONFIGURATIONS = (  # name, targets, recipe, its flags, encoder, the same method?, what differs; the first match counts
    ("clipping-linear", ("clipping-linear-*",), "linear_probe", PROBE | CLEAN, OPENAI, True,
     "the optimum of the penalised loss, its penalty chosen on validation rows, instead of 2 epochs of SGD"),
    ("cozzolino-svm", ("cozzolino-svm-*",), "linear_probe", SVM | CLEAN, COMMONPOOL, True,
     "features are standardised behind their normalisation; C is chosen on validation rows"),
    ("univfd", ("cozzolino-univfd-*", "bfree-univfd-*", "fatformer-univfd-*", "effort-genimage-univfd-*",
     "drct2m-univfd-*", "aigibench-unifd-*", "dda-univfd-*"), "linear_probe", PROBE | HALF, OPENAI, True,
     "the optimum of the penalised loss instead of AdamW; blur and JPEG of one strength each instead of ranges"),
    ("effort", ("effort-ufd19-*", "effort-genimage-accuracy", "effort-genimage-midjourney-*", "effort-genimage-adm-*",
     "effort-genimage-biggan-*", "aigibench-effort-*"), "lora", EFFORT | HALF, OPENAI, False,
     "AdamW, whole groups, blur and JPEG of one strength each; none of Effort's losses on the weights"),
    ("lora", ("c2p-user-lora-*",), "lora", LORA | CLEAN, OPENAI, False,
     "a linear head instead of an MLP; rank, rate and encoder of the user are not recorded"),
    ("dda-lora", ("dda-dda-*", "aigibench-dda-*"), "lora", DDA | CLEAN, DINOV2, False,
     "LoRA as DDA has it, without its losses and its mixing of pixels and frequencies"),
    ("aigenbench-clip", ("aigenbench-clip-*",), "linear_probe", SVM | HALF, COMMONPOOL, False,
     "one probe on all training data instead of windows over time"),
    ("aigenbench-dinov2", ("aigenbench-dinov2-*",), "linear_probe", SVM | HALF, DINOV2, False,
     "one probe on all training data instead of windows over time"),
    ("clip-cues", ("clipcues-*",), "linear_probe", PROBE | CLEAN, OPENAI, False, "its training sets are not recorded"),
    ("blocks", ("rine-*",), "linear_probe", {"head": "logistic", "layer": "block6+block12+block18+last"} | CLEAN,
     OPENAI, False, "a probe on four blocks instead of a trained weighting of all of them"),
    ("seed-qf40", ("seed-table1-qf40-*",), "linear_probe", SVM | {"train_views": ("qf40",)}, DATACOMP, False, SEED),
    ("seed-qf65", ("seed-table1-qf65-*",), "linear_probe", SVM | {"train_views": ("qf65",)}, DATACOMP, False, SEED),
    ("seed-qf90", ("seed-table1-qf90-*",), "linear_probe", SVM | {"train_views": ("qf90",)}, DATACOMP, False, SEED),
    ("seed-svm", ("seed-table2-binary-svm", "seed-synthbuster-*"), "linear_probe", SVM | CLEAN, DATACOMP, False, SEED),
    ("seed-mlp", ("seed-table2-binary-mlp",), "linear_probe", MLP | CLEAN, DATACOMP, False, SEED),
    ("seed-18class-svm", ("seed-table2-18class-svm",), "linear_probe", SVM | CLEAN | NAMED, DATACOMP, False, SEED),
    ("seed-18class-mlp", ("seed-table2-18class-mlp",), "linear_probe", MLP | CLEAN | NAMED, DATACOMP, False, SEED),
    ("norm", (), "lora", {"targets": "norm", "learning_rate": 1e-4} | CLEAN, OPENAI, False,
     "norm layers alone, as GenD tunes them; for --configuration"),
    ("nearest", ("*",), "lora", LORA | CLEAN, OPENAI, False,
     "no recipe has the published method; LoRA on the vision tower is the nearest"),
)  # fmt: skip


@dataclass(frozen=True)
class Config(Launched, Intervals):
    list: bool = False  # show the published figures and stop
    only: tuple[str, ...] = ()  # targets, by name or pattern, such as 'cozzolino-svm-*'
    manifest: tuple[str, ...] = ()  # other tables of images; none: those that `adapt prepare` makes of the sets
    backbone: str | None = None  # another encoder; None: the published one
    configuration: str | None = None  # another configuration than the published one, such as norm
    output_dir: Path = Path("results/runs/reproduce")  # holds one folder per run
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the frozen weights
    num_workers: int | None = None  # data processes per process; None: 1 on a CPU; a GPU: its share of cores, less one
    processes: int = 1  # training processes per run


def main(cfg: Config) -> None:
    from adapt.evaluation.targets import listing, read_sets, read_targets, select

    every, sets = read_targets(), read_sets()
    if cfg.list:
        print(listing(select(every, cfg.only)))
        return
    if not cfg.only:
        raise Refusal("name a published target, or a pattern of names: --list shows all of them")

    from adapt.sweeps.planned_runs import end, outcomes
    from adapt.sweeps.reproduction import Configuration, jobs, missing, run_of, write_reproduction

    configurations = [Configuration(*line) for line in CONFIGURATIONS]
    given = {"precision": cfg.precision, "resamples": cfg.resamples, "num_workers": cfg.num_workers, "seed": cfg.seed}
    shared = {name: value for name, value in given.items() if value is not None}
    without, failed, placed, job_in = [], [], [], {}
    for job in jobs(select(every, cfg.only), every, configurations, cfg.configuration):
        print(f"\n{job.name}: {', '.join(target.name for target in job.targets)}", flush=True)
        if not job.configuration.same:
            print(f"comparable, not the same method: recipes/{job.configuration.recipe}.py: {job.configuration.note}")
        backbone = cfg.backbone or job.configuration.backbone
        if lines := missing(job, sets, cfg.manifest, backbone):
            print("\n".join(["missing", *lines]))
            without.append(job.name)
            continue
        root = cfg.output_dir / job.name
        placed.append((run_of(job, sets, cfg.manifest, backbone, shared), root))
        job_in[root] = job
    for run, root, words in outcomes(placed, cfg.output_dir, cfg.processes, launched=cfg):
        if words:
            failed.append(root.name)
        else:
            write_reproduction(cfg, job_in[root], run, root, sets)
    end(failed)
    if without:
        raise Refusal(f"{len(without)} run(s) lack data or weights, named above: get them and start again")


if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--only")  # the name alone
    run_recipe(main, Config)

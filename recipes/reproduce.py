"""Published figures: show them, run the configuration that matches one, and print ours beside theirs.

    python recipes/reproduce.py --list                                  # all of them; --list --only 'cozzolino*'
    python recipes/reproduce.py 'clipping-linear-10k-gan-*'
    python recipes/reproduce.py cozzolino-svm-n1k-auc --manifest mine.csv --backbone tiny --output_dir results/try
    python recipes/reproduce.py 'seed-pattern-*' --manifest embedded --backbone tiny    # a pattern, on any data

The first word (or --only, which takes several) is the name of a target, or several by *. adapt/evaluation/targets.csv
has the targets: paper, method, encoder, training and test set, view, metric, value with the digits of its source, and
how it was read. Each run trains and tests on the published sets, with the published encoder, and leaves table.md,
reproduce.csv and provenance.json in a folder of its own.

The outcome is `match` if the figure lies in our 95 % interval, widened by its rounding, else `miss` with the
difference. With --manifest or --backbone a run is marked *not the published setting*; a method that no recipe has
(FatFormer, B-Free) is run as its nearest one, *comparable, not the same method*. Both get no outcome.

A pattern (adapt/evaluation/target_patterns.csv) says that some figures are above others, and is claimed of any data
and encoder: `match` if our paired difference is surely above 0, `miss` if surely below, else `open`. Its page and
runs are in OUTPUT_DIR/patterns.

What is missing is named, with where to get it (repository of the hub, Zenodo record) and the command of `adapt
prepare` that makes its manifest, and the status is 2. Started again it continues. Time: that of the recipe on your
data; a probe with tiny on the embedded world about a minute. Expected: unknown for the figures, none of them has been
run for yet; for the seed's patterns results/README.md.
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
OPENAI_336 = "open_clip:ViT-L-14-336-quickgelu@openai"
COMMONPOOL = "open_clip:ViT-L-14@commonpool_xl_s13b_b90k"
DATACOMP = "open_clip:ViT-L-14@datacomp_xl_s13b_b90k"
PE = "open_clip:PE-Core-L-14-336@meta"
SIGLIP2 = "open_clip:ViT-gopt-16-SigLIP2-384@webli"
DINOV2 = "transformers:facebook/dinov2-large"
DINOV3 = "transformers:facebook/dinov3-vitl16-pretrain-lvd1689m"
DINOV3_7B = "transformers:facebook/dinov3-vit7b16-pretrain-lvd1689m"
CLEAN = {"train_views": ("none",)}
HALF = {"train_views": ("none", "blur1.5", "qf65", "blur1.5+qf65")}  # blur and JPEG, each on half of the images
PROBE = {"head": "logistic", "layer": "proj"}
LAST = {"head": "logistic", "layer": "last"}
SVM = {"head": "svm", "layer": "last"}
MLP = {"head": "mlp", "layer": "last"}
NAMED = {"classes": "generator"}
LORA = {"targets": "all", "rank": 8, "alpha": 8.0, "learning_rate": 1e-4}
EFFORT = {"update": "svd", "targets": "qkvo", "rank": 1, "alpha": 1.0, "learning_rate": 2e-4}
DDA = {"targets": "all", "rank": 8, "alpha": 1.0, "learning_rate": 1e-4}
MAPS = {"tune": "lora", "targets": "qv", "rank": 32, "layer": "last", "learning_rate": 3e-4, "residual": 0,
        "val_views": ("none",)}  # fmt: skip
SEED = "C is chosen on validation rows; the layer before the projection is read, the report's is not recorded"
AID = "AID was never published, and neither is the quality recorded: a set of your own"
CONFIGURATIONS = (  # name, targets, recipe, its flags, encoder, the same method?, what differs; the first match counts
    ("clipping-linear", ("clipping-linear-*",), "linear_probe", PROBE | CLEAN, OPENAI, False,
     "its checkpoint was trained for 2 epochs of SGD with flips and one of scaling, rotation, shift and cut-out per "
     "image, which are no views of ours (JPEG and blur are commented out in its code)"),
    ("cozzolino-svm", ("cozzolino-svm-*",), "linear_probe", SVM | CLEAN, COMMONPOOL, True,
     "features are standardised behind their normalisation; C is chosen on validation rows"),
    ("univfd", ("cozzolino-univfd-*", "bfree-univfd-*", "fatformer-univfd-*", "effort-genimage-univfd-*",
     "drct2m-univfd-*", "aigibench-unifd-*", "dda-univfd-*"), "linear_probe", PROBE | HALF, OPENAI, True,
     "the optimum of the penalised loss instead of AdamW; blur and JPEG of one strength each instead of ranges"),
    ("effort", ("effort-ufd19-*", "effort-paper-*", "effort-genimage-accuracy", "effort-genimage-midjourney-*",
     "effort-genimage-adm-*", "effort-genimage-biggan-*", "aigibench-effort-*"), "lora", EFFORT | HALF, OPENAI, False,
     "AdamW, whole groups, blur and JPEG of one strength each; none of Effort's losses on the weights"),
    ("lora", ("c2p-user-lora-*",), "lora", LORA | CLEAN, OPENAI, False,
     "a linear head instead of an MLP; rank and rate of the user are not recorded"),
    ("dda-lora", ("dda-dda-*", "aigibench-dda-*", "pespc-dda-*"), "lora", DDA | CLEAN, DINOV2, False,
     "LoRA as DDA has it, without its losses and its mixing of pixels and frequencies"),
    ("aigenbench-clip", ("aigenbench-clip-*",), "linear_probe", SVM | HALF, COMMONPOOL, False,
     "one probe on all training data instead of windows over time"),
    ("aigenbench-dinov2", ("aigenbench-dinov2-*",), "linear_probe", SVM | HALF, DINOV2, False,
     "one probe on all training data instead of windows over time"),
    ("clip-cues", ("clipcues-*",), "linear_probe", LAST | CLEAN, OPENAI_336, False,
     "the optimum of the penalised loss; how its probe was trained is not recorded"),
    ("blocks", ("rine-*", "whattruly-*"), "linear_probe", {"head": "rine"} | CLEAN, OPENAI, False,
     "RINE's weighting of the blocks without its contrastive loss and its augmentation"),
    ("frozen-dinov3", ("simplicity-dinov3-linear-*", "pespc-dinov3-*"), "linear_probe", LAST | CLEAN, DINOV3_7B, False,
     "the optimum of the penalised loss; which tokens the published layer reads is not recorded"),
    ("frozen-linear", ("simplicity-*-linear-*", "pespc-pe-linear-*", "ssafe-*", "viper-frozen-linear-*",
     "bfree-ablation-probe-*"), "linear_probe", LAST | CLEAN, PE, False,
     "the optimum of the penalised loss; give the published encoder with --backbone, its size is not recorded"),
    ("frozen-mlp", ("viper-frozen-mlp-*",), "linear_probe", MLP | CLEAN, PE, False,
     "give the published encoder with --backbone"),
    ("from-texts", ("pespc-pe-spc-*",), "linear_probe", {"head": "prototypes", "layer": "proj"} | CLEAN, PE, False,
     "the size of the encoder and the training set are not recorded"),
    ("fisher", ("fgts-*",), "linear_probe", {"head": "fisher"} | CLEAN, DINOV3_7B, False,
     "give the other sizes of DINOv3 with --backbone; the optimum of the penalised loss"),
    ("patch-mean", ("ntire-vincentlc-*",), "linear_probe", {"head": "logistic", "layer": "last_mean",
     "geometry": "squash"} | HALF, SIGLIP2, False,
     "the challenge's distortions in training are blur and JPEG here"),
    ("lora-r4", ("simplicity-*-lora-r4-*",), "lora", LORA | {"rank": 4, "alpha": 4.0} | CLEAN, DINOV3_7B, False,
     "which layers were adapted is not recorded; give the published encoder with --backbone"),
    ("lora-r8", ("simplicity-*-lora-r8-*",), "lora", LORA | CLEAN, DINOV3_7B, False,
     "which layers were adapted is not recorded; give the published encoder with --backbone"),
    ("maps", ("dinov3iml-*",), "localize", MAPS | CLEAN, DINOV3, False,
     "LoRA of q and v, rank 32, another head, whole groups, and one threshold chosen on validation rows"),
    ("seed-qf40", ("seed-table1-qf40-*",), "linear_probe", SVM | {"train_views": ("qf40",)}, DATACOMP, True, SEED),
    ("seed-qf65", ("seed-table1-qf65-*",), "linear_probe", SVM | {"train_views": ("qf65",)}, DATACOMP, True, SEED),
    ("seed-qf90", ("seed-table1-qf90-*",), "linear_probe", SVM | {"train_views": ("qf90",)}, DATACOMP, True, SEED),
    ("seed-synthbuster", ("seed-synthbuster-*",), "linear_probe", SVM | {"train_views": ("qf40",)}, DATACOMP, False,
     "the 9,000 photographs that no set before used are yours to pick; the quality of the test is not recorded"),
    ("seed-svm", ("seed-table2-binary-svm",), "linear_probe", SVM | CLEAN, DATACOMP, False, AID),
    ("seed-mlp", ("seed-table2-binary-mlp",), "linear_probe", MLP | CLEAN, DATACOMP, False, AID),
    ("seed-18class-svm", ("seed-table2-18class-svm",), "linear_probe", SVM | CLEAN | NAMED, DATACOMP, False, AID),
    ("seed-18class-mlp", ("seed-table2-18class-mlp",), "linear_probe", MLP | CLEAN | NAMED, DATACOMP, False, AID),
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
    from adapt.evaluation.targets import (
        Pattern,
        Target,
        listing,
        pattern_listing,
        read_patterns,
        read_sets,
        read_targets,
        select,
    )

    every, sets = read_targets(), read_sets()
    all_names: list[Target | Pattern] = [*every, *read_patterns(every)]
    chosen = select(all_names, cfg.only)
    targets = [one for one in chosen if isinstance(one, Target)]
    patterns = [one for one in chosen if isinstance(one, Pattern)]
    if cfg.list:
        print("\n".join(filter(None, [listing(targets), pattern_listing(patterns)])))
        return
    if not cfg.only:
        raise Refusal("name a published target, or a pattern of names: --list shows all of them")
    if patterns and cfg.configuration:
        raise Refusal(
            f"--configuration {cfg.configuration}: {patterns[0].name} compares several trainings; leave it out"
        )

    from adapt.sweeps.planned_runs import end, outcomes
    from adapt.sweeps.reproduction import (
        PATTERNS,
        RUN,
        Configuration,
        figures_of,
        jobs,
        missing,
        run_of,
        write_patterns,
        write_reproduction,
    )

    configurations = [Configuration(*line) for line in CONFIGURATIONS]
    given = {"precision": cfg.precision, "resamples": cfg.resamples, "num_workers": cfg.num_workers, "seed": cfg.seed}
    shared = {name: value for name, value in given.items() if value is not None}
    together = cfg.output_dir / PATTERNS  # the runs of all patterns have one page
    wanted = [(job, cfg.output_dir / job.name, RUN) for job in jobs(targets, every, configurations, cfg.configuration)]
    of_patterns = jobs(figures_of(patterns), every, configurations, cfg.configuration)
    wanted += [(job, together, job.name) for job in of_patterns]
    without, failed, placed, job_of, finished = [], [], [], {}, []
    for job, root, name in wanted:
        print(f"\n{job.name}: {', '.join(target.name for target in job.targets)}", flush=True)
        if not job.configuration.same:
            print(f"comparable, not the same method: recipes/{job.configuration.recipe}.py: {job.configuration.note}")
        backbone = cfg.backbone or job.configuration.backbone
        if lines := missing(job, sets, cfg.manifest, backbone):
            print("\n".join(["missing", *lines]))
            without.append(job.name)
            continue
        placed.append((run_of(name, job, sets, cfg.manifest, backbone, shared), root))
        job_of[root / name] = job
    for run, root, words in outcomes(placed, cfg.output_dir, cfg.processes, launched=cfg):
        if words:
            failed.append(run.name if root == together else root.name)
        elif root == together:
            finished.append((job_of[root / run.name], run))
        else:
            write_reproduction(cfg, job_of[root / run.name], run, root, sets)
    if patterns and len(finished) == len(of_patterns):
        write_patterns(cfg, patterns, finished, together, cfg.resamples, cfg.seed)
    end(failed)
    if without:
        raise Refusal(f"{len(without)} run(s) lack data or weights, named above: get them and start again")


if __name__ == "__main__":
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--only")  # the name alone
    run_recipe(main, Config)

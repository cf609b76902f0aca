"""Flags that several recipes and commands share, as frozen dataclasses that a `Config` inherits.

A recipe that needs another default or another meaning declares the flag again: its own line wins.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapt.cli import at_least
from adapt.errors import Refusal

LEAST: dict[int, tuple[str, ...]] = {  # smallest value of shared flags, wherever they are declared
    2: ("resamples",),  # one block says nothing of chance
    1: ("rank", "epochs", "groups", "gradient_accumulation_steps", "checkpointing_steps", "processes"),
    0: ("learning_rate", "head_learning_rate", "weight_decay", "warmup", "seed", "seeds"),
}


NOT_POOLED = {  # flags that do not go with --folds: the value that is off, why, and the remedy
    "rotate": (None, "what leaving each generator out costs is not pooled over folds; --leave_out NAME goes with it"),
    "permutations": (0, "labels permuted in each fold are no permutation of the set, p would be wrong; leave one out"),
}

MINUTES_AND_COUNTS = ("time", "cpus_per_task", "array_parallelism", "signal_delay_s")  # of --slurm: whole numbers
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
ONE_TASK = ("nodes", "ntasks", "ntasks_per_node", "array", "signal", "output", "error")  # of --slurm: set for the jobs


@dataclass(frozen=True)
class Checked:
    """Numbers of shared flags are refused below `LEAST`; a `Config` with flags of its own goes on from here."""

    def __post_init__(self) -> None:
        for low, names in LEAST.items():
            at_least(low, self, *(name for name in names if getattr(self, name, None) is not None))


@dataclass(frozen=True, kw_only=True)
class Rows(Checked):
    """Which images."""

    manifest: tuple[str, ...] = ("embedded",)  # tables of images; embedded[@SEED] is built in


@dataclass(frozen=True, kw_only=True)
class LeftOut(Checked):
    """What training and selection must not see."""

    leave_out: tuple[str, ...] = ()  # generators or families whose train and val rows are dropped: they are unseen


@dataclass(frozen=True, kw_only=True)
class Rotation(LeftOut):
    """How well generators are found that training has not seen: leave each out, and measure it."""

    rotate: Literal["generator", "family"] | None = None  # leave each one of training out in turn; a table of all


@dataclass(frozen=True, kw_only=True)
class Folds(Checked):
    """For sets too small to be split once: cross-validation over groups."""

    folds: int | None = None  # deal the groups to so many folds, each of which is the test once; a page of all
    fold: int | None = None  # only the run whose test is this fold, from 1; the others may run elsewhere

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds is not None and self.folds < 3:
            raise Refusal(f"--folds {self.folds}: give at least 3, for one is the test and one validates; 5 is usual")
        if self.fold is not None and not 1 <= self.fold <= (self.folds or 0):
            most = f"folds are numbered 1 to {self.folds}" if self.folds else "add --folds, the number of all"
            raise Refusal(f"--fold {self.fold}: {most}")
        for name, (off, why) in NOT_POOLED.items():
            if self.folds is not None and getattr(self, name, off) != off:
                raise Refusal(f"--folds does not go with --{name}: {why}")


@dataclass(frozen=True, kw_only=True)
class Encoder(Checked):
    """Which image encoder, and which of its features."""

    backbone: str = "tiny"  # LIBRARY:MODEL[@WEIGHTS], see adapt/models/README.md
    layer: str = "last"  # last (before the projection) | proj | blockK; _mean, _both, _tokens, _norm2; joined by +
    geometry: Literal["resize", "squash", "native"] | None = None  # native: crop; None: as the backbone was trained
    size: int | None = None  # side of its input in pixels, of any ViT; None: as the backbone was trained


@dataclass(frozen=True, kw_only=True)
class Views(Checked):
    """Under which degradations."""

    train_views: tuple[str, ...] = ("none", "qf90", "qf65", "qf40")  # one is drawn per group and epoch
    test_views: tuple[str, ...] = ("none", "qf90", "qf65", "qf40")  # all are scored


@dataclass(frozen=True, kw_only=True)
class Waiting(Checked):
    """How long processes wait for each other."""

    timeout_hours: float = 24.0  # how long processes wait for one that still encodes, hashes or scores


@dataclass(frozen=True, kw_only=True)
class Cached(Waiting):
    """How features of a frozen encoder are made and kept."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the encoder's weights
    encoder: Literal["auto", "plain", "packed"] = "auto"  # plain: the library's own tower; packed: towers/packed.py
    cache: Path | None = None  # folder of the feature cache; None: $ADAPT_CACHE/features
    cached_only: bool = False  # refuse to encode what `adapt extract` has not
    num_workers: int | None = None  # data processes; None: 1 on a CPU; a GPU: its share of cores, less one


@dataclass(frozen=True, kw_only=True)
class Steps(Waiting):
    """How a tower is trained, step by step."""

    epochs: int = 5  # passes over the training groups
    groups: int = 8  # groups per optimizer step, over all processes
    gradient_accumulation_steps: int = 1  # micro-batches per optimizer step; lora.py takes more where memory is short
    learning_rate: float = 4e-3  # step size for the adapters; 1e-4 suits CLIP ViT-L/14
    head_learning_rate: float = 4e-3  # step size for the linear head
    weight_decay: float = 1e-2  # AdamW's decay of the trained weights
    warmup: float = 0.05  # share of the steps with a rising rate; a cosine follows
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the frozen weights; adapters and head are always fp32
    checkpointing_steps: int = 100  # optimizer steps between checkpoints; every epoch ends with one
    tf32: bool = False  # GPUs train fp32 weights in TF32: faster, products of three digits instead of seven
    fast_kernels: bool = False  # GPUs may train with kernels that add in any order: faster, not repeatable bit for bit
    other_processes: bool = False  # continue a run that had another number of processes: not bit-identical
    tracker: tuple[Tracker, ...] = ("tensorboard",)  # where scalars go; TensorBoard is written beside any other
    num_workers: int | None = None  # data processes per process; None: 1 on a CPU; a GPU: its share of cores, less one


@dataclass(frozen=True, kw_only=True)
class Update(Checked):
    """Which small update of a tower is trained."""

    targets: Literal["qv", "qkvo", "mlp", "all", "norm"] = "all"  # layers that are adapted; norm: tune the norms only
    update: Literal["lora", "svd"] = "lora"  # svd: each weight's last `rank` singular directions (Effort: rank 1)
    rank: int = 8  # rank of each update
    alpha: float | None = None  # scale: the update of a LoRA is alpha / rank * B A; None: the rank
    dropout: float = 0.0  # share of the adapters' inputs that are set to 0 in training
    last_blocks: int | None = None  # adapt the last k blocks only
    cache_prefix: bool = False  # keep the tokens below those blocks on disk; trains on central crops
    checkpoint_activations: bool = False  # run blocks again in the backward pass: less memory, more time
    compile: bool = False  # torch.compile the trained part: a minute at the start, then fewer kernels per step

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "dropout", below=1)
        if self.alpha is None:  # one rule for every recipe: another rank leaves the size of the update as it is
            object.__setattr__(self, "alpha", float(self.rank))


@dataclass(frozen=True, kw_only=True)
class Tower(Encoder, Update, Steps):
    """A tower with its update, and how it is trained."""


@dataclass(frozen=True, kw_only=True)
class Intervals(Checked):
    """What stands behind every interval."""

    resamples: int = 200  # most blocks of groups that are left out in turn behind every interval
    seed: int = 0  # seed of every random draw: views, initial weights, blocks of groups


@dataclass(frozen=True, kw_only=True)
class Columns(Checked):
    """Which columns of a table of scores hold what, and what their values mean."""

    score: str | None = None  # column of scores; None: logit, p_fake, score, prob, prediction ... is found
    label: str | None = None  # column of labels (0/1, real/fake, human/ai ...); None: label, is_fake, target ...
    path: str | None = None  # column of names of images; None: path, file, filename, image ...
    group_by: str | None = None  # column that says which images belong together; None: group
    generator: str | None = None  # column of what made a fake; None: generator
    view: str | None = None  # column of what was done to the image, such as its JPEG quality; None: view
    split: str | None = None  # column of train, val or test; None: split, or every row is a test row
    fake_is: tuple[str, ...] = ()  # values of the label that mean fake; all others mean real
    score_is: Literal["probability", "percent", "logit"] | None = None  # None: a probability if all lie in 0..1
    higher_is: Literal["fake", "real"] | None = None  # what a higher score speaks for; None: fake


@dataclass(frozen=True, kw_only=True)
class Permutations(Checked):
    """The control with permuted labels."""

    permutations: int = 0  # control: train again on so many permutations of the labels; 19 or more make a test

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "permutations")


@dataclass(frozen=True, kw_only=True)
class Classes(Checked):
    """What the head tells apart."""

    classes: Literal["binary", "family", "generator"] = "binary"  # one logit, or one for each kind of fake beside real


@dataclass(frozen=True, kw_only=True)
class FineTuning(Rows, Tower, Classes, Views, Intervals, Permutations):
    """Everything that the loop of recipes/lora.py reads."""

    own_quality: bool = False  # in training, members of a group first get the JPEG quality of its photograph's file
    consistency: float = 0.0  # weight of the agreement between two views of each image; doubles the work
    ramp: int = (
        0  # chains of --train_views reach their full strength in this epoch, evenly from the first on; 0: at once
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "consistency", "ramp")
        if self.own_quality and self.cache_prefix:
            raise Refusal("--own_quality changes images in training, --cache_prefix keeps them: leave one out")
        if self.ramp and self.cache_prefix:
            raise Refusal("--ramp changes chains from epoch to epoch, --cache_prefix keeps them: leave one out")


@dataclass(frozen=True, kw_only=True)
class Aim(Checked):
    """What further training shows more often."""

    focus: Literal["holes"] | None = None  # holes: show more often what the --init detector is weakest at
    holes: int = 4  # how many (generator, view) cells count as its holes
    onboard: str | None = None  # a new generator to learn; it must have test rows only
    shots: int | None = None  # number of its groups to learn from; 0: the control, same steps and test rows
    focus_share: float = 0.5  # share of an epoch's groups that show a hole or the new generator

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "holes")
        if not 0 < self.focus_share < 1:
            raise Refusal(f"--focus_share {self.focus_share}: give a share between 0 and 1")
        if (self.onboard is None) != (self.shots is None) or (self.shots is not None and self.shots < 0):
            raise Refusal("--onboard GENERATOR and --shots go together: 1 or more, or 0 for the control without any")


@dataclass(frozen=True, kw_only=True)
class Shards(Checked):
    """One job of several that share the work."""

    shard: int = 0  # which part of the work this job does
    num_shards: int = 1  # how many parts there are

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_shards < 1:
            raise Refusal(f"--num_shards {self.num_shards}: give at least 1")
        if not 0 <= self.shard < self.num_shards:
            raise Refusal(f"--shard {self.shard}: {self.num_shards} shards are numbered 0 to {self.num_shards - 1}")


@dataclass(frozen=True, kw_only=True)
class Launched(Checked):
    """Where planned runs are started."""

    launcher: Literal["local", "slurm"] = "local"  # slurm: each run is a job, through submitit (extra `cluster`)
    slurm: tuple[str, ...] = ()  # options of sbatch for the jobs: time=MINUTES partition=gpu gpus_per_node=1 ...

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slurm and self.launcher != "slurm":
            raise Refusal(f"--slurm {' '.join(self.slurm)}: add --launcher slurm")
        for word in self.slurm:
            name, equals, value = word.partition("=")
            if not (name and equals and value):
                raise Refusal(f"--slurm {word}: give NAME=VALUE, an option of sbatch, such as partition=gpu")
            if name in MINUTES_AND_COUNTS and not (value.isdecimal() and int(value)):
                unit = "whole minutes, such as time=240" if name == "time" else "a whole number of at least 1"
                raise Refusal(f"--slurm {word}: give {unit}")
            if name.replace("-", "_") in ONE_TASK:
                raise Refusal(f"--slurm {word}: a run has one node and one task; --processes starts more on its GPUs")
        if self.launcher == "slurm" and not any(word.startswith("time=") for word in self.slurm):
            raise Refusal("--launcher slurm: add --slurm time=MINUTES, after which a run is requeued and continues")


@dataclass(frozen=True, kw_only=True)
class Sweep(Launched, Shards):
    """Which of many planned runs are started, and how."""

    processes: int = 1  # training processes per run
    only: tuple[str, ...] = ()  # run only these: patterns of names, such as 'probe-*' or '*-seed0'
    dry_run: bool = False  # print the plan and leave

"""One results directory: processes, optimizer steps, exact resume, tracking, provenance.

A run that is killed at any point and started again with the same command continues so that every later loss and the
final weights are bit-identical to those of a run that was never stopped, on the same hardware and versions. That
rests on four rules: data draws depend on (seed, epoch, group) only; the global generator is seeded from (seed, step,
micro-batch, rank) right before each forward pass; the learning rate is a function of the step; and the checkpoint of
an epoch's last step is written after that epoch's validation. A run that is stopped in a validation goes on from the
checkpoint before that step: it does the step again, and the validation.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar, cast

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import Dataset

from adapt import provenance, stop
from adapt.accelerate_launch import dynamo
from adapt.cli import Flags, as_dict, dump
from adapt.data.feed import feed
from adapt.data.groups import Batch, GroupSampler, collate
from adapt.errors import Refusal
from adapt.files import write_text
from adapt.flags import Steps, Waiting
from adapt.processes import Processes, allow_tf32
from adapt.progress import bar, write
from adapt.training import checkpoint
from adapt.training.trackers import Trackers, require_packages
from adapt.training.tracking import Track

# free to change when a run is continued
NOT_IDENTITY = {
    "output_dir",
    "num_workers",
    "checkpointing_steps",
    "checkpoint_activations",
    "cache",
    "cached_only",
    "timeout_hours",
    "other_processes",
    "launcher",
    "slurm",
    "tracker",
}
MAX_BAD_STEPS = 3
FEW = 16  # images in a GPU's pass; with fewer it waits for its host, which starts thousands of kernels for each pass
B_co = TypeVar("B_co", bound=Batch, covariant=True)


class RunConfig(Flags, Protocol):
    """What every recipe's config has."""

    @property
    def output_dir(self) -> Path: ...

    @property
    def seed(self) -> int: ...


class TrainingData(Protocol[B_co]):
    """Groups of images to train on: item (epoch, g) is group g as that epoch shows it."""

    group_weight: float  # of a group's images together, on average

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int], /) -> B_co: ...


class RunRecord(TypedDict, total=False):
    """provenance.json as it is read back; recipes add facts of their own."""

    command: str
    revision: str
    seed: int
    seconds: float
    training_minutes: float
    peak_memory_mib: int
    peak_gpu_memory_mib: int  # where there was a GPU
    date: str
    hardware: dict[str, str | int]
    versions: dict[str, str]
    unreadable_in_training: list[list[str]]
    data: str
    trained_on: list[str]
    trainable_parameters: int
    training_reals: int  # what the method was given: see `given` of report.py
    training_fakes: int
    views_per_image: int
    configurations: int
    validation_score: float
    detector: str  # which head of a comparison it is
    threshold: float  # of the detector, and how it was chosen, in words
    threshold_from: str
    items: list[str]  # of a study of a detector
    identity: dict[str, object]


class Run(Processes):
    """Everything around the lines that a scientist reads. `config` is the recipe's frozen dataclass."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config if isinstance(config, Waiting) else None)
        require_packages(getattr(config, "tracker", ()))
        self.config, self.folder, self.seed = config, Path(config.output_dir), config.seed
        self.step_number, self.seconds, self.epoch_ended = 0, 0.0, False
        self.selected: tuple[dict[str, float], dict[str, Tensor]] | None = None
        self.unreadable: set[tuple[str, str]] = set()
        self._started, self._bad = time.monotonic(), 0
        self._sums: list[Tensor] = []
        self.identity: dict[str, object] = {}
        self._revision = provenance.revision()
        self._images, self._clock, self._accumulation = 0, self._started, 1
        self._peaks: dict[str, int] = {}  # memory of earlier sittings
        self._training: dict[str, float] = {}  # what the training cost, once it is done
        if self.main:
            self._lock = checkpoint.hold(self.folder)
            checkpoint.remove_leftovers(self.folder)
        if self.device.type == "cuda":
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        self.say(f"{config.output_dir}: {self.accelerator.num_processes} process(es) on {self.device.type}")

    # -- start, resume, end ------------------------------------------------------------------------------------

    def finished(self, **identity: object) -> bool:
        """Whether this directory already holds the complete result of this very config; another one is refused.

        `identity`: further facts that are known before any work. The first process looks, for all of them.
        """
        path = self.folder / "provenance.json"
        before = self.of_first(lambda: json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None)
        if before is None:
            return False
        before, now = before["identity"], self._config_identity() | identity
        self._refuse_difference({key: before[key] for key in now if key in before}, now)
        return True

    def take_up(self, before: dict[str, object], step: int, **identity: object) -> None:
        """For a run that was scored, with the identity `before`, after `step` optimizer steps: open its logs again.

        `identity` (the digest of the data) and the config must be those of the run; a difference is refused and shown.
        """
        now = json.loads(json.dumps(self._config_identity() | identity))
        self._refuse_difference({key: before[key] for key in now if key in before}, now)
        self.identity, self.step_number = before, step
        self._open()

    def prepare(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Callable[[int], float], **identity: object
    ) -> nn.Module:
        """Wrap the model for the processes at hand and resume if the directory holds a checkpoint.

        `schedule(step)` scales every learning rate. `identity` (digests of data and backbone) and the config must be
        those of the checkpoint; a difference is refused and shown.
        """
        self.bare, self.optimizer, self._schedule = model.to(self.device), optimizer, schedule
        self.rates = [group["lr"] for group in optimizer.param_groups]
        steps = self.config if isinstance(self.config, Steps) else None
        # without warn_only, which would leave attention's backward pass to kernels that add in any order
        torch.use_deterministic_algorithms(self.device.type == "cuda" and not (steps and steps.fast_kernels))
        allow_tf32(steps is not None and steps.tf32)
        self._identify(identity | ({"dynamo": backend} if (backend := dynamo()) else {}))
        saved = checkpoint.load_same_checkpoint(self.folder, self)
        if saved is not None:
            tensors, state = saved
            self._refuse_difference(self._of_these_processes(state["identity"], steps), self.identity)
            checkpoint.load_trainable(self.bare, tensors["model"])
            checkpoint.load_optimizer(self.bare, optimizer, tensors["optimizer"])
            self.step_number, self.seconds = state["step"], state["seconds"]
            self._bad, self._peaks, self._accumulation = state["bad"], state["peaks"], state.get("accumulation", 1)
            self.unreadable = {(path, reason) for path, reason in state["unreadable"]}
            if state["selected"] is not None:
                self.selected = (state["selected"], tensors["selected"])
            self.say(f"resumed at step {self.step_number}")
            if state["threads"] != torch.get_num_threads():
                self.say(
                    f"computed with {state['threads']} threads before, {torch.get_num_threads()} now: "
                    "results may differ in the last bits"
                )
        self.accelerator.wait_for_everyone()
        self._open()
        parameters = checkpoint.trainable(self.bare).values()
        broadcast([p.data for p in parameters])  # machines may round a start that is computed, as of an SVD, otherwise
        self.model = self.accelerator.prepare_model(model, evaluation_mode=True)  # no DDP: see `_mean_gradients`
        return self.model

    def begin(self, **identity: object) -> None:
        """For a run without optimizer steps of its own (heads on cached features): open config.yaml and the logs.

        Call it when the features are there: what passed until then is not counted as training.
        """
        self._identify(identity)
        self._open()

    def trained(self) -> None:
        """Note what the training cost until now, without what went before it: reading, loading and encoding."""
        minutes = (self.elapsed() - self._preparation) / 60
        self._training = {"training_minutes": round(minutes, 4), **self._peak_memory()}

    def record(self, **facts: object) -> dict[str, object]:
        """What provenance.json says: how these numbers came about."""
        return {
            "command": provenance.command(),
            "revision": self._revision,
            "seed": self.seed,
            "seconds": round(self.elapsed(), 1),
            **(self._training or self._peak_memory()),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "hardware": provenance.hardware() | {"processes": self.accelerator.num_processes},
            "versions": provenance.versions(),
            "unreadable_in_training": [list(problem) for problem in sorted(self.unreadable)],
            **facts,
            "identity": self.identity,
        }

    def write_record(self, record: Mapping[str, object]) -> None:
        """Write provenance.json: the mark of a complete run."""
        write_text(self.folder / "provenance.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def end(self) -> None:
        """Close the logs and leave the group of processes."""
        self.close()
        self.leave()

    def close(self) -> None:
        """Close the logs, and let another start have the directory; the processes stay together for a next run."""
        if self.main:
            self.track.close()
            self._lock.close()

    def elapsed(self) -> float:
        """Seconds of work on this run, earlier interrupted sittings included."""
        return self.seconds + time.monotonic() - self._started

    # -- optimizer steps ---------------------------------------------------------------------------------------

    def steps(
        self,
        train: TrainingData[B_co],
        per_step: int,
        epochs: int,
        accumulation: int,
        workers: int,
        checkpointing_steps: int,
        steps_per_epoch: int | None = None,
    ) -> Iterator[B_co]:
        """Yield this process's micro-batches from where the run stands; the body ends with `self.step(loss)`.

        A checkpoint comes every `checkpointing_steps` steps, before the last step of each epoch and after its
        validation. A SIGTERM waits for one, but in a validation. A run that goes on takes at least as many
        micro-batches as before, so that its sums keep their order.
        """
        if self.step_number:
            accumulation = max(accumulation, self._accumulation)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        archive = getattr(train, "archive", None)  # features from the cache lie in no tar file
        sampler = GroupSampler(
            len(train), per_step, epochs, self.seed, accumulation, rank, world, self.step_number, steps_per_epoch,
            archive,
        )  # fmt: skip
        if sampler.per_step < world * accumulation:
            raise Refusal(
                f"--groups {sampler.per_step} per step cannot be shared by {world} processes x {accumulation} batches"
            )
        self._epoch_steps, self._accumulation = sampler.steps_per_epoch, accumulation
        self._checkpointing_steps = checkpointing_steps
        # groups, and weight, that a micro-batch of one process has on average: sums divided by them add up to means
        self.share_of_groups = sampler.per_step / (world * accumulation)
        self.share = self.share_of_groups * train.group_weight
        data = cast("Dataset[B_co]", train)  # a loader needs no more than TrainingData has
        loader = feed(data, self.device, workers, collate, batch_sampler=sampler)
        total = epochs * sampler.steps_per_epoch
        progress = bar(self.main, total=total, initial=self.step_number, unit="step", desc="train")
        self.model.train()
        stop.hold()
        for micro, batch in enumerate(loader):
            self.epoch_ended, self._micro = False, micro % accumulation
            if not micro:
                self._say_images(len(batch.fake))
            torch.manual_seed(hash((self.seed, self.step_number, self._micro, rank)))
            self.unreadable.update(batch.unreadable)
            self._seen, self._images = batch, self._images + len(batch.fake) * world
            last = self._micro == accumulation - 1
            yield batch.to(self.device)
            if last:
                progress.update()
        progress.close()

    def step(self, loss: Tensor, max_grad_norm: float) -> None:
        """Backward; at the last micro-batch of a step also clip, update, log, checkpoint, and heed a SIGTERM."""
        last = self._micro == self._accumulation - 1
        self.accelerator.backward(loss / self._accumulation)
        self._sums.append(loss.detach().float() / self._accumulation)
        if not last:
            return
        parameters = list(checkpoint.trainable(self.bare).values())
        self._mean_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        loss_value, norm_value, leave = self._mean(torch.stack(self._sums).sum(), norm, float(stop.asked()))
        self._sums = []
        factor = self._schedule(self.step_number)
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            self.optimizer.step()
            self._bad = 0
        else:
            self._skip_bad_step(loss_value)
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        self.epoch_ended = self.step_number % self._epoch_steps == 0
        self._log_step(loss_value, norm_value, factor)
        due = self.step_number % self._checkpointing_steps == 0 or (self.step_number + 1) % self._epoch_steps == 0
        if self.epoch_ended:  # its last checkpoint follows its validation, in `select`
            stop.release()
        elif due or leave:
            self.save(leave=leave > 0)

    def select(self, score: float, last: bool = False) -> None:
        """Keep the present weights if `score` (of validation data, higher is better) is the best so far; then save.

        `last` keeps them whatever the score: for data that validation rows do not stand for.
        """
        stop.hold()
        if last or self.selected is None or score > self.selected[0]["score"]:
            weights = {name: p.detach().cpu().clone() for name, p in checkpoint.trainable(self.bare).items()}
            self.selected = ({"epoch": self.step_number // self._epoch_steps, "score": score}, weights)
        self.save(leave=self._mean(float(stop.asked()))[0] > 0)
        self.model.train()

    def use_selected(self) -> dict[str, float]:
        """Put the selected epoch's weights back; returns {"epoch", "validation_score"}."""
        torch.use_deterministic_algorithms(False)
        allow_tf32(False)
        stop.release()
        self.trained()
        assert self.selected is not None, "no epoch was finished: `select` keeps the weights of the best"
        info, weights = self.selected
        checkpoint.load_trainable(self.bare, weights)
        return {"epoch": info["epoch"], "validation_score": info["score"]}

    def save(self, leave: bool = False) -> None:
        """Publish checkpoint-N; with `leave`, end the process as a SIGTERM asks for."""
        problems = sorted(set(self.gather(sorted(self.unreadable))))
        if self.main:
            tensors: dict[str, Mapping[str, Tensor]] = {
                "model": checkpoint.trainable(self.bare),
                "optimizer": checkpoint.optimizer_tensors(self.bare, self.optimizer),
            }
            if self.selected is not None:
                tensors["selected"] = self.selected[1]
            state = {
                "identity": self.identity,
                "seconds": self.elapsed(),
                "unreadable": problems,
                "bad": self._bad,
                "peaks": self._peak_memory(),
                "threads": torch.get_num_threads(),
                "accumulation": self._accumulation,
                "selected": self.selected and self.selected[0],
            }
            self.track.flush()
            checkpoint.save_checkpoint(self.folder, self.step_number, tensors, state)
        self.unreadable = set(problems)
        self.accelerator.wait_for_everyone()
        if leave:
            words = f"stopped after step {self.step_number}: start the same command again to continue"
            raise stop.Stopped(words)

    def _say_images(self, images: int) -> None:
        """On a GPU: how many images it gets at once, and what to do if they are few."""
        if self.device.type == "cuda":
            few = f": below {FEW} it mostly waits; give larger --groups, which all processes share"
            self.say(f"{images} images per GPU in a pass{few if images < FEW else ''}")

    # -- words, numbers, pictures --------------------------------------------------------------------------------

    def log(self, values: dict[str, float]) -> None:
        """Scalars at the present step, to TensorBoard and --tracker."""
        if self.main:
            self.track.scalars(values, self.step_number)

    def _log_step(self, loss: float, norm: float, factor: float) -> None:
        now = time.monotonic()
        speed, self._images, self._clock = self._images / (now - self._clock), 0, now
        if self.main:
            rate = self.rates[0] * factor
            self.track.line({"step": self.step_number, "loss": loss, "grad_norm": norm, "lr": rate})
            self.log({"train/loss": loss, "train/lr": rate, "train/grad_norm": norm, "train/images_per_s": speed})

    def _peak_memory(self) -> dict[str, int]:
        """MiB so far, over all sittings: resident memory of this process, and what its tensors took of the GPU."""
        peaks = {"peak_memory_mib": provenance.peak_memory()}
        if self.device.type == "cuda":
            peaks["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**20)
        return {name: max(value, self._peaks.get(name, 0)) for name, value in peaks.items()}

    # -- inner ---------------------------------------------------------------------------------------------------

    def _identify(self, identity: dict[str, object]) -> None:
        identity = self._config_identity() | identity | {"processes": self.accelerator.num_processes}
        self.identity = json.loads(json.dumps(identity))

    def _open(self) -> None:
        self._preparation = time.monotonic() - self._started  # of this sitting
        if self.main:
            write_text(self.folder / "config.yaml", dump(self.config))
            # not self.say: what held the run would keep it, and its lock, where it is dropped because it failed
            trackers = Trackers(self.folder, getattr(self.config, "tracker", ()), as_dict(self.config), write)
            self.track = Track(self.folder, self.step_number, dump(self.config), trackers)

    def _config_identity(self) -> dict[str, object]:
        return {key: value for key, value in as_dict(self.config).items() if key not in NOT_IDENTITY}

    def _of_these_processes(self, before: dict[str, object], steps: Steps | None) -> dict[str, object]:
        """The identity of a checkpoint, under as many processes as there are where `--other_processes` allows it."""
        count = self.accelerator.num_processes
        if before["processes"] == count or not (steps and steps.other_processes):
            return before
        self.say(
            f"{before['processes']} process(es) before, {count} now: not bit-identical to a run with either number"
        )
        return before | {"processes": count}

    def _refuse_difference(self, before: dict[str, object], now: dict[str, object]) -> None:
        # a flag that is newer than the run had its default then
        defaults = {f.name: f.default for f in dataclasses.fields(self.config) if f.name in now}
        before = json.loads(json.dumps(defaults, default=str)) | before
        before, now = _without_commit(before), _without_commit(now)
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if keys:
            changes = "; ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in keys)
            other = "--other_processes continues it, not bit-identically; or " if keys == ["processes"] else ""
            raise Refusal(
                f"{self.folder} holds a run with other settings ({changes}): {other}choose another --output_dir, or "
                "delete it"
            )

    def _skip_bad_step(self, loss: float) -> None:
        self._bad += 1
        groups = sorted(set(self._seen.group.tolist()))
        self.say(f"step {self.step_number}: loss {loss}, gradients not finite; update skipped (groups {groups[:8]})")
        if self._bad >= MAX_BAD_STEPS:
            self.say(f"{MAX_BAD_STEPS} such steps in a row: stopped. The last good checkpoint is kept; lower the rate")
            sys.exit(3)

    def _mean_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Means over processes, in one sum of a fixed layout.

        DDP lays out its buckets anew after its first step, and where a number stands decides in which order three or
        more processes add it up: a run that goes on would round otherwise. Adapters are too small to gain by sums
        beside the backward pass.
        """
        if self.accelerator.num_processes == 1:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        mean = self.accelerator.reduce(torch.cat([grad.float().flatten() for grad in grads]), "mean")
        for parameter, grad, part in zip(parameters, grads, mean.split([g.numel() for g in grads]), strict=True):
            parameter.grad = part.view_as(grad).to(grad.dtype)

    def _mean(self, *values: Tensor | float) -> list[float]:
        """Means over processes, so that all of them take the same decision."""
        local = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self.device)
        return self.accelerator.reduce(local, "mean").tolist()


def warmup_cosine(total: int, share: float) -> Callable[[int], float]:
    """A schedule: linear from 0 over this share of the steps, then half a cosine to 0 at `total` (arXiv:1608.03983,
    eq. 5)."""
    warmup = int(share * total)

    def schedule(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return schedule


def _without_commit(identity: dict[str, object]) -> dict[str, object]:
    """The weights' digest decides; a repository of the hub gets commits that leave them as they are."""
    base = identity.get("base")
    return identity | {"base": {**base, "commit": None}} if isinstance(base, dict) else identity

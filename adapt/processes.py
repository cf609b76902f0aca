"""The processes of one launch: which device, which share of the rows, one voice."""

import math
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol, TypedDict, TypeVar, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from adapt import stop
from adapt.errors import Refusal
from adapt.flags import Waiting
from adapt.progress import write
from adapt.provenance import cores

AT_ONCE = 64 << 20  # bytes that a process gives to the others at once
G = TypeVar("G", list, np.ndarray)
T = TypeVar("T")


class Gather(Protocol):
    """Items of all processes, in all processes, those of the first one first.

    An array, whose first axis is rows, is for what each row has: objects of a list are pickled one by one.
    """

    def __call__(self, items: G, /) -> G: ...


def alone(items: G) -> G:
    """`Gather` of a single process."""
    return items


def allow_tf32(allowed: bool) -> None:
    """Whether GPUs may multiply fp32 in TF32, in products and in convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def gather_words(gather: Gather, words: Sequence[str]) -> np.ndarray:
    """`gather` of one word per row, of which few differ: (n,) object."""
    known = sorted(set(gather(sorted(set(words)))))
    number = {word: place for place, word in enumerate(known)}
    return np.array(known, dtype=object)[gather(np.array([number[word] for word in words], dtype=np.int64))]


def dealt(values: np.ndarray, world: int) -> np.ndarray:
    """The inverse of `rows[rank::world]` in each process and `gather`: values in the order of the rows."""
    out = np.empty_like(values)
    out[np.concatenate([np.arange(len(values))[rank::world] for rank in range(world)])] = values
    return out


class Encoding(TypedDict):
    """Arguments of `adapt.features.cache.extract` that depend on the processes."""

    workers: int
    share: tuple[int, int]
    gather: Gather
    say: Callable[[str], object] | None


class Scoring(TypedDict):
    """Arguments of `adapt.detector.detector.score` that depend on the processes."""

    workers: int
    share: tuple[int, int]
    gather: Gather


class Processes:
    """What `accelerate launch`, `torchrun` or plain `python` has started; the first process speaks."""

    def __init__(self, waiting: Waiting | None = None) -> None:
        stop.heed()
        waiting = waiting or Waiting()
        if not waiting.timeout_hours > 0:
            raise Refusal(f"--timeout_hours {waiting.timeout_hours}: give more than 0")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on a GPU
        # cpu=True also makes `torchrun` without a GPU form one group instead of silent independent copies
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=waiting.timeout_hours))
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[patience]
        )
        wanted = int(os.environ.get("ADAPT_PROCESSES") or os.environ.get("WORLD_SIZE") or 1)
        if wanted != self.accelerator.num_processes:
            raise Refusal(
                f"asked for {wanted} processes, running as {self.accelerator.num_processes}: `accelerate launch "
                "--cpu` starts one only; use `torchrun --nproc_per_node N recipes/...`"
            )
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        allow_tf32(False)  # PyTorch's own defaults differ between products and convolutions

    @property
    def share_of_rows(self) -> tuple[int, int]:
        """(rank, world): which rows this process works on."""
        return self.accelerator.process_index, self.accelerator.num_processes

    def gather(self, items: G) -> G:
        """See `Gather`."""
        if self.accelerator.num_processes == 1:
            return items
        return gather_object(items) if isinstance(items, list) else self._gather_rows(items)

    def of_first(self, find: Callable[[], T]) -> T:
        """What the first process finds, in all of them; so is its refusal. For what lies on a disk: others may read it
        too early, too late, or on a machine of their own."""
        found: T | None = None
        refused = None
        if self.main:
            try:
                found = find()
            except Refusal as refusal:
                refused = refusal
        found, refused = broadcast_object_list([found, refused])
        if refused is not None:
            try:
                raise refused
            finally:
                del refused  # else it and its traceback would keep each other, and a run's lock with them
        return cast("T", found)

    def _gather_rows(self, values: np.ndarray) -> np.ndarray:
        """As bytes in pieces of equal size: collectives want tensors of one shape."""
        if values.dtype.hasobject:
            raise ValueError("an array of objects holds addresses of this process: give a list")
        counts: list[int] = gather_object([len(values)])
        width = values.dtype.itemsize * math.prod(values.shape[1:])
        own = torch.from_numpy(np.array(values, order="C").reshape(-1).view(np.uint8).reshape(len(values), width))
        piece = max(1, AT_ONCE // max(1, width))
        found: list[list[torch.Tensor]] = [[] for _ in counts]
        for start in range(0, max(counts), piece):
            rows = min(piece, max(counts) - start)
            given = torch.zeros(rows, width, dtype=torch.uint8)
            part = own[start : start + rows]
            given[: len(part)] = part
            of_all = self.accelerator.gather(given.to(self.device)).cpu().view(len(counts), rows, width)
            for rank, count in enumerate(counts):
                found[rank].append(of_all[rank, : max(0, count - start)].clone())
        joined = torch.cat([own[:0], *(part for parts in found for part in parts)])
        return joined.numpy().reshape(-1).view(values.dtype).reshape(sum(counts), *values.shape[1:])

    def workers(self, asked: int | None) -> int:
        """Data processes: as asked, else one beside a CPU that is busy with the model itself, and for a GPU all cores
        but one of this process's share of the machine."""
        if asked is not None:
            return asked
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun and by accelerate launch
        return max(1, cores() // here - 1) if self.device.type == "cuda" else 1

    def scoring(self, num_workers: int | None) -> Scoring:
        """What `adapt.detector.detector.score` needs to know about the processes."""
        return {"workers": self.workers(num_workers), "share": self.share_of_rows, "gather": self.gather}

    def encoding(self, num_workers: int | None) -> Encoding:
        """What `adapt.features.cache.extract` needs to know about the processes."""
        return {
            "workers": self.workers(num_workers),
            "share": self.share_of_rows,
            "gather": self.gather,
            "say": self.say if self.main else None,
        }

    def say(self, text: str) -> None:
        """One line for the user, from the main process."""
        if self.main:
            write(text)

    def leave(self) -> None:
        """Leave the group of processes."""
        self.accelerator.end_training()

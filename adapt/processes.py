"""The processes of one launch: which device, which share of the rows, one voice."""

import os
from collections.abc import Callable
from typing import TypedDict

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from adapt import stop
from adapt.errors import Refusal
from adapt.provenance import cores


class Encoding(TypedDict):
    """Arguments of `adapt.features.cache.extract` that depend on the processes."""

    workers: int
    share: tuple[int, int]
    gather: Callable[[list], list]
    say: Callable[[str], object] | None


class Scoring(TypedDict):
    """Arguments of `adapt.detector.detector.score` that depend on the processes."""

    workers: int
    share: tuple[int, int]
    gather: Callable[[list], list]


class Processes:
    """What `accelerate launch`, `torchrun` or plain `python` has started; the first process speaks."""

    def __init__(self) -> None:
        stop.heed()
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on a GPU
        # cpu=True also makes `torchrun` without a GPU form one group instead of silent independent copies
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
        wanted = int(os.environ.get("ADAPT_PROCESSES") or os.environ.get("WORLD_SIZE") or 1)
        if wanted != self.accelerator.num_processes:
            raise Refusal(
                f"asked for {wanted} processes, running as {self.accelerator.num_processes}: `accelerate launch "
                "--cpu` starts one only; use `torchrun --nproc_per_node N recipes/...`"
            )
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process

    @property
    def share_of_rows(self) -> tuple[int, int]:
        """(rank, world): which rows this process works on."""
        return self.accelerator.process_index, self.accelerator.num_processes

    def gather(self, items: list) -> list:
        """The items of all processes, in all processes."""
        return gather_object(items)

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
            tqdm.write(text)

    def leave(self) -> None:
        """Leave the group of processes."""
        self.accelerator.end_training()

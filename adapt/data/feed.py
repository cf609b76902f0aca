"""Data processes that feed a device: batches joined where they are made, ahead of time, pinned for a GPU."""

from collections.abc import Callable, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from adapt.data.groups import heed_main_process

AHEAD = 8  # batches in all that data processes make ahead of a GPU, at least 2 each: one slow image stops no device


def feed(
    data: Dataset,
    device: torch.device,
    workers: int,
    collate: Callable[[list], object] | None,
    *,
    batch_size: int | None = 1,
    sampler: Sequence[int] | None = None,
    batch_sampler: Sampler | Sequence[list[int]] | None = None,
) -> DataLoader:
    """A loader of `data` for `device`; what a batch is, is said as to `DataLoader`.

    `collate` should join the tensors of a batch into few: each is a file descriptor on its way from a data process.
    For a GPU they lie in pinned memory, so that `to(device, non_blocking=True)` does not wait.
    """
    gpu = device.type == "cuda"
    return DataLoader(
        data,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=heed_main_process,
        prefetch_factor=max(2, AHEAD // workers) if gpu and workers else None,
        pin_memory=gpu,
        batch_size=batch_size,
        sampler=sampler,
        batch_sampler=batch_sampler,
    )

"""How many micro-batches a step takes, so that each fits into memory.

A step's groups, and so what is learnt, stay the same: with more micro-batches only the order of sums changes.
"""

import gc
import os

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from adapt.data.groups import Groups
from adapt.errors import Refusal
from adapt.processes import Processes
from adapt.training.on_features import FeatureGroups

SHARE = 0.8  # of the memory that is free


def accumulation_that_fits(
    processes: Processes, model: nn.Module, train: Groups | FeatureGroups, per_step: int, asked: int
) -> int:
    """Micro-batches per optimizer step: `asked`, doubled until one with the largest groups fits.

    On a GPU it is tried, forward and backward; a CPU's system would end the process instead of saying no, so there
    the bytes that one image keeps are counted and compared with what is free. Refuses if one group is too much.
    """
    per_step, world = min(per_step, len(train)), processes.accelerator.num_processes
    sizes = sorted((len(rows) for rows in train.groups), reverse=True)
    first = train[0, 0].inputs
    example = first[:1].clone() if len(first) else first.new_zeros(1, *first.shape[1:])
    accumulation = asked
    copies = 2 if train.twins else 1
    while not _fits(
        model, example.to(processes.device), copies * sum(sizes[: -(-per_step // (world * accumulation))])
    ):
        if per_step < 2 * world * accumulation:
            raise Refusal(
                f"a micro-batch of {-(-per_step // (world * accumulation))} groups does not fit into memory: give "
                "--checkpoint_activations, a smaller --last_blocks, or larger --groups to share between processes"
            )
        accumulation *= 2
    found = max(processes.gather([accumulation]))
    if found > asked:
        processes.say(f"memory: {found} micro-batches a step instead of {asked}; the groups of a step are the same")
    return found


def _fits(model: nn.Module, example: Tensor, images: int) -> bool:
    """Whether a forward and a backward pass over so many images have room; --compile keeps no more than that."""
    with torch.compiler.set_stance("force_eager"):
        return _fits_eagerly(model, example, images)


def _fits_eagerly(model: nn.Module, example: Tensor, images: int) -> bool:
    if example.device.type == "cpu":
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that share this memory
        return images * kept_bytes(model, example) < SHARE * psutil.virtual_memory().available / beside
    devices = [example.device] if example.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            model(example.expand(images, *example.shape[1:])).sum().backward()
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        gc.collect()
        if devices:
            torch.cuda.empty_cache()
    return True


def kept_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward one, weights aside; a tensor that is kept twice counts once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # the tensors too: a freed address would come again

    def pack(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            kept[place] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(pack, lambda tensor: tensor):
        model(inputs)
    return sum(size for size, _ in kept.values())

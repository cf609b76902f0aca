"""Training state on disk: published whole, verified on reading, rotated afterwards.

`checkpoint-N/` holds what optimizer step N needs and nothing of the frozen tower: `model.safetensors` (trainable
parameters), `optimizer.safetensors`, `selected.safetensors` (the best epoch so far, once there is one) and
`trainer_state.json` with a SHA-256 of each. N is the number of finished optimizer steps.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapt.errors import Refusal
from adapt.files import FULL, disk_full, sha256, sync
from adapt.lock import Lock
from adapt.processes import Processes
from adapt.text import one_line

STATE = "trainer_state.json"

KEPT = 2  # checkpoints of a run


class State(TypedDict):
    """What trainer_state.json says of a run beside its tensors."""

    step: int
    sha256: dict[str, str]  # by file
    identity: dict[str, object]
    seconds: float
    unreadable: list[list[str]]  # path, reason
    bad: int  # steps in a row without finite gradients
    peaks: dict[str, int]  # memory
    threads: int
    accumulation: int
    selected: dict[str, float] | None  # the best epoch so far


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, object]
) -> None:
    """Write `checkpoint-step` under `folder`: one safetensors file per entry of `tensors`, and the JSON `state`.

    The folder appears under its name only when every byte is on the disk; older ones beyond `KEPT` go only then.
    """
    final = folder / f"checkpoint-{step}"
    temporary = folder / f".checkpoint-{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, values in tensors.items():
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in values.items()},
                temporary / f"{name}.safetensors",
            )
        digests = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / STATE).write_text(json.dumps({**state, "step": step, "sha256": digests}), encoding="utf-8")
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if disk_full(error):
            words = FULL.format(f" while writing {final} ({one_line(str(error), 200)})")
            raise Refusal(f"{words}; earlier checkpoints are intact") from error
        if isinstance(error, OSError):
            raise Refusal(f"cannot write {final}: {error}; earlier checkpoints are intact") from error
        raise
    shutil.rmtree(final, ignore_errors=True)  # only ever a damaged one: resuming starts behind the newest good one
    temporary.replace(final)
    sync(folder)
    for old in list(_newest_first(folder))[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], State] | None:
    """Tensors and state of the newest checkpoint whose files are all as they were written; None if there is none."""
    for path in _newest_first(folder):
        if (found := _read(path)) is not None:
            return found
        print(f"{path.name} is damaged and left out: its files are not those that were written")
    return None


def load_same_checkpoint(folder: Path, processes: Processes) -> tuple[dict[str, dict[str, Tensor]], State] | None:
    """As `load_checkpoint`: what the first process finds, in all processes. Refuses if another one reads otherwise,
    as from a folder of a machine of its own."""
    found = load_checkpoint(folder) if processes.main else None
    step = processes.of_first(lambda: found and found[1]["step"])
    if step is not None and not processes.main:
        found = _read(folder / f"checkpoint-{step}")
    states = processes.gather([found and found[1]])
    others = [str(rank) for rank, state in enumerate(states) if state != states[0]]
    if others:
        raise Refusal(
            f"process {', '.join(others)} does not read the checkpoint-{step} of {folder} that process 0 reads: "
            "give an --output_dir that all machines share"
        )
    return found


def _read(path: Path) -> tuple[dict[str, dict[str, Tensor]], State] | None:
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if all(sha256(path / name) == digest for name, digest in state["sha256"].items()):
            return {Path(name).stem: load_file(path / name) for name in state["sha256"]}, state
    except (OSError, ValueError, KeyError):
        pass
    return None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trainable(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy saved values into the trainable parameters; every name must match."""
    parameters = trainable(model)
    if parameters.keys() != tensors.keys():
        raise Refusal(f"checkpoint and model differ in {sorted(parameters.keys() ^ tensors.keys())[:3]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as a flat dict "parameter|entry" -> tensor; it has nothing but tensors per parameter."""
    return {
        f"{name}|{entry}": value
        for name, parameter in trainable(model).items()
        for entry, value in optimizer.state[parameter].items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = trainable(model)
    for key, value in tensors.items():
        name, _, entry = key.rpartition("|")
        # step counters stay on the CPU, unless one kernel updates them with the rest
        moves = value.ndim or optimizer.defaults.get("fused")
        device = parameters[name].device if moves else value.device
        optimizer.state[parameters[name]][entry] = value.to(device)


def _newest_first(folder: Path) -> Iterator[Path]:
    numbered = [
        (int(p.name.removeprefix("checkpoint-")), p) for p in folder.glob("checkpoint-*") if p.name[11:].isdigit()
    ]
    return (path for _, path in sorted(numbered, reverse=True))


def remove_leftovers(folder: Path) -> None:
    """Half-written checkpoints of a process that was killed."""
    for path in folder.glob(".checkpoint-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def hold(folder: Path) -> Lock:
    """Lock a run's folder; a second run in the same folder is refused."""
    return Lock(folder / ".lock", f"{folder} is in use by another run: wait for it or choose another --output_dir")

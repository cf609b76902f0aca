"""What `accelerate launch` was asked for, by its flags or its configuration file: honoured, or refused in one line.

It speaks to the processes that it starts through environment variables `ACCELERATE_*`.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from adapt.errors import Refusal

if TYPE_CHECKING:
    from adapt.cli import Flags

C = TypeVar("C", bound="Flags")
ENGINES = {  # what shards a model over processes; adapters and heads fit into one
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
WORLDS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # set by what starts a group


def honour(config: C, environment: Mapping[str, str] = os.environ) -> C:
    """The config with what the launch asks for in place of defaults; refuses what is not possible here.

    bf16 as mixed precision is `precision: bf16` (frozen weights in bf16, trained ones in fp32), and micro-batches per
    step are `gradient_accumulation_steps`. A backend of dynamo is heeded where the trained model is prepared.
    """
    for name, engine in ENGINES.items():
        if environment.get(name, "").lower() in ("1", "true"):
            raise Refusal(
                f"accelerate launch asks for {engine}: every process holds the whole model here, and processes share "
                "the images of a step; launch with --multi_gpu, or with a configuration file of distributed_type "
                "MULTI_GPU"
            )
    alone = not any(environment.get(name) for name in WORLDS)
    if environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and environment.get("MASTER_ADDR") and alone:
        raise Refusal(
            "accelerate launch asks for several processes on CPUs (MULTI_CPU) and starts one: start them with "
            "`torchrun --nproc_per_node N recipes/...`, or with `ADAPT_PROCESSES=N ./launch.sh`"
        )
    changes = _precision(config, environment) | _micro_batches(config, environment)
    return dataclasses.replace(config, **changes) if changes else config


def dynamo(environment: Mapping[str, str] = os.environ) -> str:
    """The backend of dynamo that the launch asks for, "" for none."""
    asked = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    return "" if asked == "no" else asked


def _precision(config: "Flags", environment: Mapping[str, str]) -> dict[str, str]:
    asked, own = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower(), getattr(config, "precision", None)
    if asked == "no" or own is None:
        return {}
    if asked != "bf16":
        raise Refusal(
            f"accelerate launch --mixed_precision {asked}: only bf16 is possible here, or no and --precision"
        )
    if own == "fp32":
        raise Refusal("accelerate launch --mixed_precision bf16 contradicts --precision fp32: leave one of them out")
    return {"precision": "bf16"}


def _micro_batches(config: "Flags", environment: Mapping[str, str]) -> dict[str, int]:
    text, own = (
        environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
        getattr(config, "gradient_accumulation_steps", None),
    )
    if own is None or text == "1":
        return {}
    if not text.isdecimal() or int(text) < 1:
        raise Refusal(f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={text}: give a whole number, 1 or more")
    if own not in (1, int(text)):
        raise Refusal(
            f"accelerate launch asks for {text} micro-batches per step, --gradient_accumulation_steps for {own}: "
            "leave one of them out"
        )
    return {"gradient_accumulation_steps": int(text)}

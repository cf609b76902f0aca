"""What accelerate's launcher is asked for is honoured, or refused in one line before any work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from adapt.accelerate_launch import dynamo, honour
from adapt.errors import Refusal
from adapt.flags import Cached, FineTuning, Rows

ROOT = Path(__file__).parents[1]
LORA = ("--epochs", "1", "--groups", "2", "--rank", "2", "--num_workers", "0", "--resamples", "20")
VIEWS = ("--train_views", "none", "--test_views", "none")


def launch(*words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    accelerate = (sys.executable, "-m", "accelerate.commands.launch", "--quiet")
    return subprocess.run(
        [*accelerate, *map(str, words)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_mixed_precision_is_the_precision_of_frozen_weights() -> None:
    asked = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    assert honour(FineTuning(), asked).precision == honour(Cached(), asked).precision == "bf16"
    assert honour(FineTuning(precision="bf16"), asked).precision == "bf16"
    assert honour(FineTuning(), {"ACCELERATE_MIXED_PRECISION": "no"}).precision == "auto"
    assert honour(Rows(), asked) == Rows()
    with pytest.raises(Refusal, match="bf16 contradicts --precision fp32"):
        honour(FineTuning(precision="fp32"), asked)
    for other in ("fp16", "fp8"):
        with pytest.raises(Refusal, match=f"--mixed_precision {other}: only bf16"):
            honour(FineTuning(), {"ACCELERATE_MIXED_PRECISION": other})


def test_micro_batches_are_those_of_the_launch() -> None:
    asked = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    assert honour(FineTuning(), asked).gradient_accumulation_steps == 4
    assert honour(FineTuning(gradient_accumulation_steps=4), asked).gradient_accumulation_steps == 4
    assert honour(Cached(), asked) == Cached()
    with pytest.raises(Refusal, match="4 micro-batches per step, --gradient_accumulation_steps for 2"):
        honour(FineTuning(gradient_accumulation_steps=2), asked)
    for wrong in ("0", "auto", "-1"):
        with pytest.raises(Refusal, match=f"STEPS={wrong}: give a whole number"):
            honour(FineTuning(), {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": wrong})


def test_a_plain_start_is_left_as_it_is() -> None:
    config = FineTuning()
    assert honour(config, {}) is config and dynamo({}) == ""
    assert honour(config, {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}) is config
    assert honour(config, {"MASTER_ADDR": "127.0.0.1"}) is config  # as scripts for SLURM set it
    assert dynamo({"ACCELERATE_DYNAMO_BACKEND": "NO"}) == "" and dynamo({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}, "asks for FSDP: every process holds"),
        ({"distributed_type": "MULTI_CPU"}, "asks for several processes on CPUs (MULTI_CPU) and starts one"),
        ({"distributed_type": "NO", "num_processes": 1, "mixed_precision": "fp16"}, "fp16: only bf16"),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_one_line(settings, said, tmp_path) -> None:
    """As `accelerate config` writes it."""
    common = {"compute_environment": "LOCAL_MACHINE", "num_processes": 2, "num_machines": 1, "use_cpu": True}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(common | {"mixed_precision": "no"} | settings))
    done = launch("--config_file", tmp_path / "accelerate.yaml", "recipes/lora.py", "--output_dir", tmp_path / "run")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode != 0 and len(lines) == 1 and said in lines[0], done.stderr
    assert "Traceback" not in done.stderr.partition("error:")[0] and not (tmp_path / "run").exists()


def test_a_launch_in_bf16_and_one_with_dynamo_do_what_they_say(subtle, tmp_path) -> None:
    """The frozen weights are bf16, so losses differ; compiled, losses are those of the plain run but for rounding."""
    run = ("recipes/lora.py", "--manifest", subtle, *LORA, *VIEWS, "--output_dir")
    for name, flags in {
        "plain": ("--mixed_precision", "no", "--dynamo_backend", "no"),
        "bf16": ("--mixed_precision", "bf16", "--dynamo_backend", "no"),
        "compiled": ("--mixed_precision", "no", "--dynamo_backend", "aot_eager"),
    }.items():
        done = launch("--num_processes", 1, "--cpu", *flags, *run, tmp_path / name)
        assert done.returncode == 0, done.stderr[-2000:]
    said = {name: yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("plain", "bf16")}
    assert (said["plain"]["precision"], said["bf16"]["precision"]) == ("auto", "bf16")
    detector = json.loads((tmp_path / "bf16/detector/detector.json").read_text())
    assert detector["precision"] == "bfloat16"
    record = json.loads((tmp_path / "compiled/provenance.json").read_text())
    assert record["identity"]["dynamo"] == "aot_eager"
    plain = losses(tmp_path / "plain")
    assert losses(tmp_path / "compiled") == pytest.approx(plain, abs=1e-5) and len(plain) > 3
    assert losses(tmp_path / "bf16") != plain and losses(tmp_path / "bf16") == pytest.approx(plain, abs=0.05)

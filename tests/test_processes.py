"""What a process takes of its machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapt import processes, provenance
from adapt.processes import Processes


@pytest.mark.parametrize(
    ("cores", "here", "device", "count"),
    [(64, 1, "cuda", 63), (192, 8, "cuda", 23), (6, 4, "cuda", 1), (1, 1, "cuda", 1), (64, 1, "cpu", 1)],
)
def test_data_processes_share_the_cores_of_the_machine(cores, here, device, count, monkeypatch) -> None:
    monkeypatch.setattr(processes, "cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    one = Processes.__new__(Processes)
    one.device = torch.device(device)
    assert one.workers(None) == count
    assert one.workers(3) == 3 and one.workers(0) == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinities")
def test_cores_are_those_of_the_affinity() -> None:
    """As a SLURM job has, on a node with many more."""
    code = (
        "import os\n"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from adapt.provenance import cores\n"
        "print(cores())"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(("text", "count"), [("150000 100000\n", 2), ("20000 100000", 1), ("max 100000", 5), ("", 5)])
def test_cores_are_within_the_quota_of_a_container(text, count, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5), raising=False)
    monkeypatch.setattr(provenance, "QUOTA", tmp_path / "cpu.max")
    assert provenance.cores() == 5
    (tmp_path / "cpu.max").write_text(text)
    assert provenance.cores() == count

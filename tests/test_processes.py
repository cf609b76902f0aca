"""What a process takes of its machine, and what processes give each other."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_children
from tqdm import tqdm

from adapt import processes, provenance
from adapt.errors import Refusal
from adapt.flags import Waiting
from adapt.processes import Processes, dealt, gather_words


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


def test_arrays_of_all_processes_come_in_their_order(monkeypatch) -> None:
    """Of any length and type, in pieces too, and equal to what a plain concatenation gives."""
    monkeypatch.setattr(processes, "AT_ONCE", 100)  # bytes: many pieces
    draw = np.random.default_rng(0)
    counts = (5, 0, 17)
    made = [
        {
            "float": draw.normal(size=(count, 2, 3)),
            "digest": draw.integers(0, 256, (count, 32), np.uint8).view("V32")[:, 0],
            "int": draw.integers(-(2**62), 2**62, count),
            "empty": np.empty((count, 0, 4), np.float32),
            "none": np.empty((0, 3), np.uint32),
        }
        for count in counts
    ]
    words = [["", "missing"], [], ["missing", "bad-archive", ""]]

    def member() -> None:
        group = Processes()
        rank = group.accelerator.process_index
        for name, own in made[rank].items():
            found, expected = group.gather(own), np.concatenate([one[name] for one in made])
            assert found.dtype == expected.dtype and found.shape == expected.shape
            assert found.tobytes() == expected.tobytes(), name
        assert list(gather_words(group.gather, words[rank])) == ["", "missing", "missing", "bad-archive", ""]
        with pytest.raises(ValueError, match="addresses of this process"):
            group.gather(np.array(["a"], dtype=object))

    assert in_children(member, 3) == [0, 0, 0]
    order = np.arange(11)
    assert (dealt(np.concatenate([order[rank::3] for rank in range(3)]), 3) == order).all()


@pytest.mark.parametrize(("hours", "statuses"), [(24.0, [0, 0]), (0.0005, [7, 0])])
def test_processes_wait_as_long_as_the_flag_says(hours, statuses) -> None:
    def member() -> None:
        group = Processes(Waiting(timeout_hours=hours))
        if not group.main:
            time.sleep(6)  # still scoring
            os._exit(0) if hours < 1 else None
        try:
            assert group.gather([1]) == [1, 1]
        except RuntimeError:
            os._exit(7)

    assert in_children(member, 2) == statuses


def test_what_the_first_process_finds_all_have_and_its_refusal_too() -> None:
    def refuse() -> None:
        raise Refusal(f"damaged, says {os.environ['RANK']}")

    def member() -> None:
        group = Processes()
        assert group.of_first(lambda: os.environ["RANK"]) == "0"
        with pytest.raises(Refusal, match="damaged, says 0"):
            group.of_first(refuse)

    assert in_children(member, 2) == [0, 0]


def test_a_time_to_wait_of_nothing_is_refused() -> None:
    for hours in (0, -1, float("nan")):
        with pytest.raises(Refusal, match=f"--timeout_hours {hours}: give more than 0"):
            Processes(Waiting(timeout_hours=hours))


def test_a_single_process_gathers_what_it_has() -> None:
    items = np.arange(3)
    assert Processes().gather(items) is items and Processes().gather([1]) == [1]


def test_a_process_that_is_killed_while_it_draws_does_not_stop_others() -> None:
    def drawing() -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_children(drawing) == [-signal.SIGKILL]
    assert tqdm.get_lock().acquire(timeout=10), "the lock went with the process that was killed"
    tqdm.get_lock().release()

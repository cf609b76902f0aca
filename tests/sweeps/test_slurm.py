"""Runs as jobs of Slurm: stand-ins of its programs below submitit, and submitit's local executor."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pair
import pytest
import slurm
from processes import in_children
from test_planned_runs import cell, fake, tries  # noqa: F401 (a fixture)

from adapt.cli import parse
from adapt.errors import Refusal
from adapt.flags import Launched
from adapt.sweeps import launch, planned_runs
from adapt.sweeps.launch import OneJob, Start
from adapt.sweeps.planned_runs import PlannedRun, config_class, run_all

submitit = pytest.importorskip("submitit")
AT_SLURM = Launched(launcher="slurm", slurm=("time=240", "array_parallelism=2", "cpus_per_task=3", "partition=gpu"))


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cluster"
    slurm.start(folder)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(launch, "LOOK", 0.05)
    return folder


def wait_for(what) -> None:
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_runs_are_one_array_and_what_fails_is_named(fake, cluster) -> None:  # noqa: F811
    cells, said = [cell("a"), cell("b", do="fail"), cell("c", rate=2.0)], []
    failed = run_all(cells, fake, say=said.append, launched=AT_SLURM)
    assert list(failed) == ["b"] and failed["b"].splitlines()[-1].strip() == "error: no such \\x1b[2Jthing"
    assert [run.state(fake) for run in cells] == ["finished", "stopped", "finished"]
    assert said[0] == f"3 job(s) submitted, 100_0 to 100_2, see {fake / 'slurm'}"
    assert any("b: FAILED with status 1" in line for line in said)
    script = (cluster / "jobs" / "100" / "script").read_text()
    for line in ("--array=0-2%2", "--time=240", "--partition=gpu", "--cpus-per-task=3", "--job-name=adapt-runs"):
        assert f"#SBATCH {line}\n" in script
    assert "--signal=USR2@120" in script and "wckey" not in script
    assert "--cpus-per-task=3" in (cluster / "jobs" / "100_0" / "srun").read_text()
    assert max(map(int, (cluster / "most").read_text().split())) == 2  # at a time
    assert sorted(path.name for path in (fake / "slurm").glob("*.out")) == [f"100_{i}_0_log.out" for i in range(3)]

    again = [cells[0], cell("b"), cells[2]]  # the same command: only what is not finished
    assert run_all(again, fake, say=said.append, launched=AT_SLURM) == {}
    assert [tries(fake, run.name) for run in again] == [1, 2, 1]
    assert "1 job(s) submitted, 101 to 101" in said[-2]
    assert json.loads((fake / "slurm" / "jobs.json").read_text())["b"] == "101"


def test_a_job_that_is_warned_is_requeued_and_continues(fake, cluster) -> None:  # noqa: F811
    """The run writes a checkpoint at Slurm's warning, and its second try finds it."""
    cells, said = [cell("a", do="warned"), cell("b")], []

    def warned() -> None:
        wait_for((fake / "a" / "ready").is_file)
        slurm.warn(cluster, "100_0")

    thread = threading.Thread(target=warned)
    thread.start()
    assert run_all(cells, fake, say=said.append, launched=AT_SLURM) == {}
    thread.join()
    assert tries(fake, "a") == 2 and (fake / "a" / "checkpoint").exists() and tries(fake, "b") == 1
    assert (fake / "a.log").read_text().count("$ ") == 2
    assert "Requeued job 100_0 (100 remaining timeouts)" in (fake / "slurm" / "100_0_0_log.out").read_text()


def test_a_second_start_waits_for_the_jobs_of_the_first(fake, cluster) -> None:  # noqa: F811
    """Ctrl-C ends the waiting, not the jobs."""
    cells, said = [cell("a", do="slow"), cell("b", do="slow")], []

    def left() -> None:
        def leave(line: str) -> None:
            print(line, flush=True)
            if "submitted" in line:
                signal.setitimer(signal.ITIMER_REAL, 0.5)

        signal.signal(signal.SIGALRM, signal.default_int_handler)
        run_all(cells, fake, say=leave, launched=AT_SLURM)

    assert in_children(left) == [128 + signal.SIGINT]
    assert cells[0].state(fake) != "finished"
    run_all(cells, fake, say=said.append, launched=AT_SLURM)
    assert said[0] == "2 run(s) have jobs already, such as 100_0" and not any("submitted" in line for line in said)
    assert [tries(fake, run.name) for run in cells] == [1, 1] and not (cluster / "jobs" / "101").exists()


def test_a_job_that_dies_outside_of_its_run_is_named(fake, cluster, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(submitit.SlurmJob, "_results_timeout_s", 0)
    srun = (cluster / "srun").read_text()
    (cluster / "srun").write_text('#!/bin/sh\necho "slurmstepd: error: Detected 1 oom_kill event" >&2\nexit 9\n')
    said: list[str] = []
    assert list(run_all([cell("a")], fake, say=said.append, launched=AT_SLURM)) == ["a"]
    assert "a: FAILED with FAILED of job 100" in said[-1] and "Detected 1 oom_kill event" in said[-1]
    (cluster / "srun").write_text(srun)
    assert run_all([cell("a")], fake, say=said.append, launched=AT_SLURM) == {}


def test_the_local_executor_requeues_when_time_is_up(fake, tmp_path) -> None:  # noqa: F811
    """submitit's own controller: 6 seconds, and the warning at once."""
    words = (str(fake.parent / "recipes" / "quick.py"), "--do", "warned", "--output_dir", str(fake / "a"))
    fake.mkdir()
    executor = submitit.LocalExecutor(tmp_path / "jobs", max_num_timeout=3)
    executor.update_parameters(timeout_min=0.3, signal_delay_s=12)
    job = executor.submit(OneJob(Start("a", words, fake / "a.log", 1), 10))
    assert job.result() == 0
    assert tries(fake, "a") == 2 and (fake / "a" / "provenance.json").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"launcher": "slurm"}, "--launcher slurm: add --slurm time=MINUTES"),
        ({"launcher": "slurm", "slurm": ("time=4:00:00",)}, "--slurm time=4:00:00: give whole minutes, such as time"),
        ({"launcher": "slurm", "slurm": ("time=9", "cpus_per_task=0")}, "cpus_per_task=0: give a whole number of at"),
        ({"launcher": "slurm", "slurm": ("time=9", "gpu")}, "--slurm gpu: give NAME=VALUE"),
        ({"launcher": "slurm", "slurm": ("time=9", "nodes=2")}, "--slurm nodes=2: a run has one node"),
        ({"slurm": ("time=9",)}, "--slurm time=9: add --launcher slurm"),
    ],
)
def test_what_slurm_could_not_do_is_refused(given, message) -> None:
    with pytest.raises(Refusal, match=message):
        Launched(**given)


def test_a_missing_slurm_or_submitit_is_one_line(fake, cluster, monkeypatch) -> None:  # noqa: F811
    refused = Launched(launcher="slurm", slurm=("time=9", "partition=nowhere"))
    with pytest.raises(Refusal, match=r"sbatch did not take the jobs: .*invalid partition specified: nowhere"):
        run_all([cell("a")], fake, launched=refused)
    (cluster / "sacct").unlink()
    monkeypatch.setenv("PATH", str(cluster))
    with pytest.raises(Refusal, match="there is no sacct here"):
        run_all([cell("a")], fake, launched=AT_SLURM)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(Refusal, match=r"--launcher slurm needs submitit: pip install 'adapt-aigi\[cluster\]'"):
        run_all([cell("a")], fake, launched=AT_SLURM)
    assert tries(fake, "a") == 0


def test_arms_end_to_end(planted, cluster, tmp_path, monkeypatch, capsys) -> None:
    """Through the recipe's main: jobs that train, and the page of their runs."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    words = ["--manifest", str(planted), "--arms", "matched", "unpaired", "--seeds", "3", "--epochs", "1"]
    words += ["--train_views", "none", "--test_views", "none", "--num_workers", "0", "--resamples", "20"]
    words += ["--launcher", "slurm", "--slurm", "time=60", "array_parallelism=1", "--output_dir", str(tmp_path / "p")]
    pair.main(parse(pair.Config, words))
    assert "2 job(s) submitted, 100_0 to 100_1" in capsys.readouterr().out
    assert "## matched minus unpaired" in (tmp_path / "p" / "table.md").read_text()
    assert "slurm" not in json.loads((tmp_path / "p" / "matched-seed3" / "provenance.json").read_text())["identity"]


def test_one_run_of_pairs_is_no_array(tmp_path) -> None:
    words = ["--arms", "matched", "--seeds", "0", "--launcher", "slurm", "--slurm", "time=9"]
    with pytest.raises(Refusal, match="--launcher slurm is for several arms or seeds"):
        pair.main(parse(pair.Config, [*words, "--output_dir", str(tmp_path)]))


def test_where_a_run_is_started_is_not_part_of_it(tmp_path, cluster, monkeypatch) -> None:
    """The arms of pair.py are the same runs, started here or by Slurm."""
    seen: list[PlannedRun] = []
    monkeypatch.setattr("adapt.sweeps.arms.run_all", lambda runs, *_, **__: seen.extend(runs) or {"stop": ""})
    for words in ([], ["--launcher", "slurm", "--slurm", "time=9"]):
        with pytest.raises(Refusal, match="stop failed"):
            pair.main(parse(pair.Config, [*words, "--seeds", "0", "--output_dir", str(tmp_path)]))
    assert len(seen) == 6 and seen[:3] == seen[3:]
    assert {"launcher", "slurm"} <= planned_runs.NOT_IDENTITY
    for recipe in ("ablation", "frontier", "check_world", "pair", "reproduce"):
        assert issubclass(config_class(recipe), Launched)

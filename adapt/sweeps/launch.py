"""How the process of a planned run is started: here, or by a job of Slurm, through submitit.

    FOLDER/slurm/jobs.json             the last job of each run: a second start waits for it, and does not submit again
    FOLDER/slurm/JOB_ARRAY_0_log.out   what submitit says of a job: its signals and requeues; the run has its own log

A job whose time is up, or that is preempted with a warning, has its run write a checkpoint and is requeued: it
continues, with the same number.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from adapt.errors import Refusal
from adapt.files import write_text, writing
from adapt.flags import MINUTES_AND_COUNTS
from adapt.text import one_line

if TYPE_CHECKING:
    from submitit import Executor, Job
    from submitit.helpers import DelayedSubmission

WARNED = 120  # seconds from Slurm's signal to the end of a job; 3/4 of them are for the checkpoint
SITTINGS = 100  # a run that was requeued so often because its time was up is given up
STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)
LOOK = 1.0  # seconds between two looks at the jobs' folder; Slurm itself is asked by submitit, ever more rarely


class Where(Protocol):
    """The flags that say where runs are started: adapt.flags.Launched."""

    @property
    def launcher(self) -> Literal["local", "slurm"]: ...

    @property
    def slurm(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Start:
    """How the process of one run is started, wherever that is: `words` are the recipe's file and its flags."""

    name: str  # the run's folder within that of the sweep
    words: tuple[str, ...]
    log: Path
    processes: int

    def command(self) -> list[str]:
        """For the machine that this is called on."""
        return [*launcher(self.processes), *self.words]


def start_process(
    command: list[str], log: Path, processes: int, first: Callable[[], object] | None = None
) -> subprocess.Popen:
    """The run, in a session of its own. The command and all that it says go to the end of the log. The new process
    calls `first`."""
    with writing(log), log.open("a", encoding="utf-8") as file:  # else it would fail without a word
        print(f"$ {shlex.join(command)}", file=file)
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"ADAPT_PROCESSES": str(processes)},
            start_new_session=True,
            preexec_fn=first,
        )


def launcher(processes: int) -> list[str]:
    """Python; for several processes on this machine `accelerate launch`, or without a GPU torch's own launcher."""
    if processes == 1:
        return [sys.executable]
    import torch  # takes seconds, and most jobs have one process

    if torch.cuda.is_available():
        words = ["accelerate.commands.launch", "--quiet", "--num_processes", str(processes), "--num_machines", "1"]
        # port 0 is any free one: another start may launch here, too
        words += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        return [sys.executable, "-m", *words]
    # accelerate would start one only
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


class OneJob:
    """What a job does: the run, to its end. submitit calls it, and calls it again after a requeue."""

    def __init__(self, start: Start, patience: float) -> None:
        self.start, self.patience = start, patience
        self.child: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Exit status of the run."""
        from submitit import JobEnvironment

        # Slurm's warning comes to all processes of the job, and would end those that do not know it
        deaf = partial(signal.signal, getattr(signal, f"SIG{JobEnvironment.USR_SIG}"), signal.SIG_IGN)
        self.child = start_process(self.start.command(), self.start.log, self.start.processes, deaf)
        status = self.child.wait()
        if status in STOPPED:
            time.sleep(10 * self.patience)  # Slurm told all processes of the job to end: it will requeue or kill it
        return status

    def checkpoint(self) -> "DelayedSubmission":
        """Called at Slurm's warning, in a handler of its signal: the run writes a checkpoint. Then comes the requeue.

        A run that needs too long is killed with the job and continues from its last checkpoint.
        """
        from submitit.helpers import DelayedSubmission

        end = time.monotonic() + self.patience
        with contextlib.suppress(ChildProcessError, ProcessLookupError):  # it has just ended
            if self.child is not None:
                os.killpg(self.child.pid, signal.SIGTERM)
                # not `Popen.wait`: `__call__` is in there, and holds its lock
                while not os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                    if time.monotonic() > end:
                        break
                    time.sleep(0.1)
        return DelayedSubmission(OneJob(self.start, self.patience))


def slurm_executor(folder: Path, asked: Where) -> "tuple[Executor, float]":
    """submitit's executor for jobs that run one `Start` each, and the seconds that a run has for its checkpoint."""
    try:
        import submitit
    except ImportError as error:
        raise Refusal("--launcher slurm needs submitit: pip install 'adapt-aigi[cluster]'") from error
    for program in ("sbatch", "srun", "scontrol", "sacct"):
        if shutil.which(program) is None:
            raise Refusal(f"--launcher slurm: there is no {program} here: start it where Slurm is, or leave it out")
    given = dict(word.split("=", 1) for word in asked.slurm)
    own = {name: int(given.pop(name)) for name in MINUTES_AND_COUNTS if name in given}
    own.setdefault("signal_delay_s", WARNED)
    cores = [f"--cpus-per-task={own['cpus_per_task']}"] if "cpus_per_task" in own else []  # srun does not inherit it
    executor = submitit.SlurmExecutor(folder, max_num_timeout=SITTINGS)
    executor.update_parameters(
        **own, job_name=f"adapt-{folder.parent.name}", nodes=1, ntasks_per_node=1, stderr_to_stdout=True,
        wckey=None, additional_parameters=given, srun_args=cores,
    )  # fmt: skip
    return executor, 0.75 * own["signal_delay_s"]


def submitted(
    starts: Sequence[Start], executor: "Executor", patience: float, say: Callable[[str], None]
) -> "list[Job[int]]":
    """The job of each run: that of an earlier start if it is not over, else a new one; the new ones are one array."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder, file = executor.folder, executor.folder / "jobs.json"
    folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    names = [start.name for start in starts]
    before = {name: executor.job_class(folder, known[name]) for name in names if name in known}
    jobs = {name: job for name, job in before.items() if not job.done()}
    if jobs:
        say(f"{len(jobs)} run(s) have jobs already, such as {next(iter(jobs.values())).job_id}")
    new = {name: OneJob(start, patience) for name, start in zip(names, starts, strict=True) if name not in jobs}
    try:
        fresh = executor.submit_array(list(new.values())) if new else []
    except (FailedJobError, FailedSubmissionError) as error:
        raise Refusal(f"sbatch did not take the jobs: {one_line(str(error), 300)}") from error
    if fresh:
        jobs |= zip(new, fresh, strict=True)
        write_text(file, json.dumps(known | {name: job.job_id for name, job in jobs.items()}, indent=1) + "\n")
        say(f"{len(fresh)} job(s) submitted, {fresh[0].job_id} to {fresh[-1].job_id}, see {folder}")
    return [jobs[name] for name in names]


def as_they_end(jobs: "Sequence[Job[int]]", say: Callable[[str], None]) -> Iterator[int]:
    """Wait for the jobs; yields the place of each that is over. A Ctrl-C ends the waiting only."""
    waiting = list(range(len(jobs)))
    try:
        while waiting:
            for place in [place for place in waiting if jobs[place].done()]:
                waiting.remove(place)
                yield place
            time.sleep(LOOK if waiting else 0)
    except KeyboardInterrupt:
        numbers = sorted({jobs[place].job_id.partition("_")[0] for place in waiting})
        say(f"the jobs go on, and the same command waits for them again; scancel {' '.join(numbers)} ends them")
        sys.exit(128 + signal.SIGINT)


def how_it_ended(job: "Job[int]") -> str:
    """In words: the run's status, or what Slurm says of a job that did not come so far."""
    from submitit.core.utils import UncompletedJobError

    try:
        return f"status {job.result()}"
    except UncompletedJobError:
        return f"{job.state} of job {job.job_id}"

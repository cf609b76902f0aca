"""A Slurm of one machine in a folder, for tests: sbatch with arrays and their limit, srun, sacct, scontrol requeue.

`start(folder)` writes the four programs. Each job is a process of its own here; files under `folder/jobs` hold its
state. A test warns a job as Slurm does before its time is up: `warn(folder, job)`.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "sacct", "scontrol")


def start(folder: Path) -> None:
    """Write the programs into `folder`; put it at the head of PATH."""
    (folder / "jobs").mkdir(parents=True)
    for name in PROGRAMS:
        (folder / name).write_text(
            f'#!/bin/sh\nexec {sys.executable} -S {Path(__file__).absolute()} {folder} {name} "$@"\n'
        )
        (folder / name).chmod(0o755)


def state(folder: Path, job: str) -> str:
    return (folder / "jobs" / job / "state").read_text()


def put(folder: Path, job: str, name: str, value: object) -> None:
    """Whole or not at all."""
    fresh = folder / "jobs" / job / f"{name}.{os.getpid()}"
    fresh.write_text(str(value))
    fresh.replace(folder / "jobs" / job / name)


def warn(folder: Path, job: str) -> None:
    """What Slurm sends to all processes of a job when its time is nearly up, or at a preemption with a warning."""
    import psutil

    task = psutil.Process(int((folder / "jobs" / job / "task").read_text()))
    for process in (task, *task.children(recursive=True)):
        process.send_signal(signal.SIGUSR2)


def named(output: str, task: str) -> str:
    """The name of a log of this task."""
    array, _, index = task.partition("_")
    for sign, value in (("%j", task), ("%A", array), ("%a", index), ("%t", "0")):
        output = output.replace(sign, value)
    return output


def sbatch(folder: Path, script: str) -> None:
    text = Path(script).read_text()
    option = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    if option.get("partition") == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = str(100 + len([job for job in (folder / "jobs").iterdir() if "_" not in job.name]))
    (folder / "jobs" / number).mkdir()
    put(folder, number, "script", text)
    last, limit = re.fullmatch(r"0-(\d+)%(\d+)", option.get("array", "0-0%1")).groups()
    tasks = [f"{number}_{i}" for i in range(int(last) + 1)] if "array" in option else [number]
    for task in tasks:
        (folder / "jobs" / task).mkdir(exist_ok=True)
        put(folder, task, "state", "PENDING")
    controller = [sys.executable, "-S", __file__, str(folder), "controller", number, limit, *tasks]
    with (folder / "controller.log").open("ab") as log:
        subprocess.Popen(controller, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    print(f"Submitted batch job {number}")


def controller(folder: Path, number: str, limit: str, *tasks: str) -> None:
    """Run the tasks, so many at a time; a task that was requeued runs again."""
    waiting, running = list(tasks), {}
    while waiting or running:
        while waiting and len(running) < int(limit):
            task = waiting.pop(0)
            put(folder, task, "state", "RUNNING")
            array = {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task.split("_")[1]} if "_" in task else {}
            env = os.environ | array | {"SLURM_JOB_ID": number, "SLURM_PROCID": "0", "FAKE_TASK": task}
            script = folder / "jobs" / number / "script"
            output = re.search(r"^#SBATCH --output=(.*)$", script.read_text(), re.MULTILINE)[1]
            with Path(named(output, task)).open("ab") as log:
                running[task] = subprocess.Popen(["sh", str(script)], env=env, stdout=log, stderr=log)
            with (folder / "most").open("a") as most:
                most.write(f"{len(running)}\n")
        for task in [task for task, process in running.items() if process.poll() is not None]:
            if state(folder, task) == "REQUEUED":
                waiting.append(task)
            else:
                put(folder, task, "state", "FAILED" if running[task].returncode else "COMPLETED")
            del running[task]
        time.sleep(0.02)


def srun(folder: Path, *words: str) -> None:
    """Become the command, with what it says at the end of --output."""
    task = os.environ["FAKE_TASK"]
    place = next(i for i, word in enumerate(words) if word == sys.executable)
    output = named(words[words.index("--output") + 1], task)
    put(folder, task, "srun", " ".join(words[:place]))
    put(folder, task, "task", os.getpid())
    descriptor = os.open(output, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.execv(words[place], words[place:])


def sacct(folder: Path, *_: str) -> None:
    print("JobID|State|NodeList")
    for job in sorted((folder / "jobs").iterdir()):
        if (job / "state").is_file():
            print(f"{job.name}|{(job / 'state').read_text()}|here")


def scontrol(folder: Path, verb: str, job: str) -> None:
    assert verb == "requeue"
    put(folder, job, "state", "REQUEUED")


if __name__ == "__main__":
    globals()[sys.argv[2]](Path(sys.argv[1]), *sys.argv[3:])

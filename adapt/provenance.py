"""Where a number comes from: command, code, versions, hardware."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of all cores together, in so many
PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "peft",
    "accelerate",
    "transformers",
    "timm",
    "scikit-learn",
    "numpy",
    "pillow",
)


def command() -> str:
    """The command line, without the folders of this machine."""
    if sys.argv[0].startswith("adapt "):  # a command of the package
        return shlex.join([*sys.argv[0].split(), *sys.argv[1:]])
    script = Path(sys.argv[0])
    if script.parent.name == "adapt_recipes":  # of a wheel
        return shlex.join(["adapt", "run", script.stem, *sys.argv[1:]])
    shown = Path(*script.parts[-2:]) if script.parent.name == "recipes" else Path(script.name)
    return shlex.join(["python", str(shown), *sys.argv[1:]])


def revision() -> str:
    """Git commit, with "+changes" when tracked files other than results differ from it; "" outside a repository."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + (
            "+changes" if head and git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results") else ""
        )
    except OSError:  # no git here
        return ""


def versions() -> dict[str, str]:
    """Python, adapt, and every package that can change a number."""
    return dict(_versions())  # the caller's own


@functools.cache  # reading them takes 13 ms, and every space of features asks
def _versions() -> dict[str, str]:
    import adapt

    return {"python": platform.python_version(), "adapt": adapt.__version__} | {
        name: importlib.metadata.version(name) for name in PACKAGES
    }


def hardware() -> dict[str, str | int]:
    """Processor, cores this process may use, memory, accelerators."""
    import psutil
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": model,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": ", ".join(gpus) or "none",
    }


def cores() -> int:
    """Cores that this process may use: those of its affinity, as of a SLURM job, within the quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a quota: "max 100000"
        quota, period = map(int, QUOTA.read_text().split())
        allowed = min(allowed, max(1, round(quota / period)))
    return allowed


def peak_memory() -> int:
    """Most memory that this process has had resident so far, in MiB."""
    import resource

    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    for line in lines:  # on Linux getrusage would count what the process that started this one had
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 2**10)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))

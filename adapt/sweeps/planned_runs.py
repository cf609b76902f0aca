"""Many runs of recipes from one command: a plan, and each run in a folder of its own.

    ROOT/NAME/      the run directory, exactly what its recipe leaves there
    ROOT/NAME.log   the command and what the recipe said, of every try

A run is started as `python recipes/RECIPE.py FLAGS --output_dir ROOT/NAME`, so that memory, seeds and failures of one
do not touch the next. What is finished is not run again, what was stopped continues, what fails is reported, and the
rest goes on. Several starts may share a folder: by `--shard` on many machines, and a run that another start is busy
with refuses a second one by itself. How a process is started, here or by Slurm: adapt/sweeps/launch.py.
"""

import contextlib
import difflib
import fnmatch
import importlib
import importlib.util
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Literal

from adapt import provenance
from adapt.cli import Flags, as_dict, dump, recipes_folder
from adapt.errors import Refusal
from adapt.evaluation import metrics
from adapt.files import FULL, write_text
from adapt.flags import Launched, Sweep
from adapt.number_table import columns_of, read_table
from adapt.pages.markdown_page import write_page
from adapt.pages.tables import COLUMNS
from adapt.sweeps.launch import Start, Where, as_they_end, how_it_ended, slurm_executor, start_process, submitted
from adapt.text import plain
from adapt.training.report import shown
from adapt.training.run import NOT_IDENTITY, RunConfig, RunRecord

RECIPES = recipes_folder()
NAME = re.compile(r"[\w@+-][\w.@+-]*", re.ASCII)
COMMAND = "adapt "  # begins what is run where it is no recipe
LAST_LINES = 5  # of the log of a failed run
PATIENCE = 60.0  # seconds that a run may take to stop
NOTHING = "    (it said nothing)"
HERE = Launched()
State = Literal["finished", "stopped", "to do"]


@dataclass(frozen=True)
class PlannedRun:
    """One run: its folder's name, its recipe, and the fields of the recipe's `Config` that are not its defaults.

    In place of a recipe `adapt COMMAND` may stand, of a command that leaves a run directory.
    """

    name: str
    recipe: str
    flags: Mapping[str, object]

    @property
    def kind(self) -> tuple[str, str]:
        """The same for runs that differ in the seed only."""
        return self.recipe, repr({name: value for name, value in self.flags.items() if name not in ("seed", "seeds")})

    def config(self, root: Path) -> RunConfig:
        """The recipe's own config; an unknown flag and an impossible value are refused before anything runs."""
        if not NAME.fullmatch(self.name):
            raise Refusal(f"run {self.name!r}: a name is a folder's, of letters, digits and . @ + - _")
        of_recipe = config_class(self.recipe)
        known = [field.name for field in fields(of_recipe)]
        for flag in self.flags:
            if flag not in known or flag == "output_dir":
                near = difflib.get_close_matches(flag, known, n=1)
                hint = f", perhaps you meant {near[0]!r}" if near else ""
                raise Refusal(f"run {self.name}: recipes/{self.recipe}.py has no flag {flag!r} for it{hint}")
        make: Callable[..., RunConfig] = of_recipe
        return make(**self.flags, output_dir=root / self.name)

    def state(self, root: Path) -> State:
        """`finished`: a complete record of this very config. With another config the recipe itself refuses."""
        folder, now = root / self.name, as_dict(self.config(root))
        if (folder / "provenance.json").is_file():
            before = self.record(root)["identity"]
            if all(before.get(key) == value for key, value in now.items() if key not in NOT_IDENTITY):
                return "finished"
        return "stopped" if (folder / "config.yaml").is_file() else "to do"

    def arguments(self, root: Path) -> list[str]:
        """The flags as words."""
        words = []
        for name, value in self.flags.items():
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no_{name}")
            else:
                words += [f"--{name}", *map(str, value if isinstance(value, tuple | list) else [value])]
        return [*words, "--output_dir", str(root / self.name)]

    def command(self, root: Path) -> str:
        """As a shell takes it."""
        program = self.recipe if self.recipe.startswith(COMMAND) else f"python recipes/{self.recipe}.py"
        return f"{program} {shlex.join(self.arguments(root))}"

    def start(self, root: Path, processes: int, of: Path) -> Start:
        """How it is started; its place in the folder `of` names it."""
        recipe = (str(RECIPES / f"{self.recipe}.py"),)
        program = ("-m", *self.recipe.split()) if self.recipe.startswith(COMMAND) else recipe
        words = (*program, *self.arguments(root))
        return Start(os.path.relpath(root / self.name, of), words, root / f"{self.name}.log", processes)

    def record(self, root: Path) -> RunRecord:
        """provenance.json of a finished run."""
        return json.loads((root / self.name / "provenance.json").read_text(encoding="utf-8"))


def config_class(recipe: str) -> type[RunConfig]:
    """The `Config` of a recipe, by its file's name, or of `adapt COMMAND`."""
    if recipe.startswith(COMMAND):
        return importlib.import_module(f"adapt.commands.{recipe.removeprefix(COMMAND)}").Config
    path = RECIPES / f"{recipe}.py"
    if not path.is_file():
        raise Refusal(f"no recipe {recipe!r}; there are: {', '.join(sorted(p.stem for p in RECIPES.glob('*.py')))}")
    spec = importlib.util.spec_from_file_location(recipe, path)
    assert spec is not None and spec.loader is not None  # a .py file has both
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Config


def select(
    runs: Sequence[PlannedRun], only: Sequence[str] = (), shard: int = 0, num_shards: int = 1
) -> list[PlannedRun]:
    """The runs whose name matches one of the patterns `only` (`lora-*`; none: all), and of those every n-th."""
    if len({run.name for run in runs}) < len(runs):
        raise Refusal("two runs have one name: " + ", ".join(run.name for run in runs))
    if not 0 <= shard < num_shards:
        raise Refusal(f"--shard {shard}: with --num_shards {num_shards} give 0 to {num_shards - 1}")
    for pattern in only:
        if not fnmatch.filter([run.name for run in runs], pattern):
            raise Refusal(f"--only {pattern}: no such run; there are: {', '.join(run.name for run in runs)}")
    chosen = [run for run in runs if not only or any(fnmatch.fnmatchcase(run.name, p) for p in only)]
    return chosen[shard::num_shards]


def carry_out(
    runs: Sequence[PlannedRun], asked: Sweep, root: Path, guess: Mapping[str, float] | None = None
) -> dict[str, str] | None:
    """Print the plan of the runs that are asked for, and run them; returns those that failed, with their last words.

    None for a dry run, which ends with the plan. `guess`: minutes by name, as of `plan`.
    """
    chosen = select(runs, asked.only, asked.shard, asked.num_shards)
    print(plan(chosen, root, guess), flush=True)
    return None if asked.dry_run else run_all(chosen, root, asked.processes, launched=asked)


def end(failed: Collection[str]) -> None:
    """Leave with status 1 where runs have failed, and name them."""
    if failed:
        print(f"FAILED: {', '.join(failed)}; start the same command again to try once more")
        sys.exit(1)


def plan(runs: Sequence[PlannedRun], root: Path, guess: Mapping[str, float] | None = None) -> str:
    """One line a run: state, minutes, command; the sum.

    Minutes are those that it took, or those of finished runs that differ from it in the seed only, or the `guess` by
    its name, or those of finished runs of the same recipe, whichever comes first.
    """
    states = {run.name: run.state(root) for run in runs}
    took = {run.name: run.record(root)["seconds"] / 60 for run in runs if states[run.name] == "finished"}
    like: dict[object, list[float]] = {}
    for run in runs:
        for kind in (run.kind, run.recipe) if run.name in took else ():
            like.setdefault(kind, []).append(took[run.name])

    def estimate(run: PlannedRun) -> float | None:
        of_kind, of_recipe = (statistics.median(like[k]) if k in like else None for k in (run.kind, run.recipe))
        return next((m for m in (of_kind, (guess or {}).get(run.name), of_recipe) if m is not None), None)

    usual = {run.name: minutes for run in runs if (minutes := estimate(run)) is not None}
    width, lines = max((len(name) for name in states), default=0), []
    for run in runs:
        about = f"about {usual[run.name]:.1f}" if run.name in usual else "unknown"
        lasts = f"{took[run.name]:.1f}" if run.name in took else about
        lines.append(f"{run.name:{width}}  {states[run.name]:8}  {lasts:>10} min  {run.command(root)}")
    todo = [run for run in runs if run.name not in took]
    known = [usual[run.name] for run in todo if run.name in usual]
    rest = f", about {sum(known):.0f} min" if known else ""
    rest += f", {len(todo) - len(known)} of unknown length" if len(known) < len(todo) else ""
    return "\n".join([*lines, f"{len(runs)} runs, {len(todo)} to run{rest}"])


def run_all(
    runs: Sequence[PlannedRun],
    root: Path,
    processes: int = 1,
    say: Callable[[str], None] = print,
    launched: Where = HERE,
) -> dict[str, str]:
    """Run what is not finished; returns the last lines of the log of each that failed, by name."""
    placed = [(run, root) for run in runs]
    return {run.name: words for run, _, words in outcomes(placed, root, processes, say, launched) if words}


def outcomes(
    placed: Sequence[tuple[PlannedRun, Path]],
    folder: Path,
    processes: int = 1,
    say: Callable[[str], None] = print,
    launched: Where = HERE,
) -> Iterator[tuple[PlannedRun, Path, str]]:
    """Run what is not finished, each in a folder of its own: one after the other, or all as jobs of Slurm, whose files
    are in `folder`. Yields each run, its folder, and the last lines of its log if it failed, else "", as it ends.

    SIGINT, SIGTERM and SIGHUP reach a run that was started here as a SIGTERM, so that it writes a checkpoint; then
    this process ends. A second one kills the run, as does the end of `PATIENCE`. A full disk is a `Refusal`: the runs
    after it would fail, too.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Refusal("many runs are started by one process: use plain python, and --processes N for each run")
    done = [run.state(root) == "finished" for run, root in placed]
    yield from ((run, root, "") for (run, root), finished in zip(placed, done, strict=True) if finished)
    todo = [one for one, finished in zip(placed, done, strict=True) if not finished]
    starts = [run.start(root, processes, folder) for run, root in todo]
    for _, root in todo:
        root.mkdir(parents=True, exist_ok=True)
    begins = [start.log.stat().st_size if start.log.is_file() else 0 for start in starts]
    slurm = launched.launcher == "slurm" and todo
    ended = _at_slurm(starts, folder, launched, say) if slurm else _one_by_one(starts, say)
    for number, (place, status, job_log) in enumerate(ended, start=1):
        (run, root), log = todo[place], starts[place].log
        of = f"[{number}/{len(todo)}] {starts[place].name}"
        if status == "status 0" and run.state(root) == "finished":
            say(f"{of}: finished in {run.record(root)['seconds'] / 60:.1f} min")
            yield run, root, ""
            continue
        words = _last_lines(log, begins[place])
        if job_log and words == NOTHING:
            words = _last_lines(job_log, 0)
        say(f"{of}: FAILED with {status}, last lines:\n{words}")
        if f"error: {FULL.partition('{')[0]}" in words:
            raise Refusal(FULL.format(f" while {starts[place].name} was running, see {log}"))
        yield run, root, words


Ended = Iterator[tuple[int, str, Path | None]]  # place, how it ended, log of its job if there is one


def _one_by_one(starts: Sequence[Start], say: Callable[[str], None]) -> Ended:
    for place, start in enumerate(starts):
        say(f"[{place + 1}/{len(starts)}] {start.name}: started, see {start.log}")
        status = _run(start.command(), start.log, start.processes, say)
        yield place, f"status {status}", None


def _at_slurm(starts: Sequence[Start], folder: Path, launched: Where, say: Callable[[str], None]) -> Ended:
    executor, patience = slurm_executor(folder / "slurm", launched)
    jobs = submitted(starts, executor, patience, say)
    for place in as_they_end(jobs, say):
        yield place, how_it_ended(jobs[place]), jobs[place].paths.stdout


def _run(command: list[str], log: Path, processes: int, say: Callable[[str], None]) -> int:
    """Exit status of the command, which has a session of its own: a Ctrl-C comes through this process alone."""
    stop: list[int] = []
    deadline = math.inf
    child: subprocess.Popen | None = None

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal deadline
        stop.append(number)
        deadline = time.monotonic() + PATIENCE
        if child is not None and child.returncode is None:
            os.killpg(child.pid, signal.SIGTERM if len(stop) == 1 else signal.SIGKILL)

    wanted = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in wanted}
    try:
        child = start_process(command, log, processes)
        if stop:  # it came while the child was being started
            os.killpg(child.pid, signal.SIGTERM)
        while (status := child.poll()) is None:
            if time.monotonic() > deadline:
                os.killpg(child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1.0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop:
        say("stopped: start the same command again to continue")
        sys.exit(128 + stop[0])
    return status


def _last_lines(log: Path, begin: int) -> str:
    """The end of what one try said; its command, progress bars and blank lines left out."""
    said = (log.read_bytes() if log.is_file() else b"")[begin:].decode("utf-8", "replace").splitlines()
    kept = [plain(line) for line in said if line.strip() and "%|" not in line and not line.startswith("$ ")]
    return "\n".join(f"    {line[:300]}" for line in kept[-LAST_LINES:]) or NOTHING


def read_metrics(path: Path) -> dict[tuple[str, ...], list[metrics.Cell]]:
    """Numbers of a metrics.csv by the values of the columns before `set`: by () if there are none."""
    columns, found = columns_of(path), dict[tuple[str, ...], list[metrics.Cell]]()
    names = columns[: columns.index("set")] if "set" in columns else columns
    own = columns[len(names) :]
    if own not in (COLUMNS, COLUMNS[:-1]):  # files from before do not count groups
        raise Refusal(f"{path}: columns {', '.join(columns)}, expected some names and then {', '.join(COLUMNS)}")
    for row in read_table(path):
        value, low, high = (row.number(column) for column in ("value", "low", "high"))
        place = row["set"], row["view"], row["generator"], row["metric"]
        cell = metrics.Cell(*place, value, low, high, row.count("n_real"), row.count("n_fake"))
        if "groups" in own:
            cell = replace(cell, groups=row.count("groups"))
        found.setdefault(tuple(row[name] for name in names), []).append(cell)
    return found


def uses_gpu(run: PlannedRun, root: Path) -> bool:
    """Whether a finished run ran on a GPU, so that its peak memory is that of the GPU's tensors."""
    return "peak_gpu_memory_mib" in run.record(root)


def sweep_record(config: Flags, runs: Sequence[PlannedRun], root: Path) -> RunRecord:
    """provenance.json of a page made from finished runs: of the first one, with the seconds of all.

    Runs that saw different data or weights, because a file changed between them, are refused. Layers may differ, the
    preprocessing of runs whose line in the plan names a geometry, and the data of runs that leave other generators out
    or have another fold as their test. Detectors from elsewhere have weights of their own; the first run is none.
    """
    records = [run.record(root) for run in runs]
    first = records[0]
    like: dict[object, tuple[PlannedRun, RunRecord]] = {}
    for run, record in zip(runs, records, strict=True):
        same_rows = like.setdefault((run.flags.get("leave_out", ()), run.flags.get("fold")), (run, record))
        same_geometry = like.setdefault(("geometry", run.flags.get("geometry")), (run, record))
        for part, others, but in (
            ("data", same_rows, ()),
            ("base", same_geometry, ("layer", "commit")),  # the weights' digest decides
            ("base", (runs[0], first), ("layer", "commit", "preprocess")),
        ):
            other, of_other = others
            if part not in record["identity"] or part not in of_other["identity"]:
                continue
            if _without(record["identity"][part], but) != _without(of_other["identity"][part], but):
                raise Refusal(f"{root}: {run.name} and {other.name} have different {part}: delete the older one")
    return {
        "command": provenance.command(),
        "seconds": round(sum(record["seconds"] for record in records), 1),
        "revision": first["revision"],
        "date": first["date"],
        "hardware": first["hardware"],
        "versions": first["versions"],
        "data": first["data"],
        "identity": as_dict(config) | {key: first["identity"][key] for key in ("data", "base")},
    }


def _without(fingerprint: object, keys: Collection[str]) -> object:
    return fingerprint | dict.fromkeys(keys) if isinstance(fingerprint, dict) else fingerprint


def write_sweep(
    config: Flags, runs: Sequence[PlannedRun], root: Path, sections: Sequence[str], missing: Sequence[str] = ()
) -> None:
    """config.yaml and table.md of a page made from finished runs; the record only when no run is `missing`."""
    record = sweep_record(config, runs, root)
    unfinished = [f"**Not finished**: {', '.join(missing)}."] if missing else []
    parts = [*sections[:1], *unfinished, *sections[1:]]
    embedded = "embedded" in record["data"].partition(";")[0]
    write_text(root / "config.yaml", dump(config))
    write_page(root / "table.md", "Results", parts, shown(record), embedded=embedded)
    if not missing:
        write_record(root, record)
    print(f"\n{sections[0]}\n\ntable        {root / 'table.md'}")


def write_record(root: Path, record: RunRecord) -> None:
    """provenance.json of a sweep: the mark that it is complete."""
    write_text(root / "provenance.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")

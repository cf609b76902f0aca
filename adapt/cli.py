"""From a recipe's frozen `Config` to its command line, and back from a saved `config.yaml`."""

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, NoReturn, Protocol, TypeVar

from adapt.accelerate_launch import honour
from adapt.errors import Refusal
from adapt.files import FULL, disk_full, too_many_files
from adapt.stop import STATUS, Stopped, asked, end_children, heed
from adapt.text import one_line

C = TypeVar("C", bound="Flags")
NOT_REPEATABLE = "does not have a deterministic implementation"  # PyTorch, under use_deterministic_algorithms
TOO_MANY_FILES = (
    "too many open files (this shell allows {limit}): run `ulimit -n 65536` before the same command, or give fewer "
    "data processes with --num_workers"
)
NO_PACKAGE = (
    "{python} has no package {name}: run `./launch.sh RECIPE_OR_COMMAND`, which sets up .venv, or start the same "
    "command with the Python of an environment where `pip install adapt-aigi` has run"
)
HEARD = 3.0  # seconds that processes which are not to speak wait before they end, so that the first one can
LOST = "process {rank} has lost another one ({why}): start the same command again to continue"


class Flags(Protocol):
    """An instance of any dataclass: a recipe's `Config`, a source's `Source`."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]


def recipes_folder() -> Path:
    """Where the experiments are: `recipes/` beside `adapt/` in a checkout, the package `adapt_recipes` of a wheel."""
    beside = Path(__file__).parents[1] / "recipes"
    if (beside / "lora.py").is_file():
        return beside
    spec = importlib.util.find_spec("adapt_recipes")
    if spec is None or not spec.submodule_search_locations:
        raise Refusal("the recipes are not installed: install adapt-aigi again, or work in a checkout")
    return Path(next(iter(spec.submodule_search_locations)))


def run(main: Callable[[C], object], config_class: type[C], description: str | None = None) -> None:
    """Parse the flags of `config_class`, call `main(config)`, and end with a status a script can use.

    `--config FILE` takes its values from a saved config; flags on the command line override them. A flag that takes
    several values may also be given several times. A user's mistake (`Refusal`), a full disk, too many open files and
    a package that is not installed are one line on the standard error and status 2, a SIGTERM is one and status 143:
    of several processes only the first speaks. One that has lost another says so in a line of its own, with status 1.
    """
    threading.excepthook = _thread_failed
    try:
        heed()
        with _reader_may_leave():
            config = parse(config_class, sys.argv[1:], description or sys.modules[main.__module__].__doc__)
        main(honour(config))
    except Stopped as stopped:
        _end(stopped.words, STATUS)
    except Refusal as refusal:
        _end(f"error: {refusal}", 2)
    except Exception as error:
        if asked():  # other processes have ended of the same SIGTERM, while this one waited for them
            _end(Stopped().words, STATUS)
        if _lost_process(error):
            why = one_line(str(error).partition(". ")[0], 200)
            _end(f"error: {LOST.format(rank=os.environ.get('RANK', '0'), why=why)}", 1, everywhere=True)
        if (words := _no_defect(error)) is None:
            raise
        _end(f"error: {words}", 2)
    finally:
        end_children()


def _no_defect(error: Exception) -> str | None:
    """What to say of an error that the machine is to blame for; None for others."""
    if disk_full(error):
        where = getattr(error, "filename", None)
        return FULL.format(f" while writing {where}" if where else f" ({one_line(str(error), 200)})")
    if isinstance(error, RuntimeError) and NOT_REPEATABLE in str(error):
        return f"{one_line(str(error).partition(',')[0], 200)}: give --fast_kernels, without which this stops"
    if isinstance(error, OSError | RuntimeError) and too_many_files(error):
        return TOO_MANY_FILES.format(limit=_open_files())
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "adapt":
        return NO_PACKAGE.format(python=sys.executable, name=error.name)
    return None


def _lost_process(error: Exception) -> bool:
    """Whether an error of torch says that another process of this launch does not answer any more."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error).lower()


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """`--help | head`: what nobody reads any more is dropped, without a traceback."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _thread_failed(failed: "threading.ExceptHookArgs") -> None:
    """A full disk is said once, by the main thread, which meets it when it asks for what the thread was to write."""
    if failed.exc_value is None or not disk_full(failed.exc_value):
        threading.__excepthook__(failed)


def _end(line: str, status: int, everywhere: bool = False) -> NoReturn:
    """Say a line, in the first process or `everywhere`, and leave."""
    if everywhere or os.environ.get("RANK", "0") == "0":
        if "tqdm" in sys.modules:
            from adapt.progress import end_bars

            end_bars()
        with contextlib.suppress(OSError):  # the full disk may be the one that takes this line
            sys.stderr.write(f"{line}\n")  # at once: `print` writes the end apart, and lines of processes would mix
    elif status == 2:  # a launcher stops the others when one ends: the first must have spoken by then
        with contextlib.suppress(Stopped):
            time.sleep(HEARD)
    sys.exit(status)


def _open_files() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def run_one(modules: dict[str, str], main: Callable[[C], object], kind: str = "source") -> None:
    """`run` with the first word of the command line choosing whose options are parsed: name -> module.

    Each module has a dataclass `Source`; a module's docstring describes it in `--help`.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in modules:
        module = importlib.import_module(modules[name])
        sys.argv[:2] = [f"{sys.argv[0]} {name}"]
        run(main, module.Source, module.__doc__)
        return
    if name not in ("--help", "-h"):
        near = difflib.get_close_matches(name, modules, n=1)
        hint = f", perhaps you meant {near[0]!r}" if near else ""
        print(f"error: unknown {kind} {name!r}{hint}: choose one of {', '.join(modules)}", file=sys.stderr)
        sys.exit(2)
    print(sys.modules[main.__module__].__doc__)
    for name, place in modules.items():
        about = (importlib.import_module(place).__doc__ or "").partition("\n")[0]
        print(f"{name:20} {about}")
    print(f"\n{kind.upper()} --help lists its options; --config FILE takes values from a saved config.yaml.")


def parse(config_class: type[C], arguments: list[str], description: str | None = None) -> C:
    """Build the config from flags over the file named by `--config` over the defaults of the dataclass."""
    import tyro

    arguments = _join_repeats(arguments, _list_flags(config_class))
    file, arguments = _take_config_flag(arguments)
    about = (description or "") + "\n    --config FILE takes values from a saved config.yaml."
    if file is None:
        return tyro.cli(config_class, args=arguments, description=about, use_underscores=True)
    words = _flags_from_yaml(file, config_class)
    default = tyro.cli(config_class, args=words, prog=str(file), description=about, use_underscores=True)
    return tyro.cli(config_class, args=arguments, default=default, description=about, use_underscores=True)


def dump(config: Flags) -> str:
    """The resolved config as YAML; `--config` reads it back to an equal config."""
    import yaml

    return yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)


def as_dict(config: Flags) -> dict[str, object]:
    """A config as a flat dict of YAML's own types."""
    values = dataclasses.asdict(config).items()
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in values}


def at_least(low: float, config: Flags, *names: str, below: float = math.inf) -> None:
    """Refuse a config in which one of these numbers (or of a list of them) is less than `low`, not less than `below`
    where that is given, or not a number."""
    for name in names:
        given = getattr(config, name)
        for value in given if isinstance(given, tuple) else (given,):
            if not value >= low:
                raise Refusal(f"--{name} {value}: give at least {low}")
            if below < math.inf and not value < below:
                raise Refusal(f"--{name} {value}: give less than {below}")


def each_once(config: Flags, *names: str) -> None:
    """Refuse a config in which one of these lists is empty, or holds something twice."""
    for name in names:
        given = getattr(config, name)
        if not given or len(set(given)) < len(given):
            raise Refusal(f"--{name}: give one or more, each once")


def _list_flags(config_class: type[Flags]) -> set[str]:
    return {f.name for f in dataclasses.fields(config_class) if isinstance(f.default, tuple)}


def _join_repeats(arguments: list[str], names: set[str]) -> list[str]:
    """Collect the values of a list flag given several times behind its first mention (argparse keeps the last)."""
    joined: list[str] = []
    values: dict[str, list[str]] = {}
    name = None
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, value = argument.removeprefix("--").partition("=")
            flag = flag.replace("-", "_")
            name = flag if flag in names else None
            if name is not None:
                values.setdefault(name, []).extend([value] if equals else [])
                continue
        (values[name] if name is not None else joined).append(argument)
    return joined + [word for flag, words in values.items() for word in (f"--{flag}", *words)]


def _take_config_flag(arguments: list[str]) -> tuple[Path | None, list[str]]:
    rest, file = [], None
    words = iter(arguments)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            value = word.partition("=")[2] or next(words, "")
            if not value:
                raise Refusal("--config needs the name of a saved config.yaml")
            file = Path(value)
        else:
            rest.append(word)
    return file, rest


def _flags_from_yaml(file: Path, config_class: type[Flags]) -> list[str]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"--config {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refusal(f"--config {file} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise Refusal(f"--config {file}: expected 'name: value' lines")
    known = [field.name for field in dataclasses.fields(config_class)]
    wrong = []
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            wrong.append(f"unknown key {name!r}" + (f", perhaps you meant {near[0]!r}" if near else ""))
    if wrong:
        raise Refusal(f"--config {file}: " + "; ".join(wrong))
    flags = []
    for name, value in values.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no_{name}")
        else:
            words = value if isinstance(value, list) else [value]
            flags += [f"--{name}", *("None" if word is None else str(word) for word in words)]
    return flags

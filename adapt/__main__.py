"""The command `adapt`: everything that is no experiment under its name, and `adapt run RECIPE` for the experiments."""

import difflib
import importlib
import runpy
import sys
from collections.abc import Collection
from pathlib import Path

from adapt.cli import recipes_folder

GROUPS = {
    "data": ("prepare", "audit", "align", "composites", "pack", "quality", "views"),
    "features and detectors": ("convert", "extract", "import", "detectors", "predict", "test", "crops", "share"),
    "results": ("evaluate", "summarise"),
    "this machine": ("doctor", "plan", "benchmark"),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)


def main() -> None:
    """Run the command that the first word of the command line names; an unknown one ends with a hint and status 2."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(help_text())
    elif name == "--version":
        from adapt import __version__

        print(__version__)
    elif name == "run":
        run(sys.argv[2:])
    elif name in COMMANDS:
        module = importlib.import_module(f"adapt.commands.{name}")
        sys.argv = [f"adapt {name}", *sys.argv[2:]]
        module.command()
    else:
        _unknown("command", name, COMMANDS, recipes())


def run(words: list[str]) -> None:
    """Run an experiment in this process, as `python recipes/NAME.py FLAGS` does; without a name list them."""
    name = words[0].removesuffix(".py") if words else "--help"
    if name in ("-h", "--help"):
        print("adapt run RECIPE [flags]; RECIPE --help lists its flags\n\n" + "\n".join(_lines(recipes())))
    elif name in recipes():
        sys.argv = [str(recipes()[name]), *words[1:]]
        sys.path.insert(0, str(recipes()[name].parent))  # as of a script: a recipe may go on from another one
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        _unknown("recipe", name, recipes(), COMMANDS)


def recipes() -> dict[str, Path]:
    """The experiments: name -> file."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.py"))}


def help_text() -> str:
    """All commands in their groups, then the experiments."""
    lines = ["adapt COMMAND [flags]; COMMAND --help lists its flags"]
    for group, names in GROUPS.items():
        lines += ["", f"{group}:", *_lines({name: _file(name) for name in names})]
    return "\n".join([*lines, "", "experiments, as adapt run RECIPE [flags]:", *_lines(recipes())])


def _file(name: str) -> Path:
    return Path(__file__).with_name("commands") / f"{name}.py"


def _lines(files: dict[str, Path]) -> list[str]:
    """The first line of each file's docstring, read without importing it: help must be fast."""
    lines = []
    for name, path in files.items():
        with path.open(encoding="utf-8") as file:
            words = file.readline().strip().strip('"')
        lines.append(f"  {name:15} {words}")
    return lines


def _unknown(kind: str, name: str, known: Collection[str], other: Collection[str]) -> None:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f", perhaps you meant {near[0]!r}" if near else ""
    if name in other:
        hint = f": it is an experiment, run `adapt run {name}`" if kind == "command" else f": run `adapt {name}`"
    print(f"error: unknown {kind} {name!r}{hint}; there are: {', '.join(known)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

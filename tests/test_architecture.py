"""The house rules that a machine can check."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = "ground"  # the files of adapt/ itself
ROOMS = [  # a room imports only rooms named before it
    *(GROUND, "data", "evaluation", "pages", "audit", "collect", "embedded", "models", "features", "detector"),
    *("importers", "training", "sweeps", "understanding", "benchmark", "commands"),
]
LIBRARY = sorted((ROOT / "adapt").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
COMMANDS = sorted(path for path in (ROOT / "adapt/commands").glob("*.py") if path.name != "__init__.py")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in LIBRARY}


def room_of(module: str) -> str:
    first = module.split(".")[1] if "." in module else GROUND
    return first if (ROOT / "adapt" / first).is_dir() else GROUND


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at its top or inside a function."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []  # for annotations: nothing is imported
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in NAMES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    mine = room_of(module_name(path))
    for module in imports(path) & NAMES - {"adapt"}:
        assert ROOMS.index(room_of(module)) <= ROOMS.index(mine), f"{module_name(path)} imports {module}, a later room"
    assert not {module.split(".")[0] for module in imports(path)} & {"recipes", *(r.stem for r in RECIPES)}


def test_no_circle_inside_a_room() -> None:
    graph = {module_name(path): imports(path) & NAMES - {"adapt"} for path in LIBRARY if path.parent != ROOT / "adapt"}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_a_folder_of_the_library_is_a_room() -> None:
    assert {path.relative_to(ROOT / "adapt").parts[0] for path in LIBRARY if path.parent != ROOT / "adapt"} == (
        set(ROOMS) - {GROUND}
    )


GOES_ON_FROM = {"refine": {"lora"}}  # whose loop it runs, so that the loop is in sight once


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_short_and_apart(path: Path) -> None:
    functions = [
        node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
    ]
    assert max(node.end_lineno - node.lineno + 1 for node in functions) <= 100  # of main, as a rule
    names = {recipe.stem for recipe in RECIPES} | {"recipes", "adapt_recipes"}
    others = {module.split(".")[0] for module in imports(path)} & names
    assert others == GOES_ON_FROM.get(path.stem, set())


def loaded_by(*words: str) -> str:
    """What `adapt WORDS` prints, and in the last line which slow libraries it imported to do so."""
    code = (
        "import sys; sys.argv = ['adapt', *sys.argv[1:]]; short = len(sys.argv) < 3\n"
        "from adapt.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'open_clip', 'peft', 'accelerate', 'transformers', 'sklearn', 'matplotlib', 'pyarrow'}\n"
        "heavy |= {'tyro', 'numpy'} if short else set()\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


@pytest.mark.parametrize("path", RECIPES + COMMANDS, ids=lambda path: path.stem)
def test_help_loads_nothing_heavy(path: Path) -> None:
    """What makes --help slow is importing these; a clock would measure the machine instead."""
    out = loaded_by(*(["run"] if path in RECIPES else []), path.stem, "--help")
    assert out.splitlines()[-1] == "loaded: []"
    assert "--config FILE" in out


def test_help_of_the_command_names_every_command_and_recipe() -> None:
    *lines, last = loaded_by("--help").splitlines()
    assert last == "loaded: []"
    assert {path.stem for path in RECIPES + COMMANDS} <= {line.split()[0] for line in lines if line[:2] == "  "}


def test_package_holds_no_pickle_and_no_exec() -> None:
    for path in LIBRARY + RECIPES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"exec", "eval", "torch.load", "torch.save", "joblib.load", "joblib.dump"}, path
        assert not imports(path) & {"pickle", "dill", "joblib", "cloudpickle"}, path

"""What the type checker cannot say: public signatures of the checked modules do not hide behind `Any`."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
GROUND, OBLIGED = "adapt/*.py", ("adapt/data/manifest.py", "adapt/evaluation", "adapt/detector")


def modules(entry: str) -> list[Path]:
    """The modules of one entry of mypy's `files`: a folder, a file or a pattern."""
    return [file for path in ROOT.glob(entry) for file in (path.rglob("*.py") if path.is_dir() else [path])]


CHECKED = sorted({path for entry in SETTINGS["files"] for path in modules(entry)})


def public(name: str) -> bool:
    """Names without a leading underscore, and the special methods, which callers reach by syntax."""
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def annotations(tree: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """(where, annotation) of public functions, methods and fields, and the value of a public alias of a type."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and public(node.name):
            yield from ((f"{node.name}.{where}", found) for where, found in annotations(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and public(node.name):
            a = node.args
            for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))):
                if argument.annotation:
                    yield f"{node.name}({argument.arg})", argument.annotation
            if node.returns:
                yield f"{node.name}()", node.returns
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and public(node.target.id):
            yield node.target.id, node.annotation
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp):
            for target in node.targets:
                if isinstance(target, ast.Name) and public(target.id):
                    yield target.id, node.value


def holds_any(annotation: ast.expr) -> bool:
    for node in ast.walk(annotation):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                quoted = ast.parse(node.value, mode="eval").body
            except SyntaxError:  # a word of a Literal
                continue
            if not isinstance(quoted, ast.Constant) and holds_any(quoted):
                return True
        if (isinstance(node, ast.Name) and node.id == "Any") or (
            isinstance(node, ast.Attribute) and node.attr == "Any"
        ):
            return True
    return False


def hidden(source: str) -> list[str]:
    return [where for where, annotation in annotations(ast.parse(source)) if holds_any(annotation)]


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_any_in_a_public_signature(path: Path) -> None:
    assert not hidden(path.read_text(encoding="utf-8")), f"{path.name}: say what it is, `object` if it may be anything"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(a: Any): ...", ["f(a)"]),
        ("def f(*, a: dict[str, Any] | None = None): ...", ["f(a)"]),
        ("def f(*a: Any, **b: typing.Any): ...", ["f(a)", "f(b)"]),
        ("async def f() -> 'list[Any]': ...", ["f()"]),
        ("class A:\n    x: Any\n    def __init__(self, a: Any) -> None: ...", ["A.x", "A.__init__(a)"]),
        ("Row = dict[str, Any]", ["Row"]),
        ("def _f(a: Any): ...\nclass _A:\n    def f(self, a: Any): ...\nclass B:\n    def _f(self, a: Any): ...", []),
        ("def f(a: Anything, b: Literal['Any word', 'other']) -> object:\n    x: Any = a", []),
    ],
)
def test_what_counts_as_any(source: str, found: list[str]) -> None:
    assert hidden(source) == found


def test_the_checked_files_are_there_and_begin_with_the_ground() -> None:
    assert SETTINGS["files"][0] == GROUND
    for entry in SETTINGS["files"]:
        assert modules(entry), f"{entry} of [tool.mypy] names no file"
    for entry in OBLIGED:
        assert set(modules(entry)) <= set(CHECKED), f"{entry} is not checked by mypy"

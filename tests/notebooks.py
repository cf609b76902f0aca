"""Execute a notebook without Jupyter, and compare what its cells print and draw with what is saved in it.

    python tests/notebooks.py recipes/tour.ipynb recipes/tour.ipynb    # execute it and save it again

Executes the code cells of the first file in this process, in the current folder, and writes the second: the same cells
with fresh outputs (printed text, figures as PNG with few colours). Nothing is written if a cell raises.
"""

import ast
import base64
import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
SLACK = 2.5  # units of a number's last digit: processors round differently, and the last digit follows

Notebook = dict[str, Any]


def read(path: Path) -> Notebook:
    """The notebook in a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(notebook: Notebook, path: Path) -> None:
    """A notebook file as Jupyter writes it."""
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    """The cells of code, in their order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def execute(notebook: Notebook) -> None:
    """Run every code cell in one namespace and replace its outputs.

    What a cell writes to stderr, such as progress, passes through and is not saved. Raises `ValueError` for a cell
    that ends with a value, which Jupyter would show and this would not.
    """
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(notebook), start=1):
        printed, tree, value = io.StringIO(), ast.parse("".join(cell["source"])), None
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"<cell {number}>", "exec"), space)
            if last:
                value = eval(compile(ast.Expression(last.value), f"<cell {number}>", "eval"), space)
        if value is not None:
            raise ValueError(f"cell {number} ends with the value {value!r}: print it, or assign it")
        text = printed.getvalue().splitlines(keepends=True)
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": text}] if text else []
        cell["outputs"] += [
            {"data": {"image/png": data, "text/plain": ["<Figure>"]}, "metadata": {}, "output_type": "display_data"}
            for data in figures()
        ]
        cell["execution_count"] = number


def figures() -> Iterator[str]:
    """The open figures of pyplot as PNG in base64; closes them."""
    import matplotlib.pyplot as plt
    from PIL import Image

    for number in plt.get_fignums():
        drawn, small = io.BytesIO(), io.BytesIO()
        plt.figure(number).savefig(drawn, format="png", dpi=90)
        Image.open(drawn).convert("RGB").quantize(128).save(small, format="PNG", optimize=True)
        yield base64.b64encode(small.getvalue()).decode()
    plt.close("all")


def shown(cell: dict[str, Any]) -> tuple[str, int]:
    """What a code cell prints, and how many figures it draws."""
    text = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
    return text, sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def differences(saved: Notebook, fresh: Notebook) -> list[str]:
    """One line for each code cell whose saved output is not that of a fresh run, but for the last digit of numbers.

    Words and whole numbers must be equal; a number with decimals may differ by `SLACK` units of its last digit.
    """
    found = []
    for number, (old, new) in enumerate(zip(code_cells(saved), code_cells(fresh), strict=True), start=1):
        (old_text, old_figures), (new_text, new_figures) = shown(old), shown(new)
        if old_figures != new_figures:
            found.append(f"cell {number}: {old_figures} figures are saved, {new_figures} are drawn")
        if words(old_text) != words(new_text):
            found.append(f"cell {number}: saved {old_text!r}, printed {new_text!r}")
            continue
        for before, after in zip(NUMBER.findall(old_text), NUMBER.findall(new_text), strict=True):
            decimals = len(before.partition(".")[2])
            if abs(float(before) - float(after)) > (SLACK * 10.0**-decimals if decimals else 0):
                found.append(f"cell {number}: saved {before}, printed {after}")
    return found


def words(text: str) -> list[str]:
    """The text without its numbers and without the spaces that align them."""
    return NUMBER.sub("#", text).split()


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    made = read(source)
    execute(made)
    write(made, target)

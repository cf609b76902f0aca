"""Every recipe imports this first: under a Python without `adapt` it ends in one line and status 2, not a traceback.

A folder, because each file beside it is a recipe.
"""

import sys
from pathlib import Path

try:
    import adapt.cli  # noqa: F401 (not `adapt` alone, which is a stranger's package, too)
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("adapt"):
        raise
    name = Path(sys.argv[0]).stem
    print(
        f"error: {sys.executable} has no package adapt: run `./launch.sh {name}`, which sets up .venv, or "
        f"`.venv/bin/python recipes/{name}.py`; in an environment of your own first `pip install -e .`",
        file=sys.stderr,
    )
    sys.exit(2)

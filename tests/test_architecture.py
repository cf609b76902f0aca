"""The house rules that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A module may import from rooms to its left (or its own), never to its right.
ORDER = [
    {"adapt", "adapt.errors"},
    {"adapt.files", "adapt.html", "adapt.hub", "adapt.provenance", "adapt.progress"},
    {"adapt.cli"},
    {"adapt.data.manifest"},
    {
        "adapt.data.families",
        "adapt.data.images",
        "adapt.data.inputs",
        "adapt.data.download_state",
        "adapt.data.url_rules",
    },
    {"adapt.data.dissection", "adapt.data.download"},
    {
        "adapt.data.digests",
        "adapt.data.masks",
        "adapt.data.parts",
        "adapt.data.regions",
        "adapt.data.verdict",
        "adapt.data.views",
        "adapt.thumbnails",
    },
    {"adapt.data.composites"},
    {"adapt.data.pack"},
    {"adapt.data.sources.output"},
    {"adapt.data.sources.hub", "adapt.data.sources.listing"},
    {"adapt.data.sources"},  # one file a source
    {"adapt.data.metadata", "adapt.data.preprocess"},
    {"adapt.data.crops"},
    {
        "adapt.data.align",
        "adapt.data.duplicates",
        "adapt.data.focus",
        "adapt.data.groups",
        "adapt.data.jpeg",
        "adapt.data.onboarding",
        "adapt.data.pairing",
    },
    {"adapt.data.masked_groups"},
    {"adapt.embedded"},
    {
        "adapt.data.spectra",
        "adapt.models.attention",
        "adapt.models.color",
        "adapt.models.descriptor",
        "adapt.models.heads",
        "adapt.models.losses",
        "adapt.models.low_rank",
        "adapt.models.maps",
        "adapt.models.packed",
        "adapt.models.probes",
        "adapt.models.residual",
        "adapt.models.tip_adapter",
        "adapt.models.towers",
    },
    {"adapt.models.tip_head"},
    {"adapt.models.towers_timm", "adapt.models.towers_transformers"},
    {"adapt.models.towers_open_clip"},
    {"adapt.models.backbones"},
    {"adapt.models.lora", "adapt.models.prompts", "adapt.models.trained_part"},
    {"adapt.shards"},
    {"adapt.features"},
    {"adapt.frozen"},
    {"adapt.checkpoint", "adapt.tracking", "adapt.processes"},
    {"adapt.run"},
    {"adapt.evaluation.scores"},
    {"adapt.evaluation.conformal", "adapt.evaluation.open_set", "adapt.evaluation.thresholds"},
    {"adapt.evaluation.calibration"},
    {"adapt.evaluation.decision"},
    {"adapt.detector"},
    {"adapt.tiles"},
    {"adapt.overlay"},
    {"adapt.export", "adapt.predict"},
    {"adapt.predict_maps"},
    {"adapt.journal"},
    {"adapt.gallery"},
    {"adapt.evaluation.bootstrap"},
    {"adapt.data.audit"},
    {"adapt.evaluation.metrics"},
    {"adapt.evaluation.attribution"},
    {"adapt.evaluation.maps"},
    {"adapt.evaluation.read_back", "adapt.evaluation.tables"},
    {"adapt.evaluation.map_tables"},
    {"adapt.evaluation.promises"},
    {"adapt.evaluation.side_by_side"},
    {"adapt.evaluation.leaderboard", "adapt.evaluation.targets"},
    {"adapt.evaluation.latex"},
    {"adapt.evaluation.drawing"},
    {"adapt.evaluation.figures"},
    {"adapt.card"},
    {"adapt.report"},
    {"adapt.cells", "adapt.localization", "adapt.probing", "adapt.study"},
    {
        "adapt.frontier",
        "adapt.holes",
        "adapt.memory",
        "adapt.prefix",
        "adapt.reproduction",
        "adapt.tuning",
        "adapt.variants",
    },
    {"adapt.ablation_page", "adapt.shots"},
    {"adapt.ablation_html"},
    {"adapt.ablation"},
    {"adapt.understanding.item", "adapt.understanding.subject"},
    {"adapt.understanding.content"},
    {"adapt.understanding.layers", "adapt.understanding.lowlevel", "adapt.understanding.variance"},
    {"adapt.understanding.adversarial", "adapt.understanding.maps", "adapt.understanding.texts"},
    {"adapt.understanding.menu"},
    {"adapt.benchmark"},  # timing first, then one module a stage
]


def place(module: str) -> int:
    """Index of the longest room name that the module is or lies in."""
    rooms = {room: i for i, names in enumerate(ORDER) for room in names}
    while module not in rooms:
        module = module.rpartition(".")[0]
    return rooms[module]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            for name in node.names:
                inner = f"{module}.{name.name}"
                is_module = (ROOT / inner.replace(".", "/")).with_suffix(".py").is_file()
                found.add(inner if is_module else module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


LIBRARY = sorted((ROOT / "adapt").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_imports_run_one_way(path: Path) -> None:
    mine = place(module_name(path))
    for module in imports(path):
        if module == "adapt" or module.startswith("adapt."):
            assert place(module) <= mine, f"{module_name(path)} imports {module}, which stands to its right"


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_every_module_has_its_room(path: Path) -> None:
    name = module_name(path)
    packages = {"adapt.data", "adapt.models", "adapt.evaluation", "adapt.understanding"}
    assert (
        name in packages
        or name.startswith(("adapt.benchmark", "adapt.embedded", "adapt.data.sources."))
        or name in set().union(*ORDER)
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_short_and_apart(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
    names = {recipe.stem for recipe in RECIPES}
    assert not {module.split(".")[0] for module in imports(path)} & (names | {"recipes"})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_help_loads_nothing_heavy(path: Path) -> None:
    """What makes --help slow is importing these; a clock would measure the machine instead."""
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'open_clip', 'peft', 'accelerate', 'transformers', 'sklearn', 'matplotlib', 'pyarrow'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert "--config FILE" in done.stdout


def test_readme_maps_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files = [p for p in LIBRARY if p.name != "__init__.py"] + RECIPES + sorted((ROOT / "tests").glob("*.py"))
    missing = [path.name for path in files if not re.search(rf"\b{re.escape(path.name)}\b", readme)]
    assert not missing


def test_package_holds_no_pickle_and_no_exec() -> None:
    for path in LIBRARY + RECIPES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"exec", "eval", "torch.load", "torch.save", "joblib.load", "joblib.dump"}, path
        assert not imports(path) & {"pickle", "dill", "joblib", "cloudpickle"}, path

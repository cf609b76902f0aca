"""The wheel alone: complete, and working with the packages that its own metadata names and no others."""

import csv
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections import defaultdict
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from adapt.commands import doctor

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the files that git knows."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in names.splitlines():
        if name.split("/")[0] in ("adapt", "recipes", "pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    code = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder], cwd=source, capture_output=True, check=True)
    (made,) = folder.glob("adapt_aigi-*.whl")
    return made


def with_dependencies(requirements: list[str]) -> set[str]:
    """Names of the installed distributions that these requirements need, directly or not, as pip resolves them."""
    found: set[tuple[str, str]] = set()
    waiting = [(requirement, "") for requirement in requirements]
    while waiting:
        text, extra_of_parent = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra_of_parent}):
            continue
        name = canonicalize_name(requirement.name)
        assert metadata.version(name) in requirement.specifier, text
        for extra in ("", *requirement.extras):
            if (name, extra) not in found:
                found.add((name, extra))
                waiting += [(needed, extra) for needed in metadata.requires(name) or ()]
    return {name for name, _ in found}


def link_distributions(wanted: set[str], folder: Path) -> None:
    """Symbolic links in `folder` to the files of these installed distributions, and to those of no other.

    A directory that only they have files in is one link; one that they share with others becomes a real directory.
    """
    owners, places = defaultdict(set), {}
    children: dict[Path, set[Path]] = defaultdict(set)
    for distribution in metadata.distributions():
        name, below = canonicalize_name(distribution.name), Path(distribution.locate_file(""))
        for file in distribution.files or ():
            if ".." in file.parts or file.is_absolute():
                continue  # programs, not modules
            path = Path(file)
            while path != Path() and name not in owners[path]:
                owners[path].add(name)
                places.setdefault(path, below / path)
                children[path.parent].add(path)
                path = path.parent

    def link(parent: Path) -> None:
        for path in children[parent]:
            if owners[path] <= wanted:
                (folder / path).symlink_to(places[path])
            elif owners[path] & wanted and path in children:
                (folder / path).mkdir()
                link(path)

    folder.mkdir()
    link(Path())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> tuple[Path, set[str]]:
    """A virtual environment with the wheel and what its metadata ask for, without extras; and the names of all that.

    pip installs the wheel. Its dependencies are links to those of this environment: to install PyTorch anew takes
    minutes.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv/bin/python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (own,) = metadata.distributions(path=[str(site)])
    wanted = with_dependencies(own.requires)
    link_distributions(wanted, folder / "links")
    (site / "links.pth").write_text(f"{folder / 'links'}\n")
    return folder / "venv/bin", wanted | {canonicalize_name(own.name)}


@pytest.fixture
def call(installed, tmp_path) -> Callable[..., str]:
    """Run a program of that environment in an empty folder, with a home and a cache of its own; returns its stdout."""
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS", "HF_HUB_OFFLINE")}
    environment = kept | {"HOME": str(tmp_path / "home"), "ADAPT_CACHE": str(tmp_path / "cache")}

    def call(program: str, *words: str) -> str:
        command = [installed[0] / program, *words]
        done = subprocess.run(
            command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_the_wheel_holds_every_file(wheel, tmp_path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    kinds = ("*.py", "*.csv", "*.css", "*.js", "*.json", "*.safetensors", "*.txt", "*.ipynb")
    for folder, packed in (("adapt", "adapt"), ("recipes", "adapt_recipes")):
        for kind in kinds:
            expected = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob(kind)}
            assert expected == {path.relative_to(tmp_path / packed) for path in (tmp_path / packed).rglob(kind)}
    (entry,) = tmp_path.glob("*.dist-info/entry_points.txt")
    assert "adapt = adapt.__main__:main" in entry.read_text()


def test_the_environment_has_what_the_metadata_name_and_nothing_else(installed, call) -> None:
    """Else the tests below could not see that a dependency is missing from them."""
    code = "from importlib import metadata; print(*{d.name for d in metadata.distributions()})"
    assert {canonicalize_name(name) for name in call("python", "-c", code).split()} == installed[1]
    assert {"torch", "numpy", "adapt-aigi", "mpmath"} <= installed[1]  # mpmath: torch needs sympy, which needs it
    assert not {"captum", "datasets", "onnx", "opencv-python-headless", "pytest"} & installed[1]


def test_every_module_can_be_imported_without_extras(call) -> None:
    """But for those packages that an extra brings."""
    code = (
        "import importlib, pkgutil, adapt\n"
        "for module in pkgutil.walk_packages(adapt.__path__, 'adapt.'):\n"
        "    try: importlib.import_module(module.name)\n"
        "    except ModuleNotFoundError as error: print(module.name, error.name)\n"
    )
    missing = dict(line.split() for line in call("python", "-c", code).splitlines())
    extras = {name for names, _ in doctor.EXTRAS.values() for name in names}
    assert set(missing.values()) <= extras, missing


def test_in_an_empty_folder_the_main_job_runs_and_its_detector_predicts(call, tmp_path) -> None:
    work = tmp_path / "work"
    assert "experiments, as adapt run RECIPE" in call("adapt", "--help")
    said = call("adapt", "doctor", "--no_network")
    assert "site-packages/adapt_recipes" in said and "missing captum" in said and str(tmp_path / "cache") in said

    draw = "from adapt.embedded.world import make_world; make_world('world', 7, (16, 8, 12), 'planted', 1)"
    call("python", "-c", draw)
    printed = call("adapt", "run", "lora", "--manifest", "world/manifest.csv", "--epochs", "2", "--resamples", "20")
    headline = printed[printed.index("\nview  AUC seen ") :]
    for view in ("none", "qf90", "qf65", "qf40"):
        assert re.search(rf"^{view} +(\d\.\d{{3}}) \[\d\.\d{{3}}, \d\.\d{{3}}\]", headline, re.MULTILINE), headline
    assert "adapt run lora" in (work / "results/runs/lora/table.md").read_text(encoding="utf-8")

    call("adapt", "predict", "--detector", "results/runs/lora/detector", "--input", "world/test", "--output", "p.csv")
    with (work / "p.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    files = {path.name for path in (work / "world/test").iterdir()}
    assert len(rows) == len(files) and {Path(row["path"]).name for row in rows} == files
    assert {row["status"] for row in rows} == {"ok"}
    assert {path.name for path in work.iterdir()} == {"world", "results", "p.csv", "p.html", "p.parts"}
    assert not (tmp_path / "home/.cache/adapt").exists()

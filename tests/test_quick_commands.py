"""The quick commands and the Python blocks of the READMEs are run, and print and write what the READMEs say.

Quick: no network, no trained detector, seconds. A page's commands run in their order, in one folder that holds the
files they name.
"""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from test_readmes import READMES, ROOT

from adapt import __main__ as program
from adapt.embedded.world import make_world
from adapt.evaluation.scores import Scores

SCENES = (4, 2, 11)  # train, val, test: an interval takes ten
IMAGES = 4 * 6 + 2 * 7 + 11 * 18


class Quick(NamedTuple):
    """A command, a pattern of what it prints, the files it leaves, its exit status."""

    command: str
    prints: str
    writes: tuple[str, ...] = ()
    status: int = 0


def shown_numbers(page: str) -> str:
    """The block of a README that shows what its command of `results/scores` prints."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.search(r"results/scores/.*?^```\n```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]


QUICK = {
    "README.md": (
        Quick(
            "adapt evaluate results/scores/probe.csv results/scores/fusion.csv results/scores/lora.csv"
            " --group_by source --output_dir results/runs/compared",
            re.escape(shown_numbers("README.md")),
            tuple(f"results/runs/compared/{name}" for name in ("table.md", "detectors.csv", "differences.csv")),
        ),
        Quick("adapt prepare folders --folder data/mine", r"\| mine \| sd \|", ("data/mine/manifest.csv",)),
        Quick(
            "adapt audit --manifest data/mine/manifest.csv",
            r"\| format \| 1\.000 .* SHORTCUT \|",  # JPEG photographs, PNG fakes
            ("results/runs/audit/table.md",),
            1,
        ),
        Quick(
            "adapt align --manifest data/mine/manifest.csv --output_dir data/aligned --size resize256",
            r"24 images aligned, 0 not",
            ("data/aligned/manifest.csv", "data/aligned/align.csv"),
        ),
        Quick(
            "adapt predict --detector results/runs/lora/detector --input photos/ --output predictions.csv",
            r"3 files\n(.*\n)*not judged +not-an-image: 1\n",
            ("predictions.csv", "predictions.html"),
        ),
    ),
    "adapt/audit/README.md": (
        Quick(
            "adapt audit --manifest data.csv --output_dir results/audit",
            r"\| format \| 0\.500 .* clean \|\n(.*\n)+\| past quality \| 0\.500 .* clean \|\n"
            r"(.*\n)+\| noise .* possible trace \|",
            tuple(f"results/audit/{name}" for name in ("table.md", "audit.csv", "duplicates.csv", "provenance.json")),
            1,  # the traces of this world are planted: its pixels give the label away
        ),
    ),
    "adapt/collect/README.md": (
        Quick("adapt prepare", r"webdataset +WebDataset tar files"),
        Quick("adapt prepare folders --help", r"--matched"),
        Quick(
            "adapt prepare folders --folder data/mine",
            r"next: adapt audit",
            tuple(f"data/mine/manifest.{suffix}" for suffix in ("csv", "lost.csv", "json")),
        ),
        Quick(
            "adapt plan --images_per_s 2000 --devices 1 8 64",
            r"5,000,000,000 +64 +10\.85 +82\.6 TB(.*\n)+\nfeatures: 4128 bytes per image and view(.*\n)"
            r"manifest: more than 50,000,000 rows are too many(.*\n)+.*--manifest part-\$SLURM_ARRAY_TASK_ID",
        ),
    ),
    "adapt/commands/README.md": (
        Quick("adapt doctor --no_network", r"hub +not asked"),
        Quick(
            "adapt evaluate scores.csv",
            r"view +AUC seen(.*\n)+table\.md: the page",
            ("table.md", "metrics.csv", "controls.csv", "figures/auc_per_view.png"),
        ),
        Quick("adapt predict --help", r"--error_rate"),
    ),
    "adapt/data/README.md": (
        Quick(
            "adapt align --manifest data.csv --output_dir data-aligned --size resize256",
            rf"{IMAGES} images aligned, 0 not",
            ("data-aligned/manifest.csv", "data-aligned/align.csv"),
        ),
        Quick(
            "adapt pack --manifest data-aligned/manifest.csv --output data-aligned/packed.csv",
            rf"{IMAGES} images packed, 0 not",
            ("data-aligned/packed.csv", "data-aligned/packed.shards"),
        ),
    ),
    "adapt/detector/README.md": (
        Quick("adapt quality --input photos/", r"--train_views qf90", ("results/runs/quality/qualities.csv",)),
    ),
    "adapt/sweeps/README.md": (
        Quick("python recipes/ablation.py --dry_run", r"lora\S*-seed2 +to do .*\n(.*\n)*94 runs, 94 to run"),
    ),
    "recipes/README.md": (
        Quick(
            "adapt composites --manifest data.csv --output data/composites.csv",
            r"\| real \| copy-move \| 4 \| 2 \| 11 \|",
            ("data/composites.csv", "data/composites.images", "data/composites.lost.csv"),
        ),
        Quick(
            "python recipes/reproduce.py --list --only 'cozzolino*' 'seed*'",
            r"cozzolino-svm-n1k-auc +0\.874(.*\n)+.*seed-table1",
        ),
    ),
}


def test_a_quick_command_still_stands_in_its_readme() -> None:
    for page, listed in QUICK.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", "")
        lines = [" ".join(re.sub(r"\s+# .*", "", line).split()) for line in blocks.splitlines()]
        for quick in listed:
            assert quick.command in lines, f"{page} has no command {quick.command!r}"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The files that the READMEs name: data.csv, scores.csv, photos/, data/mine/ and an untrained detector."""
    import torch

    from adapt.data.manifest import Manifest
    from adapt.detector.detector import Detector
    from adapt.models.heads.linear import LinearHead
    from adapt.models.towers.backbones import load_backbone

    folder = tmp_path_factory.mktemp("readmes") / "files"
    make_world(folder, seed=1, scenes=SCENES, trace="planted", processes=1).rename(folder / "data.csv")
    rows = Manifest.read(folder / "data.csv")
    for i, file in enumerate(sorted(folder.glob("*/*-real.png"))[:12]):
        photo, fake = folder / f"data/mine/real/{i}.jpg", folder / f"data/mine/sd/{i + 100}.png"
        for path in (photo, fake):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(photo, quality=90)
        Image.open(file).rotate(180).save(fake)
    (folder / "photos").mkdir()
    for photo in sorted((folder / "data/mine/real").iterdir())[:2]:
        shutil.copy(photo, folder / "photos")
    (folder / "photos/notes.txt").write_text("not an image")
    seen = rows.seen(rows["generator"])
    kept = {name: rows[name] for name in ("path", "group", "generator", "split", "edit")}
    Scores(kept | {"seen": seen, "logit": rows.fake * 2.0 - 1 + 0.3 * (rows["edit"] != "")}).write(
        folder / "scores.csv"
    )
    backbone = load_backbone("tiny")
    with torch.no_grad():
        (head := LinearHead(backbone.dim)).linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    Detector(backbone, head).save(folder / "results/runs/lora/detector", {})
    shutil.copytree(ROOT / "results/scores", folder / "results/scores")
    return folder


@pytest.fixture
def place(files, tmp_path, monkeypatch) -> Path:
    """A copy of the files as the current folder."""
    shutil.copytree(files, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "here"


@pytest.mark.parametrize("page", QUICK)
def test_quick_commands_print_and_write_what_the_readme_says(page, place, monkeypatch, capsys) -> None:
    for quick in QUICK[page]:
        words = shlex.split(quick.command)
        if words[0] == "python":
            words = ["adapt", "run", Path(words[1]).stem, *words[2:]]
        monkeypatch.setattr(sys, "argv", words)
        try:
            program.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        out = capsys.readouterr().out
        assert status == quick.status, (quick.command, out)
        assert re.search(quick.prints, out), (quick.command, out)
        for name in quick.writes:
            assert (place / name).exists(), (quick.command, name, sorted(place.iterdir()))


def python_blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_block(page: str) -> dict[str, object]:
    """What the first Python block of a README leaves; the hub's backbone is replaced by the one of the package."""
    names: dict[str, object] = {}
    block = python_blocks(page)[0].replace("open_clip:ViT-L-14@datacomp_xl_s13b_b90k", "tiny")
    exec(compile(block, page, "exec"), names)
    return names


def test_the_python_block_of_the_readme_runs(place) -> None:
    found = run_block("README.md")
    rows, cells, manifest, features = (found[name] for name in ("rows", "cells", "manifest", "features"))
    assert [row["status"] for row in rows] == ["ok", "ok", "not-an-image"] and rows[0]["jpeg_quality"] == 90
    assert {cell.value for cell in cells if cell.metric == "auc" and cell.generator == "mean:all"} == {1.0}
    assert len(manifest) == IMAGES and features.views == ("none", "qf40")
    assert features.take(np.arange(2), "qf40").shape == (2, found["backbone"].dim)


def test_the_python_blocks_of_the_rooms_run(place, capsys) -> None:
    run_block("adapt/data/README.md")
    fakes = 4 * 4 + 2 * 5 + 11 * 11
    assert capsys.readouterr().out == f"{IMAGES} images, {fakes} of them fake\n"
    run_block("adapt/models/README.md")
    assert capsys.readouterr().out == "576 ('block1', 'block2', 'block3', 'block4', 'last', 'proj')\n"
    run_block("adapt/evaluation/README.md")
    assert re.fullmatch(r"\S+: 1\.000 \[0\.\d{3}, 1\.000\]\n", capsys.readouterr().out)
    assert [row["status"] for row in run_block("adapt/detector/README.md")["rows"]] == ["ok", "ok", "not-an-image"]


def test_the_tables_to_try_are_what_their_python_block_makes_of_scores(place) -> None:
    for name in ("probe", "fusion", "lora"):
        Scores.read(place / "scores.csv").write(place / f"results/runs/scores/{name}/scores.parquet")
    text = (place / "results/scores/probe.csv").read_text()
    run_block("results/scores/README.md")
    made = [line.split(",") for line in (place / "results/scores/probe.csv").read_text().splitlines()]
    assert made[0] == text.splitlines()[0].split(",") and len(made) == 1 + SCENES[2] * 5
    assert {row[2] for row in made[1:]} == {"0", "1"} and all(re.fullmatch(r"0\.\d{4}", row[3]) for row in made[1:])


def test_no_python_block_is_left_out() -> None:
    """Those that are run here, and the second one of the detectors', which tests/detector/test_detector.py runs."""
    counts = {page: len(python_blocks(str(page.relative_to(ROOT)))) for page in READMES}
    found = {str(page.relative_to(ROOT)): count for page, count in counts.items() if count}
    rooms = dict.fromkeys(
        ("README.md", "adapt/data/README.md", "adapt/models/README.md", "adapt/evaluation/README.md"), 1
    )
    assert found == rooms | {"adapt/detector/README.md": 2, "results/scores/README.md": 1}

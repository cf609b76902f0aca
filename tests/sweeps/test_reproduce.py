"""From a published figure to a run: what is missing is named, what is not the published setting gets no verdict."""

import contextlib
import csv
import dataclasses
import fnmatch
import importlib
import json
import runpy
import sys
from pathlib import Path

import linear_probe  # noqa: F401 (as open_clip and the report: loaded once here, inherited by every child)
import open_clip
import pytest
import reproduce as recipe
from processes import in_children

import adapt.training.report  # noqa: F401
from adapt import cli
from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.evaluation import targets as targets_module
from adapt.evaluation.metrics import Cell, index
from adapt.evaluation.targets import TargetSet, read_sets, read_targets, select
from adapt.sweeps import planned_runs as cells_module
from adapt.sweeps.reproduction import Configuration, answer, configure, differences, hub_repository, jobs, run_of

EVERY, SETS = read_targets(), read_sets()
CONFIGURATIONS = [Configuration(*line) for line in recipe.CONFIGURATIONS]


def start(monkeypatch, *words: str) -> int:
    """The recipe's own entry: its exit status."""
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
    try:
        cli.run(recipe.main, recipe.Config)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def job_of(name: str, instead: str | None = None):
    return jobs(select(EVERY, [name]), EVERY, CONFIGURATIONS, instead)[0]


def test_every_configuration_is_a_possible_run(tmp_path) -> None:
    """The recipe has all its flags; open_clip knows the weights."""
    names = [c.name for c in CONFIGURATIONS]
    assert len(set(names)) == len(names)
    for job in jobs(EVERY, EVERY, CONFIGURATIONS, None):
        config = run_of(job, SETS, (), job.configuration.backbone, {}).config(tmp_path)
        assert config.backbone == job.configuration.backbone and config.test_views == tuple(job.views)
    for name in (recipe.OPENAI, recipe.COMMONPOOL, recipe.DATACOMP):
        model, tag = name.removeprefix("open_clip:").split("@")
        assert tag in open_clip.list_pretrained_tags_by_model(model)


def test_every_configuration_has_its_targets_and_every_target_one() -> None:
    for configuration in CONFIGURATIONS:
        for pattern in configuration.targets:
            assert fnmatch.filter([target.name for target in EVERY], pattern), pattern
    meant = {target.name: configure(target, CONFIGURATIONS) for target in EVERY}
    assert {name for name, c in meant.items() if c.same} >= {
        *("clipping-linear-10k-gan-ap", "cozzolino-svm-n10-auc", "bfree-univfd-synthbuster-auc"),
    }
    for name in (
        "fatformer-gan-ap",
        "bfree-bfree-synthbuster-auc",
        "iapl-ufd-accuracy",
        "clipping-finetune-100k-gan-ap",
    ):
        assert meant[name].name == "nearest" and not meant[name].same
    for target in EVERY:  # whose method is another's must not be taken for ours
        if meant[target.name].same:
            assert any(word in target.method for word in ("linear", "Effort", "UnivFD")), target.name
            assert "ViT-L/14" in target.backbone and target.train_set != "as released", target.name


def test_runs_are_shared_and_serve_every_view() -> None:
    chosen = select(EVERY, ["c2p-user-lora-*"])
    (job,) = jobs(chosen, EVERY, CONFIGURATIONS, None)
    assert len(job.targets) == 9 and job.name == "lora-genimage-sd-1.4-to-genimage"
    one, all_views = job_of("bfree-code-synthbuster-auc"), ["none", "qf100", "qf90", "qf80", "qf70", "qf60"]
    assert list(one.views) == all_views and [t.name for t in one.targets] == ["bfree-code-synthbuster-auc"]
    assert job_of("bfree-code-synthbuster-auc", "norm").configuration.flags["targets"] == "norm"
    assert job_of("cozzolino-svm-n10-auc").configuration.same
    assert job_of("cozzolino-svm-n10-auc", "cozzolino-svm").configuration.same
    assert not job_of("cozzolino-npr-auc", "cozzolino-svm").configuration.same  # another's figure, our method
    with pytest.raises(Refusal, match="--configuration none: choose one of clipping-linear, cozzolino-svm"):
        job_of("iapl-ufd-accuracy", "none")


def test_the_list(monkeypatch, capsys) -> None:
    assert start(monkeypatch, "--list", "--only", "cozzolino-svm-*", "seed-synthbuster-accuracy") == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 2 + 8 + 1 and "0.64" in said and "arXiv 2312.00195" in said
    assert start(monkeypatch, "--list") == 0
    said = capsys.readouterr().out.split()
    assert all(said.count(target.name) == 1 for target in EVERY)


def test_a_name_is_needed_and_must_be_known(monkeypatch, capsys) -> None:
    assert start(monkeypatch) == 2 and "--list shows all of them" in capsys.readouterr().err
    assert start(monkeypatch, "--only", "cozzolino-svm-n10-acu") == 2
    assert "perhaps you meant 'cozzolino-svm-n10-auc'" in capsys.readouterr().err


def test_the_first_word_is_a_name(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "seed-synthbuster-*", "iapl-*", "--list"])
    with contextlib.suppress(SystemExit):
        runpy.run_path(recipe.__file__, run_name="__main__")
    said = capsys.readouterr().out
    assert "seed-synthbuster-accuracy" in said and "iapl-ufd-accuracy" in said and "cozzolino" not in said


def test_what_is_missing_is_named_with_where_to_get_it(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    wanted = ("cozzolino-svm-n1k-auc", "bfree-code-synthbuster-auc", "dda-univfd-chameleon-accuracy", "iapl-ufd-ac*")
    assert start(monkeypatch, "--only", *wanted) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("error: 4 run(s) lack data or weights") and "Traceback" not in said.err
    for word in (
        "hf download laion/CLIP-ViT-L-14-CommonPool.XL-s13B-b90K",
        "adapt prepare folders --folder data/grip/train --per_class 1180",
        "Zenodo record 10066460",
        "adapt prepare synthbuster --folder data/synthbuster --output data/synthbuster/manifest.csv",
        "elsaEU/ELSA_D3 on the hub, split train",
        "sent by its authors on request only; no source of `adapt prepare` makes it",
        "training data: not recorded; give tables of your own with --manifest",
        "comparable, not the same method: recipes/lora.py: no recipe has the published method",
    ):
        assert word in said.out, word
    assert not (tmp_path / "results").exists()


def test_the_repository_of_weights() -> None:
    assert hub_repository("transformers:facebook/dinov2-large") == "facebook/dinov2-large"
    assert hub_repository("open_clip:hf-hub:laion/X") == "laion/X"
    assert hub_repository("open_clip:ViT-L-14-quickgelu@openai") == "timm/vit_large_patch14_clip_224.openai"
    assert hub_repository("timm:vit_large_patch16_dinov3") == "timm/vit_large_patch16_dinov3.lvd1689m"
    assert hub_repository("timm:hf-hub:me/x@v1") == hub_repository("transformers:me/x@v1") == "me/x"
    assert hub_repository("tiny") == hub_repository("open_clip:ViT-B-32") == ""


def test_a_verdict_needs_method_encoder_and_data() -> None:
    def at(generators: int) -> dict:
        numbers = [("real", "false_alarm"), *((f"g{i}", "auc") for i in range(generators))]
        cells = [Cell("s", "none", name, metric, 0.9, 0.8, 0.95, 9, 9) for name, metric in numbers]
        return index([*cells, Cell("all", "none", "mean:all", "auc", 0.9, 0.8, 0.95, 9, 9)])

    job = job_of("cozzolino-svm-n10k-auc")
    right = run_of(job, SETS, (), recipe.COMMONPOOL, {})
    assert differences(job, right, at(18), SETS) == []
    (found,) = answer(job, at(18), [])
    assert (found.outcome, found.difference, found.setting) == ("match", "+0.0030", "published")
    for cell, evaluated, why in (
        (right, at(17), "17 generators are tested, 18 were published"),
        (run_of(job, SETS, (), "tiny", {}), at(18), f"encoder tiny instead of {recipe.COMMONPOOL}"),
        (run_of(job, SETS, ("m.csv",), recipe.COMMONPOOL, {}), at(18), "data of your own instead of LDM 10k pairs"),
    ):
        (said,) = differences(job, cell, evaluated, SETS)
        assert said.startswith(why)
        (found,) = answer(job, evaluated, [said])
        assert found.outcome == "none: not the published setting" and found.difference == "+0.0030"
    unknown = job_of("drct2m-univfd-accuracy")  # its training set is: a table of the test set alone is not its data
    cell = run_of(unknown, SETS, (str(SETS["DRCT-2M"].manifest),), recipe.OPENAI, {})
    assert differences(unknown, cell, at(16), SETS) == ["data of your own instead of an unknown set -> DRCT-2M"]
    (found,) = answer(job_of("bfree-code-synthbuster-auc"), at(9), [])
    assert found.outcome == "none: comparable, not the same method"


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["target"]: row for row in csv.DictReader(file)}


def forked(command: list[str], log: Path, *_) -> int:
    """A run in a child of this process: a real start would import everything again."""
    module = importlib.import_module(Path(next(word for word in command if word.endswith(".py"))).stem)

    def run() -> None:
        with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            module.main(cli.parse(module.Config, command[2:]))

    return in_children(run)[0]


def test_ours_beside_theirs_end_to_end(planted, tmp_path, monkeypatch, capsys) -> None:
    """First on own data and encoder; then the same run, when these are the published ones."""
    monkeypatch.setattr(cells_module, "_run", forked)
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    words = ["--only", "clipping-linear-10k-gan-*", "--output_dir", str(tmp_path / "out")]
    words += ["--resamples", "30", "--num_workers", "0"]
    assert start(monkeypatch, *words, "--manifest", str(planted), "--backbone", "tiny") == 0
    root = tmp_path / "out" / "clipping-linear-progan-10k-to-clipping-10-gan"
    page, said = (root / "table.md").read_text(), capsys.readouterr().out
    for text in (page, said):
        assert "none: not the published setting" in text and "match |" not in text and "miss |" not in text
        assert f"encoder tiny instead of {recipe.OPENAI}" in text
        assert "data of your own instead of ProGAN 10k -> CLIPping 10 GAN" in text
    assert "Embedded world" in page
    measured = index(cells_module.read_metrics(root / "run" / "metrics.csv")[()])
    rows = table(root / "reproduce.csv")
    for name, metric, theirs in (("accuracy", "balanced_accuracy_at_0.5", 0.908), ("ap", "ap", 0.989)):
        row, cell = rows[f"clipping-linear-10k-gan-{name}"], measured["all", "none", "mean:all", metric]
        assert (float(row["published"]), row["read"], row["outcome"]) == (theirs, "verified", "none")
        assert [float(row[key]) for key in ("ours", "low", "high")] == [cell.value, cell.low, cell.high]
        assert float(row["difference"]) == pytest.approx(cell.value - theirs, abs=1e-12)
    record = json.loads((root / "provenance.json").read_text())
    assert record["identity"]["backbone"] == "tiny" and record["identity"]["data"]

    manifest = Manifest.read(planted)
    tested = set(manifest["generator"][manifest["split"] == "test"]) - {"real"}
    own = TargetSet("", "here", f"folders --output {planted}", len(tested))
    sets = SETS | {name: dataclasses.replace(own, name=name) for name in ("ProGAN 10k", "CLIPping 10 GAN")}
    monkeypatch.setattr(targets_module, "read_sets", lambda: sets)
    lines = [(*line[:4], "tiny", *line[5:]) for line in recipe.CONFIGURATIONS]
    monkeypatch.setattr(recipe, "CONFIGURATIONS", lines)
    trained = (root / "run" / "provenance.json").stat().st_mtime_ns
    assert start(monkeypatch, *words) == 0
    assert (root / "run" / "provenance.json").stat().st_mtime_ns == trained  # the same run, not trained again
    rows = table(root / "reproduce.csv")
    for row in rows.values():
        inside = float(row["low"]) - 0.0005 <= float(row["published"]) <= float(row["high"]) + 0.0005
        assert (row["setting"], row["outcome"]) == ("published", "match" if inside else "miss")
    assert "not the published setting" not in (root / "table.md").read_text()

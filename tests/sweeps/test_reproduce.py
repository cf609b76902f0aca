"""From a published figure to a run: what is missing is named, what is not the published setting gets no verdict, and a
published pattern gets one from any data."""

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
import numpy as np
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
from adapt.evaluation.replicates import Replicates
from adapt.evaluation.scores import Scores
from adapt.evaluation.targets import TargetSet, ours, read_patterns, read_sets, read_targets, select
from adapt.number_table import read_rows, write_table
from adapt.pages.tables import COLUMNS as TABLE_COLUMNS
from adapt.sweeps import planned_runs as cells_module
from adapt.sweeps.reproduction import (
    Configuration,
    Decided,
    Figure,
    answer,
    configure,
    decide,
    differences,
    evaluated,
    hub_repository,
    jobs,
    run_of,
)

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
        config = run_of("run", job, SETS, (), job.configuration.backbone, {}).config(tmp_path)
        assert config.backbone == job.configuration.backbone and config.test_views == tuple(job.views)
    for name in (*(recipe.OPENAI, recipe.OPENAI_336, recipe.COMMONPOOL, recipe.DATACOMP, recipe.PE, recipe.SIGLIP2),):
        model, tag = name.removeprefix("open_clip:").split("@")
        assert tag in open_clip.list_pretrained_tags_by_model(model)


def test_every_configuration_has_its_targets_and_every_target_one() -> None:
    for configuration in CONFIGURATIONS:
        for pattern in configuration.targets:
            assert fnmatch.filter([target.name for target in EVERY], pattern), pattern
    meant = {target.name: configure(target, CONFIGURATIONS) for target in EVERY}
    assert {name for name, c in meant.items() if c.same} >= {
        *("seed-table1-qf65-qf40", "cozzolino-svm-n10-auc", "bfree-univfd-synthbuster-auc"),
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
    assert start(monkeypatch, "--list", "--only", "seed-pattern-at90") == 0
    assert "seed-pattern-at90       +0.0128  tested at quality 90" in capsys.readouterr().out
    assert start(monkeypatch, "--list") == 0
    said = capsys.readouterr().out.split()
    assert all(said.count(one.name) == 1 for one in (*EVERY, *read_patterns(EVERY)))


def test_a_name_is_needed_and_must_be_known(monkeypatch, capsys) -> None:
    assert start(monkeypatch) == 2 and "--list shows all of them" in capsys.readouterr().err
    assert start(monkeypatch, "--only", "cozzolino-svm-n10-acu") == 2
    assert "perhaps you meant 'cozzolino-svm-n10-auc'" in capsys.readouterr().err
    assert start(monkeypatch, "--only", "seed-pattern-fall", "--configuration", "norm") == 2
    assert "seed-pattern-fall compares several trainings; leave it out" in capsys.readouterr().err


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
        "on request only; 11,170 fakes and 14,863 photographs; no source of `adapt prepare` makes it",
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
    right = run_of("run", job, SETS, (), recipe.COMMONPOOL, {})
    assert differences(job, right, at(18), SETS) == []
    (found,) = answer(job, at(18), [])
    assert (found.outcome, found.difference, found.setting) == ("match", "+0.0030", "published")
    for cell, cells, why in (
        (right, at(17), "17 generators are tested, 18 were published"),
        (run_of("run", job, SETS, (), "tiny", {}), at(18), f"encoder tiny instead of {recipe.COMMONPOOL}"),
        (
            run_of("run", job, SETS, ("m.csv",), recipe.COMMONPOOL, {}),
            at(18),
            "data of your own instead of LDM 10k pairs",
        ),
    ):
        (said,) = differences(job, cell, cells, SETS)
        assert said.startswith(why)
        (found,) = answer(job, cells, [said])
        assert found.outcome == "none: not the published setting" and found.difference == "+0.0030"
    unknown = job_of("iapl-ufd-accuracy")  # its training set is: a table of the test set alone is not its data
    cell = run_of("run", unknown, SETS, (str(SETS["UFD"].manifest),), recipe.OPENAI, {})
    assert differences(unknown, cell, at(16), SETS) == ["data of your own instead of an unknown set -> UFD"]
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
    words = ["--only", "seed-table1-qf90-*", "--output_dir", str(tmp_path / "out")]
    words += ["--resamples", "30", "--num_workers", "0"]
    assert start(monkeypatch, *words, "--manifest", str(planted), "--backbone", "tiny") == 0
    root = tmp_path / "out" / "seed-qf90-elsa-d3-10-000-to-elsa-d3-test"
    page, said = (root / "table.md").read_text(), capsys.readouterr().out
    for text in (page, said):
        assert "none: not the published setting" in text and "match |" not in text and "miss |" not in text
        assert f"encoder tiny instead of {recipe.DATACOMP}" in text
        assert "data of your own instead of ELSA_D3 10,000 -> ELSA_D3 test" in text
    assert "Embedded world" in page
    measured = index(cells_module.read_metrics(root / "run" / "metrics.csv")[()])
    rows = table(root / "reproduce.csv")
    for view, theirs in (("qf40", 0.7744), ("qf65", 0.8581), ("qf90", 0.9925)):
        row = rows[f"seed-table1-qf90-{view}"]
        cell = measured["all", view, "mean:all", "balanced_accuracy_at_0.5"]
        assert (float(row["published"]), row["read"], row["outcome"]) == (theirs, "verified", "none")
        assert [float(row[key]) for key in ("ours", "low", "high")] == [cell.value, cell.low, cell.high]
        assert float(row["difference"]) == pytest.approx(cell.value - theirs, abs=1e-12)
    record = json.loads((root / "provenance.json").read_text())
    assert record["identity"]["backbone"] == "tiny" and record["identity"]["data"]

    manifest = Manifest.read(planted)
    tested = set(manifest["generator"][manifest["split"] == "test"]) - {"real"}
    own = TargetSet("", "here", f"folders --output {planted}", len(tested))
    sets = SETS | {name: dataclasses.replace(own, name=name) for name in ("ELSA_D3 10,000", "ELSA_D3 test")}
    monkeypatch.setattr(targets_module, "read_sets", lambda: sets)
    lines = [(*line[:4], "tiny", *line[5:]) for line in recipe.CONFIGURATIONS]
    monkeypatch.setattr(recipe, "CONFIGURATIONS", lines)
    trained = (root / "run" / "provenance.json").stat().st_mtime_ns
    assert start(monkeypatch, *words) == 0
    assert (root / "run" / "provenance.json").stat().st_mtime_ns == trained  # the same run, not trained again
    rows = table(root / "reproduce.csv")
    for row in rows.values():
        inside = float(row["low"]) - 0.00005 <= float(row["published"]) <= float(row["high"]) + 0.00005
        assert (row["setting"], row["outcome"]) == ("published", "match" if inside else "miss")
    assert "not the published setting" not in (root / "table.md").read_text()


def test_a_pattern_end_to_end(planted, tmp_path, monkeypatch, capsys) -> None:
    """Three trainings, three test qualities; the differences and outcomes again from the scores, by hand."""
    monkeypatch.setattr(cells_module, "_run", forked)
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    words = ["seed-pattern-*", "--manifest", str(planted), "--backbone", "tiny", "--output_dir", str(tmp_path / "out")]
    assert start(monkeypatch, "--only", *words, "--num_workers", "0") == 0
    root, said = tmp_path / "out" / "patterns", capsys.readouterr().out
    page = (root / "table.md").read_text()
    assert f"encoder tiny, published: {recipe.DATACOMP}" in page and "Embedded world" in page

    at = {}
    for trained in (40, 65, 90):
        scores = Scores.read(next(root.glob(f"seed-qf{trained}-*/scores.parquet")))
        test = scores.select((scores["split"] == "test") & np.isin(scores["seen"], ["", "train"]))
        called, fake = test["logit"] >= 0, test["generator"] != "real"
        for tested in (40, 65, 90):
            here = test["view"] == f"qf{tested}"
            right = 1 - called[here & ~fake & (test["edit"] == "")].mean()
            met = sorted(set(test["generator"][fake & (test["seen"] == "train")]))
            recalls = [called[here & (test["generator"] == name)].mean() for name in met]
            at[f"seed-table1-qf{trained}-qf{tested}"] = (right + np.mean(recalls)) / 2
    figures = {row.figure: row for row in read_rows(root / "figures.csv", Figure)}
    assert {name: row.value for name, row in figures.items()} == pytest.approx(at, abs=1e-12)
    decided = read_rows(root / "patterns.csv", Decided)
    assert [d.pattern for d in decided] == [pattern.name for pattern in read_patterns(EVERY)]
    for d, pattern in zip(decided, read_patterns(EVERY), strict=True):
        above, below = (np.mean([at[t.name] for t in side]) for side in (pattern.above, pattern.below))
        assert d.value == pytest.approx(above - below, abs=1e-12) and d.low < d.value < d.high and d.groups == 12
        assert d.outcome == ("match" if d.low > 0 else "miss" if d.high < 0 else "open")
        assert f"| {d.pattern} |" in page and f"| {d.outcome} |" in said
    trained = (next(root.glob("seed-qf40-*")) / "provenance.json").stat().st_mtime_ns
    assert start(monkeypatch, "--only", *words, "--num_workers", "0") == 0  # nothing is trained again
    assert (next(root.glob("seed-qf40-*")) / "provenance.json").stat().st_mtime_ns == trained
    assert (root / "table.md").read_text() == page


def test_a_pattern_that_lacks_a_run_is_not_decided(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert start(monkeypatch, "--only", "seed-pattern-fall", "--backbone", "tiny") == 2
    assert "adapt prepare elsa_d3 --hub_split train --limit 2000" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("shift", "outcome"), [(0.2, "match"), (-0.2, "miss"), (0.0, "open"), (float("nan"), "n/a")], ids=str
)
def test_outcomes_of_a_pattern(shift, outcome) -> None:
    """30 groups, each right or wrong at random under both trainings, shifted apart."""
    rng = np.random.default_rng(0)
    pattern = next(p for p in read_patterns(EVERY) if p.name == "seed-pattern-at40")

    def measured(mean: float) -> Replicates:
        right = mean + rng.normal(0, 0.1, 30)
        values = np.concatenate([[right.mean()], (right.sum() - right) / 29])
        return Replicates({"balanced_accuracy_at_0.5": values}, 30, 120, 30)

    numbers = {pattern.above[0].name: measured(0.6 + shift), pattern.below[0].name: measured(0.6)}
    assert decide(pattern, numbers).outcome == outcome


def test_a_published_map_is_compared_with_that_of_a_localiser(tmp_path) -> None:
    """Pixel F1 stands in localization.csv, not in metrics.csv."""
    target = next(t for t in EVERY if t.name == "dinov3iml-mvss-l-lora64-mean")
    whole = ("all", "none", "mean:all", "auc", 0.7, 0.6, 0.8, 9, 9, 9)
    write_table(tmp_path / "metrics.csv", TABLE_COLUMNS, [whole])
    rates = [("none", "edits", "f1", 0.5, 0.4, 0.6, 9), ("none", "part", "f1", 0.9, 0.8, 1.0, 9)]
    write_table(tmp_path / "localization.csv", ("view", "label", "metric", "value", "low", "high", "n"), rates)
    found = ours(target, evaluated(tmp_path))
    assert (found.value, found.low, found.high) == (0.5, 0.4, 0.6)
    assert job_of(target.name).configuration.recipe == "localize"

"""Generators and families left out in turn, through the real `main` of the recipes; against runs on fewer rows."""

import contextlib
import dataclasses
import importlib
import json
import os
import signal
from pathlib import Path

import ablation
import linear_probe
import lora
import numpy as np
import pytest
from processes import in_children
from sklearn.metrics import roc_auc_score

import adapt.training.report  # loaded once here, inherited by every child
from adapt.cli import parse
from adapt.data.families import read_families
from adapt.data.left_out import leave_out, rotation_of
from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.evaluation.metrics import evaluate
from adapt.evaluation.rotation import LOWEST, OVER_ALL, rotation
from adapt.evaluation.scores import Scores
from adapt.evaluation.side_by_side import MEAN
from adapt.pages.rotation import read_rotation, rotation_sections
from adapt.sweeps import planned_runs
from adapt.sweeps.tables_again import tables_again, tables_of

TRAINED = ("grid", "transposed", "latent", "codebook")
GANS = ("grid", "transposed")
VIEWS = ("none", "qf65")


def forked(command: list[str], log: Path, *_) -> int:
    """A run in a child of this process: a real start would import everything again."""
    module = importlib.import_module(Path(next(word for word in command if word.endswith(".py"))).stem)

    def run() -> None:
        with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            module.main(parse(module.Config, command[2:]))

    return in_children(run)[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def probe(subtle, cache, tmp_path_factory) -> linear_probe.Config:
    return linear_probe.Config(
        manifest=(str(subtle),),
        output_dir=tmp_path_factory.mktemp("probe") / "run",
        train_views=VIEWS,
        test_views=VIEWS,
        cache=cache,
        resamples=20,
        num_workers=0,
        rotate="generator",
    )


@pytest.fixture(scope="module")
def rotated(probe) -> Path:
    linear_probe.main(probe)
    return probe.output_dir


def fewer(manifest: Path, generators: tuple[str, ...], name: str) -> Path:
    """A manifest from which train and val rows of these generators were taken by hand, as text."""
    lines = manifest.read_text(encoding="utf-8").splitlines()
    columns = lines[0].split(",")
    at = {name: columns.index(name) for name in ("generator", "split")}
    kept = [
        line
        for line in lines[1:]
        if line.split(",")[at["generator"]] not in generators or line.split(",")[at["split"]] == "test"
    ]
    path = manifest.with_name(f"{name}.csv")
    path.write_text("\n".join([lines[0], *kept]) + "\n", encoding="utf-8")
    return path


def small(manifest: Path, *generators: str) -> Path:
    """Four training groups, three for validation, five for the test, of these generators."""
    rows = Manifest.read(manifest)
    kept = np.isin(rows["generator"], ["real", *generators]) & (rows["edit"] == "")
    groups = [g for split, n in (("train", 4), ("val", 3), ("test", 5)) for g in groups_of(rows, split)[:n]]
    path = manifest.with_name("small.csv")
    rows.select(kept & np.isin(rows["group"], groups)).write(path)
    return path


def groups_of(rows: Manifest, split: str) -> list[str]:
    return list(dict.fromkeys(rows["group"][rows["split"] == split]))


def again(folder: Path, recipe: str) -> list[str]:
    """The table of the rotation, made again from the files; the record names pytest instead of the recipe."""
    path = folder / "provenance.json"
    record = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(record) | {"command": f"python recipes/{recipe}.py"}), encoding="utf-8")
    tables = tables_again(folder)
    path.write_text(record, encoding="utf-8")
    return tables["Rotation", ""] if ("Rotation", "") in tables else tables["", ""]


def auc(scores: Scores, generators: tuple[str, ...]) -> float:
    """Mean over views and generators, by sklearn."""
    found = []
    for view in VIEWS:
        for generator in generators:
            rows = (scores["split"] == "test") & (scores["view"] == view) & (scores["edit"] == "")
            rows &= np.isin(scores["generator"], ["real", generator])
            found.append(roc_auc_score(scores.fake[rows], scores["logit"][rows]))
    return float(np.mean(found))


# -- what is left out ------------------------------------------------------------------------------------------------


def test_names_are_generators_or_families_of_training(subtle) -> None:
    rows = Manifest.read(subtle)
    without = leave_out(rows, ("gan", "codebook"))
    gone = set(rows["path"]) - set(without["path"])
    expected = (rows["split"] != "test") & np.isin(rows["generator"], [*GANS, "codebook"])
    assert gone == set(rows["path"][expected]) and expected.any()
    assert set(without.seen([*GANS, "codebook"])) == {""} and set(without.seen(["latent"])) == {"train"}
    assert leave_out(rows, ()) is rows
    with pytest.raises(Refusal, match=r"--leave_out glan: no generator or family.*there are: grid,.*gan"):
        leave_out(rows, ("glan",))
    with pytest.raises(Refusal, match="--leave_out style"):  # a generator of test rows only is unseen anyway
        leave_out(rows, ("style",))
    with pytest.raises(Refusal, match="no fakes are left in split 'train'"):
        leave_out(rows, TRAINED)


def test_a_rotation_takes_two(subtle) -> None:
    rows = Manifest.read(subtle)
    assert rotation_of(rows, "generator") == {name: (name,) for name in TRAINED}
    assert rotation_of(rows, "family") == {"gan": GANS, "diffusion": ("latent",), "autoregressive": ("codebook",)}
    gans = leave_out(rows, ("diffusion", "autoregressive"))
    with pytest.raises(Refusal, match=r"--rotate family: only gan has train and test rows.*rotate generators"):
        rotation_of(gans, "family")
    assert list(rotation_of(gans, "generator")) == list(GANS)
    with pytest.raises(Refusal, match=r"--rotate generator: only grid has.*add images of another"):
        rotation_of(leave_out(gans, ("transposed",)), "generator")


# -- numbers ---------------------------------------------------------------------------------------------------------


def table(rng: np.random.Generator, shifts: dict[str, float], n: int = 40) -> Scores:
    kinds = {"real": 0.0, **shifts}
    rows = [(f"{name}{i}", f"g{i}", name, shift + rng.normal()) for name, shift in kinds.items() for i in range(n)]
    return Scores(dict(zip(("path", "group", "generator", "logit"), map(list, zip(*rows, strict=True)), strict=True)))


def test_means_worst_and_drops_are_those_of_the_tables() -> None:
    rng = np.random.default_rng(0)
    whole = [table(rng, {"a": 2.0, "b": 2.0, "c": 2.0, "d": 2.0}) for _ in range(2)]
    shifts = {"a": 1.5, "b": 1.0, "c": 0.1, "d": 2.0}
    without = {name: [table(rng, dict.fromkeys("abcd", shift)) for _ in range(2)] for name, shift in shifts.items()}
    numbers = {n.left_out: n for n in rotation(whole, without, {n: (n,) for n in shifts}, 100) if n.view == MEAN}

    def of(tables, name) -> float:
        rows = np.isin(tables[0]["generator"], ["real", name])
        return float(np.mean([roc_auc_score(t.fake[rows], t["logit"][rows]) for t in tables]))

    for name in shifts:
        n = numbers[name]
        assert (n.value, n.trained) == pytest.approx((of(without[name], name), of(whole, name)), abs=1e-12)
        assert n.drop == pytest.approx(n.trained - n.value) and n.drop_low < n.drop < n.drop_high
        assert (n.n_real, n.n_fake, n.seeds) == (40, 40, 2)
    mean, worst = numbers[OVER_ALL], numbers[LOWEST]
    assert mean.value == pytest.approx(np.mean([numbers[name].value for name in shifts]))
    assert mean.high - mean.low > 2 * max(numbers[name].high - numbers[name].low for name in "ab")  # c is far off
    assert worst.value == numbers["c"].value and worst.low <= worst.value <= worst.high and np.isnan(worst.drop)
    page = rotation_sections(list(numbers.values()))[1]
    assert "| mean of 4 | 40 | 160 |" in page and "| worst of 4: c |" in page


def test_another_order_of_rows_is_refused() -> None:
    rng = np.random.default_rng(0)
    one, other = table(rng, {"a": 1.0, "b": 1.0}), table(rng, {"a": 1.0, "b": 1.0})
    turned = other.select(np.arange(len(other))[::-1])
    with pytest.raises(Refusal, match="a: runs with and without it scored other test rows"):
        rotation([one], {"a": [turned], "b": [other]}, {"a": ("a",), "b": ("b",)}, 10)


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_a_probe_rotates_as_if_the_rows_had_never_been_there(probe, rotated, subtle, tmp_path) -> None:
    numbers = {(n.left_out, n.view): n for n in read_rotation(rotated)}
    assert {name for name, _ in numbers} == {*TRAINED, OVER_ALL, LOWEST}
    whole = Scores.read(rotated / "scores.parquet")
    for name in ("grid", "codebook"):
        by_hand = fewer(subtle, (name,), f"without-{name}")
        linear_probe.main(
            dataclasses.replace(probe, manifest=(str(by_hand),), output_dir=tmp_path / name, rotate=None)
        )
        by_hand.unlink()
        found = numbers[name, MEAN]
        assert found.value == pytest.approx(auc(Scores.read(tmp_path / name / "scores.parquet"), (name,)), abs=1e-12)
        assert found.trained == pytest.approx(auc(whole, (name,)), abs=1e-12)
    page = (rotated / "table.md").read_text(encoding="utf-8")
    lowest = min(TRAINED, key=lambda name: numbers[name, MEAN].value)
    assert "## Rotation" in page and f"worst of 4: {lowest}" in page
    assert again(rotated, "linear_probe") == tables_of(page)["Rotation", ""]


def test_leave_out_is_the_run_on_fewer_rows(probe, subtle, tmp_path) -> None:
    gone = dataclasses.replace(probe, leave_out=("gan",), output_dir=tmp_path / "flag", rotate=None)
    linear_probe.main(gone)
    by_hand = fewer(subtle, GANS, "without-gans")
    linear_probe.main(
        dataclasses.replace(probe, manifest=(str(by_hand),), output_dir=tmp_path / "by_hand", rotate=None)
    )
    by_hand.unlink()
    one, other = (Scores.read(tmp_path / name / "scores.parquet") for name in ("flag", "by_hand"))
    np.testing.assert_array_equal(one["logit"], other["logit"])
    families = read_families(manifest=Manifest.read(subtle))
    unseen = {c.generator: c for c in evaluate(one, resamples=20) if c.view == "none" and c.metric == "auc"}
    gans, flows = ([name for name in unseen if families.of(name) == family] for family in ("gan", "flow"))
    assert set(GANS) < set(gans) and flows  # the held-out gans are of an unseen family now, too
    expected = np.mean([unseen[name].value for name in (*gans, *flows)])
    assert unseen["mean:unseen-family"].value == pytest.approx(expected)
    with pytest.raises(Refusal, match="leave_out"):
        linear_probe.main(dataclasses.replace(gone, leave_out=("diffusion",)))


def test_lora_rotates_in_runs_of_its_own_and_continues(subtle, tmp_path, monkeypatch) -> None:
    config = lora.Config(
        manifest=(str(small(subtle, "grid", "latent")),),
        output_dir=tmp_path / "rotation",
        train_views=("none",),
        test_views=("none",),
        epochs=1,
        groups=4,
        resamples=20,
        num_workers=0,
        rotate="generator",
    )
    started: list[str] = []

    def stopped(command, log, *rest) -> int:
        started.append(log.stem)
        if len(started) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return forked(command, log, *rest)

    monkeypatch.setattr(planned_runs, "_run", stopped)
    assert in_children(lambda: lora.main(config)) == [-signal.SIGKILL]
    before = {path.parent.name: path.stat().st_mtime_ns for path in config.output_dir.glob("*/provenance.json")}
    assert set(before) == {"all", "all-without-grid"}
    monkeypatch.setattr(planned_runs, "_run", forked)
    lora.main(config)
    after = {path.parent.name: path.stat().st_mtime_ns for path in config.output_dir.glob("*/provenance.json")}
    assert {name: after[name] for name in before} == before  # nothing finished ran again
    assert set(after) == {"all", *(f"all-without-{name}" for name in ("grid", "latent"))}
    numbers = {n.left_out: n for n in read_rotation(config.output_dir) if n.view == "none"}
    scores = Scores.read(config.output_dir / "all-without-grid" / "scores.parquet")
    each = [c.value for c in evaluate(scores, 0) if c.generator == "grid" and c.metric == "auc"]
    assert each == pytest.approx([numbers["grid"].value], abs=1e-12)
    assert (
        set(scores["seen"][scores["generator"] == "grid"]) == {""}
        and "grid" not in scores["generator"][scores["split"] == "val"]
    )
    record = json.loads((config.output_dir / "provenance.json").read_text())
    assert record["identity"]["rotate"] == "generator"
    page = (config.output_dir / "table.md").read_text(encoding="utf-8")
    assert again(config.output_dir, "lora") == tables_of(page)["", ""]
    with pytest.raises(Refusal, match="holds a run that is no rotation by family"):
        lora.main(dataclasses.replace(config, rotate="family"))


def test_the_ablation_rotates_every_method(subtle, cache, tmp_path, monkeypatch) -> None:
    methods = (
        ("logistic", "linear_probe", {"head": "logistic"}, 0.1),
        ("svm", "linear_probe", {"head": "svm"}, 0.1),
        ("labels-permuted", "linear_probe", {"permutations": 2}, 0.1),
    )
    monkeypatch.setattr(ablation, "METHODS", methods)
    monkeypatch.setattr(adapt.training.report, "write_figures", lambda *_: None)  # slow, and not looked at here
    monkeypatch.setattr(adapt.training.report, "_log_mistakes", lambda *_: None)
    monkeypatch.setattr(planned_runs, "_run", forked)
    config = ablation.Config(
        manifest=(str(small(subtle, *TRAINED, "style")),),
        output_dir=tmp_path / "page",
        train_on=("none",),
        test_views=("none",),
        seeds=(0,),
        cache=cache,
        resamples=20,
        num_workers=0,
        pictures=False,
        leave_out=("autoregressive",),
        rotate="family",
    )
    ablation.main(config)
    root = config.output_dir
    names = {path.parent.name for path in root.glob("*/provenance.json")}
    assert names == {
        *(f"{m}-none-seed0{end}" for m in ("logistic", "svm") for end in ("", "-without-gan", "-without-diffusion")),
        "labels-permuted-none-seed0",
    }
    found = {(n.method, n.left_out): n for n in read_rotation(root) if n.view == MEAN}
    for method in ("logistic", "svm"):
        ends = {"gan": GANS, "diffusion": ("latent",)}
        for name, generators in ends.items():
            scores = Scores.read(root / f"{method}-none-seed0-without-{name}" / "scores.parquet")
            each = [c.value for c in evaluate(scores, 0) if c.generator in generators and c.metric == "auc"]
            assert found[method, name].value == pytest.approx(np.mean(each), abs=1e-12)
        mean = found[method, OVER_ALL]
        assert mean.value == pytest.approx(np.mean([found[method, name].value for name in ends]))
        assert np.isnan(mean.low)  # two families are no sample
    page = (root / "table.md").read_text(encoding="utf-8")
    assert "## Rotation" in page and "## Unseen generators" in page and (root / "provenance.json").is_file()
    made = again(root, "ablation")
    assert made == tables_of(page)["Rotation", ""]
    assert "Rotation" in (root / "report.html").read_text(encoding="utf-8")
    row = next(line for line in made[0].splitlines() if line.startswith("| svm |"))
    assert f"{found['svm', OVER_ALL].value:.3f}" in row and f"{found['svm', LOWEST].value:.3f}" in row


def test_the_plan_of_a_rotation_says_what_it_costs(subtle, tmp_path, capsys) -> None:
    config = ablation.Config(
        manifest=(str(subtle),), output_dir=tmp_path, rotate="generator", only=("probe-svm-none*",), dry_run=True
    )
    ablation.main(config)
    said = capsys.readouterr().out
    for name in TRAINED:
        assert f"--leave_out {name} " in said
    assert "15 runs, 15 to run" in said  # three seeds, with all and without each of four

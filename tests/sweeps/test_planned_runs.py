"""Sweeps: what is finished stays, what fails is named, a signal reaches the run; the frontier against brute force."""

import csv
import dataclasses
import json
import signal
import sys
from pathlib import Path

import frontier as recipe
import lora
import numpy as np
import open_clip  # noqa: F401 (as peft and adapt.training.report: loaded once here, inherited by every child)
import peft  # noqa: F401
import pytest
import yaml
from processes import in_children
from sklearn.metrics import roc_auc_score

import adapt.training.report  # noqa: F401
from adapt.cli import parse
from adapt.errors import Refusal
from adapt.evaluation.jackknife import leave_out, share_interval
from adapt.evaluation.scores import Scores
from adapt.files import open_table
from adapt.sweeps import planned_runs as cells_module
from adapt.sweeps.frontier import MEAN, over_views, undominated
from adapt.sweeps.launch import launcher
from adapt.sweeps.planned_runs import PlannedRun, plan, read_metrics, run_all, select, sweep_record

ROOT = Path(__file__).parents[2]
FAKE = """
import dataclasses, json, os, pathlib, signal, sys, time
import yaml
@dataclasses.dataclass(frozen=True)
class Config:
    output_dir: pathlib.Path = pathlib.Path("x")
    rate: float = 0.5
    seeds: tuple[int, ...] = (1, 2)
    fast: bool = False
    note: str | None = None
    do: str = "work"
    num_workers: int | None = None
if __name__ == "__main__":
    args = sys.argv[1:]
    assert os.environ["ADAPT_PROCESSES"] == "1"
    folder = pathlib.Path(args[args.index("--output_dir") + 1])
    do = args[args.index("--do") + 1] if "--do" in args else "work"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tries").open("a") as file:
        file.write(" ".join(args) + chr(10))
    (folder / "config.yaml").write_text("{}")
    print("train:  50%|##### | 1/2", "seven", "eight", "nine", "ten", "eleven", sep=chr(10))
    if do == "fail":
        sys.exit("error: no such \\x1b[2Jthing")
    if do == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    if do in ("SIGTERM", "SIGINT", "SIGHUP", "warned") and not (folder / "checkpoint").exists():
        def leave(*_):
            (folder / "checkpoint").write_text("")
            sys.exit(143)
        signal.signal(signal.SIGTERM, leave)
        (folder / "ready").write_text("")
        if do != "warned":
            os.kill(os.getppid(), getattr(signal, do))
        time.sleep(60)
        sys.exit("the signal did not come through")
    if do == "slow":
        time.sleep(3)
    cfg = Config(do=do, rate=float(args[args.index("--rate") + 1]) if "--rate" in args else 0.5)
    identity = dataclasses.asdict(cfg) | {"seeds": [1, 2], "data": "d", "base": "b"}
    record = {"identity": {k: v for k, v in identity.items() if k not in ("output_dir", "num_workers")}, "seconds": 90}
    (folder / "provenance.json").write_text(json.dumps(record | {"peak_memory_mib": 7}))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """A folder of runs, beside a recipe that needs no time."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quick.py").write_text(FAKE)
    monkeypatch.setattr(cells_module, "RECIPES", tmp_path / "recipes")
    return tmp_path / "runs"


def cell(name: str, **flags) -> PlannedRun:
    return PlannedRun(name, "quick", flags)


def tries(root: Path, name: str) -> int:
    path = root / name / "tries"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_a_failure_is_named_the_rest_goes_on_and_nothing_finished_runs_again(fake) -> None:
    cells, said = [cell("a"), cell("b", do="fail"), cell("c", rate=2.0)], []
    failed = run_all(cells, fake, say=said.append)
    lines = ["eight", "nine", "ten", "eleven", "error: no such \\x1b[2Jthing"]  # escaped, without the progress bar
    assert [line.strip() for line in failed["b"].splitlines()] == lines and list(failed) == ["b"]
    assert [c.state(fake) for c in cells] == ["finished", "stopped", "finished"]
    assert any("b: FAILED with status 1" in line for line in said) and "finished in 1.5 min" in said[-1]
    again = [cells[0], cell("b"), cells[2]]
    assert run_all(again, fake, say=said.append) == {}
    assert [tries(fake, c.name) for c in again] == [1, 2, 1]
    assert (fake / "b.log").read_text().count("seven") == 2  # every try is kept


def test_another_config_is_not_taken_for_finished(fake) -> None:
    assert run_all([cell("a", rate=2.0)], fake, say=str) == {}
    assert cell("a", rate=2.0, num_workers=3).state(fake) == "finished"  # what cannot change a number
    assert cell("a").state(fake) == cell("a", rate=2.0, seeds=(1,)).state(fake) == "stopped"
    assert cell("z").state(fake) == "to do"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_reaches_the_cell_and_the_sweep_continues(fake, name) -> None:
    """The run itself sends it to the sweep, and leaves only when the sweep passes it on."""
    cells = [cell("a", do=name), cell("b")]

    def sweep() -> None:
        signal.signal(getattr(signal, name), signal.SIG_DFL)  # a background job ignores some of them
        run_all(cells, fake)

    assert in_children(sweep) == [128 + getattr(signal, name)]
    assert (fake / "a" / "checkpoint").exists() and tries(fake, "b") == 0
    assert in_children(sweep) == [0]
    assert [c.state(fake) for c in cells] == ["finished", "finished"] and tries(fake, "a") == 2


def test_a_run_that_does_not_stop_is_killed_after_a_while(fake, monkeypatch, capfd) -> None:
    monkeypatch.setattr(cells_module, "PATIENCE", 0.5)
    assert in_children(lambda: run_all([cell("a", do="deaf"), cell("b")], fake)) == [128 + signal.SIGTERM]
    assert "stopped: start the same command again" in capfd.readouterr().out and tries(fake, "b") == 0


def test_flags_become_words(fake) -> None:
    flags = {"rate": 1e-4, "seeds": (3, 4), "fast": True, "note": None}
    words = cell("a", **flags).arguments(fake)
    assert words == ["--rate", "0.0001", "--seeds", "3", "4", "--fast", "--note", "None", "--output_dir", f"{fake}/a"]
    assert "--no_fast" in cell("a", fast=False).arguments(fake)
    start = cell("a").start(fake, processes=2, of=fake)
    assert start.words == (str(cells_module.RECIPES / "quick.py"), "--output_dir", str(fake / "a"))
    command = launcher(start.processes)
    assert command[:2] == [sys.executable, "-m"] and "2" in command and launcher(1) == [sys.executable]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (PlannedRun("a", "quick", {"rat": 1}), "no flag 'rat' for it, perhaps you meant 'rate'"),
        (PlannedRun("a", "quick", {"output_dir": "b"}), "no flag 'output_dir'"),
        (PlannedRun("a", "quik", {}), "no recipe 'quik'; there are: quick"),
        (PlannedRun("../a", "quick", {}), r"run '\.\./a'"),
        (PlannedRun(".a", "quick", {}), r"run '\.a'"),
    ],
)
def test_impossible_cells_are_refused_before_anything_runs(fake, wrong, message) -> None:
    with pytest.raises(Refusal, match=message):
        run_all([cell("first"), wrong], fake)
    assert not fake.exists()


def test_a_launch_of_many_processes_starts_no_sweep(fake, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Refusal, match="--processes N"):
        run_all([cell("a")], fake)


def test_selection_and_shards() -> None:
    cells = [cell(f"{kind}-{i}") for kind in "ab" for i in range(3)]
    shards = [select(cells, shard=i, num_shards=4) for i in range(4)]
    assert sorted(c.name for part in shards for c in part) == [c.name for c in cells]
    assert [c.name for c in select(cells, ["b-*", "a-1"])] == ["a-1", "b-0", "b-1", "b-2"]
    for wrong, message in (
        ({"only": ["c*"]}, r"--only c\*: no such run; there are: a-0"),
        ({"shard": 2, "num_shards": 2}, "--shard 2: .* give 0 to 1"),
    ):
        with pytest.raises(Refusal, match=message):
            select(cells, **wrong)
    with pytest.raises(Refusal, match="two runs"):
        select([cell("a"), cell("a", rate=1.0)])


def test_the_plan_estimates_from_what_is_done(fake) -> None:
    cells = [cell(name) for name in "abcde"]
    assert plan(cells, fake).endswith("5 runs, 5 to run, 5 of unknown length")
    run_all(cells[:3], fake, say=str)
    for name, seconds in zip("abc", (60, 120, 6000), strict=True):
        path = fake / name / "provenance.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
    *lines, total = plan(cells, fake).splitlines()
    assert "finished" in lines[2] and " 100.0 min" in lines[2] and "python recipes/quick.py --output_dir" in lines[0]
    assert "to do" in lines[4] and "about 2.0 min" in lines[4]
    assert total == "5 runs, 2 to run, about 4 min"


def test_cells_of_different_data_make_no_page(fake) -> None:
    cells = [cell("a"), cell("b")]
    run_all(cells, fake, say=str)
    path = fake / "b" / "provenance.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"identity": record["identity"] | {"data": "other"}}))
    with pytest.raises(Refusal, match="b and a have different data"):
        sweep_record(cell("a").config(fake), cells, fake)


def test_runs_whose_line_names_a_geometry_may_see_other_pixels_of_the_same_weights(fake) -> None:
    def wrote(name: str, seen: str, weights: str = "w", **flags) -> PlannedRun:
        base = {"name": "tiny", "layer": name, "weights": weights, "preprocess": {"geometry": seen}, "commit": name}
        (fake / name).mkdir(parents=True, exist_ok=True)
        identity = {"data": "d", "base": base}
        rest = {"seconds": 1, "revision": "r", "date": "d", "hardware": {}, "versions": {}, "data": "d"}
        (fake / name / "provenance.json").write_text(json.dumps({"identity": identity} | rest))
        return cell(name, **flags)

    config = cell("a").config(fake)
    plain = [wrote("a", "native"), wrote("b", "native")]
    assert sweep_record(config, [*plain, wrote("c", "squash", geometry="squash")], fake)["seconds"] == 3
    with pytest.raises(Refusal, match="c and a have different base"):  # no line said so
        sweep_record(config, [*plain, wrote("c", "squash")], fake)
    with pytest.raises(Refusal, match="c and a have different base"):
        sweep_record(config, [*plain, wrote("c", "squash", "other weights", geometry="squash")], fake)
    with pytest.raises(Refusal, match="e and c have different base"):
        named = [wrote("c", "squash", geometry="squash"), wrote("e", "native", geometry="squash")]
        sweep_record(config, [*plain, *named], fake)


@pytest.mark.parametrize(("folder", "keys"), [("embedded/lora", 0), ("embedded/jpeg", 3)])
def test_metrics_are_read_back(folder, keys) -> None:
    path = ROOT / "results" / folder / "metrics.csv"
    found = [(key, c) for key, group in read_metrics(path).items() for c in group]
    with open_table(path) as file:
        rows = list(csv.DictReader(file))
    assert len(found) == len(rows) and {len(key) for key, _ in found} == {keys}
    lines = {(*key, c.set, c.view, c.generator, c.metric): c for key, c in found}
    for row in rows:
        values = list(row.values())
        c = lines[tuple(values[: keys + 4])]
        for name in ("value", "low", "high", "n_real", "n_fake"):
            want = np.nan if row[name] == "n/a" else float(row[name])
            np.testing.assert_equal(getattr(c, name), want)


def test_undominated_is_what_brute_force_finds() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 9):
        for _ in range(50):
            cost, value = rng.integers(0, 5, n).astype(float), rng.integers(0, 5, n) / 4
            expected = [
                all(
                    (cost[j], -value[j]) == (cost[i], -value[i]) or cost[j] > cost[i] or value[j] < value[i]
                    for j in range(n)
                )
                for i in range(n)
            ]
            assert undominated(cost, value) == expected
    assert undominated([1, 2], [float("nan"), 0.5]) == [False, True]


def table(seed: int) -> Scores:
    """10 groups of a real, two seen fakes and an unseen one, under two views."""
    rng = np.random.default_rng(seed)
    names = ["real", "a", "b", "c"]
    rows = [(g, name, view) for view in ("none", "qf40") for g in range(10) for name in names]
    return Scores(
        {
            "path": [f"{g}-{name}" for g, name, _ in rows],
            "group": [f"g{g}" for g, _, _ in rows],
            "generator": [name for _, name, _ in rows],
            "split": ["test"] * len(rows),
            "set": ["s"] * len(rows),
            "edit": [""] * len(rows),
            "seen": [{"a": "train", "b": "train"}.get(name, "") for _, name, _ in rows],
            "view": [view for _, _, view in rows],
            "status": ["ok"] * len(rows),
            "logit": rng.normal([0.0 if name == "real" else 0.7 for _, name, _ in rows]),
        }
    )


def test_means_over_views_and_seeds_share_their_resamples() -> None:
    """Against resamples weighed one by one with sklearn."""
    tables = [table(1), table(2)]
    counts, column = leave_out(tables[0]["set"], tables[0]["group"], 30, 0)
    held = tables[0].select((tables[0]["split"] == "test") & (tables[0]["view"] == "none"))

    def auc(scores: Scores, view: str, name: str, weight: np.ndarray) -> float:
        rows = (scores["view"] == view) & np.isin(scores["generator"], ["real", name])
        return roc_auc_score(scores.fake[rows], scores["logit"][rows], sample_weight=weight[column][rows])

    found = over_views(tables, 30)
    for view, views in ((MEAN, ("none", "qf40")), ("qf40", ("qf40",))):
        for kind, names, reduce in (
            ("AUC seen", "ab", np.mean),
            ("AUC unseen", "c", np.mean),
            ("AUC worst", "abc", np.min),
        ):
            of_seeds = np.array(
                [
                    [
                        np.mean([reduce([auc(t, v, name, weight) for name in names]) for v in views])
                        for weight in counts
                    ]
                    for t in tables
                ]
            )
            values = of_seeds.mean(axis=0)
            cell = found[view, kind]
            groups = int(np.mean([len(set(held["group"][held["generator"] == name])) for name in names]))
            low, high = (
                (np.nan, np.nan) if kind == "AUC worst" else share_interval(values, groups, seeds=of_seeds[:, 0])
            )
            np.testing.assert_allclose([cell.value, cell.low, cell.high], [values[0], low, high], atol=1e-12)


def test_two_configurations_end_to_end(planted, tmp_path, capsys, monkeypatch) -> None:
    """A sweep of one epoch, first of half the runs: its page, and that it continues."""
    cfg = recipe.Config(
        manifest=(str(planted),),
        output_dir=tmp_path / "sweep",
        configurations=("norm-last1", "svd-qv-1"),
        learning_rates=(4e-3,),
        train_views=("none",),
        test_views=("none", "qf65"),
        epochs=1,
        resamples=20,
        num_workers=0,
    )
    root = cfg.output_dir

    def forked(command, *_) -> int:  # a real start of each would import everything again
        return in_children(lambda: lora.main(parse(lora.Config, command[2:])))[0]

    monkeypatch.setattr(cells_module, "_run", forked)
    recipe.main(dataclasses.replace(cfg, only=("svd-*",)))
    assert "no page yet" not in (out := capsys.readouterr().out) and "norm-last1 |" not in out
    assert "**Not finished**: norm-last1-lr0.004-seed0." in (root / "table.md").read_text()
    assert not (root / "provenance.json").exists()
    first = (root / "svd-qv-1-lr0.004-seed0" / "provenance.json").stat().st_mtime_ns
    recipe.main(cfg)
    assert "2 runs, 1 to run, about" in capsys.readouterr().out
    assert (root / "svd-qv-1-lr0.004-seed0" / "provenance.json").stat().st_mtime_ns == first
    record = json.loads((root / "provenance.json").read_text())
    cells = {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/provenance.json")}
    assert set(cells) == {"norm-last1-lr0.004-seed0", "svd-qv-1-lr0.004-seed0"}
    assert record["seconds"] == pytest.approx(sum(c["seconds"] for c in cells.values()))
    with (root / "frontier.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 3  # configurations, kinds, two views and their mean
    parameters = {row["configuration"]: int(row["trainable_parameters"]) for row in rows}
    assert parameters == {"norm-last1": 2 * 2 * 192 + 193, "svd-qv-1": 8 * 385 + 193}
    for row in rows:  # a single run and view: what its own page says, but for the resamples' seed
        if row["view"] != MEAN:
            metrics = read_metrics(root / f"{row['configuration']}-lr0.004-seed0" / "metrics.csv")[()]
            own = next(
                c
                for c in metrics
                if (c.view, c.generator, c.metric, c.set) == (row["view"], row["generators"], "auc", "all")
            )
            assert float(row["auc"]) == pytest.approx(own.value, abs=1e-12)
    page = (root / "table.md").read_text()
    assert page.count("| norm-last1 |") == 3 and "nothing was\nchosen on test data" in page
    assert (root / "figures" / "frontier.png").stat().st_size > 5000
    assert yaml.safe_load((root / "config.yaml").read_text())["configurations"] == ["norm-last1", "svd-qv-1"]


def test_configurations_that_mean_nothing_are_refused() -> None:
    for wrong in ("lora-all", "svd-norm-1", "lora-qv-0", "norm-8", "lora-qv-8-last"):
        with pytest.raises(Refusal, match=f"--configurations {wrong}: expected"):
            recipe.Config(configurations=(wrong,))
    with pytest.raises(Refusal, match="--seeds: give one or more, each once"):
        recipe.Config(seeds=(1, 1))

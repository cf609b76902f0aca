"""Bounds of the embedded world: numbers against scikit-learn, and a shortcut that must break them."""

import json
from pathlib import Path

import check_world
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adapt.embedded.generators import FAMILIES, HELD_OUT, SEEN
from adapt.evaluation.scores import Scores
from adapt.number_table import read_rows, read_table
from adapt.pages.tables import grid
from adapt.sweeps import planned_runs
from adapt.sweeps.planned_runs import PlannedRun
from adapt.sweeps.tables_again import tables_of
from adapt.sweeps.worlds import Bound, Measured, Quantity, Worlds, lines

WORLDS = (7, 8, 9)
SCENES = 60
GOOD = {"chroma": 0.0, "colour": 0.2, "spectra": 0.7, "probe": 0.9, "lora": 2.0}  # distance of fakes, in deviations


def scores(distance: float, seed: int) -> Scores:
    """Scores of one method in one world: unseen generators are nearer to the reals, compressed images nearer still."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list] = {
        name: [] for name in ("path", "group", "generator", "family", "seen", "view", "edit", "split")
    }
    logit = []
    names = [("real", ""), *((name, "") for name in SEEN + HELD_OUT), ("real", "rescale")]
    for split in ("val", "test"):
        for scene in range(SCENES):
            for name, edit in names if split == "test" else names[: 1 + len(SEEN)]:
                seen = "train" if name in ("real", *SEEN) else ""
                family = "real" if name == "real" else FAMILIES[name]
                near = {"train": 1.0, "": 0.75}[seen] - 0.3 * (family == "flow")
                for view in check_world.VIEWS:
                    weak = {"qf40": 0.6, check_world.CHAIN: 0.5}.get(view, 1.0)
                    values = (
                        f"{split}{scene}-{edit or name}",
                        f"{split}{scene}",
                        name,
                        family,
                        seen,
                        view,
                        edit,
                        split,
                    )
                    for column, value in zip(rows, values, strict=True):
                        rows[column].append(value)
                    logit.append(rng.standard_normal() + (name != "real") * distance * near * weak)
    return Scores({name: np.array(of, object) for name, of in rows.items()} | {"logit": np.array(logit)})


def runs_in(root: Path, distances: dict[str, float]) -> dict[tuple[str, int], PlannedRun]:
    """Folders that look like finished runs, as far as their scores."""
    out = {}
    for world in WORLDS:
        for number, (method, (recipe, _)) in enumerate(check_world.METHODS.items()):
            run = out[method, world] = PlannedRun(f"{method}-{world}", recipe, {})
            (root / run.name).mkdir(parents=True)
            scores(distances[method], 10 * world + number).write(root / run.name / "scores.parquet")
    return out


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Worlds:
    root = tmp_path_factory.mktemp("worlds")
    return Worlds(runs_in(root, GOOD), root, 200)


@pytest.mark.parametrize(("kind", "names"), [("mean:seen", SEEN), ("mean:unseen", HELD_OUT)])
@pytest.mark.parametrize("view", ["none", "qf40"])
def test_a_quantity_is_the_mean_over_generators_and_worlds(found, kind, names, view) -> None:
    expected = []
    for world in WORLDS:
        table = Scores.read(found.root / f"lora-{world}" / "scores.parquet")
        here = (table["split"] == "test") & (table["view"] == view) & (table["edit"] == "")
        real = here & (table["generator"] == "real")
        pairs = [here & (table["generator"] == name) for name in names]
        expected.append(
            np.mean([roc_auc_score(table.fake[real | fake], table["logit"][real | fake]) for fake in pairs])
        )
    quantity = found.quantity("lora", kind, view)
    assert quantity.worlds == pytest.approx(expected)
    assert quantity.values[0] == pytest.approx(np.mean(expected))
    assert quantity.groups == len(WORLDS) * SCENES


def test_false_alarms_are_at_the_threshold_of_each_world(found) -> None:
    quantity = found.quantity("lora", "real")
    assert quantity.worlds.mean() == pytest.approx(quantity.values[0])
    assert 0 < quantity.values[0] < 0.5


def test_a_good_world_meets_its_bounds_and_a_shortcut_breaks_them(found, tmp_path) -> None:
    good = {bound.name: bound for bound in check_world.bounds(found.quantity)}
    assert "NOT MET" not in {bound.outcome for bound in good.values()}
    assert good["chroma alone, seen"].outcome == good["LoRA above the probe, unseen"].outcome == "met"
    runs = runs_in(tmp_path, GOOD | {"chroma": 2.5, "colour": 3.0})
    shortcut = {bound.name: bound for bound in check_world.bounds(Worlds(runs, tmp_path, 200).quantity)}
    for name in ("chroma alone, seen", "chroma alone, unseen", "colour, seen", "probe above colour, seen"):
        assert shortcut[name].outcome == "NOT MET"


def test_the_outcome_is_of_the_whole_interval() -> None:
    rng = np.random.default_rng(0)
    values = 0.7 + np.concatenate([[0], 0.002 * rng.standard_normal(100)])
    quantity = Quantity(values, np.array([0.69, 0.71]), 100)
    assert Bound("", quantity, most=0.9).outcome == "met"
    assert Bound("", quantity, most=0.7).outcome == Bound("", quantity, least=0.7).outcome == "not told"
    assert Bound("", quantity, most=0.5).outcome == Bound("", quantity, least=0.9).outcome == "NOT MET"
    assert Bound("", quantity, least=0.1, most=0.9).range == "at least 0.1, at most 0.9"


@pytest.mark.parametrize("chroma", [0.0, 2.5])
def test_the_recipe_says_what_is_not_met_and_leaves_with_status_1(monkeypatch, tmp_path, chroma) -> None:
    runs_in(tmp_path, GOOD | {"chroma": chroma, "colour": max(GOOD["colour"], chroma)})
    identity = {"data": "d", "base": {"name": "tiny", "weights": "w"}}
    record = {"command": "c", "seconds": 60.0, "revision": "r", "date": "2026-01-01", "data": "embedded; 1 row"}
    record |= {"hardware": {"gpus": "none"}, "versions": {"torch": "2"}, "identity": identity}
    monkeypatch.setattr(planned_runs, "carry_out", lambda *_: {})
    monkeypatch.setattr(PlannedRun, "state", lambda *_: "finished")
    monkeypatch.setattr(PlannedRun, "record", lambda *_: record)
    config = check_world.Config(worlds=WORLDS, resamples=100, output_dir=tmp_path)
    if chroma:
        with pytest.raises(SystemExit) as left:
            check_world.main(config)
        assert left.value.code == 1
    else:
        check_world.main(config)
    rows = read_table(tmp_path / "bounds.csv")
    page = (tmp_path / "table.md").read_text()
    assert tables_of(page)["", ""] == [grid(lines(read_rows(tmp_path / "bounds.csv", Measured)))]
    assert "**Embedded world**" in page and all(row["name"] in page for row in rows)
    assert {row["outcome"] for row in rows if row["name"] == "chroma alone, seen"} == {"NOT MET" if chroma else "met"}
    assert json.loads((tmp_path / "provenance.json").read_text())["seconds"] == 60.0 * len(WORLDS) * len(GOOD)

"""Pair training through its real `main`: where pairing must help, where it must not be claimed to, exact resume."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pair
import pytest
import zoo
from processes import in_children

import adapt.features.cache
import adapt.training.on_features  # which keeps the `extract` that it finds: not one that a test replaces
from adapt import cli
from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.evaluation.metrics import compare_means
from adapt.evaluation.scores import Scores
from adapt.models.towers.backbones import load_backbone
from adapt.sweeps import planned_runs as cells
from adapt.training.comparison import contrast
from adapt.training.report import GIVEN
from adapt.training.run import Run

SCENES = {"train": 40, "val": 16, "test": 80}


@dataclass(frozen=True)
class Synthetic:
    """Features of a world where every scene has its own content, and every fake the same small trace."""

    manifest: Manifest
    values: np.ndarray

    def reasons(self, view: str) -> np.ndarray:
        return np.full(len(self.manifest), "", object)

    def take(self, rows: np.ndarray, views, layer: str | None = None) -> np.ndarray:
        return self.values[rows]


def world(folder: Path, content: float, trace: float, noise: float = 0.6, rank: int = 30) -> Synthetic:
    """`content` lies in `rank` directions, as many as training scenes may confuse with the trace."""
    rows, values = [], []
    rng, dim = np.random.default_rng(5), load_backbone("tiny").dim
    direction, basis = rng.normal(size=dim), rng.normal(size=(rank, dim)) / np.sqrt(rank)
    for split, scenes in SCENES.items():
        for scene in range(scenes):
            shared = content * rng.normal(size=rank) @ basis
            for number, generator in enumerate(("real", "a", "b")):
                rows.append((f"{split}{scene}-{number}.png", f"{split}{scene}", generator, split))
                values.append(shared + trace * direction * (generator != "real") + noise * rng.normal(size=dim))
    folder.mkdir(parents=True)
    for number, (name, *_) in enumerate(rows):  # no one looks at them but the control that sees only metadata
        (folder / name).write_bytes(zoo.save(zoo.picture(16, 16, seed=number), "PNG"))
    names = ("path", "group", "generator", "split")
    manifest = Manifest.of(dict(zip(names, zip(*rows, strict=True), strict=True)), folder)
    manifest.write(folder / "m.csv")
    return Synthetic(Manifest.read(folder / "m.csv"), np.array(values, np.float32))


def config(folder: Path, **settings) -> pair.Config:
    shared = {"manifest": (str(folder / "m.csv"),), "train_views": ("none",), "test_views": ("none",), "epochs": 6}
    return pair.Config(
        **shared | {"resamples": 100, "groups": 2, "num_workers": 0, "seeds": (0,), "arms": ("matched",)} | settings
    )


def trained(monkeypatch, folder: Path, made: Synthetic, arm: str, seed: int, **settings) -> Scores:
    monkeypatch.setattr(adapt.features.cache, "extract", lambda *_, **__: made)
    out = folder / f"{arm}{seed}"
    pair.main(config(folder, arms=(arm,), seeds=(seed,), output_dir=out, **settings))
    return Scores.read(out / "scores.parquet")


@pytest.mark.parametrize(("content", "trace", "helps"), [(10.0, 0.3, True), (0.0, 0.05, False)])
def test_pairing_helps_where_scenes_share_content_and_is_not_claimed_to_where_not(
    monkeypatch, tmp_path, content, trace, helps
):
    made = world(tmp_path / "world", content, trace)
    others = ("unpaired", "random") if helps else ("unpaired",)
    arms = {arm: trained(monkeypatch, tmp_path / "world", made, arm, 0) for arm in ("matched", *others)}
    for other in others:
        pairs = [(arms["matched"], arms[other])]
        found = {(d.generator, d.metric): d for d in compare_means(pairs, 300, 0)}
        auc = found["mean:seen", "auc"]
        assert 0.55 < auc.b < 0.9  # neither chance nor solved: there is something to gain
        assert (auc.low > 0.03) == helps
        line = next(
            line for line in contrast(("matched", other), pairs, 300, 0)[1].splitlines() if "AUC, seen" in line
        )
        assert line.endswith("| one seed |")  # of which nothing is claimed, whatever the interval over groups
        _, table = contrast(("matched", other), pairs * 3, 300, 0)  # as if three seeds had agreed
        assert next(line for line in table.splitlines() if "AUC, seen" in line).endswith("| better |") == helps


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("arm", "settings"),
    [
        ("matched", {"consistency": 0.5, "softmax": 0.5}),
        ("random", {}),
        ("unpaired", {"ranking": 0.0}),
    ],
)
def test_an_arm_that_was_stopped_goes_on_bit_for_bit(monkeypatch, tmp_path, arm, settings):
    made = world(tmp_path / "world", 10.0, 0.3)
    settings = settings | {"epochs": 2, "checkpointing_steps": 5, "resamples": 10, "train_views": ("none", "qf90")}
    calm = trained(monkeypatch, tmp_path / "world", made, arm, 1, **settings)
    stopped = config(tmp_path / "world", arms=(arm,), seeds=(1,), output_dir=tmp_path / "s", **settings)
    step = Run.step

    def die(self, *arguments):
        if self.step_number == 27:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, *arguments)

    monkeypatch.setattr(Run, "step", die)
    assert in_children(lambda: pair.main(stopped)) == [-signal.SIGKILL]
    monkeypatch.setattr(Run, "step", step)
    pair.main(stopped)
    np.testing.assert_array_equal(Scores.read(tmp_path / "s" / "scores.parquet")["logit"], calm["logit"])
    whole = losses(tmp_path / "world" / f"{arm}1")
    assert len(whole) == 40 and losses(tmp_path / "s") == whole


def test_the_arms_of_a_tower_are_run_compared_and_shown(monkeypatch, planted, tmp_path):
    """Through runs in forked children: the page, the record, and nothing run twice."""
    monkeypatch.setattr(cells, "_run", in_this_process)
    settings = {"manifest": (str(planted),), "tune": "norm", "consistency": 0.1, "contrastive": 0.1, "epochs": 1}
    settings |= {"test_views": ("none",), "train_views": ("none", "qf90"), "groups": 4, "seeds": (3,)}
    both = pair.Config(**settings, resamples=20, num_workers=0, arms=("matched", "unpaired"), output_dir=tmp_path)
    pair.main(both)
    names = ["matched-seed3", "unpaired-seed3"]
    runs = {name: Scores.read(tmp_path / name / "scores.parquet") for name in names}
    steps = {len(losses(tmp_path / name)) for name in names}
    assert steps == {4}  # 16 scenes in groups of 4, whatever the company
    page = (tmp_path / "table.md").read_text()
    assert contrast(("matched", "unpaired"), [tuple(runs.values())], 20, 3)[1] in page
    assert "## matched minus unpaired" in page and (tmp_path / "metrics.csv").stat().st_size > 0
    assert json.loads((tmp_path / "provenance.json").read_text())["identity"]["arms"] == ["matched", "unpaired"]
    record = json.loads((tmp_path / "matched-seed3" / "provenance.json").read_text())
    rows = Manifest.read(planted)
    images = [int(((rows["split"] == "train") & (rows.fake == fake)).sum()) for fake in (False, True)]
    assert [record[fact] for fact in GIVEN] == [*images, 2, 1]  # two views of each image, one epoch
    monkeypatch.setattr(cells, "_run", None)  # all are finished: nothing is started
    pair.main(both)


def in_this_process(command, log, processes, say) -> int:
    """A run without the seconds that a new interpreter takes to import torch."""
    words = command[command.index(str(cells.RECIPES / "pair.py")) + 1 :]
    return in_children(lambda: pair.main(cli.parse(pair.Config, words)))[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrastive": 1.0, "tune": "head"}, "--contrastive moves features"),
        ({"arms": ()}, "give at least one of each"),
        ({"ranking": -1.0}, "--ranking -1.0: give at least 0"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(Refusal, match=message):
        pair.Config(**settings)

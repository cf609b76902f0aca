"""Classes of fakes in training: the loss by hand, the head, and the recipes that train with it."""

import csv
import dataclasses
import importlib
import json
import math
import os
import signal
from pathlib import Path

import ablation
import color_fusion
import frontier
import lora
import numpy as np
import onboard
import open_clip  # noqa: F401 (loaded once here, inherited by every child)
import pair
import peft  # noqa: F401
import pytest
import refine
import torch
from processes import in_children

import adapt.training.report  # noqa: F401
from adapt.cli import parse
from adapt.data.focus import Focus
from adapt.data.groups import ClassLabels, Groups
from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector, load_detector, score
from adapt.errors import Refusal
from adapt.evaluation.open_set import class_logits, classes_of
from adapt.evaluation.scores import Scores
from adapt.evaluation.side_by_side import MEAN, read_numbers
from adapt.models.heads.linear import LinearHead, cross_entropy
from adapt.models.heads.probes import Probe
from adapt.models.towers.backbones import load_backbone
from adapt.sweeps import planned_runs
from adapt.training.classes import class_labels, classes_in_training, column_of, go_on_with_classes, selection_score
from adapt.training.run import Run

TRAINED = ("real", "codebook", "grid", "latent", "transposed")  # generators with training rows in the small world
FAMILIES = ("real", "autoregressive", "diffusion", "gan")


def head_of(classes, seed: int = 0, dim: int = 7) -> LinearHead:
    head, draw = LinearHead(dim, classes), torch.Generator().manual_seed(seed)
    head.linear.weight.data.normal_(generator=draw)
    head.linear.bias.data.normal_(generator=draw)
    return head


def features(dim: int = 7) -> torch.Tensor:
    return torch.randn(50, dim, generator=torch.Generator().manual_seed(9))


def without_real(rows: Manifest) -> set[str]:
    return set(rows["generator"]) - {"real"}


# -- loss and head ---------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_log_softmax_and_knows_no_class_without_a_number() -> None:
    draw = np.random.default_rng(0)
    logits, label, weight = draw.normal(size=(40, 4)), draw.integers(-1, 4, 40), draw.uniform(0.2, 3, 40)
    by_hand = 0.0
    for line, number, w in zip(logits, label, weight, strict=True):
        if number >= 0:
            by_hand -= w * (line[number] - math.log(sum(math.exp(value) for value in line)))
    found = cross_entropy(torch.from_numpy(logits), torch.from_numpy(label), torch.from_numpy(weight))
    assert (label == -1).any() and found.item() == pytest.approx(by_hand, rel=1e-12)


def test_classes_weigh_the_same_and_the_mean_weight_is_one() -> None:
    number = np.array([0] * 10 + [1] * 2 + [2] * 30 + [4] * 6 + [-1] * 5)
    weight = ClassLabels(number).weight
    sums = [weight[number == c].sum() for c in (0, 1, 2, 4)]  # class 3 has no row
    np.testing.assert_allclose(sums, len(number) / 4)
    assert (weight[number == -1] == 0).all() and weight.mean() == pytest.approx(1)


def test_the_binary_logit_is_the_chance_of_any_fake() -> None:
    for classes in (TRAINED, ("real", "one")):
        head, x = head_of(classes), features()
        p = head.class_logits(x).double().softmax(dim=1)
        torch.testing.assert_close(torch.sigmoid(head(x).double()), p[:, 1:].sum(dim=1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(LinearHead(7, TRAINED)(features()).sigmoid(), torch.full((50,), 0.5))


@pytest.mark.parametrize("classes", [(), ("real",), ("fake", "real"), ("real", "a", "a")])
def test_a_head_without_real_first_or_with_a_class_twice_is_refused(classes) -> None:
    with pytest.raises(ValueError, match="real first"):
        LinearHead(3, classes)


def test_a_binary_head_that_is_divided_keeps_its_logit() -> None:
    head, x = head_of(("real", "fake")), features()
    for more in (TRAINED[1:], ("alone",)):
        grown = head.grown(more)
        assert grown.classes == ("real", *more)
        torch.testing.assert_close(grown(x), head(x), atol=1e-5, rtol=1e-5)
        shares = grown.class_logits(x)[:, 1:].softmax(dim=1)
        torch.testing.assert_close(shares, torch.full_like(shares, 1 / len(more)))


@pytest.mark.parametrize("classes", [TRAINED, ("real", "one")])
def test_a_head_that_grows_keeps_its_classes_and_nearly_its_logit(classes) -> None:
    head, x, more = head_of(classes), features(), ("new", "newer")
    grown, k = head.grown(more), len(classes) - 1
    assert grown.classes == (*classes, *more)
    torch.testing.assert_close(grown.class_logits(x)[:, : k + 1], head.class_logits(x))
    rise = grown(x) - head(x)
    assert (rise > 0).all() and (rise <= math.log(1 + 2 / k) + 1e-5).all()


def test_a_focused_group_gives_its_fakes_the_class_weight_that_they_stand_for(planted) -> None:
    rows = Manifest.read(planted)
    rows = rows.select(rows["split"] == "train")
    rare = np.flatnonzero(rows["generator"] == "grid")[3:]  # three images, which are shown in nearly all groups
    rows = rows.select(np.delete(np.arange(len(rows)), rare))
    labels = class_labels(rows, Detector(load_backbone("tiny"), LinearHead(192, TRAINED)), "generator")
    assert labels is not None
    preprocess = load_backbone("tiny").preprocess
    plain = Groups(rows, preprocess, ("none",), 0, labels=labels)
    focus = Focus(rows, [("grid", "none")], ("none",), 0.9)
    focused = Groups(rows, preprocess, ("none",), 0, focus=focus, labels=labels)
    shown = 0
    for g in range(len(plain)):
        one, other = plain[0, g], focused[0, g]
        assert [TRAINED[n] for n in one.label] == list(rows["generator"][plain.groups[g]])
        for fake in (0, 1):
            torch.testing.assert_close(
                one.class_weight[one.fake == fake].sum(), other.class_weight[other.fake == fake].sum()
            )
        if set(other.label.tolist()) == {0, TRAINED.index("grid")}:
            shown += 1
    assert shown >= len(plain) // 2


# -- which classes ---------------------------------------------------------------------------------------------------


def test_classes_are_those_of_training_rows(planted) -> None:
    rows = Manifest.read(planted)
    assert classes_in_training(rows, "generator") == TRAINED and classes_in_training(rows, "family") == FAMILIES
    assert classes_in_training(rows, "binary") == ("real", "fake")
    assert without_real(rows) - set(TRAINED)  # others stand in validation or test rows only, and are no class
    grid = np.flatnonzero((rows["split"] == "train") & (rows["generator"] == "grid"))
    few = rows.select(np.delete(np.arange(len(rows)), grid[1:]))
    with pytest.raises(Refusal, match="class 'grid' has 1 training image"):
        classes_in_training(few, "generator")


def test_what_the_classes_are_is_read_from_their_names_or_said(planted) -> None:
    rows, backbone = Manifest.read(planted), load_backbone("tiny")

    def of(*classes: str, asked: str = "binary") -> str | None:
        return column_of(Detector(backbone, LinearHead(192, classes)), rows, asked)

    assert of("real", "fake") is None and of("real", "gan") is None
    assert of(*TRAINED) == "generator" and of(*FAMILIES, asked="family") == of(*FAMILIES) == "family"
    assert of("real", "unknown", "others", asked="family") == "family"
    with pytest.raises(Refusal, match="--classes family: the head knows generator classes"):
        of(*TRAINED, asked="family")
    with pytest.raises(Refusal, match="say which"):
        of("real", "unknown", "others")


def test_going_on_grows_linear_heads_alone(planted) -> None:
    rows, backbone, said = Manifest.read(planted), load_backbone("tiny"), []

    def going(head, asked: str = "binary") -> Detector:
        detector = Detector(backbone, head)
        go_on_with_classes(detector, rows, asked, said.append)
        return detector

    assert going(LinearHead(192)).head.classes == ("real", "fake") and not said
    assert going(LinearHead(192), "family").head.classes == FAMILIES
    assert going(LinearHead(192, ("real", "latent", "grid"))).head.classes == (
        *("real", "latent", "grid"), "codebook", "transposed"
    )  # fmt: skip
    probe = Probe(192, ("real", "latent", "grid"), "logistic")
    assert going(probe).head is probe and "no class of the head" in said[-1]
    labels = class_labels(rows, going(probe), "generator")
    assert labels is not None and set(labels.number[rows["generator"] == "codebook"]) == {-1}
    with pytest.raises(Refusal, match="--classes generator: the head to go on from has two classes"):
        going(Probe(192, ("real", "fake"), "logistic"), "generator")


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(planted, tmp_path_factory) -> lora.Config:
    return lora.Config(
        manifest=(str(planted),),
        output_dir=tmp_path_factory.mktemp("classes") / "run",
        classes="generator",
        train_views=("none", "qf65"),
        test_views=("none",),
        epochs=3,
        groups=4,
        learning_rate=4e-3,
        head_learning_rate=4e-3,
        rank=2,
        precision="fp32",
        resamples=20,
        checkpointing_steps=3,
        num_workers=0,
    )


@pytest.fixture(scope="module")
def trained(config) -> Path:
    assert in_children(lambda: lora.main(config)) == [0]
    return config.output_dir


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_tower_learns_generators_and_its_detector_names_them(trained, config, planted) -> None:
    scores = Scores.read(trained / "scores.parquet")
    assert classes_of(scores) == TRAINED
    logits = class_logits(scores)
    binary = np.log(np.exp(logits[:, 1:]).sum(axis=1)) - logits[:, 0]
    np.testing.assert_allclose(scores["logit"], binary, atol=1e-5)
    test = (scores["split"] == "test") & (scores["edit"] == "") & np.isin(scores["generator"], TRAINED)
    called = np.array(TRAINED)[logits.argmax(axis=1)]
    recall = [(called[test & (scores["generator"] == name)] == name).mean() for name in TRAINED]
    assert np.mean(recall) > 0.35  # 0.2 is guessing
    found = {(row["class"], row["metric"]): float(row["value"]) for row in table(trained / "attribution.csv")}
    assert found["all", "macro_recall"] == pytest.approx(np.mean(recall), abs=1e-6)
    assert found["all", "auroc_energy"] == found["all", "auroc_energy"]  # open set: this world has absent classes
    page = (trained / "table.md").read_text()
    assert "## Attribution" in page and "| generator | none |" in page and "Absent in training: " in page
    assert (trained / "figures" / "confusion_none.png").is_file()

    record = json.loads((trained / "provenance.json").read_text())
    assert record["classes"] == " ".join(TRAINED) and record["classes_are"] == "generator"
    rows, detector = Manifest.read(planted), load_detector(trained / "detector")
    val = np.flatnonzero(rows["split"] == "val")
    again = score(detector, rows, val, config.train_views)
    assert selection_score(again, detector, "generator") == pytest.approx(record["validation_score"])
    known = {row["family"] for row in detector.predict([Path(planted).parent / "test"]) if row["family"]}
    assert known and known <= {*TRAINED[1:], "unknown"}


def first_loss(planted: Path) -> float:
    """Of a step of four groups, by hand: a head of zeros says that p is 0.5, and all fakes are as likely."""
    rows = Manifest.read(planted)
    rows = rows.select(rows["split"] == "train")
    groups, k = rows.groups(), len(TRAINED) - 1
    order = np.random.default_rng((0, 0)).permutation(len(groups))[:4]
    count = {name: (rows["generator"] == name).sum() for name in TRAINED}
    share, total, by_hand = rows.fake.mean(), len(rows), 0.0
    for row in np.concatenate([groups[g] for g in order]):
        name = rows["generator"][row]
        by_hand += (0.5 / share if rows.fake[row] else 0.5 / (1 - share)) * math.log(2)
        by_hand += total / (len(TRAINED) * count[name]) * math.log(2 if name == "real" else 2 * k)
    return by_hand / (4 * total / len(groups))


def test_the_loss_of_a_run_is_binary_and_class_balanced_together(trained, planted) -> None:
    assert losses(trained)[0] == pytest.approx(first_loss(planted), rel=1e-5)


def test_a_run_with_classes_resumes_exactly_and_two_processes_compute_what_one_does(trained, config, tmp_path) -> None:
    stopped = dataclasses.replace(config, output_dir=tmp_path / "stopped")

    def killed() -> None:
        log = Run._log_step

        def strike(run, *values):
            log(run, *values)
            if run.step_number == 7:
                os.kill(os.getpid(), signal.SIGKILL)

        Run._log_step = strike
        lora.main(stopped)

    assert in_children(killed) == [-signal.SIGKILL]
    assert in_children(lambda: lora.main(stopped)) == [0]
    for name in ("log.jsonl", "scores.parquet", "detector/head.safetensors", "attribution.csv"):
        assert (trained / name).read_bytes() == (stopped.output_dir / name).read_bytes(), name
    two = dataclasses.replace(config, output_dir=tmp_path / "two")
    assert in_children(lambda: lora.main(two), world=2) == [0, 0]
    np.testing.assert_allclose(losses(two.output_dir), losses(trained), rtol=1e-3)
    a, b = (class_logits(Scores.read(folder / "scores.parquet")) for folder in (trained, two.output_dir))
    np.testing.assert_allclose(a, b, atol=0.03 * np.std(a) + 3e-3)


def test_towers_that_cannot_be_cut_and_cached_tokens_learn_classes_too(config, tmp_path) -> None:
    for name, more in (
        ("cached", {"cache_prefix": True, "last_blocks": 1}),
        ("uncut", {"layer": "last_mean", "targets": "norm"}),
    ):
        one = dataclasses.replace(config, output_dir=tmp_path / name, epochs=1, classes="family", **more)
        os.environ["ADAPT_CACHE"] = str(tmp_path / "cache")
        assert in_children(lambda one=one: lora.main(one)) == [0]
        assert classes_of(Scores.read(one.output_dir / "scores.parquet")) == FAMILIES
        assert losses(one.output_dir)[-1] < losses(one.output_dir)[0]


def going(config: lora.Config, **more) -> refine.Config:
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(lora.FineTuning)}
    return refine.Config(**shared | {"classes": "binary", "epochs": 1} | more)


def test_a_detector_with_classes_learns_a_new_one_from_few_groups(trained, config, tmp_path) -> None:
    one = going(config, init=trained / "detector", onboard="style", shots=3, output_dir=tmp_path / "new", epochs=4)
    assert in_children(lambda: refine.main(one)) == [0]
    scores = Scores.read(one.output_dir / "scores.parquet")
    assert classes_of(scores) == (*TRAINED, "style")
    assert load_detector(one.output_dir / "detector").head.classes == (*TRAINED, "style")
    page = (one.output_dir / "table.md").read_text()
    assert "| generator | none |" in page and "| style |" in page
    assert "style" not in page.partition("Absent in training: ")[2].partition("\n")[0]
    style = (scores["split"] == "test") & (scores["generator"] == "style")
    called = class_logits(scores)[style].argmax(axis=1)
    assert (called == len(TRAINED)).mean() > 0.5
    assert json.loads((one.output_dir / "provenance.json").read_text())["classes_are"] == "generator"


def test_a_binary_detector_goes_on_with_classes_from_its_own_logit(config, planted, tmp_path) -> None:
    binary = dataclasses.replace(config, classes="binary", epochs=1, output_dir=tmp_path / "binary")
    assert in_children(lambda: lora.main(binary)) == [0]
    record = json.loads((binary.output_dir / "detector" / "detector.json").read_text())
    assert record["head"] == {"type": "linear"}  # as it was written before heads had classes
    assert "classes_are" not in json.loads((binary.output_dir / "provenance.json").read_text())
    old = load_detector(binary.output_dir / "detector")
    one = going(config, init=binary.output_dir / "detector", classes="family", output_dir=tmp_path / "families")
    still = dataclasses.replace(one, learning_rate=0.0, head_learning_rate=0.0)
    assert in_children(lambda: refine.main(still)) == [0]
    scores, rows = Scores.read(still.output_dir / "scores.parquet"), Manifest.read(planted)
    assert classes_of(scores) == FAMILIES
    before = score(old, rows, np.flatnonzero(rows["split"] != "train"), ("none",))
    np.testing.assert_allclose(scores["logit"], before["logit"], atol=1e-4)


@pytest.mark.parametrize(
    ("tune", "more"),
    [("head", {}), ("norm", {"consistency": 0.1, "contrastive": 0.1}), ("lora", {"arms": ("random",)})],
)
def test_pairs_act_on_the_binary_logit_beside_the_classes(config, planted, tmp_path, tune, more) -> None:
    names = ("manifest", "classes", "train_views", "test_views", "groups", "resamples", "num_workers")
    shared = {name: getattr(config, name) for name in names} | {"epochs": 2, "seeds": (0,), "arms": ("matched",)}
    os.environ["ADAPT_CACHE"] = str(tmp_path / "cache")
    one = pair.Config(**shared | {"tune": tune, "output_dir": tmp_path / "run", "learning_rate": 2e-3} | more)
    assert in_children(lambda: pair.main(one)) == [0]
    assert classes_of(Scores.read(one.output_dir / "scores.parquet")) == TRAINED
    assert load_detector(one.output_dir / "detector").head.classes == TRAINED
    assert "## Attribution" in (one.output_dir / "table.md").read_text()
    record = json.loads((one.output_dir / "provenance.json").read_text())
    assert record["classes_are"] == "generator" and record["arm"] == one.arms[0]
    if tune == "head":  # a logit for each class; and every pair of a group is undecided, which costs log 2 a group
        assert record["trainable_parameters"] == 193 * len(TRAINED)
        assert losses(one.output_dir)[0] == pytest.approx(first_loss(planted) + math.log(2), rel=1e-5)


def macro_recall(scores: Scores, column: str, view: str = "none") -> float:
    """By hand, of the unedited test rows of trained classes."""
    classes = classes_of(scores)
    rows = (scores["split"] == "test") & (scores["edit"] == "") & (scores["view"] == view)
    called = np.array(classes)[class_logits(scores).argmax(axis=1)]
    true = np.where(scores.fake, scores[column], "real")
    return float(np.mean([(called[rows & (true == name)] == name).mean() for name in classes]))


def shown(page: str, name: str, place: int = 0) -> float:
    """A value of the first row of a method in the section of attribution, behind the columns of words."""
    section = page.partition("## Attribution")[2] or page.partition("## Macro recall")[2]
    line = next(line for line in section.splitlines() if line.startswith(f"| {name} |"))
    return [float(cell.split()[0]) for cell in line.split("|") if "[" in cell][place]


def test_colour_and_features_attribute_side_by_side(config, tmp_path) -> None:
    one = color_fusion.Config(
        manifest=config.manifest, output_dir=tmp_path / "run", classes="generator", features=("colour", "both"),
        train_views=("none",), test_views=("none",), cache=tmp_path / "cache", resamples=20, num_workers=0,
    )  # fmt: skip
    assert in_children(lambda: color_fusion.main(one)) == [0]
    page, scores = (one.output_dir / "table.md").read_text(), Scores.read(one.output_dir / "scores.parquet")
    assert classes_of(scores) == TRAINED and "## Macro recall, generator classes" in page
    section = page.partition("## Macro recall")[2].partition("\n\n#")[0]
    assert "| colour | none |" in section
    line = next(line for line in section.splitlines() if line.startswith("| both |"))
    assert float(line.split("|")[3].split()[0]) == pytest.approx(macro_recall(scores, "generator"), abs=6e-4)
    assert "The sections below are about both, none." in page and "Absent in training: " in page
    found = {(row["class"], row["metric"]): row["value"] for row in table(one.output_dir / "attribution.csv")}
    assert float(found["all", "macro_recall"]) == pytest.approx(macro_recall(scores, "generator"), abs=1e-6)
    assert (one.output_dir / "figures" / "confusion_none.png").is_file()
    assert load_detector(one.output_dir / "detector").head.classes == TRAINED


@pytest.fixture
def forked(monkeypatch) -> None:
    """Planned runs in a child of this process: a real start would import everything again."""

    def run(command, *_) -> int:
        module = importlib.import_module(Path(next(word for word in command if word.endswith(".py"))).stem)
        return in_children(lambda: module.main(parse(module.Config, command[2:])))[0]

    monkeypatch.setattr(planned_runs, "_run", run)


def test_the_frontier_and_the_arms_of_pairs_say_how_well_each_attributes(config, forked, tmp_path) -> None:
    shared = {name: getattr(config, name) for name in ("manifest", "test_views", "resamples", "num_workers")}
    shared |= {"classes": "family", "epochs": 1, "seeds": (0, 1), "train_views": ("none",)}
    sweep = frontier.Config(
        **shared, configurations=("norm-last1",), learning_rates=(4e-3,), output_dir=tmp_path / "frontier"
    )
    frontier.main(sweep)
    arms = pair.Config(**shared, tune="norm", arms=("matched", "unpaired"), output_dir=tmp_path / "arms")
    pair.main(arms)
    for root, name, runs in (
        (sweep.output_dir, "norm-last1", "norm-last1-lr0.004-seed{}"),
        (arms.output_dir, "unpaired", "unpaired-seed{}"),
    ):
        tables = [Scores.read(root / runs.format(seed) / "scores.parquet") for seed in (0, 1)]
        assert classes_of(tables[0]) == FAMILIES
        page = (root / "table.md").read_text()
        assert shown(page, name) == pytest.approx(np.mean([macro_recall(t, "family") for t in tables]), abs=6e-4)
    assert "| matched | 2 | family |" in page


def test_the_ablation_has_towers_beside_frozen_features(config, forked, monkeypatch, tmp_path) -> None:
    methods = [line for line in ablation.METHODS if line[0] in ("probe-logistic-family", "norm-family", "norm")]
    assert [line[0] for line in methods] == ["probe-logistic-family", "norm", "norm-family"]
    monkeypatch.setattr(ablation, "METHODS", methods)
    one = ablation.Config(
        manifest=config.manifest, output_dir=tmp_path / "page", train_on=("none,qf65",), test_views=("none", "qf65"),
        seeds=(0, 1), epochs=1, groups=4, cache=tmp_path / "cache", resamples=20, num_workers=0,
    )  # fmt: skip
    ablation.main(one)
    root, views = one.output_dir, one.test_views
    numbers = {
        (n.method, n.view, n.metric): n for n in read_numbers(root / "ablation.csv") if "classes:" in n.generator
    }
    assert {method for method, *_ in numbers} == {"probe-logistic-family", "norm-family"}
    page = (root / "table.md").read_text()
    for method in ("probe-logistic-family", "norm-family"):
        tables = [Scores.read(root / f"{method}-none_qf65-seed{seed}" / "scores.parquet") for seed in (0, 1)]
        each = [[macro_recall(t, "family", view) for view in views] for t in tables]
        for view, value in zip((*views, MEAN), [*np.mean(each, axis=0), np.mean(each)], strict=True):
            found = numbers[method, view, "macro_recall"]
            assert found.value == pytest.approx(value, abs=1e-9) and found.low < value < found.high
        assert shown(page, method, len(views)) == pytest.approx(np.mean(each), abs=6e-4)
    assert "| norm-family | 2 | family |" in page.partition("## Attribution")[2]
    assert "Attribution" in (root / "report.html").read_text() and "Attribution" in (root / "ablation.tex").read_text()


@pytest.mark.parametrize("of", ["classes", "binary"])
def test_the_recovery_curve_says_how_the_new_generator_is_attributed(trained, config, forked, tmp_path, of) -> None:
    """From a detector with classes without the flag, and from a binary one with it."""
    detector = trained / "detector"
    if of == "binary":
        binary = dataclasses.replace(config, classes="binary", epochs=1, output_dir=tmp_path / "binary")
        assert in_children(lambda: lora.main(binary)) == [0]
        detector = binary.output_dir / "detector"
    one = onboard.Config(
        detector=detector, generator="style", manifest=config.manifest, output_dir=tmp_path / "curve", shots=(3,),
        seeds=(0,), classes="binary" if of == "classes" else "generator", methods=("probe", "tip", "lora"),
        train_views=("none",), test_views=("none",), epochs=1, groups=4, cache=tmp_path / "cache", resamples=10,
        num_workers=0,
    )  # fmt: skip
    onboard.main(one)
    section = (one.output_dir / "table.md").read_text().partition("## Attribution")[2]
    new, others = section.partition("### Macro recall of the other images")[::2]
    scores = Scores.read(one.output_dir / "lora-3-seed0" / "scores.parquet")
    classes = np.array(classes_of(scores))
    assert set(classes) == {*TRAINED, "style"}
    called = classes[class_logits(scores).argmax(axis=1)]
    rows = (scores["split"] == "test") & (scores["edit"] == "")
    share = (called[rows & (scores["generator"] == "style")] == "style").mean()
    recall = np.mean([(called[rows & (scores["generator"] == name)] == name).mean() for name in TRAINED])
    assert f"| LoRA | 3 | {share:.3f} [{share:.3f}, {share:.3f}] |" in new and f"| LoRA | 3 | {recall:.3f} [" in others
    assert "| probe | 3 | " in new and "| probe | 0 | n/a |" in new and "Tip-Adapter |" not in new
    assert ("| the detector as it is | 0 | n/a |" in new) == (of == "classes")

"""Filling holes: what is shown more often, a new generator's few shots, what a page says about it."""

import csv
import dataclasses
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import lora
import numpy as np
import onboard as recipe
import open_clip  # noqa: F401 (as peft and adapt.training.report: loaded once here, inherited by every child)
import peft  # noqa: F401
import pytest
import refine
import torch
from processes import in_children
from sklearn.metrics import roc_auc_score

import adapt.training.report
from adapt.cli import parse
from adapt.data.focus import Focus
from adapt.data.groups import Groups
from adapt.data.manifest import Manifest
from adapt.data.onboarding import POOL, onboard, pool
from adapt.detector.detector import detector_digest, load_detector, score
from adapt.errors import Refusal
from adapt.evaluation.metrics import Difference, compare
from adapt.evaluation.scores import Scores
from adapt.features.cache import extract
from adapt.files import sha256
from adapt.models.adapters.lora import add_adapter
from adapt.models.heads.tip_head import PriorHead
from adapt.models.towers.backbones import load_backbone
from adapt.pages.tables import show
from adapt.sweeps import planned_runs as cells_module
from adapt.training import few_shot
from adapt.training.few_shot import CLASSES, gains, recast, refitted, shot_rows, tip_heads
from adapt.training.on_features import score_features
from adapt.training.refine import Aim, before_and_after, changes, find_holes
from adapt.training.run import Run

VIEWS = ("none", "qf90")


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    """Those of single runs have tests of their own, and take a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapt.training.report, "write_figures", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def small(subtle) -> Path:
    """A part of the subtle world, beside it: 8, 6 and 8 groups, two trained generators, two new ones."""
    with subtle.open(newline="") as file:
        header, *lines = csv.reader(file)
    kept = {"real", "latent", "codebook", "cascade", "style", "phase"}
    lines = [
        line
        for line in lines
        if line[2] in kept and not line[5] and int(line[1][-5:]) < (6 if line[3] == "val" else 8)
    ]
    path = subtle.with_name("small.csv")
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])
    return path


@pytest.fixture(scope="module")
def config(small, tmp_path_factory) -> lora.Config:
    """A detector that had far too little training."""
    return lora.Config(
        manifest=(str(small),),
        output_dir=tmp_path_factory.mktemp("holes") / "init",
        train_views=VIEWS,
        test_views=VIEWS,
        epochs=1,
        groups=4,
        rank=4,
        resamples=20,
        checkpointing_steps=1,
        num_workers=0,
    )


@pytest.fixture(scope="module")
def init(config) -> Path:
    assert in_children(lambda: lora.main(config)) == [0]
    return config.output_dir / "detector"


def table(rows: list[tuple[str, str, str, str]]) -> Manifest:
    """Groups by hand: (group, generator, edit, split)."""
    group, generator, edit, split = zip(*rows, strict=True)
    paths = [f"{i}.png" for i in range(len(rows))]
    digests = [f"{i:064x}" for i in range(len(rows))]
    columns = {"path": paths, "group": group, "generator": generator, "edit": edit, "split": split, "sha256": digests}
    return Manifest.of(columns, "/nowhere")


def lab(tests: int = 11) -> Manifest:
    """Matched groups: training knows a and b and the edit `resize`; test adds c and d and the edit `blur`."""
    rows = [(f"t{i}", g, "", "train") for i in range(6) for g in ("real", "a", "b")]
    rows += [("t0", "real", "resize", "train")]
    rows += [(f"v{i}", g, "", "val") for i in range(3) for g in ("real", "a", "b", "chosen")]
    rows += [(f"x{i}", g, "", "test") for i in range(tests) for g in ("real", "a", "b", "c", "d")]
    rows += [(f"x{i}", "real", edit, "test") for i in range(tests) for edit in ("resize", "blur")]
    return table(rows)


# -- a new generator ------------------------------------------------------------------------------------------------


def test_the_test_rows_are_the_same_for_every_number_of_shots_and_seed() -> None:
    rows, spared = lab(), pool(lab(), "c")
    assert len(spared) == 5  # half of 11 groups, rounded down
    wanted = [
        p
        for p, g, s in zip(rows["path"], rows["group"], rows["split"], strict=True)
        if s == "test" and g not in spared
    ]
    draws = {}
    for seed in range(4):
        before: set[str] = set()
        for shots in range(6):
            which, few = onboard(rows, "c", shots, seed)
            assert list(few["path"]) == list(rows["path"][which])
            assert list(few["path"][few["split"] == "test"]) == wanted
            assert (few["split"] == "val").sum() == (rows["split"] == "val").sum()
            lent = set(few["group"][(few["split"] == "train") & (few["generator"] == "c")])
            assert len(lent) == shots and before <= lent <= set(spared)
            before = lent
        draws[seed] = frozenset(onboard(rows, "c", 2, seed)[1]["path"])
    assert len(set(draws.values())) > 1


def test_shots_bring_nothing_else_that_training_has_not_met() -> None:
    rows = lab()
    few = onboard(rows, "c", 3, 0)[1]
    train = few.select(few["split"] == "train")
    lent = set(train["group"][train["generator"] == "c"])
    there = Counter(zip(train["generator"], train["edit"], strict=True))
    assert there == {("real", ""): 9, ("real", "resize"): 4, ("a", ""): 6, ("b", ""): 6, ("c", ""): 3}
    assert not lent & set(few["group"][few["split"] == "test"])
    assert few.seen(["c", "d", "a"]).tolist() == ["train", "", "train"]
    assert onboard(rows, "c", 0, 0)[1].seen(["c"]).tolist() == [""]


def test_a_new_group_moves_no_other_into_or_out_of_the_pool_at_its_limit() -> None:
    many = [(f"x{i}", g, "", "test") for i in range(3 * POOL) for g in ("real", "c")]
    rows = table([("t", "real", "", "train"), ("t", "a", "", "train"), *many])
    spared = pool(rows, "c")
    assert len(spared) == POOL and spared == pool(rows.select(np.arange(len(rows))[::-1]), "c")
    fewer = rows.select(rows["group"] != spared[0])
    assert pool(fewer, "c")[:-1] == spared[1:]


@pytest.mark.parametrize(
    ("generator", "shots", "message"),
    [
        ("a", 1, "'a' is in the training or validation rows already; new .with test rows only.: c, d"),
        ("chosen", 1, "'chosen' is in the training or validation rows already"),
        ("real", 1, "'real' is no generator of this manifest; new"),
        ("cc", 1, "'cc' is no generator of this manifest, perhaps you meant 'c'"),
        ("c", 6, "6 shots of 'c': 5 of its 11 test groups may be lent"),
        ("c", -1, "-1 shots"),
    ],
)
def test_what_cannot_be_onboarded_is_refused(generator, shots, message) -> None:
    with pytest.raises(Refusal, match=message):
        onboard(lab(), generator, shots, 0)


def test_one_group_and_equal_bytes_are_refused() -> None:
    with pytest.raises(Refusal, match="'c' has 1 test group"):
        onboard(lab(1), "c", 1, 0)
    rows = lab(2)
    columns = dict(rows.columns)
    columns["sha256"] = np.where(rows["generator"] == "c", "f" * 64, rows["sha256"])  # twice within test: allowed
    with pytest.raises(Refusal, match="in two splits"):
        onboard(Manifest(columns), "c", 1, 0)


# -- what is shown more often ----------------------------------------------------------------------------------------


def unmatched() -> Manifest:
    """Every image a group of its own, and one pair of fakes without a photograph."""
    rows = [(f"r{i}", "real", "", "train") for i in range(5)] + [
        (f"{g}{i}", g, "", "train") for g in "ab" for i in range(4)
    ]
    return table([*rows, ("two", "a", "", "train"), ("two", "b", "", "train")])


@pytest.mark.parametrize("make", [lab, unmatched], ids=["matched", "unmatched"])
def test_a_focused_group_shows_its_cell_and_keeps_the_weight_of_both_classes(make) -> None:
    rows = make().select(make()["split"] == "train")
    focus = Focus(rows, [("a", "qf90"), ("b", "none")], VIEWS, 0.4)
    seen, draws = Counter(), 0
    for group in rows.groups():
        fake = rows.fake[group]
        for seed in range(400):
            draws += 1
            shown = focus.choose(group, random.Random(seed))
            if shown is None:
                seen["whole"] += 1
                continue
            weight = {c: shown.scale[rows.fake[shown.rows] == c].sum() for c in (True, False)}
            assert weight == pytest.approx({True: fake.sum(), False: (~fake).sum()})
            cell = set(rows["generator"][shown.rows]) - {"real"}
            assert cell <= ({"a"} if VIEWS[shown.view] == "qf90" else {"b"})
            assert bool(cell) == bool(fake.any())
            if fake.any() and cell <= set(rows["generator"][group]):  # its own fakes beside its own photographs
                assert set(shown.rows) <= set(group)
            seen[shown.view] += 1
    assert seen["whole"] / draws == pytest.approx(0.6, abs=0.05)
    assert seen[0] / draws == pytest.approx(0.2, abs=0.04)


def test_label_and_view_stay_independent_where_nothing_is_matched() -> None:
    """Else a detector could learn that the degraded are the fakes."""
    rows = unmatched()
    focus = Focus(rows, [("a", "qf90")], VIEWS, 0.5)
    count = Counter()
    for group in rows.groups():
        for seed in range(600):
            if shown := focus.choose(group, random.Random(f"{group[0]}/{seed}")):
                count[bool(rows.fake[group].any()), shown.view] += 1
    shares = [count[fake, 1] / (600 * len(rows.select(rows.fake == fake).groups())) for fake in (True, False)]
    assert shares == pytest.approx([0.5, 0.5], abs=0.03) and not count[True, 0]


def test_a_cell_without_training_rows_is_refused() -> None:
    with pytest.raises(Refusal, match="'d' has no training rows"):
        Focus(lab().select(lab()["split"] == "train"), [("d", "none")], VIEWS, 0.5)


def test_training_data_with_a_focus(planted) -> None:
    rows = Manifest.read(planted)
    rows = rows.select(rows["split"] == "train")
    preprocess = load_backbone("tiny").preprocess
    plain = Groups(rows, preprocess, VIEWS, 0)
    focused = Groups(rows, preprocess, VIEWS, 0, focus=Focus(rows, [("grid", "none")], VIEWS, 0.5))
    sizes = set()
    for epoch, g in [(e, g) for e in range(2) for g in range(4)]:
        item, again = focused[epoch, g], focused[epoch, g]
        assert torch.equal(item.inputs, again.inputs) and torch.equal(item.weight, again.weight)
        fakes = int(item.fake.sum())
        sizes.add(fakes)
        for label in (0, 1):
            want = plain[epoch, g].weight[plain[epoch, g].fake == label].sum()
            assert float(item.weight[item.fake == label].sum()) == pytest.approx(float(want), rel=1e-5)
    assert sizes == {1, 4}


# -- which cells are holes -------------------------------------------------------------------------------------------


def validation(levels: dict[tuple[str, str], float], groups: int = 40) -> Scores:
    """One real and one fake of each generator a group; a fake's logit lies `level` above its view's reals."""
    rng = np.random.default_rng(0)
    names = ["real", *dict.fromkeys(name for name, _ in levels)]
    rows = [(i, name, view) for view in VIEWS for i in range(groups) for name in names]
    return Scores(
        {
            "path": [f"{i}-{name}" for i, name, _ in rows],
            "group": [f"g{i}" for i, _, _ in rows],
            "generator": [name for _, name, _ in rows],
            "split": ["val"] * len(rows),
            "seen": ["val" if name == "chosen" else "train" for _, name, _ in rows],
            "view": [view for *_, view in rows],
            "logit": rng.normal([levels.get((name, view), 0.0) for _, name, view in rows]),
        }
    )


def test_holes_are_the_weakest_cells_that_training_can_show() -> None:
    levels = {("a", "none"): 2.0, ("a", "qf90"): 0.4, ("b", "none"): 1.2, ("b", "qf90"): 0.0}
    levels |= {("chosen", "none"): 0.1, ("chosen", "qf90"): 9.0}
    val = validation(levels)
    holes, passed = find_holes(val, {"a", "b"}, 3, 200, 0)
    assert [(c.generator, c.view) for c in holes] == [("b", "qf90"), ("a", "qf90"), ("b", "none")]
    assert [(c.generator, c.view) for c in passed] == [("chosen", "none")]
    rows = (val["view"] == "qf90") & np.isin(val["generator"], ["real", "b"])
    assert holes[0].value == pytest.approx(roc_auc_score(val.fake[rows], val["logit"][rows]))
    assert set(val["split"]) == {"val"}
    perfect = validation(dict.fromkeys(levels, 20.0))
    with pytest.raises(Refusal, match="nothing to mend"):
        find_holes(perfect, {"a", "b"}, 3, 20, 0)


def test_the_page_says_what_surely_changed_and_sorts_it() -> None:
    def difference(generator: str, view: str, value: float, half: float) -> Difference:
        low, high = value - half, value + half
        return Difference("s", view, generator, "auc", 0.7 + value, 0.7, value, low, high, 0.01, 10, 10)

    found = [
        *(
            difference("a", "none", 0.01, 0.05),
            difference("a", "qf90", 0.2, 0.05),
            difference("b", "none", -0.1, 0.02),
        ),
        *(difference("b", "qf90", 0.02, 0.01), difference("mean:all", "none", 0.5, 0.1)),
    ]
    seen = {"a": "train", "b": ""}
    page = changes(found, Aim([("a", "none"), ("a", "qf90"), ("a", "qf40")], title="Holes"), seen, Path("init"))
    assert page[0] == "## Holes: 1 of 2 cells surely better, 0 surely worse"
    first, second = page[2].splitlines()[2:]
    assert "| a | s | training | qf90 | 0.900 | 0.700 | +0.200 [+0.150, +0.250]" in first and "better" in first
    assert "| none |" in second and "not separated" in second
    assert page[3] == "Not among the test rows and views: a under qf40"
    assert page[4] == "## Elsewhere: 1 of 2 cells surely better, 1 surely worse"
    assert [line.split(" | ")[3] for line in page[6].splitlines()[2:]] == ["none", "qf90"]  # the loss stands first
    whole = changes(found, Aim([]), seen, Path("init"))
    assert whole[0] == "## Before and after: 2 of 4 cells surely better, 1 surely worse" and len(whole) == 3


# -- going on from a detector ----------------------------------------------------------------------------------------


def going(config: lora.Config, **more) -> refine.Config:
    """The same flags, going on from a detector."""
    shared = {"output_dir", *(field.name for field in dataclasses.fields(lora.FineTuning))}
    return refine.Config(
        **({name: value for name, value in dataclasses.asdict(config).items() if name in shared} | more)
    )


def message(config: refine.Config) -> str:
    """The refusal of a run, in a child: a refused run leaves its folder locked until its process ends."""
    file = config.output_dir.with_suffix(".txt")

    def body() -> None:
        try:
            refine.main(config)
        except Refusal as refusal:
            file.write_text(str(refusal))

    assert in_children(body) == [0]
    return file.read_text()


def test_filling_holes_resumes_exactly_and_reports_cell_by_cell(config, init, tmp_path) -> None:
    more = going(config, init=init, focus="holes", holes=2, epochs=2, learning_rate=2e-3)
    whole, stopped = (dataclasses.replace(more, output_dir=tmp_path / name) for name in ("whole", "stopped"))
    assert in_children(lambda: refine.main(whole)) == [0]

    def killed() -> None:
        log = Run._log_step

        def strike(run, *values):
            log(run, *values)
            if run.step_number == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        Run._log_step = strike
        refine.main(stopped)

    assert in_children(killed) == [-signal.SIGKILL]
    other = tmp_path / "init"
    shutil.copytree(init, other)  # the same detector at another place, then another one
    assert detector_digest(other) == detector_digest(init)
    record = json.loads((other / "detector.json").read_text())
    (other / "detector.json").write_text(json.dumps(record | {"threshold": 9.0}))
    assert detector_digest(other) != detector_digest(init)
    shutil.copytree(init, tmp_path / "kept")
    shutil.copytree(other, init, dirs_exist_ok=True)
    assert "init_digest: " in message(stopped) and "init_digest: " in message(whole)
    shutil.copytree(tmp_path / "kept", init, dirs_exist_ok=True)
    assert in_children(lambda: refine.main(stopped)) == [0]
    for name in (
        "log.jsonl",
        "scores.parquet",
        "detector/adapter/adapter_model.safetensors",
        "detector/head.safetensors",
    ):
        assert sha256(whole.output_dir / name) == sha256(stopped.output_dir / name), name

    page = (whole.output_dir / "table.md").read_text()
    aim = [tuple(cell) for cell in json.loads((whole.output_dir / "provenance.json").read_text())["identity"]["aim"]]
    assert len(aim) == 2 and "## Holes: " in page and "## Elsewhere: " in page and "passed over: cascade" in page
    rows = Manifest.read(config.manifest[0])
    val, held = (np.flatnonzero(where) for where in (rows["split"] == "val", rows["split"] != "train"))
    old = load_detector(init)
    holes, _ = find_holes(score(old, rows, val, VIEWS), {"latent", "codebook"}, 2, 20, 0)
    assert [(hole.generator, hole.view) for hole in holes] == aim
    after = Scores.read(whole.output_dir / "scores.parquet")
    difference = compare(after, score(old, rows, held, VIEWS), 20, 0)
    for d in difference:
        if d.metric == "auc" and (d.generator, d.view) in aim and d.set == "embedded":
            assert (
                f"| {d.generator} | embedded | training | {d.view} | {d.a:.3f} | {d.b:.3f} | {show(d, '+')} |" in page
            )


def test_without_a_detector_to_go_on_from_the_page_says_what_was_learnt(config) -> None:
    aim = Aim([("style", "none")], title="New generator", about="Learnt from 2")
    unused = (None, None, 20, 0)
    assert before_and_after(None, aim, *unused) == ([], ["## New generator", "Learnt from 2"])
    assert before_and_after(None, Aim([]), *unused) == ([], [])


def test_flags_against_the_detector_are_refused(config, init, tmp_path) -> None:
    more = going(config, init=init, output_dir=tmp_path / "run")
    assert "--rank 3: training goes on from" in message(dataclasses.replace(more, rank=3))
    assert "--layer proj: training goes on from" in message(dataclasses.replace(more, layer="proj"))
    assert "trained on tiny with weights" in message(
        dataclasses.replace(more, backbone="timm:vit_tiny_patch16_224@random")
    )
    assert "is not a complete detector" in message(dataclasses.replace(more, init=tmp_path))
    pair = "--onboard GENERATOR and --shots"
    for flags, words in (
        ({"init": None, "onboard": "style", "shots": 2, "focus": "holes"}, "--focus holes: give --init"),
        ({"init": None}, "nothing to go on from: give --init DETECTOR"),
        ({"onboard": "style"}, pair),
        ({"shots": 4}, pair),
        ({"onboard": "style", "shots": -1}, pair),
        ({"permutations": 1, "onboard": "style", "shots": 2}, "--permutations"),
        ({"focus_share": 1.0}, "--focus_share 1"),
    ):
        with pytest.raises(Refusal, match=words):
            dataclasses.replace(more, **flags)


def test_a_detector_without_adapter_gets_a_fresh_one(config, tmp_path) -> None:
    from adapt.detector.detector import Detector
    from adapt.models.heads.probes import Probe
    from adapt.training.trainable import continued

    frozen = Detector(load_backbone("tiny"), Probe(192, ("real", "fake"), "logistic"))
    frozen.save(tmp_path / "frozen", {})
    said: list[str] = []
    detector = continued(tmp_path / "frozen", dataclasses.replace(config, rank=3), 0, said.append)
    assert "fresh adapter" in said[0] and detector.backbone.tower.peft_config["default"].r == 3
    trained = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert {"head.net.weight", "head.net.bias"} <= trained and any("lora_A" in name for name in trained)
    votes = Detector(load_backbone("tiny"), Probe(192, ("real", "x", "y"), "svm"))
    votes.save(tmp_path / "votes", {})
    with pytest.raises(Refusal, match="votes of duels"):
        continued(tmp_path / "votes", config, 0, str)


# -- the recovery curve ----------------------------------------------------------------------------------------------


def test_the_feature_cache_knows_the_adapter(init, planted, tmp_path) -> None:
    adapted, bare = load_detector(init).backbone, load_backbone("tiny")
    other = load_detector(init).backbone
    assert adapted.identity("last") == other.identity("last") != bare.identity("last")
    with torch.no_grad():
        next(p for name, p in other.tower.named_parameters() if "lora_B" in name).add_(1e-3)
    assert adapted.identity("last") != other.identity("last")
    fresh = load_backbone("tiny")
    add_adapter(fresh, "all", 4, 4)
    doubled = load_backbone("tiny")
    add_adapter(doubled, "all", 4, 8)
    assert fresh.identity("last") != doubled.identity("last")


@pytest.fixture(scope="module")
def few(init, small, tmp_path_factory):
    """The manifest, features of the adapted tower, and the detector."""
    rows, detector = Manifest.read(small), load_detector(init)
    return rows, extract(detector.backbone, rows, VIEWS, cache=tmp_path_factory.mktemp("cache")), detector


def test_without_shots_the_curve_is_the_detector(few) -> None:
    rows, features, detector = few
    which, none = onboard(rows, "style", 0, 0)
    held = np.flatnonzero(none["split"] != "train")
    found = score_features(features.select(which, none), held, VIEWS, PriorHead(CLASSES, head=detector.head))
    np.testing.assert_allclose(found["logit"], score(detector, none, held, VIEWS)["logit"], atol=1e-3)
    apart = recast(found, rows, "style")
    seen = dict(zip(apart["generator"], apart["seen"], strict=True))
    assert seen["style"] == "val" and seen["latent"] == "train" and seen["phase"] == ""
    assert list(apart["path"]) == list(found["path"])


def test_shots_stand_under_every_view_and_no_test_row_is_touched(few) -> None:
    rows, features, detector = few
    which, lent = onboard(rows, "style", 3, 1)
    held = features.select(which, lent)
    shots, under = shot_rows(held, "style", VIEWS)
    groups = set(lent["group"][shots])
    assert len(groups) == 3 and set(lent["split"][shots]) == {"train"}
    assert Counter(under[lent["generator"][shots] == "style"]) == dict.fromkeys(VIEWS, 3)
    test = np.flatnonzero(lent["split"] == "test")
    asked: list[int] = []
    take = type(held).take
    spied = type("Spied", (type(held),), {"take": lambda self, r, *a: asked.extend(r) or take(self, r, *a)})
    spy = spied(**{f.name: getattr(held, f.name) for f in dataclasses.fields(held)})
    heads = tip_heads(spy, "style", VIEWS, 0, detector.head, True)
    probe = refitted(spy, "style", VIEWS, 0)
    assert set(heads) == {"Tip-Adapter"} and not set(asked) & set(test)
    assert len(heads["Tip-Adapter"].cache.keys) == len(shots)
    assert probe.classes == CLASSES
    four = tip_heads(features.select(*onboard(rows, "style", 4, 1)), "style", VIEWS, 0, detector.head, True)
    assert len(set(four["Tip-Adapter-F"].cache.groups.tolist())) == 2  # every other one
    one = features.select(*onboard(rows, "style", 1, 1))
    single = tip_heads(one, "style", VIEWS, 0, detector.head, True)
    assert list(single) == ["Tip-Adapter"] and float(single["Tip-Adapter"].cache.alpha) == 1.0


class Made:
    """Features without a tower: direction 0 tells a and b apart from photographs, direction 1 the new c."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def select(self, rows: np.ndarray, manifest: Manifest) -> "Made":
        return Made(manifest)

    def reasons(self, view: str) -> np.ndarray:
        return np.full(len(self.manifest), "", dtype=object)

    def take(self, rows: np.ndarray, views: object, layer: str | None = None) -> np.ndarray:
        out = []
        for row in rows:
            noise = np.random.default_rng(int(self.manifest["path"][row].removesuffix(".png"))).normal(size=8)
            trace = {"a": 0, "b": 0, "chosen": 0, "c": 1}.get(self.manifest["generator"][row])
            noise[:2] *= 0.5
            if trace is not None:
                noise[trace] += 2
            out.append([*noise, 6.0])
        return np.array(out, dtype=np.float32)


class Direction(torch.nn.Module):
    """A detector that knows direction 0 alone."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 2 * features[:, 0] - 2


def test_few_shots_teach_each_head_the_new_direction() -> None:
    rows = lab(60)
    features = Made(rows)
    aucs = {}
    for shots in (0, 16):
        some = features.select(*onboard(rows, "c", shots, 0))
        heads = {"probe": refitted(some, "c", VIEWS, 0), "as it is": Direction()}
        heads |= tip_heads(some, "c", VIEWS, 0, Direction(), True) if shots else {}
        test = np.flatnonzero((some.manifest["split"] == "test") & np.isin(some.manifest["generator"], ["real", "c"]))
        fake = some.manifest.fake[test]
        for name, head in heads.items():
            with torch.no_grad():
                aucs[name, shots] = roc_auc_score(fake, head(torch.from_numpy(some.take(test, VIEWS[0]))))
    assert max(aucs["as it is", 0], aucs["probe", 0]) < 0.75
    assert min(aucs[name, 16] for name in ("probe", "Tip-Adapter", "Tip-Adapter-F")) > 0.9, aucs


def test_shots_held_back_are_judged_beside_photographs_of_their_own_set(monkeypatch) -> None:
    """Training and validation are set A, the new generator and its photographs set B; half of the say is its own."""
    rows = lab(60)
    home = Manifest(rows.columns | {"set": np.where(rows["split"] == "test", "B", "A").astype(object)})
    seen = []
    tune = few_shot.tune
    monkeypatch.setattr(few_shot, "tune", lambda cache, val, **k: seen.append(val) or tune(cache, val, **k))
    features = Made(home)
    some = features.select(*onboard(home, "c", 16, 0))
    assert set(tip_heads(some, "c", ("none",), 0, Direction(), False)) == {"Tip-Adapter"}
    place = {some.take(np.array([row]), "none").tobytes(): row for row in range(len(some.manifest))}
    which = np.array([place[line.numpy().tobytes()] for line in seen[0].features])
    logits = torch.randn(3, len(which), 2, generator=torch.Generator().manual_seed(0))
    generator, of_set = some.manifest["generator"][which], some.manifest["set"][which]
    assert set(generator[of_set == "B"]) == {"real", "c"} and set(generator[of_set == "A"]) == {
        "real",
        *"ab",
        "chosen",
    }
    for setting, said in zip((logits[..., 1] - logits[..., 0]).numpy(), seen[0].judge(logits), strict=True):
        aucs = {}
        for name, own in (("a", "A"), ("b", "A"), ("chosen", "A"), ("c", "B")):
            here = (of_set == own) & np.isin(generator, ["real", name])
            aucs[name] = roc_auc_score(generator[here] == name, setting[here])
        assert said == pytest.approx((aucs.pop("c") + np.mean(list(aucs.values()))) / 2)
    # where no photograph is of its set it would have no say: nothing is chosen
    away = Manifest(home.columns | {"set": np.where(home["generator"] == "c", "C", home["set"]).astype(object)})
    heads = tip_heads(Made(away).select(*onboard(away, "c", 16, 0)), "c", ("none",), 0, Direction(), True)
    cache = heads.pop("Tip-Adapter").cache
    assert not heads and (float(cache.alpha), float(cache.beta)) == (1.0, 5.5)


def test_gains_count_what_surely_changed() -> None:
    names = ("real", "old", "style")
    rows = [(i, name, view) for view in VIEWS for i in range(60) for name in names]
    columns = {
        "path": [f"{i}-{name}" for i, name, _ in rows],
        "group": [f"g{i}" for i, _, _ in rows],
        "generator": [name for _, name, _ in rows],
        "seen": [{"old": "train", "style": "val"}.get(name, "") for _, name, _ in rows],
        "view": [view for *_, view in rows],
    }

    def at(old: float, style: float) -> Scores:
        level = {"real": 0.0, "old": old, "style": style}
        return Scores(columns | {"logit": np.random.default_rng(0).normal([level[name] for _, name, _ in rows])})

    base = at(2.0, 0.0)
    page = gains(
        {("m", "4", "0"): at(2.0, 3.0), ("m", "4", "1"): at(2.0, 3.0), ("n", "4", "0"): at(0.0, 0.0)},
        base,
        VIEWS,
        50,
        0,
    )
    assert page[0] == "## New generator, less the detector as it is: 2 of 4 surely better, 0 surely worse"
    assert page[2] == "## All others, less the detector as it is: 0 of 4 surely better, 2 surely worse"
    assert page[1].splitlines()[2].startswith("| m | 4 | +0.4")


def test_the_recovery_curve_end_to_end(config, init, tmp_path, monkeypatch) -> None:
    cfg = recipe.Config(
        detector=init,
        generator="style",
        manifest=config.manifest,
        output_dir=tmp_path / "curve",
        shots=(4,),
        seeds=(0,),
        train_views=VIEWS,
        test_views=VIEWS,
        epochs=2,
        groups=8,
        cache=tmp_path / "cache",
        resamples=10,
        num_workers=0,
    )

    def forked(command, *_) -> int:  # a real start would import everything again
        return in_children(lambda: refine.main(parse(refine.Config, command[2:])))[0]

    monkeypatch.setattr(cells_module, "_run", forked)
    falling = iter(range(0, -100, -1))  # by validation the first epoch would be kept
    monkeypatch.setattr(adapt.training.report, "validation_score", lambda _: float(next(falling)))
    recipe.main(cfg)
    with (cfg.output_dir / "metrics.csv").open(newline="") as file:
        found = {
            (row["method"], row["shots"], row["generator"]): float(row["value"])
            for row in csv.DictReader(file)
            if row["metric"] == "auc" and row["view"] == "none" and row["set"] == "all"
        }
    assert {key[:2] for key in found} == {
        *(("the detector as it is", "0"), ("probe", "0"), ("probe", "4")),
        *(("Tip-Adapter", "4"), ("Tip-Adapter-F", "4"), ("LoRA", "0"), ("LoRA", "4")),
    }
    control, scores = (Scores.read(cfg.output_dir / f"lora-{k}-seed0" / "scores.parquet") for k in (0, 4))
    for name in ("path", "view"):  # the same test rows
        assert list(control[name][control["split"] == "test"]) == list(scores[name][scores["split"] == "test"])
    assert set(control["seen"][control["generator"] == "style"]) == {""}
    assert set(scores["seen"][scores["generator"] == "style"]) == {"train"}
    rows = (scores["split"] == "test") & (scores["view"] == "none") & (scores["edit"] == "")
    rows &= np.isin(scores["generator"], ["real", "style"])
    own = roc_auc_score(scores.fake[rows], scores["logit"][rows])
    assert found["LoRA", "4", "mean:selection"] == pytest.approx(own, abs=1e-6)
    lora_page = (cfg.output_dir / "lora-4-seed0" / "table.md").read_text()
    assert "## New generator: " in lora_page and "Learnt from 4 of its groups" in lora_page
    picked = json.loads((cfg.output_dir / "lora-4-seed0" / "provenance.json").read_text())
    assert picked["epoch"] == 2 and "style" in picked["trained_on"]
    page = (cfg.output_dir / "table.md").read_text()
    assert "## AUC, new generator" in page and "## All others, less the detector as it is" in page
    assert (cfg.output_dir / "figures" / "recovery.png").stat().st_size > 5000
    with pytest.raises(Refusal, match="5 shots of 'style': 4 of its 8 test groups"):
        recipe.main(dataclasses.replace(cfg, shots=(5,), output_dir=tmp_path / "no"))
    with pytest.raises(Refusal, match="was trained on 'style' already"):
        knows = cfg.output_dir / "lora-4-seed0" / "detector"
        recipe.main(dataclasses.replace(cfg, detector=knows, output_dir=tmp_path / "knows"))
    with pytest.raises(Refusal, match="--methods: give one or more"):
        dataclasses.replace(cfg, methods=())


def test_further_training_on_permuted_labels_starts_from_the_same_detector(config, init, tmp_path) -> None:
    more = going(config, init=init, output_dir=tmp_path / "p", epochs=1, permutations=1)
    refine.main(more)
    assert "| 1 | one permutation: no test |" in (tmp_path / "p" / "table.md").read_text()
    record = json.loads((tmp_path / "p" / "permutation-1" / "provenance.json").read_text())
    main = json.loads((tmp_path / "p" / "provenance.json").read_text())
    mine, its = record["identity"], main["identity"]
    assert mine["init_digest"] == its["init_digest"] and mine["data"] != its["data"]

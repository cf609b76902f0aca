"""The ablation end to end, killed and continued; numbers against sklearn; marks of the best; LaTeX; TensorBoard."""

import base64
import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import ablation as recipe
import color_fusion
import linear_probe  # noqa: F401 (as open_clip and the report: loaded once here, inherited by every child)
import numpy as np
import open_clip  # noqa: F401
import pytest
import tip_adapter  # noqa: F401
from PIL import Image
from processes import in_children
from scipy.optimize import minimize_scalar
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

import adapt.training.report  # noqa: F401
from adapt.cli import parse
from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.evaluation.jackknife import difference_interval, leave_out, share_interval
from adapt.evaluation.metrics import compare_means
from adapt.evaluation.scores import Scores
from adapt.evaluation.side_by_side import (
    MEAN,
    METADATA,
    WORST,
    Drawn,
    SideBySide,
    rank,
    reached,
    read_numbers,
    write_numbers,
)
from adapt.evaluation.thresholds import pick_threshold
from adapt.pages import html, leaderboard
from adapt.pages.latex import escape, table
from adapt.pages.leaderboard import Entry, Table
from adapt.pages.thumbnails import placeholder
from adapt.sweeps import ablation_html
from adapt.sweeps import planned_runs as cells_module
from adapt.sweeps.ablation import Method, not_applicable
from adapt.sweeps.ablation_page import SOURCES, Page, write_tables

VIEWS = ("none", "qf65")
DEFAULT = {name: getattr(recipe, name) for name in ("METHODS", "ONCE")}
TIP = {"layer": "proj", "shots": (16,), "draws": 1}
METHODS = (
    ("zero-shot", "tip_adapter", {**TIP, "methods": ("zero-shot",)}, 0.1),
    ("logistic", "tip_adapter", {**TIP, "methods": ("logistic",)}, 0.1),
    ("broken", "tip_adapter", {**TIP, "layer": "block99", "prior": "none"}, 0.1),
    ("tip-adapter", "tip_adapter", {**TIP, "methods": ("tip-adapter",), "classes": "family"}, 0.1),
    ("labels-permuted", "linear_probe", {"layer": "proj", "permutations": 3}, 0.1),
)


def forked(command: list[str], log: Path, *_) -> int:
    """A run in a child of this process: a real start would import everything again."""
    module = importlib.import_module(Path(next(word for word in command if word.endswith(".py"))).stem)

    def run() -> None:
        with log.open("a") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                module.main(parse(module.Config, command[2:]))
            except Refusal as refusal:
                print(f"error: {refusal}")
                sys.exit(2)

    return in_children(run)[0]


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "METHODS", METHODS)
        patch.setattr(recipe, "ONCE", ("zero-shot", "labels-permuted"))
        patch.setattr(cells_module, "_run", forked)
        yield patch


@pytest.fixture(scope="module")
def config(planted, patched, tmp_path_factory) -> recipe.Config:
    root = tmp_path_factory.mktemp("ablation")
    return recipe.Config(
        manifest=(str(planted),),
        output_dir=root / "page",
        train_on=("none,qf65",),
        test_views=VIEWS,
        seeds=(0, 1),
        cache=root / "features",
        resamples=30,
        num_workers=0,
    )


@pytest.fixture(scope="module")
def done(config, patched) -> dict[str, int]:
    """Killed before its third run, then to the end; when each run was finished at the kill."""
    started: list[str] = []

    def killed(command, log, *rest) -> int:
        started.append(log.stem)
        if len(started) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return forked(command, log, *rest)

    patched.setattr(cells_module, "_run", killed)
    assert in_children(lambda: recipe.main(config)) == [-signal.SIGKILL]
    before = {path.parent.name: path.stat().st_mtime_ns for path in config.output_dir.glob("*/provenance.json")}
    patched.setattr(cells_module, "_run", forked)
    with pytest.raises(SystemExit) as end:
        recipe.main(config)
    assert end.value.code == 1
    shutil.copy(config.output_dir / "report.html", config.output_dir.parent)  # a test makes the page again
    return before


@pytest.fixture(scope="module")
def numbers(config, done) -> list:
    return read_numbers(config.output_dir / "ablation.csv")


def test_it_continues_reports_what_fails_and_goes_on(config, done, capsys) -> None:
    root = config.output_dir
    assert list(done) and set(done) == {"zero-shot-seed0", "logistic-none_qf65-seed0"}
    after = {path.parent.name: path.stat().st_mtime_ns for path in root.glob("*/provenance.json")}
    assert {name: after[name] for name in done} == done  # nothing finished ran again
    assert set(after) - set(done) == {
        *("logistic-none_qf65-seed1", "tip-adapter-none_qf65-seed0", "tip-adapter-none_qf65-seed1"),
        "labels-permuted-seed0",
    }
    page = (root / "table.md").read_text()
    assert "**Not finished**: broken-none_qf65-seed0, broken-none_qf65-seed1." in page
    assert re.search(r"## Failed\n\n- broken-none_qf65-seed0: .*unknown layer 'block99'", page)
    assert not (root / "provenance.json").exists() and "| broken |" not in page
    recipe.main(dataclasses.replace(config, dry_run=True))
    said = capsys.readouterr().out
    assert "8 runs, 2 to run, about" in said and said.count(" finished ") == 6
    recipe.main(dataclasses.replace(config, only=("logistic*",)))  # nothing to do: the page again
    assert (root / "table.md").read_text().replace(page.partition("## Failed")[0], "").startswith("## Commands")


def test_only_methods_with_texts_ask_for_the_projection() -> None:
    """Other backbones have none, and a run that fixes it would fail there."""
    assert {name for name, _, flags, _ in DEFAULT["METHODS"] if flags.get("layer") == "proj"} == set(recipe.NEED_TEXTS)


def sample_auc(scores: Scores, view: str, generator: str) -> float:
    rows = (scores["split"] == "test") & (scores["view"] == view) & (scores["edit"] == "")
    rows &= np.isin(scores["generator"], ["real", generator])
    return roc_auc_score(scores.fake[rows], scores["logit"][rows])


def test_numbers_are_those_of_sklearn(config, numbers) -> None:
    at = {(n.method, n.view, n.generator, n.metric): n for n in numbers if n.set == "all"}
    own = {(n.method, n.view, n.generator): n for n in numbers if n.set == "embedded"}
    for method, seeds in (("zero-shot", ("-seed0",)), ("tip-adapter", ("-none_qf65-seed0", "-none_qf65-seed1"))):
        tables = [Scores.read(config.output_dir / f"{method}{end}" / "scores.parquet") for end in seeds]
        kinds = {kind: set(tables[0]["generator"][tables[0]["seen"] == kind]) - {"real"} for kind in ("train", "")}
        for label, kind in (("mean:seen", "train"), ("mean:unseen", "")):
            for view in VIEWS:
                each = [np.mean([sample_auc(t, view, g) for g in kinds[kind]]) for t in tables]
                found = at[method, view, label, "auc"]
                assert (found.value, found.seeds) == (pytest.approx(np.mean(each), abs=1e-12), len(seeds))
                assert (found.seed_low, found.seed_high) == pytest.approx((min(each), max(each)), abs=1e-12)
        unseen = {g: np.mean([sample_auc(t, view, g) for t in tables for view in VIEWS]) for g in kinds[""]}
        assert at[method, MEAN, WORST, "auc"].value == pytest.approx(min(unseen.values()), abs=1e-12)
        for generator, value in unseen.items():
            assert own[method, MEAN, generator].value == pytest.approx(value, abs=1e-12)
        cuts, accuracies = [pick_threshold(t) for t in tables], []
        for t, cut in zip(tables, cuts, strict=True):
            for g in kinds["train"]:
                rows = (t["split"] == "test") & (t["view"] == "qf65") & (t["edit"] == "")
                rows &= np.isin(t["generator"], ["real", g])
                accuracies.append(balanced_accuracy_score(t.fake[rows], t["logit"][rows] >= cut))
        assert at[method, "qf65", "mean:seen", "balanced_accuracy"].value == pytest.approx(np.mean(accuracies))
    record = json.loads((config.output_dir / "logistic-none_qf65-seed0" / "provenance.json").read_text())
    assert record["trainable_parameters"] == 129  # proj of tiny has 128 entries
    costs = {n.metric: n for n in numbers if n.method == "logistic" and not n.view}
    assert costs["trainable_parameters"].value == record["trainable_parameters"]
    assert 0 < costs["minutes"].value < record["seconds"] / 60 and costs["peak_memory_mib"].value > 100


def test_what_each_method_was_given_is_in_the_records(config, numbers) -> None:
    """16 shots a class, or every training image; runs from before these facts have none, and all together no table."""
    rows = Manifest.read(config.manifest[0])
    reals, fakes = (str(int(((rows["split"] == "train") & (rows.fake == fake)).sum())) for fake in (False, True))
    table = leaderboard.budgets(numbers)
    found = {row[0].value: [entry.value for entry in row[-5:]] for row in table.rows}
    assert found["zero-shot"] == ["0", "0", "0", "1", "0"]
    assert found["logistic"] == ["16", "16", "1", "6", "129"]  # six penalties
    assert found["tip-adapter"][0] == "16" and found["tip-adapter"][3] == str(1 + 12 * 12)
    assert found["labels-permuted"] == [reals, fakes, "1", "6", "129"] and list(found)[-1] == "labels-permuted"
    assert list(table.lines) == [len(found) - 1] and table.controls == 1
    old = [n for n in numbers if n.metric not in leaderboard.GIVEN]
    assert not leaderboard.budgets(old).rows
    assert len(Page(old, "").tables()) == len(Page(numbers, "").tables()) - 1
    half = [n for n in numbers if n.metric not in leaderboard.GIVEN or n.method != "logistic"]
    words = {row[0].value: [entry.value for entry in row[-5:]] for row in leaderboard.budgets(half).rows}
    assert words == found | {"logistic": ["n/a"] * 4 + ["129"]}


def test_a_single_source_of_colour_leaves_its_scores(config, done, tmp_path) -> None:
    """Scores of all test views, whose AUC is that of the page."""
    color_fusion.main(
        color_fusion.Config(
            manifest=config.manifest,
            output_dir=tmp_path / "colour",
            features=("colour",),
            apart=False,
            train_views=("none",),
            test_views=VIEWS,
            cache=config.cache,
            resamples=5,
            num_workers=0,
        )
    )
    kept = Scores.read(tmp_path / "colour" / "scores.parquet")
    assert {(s, v) for s, v in zip(kept["split"], kept["view"], strict=True)} == {
        (split, view) for split in ("val", "test") for view in VIEWS
    }
    cells = cells_module.read_metrics(tmp_path / "colour" / "metrics.csv")
    assert list(cells) == [("colour", "none")]
    page = {(c.view, c.generator): c.value for c in cells["colour", "none"] if c.metric == "auc"}
    for view in VIEWS:
        assert page[view, "grid"] == pytest.approx(sample_auc(kept, view, "grid"), abs=1e-6)


def test_controls_stand_last_and_take_no_part(config, numbers) -> None:
    head = leaderboard.headline(numbers)
    assert [row[0].value for row in head.rows] == [
        *("zero-shot", "logistic", "tip-adapter"),
        *("labels-permuted", "metadata only"),
    ]
    assert list(head.lines) == [3] and not any(entry.mark for row in head.rows[3:] for entry in row)
    metadata = Scores.read(config.output_dir / "labels-permuted-seed0" / "metadata.parquet")
    seen = sorted(set(metadata["generator"][metadata["seen"] == "train"]) - {"real"})
    value = np.mean([sample_auc(metadata, "none", g) for g in seen])
    row = next(n for n in numbers if n.place == ("all", "none", "mean:seen", "auc") and n.method == "metadata only")
    assert row.value == pytest.approx(value, abs=1e-12) and row.role == "control"
    outcomes = {(row[0].value, row[2].value): row[4].value for row in leaderboard.controls(numbers).rows}
    assert {"labels-permuted", "metadata only"} <= {method for method, _ in outcomes}
    own = next(n for n in numbers if n.place == ("all", "none", "mean:all", "auc") and n.method == "metadata only")
    inside, outside = own.low >= 0.4 and own.high <= 0.6, own.low > 0.6 or own.high < 0.4
    expected = "passed" if inside else "FAILED" if outside else "cannot tell"
    assert outcomes["metadata only", "none"] == expected
    assert ("metadata only", "qf65") not in outcomes


def test_tables_come_from_the_csv_alone(config, numbers, tmp_path) -> None:
    sections = write_tables(tmp_path, Page(numbers, "first process, libraries included"))
    root = config.output_dir
    for name in ("ablation.tex", "generators.csv"):
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes()
    page = (root / "table.md").read_text()
    assert all(section in page for section in sections)
    write_numbers(tmp_path / "again.csv", numbers)
    assert (tmp_path / "again.csv").read_bytes() == (root / "ablation.csv").read_bytes()
    names = {"auc_per_view.png", "cost.png", "generators.png"}
    assert {path.name for path in (root / "figures").iterdir()} == names
    gap = leaderboard.transfer(numbers).rows[0]
    frozen, half, oracle, gained, lost = (entry.key for entry in gap[-5:])
    assert gained == pytest.approx(oracle - frozen) and lost == pytest.approx(frozen - half) and gained >= 0
    (tmp_path / "bad.csv").write_text("method\nx\n")
    with pytest.raises(Refusal, match="columns method, expected method, trained_on"):
        read_numbers(tmp_path / "bad.csv")


def test_tensorboard_holds_all_cells_side_by_side(config, numbers) -> None:
    root = config.output_dir / "tensorboard"
    runs = {path.name for path in root.iterdir() if path.is_dir()}
    assert len(runs) == 6 and "tip-adapter-none_qf65-seed1" in runs

    def read(folder: Path) -> EventAccumulator:
        return EventAccumulator(str(folder)).Reload()

    top = read(root)
    layout = layout_pb2.Layout()
    layout.ParseFromString(top.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {c.title: {chart.title: list(chart.multiline.tag) for chart in c.chart} for c in layout.category}
    assert set(charts) == {*VIEWS, MEAN}
    experiment = plugin_data_pb2.HParamsPluginData.FromString(
        top.PluginTagToContent("hparams")["_hparams_/experiment"]
    ).experiment
    names = {info.name for info in experiment.hparam_infos}
    tags = {info.name.tag for info in experiment.metric_infos}
    assert {"method", "seed", "recipe", "trained_on", "methods", "permutations"} <= names
    for name in sorted(runs):
        events = read(root / name)
        start = plugin_data_pb2.HParamsPluginData.FromString(
            events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        ).session_start_info
        method = start.hparams["method"].string_value
        assert name.startswith(method) and start.hparams["seed"].number_value == int(name[-1])
        scalars = set(events.Tags()["scalars"])
        assert scalars <= tags and {"qf65/auc_unseen", "none/balanced_accuracy", "cost/minutes"} <= scalars
        assert any(re.search(charts["qf65"]["AUC"][0], tag) for tag in scalars)
        assert not any(re.search(charts["qf65"]["AUC"][0], tag) for tag in scalars if "none" in tag)
    one = [read(root / f"tip-adapter-none_qf65-seed{seed}").Scalars("qf65/auc_unseen")[0].value for seed in (0, 1)]
    mean = next(n for n in numbers if n.method == "tip-adapter" and n.place == ("all", "qf65", "mean:unseen", "auc"))
    assert mean.value == pytest.approx(np.mean(one), abs=1e-6)


# -- the HTML page -------------------------------------------------------------------------------------------------

EVIL = '<img src="http://127.0.0.1:9/x.png" onerror="pwned=1">'


class Parsed(HTMLParser):
    """Tables as rows of words, pictures by their alt text, and all text."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.pictures, self.text, self.inside = [], {}, "", False
        self.feed(text.partition("<script>")[0])

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self.inside = True
        elif tag == "img":
            data = dict(attributes)["src"].partition(",")[2]
            self.pictures.setdefault(dict(attributes)["alt"], []).append(base64.b64decode(data))

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, text):
        self.text += text
        if self.inside:
            self.tables[-1][-1][-1] += text


@pytest.fixture(scope="module")
def parsed(config, done) -> Parsed:
    return Parsed((config.output_dir.parent / "report.html").read_text(encoding="utf-8"))


def test_the_report_has_every_table_and_reason(config, numbers, parsed) -> None:
    made = Page(numbers, "").tables()
    for one, shown in zip(made, parsed.tables, strict=False):
        assert shown[0] == one.titles
        assert shown[1:] == [[entry.text for entry in row] for row in one.rows]
    assert len(made) == 7 and "Embedded world" in parsed.text and "unknown layer 'block99'" in parsed.text
    assert "Not finished: broken-none_qf65-seed0, broken-none_qf65-seed1." in parsed.text
    record = json.loads((config.output_dir / "zero-shot-seed0" / "provenance.json").read_text())
    for word in (record["identity"]["data"], record["identity"]["base"]["weights"], record["versions"]["torch"]):
        assert word in parsed.text
    page = (config.output_dir / "table.md").read_text()
    commands = page.partition("## Commands\n\n```sh\n")[2].partition("\n```")[0].splitlines()
    assert len(commands) == 6 and all(command in parsed.text for command in commands)
    for alt in (*ablation_html.ALT.values(), "share of fakes against p_fake, a panel for each method"):
        assert len(parsed.pictures[alt]) == 1
    family = [alt for alt in parsed.pictures if alt.endswith("predicted against true family")]
    assert family == [f"tip-adapter, view {view}: predicted against true family" for view in VIEWS]


def test_confusion_and_mistakes_are_those_of_the_scores(config, numbers, parsed) -> None:
    runs = [config.output_dir / f"tip-adapter-none_qf65-seed{seed}" for seed in (0, 1)]
    tables = [Scores.read(run / "scores.parquet") for run in runs]
    cuts = [pick_threshold(table) for table in tables]
    header, *rows = next(found for found in parsed.tables if "reals called fake" in found[0])
    line = next(row for row in rows if row[:2] == ["tip-adapter", "qf65"])
    assert header[2:] == [f"{kind} called fake" for kind in ("reals", "processed reals", "seen fakes", "unseen fakes")]
    for kind, word in zip(header[2:], line[2:], strict=True):
        called = total = 0
        for t, cut in zip(tables, cuts, strict=True):
            for i in range(len(t)):
                if t["split"][i] == "test" and t["view"][i] == "qf65":
                    real = "processed reals" if t["edit"][i] else "reals"
                    fake = "seen fakes" if t["seen"][i] == "train" else "unseen fakes"
                    if kind == f"{real if t['generator'][i] == 'real' else fake} called fake":
                        called, total = called + (t["logit"][i] >= cut), total + 1
        assert word == f"{called / total:.3f} ({called} of {total})" and total > 0
    # the worst photograph of the best method under a view: the largest mean distance from the thresholds
    head = leaderboard.headline(numbers)
    best = max(head.rows[:3], key=lambda row: row[head.titles.index("AUC, unseen, mean")].key)[0].value
    runs = sorted(config.output_dir.glob(f"{best}*/scores.parquet"))
    tables = [Scores.read(run) for run in runs]
    reals = (tables[0]["split"] == "test") & (tables[0]["view"] == "qf65") & ~tables[0].fake
    far = np.mean([t["logit"][reals] - pick_threshold(t) for t in tables], axis=0)
    path = tables[0]["path"][reals][far.argmax()]
    below = parsed.text.partition("Worst mistakes\nOf the 3 methods")[2].partition("view qf65: photographs")[2]
    assert re.search(r"p\(fake\)", below) and below.split()[3] == path
    shown = next(data for alt, data in parsed.pictures.items() if alt.endswith(path))[0]
    assert Image.open(io.BytesIO(shown)).format == "JPEG"


def test_the_same_runs_give_the_same_page(config, done) -> None:
    before = (config.output_dir.parent / "report.html").read_bytes()
    with contextlib.suppress(SystemExit):
        recipe.main(config)  # the broken cell fails again
    assert (config.output_dir / "report.html").read_bytes() == before and len(before) < 3e6


def renamed(config, numbers, folder: Path) -> Page:
    """The runs again, in which a generator and the path of every image of it have hostile names."""
    runs = {}
    for row in dict.fromkeys(n.row for n in numbers if n.method not in ("metadata only", "broken")):
        for old in sorted(config.output_dir.glob(f"{row[0]}-*/scores.parquet")):
            scores = Scores.read(old)
            chosen = scores["generator"] == "wavelet"
            columns = {"generator": np.where(chosen, EVIL, scores["generator"])}
            columns["path"] = np.where(chosen, EVIL + scores["path"], scores["path"])
            Scores(scores.columns | columns).write(folder / old.parent.name / "scores.parquet")
            (folder / old.parent.name / "provenance.json").write_bytes((old.parent / "provenance.json").read_bytes())
            runs.setdefault(row, []).append(folder / old.parent.name)
    evil = [dataclasses.replace(n, generator=EVIL) if n.generator == "wavelet" else n for n in numbers]
    words = {EVIL: EVIL}
    return Page(evil, EVIL, words, {"data": EVIL, EVIL: EVIL}, runs, [EVIL], words, words)


def test_images_that_are_gone_leave_a_placeholder(config, numbers, tmp_path) -> None:
    page = renamed(config, numbers, tmp_path)
    figures = {name: (config.output_dir / "figures" / f"{name}.png").read_bytes() for name in ablation_html.ALT}
    found = Parsed(ablation_html.report(page, figures, None))
    gone = placeholder("missing")
    tiles = [data for alt, each in found.pictures.items() if alt.endswith(".png") for data in each]
    assert set(tiles) == {gone} and len(tiles) > 20 and ablation_html.NO_IMAGES in found.text
    unshown = Parsed(ablation_html.report(page, figures, None, pictures=False))
    assert not [alt for alt in unshown.pictures if alt.endswith(".png")] and ablation_html.NOT_SHOWN in unshown.text
    names = [name for name in found.pictures if name.endswith(".png")]
    assert names and all(name.split(" ")[-1] in unshown.text for name in names)


@pytest.mark.browser
def test_the_report_in_a_browser(config, numbers, parsed, browser, tmp_path) -> None:
    figures = {name: (config.output_dir / "figures" / f"{name}.png").read_bytes() for name in ablation_html.ALT}
    hostile = tmp_path / "hostile.html"
    page = renamed(config, numbers, tmp_path)
    hostile.write_text(ablation_html.report(page, figures, Manifest.read(*config.manifest)), encoding="utf-8")
    browser.requests.clear()
    browser.complaints.clear()
    for file in (config.output_dir / "report.html", hostile):
        for width in (360, 1280):
            browser.size(width, 800)
            browser.open(file)
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.value("[...document.images].every((image) => image.complete && image.naturalWidth)")
        assert browser.value("typeof pwned") == "undefined"
        assert browser.value("[...document.images].every((image) => image.src.startsWith('data:'))")
    heads = browser.value("[...document.querySelectorAll('.tile figcaption')].map((e) => e.textContent)")
    assert any(EVIL in head for head in heads) and browser.value("document.querySelectorAll('[onerror]').length") == 0
    assert html.plain(EVIL) in browser.value("document.querySelectorAll('table')[2].tHead.textContent")
    browser.open(config.output_dir / "report.html")
    column = "[...document.querySelector('table').tBodies[{}].rows].map((row) => row.cells[{}].textContent)"
    place = leaderboard.headline(numbers).titles.index("AUC, unseen, mean")
    before = browser.value(column.format(0, 0))
    browser.click(f"thead th:nth-child({place + 1}) button")
    keys = [float(word.split()[0]) for word in browser.value(column.format(0, place))]
    assert keys == sorted(keys) and sorted(before) == sorted(browser.value(column.format(0, 0))) and len(keys) == 3
    assert {*browser.value(column.format(1, 0))} == {"labels-permuted", "metadata only"}  # apart, whatever sorts
    assert browser.complaints == [] and not [url for url in browser.requests if not url.startswith(("file:", "data:"))]


# -- constructed scores -------------------------------------------------------------------------------------------


def scores(shift: float, seed: int, unseen: float | None = None, n: int = 40) -> Scores:
    """40 groups of a real, a seen and two unseen fakes under two views; fakes lie `shift` (or `unseen`) higher."""
    rng = np.random.default_rng(seed)
    noise = np.random.default_rng(99)  # of the images, shared by all detectors
    rows = [(split, g, name) for split in ("val", "test") for g in range(n) for name in ("real", "a", "b", "c")]
    rows = [(*row, view) for row in rows for view in VIEWS]
    up = {"real": 0.0, "a": shift, "b": shift if unseen is None else unseen, "c": shift if unseen is None else unseen}
    common = noise.normal(size=len(rows))
    return Scores(
        {
            "path": [f"{split}-{g}-{name}" for split, g, name, _ in rows],
            "group": [f"{split}-{g}" for split, g, _, _ in rows],
            "generator": [name for _, _, name, _ in rows],
            "split": [split for split, _, _, _ in rows],
            "set": ["s"] * len(rows),
            "seen": ["train" if name in ("real", "a") else "" for _, _, name, _ in rows],
            "view": [view for _, _, _, view in rows],
            "logit": [up[name] for _, _, name, _ in rows] + common + 0.1 * rng.normal(size=len(rows)),
        }
    )


@pytest.fixture(scope="module")
def built() -> tuple[dict, SideBySide, list]:
    """Strong is surely ahead on unseen generators, and equal to its twin on seen ones."""
    tables = {
        ("strong", "x"): [scores(1.5, 1, unseen=2.0), scores(1.5, 2, unseen=2.0)],
        ("twin", "x"): [scores(1.5, 3, unseen=0.5), scores(1.5, 4, unseen=0.5)],
        ("weak", "x"): [scores(0.0, 5, unseen=0.5)],
    }
    beside = SideBySide(200)
    beside.add(tables, {("chance", ""): [scores(9.0, 6)]})
    places = [column.place for column in leaderboard.columns(VIEWS) if column.marked]
    return tables, beside, beside.numbers(tables, places)


def test_bold_stands_only_where_the_paired_test_separates(built) -> None:
    tables, beside, numbers = built
    marks = {(n.method, *n.place[1:]): n.mark for n in numbers}
    assert marks["strong", MEAN, "mean:unseen", "auc"] == "best"
    assert [marks[m, MEAN, "mean:unseen", "auc"] for m in ("twin", "weak", "chance")] == ["", "", ""]
    assert [marks[m, "none", "mean:seen", "auc"] for m in ("strong", "twin", "weak")] == ["tie", "tie", ""]
    rows = [line.split("|")[1:-1] for line in leaderboard.headline(numbers).markdown().splitlines()[2:]]
    titles = leaderboard.headline(numbers).titles
    bold = {(row[0].strip(), titles[i]) for row in rows for i, word in enumerate(row) if "**" in word}
    assert ("strong", "AUC, unseen, mean") in bold and ("strong", "AUC, seen, none") not in bold
    assert {method for method, _ in bold} == {"strong"}
    # the intervals behind the marks are those of compare_means: over groups and seeds
    pairs = list(zip(tables["strong", "x"], tables["twin", "x"], strict=True))
    expected = {(d.set, d.view, d.generator, d.metric): d for d in compare_means(pairs, 200, 0)}
    for place in (("all", "none", "mean:seen", "auc"), ("s", "none", "b", "auc")):
        a, b = (beside.of(place, [(m, "x")])[m, "x"] for m in ("strong", "twin"))
        difference = a.values - b.values
        low, high = difference_interval(difference.mean(axis=0), a.groups, difference[:, 0])
        assert (low, high) == pytest.approx((expected[place].low, expected[place].high), abs=1e-12)


def test_methods_are_compared_after_one_temperature_each() -> None:
    """Nine times too sure or nine times too shy: on equal terms they are the same, as they come they are not."""
    tables = {(f"times {k:g}", "x"): [with_logit(scores(1.5, 1), k)] for k in (1.0, 9.0, 1 / 9)}
    beside = SideBySide(5)
    beside.add(tables, {})
    found = {(n.method, n.metric): n for n in beside.numbers(tables, []) if n.place[1:3] == (MEAN, "mean:all")}
    own = [found[method, "ece_temperature"].value for method, _ in tables]
    raw = [found[method, "ece"].value for method, _ in tables]
    assert own == pytest.approx([own[0]] * 3, abs=1e-6) and min(raw[1:]) > own[0] + 0.05
    # by hand: the least balanced log loss of validation, then 15 bins of each generator with its reals under a view
    table = tables["times 9", "x"][0]
    val = table["split"] == "val"
    logit, fake = table["logit"][val], table.fake[val]
    weight = np.where(fake, 1 / fake.sum(), 1 / (~fake).sum())
    loss = lambda t: weight @ np.logaddexp(0, np.where(fake, -1, 1) * logit / t)  # noqa: E731
    t = minimize_scalar(loss, bounds=(0.1, 100), method="bounded", options={"xatol": 1e-9}).x
    p, eces = 1 / (1 + np.exp(-table["logit"] / t)), []
    for view in VIEWS:
        for name in "abc":
            rows = ~val & (table["view"] == view) & np.isin(table["generator"], ["real", name])
            edges, label = np.linspace(0, 1, 16), table.fake[rows]
            gaps = sum(
                0.5 * (np.histogram(p[rows][of], edges, weights=(p[rows] - label)[of])[0] / of.sum())
                for of in (label, ~label)
            )
            eces.append(np.abs(gaps).sum())
    assert own[1] == pytest.approx(np.mean(eces), abs=1e-6)
    number = found["times 9", "ece_temperature"]
    assert np.isnan(number.low) and number.mark == ""  # sought where it is measured: no interval
    titles = leaderboard.headline(beside.numbers(tables, [])).titles
    assert titles[titles.index("ECE, equal terms") + 1] == "ECE"


def with_logit(table: Scores, factor: float) -> Scores:
    return Scores(
        {name: v for name, v in table.columns.items() if name != "p_fake"} | {"logit": factor * table["logit"]}
    )


def test_intervals_of_means_over_views_and_of_the_worst(built) -> None:
    """Against resamples weighed one by one with sklearn."""
    tables = built[0]
    test = [t.select(t["split"] == "test") for t in tables["twin", "x"]]
    counts, column = leave_out(test[0]["set"], test[0]["group"], 200, 0)
    values = []
    for weight in counts:
        each = {}
        for name in "bc":
            aucs = []
            for t in test:
                for view in VIEWS:
                    rows = (t["view"] == view) & np.isin(t["generator"], ["real", name])
                    aucs.append(roc_auc_score(t.fake[rows], t["logit"][rows], sample_weight=weight[column][rows]))
            each[name] = np.mean(aucs)
        values.append((np.mean(list(each.values())), min(each.values())))
    beside = SideBySide(200)
    beside.add({("twin", "x"): tables["twin", "x"]}, {})
    found = {n.place: n for n in beside.numbers([("twin", "x")], [])}
    for place, of in ((("all", MEAN, "mean:unseen", "auc"), 0), (("all", MEAN, WORST, "auc"), 1)):
        drawn = np.array([value[of] for value in values])
        number = found[place]
        assert number.value == pytest.approx(drawn[0], abs=1e-12) and number.low < number.value < number.high
        if of == 0:  # of the mean: over groups, and over the seeds
            count = beside.drawn["twin", "x"][place].groups
            low, high = share_interval(drawn, count, seeds=beside.drawn["twin", "x"][place].values[:, 0])
            assert (number.low, number.high) == pytest.approx((low, high), abs=1e-12)


def test_a_row_that_one_detector_cannot_read_is_left_out_of_all() -> None:
    good, bad = scores(1.0, 1), scores(1.0, 2)
    lost = (bad["split"] == "test") & (bad["generator"] == "real") & (bad["view"] == "none")
    lost &= np.isin(bad["group"], ["test-0", "test-1"])
    blank = {name: np.where(lost, np.nan, bad[name]) for name in ("logit", "p_fake")}
    bad = Scores(bad.columns | blank | {"status": np.where(lost, "unreadable: broken", "ok")})
    beside = SideBySide(5)
    beside.add({("good", ""): [good], ("bad", ""): [bad]}, {})
    number = next(n for n in beside.numbers([("good", "")], []) if n.place == ("s", "none", "a", "auc"))
    rows = (good["split"] == "test") & (good["view"] == "none") & np.isin(good["generator"], ["real", "a"]) & ~lost
    assert number.n_real == 38
    assert number.value == pytest.approx(roc_auc_score(good.fake[rows], good["logit"][rows]), abs=1e-12)
    other = Scores({name: values[8:] for name, values in good.columns.items() if name != "x"})
    with pytest.raises(Refusal, match="the two tables differ"):
        SideBySide(5).add({("good", ""): [good], ("cut", ""): [other.select(other["group"] != "test-3")]}, {})


def metadata_scores(table: Scores, shift: float, seed: int) -> Scores:
    """A control for the first view alone: noise of its own, fakes `shift` higher."""
    first = table.select(table["view"] == VIEWS[0])
    logit = np.random.default_rng(seed).normal(size=len(first)) + shift * first.fake
    return Scores(first.columns | {"logit": logit, "p_fake": 1 / (1 + np.exp(-logit))})


def test_a_method_that_is_not_told_from_metadata_carries_a_sign() -> None:
    tables = {
        ("strong", "x"): [scores(3.0, 1, unseen=3.0), scores(3.0, 2, unseen=3.0)],
        ("mixed", "x"): [scores(3.0, 3, unseen=1.0), scores(3.0, 4, unseen=1.0)],
        ("single", "x"): [scores(3.0, 5, unseen=0.0)],
    }
    beside = SideBySide(200)
    beside.add(tables, {METADATA: [metadata_scores(scores(0.0, 6), 1.0, 8)]})
    numbers = beside.numbers(tables, [column.place for column in leaderboard.columns(VIEWS) if column.marked])
    found = {(n.method, n.generator): n for n in numbers if n.metric == "auc_above_metadata"}
    assert {key for key, n in found.items() if n.mark == "above"} == {
        *(("strong", "mean:seen"), ("strong", "mean:unseen"), ("mixed", "mean:seen"), ("single", "mean:seen"))
    }  # one seed suffices here: the question is not whether another seed would do better
    assert {n.view for n in found.values()} == {"none"}  # metadata have no other
    # against compare_means on the same rows, each seed with the same control
    control = metadata_scores(scores(0.0, 6), 1.0, 8)
    pairs = [(t.select(t["view"] == "none"), control) for t in tables["mixed", "x"]]
    of = next(d for d in compare_means(pairs, 200) if (d.set, d.generator, d.metric) == ("all", "mean:unseen", "auc"))
    mixed = found["mixed", "mean:unseen"]
    assert (mixed.value, mixed.low, mixed.high) == pytest.approx((of.value, of.low, of.high), abs=1e-12)
    assert mixed.low < 0 < mixed.high

    head = leaderboard.headline(numbers)
    signed = {(row[0].value, head.titles[i]) for row in head.rows for i, entry in enumerate(row) if "‡" in entry.text}
    assert signed == {("mixed", "AUC, unseen, mean"), ("single", "AUC, unseen, mean")}
    at = {n.place: n.value for n in numbers if n.method == "metadata only"}
    reached = f"view none: {at['all', 'none', 'mean:seen', 'auc']:.3f} on seen ones, "
    reached += f"{at['all', 'none', 'mean:unseen', 'auc']:.3f} on unseen ones;"
    assert "‡: on these generators this method is not surely above metadata" in head.about
    assert reached in head.about.replace("\n", " ")
    latex = table(head, "tab:m")
    assert latex.count(r"$^{\ddagger}$") == 3 and r"$^{\ddagger}$: not surely above what metadata" in latex
    cells = [cell.text for row in ablation_html.html_table(head).rows for cell in row]
    assert sum("‡" in text for text in cells) == 2
    good = [n for n in numbers if n.method not in ("mixed", "single")]
    assert "‡" not in leaderboard.headline(good).markdown() + leaderboard.headline(good).about


def test_methods_no_better_than_metadata_are_hardly_ever_called_better() -> None:
    """Six methods of metadata's own AUC, in 20 worlds: in at most three is one of them said to be above."""
    wrong = 0
    for world in range(20):
        noise = np.random.default_rng(world)
        base = scores(0.0, world, n=20)
        base = base.select((base["view"] == "none") | (base["split"] == "val"))
        tables = {(f"m{k}", "x"): [metadata_scores(base, 0.5, int(noise.integers(1e9)))] for k in range(6)}
        beside = SideBySide(20)
        beside.add(tables, {METADATA: [metadata_scores(base, 0.5, int(noise.integers(1e9)))]})
        numbers = beside.numbers(tables, [])
        wrong += any(n.mark == "above" for n in numbers if n.metric == "auc_above_metadata")
    assert wrong <= 3


def test_rows_of_permutations_are_means_over_seeds_and_carry_p(tmp_path) -> None:
    tables = {("strong", "x"): [scores(2.0, 1), scores(2.0, 2)]}
    runs = [
        [r for k in range(12) for r in reached(scores(2.0 if k == 0 else 0.0, 10 * seed + k), k)] for seed in range(2)
    ]
    beside = SideBySide(30)
    beside.add(tables, {METADATA: [metadata_scores(scores(0.0, 6), 0.0, 8)]})
    beside.add_permutations(("labels-permuted", "x"), runs)
    numbers = beside.numbers(tables, [])
    found = {n.place: n for n in numbers if n.method == "labels-permuted"}
    place = ("all", "qf65", "mean:unseen", "auc")
    each = [
        np.mean([r.value for run in runs for r in run if (r.set, r.view, r.generator, r.metric) == place
                 and r.permutation == k]) for k in range(12)
    ]  # fmt: skip
    own = found[place]
    assert (own.value, own.seed_low, own.seed_high) == pytest.approx((np.mean(each[1:]), min(each[1:]), max(each[1:])))
    assert own.seeds == 11 and own.role == "control" and own.low < own.value < own.high
    assert found[*place[:3], "auc_true_labels"].value == pytest.approx(each[0])
    assert found[*place[:3], "permutation_p"].value == pytest.approx(1 / 12)
    lines = [[entry.text for entry in row] for row in leaderboard.controls(numbers).rows]
    line = next(row for row in lines if row[0] == "labels-permuted" and "unseen" in row[1] and row[2] == "qf65")
    assert line[1] == f"AUC, unseen generators; true labels {each[0]:.3f}"
    assert line[4] == "cannot tell, p 0.083 of 11 permutations"
    beside.add_permutations(("labels-permuted", "x"), [[r for r in run if r.permutation < 2] for run in runs])
    lines = [[entry.text for entry in row] for row in leaderboard.controls(beside.numbers(tables, [])).rows]
    assert {row[4] for row in lines if row[0] == "labels-permuted"} == {"one permutation: no test"}
    assert [row[0].value for row in leaderboard.headline(numbers).rows][-2:] == ["labels-permuted", "metadata only"]
    write_numbers(tmp_path / "n.csv", numbers)
    assert (
        leaderboard.controls(read_numbers(tmp_path / "n.csv")).markdown() == leaderboard.controls(numbers).markdown()
    )


def test_ranks() -> None:
    rng = np.random.default_rng(0)
    up = 0.9 + 0.001 * rng.normal(size=(3, 61)) + 0.02 * rng.normal(size=61)  # groups move all seeds alike
    auc, ece = ("all", MEAN, "mean:all", "auc"), ("all", MEAN, "real", "false_alarm")

    def marks(rows: dict[str, np.ndarray], place=auc) -> dict[str, str]:
        drawn = {(name, "x"): Drawn(values, 60, 60, 60) for name, values in rows.items()}
        return {name: mark for (name, _), mark in rank({place: drawn}).get(place, {}).items()}

    assert marks({"a": up, "b": up - 0.2}) == {"a": "best"}
    assert marks({"a": up, "b": up - 0.2}, ece) == {"b": "best"}
    assert marks({"a": up, "b": up.copy(), "c": up - 0.3}) == {"a": "tie", "b": "tie"}
    assert marks({"a": up, "b": np.full((3, 61), np.nan)}) == {} == marks({"a": up})  # nobody to be better than
    assert marks({"a": up, "b": up - 0.05}) == {"a": "best"}  # the groups move both alike: only a paired test sees it
    assert marks({"a": up[:, :1], "b": up[:, :1] - 0.2}) == {
        "a": "tie",
        "b": "tie",
    }  # without resamples
    assert marks({"a": up[:1], "b": up[:1] - 0.2}) == {}  # one seed says nothing about others
    assert marks({"a": up, "b": up - 0.2, "once": up[:1] - 0.3}) == {"a": "best"}
    assert marks({"a": up, "b": up - 0.2, "once": up[:1] + 0.05}) == {}  # and may not be beaten by being left out


# -- LaTeX ----------------------------------------------------------------------------------------------------------

HOSTILE = ("a_b & 50% #1", r"\input{x}$y^2$~", "[3]*<b>|c|{d}", "two\nlines\x1b", "±† é")


def columns_of(line: str) -> int:
    """How many columns a line of a tabular fills."""
    body = re.sub(r"\\[&%$#_{}]", "", line)
    return sum(int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", body)) + sum(
        1 for part in body.split("&") if "\\multicolumn" not in part
    )


@pytest.mark.parametrize("word", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_text_in_latex(word) -> None:
    shown = escape(word)
    commands = r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}|\\[&%$#_{}]"
    rest = re.sub(commands + r"|\{[\[\]*]\}|\$\^\{\\dagger\}\$|\$\\pm\$", "", shown)
    assert not re.search(r"[\\&%$#_{}~^<>|\n\x1b*\[\]]", rest)
    assert shown.count(r"\&") == word.count("&") and shown.count(r"\%") == word.count("%")


def test_a_latex_table_has_as_many_columns_everywhere() -> None:
    header = [("", "method"), ("", "seeds"), ("AUC_%", HOSTILE[0]), ("AUC_%", "qf40"), ("", "ECE")]
    values = [Entry("0.9", 0.9, ("0.8", "1.0"), "0.01", "best"), Entry("n/a", 0), Entry("1", 1, mark="tie")]
    rows = [[Entry(word, word), Entry("3", 3), *values] for word in HOSTILE]
    text = table(Table("T_1 & more", header, rows, lines=[3]), "tab:t")
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 2 + len(rows) and {columns_of(line) for line in lines} == {5}
    assert r"\begin{tabular}{lrrrr}" in text and r"\cmidrule(lr){3-4}" in text and text.count(r"\midrule") == 2
    assert r"$\mathbf{0.9}_{0.8}^{1.0}$" in text and r"& 1 $^{\dagger}$ \\" in text
    assert r"\caption{T\_1 \& more. Subscript" in text and text.count("{") == text.count("}")
    for command in ("toprule", "bottomrule", "end{tabular}", "end{table*}"):
        assert text.count("\\" + command) == 1


def test_what_is_too_wide_or_long_comes_in_parts() -> None:
    header = [("", "method"), ("", "seeds"), *((f"group{i // 7}", f"c{i}") for i in range(25))]
    rows = [[Entry(f"m{r}", f"m{r}"), Entry("3", 3), *(Entry(f"v{r}.{c}", 0) for c in range(25))] for r in range(85)]
    text = table(Table("T", header, rows, "", list(range(5, 85, 5))), "tab:t")
    parts = re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", text, flags=re.DOTALL)
    sizes = [[line.count("&") + 1 for line in part.splitlines() if line.startswith("m")][1:] for part in parts]
    assert len(parts) == 8 and all(max(lines) <= 10 and len(lines) <= 50 for lines in sizes)
    shown = re.findall(r"v\d+\.\d+(?= )", text)
    assert len(shown) == len(set(shown)) == 85 * 25  # every entry once
    assert [f"({i} of 8)" in text for i in range(1, 9)] == [True] * 8 and r"\label{tab:t-8}" in text
    starts = [re.search(r"^m(\d+) ", part, flags=re.MULTILINE)[1] for part in parts]
    assert starts == ["0", "50"] * 4 and text.count(r"\midrule") == 4 * (1 + 9 + 1 + 6)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex: apt-get install texlive-latex-recommended")
def test_latex_takes_it(config, done, tmp_path) -> None:
    header = [("", HOSTILE[0]), ("g_1", HOSTILE[1]), ("g_1", HOSTILE[2])]
    hostile = table(Table(HOSTILE[0], header, [[Entry(w, w), Entry(w, 0), Entry(w, 1)] for w in HOSTILE]), "tab:h")
    given = (config.output_dir / "ablation.tex").read_text(encoding="utf-8")
    lines = [r"\documentclass{article}", r"\usepackage[T1]{fontenc}", r"\usepackage{booktabs,graphicx}"]
    lines += [r"\begin{document}", given, hostile, r"\end{document}"]
    (tmp_path / "page.tex").write_text("\n".join(lines), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, errors="replace")
    assert said.returncode == 0, said.stdout[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 10_000
    assert not re.search(r"Overfull|Float too large|undefined|Missing character", said.stdout)


# -- plan -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def default(monkeypatch) -> None:
    for name, value in DEFAULT.items():
        monkeypatch.setattr(recipe, name, value)


def test_what_a_backbone_cannot_do_is_no_failure(default, tmp_path, capsys) -> None:
    methods = [Method("zero-shot", "tip_adapter", {}, texts=True), Method("probe", "linear_probe", {})]
    assert not_applicable(methods, "tiny") == {} == not_applicable(methods[1:], "timm:resnet10t@random")
    assert "no text tower" in not_applicable(methods, "timm:resnet10t@random")["zero-shot"]
    cfg = recipe.Config(backbone="timm:resnet10t@random", output_dir=tmp_path / "x", dry_run=True)
    recipe.main(cfg)
    said = capsys.readouterr().out
    assert said.startswith("zero-shot: not applicable: backbone timm:resnet10t@random has no text tower")
    assert "\nrine: not applicable: --head rine: blocks of timm:resnet10t@random have 4 widths" in said
    assert "\nrine-" not in said and "\nattention-pooling-none_qf90_qf65_qf40-seed2" in said
    assert "\nzero-shot-seed0" not in said and "lora-none_qf90_qf65_qf40-seed2" in said
    assert not (tmp_path / "x").exists()


def test_the_default_plan(default, tmp_path, capsys) -> None:
    recipe.main(recipe.Config(output_dir=tmp_path / "x", dry_run=True, train_on=("none", "none,qf40")))
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[:-1]]
    assert len(names) == len(set(names)) and names.count("zero-shot-seed0") == 1
    for method in (
        "probe-svm-family",
        "colour",
        "fusion",
        "tip-adapter-f",
        "pair-head",
        "lora",
        "lora-pair",
        "norm",
        *SOURCES,
    ):
        assert {f"{method}-{views}-seed{s}" for views in ("none", "none_qf40") for s in range(3)} <= set(names), method
    assert "about" in lines[-1] and "unknown" not in lines[-1]
    lora = next(line for line in lines if line.startswith("lora-pair-none-seed1"))
    assert (
        "recipes/pair.py" in lora and "--seeds 1" in lora and "--tune lora" in lora and "--train_views none " in lora
    )
    for wrong in ({"seeds": (1, 1)}, {"train_on": ()}):
        with pytest.raises(Refusal, match="give one or more, each once"):
            recipe.Config(**wrong)
    with pytest.raises(Refusal, match="--only zero: no such run"):
        recipe.main(recipe.Config(output_dir=tmp_path / "x", dry_run=True, only=("zero",)))


def test_a_page_says_where_the_heads_of_others_come_from(numbers) -> None:
    """Under the first table, and only of methods that are in it."""
    renamed = [dataclasses.replace(n, method="rine") if n.method == "logistic" else n for n in numbers]
    assert "Sources. rine: the class tokens of all blocks" in (about := Page(renamed, "").tables()[0].about)
    assert about.count("arXiv:") == 1 and "Sources" not in Page(numbers, "").tables()[0].about
    assert set(SOURCES) <= {name for name, *_ in DEFAULT["METHODS"]}

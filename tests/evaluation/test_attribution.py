"""Attribution to classes: against sklearn, scipy and resamples that are really built; page, files and figures."""

import csv
import dataclasses
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import logsumexp, softmax
from sklearn.metrics import confusion_matrix, f1_score, recall_score, roc_auc_score

from adapt.commands import evaluate as recipe
from adapt.errors import Refusal
from adapt.evaluation.attribution import attribute
from adapt.evaluation.decision import fit_decision
from adapt.evaluation.jackknife import leave_out, share_interval
from adapt.evaluation.metrics import evaluate
from adapt.evaluation.open_set import OPEN_SET, classes_of
from adapt.evaluation.scores import Scores
from adapt.pages import drawing, figures
from adapt.pages.read_back import read_run
from adapt.pages.tables import markdown, write_tables

CLASSES = ("real", "gan", "diffusion")
MADE = {"real": ("real",), "gan": ("gan-a", "gan-b"), "diffusion": ("sd",), "flow": ("flux",), "video": ("clip",)}


def simulate(
    classes=CLASSES,
    absent=("flow", "video"),
    views=("none", "qf40"),
    n=12,
    edits=("blur", "webp"),
    broken=2,
    by="family",
    untested=(),
    seed=0,
) -> Scores:
    """`n` groups a split with one image of each generator; logits are noise, raised at a trained image's class."""
    rng, rows = np.random.default_rng(seed), []
    for view in views:
        for split in ("val", "test"):
            for family in (*classes, *absent):
                for generator in MADE.get(family, (f"{family}-x",)):
                    for edit in ("", *edits) if family == "real" else ("",):
                        for i in range(0 if split == "test" and family in untested else n):
                            x = rng.normal(size=len(classes))
                            x[classes.index(family) if family in classes else rng.integers(len(classes))] += 1.5
                            path, group = f"{generator}{edit}/{split}{i}", f"{split}{i}"
                            rows.append((path, group, generator, family, split, "s", edit, view, x))
    names = ("path", "group", "generator", "family", "split", "set", "edit", "view")
    columns = {name: np.array([row[i] for row in rows], dtype=object) for i, name in enumerate(names)}
    logits = np.array([row[-1] for row in rows])
    status = np.full(len(rows), "ok", dtype=object)
    lost = rng.permutation(np.flatnonzero(columns["split"] == "test"))[:broken]
    logits[lost], status[lost] = np.nan, "unreadable: truncated"
    if by == "generator":
        columns["family"][:] = ""
        columns["generator"] = np.array([row[3] for row in rows], dtype=object)
    columns |= {f"logit_{name}": logits[:, i] for i, name in enumerate(classes)}
    return Scores(columns | {"logit": logsumexp(logits[:, 1:], axis=1) - logits[:, 0], "status": status})


def rates(found) -> dict:
    at = {(rate.view, rate.label, rate.metric): rate for rate in found.rates}
    assert len(at) == len(found.rates)
    return at


def rows_of(scores: Scores, view: str) -> tuple[Scores, np.ndarray]:
    """The readable unedited test rows of a view and their class logits."""
    rows = (scores["split"] == "test") & scores.ok & (scores["edit"] == "") & (scores["view"] == view)
    part = scores.select(rows)
    return part, np.stack([part[f"logit_{name}"] for name in classes_of(scores)], axis=1)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scores() -> Scores:
    return simulate()


@pytest.fixture(scope="module")
def found(scores):
    return attribute(scores, 60)


# -- one logit from many --


# -- numbers --


@pytest.mark.parametrize("view", ["none", "qf40"])
def test_confusion_equals_sklearn_with_absent_classes_below(scores, found, view):
    part, logits = rows_of(scores, view)
    called = np.array(CLASSES)[logits.argmax(axis=1)]
    names = [*CLASSES, "flow", "video"]
    expected = confusion_matrix(part["family"].astype(str), called, labels=names)
    assert not expected[:, 3:].any()
    cells = {(c.true, c.predicted): c for c in found.counts if c.view == view}
    for i, name in enumerate(names):
        label = name if name in CLASSES else f"absent: {name}"
        row = [cells[label, predicted] for predicted in CLASSES]
        assert [cell.count for cell in row] == expected[i, :3].tolist()
        assert [cell.share for cell in row] == pytest.approx(expected[i, :3] / expected[i].sum())
    assert {true for true, _ in cells} == {
        *CLASSES,
        "absent: flow",
        "absent: video",
        "edit:blur",
        "edit:webp",
        "edit:all",
    }


@pytest.mark.parametrize("view", ["none", "qf40"])
def test_recall_and_means_equal_sklearn_on_rows_of_trained_classes(scores, found, view):
    part, logits = rows_of(scores, view)
    known = np.isin(part["family"], CLASSES)
    true, called = part["family"][known].astype(str), np.array(CLASSES)[logits.argmax(axis=1)][known]
    at = rates(found)
    recall = recall_score(true, called, labels=CLASSES, average=None)
    assert [at[view, name, "recall"].value for name in CLASSES] == pytest.approx(recall)
    assert [at[view, name, "recall"].n for name in CLASSES] == [(true == name).sum() for name in CLASSES]
    for name, metric in (("macro_recall", recall_score), ("macro_f1", f1_score)):
        assert at[view, "all", name].value == pytest.approx(metric(true, called, average="macro"))
        assert at[view, "all", name].n == known.sum()


def sizes(logits: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "max_logit": logits.max(axis=1),
        "energy": logsumexp(logits, axis=1),
        "max_softmax": softmax(logits, axis=1).max(axis=1),
    }


@pytest.mark.parametrize("view", ["none", "qf40"])
def test_open_set_equals_sklearn(scores, found, view):
    part, logits = rows_of(scores, view)
    known = np.isin(part["family"][part.fake], CLASSES)
    for name, size in sizes(logits[part.fake]).items():
        rate = rates(found)[view, "all", f"auroc_{name}"]
        assert rate.value == pytest.approx(roc_auc_score(known, size))
        assert rate.n == part.fake.sum()
    assert set(OPEN_SET) == set(sizes(logits))


def test_max_softmax_has_no_ties_where_it_rounds_to_one():
    columns = {"path": list("abcd"), "generator": ["gan", "gan", "flux", "flux"], "logit": [0.0] * 4}
    logits = np.array([[0, 90], [0, 80], [0, 60], [50, 0]])
    assert len(set(softmax(logits, axis=1).max(axis=1))) == 1
    columns |= {"logit_real": logits[:, 0], "logit_gan": logits[:, 1]}
    assert rates(attribute(Scores(columns), 0))["none", "all", "auroc_max_softmax"].value == 1


def test_resamples_equal_those_really_built():
    """Groups of unlike size, one of which alone holds a class: the resample without it lacks the class."""
    scores = simulate(n=14, broken=6, views=("none",), seed=3)
    alone = (scores["family"] == "diffusion") & (scores["split"] == "test") & (scores["group"] != "test1")
    scores = scores.select(~alone)
    found, resamples = rates(attribute(scores, 40, seed=9)), 40
    test = scores.select(scores["split"] == "test")
    counts, group = leave_out(test["set"], test["group"], resamples, 9)
    logits = np.stack([test[f"logit_{name}"] for name in CLASSES], axis=1)
    built: dict[str, list[float]] = {}
    for drawn in counts[1:]:
        rows = np.repeat(np.arange(len(test)), drawn[group])
        rows = rows[test.ok[rows]]
        called = np.array(CLASSES)[logits[rows].argmax(axis=1)]
        true, fake, edit = test["family"][rows].astype(str), test.fake[rows], test["edit"][rows]
        kept = np.isin(true, CLASSES) & (edit == "")
        held = sorted(set(true[kept]))
        for name in CLASSES:
            hits = called[kept & (true == name)] == name
            built.setdefault(f"recall {name}", []).append(hits.mean() if len(hits) else np.nan)
            built.setdefault(f"processed_reals {name}", []).append((called[edit != ""] == name).mean())
        macro = {"labels": held, "average": "macro", "zero_division": 0}
        built.setdefault("macro_recall all", []).append(recall_score(true[kept], called[kept], **macro))
        built.setdefault("macro_f1 all", []).append(f1_score(true[kept], called[kept], **macro))
        for name, size in sizes(logits[rows][fake]).items():
            built.setdefault(f"auroc_{name} all", []).append(roc_auc_score(kept[fake], size))
    assert np.isnan(built["recall diffusion"]).sum() == 1
    own, family = test.ok, test["family"]

    def held_by(rows: np.ndarray) -> int:
        return len(set(test["group"][own & rows]))

    known = np.isin(family, CLASSES) & (test["edit"] == "")
    groups = {
        "macro_recall": held_by(known),
        "macro_f1": held_by(known),
        "processed_reals": held_by(test["edit"] != ""),
    }
    assert len(built) == len(found)
    for key, values in built.items():
        metric, label = key.split(" ")
        rate = found["none", label, metric]
        if metric == "recall":
            count = held_by(known & (family == label))
        elif metric.startswith("auroc"):
            count = min(held_by(test.fake & known), held_by(test.fake & ~known))
        else:
            count = groups[metric]
        expected = share_interval(np.array([rate.value, *values]), count)
        assert [rate.low, rate.high] == pytest.approx(expected, nan_ok=True), key
        assert rate.skipped == np.isnan(values).sum()


def test_unknown_families_at_the_cut_of_validation():
    """Shares and intervals by counting, with a cut that is fitted on validation rows alone."""
    scores = simulate(n=24, views=("none",), seed=5)
    decision = fit_decision(scores)
    found, resamples = rates(attribute(scores, 30, 2, decision=decision)), 30
    test = scores.select(scores["split"] == "test")
    counts, group = leave_out(test["set"], test["group"], resamples, 2)
    logits = np.stack([test[f"logit_{name}"] for name in CLASSES], axis=1)
    low = sizes(logits)[decision.familiarity]
    cut = decision.rules(0.0).at(None).known
    low = (np.log(low) if decision.familiarity == "max_softmax" else low) < cut
    assert 0 < low[test.ok & test.fake].mean() < 0.5
    for name, trained in (("unknown_trained", True), ("unknown_absent", False)):
        kept = test.ok & test.fake & (np.isin(test["family"], CLASSES) == trained)
        shares = [low[rows[kept[rows]]].mean() for rows in (np.repeat(np.arange(len(test)), c[group]) for c in counts)]
        rate = found["none", "all", name]
        expected = share_interval(np.array(shares), len(set(test["group"][kept])))
        assert [rate.value, rate.low, rate.high] == pytest.approx([shares[0], *expected])
        assert rate.n == kept.sum()
    page = markdown(evaluate(scores, 0), attribution=attribute(scores, 0, decision=decision))
    assert "| fakes of absent classes called unknown | 0." in page
    assert "called unknown" not in markdown(evaluate(scores, 0), attribution=attribute(scores, 0))


def test_processed_reals_are_counted_apart(scores, found):
    part = scores.select((scores["split"] == "test") & (scores["view"] == "none") & scores.ok & (scores["edit"] != ""))
    called = np.array(CLASSES)[np.stack([part[f"logit_{name}"] for name in CLASSES], axis=1).argmax(axis=1)]
    cells = {(c.true, c.predicted): c.count for c in found.counts if c.view == "none"}
    for name in CLASSES:
        rate = rates(found)["none", name, "processed_reals"]
        assert rate.value == pytest.approx((called == name).mean()) and rate.n == len(part)
        assert cells["edit:all", name] == (called == name).sum()
        assert cells["edit:blur", name] == (called == name)[part["edit"] == "blur"].sum()
    plain = attribute(scores.select(scores["edit"] == ""), 0)
    kept = [rate for rate in attribute(scores, 0).rates if rate.metric != "processed_reals"]
    assert repr(list(plain.rates)) == repr(kept)  # nothing else counts them


def test_order_of_rows_and_columns_and_other_views_change_nothing(scores, found):
    order = np.random.default_rng(1).permutation(len(scores))
    mixed = Scores(dict(reversed(scores.select(order).columns.items())))
    again = attribute(mixed, 60)
    assert classes_of(mixed) == ("real", "diffusion", "gan")
    assert_same(again.rates, found.rates)
    assert sorted(again.counts, key=repr) == sorted(found.counts, key=repr)
    alone = attribute(scores.select(scores["view"] == "qf40"), 60)
    assert_same(alone.rates, [rate for rate in found.rates if rate.view == "qf40"])


def assert_same(some, others) -> None:
    """In whatever order; other orders of classes sum in another order."""
    at, again = ({(r.view, r.label, r.metric): r for r in rates_} for rates_ in (some, others))
    assert at.keys() == again.keys() and len(at) == len(some)
    for key, rate in at.items():
        numbers = ([r.value, r.low, r.high, r.n, r.skipped] for r in (rate, again[key]))
        np.testing.assert_allclose(*numbers, rtol=1e-12)


def test_a_constant_added_to_a_row_moves_only_what_is_not_softmax(scores, found):
    shift = np.random.default_rng(2).normal(size=len(scores)) * 9
    moved = attribute(Scores(scores.columns | {f"logit_{n}": scores[f"logit_{n}"] + shift for n in CLASSES}), 60)
    assert moved.counts == found.counts
    changed = {a.metric for a, b in zip(moved.rates, found.rates, strict=True) if a.value != pytest.approx(b.value)}
    assert changed == {"auroc_max_logit", "auroc_energy"}


def test_absent_and_untested_classes_are_named():
    found = attribute(simulate(untested=("gan",)), 5)
    assert (found.absent, found.untested) == (("flow", "video"), ("gan",))
    rate = rates(found)["none", "gan", "recall"]
    assert rate.n == 0 and np.isnan([rate.value, rate.low, rate.high]).all()
    assert not np.isnan(rates(found)["none", "all", "macro_f1"].value)
    assert attribute(simulate(absent=()), 5).absent == ()
    page = markdown(evaluate(simulate(untested=("gan",)), 5), attribution=found)
    assert "Absent in training: flow, video. Trained, but without a test image: gan." in page


# -- what the classes are --


def test_classes_may_be_generators(found):
    again = attribute(simulate(by="generator"), 60)
    assert again.column == "generator" and found.column == "family"
    assert set(again.absent) == {"flow", "video"}


def test_names_that_could_be_either_are_refused_until_it_is_said():
    scores = simulate()
    columns = scores.columns | {"generator": np.where(scores["family"] == "gan", "gan", scores["generator"])}
    columns["generator"][scores["family"] == "diffusion"] = "diffusion"
    columns["path"] = np.array([f"{i}" for i in range(len(scores))], dtype=object)
    twins = Scores(columns)
    with pytest.raises(Refusal, match=r"gan, diffusion .* as well families as generators .*--classes family"):
        attribute(twins, 0)
    assert attribute(twins, 0, column="family").absent == ("flow", "video")
    assert attribute(twins, 0, column="generator").absent == ("clip", "flux")
    same = Scores(twins.columns | {"family": twins["generator"]})  # it makes no difference: not refused
    assert attribute(same, 0).column == "family"


def test_names_of_neither_are_refused_until_it_is_said():
    columns = {"path": ["a"], "generator": ["x"], "logit": [0.0], "logit_real": [0.0], "logit_gan": [1.0]}
    with pytest.raises(Refusal, match=r"gan .* neither all families nor all generators"):
        attribute(Scores(columns), 0)
    assert attribute(Scores(columns), 0, column="generator").absent == ("x",)
    mixed = {"path": ["a", "b"], "generator": ["gan", "sd"], "family": ["g", "diffusion"], "logit": [0.0, 0.0]}
    mixed |= {f"logit_{name}": [0.0, 0.0] for name in CLASSES}
    with pytest.raises(Refusal, match=r"gan, diffusion .* neither"):
        attribute(Scores(mixed), 0)


def test_refusals(scores):
    def change(**columns):
        return Scores({name: value for name, value in (scores.columns | columns).items() if value is not None})

    with pytest.raises(Refusal, match="class logits of gan, diffusion: give logit_real"):
        attribute(change(logit_real=None), 0)
    with pytest.raises(Refusal, match="class logits of real: "):
        attribute(change(logit_gan=None, logit_diffusion=None), 0)
    with pytest.raises(Refusal, match="class logits of no class"):
        attribute(change(logit_real=None, logit_gan=None, logit_diffusion=None), 0)
    with pytest.raises(Refusal, match="no row with split 'test'"):
        attribute(scores.select(scores["split"] == "val"), 0)
    family = scores["family"].copy()
    family[scores["generator"] == "flux"] = ""
    with pytest.raises(Refusal, match="'flux' have the family ''"):
        attribute(change(family=family), 0)
    family[scores["generator"] == "flux"] = "edit:flux"
    with pytest.raises(Refusal, match="'edit:flux'"):
        attribute(change(family=family), 0)
    logit = scores["logit_gan"].copy()
    logit[np.flatnonzero(scores.ok & (scores["split"] == "test"))[:3]] = np.nan
    with pytest.raises(Refusal, match="3 readable test rows lack"):
        attribute(change(logit_gan=logit), 0)


# -- page, files, figures --


def test_page_and_files_say_the_same(tmp_path, scores, found):
    write_tables(evaluate(scores, 5), tmp_path, attribution=found)
    rows = read_csv(tmp_path / "attribution.csv")
    assert list(rows[0]) == ["view", "class", "metric", "value", "low", "high", "n"]
    for row, rate in zip(rows, found.rates, strict=True):
        assert [row["view"], row["class"], row["metric"]] == [rate.view, rate.label, rate.metric]
        assert [float(row[name]) for name in ("value", "low", "high")] == [rate.value, rate.low, rate.high]
        assert int(row["n"]) == rate.n
    cells = read_csv(tmp_path / "confusion.csv")
    assert list(cells[0]) == ["view", "true", "predicted", "count", "share"]
    assert [(r["true"], int(r["count"]), float(r["share"])) for r in cells] == [
        (c.true, c.count, c.share) for c in found.counts
    ]
    again = read_run(tmp_path, [], found.column).attribution
    assert again == dataclasses.replace(found, rates=tuple(dataclasses.replace(r, skipped=0) for r in found.rates))
    page = (tmp_path / "table.md").read_text(encoding="utf-8").split("## Attribution")[1].split("\n## ")[0]
    at = {(r["view"], r["class"], r["metric"]): r for r in rows}
    names = {"macro F1": ("all", "macro_f1"), "open set, energy": ("all", "auroc_energy"), "gan": ("gan", "recall")}
    for name, key in names.items():
        numbers = ([float(at[view, *key][x]) for x in ("value", "low", "high")] for view in ("none", "qf40"))
        shown = " | ".join("{:.3f} [{:.3f}, {:.3f}]".format(*three) for three in numbers)
        assert f"| {name} | {shown} |" in page
    share = {(r["view"], r["true"], r["predicted"]): float(r["share"]) for r in cells}
    for label, name in (("absent: flow", "absent: flow"), ("edit:all", "processed reals, all")):
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        first = re.findall(r"(\w+) (0\.\d\d)", line.split("|")[2])
        assert [pair[0] for pair in first] == sorted(CLASSES, key=lambda c: -share["none", label, c])
        assert [pair[1] for pair in first] == [f"{share['none', label, pair[0]]:.2f}" for pair in first]


def test_a_table_without_class_logits_has_no_section(tmp_path, scores):
    binary = Scores({name: v for name, v in scores.columns.items() if not name.startswith("logit_")})
    binary.write(tmp_path / "scores.csv")
    recipe.main(recipe.Config((tmp_path / "scores.csv",), resamples=5))
    assert "Attribution" not in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert not (tmp_path / "attribution.csv").exists()


def test_recipe_twice_writes_the_same_bytes(tmp_path, scores, found):
    scores.write(tmp_path / "scores.parquet")
    for folder in ("a", "b"):
        recipe.main(recipe.Config((tmp_path / "scores.parquet",), output_dir=tmp_path / folder, resamples=60))
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / x).rglob("*.*")} for x in "ab")
    assert one == two
    assert {"attribution.csv", "confusion.csv", "confusion_none.png", "confusion_qf40.png"} < set(one)
    rows = read_csv(tmp_path / "a" / "attribution.csv")
    assert [float(row["low"]) for row in rows] == [rate.low for rate in found.rates]


@pytest.mark.parametrize("content", [b'{"command": ', b"\xff\xfe", b'["a"]', b""])
def test_recipe_refuses_a_damaged_record_before_writing(tmp_path, scores, content):
    scores.write(tmp_path / "scores.csv")
    (tmp_path / "provenance.json").write_bytes(content)
    with pytest.raises(Refusal, match=r"provenance\.json .*: restore it, or remove it"):
        recipe.main(recipe.Config((tmp_path / "scores.csv",), resamples=5))
    assert {path.name for path in tmp_path.iterdir()} == {"scores.csv", "provenance.json"}


def test_confusion_figure_shows_the_shares_and_sets_absent_classes_apart(found):
    axes = figures.confusion(found, "qf40").axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    counts = [c for c in found.counts if c.view == "qf40" and c.true not in ("edit:blur", "edit:webp")]
    n = {c.true: sum(d.count for d in counts if d.true == c.true) for c in counts}
    assert labels == [f"{'processed reals' if true == 'edit:all' else true} ({n[true]})" for true in n]
    assert [text.get_text() for text in axes.get_xticklabels()] == list(CLASSES)
    assert [text.get_text() for text in axes.texts] == [f"{cell.share:.2f}" for cell in counts]
    assert [line.get_ydata()[0] for line in axes.lines] == [2.5, 4.5]  # after 3 classes and after 2 absent ones


def test_heat_map_prints_numbers_with_their_intervals_and_gaps():
    values = np.array([[0.5, np.nan, 1.0], [0.25, 0.125, 0.9]])
    low, high = values - 0.1, values + 0.05
    axes = drawing.heat_map(values, "ab", "xyz", "t", low, high, limits=(0.5, 1.0)).axes[0]
    placed = {}
    for text in axes.texts:
        placed.setdefault(tuple(round(x) for x in text.get_position()), []).append(text.get_text())
    assert placed[0, 0] == ["0.500", "0.400 to 0.550"] and placed[2, 1] == ["0.900", "0.800 to 0.950"]
    assert placed[1, 0] == ["n/a"]
    image = axes.images[0]
    assert image.get_clim() == (0.5, 1.0) and image.get_array().mask[0, 1]
    luminance = {text.get_position(): text.get_color() for text in axes.texts}
    assert luminance[2, 0] == "white" and luminance[0, 1] == "black"


CASES = {
    "one view": {"views": ("none",)},
    "two classes": {"classes": ("real", "gan"), "absent": ()},
    "forty classes": {"classes": ("real", *(f"c{i}" for i in range(39))), "views": ("none",), "n": 2},
    "no absent": {"absent": ()},
    "no edits": {"edits": ()},
    "all unreadable": {"broken": 10**6},
    "one group": {"n": 1, "broken": 0},
    "nothing known": {"untested": CLASSES},
    "odd names": {
        "classes": ("real", "g|n\n`$x^$ <b>", "画像" * 30),
        "absent": ("[a](http://x) \x1b", "\\frac{ \udcff"),
        "views": ("a/../b c", "a_.._b c", "画"),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_odd_breaks_page_files_or_figures(tmp_path, case):
    scores = simulate(**{"n": 4} | CASES[case])
    with warnings.catch_warnings(action="error"):
        found, cells = attribute(scores, 20), evaluate(scores, 2)
        write_tables(cells, tmp_path, attribution=found)
        views = list(dict.fromkeys(scores["view"]))
        for view in views:
            figures.confusion(found, view).savefig(io.BytesIO())
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert not re.search(r"\bnan\b|<b>|\x1b|(?<!\\)\]\(", page)
    tables = page.split("## Attribution")[1].split("\n## ")[0].split("\n\n")
    for table in (part for part in tables if part.startswith("|")):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert len(read_csv(tmp_path / "attribution.csv")) == len(found.rates)
    for rate in found.rates:
        assert np.isnan(rate.value) or np.isnan(rate.low) or 0 <= rate.low <= rate.value <= rate.high <= 1
        assert np.isnan(rate.value) == (rate.n == 0) or rate.metric.startswith("auroc")
        assert not (rate.metric.startswith("auroc") and not found.absent and not np.isnan(rate.value))


def test_views_of_the_same_file_name_have_a_file_each(tmp_path):
    scores = simulate(views=("a/b", "a b", "../x", "画"), n=2, broken=0)
    found = attribute(scores, 0)
    paths = figures.write_figures(scores, evaluate(scores, 2), tmp_path / "figures", found)
    names = [path.name for path in paths if path.name.startswith("confusion")]
    assert names == ["confusion_a_b.png", "confusion_a_b_.png", "confusion_.._x.png", "confusion__.png"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(path.name for path in paths)
    for path in paths[-4:]:
        with Image.open(path) as image:
            assert image.format == "PNG" and path.stat().st_size < 150_000

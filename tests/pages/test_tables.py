"""The page, the CSV files, the figures, and the recipe that rewrites them from scores."""

import csv
import dataclasses
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.errors import Refusal
from adapt.evaluation.decision import fit_decision
from adapt.evaluation.metrics import compare, controls, evaluate, index
from adapt.evaluation.promises import keep
from adapt.evaluation.replicates import ALL
from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import pick_threshold
from adapt.number_table import read_rows
from adapt.pages import figures
from adapt.pages.read_back import read_run
from adapt.pages.tables import grid, headline, markdown, text, write_tables
from adapt.text import escape_markdown

SHIFT = {"real": 0.0, "gan": 2.0, "flux": 0.7, "sdxl": 1.0}
SEEN = {"real": "train", "gan": "train", "flux": "", "sdxl": "val"}


def simulate(views=("none", "qf40"), n=30, set_="s", names=None, edits=("blur",), broken=3, seed=0) -> Scores:
    """Real, processed real, seen, unseen and selection images of `n` groups; some test rows unreadable."""
    rng, columns = np.random.default_rng(seed), {}
    for view, split in ((v, s) for v in views for s in ("val", "test")):
        kinds = [(generator, "") for generator in SHIFT] + [("real", edit) for edit in edits]
        for (generator, edit), i in ((k, i) for k in kinds for i in range(n)):
            if split == "val" and generator == "flux":
                continue
            row = {
                "path": f"{generator}{edit}/{split}{i}",
                "group": f"{split}{i}",
                "edit": edit,
                "split": split,
            }
            row |= {"generator": (names or {}).get(generator, generator), "set": set_, "view": view}
            row |= {"logit": SHIFT[generator] + 0.5 * bool(edit) + rng.normal(), "seen": SEEN[generator]}
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    columns["status"] = ["ok"] * len(columns["path"])
    for row in [i for i, generator in enumerate(columns["generator"]) if generator != "real"][:broken]:
        columns["logit"][row], columns["status"][row] = np.nan, "unreadable: truncated"
    return Scores(columns)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def section(page: str, title: str) -> list[list[str]]:
    """The rows of the table under a heading, unescaped cells, header first."""
    lines = page.split(f"\n## {title}")[1].split("\n## ")[0].splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if set("".join(row)) - set("- ")]


@pytest.fixture(scope="module")
def scores() -> Scores:
    return simulate()


@pytest.fixture(scope="module")
def cells(scores):
    return evaluate(scores, resamples=40)


def test_numbers_on_the_page_are_the_rounded_numbers_of_the_csv_file(tmp_path, cells):
    write_tables(cells, tmp_path)
    rows = read_csv(tmp_path / "metrics.csv")
    assert list(rows[0]) == [
        "set",
        "view",
        "generator",
        "metric",
        "value",
        "low",
        "high",
        "n_real",
        "n_fake",
        "groups",
    ]
    assert len(rows) == len(cells)
    at = {(r["set"], r["view"], r["generator"], r["metric"]): r for r in rows}

    def shown(*key):
        value, low, high = (at[key][name] for name in ("value", "low", "high"))
        return f"{float(value):.3f}" + ("" if low == "n/a" else f" [{float(low):.3f}, {float(high):.3f}]")

    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    names = (
        ("mean:seen", "auc"),
        ("mean:unseen", "auc"),
        ("worst:all", "auc"),
        ("mean:all", "balanced_accuracy"),
    )
    names += ("real", "false_alarm"), ("edit:all", "false_alarm")
    for view, *found in section(page, "Headline")[1:]:
        assert [cell.removesuffix(" flux") for cell in found] == [shown("all", view, *name) for name in names]
        assert found[2].endswith(" flux")  # the worst: sdxl was met in validation and does not count
    for metric, *found in section(page, "All metrics")[1:]:
        assert found == [shown("all", view, "mean:all", metric) for view in ("none", "qf40")]
    table = section(page, "AUC per generator")
    assert [row[:2] for row in table[1:]] == [
        ["gan", "training"],
        ["flux", "never"],
        ["sdxl", "validation only"],
    ]
    for generator, _, *found, n_real, n_fake, groups in table[1:]:
        assert found == [shown("s", view, generator, "auc") for view in ("none", "qf40")]
        first = at["s", "none", generator, "auc"]
        assert (n_real, n_fake, groups) == (first["n_real"], first["n_fake"], first["groups"])
    for label, name in (("none", "real"), ("blur", "edit:blur"), ("all", "edit:all")):
        row = next(row for row in section(page, "False alarms on processed") if row[0] == label)
        assert row[1:] == [shown("all", view, name, "false_alarm") for view in ("none", "qf40")]


def test_csv_numbers_are_exact_and_nan_is_not_applicable(tmp_path, cells):
    write_tables(cells, tmp_path)
    for row, cell in zip(read_csv(tmp_path / "metrics.csv"), cells, strict=True):
        for name in ("value", "low", "high"):
            value = getattr(cell, name)
            assert row[name] == "n/a" if np.isnan(value) else float(row[name]) == value


def test_unreadable_rows_stand_on_the_page():
    broken = simulate(broken=0)
    rows = np.flatnonzero((broken["split"] == "test") & (broken["view"] == "none"))
    lost = [*rows[broken["generator"][rows] == "gan"][:2], *rows[broken["edit"][rows] == "blur"][:1]]
    logit, status = broken["logit"].copy(), broken["status"].copy()
    logit[lost], status[lost] = np.nan, "unreadable: gone"
    p = np.where(np.isnan(logit), np.nan, broken["p_fake"])
    page = markdown(evaluate(Scores(broken.columns | {"logit": logit, "p_fake": p, "status": status}), 0))
    assert section(page, "Unreadable rows")[1:] == [
        ["s", "none", "gan", "2"],
        ["s", "none", "edit:blur", "1"],
    ]
    assert "## Unreadable rows\n\nNone." in markdown(evaluate(broken, 0))


def test_missing_reals_and_threshold_are_explained_on_the_page(scores):
    test = scores.select((scores["split"] == "test") & scores.fake)
    page = markdown(evaluate(test, resamples=5))
    assert "flux, set s, view qf40: no readable unedited real image here" in page
    assert "no frozen threshold" in page
    assert section(page, "Headline")[1][1:] == ["n/a"] * 6
    assert not re.search(r"\bnan\b", page)


def test_page_carries_controls_comparison_provenance_and_the_embedded_label(scores):
    same = markdown(
        evaluate(scores, 5),
        {"command": "python x.py --a b|c", "hardware": {"cores": 2, "gpus": ["a", "b"]}},
        controls(scores, permuted=scores, resamples=5),
        compare(scores, scores, 5),
    )
    assert "- command: python x.py --a b\\|c\n- hardware:\n  - cores: 2\n  - gpus: a, b\n" in same
    assert section(same, "Controls")[1][:2] == ["labels permuted: mean AUC", "none"]
    row = next(r for r in section(same, "Comparison") if r[:3] == ["none", "mean:all", "auc"])
    assert row[3] == row[4] and re.fullmatch(r"\+0\.000 \[-(0\.0\d\d), \+\1\]", row[5]) and row[6] == "1.000"
    assert "Embedded world" not in same
    embedded = evaluate(simulate(set_="embedded", n=5), 0)
    assert "**Embedded world**" in markdown(embedded).split("## Headline")[0]


def test_page_says_where_the_detector_is_not_told_from_metadata(scores):
    cells = evaluate(scores, 5)
    rng = np.random.default_rng(0)
    views = list(dict.fromkeys(scores["view"]))
    first = scores.select(scores["view"] == views[0])
    noise = np.where(first.ok, rng.normal(size=len(first)), np.nan)
    noise = Scores(first.columns | {"logit": noise, "p_fake": 1 / (1 + np.exp(-noise))})
    for metadata, words in ((first, "not told apart."), (noise, None)):
        found = controls(scores, metadata=metadata, resamples=50)
        page = markdown(cells, None, found)
        lines = [line for line in page.splitlines() if "metadata only reach" in line]
        told = [c for c in found if c.name.startswith("above metadata only") and c.outcome != "passed"]
        assert len(lines) == len(told) and (words is None or (lines and all(line.endswith(words) for line in lines)))
        at = {(c.view, c.generator): c.value for c in cells if c.metric == "auc" and c.set == "all"}
        for control, line in zip(told, lines, strict=True):
            kind = control.name.split("mean:")[1].split()[0]
            own = at[views[0], f"mean:{kind}"]
            start = f"- View {views[0]}: metadata only reach {own - control.value:.3f} on {kind} generators, "
            assert line.startswith(start + f"this detector {own:.3f}; difference {control.value:+.3f} [")
    assert ["above metadata only: mean:seen AUC", views[0]] in [row[:2] for row in section(page, "Controls")]


def test_odd_names_cannot_break_the_page(tmp_path):
    odd = "a|b`c\n# d <img src=x> [e](http://f) \\ *g* \udcff\x1b[31m"
    cells = evaluate(simulate(names={"flux": odd}, n=6), 5)
    write_tables(cells, tmp_path)
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    table = section(page, "AUC per generator")
    assert {len(row) for row in table} == {7}
    assert "\n# d" not in page and "<img" not in page and "\x1b" not in page
    assert not re.search(r"(?<!\\)]\(", page)  # no link
    assert "\\`c\\\\n# d &lt;img src=x> [e\\](http://f) \\\\ \\*g\\* \\\\udcff\\\\x1b[31m" in page
    assert "\x1b" not in text(cells)
    assert {row["generator"] for row in read_csv(tmp_path / "metrics.csv")} > {"gan", "sdxl"}


def test_escaped_text_and_grid():
    assert escape_markdown("0.874 [0.851, 0.896] ok_name") == "0.874 [0.851, 0.896] ok_name"
    assert grid([["a", "b"], ["1|2", ""]]) == "| a | b |\n| --- | --- |\n| 1\\|2 |  |"


def test_terminal_text_is_the_headline_in_aligned_columns(cells):
    lines = text(cells).splitlines()
    rows = headline(cells)
    assert len(lines) == len(rows) == 3
    for i, word in enumerate(rows[0]):
        assert {line.index(row[i]) for line, row in zip(lines, rows, strict=True)} == {lines[0].index(word)} or i == 6


def test_generators_of_several_sets_carry_their_set(scores):
    other = {name: values.copy() for name, values in simulate(set_="t", seed=1).columns.items()}
    for name in ("path", "group"):
        other[name] = np.array([f"t{value}" for value in other[name]], dtype=object)
    both = Scores({name: np.concatenate([scores[name], other[name]]) for name in other})
    cells = evaluate(both, 5)
    labels = [row[0] for row in section(markdown(cells), "AUC per generator")[1:]]
    assert labels == ["s/gan", "t/gan", "s/flux", "t/flux", "s/sdxl", "t/sdxl"]
    assert re.search(r" [st]/flux$", headline(cells)[1][3])


def test_group_metrics_stand_on_the_page_beside_their_chance(tmp_path, scores, cells):
    write_tables(cells, tmp_path)
    at = {(r["view"], r["generator"], r["metric"]): r for r in read_csv(tmp_path / "metrics.csv") if r["set"] == "all"}
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    header, *rows = section(page, "Within groups")
    assert header == ["within groups", "chance", "none", "qf40", "real", "fake"]
    names = [
        f"{metric}, {kind} fakes" for metric in ("real first", "pair ranking") for kind in ("all", "seen", "unseen")
    ]
    assert [row[0] for row in rows] == names
    for name, chance, *found, n_real, n_fake in rows:
        metric, kind = name.removesuffix(" fakes").split(", ")
        ours = [at[view, f"within:{kind}", metric.replace(" ", "_")] for view in ("none", "qf40")]
        assert found == [
            "{:.3f} [{:.3f}, {:.3f}]".format(*(float(r[x]) for x in ("value", "low", "high"))) for r in ours
        ]
        assert (n_real, n_fake) == (ours[0]["n_real"], ours[0]["n_fake"]) == ("30", "60" if kind == "all" else "30")
        assert chance == ("0.333" if name == "real first, all fakes" else "0.500")
    row = next(
        r for r in section(markdown(cells, differences=compare(scores, scores, 5)), "Comparison") if "real_first" in r
    )
    assert row[:2] == ["none", "within:all"] and row[3] == row[4] == rows[0][2].split()[0]


def test_scores_without_groups_have_no_section_within_groups(scores):
    least = Scores({name: scores[name][scores["view"] == "none"] for name in ("path", "generator", "logit", "status")})
    page = markdown(evaluate(least, 5))  # the columns that any detector's scores have: a group an image
    assert "Within groups" not in page and "within:" not in page and "Weakest" not in page
    assert "## AUC per generator" in page
    lonely = scores.select((scores["view"] == "none") | ~scores.fake)  # one view has no fakes at all
    rows = section(markdown(evaluate(lonely, 5)), "Within groups")[1:]
    assert {row[3] for row in rows} == {"n/a"} and "n/a" not in {row[2] for row in rows}


def test_weakest_cells_are_listed_where_there_are_more_than_fit():
    views = ("none", "qf90", "qf65", "qf40", "webp80", "blur1")
    cells = evaluate(simulate(views, n=12), 30)
    header, *rows = section(markdown(cells), "Weakest cells")
    assert header == ["generator", "met in", "view", "AUC", "real", "fake"] and len(rows) == 10
    assert {row[0] for row in rows} == {"gan", "flux"}  # sdxl served selection
    high = [float(row[3].split(", ")[1].removesuffix("]")) for row in rows]
    at = {(c.generator, c.view): c for c in cells if c.set == "s" and c.metric == "auc"}
    left = [c.high for key, c in at.items() if key[0] in ("gan", "flux") and key not in {(r[0], r[2]) for r in rows}]
    assert high == sorted(high) and len(left) == 2 and max(high) <= min(left) + 5e-4
    assert rows[0][3] == "{:.3f} [{:.3f}, {:.3f}]".format(
        *(getattr(at[rows[0][0], rows[0][2]], x) for x in ("value", "low", "high"))
    )
    assert "Weakest cells" not in markdown(evaluate(simulate(views[:5], n=5), 0))  # ten: all stand in the table above


# -- figures --


def test_figures_are_png_of_bounded_size_and_the_same_every_time(tmp_path, scores, cells):
    first = figures.write_figures(scores, cells, tmp_path / "a")
    again = figures.write_figures(scores, cells, tmp_path / "b")
    assert len(first) == 5
    for one, two in zip(first, again, strict=True):
        with Image.open(one) as image:
            assert image.format == "PNG" and image.width > 600 and round(image.info["dpi"][0]) == 150
        assert one.stat().st_size < 150_000
        assert one.read_bytes() == two.read_bytes()


def test_figures_leave_no_global_state(scores, cells):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.auc_per_view(cells)
    figures.roc(scores)
    assert dict(matplotlib.rcParams) == before
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


def test_figures_show_the_numbers_of_the_cells(scores, cells):
    at = {(c.view, c.generator): c for c in cells if c.set == "all" and c.metric == "auc"}
    axes = figures.auc_per_view(cells).axes[0]
    for line, name in zip(axes.lines, ("seen", "unseen"), strict=False):
        assert line.get_ydata().tolist() == [at[view, f"mean:{name}"].value for view in ("none", "qf40")]
    for bars, name in zip(axes.collections, ("seen", "unseen"), strict=True):
        ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
        assert ends == [[at[v, f"mean:{name}"].low, at[v, f"mean:{name}"].high] for v in ("none", "qf40")]
    for axes, name in zip(figures.roc(scores).axes, ("seen", "unseen"), strict=True):
        for line, view in zip(axes.lines, ("none", "qf40"), strict=False):
            area = np.trapezoid(line.get_ydata(), line.get_xdata())
            assert area == pytest.approx(at[view, f"mean:{name}"].value, abs=1e-12)  # one generator of each kind


def test_reliability_lies_on_the_diagonal_when_calibrated():
    rng, n = np.random.default_rng(0), 40_000
    p = rng.random(n)
    fake = rng.random(n) < p
    scores = Scores({"path": np.arange(n), "generator": np.where(fake, "x", "real"), "p_fake": p})
    x, y = figures.reliability(scores).axes[0].lines[0].get_data()
    assert np.abs(x - (np.arange(15) + 0.5) / 15).max() < 0.01 and np.abs(x - y).max() < 0.03


@pytest.mark.parametrize("case", ["one class", "no threshold", "all unreadable", "many views", "odd names"])
def test_figures_survive(case):
    scores = simulate(n=4)
    if case == "one class":
        scores = scores.select(scores.fake)
    elif case == "no threshold":
        scores = scores.select(scores["split"] == "test")
    elif case == "all unreadable":
        nan = np.full(len(scores), np.nan)
        lost = {"logit": nan, "p_fake": nan, "status": np.full(len(scores), "unreadable: x", dtype=object)}
        scores = Scores(scores.columns | lost)
    elif case == "many views":
        scores = simulate([f"resize{k}+qf{k}" for k in range(9)], n=3)
    else:
        scores = simulate(["$x^$", "画像"], names={"flux": "$\\frac{ \udcff\n" + "long " * 20}, n=4)
    cells = evaluate(scores, 5)
    with warnings.catch_warnings(action="error"):  # such as a glyph that the font lacks
        for draw in (figures.auc_per_view, figures.auc_per_generator):
            draw(cells).savefig(io.BytesIO())
        for draw in (figures.roc, figures.reliability):
            draw(scores).savefig(io.BytesIO())
        figures.score_histograms(scores, cells).savefig(io.BytesIO())


# -- the recipe --


@pytest.fixture(scope="module")
def recipe():
    from adapt.commands import evaluate

    return evaluate


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_recipe_twice_writes_the_same_bytes_with_everything_given(tmp_path, recipe, scores, capsys):
    run = tmp_path / "run"
    scores.write(run / "scores.parquet")
    (run / "provenance.json").write_text(json.dumps({"command": "python recipes/lora.py", "seed": 3}))
    noise = np.random.default_rng(1).normal(size=len(scores))
    other = Scores(scores.columns | {"logit": scores["logit"] + noise})
    other.write(tmp_path / "other.csv")
    cfg = recipe.Config(
        (run / "scores.parquet",),
        tmp_path / "other.csv",
        tmp_path / "other.csv",
        run / "scores.parquet",
        resamples=30,
    )
    recipe.main(cfg)
    first = contents(run)
    assert capsys.readouterr().out.startswith(text(evaluate(scores, 30)))
    recipe.main(cfg)
    assert contents(run) == first
    expected = {"metrics.csv", "controls.csv", "comparison.csv", "table.md", "scores.parquet", "provenance.json"}
    assert {name for name in first if not name.startswith("figures")} == expected
    assert sum(name.startswith("figures") for name in first) == 5
    page = first["table.md"].decode()
    assert "- command: python recipes/lora.py" in page and str(tmp_path) not in page
    assert {row[0] for row in section(page, "Controls")} > {
        "labels permuted: mean AUC",
        "metadata only: mean AUC",
    }
    found = read_csv(run / "comparison.csv")
    assert {"a", "b", "p"} < set(found[0])
    at = {(r["view"], r["generator"], r["metric"]): r for r in found if r["set"] == "all"}
    row = at["none", "mean:all", "auc"]
    assert float(row["value"]) == pytest.approx(float(row["a"]) - float(row["b"])) and float(row["value"]) > 0


def test_recipe_reproduces_what_a_run_wrote_and_leaves_the_scores_alone(tmp_path, recipe, scores, cells):
    scores.write(tmp_path / "scores.csv")
    before = (tmp_path / "scores.csv").read_bytes()
    kept = keep(scores, fit_decision(scores), pick_threshold(scores), resamples=40)
    write_tables([*cells, *kept], tmp_path / "run")
    recipe.main(recipe.Config((tmp_path / "scores.csv",), output_dir=tmp_path / "again", resamples=40))
    assert (tmp_path / "again" / "metrics.csv").read_bytes() == (tmp_path / "run" / "metrics.csv").read_bytes()
    assert (tmp_path / "scores.csv").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"scores.csv", "run", "again"}


def test_one_threshold_serves_both_tables_and_two_serve_one_each(tmp_path, recipe, scores):
    scores = scores.select(scores["view"] == "none")
    scores.write(tmp_path / "a.csv")
    other = Scores(scores.columns | {"logit": scores["logit"] * 0.5 - 1})
    other.write(tmp_path / "b.csv")
    for given, used in (((0.3,), (0.3, 0.3)), ((0.3, -0.7), (0.3, -0.7)), ((), (None, None))):
        cfg = recipe.Config(
            (tmp_path / "a.csv",), tmp_path / "b.csv", output_dir=tmp_path / "o", resamples=5, threshold=given
        )
        recipe.main(cfg)
        found = {tuple(row.values())[:4]: row for row in read_csv(tmp_path / "o" / "comparison.csv")}
        row = found["all", "none", "mean:all", "balanced_accuracy"]
        for table, name, cut in zip((scores, other), "ab", used, strict=True):
            cells = evaluate(table, 0, threshold=cut)
            mine = next(
                c for c in cells if (c.generator, c.view, c.metric) == ("mean:all", "none", "balanced_accuracy")
            )
            assert float(row[name]) == pytest.approx(mine.value), (given, name)
        page = (tmp_path / "o" / "table.md").read_text(encoding="utf-8")
        assert ("logit 0.300, given (by --threshold), not picked" in page) == bool(given)
        assert ("frozen" in page) == (not given) and ("readable validation rows" in page) == (not given)
    with pytest.raises(Refusal, match=r"--threshold 1 2: give one$"):
        recipe.Config((tmp_path / "a.csv",), threshold=(1.0, 2.0))
    with pytest.raises(Refusal, match="--threshold nan: give a finite logit"):
        recipe.Config((tmp_path / "a.csv",), threshold=(float("nan"),))


def test_a_page_without_validation_rows_claims_nothing_of_them(tmp_path, recipe, scores):
    scores.select(scores["split"] == "test").write(tmp_path / "s.csv")
    recipe.main(recipe.Config((tmp_path / "s.csv",), output_dir=tmp_path / "o", resamples=5))
    page = (tmp_path / "o" / "table.md").read_text(encoding="utf-8")
    assert "Threshold: none, for there are 0 real and 0 fake readable validation rows; give one" in page
    assert "Without validation images of both classes there is no threshold." in page
    assert "nothing was calibrated" in page and "lowest cross-validated" not in page and "frozen on" not in page
    recipe.main(recipe.Config((tmp_path / "s.csv",), output_dir=tmp_path / "o", resamples=5, threshold=(0.5,)))
    page = (tmp_path / "o" / "table.md").read_text(encoding="utf-8")
    assert "One threshold, given and not picked" in page and "frozen" not in page and "0 real and 0 fake" not in page


def test_a_column_of_a_foreign_table_names_the_groups(tmp_path, recipe, scores, capsys):
    """As many copies of every row as change nothing: by group the interval stays, by image it shrinks."""
    test = scores.select((scores["split"] == "test") & (scores["view"] == "none") & (scores["edit"] == "") & scores.ok)
    columns = {name: np.repeat(test[name], 9) for name in ("path", "generator", "logit", "group")}
    columns["path"] = np.array([f"{path}-{i % 9}" for i, path in enumerate(columns["path"])], dtype=object)
    columns["scene"] = columns.pop("group")
    with (tmp_path / "s.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        out.writerows(zip(*columns.values(), strict=True))

    def pooled(**flags) -> dict[str, float]:
        recipe.main(recipe.Config((tmp_path / "s.csv",), output_dir=tmp_path / "o", **flags))
        rows = {tuple(row.values())[:4]: row for row in read_csv(tmp_path / "o" / "metrics.csv")}
        return {name: float(rows["all", "none", "pooled:all", "auc"][name]) for name in ("value", "low", "high")}

    by_scene, page = pooled(group_by="scene"), (tmp_path / "o" / "table.md").read_text(encoding="utf-8")
    once = index(evaluate(Scores({n: test[n] for n in ("path", "generator", "logit", "group")}), 200))
    assert by_scene["low"] == pytest.approx(once["all", "none", "pooled:all", "auc"].low)
    assert by_scene["high"] == pytest.approx(once["all", "none", "pooled:all", "auc"].high)
    assert "- group by: scene" in page and "times too narrow under view none" in page
    said = capsys.readouterr().out
    assert f"real {9 * 30} in 30, unseen fakes" in said and "times too narrow" in said
    by_image, page = pooled(), (tmp_path / "o" / "table.md").read_text(encoding="utf-8")
    assert by_image["high"] - by_image["low"] < 0.6 * (by_scene["high"] - by_scene["low"])
    assert "**Every image counts as independent**" in page and "--group_by COLUMN" in page
    assert "every image is one group" in capsys.readouterr().out
    with pytest.raises(
        Refusal, match=r"--group_by place: there is no such column \(found: path, generator, logit, scene"
    ):
        pooled(group_by="place")


def test_base_rates_and_the_promise_that_is_meant_stand_on_the_page(tmp_path, recipe, scores):
    scores.write(tmp_path / "s.csv")
    cfg = recipe.Config((tmp_path / "s.csv",), output_dir=tmp_path / "o", resamples=30, error_rate=0.2)
    recipe.main(cfg)
    usual = (tmp_path / "o" / "table.md").read_text(encoding="utf-8")
    assert "holds on average over validation samples, not for each single detector" in usual
    assert "At prevalence" not in usual and "where a share 0.5 of all images is fake" in usual
    recipe.main(dataclasses.replace(cfg, prevalence=0.01, confidence=0.9))
    page = (tmp_path / "o" / "table.md").read_text(encoding="utf-8")
    assert "holds for this very detector, with probability 0.9 over validation samples" in page
    assert "on average" not in page and "where a share 0.01 of all images is fake" in page
    rows = {tuple(row.values())[:4]: row for row in read_csv(tmp_path / "o" / "metrics.csv")}
    for view, shown in zip(("none", "qf40"), section(page, "At prevalence 0.01")[1][1:], strict=True):
        recall, alarm = (float(rows["all", view, "mean:all", m]["value"]) for m in ("recall", "false_alarm"))
        assert shown.startswith(f"{0.01 * recall / (0.01 * recall + 0.99 * alarm):.3f} [")
        assert shown.startswith(f"{float(rows['all', view, 'mean:all', 'ppv_at_0.01']['value']):.3f} [")
    for change, message in (
        ({"prevalence": 1.0}, "--prevalence 1: give a share of fakes"),
        ({"confidence": 1.0}, "--confidence 1: give a probability"),
    ):
        with pytest.raises(Refusal, match=message):
            dataclasses.replace(cfg, **change)
    recipe.main(dataclasses.replace(cfg, error_rate=0.05, confidence=0.9))
    page = (tmp_path / "o" / "table.md").read_text(encoding="utf-8")
    assert re.search(
        r"0.05 at --confidence 0.9 takes 45 validation groups with fakes, this detector has \d+: ask", page
    )


def test_recalls_that_rest_on_too_few_reals_are_marked(scores):
    page = markdown(evaluate(scores, 0))
    assert "**tpr_at_fpr_1 is at most a guess here**: it takes 300 real images, here are 30." in page
    assert "**tpr_at_fpr_5 is at most a guess here**: it takes 60 real images, here are 30." in page
    many = markdown(evaluate(simulate(views=("none",), n=60), 0))
    assert "**tpr_at_fpr_1 is" in many and "tpr_at_fpr_5 is at most" not in many


def test_recipe_refuses_a_comparison_of_other_images_before_writing(tmp_path, recipe, scores):
    scores.write(tmp_path / "scores.csv")
    scores.select(scores["view"] == "none").write(tmp_path / "fewer.csv")
    with pytest.raises(Refusal, match="differ in 150 test rows"):
        recipe.main(
            recipe.Config((tmp_path / "scores.csv",), tmp_path / "fewer.csv", output_dir=tmp_path / "out", resamples=5)
        )
    assert not (tmp_path / "out").exists()


def test_the_files_give_the_page_again(tmp_path):
    given = simulate(names={"flux": 'a "b", c'}, broken=4)
    given = given.select(given["generator"] != "sdxl")  # selection only: no file says so
    found, other = evaluate(given, 20), given.select(np.arange(len(given)))
    checks, differences = controls(given, resamples=20), compare(given, other, 20)
    write_tables(found, tmp_path, {"a": 1}, checks, differences)
    again = read_run(tmp_path, ["gan"])
    assert (len(again.cells), len(again.controls)) == (len(found), len(checks)) and again.controls
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == markdown(
        again.cells, {"a": 1}, again.controls, again.differences, (), again.attribution
    )
    assert read_rows(tmp_path / "none.csv", type(checks[0])) == []
    (tmp_path / "controls.csv").write_text("name,view,odd\n")
    with pytest.raises(Refusal, match="columns name, view, odd, expected name, view, value"):
        read_run(tmp_path, ["gan"])


def with_families(generators: dict[str, tuple[str, str, float]], views=("none",), n=30) -> Scores:
    """Test rows of photographs and of generators: name -> (family, seen, shift); validation rows of the seen ones."""
    rng, rows = np.random.default_rng(4), []
    for split, (name, (family, seen, shift)), view in (
        (s, one, v)
        for s in ("val", "test")
        for one in {"real": ("", "train", 0.0), **generators}.items()
        for v in views
    ):
        if split == "test" or seen:
            rows += [
                (f"{name}/{split}{i}", f"{split}{i}", name, family, split, seen, view, shift + rng.normal())
                for i in range(n)
            ]
    names = ("path", "group", "generator", "family", "split", "seen", "view", "logit")
    return Scores(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


UNSEEN = {
    "trained": ("gan", "train", 2.0),
    "picked": ("flow", "val", 1.5),
    "cousin": ("gan", "", 1.6),
    "nephew": ("flow", "", 1.0),
    "stranger": ("diffusion", "", 0.5),
    "foreigner": ("autoregressive", "", 0.2),
    "nobody": ("other", "", 0.8),
}


def test_unseen_generators_of_seen_families_stand_apart_from_unseen_families(tmp_path):
    cells = evaluate(with_families(UNSEEN, ("none", "qf40")), resamples=40)
    at = {(c.view, c.generator, c.metric): c for c in cells}
    for view in ("none", "qf40"):
        own = {name: at[view, name, "auc"].value for name in UNSEEN}
        for label, names in (
            ("mean:unseen", ("cousin", "nephew", "stranger", "foreigner", "nobody")),
            ("mean:unseen-generator", ("cousin", "nephew")),
            ("mean:unseen-family", ("stranger", "foreigner")),
            ("sample:unseen", ("cousin", "nephew", "stranger", "foreigner", "nobody")),
        ):
            found = at[view, label, "auc"]
            assert found.value == pytest.approx(np.mean([own[name] for name in names]), abs=1e-12), label
            assert found.n_fake == 30 * len(names)
        these, sample = at[view, "mean:unseen", "auc"], at[view, "sample:unseen", "auc"]
        assert sample.low < these.low < these.high < sample.high
        two = at[view, "sample:unseen-family", "auc"]
        assert np.isnan(two.low) and two.value == at[view, "mean:unseen-family", "auc"].value  # two are no sample
    write_tables(cells, tmp_path)
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    table = section(page, "Unseen generators: these, and others like them")
    assert table[0] == ["view", "these generators", "generators like these", "of seen families", "of unseen families"]
    these, sample = at["none", "mean:unseen", "auc"], at["none", "sample:unseen", "auc"]
    shown = [f"{c.value:.3f} [{c.low:.3f}, {c.high:.3f}]" for c in (these, sample)]
    assert table[1][:3] == ["none", *shown]
    assert "AUC on the 5 unseen generators" in page and "30 unseen fakes are of an unknown family" in page


def test_a_family_that_training_rows_alone_show_is_seen():
    """The trained generator has validation rows only: its family is seen all the same."""
    every = with_families({"trained": ("gan", "train", 2.0), "cousin": ("gan", "", 1.0)})
    scores = every.select((every["split"] == "val") | (every["generator"] != "trained"))
    labels = {c.generator for c in evaluate(scores, resamples=20)}
    assert "mean:unseen-generator" in labels and "mean:unseen-family" not in labels


def test_without_families_neither_kind_of_unseen_is_claimed(cells):
    labels = {cell.generator for cell in cells}
    assert "sample:unseen" in labels and not {"mean:unseen-generator", "mean:unseen-family"} & labels
    with pytest.raises(Refusal, match="sample:"):
        evaluate(with_families({"sample:x": ("gan", "train", 1.0)}), resamples=5)


def test_a_generator_that_no_mean_counts_is_named_beside_the_means():
    """Set b has no readable unedited real under qf40: its generator is in no mean there, and everyone is told."""
    other = simulate(n=12, broken=0, set_="b", names={"gan": "gigan", "flux": "f2"})
    other = Scores(other.columns | {name: "b/" + other[name] for name in ("path", "group")})
    both = simulate(n=12, broken=0).join(other)
    gone = (both["set"] == "b") & (both["generator"] == "real") & (both["edit"] == "") & (both["view"] == "qf40")
    cells = evaluate(both.select(~(gone & (both["split"] == "test"))), resamples=0)
    said = "In no mean, nor in the worst: b/gigan (under qf40), b/f2 (under qf40), b/sdxl (under qf40) (no readable "
    said += "unedited real image in the set)."
    assert text(cells).splitlines()[-1] == said
    assert f"**{said}**" in markdown(cells).split("## Images and groups")[0]
    kept = index(evaluate(both.select(both["set"] == "s"), resamples=0))  # an oracle: without set b nothing changes
    assert index(cells)[ALL, "qf40", "mean:seen", "auc"].value == kept[ALL, "qf40", "mean:seen", "auc"].value
    assert "In no mean" not in text(evaluate(both, resamples=0)) + markdown(evaluate(both, resamples=0))


@pytest.mark.parametrize(("n", "guess"), [(19, True), (20, False)])
def test_a_threshold_from_few_photographs_is_called_a_guess(n, guess):
    page = markdown(evaluate(simulate(n=n, broken=0), resamples=0))
    assert ("**a guess** (fewer than 20 validation photographs)" in page) == guess

"""Several tables on the same images: what is joined, what contradicts, and that a pair is what --compare measures."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_brought import write

from adapt.errors import Refusal
from adapt.evaluation.brought import Brought, read
from adapt.evaluation.joined import join, measure
from adapt.evaluation.metrics import compare, index
from adapt.evaluation.scores import Scores
from adapt.flags import Columns

SCENES = 30
KINDS = ("real", "sdxl", "flux")


def columns(seed: int, shift: float) -> dict[str, list]:
    """A photograph and two fakes of each scene, under two views."""
    rng = np.random.default_rng([seed])
    rows = [(view, scene, kind) for view in ("none", "qf40") for scene in range(SCENES) for kind in KINDS]
    logit = [rng.normal() + shift * (kind != "real") for _, _, kind in rows]
    return {
        "path": [f"{scene}-{kind}.png" for _, scene, kind in rows],
        "generator": [kind for *_, kind in rows],
        "group": [f"s{scene}" for _, scene, _ in rows],
        "view": [view for view, *_ in rows],
        "split": ["val" if scene < 8 else "test" for _, scene, _ in rows],
        "logit": logit,
    }


def brought(folder: Path, name: str, table: dict[str, list], **flags) -> Brought:
    return read([write(folder / f"{name}.csv", table)], Columns(**flags))


def shuffled(table: dict[str, list], seed: int, keep: int | None = None) -> dict[str, list]:
    order = np.random.default_rng(seed).permutation(len(table["path"]))[:keep]
    return {name: [values[i] for i in order] for name, values in table.items()}


def test_a_pair_is_what_compare_measures_of_the_two_tables(tmp_path) -> None:
    a, b = columns(0, 1.5), columns(1, 0.7)
    b["logit"][150] = None  # a test row
    one, other = brought(tmp_path, "a", a), brought(tmp_path, "b", shuffled(b, 3))
    found = measure(join([one, other]), {"a": None, "b": None}, 40, 1)
    expected = compare(one.scores, other.scores, 40, 1)
    assert repr([pair.difference for pair in found.pairs]) == repr(expected) and len(expected) > 100
    assert found.unreadable == {"a": 0, "b": 1}
    cells = {name: index(of_one) for name, of_one in found.cells.items()}
    for d in expected:
        key = d.set, d.view, d.generator, d.metric
        assert (cells["a"][key].value, cells["b"][key].value) == pytest.approx((d.a, d.b), nan_ok=True)
    given = measure(join([one, other]), {"a": 0.3, "b": -0.2}, 40, 1)
    assert repr([p.difference for p in given.pairs]) == repr(compare(one.scores, other.scores, 40, 1, (0.3, -0.2)))


def test_rows_that_not_all_have_are_left_out_of_all_and_counted(tmp_path) -> None:
    a, b, c = columns(0, 1.5), columns(1, 0.7), columns(2, 0.2)
    tables = [brought(tmp_path, "a", a), brought(tmp_path, "b", shuffled(b, 3, 150))]
    tables.append(brought(tmp_path, "c", shuffled(c, 4, 160) | {}))
    keys = [set(zip(one.scores["path"], one.scores["view"], strict=True)) for one in tables]
    common = set.intersection(*keys)
    joined = join(tables)
    assert joined.only == {"a": 180 - len(common), "b": 150 - len(common), "c": 160 - len(common)}
    rows = [list(zip(t["path"], t["view"], t["generator"], t["group"], strict=True)) for t in joined.tables.values()]
    assert rows[0] == rows[1] == rows[2] and {row[:2] for row in rows[0]} == common
    found = measure(joined, dict.fromkeys("abc"), 0)
    for name, table in zip("abc", (a, b, c), strict=True):
        score = {(p, v): s for p, v, s in zip(table["path"], table["view"], table["logit"], strict=True)}
        split = dict(zip(table["path"], table["split"], strict=True))
        for kind in KINDS[1:]:
            used = [k for k in sorted(common) if k[1] == "qf40" and split[k[0]] == "test"]
            used = [k for k in used if k[0].endswith(("real.png", f"{kind}.png"))]
            own = roc_auc_score(["real" not in k[0] for k in used], [score[k] for k in used])
            cell = index(found.cells[name])["", "qf40", kind, "auc"]
            assert cell.value == pytest.approx(own, abs=1e-12)


def test_what_one_table_says_of_the_images_serves_all(tmp_path) -> None:
    """A table of labels alone takes generators, groups and splits from the one that has them, wherever it stands."""
    a = columns(0, 1.5)
    bare = {"path": a["path"], "label": [int(kind != "real") for kind in a["generator"]], "view": a["view"]}
    bare["score"] = columns(1, 0.7)["logit"]
    tables = [brought(tmp_path, "bare", bare), brought(tmp_path, "a", a)]
    joined = join(tables)
    for column in ("generator", "group", "split"):
        assert joined.tables["bare"][column].tolist() == a[column]
    assert repr(measure(joined, {"a": None, "bare": None}, 20).cells["a"]) == repr(
        measure(join(tables[::-1]), {"a": None, "bare": None}, 20).cells["a"]
    )


def test_tables_that_contradict_each_other_are_refused(tmp_path) -> None:
    a = columns(0, 1.5)
    one = brought(tmp_path, "a", a)
    labels = {"path": a["path"], "view": a["view"], "score": a["logit"]}
    labels["label"] = [int(kind != "real") for kind in a["generator"]]
    labels["label"][3] = 1 - labels["label"][3]
    labels["label"][SCENES * 3 + 3] = labels["label"][3]
    with pytest.raises(Refusal, match=r"'1-real.png' is real in a and fake in b \(2 such rows\): mend one"):
        join([one, brought(tmp_path, "b", labels)])
    other = a | {"generator": ["dalle" if kind == "flux" else kind for kind in a["generator"]]}
    with pytest.raises(Refusal, match=r"'0-flux.png' has generator 'flux' in a and 'dalle' in b \(60 such rows\)"):
        join([one, brought(tmp_path, "b", other)])
    moved = a | {"split": ["test"] * len(a["path"])}
    with pytest.raises(Refusal, match=r"'0-real.png' has split 'val' in a and 'test' in b"):
        join([one, brought(tmp_path, "b", moved)])


def test_tables_without_common_paths_or_without_paths_are_refused(tmp_path) -> None:
    a = columns(0, 1.5)
    one = brought(tmp_path, "a", a)
    elsewhere = a | {"path": [f"/data/{path}" for path in a["path"]]}
    with pytest.raises(
        Refusal, match=r"no image stands under one view in all tables: .*'0-real.png' \(a\) and '/data"
    ):
        join([one, brought(tmp_path, "b", elsewhere)])
    nameless = {"label": [0, 1], "score": [0.1, 0.9]}
    with pytest.raises(Refusal, match="b has no column of paths to join by: name it with --path"):
        join([one, brought(tmp_path, "b", nameless)])
    halves = [a | {"logit": [x if (i % 2 == k) else None for i, x in enumerate(a["logit"])]} for k in (0, 1)]
    with pytest.raises(Refusal, match="no test row has a score in every table"):
        measure(join([brought(tmp_path, f"h{k}", halves[k]) for k in (0, 1)]), {"h0": 0.0, "h1": 0.0})
    folds = Scores(one.scores.columns | {"fold": one.scores["group"]})
    folds.write(tmp_path / "f.parquet")
    with pytest.raises(Refusal, match="f holds scores of folds"):
        join([one, read([tmp_path / "f.parquet"])])


def test_surely_holds_for_all_pairs_together() -> None:
    """Of equally good detectors hardly any pair is surely apart, though single p values below .05 are many."""
    rng = np.random.default_rng(0)
    fake = np.tile([False, True], 40)
    about = {
        "path": [str(i) for i in range(80)],
        "generator": np.where(fake, "x", "real").astype(object),
        "group": [str(i // 2) for i in range(80)],
    }
    low_p = sure = 0
    for _ in range(40):
        tables = [
            Brought(str(k), Scores(about | {"logit": rng.normal(size=80) + fake}), True, frozenset({"path"}), "")
            for k in range(5)
        ]
        found = measure(join(tables), {str(k): 0.0 for k in range(5)}, 40)
        judged = [p for p in found.pairs if p.difference.generator == "mean:all" and p.difference.set == "all"]
        judged = [p for p in judged if p.difference.metric in ("auc", "balanced_accuracy")]
        assert len(judged) == 20
        low_p += any(p.difference.p < 0.05 for p in judged)
        sure += any(p.surely for p in judged)
    assert low_p >= 12 and sure <= 6
    better = [
        Brought(str(k), Scores(about | {"logit": rng.normal(size=80) + 4 * k * fake}), True, frozenset({"path"}), "")
        for k in range(2)
    ]
    found = measure(join(better), {"0": 0.0, "1": 0.0}, 40)
    assert [p.surely for p in found.pairs if (p.difference.generator, p.difference.metric) == ("mean:all", "auc")] == [
        True
    ]

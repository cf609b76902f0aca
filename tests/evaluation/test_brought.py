"""Tables of scores that somebody brings: columns found or named, labels and scores understood, the rest refused."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import adapt
from adapt.errors import Refusal
from adapt.evaluation.brought import read
from adapt.evaluation.score_files import SUFFIXES
from adapt.evaluation.scores import Scores
from adapt.flags import Columns

N = 40  # rows of a table
FAKE = np.arange(N) % 2 == 1
P = np.clip(np.round(np.random.default_rng(0).normal(0.4 + 0.2 * FAKE, 0.2), 4), 0.001, 0.999)
GOOD = {"file": [f"{i}.png" for i in range(N)], "is_fake": FAKE.astype(int).tolist(), "p": P.tolist()}


def write(path: Path, columns: dict[str, list], delimiter: str = ",") -> Path:
    """A table in the format of the suffix; None is nothing in a cell."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, delimiter=delimiter)
            out.writerow(columns)
            out.writerows(["" if value is None else value for value in row.values()] for row in rows)
    else:
        text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)) + "\n"
        path.write_text(text, encoding="utf-8")
    return path


def text_of(columns: dict[str, list]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return out.getvalue()


def auc(table, **columns) -> float:
    cells = adapt.evaluate(table, resamples=0, **columns)
    return next(cell.value for cell in cells if (cell.generator, cell.metric) == ("mean:all", "auc"))


# -- formats ---------------------------------------------------------------------------------------------------------


def same(a: Scores, b: Scores) -> bool:
    return list(a.columns) == list(b.columns) and all(
        np.array_equal(a[name], b[name], equal_nan=a[name].dtype != object) for name in a.columns
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_scores_and_the_auc_of_sklearn(tmp_path, suffix) -> None:
    table = GOOD | {"p": [None if i == 6 else value for i, value in enumerate(GOOD["p"])], "quality": [40] * N}
    named = Columns(view="quality")
    found = read([write(tmp_path / f"s{suffix}", table, "\t" if suffix == ".tsv" else ",")], named)
    expected = read([write(tmp_path / "s.csv", table)], named)
    assert same(found.scores, expected.scores) and not found.ours
    assert found.scores["view"].tolist() == ["40"] * N and found.scores["path"].tolist() == table["file"]
    assert found.scores["p_fake"][7] == GOOD["p"][7] and found.scores.fake.tolist() == FAKE.tolist()
    first = {".csv": 2, ".tsv": 2}.get(suffix, 1)
    assert f"1 row ({6 + first}) without a score" in " ".join(found.notes)
    ok = np.arange(N) != 6
    assert auc(tmp_path / f"s{suffix}") == pytest.approx(roc_auc_score(FAKE[ok], P[ok]), abs=1e-12)


def test_tables_are_read_in_pieces_and_rows_are_counted_through_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("adapt.evaluation.score_files.PIECE", 7)
    whole = read([write(tmp_path / "a.csv", GOOD)])
    assert same(whole.scores, read([write(tmp_path / "a.jsonl", GOOD)]).scores)
    bad = GOOD | {"p": [*GOOD["p"][:30], "x", *GOOD["p"][31:]]}
    for name, row in (("b.csv", 32), ("b.jsonl", 31)):
        with pytest.raises(Refusal, match=rf"{name}, row {row}, column 'p': 'x' is no score"):
            read([write(tmp_path / name, bad)])


def test_a_json_row_may_lack_a_key_and_blank_lines_are_no_rows(tmp_path) -> None:
    lines = ['{"file": "a", "label": "real", "score": 0.1}', "", '{"file": "b", "label": "fake"}', ""]
    lines += ['{"file": "c", "label": "fake", "score": 0.7, "error": null}']
    (tmp_path / "s.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    found = read([tmp_path / "s.jsonl"])
    assert found.scores["status"].tolist() == ["ok", "unreadable: no score", "ok"]
    assert "s.jsonl: 1 row (2) without a score, unreadable and in no number" in found.notes[-1]


# -- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["score", "Prob", "p_fake", "prediction", "y_score", "fake_prob", "P"])
@pytest.mark.parametrize("label", ["label", "is_fake", "Target", "y_true", "ground_truth"])
@pytest.mark.parametrize("path", ["path", "file", "Filename", "image", "img_path"])
def test_common_names_are_found(score, label, path) -> None:
    table = {path: GOOD["file"], label: GOOD["is_fake"], score: GOOD["p"], "other": ["x"] * N}
    assert auc(table) == pytest.approx(roc_auc_score(FAKE, P), abs=1e-12)


def test_named_columns_are_taken_whatever_others_are_called(tmp_path) -> None:
    table = GOOD | {"score": [0.5] * N, "label": ["x"] * N, "source": [f"s{i // 4}" for i in range(N)]}
    table |= {"model": ["" if not fake else "sdxl" if i % 3 else "flux" for i, fake in enumerate(FAKE)]}
    table |= {
        "quality": ["40" if i % 5 else "" for i in range(N)],
        "part": ["validation" if i < 8 else "test" for i in range(N)],
    }
    named = {
        "score": "P",
        "label": "is_fake",
        "path": "file",
        "generator": "model",
        "view": "quality",
        "split": "part",
    }
    found = read([write(tmp_path / "s.csv", table)], Columns(group_by="source", **named)).scores
    assert found["p_fake"].tolist() == GOOD["p"] and found["group"].tolist() == table["source"]
    assert (
        set(found["generator"]) == {"real", "sdxl", "flux"}
        and (found["generator"] != "real").tolist() == FAKE.tolist()
    )
    assert found["view"].tolist() == ["40" if i % 5 else "none" for i in range(N)]
    assert found["split"].tolist() == ["val"] * 8 + ["test"] * (N - 8)
    cells = adapt.evaluate(table, resamples=20, group_by="source", **named)
    assert repr(cells) == repr(adapt.evaluate(tmp_path / "s.csv", resamples=20, group_by="source", **named))


def test_what_was_taken_is_said(tmp_path) -> None:
    found = read([write(tmp_path / "s.csv", GOOD | {"set": ["a"] * N})])
    assert found.taken == (
        f"{tmp_path / 's.csv'}: 40 rows, 20 fake; path from 'file', label from 'is_fake' (0 is real; 1 is fake), "
        "score from 'p' (probabilities, higher is fake), set"
    )
    assert found.notes == (
        f"{tmp_path / 's.csv'}: no column of generators, so all fakes count as one, 'fake' (--generator COLUMN)",
    )


def test_a_table_of_ours_is_read_as_before_and_nothing_is_said(tmp_path) -> None:
    rng = np.random.default_rng(1)
    scores = Scores(
        {
            "path": [f"{i}.png" for i in range(N)],
            "generator": np.where(FAKE, "sdxl", "real").astype(object),
            "logit": rng.normal(size=N),
            "p_fake": rng.uniform(size=N),  # calibrated: not the logistic function of the logit
            "logit_gan": rng.normal(size=N),
            "status": ["ok"] * (N - 1) + ["unreadable: truncated"],
            **{"label": ["cat"] * N, "score": [3] * N},  # left behind
        }
        | {"logit": np.where(np.arange(N) < N - 1, rng.normal(size=N), np.nan)}
        | {"p_fake": np.where(np.arange(N) < N - 1, rng.uniform(size=N), np.nan)}
    )
    for name in ("s.csv", "s.parquet"):
        scores.write(tmp_path / name)
        found = read([tmp_path / name])
        assert same(found.scores, Scores.read(tmp_path / name)) and same(found.scores, scores)
        assert found.ours and not found.notes and found.cut(None) is None
        with (tmp_path / "t.csv").open("w") as file:
            file.write(text_of({name: scores[name].tolist() for name in ("path", "generator", "p_fake", "status")}))


def test_without_paths_each_row_is_an_image_and_it_is_said(tmp_path) -> None:
    found = read([write(tmp_path / "s.csv", {"y_true": GOOD["is_fake"], "y_score": GOOD["p"]})])
    assert found.scores["path"].tolist()[:2] == ["row 2", "row 3"] and "no column of paths" in found.notes[0]


# -- labels ----------------------------------------------------------------------------------------------------------

FORMS = [
    ("0", "1"), ("False", "True"), ("false", "true"), ("real", "fake"), ("Real", "FAKE"), ("human", "ai"),
    ("natural", "AI"), ("nature", "ai"), ("0_real", "1_fake"), ("0.0", "1.0"), ("no", "yes"), (0, 1), (False, True),
    (0.0, 1.0), ("photo", "ai-generated"), (" real", "synthetic "), ("authentic", "deepfake"),
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMS), st.lists(st.booleans(), min_size=2, max_size=12), st.sampled_from([".csv", ".jsonl"]))
def test_labels_in_any_common_form(tmp_path_factory, form, fake, suffix) -> None:
    fake = [True, False, *fake]
    table = {"path": [f"{i}" for i in range(len(fake))], "label": [form[one] for one in fake], "p": [0.5] * len(fake)}
    found = read([write(tmp_path_factory.mktemp("l") / f"s{suffix}", table)])
    assert found.scores.fake.tolist() == fake
    assert (found.scores["generator"] == "fake").tolist() == fake


def test_a_column_that_asks_for_real_turns_its_labels_round() -> None:
    turned = {"path": GOOD["file"], "is_real": (~FAKE).astype(int).tolist(), "p": GOOD["p"]}
    assert auc(turned) == auc(GOOD)
    words = np.where(FAKE, "fake", "real").tolist()
    assert auc(turned | {"is_real": words}) == auc(GOOD)  # words need no turning


def test_generators_say_which_images_are_real() -> None:
    names = np.where(FAKE, np.where(np.arange(N) % 3, "sdxl", "biggan"), "nature").tolist()
    cells = adapt.evaluate({"path": GOOD["file"], "generator": names, "p": GOOD["p"]}, resamples=0)
    found = {cell.generator: cell.value for cell in cells if cell.metric == "auc"}
    for name in ("sdxl", "biggan"):
        rows = ~FAKE | (np.array(names) == name)
        assert found[name] == pytest.approx(roc_auc_score(FAKE[rows], P[rows]), abs=1e-12)


def test_fake_is_names_the_values_that_mean_fake() -> None:
    table = GOOD | {"is_fake": np.where(FAKE, "midjourney", "coco").tolist()}
    assert auc(table, label="is_fake", fake_is=["midjourney"]) == auc(GOOD)
    assert auc(GOOD, fake_is=["0"]) == pytest.approx(1 - auc(GOOD), abs=1e-12)
    with pytest.raises(Refusal, match=r"--fake_is sdxl: the table has no such value .*\(found: coco, midjourney\)"):
        auc(table, label="is_fake", fake_is=["sdxl"])


# -- scores ----------------------------------------------------------------------------------------------------------


def test_scores_in_0_to_1_are_probabilities_and_others_logits(tmp_path) -> None:
    logits = np.log(P / (1 - P))
    for table, kind in ((GOOD, "probabilities"), (GOOD | {"p": logits.tolist()}, "logits")):
        found = read([write(tmp_path / "s.csv", table)])
        assert f"score from 'p' ({kind}, higher is fake)" in found.taken
        np.testing.assert_allclose(found.scores["p_fake"], P, rtol=1e-12)
        np.testing.assert_allclose(found.scores["logit"], logits, rtol=1e-9)
    percent = read([write(tmp_path / "s.csv", GOOD | {"p": (100 * P).tolist()})], Columns(score_is="percent"))
    np.testing.assert_allclose(percent.scores["p_fake"], P, rtol=1e-12)
    forced = read([write(tmp_path / "s.csv", GOOD)], Columns(score_is="logit"))
    assert forced.scores["logit"].tolist() == GOOD["p"]


def test_a_column_called_logit_in_0_to_1_is_taken_by_its_name_with_a_word(tmp_path) -> None:
    for name in ("logit", "fake_logit"):
        table = {"path": GOOD["file"], "generator": np.where(FAKE, "x", "real").tolist(), name: GOOD["p"]}
        found = read([write(tmp_path / "s.csv", table)])
        assert found.scores["logit"].tolist() == GOOD["p"]
        assert any(f"column '{name}' is taken as logits" in note for note in found.notes)
        found = read([tmp_path / "s.csv"], Columns(score_is="probability"))
        assert found.scores["p_fake"].tolist() == GOOD["p"] and not any("logits" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["probability", "percent", "logit"])
def test_higher_is_real_turns_scores_round(kind) -> None:
    scores = {"probability": 1 - P, "percent": 100 * (1 - P), "logit": np.log((1 - P) / P)}[kind]
    turned = auc(GOOD | {"p": scores.tolist()}, higher_is="real", score_is=kind)
    assert turned == pytest.approx(roc_auc_score(FAKE, P), abs=1e-12)


@pytest.mark.parametrize("word", ["", "nan", "NaN", "None", "null", "NA", "n/a", " ", "<NA>"])
def test_missing_scores_are_counted_and_kept(tmp_path, word) -> None:
    path = write(tmp_path / "s.csv", GOOD | {"p": [word if i in (0, 3, 5, 9) else p for i, p in enumerate(GOOD["p"])]})
    found = read([path])
    assert np.flatnonzero(~found.scores.ok).tolist() == [0, 3, 5, 9] and len(found.scores) == N
    assert "4 rows (2, 5, 7, ...) without a score" in found.notes[-1]
    cells = adapt.evaluate(path, resamples=0)
    assert sum(cell.value for cell in cells if cell.metric == "unreadable") == 4


# -- refusals --------------------------------------------------------------------------------------------------------

HEAD = "path,label,score\n"
ROWS = "a,real,0.1\nb,fake,0.9\n"
REFUSED = {  # content of s.csv, or of the file that the message begins with
    "empty": ("", "cannot read .*s.csv as CSV: it is empty"),
    "header alone": (HEAD, "s.csv has no rows: score some images first"),
    "no header": ("a.png,1,0.7\nb.png,0,0.2\n", r"the first row \(a.png, 1, 0.7\) looks like values, not names"),
    "text": (HEAD + ROWS + "c,fake,high\n", "row 4, column 'score': 'high' is no score: write a number, leave"),
    "decimal comma": ("path;label;score\na;real;0,1\n", "row 2, column 'score': '0,1' is no score: write 0.1, with a"),
    "per cent sign": (HEAD + "a,real,93.5%\n", "row 2, column 'score': '93.5%' is no score: write 0.935"),
    "per cent": (HEAD + "a,real,12\nb,fake,97.5\n", r"lie in 12..97.5, none below 0: per cent \(--score_is percent\)"),
    "distances": (HEAD + "a,real,12\nb,fake,350\n", r"lie in 12..350, none below 0: logits, of which 0 is the border"),
    "log p": (HEAD + "a,real,-12\nb,fake,-0.5\n", r"lie in -12..-0.5, none above 0: logits"),
    "infinite": (HEAD + ROWS + "c,fake,inf\n", "row 4, column 'score': 'inf' is not finite"),
    "underscore": (HEAD + ROWS + "c,fake,1_0\n", "row 4, column 'score': '1_0' is no score"),
    "no score at all": (HEAD + "a,real,\nb,fake,nan\n", "column 'score': no row has a score: name another column"),
    "label": (HEAD + ROWS + "c,maybe,0.5\n", "row 4, column 'label': 'maybe' says neither real nor fake: .*--fake_is"),
    "no label": (HEAD + ROWS + "c,,0.5\n", "row 4, column 'label': no label"),
    "all fake": (HEAD + "a,1,0.1\nb,1,0.2\n", "column 'label': all 2 rows are fake: give rows of both classes"),
    "all real": (HEAD + "a,0,0.1\nb,0,0.2\n", "column 'label': all 2 rows are real"),
    "no path": (HEAD + ROWS + ",fake,0.5\n", "row 4, column 'path': no path: name the image"),
    "twice": (HEAD + ROWS + "a,real,0.3\n", "row 4, column 'path': 'a' stands in row 2 already: keep .*--view"),
    "few cells": (HEAD + ROWS + "c,fake\n", "row 4 of .*s.csv has 2 cells, the header 3: mend it"),
    "column twice": ("path,label,label,score\na,0,0,1\n", "column 'label' stands twice: keep one"),
    "two labels": ("path,label,is_fake,score\na,0,0,1\n", "'label' and 'is_fake' may each be the label: .*--label"),
    "two scores": ("path,label,score,prob\na,0,0,1\n", "'score' and 'prob' may each be the score: .*--score"),
    "two paths": ("file,image,label,score\na,a,0,1\n", "'file' and 'image' may each be the path: .*--path"),
    "no scores": ("path,label,x\na,0,1\n", r"no column is known to hold scores: name it with --score \(found: path"),
    "no labels": ("path,score,x\na,0,1\n", "no column is known to hold labels: name it with --label"),
    "split": ("path,label,score,split\na,0,0.1,dev\nb,1,0.2,fold3\n", "row 3, column 'split': 'fold3' is none of"),
    "contradiction": ("path,label,generator,score\na,0,x,0.1\nb,1,nature,0.2\n", "row 3, column 'generator': 'natu"),
    "no generator is real": ("path,model,p\na,x,0.1\nb,y,0.2\n", "all 2 rows are fake: .*--fake_is"),
    "p_fake": ("path,label,p_fake\na,0,0.1\nb,1,97\n", r"row 3, column 'p_fake': 97 lies outside 0..1: mend it"),
    "speaks for real": ("path,label,p_real\na,0,0.1\nb,1,0.4\n", "column 'p_real' seems to speak for real: say"),
    "bytes": (HEAD.encode() + b"a,r\xe9el,0.1\n", "row 2, column 'label': .* is not UTF-8"),
    "s.jsonl nested": ('{"path": "a", "label": 0, "score": {"p": 1}}', "row 1, column 'score': {'p': 1} is no score"),
    "s.jsonl list": ('{"path": "a", "label": 0, "score": [0.1, 0.9]}', "row 1, column 'score': .* give one number a"),
    "s.jsonl label": ('{"path": "a", "label": ["real"], "score": 1}', r"row 1, column 'label' holds \['real'\]: give"),
    "s.jsonl bool": ('{"path": "a", "label": 0, "score": true}', "row 1, column 'score': True is no score"),
    "s.jsonl huge": ('{"path": "a", "label": 0, "score": 1' + "0" * 400 + "}", "column 'score': 1000.* is no score"),
    "s.jsonl digits": ('{"path": "a", "label": 0, "score": 1' + "0" * 5000 + "}", "row 1 is not JSON"),
    "s.jsonl cut": ('{"path": "a", "label": 0, "score": 0.5}\n{"path": ', "row 2 is not JSON .*: write one"),
    "s.jsonl array": ('[1, 2]', "row 1 is not an object but"),
    "s.jsonl empty": ("\n\n", "s.jsonl has no rows"),
    "s.jsonl latin": (b'{"path": "\xe9", "label": 0, "score": 1}', "cannot read .*s.jsonl as JSON"),
    "s.jsonl half": (b'{"path": "a", "label": "\\ud83d", "score": 1}', "row 1, column 'label': half a character"),
    "s.json scalar": ("[3]", "row 1 is not an object but 3"),
    "s.json columns": ('{"path": ["a"], "label": [0], "score": [1]}', "row 1, column 'path' holds .* give one value"),
    "s.parquet damaged": ("PAR1", "cannot read .*s.parquet as Parquet"),
    "s.xlsx": ("x", r"s.xlsx is none of .parquet .csv .tsv .jsonl .ndjson .json: save it as one of them"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_tables_are_refused_in_one_line(tmp_path, case) -> None:
    content, says = REFUSED[case]
    path = tmp_path / (case.split()[0] if case.startswith("s.") else "s.csv")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    named = {"no generator is real": Columns(generator="model"), "speaks for real": Columns(score="p_real")}
    with pytest.raises(Refusal, match=says) as refused:
        read([path], named.get(case))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize("flag", ["score", "label", "path", "group_by", "generator", "view", "split"])
def test_a_named_column_that_is_not_there_is_refused(flag) -> None:
    with pytest.raises(Refusal, match=rf"--{flag} nope: there is no such column \(found: file, is_fake, p\)"):
        adapt.evaluate(GOOD, **{flag: "nope"})


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(Refusal, match=r"columns differ in length \(file 40, is_fake 40, p 39\)"):
        adapt.evaluate(GOOD | {"p": GOOD["p"][1:]})


# -- a file a view ---------------------------------------------------------------------------------------------------


def test_a_file_a_view_is_one_table_whose_scores_are_judged_together(tmp_path) -> None:
    clean = write(tmp_path / "clean.csv", GOOD | {"p": (8 * P - 4).tolist()})
    small = write(tmp_path / "q40.csv", GOOD | {"p": (0.1 + 0.5 * P).tolist()})  # alone they would be probabilities
    found = read([clean, small], views=("none", "qf40"))
    assert found.scores["view"].tolist() == ["none"] * N + ["qf40"] * N
    np.testing.assert_array_equal(found.scores["logit"], np.concatenate([8 * P - 4, 0.1 + 0.5 * P]))
    with pytest.raises(Refusal, match="has a column 'view' already"):
        read([write(tmp_path / "v.csv", GOOD | {"view": ["none"] * N}), small], views=("none", "qf40"))
    other = write(tmp_path / "o.csv", {"image": GOOD["file"], "is_fake": GOOD["is_fake"], "p": GOOD["p"]})
    with pytest.raises(Refusal, match=r"o.csv has other columns than .*clean.csv"):
        read([clean, other], views=("none", "qf40"))
    with pytest.raises(Refusal, match=r"clean.csv .*l.csv: path '0.png' has generator 'fake' and 'real'"):
        read([clean, write(tmp_path / "l.csv", GOOD | {"is_fake": [1, *GOOD["is_fake"][1:]]})], views=("none", "qf40"))

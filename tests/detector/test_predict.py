"""A detector on unknown files: one row each, and the same bytes however the work is cut, shuffled or killed."""

import dataclasses
import json
import math
import os
import random
import signal
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zoo
from processes import in_children

from adapt.commands import predict
from adapt.data.crops import Crops
from adapt.data.images import decode, read_image
from adapt.data.inputs import find_inputs
from adapt.data.manifest import Manifest
from adapt.data.tables import read_table
from adapt.detector import finished_batches as journal
from adapt.detector import predict as library
from adapt.detector import predict_maps
from adapt.detector.detector import Detector, load_detector, score
from adapt.errors import Refusal
from adapt.evaluation.decision import Decision, fit_decision, read_decision
from adapt.evaluation.open_set import familiarity
from adapt.evaluation.scores import Scores
from adapt.models.heads.linear import LinearHead
from adapt.models.heads.probes import Probe
from adapt.models.towers.backbones import load_backbone

FAMILIES = ("real", "gan", "diffusion")


@pytest.fixture(autouse=True)
def alone(one_thread):
    """In every test, and in the children that it forks."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """80 pictures, three batches, among them what cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep" / "er").mkdir(parents=True)
    for i in range(80):
        place = folder / ("deep/er" if i % 3 else ".")
        data = zoo.save(zoo.picture(70, 66, seed=i), "JPEG", quality=30 + i % 60)
        (place / f"{i:02d}.jpg").write_bytes(data if i % 9 else data[: len(data) // 2])
    return folder


@pytest.fixture(scope="module")
def detectors(photos, tmp_path_factory) -> dict[str, Path]:
    """A binary detector and one of families, with random heads that find about half of the pictures fake."""
    folder, backbone = tmp_path_factory.mktemp("detectors"), load_backbone("tiny")
    generator = torch.Generator().manual_seed(0)
    heads = {"linear": LinearHead(backbone.dim), "families": Probe(backbone.dim, FAMILIES, "logistic")}
    for name, head in heads.items():
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model, readable = (
            Detector(backbone, head).eval(),
            [photos / "deep/er" / f"{i:02d}.jpg" for i in range(1, 80, 3)],
        )
        with torch.no_grad():
            logits = model(torch.stack([backbone.preprocess(read_image(file)) for file in readable]))
        model.threshold = float(logits.median())
        model.save(folder / name, {})
    return {name: folder / name for name in heads}


@pytest.fixture
def config(detectors, photos, tmp_path) -> predict.Config:
    return predict.Config((detectors["families"],), (str(photos),), tmp_path / "x.csv", num_workers=0)


@pytest.fixture(scope="module")
def whole(detectors, photos, tmp_path_factory) -> bytes:
    """The table of the uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "whole.csv"
    predict.main(predict.Config((detectors["families"],), (str(photos),), output, num_workers=0))
    return output.read_bytes()


def rows_of(path: Path) -> list[dict[str, str]]:
    columns = read_table(path)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def images(folder: Path) -> list[str]:
    return [str(file) for file in folder.rglob("*") if file.is_file()]


def test_logits_are_those_of_score(detectors, photos, tmp_path) -> None:
    for name, folder in detectors.items():
        predict.main(predict.Config((folder,), (str(photos),), tmp_path / f"{name}.csv", num_workers=0))
        rows = rows_of(tmp_path / f"{name}.csv")
        n = len(rows)
        table = {"path": [row["path"] for row in rows], "group": [str(i) for i in range(n)]}
        manifest = Manifest.of(table | {"generator": ["real"] * n, "split": ["test"] * n}, photos)
        detector = load_detector(folder)
        expected = score(detector, manifest, np.arange(n), ("none",))
        assert [row["status"] == "ok" for row in rows] == list(expected.ok) and not expected.ok.all()
        read = [row for row in rows if row["status"] == "ok"]
        np.testing.assert_allclose([float(row["logit"]) for row in read], expected["logit"][expected.ok], rtol=6e-6)
        np.testing.assert_allclose([float(row["p_fake"]) for row in read], expected["p_fake"][expected.ok], rtol=1e-4)
        fake = expected["logit"][expected.ok] >= detector.threshold
        assert [row["verdict"] == "fake" for row in read] == list(fake) and 5 < fake.sum() < len(read) - 5
        assert all(row["logit"] == row["verdict"] == "" for row in rows if row["status"] != "ok")


def test_family_is_the_most_probable_class_of_a_fake(detectors, photos, whole, tmp_path) -> None:
    (tmp_path / "x.csv").write_bytes(whole)
    detector = load_detector(detectors["families"])
    seen = set()
    for row in rows_of(tmp_path / "x.csv"):
        if row["verdict"] != "fake":
            assert row["family"] == row["family_probability"] == ""
            continue
        image = detector.backbone.preprocess(decode((photos / row["path"]).read_bytes()))[None]
        with torch.no_grad():
            logits = detector.head.class_logits(detector.backbone(image))[0].double().numpy()
        p = np.exp(logits) / np.exp(logits).sum()
        assert row["family"] == FAMILIES[1 + p[1:].argmax()]
        assert float(row["family_probability"]) == pytest.approx(p[1:].max(), rel=1e-4)
        assert float(row["p_fake"]) == pytest.approx(1 - p[0], rel=1e-4)
        seen.add(row["family"])
    assert seen == {"gan", "diffusion"}


def test_a_linear_head_names_no_family(detectors, photos, tmp_path) -> None:
    one = str(photos / "03.jpg")
    predict.main(predict.Config((detectors["linear"],), (one,), tmp_path / "x.csv", num_workers=0))
    (row,) = rows_of(tmp_path / "x.csv")
    assert row["path"] == "03.jpg" and row["verdict"] and not row["family"] and not row["family_probability"]


def test_verdict_by_the_threshold_as_written() -> None:
    def verdict(logit: float, threshold: float) -> str:
        return library.row_of("a", library.Known(), "", logit, library.written(Decision().rules(threshold)), (), None)[
            "verdict"
        ]

    assert verdict(0.25, 0.25) == "fake" and verdict(math.nextafter(0.25, 0), 0.25) == "fake"
    assert verdict(0.249999, 0.25) == "real" and verdict(30.0, math.inf) == "real" and verdict(-800.0, 0) == "real"
    lost = library.row_of("a", library.Known(), "", math.nan, Decision().rules(0.0), (), None)
    assert lost["status"] == "not-finite" and lost["logit"] is None and lost["verdict"] is None


def fitted(folder: Path, like: Path, photos: Path) -> Path:
    """The detector of families with a decision from made-up validation scores, spread like its own logits."""
    detector = load_detector(like)
    files = [photos / "deep/er" / f"{i:02d}.jpg" for i in range(1, 80, 3)]
    with torch.no_grad():
        features = detector.backbone(torch.stack([detector.backbone.preprocess(read_image(file)) for file in files]))
        spread, own = detector.head(features).std().item(), detector.head.class_logits(features).numpy()
    rng, n = np.random.default_rng(0), 40
    columns = {"path": [str(i) for i in range(3 * n)] * 3, "group": [f"g{i // 3}" for i in range(3 * n)] * 3}
    columns |= {"generator": ["real", "gan", "diffusion"] * 3 * n, "family": ["real", "gan", "diffusion"] * 3 * n}
    columns |= {"split": ["val"] * 9 * n, "view": np.repeat(["none", "qf40", "qf80"], 3 * n)}
    noise = rng.normal(size=9 * n) + np.tile([-0.4, 0.4, 0.4], 3 * n) + np.repeat([0, 0.5, -0.5], 3 * n)
    columns["logit"] = detector.threshold + 0.7 * spread * noise
    drawn = own[rng.integers(len(own), size=9 * n)]
    drawn += 0.1 * spread * rng.normal(size=drawn.shape)  # no image stands exactly on a cut
    columns |= {f"logit_{name}": drawn[:, i] for i, name in enumerate(FAMILIES)}
    detector.decision = fit_decision(Scores(columns))
    detector.save(folder, {})
    return folder


@pytest.mark.parametrize("thresholds", ["global", "quality"])
def test_verdicts_at_a_stated_rate(detectors, photos, tmp_path, thresholds) -> None:
    """The quality in the header chooses the cuts, p_fake is the calibrated one, and families may be unknown."""
    folder = fitted(tmp_path / "fitted", detectors["families"], photos)
    config = predict.Config((folder,), (str(photos),), tmp_path / "x.csv", num_workers=0, error_rate=0.2,
                            thresholds=thresholds, known_recall=0.6)  # fmt: skip
    predict.main(config)
    threshold, decision = read_decision(folder)
    detector, rows = load_detector(folder), [row for row in rows_of(config.output) if row["status"] == "ok"]
    rules = decision.rules(threshold, 0.2, thresholds=thresholds, known_recall=0.6)
    names = {True: "qf40", False: "qf80"} if thresholds == "quality" else dict.fromkeys((True, False), "every")
    seen = set()
    for row in rows:
        logit, cuts = float(row["logit"]), rules.cuts[names[int(row["jpeg_quality"]) <= 60]]
        assert row["verdict"] == str(cuts.verdicts(np.float64(logit)))
        expected = float(decision.calibration(logit))
        assert float(row["p_fake"]) == pytest.approx(expected, rel=1e-5) and row["p_fake"] != str(logit)
        family = ""
        if row["verdict"] == "fake":
            image = detector.backbone.preprocess(decode((photos / row["path"]).read_bytes()))[None]
            with torch.no_grad():
                logits = detector.head.class_logits(detector.backbone(image)).double().numpy()
            family = FAMILIES[1 + logits[0, 1:].argmax()]
            if familiarity(logits)[decision.familiarity][0] < cuts.known:
                family = "unknown"
        assert row["family"] == family and (row["family_probability"] == "") == (family in ("", "unknown"))
        seen |= {row["verdict"], family}
    assert {"real", "fake", "unsure", "unknown"} <= seen and decision.calibration.kind != "none"
    with pytest.raises(Refusal, match="rows of another rules"):
        predict.main(dataclasses.replace(config, error_rate=0.25))


def test_base_rates_and_the_promise_that_is_meant_are_said(detectors, photos, tmp_path, capsys) -> None:
    """p_fake by the log odds in a column of its own, all others as they were; PPV and NPV by counting."""
    folder = fitted(tmp_path / "fitted", detectors["families"], photos)
    usual = predict.Config((folder,), (str(photos),), tmp_path / "a.csv", num_workers=0, error_rate=0.2)
    predict.main(usual)
    said = capsys.readouterr().out
    assert "promised: error_rate 0.2, on average over validation samples, not for each single detector" in said
    assert "prevalence" not in said
    rare = dataclasses.replace(usual, output=tmp_path / "b.csv", prevalence=0.01)
    predict.main(rare)
    said = capsys.readouterr().out
    before, after = rows_of(usual.output), rows_of(rare.output)
    for one, other in zip(before, after, strict=True):
        moved = other.pop("p_fake_at_prevalence")
        assert one.pop("p_fake_at_prevalence") == "" and one == other
        if other["status"] == "ok":
            p = float(other["p_fake"])
            odds = p / (1 - p) * 0.01 / 0.99
            assert float(moved) == pytest.approx(odds / (1 + odds), rel=1e-4) and float(moved) < p
        else:
            assert moved == ""
    threshold, decision = read_decision(folder)
    cuts = decision.rules(threshold, 0.2).cuts["every"]
    alarms = np.mean(decision.tables["real/every"] > cuts.not_real)
    found = np.mean(-decision.tables["fake/every"] > cuts.not_real)
    line = next(line for line in said.splitlines() if line.startswith("at prevalence 0.01: "))
    assert f"fake {0.01 * found / (0.01 * found + 0.99 * alarms):.3f} [" in line
    assert "from 40 validation groups with photographs and 40 with fakes" in line
    page = rare.output.with_suffix(".html").read_text(encoding="utf-8")
    assert "at prevalence 0.01" in page and "not for each single detector" in page
    sure = dataclasses.replace(usual, output=tmp_path / "c.jsonl", confidence=0.9, prevalence=0.5)
    predict.main(sure)
    assert "error_rate 0.2, for this very detector, with probability 0.9" in capsys.readouterr().out
    rows = [json.loads(line) for line in sure.output.read_text().splitlines()]
    assert all(row["p_fake_at_prevalence"] == row["p_fake"] for row in rows)
    unsure = [sum(row["verdict"] == "unsure" for row in of) for of in (before, rows)]
    assert unsure[1] > unsure[0]  # what is promised more surely is said less often
    with pytest.raises(Refusal, match="rows of another rules"):
        predict.main(dataclasses.replace(sure, confidence=0.8))


def test_every_file_of_the_zoo_is_one_row_with_its_reason(detectors, tmp_path) -> None:
    folder = tmp_path / "zoo"
    folder.mkdir()
    for name, (data, _) in zoo.files().items():
        (folder / name).write_bytes(data)
    predict.main(predict.Config((detectors["linear"],), (str(folder),), tmp_path / "zoo.csv", num_workers=1))
    rows = {row["path"]: row for row in rows_of(tmp_path / "zoo.csv")}
    assert rows.keys() == zoo.files().keys()
    for name, (_, expected) in zoo.files().items():
        row = rows[name]
        assert row["status"] == (expected if isinstance(expected, str) else "ok"), name
        assert math.isfinite(float(row["logit"])) if row["status"] == "ok" else row["logit"] == ""
        if row["jpeg_quality"]:
            assert (row["jpeg_quality"], row["jpeg_tables"], row["table_distance"]) == ("75", "standard", "0")
    assert [rows["last-byte.jpg"][name] for name in ("format", "width", "verdict")] == ["JPEG", "48", ""]
    assert rows["rgb.jpg"]["subsampling"] == "4:2:0" and rows["grey.jpg"]["subsampling"] == "grey"
    assert rows["rgb.png"]["jpeg_quality"] == "" and rows["pages.mpo.jpg"]["format"] == "JPEG"


def test_rows_say_how_files_were_decoded_and_which_extra_is_missing(detectors, tmp_path, monkeypatch, capsys) -> None:
    from adapt.data import images as reading

    folder = tmp_path / "phones"
    folder.mkdir()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    monkeypatch.setattr(reading, "MAX_PIXELS", 100 * 100)
    colours = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    for name, data in {
        "a.jpg": zoo.save(zoo.picture(200, 150), "JPEG"),
        "b.gif": zoo.frames("GIF"),
        "c.png": zoo.save(colours, "PNG", icc_profile=zoo.profile()),
        "d.jpg": zoo.HEIC["phone.heic"],
        "e.heic": zoo.HEIC["two.heic"],
        "f.heic": b"no image",
    }.items():
        (folder / name).write_bytes(data)
    config = predict.Config((detectors["linear"],), (str(folder),), tmp_path / "x.csv", num_workers=0)
    predict.main(config)
    found = rows_of(config.output)
    assert [[row[name] for name in ("status", "width", "frames", "dct_scale", "profile")] for row in found] == [
        ["ok", "200", "1", "0.5", ""],
        ["ok", "48", "3", "", ""],
        ["ok", "48", "1", "", "Display P3, ignored"],
        ["unsupported: heic", "", "", "", ""],
        ["unsupported: heic", "", "", "", ""],
        ["not-an-image", "", "", "", ""],
    ]
    hints = [line for line in capsys.readouterr().out.splitlines() if "adapt-aigi[heic]" in line]
    assert len(hints) == 1 and hints[0].startswith("2 files are HEIC")
    page = config.output.with_suffix(".html").read_text(encoding="utf-8")
    for words in ("decoded at 0.5 of its size", "first of 3 pictures", "profile Display P3, ignored"):
        assert page.count(words) >= 1
    seen = dataclasses.replace(config, output=tmp_path / "seen.parquet", profiles="srgb")
    predict.main(seen)
    again = pq.read_table(seen.output).to_pylist()
    assert [row["profile"] for row in again][:3] == [None, None, "Display P3, to sRGB"]
    changed = [row["logit"] != float(old["logit"]) for row, old in zip(again[:3], found, strict=False)]
    assert changed == [False, False, True]
    with pytest.raises(Refusal, match="rows of another profiles"):
        predict.main(dataclasses.replace(seen, profiles="ignore"))


def test_shuffled_repeated_and_overlapping_inputs_give_the_same_bytes(config, photos, whole) -> None:
    files = images(photos)
    for seed, workers in ((1, 0), (2, 2)):
        mixed = [*files, *files[:20], str(photos), str(photos / "deep"), os.path.relpath(photos / "deep" / "er")]
        random.Random(seed).shuffle(mixed)
        output = config.output.with_name(f"{seed}.csv")
        predict.main(dataclasses.replace(config, input=tuple(mixed), output=output, num_workers=workers))
        assert output.read_bytes() == whole


def test_a_batch_is_made_of_the_same_images_whoever_computes_it(detectors, photos) -> None:
    """What the equal bytes rest on where the last bits depend on the company in a batch."""
    detector, (_, inputs) = load_detector(detectors["linear"]), find_inputs([str(photos)])
    seen = []
    detector.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0].numpy().tobytes()))
    every = {n: rows for n, rows, _ in library.predict([detector], inputs, [0, 1, 2])}
    whole, seen[:] = dict(zip(every, seen, strict=True)), []
    assert [len(rows) for rows in every.values()] == [32, 32, 16] and len(set(whole.values())) == 3
    for numbers, workers in (([2], 0), ([2, 1, 0], 2), ([1], 1)):
        again = {n: rows for n, rows, _ in library.predict([detector], inputs, numbers, workers)}
        assert [whole[number] for number in numbers] == seen and all(every[n] == again[n] for n in numbers)
        seen.clear()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_in_any_order_give_the_same_bytes(config, whole, order, capsys) -> None:
    for shard in order:
        assert not config.output.exists()
        predict.main(dataclasses.replace(config, shard=shard, num_shards=3))
        assert ("the last shard writes" in capsys.readouterr().out) == (shard != order[-1])
    assert config.output.read_bytes() == whole


def test_two_processes_give_the_same_bytes(config, whole) -> None:
    assert in_children(lambda: predict.main(config), world=2) == [0, 0]
    assert config.output.read_bytes() == whole
    assert len(list(config.output.with_suffix(".parts").glob("*.jsonl"))) == 2


def test_killed_after_any_batch_and_continued_otherwise(config, whole, monkeypatch) -> None:
    """Killed right after the first row is kept, torn in the middle of the second entry, continued by two processes."""
    append = journal.BatchJournal.append

    def torn(batches, entry) -> None:
        if entry.get("batch") == 1:
            with batches.path.open("ab") as file:
                file.write(json.dumps(entry).encode()[:200])
            os.kill(os.getpid(), signal.SIGKILL)
        append(batches, entry)

    monkeypatch.setattr(journal.BatchJournal, "append", torn)
    assert in_children(lambda: predict.main(config)) == [-signal.SIGKILL]
    assert not config.output.exists()
    monkeypatch.setattr(journal.BatchJournal, "append", append)
    asked = []
    passed_on = predict_maps.judge

    def watched(detectors, inputs, numbers, *others):
        asked.extend(numbers)
        return passed_on(detectors, inputs, numbers, *others)

    monkeypatch.setattr(predict_maps, "judge", watched)
    predict.main(config)
    assert asked == [1, 2] and config.output.read_bytes() == whole


def test_kill_9_at_random_moments_and_the_same_command_continues(config, whole) -> None:
    """By a timer: in the listing, in loading, in the work, in writing the table; once with two processes."""
    draw, killed = random.Random(0), 0
    for attempt in range(40):
        world = 2 if killed == 3 else 1
        moment = draw.uniform(0.02, 0.2) * (1 + attempt)

        def body(moment: float = moment) -> None:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, moment)
            predict.main(config)

        statuses = in_children(body, world)
        if statuses == [0] * world:
            break
        assert -signal.SIGKILL in statuses
        killed += 1
        assert not config.output.exists() or config.output.read_bytes() == whole
    assert killed >= 2 and config.output.read_bytes() == whole


def test_ctrl_c_keeps_finished_rows(config, whole, monkeypatch, capfd) -> None:
    """As a terminal does it: the signal goes to the data process, too. One line, status 130, the same command."""
    add = journal.BatchJournal.add

    def interrupted(journal, number, rows) -> None:
        add(journal, number, rows)
        if number == 1:
            os.killpg(0, signal.SIGINT)

    def body() -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits a deaf ear
        monkeypatch.setattr(journal.BatchJournal, "add", interrupted)
        predict.main(dataclasses.replace(config, num_workers=1))

    assert in_children(body) == [130]
    said = capfd.readouterr()
    assert "Traceback" not in said.err and "stopped: 2 of 3 x 32 files are kept" in said.out
    assert not config.output.exists()
    predict.main(config)
    assert config.output.read_bytes() == whole


def test_the_same_command_again_only_writes_the_table(config, whole, monkeypatch, capsys) -> None:
    predict.main(config)
    said = capsys.readouterr().out
    config.output.unlink()
    monkeypatch.setattr("adapt.detector.detector.load_detector", lambda *_: pytest.fail("nothing is left to compute"))
    predict.main(config)
    cost, _, rest = said.partition("\n")
    assert "1.00 encoder passes per file" in cost and capsys.readouterr().out == rest
    assert config.output.read_bytes() == whole
    rows = rows_of(config.output)
    fakes = sum(row["verdict"] == "fake" for row in rows)
    assert f"real: {71 - fakes}" in said and f"fake: {fakes}" in said and "truncated: 9" in said
    for suffix in (".parquet", ".jsonl"):
        predict.main(dataclasses.replace(config, output=config.output.with_suffix(suffix)))
    parquet = pq.read_table(config.output.with_suffix(".parquet")).to_pylist()
    lines = [json.loads(line) for line in config.output.with_suffix(".jsonl").read_text().splitlines()]
    assert parquet == lines and [*lines[0]] == [*rows[0]]
    assert [{k: "" if v is None else str(v) for k, v in line.items()} for line in lines] == rows


def test_names_that_hurt_round_trip(detectors, tmp_path) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    names = [
        "=cmd()",
        "+1",
        "-1",
        "@x",
        'a"b,c',
        "two\nlines",
        "cr\rhere",
        " blank ",
        ".hidden",
        "UP.JPEG",
        "\udcff\udcfe",
    ]
    names += ["e\u0301.png", "\u00e9.png", "x.tar::y.png", "<b>.png"]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(zoo.save(zoo.picture(seed=seed), "PNG"))
    config = predict.Config((detectors["linear"],), (str(folder),), tmp_path / "x.csv", num_workers=0)
    for suffix in (".csv", ".jsonl"):
        predict.main(dataclasses.replace(config, output=config.output.with_suffix(suffix)))
    rows = rows_of(config.output)
    assert [row["path"] for row in rows] == sorted(names, key=os.fsencode)
    assert {row["path"]: row["status"] for row in rows} == dict.fromkeys(names, "ok") | {
        "x.tar::y.png": "archive-name"
    }
    lines = config.output.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [row["path"] for row in rows]
    with pytest.raises(Refusal, match="not UTF-8, which Parquet needs"):
        predict.main(dataclasses.replace(config, output=tmp_path / "y.parquet"))


def test_links_pipes_and_folders(tmp_path) -> None:
    folder, other = tmp_path / "in", tmp_path / "other"
    (folder / "sub").mkdir(parents=True)
    other.mkdir()
    (other / "secret.png").write_bytes(zoo.save(zoo.picture(), "PNG"))
    (folder / "sub" / "a.png").write_bytes(zoo.save(zoo.picture(), "PNG"))
    (folder / "inside").symlink_to("sub/a.png")
    (folder / "out").symlink_to(other / "secret.png")
    (folder / "outfolder").symlink_to(other)
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "broken").symlink_to("nowhere")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    root, found = find_inputs([str(folder)])
    assert root == str(folder.resolve())
    expected = {"inside": "", "out": "outside", "outfolder": "outside", "broken": "", "circle": "", "pipe": ""}
    assert {item.path: item.reason for item in found} == expected | {"sub/a.png": ""}
    files = library.Files(found, [Crops(load_backbone("tiny").preprocess)])
    reasons = {item.path: files[i][2] for i, item in enumerate(found)}
    expected |= {"broken": "missing", "circle": "io-error", "pipe": "not-a-file", "sub/a.png": ""}
    assert reasons == expected
    # a link that the user names is taken as it is, whatever else lists it
    _, named = find_inputs([str(folder), str(folder / "out")])
    assert {item.path: item.reason for item in named}["out"] == ""


def test_tar_files_and_manifests(detectors, tmp_path) -> None:
    place = tmp_path / "in"
    place.mkdir()
    for i in range(4):
        (place / f"{i}.png").write_bytes(zoo.save(zoo.picture(seed=i), "PNG"))
    (place / "k.json").write_text("{}")
    with tarfile.open(place / "s.tar", "w") as tar:
        for name in ("0.png", "k.json", "1.png"):
            tar.add(place / name, f"x/{name}")
        link = tarfile.TarInfo("x/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    data = (place / "s.tar").read_bytes()
    (place / "cut.tar").write_bytes(data[: data.index(b"x/1.png") + 700])
    (place / "list.csv").write_text(f"path,sha256\n3.png,{'0' * 64}\n./2.png,\n2.png,\ns.tar::x/1.png,\ngone.png,\n")
    names = [str(place / name) for name in ("s.tar", "list.csv", "cut.tar")]
    predict.main(
        predict.Config((detectors["linear"],), (*names, f"{names[0]}::x/0.png"), tmp_path / "o.csv", num_workers=0)
    )
    rows = {row["path"]: row for row in rows_of(tmp_path / "o.csv")}
    status = {"2.png": "ok", "3.png": "sha256-mismatch", "gone.png": "missing", "cut.tar": "bad-archive"}
    status |= {"s.tar::x/0.png": "ok", "s.tar::x/1.png": "ok", "s.tar::x/link.png": "not-a-file"}
    status |= {"cut.tar::x/0.png": "ok", "cut.tar::x/1.png": "truncated"}
    assert {path: row["status"] for path, row in rows.items()} == status
    detector = load_detector(detectors["linear"])
    for path, i in (("s.tar::x/0.png", 0), ("s.tar::x/1.png", 1), ("2.png", 2)):
        with torch.no_grad():
            image = decode((place / f"{i}.png").read_bytes())
            expected = detector(detector.backbone.preprocess(image)[None]).item()
        assert float(rows[path]["logit"]) == pytest.approx(expected, abs=1e-4)
    (place / "bad.csv").write_text("path\n../names.png\n")
    with pytest.raises(Refusal, match="leaves the manifest's folder"):
        find_inputs([str(place / "bad.csv")])
    (place / "none.csv").write_text("file\nx\n")
    with pytest.raises(Refusal, match="no column 'path'"):
        find_inputs([str(place / "none.csv")])


def test_an_output_among_its_inputs_is_no_input(detectors, tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(zoo.save(zoo.picture(), "PNG"))
    config = predict.Config((detectors["linear"],), (str(tmp_path),), tmp_path / "x.csv", num_workers=0)
    predict.main(config)
    first = config.output.read_bytes()
    (tmp_path / ".x.csv.77.tmp").write_bytes(b"left by a kill")
    predict.main(config)
    assert config.output.read_bytes() == first and [row["path"] for row in rows_of(config.output)] == ["a.png"]


def test_what_changed_is_refused(config, detectors, photos, tmp_path) -> None:
    predict.main(config)
    before = config.output.read_bytes()
    with pytest.raises(Refusal, match=r"rows of another detector .*: choose another --output, or delete"):
        predict.main(dataclasses.replace(config, detector=(detectors["linear"],)))
    with pytest.raises(Refusal, match="rows of another inputs"):
        predict.main(dataclasses.replace(config, input=(str(photos / "deep"),)))
    times = (photos / "03.jpg").stat()
    os.utime(photos / "03.jpg", ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    try:
        with pytest.raises(Refusal, match="rows of another inputs"):
            predict.main(config)
    finally:
        os.utime(photos / "03.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert config.output.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": ()}, "no file in no --input"),
        ({"input": ("absent",)}, "no input 'absent'"),
        ({"input": ("EMPTY",)}, "no file in '.*empty': name a folder that holds images"),
        ({"detector": (Path("absent"),)}, "absent is not a complete detector directory"),
        ({"error_rate": 0.05}, "--error_rate 0.05 takes 19 validation groups with fakes, this detector has 0"),
        ({"confidence": 0.9}, "--confidence 0.9 says how surely a rate holds, but none is stated"),
        ({"prevalence": 0.01}, "--prevalence 0.01: without calibration p_fake is for no known share of fakes"),
        ({"thresholds": "quality"}, "this detector has no threshold of a JPEG quality"),
        ({"output": Path("/proc/x.csv")}, "cannot write /proc/x.parts"),
        ({"output": Path("EXISTS.csv")}, "exists, without the .*EXISTS.parts it was made from"),
        ({"output": Path("FOLDER.csv")}, "is a folder or an input"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_refused_before_any_work(config, tmp_path, monkeypatch, change, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "FOLDER.csv").mkdir()
    (tmp_path / "EXISTS.csv").write_text("mine")
    change = {"input": (str(tmp_path / "empty"),)} if change == {"input": ("EMPTY",)} else change
    monkeypatch.setattr("adapt.detector.detector.load_detector", lambda *_: pytest.fail("this is work"))
    with pytest.raises(Refusal, match=message):
        predict.main(dataclasses.replace(config, **change))
    assert (tmp_path / "EXISTS.csv").read_text() == "mine" and not (tmp_path / "x.parts").exists()


def test_config_refuses(config) -> None:
    with pytest.raises(Refusal, match=r"end its name in .csv, .parquet or .jsonl"):
        dataclasses.replace(config, output=Path("x.xlsx"))
    with pytest.raises(Refusal, match="--shard 2: 2 shards are numbered 0 to 1"):
        dataclasses.replace(config, shard=2, num_shards=2)


def test_an_input_as_output_is_refused(config, tmp_path) -> None:
    (tmp_path / "list.csv").write_text("path\na.png\n")
    with pytest.raises(Refusal, match="is a folder or an input"):
        predict.main(dataclasses.replace(config, input=(str(tmp_path / "list.csv"),), output=tmp_path / "list.csv"))


def test_two_at_once_do_not_write_one_journal(config) -> None:
    parts = config.output.with_suffix(".parts")
    with journal.BatchJournal(parts, "0-of-1.0-of-1", {}), pytest.raises(Refusal, match="another process is working"):
        predict.main(config)


def test_damage_between_finished_batches_is_refused_and_a_torn_end_is_cut(tmp_path) -> None:
    what = {"inputs": "a"}
    rows = [dict.fromkeys(library.COLUMNS, ""), dict.fromkeys(library.COLUMNS, "x")]
    with journal.BatchJournal(tmp_path, "0", what) as batches:
        for number in range(3):
            batches.add(number, rows)
    path = tmp_path / "0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:2], lines[2][:30] + b"\n", lines[3]])
    path.write_bytes(damaged)
    for reader in (lambda: journal.kept(tmp_path, what), lambda: journal.BatchJournal(tmp_path, "0", what)):
        with pytest.raises(Refusal, match=r"0\.jsonl: line 3 is damaged .*: delete the damaged line"):
            reader()
    assert path.read_bytes() == damaged
    path.write_bytes(b"".join([*lines[:2], lines[3]]))  # the remedy
    assert list(journal.kept(tmp_path, what)) == [0, 2]
    path.write_bytes(b"".join(lines[:3]) + lines[3][:30])
    assert list(journal.kept(tmp_path, what)) == [0, 1]
    with journal.BatchJournal(tmp_path, "0", what) as batches:
        batches.add(5, rows)
    found = journal.kept(tmp_path, what)
    assert list(found) == [0, 1, 5] and found[5] == rows and path.read_bytes().startswith(b"".join(lines[:3]))


def test_a_journal_without_a_batch_may_begin_with_other_settings(tmp_path) -> None:
    journal.BatchJournal(tmp_path, "0", {"inputs": "a"}).close()
    journal.BatchJournal(tmp_path, "0", {"inputs": "b"}).close()
    assert (tmp_path / "0.jsonl").read_text() == '{"what": {"inputs": "b"}}\n'


@pytest.mark.parametrize(("reals", "guess"), [(19, "a guess: "), (20, "")])
def test_every_prediction_says_what_its_threshold_rests_on(detectors, photos, tmp_path, capsys, reals, guess) -> None:
    """Counted by hand: processed and unreadable images, other splits and further views add nothing."""
    rows = [(f"r{i}", f"g{i}", "real", "val", "", "ok") for i in range(reals)]
    rows += [(f"f{i}", f"g{i // 2}", "gan", "val", "", "ok") for i in range(30)]
    rows += [("p", "g-p", "real", "val", "blur", "ok"), ("u", "g-u", "real", "val", "", "unreadable: cut")]
    rows += [(f"t{i}", f"h{i}", "real", "test", "", "ok") for i in range(50)]
    columns = dict(
        zip(("path", "group", "generator", "split", "edit", "status"), zip(*rows, strict=True), strict=True)
    )
    table = {name: np.repeat(np.array(values, dtype=object), 2) for name, values in columns.items()}
    table |= {"view": np.array(["none", "qf40"] * len(rows), dtype=object)}
    logit = np.where(table["generator"] == "real", -1.0, 1.0) + np.tile([0, 0.2], len(rows))
    detector = load_detector(detectors["families"])
    detector.freeze(Scores(table | {"logit": np.where(table["status"] == "ok", logit, np.nan)}))
    detector.save(tmp_path / "d", {})
    said = f"{guess}best balanced accuracy on {30 + reals} validation images ({reals} real) in {reals} groups, 2 views"
    kept = {"how": "best balanced accuracy", "images": 30 + reals, "reals": reals, "groups": reals, "views": 2}
    assert json.loads((tmp_path / "d" / "detector.json").read_text())["threshold_from"] == kept
    assert f"The threshold's basis: {said}." in (tmp_path / "d" / "README.md").read_text()

    config = predict.Config((tmp_path / "d",), (str(photos),), tmp_path / "x.csv", num_workers=0)
    predict.main(config)
    assert f"\nthreshold (logit): 0.1, {said}\n" in capsys.readouterr().out
    assert f"0.1, {said}" in config.output.with_suffix(".html").read_text(encoding="utf-8")
    for row in rows_of(config.output):
        judged = row["status"] == "ok"
        assert (row["threshold"], row["threshold_from"]) == (("0.1", said) if judged else ("", ""))
        assert not judged or (row["verdict"] == "fake") == (float(row["logit"]) >= 0.1)
    lines = dataclasses.replace(config, output=tmp_path / "z.jsonl", thresholds="quality")
    predict.main(lines)
    found = [json.loads(line) for line in lines.output.read_text().splitlines()]
    assert {row["threshold_from"] for row in found if row["status"] == "ok"} == {f"{said}, one for each JPEG quality"}
    assert {row["threshold"] for row in found if row["status"] == "ok"} == {0.2}  # that of qf40
    stated = dataclasses.replace(config, output=tmp_path / "y.csv", max_false_positive_rate=0.2)
    predict.main(stated)
    words = f"stated false alarms, by {reals + 1} validation groups with photographs"
    assert {row["threshold_from"] for row in rows_of(stated.output) if row["status"] == "ok"} == {words}
    for row in rows_of(stated.output):
        assert row["status"] != "ok" or (row["verdict"] == "fake") == (float(row["logit"]) > float(row["threshold"]))


def test_an_older_detector_says_that_nothing_was_recorded(config, detectors, capsys) -> None:
    predict.main(dataclasses.replace(config, detector=(detectors["families"], detectors["linear"])))
    said = "mean of 2 calibrated thresholds: not recorded; not recorded"
    assert f", {said}\n" in capsys.readouterr().out
    assert {row["threshold_from"] for row in rows_of(config.output) if row["status"] == "ok"} == {said}
    assert "The threshold's basis: not recorded." in (detectors["linear"] / "README.md").read_text()

"""Published figures: the table is whole and valid, refusals name the row, match and miss at their edges."""

import csv
import importlib
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from adapt.cli import parse
from adapt.data.views import parse_view
from adapt.errors import Refusal
from adapt.evaluation.map_metrics import LOCAL
from adapt.evaluation.metrics import Cell, evaluate, index
from adapt.evaluation.replicates import METRICS
from adapt.evaluation.scores import Scores
from adapt.evaluation.targets import (
    FOLDER,
    OTHER,
    OURS,
    Target,
    compare,
    listing,
    ours,
    pattern_listing,
    read_patterns,
    read_sets,
    read_targets,
    select,
)

TARGETS = {target.name: target for target in read_targets()}
SETS = read_sets()
SPOT = [  # typed by hand from the sources: name, value as printed, how it was read, view, metric
    ("clipping-linear-10k-commercial-accuracy", "0.749", "verified", "none", "accuracy"),
    ("clipping-finetune-100k-21sets-qf50-ap", "0.564", "verified", "qf50", "ap"),
    ("clipping-wise-0.4-diffusion-ap", "0.851", "verified", "none", "ap"),
    ("clipping-prompt8-10k-21sets-qf75-accuracy", "0.758", "verified", "qf75", "accuracy"),
    ("cozzolino-svm-n10k-post-auc", "0.841", "decoded", "other: post-processed", "auc"),
    ("cozzolino-svm-n100-auc", "0.848", "decoded", "none", "auc"),
    ("bfree-code-synthbuster-balanced-accuracy", "0.780", "decoded", "none", "balanced_accuracy_at_0.5"),
    ("bfree-bfree-fakeinversion-auc", "0.993", "decoded", "none", "auc"),
    ("bfree-c2p-synthwildx-auc", "0.703", "decoded", "none", "auc"),
    ("bfree-rine-synthbuster-qf80-balanced-accuracy", "0.616", "decoded", "qf80", "balanced_accuracy_at_0.5"),
    ("effort-ufd19-accuracy", "0.9517", "verified", "none", "accuracy"),
    ("effort-ufd19-guided-accuracy-oracle", "0.881", "verified", "none", "balanced_accuracy_oracle"),
    ("fatformer-univfd-diffusion-accuracy", "0.854", "verified", "none", "accuracy"),
    ("rine-2class-compress-ap", "0.977", "verified", "other: compress", "ap"),
    ("iapl-ufd-accuracy", "0.9561", "verified", "none", "accuracy"),
    ("effort-genimage-biggan-accuracy", "0.776", "verified", "none", "accuracy"),
    ("c2p-user-lora-genimage-vqdm-accuracy", "0.570", "verified", "none", "accuracy"),
    ("genimage-resnet50-qf30-accuracy", "0.512", "verified", "qf30", "accuracy"),
    ("drct2m-drct-convnext-accuracy", "0.9655", "verified", "none", "accuracy"),
    ("aigenbench-clip-l-next-auc", "0.9204", "verified", "none", "auc"),
    ("aigibench-unifd-false-alarm", "0.267", "verified", "none", "false_alarm_at_0.5"),
    ("dda-dda-11sets-accuracy", "0.907", "verified", "none", "accuracy"),
    ("forensichub-clip-l-aigc", "0.317", "verified", "none", "unnamed"),
    ("sieve-cf-hard-balanced-accuracy", "0.565", "verified", "other: hard (at most 512 px, quality 40)",
     "balanced_accuracy"),
    ("clipcues-linear-worst-family-ap", "0.37", "verified", "none", "ap"),
    ("seed-table1-qf40-qf40", "0.9813", "verified", "qf40", "accuracy"),
    ("seed-table1-qf40-qf65", "0.9730", "verified", "qf65", "accuracy"),
    ("seed-table1-qf40-qf90", "0.9797", "verified", "qf90", "accuracy"),
    ("seed-table1-qf65-qf40", "0.9450", "verified", "qf40", "accuracy"),
    ("seed-table1-qf65-qf65", "0.9825", "verified", "qf65", "accuracy"),
    ("seed-table1-qf65-qf90", "0.9830", "verified", "qf90", "accuracy"),
    ("seed-table1-qf90-qf40", "0.7744", "verified", "qf40", "accuracy"),
    ("seed-table1-qf90-qf65", "0.8581", "verified", "qf65", "accuracy"),
    ("seed-table1-qf90-qf90", "0.9925", "verified", "qf90", "accuracy"),
    ("seed-table2-18class-mlp", "0.878", "verified", "none", "unnamed"),
    ("seed-synthbuster-accuracy", "0.64", "verified", "none", "accuracy"),
    ("simplicity-pe-lora-r8-chameleon", "0.635", "second hand", "none", "balanced_accuracy_at_0.5"),
    ("simplicity-dinov3sat-linear-chameleon-recall", "0.121", "second hand", "none", "recall_at_0.5"),
    ("pespc-pe-spc-chameleon-qf65", "0.940", "second hand", "qf65", "unnamed"),
    ("fgts-linear-7b-sofakeood-accuracy", "0.8753", "verified", "none", "accuracy"),
    ("ntire-vincentlc-robust-auc", "0.8730", "second hand", "other: distortions of the challenge", "auc"),
    ("dinov3iml-mvss-l-lora64-imd2020", "0.641", "verified", "none", "pixel_f1"),
    ("aigibench-ltd-false-alarm", "0.180", "verified", "none", "false_alarm_at_0.5"),
    ("globalforge-full-realdeg", "0.869", "second hand", "other: one degradation", "balanced_accuracy_at_0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "read", "view", "metric"), SPOT, ids=lambda value: str(value)[:60])
def test_figures_are_those_of_the_sources(name, value, read, view, metric) -> None:
    target = TARGETS[name]
    assert (str(target.value), target.read, target.view, target.metric) == (value, read, view, metric)


def test_the_table_is_whole_and_valid() -> None:
    assert len(TARGETS) == 542
    for target in TARGETS.values():
        assert target.read in ("verified", "decoded", "second hand"), target.name
        assert (target.read == "second hand") == ("transcription" in target.source), target.name
        assert 0 < target.value < 1 and -4 <= target.value.as_tuple().exponent <= -2, target.name
        assert target.data in SETS and target.train_set in {*SETS, "", "as released"}, target.name
        unknown = "not recorded" in target.note or "does not name its metric" in target.note
        assert target.source and (target.metric != "unnamed" or unknown), target.name
        if not target.view.startswith(OTHER):
            parse_view(target.view)
    assert {t.paper for t in TARGETS.values() if t.read == "decoded"} == {
        "Raising the Bar (Cozzolino et al.)",
        "B-Free",
    }  # the two that print plots only
    used = {name for target in TARGETS.values() for name in (target.train_set, target.data)}
    assert set(SETS) <= used  # no set without a figure
    assert str(TARGETS["dda-dda-11sets-accuracy"].spread) == "0.053"


def values(*patterns: str) -> list[float]:
    return [float(target.value) for target in select(list(TARGETS.values()), patterns)]


def mean_of(parts: list[float]) -> float:
    return sum(parts) / len(parts)


def test_published_means_are_the_means_of_their_parts() -> None:
    """Figures that were copied by somebody stand the test that they belong together."""
    for name in ("pe", "dinov3", "siglip2", "metaclip2"):
        each = values(f"simplicity-{name}-linear-genimage-*")
        assert len(each) == 8 and abs(mean_of(each) - values(f"simplicity-{name}-linear-genimage")[0]) < 0.00075
    for name in ("pe", "dinov3"):
        alarm, recall = values(*(f"simplicity-{name}-linear-chameleon-{kind}" for kind in ("false-alarm", "recall")))
        assert abs((1 - alarm + recall) / 2 - values(f"simplicity-{name}-linear-chameleon")[0]) < 0.00075
    for name in ("clip-l", "openclip-l", "clip-h", "blip2", "dinov2-l"):
        *each, mean = values(f"whattruly-rine-{name}-*")
        assert len(each) == 3 and abs(mean_of(each) - mean) < 0.0001
    for protocol, sets in (("cat", 4), ("mvss", 5)):
        for rank in (32, 64):
            *each, mean = values(f"dinov3iml-{protocol}-l-lora{rank}-*")
            assert len(each) == sets and abs(mean_of(each) - mean) < 0.00101
    for method in {name.split("-")[1] for name in TARGETS if name.startswith("aigibench-") and name.endswith("-ap")}:
        alarm, recall, accuracy = values(
            *(f"aigibench-{method}-{kind}" for kind in ("false-alarm", "recall", "accuracy"))
        )
        assert abs((1 - alarm + recall) / 2 - accuracy) < 0.00251, method  # as in the README itself


def test_what_was_wrong_is_right() -> None:
    """What the sources say of rows that the table had with another model, training set, test set or metric."""
    for pattern, column, value in (
        ("rine-ldm-dalle3-*", "train_set", "LDM"),
        ("aigibench-dda-*", "train_set", "DDA-COCO"),
        ("clipping-wise-0.4-gan-*", "test_set", "CLIPping 9 GAN"),
        ("genimage-resnet50-*", "test_set", "GenImage/stable_diffusion_v_1_4"),
        ("drct2m-univfd-accuracy", "train_set", "DRCT-2M SD 1.4"),
        ("ladeda-wildrf-ap", "train_set", "WildRF train"),
        ("clipcues-*", "backbone", "OpenAI CLIP ViT-L/14@336"),
        ("c2p-user-lora-*", "backbone", "CLIP ViT-L/14"),
        ("seed-*", "backbone", "OpenCLIP ViT-L/14 DataComp-1B"),
    ):
        assert {getattr(target, column) for target in select(list(TARGETS.values()), [pattern])} == {value}
    for pattern, words in (
        ("clipping-linear-*", "trained with augmentation"),
        ("sieve-*", "0.65"),
        ("dda-*-chameleon-accuracy", "11,170 fakes and 14,863 photographs"),
    ):
        assert all(words in target.note for target in select(list(TARGETS.values()), [pattern]))
    assert not [t.name for t in TARGETS.values() if "paper_results" in t.source and "adapter" in t.name]


def test_metrics_are_the_evaluators() -> None:
    known = {*METRICS, *LOCAL}
    assert {place[1] for place in OURS.values() if place} <= known


@pytest.mark.parametrize("name", [name for name, found in SETS.items() if found.prepare])
def test_commands_of_the_sets_are_commands(name) -> None:
    """Each is parsed by the source that it names; the manifest it writes is the one that is looked for."""
    source, *flags = SETS[name].prepare.split()
    module = importlib.import_module(f"adapt.collect.sources.{source}")
    options = parse(module.Source, flags)
    assert options.output == SETS[name].manifest
    is_test = name in {target.data for target in TARGETS.values()}
    if source not in ("synthbuster", "synthwildx", "genimage") and name != "AID":  # those have splits of their own
        assert (options.split, options.test) == (("test", 0.25) if is_test else ("auto", 0.0))


def write(path: Path, rows: list[dict], columns: list[str]) -> Path:
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, columns, extrasaction="ignore")
        out.writeheader()
        out.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"read": "unverified"}, "row 2: read 'unverified' is none of verified, decoded, second hand"),
        ({"metric": "acc"}, "row 2: metric 'acc' is none of auc, ap"),
        ({"view": "jpeg40"}, "row 2: .*jpeg40"),
        ({"value": "89.7"}, "row 2: value '89.7' is no fraction"),
        ({"value": "1.1"}, "row 2: value '1.1' is no fraction"),
        ({"value": "nan"}, "row 2: value 'nan' is no fraction"),
        ({"spread": "five"}, "row 2: value 'five'"),
        ({"source": " "}, "row 2: column source is empty"),
        ({"name": "Two Words"}, "row 2: name 'Two Words'"),
        ({"name": "effort-ufd19-accuracy"}, "row 2: name 'effort-ufd19-accuracy' stands twice"),
        ({"metric": "accuracy"}, "effort-ufd19-accuracy and effort-ufd19-ap are figures of one thing"),
    ],
)
def test_a_wrong_row_is_refused(tmp_path, change, message) -> None:
    with (FOLDER / "targets.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = {row["name"]: row for row in reader}
    pair = [rows["effort-ufd19-accuracy"], rows["effort-ufd19-ap"] | change]
    columns = list(reader.fieldnames)
    with pytest.raises(Refusal, match=message):
        read_targets(write(tmp_path / "t.csv", pair, columns))


def test_wrong_columns_are_refused(tmp_path) -> None:
    with pytest.raises(Refusal, match="columns name, paper, expected name, paper, method"):
        read_targets(write(tmp_path / "t.csv", [], ["name", "paper"]))
    text = (FOLDER / "targets.csv").read_text().splitlines()
    (tmp_path / "short.csv").write_text("\n".join([text[0], text[1] + ",more"]))
    with pytest.raises(Refusal, match="row 1: the row has not 13 cells"):
        read_targets(tmp_path / "short.csv")
    sets = [{"name": "a", "origin": "b", "prepare": "folders --folder data", "generators": ""}]
    with pytest.raises(Refusal, match="names no --output"):
        read_sets(write(tmp_path / "s.csv", sets, ["name", "origin", "prepare", "generators"]))


def test_selection() -> None:
    chosen = select(list(TARGETS.values()), ["iapl-*", "effort-ufd19-ap"])
    assert [t.name for t in chosen] == ["effort-ufd19-ap", "iapl-ufd-accuracy", "iapl-genimage-accuracy"]
    with pytest.raises(Refusal, match="'effort-ufd19-app', perhaps you meant 'effort-ufd19-ap'; --list"):
        select(chosen, ["effort-ufd19-app"])


def target(value: str, read: str = "verified", **given) -> Target:
    fields = dict.fromkeys(("paper", "method", "backbone", "train_set", "source", "note"), "")
    fields |= {"name": "t", "test_set": "S", "view": "none", "metric": "auc", "spread": None}
    return Target(**fields | {"value": Decimal(value), "read": read} | given)


def cell(low: float, high: float, value: float = 0.8) -> Cell:
    return Cell("all", "none", "mean:all", "auc", value, low, high, 10, 10)


@pytest.mark.parametrize(
    ("value", "read", "low", "high", "outcome"),
    [
        ("0.897", "verified", 0.85, 0.8965, "match"),  # printed 0.897 may be 0.8965
        ("0.897", "verified", 0.85, 0.8964, "miss"),
        ("0.897", "verified", 0.8975, 0.95, "match"),
        ("0.897", "verified", 0.8976, 0.95, "miss"),
        ("0.90", "verified", 0.85, 0.8950, "match"),  # two digits leave ten times as much
        ("0.90", "verified", 0.85, 0.8949, "miss"),
        ("0.9000", "verified", 0.85, 0.89994, "miss"),
        ("0.897", "decoded", 0.85, 0.8955, "match"),  # a plot: 0.001 more
        ("0.897", "decoded", 0.85, 0.8954, "miss"),
        ("0.897", "decoded", 0.8985, 0.95, "match"),
        ("0.897", "decoded", 0.8986, 0.95, "miss"),
        ("0.860", "verified", 0.85, 0.95, "match"),
        ("0.897", "second hand", 0.8975, 0.95, "match"),  # no more than rounding
        ("0.897", "second hand", 0.8976, 0.95, "miss"),
    ],
)
def test_match_and_miss_at_the_edges(value, read, low, high, outcome) -> None:
    found = compare(target(value, read), cell(low, high, 0.88))
    assert found.outcome == outcome
    assert found.difference == pytest.approx(0.88 - float(value), abs=1e-12)


def test_what_is_missing_is_neither() -> None:
    nan = float("nan")
    for nothing in (None, cell(nan, nan), cell(nan, nan, nan)):
        found = compare(target("0.9"), nothing)
        assert found.outcome == "n/a" and np.isnan(found.difference)


def test_our_number_is_the_one_that_is_meant() -> None:
    """An evaluation of random scores, each metric looked up and computed by hand."""
    rng = np.random.default_rng(0)
    names = ["real", "SD_1.4", "glide"]
    rows = [(g, name, view) for view in ("none", "qf40") for g in range(40) for name in names]
    logit = rng.normal([0.0 if name == "real" else 0.8 for _, name, _ in rows])
    columns = {
        "path": [f"{g}-{name}" for g, name, _ in rows],
        "group": [f"g{g}" for g, _, _ in rows],
        "generator": [name for _, name, _ in rows],
        "split": ["test"] * len(rows),
        "set": ["s"] * len(rows),
        "edit": [""] * len(rows),
        "seen": [""] * len(rows),
        "view": [view for _, _, view in rows],
        "status": ["ok"] * len(rows),
        "logit": logit,
    }
    at = index(evaluate(Scores(columns), 10))
    generator, view = np.array(columns["generator"]), np.array(columns["view"])

    def above(name: str, of: str) -> float:
        return float((logit[(generator == name) & (view == of)] >= 0).mean())

    accuracy = {name: (above(name, "qf40") + 1 - above("real", "qf40")) / 2 for name in names[1:]}
    for given, want in (
        ({"metric": "accuracy"}, np.mean(list(accuracy.values()))),
        ({"metric": "worst_accuracy"}, min(accuracy.values())),
        ({"metric": "accuracy", "test_set": "S/sd1.4"}, accuracy["SD_1.4"]),
        ({"metric": "false_alarm_at_0.5"}, above("real", "qf40")),
        ({"metric": "recall_at_0.5", "test_set": "S/Glide"}, above("glide", "qf40")),
    ):
        assert ours(target("0.5", view="qf40", **given), at).value == pytest.approx(want, abs=1e-12)
    for given in ({"metric": "unnamed"}, {"view": "other: resize"}, {"view": "qf65"}, {"test_set": "S/none"}):
        assert ours(target("0.5", **given), at) is None


def test_the_listing_names_paper_source_value_and_mark() -> None:
    lines = listing(select(list(TARGETS.values()), ["dda-dda-11sets-accuracy", "bfree-code-synthbuster-auc"])).split(
        "\n"
    )
    assert lines[0] == "B-Free (arXiv 2412.17671; B-Free repository, docs/histogram.svg)"
    assert lines[1].split() == [
        *("bfree-code-synthbuster-auc", "0.903", "auc", "none", "ELSA_D3", "->", "Synthbuster", "decoded"),
    ]
    assert "0.907 ±0.053" in lines[3] and lines[3].endswith("verified")


PATTERN = {
    "name": "p",
    "says": "matched is better",
    "above": "seed-table1-qf40-qf40",
    "below": "seed-table1-qf90-qf40",
}


def test_patterns_are_those_of_the_figures() -> None:
    patterns = {pattern.name: pattern for pattern in read_patterns(list(TARGETS.values()))}
    for name, published in (
        ("seed-pattern-at40", 0.9813 - 0.7744),
        ("seed-pattern-at90", 0.9925 - 0.9797),
        ("seed-pattern-fall", 0.9925 - 0.7744),
        ("seed-pattern-asymmetry", ((0.9925 - 0.7744) - (0.9813 - 0.9797)) / 2),
        (
            "seed-pattern-matched",
            (0.9813 + 0.9825 + 0.9925) / 3 - (0.9730 + 0.9797 + 0.9450 + 0.9830 + 0.7744 + 0.8581) / 6,
        ),
    ):
        assert patterns.pop(name).published == pytest.approx(published, abs=1e-12)
    assert not patterns
    assert "+0.2069  tested at quality 40" in pattern_listing(read_patterns(list(TARGETS.values())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"above": "seed-table1-qf40-qf41"}, "row 1: 'seed-table1-qf40-qf41' is no figure of targets.csv"),
        ({"below": ""}, "row 1: says, above and below: none may be empty"),
        ({"below": "dda-safe-11sets-accuracy"}, "row 1: its figures must be one paper's"),
        ({"above": PATTERN["below"], "below": PATTERN["above"]}, "row 1: the published figures deny it: -0.2069"),
        ({"name": "seed-table1-qf40-qf40"}, "row 1: name 'seed-table1-qf40-qf40': no figure's name"),
    ],
)
def test_a_wrong_pattern_is_refused(tmp_path, change, message) -> None:
    path = write(tmp_path / "p.csv", [PATTERN | change], list(PATTERN))
    with pytest.raises(Refusal, match=message):
        read_patterns(list(TARGETS.values()), path)

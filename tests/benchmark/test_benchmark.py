"""The benchmark through its real main, at its smallest, and what --compare calls slower."""

import json
import sys

import pytest

from adapt.benchmark import accuracy
from adapt.benchmark.report import as_lines, compare
from adapt.benchmark.timing import Ratio, Settings, in_turns
from adapt.commands.benchmark import Config, main
from adapt.embedded import read_manifests
from adapt.embedded.world import make_world
from adapt.errors import Refusal


def ratio(costs: list[float], baseline: list[float], ours: str = "ours") -> Ratio:
    return Ratio("stage", "case", ours, "theirs", tuple(costs), tuple(baseline), goal=2)


def test_a_ratio_is_the_median_of_its_rounds() -> None:
    found = ratio([1, 2, 1], [3, 4, 10])
    assert found.each == [3, 2, 10] and found.value == 3 and found.spread == (2, 10)


def test_ways_are_timed_in_turns_and_in_both_orders() -> None:
    called: list[str] = []
    ways = {name: lambda name=name: called.append(name) for name in "abc"}
    seconds = in_turns(ways, Settings(rounds=2))
    assert "".join(called) == "abc" + "abc" + "cba"
    assert set(seconds) == set("abc") and all(len(times) == 2 for times in seconds.values())


def test_only_what_is_surely_slower_is_called_so() -> None:
    def lines(*ratios: Ratio) -> list[dict]:
        return json.loads(json.dumps(as_lines(ratios)))

    old = {"ratios": lines(ratio([1, 1], [4, 5]), ratio([1, 1], [4, 5], "other"), ratio([1, 1], [1, 1], "gone"))}
    page, slower = compare(old, lines(ratio([1, 1], [3, 3.5]), ratio([1, 1], [3, 4.5], "other")))
    assert slower == ["stage | case | ours | theirs"] and page.count("slower") == 1 and "gone" not in page
    assert compare(old, lines(ratio([1, 1], [9, 9])))[1] == []
    with pytest.raises(Refusal, match="nothing in common"):
        compare(old, lines(ratio([1], [1], "new")))


def test_the_recipe_measures_writes_and_compares(tmp_path, one_thread, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["adapt benchmark"])
    few = {"rounds": 1, "small": True, "threads": 1, "backbones": ()}
    main(Config(tmp_path, ("preprocessing", "store"), **few))
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert {line["stage"] for line in written["ratios"]} == {"preprocessing", "store"}
    facts = written["ratios"][0]["facts"]
    assert facts["JPEG pixels"] == "identical" and facts["greatest difference, levels"] <= 1
    assert written["facts"]["threads"] == 1 and written["facts"]["revision"] is not None
    page = (tmp_path / "table.md").read_text()
    assert "Pillow in every pass" in page and "processor" in page
    for line in written["ratios"]:  # as if everything had been a hundred times faster
        line["ratio"], line["spread"] = line["ratio"] * 100, [value * 100 for value in line["spread"]]
    (tmp_path / "old.json").write_text(json.dumps(written))
    with pytest.raises(SystemExit) as end:
        main(Config(tmp_path, ("store",), compare=tmp_path / "old.json", **few))
    assert end.value.code == 1 and "slower than before: store" in capsys.readouterr().err


def test_a_change_of_accuracy_is_found_where_it_is_greatest(tmp_path, one_thread, monkeypatch) -> None:
    world = make_world(tmp_path / "world", seed=5, scenes=(8, 3, 3), processes=1)
    settings = Settings(folder=tmp_path, manifest=(str(world),))
    own, fp32 = accuracy.measure(settings)
    assert "44 views x generators" in own.case  # 4 views of the 11 test generators
    for ratio in (own, fp32):
        change, cells = ratio.facts["largest change of AUC"], ratio.facts["cells above the limit"]
        assert ratio.value == pytest.approx(0.001 / max(change, 1e-9), rel=1e-3) and (cells > 0) == (change > 0.001)
    features = accuracy._features(read_manifests(settings.manifest), "fp32", settings)
    monkeypatch.setattr(accuracy, "_features", lambda *_: features)
    assert [ratio.facts["largest change of AUC"] for ratio in accuracy.measure(settings)] == [0, 0]
    before, after = ({("", "v", "a"): a, ("", "v", "b"): b} for a, b in ((0.5, 0.5), (0.501, 0.3)))
    worst = accuracy._against("", "", before, after)
    assert worst.value == pytest.approx(0.005) and worst.facts["its view and generator"] == "v b"


def test_mistakes_are_refused(tmp_path) -> None:
    (tmp_path / "x.json").write_text("{}")
    for settings, message in (
        ({"compare": tmp_path / "x.json"}, "not a benchmark.json"),
        ({"compare": tmp_path / "gone.json"}, "No such file"),
        ({"photos": tmp_path}, "no .jpg"),
    ):
        with pytest.raises(Refusal, match=message):
            main(Config(tmp_path, ("store",), **settings))

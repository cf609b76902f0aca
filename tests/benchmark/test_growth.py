"""Planning: the products are right, the rate is the measured one. The benchmark's stages agree with what they time."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from adapt.benchmark import growth, heads, metrics, training
from adapt.benchmark.timing import Settings
from adapt.commands import plan
from adapt.data.images import read_image
from adapt.errors import Refusal
from adapt.evaluation.open_set import classes_of
from adapt.evaluation.scores import Scores


def test_hours_and_disk() -> None:
    config = plan.Config(
        images=(3_600_000,), devices=(1, 4), views=("none", "qf40"), dim=100, tokens=500, image_kb=200
    )
    header, one, four = plan.lines(config, rate=100.0)
    assert dict(zip(header, one, strict=True)) == {
        "images": "3,600,000",
        "devices": "1",
        "hours": "10.00",
        "features": "3.11 GB",  # 3.6e6 x 2 x (400 + 32)
        "tokens": "7.2 GB",  # 3.6e6 x 2 x 1000
        "image files": "720 GB",
        "manifest": "468 MB",  # 3.6e6 x 130
        "MB/s read": "20",
    }
    assert four[2] == "2.50" and four[3:7] == one[3:7] and four[7] == "80"
    assert [plan.size(count) for count in (999, 1000, 2.5e12, 7e15)] == ["999 B", "1 kB", "2.5 TB", "7 PB"]


def case(model: str) -> str:
    return f"{model}, 30 photographs x 4 views"


def test_rate_is_that_of_the_architecture(tmp_path, capsys) -> None:
    path = tmp_path / "benchmark.json"
    rows = [
        ("encoder", "ViT-L-14, batch 8", "packed", [1.0]),
        ("pipeline", case("ViT-B-32"), "extract", [1, 0.25, 0.2]),
    ]
    rows += [
        ("pipeline", case("ViT-L-14"), "extract", [2.0]),
        ("pipeline", case("ViT-L-14"), "from the cache", [0.01]),
    ]
    keys = ("stage", "case", "ours", "costs")
    path.write_text(json.dumps({"ratios": [dict(zip(keys, row, strict=True)) for row in rows]}))
    assert plan.rate_of(plan.Config(benchmark=path))[0] == 15.0  # 30 photographs in 2 s
    assert plan.rate_of(plan.Config(benchmark=path, views=("none", "qf40")))[0] == 30.0
    plan.main(plan.Config(benchmark=path, backbone="open_clip:ViT-B-32@openai"))
    said = capsys.readouterr().out
    assert said.startswith("120.0 images/s per device, each under 4 views")
    assert "--manifest part-$SLURM_ARRAY_TASK_ID.parquet" in said and "--num_shards" not in said  # a part for each job
    assert "--num_shards 64" in plan.commands(plan.Config(images=(plan.MOST_ROWS,)))
    assert f"{1e6 / 120 / 3600:,.2f}" in said and f"{5e9 / 120 / 64 / 3600:,.2f}" in said
    assert shlex.split(plan.commands(plan.Config()))[0] == "sbatch"
    assert {"--signal=TERM@60", "--requeue"} <= set(shlex.split(plan.commands(plan.Config())))
    with pytest.raises(Refusal, match="no rate of ViT-H-14"):
        plan.rate_of(plan.Config(benchmark=path, backbone="open_clip:ViT-H-14@x"))
    path.write_text("[]")
    with pytest.raises(Refusal, match=r"is no benchmark\.json"):
        plan.rate_of(plan.Config(benchmark=path))
    with pytest.raises(Refusal, match="give --benchmark"):
        plan.rate_of(plan.Config())


def test_plain_lora_computes_the_formula(monkeypatch) -> None:
    """The baseline is a LoRA: W + s B A, by another way of multiplying."""
    monkeypatch.setattr(training, "DROPOUT", 0.0)
    torch.manual_seed(0)
    layer = training.PlainLoRA(torch.randn(6, 5), torch.randn(6))
    torch.nn.init.normal_(layer.b)
    x = torch.randn(3, 4, 5)
    expected = x @ (layer.weight + training.ALPHA / training.RANK * layer.b @ layer.a).T + layer.bias
    torch.testing.assert_close(layer(x), expected)
    attention = torch.nn.MultiheadAttention(12, 3, batch_first=True).requires_grad_(False)
    y = torch.randn(2, 5, 12)
    plain = training.PlainAttention(attention)(y, y, y)[0]
    torch.testing.assert_close(plain, attention(y, y, y, need_weights=False)[0], atol=1e-5, rtol=1e-5)


def test_metrics_stage_agrees_with_scikit_learn_and_evaluates_a_drawn_table(tmp_path) -> None:
    ratio, growth = metrics.measure(Settings(rounds=1, small=True, folder=tmp_path))
    assert ratio.facts["largest difference"] < 1e-12 and ratio.facts["distinct scores"] < 500
    assert growth.facts["MiB, 960 rows"] > 0
    metrics.write_scores(tmp_path / "s.parquet", 2400)
    scores = Scores.read(tmp_path / "s.parquet")
    assert len(scores) == 2400 and (scores["split"] == "val").sum() == 240 and classes_of(scores) == ("real", "a", "b")


def test_heads_stage() -> None:
    (ratio,) = heads.measure(Settings(rounds=1, small=True))
    assert abs(ratio.facts["AUC of ours"] - ratio.facts["AUC of LinearSVC"]) < 0.02
    assert heads.exponent([10, 100, 1000], [2 * 10**1.5, 2 * 100**1.5, 2 * 1000**1.5]) == pytest.approx(1.5)


def test_images_of_the_growth_stage_differ_in_bytes_only(tmp_path) -> None:
    rows = growth.write_images(tmp_path, 1002)
    files = [rows["file"][i] for i in (0, 1, 1001)]
    assert len({Path(file).read_bytes() for file in files}) == 3
    first, *others = (np.asarray(read_image(file, "")) for file in files)
    assert all(np.array_equal(first, other) for other in others)

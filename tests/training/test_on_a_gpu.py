"""Every recipe and command that computes on a device, through its real `main`, on a simulated GPU.

Nothing may mix tensors of the GPU and of the CPU, and the scores are those of the CPU. Left out: recipes that only
start others (ablation, frontier, reproduce, check_world) or only read images (color_stability), and those that compute
on a CPU (head_scaling, pretrain_tiny).
"""

import dataclasses
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import color_fusion
import jpeg_matrix
import linear_probe
import localize
import lora
import numpy as np
import onboard
import open_clip  # noqa: F401 (as peft and adapt.training.report: loaded once here, inherited by every child)
import pair
import peft  # noqa: F401
import pytest
import refine
import simulated_cuda
import tip_adapter
import torch
import understand
from processes import in_children

import adapt.training.report  # noqa: F401
from adapt import cli
from adapt.collect.composites import Recipe, write_composites
from adapt.commands import crops, extract, predict
from adapt.commands import test as test_command
from adapt.data.manifest import Manifest
from adapt.embedded.world import make_world
from adapt.evaluation.scores import Scores
from adapt.models.adapters.low_rank import JoinedQKV
from adapt.models.heads.linear import LinearHead
from adapt.training.run import Run

VIEWS = {"train_views": ("none",), "test_views": ("none",)}
STEPS = {"epochs": 1, "groups": 4, "precision": "fp32"}
UPDATE = {"rank": 2, "last_blocks": 1}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("world") / "world"
    return str(make_world(folder, seed=7, scenes=(8, 4, 4), trace="planted", processes=1))


@pytest.fixture(scope="module")
def on_cpu(manifest, tmp_path_factory) -> Path:
    """What lora.py leaves on a CPU."""
    folder = tmp_path_factory.mktemp("cpu") / "run"
    lora.main(lora_config(manifest, folder))
    return folder


def common(manifest: str, folder: Path) -> dict:
    return {"manifest": (manifest,), "output_dir": folder, "num_workers": 0, "resamples": 5}


def lora_config(manifest: str, folder: Path) -> lora.Config:
    return lora.Config(**common(manifest, folder), **VIEWS, **STEPS, rank=2)


def on_gpu(body: Callable[[], object]) -> int:
    """Exit status of a child that computes on a simulated GPU."""

    def child() -> None:
        warnings.filterwarnings("ignore", "'pin_memory' argument is set")  # there is no GPU whose memory to pin
        simulated_cuda.device()
        body()
        assert sum(simulated_cuda.operations.values()) > 20, "hardly anything ran on the device"

    return in_children(child)[0]


def test_the_simulated_device_refuses_what_cuda_refuses() -> None:
    def body() -> None:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert (
            there.device.type == "cuda" and (there + 1).device.type == "cuda" and (there * 2).cpu().tolist() == [2] * 3
        )
        assert (there + torch.tensor(1.0)).tolist() == [2.0] * 3  # numbers may lie on the CPU
        for refused in (lambda: there + here, lambda: torch.cat([there, here]), lambda: here[there.long()]):
            with pytest.raises(RuntimeError, match="same device"):
                refused()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(there)
        with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        head = torch.nn.Linear(3, 1).to("cuda")
        with pytest.raises(RuntimeError, match="same device"):
            head(here)
        head(there).sum().backward()
        assert head.weight.grad.device.type == "cuda" and head.weight.grad.tolist() == [[1.0] * 3]
        for _ in range(20):
            there = there + 1

    assert on_gpu(body) == 0


def test_lora_gives_the_scores_of_a_cpu(manifest, on_cpu, tmp_path) -> None:
    def body() -> None:
        joined, at_once = [], JoinedQKV.__call__
        JoinedQKV.__call__ = lambda qkv, x: joined.append(len(x)) or at_once(qkv, x)
        lora.main(lora_config(manifest, tmp_path / "run"))
        assert joined  # q, k and v of a GPU are one product
        assert simulated_cuda.operations["aten::convolution"] and simulated_cuda.operations["aten::_fused_adamw_"]

    assert on_gpu(body) == 0
    logits = [Scores.read(folder / "scores.parquet")["logit"] for folder in (on_cpu, tmp_path / "run")]
    assert np.std(logits[0]) > 0.1
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-3)


CASES = {
    "lora-family": (lora, {**VIEWS, **STEPS, **UPDATE, "classes": "family", "permutations": 1}),
    "lora-tokens": (lora, {**VIEWS, **STEPS, **UPDATE, "cache_prefix": True, "checkpoint_activations": True}),
    "lora-norm": (lora, {**VIEWS, **STEPS, "targets": "norm"}),
    "lora-svd": (lora, {**VIEWS, **STEPS, **UPDATE, "update": "svd"}),
    "pair-head": (pair, {**VIEWS, **STEPS, "arms": ("matched",), "seeds": (0,), "consistency": 1.0}),
    "pair-head-family": (pair, {**VIEWS, **STEPS, "arms": ("random",), "seeds": (0,), "classes": "family"}),
    "pair-lora": (
        pair,
        {**VIEWS, **STEPS, "arms": ("matched",), "seeds": (0,), "tune": "lora", "rank": 2, "contrastive": 1.0},
    ),
    **{
        f"probe-{head}": (linear_probe, {**VIEWS, "head": head, "classes": classes, "permutations": 1})
        for head, classes in (("svm", "binary"), ("logistic", "family"), ("mlp", "binary"))
    },
    **{
        f"probe-{head}": (linear_probe, {**VIEWS, "head": head, "layer": layer})
        for head, layer in (
            ("rine", "last"),
            ("attention", "block1_tokens"),
            ("fisher", "block1_tokens"),
            ("prototypes", "proj"),
        )
    },
    "tip-adapter": (tip_adapter, {**VIEWS, "shots": (2,), "draws": 1, "epochs": 1}),
    "color-fusion": (color_fusion, {"train_views": ("none",), "test_views": ("none",)}),
    "jpeg-matrix": (jpeg_matrix, {**VIEWS, "heads": ("mlp",), "classes": ("family",)}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_recipe_runs_on_a_gpu(case, manifest, tmp_path, monkeypatch) -> None:
    recipe, flags = CASES[case]
    given = common(manifest, tmp_path / "run") | {"cache": tmp_path / "cache"} | flags
    names = {field.name for field in dataclasses.fields(recipe.Config)}
    assert flags.keys() <= names
    config = recipe.Config(**{name: value for name, value in given.items() if name in names})
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    assert on_gpu(lambda: recipe.main(config)) == 0
    assert any((tmp_path / "run").rglob("table.md"))


def test_a_localiser_trains_on_a_gpu(manifest, tmp_path) -> None:
    parts = write_composites(Manifest.read(manifest), tmp_path / "c" / "m.csv", Recipe(edits=("splice",), low=0.1))
    config = localize.Config(
        manifest=(manifest, str(parts)), output_dir=tmp_path / "run", layer="block1", crop=64, val_views=("none",),
        resamples=5, num_workers=0, **VIEWS, **STEPS,
    )  # fmt: skip
    assert on_gpu(lambda: localize.main(config)) == 0
    wanted = predict.Config(
        detector=(tmp_path / "run/detector",), input=(str(Path(manifest).parent),), output=tmp_path / "p.csv",
        maps=tmp_path / "maps", num_workers=0,
    )  # fmt: skip
    assert on_gpu(lambda: predict.main(wanted)) == 0


def test_what_reads_a_detector_runs_on_a_gpu(manifest, on_cpu, tmp_path, monkeypatch) -> None:
    detector, shared = on_cpu / "detector", {"manifest": (manifest,), "num_workers": 0, "resamples": 5}
    folder = str(Path(manifest).parent)
    jobs: dict[str, tuple] = {
        "refine": (refine, refine.Config(**shared, **VIEWS, **STEPS, init=detector, onboard="style", shots=1,
                                         output_dir=tmp_path / "refine")),
        "onboard": (onboard, onboard.Config(**shared, **VIEWS, detector=detector, generator="style", shots=(1,),
                                            seeds=(0,), methods=("probe", "tip", "tip-f"), cache=tmp_path / "cache",
                                            output_dir=tmp_path / "onboard")),
        "understand": (understand, understand.Config(
            **shared, detector=detector, groups=3, views=("shuffle32", "lowpass0.125"), spectra_views=("none",),
            train_groups=4, mapped=2, eps=(1,), steps=1, qualities=(90,), examples=1, cache=tmp_path / "cache",
            output_dir=tmp_path / "understand")),
        "predict": (predict, predict.Config(detector=(detector, detector), input=(folder,), num_workers=0,
                                            output=tmp_path / "p.csv")),
        "test": (test_command, test_command.Config(**shared, detector=(str(detector),), output_dir=tmp_path / "t")),
        "crops": (crops, crops.Config(**shared, detector=detector, test_views=("none",), output_dir=tmp_path / "c")),
        "extract": (extract, extract.Config(manifest=(manifest,), views=("none",), layers=("all",), num_workers=0,
                                            cache=tmp_path / "other")),
    }  # fmt: skip
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    for name, (module, config) in jobs.items():
        assert on_gpu(partial(module.main, config)) == 0, name


@pytest.mark.parametrize("fast", [False, True])
def test_training_takes_repeatable_kernels_unless_told_otherwise(fast, manifest, tmp_path) -> None:
    """Without warn_only, which would leave attention's backward pass as it is; and TF32 only where it is asked for."""
    flags = {"fast_kernels": fast, "tf32": fast}
    config = dataclasses.replace(lora_config(manifest, tmp_path / "run"), **flags)

    def settings() -> tuple[bool, bool, bool, bool]:
        strict = (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        products = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        return strict, torch.backends.cudnn.deterministic, *products

    def body() -> None:
        seen, step = [], Run.step
        Run.step = lambda run, *values: seen.append(settings()) or step(run, *values)
        lora.main(config)
        assert set(seen) == {(not fast, True, fast, fast)}
        assert settings() == (False, True, False, False)  # scoring goes without

    assert on_gpu(body) == 0


def test_an_operation_that_is_not_repeatable_is_one_line(manifest, tmp_path, capfd) -> None:
    def body() -> None:
        forward = LinearHead.forward

        def with_one(head, features):
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))  # refused on CPUs and GPUs alike
            return forward(head, features)

        LinearHead.forward = with_one
        sys.argv = ["lora.py", "--manifest", manifest, "--output_dir", str(tmp_path / "run"), "--epochs", "1",
                    "--num_workers", "0", "--precision", "fp32"]  # fmt: skip
        cli.run(lora.main, lora.Config)

    assert on_gpu(body) == 2
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("error:"))
    assert "put_" in line and "does not have a deterministic implementation: give --fast_kernels" in line

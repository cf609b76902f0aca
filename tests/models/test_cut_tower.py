"""The tower cut in two: the same logits and gradients, less kept, and a cache below that changes nothing else."""

import dataclasses
import json
import os
import shutil
import signal
from types import SimpleNamespace

import lora
import numpy as np
import pytest
import test_towers as towers
import torch
from processes import in_children
from torch import nn

from adapt.detector.detector import Detector
from adapt.errors import Refusal
from adapt.features.shards import Space, stored, write_shard
from adapt.models.adapters.cut_tower import Prefix, TrainedPart, trained_part
from adapt.models.adapters.lora import add_adapter
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import load_backbone
from adapt.training import checkpoint
from adapt.training import tokens as prefix
from adapt.training.micro_batches import accumulation_that_fits, kept_bytes
from adapt.training.run import Run

small = towers.small  # the fixture: one tower of every kind


def detector(layer: str = "last", precision: str = "fp32", name: str = "tiny", **options) -> Detector:
    backbone = load_backbone(name, layer).to_precision(precision)
    add_adapter(backbone, **{"targets": "all", "rank": 4} | options)
    made = Detector(backbone, LinearHead(backbone.dim))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in made.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return made.train()


def pixels(n: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def gradients(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(2)  # of dropout
    model.zero_grad()
    logits = model(inputs)
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("options", [{}, {"last_blocks": 1}, {"last_blocks": 3, "dropout": 0.2}, {"targets": "norm"}])
@pytest.mark.parametrize("layer", ["last", "proj"])
def test_logits_and_gradients_are_the_detectors(layer, options) -> None:
    whole = detector(layer, **options)
    # dropout draws other masks for one token than for all of them, so the last block must not be the one that drops
    blocks = whole.backbone.tower.base_model.model.transformer.resblocks
    for module in blocks[-1].modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    logits, expected = gradients(whole, pixels())
    for recompute in (False, True):
        part = TrainedPart(whole.backbone, whole.head, recompute)
        assert part.start == (4 - options["last_blocks"] if "last_blocks" in options else 0)
        found, grads = gradients(part, pixels())
        torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)
        assert grads.keys() == expected.keys()
        for name, grad in grads.items():
            assert (grad - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-7, name


@pytest.mark.parametrize("options", [{}, {"last_blocks": 1}, {"targets": "norm"}])
def test_towers_of_every_library_are_cut(small, options) -> None:
    """Logits and gradients of the cut tower, from pixels and from stored tokens, are those of the tower itself."""
    kind, name, _ = small
    layers = ["last", *["proj"] * ("proj" in load_backbone(name).layers())]
    for layer in layers:
        whole = detector(layer, name=name, **options)
        images = towers.pixels(3)
        logits, expected = gradients(whole, images)
        for recompute in (False, True):
            part = trained_part(whole, recompute=recompute)
            assert isinstance(part, TrainedPart) and part.start == (
                towers.DEPTH - 1 if "last_blocks" in options else 0
            )
            with torch.no_grad():
                stored = part.lower(images).flatten(1).float()
            inputs = [images, stored] if part.start else [images]  # adapted norms may stand before the blocks
            for given in inputs:
                found, grads = gradients(part, given)
                torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)
                assert grads.keys() == expected.keys()
                for key, grad in grads.items():
                    assert (grad - expected[key]).norm() <= 1e-4 * expected[key].norm() + 1e-6, (kind, layer, key)


@pytest.mark.parametrize("kind", ["Dinov2", "DINOv3ViT", "ViT-B-16-SigLIP2"])
def test_towers_of_every_library_are_cut_in_bf16(kind, tmp_path, monkeypatch) -> None:
    if kind in towers.OPEN_CLIP:
        towers.small_open_clip(kind, tmp_path / "model", monkeypatch)
    else:
        towers.small_transformers(kind, tmp_path / "model")
    library = "open_clip:local-dir" if kind in towers.OPEN_CLIP else "transformers"
    whole = detector(name=f"{library}:{tmp_path / 'model'}", precision="bf16", last_blocks=2)
    part = trained_part(whole)
    logits, _ = gradients(whole, towers.pixels())
    found, _ = gradients(part, towers.pixels())
    assert isinstance(part, TrainedPart) and (found - logits).norm() < 0.02 * logits.norm()
    with torch.no_grad():
        stored = part.lower(towers.pixels()).flatten(1).float()
    assert part(stored).equal(part(towers.pixels()))


def compiles(whole: Detector, inputs: torch.Tensor, backend: str, monkeypatch, **options) -> TrainedPart:
    """The trained part with this backend of torch.compile, which must come by as one graph."""
    compile_, graphs = torch.compile, []

    def counted(graph, example):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, example)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **asked: compile_(function, backend=counted, **asked))
        part = trained_part(whole, compiled=True, **options)
    logits, expected = gradients(trained_part(whole, **options), inputs)
    torch._dynamo.reset()
    found, grads = gradients(part, inputs)
    assert len(graphs) == 1
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-5)
    for name, grad in grads.items():
        assert (grad - expected[name]).norm() <= 1e-4 * expected[name].norm() + 1e-6, name
    gradients(part, inputs[:2])  # other numbers of images are no reason to compile again
    with torch.no_grad():
        assert part.eval()(inputs[:1]).equal(trained_part(whole, **options).eval()(inputs[:1]))  # scoring is eager
    assert len(graphs) == 1
    return part


@pytest.mark.parametrize(
    ("kind", "recompute"), [("tiny", True), ("DINOv3ViT", False), ("vit_base_patch14_reg4_dinov2", False)]
)
def test_compiled_the_trained_part_is_one_graph_and_the_same(kind, recompute, tmp_path, monkeypatch) -> None:
    """By the graph that torch.compile makes of forward and backward, run without its code generator."""
    name = kind
    if kind in towers.TRANSFORMERS:
        towers.small_transformers(kind, tmp_path / "model")
        name = f"transformers:{tmp_path / 'model'}"
    elif kind in towers.TIMM:
        towers.small_timm(kind, tmp_path / "model")
        name = f"timm:{kind}@{tmp_path / 'model' / 'model.safetensors'}"
    whole = detector(name=name, last_blocks=1)
    size = whole.backbone.preprocess.shape
    images = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    compiles(whole, images, "aot_eager", monkeypatch, recompute=recompute)


@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler for torch.compile")
def test_generated_code_is_the_same_to_rounding(monkeypatch) -> None:
    compiles(detector(last_blocks=1, targets="qv"), pixels(), "inductor", monkeypatch)


def test_with_dropout_the_trained_part_is_still_one_graph(monkeypatch) -> None:
    part = trained_part(detector(last_blocks=1, dropout=0.3))
    part._compiled = torch.compile(part._judge, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    first, again = (gradients(part, pixels()) for _ in range(2))
    assert first[0].equal(again[0])  # drawn from torch's generator, which a run seeds before each pass
    assert not first[0].equal(gradients(part.eval(), pixels())[0])


def test_what_cannot_be_compiled_is_one_line(monkeypatch) -> None:
    with pytest.raises(Refusal, match=r"^--compile: timm:mobilenetv2_035@random, layer last: .*leave the flag out$"):
        trained_part(detector(name="timm:mobilenetv2_035@random"), compiled=True)

    def broken(graph, example):
        raise RuntimeError("no compiler\nhere")

    part = trained_part(detector(last_blocks=1))
    part._compiled = torch.compile(part._judge, backend=broken)
    with pytest.raises(
        Refusal, match=r"^--compile: tiny: torch.compile failed \(.*no compiler here.*leave the flag out$"
    ):
        part(pixels())


def test_a_tower_that_does_more_between_its_blocks_is_not_cut() -> None:
    """CaiT adds its class token behind the blocks, and that is found by the feature; a Swin has no single list."""
    for name, why in (
        ("timm:cait_xxs24_224@random", "cut between its blocks it gives another feature"),
        ("timm:swin_tiny_patch4_window7_224@random", "it has no list of blocks"),
    ):
        whole = detector(name=name, last_blocks=1)
        assert trained_part(whole) is whole
        with pytest.raises(
            Refusal, match=rf"^--checkpoint_activations: {name}, layer last: {why}.*leave the flag out$"
        ):
            trained_part(whole, recompute=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stored_tokens_are_the_tokens_bit_for_bit(tmp_path, precision) -> None:
    whole = detector(precision=precision, last_blocks=2)
    part = TrainedPart(whole.backbone, whole.head)
    with torch.no_grad():
        tokens = part.lower(pixels()).flatten(1)
    ids = np.frombuffer(bytes(96), "V32").copy()
    ids[1], ids[2] = bytes([1] * 32), bytes([2] * 32)
    write_shard(tmp_path, ids, [stored(tokens)])
    read = torch.from_numpy(Space.open(tmp_path).take(ids))
    assert torch.equal(read, tokens.float()) and part(read).equal(part(pixels()))
    size = next(tmp_path.glob("*.safetensors")).stat().st_size
    assert size < 3 * 65 * 192 * (2 if precision == "bf16" else 4) + 1000


def test_less_is_kept() -> None:
    sizes = []
    for options in ({}, {"last_blocks": 2}, {"last_blocks": 1}):
        whole = detector(**options)
        sizes.append(kept_bytes(TrainedPart(whole.backbone, whole.head), pixels()))
    assert sizes[0] > 1.8 * sizes[1] > 1.8 * 1.8 * sizes[2]
    whole = detector()
    assert kept_bytes(TrainedPart(whole.backbone, whole.head, recompute=True), pixels()) < 0.2 * sizes[0]


def test_identity_of_the_prefix_is_that_of_the_frozen_blocks() -> None:
    first, other = (Prefix(trained_part(detector(last_blocks=k, seed=s))) for k, s in ((2, 0), (2, 5)))
    assert first.identity(first.layer) == other.identity(other.layer)
    assert Prefix(trained_part(detector(last_blocks=1))).layer != first.layer
    bf16 = Prefix(trained_part(detector(last_blocks=2, precision="bf16")))
    assert bf16.identity(bf16.layer) != first.identity(first.layer)


def test_what_cannot_be_cut_trains_whole_or_is_refused() -> None:
    block2 = detector("block2")
    assert trained_part(block2) is block2
    with pytest.raises(Refusal, match=r"--checkpoint_activations: tiny, layer block2: only the layers last and proj"):
        trained_part(block2, recompute=True)
    with pytest.raises(Refusal, match=r"--cache_prefix: no block of tiny lies below the adapters: give --last_blocks"):
        trained_part(detector(), cached=True)
    mobile = load_backbone("timm:mobilenetv2_035@random")
    with pytest.raises(Refusal, match=r"--cache_prefix: .*it has no list of blocks that tokens run through"):
        trained_part(Detector(mobile, LinearHead(mobile.dim)), cached=True)


def test_a_disk_without_room_is_refused_before_any_work(tmp_path, monkeypatch) -> None:
    said = []
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.safetensors").write_bytes(bytes(10**6))
    folders, processes = [tmp_path / "a", tmp_path / "b"], SimpleNamespace(say=said.append)
    prefix.check_room(tmp_path, folders, 5002, 100_000, processes)  # 1.0004 GB, of which 0.001 are there
    with pytest.raises(Refusal, match=r"5100 images x 2 views x 100.0 kB = 1.02 GB, of which 0.00 GB are there"):
        prefix.check_room(tmp_path, folders, 5100, 100_000, processes)
    assert "5002 images x 2 views x 100.0 kB = 1.00 GB" in said[0] and "1.00 GB free" in said[0]


class Small(nn.Module):
    """Takes three images and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), device="meta"))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return images.mean(dim=(1, 2, 3)) * self.weight


class Data(list):
    """Groups of these sizes; with `twins` each image comes twice."""

    twins = False

    def __init__(self, *sizes: int) -> None:
        self.groups = [np.arange(size) for size in sizes]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, key: tuple[int, int]) -> SimpleNamespace:
        return SimpleNamespace(inputs=torch.zeros(2, 3, 4, 4))


def alone(device: str, said: list[str]) -> SimpleNamespace:
    one = SimpleNamespace(num_processes=1)
    return SimpleNamespace(accelerator=one, device=torch.device(device), gather=list, say=said.append)


def test_micro_batches_are_halved_until_the_largest_groups_fit() -> None:
    said: list[str] = []
    processes = alone("meta", said)
    assert accumulation_that_fits(processes, Small(), Data(1, 1, 1), 3, 1) == 1 and not said
    assert accumulation_that_fits(processes, Small(), Data(1, 2, 1, 1, 1, 1, 1, 1), 8, 1) == 4  # 2 + 1 fit
    assert said == ["memory: 4 micro-batches a step instead of 1; the groups of a step are the same"]
    with pytest.raises(Refusal, match="a micro-batch of 1 groups does not fit"):
        accumulation_that_fits(processes, Small(), Data(4, 1), 2, 1)

    class Broken(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("another reason")

    with pytest.raises(RuntimeError, match="another reason"):
        accumulation_that_fits(processes, Broken(), Data(1, 1), 2, 1)


def test_on_a_cpu_the_bytes_of_an_image_decide(monkeypatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10), nn.GELU(), nn.Linear(10, 1))
    nn.init.zeros_(model[3].weight)
    each = kept_bytes(model, torch.zeros(1, 3, 4, 4))
    assert each == 4 * (48 + 10 + 10)  # the input, what GELU gets, what it gives
    for images_with_room, expected in ((8, 1), (7, 2), (3, 4)):
        free = SimpleNamespace(available=(images_with_room + 0.5) * each / 0.8)
        monkeypatch.setattr("adapt.training.micro_batches.psutil.virtual_memory", lambda free=free: free)
        assert accumulation_that_fits(alone("cpu", []), model, Data(*[1] * 8), 8, 1) == expected
        doubled = Data(*[1] * 4)
        doubled.twins = True  # four groups of two images are as many as eight of one
        assert accumulation_that_fits(alone("cpu", []), model, doubled, 4, 1) == expected


@pytest.fixture
def config(planted, tmp_path, monkeypatch) -> lora.Config:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    return lora.Config(
        manifest=(str(planted),),
        output_dir=tmp_path / "run",
        train_views=("none", "qf65"),
        test_views=("none",),
        geometry="squash",
        last_blocks=2,
        epochs=2,
        groups=4,
        rank=2,
        precision="fp32",
        resamples=5,
        checkpointing_steps=3,
        num_workers=0,
    )


def trained(config: lora.Config, kill_at: int = 0) -> tuple[list[float], dict[str, dict[str, torch.Tensor]]]:
    """Losses and the last checkpoint of a run without its report; `kill_at` strikes behind that step's update."""

    def body() -> None:
        log = Run._log_step

        def logged(run, *values):
            log(run, *values)
            return os.kill(os.getpid(), signal.SIGKILL) if run.step_number == kill_at else None

        Run._log_step, Run.use_selected = logged, lambda _: os._exit(0)
        lora.main(config)

    assert in_children(body) == [-signal.SIGKILL if kill_at else 0]
    lines = (config.output_dir / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], checkpoint.load_checkpoint(config.output_dir)[0]


def test_cached_prefix_gives_the_same_losses_and_resumes_exactly(config, tmp_path, capfd) -> None:
    """Squashed images have no crop that could differ."""
    cached = dataclasses.replace(config, cache_prefix=True, output_dir=tmp_path / "cached")
    again = dataclasses.replace(cached, output_dir=tmp_path / "again", dropout=0.1)
    expected, found = trained(config)[0], trained(cached)[0]
    assert len(found) == 8 and found[-1] != found[0]
    assert "images x 2 views x 49.9 kB" in capfd.readouterr().out  # 65 tokens of 192 numbers
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    whole = trained(dataclasses.replace(again, output_dir=tmp_path / "whole"))
    trained(again, kill_at=5)
    after = trained(again)
    assert after[0] == whole[0] and after[1].keys() == whole[1].keys()
    for name, tensors in after[1].items():
        assert all(torch.equal(value, whole[1][name][key]) for key, value in tensors.items())
    assert ", 0 images found in the cache" not in capfd.readouterr().out  # the second and later runs encode nothing


def test_recipe_takes_both_flags_for_a_tower_of_another_library(config, tmp_path) -> None:
    towers.small_transformers("Dinov2", tmp_path / "dino")
    plain = dataclasses.replace(config, backbone=f"transformers:{tmp_path / 'dino'}", epochs=1)
    expected = trained(plain)[0]
    for flags in ({"cache_prefix": True}, {"checkpoint_activations": True}):
        found = trained(dataclasses.replace(plain, output_dir=tmp_path / next(iter(flags)), **flags))[0]
        assert len(found) == 4
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_too_little_memory_says_nothing_of_a_tower(monkeypatch) -> None:
    """It must not train a tower whole, without a word, as one that cannot be cut."""
    backbone = load_backbone("tiny")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainedPart, "_look", full)
    with pytest.raises(torch.OutOfMemoryError):
        trained_part(Detector(backbone, LinearHead(backbone.dim)))

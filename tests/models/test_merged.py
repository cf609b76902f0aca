"""Adapters merged for scoring: the operations of the bare tower, the scores of the adapters, the weights of before."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector, score
from adapt.models.adapters.lora import add_adapter, load_adapter, merged, save_adapter
from adapt.models.adapters.low_rank import LowRankLinear
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import Backbone, load_backbone


class Operations(TorchDispatchMode):
    """Counts what is computed."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **kwargs or {})


def adapted(precision: str = "fp32", name: str = "tiny", **options) -> Backbone:
    backbone = load_backbone(name).to_precision(precision)
    add_adapter(backbone, **{"targets": "all", "rank": 4, "alpha": 6} | options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in backbone.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return backbone


def pixels(backbone: Backbone) -> torch.Tensor:
    shape = (3, *backbone.preprocess.shape)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def operations(backbone: Backbone) -> int:
    with torch.no_grad(), Operations() as counted:
        backbone(pixels(backbone))
    return counted.count


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.no_grad()
def test_scoring_computes_what_a_tower_without_adapters_does(precision) -> None:
    plain, backbone = load_backbone("tiny").to_precision(precision), adapted(precision)
    expected = operations(plain)
    assert operations(backbone) > 1.5 * expected
    with merged(backbone):
        assert operations(backbone) == expected
    assert operations(backbone) > 1.5 * expected


@pytest.mark.parametrize(
    ("options", "within"),
    [
        ({}, 1e-5),
        ({"update": "svd"}, 1e-5),
        ({"targets": "norm"}, 0),
        ({"name": "timm:mobilenetv2_035@random"}, 1e-4),
        ({"precision": "bf16"}, 0.02),
    ],
)
@torch.no_grad()
def test_features_are_those_of_the_adapters(options, within, tmp_path) -> None:
    backbone = adapted(**options)
    images = pixels(backbone)
    expected = backbone(images)
    with merged(backbone):
        found = backbone(images)
        assert (found - expected).norm() <= within * expected.norm()
        with merged(backbone):  # once is enough
            assert backbone(images).equal(found)
        assert backbone(images).equal(found)
    save_adapter(backbone, tmp_path)
    again = load_backbone(backbone.name).to_precision(options.get("precision", "fp32"))
    load_adapter(again, tmp_path)
    with merged(again):
        assert again(images).equal(found)  # a saved detector gives the scores of its run


@pytest.mark.parametrize("options", [{}, {"update": "svd", "rank": 2}, {"precision": "bf16"}])
def test_afterwards_all_is_as_before(options) -> None:
    backbone = adapted(**options).train()
    before = {name: value.detach().clone() for name, value in backbone.state_dict().items()}

    def gradients() -> list[torch.Tensor]:
        backbone.zero_grad()
        backbone(pixels(backbone)).square().sum().backward()
        return [p.grad.clone() for p in backbone.parameters() if p.requires_grad]

    expected = gradients()
    with pytest.raises(KeyboardInterrupt), merged(backbone):
        raise KeyboardInterrupt
    after = backbone.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))


def test_a_tower_without_adapters_is_left_alone() -> None:
    backbone = load_backbone("tiny")
    with merged(backbone):
        assert operations(backbone) == operations(load_backbone("tiny"))


def test_scoring_and_predicting_merge(planted) -> None:
    rows, backbone = Manifest.read(planted), adapted()
    detector = Detector(backbone, LinearHead(backbone.dim))
    layer = next(m for m in backbone.tower.modules() if isinstance(m, LowRankLinear))
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(bool(module.merged)))
    score(detector, rows, np.arange(4), ("none",))
    detector.predict([rows["file"][0]])
    assert seen == [True, True] and not layer.merged

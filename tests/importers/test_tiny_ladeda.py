"""Tiny-LaDeDa: its logits are those of the published equation, on torch's and torchvision's own parts."""

import numpy as np
import pytest
import torch
from foreign_networks import MEAN, STD, refused, write_pictures
from importing import adapt
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision import transforms

from adapt.data.preprocess import Preprocess
from adapt.detector.detector import load_detector
from adapt.evaluation.thresholds import AS_PUBLISHED


def published_state() -> dict[str, torch.Tensor]:
    """Random weights under the published names; the norms have statistics that are far from nothing."""
    draw = torch.Generator().manual_seed(2)

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {
            f"{name}.weight": torch.rand(8, generator=draw) + 0.5,
            f"{name}.bias": torch.randn(8, generator=draw),
            f"{name}.running_mean": torch.randn(8, generator=draw),
            f"{name}.running_var": torch.rand(8, generator=draw) + 0.5,
            f"{name}.num_batches_tracked": torch.tensor(7),
        }

    shapes = {"conv1": (8, 3, 1, 1), "conv2": (8, 8, 3, 3), "layer1.0.conv1": (8, 8, 1, 1)}
    shapes |= {"layer1.0.conv2": (8, 8, 3, 3), "fc": (1, 8)}
    state = {f"{name}.weight": torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return (
        state | {"fc.bias": torch.randn(1, generator=draw)} | norm("bn1") | norm("layer1.0.bn1") | norm("layer1.0.bn2")
    )


def reference(state, folder, gradient=True) -> np.ndarray:
    """The patches' logits, each from its own 7 x 7 pixels of the padded image, and their mean."""
    prepare = transforms.Compose(
        [transforms.Resize((256, 256)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    diagonal = torch.tensor([[-2.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, 1.0, 2.0]])

    def normed(x, name):
        of = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        mean, var, weight, bias = (part[None, :, None, None] for part in of)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    found = []
    for file in sorted(folder.iterdir()):
        x = prepare(Image.open(file))[None]
        if gradient:
            x = torch.cat([F.conv2d(F.pad(x[:, c : c + 1], (1, 1, 1, 1)), diagonal[None, None]) for c in range(3)], 1)
        x = F.conv2d(F.conv2d(x, state["conv1.weight"]), state["conv2.weight"])
        x = nn.ReLU()(normed(x, "bn1"))
        x = nn.ReLU()(normed(F.conv2d(x, state["layer1.0.conv1.weight"]), "layer1.0.bn1"))
        x = nn.ReLU()(normed(F.conv2d(x, state["layer1.0.conv2.weight"], stride=2), "layer1.0.bn2"))
        patches = torch.einsum("nchw,oc->nohw", x, state["fc.weight"]) + state["fc.bias"]
        found.append(patches.mean().item())
    return np.array(found)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return published_state()


def test_logits_are_those_of_the_published_equation(tmp_path, monkeypatch, capsys, state) -> None:
    pictures, file = write_pictures(tmp_path / "pictures"), tmp_path / "WildRF_Tiny_LaDeDa.pth"
    torch.save(state, file)
    assert file.stat().st_size < 20_000  # as the published 12 kB
    adapt(monkeypatch, "import", "tiny_ladeda", file, "--output", tmp_path / "d")
    assert "research only" in capsys.readouterr().out
    detector = load_detector(tmp_path / "d")
    found = [row["logit"] for row in detector.predict([pictures])]
    np.testing.assert_allclose(found, reference(state, pictures), rtol=1e-5, atol=1e-5)
    assert np.abs(found - reference(state, pictures, gradient=False)).min() > 0.1
    assert detector.threshold == 0 and detector.basis == AS_PUBLISHED
    assert detector.backbone.preprocess == Preprocess(256, 256, interpolation="bilinear", geometry="squash")
    assert "arXiv:2406.09398" in (tmp_path / "d" / "README.md").read_text()
    (tmp_path / "d/tower/network.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is not the file that was saved"):
        load_detector(tmp_path / "d")


def test_what_does_not_fit_is_refused_by_name(tmp_path, monkeypatch, capsys, state) -> None:
    del state["layer1.0.bn2.bias"]
    torch.save(state | {"fc.weight": torch.zeros(1, 32), "layer2.0.conv1.weight": torch.zeros(1)}, tmp_path / "x.pth")
    said = refused(monkeypatch, capsys, "import", "tiny_ladeda", tmp_path / "x.pth", "--output", tmp_path / "d")
    assert all(part in said for part in ("1 missing: layer1.0.bn2.bias", "layer2.0.conv1.weight", "fc.weight (1, 32)"))


def test_the_list_says_that_it_needs_no_tower(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(monkeypatch, capsys, "predict", "--detector", "tiny_ladeda", "--input", tmp_path)
    assert "WildRF_Tiny_LaDeDa.pth" in said and "needs the tower" not in said
    adapt(monkeypatch, "detectors", "--name", "tiny_ladeda")
    assert "its own" in capsys.readouterr().out

"""UniversalFakeDetect: its logits are those of the published equation, its real head is the published one."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from importing import adapt, refused
from PIL import Image
from random_towers import open_clip_folder
from torchvision import transforms

from adapt.data.preprocess import Preprocess
from adapt.detector.detector import load_detector
from adapt.evaluation.thresholds import AS_PUBLISHED

SHARED = Path(__file__).parents[3] / "shared" / "published" / "univfd_fc_weights.pth"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = ((90, 61), (56, 56), (57, 130), (40, 33), (200, 20))


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Images larger and smaller than the crop, with odd margins."""
    (tmp_path / "pictures").mkdir()
    draw = np.random.default_rng(1)
    for i, (width, height) in enumerate(SIZES):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


def reference(tower: str, head: dict[str, torch.Tensor], folder: Path) -> list[float]:
    """The equation, on open_clip's own tower behind torchvision's own transforms."""
    clip = open_clip.create_model(tower.removeprefix("open_clip:")).eval()
    prepare = transforms.Compose(
        [transforms.CenterCrop(clip.visual.image_size), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    with torch.no_grad():
        batch = torch.stack([prepare(Image.open(file)) for file in sorted(folder.iterdir())])
        return (clip.encode_image(batch) @ head["weight"].T + head["bias"]).flatten().tolist()


def test_logits_are_those_of_the_published_equation(tmp_path, monkeypatch, pictures, capsys) -> None:
    tower = open_clip_folder(tmp_path / "tower", embed_dim=24)
    head = {"weight": torch.randn(1, 24), "bias": torch.randn(1)}
    torch.save(head, tmp_path / "fc_weights.pth")
    adapt(
        monkeypatch, "import", "univfd", tmp_path / "fc_weights.pth", "--output", tmp_path / "d", "--backbone", tower
    )
    assert "licence MIT" in capsys.readouterr().out
    detector = load_detector(tmp_path / "d")
    rows = detector.predict([pictures])
    found = [row["logit"] for row in rows]
    np.testing.assert_allclose(found, reference(tower, head, pictures), rtol=1e-5, atol=1e-5)
    assert detector.threshold == 0 and detector.basis == AS_PUBLISHED
    assert rows[0]["threshold_from"] == str(AS_PUBLISHED)
    assert detector.backbone.preprocess == Preprocess(56, 56, geometry="native", pad="zero")
    card = (tmp_path / "d" / "README.md").read_text()
    assert "arXiv:2302.10174" in card and "| licence | MIT |" in card and "fc_weights.pth" in card


@pytest.mark.skipif(not SHARED.is_file(), reason="the published head is not here")
def test_the_published_head_is_read(tmp_path, monkeypatch) -> None:
    tower = open_clip_folder(tmp_path / "tower", embed_dim=768)
    adapt(monkeypatch, "import", "univfd", SHARED, "--output", tmp_path / "d", "--backbone", tower)
    head = load_detector(tmp_path / "d").head
    assert head.weight.norm().item() == pytest.approx(6.2001, abs=5e-5)
    assert head.bias.item() == pytest.approx(-0.5167, abs=5e-5)  # its size is published, without the sign


def test_what_does_not_fit_is_refused_by_name(tmp_path, monkeypatch, capsys) -> None:
    tower = open_clip_folder(tmp_path / "tower", embed_dim=24)
    torch.save({"weight": torch.randn(1, 23), "biass": torch.randn(1)}, tmp_path / "wrong.pth")
    words = ("import", "univfd", tmp_path / "wrong.pth", "--output", tmp_path / "d", "--backbone", tower)
    said = refused(monkeypatch, capsys, *words)
    assert all(part in said for part in ("1 missing: bias", "biass", "weight (1, 23) instead of (1, 24)"))
    assert not (tmp_path / "d").exists()


def test_a_detector_that_is_not_here_says_what_to_fetch(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(monkeypatch, capsys, "predict", "--detector", "univfd", "--input", tmp_path)
    assert "fc_weights.pth" in said and "adapt import univfd" in said and "ViT-L-14-quickgelu@openai" in said
    adapt(monkeypatch, "detectors")
    assert "| univfd |" in capsys.readouterr().out


def test_an_imported_detector_goes_by_its_name(tmp_path, monkeypatch, pictures, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    tower = open_clip_folder(tmp_path / "tower", embed_dim=24)
    torch.save({"weight": torch.randn(1, 24), "bias": torch.zeros(1)}, tmp_path / "fc_weights.pth")
    adapt(monkeypatch, "import", "univfd", "fc_weights.pth", "--backbone", tower)
    assert load_detector("univfd").threshold == 0
    adapt(monkeypatch, "detectors")
    assert "results/runs/detectors/univfd" in capsys.readouterr().out

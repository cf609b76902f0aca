"""Images of another size: the library's own way to interpolate positions, refusals, and a detector that remembers."""

import dataclasses
import sys

import linear_probe
import lora
import pytest
import test_towers as towers
import torch
from torch import Tensor, nn

from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector, load_detector, score
from adapt.errors import Refusal
from adapt.features.remembered import frozen_backbone
from adapt.flags import Tower
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import LARGEST, load_backbone
from adapt.training.trainable import continued
from adapt.understanding.subject import base_of

LARGER, SMALLER = 56, 24  # beside 32; patches of 8
small = towers.small  # the fixture: one tower of every kind


def pixels(size: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def own_way(kind: str, name: str, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The library's own features of images of another size."""
    if kind in towers.TRANSFORMERS:
        vision = getattr(model, "vision_model", model)
        more = {} if kind.startswith("DINO") or kind.startswith("Dino") else {"interpolate_pos_encoding": True}
        found = {"last": vision(pixel_values=x, **more).pooler_output}
        if kind in ("CLIP", "MetaClip2"):
            found["proj"] = model.get_image_features(pixel_values=x, **more).pooler_output
        return found
    if kind in towers.TIMM:
        import timm

        sizes = {"embed_dim": 32, "depth": towers.DEPTH, "num_heads": 2, "patch_size": 8}
        large = timm.create_model(kind, num_classes=5, img_size=x.shape[-1], **sizes)
        state = sys.modules[type(model).__module__].checkpoint_filter_fn(model.state_dict(), large)
        large.load_state_dict(state, strict=True)
        large.reset_classifier(0)
        return {"last": large.eval()(x)}
    import open_clip

    clip = open_clip.create_model(
        name.removeprefix("open_clip:"), force_image_size=x.shape[-1], require_pretrained=True
    )
    return {"proj": clip.eval().encode_image(x)}


@pytest.mark.parametrize("size", [LARGER, SMALLER])
@torch.no_grad()
def test_features_are_the_librarys_own(small, size) -> None:
    kind, name, model = small
    if kind.startswith("beit"):
        pytest.skip("refused: see below")
    normalised = (pixels(size) / 255 - torch.tensor(towers.MEAN).view(3, 1, 1)) / torch.tensor(towers.STD).view(
        3, 1, 1
    )
    backbone = load_backbone(name, size=size)
    expected = own_way(kind, name, model, normalised)
    found = backbone.encode(pixels(size), list(expected))
    for layer, value in expected.items():
        torch.testing.assert_close(found[layer], value, atol=1e-5, rtol=1e-4)
    assert backbone.tokens()["block1"][0] == (size // 8) ** 2
    assert not any(p.requires_grad for p in backbone.parameters())


def test_identity_has_the_size_and_the_weights_as_published(small) -> None:
    if small[0].startswith("beit"):
        with pytest.raises(Refusal, match="takes images of 32 px alone; leave the flag out"):
            load_backbone(small[1], size=LARGER)
        return
    own, large, same = (load_backbone(small[1], size=size) for size in (None, LARGER, towers.SIDE))
    assert same.identity("last") == own.identity("last") != large.identity("last")
    assert large.fingerprint["weights"] == own.fingerprint["weights"]
    shortest = own.preprocess.shortest  # 40 where the edge of a scaled image is cropped away
    assert large.fingerprint["preprocess"]["size"] == LARGER
    assert large.preprocess.shortest == round(shortest * LARGER / towers.SIDE)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("tiny", 60, "--size 60: the patches of tiny have 8 px; give a multiple, as 56|64"),
        ("tiny", 0, "--size 0: .* give a multiple, as 8$"),
        ("tiny", -8, "--size -8: .* give a multiple, as 8$"),
        ("tiny", LARGEST + 8, f"give a multiple, as {LARGEST}$"),
        ("timm:mobilenetv2_035@random", 256, "--size 256: timm:mobilenetv2_035@random takes images of 224 px alone"),
        ("timm:swin_tiny_patch4_window7_224@random", 448, "takes images of 224 px alone; leave the flag out"),
    ],
)
def test_impossible_sizes_are_refused(name, size, message) -> None:
    with pytest.raises(Refusal, match=message) as refusal:
        load_backbone(name, size=size)
    assert "\n" not in str(refusal.value)


def test_a_detector_remembers_its_size(planted, tmp_path) -> None:
    backbone = load_backbone("tiny", size=96)
    detector = Detector(backbone, LinearHead(backbone.dim))
    nn.init.normal_(detector.head.linear.weight, generator=torch.Generator().manual_seed(0))
    detector.save(tmp_path / "detector", {})
    again = load_detector(tmp_path / "detector")
    assert again.backbone.preprocess == backbone.preprocess and again.backbone.preprocess.size == 96
    rows = Manifest.read(planted)
    found, expected = (score(one, rows, range(6), ("none",))["logit"] for one in (again, detector))
    assert (found == expected).all()
    said: list[str] = []
    with pytest.raises(Refusal, match=r"--size 64: training goes on from .* which has 96"):
        continued(tmp_path / "detector", Tower(size=64), 0, said.append)


def test_packed_encoder_takes_another_size() -> None:
    plain, packed = (load_backbone("tiny", size=96) for _ in range(2))
    try:
        packed.for_features("fp32", "packed")
    except Refusal as why:
        pytest.skip(str(why))
    torch.testing.assert_close(packed(pixels(96)), plain(pixels(96)), atol=1e-4, rtol=1e-4)


def test_recipes_hand_the_size_on(planted, tmp_path) -> None:
    """On cached features, whose encoder is remembered, and in the tower; a study's base is that of the detector."""
    config = linear_probe.Config(
        manifest=(str(planted),), output_dir=tmp_path / "probe", size=32, cache=tmp_path / "cache", head="logistic",
        train_views=("none",), test_views=("none",), resamples=5, num_workers=0,
    )  # fmt: skip
    linear_probe.main(config)
    assert frozen_backbone(config, torch.device("cpu")).preprocess.size == 32
    assert frozen_backbone(dataclasses.replace(config, size=None), torch.device("cpu")).preprocess.size == 64
    saved = load_detector(tmp_path / "probe" / "detector")
    assert saved.backbone.preprocess.size == base_of(saved).preprocess.size == 32
    flags = {"size": 32, "output_dir": tmp_path / "lora", "epochs": 1, "last_blocks": 1, "rank": 2}
    same = {
        name: getattr(config, name) for name in ("manifest", "train_views", "test_views", "resamples", "num_workers")
    }
    lora.main(lora.Config(**same, **flags))
    assert load_detector(tmp_path / "lora" / "detector").backbone.preprocess.size == 32

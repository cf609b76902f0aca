"""GenD: OpenAI's CLIP, or the Perception Encoder of Meta, with its norm layers trained, on faces.

    adapt import gend model.safetensors

arXiv:2508.06248; github.com/yermandy/GenD (src/hf/modeling_gend.py), MIT. With f the pooled feature (CLIP: the class
token behind the last norm; PE: its attention pooling), scaled to length 1 where the head is `LinearNorm`,

    (real, fake) = softmax(W f + b),    fake where its share is > 0.5

config.json beside the file, as it lies at the hub, says which head it is, and on which backbone. Images are prepared
by CLIP's processor in transformers (the shortest side is scaled to the tower's by Pillow's bicubic filter and the
centre cut out, whose half pixel is dropped), or, for PE, by timm's transform for 224 px (the same filter,
torchvision's centre; mean and deviation .5). PE's positions are for 336 px: they are resampled once, at the import, by
the function of timm that does it in every pass. The variant on DINOv3 is not read: its processor scales floats, not
levels of 8 bits. The authors show it faces that a detector has found, cut out with a margin of 30 %.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.errors import Refusal
from adapt.importers.weights import (
    CLIP_MEAN,
    CLIP_STD,
    WithTower,
    check_sides,
    fit_tower,
    stored_of,
    two_classes,
)

if TYPE_CHECKING:
    from adapt.detector.detector import Detector
    from adapt.models.towers.checkpoint import Stored
    from adapt.models.towers.own import Own

HEADS = {"linear": False, "LinearNorm": True}  # whether features are scaled to length 1
HEAD = {name: f"model.linear.{name}" for name in ("weight", "bias")}
GRID = 224 // 14  # patches of a side of PE's images


@dataclass(frozen=True)
class Kind:
    """Towers whose name in config.json begins in one way."""

    begins: str
    layout: str
    place: str  # of its tensors in the file
    first: str  # a tensor of it


KINDS = (
    Kind("openai/clip-", "clip", "feature_extractor.", "vision_model.embeddings.class_embedding"),
    Kind("vit_pe_core_large_patch14_336", "pe", "feature_extractor.backbone.", "cls_token"),
)


@dataclass(frozen=True, kw_only=True)
class Source(WithTower):
    """GenD on CLIP or PE."""

    def write_tower(self, folder: Path) -> "Own":
        from timm.layers import resample_abs_pos_embed

        from adapt.models.towers import own

        kind, _ = self.said()
        stored, place = self.stored(), f"{kind.place}{{}}".format
        check_sides(self.weights, stored, {HEAD["weight"]: 2, place("pos_embed"): 3})
        width = stored[HEAD["weight"]].shape[1] if HEAD["weight"] in stored else 0
        beside: dict[str, own.Shape] = {HEAD["weight"]: (2, width), HEAD["bias"]: (2,)}
        given: dict[str, own.Shape] = {}
        if kind.layout == "pe":
            beside[place("pos_embed")] = (1, 24 * 24 + 1, width)
            given["pos_embed"] = (1, GRID * GRID + 1, width)
        shapes = fit_tower(self.weights, stored, kind.layout, place, beside, given)
        state = {name: stored[place(name)].load().float() for name in shapes}
        for name in given:
            state[name] = resample_abs_pos_embed(state[name], [GRID, GRID], num_prefix_tokens=1)
        return own.write(kind.layout, state, folder)

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.towers.backbones import load_backbone
        from adapt.models.towers.own import HALF

        kind, scaled = self.said()
        backbone = load_backbone(tower)
        side = backbone.preprocess.size
        if kind.layout == "pe":
            backbone.prepare_by(Preprocess(side, side), HALF, HALF)
        else:
            backbone.prepare_by(Preprocess(side, side, middle="lower"), CLIP_MEAN, CLIP_STD)
        stored = self.stored()
        return Detector(backbone, two_classes(stored[HEAD["weight"]].load(), stored[HEAD["bias"]].load(), scaled))

    def stored(self) -> "dict[str, Stored]":
        kind, _ = self.said()
        return stored_of(self.weights, kind.place + kind.first, leave=("position_ids",))

    def said(self) -> tuple[Kind, bool]:
        """What config.json says: the tower, and whether features are scaled to length 1; refuses other models."""
        from adapt.models.towers.tokens import read_json

        file = self.weights.with_name("config.json")
        said = read_json(file, str(self.weights))
        backbone, head = (str(said.get(key)) for key in ("backbone", "head"))
        kind = next((kind for kind in KINDS if backbone.startswith(kind.begins)), None)
        if kind is None:
            known = " or ".join(kind.begins for kind in KINDS)
            raise Refusal(f"{file}: the backbone is {backbone!r}; read are those that begin with {known}")
        if head not in HEADS:
            raise Refusal(f"{file}: the head is {head!r}, not {' or '.join(HEADS)}")
        return kind, HEADS[head]

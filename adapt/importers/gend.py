"""GenD: OpenAI's CLIP with its norm layers trained, on faces.

    adapt import gend model.safetensors

arXiv:2508.06248; github.com/yermandy/GenD (src/hf/modeling_gend.py), MIT. With f the class token behind the last norm,
scaled to length 1 where the head is `LinearNorm`,

    (real, fake) = softmax(W f + b),    fake where its share is > 0.5

config.json beside the file, as it lies at the hub, says which head it is, and on which backbone: OpenAI's CLIPs are
read here, the variants on PE and DINOv3 are not. Images are prepared by CLIP's processor in transformers: the shortest
side is scaled to the tower's by Pillow's bicubic filter and the centre cut out, whose half pixel is dropped. The
authors show it faces that a detector has found, cut out with a margin of 30 %.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.errors import Refusal
from adapt.importers.weights import CLIP_MEAN, CLIP_STD, WithTower, fit_tower, stored_of, two_classes

if TYPE_CHECKING:
    from adapt.detector.detector import Detector
    from adapt.models.towers.checkpoint import Stored
    from adapt.models.towers.own import Own

HEADS = {"linear": False, "LinearNorm": True}  # whether features are scaled to length 1
BACKBONES = "openai/clip-"


@dataclass(frozen=True, kw_only=True)
class Source(WithTower):
    """GenD on CLIP."""

    def write_tower(self, folder: Path) -> "Own":
        from adapt.models.towers import own

        self.scaled()
        stored, place = self.stored(), "feature_extractor.{}".format
        width = stored["model.linear.weight"].shape[-1:] if "model.linear.weight" in stored else ()
        beside = {"model.linear.weight": (2, *width), "model.linear.bias": (2,)}
        shapes = fit_tower(self.weights, stored, "clip", place, beside)
        return own.write("clip", {name: stored[place(name)].load().float() for name in shapes}, folder)

    def detector(self, tower: str) -> "Detector":
        """The detector on the backbone `tower`."""
        from adapt.data.preprocess import Preprocess
        from adapt.detector.detector import Detector
        from adapt.models.towers.backbones import load_backbone

        backbone = load_backbone(tower)
        side = backbone.preprocess.size
        backbone.prepare_by(Preprocess(side, side, middle="lower"), CLIP_MEAN, CLIP_STD)
        stored = self.stored()
        weight, bias = (stored[f"model.linear.{name}"].load() for name in ("weight", "bias"))
        return Detector(backbone, two_classes(weight, bias, self.scaled()))

    def stored(self) -> "dict[str, Stored]":
        anchor = "feature_extractor.vision_model.embeddings.class_embedding"
        return stored_of(self.weights, anchor, leave=("position_ids",))

    def scaled(self) -> bool:
        """Whether features are scaled to length 1; refuses what config.json says of another model."""
        from adapt.models.towers.tokens import read_json

        file = self.weights.with_name("config.json")
        said = read_json(file, str(self.weights))
        backbone, head = (str(said.get(key)) for key in ("backbone", "head"))
        if not backbone.startswith(BACKBONES):
            raise Refusal(f"{file}: the backbone is {backbone!r}; read are those that begin with {BACKBONES}")
        if head not in HEADS:
            raise Refusal(f"{file}: the head is {head!r}, not {' or '.join(HEADS)}")
        return HEADS[head]

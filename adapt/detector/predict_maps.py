"""A localiser on unknown files: verdicts, and what was changed, by what, how much, with pictures of where."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from adapt.data.crops import Kind, Whole
from adapt.data.feed import feed
from adapt.data.inputs import Input
from adapt.data.masks import EXTENTS
from adapt.data.profiles import Profiles
from adapt.detector.detector import Detector
from adapt.detector.localizer import Found, Localizer, locate, strips
from adapt.detector.overlay import overlay
from adapt.detector.predict import BATCH, Files, Row, basis_in_words, predict, rounded, row_of, rules_of, written
from adapt.errors import Refusal
from adapt.evaluation.decision import Rules
from adapt.files import atomic
from adapt.models.adapters.lora import merged
from adapt.models.heads.map_head import MapHead

Batches = Iterator[tuple[int, list[Row], int]]  # number, rows, encoder passes


def judge(
    detectors: Sequence[Detector],
    inputs: Sequence[Input],
    numbers: Sequence[int],
    workers: int = 0,
    crops: Kind = "1",
    rules: Rules | None = None,
    maps: Path | None = None,
    profiles: Profiles = "ignore",
) -> Batches:
    """`predict`, or `predict_maps` where there is a localiser; refuses `maps` of other detectors.

    A localiser looks at whole images, alone: beside other detectors, or at crops, it is refused.
    """
    if not maps and not any(isinstance(detector.head, MapHead) for detector in detectors):
        return predict(detectors, inputs, numbers, workers, crops, rules, profiles)
    if len(detectors) > 1 or crops != "1":
        raise Refusal("a localiser looks at whole images, alone: name one --detector, and leave --crops out")
    return predict_maps(Localizer(detectors[0]), inputs, numbers, maps, workers, rules, profiles)


@torch.no_grad()
def predict_maps(
    localizer: Localizer,
    inputs: Sequence[Input],
    numbers: Sequence[int],
    folder: Path | None,
    workers: int = 0,
    rules: Rules | None = None,
    profiles: Profiles = "ignore",
) -> Batches:
    """`predict` of a localiser, which looks at whole images one by one; into `folder` goes an overlay of each.

    A tile is an encoder pass. Beside the verdict on "by a generator": extent (real, generated or part), tool where it
    is not real, and the share of pixels called changed.
    """
    rules, head = written(rules or rules_of([localizer.detector])), localizer.eval().head
    rules = replace(rules, basis=basis_in_words([localizer.detector], rules))
    wanted = [i for n in numbers for i in range(n * BATCH, min((n + 1) * BATCH, len(inputs)))]
    device = localizer.detector.backbone.device
    files = feed(Files(inputs, [Whole()], profiles), device, workers, None, batch_size=None, sampler=wanted)
    rows, passes = [], 0
    with merged(localizer.detector.backbone):
        for i, (known, (pixels,), reason) in zip(wanted, files, strict=True):
            image, found = Image.fromarray(pixels.numpy()), None
            if not reason:
                found = locate(localizer, localizer.tiling(image)[None])[0]
                passes += localizer.tiling.count(image.height, image.width)
            row = row_of(inputs[i].path, known, reason, found.fake if found else 0.0, rules, (), None)
            if found and row["status"] == "ok":
                row["extent"], row["tool"], row["changed"] = _where(head, found, image)
                if folder is not None:
                    row["map"] = name = f"{i:08d}.jpg"
                    with atomic(folder / name) as temporary:
                        overlay(image, found, head.threshold.item()).save(temporary, "JPEG", quality=90, subsampling=0)
            rows.append(row)
            if (i + 1) % BATCH == 0 or i + 1 == len(inputs):
                yield i // BATCH, rows, passes
                rows, passes = [], 0


def _where(head: MapHead, found: Found, image: Image.Image) -> tuple[str, str | None, float]:
    """Extent, tool and share of the area: the best tool but `real` where it is not real, so that both agree."""
    cut, pieces = head.threshold.item(), strips(found.map, found.pitch, image.height, image.width)
    area = sum(int((part >= cut).sum()) for _, part in pieces) / (image.width * image.height)
    extent = EXTENTS[found.extent.argmax()]
    tool = head.tools[1 + found.tools[1:].argmax()] if extent != "real" else None
    return extent, tool, rounded(area)

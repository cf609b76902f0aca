"""A detector's scores of many images, in parts that a killed run finds again.

A part is a fixed number of whole batches: on a CPU the last bits of a feature depend on the images beside it, so a run
that was stopped, and one that was not, score every image beside the same others.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector, as_scores, classes_of_head, images_at_once, logits_of
from adapt.errors import Refusal
from adapt.evaluation.scores import Scores
from adapt.journal import Journal, entries
from adapt.models.adapters.lora import merged
from adapt.processes import Scoring
from adapt.progress import bar

BATCHES = 128  # of one part and process
NOT_FINITE = "not-finite"  # why an image has no logit that its detector gave one


class Parts(Journal):
    """Scored parts in a journal. `what` is what they depend on: parts of something else are refused."""

    def __init__(self, path: Path, what: Mapping[str, object]) -> None:
        self.logits: dict[int, list[list[list[float]]]] = {}
        self.reasons: dict[int, list[list[str]]] = {}
        busy = f"another process is working at {path}: wait for it, or stop it"
        super().__init__(path, busy, lambda: self._take_up(what), {"what": dict(what)})

    def add(self, number: int, logits: np.ndarray, reasons: np.ndarray) -> None:
        """Keep a part: after a kill all of it is there, or nothing."""
        self.logits[number], self.reasons[number] = logits.tolist(), reasons.tolist()
        self.append({"part": number, "logits": self.logits[number], "reasons": self.reasons[number]})

    def _take_up(self, what: Mapping[str, object]) -> int:
        whole = 0
        for _, end, entry in entries(self.path, "end"):
            if not whole and entry.get("what") != what:
                before = cast("dict[str, object]", entry.get("what") or {})
                changed = ", ".join(name for name in what if before.get(name) != what[name])
                raise Refusal(
                    f"{self.path} holds scores of another {changed}: choose another --output_dir, or delete the folder"
                )
            if whole:
                number = cast("int", entry["part"])
                self.logits[number] = cast("list[list[list[float]]]", entry["logits"])
                self.reasons[number] = cast("list[list[str]]", entry["reasons"])
            whole = end
        return whole


def score_in_parts(
    detector: Detector,
    manifest: Manifest,
    rows: np.ndarray,
    views: tuple[str, ...],
    path: Path,
    what: Mapping[str, object],
    name: str,
    scoring: Scoring,
) -> Scores | None:
    """`score`, with logits of classes where the head has more than two; finished parts lie in the journal `path`.

    `what` names what the scores depend on (detector, images), `name` is shown beside the progress. None in other
    processes than the first.
    """
    views = tuple(dict.fromkeys(views))
    rank, world = scoring["share"]
    size = BATCHES * images_at_once(views) * world
    what = {**what, "views": list(views), "images of a part": size}
    with contextlib.ExitStack() as opened:
        parts = opened.enter_context(Parts(path, what)) if rank == 0 else None
        done = set(scoring["gather"](sorted(parts.logits) if parts else []))
        total = -(-len(rows) // size)
        past = sum(len(rows[number * size : (number + 1) * size]) for number in done)
        progress = opened.enter_context(bar(rank == 0, total=len(rows), initial=past, unit="image", desc=name))
        opened.enter_context(merged(detector.backbone))
        for number in (number for number in range(total) if number not in done):
            part = rows[number * size : (number + 1) * size]
            logits, reasons = logits_of(detector, manifest, part, views, **scoring)
            broken = (reasons == "") & ~np.isfinite(logits).all(axis=2)  # one image must not stop a folder
            logits[broken], reasons[broken] = np.nan, NOT_FINITE
            if parts:
                parts.add(number, logits, reasons)
            progress.update(len(part))
    if parts is None:
        return None
    every = np.array([line for n in range(total) for line in parts.logits[n]], dtype=np.float64)
    why = np.array([line for n in range(total) for line in parts.reasons[n]], dtype=object)
    return as_scores(manifest, rows, views, every, why, classes_of_head(detector))

"""Scores of a trained detector for its page, in parts: a run that is stopped while it scores goes on behind them."""

import hashlib
from collections.abc import Sequence

import numpy as np
from safetensors.torch import save

from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector
from adapt.detector.scored_parts import NOT_FINITE, score_in_parts
from adapt.errors import Refusal
from adapt.evaluation.scores import Scores
from adapt.training.checkpoint import trainable
from adapt.training.run import Run
from adapt.training.scored import FOLDER


def final_scores(
    run: Run,
    detector: Detector,
    rows: Manifest,
    which: np.ndarray,
    views: Sequence[str],
    num_workers: int | None,
    name: str = "scoring",
) -> Scores | None:
    """Scores of the rows `which` under views; None in other processes than the first, which alone writes the page.

    `name` is that of the parts, beside the progress. They go with the folder of what is scored, once the page is
    there. Refuses logits that are not finite, naming the first image.
    """
    weights = save({key: value.detach().cpu().contiguous() for key, value in trainable(detector).items()})
    what = {"weights": hashlib.sha256(weights).hexdigest(), "identity": run.identity}
    path, scoring = run.folder / FOLDER / f"{name.replace(' ', '-')}.jsonl", run.scoring(num_workers)
    scores = score_in_parts(detector, rows, which, tuple(views), path, what, name, scoring)
    if scores is None:
        return None
    bad = np.flatnonzero(scores["status"] == f"unreadable: {NOT_FINITE}")
    if len(bad):
        path.unlink()
        raise Refusal(
            f"{len(bad)} logits are not finite, such as that of {scores['path'][bad[0]]!r}: use --precision fp32, or "
            "a smaller --learning_rate"
        )
    return scores

"""Recompute the numbers, the page and the figures of a result from its table of scores.

    adapt evaluate --scores results/probe/scores.parquet
    adapt evaluate --scores results/lora/scores.parquet --compare results/probe/scores.parquet

Writes metrics.csv, controls.csv, table.md and figures/ beside the scores (or into --output_dir), with --compare also
comparison.csv, for scores with class logits also attribution.csv, confusion.csv and a figure of each view, and
prints the headline table. Threshold, calibration and the verdicts at --error_rate are fitted on validation rows.
No model is loaded: the scores of any other detector serve as well, as Parquet or CSV with the columns path,
generator, and logit or p_fake (see adapt/evaluation/scores.py for the rest). Time: about 12 s on one core for 1,700
test images x 4 views x 7 generators with 1,000 resamples. Expected: the numbers that the run itself reported, to the
last digit; two calls write the same bytes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapt.cli import run
from adapt.errors import Refusal
from adapt.flags import Intervals


@dataclass(frozen=True)
class Config(Intervals):
    """What to evaluate."""

    scores: Path  # table of scores, .parquet or .csv
    compare: Path | None = None  # scores of a second detector on the same test rows, compared by group
    permuted: Path | None = None  # control: scores of the same recipe trained on permuted labels
    metadata: Path | None = None  # control: scores of a classifier that saw file metadata only
    output_dir: Path | None = None  # default: the folder of the scores
    threshold: float | None = None  # a logit; default: picked on the validation rows of --scores
    error_rate: float = 0.05  # the error rate whose verdicts (real, fake, unsure) the page measures
    classes: Literal["family", "generator"] | None = None  # what columns logit_<class> name; default: found out

    def __post_init__(self) -> None:
        if not 0 < self.error_rate < 1:
            raise Refusal(f"--error_rate {self.error_rate:g}: give a rate between 0 and 1, such as 0.05")


def main(cfg: Config) -> None:
    from adapt import __version__
    from adapt.evaluation.attribution import attribute
    from adapt.evaluation.decision import fit_decision
    from adapt.evaluation.metrics import compare, controls, evaluate
    from adapt.evaluation.open_set import classes_of
    from adapt.evaluation.promises import keep
    from adapt.evaluation.scores import Scores
    from adapt.evaluation.thresholds import pick_threshold
    from adapt.files import sha256
    from adapt.pages.figures import write_figures
    from adapt.pages.promises import promises_section
    from adapt.pages.tables import text, write_tables

    folder = cfg.output_dir or cfg.scores.parent
    scores = Scores.read(cfg.scores)
    provenance = read_record(cfg.scores.with_name("provenance.json"))
    threshold = pick_threshold(scores) if cfg.threshold is None else cfg.threshold
    cells, decision = evaluate(scores, cfg.resamples, cfg.seed, threshold), fit_decision(scores)
    cells += keep(scores, decision, threshold, cfg.error_rate, cfg.resamples, cfg.seed)

    permuted, metadata = (None if path is None else Scores.read(path) for path in (cfg.permuted, cfg.metadata))
    checked = controls(
        scores, permuted=permuted, metadata=metadata, resamples=cfg.resamples, seed=cfg.seed, threshold=cfg.threshold
    )
    named = attribute(scores, cfg.resamples, cfg.seed, cfg.classes, decision) if classes_of(scores) else None
    differences = []
    if cfg.compare is not None:
        thresholds = (cfg.threshold, None)
        differences = compare(scores, Scores.read(cfg.compare), cfg.resamples, cfg.seed, thresholds)

    files = {"scores": cfg.scores, "b": cfg.compare, "permuted": cfg.permuted, "metadata": cfg.metadata}
    provenance["evaluation"] = {
        **{f"{name} sha256": sha256(path) for name, path in files.items() if path is not None},
        "resamples": cfg.resamples,
        "resampling seed": cfg.seed,
        "adapt": __version__,
    }
    promises = promises_section(cells, decision, cfg.error_rate)
    write_tables(cells, folder, provenance, checked, differences, [promises], named)
    write_figures(scores, cells, folder / "figures", named)
    print(text(cells))
    print(f"{folder / 'table.md'}: the page; metrics.csv and figures/ lie beside it")


def read_record(path: Path) -> dict[str, object]:
    """The record of the run that made the scores; without it the files name themselves."""
    import json

    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise Refusal(f"{path} is damaged ({error}): restore it, or remove it to do without") from error
    if not isinstance(record, dict):
        raise Refusal(f"{path} holds a {type(record).__name__}, not an object: restore it, or remove it to do without")
    return record


def command() -> None:
    """Parse the command line and run."""
    run(main, Config)

"""Recompute the numbers, the page and the figures of a result from its table of scores.

    adapt evaluate --scores results/probe/scores.parquet
    adapt evaluate --scores results/lora/scores.parquet --compare results/probe/scores.parquet

Writes metrics.csv, controls.csv, table.md and figures/ beside the scores (or into --output_dir), with --compare also
comparison.csv, for scores with class logits also attribution.csv, confusion.csv and a figure of each view, and
prints the headline table, and how many images and groups stand behind it. Threshold, calibration and the verdicts at
--error_rate are fitted on validation rows. That rate is promised on average over validation samples; with --confidence
0.9 for this very detector, with probability 0.9. --prevalence 0.01 adds what a verdict is worth where one image in a
hundred is fake (PPV, NPV), and states average precision for it.

Intervals count groups. A table without a column `group` has one group an image, as if all images were independent; if
some are copies of one picture, or from one source, --group_by names the column that says so.

No model is loaded: the scores of any other detector serve as well, as Parquet or CSV with the columns path,
generator, and logit or p_fake (see adapt/evaluation/scores.py for the rest). Time: about 12 s on one core for 1,700
test images x 4 views x 7 generators with 1,000 resamples. Expected: the numbers that the run itself reported, to the
last digit; two calls write the same bytes.
"""

import math
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
    group_by: str | None = None  # column of --scores that says which images belong together; default: group
    threshold: tuple[float, ...] = ()  # a logit, of --compare as well; two: its own is the second; default: picked
    error_rate: float = 0.05  # the error rate whose verdicts (real, fake, unsure) the page measures
    confidence: float | None = None  # probability that this rate holds for this detector; None: it holds on average
    prevalence: float | None = None  # share of fakes for ppv, npv and ap; None: neither of the two, and ap at 0.5
    classes: Literal["family", "generator"] | None = None  # what columns logit_<class> name; default: found out

    def __post_init__(self) -> None:
        if not 0 < self.error_rate < 1:
            raise Refusal(f"--error_rate {self.error_rate:g}: give a rate between 0 and 1, such as 0.05")
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise Refusal(f"--confidence {self.confidence:g}: give a probability between 0 and 1, such as 0.9")
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            raise Refusal(f"--prevalence {self.prevalence:g}: give a share of fakes between 0 and 1, such as 0.01")
        if len(self.threshold) > (1 if self.compare is None else 2):
            most = "one" if self.compare is None else "one for both tables, or one for each of the two"
            raise Refusal(f"--threshold {' '.join(f'{t:g}' for t in self.threshold)}: give {most}")
        if not all(map(math.isfinite, self.threshold)):
            raise Refusal(f"--threshold {' '.join(f'{t:g}' for t in self.threshold)}: give a finite logit")


def main(cfg: Config) -> None:
    from adapt import __version__
    from adapt.evaluation.attribution import attribute
    from adapt.evaluation.base_rates import predictive_cells
    from adapt.evaluation.decision import fit_decision
    from adapt.evaluation.metrics import compare, controls, evaluate
    from adapt.evaluation.open_set import classes_of
    from adapt.evaluation.promises import keep
    from adapt.evaluation.replicates import PREVALENCE
    from adapt.evaluation.samples import samples
    from adapt.evaluation.scores import Scores
    from adapt.evaluation.thresholds import basis_of
    from adapt.files import sha256
    from adapt.pages.figures import write_figures
    from adapt.pages.folds import FOLDS_EVALUATED
    from adapt.pages.promises import base_rate_section, promises_section
    from adapt.pages.tables import Origin, sizes, text, write_tables

    folder = cfg.output_dir or cfg.scores.parent
    scores = Scores.read(cfg.scores, cfg.group_by)
    provenance = read_record(cfg.scores.with_name("provenance.json"))
    given = cfg.threshold[0] if cfg.threshold else None
    prevalence = PREVALENCE if cfg.prevalence is None else cfg.prevalence
    cells, decision = evaluate(scores, cfg.resamples, cfg.seed, given, prevalence), fit_decision(scores)
    threshold = cells[0].value  # the given one, or that of the validation rows
    if scores.folds is None:  # a promise is one detector's
        cells += keep(scores, decision, threshold, cfg.error_rate, cfg.resamples, cfg.seed, cfg.confidence)

    permuted, metadata = (None if path is None else Scores.read(path) for path in (cfg.permuted, cfg.metadata))
    checked = controls(
        scores, permuted=permuted, metadata=metadata, resamples=cfg.resamples, seed=cfg.seed, threshold=given
    )
    named = attribute(scores, cfg.resamples, cfg.seed, cfg.classes, decision) if classes_of(scores) else None
    differences = []
    if cfg.compare is not None:
        thresholds = (given, cfg.threshold[-1] if cfg.threshold else None)
        other = Scores.read(cfg.compare)
        differences = compare(scores, other, cfg.resamples, cfg.seed, thresholds, prevalence)

    files = {"scores": cfg.scores, "b": cfg.compare, "permuted": cfg.permuted, "metadata": cfg.metadata}
    provenance["evaluation"] = {
        **{f"{name} sha256": sha256(path) for name, path in files.items() if path is not None},
        "resamples": cfg.resamples,
        "resampling seed": cfg.seed,
        "prevalence": prevalence,
        **({"group by": cfg.group_by} if cfg.group_by else {}),
        **({"threshold given": list(cfg.threshold)} if cfg.threshold else {}),
        "adapt": __version__,
    }
    sections, behind = [], samples(scores)
    if scores.folds is None:
        sections.append(promises_section(cells, decision, cfg.error_rate, cfg.confidence))
    else:
        sections.append(FOLDS_EVALUATED)
    if cfg.prevalence is not None:
        cells += predictive_cells(cells, cfg.prevalence)
        sections.append(base_rate_section(cells, cfg.prevalence))
    origin: Origin | None = None if scores.folds is None or cfg.threshold else "folds"
    basis = basis_of(scores) if origin is None and given is None else None
    write_tables(cells, folder, provenance, checked, differences, sections, named, behind, prevalence, origin, basis)
    write_figures(scores, cells, folder / "figures", named)
    print(text(cells))
    if basis and basis.images:
        print(f"threshold: logit {threshold:.4g}, {basis}")
    print(sizes(behind))
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

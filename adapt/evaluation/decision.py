"""From a logit to a verdict: what validation scores say of it, kept with a detector, and the rules a user asks for.

    threshold   the cut of best balanced accuracy, one for all images or one for each JPEG quality
    real, fake  calibration scores of the two classes (conformal.py): at a stated rate, what is no photograph any more,
                and what no fake. A verdict needs that the other class is ruled out. Where both are, the threshold
                decides; where neither is, the image is `unsure`.
    known       the same for how familiar fakes of trained classes look: below it the family is `unknown`

A promise is about an image drawn from a new scene like those of validation, with the generator, processing and view
drawn evenly from those that the scene has there. It holds for many such images, not for each kind among them, and says
nothing of generators that validation did not have. Without a stated confidence it holds on average over validation
samples, with one for this very detector. The same rows picked epoch or penalty, which a strict reading does
not allow: the page shows what test rows say of every promise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from adapt.errors import Refusal
from adapt.evaluation.base_rates import Expected, check_prevalence, expected
from adapt.evaluation.calibration import Calibration, Kind, fit_calibration
from adapt.evaluation.conformal import fewest_groups, group_quantiles, promised
from adapt.evaluation.open_set import OPEN_SET, best_measure, class_logits, familiarity, known_fakes
from adapt.evaluation.scores import Scores
from adapt.evaluation.thresholds import quality_of, quality_thresholds
from adapt.files import atomic, read_json, require_regular

EVERY = "every"  # in place of a view: all of them
FILE = "decision.safetensors"
Thresholds = Literal["global", "quality"]  # one for all images, or one for each JPEG quality


@dataclass(frozen=True)
class Cuts:
    """Where verdicts change, in logits, and where a family becomes `unknown`, in familiarity."""

    threshold: float
    not_real: float = -np.inf  # above it an image is no photograph
    not_fake: float = np.inf  # below it an image is no fake
    known: float = -np.inf

    def verdicts(self, logit: np.ndarray) -> np.ndarray:
        """Logits (n,) -> "real", "fake" or "unsure" (n,)."""
        no_photograph, no_fake = logit > self.not_real, logit < self.not_fake
        neither = np.where(logit >= self.threshold, "fake", "real")
        one = np.where(no_photograph, "fake", np.where(no_fake, "real", "unsure"))
        return np.where(no_photograph & no_fake, neither, one)


@dataclass(frozen=True)
class Rules:
    """What the user asked for, ready for images."""

    cuts: dict[str, Cuts]  # of `every`, and with a threshold for each quality of `qf40`...
    calibration: Calibration  # of the kind that was asked for
    familiarity: str  # one of OPEN_SET
    prevalence: float | None = None  # share of fakes where the images are from, if it was stated
    expected: dict[str, Expected] = field(default_factory=dict)  # at that prevalence, of each of the cuts
    basis: str = ""  # what the threshold was chosen from, in words

    def at(self, quality: int | None) -> Cuts:
        """Those of the fitted quality that is nearest (of two the lower one); None, an unknown one: those of all."""
        fitted = {q: name for name in self.cuts if (q := quality_of(name)) is not None}
        if quality is None or not fitted:
            return self.cuts[EVERY]
        return self.cuts[fitted[min(fitted, key=lambda q: (abs(q - quality), q))]]


@dataclass(frozen=True, eq=False)
class Decision:
    """What was fitted. `tables` are named `real/every`, `fake/qf40`, `known/every`...: see `group_quantiles`."""

    thresholds: dict[str, float] = field(default_factory=dict)  # of qfNN; that of all is the detector's own
    tables: dict[str, np.ndarray] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    familiarity: str = "energy"

    def rules(
        self,
        threshold: float,
        error_rate: float | None = None,
        max_false_positive_rate: float | None = None,
        thresholds: Thresholds = "global",
        calibration: Kind | None = None,
        known_recall: float = 0.95,
        confidence: float | None = None,
        prevalence: float | None = None,
    ) -> Rules:
        """Rules of verdicts; `threshold` is the detector's global one.

        `error_rate`: at most this share of photographs is called fake, and at most this share of fakes real; others
        are `unsure`. `max_false_positive_rate`: alone, what is no photograph at this rate is fake and all else real,
        whatever the threshold; beside `error_rate` it takes its place for photographs. `known_recall`: the share of
        fakes of trained classes that keep their family, at least; with too few groups for it all do, at 1 as well.
        `confidence`: None, rates hold on average over validation samples; else with this probability for this very
        detector, each of them. `prevalence`: the share of fakes where the images are from; it moves no verdict, it
        says what verdicts are worth there.

        Refuses what was not fitted and rates that validation is too small for.
        """
        names = (EVERY,) if thresholds == "global" else (EVERY, *self.thresholds)
        if thresholds == "quality" and not self.thresholds:
            raise Refusal(
                "--thresholds quality: this detector has no threshold of a JPEG quality; score views such as "
                "qf90 qf40 (--test_views) when it is trained, or leave the flag out"
            )
        if calibration not in (None, "none", *self.calibration.numbers):
            raise Refusal(f"--calibration {calibration}: this detector has none; choose none or leave the flag out")
        if not 0 < known_recall <= 1:
            raise Refusal(f"--known_recall {known_recall:g}: give a share above 0, such as 0.95; 1 means all")
        if confidence is not None and error_rate is None and max_false_positive_rate is None:
            raise Refusal(
                f"--confidence {confidence:g} says how surely a rate holds, but none is stated: add --error_rate or "
                "--max_false_positive_rate"
            )
        cuts = {}
        for name in names:
            own = threshold if name == EVERY else self.thresholds[name]
            cuts[name] = self._cuts(name, own, error_rate, max_false_positive_rate, 1 - known_recall, confidence)
        chosen = replace(self.calibration, kind=calibration or self.calibration.kind)
        rules = Rules(cuts, chosen, self.familiarity, prevalence)
        return rules if prevalence is None else replace(rules, expected=self._expected(rules, prevalence))

    def _expected(self, rules: Rules, prevalence: float) -> dict[str, Expected]:
        """What the verdicts of each of the cuts are worth; refuses a p_fake that is for no known share of fakes."""
        check_prevalence(prevalence)
        if rules.calibration.kind == "none":
            raise Refusal(
                f"--prevalence {prevalence:g}: without calibration p_fake is for no known share of fakes; leave "
                "--calibration none out, or take a detector that was calibrated on validation images"
            )
        found = {}
        for name, cuts in rules.cuts.items():
            real, fake = (
                cuts.verdicts(sign * self.tables[f"{of}/{name}"]) for of, sign in (("real", 1), ("fake", -1))
            )
            found[name] = expected(real, fake, prevalence)
        return found

    def _cuts(
        self, name: str, threshold: float, both: float | None, alarms: float | None, lost: float, sure: float | None
    ) -> Cuts:
        """Of one name, at these rates: of both errors, of false alarms, of known families that are lost."""
        real, fake, known = (self.tables.get(f"{what}/{name}", np.zeros(0)) for what in ("real", "fake", "known"))
        where = "" if name == EVERY else f" under {name}"
        found = {"threshold": threshold}
        if both is not None:
            found["not_fake"] = -promised(fake, both, "--error_rate", f"fakes{where}", sure)
        if alarms is not None:
            found["not_real"] = promised(real, alarms, "--max_false_positive_rate", f"photographs{where}", sure)
            found["threshold"] = -np.inf if both is None else threshold  # alone it is the only cut
        elif both is not None:
            found["not_real"] = promised(real, both, "--error_rate", f"photographs{where}", sure)
        if lost > 0 and len(known) >= fewest_groups(lost, sure):
            found["known"] = -promised(known, lost, "--known_recall", "fakes of trained classes", sure)
        return Cuts(**found)

    def describe(self) -> dict[str, object]:
        """For detector.json: what is no table, and the groups of each; a rate of 1 / (1 + groups) can be promised."""
        return {
            "thresholds": self.thresholds,
            "calibration": self.calibration.kind,
            "log_loss": self.calibration.losses,
            "familiarity": self.familiarity,
            "groups": {name: len(table) for name, table in self.tables.items()},
        }

    def save(self, folder: Path) -> None:
        """Write the tables and the maps; nothing if nothing was fitted."""
        maps = {f"calibration/{kind}": numbers for kind, numbers in self.calibration.numbers.items()}
        if tensors := self.tables | maps:
            with atomic(folder / FILE) as temporary:
                save_file({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, temporary)
        else:
            (folder / FILE).unlink(missing_ok=True)


def read_decision(folder: str | Path) -> tuple[float, Decision]:
    """The global threshold of a saved detector and what else was fitted; older detectors have the threshold only.

    Refuses what is incomplete or no table of finite, ascending numbers.
    """
    folder = Path(folder)
    try:
        record: Any = read_json(folder / "detector.json")
        threshold, known = float(record["threshold"]), record.get("decision")
        if not np.isfinite(threshold):
            raise ValueError(f"the threshold is {threshold}")
        if known is None:
            return threshold, Decision()
        tensors = {}
        if known["groups"] or known["calibration"] != "none":
            require_regular(folder / FILE)
            tensors = load_file(folder / FILE)
        maps = {name: tensors.pop(name) for name in list(tensors) if name.startswith("calibration/")}
        calibration = Calibration(
            known["calibration"],
            {name.removeprefix("calibration/"): numbers for name, numbers in maps.items()},
            known["log_loss"],
        )
        found = Decision(known["thresholds"], tensors, calibration, known["familiarity"])
        wrong = [*_wrong(found)]
        if found.describe() != known:
            wrong.append("counts of groups that differ from the tables")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise Refusal(f"{folder} is not a complete detector directory: {error}") from error
    if wrong:
        raise Refusal(f"{folder / FILE} holds {wrong[0]}: fetch the detector again")
    return threshold, found


def _wrong(found: Decision) -> Iterator[str]:
    """What of these numbers cannot be meant."""
    shapes = {"temperature": (1,), "sigmoid": (2,)}
    for name, threshold in found.thresholds.items():
        if quality_of(name) is None or not np.isfinite(threshold):
            yield f"a threshold {threshold} for {name!r}"
    for name, table in found.tables.items():
        if table.ndim != 1 or not np.isfinite(table).all() or (np.diff(table) < 0).any():
            yield f"in {name!r} what is no ascending list of numbers"
    for kind, numbers in found.calibration.numbers.items():
        ascending = kind != "isotonic" or (np.diff(numbers) >= 0).all()
        if numbers.shape != shapes.get(kind, (2, *numbers.shape[1:2])) or not np.isfinite(numbers).all():
            yield f"a {kind} calibration of shape {numbers.shape}"
        elif not ascending or (kind != "isotonic" and numbers[0] < 0):
            yield f"a {kind} calibration that falls"
    if found.calibration.kind not in ("none", *found.calibration.numbers):
        yield f"no calibration {found.calibration.kind!r}"
    if found.familiarity not in OPEN_SET:
        yield f"no familiarity {found.familiarity!r}"


def fit_decision(scores: Scores) -> Decision:
    """Everything from the readable `val` rows of a table of scores; no other row has a part in it.

    Processed reals are photographs here, unlike in `pick_threshold`: a false alarm on them is one.
    """
    val = scores.select((scores["split"] == "val") & scores.ok)
    thresholds = quality_thresholds(val)
    columns = (val[name] for name in ("view", "generator", "edit"))
    kind = np.array(["/".join(names) for names in zip(*columns, strict=True)], dtype=object)
    values = {"real": (~val.fake, val["logit"]), "fake": (val.fake, -val["logit"])}
    known, unknown = known_fakes(val)
    measure = "energy"
    if known.any():
        sizes = familiarity(class_logits(val))
        measure = best_measure(sizes, known, unknown)
        values["known"] = (known, -sizes[measure])
    tables = {}
    for name in (EVERY, *thresholds):
        here = (val["view"] == name) | (name == EVERY)
        for what, (rows, value) in values.items():
            if (used := rows & here).any():
                tables[f"{what}/{name}"] = group_quantiles(value[used], val["group"][used], kind[used])
    return Decision(thresholds, tables, fit_calibration(val), measure)

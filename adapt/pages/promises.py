"""The part of a page about promises: what validation promised and what the test rows say of it."""

from collections.abc import Sequence

from adapt.errors import Refusal
from adapt.evaluation.base_rates import AMONG, PREDICTIVE
from adapt.evaluation.conformal import exceeded, meant
from adapt.evaluation.decision import EVERY, Decision
from adapt.evaluation.metrics import Cell, index
from adapt.evaluation.promises import ERROR_RATE, OWN
from adapt.evaluation.replicates import ALL
from adapt.pages.tables import grid, show, views_of

PAGE = {  # row of the page: generator and metric
    "photographs called fake": ("real", "sure_false_alarm"),
    "processed ones called fake": ("edit:all", "sure_false_alarm"),
    "seen fakes called real": ("mean:seen", "sure_miss"),
    "unseen fakes called real": ("mean:unseen", "sure_miss"),
    "called at all": ("mean:all", "coverage"),
    "of these wrong": ("mean:all", "selective_error"),
}
ABOUT = (
    "Stated error rate {rate:g}, promised from {real} validation groups with photographs and {fake} with fakes: of "
    "images of new scenes like those, at most this share of photographs is called fake and at most this share of "
    "fakes real; what is neither is unsure. Each of the two holds {meant}. {sure}With one threshold the promise is "
    "about all views together, with a threshold for each quality about each of these views. It does not cover "
    "generators that validation lacks. Means are over generators."
)
ON_AVERAGE = (
    "Were each group one image, the rate of a single detector would be above it in {real:.2f} of all validation "
    "samples for photographs, and in {fake:.2f} for fakes; --confidence 0.9 states a rate for this very detector. "
)
UNPROMISED = "No abstaining at a stated error rate: {why}."
ABOUT_CALIBRATION = (
    "ECE of p_fake as scored, and calibrated on validation ({kind} has the lowest cross-validated log loss there). "
    "p_fake is for as many fakes as photographs: where fakes are rarer it is lower. Balanced accuracy with one "
    "threshold, and with that of the view's own quality."
)
UNCALIBRATED = (
    "ECE of p_fake as scored: without validation rows of both classes nothing was calibrated, and p_fake is for no "
    "known share of fakes."
)
ABOUT_BASE_RATE = (
    "Where a share {prevalence:g} of all images is fake: ppv, the share of fakes among what is called fake at the "
    "threshold; npv, the share of photographs among what is called real. From mean recall and false alarms over "
    "generators, and the ends of both intervals together."
)


def promises_section(
    cells: Sequence[Cell], decision: Decision, rate: float = ERROR_RATE, confidence: float | None = None
) -> str:
    """The part of the page about them, from the cells of `evaluate` and `keep`."""
    at, views = index(cells), views_of(cells)
    page = ["## Promises"]
    blocks = [suffix for suffix in ("", OWN) if any(cell.metric == "coverage" + suffix for cell in cells)]
    if blocks:
        groups = {what: len(decision.tables[f"{what}/{EVERY}"]) for what in ("real", "fake")}
        sure = {what: exceeded(n, rate) for what, n in groups.items()}
        words = ON_AVERAGE.format(**sure) if confidence is None else ""
        page.append(ABOUT.format(rate=rate, meant=meant(confidence), sure=words, **groups))
    else:
        try:
            decision.rules(0.0, rate, confidence=confidence)
        except Refusal as refusal:
            page.append(UNPROMISED.format(why=refusal))
    for suffix in blocks:
        rows = [["one threshold" if suffix == "" else "a threshold for each quality", *views]]
        for name, (generator, metric) in PAGE.items():
            found = [at.get((ALL, view, generator, metric + suffix)) for view in views]
            if any(found):
                rows.append([name, *map(show, found)])
        page.append(grid(rows))
    kind = decision.calibration.kind
    about = UNCALIBRATED if kind == "none" else ABOUT_CALIBRATION.format(kind=kind)
    measures = {"ECE": "ece", f"ECE, {decision.calibration.kind}": "ece_calibrated"}
    if decision.thresholds:
        measures |= {"balanced accuracy, one threshold": "balanced_accuracy"}
        measures |= {"balanced accuracy, one for each quality": "balanced_accuracy" + OWN}
    rows = [[name, *(show(at.get((ALL, v, "mean:all", m))) for v in views)] for name, m in measures.items()]
    page += [grid([["all generators", *views], *rows]), about]
    return "\n\n".join(page)


def base_rate_section(cells: Sequence[Cell], prevalence: float) -> str:
    """The part of the page about verdicts where a share `prevalence` is fake, from the cells of `predictive_cells`."""
    at, views = index(cells), views_of(cells)
    rows = [["worth of a verdict", *views]]
    for name in PREDICTIVE:
        for label in AMONG:
            found = [at.get((ALL, view, label, f"{name}_at_{prevalence:g}")) for view in views]
            rows.append([f"{name}, {label.removeprefix('mean:')} fakes", *map(show, found)])
    return "\n\n".join([f"## At prevalence {prevalence:g}", grid(rows), ABOUT_BASE_RATE.format(prevalence=prevalence)])

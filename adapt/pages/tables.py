"""Numbers as a long CSV file, as a page of Markdown, and as text for a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal, Protocol

from adapt.evaluation.attribution import ABSENT, EDIT, Attribution
from adapt.evaluation.jackknife import FEWEST_GENERATORS
from adapt.evaluation.metrics import ABOVE, PERMUTED, PREFIXES, Cell, Control, Difference, index, weakest
from adapt.evaluation.open_set import OPEN_SET
from adapt.evaluation.replicates import ALL, FALSE_ALARM_RATES, GROUPED, MEANS, METRICS, PREVALENCE, UNSEEN
from adapt.evaluation.samples import Sample
from adapt.evaluation.scores import UNKNOWN
from adapt.evaluation.thresholds import FEWEST_REALS, Basis
from adapt.files import write_text
from adapt.number_table import write_rows
from adapt.pages.markdown_page import page
from adapt.text import escape_markdown, plain

COLUMNS = ("set", "view", "generator", "metric", "value", "low", "high", "n_real", "n_fake", "groups")
COMPARISON = (*COLUMNS[:4], "a", "b", *COLUMNS[4:7], "p", *COLUMNS[7:9])  # columns of comparison.csv
COMPARED = ("auc", "balanced_accuracy", "real_first")  # on the page; the CSV file has every metric
MET = {"train": "training", "val": "validation only", "": "never", UNKNOWN: "not known"}
HOW_TO_READ = """\
Read `0.874 [0.851, 0.896]` as the value and its 95 % interval over groups (jackknife; a photograph and its fakes are
one group), given the threshold. With fewer than 10 groups there is no interval. AUC: the chance that a fake scores
above a real image; 0.5 is guessing. Each generator is compared with the unedited real images of its own set under the
same view. Seen generators have training images, unseen ones were never met; one used for selection only stands apart.
{threshold}
False alarms: share of real images called fake. Worst: its interval knows that it is the lowest of several."""
Origin = Literal["picked", "given", "none", "frozen", "published", "folds", "each", "half"]
THRESHOLDS: dict[Origin, str] = {  # where the threshold is from
    "picked": "One threshold, frozen on validation images, serves all views.",
    "given": "One threshold, given and not picked on validation images of these scores, serves all views.",
    "none": "Without validation images of both classes there is no threshold.",
    "frozen": "One threshold, frozen when the detector was trained, serves all views.",
    "published": "One threshold, as published (p = 0.5), serves all views.",
    "each": "Each row has one threshold of its own, frozen on validation images, which serves all views.",
    "half": "Nothing was fitted: every row is a test row. One threshold, logit 0 (p_fake 0.5), serves all views.",
    "folds": "Each fold has its own threshold, frozen on its own validation images; one serves all views.",
}
ABOUT_METRICS = """\
`_at_0.5`: at p = 0.5 instead. `_oracle`: at the best threshold of the test rows themselves, an upper bound.
ap: average precision where a share {prevalence:g} of all images is fake, whatever the number of rows. ece: 15 bins,
half of the weight to each class. tpr_at_fpr_1 and _5: fakes found with at most 1 % and 5 % false alarms; with fewer
than 100 and 20 real images that means without any. ece, `_oracle` and tpr_at_fpr are sought on the very rows that
they are measured on: no interval would cover them as often as it says, so they have none."""
HEADLINE = {
    "view": (),
    "AUC seen": ("mean:seen", "auc"),
    "AUC unseen": ("mean:unseen", "auc"),
    "AUC all": ("mean:all", "auc"),
    "AUC worst": ("worst:all", "auc"),
    "balanced accuracy": ("mean:all", "balanced_accuracy"),
    "false alarms": ("real", "false_alarm"),
    "on processed reals": ("edit:all", "false_alarm"),
}
FEWEST_ERRORS = 3  # false alarms that a rate must allow: with fewer its recall is at most a guess
ABOUT_SAMPLES = (
    "Readable test images, and the groups that they are in: `520 in 40`. AUC seen and unseen rest on real images and "
    "those fakes, balanced accuracy on all of them, false alarms on real images. {grouped}"
)
GROUPS_COUNT = (
    "Intervals count groups. An interval that took every image for independent would be {off} (standard errors of the "
    "AUC of all fakes pooled)."
)
NO_GROUPS = (
    "**Every image counts as independent**, for each is a group of its own. If some are copies of one picture or come "
    "from one source, intervals are too narrow: `adapt evaluate --group_by COLUMN` names the column that says so."
)
UNSEEN_HEADLINE = {
    "view": (),
    "these generators": ("mean:unseen", "auc"),
    "generators like these": ("sample:unseen", "auc"),
    "of seen families": ("mean:unseen-generator", "auc"),
    "of unseen families": ("mean:unseen-family", "auc"),
}
ABOUT_UNSEEN = """\
AUC on the {k} unseen generators. *These generators*: the interval says what other groups could have given. *Generators
like these*: the same mean; its interval also counts the generators as a sample, and says what other generators could
have given. It takes each as an independent draw, so where they are relatives it is too narrow; fewer than {least} have
none. A family is seen if training or selection met one of its generators."""
ABOUT_UNKNOWN = "{n} unseen fakes are of an unknown family and in neither: name it in a column `family`."
WEAKEST = 10  # cells on the page
ABOUT_WEAKEST = (
    "The lowest of {total} cells of a generator and a view, generators used for selection only left out, by the upper "
    "end of the interval: a cell is surely no better than that, whereas a low value may be a few unlucky images."
)
ABOUT_WITHIN = (
    "Each real image is compared with the fakes of its own group only, which removes content from the measurement: "
    "what moves the scores of a photograph and its fakes alike changes nothing here. Real first: how often the real "
    "image has the lowest score (a tie is shared); pair ranking: share of its fakes that score above it (a tie counts "
    "half)."
)
ABOUT_P = "Paired by group; p is two-sided, by the t of the interval, not corrected for the number of comparisons."

ABOUT_CONTROLS = (
    "Permuted labels and metadata only: passed if the whole interval lies in 0.5 +- 0.1, FAILED if none of it does, "
    "else there are too few images to tell. Processed reals: the same of at most 0.05 false alarms above those on "
    "unedited reals. Each kind of processing is tested; only those that failed are repeated here. Above metadata "
    "only: the detector's AUC minus that of metadata, paired by group; passed where the whole interval is above 0."
)
ABOUT_PERMUTATIONS = (
    "The same training and selection on permuted training and validation labels, measured on the true test labels. "
    "A photograph and its fakes exchange labels among themselves, groups of one class exchange theirs as a whole. p: "
    "the share of all labellings, the true one among them, whose AUC is at least that of the true one; not corrected "
    "for the number of rows. Passed up to 0.05, which takes 19 permutations. FAILED: the mean of the permuted ones is "
    "surely outside 0.5 +- 0.1, so something else than the labels of training tells fakes. Cannot tell: too few "
    "permutations, or real and fake images differ so much along one direction that a head with wrong labels often "
    "sorts them by luck. One permutation tests nothing."
)
ABOUT_ATTRIBUTION = (
    "An image is attributed to the class with the largest logit. Recall: share of a class's images attributed to it. "
    "Macro recall and F1: means over the classes that training had and the test holds, of images of those classes "
    "only, for no answer is right for a class absent in training. Open set: chance (AUROC; 0.5 is guessing) that a "
    "fake of a trained class looks more familiar than a fake of an absent one, by the largest class logit, by the "
    "logsumexp of all (energy) and by the largest softmax. Unknown: less familiar than 95 % of the validation fakes "
    "of trained classes, by the measure that tells those best from fakes of no class there, or by the energy if there "
    "are none. All unedited test images count, also those of generators that served selection."
)
SUMMARY = {
    "macro recall": "macro_recall",
    "macro F1": "macro_f1",
    **{f"open set, {name.replace('_', ' ')}": f"auroc_{name}" for name in OPEN_SET},
}
REJECTED = {  # where validation could fix a cut
    "fakes of absent classes called unknown": "unknown_absent",
    "fakes of trained classes called unknown": "unknown_trained",
}


def write_tables(
    cells: Sequence[Cell],
    folder: str | Path,
    provenance: Mapping[str, object] | None = None,
    controls: Sequence[Control] = (),
    differences: Sequence[Difference] = (),
    sections: Sequence[str] = (),
    attribution: Attribution | None = None,
    behind: Sequence[Sample] = (),
    prevalence: float = PREVALENCE,
    origin: Origin | None = None,
    basis: Basis | None = None,
) -> None:
    """Write metrics.csv and table.md into `folder`; `behind` are the samples that stand behind the numbers.

    `origin` says where the threshold is from; None: as the cells say. `basis`: what it was chosen from, where known.
    With `controls` also controls.csv, with `differences` comparison.csv, with `attribution` attribution.csv and
    confusion.csv. `read_back.py` reads them.
    """
    folder = Path(folder)
    write_rows(folder / "metrics.csv", COLUMNS, cells)
    if controls:
        write_rows(folder / "controls.csv", [field.name for field in fields(Control)], controls)
    if differences:
        write_rows(folder / "comparison.csv", COMPARISON, differences)
    if attribution is not None:
        write_attribution(folder, attribution)
    page = markdown(cells, provenance, controls, differences, sections, attribution, behind, prevalence, origin, basis)
    write_text(folder / "table.md", page)


def write_attribution(folder: Path, found: Attribution) -> None:
    """Write attribution.csv and confusion.csv into `folder`."""
    rates = ("view", "label", "metric", "value", "low", "high", "n")
    write_rows(folder / "attribution.csv", rates, found.rates, {"label": "class"})
    write_rows(folder / "confusion.csv", ("view", "true", "predicted", "count", "share"), found.counts)


class WithInterval(Protocol):
    """A number between its limits; NaN are not known."""

    @property
    def value(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def show(cell: WithInterval | None, sign: str = "") -> str:
    """`0.874 [0.851, 0.896]`, without an interval if there is none, or n/a."""
    if cell is None or cell.value != cell.value:
        return "n/a"
    value = f"{cell.value:{sign}.3f}"
    return value if cell.low != cell.low else f"{value} [{cell.low:{sign}.3f}, {cell.high:{sign}.3f}]"


def views_of(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.view for cell in cells if cell.generator == "mean:all"))


def generators_of(cells: Sequence[Cell]) -> dict[tuple[str, str], str]:
    """(set, generator) -> seen, the seen ones first."""
    own = (c for c in cells if c.metric == "auc" and not c.generator.startswith(PREFIXES))
    ordered = sorted(own, key=lambda cell: ("train", "", "val", UNKNOWN).index(cell.seen))
    return {(cell.set, cell.generator): cell.seen for cell in ordered}


def name_of(key: tuple[str, str], keys: Sequence[tuple[str, str]]) -> str:
    """A generator's name, with its set where there are several sets."""
    return key[1] if len({name for name, _ in keys}) == 1 else f"{key[0] or '-'}/{key[1]}"


def headline(cells: Sequence[Cell]) -> list[list[str]]:
    """The header and one row a view: mean AUC seen and unseen, the worst, balanced accuracy, false alarms; where it is
    not known which generators are which, also the mean over all."""
    at, generators = index(cells), generators_of(cells)
    told = UNKNOWN not in generators.values()
    shown = {title: key for title, key in HEADLINE.items() if not (told and title == "AUC all")}
    rows = [list(shown)]
    for view in views_of(cells):
        found = {key: at.get((key[0], view, key[1], "auc")) for key in generators}
        worst = at[ALL, view, "worst:all", "auc"].value
        names = [name_of(key, list(generators)) for key, cell in found.items() if cell and cell.value == worst]
        row = [at.get((ALL, view, key[0], key[1])) for key in shown.values() if key]
        rows.append([view, *map(show, row)])
        rows[-1][rows[0].index("AUC worst")] += f" {names[0]}" if names else ""
    return rows


def text(cells: Sequence[Cell]) -> str:
    """The headline table in aligned columns, for a terminal."""
    return "\n".join([aligned(headline(cells)), *map(plain, _in_no_mean(cells))])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Words in aligned columns, for a terminal."""
    rows = [[plain(word) for word in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([word.ljust(width) for word, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _in_no_mean(cells: Sequence[Cell]) -> list[str]:
    """A sentence that names the generators that no mean counts, for a class of their set has no readable image."""
    keys, lacking = list(generators_of(cells)), dict[str, dict[str, list[str]]]()
    for cell in cells:
        if cell.metric == "auc" and (cell.set, cell.generator) in keys and not (cell.n_real and cell.n_fake):
            what = "fake" if cell.n_real else "unedited real"
            views = lacking.setdefault(what, {}).setdefault(name_of((cell.set, cell.generator), keys), [])
            views.append(cell.view)
    every = views_of(cells)
    said = [
        ", ".join(name if views == every else f"{name} (under {', '.join(views)})" for name, views in names.items())
        + f" (no readable {what} image in the set)"
        for what, names in lacking.items()
    ]
    return [f"In no mean, nor in the worst: {'; '.join(said)}."] if said else []


def sizes(found: Sequence[Sample]) -> str:
    """One line for a terminal: what stands behind the first view's numbers."""
    first = found[0]
    counted = ", ".join(f"{what} {first.shown(what)}" for what, (images, _) in first.counts.items() if images)
    said = f"by image, intervals would be {plain(_off(first))}" if first.grouped else "every image is one group"
    return f"images in groups: {counted}; {said}"


def markdown(
    cells: Sequence[Cell],
    provenance: Mapping[str, object] | None = None,
    controls: Sequence[Control] = (),
    differences: Sequence[Difference] = (),
    sections: Sequence[str] = (),
    attribution: Attribution | None = None,
    behind: Sequence[Sample] = (),
    prevalence: float = PREVALENCE,
    origin: Origin | None = None,
    basis: Basis | None = None,
) -> str:
    """The page: how to read it, headline, samples, metrics, generators, processed reals, sections, provenance."""
    embedded = any(cell.set == "embedded" for cell in cells)
    origin = origin or _origin(cells)
    how = HOW_TO_READ.format(threshold=THRESHOLDS[origin])
    parts = [how, "## Headline", grid(headline(cells))]
    parts.append("Balanced accuracy: mean over all generators, at the threshold.")
    parts += [
        *(f"**{escape_markdown(line)}**" for line in _in_no_mean(cells)),
        *_unseen(cells),
        *behind_section(behind),
    ]
    parts += [*_metrics(cells, prevalence, origin, basis), *_generators(cells), *_weakest(cells), *_within(cells)]
    parts += _processed(cells)
    parts += [*_controls(cells, controls), *_differences(differences), *sections]
    parts += (attribution_sections(attribution) if attribution else []) + _missing(cells)
    return page("Results", parts, provenance or {"provenance": "none given"}, embedded=embedded)


def _origin(cells: Sequence[Cell]) -> Origin:
    """Where the threshold is from, a key of `THRESHOLDS`: no row stands behind one that was given."""
    threshold = index(cells)[ALL, ALL, "pooled:val", "threshold"]
    if threshold.value != threshold.value:
        return "none"
    return "picked" if threshold.n_real and threshold.n_fake else "given"


def _off(sample: Sample) -> str:
    """What is wrong with an interval by image."""
    factor = sample.too_narrow
    if factor != factor:
        return "wrong by what is not known here"
    where = f"under view {escape_markdown(sample.view)}"
    return f"{factor:.1f} times too narrow {where}" if factor >= 1 else f"{1 / factor:.1f} times too wide {where}"


def behind_section(found: Sequence[Sample]) -> list[str]:
    """How many images and groups stand behind the headline, a column a view."""
    if not found:
        return []
    rows = [["images in groups", *(sample.view for sample in found)]]
    rows += [[what, *(sample.shown(what) for sample in found)] for what in found[0].counts]
    if any(sample.grouped for sample in found):
        factors = [f"{s.too_narrow:.2f}" if s.too_narrow == s.too_narrow else "n/a" for s in found]
        rows.append(["error by group / by image", *factors])
        widest = max((s for s in found if s.too_narrow == s.too_narrow), key=lambda s: s.too_narrow, default=found[0])
        grouped = GROUPS_COUNT.format(off=_off(widest))
    else:
        grouped = NO_GROUPS
    return ["## Images and groups", grid(rows), ABOUT_SAMPLES.format(grouped=grouped)]


def _guesses(cells: Sequence[Cell]) -> list[str]:
    """Which recalls at a rate of false alarms rest on too few real images, by the generator that has fewest."""
    reals = [
        c.n_real for c in cells if c.metric == "auc" and c.n_fake and c.n_real and not c.generator.startswith(PREFIXES)
    ]
    if not reals or not any(c.metric in FALSE_ALARM_RATES and c.value == c.value for c in cells):
        return []
    return [
        f"**{name} is at most a guess here**: it takes {FEWEST_ERRORS / rate:.0f} real images, here are {min(reals)}."
        for name, rate in FALSE_ALARM_RATES.items()
        if min(reals) < FEWEST_ERRORS / rate - 1e-9
    ]


def _unseen(cells: Sequence[Cell]) -> list[str]:
    """What the unseen generators say of others; nothing without any, or in files from before it was measured."""
    at, views = index(cells), views_of(cells)
    first = next((at[key] for view in views if (key := (ALL, view, "sample:unseen", "auc")) in at), None)
    if first is None:
        return []
    keys = [key for key in UNSEEN_HEADLINE.values() if key]
    rows = [[view, *(show(at.get((ALL, view, key[0], key[1]))) for key in keys)] for view in views]
    k = len({name for (_, name), seen in generators_of(cells).items() if seen == ""})
    about = ABOUT_UNSEEN.format(k=k, least=FEWEST_GENERATORS)
    known = [at[key].n_fake for label in UNSEEN if (key := (ALL, first.view, label, "auc")) in at]
    if unknown := first.n_fake - sum(known):
        about += " " + ABOUT_UNKNOWN.format(n=unknown)
    title = "## Unseen generators: these, and others like them"
    return [title, grid([list(UNSEEN_HEADLINE), *rows]), about]


def threshold_line(cells: Sequence[Cell], origin: Origin, basis: Basis | None = None) -> str:
    """The threshold, how it was chosen, from how many validation images and groups; on few photographs it is a guess.

    Without a `basis` by the rows that the cells count.
    """
    threshold = index(cells)[ALL, ALL, "pooled:val", "threshold"]
    rests_on = f"{threshold.n_real} real and {threshold.n_fake} fake readable validation rows"
    if basis is None:  # each image has a row a view
        few = threshold.n_real < FEWEST_REALS * len(views_of(cells))
        groups = f" in {threshold.groups} groups" if threshold.groups else ""  # files from before do not say it
        chosen = f"from {rests_on}{groups}"
    else:
        few, chosen = basis.few, basis.chosen
    guess = f"**a guess** (fewer than {FEWEST_REALS} validation photographs), " if few else ""
    before = f"; {guess}{chosen} there" if basis else ""
    return {
        "picked": f"logit {show(threshold)}, {guess}{chosen}" + (f" ({rests_on})" if basis else ""),
        "given": f"logit {show(threshold)}, given (by --threshold), not picked on these rows",
        "none": f"none, for there are {rests_on}; give one with --threshold",
        "frozen": f"logit {show(threshold)}, frozen when the detector was trained, not picked on these rows{before}",
        "half": f"logit {show(threshold)} (p_fake 0.5), for no column says which rows validate; nothing was fitted",
        "published": f"logit {show(threshold)}, {basis}",
        "folds": "that of each fold; logits are those above it, so it stands at 0",
    }[origin]


def _metrics(cells: Sequence[Cell], prevalence: float, origin: Origin, basis: Basis | None) -> list[str]:
    at, views = index(cells), views_of(cells)
    rows = [[metric, *(show(at[ALL, view, "mean:all", metric]) for view in views)] for metric in METRICS]
    about = f"Threshold: {threshold_line(cells, origin, basis)}. {ABOUT_METRICS.format(prevalence=prevalence)}"
    table = grid([["metric", *views], *rows])
    return ["## All metrics, mean over all generators", table, about, *_guesses(cells)]


def _generators(cells: Sequence[Cell]) -> list[str]:
    at, views, generators = index(cells), views_of(cells), generators_of(cells)
    known = any(cell.groups for cell in cells)  # files from before do not say it
    rows = [["generator", "met in", *views, "real", "fake", *(["groups"] if known else [])]]
    for (name, generator), seen in generators.items():
        found = [at.get((name, view, generator, "auc")) for view in views]
        first = next(cell for cell in found if cell)
        label = name_of((name, generator), list(generators))
        behind = [str(first.n_real), str(first.n_fake), *([str(first.groups)] if known else [])]
        rows.append([label, MET[seen], *map(show, found), *behind])
    about = "real, fake: readable rows of the first view" + ("; groups: of the rarer class." if known else ".")
    return ["## AUC per generator", grid(rows), about]


def _weakest(cells: Sequence[Cell]) -> list[str]:
    """Only where there are more cells than fit: fewer are seen at a glance in the table above."""
    generators, ranked = generators_of(cells), weakest(cells, len(cells))
    if len(ranked) <= WEAKEST:
        return []
    rows = [["generator", "met in", "view", "AUC", "real", "fake"]]
    for cell in ranked[:WEAKEST]:
        label = name_of((cell.set, cell.generator), list(generators))
        rows.append([label, MET[cell.seen], cell.view, show(cell), str(cell.n_real), str(cell.n_fake)])
    return ["## Weakest cells", grid(rows), ABOUT_WEAKEST.format(total=len(ranked))]


def _within(cells: Sequence[Cell]) -> list[str]:
    at, views = index(cells), views_of(cells)
    rows = [["within groups", "chance", *views, "real", "fake"]]
    for metric in ("real_first", "pair_ranking"):
        for label in GROUPED:
            found = [at.get((ALL, view, label, metric)) for view in views]
            if first := next((cell for cell in found if cell), None):
                chance = at[ALL, first.view, label, "real_first_chance"].value if metric == "real_first" else 0.5
                name = f"{metric.replace('_', ' ')}, {label.removeprefix('within:')} fakes"
                rows.append([name, f"{chance:.3f}", *map(show, found), str(first.n_real), str(first.n_fake)])
    counted = "real, fake: readable images of the first view in groups that have both."
    return ["## Within groups", grid(rows), f"{ABOUT_WITHIN} {counted}"] if rows[1:] else []


def _processed(cells: Sequence[Cell]) -> list[str]:
    at, views = index(cells), views_of(cells)
    edits = {cell.generator for cell in cells if cell.set == ALL and cell.generator.startswith("edit:")}
    if not edits:
        return []
    rows = [["processing", *views]]
    for label in ("real", *sorted(edits - {"edit:all"}), "edit:all"):
        found = (show(at.get((ALL, view, label, "false_alarm"))) for view in views)
        rows.append(["none" if label == "real" else label.removeprefix("edit:"), *found])
    return ["## False alarms on processed real images", grid(rows)]


def _controls(cells: Sequence[Cell], controls: Sequence[Control]) -> list[str]:
    if not controls:
        return []
    rows = [["control", "view", "value", "outcome"]]
    # one kind of processing has its row only where it fails: its rates stand in the table above
    shown = [
        c
        for c in controls
        if not c.permutations
        and (c.outcome == "FAILED" or not c.name.startswith("processed reals") or ", all:" in c.name)
    ]
    signs = ["+" if c.name.startswith(ABOVE.partition(":")[0]) else "" for c in shown]  # of a difference
    rows += [[c.name, c.view, show(c, sign), c.outcome] for c, sign in zip(shown, signs, strict=True)]
    page = ["## Controls", grid(rows), ABOUT_CONTROLS]
    if like := _like_metadata(cells, controls):
        page.append("\n".join(f"- {escape_markdown(line)}" for line in like))
    return page + _permutations(cells, controls)


def _like_metadata(cells: Sequence[Cell], controls: Sequence[Control]) -> list[str]:
    """A line for each view and kind of generators where the detector is not told from metadata of the files."""
    at, lines = index(cells), []
    for control in controls:
        for kind in ("seen", "unseen"):
            own = at.get((ALL, control.view, f"mean:{kind}", "auc"))
            if control.name == ABOVE.format(f"mean:{kind}") and control.outcome != "passed" and own:
                told = "metadata are better" if control.outcome == "FAILED" else "not told apart"
                lines.append(
                    f"View {control.view}: metadata only reach {own.value - control.value:.3f} on {kind} generators, "
                    f"this detector {own.value:.3f}; difference {show(control, '+')}: {told}."
                )
    return lines


def _permutations(cells: Sequence[Cell], controls: Sequence[Control]) -> list[str]:
    """The AUC of the true labels among those of permuted ones."""
    found = [control for control in controls if control.permutations]
    if not found:
        return []
    at = index(cells)
    rows = [["AUC", "view", "true labels", "permuted labels, mean", "lowest", "highest", "permutations", "p"]]
    for c in found:
        generator = next(label for label in MEANS if PERMUTED.format(label) == c.name)
        numbers = at[ALL, c.view, generator, "auc"].value, c.value, c.low, c.high
        rows.append([generator, c.view, *(f"{number:.3f}" for number in numbers), str(c.permutations)])
        rows[-1].append("one permutation: no test" if c.permutations == 1 else f"{c.p:.3f}, {c.outcome}")
    return ["### Labels permuted", grid(rows), ABOUT_PERMUTATIONS]


def _differences(differences: Sequence[Difference]) -> list[str]:
    if not differences:
        return []
    rows = [["view", "of", "metric", "a", "b", "a - b", "p"]]
    for d in differences:
        if d.set == ALL and d.generator.startswith(("mean:", "worst:", "within:")) and d.metric in COMPARED:
            a, b, p = ("n/a" if x != x else f"{x:.3f}" for x in (d.a, d.b, d.p))
            rows.append([d.view, d.generator, d.metric, a, b, show(d, "+"), p])
    return ["## Comparison: a is this table of scores, b the other", grid(rows), ABOUT_P]


def attribution_sections(found: Attribution) -> list[str]:
    """Means and open set, recall per class, what absent classes and processed reals are taken for."""
    at = {(rate.view, rate.label, rate.metric): rate for rate in found.rates}
    views = list(dict.fromkeys(rate.view for rate in found.rates))

    def rows(first: str, kinds: Mapping[str, tuple[str, str]]) -> list[list[str]]:
        return [[first, *views]] + [[name, *(show(at.get((v, *key))) for v in views)] for name, key in kinds.items()]

    kinds = SUMMARY | (REJECTED if any(rate.metric in REJECTED.values() for rate in found.rates) else {})
    summary = grid(rows("all classes", {name: (ALL, metric) for name, metric in kinds.items()}))
    table = rows(found.column, {name: (name, "recall") for name in found.classes})
    n = ["images", *(str(at[views[0], name, "recall"].n) for name in found.classes)]
    recall = grid([[*row, count] for row, count in zip(table, n, strict=True)])
    named = "Absent in training: {}. Trained, but without a test image: {}."
    named = named.format(*(escape_markdown(", ".join(names)) or "none" for names in (found.absent, found.untested)))
    page = ["## Attribution", summary, named, recall, f"images: readable ones of the first view. {ABOUT_ATTRIBUTION}"]
    if any(count.true.startswith((ABSENT, EDIT)) for count in found.counts):
        page += ["Taken for, the most frequent three of the classes:", grid(_taken_for(found, views))]
    if skipped := [rate for rate in found.rates if rate.skipped]:
        lines = (f"{r.metric} of {r.label}, view {r.view}: all its rows are in few groups" for r in skipped)
        page += ["Without an interval:", "\n".join(f"- {escape_markdown(line)}" for line in lines)]
    return page


def _taken_for(found: Attribution, views: Sequence[str]) -> list[list[str]]:
    """What absent classes and processed reals were attributed to, e.g. `gan 0.62, real 0.38`."""
    shares: dict[str, dict[str, list[tuple[float, str]]]] = {}
    for count in found.counts:
        if count.true.startswith((ABSENT, EDIT)):
            taken = shares.setdefault(count.true, {}).setdefault(count.view, [])
            taken += [(count.share, count.predicted)] if count.count else []
    rows = [["images of", *views]]
    for label, of in shares.items():
        best = [sorted(of.get(view, []), key=lambda pair: -pair[0])[:3] for view in views]
        name = label if label.startswith(ABSENT) else f"processed reals, {label.removeprefix(EDIT)}"
        rows.append([name, *(", ".join(f"{taken} {share:.2f}" for share, taken in pairs) or "n/a" for pairs in best)])
    return rows


def _missing(cells: Sequence[Cell]) -> list[str]:
    """Unreadable rows, and why some numbers are n/a or have no interval."""
    rows = [["set", "view", "of", "rows"]]
    rows += [[c.set or "-", c.view, c.generator, f"{c.value:.0f}"] for c in cells if c.metric == "unreadable"]
    notes = []
    if any(cell.metric == "threshold" and cell.value != cell.value for cell in cells):
        notes.append("no validation rows of both classes, so no frozen threshold: what needs it is n/a")
    for cell in cells:
        if cell.metric == "auc" and not cell.generator.startswith(PREFIXES):
            where = f"{cell.generator}, set {cell.set or '-'}, view {cell.view}"
            if not cell.n_real or not cell.n_fake:
                kind = "fake" if cell.n_real else "unedited real"
                notes.append(f"{where}: no readable {kind} image here, so it is n/a and in no mean")
            elif cell.skipped:
                notes.append(f"{where}: one of the classes is in one group alone, so there is no interval")
        elif cell.set == ALL and cell.metric == "real_first" and cell.skipped:
            where = f"{cell.generator}, view {cell.view}"
            notes.append(f"{where}: one group alone has both classes, so there is no interval")
    page = ["## Unreadable rows", grid(rows) if rows[1:] else "None."]
    return page + (["## Notes", "\n".join(f"- {escape_markdown(note)}" for note in notes)] if notes else [])


def grid(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the header."""
    lines = ["| " + " | ".join(escape_markdown(word) for word in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])

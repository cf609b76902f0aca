"""Tables of many methods: which numbers stand where, how they are shown, and where they are marked as best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from adapt.evaluation.jackknife import FEWEST_GENERATORS, Interval
from adapt.evaluation.metrics import CHANCE, PREFIXES, outcome_of
from adapt.evaluation.metrics import EXCESS as EXCESS_ALLOWED
from adapt.evaluation.permutation import outcome_of_permutations
from adapt.evaluation.replicates import ALL, distinct
from adapt.evaluation.side_by_side import (
    ABOVE_METADATA,
    CLASSES,
    EXCESS,
    GAPS,
    MEAN,
    METADATA,
    SAMPLE,
    TEMPERED,
    TRUE_LABELS,
    WORST,
    Number,
    P,
    Place,
    Row,
)
from adapt.pages.tables import name_of
from adapt.text import escape_markdown

COSTS = {"trainable_parameters": "trainable parameters", "minutes": "minutes", "peak_memory_mib": "peak memory, MiB"}
GIVEN = {  # facts of a run's record
    "training_reals": ("training images", "real"),
    "training_fakes": ("training images", "fake"),
    "views_per_image": ("", "times each was shown"),
    "configurations": ("", "settings tried on validation"),
}
TIE, LIKE_METADATA = "†", "‡"
ABOUT_NUMBERS = f"""\
`0.874 [0.851, 0.896] ±0.004`: mean over training seeds, its 95 % interval (over test groups and training
seeds, given the thresholds), and half the distance between the smallest and the largest seed.
Seen generators have training images, unseen ones were never met. Columns without a view are means over the views;
worst: the unseen generator with the lowest of these means. Balanced accuracy: at one
threshold a detector, frozen on validation images. ECE: calibration error of p as it comes, all generators, 15 bins;
on equal terms: after one temperature for each detector, fitted on its unedited validation images, so that a detector
which calibrates itself has no advantage. A p of 0.5 for every image has an ECE of 0: read it beside the AUC.
**Bold**: the best of its column, where it is ahead of every other row (paired by group and seed, at 95 % for all
columns and rows of the table together). Elsewhere the best and all rows that are not separated from it carry {TIE}.
With one seed nothing is marked: it says nothing about other seeds. Controls take no part, and nothing was selected on
test data. Rows that one method could not read are left out of all."""
ABOUT_GIVEN = """\
Means over seeds. Every time an image is shown, it is under a view drawn anew. Settings: all that the detector's own
validation images chose among, such as penalties, epochs, or pairs of alpha and beta; 1 where nothing was chosen. The
threshold and the temperature come from these images, too. Compare rows with equal training images: methods that are
made for few shots also have a row with all of them, and a probe one with as few. n/a: the run is from before these
facts were recorded."""
ABOUT_LIKE_METADATA = """\
{sign}: on these generators this method is not surely above metadata of the files only (view {view}: {reached};
paired by group, and by seed where there are several, at 95 % for all methods and {kinds} of generators together).
Its AUC may come from how the files were written."""
ABOUT_PERMUTED = """\
Labels permuted: means over permutations of the training and validation labels (their number stands under seeds),
with intervals over permutations, and half the distance between the lowest and the highest."""
ABOUT_TRANSFER = """\
Mean balanced accuracy over all generators. Frozen: one threshold, from validation images of all views. Oracle: the
best threshold of each generator and view on the test rows themselves, an upper bound and no result; what it gains
over the frozen one is the price of a threshold that does not fit, and never below 0."""
ABOUT_UNSEEN = f"""\
AUC, mean over views, on the generators that were never met. These generators: the interval says what other groups and
training seeds could have given. Generators like these: the same mean; its interval also counts the generators as a
sample, and says what other generators could have given (each an independent draw; fewer than {FEWEST_GENERATORS} have
none). A family is seen if training or selection met one of its generators."""
ABOUT_ATTRIBUTION = """\
Which family, or generator, made an image: test images of the classes that training had, real among them, each image
attributed to the class with the largest logit. Macro recall is the mean over classes of the share that is attributed
rightly (balanced accuracy of several classes). Guessing reaches 1 / classes, so compare rows of the same classes only.
Open set: the chance (AUROC) that a fake of a trained class looks more familiar, by the logsumexp of all class logits,
than a fake of a class that training lacked. Nothing is marked."""
ABOUT_CONTROLS = f"""\
Labels permuted in training, and metadata of the files only: passed if the whole interval lies in 0.5 +- {CHANCE},
FAILED if none of it does, else there are too few images to tell. Processed reals, mean over views: the same of at most
{EXCESS_ALLOWED} false alarms above those on unedited reals."""
ABOUT_PERMUTATIONS = f"""\
Labels permuted in training and validation, where there is a p: FAILED if the mean of the permutations is surely
outside 0.5 +- {CHANCE}; passed if p is at most 0.05, p being the share of all labellings, the true one among them,
that reach the AUC of the true one. One permutation tests nothing."""


@dataclass(frozen=True)
class Column:
    """One column of numbers under a common heading; `marked` ones have a best."""

    group: str
    name: str
    place: Place
    marked: bool = False

    @property
    def title(self) -> str:
        return f"{self.group}, {self.name}" if self.group else self.name


@dataclass(frozen=True)
class Entry:
    """What stands in one place: a word or a number, with its interval and spread over seeds, and what to sort by."""

    value: str
    key: float | str
    between: tuple[str, ...] = ()  # the ends of the interval
    spread: str = ""
    mark: str = ""  # best, tie or ''
    note: str = ""  # behind it: a name
    like_metadata: bool = False  # not surely above what metadata of the files reach

    @property
    def text(self) -> str:
        """All but the weight of the type."""
        words = [self.value, f"[{', '.join(self.between)}]" if self.between else "", self.spread and f"±{self.spread}"]
        return " ".join(word for word in [*words, self.note, self.signs] if word)

    @property
    def signs(self) -> str:
        """What refers to a note below the table."""
        return TIE * (self.mark == "tie") + LIKE_METADATA * self.like_metadata


@dataclass(frozen=True)
class Table:
    """Rows under a header of (common heading, name); a line stands above each row of `lines`.

    The last `controls` rows are no competitors.
    """

    title: str
    header: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Entry]]
    about: str = ""
    lines: Sequence[int] = field(default=())
    controls: int = 0

    @property
    def titles(self) -> list[str]:
        return [f"{group}, {name}" if group else name for group, name in self.header]

    def markdown(self) -> str:
        lines = ["| " + " | ".join(map(escape_markdown, self.titles)) + " |", "|" + " --- |" * len(self.header)]
        for row in self.rows:
            words = (escape_markdown(entry.text) for entry in row)
            bold = (f"**{word}**" if entry.mark == "best" else word for word, entry in zip(words, row, strict=True))
            lines.append("| " + " | ".join(bold) + " |")
        return "\n".join(lines)


def views_of(numbers: Sequence[Number]) -> list[str]:
    return distinct(number.view for number in numbers if number.view not in ("", MEAN))


def columns(views: Sequence[str], detectors: bool = False) -> list[Column]:
    """Those of the first table, costs left out; with `detectors` from elsewhere also what does not depend on which
    generators were seen."""
    every = (("AUC, all", "auc"), ("Balanced accuracy, all", "balanced_accuracy"))
    return [
        *(Column("AUC, seen", view, (ALL, view, "mean:seen", "auc"), True) for view in views),
        *(Column("Balanced accuracy, seen", v, (ALL, v, "mean:seen", "balanced_accuracy"), True) for v in views),
        Column("AUC, unseen", "mean", (ALL, MEAN, "mean:unseen", "auc"), True),
        Column("AUC, unseen", "worst", (ALL, MEAN, WORST, "auc"), True),
        *(Column(of, "mean", (ALL, MEAN, "mean:all", metric), True) for of, metric in every if detectors),
        Column("ECE", "equal terms", (ALL, MEAN, "mean:all", TEMPERED)),
        Column("", "ECE", (ALL, MEAN, "mean:all", "ece"), True),
        Column("", "false alarms on processed reals", (ALL, MEAN, "edit:all", "false_alarm")),
    ]


def headline(numbers: Sequence[Number]) -> Table:
    """All methods, then detectors from elsewhere, then the controls."""
    at = by_row(numbers)
    with_detectors = any(map(is_detector, at.values()))
    shown = columns(views_of(numbers), with_detectors)
    shown = [column for column in shown if any(column.place in of_row for of_row in at.values())]
    header = [*_row_header(numbers), *((c.group, c.name) for c in shown), *(("", title) for title in COSTS.values())]
    rows = []
    for row, found in at.items():
        entries = [entry(found.get(column.place), column.marked) for column in shown]
        for i, column in enumerate(shown):
            if column.place[2] == WORST and entries[i].value != "n/a":
                entries[i] = replace(entries[i], note=worst(found, list(generators_of(numbers))))
            entries[i] = replace(entries[i], like_metadata=_like_metadata(found, column.place))
        rows.append([*_row_names(row, found, numbers), *entries, *(_cost(found, metric) for metric in COSTS)])
    about = "\n\n".join(filter(None, [ABOUT_NUMBERS, _about_metadata(at, rows), _about_permuted(numbers)]))
    return Table("Methods", header, rows, about, *_set_apart(at))


def _like_metadata(found: Mapping[Place, Number], place: Place) -> bool:
    """Whether a column's AUC is marked: in the view that metadata have, or the mean over views, of which it is one."""
    _, view, label, metric = place
    against = next((n for n in found.values() if n.metric == ABOVE_METADATA and n.generator == label), None)
    return metric == "auc" and against is not None and view in (against.view, MEAN) and against.mark != "above"


def _about_metadata(at: Mapping[Row, Mapping[Place, Number]], rows: Sequence[Sequence[Entry]]) -> str:
    """What the sign means, where it stands."""
    if not any(entry.like_metadata for row in rows for entry in row):
        return ""
    kinds, words = {f"mean:{kind}": f"{kind} ones" for kind in ("seen", "unseen")}, "both kinds"
    if any(map(is_detector, at.values())):
        kinds, words = kinds | {"mean:all": "all"}, "kinds"
    of_metadata = [n for n in at[METADATA].values() if n.metric == "auc" and n.generator in kinds and n.view != MEAN]
    reached = ", ".join(f"{n.value:.3f} on {kinds[n.generator]}" for n in of_metadata if n.value == n.value)
    return ABOUT_LIKE_METADATA.format(sign=LIKE_METADATA, view=of_metadata[0].view, reached=reached, kinds=words)


def _about_permuted(numbers: Sequence[Number]) -> str:
    return ABOUT_PERMUTED if any(number.metric == P for number in numbers) else ""


def budgets(numbers: Sequence[Number]) -> Table:
    """What each method was given; no rows where no run says so. Controls stand last."""
    at = by_row(numbers)
    header = [*_row_header(numbers), *GIVEN.values(), ("", COSTS["trainable_parameters"])]
    rows = []
    for row, found in at.items():
        entries = [_cost(found, metric) for metric in (*GIVEN, "trainable_parameters")]
        if any(entry.value != "n/a" for entry in entries):  # metadata alone is no run
            rows.append([*_row_names(row, found, numbers), *entries])
    known = any(number.metric in GIVEN and number.value == number.value for number in numbers)
    others = sum(is_control(found) and ("", "", "", "trainable_parameters") in found for found in at.values())
    lines = [len(rows) - others] if others else []
    return Table("What each method was given", header, rows if known else [], ABOUT_GIVEN, lines, others)


def transfer(numbers: Sequence[Number]) -> Table:
    """Balanced accuracy at three thresholds and the gaps between them, a row for each method and view."""
    header = [*_row_header(numbers), ("", "view")]
    header += [("balanced accuracy", name) for name in ("frozen", "at p = 0.5", "oracle (upper bound)")]
    header += [("gap", "oracle - frozen"), ("gap", "frozen - at 0.5")]
    names = ("balanced_accuracy", "balanced_accuracy_at_0.5", "balanced_accuracy_oracle", *GAPS)
    rows: list[list[Entry]] = []
    lines = []
    for row, found in by_row(numbers).items():
        if is_control(found):
            continue
        lines.append(len(rows))
        for view in (*views_of(numbers), MEAN):
            values = [entry(found.get((ALL, view, "mean:all", name)), sign="+" * (name in GAPS)) for name in names]
            rows.append([*_row_names(row, found, numbers), Entry(view, view), *values])
    return Table("Threshold transfer", header, rows, ABOUT_TRANSFER, lines[1:])


def unseen(numbers: Sequence[Number]) -> Table:
    """What the unseen generators say of others, a row for each method; none in numbers from before it was measured."""
    places = {
        ("all unseen", "these generators"): "mean:unseen",
        ("all unseen", "generators like these"): SAMPLE,
        ("", "of seen families"): "mean:unseen-generator",
        ("", "of unseen families"): "mean:unseen-family",
    }
    rows = [
        [*_row_names(row, found, numbers), *(entry(found.get((ALL, MEAN, of, "auc"))) for of in places.values())]
        for row, found in by_row(numbers).items()
        if not is_control(found) and (ALL, MEAN, SAMPLE, "auc") in found
    ]
    return Table("Unseen generators", [*_row_header(numbers), *places], rows, ABOUT_UNSEEN)


def attribution(numbers: Sequence[Number]) -> Table:
    """A row for each method whose head tells classes apart; none where no method does."""
    views = views_of(numbers)
    columns = [(("macro recall", view), view, "macro_recall") for view in (*views, MEAN)]
    columns += [(("", "macro F1, mean"), MEAN, "macro_f1"), (("", "open set, mean"), MEAN, "auroc_energy")]
    rows = []
    for row, found in by_row(numbers).items():
        if label_of := next((n.generator for n in found.values() if n.generator.startswith(CLASSES)), None):
            cells = [entry(found.get((ALL, view, label_of, metric))) for _, view, metric in columns]
            kind = label_of.removeprefix(CLASSES)
            rows.append([*_row_names(row, found, numbers), Entry(kind, kind), *cells])
    header = [*_row_header(numbers), ("", "classes"), *(title for title, *_ in columns)]
    return Table("Attribution", header, rows, ABOUT_ATTRIBUTION)


def by_generator(numbers: Sequence[Number]) -> Table:
    """AUC of each method and generator, mean over views."""
    generators = generators_of(numbers)
    keys = list(generators)
    header = [*_row_header(numbers), *((met, name_of(key, keys)) for key, met in generators.items())]
    rows = [
        [*_row_names(row, found, numbers), *(entry(found.get((key[0], MEAN, key[1], "auc"))) for key in keys)]
        for row, found in by_row(numbers).items()
    ]
    return Table("AUC per generator, mean over views", header, rows, "", *_set_apart(by_row(numbers)))


def controls(numbers: Sequence[Number]) -> Table:
    """What must be at chance, view by view, and false alarms on processed reals."""
    rows = []
    for row, found in by_row(numbers).items():
        control = is_control(found)
        if any(number.metric == P for number in found.values()):
            rows += _permutations(row, found, numbers)
            continue
        for view in views_of(numbers) if control else (MEAN,):
            place = (ALL, view, *(("mean:all", "auc") if control else ("edit:all", EXCESS)))
            number = found.get(place)
            if number is None or number.value != number.value:
                continue
            least, most = (0.5 - CHANCE, 0.5 + CHANCE) if control else (-1.0, EXCESS_ALLOWED)
            outcome = outcome_of(Interval(number.low, number.high), least, most)
            what = "AUC, all generators" if control else "false alarms that processing adds"
            words = [Entry(word, word) for word in (label(row, numbers), what, view, outcome)]
            rows.append([*words[:3], entry(number, sign="" if control else "+"), words[3]])
    header = [("", name) for name in ("method", "control", "view", "value", "outcome")]
    tested = any(number.metric == P for number in numbers)
    return Table("Controls", header, rows, f"{ABOUT_CONTROLS} {ABOUT_PERMUTATIONS}" if tested else ABOUT_CONTROLS)


def _permutations(row: Row, found: Mapping[Place, Number], numbers: Sequence[Number]) -> list[list[Entry]]:
    """A line for each view and kind of generators."""
    rows = []
    for (of_set, view, generator, metric), p in found.items():
        if metric != P:
            continue
        real = found[of_set, view, generator, TRUE_LABELS]
        kind = generator.removeprefix("mean:")
        words = [label(row, numbers), f"AUC, {kind} generators; true labels {real.value:.3f}", view]
        permuted, outcome = found[of_set, view, generator, "auc"], "one permutation: no test"
        if p.seeds > 1:
            outcome = outcome_of_permutations(p.value, Interval(permuted.low, permuted.high))
            outcome = f"{outcome}, p {p.value:.3f} of {p.seeds} permutations"
        rows.append([*(Entry(word, word) for word in words), entry(permuted), Entry(outcome, outcome)])
    return rows


def by_row(numbers: Sequence[Number]) -> dict[Row, dict[Place, Number]]:
    """Methods first, then detectors from elsewhere, controls last."""
    out: dict[Row, dict[Place, Number]] = {}
    for number in sorted(numbers, key=lambda number: number.role == "control"):
        out.setdefault(number.row, {})[number.place] = number
    return out


def is_control(found: Mapping[Place, Number]) -> bool:
    return next(iter(found.values())).role == "control"


def is_detector(found: Mapping[Place, Number]) -> bool:
    """Whether a row is a detector from elsewhere."""
    return next(iter(found.values())).role == "detector"


def _set_apart(at: Mapping[Row, Mapping[Place, Number]]) -> tuple[list[int], int]:
    """Rows of a table of all rows that have a line above them, and how many controls stand last."""
    methods = sum(not is_control(found) and not is_detector(found) for found in at.values())
    others = sum(map(is_control, at.values()))
    return list(dict.fromkeys([methods, len(at) - others])), others


def generators_of(numbers: Sequence[Number]) -> dict[tuple[str, str], str]:
    """(set, generator) -> seen, selection only or unseen, in this order; detectors from elsewhere have no say."""
    met = {"train": "seen", "val": "selection only", "": "unseen"}
    own = [n for n in numbers if n.metric == "auc" and not n.generator.startswith(PREFIXES) and n.role != "detector"]
    return {(n.set, n.generator): met[n.met] for n in sorted(own, key=lambda n: ("train", "val", "").index(n.met))}


def worst(found: Mapping[Place, Number], keys: Sequence[tuple[str, str]]) -> str:
    """Name of the generator with the lowest mean over views of those that a row did not see; `keys`: of all."""
    unseen = [found[key[0], MEAN, key[1], "auc"] for key in keys if (key[0], MEAN, key[1], "auc") in found]
    known = [number for number in unseen if number.met == "" and number.value == number.value]
    lowest = min(known, key=lambda number: number.value)
    return name_of((lowest.set, lowest.generator), keys)


def label(row: Row, numbers: Sequence[Number]) -> str:
    """A method's name, with its training views where there are several sets of them."""
    return ", ".join(word for word in row if word) if _several(numbers) else row[0]


def entry(number: Number | None, marked: bool = False, sign: str = "") -> Entry:
    """A number to three digits; a missing one sorts last."""
    if number is None or number.value != number.value:
        return Entry("n/a", float("-inf"))
    ends = () if number.low != number.low else tuple(f"{end:{sign}.3f}" for end in (number.low, number.high))
    spread = f"{(number.seed_high - number.seed_low) / 2:.3f}" if number.seeds > 1 else ""
    return Entry(f"{number.value:{sign}.3f}", number.value, ends, spread, number.mark if marked else "")


def _cost(found: Mapping[Place, Number], metric: str) -> Entry:
    number = found.get(("", "", "", metric))
    if number is None or number.value != number.value:
        return Entry("n/a", float("inf"))
    return Entry(f"{number.value:.2f}" if metric == "minutes" else f"{number.value:,.0f}", number.value)


def _several(numbers: Sequence[Number]) -> bool:
    return len({number.trained_on for number in numbers} - {""}) > 1


def _row_header(numbers: Sequence[Number]) -> list[tuple[str, str]]:
    seeds = [("", "seeds")] if max(number.seeds for number in numbers) > 1 else []
    return [("", "method"), *([("", "trained on")] if _several(numbers) else []), *seeds]


def _row_names(row: Row, found: Mapping[Place, Number], numbers: Sequence[Number]) -> list[Entry]:
    seeds = 0 if is_detector(found) else next(iter(found.values())).seeds
    words = [Entry(row[0], row[0]), *([Entry(row[1], row[1])] if _several(numbers) else [])]
    return [*words, *([Entry(str(seeds or "none"), seeds)] if max(number.seeds for number in numbers) > 1 else [])]

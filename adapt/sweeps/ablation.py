"""From a list of methods to runs of recipes, and from finished runs to numbers, pages and TensorBoard."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from adapt.cli import Flags
from adapt.data.manifest import Manifest
from adapt.embedded import read_manifests
from adapt.errors import Refusal
from adapt.evaluation.attribution import Column
from adapt.evaluation.open_set import classes_of
from adapt.evaluation.permutation import Reached
from adapt.evaluation.scores import Scores
from adapt.evaluation.side_by_side import (
    METADATA,
    TEMPERED,
    Number,
    Role,
    Row,
    SideBySide,
    read_numbers,
    write_numbers,
)
from adapt.files import write_bytes, write_text
from adapt.models.prompts import without_texts
from adapt.models.towers.backbones import load_backbone
from adapt.number_table import read_rows
from adapt.pages import leaderboard
from adapt.pages.drawing import png
from adapt.pages.markdown_page import picture
from adapt.pages.rotation import read_rotation, write_rotation
from adapt.sweeps.ablation_html import report
from adapt.sweeps.ablation_page import Page, write_tables
from adapt.sweeps.detectors import Elsewhere, read_detectors, write_detectors
from adapt.sweeps.planned_runs import PlannedRun, config_class, sweep_record, uses_gpu, write_sweep
from adapt.sweeps.rotation import Members, measure_rotation
from adapt.text import escape_markdown, one_line
from adapt.training.part_heads import layer_read_by
from adapt.training.report import PERMUTATIONS, shown
from adapt.training.run import RunRecord
from adapt.training.tracking import write_side_by_side

SHARED = (
    *("manifest", "leave_out", "backbone", "layer", "geometry", "size", "precision", "cache", "test_views"),
    *("resamples", "num_workers"),
)
CONTROL = ("permutations",)  # of lora.py; heads have a row of their own
TOWER = ("learning_rate", "epochs", "groups")  # of recipes that train with optimizer steps on whole groups
TRAINED_ON_GROUPS = ("lora", "pair")
FINAL = {  # tag in TensorBoard: label and metric
    "auc_seen": ("mean:seen", "auc"),
    "auc_unseen": ("mean:unseen", "auc"),
    "balanced_accuracy": ("mean:all", "balanced_accuracy"),
    "ece": ("mean:all", "ece"),
    "ece_temperature": ("mean:all", TEMPERED),
    "false_alarm": ("real", "false_alarm"),
    "false_alarm_processed": ("edit:all", "false_alarm"),
}


class AblationConfig(Flags, Protocol):
    """The flags of recipes/ablation.py that are read here; `Method.runs` passes on those of `SHARED` and `TOWER`."""

    @property
    def manifest(self) -> tuple[str, ...]: ...

    @property
    def train_on(self) -> tuple[str, ...]: ...

    @property
    def test_views(self) -> tuple[str, ...]: ...

    @property
    def seeds(self) -> tuple[int, ...]: ...

    @property
    def resamples(self) -> int: ...

    @property
    def num_workers(self) -> int | None: ...

    @property
    def detectors(self) -> tuple[str, ...]: ...

    @property
    def trained_on(self) -> tuple[str, ...]: ...

    @property
    def pictures(self) -> bool: ...


@dataclass(frozen=True)
class Method:
    """A recipe with flags. `once`: neither seed nor training views change it; `minutes` on the embedded world."""

    name: str
    recipe: str
    flags: Mapping[str, object]
    minutes: float = float("nan")
    texts: bool = False
    once: bool = False

    def runs(self, config: AblationConfig) -> dict[Row, list[PlannedRun]]:
        """A row for each set of training views, in it a run for each seed."""
        known = {field.name for field in fields(config_class(self.recipe))}
        names = [*SHARED, *(TOWER if self.recipe in TRAINED_ON_GROUPS else ())]
        names += CONTROL if self.recipe == "lora" else ()
        given = {name: getattr(config, name) for name in names if name in known}
        given = {name: value for name, value in given.items() if value not in (None, ())} | dict(self.flags)
        rows = {}
        for views in [",".join(config.test_views)] if self.once else config.train_on:
            row = self.name, "" if self.once else views
            flags = given | {"train_views": tuple(views.split(","))}
            rows[row] = [
                PlannedRun(
                    "-".join(word for word in (self.name, row[1].replace(",", "_"), f"seed{seed}") if word),
                    self.recipe,
                    flags | ({"seeds": (seed,)} if "seeds" in known else {"seed": seed}),
                )
                for seed in config.seeds[: 1 if self.once else None]
            ]
        return rows


def not_applicable(methods: Sequence[Method], backbone: str) -> dict[str, str]:
    """Why this backbone cannot do some of the methods, by their names."""
    why = without_texts(backbone) if any(method.texts for method in methods) else ""
    found = {method.name: why for method in methods if method.texts and why}
    weighing = [method.name for method in methods if method.flags.get("head") == "rine"]
    of_files = backbone.startswith("timm:") and "@" in backbone and "hf-hub:" not in backbone
    if weighing and of_files:  # the plan of a run must not ask the hub for weights
        try:
            layer_read_by("rine", "last", load_backbone(backbone))
        except Refusal as refusal:
            found |= dict.fromkeys(weighing, str(refusal))
    return found


def measure(
    rows: Mapping[Row, Sequence[PlannedRun]],
    controls: Collection[str],
    root: Path,
    resamples: int,
    elsewhere: Sequence[Elsewhere] = (),
) -> tuple[SideBySide, list[Number]]:
    """Numbers of finished runs, by row one a seed.

    The rows of methods named in `controls` hold what permuted labels reach, and no numbers of their own scores; other
    runs with permutations have a row for them beside their own. `elsewhere`: what the last rows are, if they are
    detectors from elsewhere.
    """
    compared = {row: [_scores(run, root) for run in of_row] for row, of_row in rows.items() if row[0] not in controls}
    others = {}
    left = (root / run.name / "metadata.parquet" for of_row in rows.values() for run in of_row)
    if of_metadata := next((path for path in left if path.is_file()), None):
        others[METADATA] = [Scores.read(of_metadata)]
    beside = SideBySide(resamples)
    columns = {row: found for row in compared if (found := _column(rows[row][0], compared[row]))}
    beside.add(compared, others, columns, {one.row: one.fixed for one in elsewhere if one.row in compared})
    for row, of_row in rows.items():
        kept = [read_rows(root / run.name / PERMUTATIONS, Reached) for run in of_row]
        if all(kept):
            beside.add_permutations(row if row[0] in controls else (f"{row[0]}, labels permuted", row[1]), kept)
        elif row[0] in controls:
            raise Refusal(f"{root / of_row[0].name / PERMUTATIONS} is missing: give {row[0]} some --permutations")
    views = list(dict.fromkeys(next(iter(compared.values()))[0]["view"]))
    marked = [column.place for column in leaderboard.columns(views, bool(beside.fixed)) if column.marked]
    costs = [number for row, runs in rows.items() for number in _costs(row, runs, controls, root)]
    return beside, [*beside.numbers(compared, marked), *costs]


def _column(run: PlannedRun, tables: Sequence[Scores]) -> Column | None:
    """What the classes are of which these scores have logits; None where they have none."""
    asked = run.flags.get("classes")
    known = asked in ("family", "generator") and all(classes_of(scores) for scores in tables)
    return cast("Column", asked) if known else None


def _scores(run: PlannedRun, root: Path) -> Scores:
    path = root / run.name / "scores.parquet"
    if not path.is_file():
        raise Refusal(f"{path} is missing, although the run is finished: delete {path.parent} and start again")
    return Scores.read(path)


def _costs(row: Row, runs: Sequence[PlannedRun], controls: Collection[str], root: Path) -> Iterator[Number]:
    records = [run.record(root) for run in runs]
    if "trainable_parameters" not in records[0]:  # of a detector from elsewhere: nothing was trained here
        return
    found: dict[str, list[float]] = {
        "trainable_parameters": [record["trainable_parameters"] for record in records],
        "minutes": [record["training_minutes"] for record in records],
        "peak_memory_mib": [record.get("peak_gpu_memory_mib", record["peak_memory_mib"]) for record in records],
    }
    for fact in leaderboard.GIVEN:
        values: list[float] = [value for record in records if isinstance(value := record.get(fact), int | float)]
        found |= {fact: values} if len(values) == len(records) else {}  # runs from before have none
    nan = float("nan")
    role: Role = "control" if row[0] in controls else "method"
    for metric, values in found.items():
        value = float(max(values) if metric == "peak_memory_mib" else np.mean(values))
        ends = float(min(values)), float(max(values))
        yield Number(*row, len(records), "", "", "", metric, value, nan, nan, *ends, role=role)


def write_ablation(
    config: AblationConfig,
    rows: Mapping[Row, Sequence[PlannedRun]],
    controls: Collection[str],
    root: Path,
    impossible: Mapping[str, str],
    failed: Mapping[str, str],
    rotated: Mapping[Row, Mapping[str, Sequence[PlannedRun]]],
    members: Members,
    elsewhere: Sequence[Elsewhere] = (),
) -> None:
    """Everything about the finished runs; the record only when none is missing.

    `rotated`: runs of each row without each of `members` in turn; a row of which one is missing is in no rotation.
    `elsewhere`: what the last rows are, if they are detectors from elsewhere.
    """
    turned = {row: [run for runs in of.values() for run in runs] for row, of in rotated.items()}
    asked = [run for part in (rows, turned) for of_row in part.values() for run in of_row]
    missing = [run.name for run in asked if run.state(root) != "finished"]
    done = {row: [run for run in of_row if run.name not in missing] for row, of_row in rows.items()}
    done = {row: of_row for row, of_row in done.items() if of_row}
    elsewhere = [one for one in elsewhere if one.row in done]
    if not any(row[0] not in controls for row in done if row not in {one.row for one in elsewhere}):
        return print("no page yet: no run of a method is finished")
    of_rotation = {
        row: of
        for row, of in rotated.items()
        if of and not {r.name for r in (*rows[row], *turned[row])} & set(missing)
    }
    every = [run for of_row in done.values() for run in of_row]
    every += [run for row in of_rotation for run in turned[row]]
    beside, numbers = measure(done, controls, root, config.resamples, elsewhere)
    write_numbers(root / "ablation.csv", numbers)
    write_detectors(root, elsewhere)
    if of_rotation:
        write_rotation(root, measure_rotation(rows, of_rotation, members, config.resamples, root))
    record = sweep_record(config, every, root)
    identity: Any = record["identity"]  # `base` is the fingerprint of a backbone
    digests = {"manifest digest": identity["data"], "weights digest": identity["base"]["weights"]}
    page = Page(
        read_numbers(root / "ablation.csv"),  # what another reader of the file would see
        "GPU's tensors" if uses_gpu(every[0], root) else "first process, libraries included",
        {run.name: run.command(root) for run in every},
        shown(record) | {"seeds": config.seeds} | digests,
        {row: [root / run.name for run in of_row] for row, of_row in done.items()},
        missing,
        impossible,
        failed,
        read_rotation(root) if of_rotation else (),
        read_detectors(root),
    )
    sections = write_tables(root, page)
    figures = {name: png(figure) for name, figure in page.figures().items()}
    for name, data in figures.items():
        write_bytes(root / "figures" / f"{name}.png", data)
        sections.append(picture(name))
    for title, reasons in (("Not applicable", impossible), ("Failed", failed)):
        lines = [f"- {name}: {escape_markdown(one_line(why))}" for name, why in reasons.items()]
        sections += [f"## {title}", "\n".join(lines)] if lines else []
    sections += ["## Commands", "\n".join(["```sh", *page.commands.values(), "```"])]
    images = _images(config.manifest, record) if config.pictures else None
    write_text(root / "report.html", report(page, figures, images, config.pictures))
    write_tensorboard(root, done, beside)
    write_sweep(config, every, root, sections, missing)


def _images(names: Sequence[str], record: RunRecord) -> Manifest | None:
    """The manifest that the runs saw; None if it is gone or says something else by now."""
    try:
        rows = read_manifests(names)
    except Refusal:
        return None
    return rows if rows.digest == record["identity"]["data"] else None


def write_tensorboard(root: Path, rows: Mapping[Row, Sequence[PlannedRun]], beside: SideBySide) -> None:
    """All finished runs under ROOT/tensorboard: settings with final numbers, and charts by view."""
    runs: dict[str, tuple[dict[str, str | float], dict[str, float]]] = {}
    for row, of_row in rows.items():
        for i, run in enumerate(of_row):
            found = beside.single(row, i)
            finals: dict[str, float] = {}
            for (_, view, label, metric), value in found.items():
                finals |= {f"{view}/{tag}": value for tag, key in FINAL.items() if key == (label, metric)}
            seeds = run.flags.get("seeds")
            seed = seeds[0] if isinstance(seeds, tuple) and seeds else run.flags.get("seed", "none")
            settings: dict[str, str | float] = {
                "method": row[0],
                "trained_on": row[1],
                "seed": _word(seed),
                "recipe": run.recipe,
            }
            for name, given in run.flags.items():
                if name not in (*settings, "seeds", "train_views"):
                    settings[name] = " ".join(map(str, given)) if isinstance(given, tuple | list) else _word(given)
            costs = {number.metric: number.value for number in _costs(row, [run], (), root)}
            runs[run.name] = settings, finals | {f"cost/{metric}": value for metric, value in costs.items()}
    views = dict.fromkeys(tag.partition("/")[0] for _, finals in runs.values() for tag in finals)
    charts = {
        view: {
            "AUC": [f"^{re.escape(view)}/auc_(seen|unseen)$"],
            "balanced accuracy": [f"^{re.escape(view)}/balanced_accuracy$"],
            "false alarms": [f"^{re.escape(view)}/false_alarm(_processed)?$"],
            "validation while training": [f"^val/{re.escape(view)}/auc$"],
        }
        for view in views
        if view != "cost"
    }
    write_side_by_side(root / "tensorboard", runs, charts)


def _word(value: object) -> str | float:
    return value if isinstance(value, bool | int | float) else str(value)

"""From scores to what a user sees: table, metrics, figures, TensorBoard, detector."""

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from adapt.audit.metadata import metadata_logits
from adapt.audit.record import finding_of
from adapt.data.folds import of_fold
from adapt.data.images import Unreadable, read_image
from adapt.data.jpeg import Trains, with_sample_views
from adapt.data.manifest import Manifest, require_files
from adapt.data.preprocess import Preprocess
from adapt.data.views import parse_view
from adapt.detector.detector import Detector, Saved
from adapt.detector.model_card import complete_card, licence
from adapt.embedded import read_manifests
from adapt.errors import Refusal
from adapt.evaluation.attribution import Column, attribute
from adapt.evaluation.metrics import Difference, controls, evaluate
from adapt.evaluation.open_set import classes_of
from adapt.evaluation.permutation import Reached, permutation_controls
from adapt.evaluation.promises import keep
from adapt.evaluation.samples import samples
from adapt.evaluation.scores import Scores, comparisons
from adapt.evaluation.side_by_side import reached
from adapt.evaluation.thresholds import NOT_RECORDED
from adapt.flags import Folds
from adapt.number_table import write_rows
from adapt.pages import figures as draw
from adapt.pages.figures import write_figures
from adapt.pages.promises import promises_section
from adapt.pages.tables import text, write_tables
from adapt.training.run import Run, RunConfig, RunRecord
from adapt.training.scored import (
    Kept,
    Scored,
    clear_scored,
    finish_behind,
    finishing,
    kept_of,
    read_scored,
    write_scored,
)

GIVEN = ("training_reals", "training_fakes", "views_per_image", "configurations")  # facts of `given`
PERMUTATIONS = "permutations.csv"  # numbers of the true labels (0) and of every permutation
MISTAKES = 8  # of each kind that TensorBoard shows


class Recipe(Trains, RunConfig, Protocol):
    """What the config of every recipe that trains on a manifest has."""

    @property
    def manifest(self) -> tuple[str, ...]: ...


R = TypeVar("R", bound=Recipe)
# what a recipe adds to its page, made of the scores of its detector and of further tables: differences and sections of
# Markdown. It runs behind the scores and again where it failed, so it may train, encode and score nothing.
Adds = Callable[[Scores, Kept], tuple[Sequence[Difference], Sequence[str]]]


def _nothing(_: Scores, __: Kept) -> tuple[Sequence[Difference], Sequence[str]]:
    return (), ()


def open_run(config: R, **identity: object) -> tuple[R, Run, Manifest] | None:
    """The config with the views of samples, its run directory, and the images; refuses what no recipe can use.

    None where the directory holds the finished run: its table is shown. `identity`: facts of the run that are known
    before any work.
    """
    config = with_sample_views(config)
    run = Run(config)
    if run.finished(**identity):
        show_finished(run)
        return None
    rows = read_manifests(config.manifest)
    if not getattr(config, "cached_only", False):  # features in the cache need no image
        require_files(rows)
    if isinstance(config, Folds) and config.folds and config.fold:
        rows = of_fold(rows, config.folds, config.fold, config.seed)
    require_classes(rows)
    return config, run, rows


def require_classes(rows: Manifest) -> None:
    """Refuse a manifest without reals and fakes in each split, before any work; warn of a bad or missing audit."""
    for split in ("train", "val", "test"):
        fake = rows.fake[rows["split"] == split]
        if not len(fake) or fake.all() or not fake.any():
            raise Refusal(
                f"split {split!r} has {(~fake).sum()} real and {fake.sum()} fake rows: a run trains on train, "
                "picks epoch and threshold on val, and reports test; each needs both (split whole groups; or "
                "cross-validate a small set: --folds 5 of linear_probe.py, tip_adapter.py, color_fusion.py or lora.py)"
            )
    if not (audit := finding_of(rows)).startswith("clean") and os.environ.get("RANK", "0") == "0":
        print(f"audit: {audit}", file=sys.stderr)


class Judge:
    """What selects between settings (epoch, penalty, alpha and beta...), from logits of rows of validation data.

    Each generator is compared with all reals of its set under its view, processed ones included: a processed
    photograph is a photograph, and an epoch that takes it for a fake must not be selected. Rows that are not `ok`
    take no part. A call refuses a table in which nothing can be compared.
    """

    def __init__(self, scores: Scores) -> None:
        met = dict(zip(scores["generator"], scores["seen"], strict=True))
        self.parts: dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]] = {}
        self._kinds: dict[str, dict[str, list[tuple[str, str, str]]]] = {}  # by where it was met, then by set
        for one in comparisons(scores):
            reals, fakes = (np.flatnonzero(scores.ok & rows) for rows in (one.reals, one.fakes))
            if len(reals) and len(fakes):
                key = one.set, one.view, one.generator
                self.parts[key] = reals, fakes
                self._kinds.setdefault(met[one.generator], {}).setdefault(one.set, []).append(key)

    def aucs(self, logits: np.ndarray) -> dict[tuple[str, str, str], np.ndarray]:
        """Logits (p, n) -> AUC (p,) for each (set, view, generator); a tie counts one half."""
        from scipy.stats import rankdata

        found = {}
        for key, (reals, fakes) in self.parts.items():
            ranks = rankdata(logits[:, np.concatenate([fakes, reals])], axis=1)[:, : len(fakes)]
            found[key] = (ranks.sum(axis=1) / len(fakes) - (len(fakes) + 1) / 2) / len(reals)
        return found

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Logits (p, n), a line for each setting -> (p,), higher is better.

        The mean AUC over views, generators and sets, each set with the same say. Half of it is from generators held
        out of training, if there are any.
        """
        aucs = self.aucs(logits)
        if not self._kinds.keys() & {"train", "val"}:
            raise Refusal("no readable validation images of both classes in a set: nothing can be selected by them")
        of_kind = [
            np.mean([np.mean([aucs[key] for key in keys], axis=0) for keys in self._kinds[kind].values()], axis=0)
            for kind in ("train", "val")
            if kind in self._kinds
        ]
        return np.mean(of_kind, axis=0)


def validation_aucs(scores: Scores) -> dict[tuple[str, str, str], float]:
    """AUC for each (set, view, generator) of these rows against all reals of its set: see `Judge`."""
    return {key: float(auc[0]) for key, auc in Judge(scores).aucs(scores["logit"][None]).items()}


def validation_score(scores: Scores) -> float:
    """What `Judge` says of these scores: selects an epoch, a penalty, a layer and a learning rate."""
    return float(Judge(scores)(scores["logit"][None])[0])


def given(fake: np.ndarray, views: int, configurations: int) -> dict[str, int]:
    """Facts of a record: what a method was given, so that others can be compared with it on equal terms.

    `fake` (n,) bool: the images it was trained on; `views`: how many times each was shown, every time under a view
    drawn anew; `configurations`: how many settings were tried on validation images, epochs included.
    """
    return dict(zip(GIVEN, (int((~fake).sum()), int(fake.sum()), views, configurations), strict=True))


def trained_images(run: Run, rows: Manifest) -> np.ndarray:
    """(n,) bool: whether each image that the run's optimizer steps could read is a fake."""
    lost = {path for path, _ in run.unreadable}
    readable = np.array([path not in lost for path in rows["path"]], dtype=bool)
    return rows.fake[(rows["split"] == "train") & readable]


def log_validation(run: Run, scores: Scores) -> None:
    """Validation AUC per view and generator, loss, and PR curves per view, to TensorBoard and the terminal."""
    if not run.main:
        return
    aucs, logit, fake = validation_aucs(scores), scores["logit"], scores.fake
    for view in dict.fromkeys(scores["view"]):
        rows = scores.ok & (scores["view"] == view)
        loss = np.mean(np.logaddexp(0, np.where(fake, -logit, logit)[rows]))
        run.log(
            {
                f"val/{view}/loss": float(loss),
                f"val/{view}/auc": float(np.mean([a for (_, v, _), a in aucs.items() if v == view])),
            }
        )
        several = len({of_set for of_set, *_ in aucs}) > 1
        names = {key: f"{key[0]}_{key[2]}" if several else key[2] for key in aucs}
        run.log({f"val/{view}/auc_{names[key]}": auc for key, auc in aucs.items() if key[1] == view})
        with run.track.writing() as writer:
            writer.add_pr_curve(f"val/{view}", fake[rows], scores["p_fake"][rows], run.step_number)
    run.say(f"step {run.step_number}: validation {validation_score(scores):.4f} (mean AUC)")


def report(
    run: Run,
    detector: Detector,
    rows: Manifest,
    scores: Scores,
    resamples: int,
    adds: Adds = _nothing,
    kept: Kept | None = None,
    *,
    train_views: Sequence[str],
    classes_are: Column | None = None,
    permuted: Sequence[Reached] = (),
    facts: Mapping[str, object],
) -> None:
    """Write everything about a frozen detector and its scores into the run's folder, and show the headline table.

    `train_views` stand in the card; `classes_are` says what the logits of classes name, if the scores have any.
    `facts` join the record (what was picked, how many parameters were trained). `adds` makes what joins the page, of
    the further tables `kept`; the recipe gives the same to `finish_scored`. `permuted`: what the same training
    reached on permuted labels.
    """
    if run.main:
        # an empty one may have notes
        facts, kept = dict(facts), Kept(run.folder) if kept is None else kept
        record = keep_scores(run, detector, rows, scores, train_views=train_views, facts=facts)
        write_scored(
            run.folder,
            Scored(
                record, run.step_number, resamples, permuted, classes_are,
                names=kept.names, keys=list(kept), notes=kept.notes,
            ),
        )  # fmt: skip
        with finishing(run):
            _write_page(run, rows, adds)
    run.end()


def keep_scores(
    run: Run,
    detector: Detector,
    rows: Manifest,
    scores: Scores,
    *,
    train_views: Sequence[str],
    facts: Mapping[str, object],
) -> RunRecord:
    """Write scores.parquet and detector/, before anything else is done with them; returns the run's record.

    `report` calls it. A recipe that has more to compute for its page than the scores calls it first, too.
    """
    record = cast(
        "RunRecord",
        run.record(
            **facts, trained_on=trained_on(rows), **selected_on(rows), data=describe(rows), **frozen_at(detector)
        ),
    )
    scores.write(run.folder / "scores.parquet")
    save_detector(run, detector, record, facts, train_views)
    return record


def finish_scored(run: Run, rows: Manifest, adds: Adds = _nothing, **identity: object) -> bool:
    """Finish a run of these rows that has scored already: True if there is nothing else to do.

    `adds` is that of `report`. Refuses a directory that holds the scores of other settings or rows.
    """
    return finish_behind(run, rows, partial(_write_page, run, rows, adds), **identity)


def _write_page(run: Run, rows: Manifest, adds: Adds) -> None:
    """The page, figures and card of a run, from what is on the disk."""
    folder, seed = run.folder, run.seed
    mark, scores, saved = read_scored(folder), Scores.read(folder / "scores.parquet"), Saved.read(folder / "detector")
    assert mark is not None
    record, resamples = mark.record, mark.resamples
    differences, sections = adds(scores, kept_of(folder, mark))
    cells = evaluate(scores, resamples, seed)
    cells += keep(scores, saved.decision, saved.threshold, resamples=resamples, seed=seed)
    metadata = _metadata_scores(rows, scores)
    metadata.write(folder / "metadata.parquet")
    checks = controls(scores, metadata=metadata, resamples=resamples, seed=seed)
    if mark.permuted:
        permuted = [*reached(scores, 0), *mark.permuted]
        write_rows(folder / PERMUTATIONS, [field.name for field in fields(Reached)], permuted)
        checks += permutation_controls(permuted)
    sections = [*sections, promises_section(cells, saved.decision)]
    attributed = None
    if classes_of(scores):
        attributed = attribute(scores, resamples, seed, mark.classes_are, saved.decision)
    write_tables(
        cells, folder, shown(record), checks, differences, sections, attributed, samples(scores), basis=saved.basis
    )
    complete_card(folder / "detector", cells, checks, licence(saved.name))
    write_figures(scores, cells, folder / "figures", attributed)
    for name, figure in (("auc_per_view", draw.auc_per_view(cells)), ("roc", draw.roc(scores))):
        with run.track.writing() as writer:
            writer.add_figure(f"test/{name}", figure, run.step_number)
    _log_mistakes(run, saved.preprocess, rows, scores)
    run.write_record(record)
    clear_scored(folder)
    run.say(f"\n{text(cells)}\n")
    run.say(places(run))


def frozen_at(detector: Detector) -> dict[str, object]:
    """Facts of the record: the threshold, how it was chosen, from how many validation images and groups."""
    return {"threshold": detector.threshold, "threshold_from": str(detector.basis or NOT_RECORDED)}


def save_detector(
    run: Run, detector: Detector, record: Mapping[str, object], facts: Collection[str], train_views: Sequence[str]
) -> None:
    """Save the detector in the run's folder, with these `facts` of the record."""
    kept = {key: record[key] for key in ("command", "revision", "trained_on", "data", *facts)}
    kept |= {key: record[key] for key in ("selected_on",) if key in record}
    detector.save(run.folder / "detector", kept | {"train_views": " ".join(train_views)})


def trained_on(rows: Manifest) -> list[str]:
    """Names of the generators in the training rows, `real` among them."""
    return sorted(set(rows["generator"][rows["split"] == "train"]))


def selected_on(rows: Manifest) -> dict[str, list[str]]:
    """A fact of the record where there are any: generators of validation rows that training does not have."""
    names = sorted(set(rows["generator"][rows["split"] == "val"]) - {"real", *trained_on(rows)})
    return {"selected_on": names} if names else {}


def show_finished(run: Run) -> None:
    """For a directory that holds a complete run: the headline table again, from its own page."""
    lines = (run.folder / "table.md").read_text(encoding="utf-8").splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("|")), len(lines))
    last = next((i for i in range(first, len(lines)) if not lines[i].startswith("|")), len(lines))
    run.say("this run is complete; delete the folder or choose another --output_dir to run again\n")
    run.say("\n".join(lines[first:last]) + "\n")
    run.say(places(run))


def places(run: Run) -> str:
    """Where to look next."""
    lines = [f"table        {run.folder / 'table.md'}"]
    if (run.folder / "detector").is_dir():
        saved = Saved.read(run.folder / "detector")
        lines.append(f"threshold    logit {saved.threshold:.4g}, {saved.basis or NOT_RECORDED}")
        lines.append(f"detector     {run.folder / 'detector'}")
    return "\n".join([*lines, f"TensorBoard  tensorboard --logdir {run.folder / 'tensorboard'}"])


def describe(rows: Manifest) -> str:
    """Sets, counts and digest of a manifest, in one line."""
    sets = ", ".join(name or "-" for name in dict.fromkeys(rows["set"]))
    counts = ", ".join(f"{(rows['split'] == split).sum()} {split}" for split in ("train", "val", "test"))
    return f"sets {sets}; {counts} images; digest {rows.digest[:12]}; audit {finding_of(rows)}"


def shown(record: Mapping[str, object]) -> dict[str, object]:
    """The record for a page: without what is in config.yaml already."""
    page = {key: value for key, value in record.items() if key != "identity"}
    identity: Any = record["identity"]  # `base` is the fingerprint of a backbone
    return page | {"backbone": identity["base"]["name"], "weights": identity["base"]["weights"][:12]}


def _metadata_scores(rows: Manifest, scores: Scores) -> Scores:
    """Scores of a classifier that sees only metadata of the files as they are, for the first view."""
    logits = dict(zip(rows["file"], metadata_logits(rows), strict=True))
    first = scores.select(scores["view"] == scores["view"][0])
    held = rows.select(rows["split"] != "train")
    values = np.array([logits[file] for file in held["file"]])
    status = np.where(np.isnan(values), "unreadable: metadata", "ok")
    return Scores(
        {name: first[name] for name in ("path", "group", "generator", "split", "set", "edit", "seen", "view")}
        | {"logit": values, "status": status}
    )


def _log_mistakes(run: Run, preprocess: Preprocess, rows: Manifest, scores: Scores) -> None:
    """The reals that look most fake and the fakes that look most real, as the detector sees them."""
    import torch

    held = rows.select(rows["split"] != "train")
    views = list(dict.fromkeys(scores["view"]))
    image_of = np.arange(len(scores)) // len(views)  # scores hold an image's views side by side
    for view in views:
        chosen = scores.ok & (scores["split"] == "test") & (scores["view"] == view)
        for name, mask, sign in (
            ("real_called_fake", ~scores.fake, -1),
            ("fake_called_real", scores.fake, 1),
        ):
            candidates = np.flatnonzero(chosen & mask)
            worst = candidates[np.argsort(sign * scores["logit"][candidates], kind="stable")[:MISTAKES]]
            tiles = []
            for row in worst:
                try:
                    i = image_of[row]
                    image = parse_view(view).of(held["group"][i])(read_image(held["file"][i], place=held.place(i)))
                except Unreadable:
                    continue
                tiles.append(preprocess(image))
            if tiles:
                with run.track.writing() as writer:
                    writer.add_images(f"mistakes/{view}/{name}", torch.stack(tiles), run.step_number)

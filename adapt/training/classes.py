"""Classes of fakes beside real in training: which ones a head has, what each image is, and what selects an epoch."""

from collections.abc import Callable

import numpy as np

from adapt.data.groups import ClassLabels
from adapt.data.manifest import Manifest
from adapt.detector.detector import Detector
from adapt.errors import Refusal
from adapt.evaluation.attribution import Column
from adapt.evaluation.scores import Scores
from adapt.models.heads.linear import BINARY, LinearHead, classes_of
from adapt.training.on_features import Classes, class_names, class_recall, known_classes, numbers
from adapt.training.report import validation_score

COLUMNS: tuple[Column, ...] = ("family", "generator")


def classes_in_training(rows: Manifest, asked: Classes) -> tuple[str, ...]:
    """The classes of a new head: real, then the families or generators of the training rows by name; or `BINARY`.

    What only validation or test rows have is no class. Refuses a class with one training image, as `fit_probe` does.
    """
    if asked == "binary":
        return BINARY
    names = class_names(rows, asked)[rows["split"] == "train"]
    classes = known_classes(names)
    for name in classes:
        if (count := int((names == name).sum())) < 2:
            raise Refusal(f"class {name!r} has {count} training image: each needs two or more, or --leave_out {name}")
    return classes


def column_of(detector: Detector, rows: Manifest, asked: Classes) -> Column | None:
    """What the classes of a detector's head are, families or generators of these rows; None where it has two.

    As `asked`, if it is one of them; else by their names. Refuses names of the other kind, and names that say nothing.
    """
    if not (classes := classes_of(detector.head)):
        return None
    found = {column: set(classes[1:]) & set(class_names(rows, column)) for column in COLUMNS}
    if asked != "binary":
        if not found[asked] and any(found.values()):
            other = next(column for column in COLUMNS if column != asked)
            raise Refusal(f"--classes {asked}: the head knows {other} classes ({', '.join(classes)}); leave it out")
        return asked
    most = max(map(len, found.values()))
    holding = [column for column in COLUMNS if len(found[column]) == most]
    if not most or len(holding) > 1:
        raise Refusal(
            f"the classes {', '.join(classes)} of the head could be families or generators of the manifest: say which "
            "with --classes family or --classes generator"
        )
    return holding[0]


def go_on_with_classes(detector: Detector, rows: Manifest, asked: Classes, say: Callable[[str], object]) -> None:
    """Make the head of a detector that training goes on from ready for the classes of the training rows.

    Its own classes stay, and those that it lacks are added (`LinearHead.grown`): a generator that is onboarded, or all
    of them where the head is of real and fake only and --classes asks for more. A head of another kind cannot grow:
    with two classes it is refused, with more it keeps them, and only the binary loss sees the images of others.
    """
    head, own = detector.head, classes_of(detector.head)
    if asked == "binary" and not own:
        return
    column = column_of(detector, rows, asked) or asked
    names = known_classes(class_names(rows, column)[rows["split"] == "train"])
    known = getattr(head, "classes", BINARY)
    more = [name for name in names if name not in known]
    if not more:
        return
    if isinstance(head, LinearHead):
        detector.head = head.grown(more)
        say(f"classes: {', '.join(detector.head.classes)}; new in the head: {', '.join(more)}")
    elif own:
        say(f"no class of the head, and only fakes to it: {', '.join(more)}")
    else:
        raise Refusal(
            f"--classes {asked}: the head to go on from has two classes, and only one of lora.py or pair.py can be "
            "divided among more: leave the flag out, or start anew"
        )


def class_labels(rows: Manifest, detector: Detector, column: Column | None) -> ClassLabels | None:
    """The class of each row by the numbers of the head; None of a head of two classes."""
    return None if column is None else ClassLabels(numbers(class_names(rows, column), classes_of(detector.head)))


def class_facts(detector: Detector, column: Column | None) -> dict[str, str]:
    """Facts of a record: the classes, and what they are; none of a head of two classes."""
    return {"classes": " ".join(classes_of(detector.head)), "classes_are": column} if column else {}


def selection_score(scores: Scores, detector: Detector, column: Column | None) -> float:
    """What selects an epoch, higher is better, as of heads on frozen features: for two classes `validation_score`, for
    more the `class_recall` of those that the head has."""
    if column is None:
        return validation_score(scores)
    classes = classes_of(detector.head)
    true = np.where(scores.fake, scores[column], "real").astype(object)
    return class_recall(scores, classes, numbers(true, classes))

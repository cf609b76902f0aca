"""The part of a page about cross-validation: what each fold had, and what the numbers are of."""

from collections.abc import Sequence
from dataclasses import dataclass

from adapt.evaluation.thresholds import Basis
from adapt.pages.tables import grid

ABOUT = """\
Cross-validation over groups: the detector of a fold was trained on all groups but those of two folds. The next fold
chose its settings and froze its threshold (the table says on what), and the fold itself is the test, so that every
group is tested once, by a detector that has not seen it. Numbers are of a detector that is trained on so many images,
a mean over these {k}.

- AUC compares images of one fold only, for logits of two detectors are on two scales; the folds' AUCs count by their
  numbers of pairs. Rates are of each image at the threshold of its own fold. What ranks all images (`ap`, `_oracle`,
  `tpr_at_fpr`) is n/a, and so are promised error rates, which belong to one detector. Classes: each image by the class
  logits of its own fold; the open set compares fakes of one fold.
- Intervals leave groups out with the detectors as they are. **The training sets overlap**: any two detectors share
  many images, and what one says is in part what the other says. For that the variance over groups is doubled. How
  much another set of training images would have changed all detectors together is not in the intervals.
- What the manifest keeps from training (a set, a generator or a kind of processing without train rows) was never
  trained on: its images are scored by the detector of their group's fold.
- No detector is saved for the set as a whole, because none was tested: those of the folds lie in fold-1 to fold-{k}.
  `adapt predict` takes several and judges by their mean, which is not what was measured here."""

FOLDS_EVALUATED = """\
## Folds

The column `fold` says which of several detectors scored an image. AUC compares images of one fold only, rates are at
the threshold of an image's own fold (logit 0), what ranks all images is n/a, and the variance behind intervals is
doubled, for the training sets overlap (adapt/evaluation/README.md)."""


@dataclass(frozen=True)
class Fold:
    """Readable or not, what a fold had."""

    number: int
    train: tuple[int, int]  # real and fake images
    val: tuple[int, int]
    test: tuple[int, int]
    test_groups: int
    threshold: float
    basis: Basis  # of the threshold


def folds_section(folds: Sequence[Fold]) -> str:
    """A row for each fold, and how to read numbers of all of them."""
    rows = [["fold", "train: real, fake", "val: real, fake", "test: real, fake", "test groups", "threshold"]]
    for fold in folds:
        counts = (f"{real}, {fake}" for real, fake in (fold.train, fold.val, fold.test))
        threshold = f"{fold.threshold:.4f}, {fold.basis}"
        rows.append([str(fold.number), *counts, str(fold.test_groups), threshold])
    return "\n\n".join(["## Folds", grid(rows), ABOUT.format(k=len(folds))])

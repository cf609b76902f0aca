"""A run that has scored: scores.parquet, detector/ and scored.json hold what its page, figures and card are made of.

    scored.json    the record, and what the recipe adds to its page; it is there until provenance.json is

So whatever fails behind the scores is done by the same command in seconds, without training, encoding or scoring.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adapt.errors import Refusal
from adapt.evaluation.attribution import Column
from adapt.evaluation.metrics import Difference
from adapt.evaluation.permutation import Reached
from adapt.files import write_text
from adapt.training.run import RunRecord

FILE = "scored.json"


@dataclass(frozen=True)
class Scored:
    """What a page needs beside the scores and the detector."""

    record: RunRecord
    step: int  # optimizer steps of the run
    resamples: int
    differences: Sequence[Difference]
    sections: Sequence[str]
    permuted: Sequence[Reached]
    classes_are: Column | None


def write_scored(folder: Path, scored: Scored) -> None:
    """Write scored.json; scores.parquet and detector/ must be there."""
    # the record alone may hold what another recipe has put there; numbers of NumPy are written as Python's
    text = json.dumps(asdict(scored), ensure_ascii=False, default=lambda value: value.item())
    write_text(folder / FILE, text + "\n")


def read_scored(folder: Path) -> Scored | None:
    """What `write_scored` wrote, None where there is none; refuses a damaged file."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found["differences"] = [Difference(**one) for one in found["differences"]]
        found["permuted"] = [Reached(**one) for one in found["permuted"]]
        return Scored(**found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{path} is damaged ({error}): delete it, and the same command scores again") from error


def unfinished(folder: Path, error: Exception) -> Refusal:
    """What is said where the page, a figure or the card failed: what is kept, where it failed, what to do."""
    trace, where = error.__traceback__, ""
    while trace is not None:
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    why = str(error) if isinstance(error, Refusal) else f"{type(error).__name__} at {where}: {error}"
    return Refusal(
        f"the page of {folder} could not be finished ({' '.join(why.split())}); scores.parquet and detector/ are "
        "complete there: mend the cause, and the same command does the rest"
    )

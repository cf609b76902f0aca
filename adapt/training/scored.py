"""A run that has scored: the disk holds all that its page, figures and card are made of.

    scores.parquet, detector/    of the detector that the run leaves, if it leaves one
    scored/                      further tables of scores that the page compares, N.parquet; items of understand.py
    scored.json                  the record, the names of these tables, and what the page says beside them

scored.json is the mark. It and scored/ are there until provenance.json is. So whatever fails behind the scores is done
by the same command in seconds, without training, encoding or scoring.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from adapt.data.manifest import Manifest
from adapt.errors import Refusal
from adapt.evaluation.attribution import Column
from adapt.evaluation.permutation import Reached
from adapt.evaluation.scores import Scores
from adapt.files import write_text
from adapt.training.run import Run, RunRecord

FILE, FOLDER = "scored.json", "scored"
Key = tuple[str, ...]  # what tells one table from another: head, classes, training view...


@dataclass(frozen=True)
class Scored:
    """What a page needs beside the tables of scores and the detector."""

    record: RunRecord
    step: int  # optimizer steps of the run
    resamples: int = 0  # of the page of a detector
    permuted: Sequence[Reached] = ()
    classes_are: Column | None = None
    best: Key | None = None  # the table of the head that a comparison leaves as its detector
    names: Sequence[str] = ()  # of the parts of a key
    keys: Sequence[Key] = ()  # of the further tables, in the order of their files
    notes: Mapping[str, object] = field(default_factory=dict)


class Kept(Mapping[Key, Scores]):
    """Further tables of scores by key, on the disk as soon as they are there; they are read when they are asked for.

    `names` are those of the parts of a key. `notes`, in JSON: what a page needs that is no table.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = (),
        notes: Mapping[str, object] | None = None,
        keys: Sequence[Key] = (),
    ) -> None:
        self.folder, self.names, self.notes = folder, tuple(names), dict(notes or {})
        self._number = {tuple(key): number for number, key in enumerate(keys)}

    def add(self, key: Key, scores: Scores) -> None:
        """Write a table; one of the same key is replaced."""
        number = self._number.get(key, len(self._number))
        scores.write(self._file(number))
        self._number[key] = number

    def __getitem__(self, key: Key) -> Scores:
        return Scores.read(self._file(self._number[key]))

    def __iter__(self) -> Iterator[Key]:
        return iter(self._number)

    def __len__(self) -> int:
        return len(self._number)

    def _file(self, number: int) -> Path:
        return self.folder / FOLDER / f"{number}.parquet"


def write_scored(folder: Path, scored: Scored) -> None:
    """Write scored.json; all tables and detector/ must be there."""
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
        found["permuted"] = [Reached(**one) for one in found["permuted"]]
        found["best"] = found["best"] and tuple(found["best"])
        return Scored(**found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{path} is damaged ({error}): delete it, and the same command scores again") from error


def kept_of(folder: Path, scored: Scored) -> Kept:
    """The further tables of a run that has scored."""
    return Kept(folder, scored.names, scored.notes, [tuple(key) for key in scored.keys])


def clear_scored(folder: Path) -> None:
    """Take the mark and the further tables away: the run is complete."""
    (folder / FILE).unlink()
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def scored_before(run: Run, rows: Manifest, **identity: object) -> Scored | None:
    """The mark of a run of these rows that has scored already, with its logs open again; None where there is none.

    Refuses a directory that holds the scores of other settings, rows or other facts of `identity`.
    """
    found = run.of_first(lambda: read_scored(run.folder))
    if found is None:
        return None
    run.take_up(found.record["identity"], found.step, data=rows.digest, **identity)
    return found


def finish_behind(run: Run, rows: Manifest, write_page: Callable[[], None], **identity: object) -> bool:
    """Finish a run of these rows that has scored already: True if there is nothing else to do.

    Refuses a directory that holds the scores of other settings, rows or other facts of `identity`.
    """
    if scored_before(run, rows, **identity) is None:
        return False
    run.say("scored before: the page, figures and card follow")
    if run.main:
        with finishing(run):
            write_page()
    run.end()
    return True


@contextlib.contextmanager
def finishing(run: Run) -> Iterator[None]:
    """What fails here, behind the scores, is one line: what is kept, where it failed, what to do."""
    try:
        yield
    except Exception as error:
        run.close()
        trace, where = error.__traceback__, ""
        while trace is not None:
            where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            trace = trace.tb_next
        why = str(error) if isinstance(error, Refusal) else f"{type(error).__name__} at {where}: {error}"
        there = [name for name in ("scores.parquet", "detector/") if (run.folder / name).exists()]
        raise Refusal(
            f"the page of {run.folder} could not be finished ({' '.join(why.split())}); "
            f"{' and '.join(there) or 'all measurements'} are complete there: mend the cause, and the same command "
            "does the rest"
        ) from error

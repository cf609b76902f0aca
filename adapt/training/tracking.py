"""What a run writes while it runs: one line a step in log.jsonl, and TensorBoard."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from adapt.files import write_text, writing
from adapt.training.trackers import Trackers


class Track:
    """Logs of one run, from the main process only. Steps after `step`, where the run resumes, are forgotten."""

    def __init__(self, folder: Path, step: int, config: str, trackers: Trackers) -> None:
        self.trackers = trackers
        self.path, self.board = folder / "log.jsonl", folder / "tensorboard"
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        write_text(self.path, "".join(lines[:step]))
        with writing(self.path):
            self.file = self.path.open("ab", buffering=0)  # nothing is left to write at the end of a failed run
        with writing(self.board):
            # TensorBoard hides what is older than this line of the events and of `purge_step` or later
            self.writer = SummaryWriter(self.board, purge_step=step + 1 if step else 0)
            if step == 0:
                self.writer.add_text("config", f"```yaml\n{config}```")

    def line(self, record: Mapping[str, object]) -> None:
        """One step's numbers, in full precision; on the disk only after `flush`."""
        with writing(self.path):
            line = json.dumps(record).encode() + b"\n"
            while line:
                line = line[self.file.write(line) :]

    def scalars(self, values: dict[str, float], step: int) -> None:
        with self.writing() as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        self.trackers.log(values, step)

    @contextlib.contextmanager
    def writing(self) -> Iterator[SummaryWriter]:
        """TensorBoard's writer, whose failures are refusals."""
        with writing(self.board):
            yield self.writer

    def flush(self) -> None:
        """To the disk: a checkpoint must never know of steps that the log has lost."""
        with writing(self.path):
            os.fsync(self.file.fileno())
        with self.writing() as writer:
            writer.flush()
        self.trackers.flush()

    def close(self) -> None:
        self.trackers.close()
        self.file.close()
        with writing(self.board):
            self.writer.close()


Settings = Mapping[str, str | float | int | bool]


def write_side_by_side(
    folder: Path,
    runs: Mapping[str, tuple[Settings, Mapping[str, float]]],
    charts: Mapping[str, Mapping[str, list[str]]],
) -> None:
    """Finished runs under one logdir: settings and final numbers of each, by its name, anew each time.

    `charts` (category -> title -> patterns of tags) go to the custom scalars. The summary of the experiment, which
    names the settings and numbers of all runs, stands at the top: TensorBoard reads only one, the first that it meets.
    """
    shutil.rmtree(folder, ignore_errors=True)
    settings = {name: value for given, _ in runs.values() for name, value in given.items()}
    numbers = {name: value for _, found in runs.values() for name, value in found.items()}
    with SummaryWriter(folder) as top:
        top.file_writer.add_summary(hparams(settings, numbers)[0])
        multiline = {category: {t: ["Multiline", tags] for t, tags in of.items()} for category, of in charts.items()}
        top.add_custom_scalars(multiline)
    for name, (given, found) in runs.items():
        with SummaryWriter(folder / name) as writer:
            _, start, end = hparams(dict(given), {})
            writer.file_writer.add_summary(start)
            for tag, value in found.items():
                if value == value:  # there is no picture of a NaN
                    writer.add_scalar(tag, value, 0)
            writer.file_writer.add_summary(end)

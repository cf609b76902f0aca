"""What a run writes while it runs: one line a step in log.jsonl, and TensorBoard."""

import json
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from adapt.files import write_text


class Track:
    """Logs of one run, from the main process only. Steps after `step`, where the run resumes, are forgotten."""

    def __init__(self, folder: Path, step: int, config: str) -> None:
        path = folder / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        write_text(path, "".join(lines[:step]))
        self.file = path.open("a")
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=step if step else None)
        if step == 0:
            self.writer.add_text("config", f"```yaml\n{config}```")

    def line(self, record: dict[str, Any]) -> None:
        """One step's numbers, in full precision; on the disk only after `flush`."""
        self.file.write(json.dumps(record) + "\n")

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """To the disk: a checkpoint must never know of steps that the log has lost."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
        self.writer.close()

"""Scalars of a run for W&B, MLflow and trackio, beside TensorBoard, by Accelerate's own trackers.

    RUN/trackers.json    of each: the id of its run there, and the last step at which it was given each scalar

A run that is started again continues its run there and sends no step twice. What belongs to one step is sent together,
when the next step begins or a checkpoint is due. A tracker that fails while a run goes on costs one line and is left
alone until the next start; one that cannot even begin is refused, because nothing has been spent yet.
"""

import atexit
import importlib.util
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from accelerate.tracking import GeneralTracker, MLflowTracker, TrackioTracker, WandBTracker

from adapt.errors import Refusal
from adapt.files import writing
from adapt.text import one_line

PROJECT = "adapt"  # under which runs are found; $WANDB_PROJECT, $MLFLOW_EXPERIMENT_NAME
REMEDY = {
    "wandb": "`wandb login`, or WANDB_MODE=offline",
    "mlflow": "set MLFLOW_TRACKING_URI to a server that answers",
    "trackio": "see its message",
}
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # else a server costs minutes


def require_packages(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed."""
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, which W&B itself leaves, is no package
            raise Refusal(f"--tracker {name}: the package is missing: pip install 'adapt-aigi[{name}]'")


class Trackers:
    """The trackers `names` of the run in `folder`, from the main process only."""

    def __init__(
        self, folder: Path, names: Sequence[str], config: Mapping[str, object], say: Callable[[str], object]
    ) -> None:
        self.file, self.say = folder / "trackers.json", say
        self.state: dict[str, dict] = {}
        self.trackers: dict[str, GeneralTracker] = {}
        self.step, self.held = -1, dict[str, float]()
        wanted = [name for name in dict.fromkeys(names) if name != "tensorboard"]
        if wanted and self.file.is_file():
            try:
                self.state = json.loads(self.file.read_text(encoding="utf-8"))
            except ValueError:  # the machine went down while it was written
                say(f"{self.file} is damaged: the run begins anew there")
        for name in wanted:
            known = self.state.get(name)
            try:
                self.trackers[name] = self._begin(name, folder, config)
            except Exception as error:
                line = f"--tracker {name}: {one_line(str(error), 300)}"
                if known is None:
                    raise Refusal(f"{line}: {REMEDY[name]}, or leave the flag out") from error
                say(f"{line}: the run goes on without it")
        if wanted:
            self._remember()
            atexit.register(self.close)  # also where a run is stopped

    def _begin(self, name: str, folder: Path, config: Mapping[str, object]) -> GeneralTracker:
        known = self.state.get(name)
        own = known["id"] if known else f"{folder.name}-{uuid.uuid4().hex[:8]}"
        tracker: GeneralTracker
        if name == "wandb":
            project = os.environ.get("WANDB_PROJECT") or PROJECT
            tracker = WandBTracker(project, id=own, name=folder.name, resume="allow", dir=str(folder))
        elif name == "trackio":
            tracker = TrackioTracker(PROJECT, name=own, resume="allow")
        else:
            for variable, value in QUICK.items():
                os.environ.setdefault(variable, value)
            tracker = MLflowTracker(PROJECT, run_id=own if known else None, run_name=folder.name)
        tracker.start()
        if known is None:
            tracker.store_init_configuration(
                {key: value if isinstance(value, bool | int | float) else str(value) for key, value in config.items()}
            )
            self.state[name] = {"id": tracker.tracker.info.run_id if name == "mlflow" else own, "last": {}}
        return tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hold the values until those of this step are complete."""
        if step != self.step:
            self.flush()
        self.step = step
        self.held.update(values)

    def flush(self) -> None:
        """Send what is held, but for what an earlier start has sent."""
        held, self.held = self.held, {}
        for name in list(self.trackers):
            last: dict[str, int] = self.state[name]["last"]
            new = {key: value for key, value in held.items() if self.step > last.get(key, -1)}
            if new:
                last.update(dict.fromkeys(new, self.step))
                self._remember()  # before it is sent: a kill may cost a point, and never makes two of it
                self._guard(name, partial(_send, name, values=new, step=self.step))

    def close(self) -> None:
        """Send the rest and end the runs there."""
        atexit.unregister(self.close)
        self.flush()
        for name in list(self.trackers):
            self._guard(name, lambda tracker: tracker.finish())
        self.trackers = {}

    def _guard(self, name: str, do: Callable[[GeneralTracker], object]) -> None:
        try:
            do(self.trackers[name])
        except Exception as error:
            self.say(f"--tracker {name}: {one_line(str(error), 300)}: the run goes on without it")
            del self.trackers[name]

    def _remember(self) -> None:
        with writing(self.file):
            fresh = self.file.with_suffix(".json.tmp")
            fresh.write_text(json.dumps(self.state, indent=1) + "\n", encoding="utf-8")
            fresh.replace(self.file)


def _send(name: str, tracker: GeneralTracker, *, values: Mapping[str, float], step: int) -> None:
    if name == "mlflow":  # it takes no other characters
        values = {re.sub(r"[^\w./\- :]", "_", key): value for key, value in values.items()}
    if name == "wandb":  # it drops what comes for a step before its own, which after a resume is one ahead
        tracker.log(dict(values), step=max(step, tracker.tracker.step), commit=True)  # it would wait for the next step
    else:
        tracker.log(dict(values), step=step)

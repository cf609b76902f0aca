"""A detector on a folder of unknown files: real or fake, by which family, at which JPEG quality.

    python recipes/predict.py --detector results/lora/detector --input photos/ --output predictions.csv
    accelerate launch recipes/predict.py --detector results/lora/detector --input list.csv shard.tar --output x.parquet
    python recipes/predict.py ... --shard 3 --num_shards 16          (one job of an array; the last writes the table)

One row for each input, in the order of the paths' bytes: status (`ok`, or why there is no verdict), what the header
says of format, size and JPEG compression, logit, p_fake, verdict by the detector's one frozen threshold, and for heads
with classes the most probable one of what was called fake. A localiser (recipes/localize.py) adds extent, tool and the
share of the area that was changed, and with --maps FOLDER a picture of each image that shows where. Finished rows are
kept whatever happens (OUTPUT.parts): the same command continues. However the work is cut, shuffled or interrupted, the
table has the same bytes, on the same machine, threads and versions. Time: 64 images (512 x 384) a second with `tiny`
on two cores that others used, too.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.cli import at_least
from adapt.cli import run as run_recipe
from adapt.errors import Refusal

if TYPE_CHECKING:
    from adapt.data.inputs import Input
    from adapt.predict import Row


@dataclass(frozen=True)
class Config:
    detector: Path  # folder of a saved detector
    input: tuple[str, ...] = ()  # folders, image files, manifests (a column `path` will do), tar files
    output: Path = Path("predictions.csv")  # .csv, .parquet or .jsonl
    maps: Path | None = None  # folder for a picture of each image that shows where; of a localiser (localize.py)
    backbone: str | None = None  # the detector's base weights at another place
    shard: int = 0  # which part of the work this job does
    num_shards: int = 1  # how many parts there are
    num_workers: int | None = None  # data processes; None: 1 on a CPU, up to 8 for a GPU

    def __post_init__(self) -> None:
        at_least(1, self, "num_shards")
        if not 0 <= self.shard < self.num_shards:
            raise Refusal(f"--shard {self.shard}: {self.num_shards} shards are numbered 0 to {self.num_shards - 1}")
        if self.output.suffix not in (".csv", ".parquet", ".jsonl"):
            raise Refusal(f"--output {self.output}: end its name in .csv, .parquet or .jsonl")


def main(cfg: Config) -> None:
    from adapt.data.inputs import inputs_digest
    from adapt.detector import detector_digest, load_detector
    from adapt.models.maps import MapHead
    from adapt.predict import BATCH, COLUMNS, Journal, batches, kept, predict, predict_maps
    from adapt.processes import Processes
    from adapt.progress import bar
    from adapt.tiles import Localizer

    processes = Processes()
    root, inputs = inputs_of(cfg)
    what = {"detector": detector_digest(cfg.detector), "inputs": inputs_digest(inputs)}
    what |= {"batch": BATCH, "columns": [*COLUMNS], "maps": str(cfg.maps or "")}
    parts, total = cfg.output.with_suffix(".parts"), batches(len(inputs))
    seen = processes.gather([(what, sorted(kept(parts, what)))])  # all share out what the first one misses
    if any(other != what for other, _ in seen):
        raise Refusal("the inputs changed while they were listed: start again when they stand still")
    done = set(seen[0][1])
    if cfg.output.exists() and not done:
        raise Refusal(f"--output {cfg.output} exists, without the {parts} it was made from: delete it or name another")

    rank, world = processes.share_of_rows
    shard = range(cfg.shard, total, cfg.num_shards)
    todo = [number for number in shard if number not in done]
    past, todo = (len(shard) - len(todo)) // world, todo[rank::world]
    name = f"{cfg.shard}-of-{cfg.num_shards}.{rank}-of-{world}"
    with Journal(parts, name, what) as journal:
        if todo:
            detector = load_detector(cfg.detector, cfg.backbone).to(processes.device)
            workers = processes.workers(cfg.num_workers)
            if cfg.maps or isinstance(detector.head, MapHead):
                found = predict_maps(Localizer(detector), inputs, todo, cfg.maps, workers)
            else:
                found = predict(detector, inputs, todo, workers)
            progress = bar(
                processes.main, total=past + len(todo), initial=past, unit=f"x {BATCH} files", desc="predict"
            )
            try:
                for number, rows in found:
                    journal.add(number, rows)
                    progress.update()
            except KeyboardInterrupt:
                progress.close()
                processes.say(f"stopped: {len(kept(parts, what))} of {total} x {BATCH} files are kept in {parts}; "
                              "the same command continues")  # fmt: skip
                sys.exit(130)
            progress.close()
        processes.accelerator.wait_for_everyone()  # all journals of this launch are complete
    if processes.main:
        rows_of = kept(parts, what)
        if len(rows_of) < total:
            processes.say(f"{len(rows_of)} of {total} x {BATCH} files done: the last shard writes {cfg.output}")
        else:
            processes.say(finish(cfg.output, root, inputs, [row for n in range(total) for row in rows_of[n]]))
    processes.leave()


def inputs_of(cfg: Config) -> "tuple[str, list[Input]]":
    """What is to be judged; refuses an output that could not be written, or that would overwrite an input."""
    import os

    from adapt.data.inputs import find_inputs

    root, inputs = find_inputs(cfg.input)
    folder = os.path.realpath(cfg.output.parent)
    ours = os.path.join(folder, cfg.output.name)  # noqa: PTH118
    named = {os.path.realpath(name) for name in cfg.input}
    if cfg.output.is_dir() or os.path.realpath(ours) in named:
        raise Refusal(f"--output {cfg.output} is a folder or an input: name a file of its own")
    made = (os.path.join(folder, f"{cfg.output.stem}.parts", ""), os.path.join(folder, f".{cfg.output.name}."))  # noqa: PTH118
    made += (os.path.join(os.path.realpath(cfg.maps), ""),) if cfg.maps else ()  # noqa: PTH118
    inputs = [item for item in inputs if item.file != ours and not item.file.startswith(made)]
    if not inputs:
        raise Refusal(f"no file in {', '.join(cfg.input)} but this recipe's own: name a folder that holds images")
    if cfg.output.suffix == ".parquet":
        for item in inputs:
            if any("\ud800" <= letter <= "\udfff" for letter in item.path):
                raise Refusal(f"{item.path!r} is not UTF-8, which Parquet needs: name a .csv or .jsonl as --output")
    return root, inputs


def finish(output: Path, root: str, inputs: "Sequence[Input]", rows: "Sequence[Row]") -> str:
    """Write what the finished rows, one for each input, make; returns what to tell the user."""
    from adapt.predict import summary, write_predictions

    write_predictions(rows, output)
    return f"{summary(rows)}\n{output}: the table; its paths are relative to {root}"


if __name__ == "__main__":
    run_recipe(main, Config)

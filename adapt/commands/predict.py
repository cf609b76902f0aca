"""A detector on a folder of unknown files: real or fake, by which family, at which JPEG quality.

    adapt predict --detector results/lora/detector --input photos/ --output predictions.csv
    accelerate launch -m adapt predict --detector results/lora/detector --input list.csv shard.tar --output x.parquet
    adapt predict ... --shard 3 --num_shards 16          (one job of an array; the last writes the table)
    adapt predict ... --detector A B C --crops native    (three detectors as one, each on tiles of native pixels)

Writes one row per input, in the order of the bytes of the paths: status (`ok`, or why there is no verdict), what the
header says about format, size and JPEG compression, logit, calibrated p_fake, and the verdict. For a head with classes
it adds the most probable class of what was called fake, or `unknown`. Beside the table stands a page, OUTPUT with
suffix .html: counts, the most and the least certain images, what could not be read.

Verdicts follow the detector's one frozen threshold, or what you state: --error_rate 0.05 says `unsure` rather than err
more often, --max_false_positive_rate 0.01 keeps false alarms rare, --thresholds quality follows the JPEG quality of
each file. A stated rate holds on average over validation samples; the rate of a single detector may be above it (if
each group is one image, in a third of the samples or more). --confidence 0.9 states it for this very detector, with
probability 0.9 over validation samples; that takes more groups (45 for 5 %, not 19) and leaves more images unsure.

p_fake is for as many fakes as photographs. --prevalence 0.01 adds p_fake where one image in a hundred is fake, and
says how many of the verdicts to believe there (PPV, NPV), from validation images. A localiser (recipes/localize.py)
adds extent, tool and the share of the area that was changed; with --maps FOLDER it writes a picture of each image in
which the changed area is tinted and outlined.

Several detectors judge as one. Their score is the mean of their calibrated logits, the log odds of p_fake; the
threshold is the mean of their calibrated thresholds. A detector without calibration adds its logit minus its
threshold. Each has its own backbone and preprocessing, and an image is decoded once. A family is named if all heads
have the same classes.

A JPEG of more than 67 Mpx, as phones write them, is decoded at 1/2 (`dct_scale`), which takes away its finest detail.
Of a file with several pictures the first is judged (`frames`). Colour profiles are ignored, as in training, or with
--profiles srgb converted, so that the detector sees what a person sees; `profile` says which. HEIC needs the extra
`heic`.

Finished rows are kept in OUTPUT.parts, so the same command continues after Ctrl-C, a SIGTERM or a kill. It refuses to
continue if a file came, went or changed, or if the detector is another one: name another output, or delete that
folder. The table and the page have the same bytes however the work was shared or interrupted, on the same machine,
threads and versions.
Time: 64 images (512 x 384) per second with `tiny` on two cores that others used, too. With --crops 5 or native a line
at the end says how many encoder passes a file took.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapt.cli import at_least
from adapt.cli import run as run_recipe
from adapt.errors import Refusal
from adapt.flags import Shards, Waiting


@dataclass(frozen=True)
class Config(Waiting, Shards):
    detector: tuple[Path, ...]  # folders of saved detectors, or hf-hub:OWNER/NAME[@REVISION]; several judge as one
    input: tuple[str, ...] = ()  # folders, image files, manifests (a column `path` will do), tar files
    output: Path = Path("predictions.csv")  # .csv, .parquet or .jsonl
    crops: Literal["1", "5", "native"] = "1"  # 5: corners and centre; native: tiles of the image's own pixels
    profiles: Literal["ignore", "srgb"] = "ignore"  # of colour: as in training, or converted as a person sees them
    gallery: int = 24  # images at each end of each verdict in OUTPUT.html; 0: no page
    maps: Path | None = None  # folder for pictures of what was changed; needs a localiser
    backbone: str | None = None  # another place of the detectors' base weights
    error_rate: float | None = None  # largest share of errors among photographs and among fakes; the rest is `unsure`
    max_false_positive_rate: float | None = None  # largest share of photographs called fake
    confidence: float | None = None  # probability that a rate holds for this detector; None: rates hold on average
    prevalence: float | None = None  # share of fakes where the images are from; adds p_fake, PPV and NPV for it
    thresholds: Literal["global", "quality"] = "global"  # quality: that of the JPEG quality nearest to the file's
    calibration: Literal["none", "temperature", "sigmoid", "isotonic"] | None = None  # of p_fake; None: the best
    known_recall: float = 0.95  # share of fakes of trained families that keep their family; others become `unknown`
    num_workers: int | None = None  # data processes; None: 1 on a CPU; a GPU: its share of cores, less one

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "gallery")
        if not self.detector:
            raise Refusal("--detector: name the folder of a saved detector")
        if self.output.suffix not in (".csv", ".parquet", ".jsonl"):
            raise Refusal(f"--output {self.output}: end its name in .csv, .parquet or .jsonl")


def main(cfg: Config) -> None:
    from adapt.data.archives import archives, share
    from adapt.data.inputs import inputs_digest, inputs_for
    from adapt.detector.detector import Saved, detector_digest, load_detector
    from adapt.detector.finished_batches import BatchJournal, kept
    from adapt.detector.gallery import finish
    from adapt.detector.predict import BATCH, COLUMNS, Stated, about_rules, about_threshold, batches, rules_stated
    from adapt.detector.predict_maps import judge
    from adapt.processes import Processes
    from adapt.progress import bar
    from adapt.stop import Stopped

    processes = Processes(cfg)
    digests = [detector_digest(name) for name in cfg.detector]
    root, inputs = inputs_for(cfg.input, outputs(cfg), cfg.maps)
    what: dict[str, object] = {"detector": digests, "inputs": inputs_digest(inputs)}
    stated: Stated = {
        "error_rate": cfg.error_rate,
        "max_false_positive_rate": cfg.max_false_positive_rate,
        "thresholds": cfg.thresholds,
        "calibration": cfg.calibration,
        "known_recall": cfg.known_recall,
        "confidence": cfg.confidence,
        "prevalence": cfg.prevalence,
    }
    rules = rules_stated(cfg.detector, stated)
    what |= {"rules": stated, "crops": cfg.crops, "batch": BATCH, "columns": [*COLUMNS], "maps": str(cfg.maps or "")}
    what["profiles"] = cfg.profiles
    parts, total = cfg.output.with_suffix(".parts"), batches(len(inputs))
    seen = processes.gather([(what, sorted(kept(parts, what)))])  # all share out what the first one misses
    if any(other != what for other, _ in seen):
        raise Refusal("the inputs changed while they were listed: start again when they stand still")
    done = set(seen[0][1])
    for path in outputs(cfg):
        if path.exists() and not done:
            raise Refusal(f"--output {path} exists, without the {parts} it was made from: delete it or name another")

    rank, world = processes.share_of_rows
    archive = archives(inputs[number * BATCH].file for number in range(total))
    shard = share(archive, cfg.shard, cfg.num_shards).tolist()
    todo = [number for number in shard if number not in done]
    past, todo = (len(shard) - len(todo)) // world, todo[rank::world]
    name = f"{cfg.shard}-of-{cfg.num_shards}.{rank}-of-{world}"
    with BatchJournal(parts, name, what) as journal:
        if todo:
            detectors = [load_detector(name, cfg.backbone).to(processes.device) for name in cfg.detector]
            workers = processes.workers(cfg.num_workers)
            found = judge(detectors, inputs, todo, workers, cfg.crops, rules, cfg.maps, cfg.profiles)
            start, files, spent = time.monotonic(), 0, 0
            progress = bar(
                processes.main, total=past + len(todo), initial=past, unit=f"x {BATCH} files", desc="predict"
            )
            try:
                for number, rows, passes in found:
                    journal.add(number, rows)
                    progress.update()
                    files, spent = files + len(rows), spent + passes
            except (KeyboardInterrupt, Stopped) as stop:
                progress.close()
                words = f"stopped: {len(kept(parts, what))} of {total} x {BATCH} files are kept in {parts}; "
                words += "the same command continues"
                if isinstance(stop, Stopped):
                    raise Stopped(words) from None
                processes.say(words)
                sys.exit(130)
            progress.close()
            rate = files / (time.monotonic() - start)
            processes.say(f"{spent / files:.2f} encoder passes per file, {rate:.1f} files/s in this process")
        processes.accelerator.wait_for_everyone()  # all journals of this launch are complete
    if processes.main:
        rows_of = kept(parts, what)
        if len(rows_of) < total:
            processes.say(f"{len(rows_of)} of {total} x {BATCH} files done: the last shard writes {cfg.output}")
        else:
            said = about_threshold([Saved.read(name) for name in cfg.detector], rules) | about_rules(stated, rules)
            facts = {
                "detector (SHA-256)": what["detector"],
                "crops": cfg.crops,
                "colour profiles": cfg.profiles,
                **said,
            }
            processes.say(finish(outputs(cfg), root, inputs, rows_of, cfg.gallery, facts, cfg.maps))
            processes.say("\n".join(f"{name}: {words}" for name, words in said.items()))
    processes.leave()


def outputs(cfg: Config) -> list[Path]:
    """The table, and the page where one is wanted."""
    return [cfg.output, cfg.output.with_suffix(".html")] if cfg.gallery else [cfg.output]


def command() -> None:
    """Parse the command line and run."""
    run_recipe(main, Config)

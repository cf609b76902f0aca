"""Does the embedded world teach what real images teach? Bounds on what each method may and must find in it.

    python recipes/check_world.py --output_dir results/runs/check_world

Draws worlds on which nothing was tuned, and trains in each: heads on chroma alone, on all colour statistics, on
spectra and on the projected embedding of the frozen `tiny`, and LoRA. A world in which colour tells the fakes teaches
a shortcut; one in which training gains nothing teaches nothing. Every bound has its measured value with an interval
over scenes and worlds. `met` and `NOT MET`: the whole interval lies on that side; else `not told`. The status is 1
where a bound is NOT MET.

Run it again after every change of adapt/embedded: 15 runs, about 30 minutes on 2 cores. Started again it continues.
Results to expect: results/embedded/world.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import needs_adapt  # noqa: F401 (one line where this Python has no adapt)

from adapt.cli import at_least, each_once
from adapt.cli import run as run_recipe
from adapt.flags import Sweep

if TYPE_CHECKING:  # --help needs none of it
    from adapt.sweeps.worlds import Bound, Quantity

METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "chroma": ("color_fusion", {"features": ("chroma",), "apart": False}),
    "colour": ("color_fusion", {"features": ("colour",), "apart": False}),
    "spectra": ("color_fusion", {"features": ("spectra",), "apart": False}),
    "probe": ("linear_probe", {"layer": "proj"}),
    "lora": ("lora", {}),
}
CHAIN = "resize80+qf65+webp60"  # deliveries one after the other, against its JPEG alone
VIEWS = ("none", "qf90", "qf65", "qf40", CHAIN)
LEARNERS = ("probe", "lora")
ABOUT = """\
Worlds {worlds}; nothing was tuned on them. AUC without compression where no view is named: means over
the generators and the worlds, with 95 % intervals over scenes and worlds, and the value of each world. `met` and
`NOT MET`: the whole interval lies on that side; else `not told`."""


@dataclass(frozen=True)
class Config(Sweep):
    worlds: tuple[int, ...] = (2001, 2002, 2003)  # seeds; the world was tuned on 1001 to 1003
    resamples: int = 1000  # most blocks of scenes that are left out in turn behind every interval
    output_dir: Path = Path("results/runs/check_world")  # folder of the page and of all runs

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "resamples", "worlds")
        each_once(self, "worlds")


def bounds(of: "Callable[..., Quantity]") -> "list[Bound]":
    """`of(method, generators, view="none")` is an AUC; of `real` and `edit:all` the share that is called fake."""
    from adapt.sweeps.worlds import Bound

    found = []
    for kind in ("seen", "unseen"):
        colour, probe = of("colour", f"mean:{kind}"), of("probe", f"mean:{kind}")
        found += [
            Bound(f"chroma alone, {kind}", of("chroma", f"mean:{kind}"), most=0.6),
            Bound(f"colour, {kind}", colour, most=0.7),
            Bound(f"probe above colour, {kind}", probe - colour, least=0.0),
        ]
    lora, probe = of("lora", "mean:unseen"), of("probe", "mean:unseen")
    found += [
        Bound("LoRA above spectra, unseen", lora - of("spectra", "mean:unseen"), least=0.0),
        Bound("probe, seen", of("probe", "mean:seen"), least=0.7, most=0.9),
        Bound("probe, unseen", probe, least=0.6),
        Bound("LoRA above the probe, unseen", lora - probe, least=0.08),
    ]
    for name in LEARNERS:
        easy, hard = (of(name, "mean:seen", view) for view in ("qf90", "qf40"))
        found.append(Bound(f"{name}: quality 90 above 40, seen", easy - hard, least=0.03))
    for name in LEARNERS:
        found.append(Bound(f"{name}: seen above unseen", of(name, "mean:seen") - of(name, "mean:unseen"), least=0.0))
    families = of("lora", "mean:unseen-generator") - of("lora", "mean:unseen-family")
    alarms = of("lora", "edit:all") - of("lora", "real")
    found += [
        Bound("LoRA: unseen generators of seen families above an unseen family", families, least=0.0),
        Bound("LoRA: the generator it finds worst", of("lora", "worst:all"), least=0.5),
        Bound("LoRA: false alarms, processed less plain reals", alarms, most=0.05),
    ]
    for name in LEARNERS:
        one, several = of(name, "mean:seen", "qf65"), of(name, "mean:seen", CHAIN)
        found.append(Bound(f"{name}: qf65 above {CHAIN}, seen", one - several, least=0.0))
    return found


def main(cfg: Config) -> None:
    from adapt.sweeps.planned_runs import PlannedRun, carry_out, end
    from adapt.sweeps.worlds import Worlds, write_worlds

    runs = {
        (method, world): PlannedRun(
            f"{method}-{world}", recipe, {**flags, "manifest": (f"embedded@{world}",), "test_views": VIEWS}
        )
        for world in cfg.worlds
        for method, (recipe, flags) in METHODS.items()
    }
    failed = carry_out(list(runs.values()), cfg, cfg.output_dir)
    if failed is None:
        return
    if all(run.state(cfg.output_dir) == "finished" for run in runs.values()):
        found = bounds(Worlds(runs, cfg.output_dir, cfg.resamples).quantity)
        write_worlds(cfg, runs, found, ABOUT.format(worlds=", ".join(map(str, cfg.worlds))), cfg.output_dir)
        if broken := [bound.name for bound in found if bound.outcome == "NOT MET"]:
            print(f"NOT MET: {'; '.join(broken)}")
            sys.exit(1)
    end(failed)


if __name__ == "__main__":
    run_recipe(main, Config)

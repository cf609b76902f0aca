"""List the published detectors that can be imported: what each is, what it needs, and whether it is here.

    adapt detectors
    adapt detectors --name univfd

`adapt import NAME FILE` makes a detector's folder of the authors' file. Nothing is loaded, and no network is asked.
"""

from dataclasses import dataclass

from adapt.cli import run
from adapt.errors import Refusal


@dataclass(frozen=True)
class Config:
    name: str | None = None  # only this one, with all that is known of it


def main(cfg: Config) -> None:
    from adapt.pages.tables import grid
    from adapt.published import FOLDER, published

    known = published()
    if cfg.name is None:
        rows = [["name", "method", "paper", "tower", "licence", "here"]]
        rows += [
            [p.name, p.method, p.paper, p.tower, p.licence, str(p.folder) if p.here else "no"] for p in known.values()
        ]
        print(grid(rows))
        if others := [path.parent for path in sorted(FOLDER.glob("*/detector.json")) if path.parent.name not in known]:
            print("\nalso here: " + ", ".join(map(str, others)))
        print("\n" + "\n".join(f"{p.name}: {p.weights}" for p in known.values()))
        print("\nany other complete network: adapt import onnx FILE, adapt import torchscript FILE")
        print("adapt detectors --name NAME: what it was trained on; adapt import NAME FILE: make its folder")
        return
    if cfg.name not in known:
        raise Refusal(f"--name {cfg.name}: there is {', '.join(known)}")
    one = known[cfg.name]
    print(f"{one.name}: {one.method} ({one.paper})")
    for word in ("tower", "licence", "weights", "training", "note"):
        print(f"{word:10}{getattr(one, word)}")
    print(f"here      {one.folder}" if one.here else f"not here: {one.to_fetch}")


def command() -> None:
    """Parse the command line and run."""
    run(main, Config)

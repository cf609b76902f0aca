"""Audit a manifest before training: do files or pixels give the label away, and is a picture in it twice?

    adapt audit --manifest data.csv --output_dir results/audit

Reads every file once. Writes table.md (what was found, what to do), audit.csv (AUC of each factor), duplicates.csv,
figures/shortcuts.png, config.yaml and provenance.json. Status for scripts: 0 clean, 1 shortcuts or leaks found or too
few groups to tell, 2 refused. Time: 340 images of 224 px per second on one core (--processes adds more), 30 of those
whose pixels are measured (--pixels), then 10 s for 1,700 images and 9 generators. Expected: `adapt align --size
resize224` cleans JPEG photographs against PNG fakes of all factors but those in pixels.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.cli import as_dict, at_least, dump, run
from adapt.flags import Intervals, Rows

if TYPE_CHECKING:
    import numpy as np

    from adapt.audit.duplicates import Twin
    from adapt.audit.shortcuts import Unlike
    from adapt.data.manifest import Manifest

ABOUT = """\
AUC: how well a small tree that sees this factor alone tells fakes from reals of groups it was not fitted on (0.5 is
guessing), with a 95 % interval over groups. *worst*: of all comparisons (all rows, each set, each generator of a
set with the set's reals) the one most surely above 0.5; of those that cannot tell the one whose interval reaches
farthest from it. SHORTCUT: the interval of one comparison lies above 0.55.
clean: the whole interval of every comparison lies in 0.5 +- 0.1. cannot tell: neither, so there are too few groups; a
varying factor takes about 300 groups in each comparison, a constant one 10. possible trace: a factor in pixels that
generation may leave, or the cameras and the scaling of the reals; it fails no audit. content: a byte count of files
that are all written alike, with --pixels 0; else such byte counts have the finding of *lossless size*. allowed: listed
in --allow. JPEG factors also see that a file is no JPEG. Factors from *past quality* on are of pixels, of the images
that --pixels drew; adapt/audit/README.md explains each. Folders and names never reach a model of this package; other
loaders sort by them."""
ABOUT_TWINS = """\
The same picture in two splits or under two labels. pixels: the decoded pixels are equal, whatever the container;
near: a 64-bit perceptual hash differs by at most 4 bits (compressed or scaled again; crops are not found).
embedding: cosine of the features of --embedding at least --similarity. Near and embedding except members of one group.
All pairs are in duplicates.csv, with the distance: bits, or 1 - cosine."""
SHOWN = 20  # rows of a list on the page


@dataclass(frozen=True)
class Config(Rows, Intervals):
    output_dir: Path = Path("results/runs/audit")
    allow: tuple[str, ...] = ("file name", "folder", "history")  # factors that are reported without failing the audit
    embedding: str = (
        ""  # backbone whose features also find copies, crops among them; see adapt/models/towers/backbones.py
    )
    similarity: float = 0.98  # cosine of these features from which two pictures count as the same
    pixels: int = 2000  # images whose pixels are measured, about: an equal share of each generator; 0: none
    processes: int = 1  # processes that decode images

    def __post_init__(self) -> None:
        at_least(1, self, "processes")
        at_least(2, self, "resamples")  # one block says nothing of chance
        at_least(0, self, "seed", "similarity", "pixels")


def main(cfg: Config) -> None:
    from collections import Counter

    from adapt import provenance
    from adapt.audit.duplicates import twins
    from adapt.audit.record import keep_finding
    from adapt.audit.shortcuts import (
        TRACE,
        balance,
        examine,
        fails,
        figure,
        place_of_mark,
        remedies,
        shortcuts,
    )
    from adapt.data.manifest import require_files
    from adapt.embedded import read_manifests
    from adapt.files import write_text
    from adapt.number_table import write_table
    from adapt.pages.drawing import save_png
    from adapt.pages.markdown_page import picture, write_page
    from adapt.pages.tables import grid
    from adapt.text import escape_markdown

    started, revision = time.monotonic(), provenance.revision()
    rows = read_manifests(cfg.manifest)
    require_files(rows)
    facts = examine(rows, cfg.processes, cfg.pixels, cfg.seed)
    cells, findings = shortcuts(rows, facts, cfg.resamples, cfg.seed, cfg.allow)
    vectors = embed(rows, cfg.embedding) if cfg.embedding else None
    pairs = twins(rows, facts.pixels, facts.hashes, vectors=vectors, least=cfg.similarity)
    todo = remedies(cells, findings, pairs, place_of_mark(rows, facts, cells))
    clean = not fails(findings) and not pairs

    table = factor_table(cells, findings)
    lost = [(path, reason) for path, reason in zip(rows["path"], facts.reason, strict=True) if reason]
    found = "SHORTCUT" in findings.values() or pairs
    sections = [
        "**Clean.**" if clean else "**Shortcuts or leaks found.**" if found else "**Too few images to tell.**",
        "\n".join(f"- {escape_markdown(line)}" for line in todo),
    ]
    sections += ["## Shortcuts", ABOUT, grid(table), picture("shortcuts")]
    sections += ["## The same picture twice", ABOUT_TWINS, grid(pair_table(rows, pairs[:SHOWN])) if pairs else "None."]
    sections += ["## Balance", grid(balance(rows, facts))]
    sections += [grid(balance(rows, facts, "source"))] if any(rows["source"]) else []
    reasons = grid([["reason", "images"], *([r, str(n)] for r, n in Counter(reason for _, reason in lost).items())])
    listed = "\n".join(f"- {escape_markdown(path)}: {reason}" for path, reason in lost[:SHOWN])
    sections += ["## Unreadable files", *([reasons, listed] if lost else ["None."])]
    record: dict[str, object] = {"command": provenance.command(), "revision": revision, "digest": rows.digest}
    record |= {"images": len(rows), "measured in pixels": 0 if facts.sample is None else len(facts.sample.rows)}
    record |= {"seconds": round(time.monotonic() - started, 1), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    record |= {"seed": cfg.seed, "hardware": provenance.hardware(), "versions": provenance.versions()}

    write_page(cfg.output_dir / "table.md", "Audit", sections, record, embedded="embedded" in rows["set"])
    factors = ([*cell, findings[cell.factor]] for cell in cells)
    write_table(cfg.output_dir / "audit.csv", [*cells[0]._fields, "finding"], factors, line_end="\r\n")
    write_pairs(cfg.output_dir / "duplicates.csv", pair_table(rows, pairs))
    save_png(figure(cells, findings), cfg.output_dir / "figures" / "shortcuts.png")
    write_text(cfg.output_dir / "config.yaml", dump(cfg))
    record |= {"clean": clean, "unreadable": lost, "identity": as_dict(cfg)}
    faults = [line for line in todo if "(allowed)" not in line and not line.startswith(TRACE)]
    keep_finding(rows, faults if not clean else [], facts.sample is not None)
    write_text(cfg.output_dir / "provenance.json", json.dumps(record, indent=1, ensure_ascii=True) + "\n")
    print("\n\n".join([grid(table), "\n".join(todo), f"{cfg.output_dir / 'table.md'}: the page"]))
    if not clean:
        sys.exit(1)


def embed(rows: "Manifest", name: str) -> "np.ndarray":
    """Unit features (n, d) of all rows, from the cache that all recipes share."""
    from adapt.features.cache import extract
    from adapt.models.towers.backbones import load_backbone
    from adapt.processes import Processes

    processes = Processes()
    backbone = load_backbone(name).to(processes.device).for_features()
    return extract(backbone, rows, ("none",), **processes.encoding(None)).unit("none")


def factor_table(cells: "list[Unlike]", findings: dict[str, str]) -> list[list[str]]:
    """One row a factor: AUC over all rows, the decisive comparison, the finding."""
    from adapt.audit.shortcuts import decisive
    from adapt.pages.tables import show

    table = [["factor", "AUC, all rows", "worst", "of", "finding"]]
    for factor, finding in findings.items():
        first, most = next(cell for cell in cells if cell.factor == factor), decisive(cells, factor, finding)
        table.append([factor, show(first), show(most), f"{most.set or '-'}/{most.generator}", finding])
    return table


def pair_table(rows: "Manifest", pairs: "list[Twin]") -> list[list[str]]:
    """Both rows of every pair with what tells them apart."""
    names = ("path", "group", "generator", "split")
    table = [["kind", "distance", *names, *(f"other {name}" for name in names)]]
    for pair in pairs:
        places = [rows[name][row] for row in (pair.row, pair.other) for name in names]
        table.append([pair.kind, str(pair.distance), *places])
    return table


def write_pairs(path: Path, table: list[list[str]]) -> None:
    """A CSV file whose names of files hold any bytes, written as a manifest is."""
    import csv

    from adapt.files import atomic

    with atomic(path) as new, new.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows(table)


def command() -> None:
    """Parse the command line and run."""
    run(main, Config)

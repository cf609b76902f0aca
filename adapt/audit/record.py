"""What the audit of a manifest found, kept by the manifest's digest, so that every run on it can say so."""

import json
import os
import time
from pathlib import Path

from adapt.data.manifest import Manifest
from adapt.files import write_text


def keep_finding(rows: Manifest, found: list[str], measured: bool = False) -> None:
    """Remember what `adapt audit` found wrong with these rows; nothing: they are clean. `measured`: in pixels, too."""
    date = time.strftime("%Y-%m-%d", time.gmtime())
    write_text(_path(rows), json.dumps({"found": found, "date": date, "pixels": measured}) + "\n")


def finding_of(rows: Manifest) -> str:
    """One line for the terminal and for the page: clean, not audited, or what was found."""
    if set(rows["set"]) == {"embedded"}:
        # one container, size and mode for all: tests/embedded/test_embedded.py
        return "clean of file traits, by construction; of pixel traits see `adapt audit`"
    try:
        kept = json.loads(_path(rows).read_text(encoding="utf-8"))
        found, date = [str(line) for line in kept["found"]], str(kept["date"])
        files_only = not kept.get("pixels", False)  # a record of an earlier version
    except (OSError, ValueError, KeyError, TypeError):
        return "NONE: run `adapt audit` on this manifest before you trust a number"
    what = "CANNOT TELL" if all(line.startswith("cannot tell") for line in found) else "FOUND"
    return (
        f"{what} on {date}: {'; '.join(found)}" if found else f"clean on {date}{' (pixels not measured)' * files_only}"
    )


def _path(rows: Manifest) -> Path:
    cache = Path(os.environ.get("ADAPT_CACHE") or Path.home() / ".cache" / "adapt")
    return cache / "audits" / f"{rows.digest}.json"

"""Images with masks of what was changed: CASIA, Columbia, COVERAGE, IMD2020, BR-Gen, or any folder pairs.

    adapt prepare masks --folder data/CASIA2 --layout casia2
    adapt prepare masks --folder data/COVERAGE --layout coverage --split test
    adapt prepare masks --folder data/mine --part 'edited/{tool}/{id}' --mask 'masks/{tool}/{id}' \\
        --photo 'photos/{id}' --generated 'full/{tool}/{id}' --kind ai

Patterns are paths below --folder without their suffix: {id} is any text, {tool} and {group} are one folder's or file's
name, * is any text without a slash. A --part stands beside the --mask of the same place in its list, whose fields are
filled in from the image's name. Rows with the same {group} (else the same {id}) are a group, so a part finds its
photograph. {tool}, or --tool, names what changed the part: a generator with --kind ai, an ordinary edit of a real
image with --kind ordinary. Layouts (casia1, casia2, columbia, coverage, imd2020) fill in what is not given; BR-Gen
needs patterns of yours. Sets of the hub with masks, as OpenSDI, are read by `adapt prepare hub`, and lists with a
column of masks, as NIST16, by `adapt prepare table`. Columbia marks regions by colour: its layout takes green for what
was changed, --changed red swaps the two.

A mask of another size than its image, an empty one, an image without a mask and a mask without an image are listed
with their reasons. An all-white mask of an image by a generator makes it a fully generated one; --empty real takes
images with empty masks for photographs. Masks that are not white on black are written anew beside the manifest.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapt.collect.sources.listing import SPLITS, Listing
from adapt.collect.sources.partial import settle
from adapt.collect.sources.patterns import compiled
from adapt.data.masks import White
from adapt.errors import Refusal

LAYOUTS = {
    "casia1": {
        "part": ("Tp/{tool}/{id}",),
        "mask": ("CASIA 1.0 groundtruth/{tool}/{id}_gt",),
        "photo": ("Au/{id}",),
        "kind": "ordinary",
    },
    "casia2": {
        "part": ("Tp/{id}",),
        "mask": ("CASIA 2 Groundtruth/{id}_gt",),
        "photo": ("Au/{id}",),
        "tool": "casia2",
        "kind": "ordinary",
    },
    "columbia": {
        "part": ("4cam_splc/{id}",),
        "mask": ("4cam_splc/edgemask/{id}_edgemask",),
        "photo": ("4cam_auth/{id}",),
        "tool": "splice",
        "kind": "ordinary",
        "changed": "green",
    },
    "coverage": {
        "part": ("image/{id}t",),
        "mask": ("mask/{id}forged",),
        "photo": ("image/{id}",),
        "tool": "copy-move",
        "kind": "ordinary",
    },
    "imd2020": {
        "part": ("{group}/{id}",),
        "mask": ("{group}/{id}_mask",),
        "photo": ("{group}/{id}_orig",),
        "tool": "imd2020",
        "kind": "ordinary",
    },
}


@dataclass(frozen=True, kw_only=True)
class Source(Listing):
    layout: Literal["", "casia1", "casia2", "columbia", "coverage", "imd2020"] = ""  # fills in the patterns
    part: tuple[str, ...] = ()  # patterns of partly modified images
    mask: tuple[str, ...] = ()  # patterns of their masks, one for each of --part
    photo: tuple[str, ...] = ()  # patterns of photographs
    generated: tuple[str, ...] = ()  # patterns of fully generated images; with {tool}, or --tool
    tool: str = ""  # what changed the parts, where no {tool} says it
    kind: Literal["", "ai", "ordinary"] = ""  # whether the tools of --part are generators or ordinary edits
    changed: White | None = None  # how masks mark what was changed; None: white
    empty: Literal["lost", "real"] = "lost"  # what an image with an empty mask becomes

    def prepare(self) -> Path | None:
        given = {name: getattr(self, name) for name in ("part", "mask", "photo", "tool", "kind", "changed")}
        given |= {name: value for name, value in LAYOUTS.get(self.layout, {}).items() if not given[name]}
        parts, masks = given["part"], given["mask"]
        if not parts or len(parts) != len(masks):
            raise Refusal(f"{len(parts)} --part, {len(masks)} --mask: give a --layout, or one --mask for each --part")
        if given["kind"] not in ("ai", "ordinary"):
            raise Refusal("--kind: say ai where generators changed the parts, ordinary where common edits did")
        for pattern in (*parts, *self.generated):
            if "{tool}" not in pattern and not given["tool"]:
                raise Refusal(f"pattern {pattern!r} has no {{tool}}: name what was used with --tool")
        rows = list(self._rows(self.files(), given))
        if not any(row.get("mask") for row in rows):
            raise Refusal(
                f"no image under {self.folder} fits --part {' '.join(parts)} with a mask {' '.join(masks)}: patterns "
                "are paths below the folder without suffix"
            )
        output = self.home([self.folder]) / (self.output.name if self.output else "manifest.csv")
        changed = given["changed"] or "white"
        return self.write(rows, lambda rows: [settle(row, changed, self.empty, output) for row in rows])

    def _rows(self, files: list[str], given: dict) -> Iterator[dict[str, str]]:
        stems: dict[str, str] = {}
        for name in files:
            if stems.setdefault(posixpath.splitext(name)[0], name) != name:
                row = {"file": name, "set": self.name, "generator": "unknown", "group": f"{self.name}/{name}"}
                yield row | {"split": _split(name), "reason": "same-name"}
        pairs = [(compiled(part), mask) for part, mask in zip(given["part"], given["mask"], strict=True)]
        whole = [(compiled(pattern), "real") for pattern in given["photo"]]
        whole += [(compiled(pattern), "generated") for pattern in self.generated]
        home, root = self.home([self.folder]), os.path.realpath(self.folder)
        found = {stem: _pair(stem, pairs, stems) for stem in stems}
        used = {pair[1] for pair in found.values() if pair and pair[1] in stems}
        lone = [compiled(mask) for mask in given["mask"]]
        for stem, name in stems.items():
            if stem in used:
                continue
            row = {"file": name, "set": self.name, "split": _split(name)}
            fields, mask = found[stem] or ({}, "")
            if mask in stems:
                tool = fields.get("tool") or given["tool"]
                kind = {"generator": tool} if given["kind"] == "ai" else {"generator": "real", "edit": tool}
                mask = os.path.relpath(f"{root}/{stems[mask]}", home)
                yield row | kind | {"group": self._group(fields), "mask": mask}
                continue
            match = next(((m, kind) for pattern, kind in whole if (m := pattern.fullmatch(stem))), None)
            if any(pattern.fullmatch(stem) for pattern in lone):
                yield row | {"generator": "unknown", "group": f"{self.name}/{name}", "reason": "no-image"}
            elif match:
                own = match[0].groupdict()
                made = "real" if match[1] == "real" else own.get("tool") or given["tool"]
                yield row | {"generator": made, "group": self._group(own)}
            else:
                reason = "no-mask" if fields else "not-in-layout"
                yield row | {"generator": "unknown", "group": f"{self.name}/{name}", "reason": reason}

    def _group(self, fields: dict[str, str]) -> str:
        return f"{self.name}/{fields.get('group') or fields.get('id') or fields.get('tool', '')}"


def _pair(stem: str, pairs: list[tuple[re.Pattern[str], str]], stems: dict[str, str]) -> tuple[dict, str] | None:
    """Fields of the first part pattern that fits and has its mask, else of the first that fits; and that mask."""
    fitting = []
    for pattern, mask in pairs:
        if match := pattern.fullmatch(stem):
            name = mask
            for field, value in match.groupdict().items():
                name = name.replace(f"{{{field}}}", value)
            if name in stems and name != stem:
                return match.groupdict(), name
            fitting.append((match.groupdict(), name))
    return fitting[0] if fitting else None


def _split(name: str) -> str:
    return next((SPLITS[folder.lower()] for folder in name.split("/")[:-1] if folder.lower() in SPLITS), "")

"""Any tree whose folders say class, generator and split, by patterns of where photographs and fakes lie.

    adapt prepare tree --folder data/DiffusionForensics/images \\
        --photo '{split}/{set}/real/{id}' --generated '{split}/{set}/{generator}/{id}'
    adapt prepare tree --folder data/DRCT --as_split val=test \\
        --photo 'MSCOCO/{split}2017/{group}' --generated 'DRCT-2M/images/{generator}/{split}2017/{group}'
    adapt prepare tree --folder data/TrueFake --photo 'PreSocial/Real/{id}' 'PostSocial/{set}/Real/{id}' \\
        --generated 'PreSocial/Fake/{generator}/{id}' 'PostSocial/{set}/Fake/{generator}/{id}'

A pattern is a path below --folder without its suffix. {id} is any text, with slashes too; {generator}, {set}, {split}
and {group} are one name of a folder or file, or a part of one; * is any text without a slash. An image belongs to the
first pattern that it fits, those of --photo before those of --generated. Images of one {group} show one scene; without
it each image is its own group. A generated image without {generator} is by `SET-fake`. Splits may be called train,
training, val, valid, validation, dev, test or testing; --as_split turns one into another, for sets that have no third.
Where no image is val, val is drawn from train; without {split} all are drawn. An image that fits no pattern is lost as
`not-in-layout`.
"""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapt.collect.sources.listing import SPLITS, Listing
from adapt.collect.sources.patterns import compiled
from adapt.data.rows import SPLITS as OURS
from adapt.errors import Refusal


@dataclass(frozen=True, kw_only=True)
class Source(Listing):
    photo: tuple[str, ...] = ()  # patterns of camera images
    generated: tuple[str, ...] = ()  # patterns of generated images
    as_split: tuple[str, ...] = ()  # WORD=SPLIT: what a word in the place of {split} means, such as val=test

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.photo and not self.generated:
            raise Refusal("--photo, --generated: give a pattern of each class that the folder holds")
        if wrong := [pair for pair in self.as_split if pair.partition("=")[2] not in OURS]:
            raise Refusal(f"--as_split {wrong[0]}: write WORD=SPLIT, such as val=test; splits are {', '.join(OURS)}")

    def prepare(self) -> Path | None:
        rows = list(self._rows())
        for flag, patterns, is_real in (("photo", self.photo, True), ("generated", self.generated, False)):
            found = any((row["generator"] == "real") == is_real for row in rows if "reason" not in row)
            if patterns and not found:
                some = ", ".join(repr(row["file"]) for row in rows[:3]) or "none"
                raise Refusal(f"--{flag} {' '.join(patterns)}: no image under {self.folder} fits; there are {some}")
        return self.write(rows)

    def _rows(self) -> Iterator[dict[str, str]]:
        patterns = [(compiled(pattern), True) for pattern in self.photo]
        patterns += [(compiled(pattern), False) for pattern in self.generated]
        splits = SPLITS | dict(pair.split("=", 1) for pair in self.as_split)
        for name in self.files():
            stem = posixpath.splitext(name)[0]
            row = {"file": name, "group": f"{self.name}/{name}", "set": self.name, "split": ""}
            fitting = ((match, is_real) for pattern, is_real in patterns if (match := pattern.fullmatch(stem)))
            match, is_real = next(fitting, (None, False))
            if match is None:
                yield row | {"generator": "unknown", "reason": "not-in-layout"}
                continue
            fields = match.groupdict()
            if "split" in fields:
                row["split"] = splits.get(fields["split"], "") or splits.get(fields["split"].lower(), "")
                if not row["split"]:
                    word = fields["split"]
                    raise Refusal(f"{name!r}: {word!r} is no split; say which it is, such as --as_split {word}=train")
            row["set"] = "/".join(filter(None, (self.name, fields.get("set"))))
            if fields.get("group"):
                row["group"] = f"{self.name}/{fields['group']}"
            made = fields.get("generator", "")
            yield row | {"generator": "real" if is_real else made if made not in ("", "real") else f"{self.name}-fake"}

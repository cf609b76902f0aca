"""Families: which kind of generator made an image."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapt.csv_as_written import known_columns, read_rows, refusal_of_bytes, undecodable
from adapt.data.manifest import Manifest
from adapt.data.spelling import refuse_two_spellings
from adapt.errors import Refusal


@dataclass(frozen=True)
class Families:
    """A table generator -> family. `names` numbers the families: `real` is 0 and `other` is last.

    Generators are compared by their letters and digits alone, so `Stable_Diffusion-1.4` is `stable diffusion
    14`. A generator that is not in the table belongs to `other`.
    """

    table: dict[str, str]
    names: tuple[str, ...]

    def of(self, generator: str) -> str:
        """Family of one generator."""
        return "real" if generator == "real" else self.table.get(_key(generator), "other")

    def numbers(self, generators: Sequence[str]) -> np.ndarray:
        """Family numbers (n,), int64, of a column of generators: 0 is real."""
        return np.array([self.names.index(self.of(generator)) for generator in generators], np.int64)

    def unknown(self, generators: Iterable[str]) -> list[str]:
        """Generators that the table does not hold, in order of first appearance: name them in the report."""
        return [g for g in dict.fromkeys(generators) if g != "real" and _key(g) not in self.table]


def read_families(path: str | os.PathLike | None = None, manifest: Manifest | None = None) -> Families:
    """The built-in table, over it the `family` column of `manifest`, over both the CSV `path`.

    The CSV has the columns generator,family. Families are numbered in order of first appearance.

    Refuses a generator with two families in one source, `real` in a family of fakes, and a fake in `real`.
    """
    table = _table(_read(Path(__file__).with_name("families.csv")), "families.csv")
    if manifest is not None:
        given = zip(manifest["generator"], manifest["family"], strict=True)
        table |= _table(((generator, family) for generator, family in given if family), "the manifest")
    if path is not None:
        table |= _table(_read(Path(path)), str(path))
    names = dict.fromkeys(["real", *table.values()])
    names.pop("other", None)
    return Families(table, (*names, "other"))


def _key(generator: str) -> str:
    return "".join(letter for letter in generator.casefold() if letter.isalnum()) or generator


def _read(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise Refusal(f"no table of families {str(path)!r}: name a CSV with the columns generator,family")
    header, rows = read_rows(path)
    header = known_columns(header, ("generator", "family"), str(path))
    if not {"generator", "family"} <= set(header):
        raise Refusal(
            f"{path}: columns {', '.join(header) or 'none'} instead of generator,family: correct its first line"
        )
    places, pairs = [header.index(name) for name in ("generator", "family")], []
    for number, row in enumerate(rows, 1):
        generator, family = ((row + [""] * len(header))[place].strip() for place in places)
        for column, word in (("generator", generator), ("family", family)):
            if undecodable([word]) is not None:
                raise refusal_of_bytes(f"{path}, row {number}", column, word)
        pairs.append((generator, family))
    return pairs


def _table(pairs: Iterable[tuple[str, str]], source: str) -> dict[str, str]:
    table: dict[str, str] = {}
    pairs = list(pairs)
    for generator, family in dict.fromkeys(pairs):
        if not generator.strip() or not family.strip():
            raise Refusal(f"{source}: empty cell in ({generator!r}, {family!r}): fill in generator and family")
        if (generator == "real") != (family == "real"):
            raise Refusal(f"{source}: generator {generator!r} in family {family!r}: only 'real' is in 'real'")
        known = table.setdefault(_key(generator), family)
        if known != family:
            raise Refusal(f"{source}: generator {generator!r} is in {known!r} and in {family!r}: keep one of the two")
    refuse_two_spellings("family", table.values(), (family for _, family in pairs))
    table.pop("real", None)
    return table

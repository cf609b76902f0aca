"""What saved detectors are called beside each other, and what a user says that they were trained on."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from adapt.errors import Refusal


def names_of(places: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """A name of its own for each detector, none of those `taken`: that of its folder, or of the run whose `detector`
    it is."""
    names: list[str] = []
    for place in places:
        path = Path(place)
        word = path.parent.name if path.name == "detector" and path.parent.name else path.name
        word = re.sub(r"[^\w.@+-]+", "_", word, flags=re.ASCII).strip(".") or "detector"
        name, number = word, 2
        while name in names or name in taken:
            name, number = f"{word}-{number}", number + 1
        names.append(name)
    return names


def told_of(words: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The generators of `--trained_on NAME=GENERATOR,GENERATOR ...`, by the name of the detector."""
    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, _, generators = word.partition("=")
        told = tuple(filter(None, generators.split(",")))
        if not told:
            raise Refusal(
                f"--trained_on {word}: give NAME=GENERATOR,GENERATOR; names are {', '.join(names) or 'none'}"
            )
        if name not in names:
            raise Refusal(f"--trained_on {word}: no detector has this name; there is {', '.join(names) or 'none'}")
        if name in found:
            raise Refusal(f"--trained_on {word}: {name} stands twice: give all its generators at once")
        found[name] = told
    return found

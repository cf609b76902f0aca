"""Names that differ only in how they are spelled: `sd-v1.4` and `SD_v14` are one generator, or somebody must say."""

from collections import Counter
from collections.abc import Iterable

from adapt.errors import Refusal


def folded(name: str) -> str:
    """The name without blanks, `-`, `_`, `.` and case; the name itself where nothing else is in it."""
    return "".join(letter for letter in name.casefold() if not letter.isspace() and letter not in "-_.") or name


def refuse_two_spellings(
    column: str, names: Iterable[str], rows: Iterable[str] = (), remedy: str = "write it so in every table"
) -> None:
    """Refuse `names` of which two are equal when `folded`.

    `rows`: the whole column, for the counts of the message; `remedy`: what is done where both are one name.
    """
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(folded(name), name)) != name:
            count = Counter(rows)
            a, b = (f"{word!r} ({count[word]} rows)" if count else repr(word) for word in (other, name))
            raise Refusal(
                f"{column} {a} and {b} differ only in case, blanks, '-', '_' or '.', and would count as two: if they "
                f"are one, choose one spelling ({remedy}); if they are two, tell them apart by a letter or a digit"
            )

"""Patterns of places below a folder: `{split}/{generator}/{id}` finds files, and says what their names tell.

A pattern is a path without its suffix. {id} is any text, with slashes too; the other fields are one name of a folder
or file, or a part of one, and * is any text without a slash.
"""

import re

from adapt.errors import Refusal

FIELDS = {"id": ".+"} | dict.fromkeys(("tool", "group", "generator", "set", "split"), "[^/]+")


def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression with a named group per field; refuses a field that stands twice."""
    words = re.split(r"(\{[a-z]+\}|\*)", pattern)
    if unknown := [word for word in words if word.startswith("{") and word[1:-1] not in FIELDS]:
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise Refusal(f"pattern {pattern!r}: {unknown[0]} is no field; the fields are {known}")
    if twice := [word for word in words if word.startswith("{") and words.count(word) > 1]:
        raise Refusal(f"pattern {pattern!r}: {twice[0]} stands twice; use each field once")
    return re.compile("".join(_expression(word) for word in words))


def _expression(word: str) -> str:
    if word == "*":
        return "[^/]*"
    return f"(?P<{word[1:-1]}>{FIELDS[word[1:-1]]})" if word.startswith("{") else re.escape(word)

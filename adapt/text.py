"""Words of strangers (names of files, generators, hosts) made safe to show: in a terminal, Markdown or HTML."""

import html
import re


def plain(word: str) -> str:
    """Control characters, line ends, undecodable bytes and what turns the direction of text as backslash escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in word)


def one_line(text: str, most: int | None = None) -> str:
    """Text with single blanks in place of line ends and longer gaps, cut after `most` characters."""
    return " ".join(text.split())[:most]


def escape_markdown(word: str) -> str:
    """Text that Markdown shows as it is, also inside a table."""
    word = plain(word).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\|`*]|](?=[(\[:])", r"\\\g<0>", word)  # brackets only where they could make a link


def escape_html(word: str) -> str:
    """Text that a browser shows as it is, also inside an attribute's quotes."""
    return html.escape(plain(word), quote=True)

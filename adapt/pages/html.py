"""One self-contained HTML page from small parts.

It opens from disk, loads nothing and runs nothing but its own script, which sorts tables and copies commands; a
Content-Security-Policy holds that. All that parts carry is text, whatever it looks like: no part takes HTML.
"""

import base64
import hashlib
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from adapt.text import escape_html

LIMIT = 24 * 2**20  # bytes of images in one page: a phone still opens it, a mail still takes it
WIDE = 600  # pixels: a figure of more is not squeezed into a phone's width, it scrolls
KINDS = ("PNG", "JPEG", "WEBP")
MISSING = ("n/a", "")  # sorted last in both directions
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?(?=$|[ %])", re.ASCII)
INTERVAL = re.compile(r"(\S+) (\[[-+\d.,e ]+\])(.*)", re.ASCII)  # `0.874 [0.851, 0.896] rest`
SCRIPT, STYLE = (Path(__file__).with_suffix(suffix) for suffix in (".js", ".css"))


@dataclass(frozen=True)
class Heading:
    """A section (level 2) or a part of one (level 3), with an entry in the table of contents."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """Prose: blank lines divide paragraphs, other line ends are blanks. A file's name belongs in it as `plain(name)`.

    A `warning` is framed: what a reader must know before he believes a number.
    """

    text: str
    warning: bool = False


@dataclass(frozen=True)
class TableCell:
    """Text of a table with the number it is sorted by: the one it begins with, unless `key` says another.

    `0.874 [0.851, 0.896]` is sorted by 0.874; `n/a` and a `key` of NaN come last whatever the direction. Cells
    without a number follow those with one, as words.
    """

    text: str
    key: float | None = None
    best: bool = False  # shown bold


@dataclass(frozen=True)
class Table:
    """Rows under a header, which sorts them; the first column names the rows. `controls` stay below, set apart."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | TableCell]]
    controls: Sequence[Sequence[str | TableCell]] = ()
    caption: str = ""

    def __post_init__(self) -> None:
        for row in (*self.rows, *self.controls):
            if len(row) != len(self.header):
                raise ValueError(f"{len(row)} cells under {len(self.header)} headers: {row}")


@dataclass(frozen=True)
class Picture:
    """Bytes of a PNG, JPEG or WebP file, or the text of an SVG; what it shows, for those who do not see it; lines.

    The bytes go into the page as they are, so a file of others goes through `thumbnails.thumbnail` first.
    """

    image: bytes | str
    alt: str
    lines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("a picture without alt text says nothing to a reader who does not see it")


@dataclass(frozen=True)
class Gallery:
    """Small pictures side by side, each with its lines (path, score, verdict) below it; two of a pair share a row."""

    pictures: Sequence[Picture | tuple[Picture, Picture]]
    caption: str = ""


@dataclass(frozen=True)
class Commands:
    """Lines for a shell, to be copied."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values; a value may be a list or again such a mapping."""

    facts: Mapping[str, object]


Part = Heading | Text | Table | Picture | Gallery | Commands | Facts


@dataclass
class _Images:
    """What is left of the bytes for images, and how many pictures found no room."""

    left: int
    dropped: int = 0


def page(title: str, parts: Sequence[Part], limit: int = LIMIT) -> str:
    """The whole page; the same parts give the same bytes.

    Images are embedded in the order of the page while all of them together stay within `limit` bytes. One that would
    not leaves its lines and a remark in its place, and the head of the page says how many did.
    """
    headings = [part for part in parts if isinstance(part, Heading)]
    numbers, images = itertools.count(1), _Images(limit)
    body = [_heading(part, next(numbers)) if isinstance(part, Heading) else _part(part, images) for part in parts]
    if images.dropped:
        left_out = f"{images.dropped} pictures are left out: with them the images would exceed {limit:,} bytes."
        body.insert(0, _part(Text(left_out, warning=True), images))
    if len(headings) > 1:
        body.insert(0, _contents(headings))
    script, style = (path.read_text(encoding="utf-8") for path in (SCRIPT, STYLE))
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape_html(title)}</title>",
        f"<style>{style}</style>",
    ]
    lines = ["<!DOCTYPE html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", "<main>"]
    lines += [f"<h1>{escape_html(title)}</h1>", *body, "</main>", f"<script>{script}</script>", "</body>", "</html>"]
    return "\n".join(lines) + "\n"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _part(part: Part, images: _Images) -> str:
    match part:
        case Text():
            blocks = [re.sub(r"\s*\n\s*", " ", block) for block in re.split(r"\n\s*\n", part.text.strip())]
            prose = "\n".join(f"<p>{escape_html(block)}</p>" for block in blocks)
            return f'<div class="warning" role="note">\n{prose}\n</div>' if part.warning else prose
        case Table():
            return _table(part)
        case Picture():
            return _picture(part, images, "picture")
        case Gallery():
            tiles = "\n".join(_tile(picture, images) for picture in part.pictures)
            return f'<figure>\n{_caption(part.caption)}<div class="gallery">\n{tiles}\n</div>\n</figure>'
        case Commands():
            words = (line.split(" ") for line in part.text.strip("\n").split("\n"))
            lines = "\n".join(" ".join(f"<span>{escape_html(word)}</span>" for word in line) for line in words)
            return f'<div class="commands"><pre><code>{lines}</code></pre></div>'
        case Facts():
            return _facts(part.facts)
    raise TypeError(f"not a part of a page: {part!r}")


def _heading(part: Heading, number: int) -> str:
    return f'<h{part.level} id="s{number}">{escape_html(part.text)}</h{part.level}>'


def _contents(headings: Sequence[Heading]) -> str:
    entries = (
        f'<li class="level{part.level}"><a href="#s{i}">{escape_html(part.text)}</a></li>'
        for i, part in enumerate(headings, 1)
    )
    return '<nav aria-label="Contents">\n<ul>\n' + "\n".join(entries) + "\n</ul>\n</nav>"


def _caption(text: str) -> str:
    return f"<figcaption>{escape_html(text)}</figcaption>\n" if text else ""


def _key(cell: TableCell) -> str | None:
    """The number a cell is sorted by, as JavaScript reads it; empty if it is missing, None if the cell is a word."""
    if cell.key is None:
        found = NUMBER.match(cell.text)
        if not found:
            return "" if cell.text in MISSING else None
        key = float(found[0].replace(",", ""))
    else:
        key = float(cell.key)
    return "" if math.isnan(key) else repr(key).replace("inf", "Infinity")


def _table(table: Table) -> str:
    blocks = [
        [[cell if isinstance(cell, TableCell) else TableCell(cell) for cell in row] for row in rows]
        for rows in (table.rows, table.controls)
    ]
    numeric = []
    for column in zip(*(row for block in blocks for row in block), strict=True):
        keys = {_key(cell) for cell in column}
        numeric.append(None not in keys and keys != {""})
    classes = [' class="number"' if number else "" for number in numeric] or [""] * len(table.header)
    names = zip(classes, table.header, strict=True)
    lines = ["<thead>", "<tr>", *(f'<th scope="col"{kind}>{escape_html(name)}</th>' for kind, name in names)]
    lines += ["</tr>", "</thead>"]
    for name, block in zip(("", ' class="controls"'), blocks, strict=True):
        rows = ["<tr>" + "".join(map(_cell, row, classes, range(len(row)))) + "</tr>" for row in block]
        lines += [f"<tbody{name}>", *rows, "</tbody>"] if rows else []
    label = escape_html(table.caption or "table")
    box = f'<div class="scroll" tabindex="0" role="group" aria-label="{label}">'
    inner = "\n".join(lines)
    return f"<figure>\n{_caption(table.caption)}{box}\n<table>\n{inner}\n</table>\n</div>\n</figure>"


def _cell(cell: TableCell, kind: str, column: int) -> str:
    key = _key(cell)
    shown = escape_html(cell.text)
    if key and (parts := INTERVAL.fullmatch(shown)):  # the interval goes below its value: columns stay narrow
        shown = f"{parts[1]} <small>{parts[2]}</small>{parts[3]}"
    shown = f"<strong>{shown}</strong>" if cell.best else shown
    sorts = "" if key is None else f' data-key="{key}"'
    return f"<td{kind}{sorts}>{shown}</td>" if column else f'<th scope="row"{kind}{sorts}>{shown}</th>'


def _tile(entry: Picture | tuple[Picture, Picture], images: _Images) -> str:
    if isinstance(entry, Picture):
        return _picture(entry, images, "tile")
    both = "\n".join(_picture(picture, images, "tile") for picture in entry)
    return f'<div class="pair">\n{both}\n</div>'


def _picture(part: Picture, images: _Images, kind: str) -> str:
    lines = "\n".join(f"<div>{escape_html(line)}</div>" for line in part.lines)
    below = f"\n<figcaption>\n{lines}\n</figcaption>" if lines else ""
    return f'<figure class="{kind}">\n<div class="frame">{_image(part, images)}</div>{below}\n</figure>'


def _image(part: Picture, images: _Images) -> str:
    """An SVG is an image file like the others: as such a browser runs none of its scripts and loads nothing for it."""
    if isinstance(part.image, str):
        data, mime, size = part.image.encode(errors="backslashreplace"), "image/svg+xml", ""
    else:
        with Image.open(io.BytesIO(part.image), formats=KINDS) as image:
            data, mime = part.image, Image.MIME[image.format or ""]
            size = f' width="{image.width}" height="{image.height}"' + ' class="wide"' * (image.width >= WIDE)
    text = base64.b64encode(data).decode()
    if len(text) > images.left:
        images.dropped += 1
        return f'<p class="dropped">Left out, for the page would grow too large: {escape_html(part.alt)}</p>'
    images.left -= len(text)
    return f'<img src="data:{mime};base64,{text}" alt="{escape_html(part.alt)}"{size}>'


def _facts(facts: Mapping[str, object]) -> str:
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            shown = _facts(value) if value else ""
        else:
            shown = escape_html(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
        lines.append(f"<dt>{escape_html(str(name))}</dt><dd>{shown}</dd>")
    return "<dl>\n" + "\n".join(lines) + "\n</dl>"

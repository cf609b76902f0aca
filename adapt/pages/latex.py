"""Tables of many methods as LaTeX, for a paper: packages booktabs and graphicx."""

import itertools
from dataclasses import replace

from adapt.pages.leaderboard import LIKE_METADATA, TIE, Entry, Table
from adapt.text import plain

COLUMNS, ROWS = 10, 50  # of one part of a table: more would be unreadable, or longer than a page
SPECIAL = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"},
    **{"|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}"},  # a \\ takes a [ or a * behind it for its own
    **{TIE: r"$^{\dagger}$", LIKE_METADATA: r"$^{\ddagger}$", "±": r"$\pm$"},
}
CAPTION = (
    r"Subscript and superscript: 95\,\% interval (over groups and seeds); {\tiny$\pm$}: half the range over seeds. "
    r"Bold: the best of its column, separated from all others in all columns at once; "
    r"$^{\dagger}$: the best and those not separated from it. Rows below the last rule: controls."
)  # of a table in which something is marked
ABOUT_DOUBT = r"$^{\ddagger}$: not surely above what metadata of the files reach on these generators."


def escape(word: str) -> str:
    """Text that LaTeX shows as it is; what is no ASCII stays, for an engine that reads UTF-8."""
    return "".join(SPECIAL.get(c, c) for c in plain(word))


def table(given: Table, name: str) -> str:
    """Table* with booktabs' rules, as wide as the page; one that is too wide or long to be read comes in parts.

    `name` is the label of the first part, NAME-2 that of the second.
    """
    parts = [part for wide in _across(given) for part in _down(wide)]
    return "\n".join(_environment(part, name, i, len(parts)) for i, part in enumerate(parts, start=1))


def _across(given: Table) -> list[Table]:
    """Parts of at most `COLUMNS` columns; those before the first common heading name the rows of every part."""
    names = next((i for i, (group, _) in enumerate(given.header) if group), len(given.header))
    blocks: list[list[int]] = [[]]
    room = max(1, COLUMNS - names)
    for _, of_group in itertools.groupby(range(names, len(given.header)), key=lambda i: given.header[i][0]):
        members = list(of_group)
        for some in (members[i : i + room] for i in range(0, len(members), room)):
            if blocks[-1] and len(blocks[-1]) + len(some) > room:
                blocks.append([])
            blocks[-1] += some
    kept = [[*range(names), *block] for block in blocks]
    return [
        replace(given, header=[given.header[i] for i in some], rows=[[row[i] for i in some] for row in given.rows])
        for some in kept
    ]


def _down(given: Table) -> list[Table]:
    """Parts of at most `ROWS` rows, divided where a line stands."""
    if len(given.rows) <= ROWS:
        return [given]
    cuts = [0]
    for line, after in itertools.pairwise([*given.lines, len(given.rows)]):
        cuts += [line] if after - cuts[-1] > ROWS else []
    ends = itertools.pairwise([*cuts, len(given.rows)])
    return [
        replace(given, rows=given.rows[a:b], lines=[line - a for line in given.lines if a < line < b]) for a, b in ends
    ]


def _environment(given: Table, name: str, number: int, parts: int) -> str:
    kinds = "".join("l" if _words(given, i) else "r" for i in range(len(given.header)))
    marked = any(entry.mark for row in given.rows for entry in row)
    caption = escape(given.title) + (f" ({number} of {parts})" if parts > 1 else "")
    caption += f". {CAPTION}" if marked and number == 1 else ""
    if number == 1 and any(entry.like_metadata for row in given.rows for entry in row):
        caption += f"{'' if marked else '.'} {ABOUT_DOUBT}"
    label = name if number == 1 else f"{name}-{number}"
    lines = [r"\begin{table*}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{{label}}}"]
    lines += [r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", *_heading(given)]
    lines.append(r"\midrule")
    for i, row in enumerate(given.rows):
        lines += [r"\midrule"] if i in given.lines else []
        lines.append(" & ".join(map(_entry, row)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}%", "}", r"\end{table*}"]) + "\n"


def _heading(given: Table) -> list[str]:
    """One line of common headings, with rules beneath, where there are any; then the names."""
    names = " & ".join(escape(name) for _, name in given.header) + r" \\"
    words, rules, first = [], [], 1
    for group, members in itertools.groupby(group for group, _ in given.header):
        n = len(list(members))
        if group:
            words.append(rf"\multicolumn{{{n}}}{{c}}{{{escape(group)}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + n - 1}}}")
        else:
            words += [""] * n
        first += n
    return [" & ".join(words) + r" \\", " ".join(rules), names] if rules else [names]


def _words(given: Table, column: int) -> bool:
    return any(isinstance(row[column].key, str) for row in given.rows)


def _entry(entry: Entry) -> str:
    """The value with its interval below and above it: $0.874_{0.851}^{0.896}$."""
    if not entry.between:
        word = escape(entry.text)
        return rf"\textbf{{{word}}}" if entry.mark == "best" else word
    low, high = entry.between
    value = rf"\mathbf{{{entry.value}}}" if entry.mark == "best" else entry.value
    words = [f"${value}_{{{low}}}^{{{high}}}$"]
    words += [rf"{{\tiny$\pm${entry.spread}}}"] if entry.spread else []
    words += [escape(entry.note)] if entry.note else []
    return r"\,".join(words) + escape(entry.signs)

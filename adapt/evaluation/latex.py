"""Tables of many methods as LaTeX, for a paper: packages booktabs and graphicx."""

import itertools

from adapt.evaluation.leaderboard import TIE, Entry, Table
from adapt.evaluation.tables import plain

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"},
    **{"|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}"},  # a \\ takes a [ or a * behind it for its own
    **{TIE: r"$^{\dagger}$", "±": r"$\pm$"},
}
CAPTION = (
    r"Subscript and superscript: 95\,\% interval (bootstrap over groups); {\tiny$\pm$}: half the range over seeds. "
    r"Bold: the best of its column, separated from all others by a paired bootstrap (no correction); "
    r"$^{\dagger}$: the best and those not separated from it. Rows below the last rule: controls."
)  # of a table in which something is marked


def escape(word: str) -> str:
    """Text that LaTeX shows as it is; what is no ASCII stays, for an engine that reads UTF-8."""
    return "".join(SPECIAL.get(c, c) for c in plain(word))


def table(given: Table, name: str) -> str:
    """A table* with booktabs' rules, as wide as the page; `name` is its label."""
    kinds = "".join("l" if _words(given, i) else "r" for i in range(len(given.header)))
    marked = any(entry.mark for row in given.rows for entry in row)
    caption = escape(given.title) + (f". {CAPTION}" if marked else "")
    lines = [r"\begin{table*}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{{name}}}"]
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
    return r"\,".join(words) + (SPECIAL[TIE] if entry.mark == "tie" else "")

"""A page of Markdown: title, what it must not be taken for, sections, and how the numbers were made."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from adapt.files import write_text
from adapt.text import escape_markdown

EMBEDDED = """\
**Embedded world**: procedural images drawn by this package, not photographs. These numbers show how the methods
behave there; they say nothing about real cameras or generators."""


def write_page(
    path: Path, title: str, sections: Sequence[str], facts: Mapping[str, object], *, embedded: bool = False
) -> None:
    """Write `page` to a file, atomically."""
    write_text(path, page(title, sections, facts, embedded=embedded))


def page(title: str, sections: Sequence[str], facts: Mapping[str, object], *, embedded: bool = False) -> str:
    """The text of a page: blank lines stand between its sections, and the `facts` end it under `Provenance`.

    `embedded`: numbers of the embedded world are among those shown, which a warning under the title says.
    """
    warning = [EMBEDDED] if embedded else []
    return "\n\n".join([f"# {title}", *warning, *sections, "## Provenance", facts_list(facts)]) + "\n"


def picture(name: str, words: str = "") -> str:
    """The section that shows figures/NAME.png, described by `words` or else by its name."""
    return f"![{words or name}](figures/{name}.png)"


def without_marks(markdown: str) -> str:
    """Sentences of a page of Markdown without its marks, for a page of HTML."""
    return markdown.replace("`", "").replace("**", "")


def facts_list(facts: Mapping[str, object], indent: str = "") -> str:
    """A record as nested Markdown bullets."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}- {escape_markdown(str(key))}:", facts_list(value, indent + "  ")]
        else:
            value = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            lines.append(f"{indent}- {escape_markdown(str(key))}: {escape_markdown(value)}")
    return "\n".join(line for line in lines if line)

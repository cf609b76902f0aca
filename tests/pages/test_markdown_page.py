"""Pages of Markdown: exact text, and words of strangers that cannot become marks."""

import pytest

from adapt.pages.markdown_page import EMBEDDED, facts_list, page, picture, without_marks, write_page
from adapt.text import one_line

FACTS = {"command": "adapt x", "versions": {"torch": "2", "deep": {"a|b": [1, "*"]}}, "seeds": (0, 1), "none": {}}
PROVENANCE = r"""## Provenance

- command: adapt x
- versions:
  - torch: 2
  - deep:
    - a\|b: 1, \*
- seeds: 0, 1
- none:
"""


def test_a_page_is_its_sections_between_title_and_provenance(tmp_path) -> None:
    sections = ["About.", "## Part", picture("cost")]
    text = "About.\n\n## Part\n\n![cost](figures/cost.png)\n\n" + PROVENANCE
    assert page("Results", sections, FACTS) == "# Results\n\n" + text
    write_page(tmp_path / "new" / "table.md", "Results", sections, FACTS, embedded=True)
    assert (tmp_path / "new" / "table.md").read_text(encoding="utf-8") == f"# Results\n\n{EMBEDDED}\n\n{text}"
    assert picture("maps_fig", "maps, fig") == "![maps, fig](figures/maps_fig.png)"


@pytest.mark.parametrize("word", ["[a](b)", "`x`", "<b>", "a\nb", "**"])
def test_facts_are_shown_as_they_are(word: str) -> None:
    (line,) = facts_list({word: word}).splitlines()
    key, _, value = line.removeprefix("- ").partition(": ")
    assert key == value and key.replace("\\", "").replace("&lt;", "<") == word.replace("\n", "n")
    assert not any(mark in line.replace("\\" + mark, "") for mark in ("`", "*", "<", "]("))


def test_prose_loses_its_marks_and_a_message_its_lines() -> None:
    assert without_marks("**Embedded**: see `adapt x`.") == "Embedded: see adapt x."
    assert one_line("  no such\n\tkey \n") == "no such key" and one_line("a\n" * 300, 5) == "a a a"

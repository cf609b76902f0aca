import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import zoo
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from adapt.data.images import Unreadable, decode
from adapt.pages import html
from adapt.pages.html import Commands, Facts, Gallery, Heading, Picture, Table, TableCell, Text, page
from adapt.pages.thumbnails import placeholder, thumbnail
from adapt.text import plain

PNG = zoo.save(zoo.picture(), "PNG")
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 30 20" width="300" height="200">'
    '<script>parent.pwned = 1; pwned = 1</script><image href="http://127.0.0.1:9/x.png"/><path d="M0 0L30 20"/></svg>'
)
HOSTILE = [
    "<script>pwned = 1</script>",
    '"><img src=x onerror=pwned=1>',
    "' autofocus onfocus='pwned=1",
    "javascript:pwned=1",
    "</style></title></script><svg onload=pwned=1>",
    "<!--",
    "]]>",
    "&lt;b&gt;&#60;i&#62;&amp",
    "a\nb\r\nc\x00\x1b[31m\x85\u2028",
    "name\udcff\ud800.png",
    "\u202egnp.exe\u2066\u200f\u200b",
    "two  blanks .png",
    "<table><td data-key=\"9\" class='best'>",
]
LETTERS = "<>\"'&;#/=`\\\n\r\0\x1b\u202e\ud800\u2028é漢abcx!- []"  # no digits: a number is a key on purpose


class Elements(HTMLParser):
    """What a page consists of: tags with their attributes and the text between them, in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.script, self.style = [], [""], "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if (tag, attributes) != ("span", []):  # the words of commands
            self.tags.append((tag, dict(attributes)))
            self.texts.append("")

    def handle_data(self, text):
        if self.lasttag in ("script", "style") and not getattr(self, self.lasttag):
            setattr(self, self.lasttag, text)
        self.texts[-1] += text

    def handle_comment(self, text):
        raise AssertionError(f"a comment: {text}")

    handle_pi = unknown_decl = handle_comment

    def all(self, tag: str) -> list[dict]:
        return [attributes for found, attributes in self.tags if found == tag]


def named(name: str) -> str:
    """A page that has the name in every place that takes text."""
    rows = [[name, TableCell(name, key=1.0, best=True)], [TableCell(name), TableCell(name, key=float("nan"))]]
    picture = Picture(PNG, name, (name, name))
    return page(
        name,
        [
            Heading(name),
            Text(f"({plain(name)})"),
            Text(f"({plain(name)})", warning=True),
            Table([name, name], rows, rows, name),
            Heading(name, 3),
            picture,
            Gallery([picture, Picture(SVG, name)], name),
            Commands(name.replace("\n", "\\n")),
            Facts({name: name, f"{name}:": {name: [name, name]}}),
        ],
    )


def test_the_page_is_one_file_that_may_load_and_run_nothing_else():
    found = Elements(named("name"))
    policy = next(meta["content"] for meta in found.all("meta") if "http-equiv" in meta)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digest = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in (("script", found.script), ("style", found.style))
    }
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest['script']}'",
        "style-src": f"'sha256-{digest['style']}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    order = [tag for tag, attributes in found.tags if tag in ("style", "script") or "http-equiv" in attributes]
    assert order == ["meta", "style", "script"]  # a policy says nothing about what stands before it
    assert not re.search(r"url\(|@import|https?:|fetch|XMLHttp|import\(|innerHTML", found.script + found.style)


def check_urls_and_handlers(found: Elements) -> None:
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")]
        assert "src" not in attributes or tag == "img"
        assert "href" not in attributes or (tag == "a" and re.fullmatch(r"#s[0-9]+", attributes["href"]))
    for image in found.all("img"):
        head, _, data = image["src"].partition(",")
        assert re.fullmatch(r"data:image/(png|jpeg|webp|svg\+xml);base64", head)
        base64.b64decode(data, validate=True)
        assert image["alt"].strip()


@settings(max_examples=60, deadline=None)
@given(st.text(LETTERS, max_size=30).map(lambda text: f"n{text}"))
@example("n" + "".join(HOSTILE))
def test_a_name_stays_text_wherever_it_stands(name):
    """Parsed, the page is that of a harmless name with the one name in place of the other, and nothing else."""
    found, harmless = Elements(named(name)), Elements(named("@@"))
    assert found.texts == [text.replace("@@", plain(name)) for text in harmless.texts]
    assert len(found.tags) == len(harmless.tags)
    for (tag, mine), (other, theirs) in zip(found.tags, harmless.tags, strict=True):
        assert (tag, mine) == (other, {key: value.replace("@@", plain(name)) for key, value in theirs.items()})
    check_urls_and_handlers(found)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_shown_and_can_be_written(name):
    text = named(f"n{name}")
    text.encode("utf-8")
    assert all(character.isprintable() or character == "\n" for character in text)
    found = Elements(text)
    assert found.all("h2")[0] == {"id": "s1"}
    assert sum(plain(name) in text for text in found.texts) > 10
    check_urls_and_handlers(found)


def test_what_cannot_be_seen_is_made_visible():
    assert plain("a\u202eb\x1b\udcff\n\u200b\u2028") == "a\\u202eb\\x1b\\udcff\\n\\u200b\\u2028"
    assert plain("é 漢 \U0001f600 العربية") == "é 漢 \U0001f600 العربية"


@pytest.mark.parametrize(
    ("cell", "key"),
    [
        ("0.874 [0.851, 0.896]", "0.874"),
        ("0.874 [0.851, 0.896] sd3", "0.874"),
        ("-0.012 [-0.020, +0.001]", "-0.012"),
        ("2,511,886", "2511886.0"),
        ("1e-4", "0.0001"),
        ("45 %", "45.0"),
        ("12%", "12.0"),
        ("n/a", ""),
        ("", ""),
        ("2024-01-02", None),
        ("0.8x", None),
        ("qf40", None),
        ("1,23", None),
        (TableCell("best", key=3), "3.0"),
        (TableCell("0.5", key=float("nan")), ""),
        (TableCell("never", key=float("-inf")), "-Infinity"),
    ],
    ids=str,
)
def test_keys(cell, key):
    found = Elements(page("t", [Table(["name", "value"], [["a", cell]])]))
    assert found.all("td")[0].get("data-key") == key


def test_a_cell_keeps_its_text_and_the_best_is_bold():
    text = page("t", [Table(["m", "v"], [["a", TableCell("0.874 [0.851, 0.896] sd3", best=True)], ["b", "x [1]"]])])
    assert "<strong>0.874 <small>[0.851, 0.896]</small> sd3</strong>" in text
    assert "<td>x [1]</td>" in text and text.count("<strong>") == 1


def test_columns_of_numbers_are_aligned_as_numbers():
    rows = [["a", "1", "n/a", "n/a", "2"], ["b", "n/a", "n/a", "word", "word"]]
    found = Elements(page("t", [Table(["m", "all", "none", "word", "mixed"], rows)]))
    assert [head.get("class") for head in found.all("th")[:5]] == [None, "number", None, None, None]


def test_controls_stand_in_a_body_of_their_own():
    found = Elements(page("t", [Table(["m"], [["a"], ["b"]], [["c"]])]))
    tags = [(tag, attributes.get("class")) for tag, attributes in found.tags if tag in ("tbody", "tr")]
    assert tags == [("tr", None), ("tbody", None), ("tr", None), ("tr", None), ("tbody", "controls"), ("tr", None)]
    assert len(Elements(page("t", [Table(["m"], [["a"]])])).all("tbody")) == 1


def test_contents_lead_to_the_headings():
    heading = Heading("twice the same")
    found = Elements(page("t", [heading, heading, Heading("below", 3)]))
    ids = [attributes["id"] for tag, attributes in found.tags if tag in ("h2", "h3")]
    assert [a["href"] for a in found.all("a")] == [f"#{name}" for name in ids] and len(set(ids)) == 3
    assert not Elements(page("t", [heading])).all("nav")


def test_prose_divides_at_blank_lines_and_commands_keep_their_lines():
    found = Elements(page("t", [Text("one\ntwo\n\n\nthree\n"), Commands("a -b 'c\x1b'\npython d\n")]))
    assert len(found.all("p")) == 2
    assert [text.rstrip("\n") for text in found.texts[-6:-1]] == [
        "one two",
        "three",
        "",
        "",
        "a -b 'c\\x1b'\npython d",
    ]


def test_pictures_carry_their_kind_and_size():
    files = {kind: zoo.save(zoo.picture(), kind) for kind in ("PNG", "JPEG", "WEBP")}
    found = Elements(page("t", [Picture(data, kind) for kind, data in files.items()])).all("img")
    assert [(i["src"].partition(";")[0], i["width"], i["height"]) for i in found] == [
        (f"data:image/{kind.lower()}", str(zoo.W), str(zoo.H)) for kind in files
    ]
    assert [base64.b64decode(i["src"].partition(",")[2]) for i in found] == list(files.values())
    with pytest.raises(OSError, match="cannot identify"):
        page("t", [Picture(zoo.save(zoo.picture(), "BMP"), "not for browsers")])
    with pytest.raises(ValueError, match="alt text"):
        Picture(PNG, " ")


def test_images_beyond_the_limit_are_left_out_and_counted():
    pictures = [Picture(PNG, f"picture {i}", (f"line {i}",)) for i in range(5)]
    size = len(base64.b64encode(PNG))
    text = page("t", [Picture(PNG, "first"), Gallery(pictures)], limit=3 * size)
    found = Elements(text)
    assert [image["alt"] for image in found.all("img")] == ["first", "picture 0", "picture 1"]
    assert "3 pictures are left out" in text and f"exceed {3 * size:,} bytes" in text
    assert all(f"line {i}" in text for i in range(5))
    assert "Left out, for the page would grow too large: picture 4" in text
    assert len(text) < 3 * size + len(page("t", [])) + 2000
    assert "left out" not in page("t", [Picture(PNG, "first"), Gallery(pictures)], limit=6 * size)


def test_rows_must_fit_their_header():
    with pytest.raises(ValueError, match="1 cells under 2 headers"):
        Table(["a", "b"], [["1"]])
    with pytest.raises(TypeError, match="not a part"):
        page("t", ["text"])


def test_the_same_parts_give_the_same_bytes_in_any_process_and_load_nothing_heavy():
    code = (
        "import hashlib, sys, test_html; print(hashlib.sha256(test_html.named('a').encode()).hexdigest())\n"
        "print(sorted({'torch', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    expected = hashlib.sha256(named("a").encode()).hexdigest()
    # a seed for hashes that this process does not have
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [expected, "[]"]


@pytest.mark.parametrize("name", zoo.files())
def test_a_thumbnail_of_any_file(name):
    data, _ = zoo.files()[name]
    small = Image.open(io.BytesIO(thumbnail(data, 64)))
    assert small.format == "JPEG" and max(small.size) <= 64 and not small.getexif()
    assert not set(small.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    try:
        image = decode(data)
    except Unreadable as error:
        assert thumbnail(data, 64) == placeholder(error.reason, 64) != placeholder("another reason", 64)
    else:
        difference = np.asarray(image).mean((0, 1)) - np.asarray(small).mean((0, 1))
        assert np.abs(difference).max() < 4  # scaling keeps the mean colour


def test_small_images_show_their_pixels_and_large_ones_shrink():
    image = Image.fromarray(zoo.picture())
    large = np.asarray(Image.open(io.BytesIO(thumbnail(image, 160)))).astype(float)
    assert np.abs(large - zoo.picture().repeat(3, axis=0).repeat(3, axis=1)).mean() < 6
    assert Image.open(io.BytesIO(thumbnail(image.resize((100, 60)), 160))).size == (100, 60)
    assert Image.open(io.BytesIO(thumbnail(image.resize((1000, 500)), 160))).size == (160, 80)


def test_a_thumbnail_leaves_metadata_and_its_source_alone():
    image = Image.fromarray(zoo.picture())
    image.info = {"comment": b"secret", "icc_profile": b"secret", "exif": b"secret"}
    assert b"secret" not in thumbnail(image) and len(image.info) == 3 and image.size == (zoo.W, zoo.H)


# In a browser


VALUES = [0.5, None, 0.9, 0.7, float("-inf"), 0.5, 12.0, None, float("-inf")]
COMMANDS = "python recipes/ablation.py --manifest " + "x" * 200 + "\npython b"
NAMES = ["m10", "m9", "a", "Zeta", "beta", "m1", "e", "<b>", "f"]


def report() -> str:
    """A page as the ablation makes it: wide table, long names, a picture, thumbnails, hostile names, commands."""
    rows = [
        [name, TableCell("n/a" if v is None else f"{v} [0.1, 0.2]", key=v), *["0.874 [0.851, 0.896]"] * 7]
        for name, v in zip(NAMES, VALUES, strict=True)
    ]
    wide = Picture(zoo.save(Image.new("RGB", (1600, 900), "teal"), "PNG"), "a wide picture")
    tiles = [Picture(thumbnail(PNG), "tile", (f"{name}{'y' * 70}.png", "0.9", "fake")) for name in HOSTILE]
    table = Table(["method", *(f"a column {i}" for i in range(8))], rows, [["z", *["0.1"] * 8], ["y", *["0.2"] * 8]])
    return page(
        "report " + "x" * 90,
        [
            *(Heading(name) for name in HOSTILE),
            Text("word " * 60 + "x" * 200, warning=True),
            table,
            Table(["name", "z" * 80], [["w" * 300, "v" * 300], *([name, name] for name in HOSTILE)]),
            wide,
            Picture(SVG, "drawing"),
            Gallery(tiles),
            Commands(COMMANDS),
            Facts({"digest": "ab" * 100, "versions": {"torch": "2", "x" * 60: {"deep": "y" * 90}}}),
        ],
    )


@pytest.fixture
def tab(browser, tmp_path):
    """The report, opened from disk, with nothing said so far."""
    file = tmp_path / "report.html"
    file.write_text(report(), encoding="utf-8")
    browser.requests.clear()
    browser.complaints.clear()
    browser.size(1280, 800)
    browser.open(file)
    return browser


def column(tab, number: int, body: int = 0) -> list[str]:
    rows = f"[...document.querySelector('table').tBodies[{body}].rows]"
    return tab.value(f"{rows}.map((row) => row.cells[{number}].textContent)")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_renders_quietly_and_fits(tab, width, scheme):
    tab.size(width, 800, scheme)
    assert tab.value("matchMedia(`(prefers-color-scheme: ${'dark'})`).matches") == (scheme == "dark")
    assert tab.value("document.documentElement.scrollWidth") <= width
    # nothing but a table's own box may be wider than what it stands in
    wide = "[...document.body.querySelectorAll('*')].filter((e) => !e.closest('.scroll') && !e.matches('.frame img'))"
    assert tab.value(f"{wide}.filter((e) => e.getBoundingClientRect().right > {width}).map((e) => e.outerHTML)") == []
    boxes = tab.value("[...document.querySelectorAll('.scroll')].map((e) => [e.clientWidth, e.scrollWidth])")
    assert width > 400 or all(inside > box for box, inside in boxes)  # the phone test does meet tables too wide
    images = tab.value("[...document.images].map((image) => image.complete && image.naturalWidth)")
    assert len(images) == 2 + len(HOSTILE) and all(images)
    frame = tab.value("[...document.querySelectorAll('.frame')].map((e) => [e.clientWidth, e.scrollWidth])")
    assert frame[0][1] == (576 if width == 360 else frame[0][0])  # figures stay legible; nothing else scrolls
    assert all(inside == outside for outside, inside in frame[1:])
    light = tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    assert tab.complaints == []
    assert tab.value("typeof pwned") == "undefined"
    assert all(url.startswith(("file://", "data:image/")) for url in tab.requests) and tab.requests
    assert sum(url.startswith("file://") for url in tab.requests) == 1


@pytest.mark.browser
def test_clicks_sort_and_restore(tab):
    present = [i for i, value in enumerate(VALUES) if value is not None]
    missing = [i for i, value in enumerate(VALUES) if value is None]
    rising = sorted(present, key=lambda i: VALUES[i])
    falling = sorted(present, key=lambda i: -VALUES[i])  # stable: ties keep the order of the page
    for state, order in (
        ("ascending", rising + missing),
        ("descending", falling + missing),
        ("none", range(len(VALUES))),
        ("ascending", rising + missing),
    ):
        tab.click("thead th:nth-child(2) button")
        assert column(tab, 0) == [NAMES[i] for i in order]
        assert column(tab, 0, body=1) == (["y", "z"] if state == "descending" else ["z", "y"])
        heads = tab.value("[...document.querySelectorAll('table')[0].tHead.rows[0].cells].map((h) => h.ariaSort)")
        assert heads == ["none", state, *["none"] * 7]
    tab.click("thead th:nth-child(1) button")
    assert column(tab, 0) == ["<b>", "a", "beta", "e", "f", "m1", "m9", "m10", "Zeta"]  # m9 before m10
    assert tab.value("document.querySelector('thead th:nth-child(2)').ariaSort") == "none"
    assert tab.complaints == []


@pytest.mark.browser
def test_the_keyboard_sorts_too(tab):
    for _ in range(30):  # on until the second header has the focus
        if tab.value("document.activeElement.closest('thead th')?.cellIndex") == 1:
            break
        tab.press("Tab", 9)
    tab.press("Enter", 13, "\r")
    assert tab.value("document.activeElement.closest('th').ariaSort") == "ascending"
    tab.press(" ", 32, " ")
    assert tab.value("document.activeElement.closest('th').ariaSort") == "descending"
    assert column(tab, 0)[0] == "e"


@pytest.mark.browser
def test_without_scripts_the_tables_are_there_and_no_button_is_dead(tab, tmp_path):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(tmp_path / "report.html")
        assert tab.value("document.querySelectorAll('button').length") == 0
        assert column(tab, 0) == NAMES
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.browser
def test_the_policy_stops_what_would_get_into_the_page(tab):
    intruder = '<img src="http://127.0.0.1:9/x.png"><img src="data:," onerror="pwned = 1"><b style="color: red">'
    tab.value(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(intruder)})")
    tab.value("fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')")
    tab.value("new Promise((done) => setTimeout(done, 200))")
    assert tab.value("typeof pwned") == "undefined"
    assert tab.value("getComputedStyle(document.querySelector('b[style]')).color") != "rgb(255, 0, 0)"
    blocked = " ".join(tab.complaints)
    for rule in ("img-src", "script-src", "style-src", "default-src"):
        assert rule in blocked


@pytest.mark.browser
def test_names_look_in_the_browser_as_they_were_given(tab):
    shown = tab.value("[...document.querySelectorAll('h2')].map((h) => h.textContent)")
    assert shown == [plain(name) for name in HOSTILE]
    cells = tab.value("[...document.querySelectorAll('table')[1].rows].map((row) => row.cells[0].innerText)")
    assert cells[2:] == shown  # as laid out: two blanks are two
    assert tab.value("document.querySelectorAll('script, svg, b, i, iframe').length") == 1  # the page's own script
    assert html.SCRIPT.read_text(encoding="utf-8") == tab.value("document.querySelector('script').textContent")


@pytest.mark.browser
def test_commands_are_copied_whole(tab):
    tab.click(".commands button")
    assert tab.value("getSelection().toString()") == COMMANDS

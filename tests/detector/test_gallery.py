"""The page beside the predictions: the right images, counts that add up, names that stay text, little memory."""

import base64
import dataclasses
import io
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from browser import CHROMIUM, Browser
from PIL import Image

from adapt.commands import predict
from adapt.data.inputs import Input
from adapt.detector.detector import Detector
from adapt.detector.gallery import gallery
from adapt.detector.predict import COLUMNS
from adapt.errors import Refusal
from adapt.models.heads.linear import LinearHead
from adapt.models.towers.backbones import load_backbone
from adapt.text import plain

HOSTILE = ["<svg onload=pwned=1>.png", '"><img src=x onerror=pwned=1>.png', "two\nlines.png", "\udcff\udcfe.png"]


def row(path: str, **values) -> dict:
    return dict.fromkeys(COLUMNS) | {"path": path, "status": "ok"} | values


def judged(path: str, logit: float, verdict: str, **values) -> dict:
    return row(path, logit=logit, p_fake=1 / (1 + np.exp(-logit)), verdict=verdict, format="PNG", **values)


def tiles(page: str) -> dict[str, list[str]]:
    """The paths of each gallery, by its heading and caption."""
    found = {}
    for section in re.split(r"<h2 [^>]*>", page)[1:]:
        title = section.split("<", 1)[0]
        for part in section.split("<figcaption>")[1:]:
            caption, _, rest = part.partition("</figcaption>")
            if '<div class="gallery">' in rest:
                name = f"{title}: {caption}"
            if caption.startswith("\n<div>"):
                found.setdefault(name, []).append(re.match(r"\n<div>(.*?)</div>", caption)[1])
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("one") / "a.png"
    file.write_bytes(zoo.save(zoo.picture(), "PNG"))
    return file


def page_of(rows: list[dict], file: Path, pictures: int) -> str:
    return gallery(iter(rows), [Input(r["path"], str(file)) for r in rows], pictures, {"crops": "1"})


def test_the_ends_of_each_verdict_are_shown_once_and_in_order(image) -> None:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=60).round(1)  # with ties
    names = ["real" if x < -0.3 else "unsure" if x < 0.3 else "fake" for x in logits]
    rows = [judged(f"{i:02d}", float(x), name) for i, (x, name) in enumerate(zip(logits, names, strict=True))]
    found = tiles(page_of(rows, image, 5))
    titles = {
        "fake": ("Called fake: Most certain: the highest logits", "Called fake: Least certain: the lowest logits"),
        "unsure": ("Unsure: Nearest to fake", "Unsure: Nearest to real"),
        "real": ("Called real: Least certain: the highest logits", "Called real: Most certain: the lowest logits"),
    }
    assert set(found) == {title for pair in titles.values() for title in pair}
    for verdict, (high, low) in titles.items():
        own = [i for i, name in enumerate(names) if name == verdict]
        assert len(own) > 10
        assert found[high] == [f"{i:02d}" for i in sorted(own, key=lambda i: (-logits[i], i))[:5]]
        assert found[low] == [f"{i:02d}" for i in sorted(own, key=lambda i: (logits[i], i))[:5]]
    few = tiles(page_of(rows[:3], image, 5))  # both ends want all of them
    assert sorted(name for shown in few.values() for name in shown) == ["00", "01", "02"]


def test_counts_add_up_and_reasons_name_files(image) -> None:
    rows = [
        judged(f"f{i}", 3.0, "fake", jpeg_quality=90, jpeg_tables="standard", subsampling="4:2:0") for i in range(3)
    ]
    rows += [judged("c", -3.0, "real", jpeg_quality=77, jpeg_tables="custom", family=None)]
    rows += [judged("p", 2.0, "fake", family="gan", family_probability=0.75)]
    rows += [row(f"cut{i}", status="truncated") for i in range(7)] + [row("<b>", status="too-large", format="PNG")]
    page = page_of(rows, image, 2)
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)</t", line) for line in page.splitlines() if line.startswith("<tr>")]
    for expected in (
        ["fake", "4", "30.8 %"],
        ["real", "1", "7.7 %"],
        ["not judged", "8", "61.5 %"],
        ["all files", "13", "100.0 %"],
        ["90", "3", "3", "0"],
        ["PNG", "1", "1", "0"],
        ["custom tables", "1", "0", "1"],
    ):
        assert expected in cells
    assert "<div>unknown</div>" in page_of([judged("u", 2.0, "fake", family="unknown")], image, 2)
    assert "gan (0.75)" in page and "quality 90, 4:2:0" in page
    named = "&#x27;cut0&#x27;, &#x27;cut1&#x27;, &#x27;cut2&#x27;, &#x27;cut3&#x27;, &#x27;cut4&#x27; and 2 more"
    assert named in page and "&#x27;&lt;b&gt;&#x27;" in page


def test_the_same_rows_give_the_same_bytes_and_a_lost_file_a_placeholder(image, tmp_path) -> None:
    rows = [judged("a", 1.0, "fake")]
    assert page_of(rows, image, 3) == page_of(rows, image, 3)
    lost = page_of(rows, tmp_path / "gone", 3)
    assert lost != page_of(rows, image, 3) and "data:image/jpeg" in lost


def test_memory_does_not_grow_with_the_rows(image) -> None:
    class Inputs:
        def __getitem__(self, number: int) -> Input:
            return Input(str(number), str(image))

    def rows(count: int):
        for i in range(count):
            name = f"{i:07d}" * 30
            yield judged(name, float(i % 997), "fake") if i % 3 else row(name, status="corrupt")

    peaks = []
    for count in (300, 30_000):
        tracemalloc.start()
        page = gallery(rows(count), Inputs(), 4, {})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(page) < 200_000
    assert peaks[1] < 1.5 * peaks[0]


@pytest.fixture(scope="module")
def predicted(tmp_path_factory) -> Path:
    """A real page of hostile names, made by the recipe."""
    folder = tmp_path_factory.mktemp("hostile")
    for seed, name in enumerate(HOSTILE):
        (folder / name).write_bytes(zoo.save(zoo.picture(90, 70, seed=seed), "PNG"))
    (folder / "<b>cut.jpg").write_bytes(b"\xff\xd8nothing")
    backbone = load_backbone("tiny")
    head = LinearHead(backbone.dim)
    with torch.no_grad():
        head.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
    Detector(backbone, head).save(folder.parent / "detector", {})
    predict.main(predict.Config((folder.parent / "detector",), (str(folder),), folder / "x.csv", num_workers=0))
    return folder / "x.html"


def test_the_page_belongs_to_the_output_and_can_be_left_out(predicted, tmp_path) -> None:
    config = predict.Config(
        (predicted.parents[1] / "detector",), (str(predicted.parent),), predicted.with_suffix(".csv")
    )
    before = predicted.read_bytes()
    predicted.unlink()
    predict.main(config)  # its own page is no input
    assert predicted.read_bytes() == before
    image = re.search(rb'src="data:image/jpeg;base64,([^"]+)"', before)[1]
    assert Image.open(io.BytesIO(base64.b64decode(image))).size == (90, 70)
    other = dataclasses.replace(
        config, output=tmp_path / "y.csv", gallery=0, num_workers=0, input=(str(tmp_path / "i"),)
    )
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "a.png").write_bytes(zoo.save(zoo.picture(), "PNG"))
    predict.main(other)
    assert other.output.exists() and not other.output.with_suffix(".html").exists()
    (tmp_path / "z.html").write_text("mine")
    with pytest.raises(Refusal, match=r"z.html exists, without the .*z.parts it was made from"):
        predict.main(dataclasses.replace(other, output=tmp_path / "z.csv", gallery=1))
    assert (tmp_path / "z.html").read_text() == "mine"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_it_is_quiet_in_a_browser_and_fits_a_phone(predicted, tmp_path) -> None:
    with Browser(tmp_path) as tab:
        for width in (360, 1280):
            tab.size(width, 800)
            tab.open(predicted)
            assert tab.value("document.documentElement.scrollWidth") <= width
        images = tab.value("[...document.images].map((image) => image.complete && image.naturalWidth)")
        assert len(images) == len(HOSTILE) and all(images)
        shown = tab.value(
            "[...document.querySelectorAll('.tile figcaption div:first-child')].map((e) => e.textContent)"
        )
        assert sorted(shown) == sorted(plain(name) for name in HOSTILE)
        assert (
            tab.value("typeof pwned") == "undefined" and tab.value("document.querySelectorAll('script').length") == 1
        )
        assert tab.complaints == [] and sum(url.startswith("file://") for url in tab.requests) == 2
        assert all(url.startswith(("file://", "data:image/")) for url in tab.requests)
